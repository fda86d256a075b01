"""A lane: a command that sees no process, System V object, POSIX queue, /dev/shm or network port but its own.

    python tests/lane.py COMMAND [ARGUMENT ...]

Several pytest sessions that each run in a lane run side by side although every one of them watches its whole machine:
namespaces(7). It takes root, or a kernel that lets anybody make user namespaces. All else is as outside: user, files,
limits, number of processors.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

REFUSED = 125
"""Exit status when the kernel does not allow it, as of env(1) and chroot(1): no command has run."""

NEW_NS, NEW_IPC, NEW_USER, NEW_PID, NEW_NET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 0x4000, 1 << 18
PR_SET_PDEATHSIG = 1
SIOCSIFFLAGS, IFF_UP = 0x8914, 1

libc = ctypes.CDLL(None, use_errno=True)


@functools.cache
def possible() -> bool:
    """Whether this machine and this user can have lanes."""
    return subprocess.run([sys.executable, __file__, "true"], capture_output=True, check=False).returncode == 0


def _checked(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _mount(kind: str, folder: str, flags: int, options: str = "") -> None:
    done = libc.mount(kind.encode(), folder.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _checked(done, f"mount {kind} on {folder}")


def _unshare() -> None:
    """Leaves the namespaces of the machine; the processes made from now on are in a new PID namespace."""
    spaces = NEW_NS | NEW_IPC | NEW_PID | NEW_NET
    if libc.unshare(spaces) == 0:
        return
    user, group = os.geteuid(), os.getegid()
    _checked(libc.unshare(spaces | NEW_USER), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def _furnish() -> None:
    """Gives the new namespaces what the old ones had, by the same names and with the same room."""
    safe = MS_NOSUID | MS_NODEV | MS_NOEXEC
    shm = os.statvfs("/dev/shm")
    _mount("none", "/", MS_REC | MS_PRIVATE)
    _mount("proc", "/proc", safe)
    _mount("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, f"mode=1777,size={shm.f_blocks * shm.f_frsize}")
    if os.path.ismount("/dev/mqueue"):
        _mount("mqueue", "/dev/mqueue", safe)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))


def _be_init(command: list[str]) -> int:
    """Process 1 of the lane: starts the command, buries orphans, and takes everybody along when it ends."""
    _checked(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL), "prctl")
    try:
        _furnish()
    except OSError as error:
        print(f"lane: {error}", file=sys.stderr)
        return REFUSED
    pid = os.fork()
    if pid == 0:
        os.setsid()  # its session and its process group have numbers in here
        for number in signal.SIGPIPE, signal.SIGXFSZ:  # Python ignores them
            signal.signal(number, signal.SIG_DFL)
        os.execvp(command[0], command)
    while True:
        ended, status = os.wait()
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def main(command: list[str]) -> int:
    try:
        _unshare()
    except OSError as error:
        print(f"lane: {error}", file=sys.stderr)
        return REFUSED
    with tempfile.TemporaryDirectory(prefix="lane-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o1777)
        os.environ["TMPDIR"] = folder
        pid = os.fork()
        if pid == 0:
            os._exit(_be_init(command))
        _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
