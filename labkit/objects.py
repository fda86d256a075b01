"""What IPC objects there are: the friendlier lsipc(1), with who uses each, and which look abandoned.

    labkit ls                                   in a terminal
    labkit ls --inside PID                      as the process PID sees it, which may be in other namespaces
    labkit.objects()                            in a notebook: a table
    ns.run(labkit.objects)                      the same, as seen from inside a namespace

    kind                        where the Linux kernel tells of it
    System V                    /proc/sysvipc/*, of our IPC namespace: sysvipc(7)
    POSIX queues                the mqueue file system: mq_overview(7); where it cannot be mounted, who has one open
    POSIX memory, semaphores    /dev/shm: shm_overview(7), sem_overview(7)
    sockets                     /proc/net/*, of our network namespace: proc_pid_net(5)
    FIFOs, shared mappings      who has them open or mapped: proc_pid_fd(5), proc_pid_maps(5)

What lies in the file system and is used by nobody (a FIFO, the file of a socket) is only found in labkit's own folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from labkit import machine
from labkit.channels.base import runtime_dir
from labkit.holders import Uses, uses
from labkit.table import Table

SHM = Path("/dev/shm")
GETPID = 11  # semctl(2)
LISTEN = "0A"  # state of a socket in /proc/net/tcp: include/net/tcp_states.h


KINDS = (
    "System V queue",
    "System V semaphores",
    "System V memory",
    "POSIX queue",
    "POSIX memory",
    "POSIX semaphore",
    "FIFO",
    "Unix socket",
    "TCP socket",
    "UDP socket",
    "shared mapping",
)


@dataclass(frozen=True)
class Object:
    """An IPC object that exists.

    Attributes:
        kind: one of KINDS.
        name: key and identifier, path, address: as its own commands and calls take it.
        owner: uid, None when that cannot be known.
        mode: permissions, None for what has none.
        bytes: in it, or of it; None when that means nothing.
        created: seconds since the epoch, when it was made or last changed its owner or mode; None when unknown.
        users: pids of those that have it open, mapped or attached, of those that we may look into. System V queues and
            semaphores cannot be open: pids of living processes that used it last.
        namespace: the inode of the namespace that it belongs to: /proc/PID/ns.
        namespace_kind: "ipc", "mount" or "net".
        abandoned: why it looks as if nobody needed it any more; "" when it does not.
    """

    kind: str
    name: str
    owner: int | None
    mode: int | None
    bytes: int | None
    created: float | None
    users: tuple[int, ...]
    namespace: int
    namespace_kind: str
    abandoned: str = ""

    @property
    def owner_name(self) -> str:
        if self.owner is None:
            return ""
        with contextlib.suppress(KeyError):
            return pwd.getpwuid(self.owner).pw_name
        return str(self.owner)


@dataclass
class Objects(Table):
    """The objects that were found, and what could not be looked into."""

    columns = "kind", "name", "owner", "mode", "bytes", "age", "used by", "namespace", "looks abandoned"
    empty = "no IPC objects"
    unseen: list[str] = field(default_factory=list)
    """Sentences about what could not be seen, and why."""

    def cells(self, row: Object) -> tuple[str, ...]:
        return (
            row.kind,
            row.name,
            row.owner_name,
            "" if row.mode is None else f"{row.mode:04o}",
            "" if row.bytes is None else f"{row.bytes:,}",
            "" if row.created is None else age(time.time() - row.created),
            ", ".join(map(str, row.users[:5])) + (" …" if len(row.users) > 5 else ""),
            f"{row.namespace_kind} {row.namespace}",
            row.abandoned,
        )

    def rows(self) -> list[dict[str, Any]]:
        """Each object as a dictionary, for JSON or a data frame."""
        return [asdict(row) for row in self]

    def of(self, *kinds: str) -> Objects:
        """Those of some kinds: their names, or how they begin ("System V"), in small letters too.

        Raises:
            ValueError: no kind begins so.
        """
        wanted = tuple(kind.lower() for kind in kinds)
        for kind in wanted:
            if not any(known.lower().startswith(kind) for known in KINDS):
                raise ValueError(f"no kind of object begins with {kind!r}; there are: {', '.join(KINDS)}")
        found = Objects(self.unseen)
        found.extend(row for row in self if row.kind.lower().startswith(wanted))
        return found

    __hash__ = None  # type: ignore[assignment]
    __repr__ = Table.__repr__
    __eq__ = list.__eq__


def objects() -> Objects:
    """Every IPC object that this process can see, in its namespaces. A tenth of a second; nothing is changed."""
    using, found = uses(), Objects()
    if using.hidden:
        found.unseen.append(f"{using.hidden} processes of other users could not be looked into: run it as root for all")
    for look in (_system_v, _posix_queues, _dev_shm, _sockets, _fifos, _shared_mappings):
        found.extend(look(using, found.unseen))
    return found


def age(seconds: float) -> str:
    """A length of time in one unit: 5 s, 3 min, 2 h, 40 days."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _namespace(kind: str) -> tuple[int, str]:
    """Inode and kind of ours."""
    return os.stat(f"/proc/self/ns/{'mnt' if kind == 'mount' else kind}").st_ino, kind


def _alive(pids: set[int]) -> tuple[int, ...]:
    return tuple(sorted(pid for pid in pids if pid and Path("/proc", str(pid)).exists()))


# --- System V -----------------------------------------------------------------------------------------------


def _system_v(using: Uses, unseen: list[str]) -> Iterator[Object]:
    here = _namespace("ipc")
    for row in _table("msg"):
        last = {row["lspid"], row["lrpid"]}
        why = _unused(last, f"{row['qnum']} messages wait" if row["qnum"] else "empty")
        yield _row("System V queue", "msq", row, row["cbytes"], _alive(last), why, here)
    libc = ctypes.CDLL(None)
    for row in _table("sem"):
        last = {max(0, libc.semctl(row["semid"], index, GETPID)) for index in range(row["nsems"])}
        yield _row("System V semaphores", "sem", row, None, _alive(last), _unused(last, ""), here)
    for row in _table("shm"):
        pids = tuple(using.paths[f"/SYSV{row['key'] & 0xFFFFFFFF:08x} (deleted)"])
        attached = tuple(pid for pid in pids if _has_mapped(pid, row["shmid"]))
        why = "" if row["nattch"] or _alive({row["cpid"]}) else "nobody is attached, and its creator has ended"
        yield _row("System V memory", "shm", row, row["size"], attached, why, here)


def _table(kind: str) -> list[dict[str, int]]:
    """The rows of /proc/sysvipc/KIND; there is none where the Linux kernel was built without System V IPC."""
    head, *lines = (machine.read(Path("/proc/sysvipc", kind)) or "").splitlines() or [""]
    rows = [dict(zip(head.split(), line.split(), strict=True)) for line in lines]
    return [{name: int(text, 8 if name == "perms" else 10) for name, text in row.items()} for row in rows]


def _row(
    kind: str, short: str, row: dict[str, int], size: int | None, users: Any, why: str, here: tuple[int, str]
) -> Object:
    identifier = row[f"{short}id" if short != "msq" else "msqid"]
    key = row["key"] & 0xFFFFFFFF
    name = f"key {f'0x{key:08x}' if key else 'IPC_PRIVATE'}, id {identifier}"
    return Object(kind, name, row["uid"], row["perms"] & 0o777, size, float(row["ctime"]), users, *here, why)


def _unused(last: set[int], what: str) -> str:
    used = {pid for pid in last if pid}
    if _alive(used) or not used:
        return ""
    return f"{what}{', and ' if what else ''}everybody who used it last has ended"


def _has_mapped(pid: int, shmid: int) -> bool:
    text = machine.read(Path(f"/proc/{pid}/maps")) or ""
    return any(line.split()[4] == str(shmid) for line in text.splitlines() if "/SYSV" in line)


# --- POSIX --------------------------------------------------------------------------------------------------

# Mounts the queue file system where nobody else sees it, and prints what is in it. A child: mount namespaces(7).
_LIST_QUEUES = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18
if libc.unshare(CLONE_NEWNS) or libc.mount(b'none', b'/', None, MS_REC | MS_PRIVATE, None) or \\
        libc.mount(b'mqueue', b'/tmp', b'mqueue', 0, None):
    sys.exit(os.strerror(ctypes.get_errno()))
found = []
for entry in os.scandir('/tmp'):
    try:
        there = entry.stat()
        with open(entry.path) as file:
            size = int(file.read().split()[0].partition(':')[2])
    except FileNotFoundError:  # it has just been unlinked
        continue
    found.append((entry.name, there.st_dev, there.st_ino, there.st_uid, there.st_mode, there.st_ctime, size))
print(json.dumps(found))
"""


def _posix_queues(using: Uses, unseen: list[str]) -> Iterator[Object]:
    import json

    command = [sys.executable, "-I", "-S", "-c", _LIST_QUEUES]
    child = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    if child.returncode == 0:
        listed = json.loads(child.stdout)
    elif os.path.ismount("/dev/mqueue"):
        listed = []
        for path in Path("/dev/mqueue").iterdir():
            with contextlib.suppress(OSError):
                found = path.stat()
                size = int(path.read_text().split()[0].partition(":")[2]) if os.access(path, os.R_OK) else 0
                listed.append(
                    (path.name, found.st_dev, found.st_ino, found.st_uid, found.st_mode, found.st_ctime, size)
                )
    else:
        unseen.append(
            f"POSIX queues that nobody has open: their file system cannot be mounted ({child.stderr.strip()}), and "
            "is not at /dev/mqueue"
        )
        listed = _open_queues(using)
    for name, device, inode, uid, mode, made, size in listed:
        users = using.files[device, inode]
        why = "" if users or using.hidden else "nobody has it open" + (f", {size:,} bytes wait in it" if size else "")
        yield Object(
            "POSIX queue", f"/{name}", uid, stat.S_IMODE(mode), size, made, users, *_namespace("ipc"), abandoned=why
        )


def _open_queues(using: Uses) -> list[tuple[Any, ...]]:
    """Queues that somebody has open, who is one of those that we may look into."""
    found = {}
    for path, pids in using.paths.items():
        for fd in _fds_of(pids[0], path) if path.count("/") == 1 and path.startswith("/") else ():
            with contextlib.suppress(OSError, IndexError, ValueError):
                text = Path(f"/proc/{pids[0]}/fd/{fd}").read_text()
                there = os.stat(f"/proc/{pids[0]}/fd/{fd}")
                if text.startswith("QSIZE:"):
                    size = int(text.split()[0].partition(":")[2])
                    name = path.removeprefix("/").removesuffix(" (deleted)")
                    key = there.st_dev, there.st_ino
                    found[key] = (name, *key, there.st_uid, there.st_mode, there.st_ctime, size)
    return list(found.values())


def _fds_of(pid: int, path: str) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(entry.path) == path and stat.S_ISREG(entry.stat().st_mode):
                    yield entry.name


def _dev_shm(using: Uses, unseen: list[str]) -> Iterator[Object]:
    here = _namespace("mount")
    for path in sorted(SHM.iterdir()) if SHM.is_dir() else ():
        with contextlib.suppress(OSError):
            found = path.lstat()
            if not stat.S_ISREG(found.st_mode):
                continue
            semaphore = path.name.startswith("sem.")
            name = f"/{path.name.removeprefix('sem.')}"
            users = using.files[found.st_dev, found.st_ino]
            why = "" if users or using.hidden else "nobody has it open or mapped"
            yield Object(
                "POSIX semaphore" if semaphore else "POSIX memory",
                name,
                found.st_uid,
                stat.S_IMODE(found.st_mode),
                None if semaphore else found.st_size,
                found.st_mtime,
                users,
                *here,
                why,
            )


# --- sockets ------------------------------------------------------------------------------------------------


def _sockets(using: Uses, unseen: list[str]) -> Iterator[Object]:
    """Those with an address: bound Unix sockets, and TCP and UDP sockets."""
    here = _namespace("net")
    for line in _lines("unix"):
        parts = line.split(maxsplit=7)
        if len(parts) == 8:  # the last is the path; unnamed ones have none
            users = using.paths[f"socket:[{parts[6]}]"]
            name = _resolved(parts[7])
            owner, mode, made = _of_path(name)
            yield Object("Unix socket", name, owner, mode, None, made, users, *here)
    for table, kind in (("tcp", "TCP"), ("tcp6", "TCP"), ("udp", "UDP"), ("udp6", "UDP")):
        for line in _lines(table):
            _, local, remote, state, queues, _, _, uid, _, inode, *_ = line.split()
            waits = sum(int(part, 16) for part in queues.split(":")) if state != LISTEN else None
            name = _address(local)
            if state == LISTEN:
                name += " listens"
            elif int(remote.rpartition(":")[2], 16):
                name += f" to {_address(remote)}"
            users = using.paths[f"socket:[{inode}]"]
            yield Object(f"{kind} socket", name, int(uid), None, waits, None, users, *here)


def _lines(table: str) -> list[str]:
    return (machine.read(Path("/proc/self/net", table)) or "").splitlines()[1:]


def _resolved(path: str) -> str:
    """The path of a socket that was bound in a folder given by its descriptor, /proc/self/fd/N/name, as labkit does."""
    if path.startswith("/proc/self/fd/"):
        same = [str(file) for file in runtime_dir().rglob(os.path.basename(path)) if file.is_socket()]
        return same[0] if len(same) == 1 else path
    return path


def _of_path(path: str) -> tuple[int | None, int | None, float | None]:
    """Owner, mode and age of a socket's file. An abstract name has none: unix(7)."""
    with contextlib.suppress(OSError, ValueError):
        if not path.startswith("@"):
            found = os.lstat(path)
            return found.st_uid, stat.S_IMODE(found.st_mode), found.st_ctime
    return None, None, None


def _address(text: str) -> str:
    """An address of /proc/net: words of the machine's byte order, in hexadecimal."""
    host, _, port = text.rpartition(":")
    words = [int(host[at : at + 8], 16) for at in range(0, len(host), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    if len(words) == 1:
        return f"{socket.inet_ntop(socket.AF_INET, packed)}:{int(port, 16)}"
    return f"[{socket.inet_ntop(socket.AF_INET6, packed)}]:{int(port, 16)}"


# --- FIFOs and mappings -------------------------------------------------------------------------------------


def _fifos(using: Uses, unseen: list[str]) -> Iterator[Object]:
    here, seen = _namespace("mount"), set()
    ours = (path for path in runtime_dir().rglob("*") if path.is_fifo())
    named = (Path(path) for path in using.paths if path.startswith("/"))
    for path in (*ours, *named):
        with contextlib.suppress(OSError, ValueError):
            found = path.lstat()
            file = found.st_dev, found.st_ino
            if stat.S_ISFIFO(found.st_mode) and file not in seen:
                seen.add(file)
                users = using.files[file]
                why = "" if users or using.hidden else "nobody has it open"
                mode = stat.S_IMODE(found.st_mode)
                yield Object("FIFO", str(path), found.st_uid, mode, None, found.st_ctime, users, *here, why)


def _shared_mappings(using: Uses, unseen: list[str]) -> Iterator[Object]:
    """Memory that is mapped shared and writable: of files, and without a name (memfd_create(2), MAP_ANONYMOUS)."""
    here = _namespace("mount")
    for file, path in sorted(using.shared.items(), key=lambda item: item[1]):
        if path.startswith(("/SYSV", f"{SHM}/")):
            continue
        users, owner, mode, size, made = using.files[file], None, None, None, None
        for pid in users:
            with contextlib.suppress(OSError):
                found = next(_mapped_file(pid, file))
                owner, mode, made = found.st_uid, stat.S_IMODE(found.st_mode), found.st_ctime
                size = found.st_size
                break
        yield Object("shared mapping", path.removesuffix(" (deleted)"), owner, mode, size, made, users, *here)


def _mapped_file(pid: int, file: tuple[int, int]) -> Iterator[os.stat_result]:
    """What stat(2) says of a mapped file, through /proc/PID/map_files, which takes a privilege, or a descriptor."""
    for folder in (f"/proc/{pid}/map_files", f"/proc/{pid}/fd"):
        with contextlib.suppress(PermissionError):
            for entry in os.scandir(folder):
                with contextlib.suppress(OSError):
                    found = entry.stat()
                    if (found.st_dev, found.st_ino) == file:
                        yield found
    raise FileNotFoundError
