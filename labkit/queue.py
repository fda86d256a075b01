"""A faster multiprocessing.Queue: the same methods and the same words, on a lock-free queue in shared memory.

    from labkit import Queue                        # instead of: from multiprocessing import Queue

    q = Queue()
    Process(target=work, args=(q,)).start()         # of multiprocessing or of multiprocess; launch(work, q) as well
    q.put({"any": "object"})
    q.get()

What is the same: first in, first out for all senders together; `maxsize`, exactly; `put` never waits without one; Full
and Empty; `close` and `join_thread`; it travels to processes that are started by spawn, forkserver or fork. What is
better:

    an object that cannot be pickled     is the caller's error. The original prints it from a thread, and goes on
    an array, from 64 KiB on             is copied once, by `put`; `get` returns it where it lies in shared memory,
                                         writable and the receiver's alone
    `put`                                has put when it returns. No thread is started until the queue is full (8,192
                                         objects without a maxsize; any number of bytes that the memory holds)
    kill -9, of anybody at any time      blocks nobody else. What was put is got: whole, and once, unless the receiver
                                         died in the microsecond between taking and releasing it: another gets it then
    put_many, get_many                   take several at a time; small plain data are pickled together, three times as
                                         fast, and are got one by one like others
    get_async, fileno                    wait with asyncio, select and poll

What else is different, and a program may meet:

    isinstance                   they are multiprocessing's Queue, JoinableQueue and SimpleQueue, not multiprocess's
    contexts                     `ctx` changes nothing: a queue goes to processes of every start method
    SimpleQueue                  is a Queue, with all methods; it holds 8,192 objects, where the original holds 64 KiB
    join_thread before close     is a ValueError, where the original has an assertion
    _buffer, _rlock, _sem, ...   are not there; `_reader` and `_writer` are, to wait for, poll, receive and send with
    _on_queue_feeder_error       whoever overrides it is told of unpicklable objects there, and `put` raises nothing

What of `put` remains to be done when the queue is full is done by a thread, as in the original: a process joins it
before it ends, unless `cancel_join_thread` was called.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing.queues
import multiprocessing.util  # where _start_thread looks
import os
import sys
import threading
import time
import traceback
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from queue import Empty, Full
from typing import Any

from labkit.channels.base import starting, whole
from labkit.lockfree.face import LOOK_AGAIN, Watch, until
from labkit.lockfree.mpmc_entry import SENDS
from labkit.lockfree.objects import NothingCame, Objects, Packed
from labkit.lockfree.objects_entry import objects_entries

SLOTS = 8192
"""Objects that a queue without a maxsize holds before a thread must help: as many as a pipe holds of the smallest."""
EXACT = 1 << 20
"""A maxsize above this is as good as none."""

MOMENT = 0.002
"""Seconds to wait for a consumer to make room before a thread is started, by which objects go ten times as slowly."""
BATCH = 128
"""Objects that are put at a time: see labkit.lockfree.objects.Objects.put_together."""


class _Ring(Objects):
    """What the builtins leave to Python is the queue's."""

    queue: weakref.ref[Queue]
    again: Callable[[_Ring], Queue]
    """What makes a queue of it."""

    def _put(self, *arguments: Any, **named: Any) -> None:
        self._queue()._put(*arguments, **named)

    def _put_packed(self, *arguments: Any, **named: Any) -> None:
        self._queue()._send(self._packed(), *arguments, **named)

    def _get(self, *arguments: Any, **named: Any) -> Any:
        return self._queue()._get(*arguments, **named)

    def get_now(self, timeout: float | None) -> Any:
        return super()._get(timeout)

    def room_comes(self) -> bool:
        """After "full": whether a quarter is free in a moment."""
        try:
            self.wait_for_room(lambda: self.number() <= self.capacity // 4 * 3 or None, MOMENT)
        except TimeoutError:
            return False
        return True

    def _queue(self) -> Queue:
        queue = self.queue()
        return self.again(self) if queue is None else queue  # None: its bound method has outlived it

    def method(self, name: str) -> Any:
        """The builtin `put` or `get`, as a bound method of the queue: it keeps us, and can be handed to a process.

        We do not keep it, so that all is gone with the last that uses it.
        """
        return objects_entries()[name].builtin(self._state, self, _Itself(self))


class _Itself(int):
    """What a bound method that is a builtin has for its `__self__`: the address of its state, pickled as the queue."""

    ring: _Ring

    def __new__(cls, ring: _Ring) -> _Itself:
        self = super().__new__(cls, int(ring._state.ctypes.data))
        self.ring = ring
        return self

    def __reduce__(self) -> Any:
        return _the_queue, (self.ring._queue(),)


def _the_queue(queue: Queue) -> Queue:
    return queue


def _made_of(kind: type[Queue], maxsize: int, ring: _Ring) -> Queue:
    queue = kind.__new__(kind)
    queue._begin(ring, maxsize)
    return queue


class Queue(multiprocessing.queues.Queue):
    """A multiprocessing.Queue that is several times as fast, and that no kill -9 can block.

    Args:
        maxsize: how many objects it holds; without, or with 0, any number.
        ctx: taken because multiprocessing's own has it; it changes nothing.

    Raises:
        OSError: the machine has no memory or no descriptors left.
    """

    _counting = False
    __class_getitem__: Any = classmethod(types.GenericAlias)

    def __init__(self, maxsize: int = 0, *, ctx: Any = None):
        maxsize = whole(maxsize, "a maxsize")
        self._begin(_Ring(maxsize if 0 < maxsize <= EXACT else SLOTS, counting=self._counting), maxsize)

    def _begin(self, ring: _Ring, maxsize: int) -> None:
        self._ring, self._maxsize = ring, maxsize
        self._closed = self._join_cancelled = self._dropped = self._is_joined = False
        self._lock = threading.Lock()
        self._waiting: deque[Packed] = deque()
        self._thread: threading.Thread | None = None
        self._reader, self._writer = Reader(self), Writer(self)
        kind = type(self)
        ring.queue, ring.again = weakref.ref(self), functools.partial(_made_of, kind, maxsize)
        self._tells_errors = kind._on_queue_feeder_error is not Queue._on_queue_feeder_error
        if kind.put is Queue.put and not self._tells_errors:
            self.put = ring.method("put")  # type: ignore[method-assign]
        if kind.get is Queue.get:
            self.get = ring.method("get")  # type: ignore[method-assign]
        _all.add(self)

    def __getstate__(self) -> Any:
        if starting() is None:
            name = type(self).__name__
            raise RuntimeError(
                f"{name} objects should only be shared between processes through inheritance: hand it over when a "
                "process is made, Process(target=f, args=(q,)) or launch(f, q)"
            )
        return self._ring, self._maxsize

    def __setstate__(self, state: Any) -> None:
        self._begin(*state)

    # --- putting --------------------------------------------------------------------------------------------

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an object into the queue.

        Args:
            obj: anything that can be pickled.
            block: whether to wait while the queue is full.
            timeout: seconds to wait, None for as long as it takes.

        Raises:
            queue.Full: it stayed full, which happens with a maxsize only.
            ValueError: this queue is closed.
            OSError: ENOMEM, the machine has no memory for it.
            Exception: what pickle says of an object that cannot be pickled. Nothing was put then.
        """
        self._put(obj, block, timeout)

    def _put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        self._must_be_open()
        try:
            packed = self._ring.pack(obj)
        except Exception as error:
            if not self._tells_errors:
                raise
            # As in the original: in a thread, since the handler may wait for a lock that our caller has.
            handler = threading.Thread(target=self._on_queue_feeder_error, args=(error, obj), daemon=True)
            handler.start()
            handler.join(1)
            return
        self._send(packed, block, timeout)

    def put_nowait(self, obj: Any) -> None:
        """put(obj, False)."""
        self.put(obj, False)

    def put_many(self, objects: Iterable[Any], block: bool = True, timeout: float | None = None) -> None:
        """Put several objects, one after the other; others' may come between them.

        Errors as for `put`; those before one that cannot be pickled, or for which there was no room in time, are put.
        """
        self._must_be_open()
        end = None if timeout is None else time.monotonic() + timeout
        objects = iter(objects)
        while left := list(itertools.islice(objects, BATCH)):
            while left:
                if not self._tells_errors and (done := self._ring.put_together(left)):
                    left = left[done:]
                    continue
                done, packed = (0, None) if self._tells_errors else self._ring.put_list(left)
                if done < len(left):
                    remains = None if end is None else end - time.monotonic()
                    if packed is None:
                        self._put(left[done], block, remains)
                    else:
                        self._send(packed, block, remains)
                left = left[done + 1 :]

    def _send(self, packed: Packed, block: bool = True, timeout: float | None = None) -> None:
        if self._closed:
            self._ring.throw_away(packed)
            self._must_be_open()
        if 0 < self._maxsize <= EXACT:
            try:
                self._ring.send_packed(packed, _patience(block, timeout))
            except TimeoutError:
                raise Full from None
            return
        # A thread would be dearer than the moment that a quick consumer takes.
        while not self._waiting:
            if self._ring.offer(packed):
                return
            if not self._ring.room_comes():
                break
        with self._lock:
            if not self._waiting and self._ring.offer(packed):
                return
            self._waiting.append(packed)
            if self._counting:
                self._ring.count(1)
            if self._thread is None:
                self._ring.leave_puts(True)
                self._start_thread()

    # --- the thread that puts what there was no room for ----------------------------------------------------

    def _start_thread(self) -> None:
        self._thread = threading.Thread(target=self._feed, name="QueueFeederThread", daemon=True)
        self._thread.start()
        if not self._is_joined:
            self._is_joined = True
            for package in ("multiprocessing", "multiprocess"):
                util = sys.modules.get(f"{package}.util")
                if util is not None:  # what is waited for at the end of a process, whichever of the two has started it
                    util.Finalize(self, _join, args=(weakref.ref(self),), exitpriority=-5)

    def _feed(self) -> None:
        try:
            while True:
                with self._lock:
                    if self._dropped:
                        while self._waiting:
                            self._ring.throw_away(self._waiting.popleft())
                    if not self._waiting:
                        self._thread = None
                        self._ring.leave_puts(self._closed)
                        if self._closed:
                            self._ring.close()
                        return
                    packed = self._waiting[0]
                self._ring.wait_for_room(lambda packed=packed: self._dropped or self._ring.offer(packed))  # type: ignore[misc]
                if not self._dropped:
                    with self._lock:
                        self._waiting.popleft()
                    if self._counting:
                        self._ring.count(-1)  # it was counted when it was put, and again when it was sent
        except Exception as error:
            self._on_queue_feeder_error(error, None)
            with self._lock:
                self._waiting.clear()
                self._thread = None

    @staticmethod
    def _on_queue_feeder_error(e: Exception, obj: Any) -> None:
        """Called when what was put cannot be sent any more. Who overrides it hears of unpicklable objects here."""
        traceback.print_exception(e)

    # --- getting --------------------------------------------------------------------------------------------

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Remove the oldest object from the queue and return it.

        Args:
            block: whether to wait while it is empty.
            timeout: seconds to wait, None for as long as it takes.

        Raises:
            queue.Empty: it stayed empty.
            ValueError: this queue is closed.
            Exception: what pickle says of an object that cannot be put together here; it is removed all the same.
        """
        return self._get(block, timeout)

    def _get(self, block: bool = True, timeout: float | None = None) -> Any:
        return self._taken(lambda: self._ring.get_now(_patience(block, timeout)))

    def get_nowait(self) -> Any:
        """get(False)."""
        return self.get(False)

    def get_many(self, most: int = 1024, block: bool = True, timeout: float | None = None) -> list[Any]:
        """Remove what is there, up to `most` objects, at least one, oldest first. Errors as for `get`."""
        most = whole(most, "how many to get")
        if most < 1:
            raise ValueError(f"get at least 1 object, not {most}")
        got: list[Any] = self._taken(lambda: self._ring.get_many(most, _patience(block, timeout)))
        return got

    def _taken(self, take: Callable[[], Any]) -> Any:
        self._must_be_open()
        try:
            return take()
        except NothingCame:
            raise Empty from None
        finally:
            self._reader._after_get()

    async def get_async(self, timeout: float | None = None) -> Any:
        """As `get`, for asyncio. Who cancels it loses no object.

        Raises:
            queue.Empty: nothing came in time.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                return self.get(False)
            except Empty:
                left = LOOK_AGAIN if end is None else end - time.monotonic()
                if left <= 0:
                    raise
            if not self._ring.armed():
                assert self._ring._watch is not None
                await self._ring._watch.sleep(min(left, LOOK_AGAIN))

    # --- how full it is -------------------------------------------------------------------------------------

    def qsize(self) -> int:
        """How many objects are in it; others may change that at once."""
        return self._ring.number() + len(self._waiting)

    def empty(self) -> bool:
        """Whether there is nothing to get; others may change that at once.

        Raises:
            OSError: this queue is closed, and this process had put something into it. (The original is as strange.)
        """
        if self._closed and self._ring._state[SENDS // 8]:
            raise OSError("handle is closed")
        return not self._ring.holds_message()

    def full(self) -> bool:
        """Whether there are `maxsize` objects in it; others may change that at once."""
        return 0 < self._maxsize <= EXACT and not self._ring.has_room()

    def fileno(self) -> int:
        """A descriptor that is readable while there is something to get, for select(2), poll(2) and asyncio.

        Now and then it is readable although another has been quicker: use get_nowait.
        """
        return self._reader.fileno()

    # --- the end --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Nothing more is put or got by this process. What is still waiting for room is sent on by the thread."""
        with self._lock:
            self._closed = True
            self._ring.leave_puts(True)
            self._ring.leave_gets(True)
            self._reader._close()
            if self._thread is None:
                self._ring.close()

    def join_thread(self) -> None:
        """After `close`: wait until everything that was put is in the queue."""
        if not self._closed:
            raise ValueError(f"Queue {self!r} not closed")
        thread = self._thread
        if thread is not None and not self._join_cancelled:
            thread.join()

    def cancel_join_thread(self) -> None:
        """Let the process end without waiting for the thread: what there was no room for is lost then."""
        self._join_cancelled = True

    def _terminate_broken(self) -> None:
        self._reader.close()
        self.close()
        self.join_thread()

    def _must_be_open(self) -> None:
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")

    def _after_fork(self) -> None:
        """In the child: what waits for room is the parent's."""
        self._lock = threading.Lock()
        self._waiting = deque()
        self._thread = None
        self._join_cancelled = self._is_joined = False
        self._reader._after_fork()
        if self._closed:
            self._ring.leave_puts(True)
            self._ring.leave_gets(True)
            self._ring.close()


class JoinableQueue(Queue, multiprocessing.queues.JoinableQueue):
    """A multiprocessing.JoinableQueue: a Queue that knows whether all that was put is done.

    Who dies between `get` and `task_done` leaves `join` waiting, as in the original.
    """

    _counting = True

    def task_done(self) -> None:
        """Say that one object that was got is done with. ValueError: there were not so many."""
        left = self._ring.count(-1)
        if left < 0:
            self._ring.count(1)
            raise ValueError("task_done() called too many times")
        if left == 0:
            self._ring.done_bell.ring()

    def join(self) -> None:
        """Wait until everything that was put is done."""
        until(
            lambda: self._ring.count(0) <= 0 or None,
            self._ring.done_bell,
            None,
            spin=lambda: False,
            look=lambda: False,
            ended=RuntimeError,
            late="",
        )


class SimpleQueue(Queue, multiprocessing.queues.SimpleQueue):
    """A multiprocessing.SimpleQueue: `put` waits when the queue is full, so that no thread is ever needed."""

    def __init__(self, *, ctx: Any = None):
        super().__init__(SLOTS)

    def _begin(self, ring: _Ring, maxsize: int) -> None:
        super()._begin(ring, maxsize)
        self._rlock = self._wlock = threading.Lock()  # multiprocessing.Pool takes one when it ends; here nobody waits

    def empty(self) -> bool:
        """Whether there is nothing to get. OSError: this queue is closed."""
        self._must_be_open()
        return super().empty()

    def _must_be_open(self) -> None:
        if self._closed:
            raise OSError("handle is closed")


class Reader:
    """What programs use of multiprocessing's `_reader`: to wait for something to get."""

    def __init__(self, queue: Queue):
        self._queue = weakref.proxy(queue)
        self._watch: Watch | None = None
        self._there = -1
        self._lock = threading.RLock()  # one thread waits, another gets, a third closes
        self.closed = False

    def fileno(self) -> int:
        """Readable while there is something to get."""
        with self._lock:
            if self.closed:
                raise OSError("handle is closed")
            if self._watch is None:
                ring = self._queue._ring
                ring._must_be_open()
                watch = Watch(ring._items, ring._segment)
                self._there = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                watch.add(self._there)
                self._watch = watch
                ring.leave_gets(True)
            self._tell()
            return self._watch.fileno()

    def recv(self) -> Any:
        """The next object."""
        return self._queue.get()

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Whether there is something to get, within so many seconds; None waits for ever."""
        if self.closed:
            raise OSError("handle is closed")
        return bool(self._queue._ring.wait_for_something(None if timeout is None else max(0.0, timeout)))

    def close(self) -> None:
        """Nobody will get anything any more: what waits for room is thrown away."""
        self._queue._dropped = True
        self._close()

    def _close(self) -> None:
        self.closed = True
        self._unwatch()

    def _unwatch(self) -> None:
        with self._lock:
            if self._watch is not None:
                self._watch.close()
                os.close(self._there)
                self._watch = None

    def __del__(self, _finalizing: Any = sys.is_finalizing) -> None:
        if not _finalizing():
            self._unwatch()

    def _after_get(self) -> None:
        if self._watch is not None:  # else nobody has asked for it, which costs nothing
            with self._lock:
                self._tell()

    def _tell(self) -> None:
        """The descriptor is readable exactly while there is something."""
        if self._watch is not None:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._there)
            self._watch.arm()
            if self._queue._ring.holds_message():
                os.eventfd_write(self._there, 1)

    def _after_fork(self) -> None:
        self._lock = threading.RLock()
        self._unwatch()  # an epoll(7) of the parent's


class Writer:
    """What programs use of multiprocessing's `_writer`."""

    def __init__(self, queue: Queue):
        self._queue = weakref.proxy(queue)

    @property
    def closed(self) -> bool:
        """Whether the queue is closed here."""
        closed: bool = self._queue._closed
        return closed

    def send(self, obj: Any) -> None:
        """As `put`."""
        self._queue.put(obj)

    def close(self) -> None:
        """Nothing: `Queue.close` closes."""


def _patience(block: bool, timeout: float | None) -> float | None:
    if not block:
        return 0
    try:
        return None if timeout is None else max(0, timeout)
    except TypeError:
        raise TypeError(f"timeout is seconds, or None to wait for ever, not {timeout!r}") from None


def _join(queue: weakref.ref[Queue]) -> None:
    """At the end of a process."""
    there = queue()
    if there is not None and (thread := there._thread) is not None and not there._join_cancelled:
        thread.join()


_all: weakref.WeakSet[Queue] = weakref.WeakSet()


def _in_child() -> None:
    for queue in list(_all):
        queue._after_fork()


os.register_at_fork(after_in_child=_in_child)
