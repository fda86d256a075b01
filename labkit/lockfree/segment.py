"""Shared memory that says what it is, and who uses it: memfd_create(2), fcntl(2). Every queue lives in one.

    offset  holds
    0       MAGIC, written last: a segment without it is unfinished
    8       KIND, up to sixteen letters
    24      LAYOUT, the version of what follows
    32      BYTES, of the whole segment
    40      GEOMETRY, seven words that the kind explains: capacity, size of an item, ...
    96      CHECKSUM of the words from 8 to 95
    128     bell ITEMS: rung when something was published       (labkit.lockfree.bells)
    256     bell ROOM: rung when something was released
    384     pid that last took the role of SENDER, 0 when nobody ever did; 392 the same of RECEIVER
    2048    participants 1 to 255, a word each: its pid, 0 when it left in order
    4096    the body: what the queue itself is made of

Without a name the memory is a memfd, sealed against shrinking (a peer's ftruncate would be a SIGBUS at our next access)
and gone when its last user is, whatever that died of. With a name it is a file of `kind_dir("lockfree")`, mode 0600.

Who lives is told by locks. Every process has an open file description of its own for the segment, and on it locks of
single bytes (F_OFD_SETLK): one for its participant number, one for each role. The Linux kernel drops them when the
process ends, also after kill -9, and never while it is merely stopped. So a lock that is gone is a proof of death,
which neither a timeout nor a pid is. After fork(2) the child gets an open file description of its own, without locks.

Who can still send. "Closed" tells a receiver that it will never get anything any more, so it must be certain.
    One at a time. A kind with one sender (or receiver) looks at the role: NEVER is not yet closed; GONE is, until
        somebody takes the role again. Others who have the segment open do not count: they would be refused.
    Many at a time. Whoever has it open may send until it has shown that it only receives. To count it from its first
        message on would be too late: the others may have sent theirs and gone by then. So a process takes part from
        before its birth. Who launches or forks it takes a number for it, a *place* (`Segment.place`), with a lock that
        travels to it; when it has arrived it takes a number of its own, then gives up the place. One that is killed on
        its way counts no more, since its lock is gone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import struct
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Any, Self

import numpy as np

from labkit import machine
from labkit.channels.base import arrived, kind_dir, making, one_word, travelling, unavailable
from labkit.libc import failed, ffi, libc
from labkit.lockfree import bells
from labkit.lockfree.bells import (
    FENCED,
    HEADER,
    ITEMS_BELL,
    LOCKS,
    ME,
    PERSON_LOCK,
    PRIVATE_WORDS,
    ROLE_LOCK,
    ROLES,
    ROOM_BELL,
)
from labkit.lockfree.bells_entry import bell_functions

MAGIC, KIND, LAYOUT, BYTES, GEOMETRY, CHECKSUM = 0, 8, 24, 32, 40, 96
ITEMS, ROOM = 128, 256
PEOPLE, MOST_PEOPLE = 2048, 255
BODY = 4096

IDENTITY = int.from_bytes(b"LABKITQ1", "little")
GEOMETRY_WORDS = 7
LARGEST = 1 << 40
FAULTED_IN = 1 << 27
"""A ring of up to so many bytes, both its mappings together, is faulted in when it is opened."""
PROT_NONE, MAP_FIXED = 0, 0x10
FOLDER = "lockfree"

SENDER, RECEIVER = 0, 1
"""Roles that one process at a time has."""
_USER_LOCK = PERSON_LOCK + 600  # shared, by everybody: a named segment on which nobody has it is stale


class Role(Enum):
    """What is known of a role."""

    NEVER = "nobody has had it yet"
    TAKEN = "a living process has it"
    GONE = "whoever had it has closed or died"


class Segment:
    """A segment that this process has open.

    Attributes:
        address: of the header.
        body: of what the queue is made of, a multiple of 4096.
        geometry: the seven words that it was created with.
        memory: the whole of it as bytes; hang it on whatever works on addresses, to keep the mapping.
        private: what this process knows of it, for compiled code: see labkit.lockfree.bells.
        name: None when it has none.
    """

    def __init__(
        self,
        fd: int,
        bell_fds: tuple[int, int],
        kind: str,
        layout: int,
        name: str | None = None,
        *,
        twice: int = 0,
        hands_on: bool = False,
    ):
        """Take over the descriptors. Use `new`, `open` or unpickling.

        Args:
            twice: an offset, a multiple of the page size: what lies behind it is mapped a second time behind the first.
            hands_on: roles go along with a copy that travels to another process, or is made by fork(2), and are given
                up when the last copy is closed. Else they stay here.

        Raises:
            OSError: EBADMSG, this is no segment of that kind, or a damaged one; ENOMEM, no room in the address space.
        """
        self.fd, self.bell_fds, self.kind, self.layout, self.name = fd, bell_fds, kind, layout, name
        self.twice, self.hands_on = twice, hands_on
        self.closed = False
        self._entering = threading.Lock()
        try:
            size = os.fstat(fd).st_size
            if size < BODY:
                raise _wrong(f"it has {size:,} bytes only", name)
            mapped = _own(fd)  # a mapping keeps its open file description, which must not be that of our locks
            try:
                is_whole = size > twice and size % mmap.PAGESIZE == 0  # if not, _check says so
                self.memory = _map(mapped, size, twice if is_whole else 0)
            finally:
                os.close(mapped)
            self.address = int(self.memory.ctypes.data)
            self.body = self.address + BODY
            self._words = self.memory[:BODY].view(np.int64)
            self._check(size)
            self.private = np.zeros(PRIVATE_WORDS, np.int64)
            self.private[[LOCKS // 8, ITEMS_BELL // 8, ROOM_BELL // 8, HEADER // 8]] = fd, *bell_fds, self.address
            if not bell_functions()["can_fence_others"]():
                bell_functions()["set_bits"](self.address + ITEMS, FENCED)
                bell_functions()["set_bits"](self.address + ROOM, FENCED)
            _lock(fd, _USER_LOCK, fcntl.F_RDLCK)
        except BaseException:
            self.close()
            raise
        _open.add(self)

    @classmethod
    def new(
        cls,
        kind: str,
        layout: int,
        geometry: Sequence[int],
        body_bytes: int,
        *,
        prepare: Callable[[int], None] = lambda body: None,
        reserve: int | None = None,
        name: str | None = None,
        twice: int = 0,
        hands_on: bool = False,
    ) -> Self:
        """A segment with a zeroed body.

        Args:
            kind: up to sixteen letters.
            layout: the version of its body; another version is refused when it is opened.
            geometry: up to seven integers.
            body_bytes: rounded up to whole pages.
            prepare: called with the address of the body before anybody else can see it.
            reserve: bytes of the body that are reserved now, the whole when None. What is not is a hole until it is
                written to; when the machine has no memory left then, the process is killed.
            name: so that strangers can `open` it.
            twice, hands_on: as for the class itself.

        Raises:
            ValueError: body_bytes is not 1 byte to 1 TiB.
            OSError: ENOMEM or ENOSPC, the machine cannot reserve so much; FileExistsError, the name is in use.
        """
        if not 0 < body_bytes <= LARGEST:
            raise ValueError(f"a queue takes 1 byte to 1 TiB of memory, not {body_bytes:,} bytes: choose less capacity")
        size = BODY + (body_bytes + mmap.PAGESIZE - 1) // mmap.PAGESIZE * mmap.PAGESIZE
        if name is None:
            fd = os.memfd_create(f"labkit-{kind}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                _prepare(fd, kind, layout, geometry, size, reserve, prepare)
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
                own = _own(fd)
                try:
                    bell_fds = _eventfds()
                except BaseException:
                    os.close(own)
                    raise
                return cls(own, bell_fds, kind, layout, twice=twice, hands_on=hands_on)
            finally:
                os.close(fd)
        name = one_word(name, 240)
        with making(FOLDER), _temporary() as (fd, path):
            _prepare(fd, kind, layout, geometry, size, reserve, prepare)
            if (kind_dir(FOLDER) / name).exists():
                if _in_use(name):
                    raise FileExistsError(errno.EEXIST, "there is a queue of this name already", name)
                _remove(name)
            # src_dir_fd, so that Python calls linkat(2), which follows the link in /proc; link(2) does not.
            os.link(path, kind_dir(FOLDER) / name, src_dir_fd=fd, follow_symlinks=True)
            try:
                for bell in _fifos(name):
                    os.mkfifo(bell, 0o600)
                return cls.open(kind, layout, name, twice=twice, hands_on=hands_on)
            except BaseException:
                _remove(name)
                raise

    @classmethod
    def open(cls, kind: str, layout: int, name: str, *, twice: int = 0, hands_on: bool = False) -> Self:
        """The segment of this name.

        Raises:
            FileNotFoundError: there is none.
            OSError: EBADMSG, it is something else: truncated, damaged, of another kind or version.
        """
        name = one_word(name, 240)
        try:
            fd = os.open(kind_dir(FOLDER) / name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "no queue of this name", name) from None
        fds: list[int] = []
        try:
            for bell in _fifos(name):  # read and write, so that it never has no reader and opening never waits: fifo(7)
                fds.append(os.open(bell, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW))  # noqa: PERF401
        except OSError as reason:
            for one in (fd, *fds):
                os.close(one)
            raise _wrong("a FIFO beside it is missing", name) from reason
        return cls(fd, (fds[0], fds[1]), kind, layout, name, twice=twice, hands_on=hands_on)

    def again(self) -> Self:
        """Another use of the same memory, with roles and a participant number of its own."""
        self._must_be_open()
        fds: list[int] = []
        try:
            fds.append(_own(self.fd))
            for bell in self.bell_fds:
                fds.append(os.dup(bell))  # noqa: PERF401
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        more = {"twice": self.twice, "hands_on": self.hands_on}
        return type(self)(fds[0], (fds[1], fds[2]), self.kind, self.layout, self.name, **more)  # type: ignore[arg-type]

    @staticmethod
    def unlink(name: str) -> None:
        """Remove the name; who has it open goes on.

        Raises:
            FileNotFoundError: there is none.
        """
        with making(FOLDER):
            if not (kind_dir(FOLDER) / one_word(name, 240)).exists():
                raise FileNotFoundError(errno.ENOENT, "no queue of this name", name)
            _remove(name)

    def _check(self, size: int) -> None:
        words = self._words
        kind = words[KIND // 8 : LAYOUT // 8].tobytes().rstrip(b"\0").decode("ascii", "replace")
        if words[MAGIC // 8] != IDENTITY:
            raise _wrong("it does not begin as one: somebody else's, unfinished, or damaged", self.name)
        if kind != self.kind:
            raise _wrong(f"it is a {kind!r}, not a {self.kind!r}", self.name)
        if words[LAYOUT // 8] != self.layout:
            raise _wrong(
                f"it has layout {words[LAYOUT // 8]}, this labkit knows {self.layout}: use one version", self.name
            )
        if words[CHECKSUM // 8] != _checksum(words):
            raise _wrong("its checksum is wrong: it is damaged", self.name)
        if words[BYTES // 8] != size:
            raise _wrong(f"it should have {words[BYTES // 8]:,} bytes and has {size:,}: truncated", self.name)
        self.geometry = tuple(int(word) for word in words[GEOMETRY // 8 : GEOMETRY // 8 + GEOMETRY_WORDS])

    @property
    def me(self) -> int:
        """Our participant number, 0 when we have none."""
        return int(self.private[ME // 8])

    def enter(self, sweep: Callable[[int], None], arrive: Callable[[int], None] = lambda number: None) -> int:
        """Take a participant number, 1 to 255, and with it a lock that lives as long as we use the segment.

        Args:
            sweep: called with the number before we have it, when its last holder has died: it clears what that one has
                left behind, so that nothing can be taken for ours.
            arrive: called with the number when it is ours; once, however often we enter.

        Raises:
            OSError: EUSERS, all numbers are taken.
        """
        self._must_be_open()
        with self._entering:
            if not self.me:
                number = self._number(self.fd, sweep)
                arrive(number)
                self.private[ME // 8] = number
            return self.me

    def place(self, sweep: Callable[[int], None], arrive: Callable[[int], None]) -> tuple[int, int]:
        """A number for a process that is about to be born, and a descriptor that has its lock.

        The process gets the descriptor. When it has entered under a number of its own, it says `give_up_place` and
        closes it. Close ours as soon as the process has its own: if it dies now, the place counts while ours is open.
        """
        self._must_be_open()
        fd = _own(self.fd)
        try:
            with self._entering:
                number = self._number(fd, sweep)
                arrive(number)
        except BaseException:
            os.close(fd)
            raise
        return number, fd

    def give_up_place(self, number: int) -> None:
        """What was kept for us is no longer needed."""
        self.memory[PEOPLE:BODY].view(np.int64)[number] = 0

    def _number(self, fd: int, sweep: Callable[[int], None]) -> int:
        people = self.memory[PEOPLE:BODY].view(np.int64)
        for number in range(1, MOST_PEOPLE + 1):
            if _lock(fd, PERSON_LOCK + number):
                if people[number]:
                    sweep(number)
                people[number] = os.getpid()
                return number
        raise OSError(errno.EUSERS, f"{MOST_PEOPLE} processes use this queue already, and more it cannot tell apart")

    def people(self) -> dict[int, int]:
        """The participants of whom the segment knows, dead ones too: number -> pid."""
        people = self.memory[PEOPLE:BODY].view(np.int64)
        return {int(number): int(people[number]) for number in np.flatnonzero(people)}

    def alive(self, number: int) -> bool:
        """Whether the participant with this number lives. False is a proof."""
        return number == self.me or _locked(self.fd, PERSON_LOCK + number)

    def take_role(self, role: int) -> None:
        """Become the one SENDER, or the one RECEIVER. It is ours until we close, or die.

        Raises:
            ValueError: another living process has it.
        """
        self._must_be_open()
        if not _lock(self.fd, ROLE_LOCK + role):
            what = ("sender", "receiver")[role]
            raise ValueError(
                f"this {self.kind} has a {what} already, process {self.role_pid(role)}: it takes one at a time; "
                f"Mpmc takes many"
            )
        self._words[ROLES // 8 + role] = os.getpid()

    def leave_role(self, role: int) -> None:
        """Let another process take the role."""
        _lock(self.fd, ROLE_LOCK + role, fcntl.F_UNLCK)

    def role(self, role: int) -> Role:
        """Whether anybody else has a role, and has had it."""
        if not self.role_pid(role):
            return Role.NEVER
        return Role.TAKEN if _locked(self.fd, ROLE_LOCK + role) else Role.GONE

    def role_pid(self, role: int) -> int:
        """Process that last took a role, 0: none yet."""
        return int(self._words[ROLES // 8 + role])

    def bell(self, offset: int) -> Bell:
        """The bell ITEMS or ROOM."""
        return Bell(self, offset)

    def close(self) -> None:
        """Give up our use of it, roles and participant number included. The mapping goes with the last user of it."""
        if not self.closed:
            self.closed = True
            _open.discard(self)
            if hasattr(self, "private"):
                if self.me:
                    self.memory[PEOPLE:BODY].view(np.int64)[self.me] = 0
                self.private[[ME // 8, LOCKS // 8, ITEMS_BELL // 8, ROOM_BELL // 8]] = 0, -1, -1, -1
            for fd in (self.fd, *self.bell_fds):
                os.close(fd)

    def __del__(self, _finalizing: Any = sys.is_finalizing) -> None:
        if not _finalizing() and not getattr(self, "closed", True):
            self.close()

    def _must_be_open(self) -> None:
        if self.closed:
            raise ValueError(f"this {self.kind} is closed")

    def _after_fork(self) -> None:
        """In the child: an open file description of our own, and no number."""
        self.private[ME // 8] = 0
        self._entering = threading.Lock()
        if self.hands_on:
            return
        fd = _own(self.fd)
        os.dup2(fd, self.fd, inheritable=False)
        os.close(fd)
        _lock(self.fd, _USER_LOCK, fcntl.F_RDLCK)

    def __reduce__(self) -> Any:
        self._must_be_open()
        fds = tuple(travelling(fd) for fd in (self.fd, *self.bell_fds))
        return _arrives, (type(self), fds, self.kind, self.layout, self.name, self.twice, self.hands_on)


class Bell:
    """One of the two bells of a segment, as Python waits for it."""

    def __init__(self, segment: Segment, offset: int):
        self.segment, self.address = segment, segment.address + offset
        self.descriptor = segment.bell_fds[offset == ROOM]
        self._functions = bell_functions()

    def seen(self) -> int:
        """The ticket with which to sleep. Take it before arming."""
        return self._functions["seen"](self.address)

    def arm(self, bit: int = bells.SLEEPS) -> None:
        """Say that we are about to sleep. Look again afterwards."""
        self._functions["arm"](self.address, bit)

    def sleep(self, ticket: int, seconds: float) -> None:
        """Sleep until it rings, but not longer than 0.1 s, nor than `seconds`, nor than until a signal comes."""
        self._functions["sleep"](self.address, ticket, int(max(0.0, min(seconds, 1.0)) * 1e9))

    def ring(self) -> None:
        """Wake everybody who waits."""
        self._functions["ring"](self.address, self.descriptor)

    def fileno(self) -> int:
        """A descriptor that is readable after a ring, for who has armed the bell with POLLS."""
        return self.descriptor

    def hear(self) -> None:
        """Take the rings that came, so that the next poll waits. Look again afterwards."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.descriptor, 4096)


_open: weakref.WeakSet[Segment] = weakref.WeakSet()


def _children_are_others() -> None:
    for segment in list(_open):
        segment._after_fork()


os.register_at_fork(after_in_child=_children_are_others)


def _arrives(
    kind: type[Segment],
    tickets: tuple[Any, ...],
    what: str,
    layout: int,
    name: str | None,
    twice: int,
    hands_on: bool,
) -> Segment:
    fds = [arrived(ticket) for ticket in tickets]
    if hands_on:  # the sender's open file description, with its locks
        return kind(fds[0], (fds[1], fds[2]), what, layout, name, twice=twice, hands_on=True)
    try:
        own = _own(fds[0])
    except BaseException:
        os.close(fds[1])
        os.close(fds[2])
        raise
    finally:
        os.close(fds[0])  # it is the sender's open file description, with the sender's locks
    return kind(own, (fds[1], fds[2]), what, layout, name, twice=twice)


def _own(fd: int) -> int:
    """Another open file description of the same memory."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)


def _eventfds() -> tuple[int, int]:
    first = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        return first, os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    except BaseException:
        os.close(first)
        raise


def _map(fd: int, size: int, twice: int = 0) -> np.ndarray:
    """Map a file, and behind it a second time what lies in it from offset `twice` on."""
    # Not Python's mmap, which keeps a descriptor of its own for as long as the mapping is there. First an address range
    # for all of it, so that nothing else can come to lie where the second mapping will.
    whole = size + max(0, size - twice) if twice else size
    start = _mmap(ffi.NULL, whole, PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    # A default argument: at exit a module's names may be gone before its objects.
    owned = ffi.gc(ffi.cast("char *", start), lambda start, munmap=libc.munmap: munmap(start, whole))
    rights, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | MAP_FIXED
    if twice and whole <= FAULTED_IN:  # it is all reserved: a fault for each page costs more than copying into it
        flags |= mmap.MAP_POPULATE
    _mmap(start, size, rights, flags, fd, 0)
    if whole > size:
        _mmap(ffi.cast("char *", start) + size, whole - size, rights, flags, fd, twice)
    return np.frombuffer(ffi.buffer(owned, whole), np.uint8)


def _mmap(start: Any, size: int, rights: int, flags: int, fd: int, offset: int) -> Any:
    start = libc.mmap(start, size, rights, flags, fd, offset)
    if start == ffi.cast("void *", -1):
        raise failed("mmap", f"a queue of {size:,} bytes has no room in this process")
    return start


def _prepare(
    fd: int,
    kind: str,
    layout: int,
    geometry: Sequence[int],
    size: int,
    reserve: int | None,
    prepare: Callable[[int], None],
) -> None:
    reserve = size if reserve is None else min(size, BODY + reserve)
    advice = f"a queue of {size:,} bytes cannot be reserved: ask for a smaller capacity"
    if reserve > machine.memory_left():  # to find out by reserving would wake the kernel's OOM killer
        raise unavailable("posix_fallocate", errno.ENOMEM, advice)
    try:
        os.ftruncate(fd, size)
        os.posix_fallocate(fd, 0, reserve)
    except OSError as reason:
        raise unavailable("posix_fallocate", reason.errno or errno.ENOMEM, advice) from reason
    memory = _map(fd, size)
    words = memory[:BODY].view(np.int64)
    words[KIND // 8 : LAYOUT // 8] = np.frombuffer(kind.encode("ascii").ljust(LAYOUT - KIND, b"\0"), np.int64)
    words[[LAYOUT // 8, BYTES // 8]] = layout, size
    words[GEOMETRY // 8 : GEOMETRY // 8 + len(geometry)] = geometry
    words[CHECKSUM // 8] = _checksum(words)
    prepare(int(memory.ctypes.data) + BODY)
    words[MAGIC // 8] = IDENTITY


def _checksum(words: np.ndarray) -> int:
    """FNV-1a of the bytes that say what the segment is (Fowler, Noll, Vo), as a positive word."""
    sum_ = 0xCBF29CE484222325
    for byte in words[KIND // 8 : CHECKSUM // 8].tobytes():
        sum_ = (sum_ ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return sum_ >> 1


def _wrong(what: str, name: str | None) -> OSError:
    text = f"this is not a queue that can be used: {what}"
    return OSError(errno.EBADMSG, text, name) if name else OSError(errno.EBADMSG, text)


def _fifos(name: str) -> tuple[str, str]:
    folder = kind_dir(FOLDER)
    return str(folder / f"{name}.items"), str(folder / f"{name}.room")


def _remove(name: str) -> None:
    for path in (str(kind_dir(FOLDER) / name), *_fifos(name)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _in_use(name: str) -> bool:
    fd = os.open(kind_dir(FOLDER) / name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return _locked(fd, _USER_LOCK)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _temporary() -> Iterator[tuple[int, str]]:
    """A new file without a name, and the path by which to link it; or, on a file system that has none, with one."""
    path = None
    try:
        fd = os.open(kind_dir(FOLDER), os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as reason:
        if reason.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        fd, path = tempfile.mkstemp(prefix=".", dir=kind_dir(FOLDER))
    try:
        yield fd, path or f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
        if path:
            os.unlink(path)


def _flock(kind: int, byte: int) -> bytes:
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, byte, 1, 0)


def _lock(fd: int, byte: int, kind: int = fcntl.F_WRLCK) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(kind, byte))
    except (BlockingIOError, PermissionError):
        return False
    return True


def _locked(fd: int, byte: int) -> bool:
    """Whether another open file description has a lock on this byte."""
    found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, byte))
    return bool(struct.unpack_from("h", found)[0] != fcntl.F_UNLCK)
