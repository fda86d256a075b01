"""What all mechanisms of labkit.sync have in common: they are shared, they close, and some live in a page of memory."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import sys
import tempfile
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn, Self

from labkit.channels.base import arrived, kind_dir, one_word, travelling, unavailable
from labkit.libc import failed, ffi, libc

PAGE = 4096
"""Bytes that a mechanism has, of which the last 64 say what it is; where pages are larger, a whole one is mapped."""
USABLE = PAGE - 64


class Shared:
    """Something that several processes use at the same time. Closing is idempotent, and ends our own use only.

    A closed one raises ValueError when used, also in a thread that is waiting for it, within a tenth of a second.
    """

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

    def __copy__(self) -> NoReturn:
        raise TypeError(
            f"a copy of this {type(self).__name__} would close it with itself: use it by any number of names, and hand "
            "it to another process as an argument, launch(f, it)"
        )

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
    """A page of zeroed memory that is shared by all who hold its descriptor.

    Without a name it is gone when the last of them is, whatever they died of: memfd_create(2). It can neither be
    truncated nor grow: a peer's ftruncate(2) would turn our next access into a SIGBUS. With a name it is a file of
    `kind_dir(kind)`, which stays until it is unlinked, and in which somebody may have slept when the machine went down.
    """

    def __init__(self, fd: int):
        self.fd = fd
        # Not Python's mmap, which keeps a descriptor of its own for as long as the mapping is there.
        page = libc.mmap(ffi.NULL, PAGE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
        if page == ffi.cast("void *", -1):
            refused = failed("mmap")
            self.close()
            raise refused
        self._page = ffi.gc(ffi.cast("char *", page), lambda page: libc.munmap(page, PAGE))

    @classmethod
    def new(cls) -> Self:
        """One without a name."""
        fd = os.memfd_create("labkit-sync", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        _reserve(fd)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return cls(fd)

    @classmethod
    def new_named(cls, kind: str, name: str, prepare: Callable[[Page], None]) -> Self:
        """One with a name, which it gets when it has been prepared: nobody ever sees half of it.

        Raises:
            FileExistsError: there is one of this name.
        """
        folder = kind_dir(kind)
        temporary = None
        try:
            fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as reason:
            if reason.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
            fd, temporary = tempfile.mkstemp(prefix=".", dir=folder)  # this file system has no O_TMPFILE
        try:
            _reserve(fd)
            page = cls(fd)
            page._mark(kind)
            prepare(page)
            # src_dir_fd, so that Python calls linkat(2), which follows the link in /proc; link(2) does not.
            os.link(temporary or f"/proc/self/fd/{fd}", folder / name, src_dir_fd=fd, follow_symlinks=True)
            page.close()
        except FileExistsError:
            page.close()
            raise FileExistsError(errno.EEXIST, f"there is a {kind} of this name already", name) from None
        finally:
            if temporary:
                os.unlink(temporary)
        return cls.named(kind, name)  # opened by its name, by which `labkit clean` sees that we use it

    @classmethod
    def named(cls, kind: str, name: str) -> Self:
        """The one of this name.

        Raises:
            FileNotFoundError: there is none.
            OSError: EINVAL, this file is something else.
        """
        try:
            fd = os.open(kind_dir(kind) / name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, f"no {kind} of this name", name) from None
        if os.fstat(fd).st_size == PAGE:
            page = cls(fd)
            if page._mark_found() == kind:
                return page
        os.close(fd)
        raise OSError(errno.EINVAL, f"this file is not a {kind} of labkit: remove it, or take another name", name)

    def pointer(self, kind: str, offset: int = 0) -> Any:
        """A pointer into the page, as `int *`. It is good as long as this object is there, also when that is closed:
        another thread may be asleep on it."""
        return ffi.cast(kind, self._page + offset)

    def close(self) -> None:
        os.close(self.fd)

    def _mark(self, kind: str) -> None:
        ffi.memmove(self.pointer("char *", USABLE), f"labkit 1 {kind}".encode(), len(kind) + 9)

    def _mark_found(self) -> str:
        found = ffi.string(self.pointer("char *", USABLE), PAGE - USABLE).decode(errors="replace")
        return found.removeprefix("labkit 1 ")

    def __reduce__(self) -> Any:
        return _page_arrives, (travelling(self.fd),)


def _page_arrives(ticket: Any) -> Page:
    return Page(arrived(ticket))


def _reserve(fd: int) -> None:
    """Have the page now: later a machine without memory is a SIGBUS."""
    try:
        os.posix_fallocate(fd, 0, PAGE)
    except OSError as reason:
        os.close(fd)
        raise unavailable("posix_fallocate", reason.errno or 0, "not a page of memory or disk is left") from None


class InPage(Shared):
    """A mechanism whose whole state is in a page that processes share: with a name, or handed to `launch`."""

    kind: ClassVar[str]
    name: str | None = None

    def _make(self, name: str | None, prepare: Callable[[Page], None]) -> None:
        self.closed = True  # until it is there
        if name is None:
            page = Page.new()
            prepare(page)
        else:
            name = one_word(name)
            page = Page.new_named(self.kind, name, prepare)
        self._live_in(page, name)

    def _live_in(self, page: Page, name: str | None) -> None:
        self._page, self.name, self.closed = page, name, False

    @classmethod
    def open(cls, name: str) -> Self:
        """The one of this name that somebody of this user has created.

        Raises:
            FileNotFoundError: there is none.
        """
        self, name = cls.__new__(cls), one_word(name)
        self.closed = True
        self._live_in(Page.named(cls.kind, name), name)
        return self

    @classmethod
    def unlink(cls, name: str) -> None:
        """Remove the name; who has it open goes on.

        Raises:
            FileNotFoundError: there is none.
        """
        try:
            (kind_dir(cls.kind) / one_word(name)).unlink()
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, f"no {cls.kind} of this name", name) from None

    def _let_go(self) -> None:
        self._page.close()  # the mapping goes with this object: another thread may be asleep on it

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"<{type(self).__name__}{name}, {'closed' if self.closed else self._state()}>"

    def __reduce__(self) -> Any:
        self._must_be_open()
        return _arrives, (type(self), self._page, self.name)


def _arrives(kind: type[InPage], page: Page, name: str | None) -> InPage:
    self = kind.__new__(kind)
    self._live_in(page, name)
    return self
