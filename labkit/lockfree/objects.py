"""Objects: a queue of Python objects of any size, on Mpmc; the ground on which labkit.Queue stands.

    q = Objects(1024)
    q.put({"any": "object"}); q.get()

A small pickle lies in the slot. What is larger lies in a run of blocks (labkit.lockfree.blocks):

    offset  holds
    0       bytes of the pickle
    8       how many buffers follow, and then how many bytes each has
    ...     the pickle, and the buffers, each at a multiple of 64: parts of 64 KiB and more that pickle's protocol 5
            (PEP 574) leaves out of the pickle, such as the numbers of an array

They are copied once, by the sender. The receiver gets them where they lie, writable, and the run is free when the last
view is gone. A child made by fork(2) meanwhile gets a copy of its own of what its parent has a view of.

Small plain data that are put together (`put_together`: numbers, texts, and lists and dictionaries of them, and so on)
are pickled together into one run, and each has a slot of its own: labkit.lockfree.objects_entry.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import mmap
import multiprocessing.reduction  # noqa: F401  where _Reducers looks
import os
import pickle
import resource
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any, Self

import numpy as np

from labkit import machine
from labkit.channels.base import whole
from labkit.libc import failed, ffi, libc
from labkit.lockfree import blocks, mpmc
from labkit.lockfree.bells import FENCED
from labkit.lockfree.bells_entry import bell_functions
from labkit.lockfree.blocks import AND_MEMORY, BLOCK, NO_RUN
from labkit.lockfree.face import _rest, damaged, until
from labkit.lockfree.mpmc import RECEIVES, SENDS
from labkit.lockfree.mpmc_entry import FULL, SENT, layout
from labkit.lockfree.mpmc_queue import LOOK_FOR_ROOM, MOST_SLOTS, Mpmc
from labkit.lockfree.objects_entry import (
    ALWAYS,
    ASIDE_GET,
    ASIDE_PUT,
    BLOCKS,
    BROKEN,
    BUFFERS,
    BUSY,
    BUSY_ALL,
    CHUNKS,
    CHUNKS_ALL,
    CLEAR_ALL,
    CLEAR_MEMO,
    COUNT,
    DUMP,
    DUMP_ALL,
    GET_REST,
    IDLE,
    LIST,
    LOADS,
    OPEN_RUN,
    PACKED_REST,
    PLACES,
    PLACES_BYTES,
    POOL,
    PUT_REST,
    RUNS,
    SOME_SPOILT,
    SPOILT,
    objects_entries,
    objects_functions,
)
from labkit.lockfree.segment import BODY, Bell, Segment, _map, _own

KIND = "objects"
LAYOUT = 2
INLINE_BYTES = 224
"""Bytes of the largest pickle that lies in a slot: with its two words, four cache lines less one word."""
LENT = 1 << 16
"""Bytes from which on a buffer stays out of the pickle, and is read where it lies."""
MOST_MEMORY = 1 << 36
"""Bytes of addresses for blocks, at most, so that a process may have hundreds of queues."""
RESERVED = 1 << 24
"""Bytes of slots, at most, whose memory is reserved when a queue is made: those of 65,000 objects."""
FEW_BLOCKS = 64
MANY_ALONE = 8
"""Batches that are put one by one after one that could not be pickled together: the next are probably like it."""
KEPT = 4096
"""Blocks, 16 MiB, whose memory is kept. What is idle beyond is given back by a receiver that waits, now and then."""
TIDY_AFTER = 1.0
"""Seconds between two times."""
GIVEN_BACK = 1 << 14
"""Blocks at once, at most."""
MADV_REMOVE = 9
"""madvise(2): the same as FALLOC_FL_PUNCH_HOLE, fallocate(2)."""

UNFINISHED = 256
"""In the header of the pool: a counter of what is put and not yet done."""
DONE_BELL = 384
"""There too: rung when the counter comes to nothing."""


class NothingCame(TimeoutError):
    """The queue stayed empty."""


class Objects(Mpmc):
    """A bounded queue of Python objects for any number of processes and threads; whoever is killed harms nobody else.

    Its order, and what becomes of the messages of the dead, are Mpmc's.

    Args:
        capacity: how many objects it holds, exactly.
        counting: whether `unfinished` counts what is put.
    """

    _tells_closed = False
    put: Callable[..., None]
    get: Callable[..., Any]
    _put_pickled: Callable[[bytes], Any]
    _put_list: Callable[[list[Any]], Any]
    _put_trees: Callable[[list[Any]], int | bytes]
    _put_together: Callable[[bytes, int, int], int]
    _is_of_trees: Callable[[bytes], bool]
    _get_one: Callable[[list[Any]], Any]
    _get_list: Callable[[int], Any]

    def __init__(self, capacity: int = 1024, *, counting: bool = False):
        capacity = whole(capacity, "a capacity")
        if not 0 < capacity <= MOST_SLOTS:
            raise ValueError(f"a queue holds 1 to {MOST_SLOTS:,} objects, not {capacity:,}")
        stride, _ = layout(INLINE_BYTES, False)
        most = min(MOST_MEMORY, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE"))
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:  # of addresses, which we are lavish with elsewhere
            most = min(most, limit // 16)
        number = most // BLOCK
        start = _pool_start(capacity, stride)
        geometry = capacity, INLINE_BYTES, False, number, counting
        reserve = min(start + blocks.WORDS, RESERVED)
        segment = Segment.new(KIND, LAYOUT, geometry, start + blocks.pool_bytes(number), reserve=reserve)
        self._begin(segment, None)

    def _build(self, segment: Segment, capacity: int, size: int, stride: int, offset: int) -> None:
        super()._build(segment, capacity, size, stride, offset)
        start, number = _pool_start(capacity, stride), segment.geometry[3]
        if not 0 < number <= MOST_MEMORY // BLOCK or BODY + start + blocks.pool_bytes(number) > segment.memory.size:
            raise OSError(errno.EBADMSG, "this is not a queue that can be used: its blocks do not fit into it")
        self._pool, self._first_block = BODY + start, BODY + start + blocks.first_block(number)
        self._blocks = number
        self._more = objects_functions()
        self._leases: set[_Lease] = set()
        self._tidied = time.monotonic()
        self._views: np.ndarray | None = None
        self._spoilt: list[BaseException] = []
        self._chunks: list[Any] = []
        self._buffers: list[memoryview] = []
        self._tools: list[Any] = []  # what the builtins call
        self._tools_all: list[Any] = []
        self._places = np.zeros(PLACES_BYTES // 8, np.int64)
        self._list: list[Any] = []  # what came together and is not yet taken
        self._together: _Together | None = _Together()
        self._alone = 0
        me = weakref.ref(self)
        rest = [functools.partial(_rest, me, name) for name in ("_put", "_put_packed", "_get", "_open")]
        for word, value in (
            (POOL, segment.address + self._pool),
            (BLOCKS, number),
            (CHUNKS, id(self._chunks)),
            (BUFFERS, id(self._buffers)),
            (SPOILT, id(self._spoilt)),
            (LOADS, id(pickle.loads)),
            (PUT_REST, id(rest[0])),
            (PACKED_REST, id(rest[1])),
            (GET_REST, id(rest[2])),
            (OPEN_RUN, id(rest[3])),
            (COUNT, segment.address + self._pool + UNFINISHED if segment.geometry[4] else 0),
            (RUNS, segment.address + self._first_block),
            (PLACES, int(self._places.ctypes.data)),
            (LIST, id(self._list)),
        ):
            self._state[word // 8] = value
        self._new_pickler()
        self._new_pickler_of_many()
        lists = self._chunks, self._buffers, self._spoilt, self._tools, self._tools_all, self._list
        keep = segment.memory, segment.private, rest, self._places, lists
        for name, entry in objects_entries().items():
            builtin = entry.builtin(self._state, (*keep, pickle.loads))
            setattr(self, name if name in ("put", "get") else f"_{name}", builtin)
        self.done_bell = Bell(segment, self._pool + DONE_BELL)
        if not bell_functions()["can_fence_others"]():
            bell_functions()["set_bits"](self.done_bell.address, FENCED)
        _all.add(self)

    # --- putting --------------------------------------------------------------------------------------------

    def _new_pickler(self) -> None:
        """The one that is used again and again."""
        self._chunks.clear()
        self._buffers.clear()
        pickler = _pickler(self._chunks, self._buffers)
        self._tools[:] = pickler.dump, pickler.clear_memo
        self._state[[DUMP // 8, CLEAR_MEMO // 8, BUSY // 8]] = id(self._tools[0]), id(self._tools[1]), IDLE

    def _new_pickler_of_many(self) -> None:
        """The one of `put_together`, likewise."""
        chunks: list[Any] = []
        pickler = _PlainPickler(_Sink(chunks), 5)
        self._tools_all[:] = pickler.dump, pickler.clear_memo, chunks
        self._state[[DUMP_ALL // 8, CLEAR_ALL // 8, CHUNKS_ALL // 8]] = [id(tool) for tool in self._tools_all]
        self._state[BUSY_ALL // 8] = IDLE

    def _put(self, thing: Any, timeout: float | None = None) -> None:
        """Put an object into the queue.

        Args:
            thing: what pickle can take apart; what it raises otherwise comes from here, and nothing was put.
            timeout: seconds to wait while the queue is full; 0 never waits, None waits for ever.

        Raises:
            TimeoutError: the queue stayed full.
            ValueError: this object is closed.
            OSError: ENOMEM, the machine has not enough memory for it; EBADMSG, the memory is damaged.
        """
        self._must_be_open()
        self.send_packed(self.pack(thing), timeout)

    def _put_packed(self, timeout: float | None = None) -> None:
        """Go on where the builtin has pickled an object and could not put it: it is large, or the queue is full."""
        self._must_be_open()
        self.send_packed(self._packed(), timeout)

    def put_list(self, things: list[Any]) -> tuple[int, Packed | None]:
        """Put objects until one must wait, is large, or is another thread's turn: how many, and the next if packed."""
        done = self._put_list(things)
        return (done, None) if done >= 0 else (-1 - done, self._packed())

    def put_together(self, things: list[Any]) -> int:
        """Put the first of several objects that are small plain data, if they are: how many, perhaps none."""
        if self._alone:
            self._alone -= 1
            return 0
        try:
            done = self._put_trees(things)
        except Exception:  # whatever is wrong will be found again, and told, when they are put one by one
            self._new_pickler_of_many()
            self._alone = MANY_ALONE
            return 0
        if isinstance(done, bytes):
            return self._put_shared(things, done)
        return done if done >= 0 else self._put_shared(things[: -1 - done], None)

    def _put_shared(self, things: list[Any], pickled: bytes | None) -> int:
        """The same when it is not simple: there are no blocks, or the objects have something in common."""
        pickler, self._together = self._together, None
        if pickler is None:  # another thread has it
            return 0
        try:
            pickled = pickler.pickled(things, self._is_of_trees, pickled)
        finally:
            self._together = pickler
        if pickled is None:
            self._alone = MANY_ALONE
            return 0
        run = self._claim(len(pickled))
        done = 0
        try:
            while (done := self._put_together(pickled, len(things), run.first)) < 0:
                self._settle(-done, SENDS)
        finally:
            if done <= 0:
                run.free()
        return done

    def _packed(self) -> Packed:
        """What the builtin has pickled."""
        chunks, buffers = self._chunks[:], self._buffers[:]
        self._chunks.clear()
        self._buffers.clear()
        self._state[BUSY // 8] = IDLE
        return self._pack(chunks, buffers)

    def pack(self, thing: Any) -> Packed:
        """Pickle an object and copy it to where it is to be sent from. To be given to `send_packed` or `throw_away`."""
        if self._state[BUSY // 8] == BROKEN:
            self._new_pickler()
        chunks: list[Any] = []
        buffers: list[memoryview] = []
        _pickler(chunks, buffers).dump(thing)
        return self._pack(chunks, buffers)

    def _pack(self, chunks: list[Any], buffers: list[memoryview]) -> Packed:
        size = sum(memoryview(chunk).nbytes for chunk in chunks)
        if size <= self.max_message and not buffers:
            return b"".join(chunks)
        sizes = [buffer.nbytes for buffer in buffers]
        places = _places(size, sizes)
        run = self._claim(places[-1])
        memory = self._segment.memory[self._first_block + run.first * BLOCK :][: run.number * BLOCK]
        head = [size, len(sizes), *sizes]
        memory[: 8 * len(head)].view(np.int64)[:] = head
        at = places[0]
        for chunk in chunks:
            part = np.frombuffer(chunk, np.uint8)
            memory[at : at + part.size] = part
            at += part.size
        for at, buffer in zip(places[1:], buffers, strict=False):
            memory[at : at + buffer.nbytes] = np.frombuffer(buffer, np.uint8)
        return run

    def _claim(self, size: int) -> _Run:
        """A run of so many bytes that is ours, with memory."""
        self._enter()
        wanted = -(-size // BLOCK)
        while True:
            first = self._more["claim_run"](self._address, wanted)
            if first != NO_RUN:
                break
            self._more_blocks(wanted, size)
        if first <= AND_MEMORY:
            first = AND_MEMORY - first
            try:
                self._reserve(self._first_block + first * BLOCK, wanted * BLOCK, size)
            except BaseException:
                self._more["unclaim_run"](self._address, first, wanted)
                raise
        return _Run(self, first, wanted)

    def _more_blocks(self, wanted: int, size: int) -> None:
        self._must_be_open()
        before = self._more["limit"](self._address)
        limit = min(self._blocks, max(2 * before, before + wanted, FEW_BLOCKS))
        if limit == before:
            raise _no_memory(size)
        self._reserve(self._pool + blocks.WORDS + 8 * before, 8 * (limit - before), size)
        self._more["raise_limit"](self._address, limit)

    def _reserve(self, start: int, length: int, size: int) -> None:
        """Memory for this part of the segment, or OSError instead of a SIGBUS, or the kernel's OOM killer, later."""
        if length > 1 << 20 and length > machine.memory_left():
            raise _no_memory(size)
        try:
            os.posix_fallocate(self._segment.fd, start, length)
        except OSError as reason:
            raise _no_memory(size) from reason

    def send_packed(self, packed: Packed, timeout: float | None) -> None:
        """Send what was packed. Errors as for `put`; whatever is raised, it is thrown away."""
        try:
            self.wait_for_room(lambda: self.offer(packed), timeout)
        except BaseException:
            self.throw_away(packed)
            raise

    def wait_for_room(self, attempt: Callable[[], Any], timeout: float | None = None) -> None:
        """Call an attempt to send whenever there may be room, until it returns something else than None."""
        if attempt() is None:
            until(
                attempt,
                self._room,
                timeout,
                spin=self._mpmc_spin_for_room,
                look=_nobody_is_missed,
                ended=_nobody_is_missed,  # type: ignore[arg-type]
                late="the queue is full" if timeout == 0 else "the queue stayed full",
                at_most=LOOK_FOR_ROOM,
            )

    def offer(self, packed: Packed) -> Any:
        """Send what was packed: True, or None when the queue is full."""
        while True:
            if isinstance(packed, _Run):
                sent = self._more["send_run"](self._address, packed.first, packed.number, 0)
            else:
                sent = self._put_pickled(packed)
            if sent == SENT:
                return True
            if sent == FULL:
                return None
            self._settle(sent, SENDS)

    def throw_away(self, packed: Packed) -> None:
        """It will not be sent."""
        if isinstance(packed, _Run) and not self.closed:
            self._more["free_run"](self._address, packed.first, packed.number)

    # --- getting --------------------------------------------------------------------------------------------

    def _get(self, timeout: float | None = None) -> Any:
        """Remove the oldest object from the queue and return it.

        Args:
            timeout: seconds to wait for it; 0 never waits, None waits for ever.

        Raises:
            NothingCame: nothing came, a TimeoutError.
            ValueError: this object is closed.
            OSError: EBADMSG, the memory is damaged.
            Exception: what pickle raises when it cannot put the object together; it is removed all the same.
        """
        self._must_be_open()
        self._raise_spoilt()
        box: list[Any] = []

        def attempt() -> Any:
            while True:
                got = self._get_one(box)
                if got == SENT:
                    return True
                if got == FULL:
                    return None
                self._settle(got, RECEIVES)

        self._wait_for_message(attempt, timeout)
        return box.pop()

    def _raise_spoilt(self) -> None:
        """An object that came in a batch and could not be put together is heard of now."""
        if self._spoilt:
            error = self._spoilt.pop(0)
            if not self._spoilt:
                self._state[ASIDE_GET // 8] &= ~SOME_SPOILT
            raise error

    def get_many(self, most: int, timeout: float | None) -> list[Any]:
        """What is there, up to `most` objects, at least one. Errors as for `get`."""
        self._must_be_open()
        self._raise_spoilt()

        def attempt() -> Any:
            got = self._get_list(most)
            while got.__class__ is int:
                self._settle(got, RECEIVES)
                got = self._get_list(most)
            return got

        got: list[Any] = self._wait_for_message(attempt, timeout)
        return got

    def _wait_for_message(self, attempt: Callable[[], Any], timeout: float | None) -> Any:
        done = attempt()
        if done is not None:
            return done
        raised: list[BaseException] = []

        def careful() -> Any:  # the object itself may raise a TimeoutError
            try:
                return attempt()
            except BaseException as error:
                raised.append(error)
                return raised

        try:
            done = self._wait_for_items(careful, timeout)
        except TimeoutError as late:
            raise NothingCame(str(late)) from None
        if raised:
            raise raised.pop()
        return done

    def _wait_for_items(self, attempt: Callable[[], Any], timeout: float | None) -> Any:
        return until(
            attempt,
            self._items,
            timeout,
            spin=self._mpmc_spin,
            look=self._tidy_up,
            ended=_nobody_is_missed,  # type: ignore[arg-type]
            late="the queue is empty" if timeout == 0 else "nothing came through the queue",
        )

    def wait_for_something(self, timeout: float | None) -> bool:
        """Whether there is something to get, within so many seconds."""
        try:
            self._wait_for_items(lambda: self.holds_message() or None, timeout)
        except TimeoutError:
            return False
        return True

    def armed(self) -> bool:
        """Have `fileno` readable when something is put from now on; true when something is there already."""
        self.fileno()
        assert self._watch is not None
        self._watch.arm()
        self._look_for_the_dead()
        return self.holds_message()

    def _tidy_up(self) -> bool:
        """What a receiver does that has nothing else to do."""
        self._look_for_the_dead()
        now = time.monotonic()
        if now >= self._tidied + TIDY_AFTER:
            self._tidied = now
            self._give_back()
        return False

    def _give_back(self) -> None:
        """Give the memory of blocks that lie idle back to the machine, but for the first KEPT."""
        start = KEPT
        while self.more_than(start):
            found = self._more["claim_spare"](self._address, start, GIVEN_BACK)
            if found == NO_RUN:
                return
            first, number = found >> 32, found & 0xFFFF_FFFF
            where = ffi.cast("void *", self._segment.address + self._first_block + first * BLOCK)
            libc.madvise(where, number * BLOCK, MADV_REMOVE)  # whether or not: the run is a hole from now on
            self._more["unclaim_run"](self._address, first, number)
            start = first + number

    def more_than(self, number: int) -> bool:
        """Whether so many blocks have ever been in use."""
        return self._more["limit"](self._address) > number

    def _open(self, where: int) -> Any:
        """Put together the object in a run that is ours: its first block << 32 | its blocks."""
        run = _Run(self, where >> 32, where & 0xFFFF_FFFF)
        is_lent = False
        try:
            start, end = run.first * BLOCK, (run.first + run.number) * BLOCK
            memory = self._segment.memory[self._first_block + start : self._first_block + end]
            size, count = (int(word) for word in memory[:16].view(np.int64))
            if not (0 <= count < memory.size // 8 - 2 and 0 <= size <= memory.size):
                raise damaged(KIND)
            sizes = memory[16 : 16 + 8 * count].view(np.int64).tolist()
            places = _places(size, sizes)
            if min(sizes, default=0) < 0 or places[-1] > memory.size:
                raise damaged(KIND)
            pickled = memory.data[places[0] : places[0] + size]
            if not count:
                return pickle.loads(pickled)
            views = self._lent_memory()[start:end].data
            root: Any = np.frombuffer(views, np.uint8)  # all views have it for their base
            _Lease(root, run)
            is_lent = True
            return pickle.loads(
                pickled,
                buffers=[root[at : at + part].data for at, part in zip(places[1:], sizes, strict=False)],
            )
        finally:
            if not is_lent:
                run.free()

    def _lent_memory(self) -> np.ndarray:
        """The blocks once more. In a child made by fork(2) this mapping is replaced; the other one is not."""
        if self._views is None:
            fd = _own(self._segment.fd)
            try:
                self._views = _map(fd, self._segment.memory.size)[self._first_block :]
            finally:
                os.close(fd)
        return self._views

    # --- both -----------------------------------------------------------------------------------------------

    def number(self) -> int:
        """How many objects are in it, also after it was closed."""
        return max(0, self._functions["length"](self._address))

    def holds_message(self) -> bool:
        """Whether there is something to get."""
        return bool(self._more["holds_message"](self._address))

    def has_room(self) -> bool:
        """Whether it is not full."""
        return bool(self._more["has_room"](self._address))

    def runs_in_use(self) -> int:
        """How many blocks hold messages that are on their way or being read."""
        return self._more["runs_in_use"](self._address)

    def count(self, amount: int) -> int:
        """Add to the counter of what is unfinished; what it is then."""
        return self._more["add_to"](self._segment.address + self._pool + UNFINISHED, amount)

    def leave_puts(self, aside: bool) -> None:
        """Whether the builtin `put` leaves everything to Python."""
        self._state[ASIDE_PUT // 8] = aside

    def leave_gets(self, aside: bool) -> None:
        """Whether the builtin `get` leaves everything to Python."""
        self._state[ASIDE_GET // 8] = ALWAYS if aside else 0

    def _sweep(self, number: int) -> None:
        self._more["sweep_runs"](self._address, number)
        super()._sweep(number)

    def close(self) -> None:
        """Give it up. Views of what came through it stay good, and we a participant until they are gone."""
        if self.closed:
            return
        if not self._leases:
            super().close()
            return
        self.closed = True
        if self._watch is not None:
            self._watch.close()

    def _lease_ended(self) -> None:
        if self.closed and not self._leases and not self._segment.closed:
            self.closed = False
            super().close()

    def _after_fork(self) -> None:
        """In the child. What the parent has a view of becomes a copy of ours, and the run stays the parent's."""
        for lease in self._leases:
            lease.become_private()
        self._leases.clear()
        self._views = None
        self._spoilt.clear()
        self._new_pickler()
        self._new_pickler_of_many()
        self._together = _Together()
        self._state[[ASIDE_GET // 8, ASIDE_PUT // 8]] = 0
        if self.closed:
            self._segment.close()

    def __reduce__(self) -> Any:
        self._must_be_open()
        return _arrives, (type(self), self._segment)


class _Run:
    """Blocks that are ours."""

    def __init__(self, queue: Objects, first: int, number: int):
        self.queue, self.first, self.number = queue, first, number

    def free(self) -> None:
        self.queue._more["free_run"](self.queue._address, self.first, self.number)


Packed = bytes | _Run


class _Lease(weakref.ref[np.ndarray]):
    """A run that somebody has views of: it is freed when the array that all views have for their base is gone."""

    def __new__(cls, root: np.ndarray, run: _Run) -> Self:
        return super().__new__(cls, root, _end)

    def __init__(self, root: np.ndarray, run: _Run):
        super().__init__(root, _end)  # type: ignore[call-arg]
        self.run, self.address = run, int(root.ctypes.data)
        run.queue._leases.add(self)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def become_private(self) -> None:
        """Put a copy of the memory where it is."""
        size = self.run.number * BLOCK
        room = ffi.cast("char *", self.address)
        copy = bytes(ffi.buffer(room, size))
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED
        start = ffi.cast("void *", self.address)
        if libc.mmap(start, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) != start:
            raise failed("mmap", "a copy of an array that came through a queue has no room in this process")
        ffi.memmove(room, copy, size)


MAP_FIXED = 0x10


def _end(lease: Any) -> None:
    queue = lease.run.queue
    if lease in queue._leases:  # not so in a child made by fork(2)
        queue._leases.discard(lease)
        lease.run.free()
        queue._lease_ended()


_all: weakref.WeakSet[Objects] = weakref.WeakSet()
_copying: list[tuple[int, int]] = []


def _before_fork() -> None:
    if any(queue._leases for queue in list(_all)):
        _copying.append(os.pipe2(os.O_CLOEXEC))


def _parent_waits() -> None:
    """Until the child has copied what we have views of: we might free it meanwhile."""
    if _copying:
        reading, writing = _copying.pop()
        os.close(writing)
        with contextlib.suppress(OSError):
            os.read(reading, 1)
        os.close(reading)


def _child_copies() -> None:
    for queue in list(_all):
        queue._after_fork()
    while _copying:
        for fd in _copying.pop():
            os.close(fd)


os.register_at_fork(before=_before_fork, after_in_parent=_parent_waits, after_in_child=_child_copies)


class _Sink:
    """A file for a pickler, that keeps what is written as it comes: large parts as they are, not copied."""

    def __init__(self, chunks: list[Any]):
        self.write = chunks.append


class _NotPlain(Exception):
    """These objects are not to be pickled together."""


class _PlainPickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        """Called for whatever pickle does not know by itself."""
        raise _NotPlain


class _Together:
    """Pickles several objects as one list, if nobody can tell the difference afterwards."""

    def __init__(self) -> None:
        self._new()

    def _new(self) -> None:
        self._chunks: list[bytes] = []
        self._pickler, self._twice = _PlainPickler(self, 5), _PlainPickler(self, 5)
        self._twice.fast = True  # it knows nothing again of what it has met

    def write(self, chunk: Any) -> None:
        """What a pickler calls, once unless there is much."""
        if self._chunks or not isinstance(chunk, bytes):
            raise _NotPlain
        self._chunks.append(chunk)

    def pickled(
        self, things: list[Any], is_of_trees: Callable[[bytes], bool], pickled: bytes | None = None
    ) -> bytes | None:
        """The pickle of a list of objects, or None. What they are pickled to already may be given."""
        try:
            pickled = pickled or self._pickle(self._pickler, things)
            if is_of_trees(pickled):
                return pickled
            # The same object twice in the list is two when they arrive, if it holds nothing twice itself.
            different = list({id(thing): thing for thing in things}.values())
            if len(different) < len(things) and is_of_trees(self._pickle(self._pickler, different)):
                return self._pickle(self._twice, things)
        except Exception:  # whatever is wrong will be found again, and told, when they are put one by one
            self._new()
        return None

    def _pickle(self, pickler: pickle.Pickler, things: list[Any]) -> bytes:
        pickler.dump(things)
        pickler.clear_memo()
        return self._chunks.pop()


class _Reducers(dict[Any, Any]):
    """How to take objects apart, as multiprocessing does it: connections and the like are reduced to descriptors.

    It is always empty, and asks the tables themselves, which programs may extend at any time.
    """

    def __init__(self) -> None:
        self._tables: dict[str, Any] = {}

    def __missing__(self, kind: type) -> Any:
        for package in ("multiprocessing", "multiprocess"):
            module = sys.modules.get(f"{package}.reduction")
            if module is not None:
                if package not in self._tables:
                    self._tables[package] = module.ForkingPickler(io.BytesIO()).dispatch_table
                reduce = self._tables[package].get(kind)
                if reduce is not None:
                    return reduce
        raise KeyError(kind)


_reducers = _Reducers()


def _pickler(chunks: list[Any], buffers: list[memoryview]) -> Any:
    def keep_out(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # it is not contiguous
            return True
        if raw.nbytes < LENT:
            return True
        buffers.append(raw)
        return False

    pickler = pickle.Pickler(_Sink(chunks), 5, buffer_callback=keep_out)
    pickler.dispatch_table = _reducers
    return pickler


def _places(size: int, sizes: list[int]) -> list[int]:
    """Where in a run the pickle begins, each buffer, and the end."""
    at = 16 + 8 * len(sizes)
    places = []
    for part in (size, *sizes):
        at = -(-at // 64) * 64
        places.append(at)
        at += part
    return [*places, at]


def _pool_start(capacity: int, stride: int) -> int:
    """Where in the body the pool begins."""
    return -(-mpmc.body_bytes(capacity, stride) // BLOCK) * BLOCK


def _no_memory(size: int) -> OSError:
    text = f"an object of {size:,} bytes has no room in the memory of this machine: get what is in the queue first"
    return OSError(errno.ENOMEM, text)


def _nobody_is_missed() -> bool:
    return False


def _arrives(kind: type[Objects], segment: Segment) -> Objects:
    self = kind.__new__(kind)
    self._begin(segment, None)
    return self
