"""A bounded queue in shared memory for many senders and many receivers, of whom anybody may be killed at any time.

The body of the segment (labkit.lockfree.segment):

    offset  line        written by  holds
    0       senders     senders     WRITE: a hint, a position that is not after the first unclaimed one
    128     receivers   receivers   READ: a hint, a position that is not after the first untaken one
    136                 receivers   PASSED: how many positions were passed over as poison
    144                 receivers   BACK: not 0 when some slot may be TAKING by nobody
    256     ever        both        EVER: bits SENDS and RECEIVES, set when the first of them joins, never cleared
    264                 both        ARRIVALS: how often somebody has got a number
    1024    parts       its owner   a word for each participant: whether it SENDS, RECEIVES, or both; or still MAY
    4096    slots       its owner   capacity slots of `stride` bytes: a word, and then what the queue's user puts there

    word of a slot      lap (48 bits) | owner (8 bits, a participant's number) | times (5 bits) | state (3 bits)

A position is a lap and an index, lap << shift | index, where 1 << shift is the first power of two that is not less than
the capacity: so any capacity will do, and none needs a division. The slot of a position is slots + index * stride.

A slot's life in one lap. Each arrow is one atomic write of its word; nothing else ever says whose the slot is.

                  claim, CAS              publish, store             take, CAS               release, store
    FREE(lap) ---------------> FILLING(lap, me) --------> FULL(lap) ---------> TAKING(lap, me) ---------> FREE(lap + 1)
                                      |                                          |        ^
                   owner dead, or     | CAS                     owner dead, CAS  |        | retake, CAS, times + 1
                   it gives up        v                                          v        |
                                  POISON(lap) ---> FREE(lap + 1)             TAKING(lap, nobody)
                                   CAS, by a receiver

Invariants
    C  The claimed positions are a prefix: whoever claims p has seen that all positions before p were claimed.
    T  The same of those taken (or passed over as poison).
    H  A hint was true when it was stored, and C and T only grow: so it is never ahead, however late it is stored.
    W  The word of the slot of p is of p's lap, or of a later one, as soon as p - 1 lap is released, and never of an
       earlier lap than the one before p's once p - 1 is claimed.
    While a slot is FILLING or TAKING, only its owner reads or writes what is in it; while FULL, nobody writes it.

Why a lagging hint is harmless. A sender starts at the hint and goes from q to q + 1 only when it has seen q claimed:
the word is of q's lap and not FREE, or of a later lap, which it reaches by being claimed only. With H at the start, C
holds at each step, and its CAS of FREE(lap of p) claims p once. A thread that is stopped between its claim and the
store of its hint, for however many laps, turns the hint back; items are published before their hint is stored, and a
batch stores one only for each RUN, or HINT_AFTER, of its slots; who is killed never stores it. Then the next sender
walks: it finds words of a later lap
L and goes on behind the position that the slot had in lap L - 1 at once, so that it looks at each slot three times at
most, and its own hint repairs the damage. To turn it back seldom, a hint that has gone further is left alone.
    So positions are in the order of the claims: a message sent after another was sent has a later position, and by T
messages are taken in that order: first in, first out, for all senders together. What is redelivered comes late.

What it costs. At each side one locked instruction a message, the exchange that claims or takes. All else is plain
stores: of words that are their writer's alone, and of hints. But the exchange is of the slot's own word, which the
other side wrote last, and waits until that cache line is here. Therefore
    - nobody looks first, who need not: a sender exchanges FREE for FILLING at once, and so does a receiver FULL for
      TAKING where it has seen (`seen`, private) that WRITE is further. When that fails, it has looked, and goes on so;
    - both fetch the line of the slot that is AHEAD, to write it; a receiver only below what it has seen of WRITE,
      since above it would take it from a sender;
    - a batch of items is claimed in runs, slot by slot, and then filled and published from the first to the last, so
      that a receiver finds many. Whoever dies in a run has sent the first of it, the others are poisoned. What is taken
      is taken one by one: whoever dies leaves no more than one message to be delivered late.

Where laps wrap. 48 bits are compared by their difference. A queue of one slot that does 20 million messages a second
has used them up after half a year, and goes on. Only a thread that was stopped for exactly as long, between loading a
word and its CAS, would take the new lap for the old. A position has 63 bits and does not wrap in a lifetime.

Edges
    A  publish: the message is whole before it is FULL           release in `publish`, acquire in `take`
    B  release: it has been read before the slot is FREE         release in `release`, acquire in `claim`
    H  hint: who sees it sees what made it true                  release and acquire of WRITE, of READ
    S  sleep: see labkit.lockfree.bells

Death is proved by the Linux kernel, which drops the locks of a dead process (labkit.lockfree.bells.is_dead); a process
that is merely stopped keeps its slots. `bury` loads a word, then asks whether its owner is dead, then exchanges exactly
that word; a participant's number is given to a newcomer only after `sweep` has cleared it from all slots. So neither
takes from the living: FILLING(lap, n) never comes back, and TAKING(lap, n) comes back with another count of `times`.

What a kill leaves, wherever it comes
    of a sender, before its claim            nothing
    ... before it publishes                  FILLING by a dead owner: poisoned and passed over, the message never was
    ... afterwards                           its message, whole; perhaps an old hint
    of a receiver, before its take           nothing
    ... before its release                   TAKING by a dead owner: another receiver takes it over, after later ones
    ... afterwards                           nothing; perhaps an old hint

Nothing read from shared memory is trusted: an index is compared with the capacity, which each process keeps for
itself, before it becomes an address, and a word that contradicts C or T is CORRUPT. Over memory that stands still each
loop ends.

After D. Vyukov, "Bounded MPMC queue" (1024cores.net): a sequence in each slot. There the claim is an exchange of the
counter, of which a dead process leaves no trace, and all others wait for ever. Here the claim is in the slot, and says
whose; the counter is a hint, after M. Michael and M. Scott (1996): a lagging tail may be helped on by anybody.
"""

from __future__ import annotations

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from labkit.lockfree.atomics import (
    add,
    compare_exchange,
    copy,
    exchange,
    keep_bits,
    load_acquire,
    load_relaxed,
    pause,
    prefetch_to_write,
    set_bits,
    store_relaxed,
    store_release,
)
from labkit.lockfree.bells import HEADER, is_dead
from labkit.lockfree.segment import MOST_PEOPLE, PEOPLE

WRITE, READ, PASSED, BACK, EVER, ARRIVALS = 0, 128, 136, 144, 256, 264
PARTS = 1024
SLOTS = 4096

LAYOUT = 2

FREE, FILLING, FULL_, TAKING, POISON = range(5)
STATE, NOBODY = 7, 0
ONCE_MORE = 8  # in `times`
LAP = 1 << 16

FULL, EMPTY, CORRUPT = -1, -1, -2

FEW_PAUSES, MOST_PAUSES = 4, 64
FEW, MANY = 2, 64  # messages
TRY_AFTER = 16
HINT_AFTER = 16
AHEAD = 16  # slots: so far ahead of what it does a side fetches cache lines
RUN = 64  # slots that a batch claims at a time

SENDS, RECEIVES, MAY = 1, 2, 4
NEVER, TAKEN, GONE = 0, 1, 2

# What this process keeps in the words of labkit.lockfree.bells that are free: who was dead when all slots were last
# looked at, and how often we have looked since.
BURIED, LOOKS = 40, 48
LOOK_AT_ALL = 10


@intrinsic
def shift_of(typingctx, capacity):
    """The bits of an index: 1 << shift is the first power of two that is not less than the capacity."""

    def code(context, builder, signature, arguments):
        word = ir.IntType(64)
        less = builder.sub(arguments[0], ir.Constant(word, 1))
        return builder.sub(ir.Constant(word, 64), builder.ctlz(less, ir.Constant(ir.IntType(1), 0)))

    return types.int64(types.int64), code


def body_bytes(capacity: int, stride: int) -> int:
    """Bytes that a queue takes. Zeroed memory is an empty queue."""
    return SLOTS + capacity * stride


# --- positions ----------------------------------------------------------------------------------------------


@njit(forceinline=True)
def lap_of(capacity, position):
    """The lap of a position, for `publish`, `give_up`, `release` and `hand_back`."""
    return position >> shift_of(capacity)


@njit(forceinline=True)
def index_of(capacity, position):
    """The index of a position's slot; not less than the capacity when it is none."""
    return position & ((1 << shift_of(capacity)) - 1)


@njit(forceinline=True)
def slot_at(body, capacity, stride, position):
    """Address of the slot of a position that `claim` or `take` has returned."""
    return body + SLOTS + index_of(capacity, position) * stride


@njit(forceinline=True)
def after(capacity, position):
    """The next position."""
    if index_of(capacity, position) == capacity - 1:
        return (lap_of(capacity, position) + 1) << shift_of(capacity)
    return position + 1


@njit
def before(capacity, position):
    """The position before this one, which is not 0."""
    if index_of(capacity, position) == 0:
        return ((lap_of(capacity, position) - 1) << shift_of(capacity)) | (capacity - 1)
    return position - 1


@njit
def between(capacity, start, end):
    """How many positions there are from one to another."""
    laps = lap_of(capacity, end) - lap_of(capacity, start)
    return laps * capacity + index_of(capacity, end) - index_of(capacity, start)


@njit(forceinline=True)
def _ahead(word, lap):
    """How many laps a word is ahead of this one."""
    return (word - (lap << 16)) >> 16


@njit
def _jump(capacity, position, laps):
    """The position after the one so many laps further on; or CORRUPT, so that no loop is without end."""
    there = after(capacity, position + (laps << shift_of(capacity)))
    return there if there > position else CORRUPT


@njit
def has_left(body, capacity, stride, position):
    """Whether what was in the slot of this position is released, so that nobody will read it any more."""
    if position < 0 or index_of(capacity, position) >= capacity:
        return True
    return _ahead(load_acquire(slot_at(body, capacity, stride, position)), lap_of(capacity, position)) != 0


@njit
def have_left(body, capacity, stride, last, number):
    """The same of so many positions, up to `last`."""
    position = last
    for _ in range(number):
        if position < 0 or not has_left(body, capacity, stride, position):
            return position < 0
        position = before(capacity, position)
    return True


@njit
def fetch_to_write(body, capacity, stride, position, size):
    """Have the first bytes of a slot that is to be claimed (or taken) soon in our cache, if there is such a slot."""
    if index_of(capacity, position) < capacity:
        slot = slot_at(body, capacity, stride, position)
        prefetch_to_write(slot)
        prefetch_to_write(slot + size - 1)


@njit(forceinline=True)
def help_on(hint, position):
    """Store a hint, unless somebody has stored a later one."""
    if load_relaxed(hint) < position:
        store_release(hint, position)  # edge H


# --- senders ------------------------------------------------------------------------------------------------


@njit
def claim(body, capacity, stride, me):
    """Claim the next slot: its position, FULL or CORRUPT. Then fill it, and `publish` it or `give_up`."""
    position = claim_at(body, capacity, stride, me, load_acquire(body + WRITE))  # edge H
    if position >= 0:
        help_on(body + WRITE, after(capacity, position))
    return position


@njit(forceinline=True)
def claim_at(body, capacity, stride, me, position):
    """The same, from a position on that a hint said, or which comes after one that we have claimed ourselves.

    Store the hint afterwards, by `help_on`: best after publishing, and in a batch after some slots, at most HINT_AFTER.
    """
    index = index_of(capacity, position)
    if position < 0 or index >= capacity:
        return CORRUPT
    lap, slot = lap_of(capacity, position), body + SLOTS + index * stride
    # Without a look: to fetch the slot's cache line once to read it and once more to write it would take twice as long.
    free = lap << 16
    word = compare_exchange(slot, free, free | me << 8 | FILLING)  # edge B
    return position if word == free else _walk_to_claim(body, capacity, stride, me, position, word)


@njit
def _walk_to_claim(body, capacity, stride, me, position, word):
    """From a position whose slot has this word, which is not FREE in its lap, to the first unclaimed one."""
    while True:
        lap = lap_of(capacity, position)
        ahead = _ahead(word, lap)
        if ahead < 0:
            return _full_or_corrupt(body, capacity, position, ahead, word)
        if word & STATE > POISON or (ahead == 0 and word & STATE == FREE):
            return CORRUPT
        position = _jump(capacity, position, ahead - 1 if word & STATE == FREE else ahead)
        index = index_of(capacity, position)
        if position < 0 or index >= capacity:
            return CORRUPT
        slot = body + SLOTS + index * stride
        word = load_acquire(slot)  # edge B
        free = lap_of(capacity, position) << 16
        if word == free:
            word = compare_exchange(slot, free, free | me << 8 | FILLING)
            if word == free:
                return position


@njit
def _full_or_corrupt(body, capacity, position, ahead, word):
    """The slot is not yet released by those of the last lap; that it was not claimed by them cannot be."""
    if ahead != -1 or not FILLING <= word & STATE <= POISON:
        return CORRUPT
    return FULL


@njit(forceinline=True)
def publish(slot, lap):
    """What the slot holds is a message, complete."""
    store_release(slot, lap << 16 | FULL_)  # edge A


@njit
def give_up(slot, lap):
    """What we have claimed will not become a message. A receiver passes over it."""
    store_release(slot, lap << 16 | POISON)


@njit(forceinline=True)
def claim_run(body, capacity, stride, me, position, most):
    """Claim up to `most` slots, one after the other, as `claim_at`: the first one's position, and how many follow it.

    They are of one lap. The run ends where another sender was quicker, or where the next slot is not free.
    """
    index = index_of(capacity, position)
    if position < 0 or index >= capacity:
        return CORRUPT, 0
    free, slot = lap_of(capacity, position) << 16, body + SLOTS + index * stride
    most = min(most, capacity - index)
    for number in range(most):
        word = compare_exchange(slot, free, free | me << 8 | FILLING)  # edge B
        if word != free:
            if number == 0:
                return _walk_to_claim(body, capacity, stride, me, position, word), 1
            return position, number
        prefetch_to_write(slot + AHEAD * stride)
        slot += stride
    return position, most


@njit(forceinline=True)
def put_items(body, capacity, stride, offset, item_bytes, me, source, count):
    """Copy in as many items as there is room for: how many, or CORRUPT when that is why there are none.

    A run of slots is claimed first, and then published at once, nearly: else a receiver would come for each item.

    Args:
        offset: where in a slot the item is.
    """
    position, done, at = load_acquire(body + WRITE), 0, 0  # edge H
    if count == 1:  # a few instructions where the compiler knows
        at = claim_at(body, capacity, stride, me, position)
        if at < 0:
            return CORRUPT if at == CORRUPT else 0
        slot = slot_at(body, capacity, stride, at)
        copy(slot + offset, source, item_bytes)
        publish(slot, lap_of(capacity, at))
        prefetch_to_write(slot + AHEAD * stride)
        help_on(body + WRITE, after(capacity, at))
        return 1
    while done < count:
        at, number = claim_run(body, capacity, stride, me, position, min(count - done, RUN))
        if at < 0:
            break
        slot, lap = slot_at(body, capacity, stride, at), lap_of(capacity, at)
        for _ in range(number):
            copy(slot + offset, source, item_bytes)
            publish(slot, lap)
            slot += stride
            source += item_bytes
        done += number
        position = after(capacity, at + number - 1)
        help_on(body + WRITE, position)
    return CORRUPT if done == 0 and at == CORRUPT else done


@njit
def has_room(body, capacity, stride):
    """Whether it is worth while to `claim`. It only looks, and disturbs nobody."""
    position = load_acquire(body + WRITE)  # edge H
    if position < 0 or index_of(capacity, position) >= capacity:
        return True  # CORRUPT: let claim say so
    word = load_acquire(slot_at(body, capacity, stride, position))
    return _ahead(word, lap_of(capacity, position)) >= 0


# --- receivers ----------------------------------------------------------------------------------------------


@njit
def take(body, capacity, stride, me):
    """Take the oldest message: its position, EMPTY or CORRUPT. Then read it, and `release` it or `hand_back`.

    EMPTY is also said when the oldest is still being filled, even if later ones are complete.
    """
    position = take_at(body, capacity, stride, me, load_acquire(body + READ))  # edge H
    if position >= 0:
        help_on(body + READ, after(capacity, position))
    return position


@njit(forceinline=True)
def take_at(body, capacity, stride, me, position, sent=0):
    """The same, from a position on that a hint said, or which comes after one that we have taken: as `claim_at`.

    Args:
        sent: what WRITE was once, or 0. What is before it was claimed, and most likely published: worth an exchange
            without a look, as in `claim_at`.
    """
    index = index_of(capacity, position)
    if position < 0 or index >= capacity:
        return CORRUPT
    lap, slot = lap_of(capacity, position), body + SLOTS + index * stride
    full = lap << 16 | FULL_
    word = full if position < sent else load_acquire(slot)  # edge A
    if word == full:
        word = compare_exchange(slot, full, lap << 16 | me << 8 | TAKING)  # edge A
        if word == full:
            return position
    return _walk_to_take(body, capacity, stride, me, position, word)


@njit
def _walk_to_take(body, capacity, stride, me, position, word):
    """From a position whose slot had this word, to the first that is not taken."""
    while True:
        lap = lap_of(capacity, position)
        slot = body + SLOTS + index_of(capacity, position) * stride
        ahead, state = _ahead(word, lap), word & STATE
        if state > POISON or ahead < -1 or (ahead < 0 and state == FREE):
            return CORRUPT
        if ahead < 0 or (ahead == 0 and state in (FREE, FILLING)):
            return EMPTY
        if ahead == 0 and state == FULL_:
            if compare_exchange(slot, word, lap << 16 | me << 8 | TAKING) == word:
                return position
        elif ahead == 0 and state == POISON:
            if compare_exchange(slot, word, (lap + 1) << 16 | FREE) == word:
                add(body + PASSED, 1)
        else:
            position = _jump(capacity, position, max(0, ahead - 1))
            index = index_of(capacity, position)
            if position < 0 or index >= capacity:
                return CORRUPT
            slot = body + SLOTS + index * stride
        word = load_acquire(slot)  # edge A


@njit(forceinline=True)
def take_items(body, capacity, stride, offset, item_bytes, me, seen, looks, to, most):
    """Copy out up to `most` items, and release each: how many, or CORRUPT when that is why there are none.

    Args:
        seen: address of a private word: what WRITE was when we last looked.
        looks: whether to look again when there may be more. It takes WRITE's cache line from the senders.
    """
    position, sent, done, at = load_acquire(body + READ), load_relaxed(seen), 0, 0  # edge H
    if looks and position + most > sent:
        sent = load_relaxed(body + WRITE)
        store_relaxed(seen, sent)
    while done < most:
        at = take_at(body, capacity, stride, me, position, sent)
        if at < 0:
            break
        slot = slot_at(body, capacity, stride, at)
        copy(to + done * item_bytes, slot + offset, item_bytes)
        release(slot, lap_of(capacity, at))
        if at + AHEAD < sent:
            prefetch_to_write(slot + AHEAD * stride)
        done += 1
        position = after(capacity, at)
        if done % HINT_AFTER == 0:
            help_on(body + READ, position)
    if done % HINT_AFTER != 0:
        help_on(body + READ, position)
    return CORRUPT if done == 0 and at == CORRUPT else done


@njit(forceinline=True)
def release(slot, lap):
    """The message was read and may be overwritten."""
    store_release(slot, (lap + 1) << 16 | FREE)  # edge B


@njit
def hand_back(body, slot):
    """What we have taken is to be delivered to another: see `retake`."""
    store_release(slot, load_relaxed(slot) & ~0xFF00)  # ours until now
    store_release(body + BACK, 1)


@njit
def is_there(body, capacity, stride):
    """Whether it is worth while to `take`. It only looks, and disturbs nobody.

    It goes the way of `take`: what an old hint says is there, others may have taken, and who polls would poll for ever.
    """
    position = load_acquire(body + READ)  # edge H
    while True:
        index = index_of(capacity, position)
        if position < 0 or index >= capacity:
            return True  # CORRUPT: let take say so
        word = load_acquire(body + SLOTS + index * stride)
        ahead, state = _ahead(word, lap_of(capacity, position)), word & STATE
        if ahead < 0 or (ahead == 0 and state != TAKING):
            return ahead < -1 or (ahead == 0 and state >= FULL_)
        position = _jump(capacity, position, max(0, ahead - 1))


@njit
def holds_message(body, capacity, stride):
    """Whether a message is there that nobody has taken, the oldest: what `take` would find, without taking it."""
    position = load_acquire(body + READ)  # edge H
    while True:
        index = index_of(capacity, position)
        if position < 0 or index >= capacity:
            return True  # CORRUPT: let take say so
        word = load_acquire(body + SLOTS + index * stride)
        ahead, state = _ahead(word, lap_of(capacity, position)), word & STATE
        if ahead == 0 and state == FULL_:
            return True
        if ahead < 0 or (ahead == 0 and state in (FREE, FILLING)):
            return False
        position = _jump(capacity, position, max(0, ahead - 1))


@njit
def times(slot):
    """How often the message that we have taken was taken before, by receivers that died: modulo 32."""
    return load_relaxed(slot) >> 3 & 31


@njit
def _full_lap(base, word):
    """The lap of a word with all its bits, of which the word has 48, by a lap that is not far from it."""
    return base + _ahead(word, base)


@njit
def retake(body, capacity, stride, me):
    """Take over the oldest message that a dead receiver had not released: its position, or EMPTY. `bury` comes first.

    For a receiver that finds nothing else to do. It looks at all slots, but only when BACK says that it is worth while.
    BACK is set after a slot has become nobody's, never before, and wiped before all are looked at: so who misses the
    slot leaves BACK as it is found next. Who dies between the two, or between wiping and setting it again, is dead,
    and `bury` sets it.
    """
    for _ in range(8):  # each time round another receiver was quicker
        if load_acquire(body + BACK) == 0:
            return EMPTY
        exchange(body + BACK, 0)
        base = lap_of(capacity, load_acquire(body + READ))
        oldest, its_word = EMPTY, 0
        for index in range(capacity):
            word = load_acquire(body + SLOTS + index * stride)  # edge A: those who took it had acquired it
            if word & (0xFF00 | STATE) == TAKING:
                position = _full_lap(base, word) << shift_of(capacity) | index
                if position >= 0 and (oldest < 0 or position < oldest):
                    oldest, its_word = position, word
        if oldest < 0:
            return EMPTY
        store_release(body + BACK, 1)
        new = its_word & ~0xFFFF | me << 8 | (its_word + ONCE_MORE & 0xF8) | TAKING
        if compare_exchange(slot_at(body, capacity, stride, oldest), its_word, new) == its_word:
            return oldest
    return EMPTY


# --- waiting without sleeping -------------------------------------------------------------------------------


@njit
def wait_for_room(body, capacity, stride, looks):
    """After FULL: watch until a quarter of the queue is free, so that we do not disturb its receivers at each slot.

    Args:
        looks: how often to look, at most.
    """
    position = load_acquire(body + WRITE)  # edge H
    index, lap = index_of(capacity, position) + capacity // 4, lap_of(capacity, position)
    if index >= capacity:
        index, lap = index - capacity, lap + 1
    if position < 0 or index >= capacity:
        return True  # CORRUPT: let claim say so
    for _ in range(looks):
        if _ahead(load_acquire(body + SLOTS + index * stride), lap) >= 0:
            return True
        for _ in range(FEW_PAUSES):
            pause()
    return False


@njit
def patience_after(patience, came):
    """How many pauses to wait before looking at an empty queue again; less than 1: one.

    Who looks again as soon as it can takes the cache line away from a sender that has put one item into it, again and
    again. A little patience finds several at once. But who waits for an answer should not be patient at all. So: try
    every sixteenth time whether patience brings several items, and keep it up while it does.

    Args:
        patience: what was returned the last time, 0 at first.
        came: how many messages have come since.
    """
    if came == 0:
        return min(patience, 0)  # nothing in all that time: the stream has ended
    if came > MANY:
        return patience
    if came > FEW:
        return min(max(2 * patience, FEW_PAUSES), MOST_PAUSES)
    return FEW_PAUSES if patience <= -TRY_AFTER else min(patience - 1, 0)


@njit
def wait_for_message(body, capacity, stride, patience, looks):
    """After EMPTY: watch until something may have come. Whether it has."""
    for _ in range(looks):
        for _ in range(max(1, patience)):
            pause()
        if is_there(body, capacity, stride):
            return True
    return False


# --- the dead -----------------------------------------------------------------------------------------------


@njit
def _take_from(slot, word):
    """Exchange a word whose owner is dead: what it was filling is poison, what it was taking is nobody's."""
    if word & STATE == FILLING:
        return compare_exchange(slot, word, word & ~0xFFFF | POISON) == word
    return compare_exchange(slot, word, word & ~0xFF00) == word


@njit
def sweep(body, capacity, stride, number):
    """Clear what a dead participant had, before its number is another's."""
    store_relaxed(body + PARTS + 8 * number, 0)
    for index in range(capacity):
        slot = body + SLOTS + index * stride
        word = load_acquire(slot)
        if word >> 8 & 255 == number and (word & STATE == FILLING or word & STATE == TAKING):
            _take_from(slot, word)
    store_release(body + BACK, 1)


@njit
def bury(body, capacity, stride, private):
    """Find the dead, and take from them what they had claimed or taken. How many slots, or CORRUPT.

    A system call for each other participant, and now and then a look at all slots when one of them is dead. For who is
    about to sleep, and ten times a second while it does.
    """
    write, read = load_acquire(body + WRITE), load_acquire(body + READ)  # edge H
    if write < 0 or read < 0 or index_of(capacity, write) >= capacity or index_of(capacity, read) >= capacity:
        return CORRUPT
    # What the hints say was claimed and taken is so: else somebody has overwritten them, and we would wait for ever.
    if write > read:
        word = load_acquire(slot_at(body, capacity, stride, read))
        if word == lap_of(capacity, read) << 16:
            return CORRUPT
    if read > 0:
        last = before(capacity, read)
        word = load_acquire(slot_at(body, capacity, stride, last))
        ahead = _ahead(word, lap_of(capacity, last))
        if ahead < 0 or (ahead == 0 and word & STATE != TAKING):
            return CORRUPT
    header, dead = load_relaxed(private + HEADER), 0
    for number in range(1, MOST_PEOPLE + 1):
        pid = load_relaxed(header + PEOPLE + 8 * number)
        if pid != 0 and is_dead(private, number):
            dead += pid << 8 | number
    # The dead do nothing any more: what was cleared once stays so, unless a number found a new owner, who died too.
    looks = load_relaxed(private + LOOKS) + 1
    if dead == 0 or (dead == load_relaxed(private + BURIED) and looks < LOOK_AT_ALL):
        store_relaxed(private + LOOKS, looks)
        return 0
    found = _bury_all(body, capacity, stride, private)
    store_relaxed(private + LOOKS, 0)
    store_relaxed(private + BURIED, dead)
    return found


@njit
def _bury_all(body, capacity, stride, private):
    found = 0
    for index in range(capacity):
        slot = body + SLOTS + index * stride
        word = load_acquire(slot)
        owner = word >> 8 & 255
        is_owned = owner != NOBODY and (word & STATE == FILLING or word & STATE == TAKING)
        # Whether it is dead is asked after loading the word, never before: the number may be a newcomer's by now.
        if is_owned and is_dead(private, owner):
            found += _take_from(slot, word)
    store_release(body + BACK, 1)  # afterwards, and always: who died in between had not got to it
    return found


@njit
def arrive(body, number):
    """Somebody has this number, or will have it soon, and MAY send or receive: before whoever makes that so leaves."""
    set_bits(body + PARTS + 8 * number, MAY)
    add(body + ARRIVALS, 1)


@njit
def join(body, me, part):
    """Say that we send (SENDS), or receive (RECEIVES): before the first claim or take. What we MAY do is known now."""
    set_bits(body + PARTS + 8 * me, part)
    keep_bits(body + PARTS + 8 * me, ~MAY)
    set_bits(body + EVER, part)


@njit
def leave(body, me):
    """Say that we do neither any more, before we give up our number."""
    store_release(body + PARTS + 8 * me, 0)


@njit
def anybody(body, private, part):
    """Whether somebody living sends (or receives) or still may, we included: TAKEN; else NEVER yet, or GONE.

    Somebody may get a number that we have passed already from somebody who leaves before we come to it. Whoever gets
    one is counted, before the other leaves (models/holders.pml).
    """
    if load_acquire(body + EVER) & part == 0:
        return NEVER
    arrivals = load_acquire(body + ARRIVALS)
    for number in range(1, MOST_PEOPLE + 1):
        if load_acquire(body + PARTS + 8 * number) & (part | MAY) and not is_dead(private, number):
            return TAKEN
    return GONE if load_acquire(body + ARRIVALS) == arrivals else TAKEN


@njit
def length(body, capacity, stride):
    """How many slots are claimed and not yet taken, at most the capacity; or CORRUPT."""
    write, read = load_acquire(body + WRITE), load_acquire(body + READ)  # edge H
    if write < 0 or read < 0 or index_of(capacity, write) >= capacity or index_of(capacity, read) >= capacity:
        return CORRUPT
    return max(0, min(capacity, between(capacity, read, write)))
