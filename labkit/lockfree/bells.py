"""Waiting for what another process publishes, at no cost for the one that publishes while nobody waits.

A bell is two words in shared memory:

    offset  written by          holds
    0       both                bits: SLEEPS, somebody is about to sleep; POLLS, somebody is about to poll a descriptor;
                                FENCED, somebody here cannot use membarrier(2)
    8       who rings           TICKET: how often it was rung for sleepers, a futex(2) of 32 bits

Who waits            ticket = seen(bell); arm(bell, SLEEPS); look again; nothing: sleep(bell, ticket, nanoseconds)
Who publishes        store_release(what it publishes); ring(bell, descriptor)

Edge S. The one stores its bit and then looks at the queue; the other stores into the queue and then looks at the bit.
At least one must see the other (Dekker), for which both need a full fence between their store and their load. The
fence of the one that publishes would cost as much as the rest of sending. So the one that waits runs membarrier(2)
for both: when it returns, every running thread of the registered processes has been through a full fence. Whoever
publishes then needs only to keep the compiler from exchanging its two accesses. A process that could not register
(an old Linux, a sandbox) sets FENCED for all, and from then on everybody who rings fences.

The first to ring wipes the bits, and wakes all that sleep; who finds nothing arms the bell again. There is no count of
sleepers, which one that is killed would leave wrong. One that is killed between wiping the bits and waking leaves
others asleep: therefore nobody sleeps longer than LOOK_AGAIN before it looks by itself.

Whether a process has died is asked of the Linux kernel: each has locked a byte of its own (labkit.lockfree.segment),
and the lock is gone exactly when it is. F_OFD_GETLK, fcntl(2).
"""

from __future__ import annotations

from numba import njit, types

from labkit.libc import SYSCALLS
from labkit.lockfree.atomics import (
    add_int,
    compiler_fence,
    fence,
    keep_bits,
    load_int_acquire,
    load_relaxed,
    on_stack,
    set_bits,
    store_relaxed,
)

WAITERS, TICKET = 0, 8
SLEEPS, POLLS, FENCED = 1, 2, 4
LOOK_AGAIN_NS = 100_000_000
"""Nobody sleeps longer than this many nanoseconds without looking by itself, and at who has died."""

# What a process knows of a segment: 64-bit words of private memory, by byte offset. All its builtins share them.
ME = 0  # our participant number; 0: we have none yet (after fork, for instance)
LOCKS = 8  # the descriptor by which we see others' locks
ITEMS_BELL, ROOM_BELL = 16, 24  # descriptors that wake who polls
HEADER = 32  # address of the segment
PRIVATE_WORDS = 8

PERSON_LOCK = 1 << 32
"""Participant n has a lock on byte PERSON_LOCK + n: far beyond the end of every segment, as fcntl(2) allows."""
ROLE_LOCK = PERSON_LOCK + 512
"""Whoever has role r has a lock on byte ROLE_LOCK + r."""
ROLES = 384
"""Where in the header of a segment the pids of those are who last took the roles."""

MEMBARRIER_GLOBAL_EXPEDITED, MEMBARRIER_REGISTER = 2, 4
FUTEX_WAIT, FUTEX_WAKE, EVERYBODY = 0, 1, 0x7FFF_FFFF
F_OFD_GETLK, F_OFD_SETLK, F_WRLCK, F_UNLCK = 36, 37, 1, 2

_MEMBARRIER, _FUTEX = SYSCALLS["membarrier"], SYSCALLS["futex"]
_WORD = types.int64
_syscall = types.ExternalFunction("syscall", _WORD(_WORD, _WORD, _WORD, _WORD, _WORD, _WORD, _WORD))
_fcntl = types.ExternalFunction("fcntl", types.int32(types.int32, types.int32, _WORD))
_getpid = types.ExternalFunction("getpid", types.int32())
_write = types.ExternalFunction("write", _WORD(types.int32, _WORD, _WORD))


@njit(forceinline=True)
def ring(bell, descriptor):
    """After publishing (or releasing): wake who waits for it. One load when nobody does.

    Args:
        bell: address of the bell.
        descriptor: the eventfd of who polls, in this process.
    """
    compiler_fence()  # edge S: the processor's part is done by who waits
    if load_relaxed(bell + WAITERS) != 0:
        _wake(bell, descriptor)


@njit
def _wake(bell, descriptor):
    if load_relaxed(bell + WAITERS) & FENCED:
        fence()  # edge S, where somebody cannot do our part
    if load_relaxed(bell + WAITERS) & (SLEEPS | POLLS):
        bits = keep_bits(bell + WAITERS, ~(SLEEPS | POLLS))
        if bits & SLEEPS:
            add_int(bell + TICKET, 1)
            _syscall(_FUTEX, bell + TICKET, FUTEX_WAKE, EVERYBODY, 0, 0, 0)
        if bits & POLLS:
            one = on_stack()
            store_relaxed(one, 1)
            _write(descriptor, one, 8)  # never blocks: what is full has been rung already


@njit
def seen(bell):
    """The ticket with which to sleep. Take it before arming."""
    return load_int_acquire(bell + TICKET)


@njit
def arm(bell, bit):
    """Say that we are about to sleep (SLEEPS) or to poll (POLLS). Look again afterwards, and only then do so."""
    set_bits(bell + WAITERS, bit)
    fence()
    _syscall(_MEMBARRIER, MEMBARRIER_GLOBAL_EXPEDITED, 0, 0, 0, 0, 0)  # edge S: the others' part


@njit
def sleep(bell, ticket, nanoseconds):
    """Sleep until somebody rings, for LOOK_AGAIN_NS or `nanoseconds` at most, or until a signal comes: futex(2).

    Call it without the GIL. It tells nothing: look again.
    """
    time = on_stack()
    store_relaxed(time, 0)
    store_relaxed(time + 8, max(0, min(nanoseconds, LOOK_AGAIN_NS)))
    _syscall(_FUTEX, bell + TICKET, FUTEX_WAIT, ticket, time, 0, 0)


@njit
def can_fence_others():
    """Whether this process can do, and let others do, its part of edge S by membarrier(2). It registers."""
    if _syscall(_MEMBARRIER, MEMBARRIER_REGISTER, 0, 0, 0, 0, 0) != 0:
        return False
    return _syscall(_MEMBARRIER, MEMBARRIER_GLOBAL_EXPEDITED, 0, 0, 0, 0, 0) == 0


@njit
def is_dead(private, number):
    """Proof that the process with this participant number has died: its lock is gone. Never true of ourselves."""
    if number == load_relaxed(private + ME) or number <= 0:
        return False
    return _is_unlocked(private, PERSON_LOCK + number)


@njit
def is_role_gone(private, role):
    """Proof that somebody has had this role, and nobody but us has it: labkit.lockfree.segment."""
    if load_relaxed(load_relaxed(private + HEADER) + ROLES + role * 8) == 0:
        return False
    return _is_unlocked(private, ROLE_LOCK + role)


@njit
def take_role(private, role):
    """Take a role, as Segment.take_role does: False when another living process has it."""
    lock = _lock_of(on_stack(), ROLE_LOCK + role)
    if _fcntl(load_relaxed(private + LOCKS), F_OFD_SETLK, lock) != 0:
        return False
    store_relaxed(load_relaxed(private + HEADER) + ROLES + role * 8, types.int64(_getpid()))
    return True


@njit
def _is_unlocked(private, byte):
    """Whether no open file description but ours has a lock on this byte."""
    lock = _lock_of(on_stack(), byte)
    if _fcntl(load_relaxed(private + LOCKS), F_OFD_GETLK, lock) != 0:
        return False  # no proof
    return load_relaxed(lock) & 0xFFFF == F_UNLCK


@njit
def _lock_of(lock, byte):
    """Fill in a struct flock for one byte: short type, short whence, off_t start, off_t length, pid_t pid."""
    store_relaxed(lock, F_WRLCK)
    store_relaxed(lock + 8, byte)
    store_relaxed(lock + 16, 1)
    store_relaxed(lock + 24, 0)
    return lock
