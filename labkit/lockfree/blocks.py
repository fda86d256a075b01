"""Memory for messages that do not fit into a slot: runs of blocks, which whoever is killed never takes with it.

Behind the slots of a queue (labkit.lockfree.mpmc), in the same segment:

    offset  written by    holds
    0       senders       HINT: where the last run ended; the next search begins there
    8       senders       LIMIT: blocks from here on were never claimed, and their words have no memory
    128     senders       SERIAL: counts claims
    4096    its owner     a word for each block
    ...     its owner     the blocks, of 4096 bytes each: message after message, each in a run of neighbours

There are as many blocks as the machine has memory: addresses, not memory. The memory of a run is reserved when it is
claimed (posix_fallocate(3)) unless it has been before, so that a full machine is an error of who sends and not the
death of who writes; and what lies idle is given back
(MADV_REMOVE, madvise(2)).

word of a block         position + 1 (55 bits) | owner (8 bits)
    HOLE                0: nobody's, and without memory
    SPARE               nobody's, with memory
    CLAIMED(n, me)      the n-th claim, which is ours: bit 63 is set
    SENT(p)             part of the message whose slot has position p, owner nobody
    READ(p, me)         the same, and we have taken it
    SHARED(q, n)        part of n messages or fewer, whose slots have positions up to q, the last of n: bit 61 is set

A block's life. Each arrow is one atomic write of its word.

                  claim, CAS              send, store            take, store               free, store
    SPARE, HOLE ------------> CLAIMED(n, s) -------> SENT(p) --------------> READ(p, r) -----------------> SPARE
                                   |                    |        ^ |            |
                        s is dead  |      p has left    |        | +------------+ r is dead before it releases p:
                                   v      (poisoned)    v        | another takes p, and so the block
                                 another's claim, CAS  <---------+  r is dead, and p has left

The order of things
    a sender     claims a run, fills it, claims a slot, makes the run SENT(p), publishes p
    a receiver   takes p, makes the run READ(p, me), releases p, reads the run for as long as it likes, frees it

Invariants
    G  A block may be claimed when it is nobody's (HOLE, SPARE), or when its owner is nobody or proved dead and it has
       no position, or one that `has_left`.
    P  From a sender's claim of p to a receiver's release of it, p has not left.
    So a run is safe all the time: CLAIMED by the living; then SENT(p) while p has not left; then READ by the living.
    U  No word comes back: a claim has a number of its own, a position has one message.

Why a claim takes from nobody alive. It loads a word, asks, and exchanges exactly that word. The position is asked
first and the owner afterwards. SENT(p) with p gone: the sender died, or gave up, and nobody will take p any more.
CLAIMED(n, s) with s dead: n never comes back, whoever else gets the number s. READ(p, r) with p gone: the last to take
p has written it; if that is a newcomer with r's number, it lives when it is asked for; if it is dead then, the word was
its own.

What a kill leaves, wherever it comes
    of a sender, before it publishes         CLAIMED by the dead, SENT with a poisoned position, or some of both: spare
    ... afterwards                           its message, whole: the run is nobody's, and the slot's
    of a receiver, before it releases p      READ by the dead in part: whoever takes p next makes all of it its own
    ... afterwards                           READ by the dead, p has left: spare
    of one who gives memory back             CLAIMED by the dead; whether it has memory is not known, nor believed

A run that many messages share is never READ: a receiver copies it before it releases its slot. Its blocks are SHARED
before the first of the messages is published, and may be claimed when all n positions have left, of whatever messages
they were. That nobody needs to free it is why it may be shared: who takes the last of them is never known.

A number is given to a newcomer only after `sweep` has cleared it, as in labkit.lockfree.mpmc.

Nothing read from shared memory is trusted: the block and the length of a run are compared with the number of blocks,
which each process keeps for itself, before they become addresses.

After K. Knowlton, "A fast storage allocator" (1965), for what a block's own word can tell, and D. Knuth, TAOCP 2.5, for
next fit. R. Bhandari, D. Chakrabarti and H. Boehm, "Makalu" (2016) recover a heap after a crash by tracing it; here the
queue's slots say what is reachable, and no one has to stop.
"""

from __future__ import annotations

from numba import njit

from labkit.lockfree import mpmc
from labkit.lockfree.atomics import (
    add,
    compare_exchange,
    load_acquire,
    load_relaxed,
    store_relaxed,
    store_release,
)
from labkit.lockfree.bells import is_dead

HINT, LIMIT, SERIAL = 0, 8, 128
WORDS = 4096
BLOCK = 4096

HOLE = 0
CLAIMED = -1 << 63
SPARE = 1 << 62
SHARED = 1 << 61
MOST_SHARED = 255
"""Positions, from the first to the last of the messages of a run."""

NO_RUN, AND_MEMORY = -1, -2


def pool_bytes(blocks: int) -> int:
    """Bytes of addresses that so many blocks take, with their words. Zeroed memory is a pool of holes."""
    return first_block(blocks) + blocks * BLOCK


def first_block(blocks: int) -> int:
    """Where in the pool the blocks begin."""
    return WORDS + (blocks * 8 + BLOCK - 1) // BLOCK * BLOCK


@njit
def word_at(pool, block):
    return pool + WORDS + 8 * block


@njit
def is_shared(word):
    return word > 0 and word & (SPARE | SHARED) == SHARED


@njit
def is_free(body, capacity, stride, private, word):
    """Whether a block with this word may be claimed: invariant G."""
    if word in (HOLE, SPARE):
        return True
    if is_shared(word):
        return mpmc.have_left(body, capacity, stride, ((word & ~SHARED) >> 8) - 1, word & 255)
    if word & CLAIMED == 0 and not mpmc.has_left(body, capacity, stride, (word >> 8) - 1):
        return False
    owner = word & 255
    return owner == mpmc.NOBODY or is_dead(private, owner)


@njit
def claim(pool, blocks, body, capacity, stride, private, me, wanted):
    """Claim a run of so many blocks: its first, NO_RUN, or AND_MEMORY - first when memory is to be reserved for it.

    The search begins at the hint, where the last one ended, and goes once around up to LIMIT; who finds NO_RUN may
    `raise_limit`.
    """
    limit = limit_of(pool, blocks)
    hint = load_relaxed(pool + HINT)
    if hint < 0 or hint >= limit:
        hint = 0
    mine = CLAIMED | (add(pool + SERIAL, 1) & (1 << 54) - 1) << 8 | me
    first = _claim_between(pool, hint, limit, body, capacity, stride, private, mine, wanted)
    if first == NO_RUN:
        first = _claim_between(pool, 0, min(limit, hint + wanted), body, capacity, stride, private, mine, wanted)
    if first != NO_RUN:
        store_relaxed(pool + HINT, wanted + (first if first >= 0 else AND_MEMORY - first))
    return first


@njit
def claim_spare(pool, blocks, body, capacity, stride, private, me, start, most):
    """Claim the first run behind `start` of up to `most` blocks that are spare, to give their memory back: `unclaim`.

    Those that were shared, and are not any more, are spare as well.

    Returns:
        its first block, and how many.
    """
    mine = CLAIMED | (add(pool + SERIAL, 1) & (1 << 54) - 1) << 8 | me
    got, block = 0, start
    while block < limit_of(pool, blocks) and got < most:
        at = word_at(pool, block)
        word = load_acquire(at)
        is_spare = word == SPARE or (is_shared(word) and is_free(body, capacity, stride, private, word))
        if is_spare and compare_exchange(at, word, mine) == word:
            got += 1
        elif got:
            break
        block += 1
    return block - got, got


@njit
def limit_of(pool, blocks):
    """How many blocks are in use, or were: those before LIMIT."""
    return min(max(0, load_acquire(pool + LIMIT)), blocks)


@njit
def _claim_between(pool, start, end, body, capacity, stride, private, mine, wanted):
    got, memory, lives = 0, True, -1
    for block in range(start, end):
        if end - block < wanted - got:
            break
        at = word_at(pool, block)
        word = load_acquire(at)  # edge F
        is_ours, has_no_owner = False, word in (SPARE, HOLE) or is_shared(word)
        if has_no_owner or word & 255 != lives:  # not the same system call for each block of a run
            if is_free(body, capacity, stride, private, word):
                is_ours = compare_exchange(at, word, mine) == word
            elif not has_no_owner and (word & CLAIMED or mpmc.has_left(body, capacity, stride, (word >> 8) - 1)):
                lives = word & 255
        if is_ours:
            memory = memory and (word == SPARE or is_shared(word))
            got += 1
            if got == wanted:
                first = block - wanted + 1
                return first if memory else AND_MEMORY - first
        elif got:
            unclaim(pool, block - got, got, memory)
            got, memory = 0, True
    if got:
        unclaim(pool, block - got, got, memory)
    return NO_RUN


@njit
def raise_limit(pool, limit):
    """More blocks may be claimed, whose words have memory. The next search begins with them."""
    found = load_relaxed(pool + LIMIT)
    while found < limit:
        before = compare_exchange(pool + LIMIT, found, limit)
        if before == found:
            store_relaxed(pool + HINT, found)
            return
        found = before


@njit
def unclaim(pool, first, number, memory):
    """Give blocks back that nobody else has seen. `memory`: all of them have some."""
    for block in range(first, first + number):
        store_release(word_at(pool, block), SPARE if memory else HOLE)


@njit
def unclaim_last(pool, first, number):
    """The same of the run without memory that we have claimed last: who claims next finds it again."""
    unclaim(pool, first, number, False)
    store_relaxed(pool + HINT, first)


@njit
def mark_sent(pool, first, number, position):
    """The run is part of the message that we are about to publish."""
    for block in range(first, first + number):
        store_release(word_at(pool, block), (position + 1) << 8)


@njit
def mark_shared(pool, first, number, last, positions):
    """The run holds the messages that we are about to publish: their positions are among so many, up to `last`."""
    for block in range(first, first + number):
        store_release(word_at(pool, block), SHARED | (last + 1) << 8 | positions)


@njit
def mark_read(pool, first, number, position, me):
    """The run is ours: we have taken its message, and not yet released it."""
    for block in range(first, first + number):
        store_release(word_at(pool, block), (position + 1) << 8 | me)


@njit
def free(pool, first, number):
    """The run was read, and may be overwritten."""
    for block in range(first, first + number):
        store_release(word_at(pool, block), SPARE)  # edge F


@njit
def sweep(pool, blocks, body, capacity, stride, number):
    """Clear what a dead participant had, before its number is another's. `mpmc.sweep` comes later."""
    for block in range(limit_of(pool, blocks)):
        at = word_at(pool, block)
        word = load_acquire(at)
        if word & 255 == number and word not in (HOLE, SPARE) and not is_shared(word):
            if word & CLAIMED:
                compare_exchange(at, word, HOLE)
            elif mpmc.has_left(body, capacity, stride, (word >> 8) - 1):
                compare_exchange(at, word, SPARE)
            else:
                compare_exchange(at, word, word & ~255)


@njit
def in_use(pool, blocks, body, capacity, stride, private):
    """How many blocks could not be claimed now."""
    count = 0
    for block in range(limit_of(pool, blocks)):
        count += not is_free(body, capacity, stride, private, load_acquire(word_at(pool, block)))
    return count
