"""Processes that the notebook starts: launch(f, tx) runs f in a child that owns tx.

Children come from the forkserver of the package multiprocess, with labkit already loaded: a Jupyter kernel has threads,
and a process with threads must not be forked (fork(2); locks held by other threads stay locked for ever).

    parent                          forkserver                 child
    f as dill bytes, ends as
    descriptors (SCM_RIGHTS)  --->  fork(2)             --->   arms its lifeline, says "running", calls f
    report: ("running", …)    <------------------------------  ("result", …) or ("error", …), then exits

A child never outlives the process that launched it: the kernel sends it SIGKILL when the parent's end of a pipe, the
leash, closes.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib
import io
import os
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from types import ModuleType
from typing import Any

import dill
import multiprocess
from multiprocess import connection, forkserver, popen_forkserver, reduction, spawn

from labkit import machine
from labkit.channels.base import Endpoint, Waiter, all_have_arrived
from labkit.leash import arm

START_TIMEOUT = 60.0
"""Seconds until a child must be running. The first launch loads labkit into the forkserver."""

WAIT_TIMEOUT = 60.0
"""Seconds that wait() waits unless told otherwise."""


class RemoteError(RuntimeError):
    """What went wrong in a child: the exception it raised, with its traceback, or the signal that killed it.

    Attributes:
        traceback: the child's own traceback as text, None when it was killed.
        exitcode: its exit status, negative for a signal's number.
    """

    def __init__(self, text: str, traceback: str | None = None, exitcode: int | None = None):
        super().__init__(text)
        self.traceback = traceback
        self.exitcode = exitcode


class Process:
    """A process that was started here: its pid, how it ended, and who wants to be told so."""

    def __init__(self, name: str, pid: int):
        self.name = name
        self.pid = pid
        self.exitcode: int | None = None
        """The exit status, negative for a signal's number, None while it runs: waitpid(2)."""
        self._lock = threading.Lock()
        self._observers: list[Callable[[Any], None]] = []
        self._ended = threading.Event()

    def _has_ended(self, exitcode: int | None) -> None:
        with self._lock:
            self.exitcode = exitcode
            observers, self._observers = self._observers, []
        for observer in observers:
            with contextlib.suppress(Exception):
                observer(self)
        self._ended.set()  # last: whoever has waited finds everything in order

    def when_ended(self, observer: Callable[[Any], None]) -> None:
        """Call `observer(self)` once when the process has ended, from another thread, or now when it has already."""
        with self._lock:
            if self.exitcode is None:
                self._observers.append(observer)
                return
        observer(self)

    def was_handed(self, things: Any, wall: str = "") -> None:
        """Have what a killed process leaves of its ends removed, and the traces that it records in told of it.

        Args:
            things: what it was handed, endpoints and traced locks among it.
            wall: the kinds of namespaces that it is inside of.
        """
        ends = list(ends_in(things))
        for clear_up in {end.aftermath for end in ends}:
            self.when_ended(lambda _, clear_up=clear_up: clear_up())  # type: ignore[misc]
        traced = (getattr(thing, "trace", None) for thing in (*ends, *traced_locks_in(things)))
        for trace in {trace for trace in traced if trace}:
            trace.add_process(self.pid, self.name, wall)
            self.when_ended(lambda who, trace=trace: trace.process_ended(who.pid, who.status))  # type: ignore[misc]

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.exitcode is None

    @property
    def status(self) -> str:
        """What has become of it, in words."""
        code = self.exitcode
        if code is None:
            return "running"
        if code >= 0:
            return f"exited {code}"
        named = -code in set(signal.Signals)  # real-time signals have numbers only
        return f"killed by {signal.Signals(-code).name if named else f'signal {-code}'}"

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, SIGKILL unless told otherwise: kill(2). Nothing happens when it has ended."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Job(Process):
    """A running child. It is awaitable: `await job` lets a notebook's widgets work meanwhile."""

    def __init__(self, process: Any, pid: int, report: Any, leash: Any, name: str):
        super().__init__(name, pid)
        self._process = process
        self._report = report
        self._leash = leash
        self._outcome: tuple[str, Any] = ("nothing", None)
        _jobs.add(self)
        threading.Thread(target=self._watch, name=f"labkit watches {name}", daemon=True).start()

    def _watch(self) -> None:
        """Read what the child reports until it ends, whatever way it ends."""
        try:
            with contextlib.suppress(EOFError, OSError):
                # End of file alone would not do: a process that the child has forked may hold the pipe open.
                while self._report in connection.wait([self._report, self._process.sentinel]):
                    self._outcome = self._report.recv()
            self._process.join()
            self._report.close()
            self._leash.close()
        finally:
            _jobs.discard(self)
            code = self._process.exitcode
            with contextlib.suppress(ValueError):  # it runs: it could not be waited for
                self._process.close()  # its descriptors; a job may be remembered for long
            self._has_ended(code)

    def wait(self, timeout: float | None = WAIT_TIMEOUT) -> Any:
        """Wait until the child has ended; returns what its function returned.

        Ctrl-C (interrupting the kernel) meanwhile stops every job.

        Raises:
            TimeoutError: it still runs after `timeout` seconds; 0 never waits, None waits for ever.
            ValueError: it would have to wait a negative time.
            RemoteError: its function raised, or it was killed.
        """
        Waiter(timeout)  # refuses what is no timeout
        try:
            if not self._ended.wait(None if timeout is None else min(timeout, threading.TIMEOUT_MAX)):
                raise self._patience(timeout)
        except KeyboardInterrupt:
            stop_all()
            raise
        return self._result()

    def _patience(self, timeout: float | None) -> TimeoutError:
        return TimeoutError(
            f"{self.name} (pid {self.pid}) still runs after {timeout:g} s: wait longer with wait(timeout=...), "
            "or end it with kill()"
        )

    def _result(self) -> Any:
        kind, value = self._outcome
        if kind == "result":
            return dill.loads(value)
        if kind == "error":
            raise RemoteError(f"{self.name} (pid {self.pid}) raised\n\n{value}", value, self.exitcode)
        how = self.status if "killed" in self.status else f"ended without a result: {self.status}"
        raise RemoteError(f"{self.name} (pid {self.pid}) {how}", None, self.exitcode)

    def __await__(self) -> Generator[Any, None, Any]:
        """As wait(), with its usual patience, while the notebook's widgets work."""
        return self._finish(WAIT_TIMEOUT).__await__()

    async def _finish(self, timeout: float) -> Any:
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def tell(_: Job | None = None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone
                loop.call_soon_threadsafe(lambda: None if ended.done() else ended.set_result(None))

        self.when_ended(tell)
        patience = loop.call_later(timeout, tell)  # wait_for() of Python 3.11 may swallow that this is cancelled
        try:
            await ended
        finally:
            patience.cancel()
        if self.alive:
            raise self._patience(timeout)
        if self._outcome[0] == "error" and self._outcome[1].endswith("KeyboardInterrupt"):
            # Most front ends interrupt the child together with this kernel, which then ends this wait in a moment.
            await asyncio.sleep(0.2)
        return self._result()

    def __repr__(self) -> str:
        return f"<job {self.name}, pid {self.pid}, {self.status}>"


_jobs: set[Job] = set()  # a job that runs is here, and kept alive by its thread
_start = threading.Lock()


def launch(f: Callable[..., Any], *args: Any, name: str | None = None, inside: Any = None) -> Job:
    """Run f(*args) in a process of its own; returns when that process runs.

    Endpoints among the arguments (also inside a list, tuple or dict) are given away: the child has them, our copies are
    closed, and so end of file arrives by itself. To keep one, hand over `tx.clone()`. f may be defined in the notebook
    and may use what the notebook has imported and defined; it gets a copy.

    Args:
        f: any function.
        args: its arguments.
        name: what views and errors call the process, f's own name unless given.
        inside: namespaces in which it is to run: labkit.isolation.namespace.

    Raises:
        TypeError: f or an argument cannot be sent to another process; the text says which and why.
        ValueError: an end among the arguments is closed, or there are more than some 250 of them.
        RemoteError: the child did not come up.
    """
    name = str(name or getattr(f, "__name__", type(f).__name__))
    payload = dumped(f, name)
    ends = list(ends_in(args))
    for end in ends:
        end._must_be_open()
    follow_ipython()
    with contextlib.ExitStack() as undo:  # whatever happens before there is a job, Ctrl-C included, leaves nothing
        with _ctrl_c_waits():
            report, report_there = _pipe(undo)
            leash_there, leash = _pipe(undo)
            process = _Process(
                target=_run, args=(payload, report_there, leash_there, _Parcel(name, args), inside), name=name
            )
            with _start:
                _preload()
                _begin(process)
            all_have_arrived(process._popen)
            undo.callback(_kill, process)
            report_there.close()
            leash_there.close()
            for end in ends:
                end.given_away()
        try:
            if not report.poll(START_TIMEOUT):
                raise RemoteError(f"{name} (pid {process.pid}) did not come up within {START_TIMEOUT:g} s")
            pid = _came_up(report.recv(), name)
        except (EOFError, OSError):
            process.join()
            raise RemoteError(
                f"{name} (pid {process.pid}) did not come up (exit status {process.exitcode}): "
                "its own words, if any, are on standard error",
                exitcode=process.exitcode,
            ) from None
        with _ctrl_c_waits():
            job = Job(process, pid, report, leash, name)
            undo.pop_all()  # from here on they are the job's
    job.was_handed(args, ", ".join(inside.kinds) if inside else "")
    return job


def _came_up(said: tuple[str, Any], name: str) -> int:
    """The pid of the child, from its first words; or what kept it from coming up."""
    kind, value = said
    if kind == "error":
        raise RemoteError(f"{name} did not come up\n\n{value}", value)
    return int(value)


def _pipe(undo: contextlib.ExitStack) -> tuple[Any, Any]:
    """A pipe, reading end first, that is closed when `undo` says so."""
    reading, writing = _context.Pipe(duplex=False)
    undo.callback(reading.close)
    undo.callback(writing.close)
    return reading, writing


@contextlib.contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Hold Ctrl-C back until the block is done: in the middle of a start multiprocess would leave pipes open."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    pressed: list[Any] = []
    signal.signal(signal.SIGINT, lambda *arguments: pressed.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if pressed:
            handler(*pressed[0])


def _begin(process: Any) -> None:
    """Start a process, also when the forkserver is just dying: a Ctrl-C while it loads ends it."""
    for patience in (0.05, 0.2, 1.0):
        try:
            process.start()
            return
        except (EOFError, ConnectionError):
            time.sleep(patience)  # until it can be reaped; the next start makes a new one
    process.start()


def _kill(process: Any) -> None:
    process.kill()
    process.join()


def jobs() -> list[Job]:
    """The children that still run."""
    return sorted(_jobs, key=lambda job: job.pid)


def stop_all(grace: float = 1.0) -> None:
    """End every job: SIGINT first, SIGKILL for those that still run after `grace` seconds."""
    running = jobs()
    deadline = time.monotonic() + grace
    for job in running:
        job.kill(signal.SIGINT)
    for job in running:
        if not job._ended.wait(max(0.0, deadline - time.monotonic())):
            job.kill()
    for job in running:
        job._ended.wait(5)


atexit.register(stop_all)  # before multiprocess's own exit handler, which would wait for the children instead


def _run(payload: bytes, report: Any, leash: Any, parcel: bytes, inside: Any) -> None:
    """The child's main function."""
    code: Any = 0
    args: tuple[Any, ...] = ()
    outcome: tuple[str, bytes | str]
    try:
        if inside is not None:
            inside.fork_through(report.close)
        _die_with_parent(leash.fileno())
        report.send(("running", machine.known_pid()))
        args = dill.loads(parcel)
        if inside is not None:  # with what it was handed outside, as a process has its descriptors
            inside.go_through()
        outcome = ("result", _result_of(dill.loads(payload), args))
    except BaseException as error:
        tb = error.__traceback__
        while tb and tb.tb_next and tb.tb_frame.f_code.co_filename == __file__:
            tb = tb.tb_next  # the reader's own code comes first
        text = "".join(traceback.format_exception(type(error), error, tb)).rstrip()
        outcome, code = ("error", text), error.code if isinstance(error, SystemExit) else 1
        if not code:  # sys.exit(0) is a way to end well
            outcome = ("result", pickled(None))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # too late to stop: what is left is to say how it went
    for end in (*ends_in(args), *traced_locks_in(args)):
        end.close()
    stop_all()  # jobs of our own; multiprocess would wait for them
    report.send(outcome)
    if code:
        sys.exit(code)


def _result_of(f: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
    result = f(*args)
    try:
        return pickled(result)
    except Exception as reason:
        raise TypeError(f"the result, a {type(result).__name__}, cannot be sent back: {reason}") from reason


def _die_with_parent(leash: int) -> None:
    """Have the kernel kill this process when its parent has gone, even while compiled code holds the GIL."""
    arm(leash, os.getpid())
    poll = select.poll()
    poll.register(leash, select.POLLIN)
    if poll.poll(0):  # it went before the signal was armed
        os.kill(os.getpid(), signal.SIGKILL)


def ends_in(value: Any) -> Iterator[Endpoint]:
    """The endpoints in an argument list."""
    return (item for item in _items(value) if isinstance(item, Endpoint))


def traced_locks_in(value: Any) -> Iterator[Any]:
    """The traced locks in an argument list. There are none where labkit.traced was never loaded."""
    traced = sys.modules.get("labkit.traced")
    return (item for item in _items(value) if traced and isinstance(item, traced.TracedLock))


def _items(value: Any) -> Iterator[Any]:
    """What is in an argument list, also inside lists, tuples, sets and dictionaries."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _items(item)
    else:
        yield value


def dumped(f: Any, name: str) -> bytes:
    """The function with everything it refers to, as bytes.

    Raises:
        TypeError: it cannot be sent; the text names the variable that is to blame.
    """
    if not callable(f):
        raise TypeError(
            f"launch takes a function and its arguments, not {type(f).__name__}: launch(f, x), not launch(f(x))"
        )
    try:
        return pickled(f)
    except Exception as reason:
        culprit = _culprit(f)
        raise TypeError(
            f"{name} cannot be sent to another process: {culprit or reason}. "
            "Hand it over as an argument, or make it inside the function"
        ) from None


def _culprit(f: Any) -> str | None:
    code = getattr(f, "__code__", None)
    if code is None:
        return None
    used = {n: f.__globals__[n] for n in code.co_names if n in f.__globals__}
    for variable, cell in zip(code.co_freevars, f.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not assigned yet
            used[variable] = cell.cell_contents
    for variable, value in used.items():
        try:
            pickled(value)
        except Exception as reason:
            return f"its variable {variable!r}, a {type(value).__name__}, stays in this process ({reason})"
    return None


class _Parcel:
    """The arguments on their way: what is a parcel here arrives as bytes, to be opened where errors are reported.

    Functions among them bring what they refer to, as f does; descriptors travel as multiprocess sends them.
    """

    def __init__(self, name: str, args: tuple[Any, ...]):
        self.name = name
        self.args = args

    def __reduce__(self) -> Any:
        try:
            return bytes, (pickled(self.args, reduction.ForkingPickler),)
        except Exception:
            for number, argument in enumerate(self.args, 1):
                try:
                    pickled(argument, reduction.ForkingPickler)
                except Exception as reason:
                    raise TypeError(
                        f"argument {number} of {self.name}, a {type(argument).__name__}, "
                        f"cannot be sent to another process: {reason}"
                    ) from None
            raise


def pickled(value: Any, pickler: type = dill.Pickler) -> bytes:
    """Pickled by value, with what a function refers to, except for modules: the child imports those itself."""

    class ModulesByName(pickler):
        __module__ = pickler.__module__  # by which dill knows its own

        def reducer_override(self, thing: Any) -> Any:
            if isinstance(thing, ModuleType) and thing.__name__ != "__main__":
                return importlib.import_module, (thing.__name__,)
            return NotImplemented

    buffer = io.BytesIO()
    ModulesByName(buffer, recurse=True).dump(value)
    return buffer.getvalue()


# --- multiprocess, made to fit -----------------------------------------------------------------

_context = multiprocess.get_context("forkserver")
_starting = threading.local()
_prepare = spawn.get_preparation_data


def _prepare_without_main(name: str) -> dict[str, Any]:
    """What a child must know of us, except for our main module, when it is ours.

    The function travels by value. To import the main script again would demand the `if __name__ == "__main__"` guard
    of every script.
    """
    data: dict[str, Any] = _prepare(name)
    if getattr(_starting, "ours", False):
        data.pop("init_main_from_name", None)
        data.pop("init_main_from_path", None)
    return data


spawn.get_preparation_data = _prepare_without_main


class _Popen(popen_forkserver.Popen):
    def __init__(self, process_obj: Any):
        self._reading = threading.Lock()
        super().__init__(process_obj)

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """As waitpid(2). The exit status can be read only once, and any thread that starts a process asks for it."""
        if flag != os.WNOHANG and self.returncode is None:
            connection.wait([self.sentinel])
        with self._reading:
            status: int | None = super().poll(os.WNOHANG)
            return status

    def _launch(self, process_obj: Any) -> None:
        _starting.ours = True
        try:
            super()._launch(process_obj)
        finally:
            _starting.ours = False


class _Process(_context.Process):  # type: ignore[name-defined]
    @staticmethod
    def _Popen(process_obj: Any) -> _Popen:
        return _Popen(process_obj)


def _preload() -> None:
    """Tell the forkserver what to load before its first child; what takes long only when we use it ourselves.

    While others still run, the forkserver cannot be replaced; children then load what is missing themselves, which
    takes them half a second.
    """
    slow = {"labkit.lockfree.entry", "labkit.channels.notes"} & sys.modules.keys()
    wanted = "labkit.preload" if slow else "labkit.launch"
    server = forkserver._forkserver
    if wanted not in server._preload_modules and not multiprocess.active_children():
        server._forkserver_address = "\0"  # nothing to unlink
        server._stop()
        _context.set_forkserver_preload([wanted])
    if server._forkserver_pid is None:
        _start_hidden(server)
    elif not server._forkserver_address.startswith("/proc/"):
        _hide(server)


def _start_hidden(server: Any) -> None:
    """Start the forkserver, and take its socket out of the file system, where a kill -9 of all of us would leave it."""
    config = multiprocess.current_process()._config
    usual = config.get("tempdir")
    place = None if len(os.fsencode(tempfile.gettempdir())) < 60 else "/tmp"  # a socket's path has 107 bytes
    with tempfile.TemporaryDirectory(prefix="forkserver-", dir=place) as folder:
        config["tempdir"] = folder
        try:
            forkserver.ensure_running()
        finally:
            config["tempdir"] = usual
        _hide(server)


def _hide(server: Any) -> None:
    """A socket can be reached through a descriptor of its file when that has no name any more: O_PATH in open(2)."""
    global _listener
    if _listener is not None:
        os.close(_listener)
    _listener = os.open(server._forkserver_address, os.O_PATH | os.O_CLOEXEC)
    os.unlink(server._forkserver_address)
    server._forkserver_address = f"/proc/self/fd/{_listener}"


_listener: int | None = None


def follow_ipython() -> None:
    """In a notebook: when a cell is interrupted, stop the jobs too. Front ends differ in whom they signal."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None or getattr(shell, "_labkit_follows", False):
        return

    def after_cell(result: Any) -> None:
        if isinstance(result.error_in_exec, KeyboardInterrupt | asyncio.CancelledError):
            stop_all()

    def stopped(shell: Any, kind: Any, value: Any, frames: Any, tb_offset: int | None = None) -> None:
        """ipykernel cancels an `await` cell. The traceback of that shows asyncio's insides and has no words."""
        told = KeyboardInterrupt("the cell was stopped, and with it every process that was launched")
        shell.showtraceback((KeyboardInterrupt, told, frames), exception_only=True)

    shell.events.register("post_run_cell", after_cell)
    if not shell.custom_exceptions:  # else the reader has a handler of his own
        shell.set_custom_exc((asyncio.CancelledError,), stopped)
    shell._labkit_follows = True
