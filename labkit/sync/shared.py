"""What all mechanisms of labkit.sync have in common: they are shared, they close, and some live in a page of memory."""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
from typing import Any, Self

from labkit.channels.base import arrived, travelling, unavailable
from labkit.libc import failed, ffi, libc

PAGE = mmap.PAGESIZE


class Shared:
    """Something that several processes use at the same time. Closing is idempotent, and ends our own use only."""

    closed = False

    def close(self) -> None:
        """Give up our use of it. The others go on."""
        if not self.closed:
            self.closed = True
            self._let_go()

    def _let_go(self) -> None:
        """Close descriptors and mappings."""
        raise NotImplementedError

    def _must_be_open(self) -> None:
        if self.closed:
            raise ValueError(f"this {type(self).__name__} is closed")

    def _state(self) -> str:
        """What is to be seen in the representation of an open one."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, {'closed' if self.closed else self._state()}>"

    def __del__(self, _finalizing: Any = sys.is_finalizing) -> None:
        # A default argument, and no contextlib: at exit a module's names may be gone before its objects.
        if not _finalizing():
            try:  # noqa: SIM105
                self.close()
            except Exception:
                pass


class Held:
    """`with lock:` takes it, waiting as long as `acquire` does, and gives it back at the end."""

    def acquire(self) -> None:
        raise NotImplementedError

    def release(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Page:
    """A page of zeroed memory that has no name and is shared by all who hold its descriptor: memfd_create(2).

    It is gone when the last of them is, whatever they died of. It can neither be truncated nor grow: a peer's
    ftruncate(2) would turn our next access into a SIGBUS.
    """

    def __init__(self, fd: int | None = None):
        if fd is None:
            fd = os.memfd_create("labkit-sync", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                os.posix_fallocate(fd, 0, PAGE)  # now: later a machine without memory is a SIGBUS
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            except OSError as reason:
                os.close(fd)
                raise unavailable("memfd_create", reason.errno or 0, "a page of shared memory cannot be had") from None
        self.fd = fd
        # Not Python's mmap, which keeps a descriptor of its own for as long as the mapping is there.
        page = libc.mmap(ffi.NULL, PAGE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
        if page == ffi.cast("void *", -1):
            refused = failed("mmap")
            self.close()
            raise refused
        self._page = ffi.gc(ffi.cast("char *", page), lambda page: libc.munmap(page, PAGE))

    def pointer(self, kind: str, offset: int = 0) -> Any:
        """A pointer into the page, as `int *`. It is good as long as this object is there, also when that is closed:
        another thread may be asleep on it."""
        return ffi.cast(kind, self._page + offset)

    def close(self) -> None:
        os.close(self.fd)

    def __reduce__(self) -> Any:
        return _page_arrives, (travelling(self.fd),)


def _page_arrives(ticket: Any) -> Page:
    return Page(arrived(ticket))
