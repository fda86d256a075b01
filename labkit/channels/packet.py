"""Messages on a socket that keeps them apart: what sequenced-packet and datagram sockets have in common.

The system calls are compiled (labkit.channels.call_entry). A message goes whole or not at all, so that descriptors can
be duplicated and any number of processes may send, and receive.
"""

from __future__ import annotations

import errno
import operator
import os
import select
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from labkit.channels.base import (
    DEFAULT_TIMEOUT,
    LOOK_AGAIN,
    TAG_BYTES,
    Capacity,
    Closed,
    Lifeline,
    Message,
    Receiver,
    Sender,
    Waiter,
    arrived,
    arrived_lifeline,
    as_bytes,
    travelling,
)
from labkit.channels.call_entry import REFUSED, Calls

SOCKET_OVERHEAD = 32  # the kernel refuses a message larger than SO_SNDBUF - 32 (net/unix/af_unix.c, EMSGSIZE)
BUFFER_OVERHEAD = 704  # a small message is charged with the kernel's own buffer for it: 64 bytes as 768 (skb->truesize)


def grant(end: socket.socket, max_message: int) -> None:
    """Have the kernel take messages of this size: SO_SNDBUF, socket(7).

    Raises:
        ValueError: max_message is not positive, or more than net.core.wmem_max lets this user ask for.
    """
    needed = max_message + TAG_BYTES + SOCKET_OVERHEAD
    granted = end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    if granted < needed:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, needed)  # the kernel doubles what it grants
        granted = end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    if granted < needed:
        raise ValueError(
            f"max_message={max_message:,} needs a send buffer of {needed:,} bytes, but this machine grants {granted:,}"
            ": ask for less, or raise net.core.wmem_max"
        )


def checked(max_message: int) -> int:
    """The size of the largest message, or ValueError."""
    if not 0 < operator.index(max_message) < 1 << 30:
        raise ValueError(f"max_message must be at least 1 byte and less than 1 GiB, not {max_message:,}")
    return max_message


def option_of(fd: int, option: int) -> int:
    """The value of a socket option of the level SOL_SOCKET."""
    with socket.socket(fileno=os.dup(fd)) as end:
        return end.getsockopt(socket.SOL_SOCKET, option)


class PacketSender(Sender):
    """Sends on a socket, which this end owns, with a lifeline beside it where the kernel does not tell of the end."""

    gone: ClassVar[dict[int, str]] = {
        errno.EPIPE: "the receiver has closed its socket",
        errno.ECONNRESET: "the receiver has closed its socket",
    }
    """What an error of send(2) means that says that nobody receives."""

    def __init__(self, fd: int, max_message: int, lifeline: Lifeline | None = None):
        self.fd = fd
        self.max_message = self._limit = max_message
        self.lifeline = lifeline
        self._calls = Calls(fd, ("packet_send",), max_message)
        self._send: Callable[[Message], int] = self._calls.packet_send
        self._at_once = self._send

    def send(self, message: Message, timeout: float | None = DEFAULT_TIMEOUT) -> None:
        try:
            result = self._send(message)
        except (TypeError, ValueError, BufferError):
            self._must_be_open()
            message = as_bytes(message, self._limit)  # raises what is wrong with it
            result = self._send(message)
        if result:
            self._retry(result, message, timeout)

    def _later(self, result: int, message: bytes) -> None:
        self._retry(result, message, DEFAULT_TIMEOUT)

    def _retry(self, result: int, message: Message, timeout: float | None) -> None:
        waiter = None
        while result:
            number = self._calls.errno
            if result == REFUSED:
                self._must_be_open()
                as_bytes(message, self._limit)  # raises what is wrong with it
            if number in self.gone:
                raise Closed(f"{self.gone[number]} ({errno.errorcode[number]})")
            if number in (errno.EAGAIN, errno.ENOBUFS):
                if self.lifeline and self.lifeline.cut():
                    raise Closed("the socket is full and no receiver is left")
                if timeout == 0:
                    raise TimeoutError("the socket's buffer is full")
                waiter = waiter or Waiter(timeout)
                waiter.wait({self.fd: select.POLLOUT}, "the socket's buffer stayed full", LOOK_AGAIN)
            elif number != errno.EINTR:
                self._must_be_open()
                raise OSError(number, os.strerror(number))
            result = self._send(message)

    def _allow_tag(self) -> None:
        super()._allow_tag()
        self._calls.allow(self._limit)

    @property
    def capacity(self) -> Capacity:
        return Capacity(option_of(self.fd, socket.SO_SNDBUF), "bytes", BUFFER_OVERHEAD)

    def fileno(self) -> int:
        return self.fd

    def clone(self) -> Any:
        self._must_be_open()
        return _clone(self, self.max_message)

    def _let_go(self) -> None:
        fd, self.fd = self.fd, -1
        self._calls.close()
        os.close(fd)
        if self.lifeline:
            self.lifeline.close()

    def __reduce__(self) -> Any:
        lifeline = self.lifeline and travelling(self.lifeline.fileno())
        return _arrives, (type(self), travelling(self.fd), self.max_message, lifeline)


class PacketReceiver(Receiver):
    """Receives from a socket, which this end owns."""

    nothing_is_end: ClassVar[bool] = False
    """A read(2) of nothing is end of file. Else it is a datagram without content, which somebody else has sent."""

    def __init__(self, fd: int, max_message: int, lifeline: Lifeline | None = None, name: Any = None):
        self.fd = fd
        self.max_message = max_message
        self.lifeline = lifeline
        self.name = name
        self._most = max_message + TAG_BYTES
        self._calls = Calls(fd, ("packet_receive",), room=self._most + 1)  # one more: to notice what was cut off
        self._receive: Callable[[], bytes | None] = self._calls.packet_receive

    def receive(self, timeout: float | None = DEFAULT_TIMEOUT) -> bytes:
        message = self._receive()
        if message is None:
            message = self._retry(timeout)
        if len(message) > self._most:
            raise too_large(self.max_message)
        return message

    def _retry(self, timeout: float | None) -> bytes:
        waiter, last_look = None, False
        while True:
            number = self._calls.errno
            if (number == 0 and self.nothing_is_end) or number == errno.ECONNRESET or (last_look and number):
                self._must_be_open()
                raise Closed("every sender has closed its socket")
            if number == errno.EAGAIN:
                if timeout == 0:
                    if not (self.lifeline and self.lifeline.cut()):
                        raise TimeoutError("the socket's buffer is empty")
                    last_look = True
                else:
                    waiter = waiter or Waiter(timeout)
                    last_look = self._wait(waiter)
            elif number not in (0, errno.EINTR):
                self._must_be_open()
                raise OSError(number, os.strerror(number))
            message = self._receive()
            if message is not None:
                return message

    def _wait(self, waiter: Waiter) -> bool:
        """Sleep until something has come; True when the last sender has gone instead."""
        interest = {self.fd: select.POLLIN}
        if self.lifeline:
            interest[self.lifeline.fileno()] = select.POLLRDHUP
        ready = waiter.wait(interest, "nothing came through the socket")
        return bool(ready) and self.fd not in ready

    def fileno(self) -> int:
        return self.fd

    def clone(self) -> Any:
        """A second receiver: dup(2). A name goes with the receiver that made it."""
        self._must_be_open()
        return _clone(self, self.max_message)

    def _farewell(self) -> None:
        if self.name:
            self.name.remove()

    def _let_go(self) -> None:
        fd, self.fd = self.fd, -1
        self._calls.close()
        os.close(fd)
        if self.lifeline:
            self.lifeline.close()
        if self.name:
            self.name.let_go()

    def __reduce__(self) -> Any:
        lifeline = self.lifeline and travelling(self.lifeline.fileno())
        end = partial(type(self), name=self.name)
        return _arrives, (end, travelling(self.fd), self.max_message, lifeline)


def too_large(max_message: int) -> OSError:
    return OSError(
        errno.EMSGSIZE,
        f"a message of more than {max_message:,} bytes came and was cut off: open both ends with the same max_message",
    )


def _clone(end: Any, max_message: int) -> Any:
    lifeline = end.lifeline and end.lifeline.clone()
    try:
        return type(end)(os.dup(end.fd), max_message, lifeline)
    except BaseException:
        if lifeline:
            lifeline.close()
        raise


def _arrives(end: Callable[..., Any], ticket: Any, max_message: int, lifeline: Any) -> Any:
    return end(arrived(ticket), max_message, lifeline and arrived_lifeline(lifeline))
