"""Anonymous pipe: pipe(2), pipe(7). TLPI ch. 44.

A byte stream: four bytes of length go before each message. Writes of up to PIPE_BUF bytes are atomic, larger ones are
not (pipe(7)), so that a sender which has been cloned takes no message that others could be mixed into.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import select
from typing import Any

from labkit.channels.base import (
    DEFAULT_TIMEOUT,
    TAG_BYTES,
    Capacity,
    Closed,
    Facts,
    Message,
    Receiver,
    Sender,
    Waiter,
    arrived,
    as_bytes,
    travelling,
)
from labkit.channels.framing import LENGTH, Unframer

READ_BYTES = 1 << 16
ATOMIC = select.PIPE_BUF - LENGTH.size - TAG_BYTES
LARGEST = 2**32 - 1 - TAG_BYTES
UNKNOWN = memoryview(b"?")  # owed, but nobody knows how much
JOIN_BELOW = 1 << 14  # from here on a second system call argument is cheaper than copying the message

FACTS = Facts(
    boundaries=False,
    ordered=True,
    tells_close=True,
    pollable=True,
    duplex=False,
    related_only=True,
    many_senders=False,
    many_receivers=False,
    reliable=True,
    handed_over=True,
    persistence="process",
    max_message=LARGEST,
    namespaced_by="none",
    copies=2,
    manual="pipe(7)",
)


def open(*, capacity: int | None = None) -> tuple[PipeSender, PipeReceiver]:
    """A new pipe.

    Args:
        capacity: bytes the kernel should hold (F_SETPIPE_SZ; rounded up to a power of two of pages).

    Raises:
        ValueError: the capacity is not positive, or 2 GiB or more.
        OSError: EPERM, the capacity is above /proc/sys/fs/pipe-max-size.
    """
    if capacity is not None and not 0 < capacity < 1 << 31:
        raise ValueError(f"capacity must be at least 1 byte and less than 2 GiB, not {capacity:,}")
    read_fd, write_fd = os.pipe()
    try:
        if capacity is not None:
            fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, capacity)
    except BaseException:
        os.close(read_fd)
        os.close(write_fd)
        raise
    return PipeSender(write_fd), PipeReceiver(read_fd)


class PipeSender(Sender):
    kind, facts = "pipe", FACTS
    header_bytes = LENGTH.size

    def __init__(self, fd: int, shared: bool = False, owed: bytes = b""):
        self.fd = fd
        os.set_blocking(fd, False)
        self._shared = shared  # other processes may write between two of our writes
        self._owed: Message = owed  # the rest of a message whose sender lost patience half-way: it goes first
        self.max_message = self._limit = ATOMIC if shared else LARGEST

    def send(self, message: Message, timeout: float | None = DEFAULT_TIMEOUT) -> None:
        if type(message) is not bytes or not 0 < len(message) <= ATOMIC:
            message = as_bytes(message, self._limit)
        if len(message) < JOIN_BELOW:
            self._write(LENGTH.pack(len(message)) + message, timeout)
        else:
            self._write_large(message, timeout, LENGTH.pack(len(message)))

    def _write(self, framed: Message, timeout: float | None) -> None:
        """Write a message that has its length in front."""
        if self._owed or len(framed) > select.PIPE_BUF:
            self._write_large(framed, timeout)
            return
        try:
            os.write(self.fd, framed)  # atomic: all of it or nothing
            return
        except BlockingIOError:
            if timeout == 0:
                raise TimeoutError("the pipe is full") from None
        except OSError as reason:
            raise self._translated(reason) from reason
        self._push(framed, Waiter(timeout), begun=False)

    def _write_large(self, framed: Message, timeout: float | None, size: bytes = b"") -> None:
        """Write a message that may go in parts; `size` goes in front, not joined, which would copy the message."""
        waiter = Waiter(timeout)  # raises while nothing has been written
        if self._owed:
            self._push(self._owed, waiter, begun=True)
        self._owed = UNKNOWN
        try:
            written = os.writev(self.fd, (size, framed))
        except BlockingIOError:
            written = 0
        except OSError as reason:
            self._owed = b""
            raise self._translated(reason) from reason
        if written < len(size):
            framed, size = size + framed, b""
        self._owed = memoryview(framed)[written - len(size) :]
        if self._owed:
            if timeout == 0 and not written:
                self._owed = b""
                raise TimeoutError("the pipe is full")
            self._push(self._owed, waiter, begun=written > 0)

    def _push(self, rest: Message, waiter: Waiter, begun: bool) -> None:
        """Write what is left of a message, waiting for room."""
        if rest is UNKNOWN:
            self.given_away()
            raise Closed(
                "the last send was interrupted while the kernel took its message, and how much of it is unknown: "
                "this end is closed now, so that the receiver takes nothing else for the rest of it"
            )
        rest = memoryview(rest)
        atomic = not begun and len(rest) <= select.PIPE_BUF
        try:
            while rest:
                self._owed = rest if begun else b""
                waiter.wait({self.fd: select.POLLOUT}, "the pipe stayed full")
                if not atomic:
                    self._owed = UNKNOWN  # Ctrl-C may come between the system call and the next line
                try:
                    written = os.write(self.fd, rest)
                except BlockingIOError:  # POLLOUT says that a page is free, an atomic write may need more
                    written = 0
                begun = begun or written > 0
                rest = rest[written:]
                self._owed = rest if begun else b""
        except TimeoutError as reason:
            if not begun:
                raise
            self._owed = bytes(rest)  # what has been begun must be finished, by the next send or by close
            raise TimeoutError(
                f"{reason}; the last {len(rest):,} bytes of this message go with the next send"
            ) from None
        except OSError as reason:
            self._owed = b""
            raise self._translated(reason) from reason
        except BaseException:
            if self._owed is not UNKNOWN:
                self._owed = bytes(self._owed)  # the caller may change the message afterwards
            raise

    def _translated(self, reason: OSError) -> Exception:
        if reason.errno == errno.EPIPE:
            return Closed("nobody holds the reading end of this pipe any more (EPIPE)")
        self._must_be_open()
        return reason

    @property
    def capacity(self) -> Capacity:
        return Capacity(fcntl.fcntl(self.fd, fcntl.F_GETPIPE_SZ), "bytes", LENGTH.size)

    def fileno(self) -> int:
        return self.fd

    def clone(self) -> PipeSender:
        """A second sender: dup(2). From then on both take only messages that are atomic: up to PIPE_BUF - 4 bytes."""
        self._must_be_open()
        if self._owed:
            raise BlockingIOError(errno.EAGAIN, "a message is still half-sent; send it to the end before cloning")
        self._limit += ATOMIC - self.max_message
        self._shared, self.max_message = True, ATOMIC
        return PipeSender(os.dup(self.fd), shared=True)

    def _farewell(self) -> None:
        if self._owed and self._owed is not UNKNOWN:  # as much as fits: close never waits
            with contextlib.suppress(OSError):
                os.write(self.fd, self._owed)

    def _let_go(self) -> None:
        fd, self.fd = self.fd, -1
        os.close(fd)

    def __reduce__(self) -> Any:
        if self._owed is UNKNOWN:
            raise ValueError("the last send was interrupted half-way: this end cannot be handed on")
        return _sender_arrives, (travelling(self.fd), self._shared, bytes(self._owed))


class PipeReceiver(Receiver):
    kind, facts = "pipe", FACTS

    def __init__(self, fd: int, rest: bytes = b""):
        self.fd = fd
        os.set_blocking(fd, False)
        self._stream = Unframer(rest)
        self._ready = self._stream.ready

    def receive(self, timeout: float | None = DEFAULT_TIMEOUT) -> bytes:
        if self._ready:
            return self._ready.popleft()
        waiter = None
        while True:
            try:
                piece = os.read(self.fd, READ_BYTES)
            except BlockingIOError:
                if timeout == 0:
                    raise TimeoutError("the pipe is empty") from None
                waiter = waiter or Waiter(timeout)
                waiter.wait({self.fd: select.POLLIN}, "nothing came through the pipe")
                continue
            except OSError:
                self._must_be_open()
                raise
            if not piece:
                raise Closed("every sender has closed its end of this pipe")
            self._stream.feed(piece)
            if self._ready:
                return self._ready.popleft()

    def fileno(self) -> int:
        return self.fd

    def clone(self) -> PipeReceiver:
        raise io.UnsupportedOperation(
            "a byte stream has one receiver: two would tear its messages apart; use unix_seqpacket or posix_mq"
        )

    def _let_go(self) -> None:
        fd, self.fd = self.fd, -1
        os.close(fd)
        self._ready.clear()

    def __reduce__(self) -> Any:
        return _receiver_arrives, (travelling(self.fd), self._stream.rest())


def _sender_arrives(ticket: Any, shared: bool, owed: bytes) -> PipeSender:
    return PipeSender(arrived(ticket), shared, owed)


def _receiver_arrives(ticket: Any, rest: bytes) -> PipeReceiver:
    return PipeReceiver(arrived(ticket), rest)
