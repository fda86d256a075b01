"""What the queues' classes have in common: the words in which their arguments are refused, waiting, memory lent out.

How a queue plugs in. Its class has a `Segment`, the bells of it, and *attempts*: functions that do the work at once or
return None when there is nothing to do it with (the queue is empty, or full).

    until(attempt, bell, timeout, ...)          calls an attempt until it succeeds: spins, then sleeps at the bell
    Watch(bell, segment)                        a descriptor to poll, and the same for asyncio
    View(memory, start, size, item, writable)   memory of a slot as an array, which is taken back safely

`until` sleeps in futex(2) without the GIL and wakes ten times a second, so that Python sees Ctrl-C and the death of the
other side is noticed. All times are seconds of the monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import functools
import math
import os
import reprlib
import select
import sys
import termios
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from labkit.channels.base import DEFAULT_TIMEOUT, Closed, check_timeout, must_be_starting
from labkit.lockfree.bells import LOOK_AGAIN_NS, POLLS
from labkit.lockfree.entry import Entry
from labkit.lockfree.segment import Bell, Segment

LOOK_AGAIN = LOOK_AGAIN_NS / 1e9
SPIN = 400 if len(os.sched_getaffinity(0)) > 1 else 0  # on one processor the other side cannot move while we look


# --- arguments ----------------------------------------------------------------------------------------------


def item_type(dtype: Any) -> np.dtype:
    """The dtype of items, or what is wrong with it: TypeError, ValueError."""
    item = np.dtype(dtype)
    if item.hasobject:
        raise TypeError(f"{item} holds Python objects, which are addresses in one process: use numbers")
    if item.itemsize == 0:
        raise ValueError(f"{item} has no bytes")
    return item


def number_of(item: np.dtype | None) -> np.dtype | None:
    """The dtype of an item that is a number, as the one object that NumPy has of it: pickle makes others. Or None."""
    if item is None or item.kind not in "biufc" or item.shape or not item.isnative:
        return None
    return np.dtype(item.str)


def is_plain(array: Any, number: np.dtype | None) -> bool:
    """Whether these are such numbers, or room for them, as they are: a builtin may have the array itself."""
    return (
        array.__class__ is np.ndarray
        and array.dtype is number
        and array.ndim == 1
        and array.flags.c_contiguous
        and array.size > 0
    )


def as_item(item: Any, of: np.dtype, number: np.dtype | None) -> Any:
    """One item as what has its bytes, or ValueError. A number has a buffer of its own."""
    return item if number is not None and item.__class__ is number.type else as_items(item, of)


def as_items(items: Any, item: np.dtype, lead: tuple[int, ...] = ()) -> np.ndarray:
    """Items as an array of contiguous bytes, or ValueError.

    Args:
        items: one item, or an array of them.
        item: what they should be.
        lead: (-1,) for an array of items.
    """
    array = items if isinstance(items, np.ndarray | np.generic) else _converted(items, item, bool(lead))
    if array.dtype != item.base:
        raise ValueError(f"items of {array.dtype} were given, this queue takes {item}: use astype")
    if array.ndim != len(lead) + len(item.shape) or array.shape[len(lead) :] != item.shape:
        if lead:
            wanted = ", ".join(["any number", *map(str, item.shape)])
            raise ValueError(f"items of {item} were wanted, an array of shape ({wanted}), not {array.shape}")
        several = ": give a record as a tuple, and several items to send_many" if array.ndim > len(item.shape) else ""
        raise ValueError(f"an item of this queue is {item}, of shape {item.shape}, not {array.shape}{several}")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _converted(items: Any, item: np.dtype, many: bool) -> np.ndarray:
    """What is no array yet as one, or ValueError that says what the queue takes."""
    if many and isinstance(items, Iterator):
        items = list(items)
    try:
        if items is None or (isinstance(items, str | bytes) and (item.base.kind in "biufc" or item.names)):
            raise TypeError("it is no number")  # NumPy makes nan of None, and 12.0 of "12"
        return np.asarray(items, item.base)
    except (TypeError, ValueError, OverflowError) as reason:
        takes = f"{'several items of ' if many else ''}{item}{', as a tuple' if item.names else ''}"
        raise ValueError(f"{reprlib.repr(items)} cannot be sent here, this queue takes {takes} ({reason})") from None


def deadline(timeout: float | None) -> float:
    """When a timeout that begins now ends, or what is wrong with it: TypeError, ValueError."""
    check_timeout(timeout)
    return math.inf if timeout is None else time.monotonic() + float(timeout)


def damaged(kind: str) -> OSError:
    text = f"this {kind} cannot be used: its memory is damaged, what it says contradicts itself"
    return OSError(errno.EBADMSG, text)


# --- waiting ------------------------------------------------------------------------------------------------


def until(
    attempt: Callable[[], Any],
    bell: Bell,
    timeout: float | None,
    *,
    spin: Callable[[], Any],
    look: Callable[[], bool],
    ended: Callable[[], BaseException],
    late: str,
    at_most: float = LOOK_AGAIN,
) -> Any:
    """Call `attempt` until it returns something else than None, and return that.

    Args:
        attempt: does what is to be done, or returns None when that must wait.
        bell: rings when it may be possible.
        timeout: 0 never waits, None waits for ever.
        spin: watches for some microseconds, true when it may be possible.
        look: called before sleeping and ten times a second: whether the other side has gone for good.
        ended: what to raise then, when a last attempt has failed.
        late: what to say when the time is over.
        at_most: seconds to sleep without an attempt.

    Raises:
        TimeoutError: the time is over.
        ValueError: the timeout is no time.
    """
    end = None
    while True:
        if timeout == 0:
            gone = look()
        else:
            end = deadline(timeout) if end is None else end
            if spin():
                done = attempt()
                if done is not None:
                    return done
            ticket = bell.seen()
            bell.arm()
            gone = look()
        done = attempt()  # also after the other side has gone, for what it has left
        if done is not None:
            return done
        if gone:
            raise ended()
        if end is None:
            raise TimeoutError(late)
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"{late} for {float(timeout or 0):g} s")
        bell.sleep(ticket, min(left, at_most))
        done = attempt()
        if done is not None:
            return done


class Watch:
    """A descriptor that is readable when a bell may have been rung, for poll(2), select(2) and asyncio.

    It is an epoll(7) of ours, edge-triggered: all who watch share one eventfd, and none takes its count from another.
    """

    def __init__(self, bell: Bell, segment: Segment):
        self._bell, self._segment = bell, segment
        self._epoll = select.epoll()
        self._epoll.register(bell.descriptor, select.EPOLLIN | select.EPOLLET)
        self._pid = os.getpid()
        self._sleepers: set[asyncio.Future[None]] = set()

    def fileno(self) -> int:
        return self._epoll.fileno()

    def add(self, fd: int) -> None:
        """Be readable also while this one is."""
        self._epoll.register(fd, select.EPOLLIN)

    @property
    def ours(self) -> bool:
        """Not a copy that fork(2) has made, whose epoll is the parent's too."""
        return self._pid == os.getpid()

    def arm(self) -> None:
        """Make it quiet until the next ring. Look again afterwards."""
        self._epoll.poll(0)
        if self._segment.name is not None:
            _empty_by_half(self._bell.descriptor)
        self._bell.arm(POLLS)

    async def sleep(self, seconds: float) -> None:
        """Until a ring, or so long."""
        loop = asyncio.get_running_loop()
        sleeper: asyncio.Future[None] = loop.create_future()
        if not self._sleepers:
            self._loop = loop
            loop.add_reader(self.fileno(), self._awake)
        self._sleepers.add(sleeper)
        alarm = loop.call_later(seconds, _wake, sleeper)
        try:
            await sleeper
        finally:
            alarm.cancel()
            self._sleepers.discard(sleeper)
            if not self._sleepers and not self._epoll.closed:
                loop.remove_reader(self.fileno())

    def _awake(self) -> None:
        for sleeper in self._sleepers:
            _wake(sleeper)

    def close(self) -> None:
        if not self._epoll.closed:
            if self._sleepers:
                with contextlib.suppress(Exception):  # the loop may be closed
                    self._loop.remove_reader(self.fileno())
                    self._awake()
            self._epoll.close()


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)


def _empty_by_half(fifo: int) -> None:
    """Empty the FIFO of a named queue before it is full. Seldom, since it takes the news from others who poll."""
    count = fcntl.ioctl(fifo, termios.FIONREAD, b"1234")
    if int.from_bytes(count, sys.byteorder) > 1 << 15:
        with contextlib.suppress(BlockingIOError):
            os.read(fifo, 1 << 16)


_making = threading.RLock()


def _in_child() -> None:
    global _making
    _making = threading.RLock()


os.register_at_fork(after_in_child=_in_child)


class Face:
    """The part of a queue's class that is the same for all of them.

    It builds on the attributes and methods named here, which the class has.
    """

    closed = True
    receive: Callable[..., Any]
    _segment: Segment
    _items: Bell
    _watch: Watch | None = None

    def _anything(self) -> bool:
        """Whether something may be received now."""
        raise NotImplementedError

    def _ended(self) -> bool:
        """Whether nothing more can come."""
        raise NotImplementedError

    def __reduce_ex__(self, protocol: Any) -> Any:
        must_be_starting()  # copy.copy would make a twin that shares all with us, and closes it
        return super().__reduce_ex__(protocol)

    @staticmethod
    def unlink(name: str) -> None:
        """Remove the name; who has it open goes on. FileNotFoundError: there is none."""
        Segment.unlink(name)

    def fileno(self) -> int:
        """A descriptor for poll(2), select(2) and asyncio: readable when something may have been sent.

        Ask `pending` before each wait, which also arms it; nothing tells it of a sender that was killed:

            while True:
                while (message := q.try_receive()) is not None:         # raises Closed at the end
                    handle(message)
                if not q.pending():
                    select.select([q], [], [], 0.1)
        """
        self._must_be_open()
        with _making:  # two threads may ask at once, and must get the same
            if self._watch is None or not self._watch.ours:
                if self._watch is not None:
                    self._watch.close()
                self._watch = Watch(self._items, self._segment)
            return self._watch.fileno()

    def pending(self) -> bool:
        """Whether something may be received now. When not, `fileno` will be readable when something is sent."""
        self.fileno()
        assert self._watch is not None
        self._watch.arm()
        return self._anything() or self._ended()

    async def receive_async(self, timeout: float | None = DEFAULT_TIMEOUT) -> Any:
        """The next message or item, for asyncio. Who cancels it loses no message. Errors as for `receive`."""
        end = None
        while True:
            try:
                return self.receive(0)
            except TimeoutError:
                if timeout == 0:
                    raise
            end = deadline(timeout) if end is None else end
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"nothing came for {float(timeout or 0):g} s")
            if not self.pending():
                assert self._watch is not None
                await self._watch.sleep(min(left, LOOK_AGAIN))

    async def __aiter__(self) -> AsyncIterator[Any]:
        """The same for asyncio."""
        with contextlib.suppress(Closed):
            while True:
                yield await self.receive_async(None)

    def __iter__(self) -> Iterator[Any]:
        """Messages until the last sender has gone and everything is received."""
        with contextlib.suppress(Closed):
            while True:
                yield self.receive()

    def _must_be_open(self) -> None:
        if self.closed:
            raise ValueError("this queue is closed: it was closed here")

    def close(self) -> None:
        """Give it up."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self, _finalizing: Any = sys.is_finalizing) -> None:
        # A default argument, and no contextlib: at exit a module's names may be gone before its objects.
        if not _finalizing():
            try:  # noqa: SIM105
                self.close()
            except Exception:
                pass


def as_builtins(owner: Any, entries: dict[str, Entry], state: np.ndarray, rest: Sequence[int], keep: Any) -> None:
    """Give a queue its builtins, as attributes.

    Args:
        entries: `send`, `receive`, `try_send`, `try_receive`, and others under the names that they have.
        rest: the words of the state that hold what these four leave to Python, in this order: the methods _send,
            _receive, _try_send, _try_receive.
        keep: what the builtins use.
    """
    me = weakref.ref(owner)
    public = "send", "receive", "try_send", "try_receive"
    methods = {name: functools.partial(_rest, me, f"_{name}") for name in public}
    state[[word // 8 for word in rest]] = [id(method) for method in methods.values()]
    for name, entry in entries.items():
        setattr(owner, name if name in public else f"_{name}", entry.builtin(state, (keep, methods)))
    if owner._item is not None:  # the common case of the builtins is bytes
        for name, method in methods.items():
            setattr(owner, name, method)


def _rest(me: weakref.ref[Any], name: str, *arguments: Any, **named: Any) -> Any:
    """What a builtin leaves to Python."""
    self = me()
    if self is None:
        raise ValueError("this queue is closed: it is no longer there")
    return getattr(self, name)(*arguments, **named)


# --- memory lent out ----------------------------------------------------------------------------------------


def view_of(memory: np.ndarray, start: int, size: int, item: np.dtype | None, writable: bool) -> np.ndarray:
    """A part of a mapping as bytes, or as an item.

    What numpy.frombuffer returns is the `base` of all arrays that are made of it: it goes when all of them are gone.
    """
    view = memory.data if writable else memory.data.toreadonly()
    if item is None:
        return np.frombuffer(view, np.uint8, size, start)
    return np.frombuffer(view, item.base, size // item.base.itemsize, start).reshape(item.shape)


class View:
    """Memory of a slot, lent to the reader's program and taken back. The array is made when it is first asked for.

    Attributes:
        abandoned: its `with` was left by an exception while somebody (the traceback, for instance) still had a view of
            the memory.
    """

    __slots__ = "__weakref__", "_array", "_is_out", "abandoned"
    what: ClassVar[str] = "slot is out"

    def __init__(self) -> None:
        self._array: np.ndarray | None = None
        self._is_out, self.abandoned = True, False

    def settle(self) -> None:
        """Take back what was abandoned. ValueError: it is out."""
        if not self.abandoned:
            raise ValueError(f"a {self.what}; end that first, there can be one at a time")
        self.let_go()

    def done(self) -> None:
        """What the end of a `with` does: publish it, or release it."""
        raise NotImplementedError

    def let_go(self) -> None:
        """What it does after an exception."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.done()
        else:
            self.abandoned = True
            with contextlib.suppress(BufferError, ValueError):  # what is on its way says more
                self.let_go()

    @property
    def array(self) -> Any:
        """Bytes (uint8), or the item as an array of its dtype; None once it was taken back."""
        if self._array is None and self._is_out:
            self._array = self._view()
        return self._array

    def _view(self) -> np.ndarray:
        raise NotImplementedError

    def take_back(self) -> None:
        """Nobody has a view of the memory any more, or BufferError."""
        array = self._array
        if array is not None:
            alive = weakref.ref(array.base if array.base.__class__ is np.ndarray else array)
            shape = array.shape
            self._array = array = None
            root: Any = alive()
            if root is not None:
                self._array = root.reshape(shape)
                raise BufferError(
                    "somebody still has a view of this memory, which would change under it: copy what is to be kept, "
                    "delete the other views, and try again"
                )
        self._is_out = False
