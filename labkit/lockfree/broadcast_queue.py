"""Broadcast: one writer, any number of readers, each of which gets every message or is told how many it missed.

    q = Broadcast(1 << 20)                              # bytes of a ring of messages of any length
    q = Broadcast(1024, dtype=np.float64)               # or so many items
    jobs = [launch(listen, q) for _ in range(3)]        # each has its own place in the stream: the place q itself has
    q.send(b"to all of them")                           # never waits

The writer never waits for anybody. A reader that is slower than it loses the oldest messages, and is told so: the call
that would have received the first of them raises `Missed`, once, and the next one goes on with what is still there.
That is the default because a program that was written without a thought of it would otherwise compute from a stream
with holes; `on_missed="go on"` is for programs that want the newest anyway, and they can look at `missed`. (Tokio's
channels do the first, Aeron's the second.)
"""

from __future__ import annotations

import contextlib
import errno
import os
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Literal, Self

import numpy as np
from numba import njit

from labkit.channels.base import DEFAULT_TIMEOUT, Closed, as_bytes, whole
from labkit.lockfree import broadcast
from labkit.lockfree.atomics import load_relaxed
from labkit.lockfree.broadcast import CURSOR_WORDS, NUMBER, OVERRUN, POSITION
from labkit.lockfree.broadcast_entry import (
    BAD,
    BELL,
    BELL_FD,
    BORROWS,
    BUSY,
    CURSOR,
    GAP,
    GOES_ON,
    ITEM_BYTES,
    LOANS,
    MISSED,
    NOT_WRITER,
    PRIVATE,
    SENT,
    SPINS,
    WRITES,
    become_writer,
    broadcast_entries,
    broadcast_functions,
    is_writer_gone,
    items_bell,
    may_receive,
    may_send,
    readers_gone,
    receive_items,
    send_items,
    spins,
)
from labkit.lockfree.compiled import Operations, teach
from labkit.lockfree.entry import new_state
from labkit.lockfree.face import (
    SPIN,
    Face,
    View,
    as_item,
    as_items,
    damaged,
    item_type,
    number_of,
    until,
    view_of,
)
from labkit.lockfree.segment import BODY, ITEMS, SENDER, Role, Segment

KIND = "broadcast"
LARGEST = 1 << 36
"""Bytes of a ring."""
DAMAGED = str(damaged(KIND).strerror)


class Missed(Exception):
    """This reader was too slow, and messages were overwritten before it had received them. The next call goes on.

    Attributes:
        count: how many messages.
    """

    def __init__(self, count: int, text: str = ""):
        super().__init__(count, text)
        self.count = count
        self._text = text

    def __str__(self) -> str:
        return self._text or (
            f"{self.count:,} messages were overwritten before they were received: this reader is slower than the "
            "writer; the next call goes on behind them"
        )


class Broadcast(Face):
    """One writer, any number of readers; whoever sends first is the writer, until it closes or dies.

    Each object has a place of its own in the stream. The one that creates the ring gets everything from the beginning;
    a copy that travels to another process begins where the original is at that moment. Who iterates and has got Missed
    iterates again.

    Args:
        capacity: bytes of a ring for messages of any length, rounded up to a power of two, at least 4096; the largest
            message takes half of it. With a `dtype`: items, a power of two is fastest.
        dtype: of fixed-size items, any NumPy dtype without Python objects, also records and sub-arrays.
        name: so that strangers can `open` it.
        on_missed: "raise" Missed when messages were missed, or "go on" and only count them.

    Attributes:
        missed: messages that this reader was too slow for, all in all.

    Raises:
        ValueError: a capacity, dtype or `on_missed` that cannot be.
        TypeError: the dtype holds Python objects.
        FileExistsError: the name is in use.
        OSError: ENOMEM or ENOSPC, the machine has not so much memory.
    """

    def __init__(
        self,
        capacity: int,
        *,
        dtype: Any = None,
        name: str | None = None,
        on_missed: Literal["raise", "go on"] = "raise",
    ):
        goes_on = _goes_on(on_missed)
        item = None if dtype is None else item_type(dtype)
        capacity = whole(capacity, "a capacity")
        if item is None:
            if not 0 < capacity <= LARGEST:
                raise ValueError(f"capacity must be 1 byte to {LARGEST:,} bytes, not {capacity:,}")
            capacity = size = max(4096, 1 << (capacity - 1).bit_length())
        else:
            size = capacity * item.itemsize
            if not 0 < size <= LARGEST:
                raise ValueError(
                    f"{capacity:,} items of {item.itemsize:,} bytes are {size:,}: a ring has 1 byte to {LARGEST:,}"
                )
        segment = Segment.new(
            KIND, broadcast.LAYOUT, (capacity, 0 if item is None else item.itemsize), broadcast.DATA + size, name=name
        )
        self._begin(segment, item, goes_on)

    @classmethod
    def open(
        cls,
        name: str,
        *,
        dtype: Any = None,
        start: Literal["oldest", "newest"] = "oldest",
        on_missed: Literal["raise", "go on"] = "raise",
    ) -> Self:
        """The ring of this name, as a stranger opens it.

        Args:
            name: what its creator called it.
            dtype: of the items, as its creator gave it.
            start: begin with the "oldest" message that is still there, or behind the "newest".
            on_missed: as for a new one.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it has items of another size.
            OSError: EBADMSG, it is no ring, or a damaged one.
        """
        goes_on = _goes_on(on_missed)
        item = None if dtype is None else item_type(dtype)
        self = cls.__new__(cls)
        self._begin(Segment.open(KIND, broadcast.LAYOUT, name), item, goes_on)
        try:
            self.seek(start)
        except BaseException:
            self.close()
            raise
        return self

    def _begin(self, segment: Segment, item: np.dtype | None, goes_on: bool) -> None:
        self._segment, self._item = segment, item
        self._slot: Loan | Borrow | None = None
        try:
            capacity, item_bytes = segment.geometry[:2]
            size = capacity * (item_bytes or 1)
            if not (0 < size <= LARGEST and BODY + broadcast.DATA + size <= segment.memory.size):
                raise OSError(errno.EBADMSG, "this is not a queue that can be used: its capacity is not its size")
            if item_bytes == 0 and (capacity & (capacity - 1) or capacity < 4096):
                raise OSError(errno.EBADMSG, "this is not a queue that can be used: its capacity is no power of two")
            if item_bytes != (0 if item is None else item.itemsize):
                of = f"items of {item_bytes:,} bytes" if item_bytes else "messages of any length, without a dtype"
                raise ValueError(f"this broadcast has {of}, not {item or 'messages of any length'}: use its dtype")
        except BaseException:
            segment.close()
            raise
        self._type: Any = item
        self._number = number_of(item)
        self.capacity = capacity
        self.max_message = item_bytes or broadcast.largest.py_func(capacity)
        self._state = state = new_state(segment.body, capacity, self.max_message)
        self._items = bell = segment.bell(ITEMS)
        state[[ITEM_BYTES // 8, GOES_ON // 8, SPINS // 8]] = item_bytes, goes_on, SPIN
        state[[BELL // 8, BELL_FD // 8]] = bell.address, bell.descriptor
        state[PRIVATE // 8] = segment.private.ctypes.data
        self._at = int(state.ctypes.data)
        keep = segment.memory, segment.private
        made = {name: entry.builtin(state, keep) for name, entry in broadcast_entries().items()}
        self._send, self._receive, self._receive_many = made["send"], made["receive"], made["receive_many"]
        self._receive_into, self._spin = made["receive_into"], made["spin"]
        self._functions = broadcast_functions()
        self.closed = False
        _all.add(self)

    # --- the writer -----------------------------------------------------------------------------------------

    def send(self, message: Any, timeout: float | None = DEFAULT_TIMEOUT) -> None:
        """Send one message, or one item, to all readers. It never waits, whatever the `timeout`.

        Raises:
            TypeError: the message is not bytes-like.
            ValueError: the message is empty or too large, the item has another dtype or shape; another living process
                is the writer; this object is closed, or has a loan out.
            OSError: EBADMSG, the memory is damaged.
        """
        sent = self._send(message if self._item is None else self._one(message))
        if sent != SENT:
            self._send_after_all(sent, message if self._item is None else self._one(message))

    def try_send(self, message: Any) -> bool:
        """The same: there is always room. True."""
        self.send(message)
        return True

    def send_many(self, messages: Iterable[Any], timeout: float | None = DEFAULT_TIMEOUT) -> None:
        """Send several messages, or an array of items. The same errors; what comes before a wrong message is sent."""
        if self._item is None:
            for message in messages:
                self.send(message)
            return
        array = self._several(messages)
        if array.size:
            sent = self._send(array)
            if sent != SENT:
                self._send_after_all(sent, array)

    def _send_after_all(self, result: int, message: Any) -> None:
        """What `_send` refused."""
        self._must_be_open()
        if result == NOT_WRITER:
            self._settle()
            self._segment.take_role(SENDER)
            self._state[WRITES // 8] = 1
            result = self._send(message)
        if result == BAD:
            raise damaged(KIND)
        if result != SENT:
            with contextlib.suppress(OSError):
                as_bytes(message, self.max_message)
            raise ValueError(
                f"message of {memoryview(message).nbytes:,} bytes is too large: this broadcast takes 1 to "
                f"{self.max_message:,}"
            )

    def loan(self, size: int | None = None, timeout: float | None = DEFAULT_TIMEOUT) -> Loan:
        """Memory of the ring in which to write the next message, without a copy. It is sent at the end of the `with`.

            with q.loan(1000) as slot:
                slot.array[:] = 7

        Args:
            size: bytes of the message; of items there is one size.
            timeout: it never waits.

        Raises:
            ValueError: no such size; another living process is the writer; a loan is out already.
        """
        self._must_be_open()
        self._settle()
        size = self.max_message if self._item is not None else whole(size, "the size of a message")
        if not 0 < size <= self.max_message:
            raise ValueError(f"a message has 1 to {self.max_message:,} bytes, not {size:,}")
        if not self._state[WRITES // 8]:
            self._segment.take_role(SENDER)
            self._state[WRITES // 8] = 1
        position = self._functions["claim"](self._at, size)
        if position < 0:
            raise damaged(KIND)
        self._state[LOANS // 8] = 1  # nothing else may be sent meanwhile
        self._slot = loan = Loan(self, position, size)
        return loan

    # --- a reader -------------------------------------------------------------------------------------------

    def receive(self, timeout: float | None = DEFAULT_TIMEOUT) -> Any:
        """The next message: bytes; or the next item: a NumPy scalar, record or array.

        Args:
            timeout: seconds to wait for it; 0 never waits, None waits for ever.

        Raises:
            Missed: messages were overwritten before we received them; it says how many. The next call goes on.
            TimeoutError: nothing came.
            Closed: there was a writer, none is left, and everything is received.
            ValueError: it would have to wait a negative time; this object is closed, or has a borrowed message.
            OSError: EBADMSG, the memory is damaged.
        """
        if self._item is None:
            message = self._receive()
            return message if message.__class__ is bytes else self._wait(self._receive, message, timeout)
        return self._fill(1, timeout)[0]

    def try_receive(self) -> Any:
        """The next message or item, or None when there is none now. Missed, Closed: as for `receive`."""
        try:
            return self.receive(0)
        except TimeoutError:
            return None

    def receive_many(self, most: int = 1024, timeout: float | None = DEFAULT_TIMEOUT) -> Any:
        """What is there, up to `most` messages (a list) or items (an array), at least one. Errors as for `receive`."""
        most = whole(most, "how many to receive")
        if most < 1:
            raise ValueError(f"receive at least 1 message, not {most}")
        if self._item is None:
            messages = self._receive_many(most) or None
            if messages.__class__ is list:
                return messages
            return self._wait(lambda: self._receive_many(most) or None, messages, timeout)
        return self._fill(min(most, self.capacity), timeout)

    def _fill(self, most: int, timeout: float | None) -> np.ndarray:
        """Up to so many items."""
        array = np.empty(most, self._item)
        room = array.reshape(-1).view(np.uint8)

        def take() -> Any:
            count = self._receive_into(room)
            return (count,) if count > 0 else -count or None

        count = take()
        if count.__class__ is not tuple:
            count = self._wait(take, count, timeout)
        return array if count[0] == most else array[: count[0]].copy()

    def _wait(self, take: Callable[[], Any], got: Any, timeout: float | None) -> Any:
        """Call `take` until it returns a message; it has returned `got`. None: there is none; a number: trouble."""

        def attempt() -> Any:
            return self._good(take, take())

        good = self._good(take, got)
        if good is not None:
            return good
        return until(
            attempt,
            self._items,
            timeout,
            spin=self._spin,
            look=self._ended,
            ended=lambda: Closed("the writer of this broadcast has gone, and everything is received"),
            late="nothing new was broadcast" if timeout == 0 else "nothing was broadcast",
        )

    def _good(self, take: Callable[[], Any], got: Any) -> Any:
        """What `take` has returned, a message or None; or the error that a number means."""
        while got.__class__ is int:
            self._raise(got)
            got = take()
        return got

    def _raise(self, what: int) -> None:
        """What a builtin says."""
        self._must_be_open()
        if what == MISSED:
            raise Missed(int(self._state[GAP // 8]))
        if what == BUSY:
            self._settle()
            return
        raise damaged(KIND)

    def _ended(self) -> bool:
        """Proof that there was a writer and none is left."""
        self._must_be_open()
        if self._state[WRITES // 8]:
            return False  # it is we
        return self._segment.role(SENDER) is Role.GONE

    def borrow(self, timeout: float | None = DEFAULT_TIMEOUT) -> Borrow:
        """The next message where it lies, without a copy: an array that cannot be written to.

            with q.borrow() as slot:
                mean = slot.array.mean()

        The writer does not know of it and may overwrite it meanwhile. At the end of the `with` (or by `release`) that
        is found out: Missed says that what was computed from it is worthless. Errors as for `receive`.
        """
        self._settle()
        some = self._look()
        return some if some.__class__ is Borrow else self._wait(self._look, some, timeout)

    def _look(self) -> Any:
        """Borrow the next message; None when there is none; or a number."""
        self._must_be_open()
        there = self._functions["look"](self._at)
        while there == OVERRUN:
            gap = self._functions["catch_up"](self._at)
            if gap < 0 or not self._state[GOES_ON // 8]:
                return BAD if gap < 0 else MISSED
            there = self._functions["look"](self._at)
        if there <= 0:
            return None if there == 0 else BAD
        size = there if self._item is None else self._item.itemsize
        self._slot = borrow = Borrow(self, int(self._state[(CURSOR + POSITION) // 8]), size)
        self._state[BORROWS // 8] = 1
        return borrow

    def _anything(self) -> bool:
        return bool(self._functions["look"](self._at))

    def seek(self, where: Literal["oldest", "newest"]) -> None:
        """Go to the oldest message that is still there, or behind the newest. What lies between is not missed."""
        self._must_be_open()
        if where not in ("oldest", "newest"):
            raise ValueError(f'start at the "oldest" or the "newest" message, not {where!r}')
        if self._functions["start"](self._at, where == "newest") < 0:
            raise damaged(KIND)

    @property
    def missed(self) -> int:
        return int(self._state[(CURSOR + broadcast.MISSED) // 8])

    def __len__(self) -> int:
        """How many messages have been sent that this reader has neither received nor been told to have missed."""
        self._must_be_open()
        count = self._functions["waiting"](self._at)
        if count < 0:
            raise damaged(KIND)
        return count

    def _settle(self) -> None:
        """There is no loan, and no borrowed message, or ValueError."""
        self._must_be_open()
        slot = self._slot
        if slot is not None:
            slot.settle()

    # --- both -----------------------------------------------------------------------------------------------

    def _one(self, item: Any) -> Any:
        """An item as what `_send` takes, or the error that says what is wrong with it."""
        return as_item(item, self._type, self._number)

    def _several(self, items: Any) -> np.ndarray:
        return as_items(items, self._type, (-1,))

    def close(self) -> None:
        """Give it up. Readers of a writer that has closed get Closed when they have received everything."""
        if self.closed:
            return
        _all.discard(self)
        if self._watch is not None:
            self._watch.close()
        self.closed = True

        def refuse(*_: object) -> None:
            raise ValueError("this queue is closed: it was closed here")

        self._send = self._receive = self._receive_many = self._receive_into = refuse
        if self._state[WRITES // 8]:
            self._segment.leave_role(SENDER)
            self._items.ring()  # readers that sleep find out now
        self._state[[WRITES // 8, BELL_FD // 8]] = 0, -1
        self._segment.close()

    def __repr__(self) -> str:
        what = f"bytes, {self.max_message:,} a message" if self._item is None else f"items of {self._item}"
        name = f" {self._segment.name!r}" if self._segment.name else ""
        return f"<broadcast{name}, {self.capacity:,} {what}, {'closed' if self.closed else 'open'}>"

    def __reduce__(self) -> Any:
        self._must_be_open()
        place = [int(self._state[(CURSOR + word) // 8]) for word in (POSITION, NUMBER)]
        return _arrives, (type(self), self._segment, self._item, bool(self._state[GOES_ON // 8]), place)

    def _after_fork(self) -> None:
        """In the child: a reader at the same place. The writer is still the parent."""
        self._state[[WRITES // 8, LOANS // 8, BORROWS // 8]] = 0
        self._slot = None


class _Slot(View):
    """A message in the ring's own memory.

    Attributes:
        array: bytes (uint8), or the item as an array of its dtype.
        abandoned: whoever sends or receives next takes it back.
    """

    def __init__(self, owner: Broadcast, position: int, size: int, writable: bool):
        super().__init__()
        self._owner, self._position, self._size, self._is_writable = owner, position, size, writable

    def _view(self) -> np.ndarray:
        owner = self._owner
        start = BODY + owner._functions["offset"](owner._at, self._position)
        return view_of(owner._segment.memory, start, self._size, owner._item, self._is_writable)

    def _end(self) -> bool:
        """Take the memory back; False when that has been done already."""
        owner = self._owner
        owner._must_be_open()
        if owner._slot is not self:
            return False  # or it is the parent's, and we are a child made by fork(2)
        self.take_back()
        owner._slot = None
        return True


class Loan(_Slot):
    """Memory in which the next message is written: Broadcast.loan."""

    what = "loan is out: publish it or give it up"

    def __init__(self, owner: Broadcast, position: int, size: int):
        super().__init__(owner, position, size, True)

    def publish(self) -> None:
        """Send it. BufferError: somebody still has a view of the memory."""
        if self._end():
            self._owner._functions["finish"](self._owner._at, self._position, self._size)
            self._owner._state[LOANS // 8] = 0

    def give_up(self) -> None:
        """Do not send it. The oldest messages that made room for it are gone all the same."""
        if self._end():
            self._owner._state[LOANS // 8] = 0

    done, let_go = publish, give_up


class Borrow(_Slot):
    """A message where it lies: Broadcast.borrow."""

    what = "borrowed message is out"

    def __init__(self, owner: Broadcast, position: int, size: int):
        super().__init__(owner, position, size, False)

    def is_whole(self) -> bool:
        """Whether nothing of it has been overwritten up to now."""
        return bool(self._owner._functions["is_whole"](self._owner._at))

    def release(self) -> None:
        """Done with it.

        Raises:
            Missed: it has been overwritten meanwhile, and what was read in it is worthless.
            BufferError: somebody still has a view of the memory.
        """
        if self._end():
            owner = self._owner
            owner._state[BORROWS // 8] = 0
            if owner._functions["go_on"](owner._at, self._size) == OVERRUN:
                gap = owner._functions["catch_up"](owner._at)
                if gap < 0:
                    raise damaged(KIND)
                raise Missed(gap, f"the borrowed message was overwritten while it was used, and {gap - 1:,} after it")

    def let_go(self) -> None:
        """Release it, and say nothing of what was overwritten."""
        with contextlib.suppress(Missed):
            self.release()

    done = release


_all: weakref.WeakSet[Broadcast] = weakref.WeakSet()


def _children_are_others() -> None:
    for one in list(_all):
        one._after_fork()


os.register_at_fork(after_in_child=_children_are_others)


def _arrives(
    kind: type[Broadcast], segment: Segment, item: np.dtype | None, goes_on: bool, place: list[int]
) -> Broadcast:
    self = kind.__new__(kind)
    self._begin(segment, item, goes_on)
    first = CURSOR // 8
    self._state[first : first + CURSOR_WORDS] = *place, 0, 0
    return self


def _goes_on(on_missed: str) -> bool:
    if on_missed not in ("raise", "go on"):
        raise ValueError(f'on_missed is "raise" or "go on", not {on_missed!r}')
    return on_missed == "go on"


@njit
def _trouble(state, number):
    """What a number that compiled code has got means."""
    if number == -MISSED:
        raise Missed(load_relaxed(state + GAP))
    if number == -BUSY:
        raise ValueError("a borrowed message is out; end that first")
    if number == -BAD:
        raise OSError(errno.EBADMSG, DAMAGED)
    if not become_writer(state):
        raise ValueError("a loan is out, or another living process is the writer of this broadcast")


teach(
    Broadcast,
    Operations(
        send=send_items,
        receive=receive_items,
        trouble=_trouble,
        can_receive=may_receive,
        can_send=may_send,
        items_bell=items_bell,
        room_bell=items_bell,
        senders_gone=is_writer_gone,
        receivers_gone=readers_gone,
        spins=spins,
    ),
)
