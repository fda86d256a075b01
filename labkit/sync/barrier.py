"""Barrier: nobody goes on before all have come. After pthread_barrier_wait(3p), between processes, on a futex(2).

    offset  holds
    0       STATE, the futex: twice the number of the round, and 1 more when the barrier is broken
    8       ARRIVED: how many have ever come; ARRIVED // parties is the round, ARRIVED % parties the place in it
    16      PARTIES, and 24 the pid namespace of the maker
    64      for each place: the round and the thread id of who came there last

Coming is one compare-and-exchange, of a place, and whoever comes by moves ARRIVED on: nobody can be killed between
being counted and being known. The last one of a round moves STATE to the next round and wakes the others; one who gives
up breaks it instead. Both do so by compare-and-exchange on the same word, so that a round is either complete for all or
broken for all.
"""

from __future__ import annotations

import errno
import threading

from labkit.channels.base import DEFAULT_TIMEOUT, Waiter, whole
from labkit.libc import ffi
from labkit.sync.futex import EVERYBODY, _namespace, address_of, atomics, dead, futex_wait, futex_wake
from labkit.sync.interrupt import patiently
from labkit.sync.shared import USABLE, InPage, Page

ARRIVED, PARTIES, NAMESPACE, PLACES = 8, 16, 24, 64
BROKEN = 1
_WRAPS = 2**32


class BrokenBarrier(OSError):
    """Somebody gave up waiting, or died while it waited: the round will never be complete. `reset()` begins anew."""

    def __init__(self, why: str = "somebody gave up waiting or died") -> None:
        super().__init__(errno.EPIPE, f"the barrier is broken: {why}; reset() begins anew when all know it")


class Barrier(InPage):
    """All `parties` wait until all of them have come; then all go on, and the next round begins.

    `with Barrier(3) as barrier:` closes it at the end.

    Args:
        parties: how many come to each round, 1 to 496.
        name: one word, to create it as a file that unrelated processes open with `Barrier.open(name)`.

    Raises:
        ValueError: there are none, or too many, or the name is not allowed.
        FileExistsError: there is one of this name already.
    """

    kind = "barrier"
    MOST = (USABLE - PLACES) // 8

    def __init__(self, parties: int, name: str | None = None):
        self.closed = True
        parties = whole(parties, "parties")
        if not 1 <= parties <= self.MOST:
            raise ValueError(f"a barrier is for 1 to {self.MOST} parties, not {parties}")

        def prepare(page: Page) -> None:
            page.pointer("uint64_t *", PARTIES)[0] = parties
            page.pointer("uint64_t *", NAMESPACE)[0] = _namespace()

        self._make(name, prepare)

    def _live_in(self, page: Page, name: str | None) -> None:
        self._word = page.pointer("uint32_t *")
        self._words = page.pointer("uint64_t *")
        self.parties = min(int(self._words[PARTIES // 8]), self.MOST)  # what comes from outside is never trusted
        super()._live_in(page, name)

    def wait(self, timeout: float | None = DEFAULT_TIMEOUT) -> int:
        """Come, and wait until all have; returns our place in the order of coming, 0 to parties - 1.

        Args:
            timeout: seconds to wait; 0 never waits, None waits for ever.

        Raises:
            TimeoutError: not all came; the barrier is now broken, for the others too.
            BrokenBarrier: it was broken, or has been while we waited.
            ValueError: it would have to wait a negative time, or it is closed.
        """
        self._must_be_open()
        waiter = Waiter(timeout)
        if self.broken:
            raise BrokenBarrier
        word, state, load = self._word, address_of(self._word), atomics()["load_int_acquire"]
        turn, place = divmod(self._come(), self.parties)
        ours = turn * 2 % _WRAPS
        if place == self.parties - 1 and self._move(ours, (ours + 2) % _WRAPS):
            return place

        def one_turn(left: float) -> int:
            """Sleep once, unless the round is over; 0 when it is."""
            found = load(state)
            if _open(found, ours) and left:
                if found == ours and place == self.parties - 1:
                    self._move(ours, (ours + 2) % _WRAPS)  # the round before was not over when we came last
                else:
                    futex_wait(word, found, left)
            ffi.errno = errno.EAGAIN
            return -1 if _open(load(state), ours) else 0

        def look() -> object:
            self._must_be_open()
            return self._died(turn)

        try:
            ended = patiently("futex", one_turn, waiter, "not all came to the barrier", look)
        except BaseException:  # too late, or Ctrl-C: we do not come back to this round
            if self._break(ours):
                raise
            return place  # it was completed at the last moment
        if ended == -1:
            self._break(ours)
        if _broken(load(state), ours):
            raise BrokenBarrier(self._died(turn) or "somebody gave up waiting")
        return place

    @property
    def broken(self) -> bool:
        """Whether somebody has given up or died while waiting."""
        self._must_be_open()
        return bool(atomics()["load_int_acquire"](address_of(self._word)) & BROKEN)

    @property
    def waiting(self) -> int:
        """How many have come and wait at this moment."""
        self._must_be_open()
        return int(self._words[ARRIVED // 8] % self.parties)

    def abort(self) -> None:
        """Break the barrier: everybody who waits or comes gets BrokenBarrier."""
        self._must_be_open()
        self._break(atomics()["load_int_acquire"](address_of(self._word)) & ~BROKEN)

    def reset(self) -> None:
        """Begin a new round on a broken barrier. Nobody may be waiting or coming: let all know that it broke first."""
        self._must_be_open()
        turn = self._words[ARRIVED // 8] // self.parties + 1
        self._words[ARRIVED // 8] = turn * self.parties
        atomics()["exchange_int"](address_of(self._word), turn * 2 % _WRAPS)

    def _come(self) -> int:
        """Take the next place; how many had come before."""
        exchange, start = atomics()["compare_exchange"], address_of(self._word)
        while True:
            ticket = int(self._words[ARRIVED // 8])
            turn, place = divmod(ticket, self.parties)
            found, us = self._words[PLACES // 8 + place], (turn % _WRAPS) << 32 | threading.get_native_id()
            is_free = not found or 0 < (turn - (found >> 32)) % _WRAPS < _WRAPS // 2  # its last user's round is over
            is_ours = is_free and exchange(start + PLACES + 8 * place, found, us) % 2**64 == found
            exchange(start + ARRIVED, ticket, ticket + 1)  # for another, too, who was killed before it did
            if is_ours:
                return ticket

    def _move(self, expected: int, new: int) -> bool:
        """End a round, one way or the other; False when somebody else has."""
        if atomics()["compare_exchange_int"](address_of(self._word), expected, new) != expected:
            return False
        futex_wake(self._word, EVERYBODY)
        return True

    def _break(self, ours: int) -> bool:
        """Break our round; False when it is over instead."""
        return self._move(ours, ours | BROKEN) or _broken(atomics()["load_int_acquire"](address_of(self._word)), ours)

    def _died(self, turn: int) -> str:
        """Who has come to this round and died while it waited, in words; empty when nobody has."""
        if self._words[NAMESPACE // 8] != _namespace():
            return ""
        for place in range(self.parties):
            came = self._words[PLACES // 8 + place]
            if came >> 32 == turn % _WRAPS and came and dead(came & 0xFFFF_FFFF):
                return f"process {came & 0xFFFF_FFFF} died while it waited"
        return ""

    def _state(self) -> str:
        return "broken" if self.broken else f"{self.waiting} of {self.parties} wait"

    def __enter__(self) -> Barrier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _over(state: int, ours: int) -> bool:
    """Whether a state belongs to a round after ours; they wrap."""
    return 0 < ((state & ~BROKEN) - ours) % _WRAPS < _WRAPS // 2


def _broken(state: int, ours: int) -> bool:
    return bool(state & BROKEN) and not _over(state, ours)


def _open(state: int, ours: int) -> bool:
    """Whether our round is neither over nor broken."""
    return not state & BROKEN and not _over(state, ours)
