"""labkit.libc has the layouts of this machine's C library, and its errors say which call failed."""

import errno
import os
import shutil
import subprocess
import sys
import threading

import pytest

from labkit.libc import SYSCALLS, failed, ffi, libc

LAYOUT = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <semaphore.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/sem.h>
#include <sys/syscall.h>
#include <time.h>
int main(void) {
    printf("%zu %zu %zu ", sizeof(sem_t), sizeof(sigset_t), sizeof(siginfo_t));
    printf("%zu %zu %zu ", sizeof(struct sigaction), sizeof(struct sigevent), sizeof(struct itimerspec));
    printf("%zu %zu %zu ", sizeof(struct flock), sizeof(struct sembuf), sizeof(timer_t));
    printf("%zu %zu ", offsetof(siginfo_t, si_pid), offsetof(siginfo_t, si_value));
    printf("%zu %zu ", offsetof(struct sigaction, sa_mask), offsetof(struct sigaction, sa_flags));
    printf("%zu %zu ", offsetof(struct sigevent, sigev_signo), offsetof(struct sigevent, sigev_notify));
    %s
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler to ask")
def test_structures_and_numbers_are_those_that_the_c_compiler_says(tmp_path):
    source, program = tmp_path / "layout.c", tmp_path / "layout"
    numbers = " ".join(f'printf("%d ", SYS_{name});' for name in SYSCALLS)
    source.write_text(LAYOUT.replace("%s", numbers))
    subprocess.run(["cc", source, "-o", program], check=True)
    said = [int(word) for word in subprocess.run([program], capture_output=True, check=True).stdout.split()]
    types = ["sem_t", "sigset_t", "siginfo_t", "struct sigaction", "struct sigevent", "struct itimerspec"]
    types += ["struct flock", "struct sembuf", "timer_t"]
    fields = [
        ("siginfo_t", "si_pid"),
        ("siginfo_t", "si_value"),
        ("struct sigaction", "sa_mask"),
        ("struct sigaction", "sa_flags"),
        ("struct sigevent", "sigev_signo"),
        ("struct sigevent", "sigev_notify"),
    ]
    ours = [*map(ffi.sizeof, types), *(ffi.offsetof(*field) for field in fields), *SYSCALLS.values()]
    assert ours == said


QUEUED = """
import errno, os, signal
from labkit.libc import ffi, libc, timespec

number = signal.SIGRTMIN + 1
wanted, information = ffi.new("sigset_t *"), ffi.new("siginfo_t *")
libc.sigemptyset(wanted)
libc.sigaddset(wanted, number)
signal.pthread_sigmask(signal.SIG_BLOCK, {number})
assert libc.sigtimedwait(wanted, information, timespec(0)) == -1
assert ffi.errno == errno.EAGAIN
for value in (7, -1):
    assert libc.sigqueue(os.getpid(), number, value) == 0
for value in (7, -1):
    assert libc.sigtimedwait(wanted, information, timespec(1)) == number
    assert (information.si_pid, information.si_uid) == (os.getpid(), os.getuid())
    assert int(ffi.cast("int", information.si_value)) == value
"""


def test_a_signal_is_queued_with_its_value_and_taken_with_its_sender():
    # In a process with one thread: every thread must block it, or the signal ends the process.
    subprocess.run([sys.executable, "-c", QUEUED], check=True)


def test_the_futex_call_has_the_number_of_this_machine():
    word = ffi.new("int *", 5)
    FUTEX_WAIT = 0
    assert libc.syscall(SYSCALLS["futex"], word, ffi.cast("int", FUTEX_WAIT), ffi.cast("int", 6), ffi.NULL) == -1
    assert ffi.errno == errno.EAGAIN, "the word is 5, not 6"


def test_an_error_says_which_call_failed_and_what_to_do_and_is_of_pythons_own_class():
    assert libc.open(b"/nowhere/at/all", os.O_RDONLY) == -1
    error = failed("open", "make it first")
    assert isinstance(error, FileNotFoundError)
    assert "open: No such file or directory; make it first" in str(error)
    assert failed("semop", number=errno.EACCES).errno == errno.EACCES


def test_errno_belongs_to_the_thread_that_made_the_call():
    libc.open(b"/nowhere/at/all", os.O_RDONLY)
    other = threading.Thread(target=lambda: libc.mq_send(-1, b"", 0, 0))
    other.start()
    other.join()
    assert ffi.errno == errno.ENOENT


def test_importing_it_is_cheap_and_loads_nothing_else_of_labkit():
    program = "import sys, labkit.libc; print(*sorted(m for m in sys.modules if m.startswith(('labkit.', 'numpy'))))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["labkit.libc"]
