"""Spsc: one sender, one receiver, nothing faster; messages of any length, or items.

    q = Spsc()                                          # a ring of 1 MiB for messages of any length
    q = Spsc(1024, dtype=np.float64)                    # or for so many items of a NumPy dtype
    job = launch(work, q)
    q.send(b"to it")

Whoever sends first is the sender, whoever receives first the receiver, until it closes or dies. `send`, `receive`,
`try_send` and `try_receive` of an object are compiled builtins (labkit.lockfree.spsc_entry), which call what is written
here when there is more to do: to wait, to take a role, to send a large message, to say what is wrong.
"""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Self

import numpy as np
from numba import njit

from labkit.channels.base import DEFAULT_TIMEOUT, Closed, as_bytes, whole
from labkit.lockfree import spsc, spsc_entry
from labkit.lockfree.compiled import Operations, teach
from labkit.lockfree.entry import APART, CORRUPT, FULL, MOST, REFUSED, SENT, new_state
from labkit.lockfree.face import (
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
from labkit.lockfree.segment import BODY, ITEMS, RECEIVER, ROOM, SENDER, Role, Segment
from labkit.lockfree.spsc_entry import (
    AGAIN,
    BORROW,
    BORROW_BYTES,
    BUSY,
    DONE,
    IN_PIECES,
    ITEM_BYTES,
    ITEMS_BELL,
    ITEMS_FD,
    KEEPS,
    LARGE,
    NEXT,
    NOT_RECEIVER,
    PIECE,
    PRIVATE,
    READY,
    RECEIVE_REST,
    RECEIVES,
    ROOM_BELL,
    ROOM_FD,
    SEND_REST,
    SENDS,
    SENT_BYTES,
    SPINS,
    TOO_LARGE,
    TRY_RECEIVE_REST,
    TRY_SEND_REST,
    item_operations,
    spsc_entries,
    spsc_functions,
)
from labkit.lockfree.spsc_entry import ROOM as ROOM_BYTES

KIND = "spsc"
LARGEST = 1 << 36
"""Bytes of a ring, and of a message."""
SMALLEST = 4096
DAMAGED = str(damaged(KIND).strerror)
AT_ONCE = 1 << 17
"""Larger messages are sent in pieces, so that the receiver copies one while the sender copies the next."""
PIECE_BYTES = 1 << 16
LOOK_FOR_ROOM = 0.02
"""Seconds after which a sender looks for room by itself: the receiver wakes it only when half of the ring is free."""


class Spsc(Face):
    """A ring for one sender and one receiver: two processes, or two threads, or one process that does both.

    Messages come in the order in which they were sent, each once. What a receiver had not released when it died, the
    next receiver gets; what a sender was sending when it died never was. A message larger than the ring goes through it
    in pieces; of such a one, what a dying receiver had of it is lost.

    send(message, timeout=30), receive(timeout=30), try_send(message) and try_receive() are builtins of each object,
    which help() of the class does not list: help(Spsc._send) and help(Spsc._receive) tell all of them.

    Args:
        capacity: bytes of a ring for messages of any length, rounded up to a power of two, at least 4096; a message
            takes 8 bytes more than it has, rounded up to a multiple of 8. With a `dtype`: items.
        dtype: of fixed-size items, any NumPy dtype without Python objects, also records and sub-arrays:
            np.dtype((np.float64, (1000, 1000))).
        name: so that strangers can `open` it.
        hands_on: the roles that this object has go along with a copy that travels to another process. Else they stay.

    Attributes:
        capacity: bytes, or how many items it holds.
        max_message: bytes in the largest message that is sent and lent in one piece, or in an item.

    Raises:
        ValueError: a capacity or dtype that cannot be.
        TypeError: the dtype holds Python objects.
        FileExistsError: the name is in use.
        OSError: ENOMEM or ENOSPC, the machine has not so much memory, or the process not so much address space.
    """

    send: Callable[..., None]
    receive: Callable[..., Any]
    try_send: Callable[[Any], bool]
    try_receive: Callable[[], Any]
    _spsc_send: Callable[[Any], Any]
    _spsc_send_pieces: Callable[[Any], int]
    _spsc_receive: Callable[[], Any]
    _spsc_receive_pieces: Callable[[], Any]
    _spsc_send_many: Callable[[Any], Any]
    _spsc_receive_many: Callable[[int], Any]
    _spsc_send_items: Callable[[Any], Any]
    _spsc_receive_into: Callable[[Any], Any]
    _spsc_loan: Callable[[int], int]
    _spsc_publish: Callable[[], None]
    _spsc_borrow: Callable[[], int]
    _spsc_release: Callable[[], None]
    _spsc_lent_at: Callable[[int], int]
    _spsc_spin: Callable[[], int]
    _spsc_spin_for_room: Callable[[], int]

    def __init__(self, capacity: int = 1 << 20, *, dtype: Any = None, name: str | None = None, hands_on: bool = False):
        item = None if dtype is None else item_type(dtype)
        capacity = whole(capacity, "a capacity")
        item_bytes = 0 if item is None else item.itemsize
        size = capacity * (item_bytes or 1)
        if not 0 < size <= LARGEST:
            what = f"{capacity:,} items of {item_bytes:,} bytes are {size:,}" if item_bytes else f"{size:,} were asked"
            raise ValueError(f"a ring has 1 to {LARGEST:,} bytes, {what}")
        size = max(SMALLEST, 1 << (size - 1).bit_length())
        geometry = capacity if item_bytes else size, item_bytes
        segment = Segment.new(
            KIND, spsc.LAYOUT, geometry, spsc.DATA + size, name=name, twice=BODY + spsc.DATA, hands_on=hands_on
        )
        self._begin(segment, item)

    @classmethod
    def open(cls, name: str, *, dtype: Any = None) -> Self:
        """The ring of this name, as a stranger opens it.

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
        self._begin(Segment.open(KIND, spsc.LAYOUT, name, twice=BODY + spsc.DATA), item)
        return self

    def again(self) -> Self:
        """Another object for the same ring, which may have other roles."""
        self._must_be_open()
        self_ = type(self).__new__(type(self))
        self_._begin(self._segment.again(), self._item)
        return self_

    def _begin(self, segment: Segment, item: np.dtype | None) -> None:
        self._segment, self._item = segment, item
        try:
            capacity, item_bytes = segment.geometry[:2]
            size = os.fstat(segment.fd).st_size - BODY - spsc.DATA
            if size < SMALLEST or size & (size - 1) or not 0 < capacity * (item_bytes or 1) <= size or item_bytes < 0:
                raise OSError(errno.EBADMSG, "this is not a queue that can be used: its geometry cannot be")
            if item_bytes == 0 and capacity != size:
                raise OSError(errno.EBADMSG, "this is not a queue that can be used: its capacity is not its size")
            if item_bytes != (0 if item is None else item.itemsize):
                has = f"items of {item_bytes:,} bytes" if item_bytes else "messages of any length, without a dtype"
                raise ValueError(f"this ring has {has}, not {'messages' if item is None else item}: use its dtype")
            self._build(segment, capacity, item_bytes, size)
        except BaseException:
            segment.close()
            raise
        self.closed = False
        _all.add(self)

    def _build(self, segment: Segment, capacity: int, item_bytes: int, size: int) -> None:
        self.capacity, self.max_message = capacity, item_bytes or size - spsc.FRAME
        self._items, self._room = segment.bell(ITEMS), segment.bell(ROOM)
        self._state = state = new_state(segment.body, size, item_bytes or LARGEST)
        self._address = int(state.ctypes.data)
        self._functions = spsc_functions()
        self._out: list[Loan | Borrow | None] = [None, None]  # by role
        self._number = number_of(self._item)
        for word, value in (
            (ITEM_BYTES, item_bytes),
            (ROOM_BYTES, capacity * (item_bytes or 1)),
            (PRIVATE, int(segment.private.ctypes.data)),
            (SPINS, SPIN),
            (ITEMS_BELL, self._items.address),
            (ITEMS_FD, self._items.descriptor),
            (ROOM_BELL, self._room.address),
            (ROOM_FD, self._room.descriptor),
            (LARGE, item_bytes or min(size - spsc.FRAME, AT_ONCE)),
            (PIECE, min(PIECE_BYTES, size // 4)),
        ):
            state[word // 8] = value
        rest = SEND_REST, RECEIVE_REST, TRY_SEND_REST, TRY_RECEIVE_REST
        as_builtins(self, spsc_entries(), state, rest, (segment.memory, segment.private))

    # --- sending --------------------------------------------------------------------------------------------

    def _send(self, message: Any, timeout: float | None = DEFAULT_TIMEOUT) -> None:
        """Send one message, or one item.

        Args:
            message: any contiguous bytes-like object of 1 byte or more; or an item.
            timeout: seconds to wait while the ring is full; 0 never waits, None waits for ever.

        Raises:
            TypeError: the message is not bytes-like.
            ValueError: the message is empty, or too large to be sent without waiting; the item has another dtype or
                shape; it would have to wait a negative time; another living process is the sender; this object is
                closed, or has a loan out.
            TimeoutError: the ring stayed full.
            Closed: it is full, there was a receiver, and none is left.
            OSError: EBADMSG, the memory is damaged.
        """
        self._must_be_open()
        raw = message if self._item is None else as_item(message, self._item, self._number)
        if self._until_room(lambda: self._put(raw), timeout) == IN_PIECES:
            self._send_pieces(raw, timeout)

    def _try_send(self, message: Any) -> bool:
        """Send one message if there is room for it now; whether it was. Errors as for `send`, without TimeoutError."""
        try:
            self._send(message, 0)
        except TimeoutError:
            return False
        return True

    def _put(self, raw: Any) -> Any:
        """Send bytes: true, or None when the ring is full."""
        while True:
            try:
                sent = self._spsc_send(raw)
            except (TypeError, ValueError, BufferError):
                raw, sent = self._checked(raw), self._spsc_send(self._checked(raw))
            if sent in (SENT, IN_PIECES):
                return sent
            if sent == FULL or not self._settle(sent, SENDER):
                return None
            if sent == REFUSED:
                raw = self._checked(raw)

    def _checked(self, raw: Any) -> Any:
        """A message as bytes, or the error that says what is wrong with it."""
        try:
            return as_bytes(raw, int(self._state[MOST // 8]))
        except OSError as reason:
            raise ValueError(str(reason.strerror)) from None

    def _send_pieces(self, raw: Any, timeout: float | None) -> None:
        """Send a large message."""
        size = memoryview(raw).nbytes
        if timeout == 0:
            fits = self._functions["fits"](self._address, size)
            if fits < 0:
                raise ValueError(
                    f"message of {size:,} bytes is larger than this ring, it cannot be sent without waiting: use send"
                )
            if not fits:
                self._until_room(lambda: None, 0)
        if not self._settle(APART, SENDER):
            raise ValueError("another thread is in the middle of sending a large message")
        state = self._state
        state[SENDS // 8], state[SENT_BYTES // 8] = BUSY, 0

        def attempt() -> Any:
            sent = self._spsc_send_pieces(raw)
            if sent == CORRUPT:
                raise damaged(KIND)
            return None if sent == FULL else True

        try:
            self._until_room(attempt, timeout)
        except BaseException:
            if not self.closed:
                self._functions["abandon"](self._address)
            raise
        finally:
            if state[SENDS // 8] == BUSY:
                state[SENDS // 8] = READY

    def send_many(self, messages: Iterable[Any], timeout: float | None = DEFAULT_TIMEOUT) -> None:
        """Send several messages, or an array of items.

        Errors as for `send`; what comes before a wrong message is sent, and so is what there was room for in time.
        """
        if self._item is None:
            self._send_messages(messages if messages.__class__ is list else list(messages), timeout)
            return
        self._must_be_open()
        start = 0
        if is_plain(messages, self._number):
            if self._spsc_send_items(messages) == SENT:
                return
            start = int(self._state[DONE // 8]) * self.max_message
        many = as_items(messages, self._item, (-1,))

        def attempt() -> Any:
            nonlocal start
            while start < many.size:
                sent = self._spsc_send_items(many[start:] if start else many)
                start += int(self._state[DONE // 8]) * self.max_message
                if sent == FULL or not self._settle(sent, SENDER):
                    return None
            return True

        self._until_room(attempt, timeout)

    def _send_messages(self, many: list[Any], timeout: float | None) -> None:
        if self._spsc_send_many(many) == SENT:
            return
        self._must_be_open()
        start = int(self._state[DONE // 8])

        def attempt() -> Any:
            nonlocal start
            while start < len(many):
                sent = self._spsc_send_many(many[start:] if start else many)
                start += int(self._state[DONE // 8])
                if sent in (IN_PIECES, REFUSED):
                    return sent
                if sent == FULL or not self._settle(sent, SENDER):
                    return None
            return SENT

        while self._until_room(attempt, timeout) != SENT:
            self._send(many[start], timeout)  # in pieces, or it says what is wrong with it
            start += 1

    def _until_room(self, attempt: Callable[[], Any], timeout: float | None) -> Any:
        done = attempt()
        if done is None and timeout != 0 and self._spsc_spin_for_room():
            done = attempt()
        if done is not None:
            return done
        return until(
            attempt,
            self._room,
            timeout,
            spin=self._spsc_spin_for_room,
            look=lambda: self._is_gone(RECEIVER),
            ended=lambda: Closed("the ring is full, and its receiver has gone"),
            late="the ring is full" if timeout == 0 else "the ring stayed full",
            at_most=LOOK_FOR_ROOM,
        )

    def loan(self, size: int | None = None, timeout: float | None = DEFAULT_TIMEOUT) -> Loan:
        """Memory of the ring in which to write the next message, without a copy. It is sent at the end of the `with`.

            with q.loan(100) as slot:
                slot.array[:] = 7

        Nothing else can be sent meanwhile.

        Args:
            size: bytes of the message, `max_message` at most and when None; of items there is one size.
            timeout: as for `send`, and the same errors.
        """
        if size is None or self._item is not None:
            size = self.max_message
        if size.__class__ is not int or not 0 < size <= self.max_message:
            size = self._lendable(whole(size, "the size of a message"))
        if self._out[SENDER] is not None or self._spsc_loan(size) != SENT:
            self._wait_for_loan(size, timeout)
        self._out[SENDER] = loan = Loan(self, size)
        return loan

    def _lendable(self, size: int) -> int:
        if not 0 < size <= self.max_message:
            raise ValueError(f"a message is lent with 1 to {self.max_message:,} bytes, not {size:,}")
        return size

    def _wait_for_loan(self, size: int, timeout: float | None) -> None:
        self._must_be_open()
        self._let_go(SENDER)

        def attempt() -> Any:
            while (lent := self._spsc_loan(size)) != SENT:
                if lent == FULL or not self._settle(lent, SENDER):
                    return None
            return True

        self._until_room(attempt, timeout)

    # --- receiving ------------------------------------------------------------------------------------------

    def _receive(self, timeout: float | None = DEFAULT_TIMEOUT) -> Any:
        """The next message: bytes; or the next item: a NumPy scalar, record or array.

        Args:
            timeout: seconds to wait for it; 0 never waits, None waits for ever.

        Raises:
            TimeoutError: nothing came.
            Closed: there was a sender, none is left, and everything is received.
            ValueError: it would have to wait a negative time; another living process is the receiver; this object is
                closed, or has a borrowed message.
            OSError: EBADMSG, the memory is damaged.
        """
        if self._item is None:
            return self._until_message(lambda: self._got(self._spsc_receive), timeout)
        return self._fill(1, timeout)[0]

    def _try_receive(self) -> Any:
        """The next message or item, or None when there is none now. Errors as for `receive`, without TimeoutError."""
        try:
            return self._receive(0)
        except TimeoutError:
            return None

    def _got(self, take: Callable[[], Any]) -> Any:
        """What a builtin returns: messages, or None."""
        got = take()
        while got.__class__ is int:
            if got == IN_PIECES:
                got = self._spsc_receive_pieces()
            elif got == AGAIN or self._settle(got, RECEIVER):
                got = take()
            else:
                return None
        return got

    def receive_many(self, most: int = 1024, timeout: float | None = DEFAULT_TIMEOUT) -> Any:
        """What is there, up to `most` messages (a list) or items (an array), at least one. Errors as for `receive`."""
        if most.__class__ is not int or most < 1:
            most = whole(most, "how many to receive")
            if most < 1:
                raise ValueError(f"receive at least 1 message, not {most}")
        if self._item is not None:
            return self._fill(min(most, self.capacity), timeout)
        got = self._spsc_receive_many(most)
        if got.__class__ is list:
            return got
        got = self._until_message(lambda: self._got(lambda: self._spsc_receive_many(most)), timeout)
        return got if got.__class__ is list else [got]

    def _fill(self, most: int, timeout: float | None) -> np.ndarray:
        """Up to so many items."""
        assert self._item is not None
        array = np.empty(most, self._item)
        if is_plain(array, self._number) and (count := self._spsc_receive_into(array)) > 0:
            return array if count == most else array[:count].copy()
        count = self._receive_into(array.reshape(-1).view(np.uint8), timeout)
        return array if count == most else array[:count].copy()

    def receive_into(self, room: Any, timeout: float | None = DEFAULT_TIMEOUT) -> int:
        """Receive into memory of yours, without making an object.

        Args:
            room: a writable contiguous buffer for the next message; or an array for as many items as there are.
            timeout: as for `receive`, and the same errors.

        Returns:
            How many bytes the message has, or how many items came.

        Raises:
            ValueError: the message is larger, and still there to be received; the array has another dtype or shape.
        """
        if self._item is None:
            return self._receive_into(room, timeout)
        if is_plain(room, self._number) and (count := self._spsc_receive_into(room)) > 0:
            return count
        if not isinstance(room, np.ndarray) or not room.flags.c_contiguous:
            raise TypeError(f"items are received into a contiguous array, not {type(room).__name__}")
        if room.dtype != self._item.base or room.shape[1:] != self._item.shape or not room.size:
            raise ValueError(f"an array of {self._item} is wanted, not {room.dtype} of shape {room.shape}")
        return self._receive_into(room.reshape(-1).view(np.uint8), timeout)

    def _receive_into(self, room: Any, timeout: float | None) -> int:
        def attempt() -> Any:
            while True:
                count = self._spsc_receive_into(room)
                if count > 0:
                    return count
                if count in (-TOO_LARGE, -IN_PIECES):
                    size = int(self._state[DONE // 8])
                    if size > memoryview(room).nbytes:
                        raise ValueError(
                            f"the next message has {size:,} bytes, for {memoryview(room).nbytes:,} is room"
                        )
                    message = self._spsc_receive_pieces()
                    if message.__class__ is bytes:
                        memoryview(room).cast("B")[: len(message)] = message
                        return len(message)
                    count = -message if message else 0
                if count == 0:
                    return None
                if count != -AGAIN and not self._settle(-count, RECEIVER):
                    return None

        return int(self._until_message(attempt, timeout))

    def _until_message(self, attempt: Callable[[], Any], timeout: float | None) -> Any:
        done = attempt()
        if done is None and timeout != 0 and self._spsc_spin():
            done = attempt()
        if done is not None:
            return done
        return until(
            attempt,
            self._items,
            timeout,
            spin=self._spsc_spin,
            look=self._ended,
            ended=self._nothing_more,
            late="the ring is empty" if timeout == 0 else "nothing came through the ring",
        )

    def _nothing_more(self) -> Closed:
        """What to raise when the sender has gone. What it had sent of a large message will never be complete."""
        if self._state[RECEIVES // 8] == READY:
            self._functions["drop_rest"](self._address)
        return Closed("the sender of this ring has gone, and everything is received")

    def borrow(self, timeout: float | None = DEFAULT_TIMEOUT) -> Borrow:
        """The next message where it lies, without a copy: an array that cannot be written to.

            with q.borrow() as slot:
                mean = slot.array.mean()

        It is received when the `with` ends, or by `release`. Who dies before has not received it, and the next receiver
        gets it. Nothing else can be received meanwhile. A message that was sent in pieces, as `send` does with large
        ones, is put together first: those one writes by `loan` are in one piece. Errors as for `receive`.
        """
        there = None
        if self._out[RECEIVER] is not None or (size := self._spsc_borrow()) <= 0:
            size, there = self._wait_for_borrow(timeout)
        self._out[RECEIVER] = borrow = Borrow(self, size, there)
        return borrow

    def _wait_for_borrow(self, timeout: float | None) -> tuple[int, bytes | None]:
        """Bytes of the message, and the message itself when it was put together."""
        self._must_be_open()
        self._let_go(RECEIVER)

        def attempt() -> Any:
            while True:
                size = self._spsc_borrow()
                if size > 0:
                    return size, None
                if size == 0:
                    return None
                if size != -IN_PIECES:
                    if not self._settle(-size, RECEIVER):
                        return None
                    continue
                self._state[KEEPS // 8] = 1
                try:
                    there = self._spsc_receive_pieces()
                finally:
                    self._state[KEEPS // 8] = 0
                if there.__class__ is bytes:
                    state = self._state
                    state[BORROW // 8], state[BORROW_BYTES // 8], state[RECEIVES // 8] = state[NEXT // 8], 0, BUSY
                    return len(there), there
                if there is None:
                    return None
                if there != AGAIN and not self._settle(there, RECEIVER):
                    return None

        size, there = self._until_message(attempt, timeout)
        return size, there

    # --- both -----------------------------------------------------------------------------------------------

    def _settle(self, result: int, role: int) -> bool:
        """What a builtin says: True when it may try again at once, False when another thread is at it; or raise."""
        self._must_be_open()
        if result == CORRUPT:
            raise damaged(KIND)
        if result != APART:
            return True
        word = (SENDS, RECEIVES)[role] // 8
        if self._state[word] == BUSY:
            self._let_go(role)
            return bool(self._state[word] == READY)
        if not self._state[word]:
            self._segment.take_role(role)
            if role == SENDER:
                self._functions["abandon"](self._address)  # what another may have died over
            self._state[word] = READY
        return True

    def _let_go(self, role: int) -> None:
        """Take back what was left by an exception. ValueError: something is out."""
        slot = self._out[role]
        if slot is not None:
            slot.settle()

    @property
    def _at(self) -> int:
        """The address of the state, for compiled code."""
        return self._address

    def _is_gone(self, role: int) -> bool:
        """Proof that there was a sender (or receiver), and that none is left."""
        self._must_be_open()
        if self._state[(SENDS, RECEIVES)[role] // 8]:
            return False  # it is we
        return self._segment.role(role) is Role.GONE

    def _ended(self) -> bool:
        return self._is_gone(SENDER)

    def _anything(self) -> bool:
        return bool(self._functions["anything"](self._address))

    def __len__(self) -> int:
        """How many messages, or items, are in it."""
        self._must_be_open()
        count = self._functions["length"](self._address)
        if count < 0:
            raise damaged(KIND)
        return count

    def close(self) -> None:
        """Give it up. What was loaned and not published never was; what was borrowed is the next receiver's.

        When the sender has closed, the receiver gets Closed after the last message.
        """
        self._close(True)

    def _close(self, tell: bool) -> None:
        if self.closed:
            return
        _all.discard(self)
        self.closed = True
        if self._watch is not None:
            self._watch.close()
        state = self._state
        self._functions["forget"](self._address)
        if tell:
            for role, word in ((SENDER, SENDS), (RECEIVER, RECEIVES)):
                if state[word // 8]:
                    self._segment.leave_role(role)
            self._items.ring()  # who sleeps finds out now
            self._room.ring()
        state[[SENDS // 8, RECEIVES // 8, ITEMS_FD // 8, ROOM_FD // 8]] = 0, 0, -1, -1
        self._segment.close()

    def __repr__(self) -> str:
        what = "bytes" if self._item is None else f"items of {self._item}"
        name = f" {self._segment.name!r}" if self._segment.name else ""
        return f"<spsc{name}, {self.capacity:,} {what}, {'closed' if self.closed else 'open'}>"

    def __reduce__(self) -> Any:
        self._must_be_open()
        return _arrives, (type(self), self._segment, self._item)

    def _after_fork(self) -> None:
        """In the child: the roles are still the parent's."""
        self._out = [None, None]
        self._functions["forget"](self._address)
        if not self._segment.hands_on:
            self._state[[SENDS // 8, RECEIVES // 8]] = 0


class _Slot(View):
    """A message in the ring's own memory. If it is abandoned, whoever sends or receives next takes it back."""

    __slots__ = "_owner", "_size"
    role: ClassVar[int]

    def __init__(self, owner: Spsc, size: int):
        self._owner, self._size, self.abandoned = owner, size, False
        self._array, self._is_out = None, True

    def _view(self) -> np.ndarray:
        owner = self._owner
        start = BODY + owner._spsc_lent_at(self.role)
        return view_of(owner._segment.memory, start, self._size, owner._item, self.role == SENDER)

    def _end(self) -> bool:
        """Take the memory back; False when that has been done already."""
        owner = self._owner
        if owner.closed:
            owner._must_be_open()
        if owner._out[self.role] is not self:
            return False  # or it is the parent's, and we are a child made by fork(2)
        self.take_back()
        owner._out[self.role] = None
        return True


class Loan(_Slot):
    """Memory in which the next message is written: Spsc.loan."""

    __slots__ = ()
    what = "loan is out: publish it or give it up"
    role = SENDER

    def publish(self) -> None:
        """Send it. BufferError: somebody still has a view of the memory."""
        if self._end():
            self._owner._spsc_publish()

    def give_up(self) -> None:
        """Do not send it. BufferError: somebody still has a view of the memory."""
        if self._end():
            self._owner._state[SENDS // 8] = READY

    done, let_go = publish, give_up


class Borrow(_Slot):
    """A message where it lies: Spsc.borrow."""

    __slots__ = ("_there",)
    what = "borrowed message is out"
    role = RECEIVER

    def __init__(self, owner: Spsc, size: int, there: bytes | None):
        super().__init__(owner, size)
        self._there = there  # it came in pieces

    def _view(self) -> np.ndarray:
        if self._there is not None:
            return np.frombuffer(self._there, np.uint8)
        return super()._view()

    def release(self) -> None:
        """It is received, and its memory may be used again. BufferError: somebody still has a view of it."""
        if self._end():
            self._owner._spsc_release()

    done = let_go = release


_all: weakref.WeakSet[Spsc] = weakref.WeakSet()


def _children_are_others() -> None:
    for one in list(_all):
        one._after_fork()


os.register_at_fork(after_in_child=_children_are_others)


def _arrives(kind: type[Spsc], segment: Segment, item: np.dtype | None) -> Spsc:
    self = kind.__new__(kind)
    self._begin(segment, item)
    return self


@njit
def _trouble(state, number):
    """What a number that compiled code has got means."""
    if number == -CORRUPT:
        raise OSError(errno.EBADMSG, DAMAGED)
    if number == -NOT_RECEIVER:
        if not spsc_entry.become_receiver(state):
            raise ValueError("a borrowed message is out, or another living process is the receiver of this ring")
    elif not spsc_entry.become_sender(state):
        raise ValueError("a loan is out, or another living process is the sender of this ring")


def _operations(item: np.dtype) -> Operations:
    made = item_operations(item.itemsize)
    return Operations(
        send=made["send"],
        receive=made["receive"],
        trouble=_trouble,
        can_receive=spsc_entry.may_receive,
        can_send=spsc_entry.may_send,
        items_bell=spsc_entry.items_bell,
        room_bell=spsc_entry.room_bell,
        senders_gone=spsc_entry.sender_gone,
        receivers_gone=spsc_entry.receiver_gone,
        spins=spsc_entry.spins,
    )


teach(Spsc, _operations)
