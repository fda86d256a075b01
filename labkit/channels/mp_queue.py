"""multiprocessing.Queue of multiprocess, what most programs begin with: pipe(7), locks, pickle, a thread that feeds it.

    put()  -->  deque  -->  feeder thread: pickle, lock, write(2)  -->  pipe  -->  get(): lock, read(2), unpickle

`put` returns when the message is in the deque of its own process. What the thread has not yet written is lost when that
process is killed; a process that ends well waits until all is written.

Two things are other than in a Queue made by `multiprocess.Queue()`. Each end keeps only its own side of the pipe, so
that end of file arrives. And its three semaphores lie in a memfd that travels with the ends: as named ones, which
multiprocess makes, they would stay in /dev/shm when everybody is killed, and vanish too early when only the maker is.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
from collections.abc import Callable
from queue import Full
from typing import Any

from multiprocess import connection, queues, reduction, synchronize

from labkit.channels.base import (
    DEFAULT_TIMEOUT,
    LOOK_AGAIN,
    Capacity,
    Closed,
    Facts,
    Message,
    Receiver,
    Sender,
    Waiter,
    arrived,
    as_bytes,
    travelling,
)
from labkit.libc import failed, ffi, libc

MAX_MESSAGE = 1 << 20
MAX_SIZE = 1000
FLUSH_SECONDS = 1.0
"""How long `close` waits until the thread has written everything; after that it goes on writing by itself."""
SEM_BYTES = 64  # a semaphore, on a cache line of its own

FACTS = Facts(
    boundaries=True,
    ordered=True,
    tells_close=True,
    pollable=False,
    duplex=False,
    related_only=True,
    many_senders=True,
    many_receivers=True,
    reliable=True,
    handed_over=False,
    persistence="process",
    max_message=MAX_MESSAGE,
    namespaced_by="none",
    copies=6,
    manual="multiprocessing.Queue, pipe(7)",
)


def open(*, maxsize: int = MAX_SIZE) -> tuple[QueueSender, QueueReceiver]:
    """A new queue.

    Args:
        maxsize: messages that the queue holds before send waits; 0 for as many as there is memory for.

    Raises:
        ValueError: maxsize is negative, or more than a semaphore counts.
    """
    most = int(synchronize.SEM_VALUE_MAX)
    if not 0 <= maxsize <= most:
        raise ValueError(f"maxsize must be 0 to {most:,} messages, not {maxsize:,}")
    with contextlib.ExitStack() as undo:
        memory = os.memfd_create("labkit-mp-queue", os.MFD_CLOEXEC)
        undo.callback(os.close, memory)
        os.ftruncate(memory, mmap.PAGESIZE)
        other = os.dup(memory)
        undo.callback(os.close, other)
        pages = [undo.enter_context(mmap.mmap(memory, mmap.PAGESIZE)) for _ in range(2)]
        for number, value in enumerate((1, 1, maxsize or most)):
            if libc.sem_init(ffi.cast("sem_t *", _address(pages[0], number)), 1, value) != 0:
                raise failed("sem_init")
        reading, writing = os.pipe()
        undo.pop_all()
    return (
        QueueSender(writing, memory, pages[0], maxsize or most),
        QueueReceiver(reading, other, pages[1], maxsize or most),
    )


def _address(page: mmap.mmap, number: int) -> int:
    """Where a semaphore is in our memory."""
    return int(ffi.cast("intptr_t", ffi.from_buffer(page))) + number * SEM_BYTES


def _lock(page: mmap.mmap, number: int, most: int) -> Any:
    """multiprocess's own lock on a semaphore that is in the page."""
    lock = synchronize.Lock.__new__(synchronize.Lock)
    lock.__setstate__((_address(page, number), synchronize.SEMAPHORE, most, None))
    return lock


def _side(fd: int | None, writes: bool) -> Any:
    """One side of the pipe as multiprocess's Connection; without a descriptor, one that is closed."""
    if fd is not None:
        return connection.Connection(fd, readable=not writes, writable=writes)
    closed = connection.Connection.__new__(connection.Connection)
    closed._handle = None
    return closed


class _QueueEnd:
    """What both ends hold: a Queue with one side of the pipe, and the memory of its semaphores."""

    kind, facts = "mp_queue", FACTS
    writes: bool
    _is_copy = False  # made by fork(2), and used
    closed: bool
    _must_be_open: Callable[[], None]

    def __init__(self, fd: int, memory: int, page: mmap.mmap, maxsize: int):
        self.fd, self.memory, self.maxsize = fd, memory, maxsize
        self.max_message = self._limit = MAX_MESSAGE
        reader, writer = _side(None if self.writes else fd, False), _side(fd if self.writes else None, True)
        locks = _lock(page, 0, 1), _lock(page, 1, 1), _lock(page, 2, maxsize)
        self.queue = queues.Queue.__new__(queues.Queue)
        self.queue.__setstate__((True, maxsize, reader, writer, *locks, os.getpid()))
        self._page: mmap.mmap | None = page

    def _look(self) -> bool:
        """Whether there is something to read, or nobody at the other side. Connection.poll takes ten times as long."""
        poll = select.poll()
        poll.register(self.fd, 0 if self.writes else select.POLLIN)
        return bool(poll.poll(0))

    def clone(self) -> Any:
        self._must_be_open()
        with contextlib.ExitStack() as undo:
            fd = os.dup(self.fd)
            undo.callback(os.close, fd)
            memory = os.dup(self.memory)
            undo.callback(os.close, memory)
            page = mmap.mmap(memory, mmap.PAGESIZE)
            undo.pop_all()
        return type(self)(fd, memory, page, self.maxsize)

    def _in_a_fork(self) -> None:
        """Begin anew in a process made by fork(2): the parent's thread, which writes what is sent, is not here."""
        self.queue._reset(after_fork=True)  # as a Queue of multiprocess does; what was unsent is the parent's to send
        self._pid, self._is_copy = os.getpid(), True

    def _let_go(self) -> None:
        if self._pid != os.getpid():
            self._in_a_fork()
        if self._is_copy and self.queue._thread is not None:  # a trace lets go of a copy without a farewell
            self.queue.close()
            self.queue._thread.join(FLUSH_SECONDS)
        self.queue.close()
        os.close(self.memory)
        thread = self.queue._thread
        if thread is None:
            (self.queue._writer if self.writes else self.queue._reader).close()
        else:  # it closes the pipe when it has written everything, and uses the semaphores until then
            thread.labkit_memory = self._page
        self.queue = self._page = None

    def __reduce__(self) -> Any:
        return _arrives, (type(self), travelling(self.fd), travelling(self.memory), self.maxsize, self._unsent())

    def _unsent(self) -> list[bytes]:
        return []

    def _resume(self, unsent: list[bytes]) -> None:
        """Go on where an end in another process stopped."""


class QueueSender(_QueueEnd, Sender):
    writes = True
    _kept: list[bytes] | None = None

    def send(self, message: Message, timeout: float | None = DEFAULT_TIMEOUT) -> None:
        if type(message) is not bytes or not 0 < len(message) <= self._limit:
            message = bytes(as_bytes(message, self._limit))
        self._must_be_open()
        if self._pid != os.getpid():
            self._in_a_fork()
        if self._kept:
            self._resume(self._kept)
        waiter = None
        while True:
            if self._look():
                self._must_be_open()
                raise Closed("no receiver of this queue is left")
            try:
                self.queue.put(message, waiter is not None, LOOK_AGAIN)
                return
            except (ValueError, AttributeError):  # another thread has closed it
                self._must_be_open()
                raise
            except Full:
                if timeout == 0:
                    raise TimeoutError("the queue is full") from None
                waiter = waiter or Waiter(timeout)
                waiter.wait({self.fd: 0}, "the queue stayed full", 0.0)

    @property
    def capacity(self) -> Capacity:
        return Capacity(self.maxsize, "messages")

    def _unsent(self) -> list[bytes]:
        """Take from the feeder thread what it has not begun to write. It stays ours in case that we stay."""
        self._kept = self._kept or []
        buffer = self.queue._buffer
        while buffer:
            self._kept.append(buffer.popleft())
        return self._kept

    def _resume(self, unsent: list[bytes]) -> None:
        queue, self._kept = self.queue, None
        with queue._notempty:
            if queue._thread is None:
                queue._start_thread()
            queue._buffer.extend(unsent)
            queue._notempty.notify()

    def _farewell(self) -> None:
        if self._kept:
            self._resume(self._kept)
        if self.queue._thread is not None:
            self.queue.close()
            self.queue._thread.join(FLUSH_SECONDS)


class QueueReceiver(_QueueEnd, Receiver):
    writes = False

    def receive(self, timeout: float | None = DEFAULT_TIMEOUT) -> bytes:
        waiter = None
        while True:
            self._must_be_open()
            data = self._get(wait=timeout != 0)
            if data is not None:
                message: bytes = reduction.ForkingPickler.loads(data)
                return message
            if timeout == 0:
                raise TimeoutError("the queue is empty")
            waiter = waiter or Waiter(timeout)
            waiter.wait({self.fd: select.POLLIN}, "nothing came through the queue")

    def _get(self, wait: bool) -> Any:
        """Queue.get as it is, but that it never waits for a message: another receiver may have taken it."""
        queue = self.queue
        if not queue._rlock.acquire(False) and not (wait and queue._rlock.acquire(True, LOOK_AGAIN)):
            return None
        try:
            if not self._look():
                return None
            try:
                data = queue._recv_bytes()
            except (EOFError, OSError):  # the latter in the middle of a message
                self._must_be_open()
                raise Closed("every sender has closed its end of this queue") from None
            queue._sem.release()
            return data
        finally:
            queue._rlock.release()


def _arrives(end: type[_QueueEnd], fd: Any, memory: Any, maxsize: int, unsent: list[bytes]) -> _QueueEnd:
    descriptor = arrived(memory)
    here = end(arrived(fd), descriptor, mmap.mmap(descriptor, mmap.PAGESIZE), maxsize)
    if unsent:
        here._resume(unsent)
    return here
