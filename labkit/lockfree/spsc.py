"""A ring in shared memory for one sender and one receiver: no lock, no system call.

    offset  line          written by   holds
    0       identity      creator      magic, version, capacity in bytes; magic is written last
    128     sender        sender       WRITE: bytes ever published
    136                   sender       READ_SEEN: the newest READ the sender has looked at
    144                   sender       LOST: items given up because the ring was full
    256     receiver      receiver     READ: bytes ever released
    264                   receiver     WRITE_SEEN: the newest WRITE the receiver has looked at
    384     receiver says both         SLEEPS: 1 while it is about to sleep; 392 GONE: 1 when it has closed
    512     sender says   both         SLEEPS, the same the other way round
    4096    data          whoever owns the byte: see below

Positions count bytes since creation and are never wrapped; byte p lies at p % capacity, capacity is a power of two.
Lines are 128 bytes apart, because processors fetch cache lines in pairs (rigtorp/SPSCQueue).

Invariants
    0 <= WRITE - READ <= capacity.
    Bytes in [READ, WRITE) belong to the receiver, the others to the sender. Only WRITE and READ move the border.
    A frame is 8 bytes of length, then the payload, filled up to a multiple of 8; a fixed-size item has no length.

Edges (each a release store and the acquire load that sees it)
    A  publish: the frame is whole before WRITE says so        release WRITE in `publish`, acquire in `readable`
    B  release: the frame has been copied before READ says so  release READ in `release`, acquire in `reserve`
    S  sleep: a party sets its SLEEPS, then looks again; the other publishes (or releases), then looks at SLEEPS.
       Both put a sequentially consistent fence between their store and their load (Dekker), so that at least one
       sees the other and no wake-up is lost.

Nothing read from shared memory is trusted: positions are checked against each other and the capacity, which each
process keeps for itself, before they become an address (always masked, and a multiple of 8 so that a word never
crosses the end); a length is checked against what has been published.

After L. Lamport, "Specifying concurrent program modules" (1983), the cached opposite index of rigtorp/SPSCQueue.
"""

from __future__ import annotations

from numba import njit

from labkit.lockfree.atomics import (
    copy,
    fence,
    load_acquire,
    load_relaxed,
    store_relaxed,
    store_release,
)

MAGIC, VERSION, CAPACITY = 0, 8, 16
WRITE, READ_SEEN, LOST = 128, 136, 144
READ, WRITE_SEEN = 256, 264
RECEIVER_SLEEPS, RECEIVER_GONE = 384, 392
SENDER_SLEEPS = 512
DATA = 4096

IDENTITY = 0x31474E4952_4B4C  # "LKRING1"
LAYOUT = 1
FRAME = 8

FULL, EMPTY, CORRUPT = -1, -1, -2


@njit
def reserve(ring, capacity, size):
    """Position at which the sender may fill `size` bytes, FULL, or CORRUPT."""
    write = load_relaxed(ring + WRITE)  # only the sender writes it
    if write < 0 or write & 7:
        return CORRUPT
    if write - load_relaxed(ring + READ_SEEN) > capacity - size:
        read = load_acquire(ring + READ)  # edge B: released, so the receiver has finished with the bytes
        if read > write or write - read > capacity:
            return CORRUPT
        store_relaxed(ring + READ_SEEN, read)
        if write - read > capacity - size:
            return FULL
    return write


@njit
def publish(ring, position):
    """Everything before `position` becomes the receiver's."""
    store_release(ring + WRITE, position)  # edge A: the bytes are whole before they are seen


@njit
def readable(ring, capacity):
    """How many bytes the receiver may read, 0 when there are none, or CORRUPT."""
    read = load_relaxed(ring + READ)  # only the receiver writes it
    there = load_relaxed(ring + WRITE_SEEN) - read
    if there <= 0:
        there = load_acquire(ring + WRITE) - read  # edge A: seen, therefore whole
        store_relaxed(ring + WRITE_SEEN, there + read)
    if there < 0 or there > capacity or read & 7:
        return CORRUPT
    return there


@njit
def release(ring, position):
    """Everything before `position` becomes the sender's again."""
    store_release(ring + READ, position)  # edge B: copied before it is given back


@njit
def copy_in(ring, capacity, position, source, size):
    """Copy into the ring, in two parts where it wraps. The bytes belong to the sender."""
    start = position & (capacity - 1)
    first = min(size, capacity - start)
    copy(ring + DATA + start, source, first)
    if first < size:
        copy(ring + DATA, source + first, size - first)


@njit
def copy_out(ring, capacity, position, to, size):
    """Copy out of the ring, in two parts where it wraps. The bytes belong to the receiver."""
    start = position & (capacity - 1)
    first = min(size, capacity - start)
    copy(to, ring + DATA + start, first)
    if first < size:
        copy(to + first, ring + DATA, size - first)


@njit
def frame_bytes(size):
    """Bytes that a message of `size` bytes takes in the ring."""
    return FRAME + ((size + 7) & ~7)


@njit
def send_message(ring, capacity, source, size):
    """Copy one message in and publish it: 0, FULL or CORRUPT."""
    position = reserve(ring, capacity, frame_bytes(size))
    if position < 0:
        return position
    store_relaxed(
        ring + DATA + (position & (capacity - FRAME)), size
    )  # ours until published; never wraps: 8 divides it
    copy_in(ring, capacity, position + FRAME, source, size)
    publish(ring, position + frame_bytes(size))
    return 0


@njit
def next_message(ring, capacity):
    """Length of the oldest message, EMPTY or CORRUPT."""
    there = readable(ring, capacity)
    if there <= 0:
        return EMPTY if there == 0 else CORRUPT
    # The receiver's since edge A. The mask keeps the word inside also when somebody has changed READ meanwhile.
    size = load_relaxed(ring + DATA + (load_relaxed(ring + READ) & (capacity - FRAME)))
    if size <= 0 or size > there - FRAME or frame_bytes(size) > there:
        return CORRUPT
    return size


@njit
def take_message(ring, capacity, to, size):
    """Copy the oldest message out, of `size` bytes as `next_message` said, and give its bytes back."""
    read = load_relaxed(ring + READ)
    copy_out(ring, capacity, read + FRAME, to, size)
    release(ring, read + frame_bytes(size))


@njit
def take_bytes(ring, capacity, to, most):
    """Copy out up to `most` published bytes of fixed-size items; returns how many, or CORRUPT.

    `most` is a multiple of the item's size, and so is everything that is ever published.
    """
    size = readable(ring, capacity)
    if 0 < size < most:  # what the receiver had seen is a hint; look again for what has come since
        store_relaxed(ring + WRITE_SEEN, 0)
        size = readable(ring, capacity)
    if size <= 0:
        return size
    size = min(size, most)
    read = load_relaxed(ring + READ)
    copy_out(ring, capacity, read, to, size)
    release(ring, read + size)
    return size


@njit
def set_sleeps(ring, flag, value):
    """Say that this side is about to sleep (1); look again afterwards, and only then sleep. Or that it woke (0)."""
    store_relaxed(ring + flag, value)
    fence()  # edge S


@njit
def must_wake(ring, flag):
    """After publishing or releasing: whether the other side sleeps. The first to ask has to wake it."""
    fence()  # edge S
    if load_relaxed(ring + flag) == 0:
        return False
    store_relaxed(ring + flag, 0)
    return True


@njit
def create(ring, capacity):
    """Lay out a ring in zeroed memory of DATA + capacity bytes."""
    store_relaxed(ring + VERSION, LAYOUT)
    store_relaxed(ring + CAPACITY, capacity)
    store_release(ring + MAGIC, IDENTITY)


@njit
def identity(ring, capacity):
    """0 when the memory is a ring of this layout and capacity, else the number of the field that is wrong."""
    if load_acquire(ring + MAGIC) != IDENTITY:
        return 1
    if load_relaxed(ring + VERSION) != LAYOUT:
        return 2
    if load_relaxed(ring + CAPACITY) != capacity:
        return 3
    write, read = load_acquire(ring + WRITE), load_acquire(ring + READ)
    if read < 0 or write < read or write - read > capacity:
        return 4
    return 0
