"""Folders for a moment: labkit-<what>-<pid>-<random> in the temporary folder, removed by whom they belong to.

Their owner holds a lock on them, flock(2), which the kernel gives back however a process ends. Who gets the lock has
the proof that the owner is gone, whatever its number has become since, and in whichever namespace it lived: so does
`labkit clean`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

OURS = re.compile(r"labkit-(window|kernel|cluster|server|print)-([1-9][0-9]*)-\w{8}")


@contextlib.contextmanager
def own_folder(what: str) -> Iterator[str]:
    """The path of a new folder that only this user may enter, which is removed at the end with all that is in it.

    Its path is short enough for sockets to lie in it, which have 107 bytes: unix(7).
    """
    place = None if len(os.fsencode(tempfile.gettempdir())) < 60 else "/tmp"
    while True:
        path = tempfile.mkdtemp(prefix=f"labkit-{what}-{os.getpid()}-", dir=place)
        try:
            lock = _locked(path)
        except OSError:  # no descriptor is left, for example
            os.rmdir(path)
            raise
        if lock is not None:
            break
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _locked(path: str) -> int | None:
    """A descriptor that holds the lock on a folder; None when somebody else has it, or has removed the folder."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    is_ours = False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_ours = os.path.samestat(os.fstat(lock), os.lstat(path))
    except (BlockingIOError, FileNotFoundError):
        pass
    finally:
        if not is_ours:
            os.close(lock)
    return lock if is_ours else None


def folders() -> list[tuple[Path, int, bool]]:
    """Every such folder of this user that is there: its path, the pid of its maker, and whether that is proved gone."""
    found = []
    for place in sorted({tempfile.gettempdir(), "/tmp"}):
        for path in sorted(Path(place).glob("labkit-*")):
            made = OURS.fullmatch(path.name)
            if not made or path.is_symlink() or not path.is_dir():
                continue
            with contextlib.suppress(FileNotFoundError):  # its owner may remove it meanwhile
                if path.stat().st_uid != os.geteuid():
                    continue
                lock = _locked(str(path))
                if lock is not None:
                    os.close(lock)
                found.append((path, int(made[2]), lock is not None))
    return found


def remove_folder(path: Path) -> bool:
    """Remove one if its owner is gone; whether it is gone now."""
    lock = _locked(str(path))
    if lock is not None:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)
    return not path.exists()
