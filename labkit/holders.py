"""Who has a pipe, a FIFO or a file open, and where in its memory a process has some bytes.

proc_pid_fd(5), proc_pid_fdinfo(5), proc_pid_maps(5), proc_pid_mem(5). TLPI §5.4, §44.2, §48.5.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from labkit.table import Table


@dataclass(frozen=True)
class Holder:
    """One descriptor of one process."""

    pid: int
    name: str
    """The process's command name; "this process" for ourselves."""
    fd: int
    access: str
    """What the descriptor was opened for: reading, writing or both."""


class Holders(Table):
    """Descriptors."""

    columns = "process", "pid", "descriptor", "open for"
    empty = "nobody"

    def cells(self, row: Holder) -> tuple[str, ...]:
        return row.name, str(row.pid), str(row.fd), row.access


def holders(where: int | str | Path) -> Holders:
    """Every descriptor of every process that leads to the same kernel object.

    Processes of other users cannot be looked into and are left out (ptrace(2), PTRACE_MODE_READ_FSCREDS).

    Args:
        where: a descriptor of ours, or the path of a FIFO or file. Looking does not open it.

    Raises:
        OSError: EBADF, the descriptor is not open; ENOENT, there is no such path.
    """
    found = os.stat(where)
    wanted = found.st_dev, found.st_ino
    result = Holders()
    for process in processes():
        with contextlib.suppress(OSError):  # it has ended, or is not ours
            for fd in sorted(int(entry) for entry in os.listdir(f"/proc/{process}/fd")):
                with contextlib.suppress(OSError):
                    there = os.stat(f"/proc/{process}/fd/{fd}")
                    if (there.st_dev, there.st_ino) == wanted:
                        result.append(Holder(process, _name(process), fd, _access(process, fd)))
    return result


@dataclass
class Uses:
    """What the processes that we may look into have open and mapped.

    Attributes:
        files: of which file (device and inode, as stat(2) has them) which pids have a descriptor or mapping.
        paths: the same by what readlink(2) says of the descriptor, or the path of the mapping.
        shared: what is mapped shared and writable: device and inode to the path, see proc_pid_maps(5).
        hidden: how many processes we may not look into.
    """

    files: defaultdict[tuple[int, int], tuple[int, ...]]
    paths: defaultdict[str, tuple[int, ...]]
    shared: dict[tuple[int, int], str]
    hidden: int


def uses() -> Uses:
    """Look at all processes: proc_pid_fd(5), proc_pid_maps(5). Ten to a hundred milliseconds."""
    found = Uses(defaultdict(tuple), defaultdict(tuple), {}, 0)
    for pid in processes():
        files, paths = set(), set()
        try:
            with os.scandir(f"/proc/{pid}/fd") as descriptors:
                for descriptor in descriptors:
                    with contextlib.suppress(OSError):
                        there = descriptor.stat()
                        files.add((there.st_dev, there.st_ino))
                        paths.add(os.readlink(descriptor.path))
            # address permissions offset device inode path
            for line in Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape").splitlines():
                _, permissions, _, device, inode, *path = line.split(maxsplit=5)
                if path and inode != "0":
                    major, minor = (int(part, 16) for part in device.split(":"))
                    file = os.makedev(major, minor), int(inode)
                    files.add(file)
                    paths.add(path[0])
                    if permissions[1] == "w" and permissions[3] == "s":
                        found.shared[file] = path[0]
        except PermissionError:
            found.hidden += 1
        except OSError:  # it has just ended
            pass
        for file in files:
            found.files[file] += (pid,)
        for name in paths:
            found.paths[name] += (pid,)
    return found


def processes() -> list[int]:
    """Pids of all processes that /proc shows."""
    return sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit())


def _name(pid: int) -> str:
    return "this process" if pid == os.getpid() else Path(f"/proc/{pid}/comm").read_text().strip()


def _access(pid: int, fd: int) -> str:
    lines = Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines()
    flags = next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))
    return {os.O_RDONLY: "reading", os.O_WRONLY: "writing"}.get(flags & os.O_ACCMODE, "both")


PIECE = 1 << 20  # of memory that is looked through at a time


def places(pid: int, wanted: bytes) -> list[str]:
    """Every place in a process's memory where these bytes are, or were left: "private", or the name of what is mapped.

    What several processes have mapped is one place, under the same name in each of them. What the Linux kernel holds
    for a process, in a pipe for instance, is in no process's memory. The process should sleep meanwhile.

    Args:
        pid: a process of ours, not this one: looking would make more of what it looks for.
        wanted: the bytes. They should be found nowhere by chance.

    Raises:
        ValueError: pid is this process.
        ProcessLookupError: there is no such process.
        PermissionError: ptrace(2) would not be allowed either; the text says what may forbid it.
    """
    if pid == os.getpid():
        raise ValueError("look into another process: looking through this one would make more copies")
    found = []
    try:
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            for begin, end, name in _regions(maps):
                found += [name] * _count(memory, begin, end, wanted)
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, f"there is no process {pid}") from None
    except PermissionError:
        raise PermissionError(
            errno.EACCES,
            f"the memory of process {pid} may not be read: it belongs to somebody else, or "
            "/proc/sys/kernel/yama/ptrace_scope forbids it",
        ) from None
    return found


def _regions(maps: IO[str]) -> list[tuple[int, int, str]]:
    """Where memory that may be written begins and ends, and what it is: private memory is one as far as it goes on.

    The kernel lists it in several parts, where a heap has grown since a fork(2) or where flags differ; what is in it
    may lie across.
    """
    regions: list[tuple[int, int, str]] = []
    for line in maps:
        span, mode, _, _, _, *rest = line.split(maxsplit=5)
        if not mode.startswith("rw"):
            continue
        begin, end = (int(address, 16) for address in span.split("-"))
        name = "private" if mode[3] == "p" else rest[0].strip() if rest else "shared"
        if name == "private" and regions and regions[-1][1:] == (begin, name):
            begin = regions.pop()[0]
        regions.append((begin, end, name))
    return regions


def _count(memory: IO[bytes], begin: int, end: int, wanted: bytes) -> int:
    """How often the bytes are there, looked through in pieces that overlap so that none is missed in between."""
    number, tail = 0, b""
    for start in range(begin, end, PIECE):
        try:
            memory.seek(start)
            data = tail + memory.read(min(PIECE, end - start))
        except OSError:  # memory of a device, or a file that has become shorter
            return number
        number += data.count(wanted)
        after = data.rfind(wanted) + len(wanted) if wanted in data else 0
        tail = data[max(after, len(data) - len(wanted) + 1) :]
    return number
