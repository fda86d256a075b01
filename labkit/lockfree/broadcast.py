"""A ring in shared memory that one writer fills and every reader reads whole; who is slow is told what it missed.

The body of the segment (labkit.lockfree.segment):

    offset  line          written by   holds
    0       writer        writer       OLDEST: position of the oldest message that is still whole
    128     published     writer       WRITTEN: position after the newest message
    256     marks         writer       MARKS: where a message began in each eighth of the ring, eight words
    4096    data          writer       the messages

Readers write nothing at all here. What a reader knows is private memory of its process, its *cursor*: POSITION, where
it is; NUMBER, of the message it will get next; MISSED, how many it was too slow for; SEEN, the newest WRITTEN that it
looked at. So a slow, stopped or dead reader is not even noticed by the writer, which never waits.

There are two kinds of contents.
    Messages of any length: positions count bytes since creation, byte p lies at p % capacity, a power of two.
        frame = | number: 8 bytes | size: 8 bytes | message, filled up to a multiple of 16 |
        A frame never wraps: where it would, a frame of size 0 fills the rest of the ring (Aeron's padding record), so
        that each message lies in one piece and can be looked at where it is. A frame takes at most half of the ring.
    Items of one size: positions count items, item n lies at n % capacity; no header, an item's number is its position.

Numbers count messages from 0. They make "you have missed 17 messages" exact, and are a check of what is read.

Invariants
    OLDEST <= WRITTEN; all in [OLDEST, WRITTEN) is whole; what is before OLDEST may be overwritten at any time.
    Frames follow each other without a gap from OLDEST to WRITTEN, and each mark in between is the start of one.
    At WRITTEN stands the number that the next message will have, also before there is one.
    WRITTEN + 16 <= OLDEST + capacity (messages); WRITTEN <= OLDEST + capacity (items).

Edges
    A  publish: the frame is whole before WRITTEN says so         release WRITTEN in `publish`, acquire in `seen_more`
    N  newer: who sees an OLDEST sees WRITTEN no older            release OLDEST in `forget`, acquire in `catch_up`
    O  overwrite: OLDEST says so before a byte is overwritten     release fence in `forget`, acquire fence in `is_whole`

Edge O is a sequence lock turned round: the reader copies what the writer may be overwriting, and afterwards asks OLDEST
whether it was. Boehm ("Can seqlocks get along with programming language memory models?", 2012) shows what that takes:
acquire and release of the counter itself are the wrong way round, since they let the *data* pass them. So
    the writer stores OLDEST, then a release fence, then the bytes: no byte is seen before OLDEST is
    the reader loads the bytes, then an acquire fence, then OLDEST: no byte is loaded after OLDEST was
and a reader that has seen one new byte finds the new OLDEST, and throws away what it copied. On x86-64 both fences cost
nothing, loads and stores keep their order there; on AArch64 they are `dmb ish` and `dmb ishld`. The copies are plain
loads and stores. In C++ such a race would be undefined behaviour as such. LLVM, which compiles this, says less
(LangRef, "Memory Model for Concurrent Operations"): a load that races gives an undefined value, and we use none of
them, not for a branch, an index or a size, before OLDEST has said that it is whole. Headers are loaded as atomic words.
memcpy(3) of much memory may use streaming stores, which x86 does order with nothing (Intel SDM volume 3, 9.2.2);
before those the writer uses a full fence.

When the writer dies, wherever: what is in [OLDEST, WRITTEN) is whole, what it was writing is not in there. Whoever is
writer next reads OLDEST and WRITTEN and goes on; it has nothing to repair, and readers notice nothing. MARKS are
written last of all and may be old, so that they are hints: a reader checks them against OLDEST.

A reader that was overtaken does not go on at OLDEST, where the writer would overtake it again at once: it jumps to a
mark about a quarter of the ring further on.

Nothing read from shared memory is trusted: positions are masked before they become an address, sizes are checked
against what has been published and the ring, every loop has an end.

After Aeron's broadcast buffer (Real Logic: BroadcastTransmitter and CopyBroadcastReceiver, its tail intent is our
OLDEST), the Disruptor (M. Thompson and others, 2011; there the writer waits), L. Lamport, "Concurrent reading and
writing" (1977), and Tokio's broadcast channel, which tells the number missed once and goes on.
"""

from __future__ import annotations

from numba import njit

from labkit.lockfree.atomics import (
    acquire_fence,
    copy,
    fence,
    load_acquire,
    load_relaxed,
    release_fence,
    store_relaxed,
    store_release,
)

OLDEST, WRITTEN, MARKS = 0, 128, 256
DATA = 4096

LAYOUT = 1
FRAME = 16
EIGHTHS = 8
STREAMING = 16384  # from this size on memcpy(3) may use streaming stores: glibc.cpu.x86_non_temporal_threshold

POSITION, NUMBER, MISSED, SEEN = 0, 8, 16, 24  # of a cursor
CURSOR_WORDS = 4

EMPTY, OVERRUN, CORRUPT = 0, -1, -2


# --- both kinds ---------------------------------------------------------------------------------------------


@njit
def forget(body, oldest, size):
    """Messages before `oldest` are about to be overwritten, by `size` bytes."""
    store_release(body + OLDEST, oldest)  # edge N
    if size < STREAMING:
        release_fence()  # edge O
    else:
        fence()  # edge O, for streaming stores too


@njit
def publish(body, position):
    """Everything before `position` is whole."""
    store_release(body + WRITTEN, position)  # edge A


@njit
def loaned(size):
    """What others have written, `size` bytes, is complete: before publishing what was loaned."""
    if size >= STREAMING:
        fence()  # NumPy may use streaming stores, too


@njit
def seen_more(body, cursor):
    """How far the reader may read, a position; no further than POSITION when there is nothing new."""
    seen = load_relaxed(cursor + SEEN)
    if seen <= load_relaxed(cursor + POSITION):
        seen = load_acquire(body + WRITTEN)  # edge A: seen, therefore whole, or overwritten since
        store_relaxed(cursor + SEEN, seen)
    return seen


@njit
def anything_new(body, cursor):
    """Whether there is something for this reader. It changes nothing, so that any thread may ask."""
    return load_acquire(body + WRITTEN) != load_relaxed(cursor + POSITION)


@njit
def is_whole(body, position):
    """Whether what was read at `position`, before this call, had not been overwritten."""
    acquire_fence()  # edge O
    return load_relaxed(body + OLDEST) <= position


# --- messages: the writer -----------------------------------------------------------------------------------


@njit
def largest(capacity):
    """Bytes in the largest message."""
    return capacity // 2 - FRAME


@njit
def frame_bytes(size):
    """Bytes that a message of `size` bytes takes in the ring."""
    return FRAME + ((size + 15) & ~15)


@njit
def step(body, capacity, position):
    """Bytes from this frame to the next, or CORRUPT. The frame is the caller's, or checked afterwards."""
    start = position & (capacity - FRAME)
    size = load_relaxed(body + DATA + start + 8)
    if size == 0:
        return capacity - start
    if size < 0 or size > largest(capacity) or start + frame_bytes(size) > capacity:
        return CORRUPT
    return frame_bytes(size)


@njit
def claim(body, capacity, size):
    """Position of a frame for `size` bytes, 1 to `largest`, which the writer may fill; or CORRUPT. It never waits.

    The oldest messages are forgotten, as many as there is need of room.
    """
    written, oldest = load_relaxed(body + WRITTEN), load_relaxed(body + OLDEST)  # only the writer writes them
    if oldest < 0 or oldest > written or written - oldest > capacity or (written | oldest) & (FRAME - 1):
        return CORRUPT
    position, start = written, written & (capacity - FRAME)
    if start + frame_bytes(size) > capacity:
        position = written + capacity - start
    # The number of the message after this one needs room, too.
    must_go = position + frame_bytes(size) + FRAME - capacity
    if oldest < must_go:
        while oldest < must_go:
            bytes_ = step(body, capacity, oldest)  # still whole, since we have not yet forgotten it
            if bytes_ < 0 or oldest >= written:
                return CORRUPT
            oldest += bytes_
        if oldest > written:
            return CORRUPT
        forget(body, oldest, size)
    if position != written:  # ours until published
        number = load_relaxed(body + DATA + start)
        store_relaxed(body + DATA + start + 8, 0)
        store_relaxed(body + DATA, number)
    return position


@njit
def at(body, capacity, position):
    """Address of the message whose frame is at `position`."""
    return body + DATA + (position & (capacity - FRAME)) + FRAME


@njit
def finish(body, capacity, position, size):
    """The message in the frame at `position`, as `claim` gave it, is complete."""
    written, after = load_relaxed(body + WRITTEN), position + frame_bytes(size)
    frame = body + DATA + (position & (capacity - FRAME))
    store_relaxed(frame + 8, size)  # ours until published
    store_relaxed(body + DATA + (after & (capacity - FRAME)), load_relaxed(frame) + 1)
    publish(body, after)
    eighth = capacity // EIGHTHS
    if (written ^ after) & -eighth:
        store_release(body + MARKS + (after // eighth & (EIGHTHS - 1)) * 8, after)


@njit
def write_message(body, capacity, source, size):
    """Copy one message of 1 to `largest` bytes in and publish it: 0 or CORRUPT."""
    position = claim(body, capacity, size)
    if position < 0:
        return position
    copy(at(body, capacity, position), source, size)
    finish(body, capacity, position, size)
    return 0


@njit
def next_number(body, capacity):
    """How many messages there have been, for the writer."""
    return load_relaxed(body + DATA + (load_relaxed(body + WRITTEN) & (capacity - FRAME)))


# --- messages: a reader -------------------------------------------------------------------------------------


@njit
def _put(cursor, position, number):
    """Put a reader somewhere."""
    store_relaxed(cursor + POSITION, position)
    store_relaxed(cursor + NUMBER, number)
    store_relaxed(cursor + SEEN, 0)


@njit
def _look(body, capacity, position):
    """Number of the frame at `position`, OVERRUN or CORRUPT."""
    number = load_relaxed(body + DATA + (position & (capacity - FRAME)))
    if not is_whole(body, position):
        return OVERRUN
    if number < 0:
        return CORRUPT
    return number


@njit
def start(body, capacity, cursor, newest):
    """Put a reader behind the newest message, or before the oldest: 0, or CORRUPT."""
    for _ in range(1000):  # each time round the writer has overwritten what we have just looked at
        oldest, written = load_acquire(body + OLDEST), load_acquire(body + WRITTEN)  # edge N, edge A
        position = written if newest else oldest
        if oldest < 0 or oldest > written or (oldest | written) & (FRAME - 1):
            return CORRUPT
        number = _look(body, capacity, position)
        if number != OVERRUN:
            if number < 0:
                return number
            _put(cursor, position, number)
            return 0
    return CORRUPT


@njit
def next_message(body, capacity, cursor):
    """Size of the next message, EMPTY, OVERRUN or CORRUPT."""
    for _ in range(2):  # there may be one padding before it
        position = load_relaxed(cursor + POSITION)
        seen = seen_more(body, cursor)
        there = seen - position
        if there == 0:
            return EMPTY
        if there < 0 or seen & (FRAME - 1):
            return CORRUPT
        start = position & (capacity - FRAME)
        number, size = load_relaxed(body + DATA + start), load_relaxed(body + DATA + start + 8)
        if not is_whole(body, position):
            return OVERRUN
        if number != load_relaxed(cursor + NUMBER) or there > capacity:
            return CORRUPT
        if size != 0:
            if size < 0 or size > largest(capacity) or frame_bytes(size) > min(there, capacity - start):
                return CORRUPT
            return size
        if there <= capacity - start:
            return CORRUPT  # a padding is published together with what comes after it
        store_relaxed(cursor + POSITION, position + capacity - start)
    return CORRUPT


@njit
def take_message(body, capacity, cursor, to, size):
    """Copy the next message out, of `size` bytes as `next_message` said: 0, or OVERRUN, and then `to` is worthless."""
    position = load_relaxed(cursor + POSITION)
    copy(to, at(body, capacity, position), size)
    return pass_message(body, cursor, size)


@njit
def pass_message(body, cursor, size):
    """Go on behind the next message, of `size` bytes: 0, or OVERRUN, it was overwritten while we read it."""
    position = load_relaxed(cursor + POSITION)
    if not is_whole(body, position):
        return OVERRUN
    store_relaxed(cursor + POSITION, position + frame_bytes(size))
    store_relaxed(cursor + NUMBER, load_relaxed(cursor + NUMBER) + 1)
    return 0


@njit
def catch_up(body, capacity, cursor):
    """After OVERRUN: jump to where messages are whole. How many were missed, or CORRUPT."""
    was = load_relaxed(cursor + NUMBER)
    eighth = capacity // EIGHTHS
    for _ in range(1000):  # each time round the writer has come three quarters of the ring further
        oldest, written = load_acquire(body + OLDEST), load_acquire(body + WRITTEN)  # edge N, edge A
        if oldest < 0 or oldest > written or (oldest | written) & (FRAME - 1):
            return CORRUPT
        position, wanted = oldest, written - capacity + 2 * eighth
        for ahead in range(EIGHTHS):
            mark = load_acquire(body + MARKS + (wanted // eighth + ahead & (EIGHTHS - 1)) * 8)  # edge A
            if wanted <= mark <= written and oldest <= mark and not mark & (FRAME - 1):
                position = mark
                break
        number = _look(body, capacity, position)
        if number == OVERRUN:
            continue
        if number < was:
            return CORRUPT
        _put(cursor, position, number)
        store_relaxed(cursor + MISSED, load_relaxed(cursor + MISSED) + number - was)
        return number - was
    return CORRUPT


@njit
def waiting(body, capacity, cursor):
    """How many messages there are for this reader, those included that it would miss; or CORRUPT."""
    for _ in range(1000):
        written = load_acquire(body + WRITTEN)  # edge A
        if written < 0 or written & (FRAME - 1):
            return CORRUPT
        number = _look(body, capacity, written)
        if number != OVERRUN:
            return max(number - load_relaxed(cursor + NUMBER), CORRUPT)
    return CORRUPT


# --- items: the writer --------------------------------------------------------------------------------------


@njit
def slot(capacity, position):
    """Index of an item in the ring. A division takes long, and most capacities are powers of two."""
    if capacity & (capacity - 1) == 0:
        return position & (capacity - 1)
    return position % capacity


@njit
def copy_items(to, source, size):
    """memcpy(3), as one instruction for one number of 8 bytes."""
    if size == 8:
        copy(to, source, 8)
    else:
        copy(to, source, size)


@njit
def claim_items(body, capacity, item_bytes, count):
    """Position of `count` items, 1 to the capacity, which the writer may fill; or CORRUPT. It never waits."""
    written, oldest = load_relaxed(body + WRITTEN), load_relaxed(body + OLDEST)  # only the writer writes them
    if oldest < 0 or oldest > written or written - oldest > capacity:
        return CORRUPT
    if oldest < written + count - capacity:
        forget(body, written + count - capacity, count * item_bytes)
    return written


@njit
def item_at(body, capacity, item_bytes, position):
    """Address of an item."""
    return body + DATA + slot(capacity, position) * item_bytes


@njit
def write_items(body, capacity, item_bytes, source, count):
    """Copy items in, and publish once for each half of the ring that they fill: 0 or CORRUPT."""
    while count > 0:
        some = min(count, max(1, capacity >> 1))
        position = claim_items(body, capacity, item_bytes, some)
        if position < 0:
            return position
        index = slot(capacity, position)
        first = min(some, capacity - index)
        copy_items(body + DATA + index * item_bytes, source, first * item_bytes)
        if first < some:
            copy(body + DATA, source + first * item_bytes, (some - first) * item_bytes)
        publish(body, position + some)
        source += some * item_bytes
        count -= some
    return 0


# --- items: a reader ----------------------------------------------------------------------------------------


@njit
def start_items(body, cursor, newest):
    """Put a reader behind the newest item, or before the oldest: 0, or CORRUPT."""
    oldest, written = load_acquire(body + OLDEST), load_acquire(body + WRITTEN)  # edge N, edge A
    if oldest < 0 or oldest > written:
        return CORRUPT
    position = written if newest else oldest
    _put(cursor, position, position)
    return 0


@njit
def items_there(body, capacity, cursor):
    """How many items may be read, EMPTY, OVERRUN or CORRUPT."""
    position = load_relaxed(cursor + POSITION)
    there = seen_more(body, cursor) - position
    if there < 0:
        return CORRUPT
    if there > capacity:
        return OVERRUN
    return there


@njit
def take_items(body, capacity, item_bytes, cursor, to, most):
    """Copy up to `most` items out: how many, EMPTY, OVERRUN or CORRUPT.

    They are copied an eighth of the ring at a time, so that a writer that overtakes us costs little.
    """
    if load_relaxed(cursor + SEEN) - load_relaxed(cursor + POSITION) < most:
        store_relaxed(cursor + SEEN, 0)  # look again for what has come since
    taken = 0
    while taken < most:
        there = items_there(body, capacity, cursor)
        if there <= 0:
            return taken if taken else there
        some = min(there, most - taken, max(1, capacity >> 3))
        index = slot(capacity, load_relaxed(cursor + POSITION))
        first = min(some, capacity - index)
        target = to + taken * item_bytes
        copy_items(target, body + DATA + index * item_bytes, first * item_bytes)
        if first < some:
            copy(target + first * item_bytes, body + DATA, (some - first) * item_bytes)
        if pass_items(body, cursor, some) < 0:
            return taken if taken else OVERRUN
        taken += some
    return taken


@njit
def pass_items(body, cursor, count):
    """Go on behind `count` items: 0, or OVERRUN, the first was overwritten while we read them."""
    position = load_relaxed(cursor + POSITION)
    if not is_whole(body, position):
        return OVERRUN
    store_relaxed(cursor + POSITION, position + count)
    store_relaxed(cursor + NUMBER, position + count)
    return 0


@njit
def catch_up_items(body, capacity, cursor):
    """After OVERRUN: jump to where items are whole. How many were missed, or CORRUPT."""
    was = load_relaxed(cursor + POSITION)
    oldest, written = load_acquire(body + OLDEST), load_acquire(body + WRITTEN)  # edge N, edge A
    if oldest < 0 or oldest > written:
        return CORRUPT
    position = max(oldest, written - capacity + capacity // 4)
    if position < was:
        return CORRUPT
    _put(cursor, position, position)
    store_relaxed(cursor + MISSED, load_relaxed(cursor + MISSED) + position - was)
    return position - was


@njit
def waiting_items(body, cursor):
    """How many items there are for this reader, those included that it would miss; or CORRUPT."""
    return max(load_acquire(body + WRITTEN) - load_relaxed(cursor + POSITION), CORRUPT)
