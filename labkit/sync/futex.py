"""Futex: futex(2), futex(7). A word that processes share, and the two calls with which they sleep on it and wake.

    wait(expected)     sleep until woken, unless the word is not `expected` any more: the kernel looks and falls asleep
                       in one step, so that a change just before is never missed
    wake(count)        wake so many of those that sleep

The word itself is changed with atomic instructions, and the kernel is asked only when somebody has to sleep or to be
woken. `Mutex` is what every lock is made of, after U. Drepper, "Futexes Are Tricky" (2011), his mutex2 of three states:

    0                    free
    tid                  held by this thread, nobody sleeps: taken and given back without a system call
    tid | FUTEX_WAITERS  held, and somebody may sleep: whoever gives it back has to wake one

Drepper's "held" is a 1; here it is the holder's thread id, as in the kernel's own robust futexes (get_robust_list(2)),
so that those who wait can see that the holder has died.

The word is in a page of memory without a name (memfd_create(2)), gone with its last user, or in a file with one.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from labkit.channels.base import DEFAULT_TIMEOUT, Waiter, whole
from labkit.libc import FUTEX_TID_MASK, FUTEX_WAITERS, SYSCALLS, failed, ffi, libc, timespec
from labkit.sync.interrupt import patiently
from labkit.sync.shared import Held, InPage, Page

FUTEX_WAIT, FUTEX_WAKE = 0, 1  # not PRIVATE: between processes
EVERYBODY = 2**31 - 1

_FUTEX, _NOTHING = SYSCALLS["futex"], ffi.NULL


class OwnerDied(OSError):
    """Who held the mutex has died: what it guards may be half changed. `mutex.recover()` takes it over.

    Attributes:
        holder: thread id of who held it.
    """

    def __init__(self, holder: int):
        super().__init__(
            errno.EOWNERDEAD,
            f"thread {holder} died while it held the mutex, and what it guards may be half changed: "
            "recover() takes the mutex over, to look and mend",
        )
        self.holder = holder


class Futex(InPage):
    """A 32-bit word, 0 to 4,294,967,295, that processes share, sleep on and change atomically.

    `with Futex() as futex:` closes it at the end.

    Args:
        value: the word at first.
        name: one word, to create it as a file that unrelated processes open with `Futex.open(name)`.

    Raises:
        ValueError: the value or the name is not allowed.
        FileExistsError: there is one of this name already.
    """

    kind = "futex"

    def __init__(self, value: int = 0, name: str | None = None):
        self.closed = True

        def prepare(page: Page) -> None:
            page.pointer("uint32_t *")[0] = value

        _word(value)
        self._make(name, prepare)

    def _live_in(self, page: Page, name: str | None) -> None:
        self._word = page.pointer("uint32_t *")
        super()._live_in(page, name)

    @property
    def value(self) -> int:
        """The word at this moment. Setting it is atomic and wakes nobody."""
        self._must_be_open()
        return int(atomics()["load_int_acquire"](address_of(self._word)))

    @value.setter
    def value(self, value: int) -> None:
        self.exchange(value)

    def exchange(self, value: int) -> int:
        """Set the word and return what it was, in one step that nobody can come between."""
        self._must_be_open()
        return int(atomics()["exchange_int"](address_of(self._word), _word(value)))

    def add(self, amount: int) -> int:
        """Add to the word, which wraps at 2**32, and return what it was, in one step."""
        self._must_be_open()
        return int(atomics()["add_int"](address_of(self._word), amount))

    def compare_exchange(self, expected: int, value: int) -> int:
        """Set the word if it is `expected`, and return what it was, in one step. It was set if that is `expected`."""
        self._must_be_open()
        return int(atomics()["compare_exchange_int"](address_of(self._word), _word(expected), _word(value)))

    def wait(self, expected: int, timeout: float | None = DEFAULT_TIMEOUT) -> bool:
        """Sleep until somebody calls `wake`, if the word is `expected`.

        Returns:
            Whether we slept: False when the word was something else. A sleeper may also wake for no reason: look again.

        Raises:
            TimeoutError: nobody has woken us within `timeout` seconds; 0 never waits, None waits for ever.
            ValueError: it would have to wait a negative time, or it is closed.
        """
        self._must_be_open()
        _word(expected)
        if self.value != expected:
            return False
        word = self._word
        doing = f"the futex stayed at {expected} and nobody woke us"
        sleep = partial(futex_wait, word, expected)
        return patiently("futex", sleep, Waiter(timeout), doing, gone=self._must_be_open) == 0

    def wake(self, count: int = 1) -> int:
        """Wake up to `count` of those that sleep; returns how many were woken."""
        self._must_be_open()
        if not 0 <= count <= EVERYBODY:
            raise ValueError(f"0 to {EVERYBODY:,} sleepers can be woken, not {count}")
        return futex_wake(self._word, count)

    def _state(self) -> str:
        return f"value {self.value}"

    def __enter__(self) -> Futex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Mutex(Held, InPage):
    """One thread of one process at a time holds it. `with mutex:` takes it and gives it back.

    A holder that dies, also by kill -9, is noticed: whoever waits, or comes later, gets OwnerDied.

    Args:
        name: one word, to create it as a file that unrelated processes open with `Mutex.open(name)`.

    Raises:
        ValueError: the name is not allowed.
        FileExistsError: there is one of this name already.
    """

    kind = "mutex"

    def __init__(self, name: str | None = None):
        def prepare(page: Page) -> None:
            # Thread ids mean something in one pid namespace only: pid_namespaces(7).
            page.pointer("uint64_t *", 8)[0] = _namespace()

        self._make(name, prepare)

    def _live_in(self, page: Page, name: str | None) -> None:
        self._word = page.pointer("uint32_t *")
        super()._live_in(page, name)

    @cached_property
    def _fast(self) -> Any:
        """What it does when nobody is in the way, compiled: Numba is loaded when it is first taken."""
        from labkit.sync.futex_entry import MutexWord

        return MutexWord(address_of(self._word), self._page)

    def acquire(self, timeout: float | None = DEFAULT_TIMEOUT) -> None:
        """Take it, waiting while somebody else holds it.

        Args:
            timeout: seconds to wait; 0 never waits, None waits for ever.

        Raises:
            TimeoutError: it stayed held.
            OwnerDied: who held it has died; we do not hold it.
            OSError: EDEADLK, this thread holds it already.
            ValueError: it would have to wait a negative time, or it is closed.
        """
        if self.closed:
            self._must_be_open()
        me = threading.get_native_id()
        found = self._fast.take(me)
        if found:
            self._wait(found, me, timeout)

    def _wait(self, found: int, me: int, timeout: float | None) -> None:
        """Take it, after somebody was found to hold it."""
        word, compare_exchange = self._word, atomics()["compare_exchange_int"]
        address = address_of(word)
        if found & FUTEX_TID_MASK == me:
            raise OSError(errno.EDEADLK, "this thread holds the mutex already and would wait for itself for ever")
        waiter = Waiter(timeout)

        def turn(left: float) -> int:
            """Take it, or say that somebody sleeps and sleep once; 0 when it was taken."""
            found = compare_exchange(address, 0, me | FUTEX_WAITERS)  # others may sleep: we cannot know
            if found and (found & FUTEX_WAITERS or compare_exchange(address, found, found | FUTEX_WAITERS) == found):
                if left:
                    futex_wait(word, found | FUTEX_WAITERS, left)
                found = compare_exchange(address, 0, me | FUTEX_WAITERS)
            ffi.errno = errno.EAGAIN
            return -1 if found else 0

        def look() -> object:
            self._must_be_open()
            return self._dead_holder()

        if patiently("futex", turn, waiter, "the mutex stayed held", gone=look) != 0:
            raise OwnerDied(self._dead_holder() or 0)

    def release(self) -> None:
        """Give it back, and wake one that waits.

        Raises:
            PermissionError: this thread does not hold it.
        """
        if self.closed:
            self._must_be_open()
        was = self._fast.give(threading.get_native_id())
        if was < 0:
            who = f"thread {self.holder} holds it" if self.holder else "nobody holds it"
            raise PermissionError(errno.EPERM, f"this thread cannot give the mutex back: {who}")
        if was & FUTEX_WAITERS:
            futex_wake(self._word, 1)

    @property
    def holder(self) -> int | None:
        """Thread id (the pid, in a process with one thread) of who holds it at this moment, None when nobody does."""
        self._must_be_open()
        return int(atomics()["load_int_acquire"](address_of(self._word)) & FUTEX_TID_MASK) or None

    def recover(self) -> None:
        """Take over from a holder that has died. Only one of those who try gets it.

        Raises:
            PermissionError: its holder is alive, or nobody holds it: acquire() is the way.
        """
        self._must_be_open()
        dead = self._dead_holder()
        compare_exchange, address = atomics()["compare_exchange_int"], address_of(self._word)
        mine = threading.get_native_id() | FUTEX_WAITERS
        if not dead or not any(compare_exchange(address, old, mine) == old for old in (dead, dead | FUTEX_WAITERS)):
            raise PermissionError(errno.EPERM, "nothing to recover: its holder is alive, or it is free: use acquire()")

    def _dead_holder(self) -> int | None:
        """The thread id of a holder that has died; None when it lives, when nobody holds it, or when we cannot know."""
        found = atomics()["load_int_acquire"](address_of(self._word)) & FUTEX_TID_MASK
        if not found or not dead(found) or self._page.pointer("uint64_t *", 8)[0] != _namespace():
            return None
        # Still the same: who gives it back and ends meanwhile did not die with it.
        return int(found) if atomics()["load_int_acquire"](address_of(self._word)) & FUTEX_TID_MASK == found else None

    def _state(self) -> str:
        return f"held by thread {self.holder}" if self.holder else "free"


def futex_wait(word: Any, expected: int, seconds: float) -> int:
    """futex(2) FUTEX_WAIT: 0 when woken, 1 when the word is not `expected`, else -1 and errno."""
    result = libc.syscall(
        _FUTEX,
        word,
        ffi.cast("long", FUTEX_WAIT),
        ffi.cast("long", expected),
        timespec(seconds),
        _NOTHING,
        ffi.cast("long", 0),
    )
    return 1 if result == -1 and ffi.errno == errno.EAGAIN else int(result)


def futex_wake(word: Any, count: int) -> int:
    """futex(2) FUTEX_WAKE: how many were woken."""
    woken = libc.syscall(
        _FUTEX,
        word,
        ffi.cast("long", FUTEX_WAKE),
        ffi.cast("long", count),
        _NOTHING,
        _NOTHING,
        ffi.cast("long", 0),
    )
    if woken < 0:
        raise failed("futex(FUTEX_WAKE)")
    return int(woken)


def dead(tid: int) -> bool:
    """Whether a thread has ended; a zombie that nobody has waited for has."""
    try:
        return Path(f"/proc/{tid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return os.path.exists("/proc/self/stat")  # no /proc at all: we cannot know
    except ProcessLookupError:
        return True
    except OSError:
        return False


def address_of(pointer: Any) -> int:
    return int(ffi.cast("uintptr_t", pointer))


def _word(value: int) -> int:
    if value.__class__ is not int:
        value = whole(value, "a futex")
    if not 0 <= value < 2**32:
        raise ValueError(f"a futex is 32 bits, 0 to 4,294,967,295, not {value}")
    return value


def _namespace() -> int:
    """The pid namespace of this process, as a number; 0 where it cannot be known."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


@cache
def atomics() -> dict[str, Callable[..., int]]:
    """The atomic instructions for calling from Python: address and integers in, one out.

    Numba, which takes half a second to load, is loaded when the first one is needed.
    """
    from labkit.sync.futex_entry import compiled_atomics

    return compiled_atomics()
