"""Unix domain sequenced-packet socket pair: socketpair(2), unix(7). TLPI ch. 57.

The kernel keeps messages apart, in order, and tells both sides when the other has gone.
"""

from __future__ import annotations

import errno
import select
import socket
from typing import Any

from labkit.channels.base import (
    DEFAULT_TIMEOUT,
    LOOK_AGAIN,
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

SOCKET_OVERHEAD = 32  # the kernel refuses a message larger than SO_SNDBUF - 32 (net/unix/af_unix.c, EMSGSIZE)
BUFFER_OVERHEAD = 704  # a small message is charged with the kernel's own buffer for it: 64 bytes as 768 (skb->truesize)

FACTS = Facts(
    boundaries=True,
    ordered=True,
    tells_close=True,
    pollable=True,
    duplex=True,
    related_only=True,
    many_senders=True,
    many_receivers=True,
    reliable=True,
    handed_over=True,
    persistence="process",
    max_message=1 << 17,
    namespaced_by="none",
    copies=2,
    manual="unix(7)",
)


def open(*, max_message: int = 1 << 17) -> tuple[SeqpacketSender, SeqpacketReceiver]:
    """A new connected pair.

    Args:
        max_message: bytes in the largest message. It sets SO_SNDBUF, the bytes that may wait in the socket.

    Raises:
        ValueError: max_message is not positive, or more than net.core.wmem_max lets this user ask for.
    """
    if not 0 < max_message < 1 << 30:
        raise ValueError(f"max_message must be at least 1 byte and less than 1 GiB, not {max_message:,}")
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    needed = max_message + TAG_BYTES + SOCKET_OVERHEAD
    granted = left.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    if granted < needed:
        left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, needed)  # the kernel doubles what it grants: socket(7)
        granted = left.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    if granted < needed:
        left.close()
        right.close()
        raise ValueError(
            f"max_message={max_message:,} needs a send buffer of {needed:,} bytes, but this machine grants {granted:,}"
            ": ask for less, or raise net.core.wmem_max"
        )
    return SeqpacketSender(left, max_message), SeqpacketReceiver(right, max_message)


class SeqpacketSender(Sender):
    kind, facts = "unix_seqpacket", FACTS

    def __init__(self, end: socket.socket, max_message: int):
        self.socket = end
        self.max_message = self._limit = max_message
        end.setblocking(False)

    def send(self, message: Message, timeout: float | None = DEFAULT_TIMEOUT) -> None:
        if type(message) is not bytes or not 0 < len(message) <= self._limit:
            message = as_bytes(message, self._limit)
        waiter = None
        while True:
            try:
                self.socket.send(message)
                return
            except BlockingIOError:
                if timeout == 0:
                    raise TimeoutError("the socket's buffer is full") from None
                waiter = waiter or Waiter(timeout)
                waiter.wait({self.fileno(): select.POLLOUT}, "the socket's buffer stayed full", LOOK_AGAIN)
            except OSError as reason:
                if reason.errno in (errno.EPIPE, errno.ECONNRESET):
                    raise Closed(f"the receiver has closed its socket ({errno.errorcode[reason.errno]})") from reason
                self._must_be_open()
                raise

    @property
    def capacity(self) -> Capacity:
        return Capacity(self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), "bytes", BUFFER_OVERHEAD)

    def fileno(self) -> int:
        return self.socket.fileno()

    def clone(self) -> SeqpacketSender:
        self._must_be_open()
        return SeqpacketSender(self.socket.dup(), self.max_message)

    def _let_go(self) -> None:
        self.socket.close()

    def __reduce__(self) -> Any:
        return _arrives, (type(self), travelling(self.fileno()), self.max_message)


class SeqpacketReceiver(Receiver):
    kind, facts = "unix_seqpacket", FACTS

    def __init__(self, end: socket.socket, max_message: int):
        self.socket = end
        self.max_message = max_message
        self._room = memoryview(bytearray(max_message + TAG_BYTES))
        end.setblocking(False)

    def receive(self, timeout: float | None = DEFAULT_TIMEOUT) -> bytes:
        waiter = None
        while True:
            try:
                size = self.socket.recv_into(self._room)
                break
            except BlockingIOError:
                if timeout == 0:
                    raise TimeoutError("the socket's buffer is empty") from None
                waiter = waiter or Waiter(timeout)
                waiter.wait({self.fileno(): select.POLLIN}, "nothing came through the socket")
            except OSError:
                self._must_be_open()
                raise
        if size == 0:
            raise Closed("every sender has closed its socket")
        return self._room[:size].tobytes()

    def fileno(self) -> int:
        return self.socket.fileno()

    def clone(self) -> SeqpacketReceiver:
        self._must_be_open()
        return SeqpacketReceiver(self.socket.dup(), self.max_message)

    def _let_go(self) -> None:
        self.socket.close()

    def __reduce__(self) -> Any:
        return _arrives, (type(self), travelling(self.fileno()), self.max_message)


def _arrives(
    end: type[SeqpacketSender] | type[SeqpacketReceiver], ticket: Any, max_message: int
) -> SeqpacketSender | SeqpacketReceiver:
    return end(socket.socket(fileno=arrived(ticket)), max_message)
