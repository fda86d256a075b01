"""A ring in shared memory for one sender and one receiver: no lock, no system call, no fence.

The body of the segment (labkit.lockfree.segment):

    offset  line          written by   holds
    0       sender        sender       WRITE: bytes ever published
    8                     sender       BEGUN: where the message in pieces begins that is being sent, or was sent last
    16                    sender       LOST: for whoever does not wait while the ring is full (labkit.trace)
    24                    sender       COPY_OF: WRITE behind the item of which COPY is a copy, or will be
    32                    sender       COPY: one item of at most 32 bytes, which ends where the cache line does
    128     receiver      receiver     READ: bytes ever released
    256     wish          receiver     FOLLOWS: 1, the receiver takes each item as it comes; seldom written, a hint
    DATA    data          its owner    the messages, see below; mapped twice, the second time directly behind the first

Positions count bytes since creation and are never wrapped; byte p lies at p % size, and size is a power of two. Lines
are 128 bytes apart, because processors fetch cache lines in pairs (rigtorp/SPSCQueue).

Why the data is mapped twice. Where a message would reach beyond the end of the ring it goes on in the second mapping,
which is the beginning of the same memory. So every message lies in one piece: it can be lent (a NumPy array on it, and
no copy), it is copied by one memcpy(3), a batch of items too, and items of any size fit without a remainder. It costs
address space only. It needs memory that can be mapped at a multiple of the page size (on every Linux machine that Numba
runs on; DATA is one, whatever the page size) and so much address space: under a limit (RLIMIT_AS) opening fails with
ENOMEM. Processors whose caches are indexed by virtual addresses would need more; x86-64 and AArch64 do it themselves.

There are two kinds of contents.
    Items of one size: nothing but the items, one after the other.
    Messages of any length: frames, each a multiple of 8 bytes.
        | 8 bytes: size, and in its highest bits what it is | that many bytes, filled up to a multiple of 8 |
        WHOLE   a message
        FIRST   the first piece of a large message; its first 8 bytes say how large that is
        MORE    the next piece of it

Large messages are sent in pieces, each published as soon as it is there, so that the receiver copies the one while the
sender copies the next; and so messages larger than the ring go through it. A piece never mixes with anything: what is
no MORE ends the message before it, and if that was not complete (its sender died, or gave up waiting) it never was.
A receiver that waits for MORE in vain sees by BEGUN that it will not come. Of a message that fits in the ring the
receiver releases nothing before it has all of it: who dies before leaves the whole message to the next receiver. Of a
larger one it must release what it has copied, so that the rest can come: when it dies, the next receiver finds MORE
without FIRST, and passes over what is left of that message.

Why there is a copy of an item. Who waits for one fetches two cache lines from the sender, one after the other: that of
WRITE, and then the slot's. So a receiver to which items come one by one wishes for copies (FOLLOWS); the sender then
leaves a small item beside WRITE, too, and it comes along. The slot is what counts, with a copy and without. A copy is
taken when the item that is next is the last before WRITE, and COPY_OF, looked at after COPY was read, says that it is
this item's: then no other had been begun. Where many items are under way there are no copies, of two stores each. A
sender that dies before it publishes may leave a copy of an item that never was (COPY_OF > WRITE). The next one must not
publish another item there and leave that copy: it writes its own over it, whatever the receiver wishes, or clears
COPY_OF. With two items or more WRITE passes it by.

What a side has seen of the other's position is private memory of its process: READ_SEEN, WRITE_SEEN. Both only grow,
so an old one is a bound, never a mistake, also when others have had the role meanwhile.

Invariants
    0 <= WRITE - READ <= room, which is the capacity; WRITE and READ only grow.
    Bytes in [READ, WRITE) belong to the receiver, the others to the sender. Only WRITE and READ move the border.
    WRITE and READ are borders of frames (or of items).
    BEGUN <= WRITE, but for the moment in which a FIRST is being written at WRITE.
    If COPY_OF == WRITE, COPY is the item before WRITE. COPY_OF <= WRITE, but while a copy is made, and after a death.

Edges (each a release store and the acquire load that sees it; D: fences)
    A  publish: the frame is whole before WRITE says so         release WRITE in `publish`, acquire in `readable`
    B  release: it has been copied before READ says so          release READ in `release`, acquire in `reserve`
    C  cut: all its pieces are published before BEGUN goes on   release BEGUN in `begin`, `abandon`; acquire in `is_cut`
    D  copy: COPY_OF is another before COPY is one              release fence in `leave_copy`, acquire in `has_copy`
    S  sleep: see labkit.lockfree.bells

Who is the sender, and who the receiver, is told by locks that the Linux kernel drops when their process dies
(Segment.take_role). Whoever takes over reads WRITE, or READ, and goes on.

What a kill leaves, wherever it comes
    of the sender, before it publishes      nothing: the next sender writes over it
    ... beside a copy, before it publishes  nothing: see above
    ... afterwards                          the message, whole
    ... between two pieces                  pieces, which the receiver drops when it has found out, or when there is
                                            another sender
    of the receiver, before it releases     the message, which the next receiver gets
    ... afterwards                          nothing
    ... between two pieces, larger ring     the message, whole, for the next
    ... between two pieces, smaller ring    a rest of it, which the next passes over

Nothing read from shared memory is trusted: positions are checked against each other and the room, which each process
keeps for itself, before they become an address (always masked, and the second mapping follows), a size is checked
against what has been published.

After L. Lamport, "Proving the correctness of multiprocess programs" (1977) and "Specifying concurrent program modules"
(1983), where the two-index ring needs no lock; the cached opposite index of E. Rigtorp's SPSCQueue, before it
MCRingBuffer (Lee, Bu, Chandranmenon, 2010); the seqlock (Hemminger, Gleixner, Linux 2.6), whose fences are those of H.
Boehm, "Can seqlocks get along with programming language memory models?" (2012); the mirrored mapping of P. Howard's
Virtual Ring Buffer and many since.
"""

from __future__ import annotations

import mmap

from numba import njit

from labkit.lockfree.atomics import (
    acquire_fence,
    copy,
    load_acquire,
    load_relaxed,
    prefetch_to_write,
    release_fence,
    store_relaxed,
    store_release,
)

WRITE, BEGUN, LOST, COPY_OF, COPY = 0, 8, 16, 24, 32
READ = 128
FOLLOWS = 256
COPY_BYTES = 32  # of an item, at most
DATA = max(8192, mmap.PAGESIZE) - 4096  # from the body, which begins at 4096: a multiple of the page size in the file

LAYOUT = 3
FRAME = 8
WHOLE, FIRST, MORE = 0, 1 << 60, 2 << 60
KIND = 3 << 60

FULL, EMPTY, CORRUPT, PIECES = -1, -1, -2, -3


# --- the sender ---------------------------------------------------------------------------------------------


@njit
def reserve(body, room, seen, size):
    """Position at which the sender may fill `size` bytes, FULL, or CORRUPT.

    Args:
        seen: address of READ_SEEN, a word of private memory.
    """
    return reserve_at(body, room, seen, size, load_relaxed(body + WRITE))  # only the sender writes it


@njit
def reserve_at(body, room, seen, size, write):
    """The same behind what a batch has filled already, up to `write`, and not yet published."""
    used = write - load_relaxed(seen)
    if used > room - size or used < 0:
        read = load_acquire(body + READ)  # edge B: released, so the receiver has finished with the bytes
        used = write - read
        if used < 0 or used > room or read < 0:
            return CORRUPT
        store_relaxed(seen, read)
        if used > room - size:
            return FULL
    return write


@njit(forceinline=True)
def write_position(body):
    """Where the sender is."""
    return load_relaxed(body + WRITE)  # only the sender writes it


@njit(forceinline=True)
def publish(body, position):
    """Everything before `position` becomes the receiver's."""
    store_release(body + WRITE, position)  # edge A: the bytes are whole before they are seen


@njit(forceinline=True)
def at(body, size, position):
    """Address of a position in a ring of so many bytes; as many follow there, thanks to the second mapping."""
    return body + DATA + (position & (size - 1))


@njit
def frame_at(body, size, position):
    """The same for a frame, the head of which is a word."""
    return body + DATA + (position & (size - FRAME))


@njit
def frame_bytes(size):
    """Bytes that a message of `size` bytes takes in the ring."""
    return FRAME + ((size + 7) & ~7)


@njit
def send_message(body, capacity, seen, source, size):
    """Copy one message in and publish it: 0, FULL or CORRUPT."""
    position = reserve(body, capacity, seen, frame_bytes(size))
    if position < 0:
        return position
    frame = frame_at(body, capacity, position)
    store_relaxed(frame, size)  # ours until published
    copy(frame + FRAME, source, size)
    publish(body, position + frame_bytes(size))
    return 0


@njit
def begin(body):
    """A message in pieces begins where the sender is."""
    store_release(body + BEGUN, load_relaxed(body + WRITE))  # edge C


@njit
def abandon(body):
    """No more pieces will come of what was begun. Also for who takes over: its sender may have died over it."""
    store_release(body + BEGUN, load_relaxed(body + WRITE))  # edge C


@njit
def send_piece(body, capacity, seen, source, size, total, is_first):
    """Copy a piece in and publish it: 0, FULL or CORRUPT."""
    head = FRAME if is_first else 0
    position = reserve(body, capacity, seen, frame_bytes(head + size))
    if position < 0:
        return position
    if is_first:
        begin(body)
    frame = frame_at(body, capacity, position)
    store_relaxed(frame, (head + size) | (FIRST if is_first else MORE))  # ours until published
    if is_first:
        store_relaxed(frame + FRAME, total)
    copy(frame + FRAME + head, source, size)
    publish(body, position + frame_bytes(head + size))
    return 0


# --- the receiver -------------------------------------------------------------------------------------------


@njit
def readable(body, room, seen, position):
    """How many bytes the receiver may read from a position on, which is READ or later; 0: none; or CORRUPT.

    Args:
        seen: address of WRITE_SEEN, a word of private memory.
    """
    there = load_relaxed(seen) - position
    if there <= 0 or there > room:
        write = load_acquire(body + WRITE)  # edge A: seen, therefore whole
        there = write - position
        if there < 0 or there > room:
            return CORRUPT
        store_relaxed(seen, write)
    return there


@njit(forceinline=True)
def read_position(body):
    """Where the receiver is."""
    return load_relaxed(body + READ)  # only the receiver writes it


@njit(forceinline=True)
def release(body, position):
    """Everything before `position` becomes the sender's again."""
    store_release(body + READ, position)  # edge B: copied before it is given back


@njit
def head_at(body, capacity, seen, position):
    """The head of the frame at a position, which is READ or later; EMPTY or CORRUPT."""
    there = readable(body, capacity, seen, position)
    if there <= 0:
        return EMPTY if there == 0 else CORRUPT
    head = load_relaxed(frame_at(body, capacity, position))  # the receiver's since edge A
    size = head & ~KIND
    if size <= 0 or size > there - FRAME or head < 0 or head & KIND == KIND:
        return CORRUPT
    return head


@njit
def next_message(body, capacity, seen):
    """Size of the oldest message; EMPTY, CORRUPT, or PIECES, it is in pieces."""
    head = head_at(body, capacity, seen, read_position(body))
    return head if head < FIRST else PIECES


@njit
def take_message(body, capacity, to, size):
    """Copy the oldest message out, of `size` bytes as `next_message` said, and give its bytes back."""
    read = read_position(body)
    copy(to, frame_at(body, capacity, read) + FRAME, size)
    release(body, read + frame_bytes(size))


@njit
def total_of(body, capacity, position):
    """Bytes of the message that this FIRST begins."""
    return load_relaxed(frame_at(body, capacity, position) + FRAME)


@njit
def is_cut(body, room, seen, start, position):
    """Whether no more will come of the message in pieces that begins at `start`: there was nothing at `position`.

    When BEGUN has gone on, then either all pieces are published (edge C), and we see them now; or they never will be.
    """
    return load_acquire(body + BEGUN) > start and readable(body, room, seen, position) == 0  # edge C


# --- items --------------------------------------------------------------------------------------------------


@njit(forceinline=True)
def send_items(body, size, room, seen, item_bytes, source, count):
    """Copy in as many items as there is room for, and publish them: how many, 0, or CORRUPT."""
    is_followed = item_bytes <= COPY_BYTES and load_relaxed(body + FOLLOWS) != 0
    if is_followed:
        prefetch_to_write(body + WRITE)  # the receiver has it; else it was fetched twice, to be read and to be written
    write = load_relaxed(body + WRITE)  # only the sender writes it
    free = room - (write - load_relaxed(seen))
    if free < count * item_bytes or free > room:
        read = load_acquire(body + READ)  # edge B
        free = room - (write - read)
        if free < 0 or free > room or read < 0:
            return CORRUPT
        store_relaxed(seen, read)
        if free < count * item_bytes:
            count = free // item_bytes
            if count == 0:
                return 0
    copy_items(at(body, size, write), source, count, item_bytes)
    if count == 1 and item_bytes <= COPY_BYTES and (is_followed or load_relaxed(body + COPY_OF) > write):
        leave_copy(body, write + item_bytes, source, item_bytes)
    publish(body, write + count * item_bytes)
    return count


@njit(forceinline=True)
def leave_copy(body, position, source, item_bytes):
    """Leave a copy of an item that will be published up to `position`."""
    store_relaxed(body + COPY_OF, position)
    release_fence()  # edge D: who sees a word of this copy sees whose it is
    copy(body + COPY, source, item_bytes)


@njit
def leave_no_copy(body):
    """What is published next has no copy, and finds none that a dead sender has left."""
    store_relaxed(body + COPY_OF, 0)


@njit(forceinline=True)
def take_items(body, size, room, seen, item_bytes, to, most):
    """Copy out up to `most` items, and give their bytes back: how many, 0, or CORRUPT."""
    read = read_position(body)
    there = load_relaxed(seen) - read
    if there < most * item_bytes or there > room:
        write = load_acquire(body + WRITE)  # edge A
        there = write - read
        if there < 0 or there > room:
            return CORRUPT
        store_relaxed(seen, write)
        if most > 0 and there == item_bytes <= COPY_BYTES and has_copy(body, write, to, item_bytes):
            release(body, write)
            return 1
        if there < most * item_bytes:
            most = there // item_bytes
            if most == 0:
                return 0
    copy_items(to, at(body, size, read), most, item_bytes)
    release(body, read + most * item_bytes)
    return most


@njit(forceinline=True)
def has_copy(body, write, to, item_bytes):
    """Whether there was a copy of the item before `write`, the newest that we see; then it is in `to`."""
    copy(to, body + COPY, item_bytes)
    acquire_fence()  # edge D
    return load_relaxed(body + COPY_OF) == write


@njit(forceinline=True)
def follow(body, one_by_one):
    """Say whether the receiver takes items one by one, as they come."""
    wish = 1 if one_by_one else 0
    if load_relaxed(body + FOLLOWS) != wish:  # else its line stays in the sender's cache
        store_relaxed(body + FOLLOWS, wish)


@njit(forceinline=True)
def copy_items(to, source, count, item_bytes):
    """memcpy(3), as a few instructions for one item of a size that the compiler knows."""
    if count == 1:
        copy(to, source, item_bytes)
    else:
        copy(to, source, count * item_bytes)


# --- anybody ------------------------------------------------------------------------------------------------


@njit
def published(body):
    """WRITE, as anybody sees it."""
    return load_acquire(body + WRITE)  # edge A


@njit
def used(body, room):
    """Bytes in the ring, or CORRUPT."""
    read = load_acquire(body + READ)
    there = load_acquire(body + WRITE) - read
    return there if 0 <= there <= room or load_acquire(body + READ) != read else CORRUPT


@njit
def length(body, capacity):
    """How many messages there are, the last perhaps not yet complete; or CORRUPT.

    It counts them. What it reads may be overwritten meanwhile, unless it is the receiver who asks: then READ has gone
    on, and it begins again.
    """
    count = 0
    for _ in range(100):
        read = load_acquire(body + READ)  # edge B
        write = load_acquire(body + WRITE)  # edge A
        position, count = read, 0
        while 0 <= read <= position < write <= read + capacity:
            head = load_acquire(frame_at(body, capacity, position))  # acquire: READ is loaded after it
            size = head & ~KIND
            if size <= 0 or size > capacity:
                break
            position += frame_bytes(size)
            if head & KIND != MORE or position > write:
                count += 1
        if load_acquire(body + READ) == read:
            return count if position == write else CORRUPT
    return count
