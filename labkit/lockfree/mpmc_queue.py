"""Mpmc: many senders, many receivers, first in, first out; whoever is killed harms nobody else.

    q = Mpmc(1024, 256)                                 # so many messages of 1 to 256 bytes
    q = Mpmc(1024, dtype=np.float64)                    # or so many items of a NumPy dtype, also records and arrays
    jobs = [launch(work, q) for _ in range(4)]          # every process may send, and receive
    q.send(b"to one of them")
    q.close()                                           # else they wait for what we may send: see Mpmc

`send`, `receive`, `try_send` and `try_receive` of an object are compiled builtins (labkit.lockfree.mpmc_entry), which
call what is written here when there is more to do: to wait, to join, to say what is wrong.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Self

import numpy as np
from numba import njit

from labkit.channels.base import DEFAULT_TIMEOUT, Closed, arrived, as_bytes, travelling, whole
from labkit.lockfree import mpmc, mpmc_entry
from labkit.lockfree.compiled import Operations, teach
from labkit.lockfree.entry import new_state
from labkit.lockfree.face import (
    LOOK_AGAIN,
    SPIN,
    Face,
    View,
    as_builtins,
    as_item,
    as_items,
    damaged,
    is_plain,
    item_type,
    number_of,
    until,
    view_of,
)
from labkit.lockfree.mpmc import GONE, MAY, PARTS, RECEIVES, SENDS
from labkit.lockfree.mpmc_entry import (
    APART,
    CORRUPT,
    DONE,
    FULL,
    ITEM_BYTES,
    ITEMS_BELL,
    ITEMS_FD,
    NOT_RECEIVER,
    OFFSET,
    PRIVATE,
    RECEIVE_REST,
    REFUSED,
    ROOM_BELL,
    ROOM_FD,
    SEND_REST,
    SENT,
    SPINS,
    STRIDE,
    THOROUGHLY,
    TRY_RECEIVE_REST,
    TRY_SEND_REST,
    layout,
    mpmc_entries,
    mpmc_functions,
)
from labkit.lockfree.mpmc_entry import RECEIVES as RECEIVES_WORD
from labkit.lockfree.mpmc_entry import SENDS as SENDS_WORD
from labkit.lockfree.segment import BODY, ITEMS, MOST_PEOPLE, ROOM, Segment

KIND = "mpmc"
MOST_SLOTS = 1 << 30
LARGEST = 1 << 36
"""Bytes of all slots together."""
LOOK_FOR_ROOM = 0.02
"""Seconds after which a sender looks for room by itself: receivers wake it only when half of the queue is free."""


class Mpmc(Face):
    """A bounded queue for any number of senders and receivers: processes, or threads of them.

    Each message goes to one receiver. They are received in the order in which they were sent, whoever sent them. What
    a receiver had not released when it died comes again, to another, after later ones perhaps; what a sender was
    writing when it died never was.

    Whoever has the queue may send and receive, until it shows by doing only one of the two that it does not do the
    other. It has the queue from the moment at which it was launched or forked with it, or opened it, until it closes it
    or ends, however it ends. A receiver gets Closed when everything is received, there was a sender, and nobody is left
    who sends, or still may; a sender when the queue is full, there was a receiver, and nobody is left who receives, or
    still may. So who merely hands the queue on to others closes it, as with the end of a pipe:

        with Mpmc(1024) as q:
            jobs = [launch(produce, q), launch(produce, q), launch(consume, q)]
        results = [job.wait() for job in jobs]

    send(message, timeout=30), receive(timeout=30), try_send(message) and try_receive() are builtins of each object,
    which help() of the class does not list: help(Mpmc._send) and help(Mpmc._receive) tell all of them.

    Args:
        capacity: how many messages, or items, it holds.
        message_bytes: bytes in the largest message. A slot of so many is kept for each.
        dtype: of fixed-size items instead, any NumPy dtype without Python objects, also records and sub-arrays:
            np.dtype((np.float64, (1000, 1000))).
        name: so that strangers can `open` it.

    Attributes:
        capacity: how many messages or items it holds.
        max_message: bytes in the largest message, or in an item.

    Raises:
        ValueError: a capacity, size or dtype that cannot be.
        TypeError: the dtype holds Python objects.
        FileExistsError: the name is in use.
        OSError: ENOMEM or ENOSPC, the machine has not so much memory; EUSERS, too many processes use it.
    """

    _tells_closed = True  # so that places are kept for those who are about to be born: labkit.lockfree.segment
    send: Callable[..., None]
    receive: Callable[..., Any]
    try_send: Callable[[Any], bool]
    try_receive: Callable[[], Any]
    _mpmc_send: Callable[[Any], Any]
    _mpmc_receive: Callable[[], Any]
    _mpmc_send_many: Callable[[Any], Any]
    _mpmc_receive_many: Callable[[int], Any]
    _mpmc_send_items: Callable[[Any], Any]
    _mpmc_receive_items: Callable[[Any], Any]
    _mpmc_spin: Callable[[], int]
    _mpmc_spin_for_room: Callable[[], int]

    def __init__(self, capacity: int = 1024, message_bytes: int = 256, *, dtype: Any = None, name: str | None = None):
        item = None if dtype is None else item_type(dtype)
        capacity, message_bytes = whole(capacity, "a capacity"), whole(message_bytes, "the size of a message")
        if not 0 < capacity <= MOST_SLOTS:
            raise ValueError(f"a queue holds 1 to {MOST_SLOTS:,} messages, not {capacity:,}")
        if message_bytes < 1:
            raise ValueError(f"a message has at least 1 byte, so the largest one too, not {message_bytes:,}")
        size = message_bytes if item is None else item.itemsize
        stride, _ = layout(size, item is not None)
        body = mpmc.body_bytes(capacity, stride)
        if body > LARGEST:
            raise ValueError(f"{capacity:,} messages of up to {size:,} bytes are more than {LARGEST:,}: choose less")
        self._begin(Segment.new(KIND, mpmc.LAYOUT, (capacity, size, item is not None), body, name=name), item)

    @classmethod
    def open(cls, name: str, *, dtype: Any = None) -> Self:
        """The queue of this name, as a stranger opens it.

        Args:
            name: what its creator called it.
            dtype: of the items, as its creator gave it.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it has items of another size, or messages.
            OSError: EBADMSG, it is no such queue, or a damaged one.
        """
        item = None if dtype is None else item_type(dtype)
        self = cls.__new__(cls)
        self._begin(Segment.open(KIND, mpmc.LAYOUT, name), item)
        return self

    def _begin(self, segment: Segment, item: np.dtype | None) -> None:
        self._segment, self._item = segment, item
        try:
            capacity, size, of_items = segment.geometry[:3]
            if not (0 < capacity <= MOST_SLOTS and 0 < size <= LARGEST and of_items in (0, 1)):
                raise OSError(errno.EBADMSG, "this is not a queue that can be used: its geometry cannot be")
            stride, offset = layout(size, bool(of_items))
            if BODY + mpmc.body_bytes(capacity, stride) > segment.memory.size:
                raise OSError(errno.EBADMSG, "this is not a queue that can be used: its slots do not fit into it")
            if bool(of_items) != (item is not None) or (item is not None and item.itemsize != size):
                has = f"items of {size:,} bytes" if of_items else f"messages of up to {size:,} bytes, without a dtype"
                raise ValueError(f"this queue has {has}, not {'messages' if item is None else item}: use its dtype")
            self._build(segment, capacity, size, stride, offset)
            if self._tells_closed:
                self._enter()
        except BaseException:
            segment.close()
            raise
        self.closed = False
        if self._tells_closed:
            _all.add(self)

    def _build(self, segment: Segment, capacity: int, size: int, stride: int, offset: int) -> None:
        self.capacity, self.max_message = capacity, size
        self._number = number_of(self._item)
        self._items, self._room = segment.bell(ITEMS), segment.bell(ROOM)
        self._state = state = new_state(segment.body, capacity, size)
        self._address = int(state.ctypes.data)
        self._functions = mpmc_functions()
        self._out: dict[int, _Slot] = {}
        self._looked = -LOOK_AGAIN
        for word, value in (
            (ITEM_BYTES, 0 if self._item is None else size),
            (STRIDE, stride),
            (OFFSET, offset),
            (PRIVATE, int(segment.private.ctypes.data)),
            (SPINS, SPIN),
            (ITEMS_BELL, self._items.address),
            (ITEMS_FD, self._items.descriptor),
            (ROOM_BELL, self._room.address),
            (ROOM_FD, self._room.descriptor),
        ):
            state[word // 8] = value
        rest = SEND_REST, RECEIVE_REST, TRY_SEND_REST, TRY_RECEIVE_REST
        as_builtins(self, mpmc_entries(), state, rest, (segment.memory, segment.private))

    # --- sending --------------------------------------------------------------------------------------------

    def _send(self, message: Any, timeout: float | None = DEFAULT_TIMEOUT) -> None:
        """Send one message, or one item.

        Args:
            message: 1 to `max_message` bytes, any contiguous bytes-like object; or an item.
            timeout: seconds to wait while the queue is full; 0 never waits, None waits for ever.

        Raises:
            TypeError: the message is not bytes-like.
            ValueError: the message is empty or too large, the item has another dtype or shape; it would have to wait a
                negative time; this object is closed.
            TimeoutError: the queue stayed full.
            Closed: it is full, there was a receiver, and nobody is left who may receive.
            OSError: EBADMSG, the memory is damaged.
        """
        self._must_be_open()
        raw = message if self._item is None else as_item(message, self._item, self._number)
        self._until_room(lambda: self._put(raw), timeout)

    def _try_send(self, message: Any) -> bool:
        """Send one message if there is room for it now; whether it was. Errors as for `send`, without TimeoutError."""
        try:
            self._send(message, 0)
        except TimeoutError:
            return False
        return True

    def _put(self, raw: Any) -> Any:
        """Send bytes: True, or None when the queue is full."""
        while True:
            sent = self._mpmc_send(raw)
            if sent == SENT:
                return True
            if sent == FULL:
                return None
            self._settle(sent, SENDS)
            if sent == REFUSED:
                with contextlib.suppress(OSError):
                    as_bytes(raw, self.max_message)  # raises what is wrong with it
                raise ValueError(
                    f"message of {memoryview(raw).nbytes:,} bytes is too large: this queue takes 1 to "
                    f"{self.max_message:,}"
                )

    def send_many(self, messages: Iterable[Any], timeout: float | None = DEFAULT_TIMEOUT) -> None:
        """Send several messages, or an array of items, one after the other; others' may come between them.

        Errors as for `send`; what comes before a wrong message is sent, and so is what there was room for in time.
        """
        many: Any = messages
        if self._item is None:
            if many.__class__ is not list:
                many = list(many)
            put, step = self._mpmc_send_many, 1
        else:
            if not is_plain(many, self._number):
                many = as_items(many, self._item, (-1,))
            put, step = self._mpmc_send_items, self.max_message // many.itemsize
        if put(many) == SENT:
            return
        self._must_be_open()
        start = int(self._state[DONE // 8]) * step
        left = (len(many) - start) // step

        def attempt() -> Any:
            nonlocal left, start
            while left:
                sent = put(many[start:] if start else many)
                done = int(self._state[DONE // 8])
                left, start = left - done, start + done * step
                if sent == REFUSED:
                    self._put(many[start])  # raises what is wrong with it
                if sent == FULL:
                    return None
                self._settle(sent, SENDS)
            return True

        self._until_room(attempt, timeout)

    def _until_room(self, attempt: Callable[[], Any], timeout: float | None) -> Any:
        done = attempt()
        if done is not None:
            return done
        return until(
            attempt,
            self._room,
            timeout,
            spin=self._mpmc_spin_for_room,
            look=lambda: self._nobody(RECEIVES),
            ended=lambda: Closed("the queue is full, and nobody is left who may receive from it"),
            late="the queue is full" if timeout == 0 else "the queue stayed full",
            at_most=LOOK_FOR_ROOM,
        )

    def loan(self, size: int | None = None, timeout: float | None = DEFAULT_TIMEOUT) -> Loan:
        """A slot of the queue in which to write the next message, without a copy. It is sent at the end of the `with`.

            with q.loan(100) as slot:
                slot.array[:] = 7

        The slot has its place in the queue from now on, so that receivers wait for it: be quick.

        Args:
            size: bytes of the message, as many as there may be when None; of items there is one size.
            timeout: as for `send`, and the same errors.
        """
        self._must_be_open()
        size = self.max_message if size is None or self._item is not None else whole(size, "the size of a message")
        if not 0 < size <= self.max_message:
            raise ValueError(f"a message has 1 to {self.max_message:,} bytes, not {size:,}")

        def attempt() -> Any:
            while True:
                position = self._functions["claim_slot"](self._address)
                if position >= 0:
                    return position
                if position == -FULL:
                    return None
                self._settle(-position, SENDS)

        return Loan(self, self._until_room(attempt, timeout), size)

    # --- receiving ------------------------------------------------------------------------------------------

    def _receive(self, timeout: float | None = DEFAULT_TIMEOUT) -> Any:
        """The next message: bytes; or the next item: a NumPy scalar, record or array.

        Args:
            timeout: seconds to wait for it; 0 never waits, None waits for ever.

        Raises:
            TimeoutError: nothing came.
            Closed: everything is received, there was a sender, and nobody is left who may send.
            ValueError: it would have to wait a negative time; this object is closed.
            OSError: EBADMSG, the memory is damaged, or the message was.
        """
        if self._item is None:
            return self._until_message(lambda: self._got(self._mpmc_receive()), timeout)
        return self._fill(1, timeout)[0]

    def _try_receive(self) -> Any:
        """The next message or item, or None when there is none now. Errors as for `receive`, without TimeoutError."""
        try:
            return self._receive(0)
        except TimeoutError:
            return None

    def _got(self, got: Any) -> Any:
        """What a builtin has returned: a message, or None, or trouble."""
        if got.__class__ is int:
            self._settle(got, RECEIVES)
            return self._got(self._mpmc_receive())
        return got

    def receive_many(self, most: int = 1024, timeout: float | None = DEFAULT_TIMEOUT) -> Any:
        """What is there, up to `most` messages (a list) or items (an array), at least one. Errors as for `receive`."""
        if most.__class__ is not int:
            most = whole(most, "how many to receive")
        if most < 1:
            raise ValueError(f"receive at least 1 message, not {most}")
        if self._item is not None:
            return self._fill(min(most, self.capacity), timeout)
        some = self._mpmc_receive_many(most)
        if some.__class__ is list:
            return some

        def attempt() -> Any:
            got = self._mpmc_receive_many(most)
            while got.__class__ is int:
                self._settle(got, RECEIVES)
                got = self._mpmc_receive_many(most)
            return got

        return self._until_message(attempt, timeout)

    def _fill(self, most: int, timeout: float | None) -> np.ndarray:
        """Up to so many items."""
        assert self._item is not None
        array = np.empty(most, self._item)
        room = array if self._number is not None else array.reshape(-1).view(np.uint8)
        count = self._mpmc_receive_items(room)
        if count == most:
            return array

        def attempt() -> Any:
            count = self._mpmc_receive_items(room)
            while count < 0:
                self._settle(-count, RECEIVES)
                count = self._mpmc_receive_items(room)
            return count or None

        if count <= 0:
            count = self._until_message(attempt, timeout)
        return array if count == most else array[:count].copy()

    def _until_message(self, attempt: Callable[[], Any], timeout: float | None) -> Any:
        done = attempt()
        if done is not None:
            return done
        try:
            return until(
                attempt,
                self._items,
                timeout,
                spin=self._mpmc_spin,
                look=self._look_for_the_dead,
                ended=lambda: Closed("everything is received, and nobody is left who may send to this queue"),
                late="the queue is empty" if timeout == 0 else "nothing came through the queue",
            )
        except TimeoutError as late:
            waited_for = self._undecided() if timeout else []
            if not waited_for:
                raise
            raise TimeoutError(
                f"{late}; it is not closed, since process {', '.join(map(str, waited_for))} has it open and may still "
                "send: whoever only hands a queue on closes it"
            ) from None

    def _look_for_the_dead(self) -> bool:
        """The next attempt takes over what they have left, some ten times a second. Whether no sender is left."""
        gone = self._nobody(SENDS)
        now = time.monotonic()
        if gone or now - self._looked >= LOOK_AGAIN / 2:
            self._looked = now
            self._state[THOROUGHLY // 8] = 1
        return gone

    def borrow(self, timeout: float | None = DEFAULT_TIMEOUT) -> Borrow:
        """The next message where it lies, without a copy: an array that cannot be written to.

            with q.borrow() as slot:
                mean = slot.array.mean()

        It is received when the `with` ends, or by `release`. Who dies before has not received it, and another does.
        Senders wait when the queue comes round to its slot. Errors as for `receive`.
        """
        self._must_be_open()

        def attempt() -> Any:
            while True:
                position = self._functions["take_slot"](self._address)
                if position >= 0:
                    return position
                if position == -FULL:
                    return None
                self._settle(-position, RECEIVES)

        position = self._until_message(attempt, timeout)
        size = self._functions["size_in"](self._address, position)
        if size == 0:
            self._functions["release_slot"](self._address, position)
            raise damaged(KIND)
        return Borrow(self, position, size)

    def _anything(self) -> bool:
        return bool(self._functions["is_there"](self._address))

    def _ended(self) -> bool:
        return self._nobody(SENDS)

    # --- both -----------------------------------------------------------------------------------------------

    def _settle(self, result: int, part: int) -> None:
        """What a builtin says: join when that is all, or raise."""
        self._must_be_open()
        if result == APART:
            self._functions["join"](self._address, self._enter(), part)
        elif result == CORRUPT:
            raise damaged(KIND)

    @property
    def _at(self) -> int:
        """The address of the state, for compiled code, which cannot enter the segment by itself."""
        self._must_be_open()
        self._enter()
        return self._address

    def _enter(self) -> int:
        """Our participant number."""
        segment = self._segment
        if not segment.me:
            self._state[[SENDS_WORD // 8, RECEIVES_WORD // 8]] = 0  # it was another's: of before a fork
            segment.enter(self._sweep, self._arrive)
        return segment.me

    def _arrive(self, number: int) -> None:
        self._functions["arrive"](self._address, number)

    def _arrived_at(self, place: int) -> None:
        """Our parent has kept this place for us; now we are here."""
        self._enter()
        self._functions["leave"](self._address, place)
        self._segment.give_up_place(place)

    def _sweep(self, number: int) -> None:
        self._functions["sweep"](self._address, number)

    def _nobody(self, part: int) -> bool:
        """Proof that there was somebody who sends (or receives), and that nobody is left."""
        self._must_be_open()
        return self._functions["anybody"](self._address, part) == GONE

    def _undecided(self) -> list[int]:
        """Processes other than this object that have shown neither to send nor to receive."""
        start = BODY + PARTS
        parts = self._segment.memory[start : start + 8 * (MOST_PEOPLE + 1)].view(np.int64)
        people = self._segment.people()
        return [pid for number, pid in people.items() if parts[number] & MAY and self._segment.alive(number)]

    def __len__(self) -> int:
        """How many messages are in it, or on their way in."""
        self._must_be_open()
        count = self._functions["length"](self._address)
        if count < 0:
            raise damaged(KIND)
        return count

    def close(self) -> None:
        """Give it up. What was borrowed is another's to receive, what was loaned and not published is given up.

        When nobody is left who may send, receivers get Closed after the last message.
        """
        if self.closed:
            return
        _all.discard(self)
        for slot in list(self._out.values()):
            slot._abandon()
        self.closed = True
        if self._watch is not None:
            self._watch.close()
        if self._segment.me:
            self._functions["leave"](self._address, self._segment.me)
            self._items.ring()  # who sleeps finds out now
            self._room.ring()
        self._state[[ITEMS_FD // 8, ROOM_FD // 8]] = -1
        self._segment.close()

    def __repr__(self) -> str:
        what = f"messages of up to {self.max_message:,} bytes" if self._item is None else f"items of {self._item}"
        name = f" {self._segment.name!r}" if self._segment.name else ""
        return f"<mpmc{name}, {self.capacity:,} {what}, {'closed' if self.closed else 'open'}>"

    def __reduce__(self) -> Any:
        self._must_be_open()
        number, fd = self._segment.place(self._sweep, self._arrive)
        try:
            return _arrives, (type(self), self._segment, self._item, number, travelling(fd, for_good=True))
        except BaseException:
            os.close(fd)
            raise


class _Slot(View):
    """A slot of the queue that is ours for a while."""

    def __init__(self, owner: Mpmc, position: int, size: int, writable: bool):
        super().__init__()
        self._owner, self._position, self._size, self._pid = owner, position, size, os.getpid()
        self._is_writable = writable
        self._done = False
        owner._out[position] = self

    def _view(self) -> np.ndarray:
        owner = self._owner
        start = BODY + owner._functions["offset"](owner._address, self._position)
        return view_of(owner._segment.memory, start, self._size, owner._item, self._is_writable)

    def _end(self) -> bool:
        """Take the memory back; False when that has been done already, or another process has to do it."""
        if self._done:
            return False
        self._owner._must_be_open()
        self.take_back()
        return self._finished()

    def _finished(self) -> bool:
        self._done = True
        self._owner._out.pop(self._position, None)
        return self._pid == os.getpid()  # in a child made by fork(2) the slot is still the parent's

    def _abandon(self) -> None:
        """End it, whatever views there are."""
        raise NotImplementedError

    def __del__(self, _finalizing: Any = sys.is_finalizing) -> None:
        if not _finalizing():
            try:
                if not self._done and not self._owner.closed:
                    self._abandon()
            except Exception:
                pass


class Loan(_Slot):
    """A slot in which the next message is written: Mpmc.loan.

    Attributes:
        array: bytes (uint8), or the item as an array of its dtype.
    """

    def __init__(self, owner: Mpmc, position: int, size: int):
        super().__init__(owner, position, size, True)

    def publish(self) -> None:
        """Send it. BufferError: somebody still has a view of the memory."""
        if self._end():
            self._owner._functions["publish_slot"](self._owner._address, self._position, self._size)

    def give_up(self) -> None:
        """Do not send it. BufferError: somebody still has a view of the memory."""
        if self._end():
            self._owner._functions["publish_slot"](self._owner._address, self._position, 0)

    def _abandon(self) -> None:
        if self._finished():
            self._owner._functions["publish_slot"](self._owner._address, self._position, 0)

    done, let_go = publish, give_up


class Borrow(_Slot):
    """A message where it lies: Mpmc.borrow.

    Attributes:
        array: bytes (uint8), or the item as an array of its dtype; it cannot be written to.
        times: how often it was taken before, by receivers that died with it (modulo 32).
    """

    def __init__(self, owner: Mpmc, position: int, size: int):
        super().__init__(owner, position, size, False)
        self.times = owner._functions["times"](owner._address, position)

    def release(self) -> None:
        """It is received, and its memory may be used again. BufferError: somebody still has a view of it."""
        if self._end():
            self._owner._functions["release_slot"](self._owner._address, self._position)

    def hand_back(self) -> None:
        """It is not received: another is to have it. BufferError: somebody still has a view of it."""
        if self._end():
            self._owner._functions["hand_back"](self._owner._address, self._position)

    def _abandon(self) -> None:
        if self._finished():
            self._owner._functions["hand_back"](self._owner._address, self._position)

    done = let_go = release


def _arrives(kind: type[Mpmc], segment: Segment, item: np.dtype | None, place: int, ticket: Any) -> Mpmc:
    fd = arrived(ticket)
    try:
        self = kind.__new__(kind)
        self._begin(segment, item)
        self._arrived_at(place)
        return self
    finally:
        os.close(fd)


_all: weakref.WeakSet[Mpmc] = weakref.WeakSet()
_forking = threading.Lock()
_places: list[tuple[Mpmc, int, int]] = []


def _a_child_comes() -> None:
    """Before fork(2): a place for the child in every queue. One fork at a time, or it inherits what is another's."""
    _forking.acquire()
    for q in list(_all):
        with contextlib.suppress(OSError, ValueError):  # then it enters when it uses the queue, if it can
            _places.append((q, *q._segment.place(q._sweep, q._arrive)))


def _it_has_come() -> None:
    for _, _, fd in _places:
        os.close(fd)
    _places.clear()
    _forking.release()


def _we_have_come() -> None:
    """In the child, after what labkit.lockfree.segment does there."""
    for q, number, _ in _places:
        with contextlib.suppress(OSError, ValueError):
            q._arrived_at(number)
    _it_has_come()


os.register_at_fork(before=_a_child_comes, after_in_parent=_it_has_come, after_in_child=_we_have_come)


@njit
def _trouble(state, number):
    """What a number that compiled code has got means."""
    if number == -CORRUPT:
        raise OSError(errno.EBADMSG, "this queue cannot be used: its memory is damaged")
    if not mpmc_entry.become(state, RECEIVES if number == -NOT_RECEIVER else SENDS):
        raise ValueError("this queue is closed, or belongs to the parent of this process")


def _operations(item: np.dtype) -> Operations:
    made = mpmc_entry.item_operations(item.itemsize)
    return Operations(
        send=made["send"],
        receive=made["receive"],
        trouble=_trouble,
        can_receive=mpmc_entry.may_receive,
        can_send=mpmc_entry.may_send,
        items_bell=mpmc_entry.items_bell,
        room_bell=mpmc_entry.room_bell,
        senders_gone=mpmc_entry.senders_gone,
        receivers_gone=mpmc_entry.receivers_gone,
        spins=mpmc_entry.spins,
    )


teach(Mpmc, _operations)
