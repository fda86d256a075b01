"""The calls of the C library that Python's own modules lack: semaphores, futexes, timers, queued signals, System V.

    from labkit.libc import failed, ffi, libc

    if libc.sem_post(semaphore) != 0:
        raise failed("sem_post")

They are called through cffi, which keeps errno for each thread and releases the GIL during every call. Layouts are
those of 64-bit Linux with glibc or musl, where x86-64 and AArch64 agree (64-bit RISC-V too). Python's own wrappers
repeat a call that a signal interrupted (PEP 475); these return -1 with EINTR, and `labkit.sync.interrupt` needs that.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from cffi import FFI

if sys.maxsize < 2**32 or sys.platform != "linux":
    raise ImportError("labkit needs a 64-bit Python on Linux: the layouts of the C library's structures are those")

ffi = FFI()
ffi.cdef(
    """
    typedef int pid_t;
    typedef unsigned int uid_t, mode_t;
    typedef int key_t, clockid_t, mqd_t;
    typedef void *timer_t;

    struct timespec { long tv_sec; long tv_nsec; };
    struct itimerspec { struct timespec it_interval; struct timespec it_value; };

    /* Semaphores: sem_overview(7) */
    typedef struct { long words[4]; } sem_t;
    sem_t *sem_open(const char *name, int flags, ...);
    int sem_close(sem_t *semaphore);
    int sem_unlink(const char *name);
    int sem_init(sem_t *semaphore, int shared, unsigned int value);
    int sem_destroy(sem_t *semaphore);
    int sem_wait(sem_t *semaphore);
    int sem_trywait(sem_t *semaphore);
    int sem_timedwait(sem_t *semaphore, const struct timespec *deadline);
    int sem_clockwait(sem_t *semaphore, clockid_t clock, const struct timespec *deadline);
    int sem_post(sem_t *semaphore);
    int sem_getvalue(sem_t *semaphore, int *value);

    /* System V: sysvipc(7) */
    struct sembuf { unsigned short sem_num; short sem_op; short sem_flg; };
    int semget(key_t key, int count, int flags);
    int semop(int id, struct sembuf *operations, size_t count);
    int semtimedop(int id, struct sembuf *operations, size_t count, const struct timespec *timeout);
    int semctl(int id, int index, int command, ...);
    int msgget(key_t key, int flags);
    int msgsnd(int id, const void *message, size_t size, int flags);
    ssize_t msgrcv(int id, void *message, size_t size, long type, int flags);
    int msgctl(int id, int command, void *state);
    int shmget(key_t key, size_t size, int flags);
    void *shmat(int id, const void *address, int flags);
    int shmdt(const void *address);
    int shmctl(int id, int command, void *state);

    /* Signals: signal(7). A sigval, a union of an int and a pointer, travels as one 64-bit integer. */
    typedef struct { unsigned long words[16]; } sigset_t;
    typedef struct {
        int si_signo; int si_errno; int si_code; int _filler;
        pid_t si_pid; uid_t si_uid;      /* of a timer: its number and how often it overran */
        intptr_t si_value;
        char _rest[96];
    } siginfo_t;
    struct sigaction { void *sa_handler; sigset_t sa_mask; int sa_flags; void *sa_restorer; };
    int sigaction(int number, const struct sigaction *action, struct sigaction *before);
    int sigqueue(pid_t pid, int number, intptr_t value);
    int sigemptyset(sigset_t *set);
    int sigaddset(sigset_t *set, int number);
    int sigwaitinfo(const sigset_t *set, siginfo_t *information);
    int sigtimedwait(const sigset_t *set, siginfo_t *information, const struct timespec *timeout);
    int pthread_sigmask(int how, const sigset_t *set, sigset_t *before);
    int signalfd(int fd, const sigset_t *set, int flags);

    int abs(int number);                 /* a handler that does nothing */

    /* Timers: timer_create(2), sigevent(3type) */
    struct sigevent { intptr_t sigev_value; int sigev_signo; int sigev_notify; int sigev_thread_id; int _rest[11]; };
    int timer_create(clockid_t clock, struct sigevent *event, timer_t *timer);
    int timer_settime(timer_t timer, int flags, const struct itimerspec *when, struct itimerspec *before);
    int timer_delete(timer_t timer);

    /* POSIX message queues: mq_overview(7) */
    int mq_send(mqd_t queue, const char *message, size_t size, int priority);
    ssize_t mq_receive(mqd_t queue, char *room, size_t size, unsigned int *priority);
    int mq_notify(mqd_t queue, const struct sigevent *event);

    /* Files, without Python's repeating after a signal */
    struct flock { short l_type; short l_whence; long l_start; long l_len; pid_t l_pid; };
    int open(const char *path, int flags, ...);
    int fcntl(int fd, int command, ...);
    int flock(int fd, int operation);
    int setns(int fd, int kind);         /* namespaces(7) */

    void *mmap(void *address, size_t size, int protection, int flags, int fd, long offset);
    int munmap(void *address, size_t size);
    int madvise(void *address, size_t size, int advice);

    long syscall(long number, ...);
    """
)

libc: Any = ffi.dlopen(None)
if not hasattr(libc, "mq_send"):  # before glibc 2.34 some of these were in a library beside it, which uses all others
    libc = ffi.dlopen("librt.so.1")

HAS_SEM_CLOCKWAIT = hasattr(libc, "sem_clockwait")
"""glibc 2.30 and later can wait for a semaphore on the monotonic clock; musl cannot."""

SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD_ID = 0, 1, 4

FUTEX_TID_MASK, FUTEX_WAITERS = 0x3FFF_FFFF, 0x8000_0000
"""The word of a mutex, linux/futex.h: the bits of its holder's thread id, and the one of those that may sleep."""

_NUMBERS = {  # x86-64 has its own, newer machines share one list: syscalls(2)
    "futex": (202, 98),
    "membarrier": (324, 283),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "tgkill": (234, 131),
}
SYSCALLS = {name: numbers[os.uname().machine != "x86_64"] for name, numbers in _NUMBERS.items()}
"""Numbers of system calls for which the C library has no function, for `libc.syscall`."""


def failed(call: str, advice: str = "", number: int | None = None) -> OSError:
    """What went wrong in the call just made, by its errno: an OSError, or the subclass that Python has for it.

    Args:
        call: the name of the call, for the reader.
        advice: what to do about it.
        number: the errno, when it has been read already.
    """
    number = ffi.errno if number is None else number
    return OSError(number, f"{call}: {os.strerror(number)}" + (f"; {advice}" if advice else ""))


def timespec(seconds: float) -> Any:
    """A `struct timespec *` of so many seconds."""
    whole = int(seconds)
    return ffi.new("struct timespec *", (whole, int((seconds - whole) * 1e9)))
