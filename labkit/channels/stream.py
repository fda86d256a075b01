"""Messages on a byte stream: what pipes, FIFOs and stream sockets have in common. Each goes with its length in front.

The system calls are compiled (labkit.channels.call_entry). A large message may go in several; what is left of one whose
sender has lost patience half-way is owed, and goes before anything else.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
from collections.abc import Callable
from typing import Any

import numpy as np

from labkit.channels.base import (
    DEFAULT_TIMEOUT,
    LOOK_SECONDS,
    TAG_BYTES,
    Closed,
    Message,
    Receiver,
    Sender,
    Waiter,
    arrived,
    as_bytes,
    check_timeout,
    travelling,
)
from labkit.channels.call_entry import BUFFER_BYTES, LENGTH_BYTES, NOTHING, REFUSED, Calls

LARGEST = 2**32 - 1 - TAG_BYTES
"""Bytes in the largest message: its length has four bytes, and a trace's tag must fit."""

ATOMIC = select.PIPE_BUF - LENGTH_BYTES - TAG_BYTES
"""Bytes in the largest message that a pipe or a FIFO takes whole, whoever else writes: pipe(7)."""


class StreamSender(Sender):
    """Sends on a descriptor, which this end owns."""

    header_bytes = LENGTH_BYTES
    look_again = LOOK_SECONDS
    """Seconds after which a waiting sender tries again by itself: base.LOOK_AGAIN where poll(2) is slow to tell."""

    def __init__(self, fd: int, max_message: int = LARGEST, owed: bytes = b""):
        self.fd = fd
        os.set_blocking(fd, False)
        self.max_message = self._limit = max_message
        self._owed: Message = owed  # the rest of a message; empty although calls.owed is not: nobody knows how much
        self._calls = Calls(fd, ("stream_send", "stream_write"), max_message)
        self._calls.owed = len(owed)
        self._stream_send, self._stream_write = self._calls.stream_send, self._calls.stream_write
        self._at_once = self._stream_write

    def send(self, message: Message, timeout: float | None = DEFAULT_TIMEOUT) -> None:
        if timeout.__class__ is not float or not timeout >= 0:
            check_timeout(timeout)  # while nothing has been written
        try:
            left = self._stream_send(message)
        except (TypeError, ValueError, BufferError):
            message = as_bytes(message, self._limit)  # raises what is wrong with it
            left = self._stream_send(message)
        if left:
            self._finish(left, message, timeout, self._stream_send)

    def _write(self, framed: bytes, timeout: float | None) -> None:
        """Send a message that has its length in front."""
        if timeout.__class__ is not float or not timeout >= 0:
            check_timeout(timeout)
        left = self._stream_write(framed)
        if left:
            self._finish(left, framed, timeout, self._stream_write)

    def _later(self, left: int, framed: bytes) -> None:
        self._finish(left, framed, DEFAULT_TIMEOUT, self._stream_write)

    def _finish(self, left: int, message: Message, timeout: float | None, send: Callable[[Any], int]) -> None:
        """Send what did not go at once."""
        waiter = Waiter(timeout)
        while left == NOTHING:
            number = self._calls.errno
            if number == 0:
                self._push(waiter)
            elif number in (errno.EAGAIN, errno.EINTR):
                if timeout == 0:
                    raise TimeoutError(f"the {self.kind} is full")
                waiter.wait({self.fd: select.POLLOUT}, f"the {self.kind} stayed full", self.look_again)
            else:
                raise self._translated(OSError(number, os.strerror(number)))
            left = send(message)
        if left == REFUSED:
            self._must_be_open()
            as_bytes(message, self._limit)  # raises what is wrong with it
        if left > 0:
            view = np.frombuffer(message, np.uint8).data  # memoryview(message) refuses numpy's dates
            cut = len(view) - left  # negative when not even the length went whole
            self._owed = view[cut:] if cut >= 0 else len(view).to_bytes(LENGTH_BYTES, "little")[cut:] + view
            self._push(waiter)

    def _push(self, waiter: Waiter) -> None:
        """Write what is left of a message, waiting for room."""
        rest = memoryview(self._owed)
        if not rest:
            self.given_away()
            raise Closed(
                "the last send was interrupted while the kernel took its message, and how much of it is unknown: "
                "this end is closed now, so that the receiver takes nothing else for the rest of it"
            )
        try:
            while rest:
                waiter.wait({self.fd: select.POLLOUT}, f"the {self.kind} stayed full", self.look_again)
                self._owed = b""  # Ctrl-C may come between the system call and the next line
                with contextlib.suppress(BlockingIOError):
                    rest = rest[os.write(self.fd, rest) :]
                self._owed = rest
        except TimeoutError as reason:
            self._owed = bytes(rest)  # the caller may change the message afterwards
            raise TimeoutError(
                f"{reason}; the last {len(rest):,} bytes of this message go with the next send"
            ) from None
        except OSError as reason:
            self._calls.owed = 0
            raise self._translated(reason) from reason
        except BaseException:
            self._owed = bytes(self._owed)
            raise
        self._owed = b""
        self._calls.owed = 0

    def _translated(self, reason: OSError) -> Exception:
        if reason.errno in (errno.EPIPE, errno.ECONNRESET):
            name = errno.errorcode[reason.errno]
            return Closed(f"nobody holds the receiving end of this {self.kind} any more ({name})")
        self._must_be_open()
        return reason

    def _allow_tag(self) -> None:
        super()._allow_tag()
        self._calls.allow(self._limit)

    def fileno(self) -> int:
        return self.fd

    def clone(self) -> Any:
        raise io.UnsupportedOperation(
            f"the connection of a {self.kind} has one sender: the parts of their messages would mix. Open it with a "
            "name, and each sender(kind, name) has a connection of its own"
        )

    def _farewell(self) -> None:
        if self._owed:  # as much as fits: close never waits
            with contextlib.suppress(OSError):
                os.write(self.fd, self._owed)

    def _let_go(self) -> None:
        fd, self.fd = self.fd, -1
        self._calls.close()
        os.close(fd)

    def __reduce__(self) -> Any:
        if self._calls.owed and not self._owed:
            raise ValueError("the last send was interrupted half-way: this end cannot be handed on")
        return _sender_arrives, (type(self), travelling(self.fd), self.max_message, bytes(self._owed))


class StreamReceiver(Receiver):
    """Receives from a descriptor, which this end owns. One read(2) may bring many messages."""

    def __init__(self, fd: int, rest: bytes = b""):
        self.fd = fd
        os.set_blocking(fd, False)
        self._calls = Calls(fd, ("stream_receive", "stream_drop"), room=BUFFER_BYTES)
        self._calls.feed(rest)
        self._receive = self._at_once = self._calls.stream_receive

    def receive(self, timeout: float | None = DEFAULT_TIMEOUT) -> bytes:
        message = self._receive()
        return self._retry(timeout) if message is None else message

    def _retry(self, timeout: float | None) -> bytes:
        waiter = None
        while True:
            if self._calls.ended:
                self._ended()
            number = self._calls.errno
            if number not in (0, errno.EAGAIN, errno.EINTR):
                self._must_be_open()
                if number == errno.ECONNRESET:
                    raise Closed(f"the sender of this {self.kind} broke it off (ECONNRESET)")
                raise OSError(number, os.strerror(number))
            if timeout == 0:
                raise TimeoutError(f"the {self.kind} is empty")
            waiter = waiter or Waiter(timeout)
            self._wait(waiter)
            message = self._receive()
            if message is not None:
                return message

    def _ended(self) -> None:
        """End of file was read."""
        raise Closed(f"every sender has closed its end of this {self.kind}")

    def _wait(self, waiter: Waiter) -> None:
        waiter.wait({self.fd: select.POLLIN}, f"nothing came through the {self.kind}")

    def fileno(self) -> int:
        return self.fd

    def clone(self) -> Any:
        raise io.UnsupportedOperation(
            "a byte stream has one receiver: two would tear its messages apart; use unix_seqpacket or posix_mq"
        )

    def _let_go(self) -> None:
        fd, self.fd = self.fd, -1
        self._calls.stream_drop()
        self._calls.close()
        os.close(fd)

    def __reduce__(self) -> Any:
        return _receiver_arrives, (type(self), travelling(self.fd), self._calls.rest())


def _sender_arrives(end: Callable[..., StreamSender], ticket: Any, max_message: int, owed: bytes) -> StreamSender:
    return end(arrived(ticket), max_message, owed)


def _receiver_arrives(end: Callable[..., StreamReceiver], ticket: Any, rest: bytes) -> StreamReceiver:
    return end(arrived(ticket), rest)
