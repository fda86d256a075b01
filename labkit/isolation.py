"""Namespaces that a reader makes, enters and leaves: namespaces(7), ipc_namespaces(7), unshare(2), setns(2).

    with namespace("ipc", "net") as ns:
        job = launch(f, inside=ns)              # f sees the System V objects, queues and ports of ns, and no others

    this process                    holder (a small Python)              launched processes
    leash, a pipe       ----->      unshare(2), mount(2);                setns(2) through /proc/<holder>/ns/...,
    nothing is ever sent            then waits for the end of the leash  for "pid" one more fork(2)

A namespace lives as long as a process is in it, or has it open. The holder keeps it while nobody else does, and ends
when the leash closes: when the `with` is left, or its creator has ended, killed with SIGKILL or not. So nothing of it
outlives its last process. In a PID namespace the holder is process 1, and the Linux kernel kills all others with it:
pid_namespaces(7).

Nothing outside changes: what is mounted, is mounted in the holder's mount namespace, from which nothing propagates.

Making a namespace takes CAP_SYS_ADMIN. Who has not got it makes a user namespace with it, in which everybody has:
user_namespaces(7). Its one user is the same inside and outside.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from labkit import machine
from labkit.channels.base import arrived, runtime_dir, travelling
from labkit.launch import Job, launch
from labkit.libc import failed, libc


@dataclass(frozen=True)
class Kind:
    """A kind of namespace: what it is called in /proc/PID/ns, its flag in sched.h, what it isolates, its page."""

    file: str
    flag: int
    isolates: str
    manual: str


# In the order in which they are entered: in a user namespace first, which grants the rest; file names change last.
KINDS = {
    "user": Kind("user", 0x1000_0000, "user and group ids, capabilities", "user_namespaces(7)"),
    "ipc": Kind("ipc", 0x0800_0000, "System V objects, POSIX message queues", "ipc_namespaces(7)"),
    "uts": Kind("uts", 0x0400_0000, "host and domain name", "uts_namespaces(7)"),
    "net": Kind("net", 0x4000_0000, "network devices, ports, abstract sockets", "network_namespaces(7)"),
    "pid": Kind("pid", 0x2000_0000, "process ids", "pid_namespaces(7)"),
    "mount": Kind("mnt", 0x0002_0000, "what is mounted where", "mount_namespaces(7)"),
}

COMMON = tuple(kind for kind in KINDS if kind != "user")
"""What a container has of its own, mostly."""

START_TIMEOUT = 20.0
CAP_SYS_ADMIN = 1 << 21

# The holder. -I -S, so that it is there in 20 ms: it knows nothing of labkit. It prints a line for each thing done.
_HOLDER = """
import ctypes, fcntl, os, signal, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
flags, uid, gid, outer, children_only, *folders = sys.argv[1:]
flags = int(flags)
USER, PID, MOUNT, NET = 0x10000000, 0x20000000, 0x00020000, 0x40000000

def must(what, result):
    if result < 0:
        print('refused', ctypes.get_errno(), what, flush=True)
        os._exit(1)

def write(path, text):
    try:
        with open(path, 'w') as file:
            file.write(text)
    except OSError as reason:
        print('refused', reason.errno, 'write ' + path.rpartition('/')[2], flush=True)
        os._exit(1)

def mount(kind, folder, flags=0):
    return libc.mount(kind.encode(), folder.encode(), kind.encode(), flags, None)

signal.signal(signal.SIGINT, signal.SIG_IGN)   # Ctrl-C in a terminal is meant for the creator
for fd in filter(None, outer.split(',')):
    must('setns', libc.setns(int(fd), 0))
if flags & USER:
    must('unshare user', libc.unshare(USER))
    write('/proc/self/setgroups', 'deny')
    write('/proc/self/uid_map', '%s %s 1' % (uid, uid))
    write('/proc/self/gid_map', '%s %s 1' % (gid, gid))
if flags & ~USER:
    must('unshare', libc.unshare(flags & ~USER))
if flags & PID or children_only:
    child = os.fork()
    if child:
        os.close(0)
        print('pid', child, flush=True)
        os.waitpid(child, 0)
        os._exit(0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)   # process 1 inherits orphans; so they leave no zombies
else:
    print('pid', os.getpid(), flush=True)
if flags & MOUNT:
    must('mount private', libc.mount(b'none', b'/', None, 0x44000, None))   # MS_REC | MS_PRIVATE
    for folder in folders:
        mode = os.stat(folder).st_mode & 0o7777
        must('mount ' + folder, mount('tmpfs', folder))
        os.chmod(folder, mode)
    if flags & PID and mount('proc', '/proc') < 0:
        print('without proc', flush=True)
if flags & NET:
    with socket.socket() as any_socket:
        request = struct.pack('16sh14x', b'lo', 0x41)   # IFF_UP | IFF_RUNNING
        fcntl.ioctl(any_socket, 0x8914, request)   # SIOCSIFFLAGS, netdevice(7)
print('ready', flush=True)
sys.stdin.buffer.read()
"""


class Namespace:
    """Namespaces of one or more kinds, made together. Use `namespace`.

    Attributes:
        kinds: of them, in the order in which they are entered; "user" is among them where it had to be.
        pid: of the holder, as seen from outside. nsenter(1) takes it: `nsenter --target PID --ipc`.
        paths: /proc/PID/ns/... of each kind, as nsenter(1) and setns(2) take them.
    """

    def __init__(self, kinds: Sequence[str], inside: Namespace | None = None):
        self.closed = True
        self.kinds = _sorted(kinds)
        folders = [str(folder) for folder in ("/dev/shm", runtime_dir()) if os.path.isdir(folder)]
        flags = sum(KINDS[kind].flag for kind in self.kinds)
        outer = inside._open_fds() if inside else {}
        command = [sys.executable, "-I", "-S", "-c", _HOLDER, str(flags), str(os.geteuid()), str(os.getegid())]
        command += [",".join(map(str, outer.values())), "pid" if "pid" in outer else "", *folders]
        self._fds: dict[str, int] = {}
        self._holder = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=list(outer.values())
        )
        self._finalizer = weakref.finalize(self, _end, self._holder, self._fds)
        try:
            self.pid, self.fresh_proc = self._begun()
            if inside:  # entering it means entering both
                self.kinds = _sorted({*self.kinds, *inside.kinds})
            self.paths = {kind: Path(f"/proc/{self.pid}/ns/{KINDS[kind].file}") for kind in self.kinds}
            for kind, path in self.paths.items():
                self._fds[kind] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            self._finalizer()
            raise
        self.closed = False

    def _begun(self) -> tuple[int, bool]:
        """Pid of the holder, and whether /proc shows the processes of a new PID namespace."""
        assert self._holder.stdout is not None
        pid, ready, fresh = 0, False, "pid" in self.kinds and "mount" in self.kinds
        for line in self._holder.stdout:
            what, _, rest = line.rstrip("\n").partition(" ")
            if what == "pid":
                pid = int(rest)
            elif what == "without":
                fresh = False
            elif what == "refused":
                number, _, call = rest.partition(" ")
                raise _refusal(int(number), call, self.kinds)
            elif what == "ready":
                ready = True
            if pid and ready:  # in a PID namespace two processes say so
                return pid, fresh
        raise OSError(errno.EIO, f"the holder of the namespaces ended (exit status {self._holder.wait()})")

    # --- inside -----------------------------------------------------------------------------------------------

    def launch(self, f: Callable[..., Any], *args: Any, name: str | None = None) -> Job:
        """launch(f, *args, inside=self): a process in these namespaces."""
        return launch(f, *args, name=name, inside=self)

    def run(self, f: Callable[..., Any], *args: Any, timeout: float = 60.0) -> Any:
        """What f(*args) returns, called by a process in these namespaces."""
        return self.launch(f, *args).wait(timeout)

    @contextlib.contextmanager
    def enter(self) -> Iterator[Self]:
        """Have the calling thread itself in these namespaces for the length of a `with`: setns(2).

            with ns.enter():
                queue = sysv_ipc.MessageQueue(77)

        Raises:
            ValueError: there is a kind among them that a thread cannot enter and leave again: "user" and "mount" want
                a process with a single thread, "pid" is for children only.
            PermissionError: it takes CAP_SYS_ADMIN, also to come back.
        """
        self._must_be_open()
        if never := [kind for kind in self.kinds if kind in ("user", "mount", "pid")]:
            raise ValueError(
                f"a thread cannot enter and leave a {never[0]} namespace (setns(2)): use launch(f, inside=ns), "
                "or ns.run(f), which start a process in it"
            )
        back = {kind: os.open(f"/proc/thread-self/ns/{KINDS[kind].file}", os.O_RDONLY) for kind in self.kinds}
        with _closing(back.values()):
            try:
                for fd in self._fds.values():
                    _setns(fd)
                yield self
            finally:
                for fd in back.values():
                    _setns(fd)

    def processes(self) -> list[int]:
        """Pids, as seen from here, of the other processes that are in all of these namespaces, without the holder."""
        self._must_be_open()
        wanted = {kind: os.fstat(fd).st_ino for kind, fd in self._fds.items()}
        return [pid for pid in _pids() if pid not in (self.pid, self._holder.pid, os.getpid()) and _is_in(pid, wanted)]

    # --- ending -----------------------------------------------------------------------------------------------

    def close(self, grace: float = 1.0) -> None:
        """Give it up, and end what is still in it: SIGTERM, and SIGKILL after `grace` seconds.

        Then the Linux kernel removes the namespaces, with their System V objects, queues, mounts and devices.
        """
        if self.closed:
            return
        until = time.monotonic() + grace
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
            while self.processes() and time.monotonic() < until:
                time.sleep(0.01)
            until += 2.0
        self.closed = True
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"held by process {self.pid}"
        return f"<namespaces {', '.join(self.kinds)}, {state}>"

    def _must_be_open(self) -> None:
        if self.closed:
            raise ValueError("these namespaces are closed: they are gone when the `with` is left")

    def _open_fds(self) -> dict[str, int]:
        self._must_be_open()
        return self._fds

    def __reduce__(self) -> Any:
        return _Door, ({kind: travelling(fd) for kind, fd in self._open_fds().items()},)


def wire(a: Namespace, b: Namespace) -> tuple[str, str]:
    """Join two network namespaces by a cable, a pair of virtual Ethernet devices, veth(4): as two hosts are.

        with namespace("net") as a, namespace("net", inside=a) as b:
            address_a, address_b = wire(a, b)

    The cable goes with the first of the two. Without privileges b is made inside a, so that the same user namespace
    owns both.

    Returns:
        the addresses, 10.77.0.1 for a and 10.77.0.2 for b, both on a device called eth0.

    Raises:
        OSError: it is refused, or there is an eth0 already.
    """
    addresses = "10.77.0.1", "10.77.0.2"
    a.run(_make_cable, b.pid)
    for ns, address in zip((a, b), addresses, strict=True):
        ns.run(_plug_in, address)
    return addresses


def _make_cable(other: int) -> None:
    """Two devices called eth0, one here, one in the network namespace of the process `other`: rtnetlink(7)."""

    def attribute(kind: int, value: bytes) -> bytes:
        return struct.pack("HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)

    newlink, request, acknowledge, exclusive, create = 16, 0x1, 0x4, 0x200, 0x400
    ifname, linkinfo, net_ns_pid, info_kind, info_data, veth_peer = 3, 18, 19, 1, 2, 1
    device = bytes(16)  # struct ifinfomsg
    name = attribute(ifname, b"eth0\0")
    peer = attribute(veth_peer, device + name + attribute(net_ns_pid, struct.pack("I", other)))
    veth = attribute(linkinfo, attribute(info_kind, b"veth\0") + attribute(info_data, peer))
    body = device + name + veth
    header = struct.pack("IHHII", 16 + len(body), newlink, request | acknowledge | exclusive | create, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as kernel:
        kernel.send(header + body)
        number = -struct.unpack_from("i", kernel.recv(4096), 16)[0]
    if number:
        raise OSError(number, f"veth: {os.strerror(number)}; it takes CAP_NET_ADMIN in the one that owns both")


def _plug_in(address: str) -> None:
    """Give eth0 an address of a network of 256, and bring it up: netdevice(7)."""
    device = struct.pack("16s", b"eth0")
    with socket.socket() as any_socket:
        for request, what in ((0x8916, address), (0x891C, "255.255.255.0")):  # SIOCSIFADDR, SIOCSIFNETMASK
            inet = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(what))
            fcntl.ioctl(any_socket, request, device + inet)
        fcntl.ioctl(any_socket, 0x8914, device + struct.pack("H14x", 0x41))  # SIOCSIFFLAGS: IFF_UP | IFF_RUNNING


class _Door:
    """Namespaces as they arrive in a launched process: to be gone through once, for good."""

    def __init__(self, tickets: dict[str, Any]):
        self._fds = {kind: arrived(ticket) for kind, ticket in tickets.items()}

    def fork_through(self, in_between: Callable[[], None]) -> None:
        """Enter a PID namespace, if there is one among them: returns in a child, since only children can be in it.

        Args:
            in_between: called in the process that stays outside. It waits for that child, and ends as it did.
        """
        if "pid" in self._fds:
            self._enter("user", "pid")
            _fork_inside(in_between)

    def go_through(self) -> None:
        """Enter the others."""
        here = os.getcwd()
        self._enter(*list(self._fds))
        with contextlib.suppress(OSError):  # setns(2) to a mount namespace goes to its root
            os.chdir(here)

    def _enter(self, *kinds: str) -> None:
        for kind in kinds:
            if kind in self._fds:
                fd = self._fds.pop(kind)
                with _closing([fd]):
                    _setns(fd)


def _fork_inside(in_between: Callable[[], None]) -> None:
    told, tell = os.pipe()
    child = os.fork()
    if child:
        os.close(told)
        os.write(tell, b"%d" % child)
        os.close(tell)
        in_between()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # they are the child's
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code < 0:
            signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
            os.kill(os.getpid(), -code)
        os._exit(code)
    os.close(tell)
    machine.is_known_as(int(os.read(told, 32)))
    os.close(told)


def namespace(*kinds: str, inside: Namespace | None = None) -> Namespace:
    """New namespaces of these kinds, until the `with` is left: "ipc", "mount", "net", "pid", "user", "uts".

    With "mount", /dev/shm and labkit's folder of names are empty inside, files in memory that go with it; with "mount"
    and "pid" /proc shows the processes inside, where the machine allows that; with "net" there is a loopback device.

    Args:
        kinds: one or more. "user" is added where this process lacks CAP_SYS_ADMIN.
        inside: namespaces in which they are made, which keep what is not made anew: a pod, and containers in it.

    Raises:
        ValueError: there is no such kind, or none was named.
        OSError: it is refused; the text says by what, as far as that can be known.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"no kind of namespace called {kind!r}; there are: {', '.join(sorted(KINDS))}")
    if inside and "pid" in kinds and "pid" in inside.kinds:
        raise ValueError("a PID namespace in a PID namespace: make it with a process that runs inside, ns.run(f)")
    if not kinds:
        raise ValueError(f"name at least one kind of namespace: {', '.join(sorted(KINDS))}")
    if inside is None and not privileged():
        kinds = ("user", *kinds)
    return Namespace(kinds, inside)


def privileged() -> bool:
    """Whether this process has CAP_SYS_ADMIN: capabilities(7)."""
    return bool(int(_status("CapEff") or "0", 16) & CAP_SYS_ADMIN)


def own_namespaces(pid: int | str = "self") -> dict[str, int]:
    """The namespaces of a process, each a number: the inode of /proc/PID/ns/KIND."""
    return {kind: os.stat(f"/proc/{pid}/ns/{KINDS[kind].file}").st_ino for kind in KINDS}


class Others:
    """Namespaces that another process is in, for launch(f, inside=...): `those_of`."""

    def __init__(self, pid: int, kinds: Sequence[str]):
        self.kinds = kinds
        self._fds: dict[str, int] = {}
        self._finalizer = weakref.finalize(self, _close_all, self._fds)
        own = own_namespaces()
        try:
            others = own_namespaces(pid)
            for kind in kinds:
                if own[kind] != others[kind]:
                    self._fds[kind] = os.open(f"/proc/{pid}/ns/{KINDS[kind].file}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ProcessLookupError(errno.ESRCH, f"there is no process {pid}") from None

    def run(self, f: Callable[..., Any], *args: Any, timeout: float = 60.0) -> Any:
        """What f(*args) returns, called by a process in these namespaces."""
        return launch(f, *args, inside=self).wait(timeout)

    def __reduce__(self) -> Any:
        return _Door, ({kind: travelling(fd) for kind, fd in self._fds.items()},)


def those_of(pid: int, *kinds: str) -> Others:
    """The namespaces of another process, all kinds but "user" unless told otherwise: as nsenter(1) enters them.

    Raises:
        ProcessLookupError: there is no such process.
        PermissionError: it is not ours.
    """
    wanted = kinds or (COMMON if privileged() else tuple(KINDS))
    return Others(pid, _sorted(wanted))


# --- what refuses -------------------------------------------------------------------------------------------


def _refusal(number: int, call: str, kinds: Sequence[str]) -> OSError:
    """The error, with a sentence about what refuses."""
    wanted = f"new {', '.join(kinds)} namespace{'s' if len(kinds) > 1 else ''}"
    return OSError(number, f"{wanted}: {call} fails ({os.strerror(number)}): {_reason(number, call, kinds)}")


def _reason(number: int, call: str, kinds: Sequence[str]) -> str:
    def setting(path: str) -> str | None:
        return machine.read(Path("/proc/sys") / path)

    filtered = _status("Seccomp") == "2"
    if number in (errno.ENOSPC, errno.EUSERS):
        for kind in kinds:
            if setting(f"user/max_{KINDS[kind].file}_namespaces") == "0":
                return f"the sysctl user.max_{KINDS[kind].file}_namespaces is 0, so nobody may make one"
        return "there are too many already (sysctls user.max_*_namespaces), or they are nested more than 32 deep"
    if number == errno.EINVAL:
        return "the Linux kernel was built without this kind of namespace"
    if number in (errno.EPERM, errno.EACCES):
        if call == "unshare user":
            if setting("kernel/unprivileged_userns_clone") == "0":
                return "the sysctl kernel.unprivileged_userns_clone is 0: this system keeps user namespaces for root"
            if filtered:
                return "a seccomp filter refuses it, as that of Docker and of Binder does"
            return "a security module (AppArmor, SELinux), or a chroot(2), refuses it"
        if call == "write uid_map" and os.geteuid() == 0:
            return "root may map itself only with CAP_SETFCAP, which this process has not got: be an ordinary user"
        if "user" in kinds:
            if setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
                return (
                    "the sysctl kernel.apparmor_restrict_unprivileged_userns is 1: AppArmor takes all capabilities "
                    "away in a new user namespace"
                )
            if filtered:
                return "a seccomp filter refuses it, as that of Docker and of Binder does"
            return "a security module takes the capabilities of the new user namespace away"
        if not privileged():
            return "it takes CAP_SYS_ADMIN, which this process has not got"
        return "a seccomp filter refuses it" if filtered else "a security module (AppArmor, SELinux) refuses it"
    return "see unshare(2), mount(2)"


def _status(field: str) -> str | None:
    for line in (machine.read(Path("/proc/self/status")) or "").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return value.strip()
    return None


# --- small things -------------------------------------------------------------------------------------------


def _sorted(kinds: Sequence[str] | set[str]) -> tuple[str, ...]:
    return tuple(kind for kind in KINDS if kind in kinds)


def _setns(fd: int) -> None:
    if libc.setns(fd, 0) != 0:
        raise failed("setns")


def _pids() -> list[int]:
    return sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit())


def _is_in(pid: int, wanted: dict[str, int]) -> bool:
    try:
        return all(os.stat(f"/proc/{pid}/ns/{KINDS[kind].file}").st_ino == inode for kind, inode in wanted.items())
    except OSError:  # it has ended, or is not ours
        return False


@contextlib.contextmanager
def _closing(fds: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for fd in list(fds):
            os.close(fd)


def _end(holder: subprocess.Popen[str], fds: dict[str, int]) -> None:
    """Close what we have open of the namespaces, and the leash; wait for the holder, which does nothing more."""
    assert holder.stdin and holder.stdout
    _close_all(fds)
    with contextlib.suppress(OSError):
        holder.stdin.close()
    try:
        holder.wait(START_TIMEOUT)
    except subprocess.TimeoutExpired:
        holder.kill()
        holder.wait()
    holder.stdout.close()


def _close_all(fds: dict[str, int]) -> None:
    while fds:
        os.close(fds.popitem()[1])
