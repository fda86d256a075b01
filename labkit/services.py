"""Services: processes in a line that hand records on and lose none, whoever is killed and restarted.

    pipeline = supervise([ingest, clean, aggregate, alert], partial(channel, "posix_mq"), folder)
    pipeline.wait()                     # services that are killed meanwhile are restarted
    pipeline.results()                  # what the last one has yielded

A service is a function. The first one yields records; the others get a state and a record, and yield records:

    def ingest():                       def clean(state, record):       # record is None when there are no more
        yield {"hour": 1, ...}              yield {...}

    supervisor               launches; when a service is killed, launches it again, and sends new ends
      |  post (SCM_RIGHTS)   to it and to its neighbours, who have kept running
    service A  -- records: any channel ----------------->  service B
      outbox   <- "I have handled 17", a pipe -----------    checkpoint

**Nothing is lost**: a record stays in the outbox of A until B has said that it has handled it. B says so when it has
begun, and A sends all from there on. That alone is *at least once*: what B had handled and not confirmed comes again.
**Nothing counts twice**: each record has a number, and B writes its new state, what it yields, and the number in one
transaction of its own database. What comes again is known by its number and passed over. Together: *effectively once*.
It holds for what is in the databases. What a service does to the rest of the world, a mail it sends, may happen twice.
Who is killed again and again is restarted again and again: `pipeline.restarts` tells. Who raises an exception is not.

SQLite writes to its log, and does not wait for the disk (synchronous=NORMAL): whoever is killed loses nothing; a power
cut may take the last moments of one service, and then its neighbours know more than it does.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import itertools
import json
import os
import queue
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from multiprocess import reduction

from labkit.baggage import Baggage, unpacking
from labkit.channels import channel
from labkit.channels.base import Closed, Receiver, Sender
from labkit.launch import WAIT_TIMEOUT, Job, RemoteError, launch

WINDOW = 64
"""Records that may be on the way unconfirmed. Not every channel has its own bound: all signals of a user share one,
and a service would fill it with what the next one takes only when it has room there itself."""

FINISHED = "finished"

Connect = Callable[..., tuple[Sender, Receiver]]
Link = tuple[str, tuple[Sender, Receiver], str, tuple[Receiver, Sender]]
LOOK_ABOUT = 0.02
"""Seconds after which a service that waits for one neighbour listens to the other."""


def supervise(services: Sequence[Callable[..., Any]], connect: Connect, folder: str | Path) -> Pipeline:
    """Run services in a line, each in a process of its own, and restart those that are killed.

    Args:
        services: functions with different names, the source first. Records and states must be JSON.
        connect: opens a channel, connect(label="clean → aggregate"): partial(channel, "pipe", trace=trace).
        folder: for their databases, made if need be, for this user only. A pipeline that finds those of an earlier one
            goes on where that was.

    Raises:
        ValueError: there are fewer than two services, one has no name, two have the same, or the channel may lose or
            reorder records.
        OSError: a channel or the folder is refused; EBUSY, another pipeline works in this folder.
    """
    names = [getattr(f, "__name__", "") for f in services]
    if len(set(names)) < max(2, len(names)) or "" in names:
        raise ValueError(f"a pipeline is two or more functions with different names, not {names}")
    return Pipeline(dict(zip(names, services, strict=True)), connect, Path(folder))


class Pipeline:
    """Services at work. It is awaitable, and ends them when a `with` is left.

    Attributes:
        jobs: the process of each service now, by its name: pipeline.jobs["clean"].kill().
        restarts: (time.monotonic_ns(), name of the service), in the order in which they were restarted.
    """

    def __init__(self, services: dict[str, Callable[..., Any]], connect: Connect, folder: Path):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _locked(folder)
        self.names = list(services)
        self.jobs: dict[str, Job] = {}
        self.restarts: list[tuple[int, str]] = []
        self._services, self._connect, self._folder = services, connect, folder
        self._posts: dict[tuple[str, str], socket.socket] = {}  # of each service: "before", "behind"
        self._news: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._finished: set[str] = set()
        self._failure: BaseException | None = None
        self._ended = threading.Event()
        try:
            links = [self._open(left, right) for left, right in itertools.pairwise(self.names)]
            for name in self.names:
                Memory(self.database(name)).close()  # so that everybody can read it from now on
                self._start(name)
            for link in links:
                self._join(*link)
        except BaseException:
            self._end()
            raise
        threading.Thread(target=self._supervise, name="labkit supervisor", daemon=True).start()

    # --- the supervisor ---------------------------------------------------------------------------------------

    def _supervise(self) -> None:
        """Hear of every service that ends, until all have finished."""
        try:
            while len(self._finished) < len(self.names) and (job := self._news.get()):
                self._has_ended(job)
        except BaseException as failure:
            self._failure = failure
        self._end()

    def _has_ended(self, job: Job) -> None:
        name = job.name
        if job.exitcode == 0:
            if job.wait() != FINISHED:
                raise RemoteError(f"{name} (pid {job.pid}) called sys.exit() before it had handled everything")
            self._finished.add(name)
            if before := self._neighbour(name, -1):
                self._posts.pop((before, "behind")).close()  # which tells it that all has been handled
        elif job.exitcode is not None and job.exitcode < 0:
            self.restarts.append((time.monotonic_ns(), name))
            self._start(name)
            for left, right in ((self._neighbour(name, -1), name), (name, self._neighbour(name, +1))):
                if left and right:
                    self._join(*self._open(left, right))
        else:  # an exception: the next attempt would find the same record and raise it again
            job.wait()

    def _neighbour(self, name: str, step: int) -> str | None:
        place = self.names.index(name) + step
        return self.names[place] if 0 <= place < len(self.names) else None

    def _start(self, name: str) -> None:
        """Launch a service, with two sockets through which it will be sent its ends."""
        theirs: list[socket.socket | None] = []
        for side, step in (("before", -1), ("behind", +1)):
            neighbour = self._neighbour(name, step)
            if neighbour is None:
                theirs.append(None)
                continue
            ours, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            if old := self._posts.pop((name, side), None):
                old.close()
            theirs.append(there)
            if side == "behind" and neighbour in self._finished:
                ours.close()
            else:
                self._posts[name, side] = ours
        try:
            self.jobs[name] = job = launch(_serve, self._services[name], self.database(name), *theirs, name=name)
        finally:
            for there in filter(None, theirs):
                there.close()
        job.when_ended(self._news.put)

    def _open(self, left: str, right: str) -> Link:
        """A new channel between two neighbours, and a pipe back, for what is confirmed."""
        tx, rx = self._connect(label=f"{left} → {right}")
        if not (rx.facts.reliable and rx.facts.ordered):
            tx.close()
            rx.close()
            raise ValueError(
                f"a {rx.kind} may lose or reorder records: take another kind of channel, see labkit.facts()"
            )
        confirm, confirmed = channel("pipe")
        return left, (tx, confirmed), right, (rx, confirm)

    def _join(self, left: str, there: tuple[Any, ...], right: str, here: tuple[Any, ...]) -> None:
        """Send both neighbours their ends."""
        self._hand_over(left, "behind", *there)
        self._hand_over(right, "before", *here)

    def _hand_over(self, name: str, side: str, *ends: Any) -> None:
        """Send ends to a running service: they are its own, as with `launch`."""
        job = self.jobs[name]
        if trace := getattr(ends[0], "trace", None):
            trace.add_process(job.pid, name)
            job.when_ended(lambda job: trace.process_ended(job.pid, job.status))
        with contextlib.suppress(KeyError, ConnectionError):  # it has finished, or was killed: we shall hear of that
            _post(self._posts[name, side], ends)
        for end in ends:
            end.given_away()
            job.when_ended(lambda _, clear_up=end.aftermath: clear_up())  # type: ignore[misc]

    def _end(self) -> None:
        for job in self.jobs.values():
            job.kill()
        for post in self._posts.values():
            post.close()
        self._posts.clear()
        for job in self.jobs.values():
            with contextlib.suppress(RemoteError, TimeoutError):
                job.wait(10)
        os.close(self._lock)
        self._ended.set()

    # --- for who has it ---------------------------------------------------------------------------------------

    def wait(self, timeout: float | None = WAIT_TIMEOUT) -> list[Any]:
        """Wait until the last service has finished; returns its results.

        Raises:
            TimeoutError: they still work after `timeout` seconds.
            RemoteError: a service raised an exception; the others were ended.
            ValueError: the pipeline was ended by close().
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"the services still work after {timeout:g} s: wait longer, or end them with close()")
        for job in self.jobs.values():
            with contextlib.suppress(RemoteError):
                job.wait()
        if self._failure:
            raise self._failure
        if len(self._finished) < len(self.names):
            raise ValueError("the services were ended by close() before they had finished; begin again with supervise")
        return self.results()

    def __await__(self) -> Generator[Any, None, list[Any]]:
        """As wait(), while a notebook's widgets work."""
        import asyncio

        return asyncio.to_thread(self.wait).__await__()

    def results(self, name: str | None = None) -> list[Any]:
        """What a service, the last unless named, has yielded and nobody has handled: from its database."""
        with contextlib.closing(sqlite3.connect(self.database(name))) as db:
            return [
                json.loads(message) for (message,) in db.execute("select message from outbox order by n") if message
            ]

    def handled(self) -> dict[str, int]:
        """How many records each service has handled for good; of the source, how many it has yielded."""
        counts = {}
        for name in self.names:
            with contextlib.closing(sqlite3.connect(self.database(name))) as db:
                counts[name] = db.execute("select handled from checkpoint").fetchone()[0]
        return counts

    def database(self, name: str | None = None) -> Path:
        """The SQLite file of a service, of the last unless named: tables `checkpoint` and `outbox`."""
        name = name or self.names[-1]
        if name not in self.names:
            raise ValueError(f"no service called {name!r}; there are: {', '.join(self.names)}")
        return self._folder / f"{name}.sqlite"

    def close(self) -> None:
        """End the services, with SIGKILL: they are made for that. Their databases stay."""
        self._news.put(None)
        self._ended.wait(10)
        for job in self.jobs.values():
            with contextlib.suppress(RemoteError):
                job.wait()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        line = " → ".join(f"{name} ({self.jobs[name].status})" for name in self.names)
        return f"<services {line}, {len(self.restarts)} restarts>"


def _locked(folder: Path) -> int:
    """A descriptor of the folder, which locks it: flock(2). Two pipelines there would spoil each other's counts."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        why = "another pipeline works in this folder: close() that first, or take another folder"
        raise OSError(errno.EBUSY, why, str(folder)) from None
    return fd


# --- in a service's process -----------------------------------------------------------------------------------


def _serve(f: Callable[..., Any], path: Path, before: socket.socket | None, behind: socket.socket | None) -> str:
    """The life of a service, which may be its second."""
    with contextlib.closing(Memory(path)) as memory:
        outlet = Outlet(behind, memory)
        if before is None:
            inlet = None
            records: Iterable[tuple[int, Any]] = _source(f, memory)
        else:
            inlet = Inlet(before, memory)
            records = inlet.records(meanwhile=outlet.pump)
        for number, record in records:
            yielded = [record] if inlet is None else list(_checked(f, f(memory.state, record)))
            if record is None and inlet is not None:
                yielded.append(None)
            memory.keep(number, yielded, ended=record is None)
            if inlet:
                inlet.confirm()
            outlet.pump()
        while not outlet.empty():
            outlet.pump(LOOK_ABOUT)
    return FINISHED


def _source(f: Callable[..., Any], memory: Memory) -> Iterator[tuple[int, Any]]:
    """What a source yields, from where it was before: it must yield the same again. Then None."""
    if not memory.ended:
        records = itertools.chain(_checked(f, f()), [None])
        yield from enumerate(itertools.islice(records, memory.handled, None), memory.handled + 1)


def _checked(f: Callable[..., Any], yielded: Any) -> Iterator[Any]:
    """The records that a service yields."""
    if isinstance(yielded, str | bytes | Mapping):
        kind = type(yielded).__name__
        raise TypeError(f"{f.__name__} returned a {kind}, and not records: `yield` it, or return a list of records")
    for record in () if yielded is None else yielded:
        if record is None:
            raise ValueError(f"{f.__name__} yielded None, which would say that no more records come")
        yield record


def _loads(text: str) -> Any:
    """What is in the JSON. With NaN in it, it is equal to nothing."""
    return json.loads(text, parse_constant=lambda _: object())


class Memory:
    """What a service knows for good: how far it is, its state, and what it has yielded that is not handled yet."""

    def __init__(self, path: Path):
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.executescript(
            "pragma journal_mode = wal; pragma synchronous = normal;"
            "create table if not exists checkpoint (handled integer, yielded integer, ended integer, state text);"
            "create table if not exists outbox (n integer primary key, message text);"
            "insert into checkpoint select 0, 0, 0, '{}' where not exists (select * from checkpoint);"
        )
        row = self.db.execute("select handled, yielded, ended, state from checkpoint").fetchone()
        self.handled, self.yielded, self.ended, self.state = row[0], row[1], bool(row[2]), json.loads(row[3])

    def keep(self, number: int, yielded: list[Any], ended: bool) -> None:
        """The one transaction: record `number` is handled, this is the state now, and this was yielded."""
        begin = self.yielded + 1
        rows = [(n, "" if record is None else json.dumps(record)) for n, record in enumerate(yielded, begin)]
        state = json.dumps(self.state)
        if (again := _loads(state)) != self.state and again == _loads(state):
            raise TypeError(
                f"after a restart the state would be another, {state}: what is in JSON has text for keys, and no tuples"
            )
        self.db.execute("begin immediate")
        self.db.executemany("insert into outbox values (?, ?)", rows)
        update = "update checkpoint set handled = ?, yielded = ?, ended = ?, state = ?"
        self.db.execute(update, (number, begin + len(rows) - 1, ended, state))
        self.db.execute("commit")
        self.handled, self.yielded, self.ended = number, begin + len(rows) - 1, ended

    def outbox(self, begin: int) -> list[tuple[int, str]]:
        return self.db.execute("select n, message from outbox where n >= ? order by n", (begin,)).fetchall()

    def forget(self, number: int) -> None:
        """Up to this number all is handled by who comes behind."""
        self.db.execute("delete from outbox where n <= ?", (number,))

    def close(self) -> None:
        self.db.close()


class Side:
    """A side of a service, with the ends that it has there, or None."""

    def __init__(self, post: socket.socket | None, memory: Memory):
        self.post, self.memory = post, memory
        self.ends: tuple[Any, Any] | None = None

    def renew(self) -> None:
        """Wait for new ends from the supervisor. Raises EOFError when no more will come."""
        assert self.post
        self.ends = _take(self.post)

    def drop(self) -> None:
        """The neighbour has gone: with it, what was between us."""
        for end in self.ends or ():
            end.close()
        self.ends = None


class Inlet(Side):
    """Where records come from. After its sender was restarted it gets new ends, and tells them how far it is."""

    def records(self, meanwhile: Callable[[], None]) -> Iterator[tuple[int, Any]]:
        """Each record once, with its number, until None has come."""
        while not self.memory.ended:
            try:
                if self.ends is None:
                    self.renew()
                    self.confirm()
                assert self.ends
                count, _, message = self.ends[0].receive(LOOK_ABOUT).partition(b" ")
                number, expected = int(count), self.memory.handled + 1
                if number > expected:
                    raise OSError(errno.EBADMSG, f"record {expected:,} is missing: the channel has lost it")
                if number == expected:  # else it comes again, and we have it
                    yield number, json.loads(message) if message else None
            except TimeoutError:
                meanwhile()
            except Closed:
                self.drop()

    def confirm(self) -> None:
        """Say how far we are. When there is no room to say it, the next time will do: it counts all before."""
        if self.ends:
            with contextlib.suppress(TimeoutError, Closed):
                self.ends[1].send(b"%d" % self.memory.handled, timeout=0)


class Outlet(Side):
    """Where records go: out of the outbox, which forgets them when they are confirmed. A full channel makes it wait."""

    def __init__(self, post: socket.socket | None, memory: Memory):
        super().__init__(post, memory)
        self.next = self.handled = 0

    def pump(self, patience: float = 0) -> None:
        """Send what is not sent yet; wait so many seconds for it to be confirmed."""
        while self.post:
            try:
                if self.ends is None:
                    self.renew()
                    self._confirmed(None)
                    self.next = self.handled + 1
                assert self.ends
                for number, message in self.memory.outbox(self.next):
                    while number > self.handled + WINDOW:
                        self._confirmed(LOOK_ABOUT)
                    self.ends[0].send(b"%d %s" % (number, message.encode()), timeout=None)
                    self.next = number + 1
                self._confirmed(patience)
                return
            except Closed:
                self.drop()
            except EOFError:  # who comes behind has finished, and so it has handled everything
                self.post = None
                self.memory.forget(self.memory.yielded)

    def _confirmed(self, patience: float | None) -> None:
        """Hear how far the next one is."""
        assert self.ends
        before = self.handled
        with contextlib.suppress(TimeoutError):
            while True:
                self.handled = int(self.ends[1].receive(patience))
                patience = 0
        if self.handled > before:
            self.memory.forget(self.handled)

    def empty(self) -> bool:
        return self.post is None or self.handled == self.memory.yielded


# --- ends for a process that runs already ---------------------------------------------------------------------


def _post(post: socket.socket, ends: tuple[Any, ...]) -> None:
    baggage, text = Baggage(), io.BytesIO()
    with baggage.packing():
        reduction.ForkingPickler(text).dump(ends)
    try:
        socket.send_fds(post, [text.getvalue()], baggage.descriptors)
    finally:
        baggage.arrived()


def _take(post: socket.socket) -> tuple[Any, Any]:
    """The next ends from the supervisor, our parent. Raises EOFError when no more will come."""
    text, fds, _, _ = socket.recv_fds(post, 1 << 16, 32, socket.MSG_CMSG_CLOEXEC)
    if not text:
        raise EOFError("no more ends will come")
    with unpacking(fds):
        ends: tuple[Any, Any] = reduction.ForkingPickler.loads(text)
    return ends
