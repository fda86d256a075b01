"""Find what labkit left in the kernel, and remove what nobody uses any more.

Almost nothing can be left: rings and traces are memfds, and most of what has no name goes with its last user. What a
user gave a name stays, as it should, and is noted as an empty file in a folder of `runtime_dir()`; so is every System V
object, which has no descriptor to go with (labkit.channels.notes). Whatever else labkit makes for a moment is called
`labkit-<pid>-<hex>`, or is a folder on which its owner holds a lock (labkit.folders). Anything else was made by
somebody else and is never touched, whatever it looks like.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from labkit.channels import names, notes
from labkit.channels.base import making, runtime_dir
from labkit.folders import folders, remove_folder
from labkit.holders import uses

OURS = re.compile(r"labkit-([1-9][0-9]*)-[0-9a-f]+")
SHM, MQUEUE = Path("/dev/shm"), Path("/dev/mqueue")


@dataclass(frozen=True)
class Leftover:
    """One thing that labkit made and that is still there."""

    kind: Literal[
        "shared memory",
        "mapped file",
        "POSIX queue",
        "POSIX semaphore",
        "System V queue",
        "System V segment",
        "System V semaphores",
        "FIFO",
        "socket",
        "port",
        "process number",
        "folder",
        "note",
    ]
    """A port is the file in which the port of a named tcp or udp receiver is noted, a process number that of a
    named receiver of signals. A note is the record of a named
    object that somebody else has removed since."""
    name: str
    """The path of a file, the name that mq_open(3) takes, or for System V what the note is called."""
    size: int | None
    """Bytes of a file in memory or on disk; unknown (None) for the others."""
    maker: int | None
    """Pid of the process that made it, where its name says so."""
    users: tuple[int, ...]
    """Pids of the processes that have it open or mapped, of those that we may look into."""
    made_by_living: bool = False
    """Its maker still runs: it may be about to open it, or it is a socket that somebody has."""
    note: Path | None = None
    """The file that says that labkit made it, which goes with it."""

    @property
    def removable(self) -> bool:
        """Nobody uses it, and nobody who would is alive."""
        return not self.users and not self.made_by_living

    @property
    def state(self) -> str:
        """Why it is kept, or what it is, in a few words."""
        if self.users:
            return "in use by " + ", ".join(map(str, self.users))
        if self.made_by_living:
            return f"its maker {self.maker} is alive" if self.maker else "a living process receives there"
        return "what it notes is gone" if self.kind == "note" else "nobody uses it"


def leftovers() -> list[Leftover]:
    """Everything that labkit made and that is still there, used or not.

    Named objects that belong to another user are left out. Queues that labkit named itself can be listed only where the
    queue file system is mounted (/dev/mqueue, mq_overview(7)); they have a name for a moment only.
    """
    users = uses().paths
    found = []
    for folder in (SHM, MQUEUE):
        for path in sorted(folder.glob("labkit-*")) if folder.is_dir() else ():
            made = OURS.fullmatch(path.name)
            if made and (size := _size_if_ours(path)) is not None:
                maker = int(made[1])
                alive = Path("/proc", made[1]).exists()
                if folder == SHM:
                    found.append(Leftover("shared memory", str(path), size, maker, users[str(path)], alive))
                else:
                    name = f"/{path.name}"
                    found.append(Leftover("POSIX queue", name, None, maker, users[name] or users[str(path)], alive))
    for note in _notes("posix_mq"):
        name = f"/{note.name}"
        owner = _queue_owner(name)
        if owner is None:
            found.append(Leftover("note", name, None, None, (), note=note))
        elif owner == os.geteuid():
            by_path = users[str(MQUEUE / note.name)]
            found.append(Leftover("POSIX queue", name, None, None, users[name] or by_path, note=note))
    for folder_name, (kind, prefix) in IN_MEMORY.items():
        for note in _notes(folder_name):
            path = SHM / f"{prefix}{note.name}"
            if (size := _size_if_ours(path)) is not None:
                found.append(Leftover(kind, str(path), size, None, users[str(path)], note=note))
            elif not path.exists():
                found.append(Leftover("note", f"{folder_name}/{note.name}", None, None, (), note=note))
    found += [
        Leftover("mapped file", str(path), size, None, users[os.path.realpath(path)])
        for path in (path for folder in MAPPED for path in _notes(folder))
        if (size := _size_if_ours(path)) is not None
    ]
    every = [_system_v(note, users[os.path.realpath(note)]) for kept in SYSTEM_V for note in _notes(kept)]
    return found + [one for one in every if one] + _in_runtime_dir(users) + _folders(users)


def _folders(users: defaultdict[str, tuple[int, ...]]) -> list[Leftover]:
    """Folders of windows, kernels, servers and clusters, which stay when kill -9 ends all who could remove them."""
    found = []
    for path, maker, gone in folders():
        inside = {pid for used, pids in users.items() if used.startswith(f"{path}/") for pid in pids}
        found.append(Leftover("folder", str(path), None, maker, tuple(sorted(inside)), made_by_living=not gone))
    return found


SOCKETS = {
    "unix_stream": socket.SOCK_STREAM,
    "unix_seqpacket": socket.SOCK_SEQPACKET,
    "unix_datagram": socket.SOCK_DGRAM,
    "zmq": socket.SOCK_STREAM,
}
"""Folders of sockets' files, and of which type they are."""
NOTED = {"tcp": "port", "udp": "port", "signal": "process number"}
"""Folders of files in which is noted how a receiver is reached."""
IN_FOLDERS = {"FIFO", "socket", "port", "process number"}


def _in_runtime_dir(users: defaultdict[str, tuple[int, ...]]) -> list[Leftover]:
    """FIFOs, sockets' files and noted ports. A receiver has its FIFO or note open; a socket answers."""
    found = []
    for folder, kind in {"fifo": "FIFO", "lockfree": "FIFO", **NOTED}.items():
        for path in _notes(folder):
            is_right = stat.S_ISREG if folder in NOTED else stat.S_ISFIFO
            if _is_ours(path, is_right):
                found.append(Leftover(kind, str(path), None, None, users[os.path.realpath(path)]))  # type: ignore[arg-type]
    for folder, type_ in SOCKETS.items():
        paths = [path for path in _notes(folder) if _is_ours(path, stat.S_ISSOCK)]
        for path in paths:
            alive = names.answers(path, type_)
            found.append(Leftover("socket", str(path), None, None, (), made_by_living=alive))
    return found


def _is_ours(path: Path, is_right: Callable[[int], bool]) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return is_right(found.st_mode) and found.st_uid == os.geteuid()


IN_MEMORY: dict[str, tuple[Literal["shared memory", "POSIX semaphore"], str]] = {
    "posix_shm": ("shared memory", ""),
    "posix_semaphore": ("POSIX semaphore", "sem."),  # sem_overview(7)
}
"""Folders of notes about files in /dev/shm: what they are, and what stands there before their name."""
MAPPED = ("mmap_file", "futex", "mutex", "barrier", "lockfree")
"""Folders of files that processes map, and that are their own notes."""
SYSTEM_V = (notes.UNNAMED, *notes.NAMED)


def _system_v(note: Path, users: tuple[int, ...]) -> Leftover | None:
    """What a note about System V objects stands for, if it is ours."""
    try:
        objects, key = notes.read(note)
        there = any(notes.find(one, key) is not None for one in objects)
    except (ValueError, OSError):
        return None
    kind = SYSTEM_V_KINDS[objects] if there else "note"
    return Leftover(kind, f"{note.parent.name}/{note.name}", None, None, users, note=note)


SYSTEM_V_KINDS: dict[tuple[str, ...], Literal["System V queue", "System V segment", "System V semaphores"]] = {
    ("msg",): "System V queue",
    ("shm", "sem"): "System V segment",
    ("sem",): "System V semaphores",
}


def remove(leftover: Leftover) -> bool:
    """Remove one leftover, if still nobody uses it. Returns whether it is gone; that somebody else was faster is fine.

    Raises:
        PermissionError: it belongs to somebody else.
    """
    if leftover.kind in IN_FOLDERS or Path(leftover.name).parent.name == "lockfree":  # taken over, too: not meanwhile
        with making(Path(leftover.name).parent.name):
            return _remove(leftover)
    return _remove(leftover)


def _remove(leftover: Leftover) -> bool:
    if not any(now.name == leftover.name and now.kind == leftover.kind and now.removable for now in leftovers()):
        return False
    note = leftover.note
    if leftover.kind == "folder":
        return remove_folder(Path(leftover.name))
    if note and note.parent.name in SYSTEM_V:
        return notes.remove_if_unused(note)
    if leftover.kind == "POSIX queue":
        import posix_ipc

        try:
            posix_ipc.unlink_message_queue(leftover.name)
        except posix_ipc.ExistentialError:
            pass
        except posix_ipc.PermissionsError as refused:
            raise PermissionError(f"queue {leftover.name} belongs to somebody else: {refused}") from None
    elif leftover.kind != "note":
        Path(leftover.name).unlink(missing_ok=True)
    if note:
        note.unlink(missing_ok=True)
    return True


def hidden_processes() -> int:
    """How many processes we may not look into: 0 for root, those of other users for anybody else."""
    return uses().hidden


def _size_if_ours(path: Path) -> int | None:
    """Bytes of a regular file that belongs to us, else None. Links are not followed."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() else None


def _notes(kind: str) -> list[Path]:
    folder = runtime_dir() / kind
    return sorted(path for path in folder.iterdir() if not path.is_symlink()) if folder.is_dir() else []


def _queue_owner(name: str) -> int | None:
    """Uid of the owner of a POSIX queue, None when there is no such queue, -1 when we may not even open it."""
    import posix_ipc

    try:
        queue = posix_ipc.MessageQueue(name, write=False)
    except posix_ipc.ExistentialError:
        return None
    except (posix_ipc.PermissionsError, ValueError):
        return -1
    try:
        return os.fstat(queue.mqd).st_uid  # on Linux a queue descriptor is a file descriptor
    finally:
        queue.close()
