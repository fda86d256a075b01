"""TCP on this machine: tcp(7), ip(7), connect(2). TLPI ch. 58, 59, 61.

A byte stream, as a Unix socket's: four bytes of length go before each message. But it goes through the whole protocol,
segments, acknowledgements and all, and could as well go to another machine. Without a name it is one connection over
the loopback interface. With a name the receiver listens, and each sender has a connection of its own:

    receiver("tcp", "weather", create=True)         a free port of 127.0.0.1, noted in `runtime_dir()/tcp/weather`
    receiver("tcp", "127.0.0.1:5000", create=True)  an address, "host:port" or "[::1]:port", the same for both ends

A process of any user on this machine may connect to a port, and the kernel does not say whose it is: nothing that
comes through TCP should be trusted for being local. Beyond the loopback interface anybody may who reaches it, and read
along.

A sender learns late that nobody receives: the kernel takes one more message, the other side answers it with a reset,
and only the next send fails.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from functools import partial
from typing import Any

from labkit.channels import names
from labkit.channels.base import DEFAULT_TIMEOUT, LOOK_AGAIN, Capacity, Facts, Waiter
from labkit.channels.call_entry import LENGTH_BYTES
from labkit.channels.listening import Listener
from labkit.channels.packet import option_of
from labkit.channels.stream import LARGEST, StreamReceiver, StreamSender

KIND, TYPE = "tcp", socket.SOCK_STREAM
BUFFER = 1 << 16
SMALL = 1 << 16
MOST = 1 << 30  # of which the kernel grants net.core.wmem_max

FACTS = Facts(
    boundaries=False,
    ordered=True,
    tells_close=True,
    pollable=True,
    duplex=True,
    related_only=False,
    many_senders=True,
    many_receivers=False,
    reliable=True,
    handed_over=True,
    persistence="process",
    max_message=LARGEST,
    namespaced_by="net",
    copies=3,
    manual="tcp(7)",
)


def open(*, nodelay: bool = True, buffer: int = BUFFER) -> tuple[TcpSender, TcpReceiver]:
    """A new connection over the loopback interface.

    Args:
        nodelay: TCP_NODELAY, send what there is at once. Without it a small message waits while an earlier one has not
            been acknowledged (Nagle's algorithm), which takes 40 ms where the receiver does not answer.
        buffer: bytes asked for at each side (SO_SNDBUF, SO_RCVBUF). The kernel grants twice as much, of which it needs
            a part itself, and silently less beyond net.core.wmem_max and rmem_max.

    Raises:
        ValueError: buffer is not positive, or 1 GiB or more.
    """
    with names.bound(TYPE, socket.AF_INET, ("127.0.0.1", 0), _buffers(buffer)) as listening:
        left = _connected(socket.AF_INET, listening.getsockname(), nodelay, buffer, DEFAULT_TIMEOUT)
        with left:
            while True:
                listening.settimeout(DEFAULT_TIMEOUT)
                right, peer = listening.accept()
                if peer == left.getsockname():
                    return TcpSender(left.detach()), TcpReceiver(right.detach())
                right.close()  # somebody else has tried this port


def open_named(name: str, *, nodelay: bool = True, buffer: int = BUFFER) -> tuple[TcpSender, TcpListener]:
    """Listen at `name`, one word or "host:port", and connect to it.

    Raises:
        FileExistsError: a living process listens at this name.
        OSError: EADDRINUSE, a process listens at this address.
        ValueError: the name is neither, or as `open`.
    """
    rx = open_receiver(name, create=True, buffer=buffer)
    try:
        return open_sender(name, nodelay=nodelay, buffer=buffer), rx
    except BaseException:
        rx.close()
        raise


def open_sender(
    name: str,
    create: bool = False,
    *,
    nodelay: bool = True,
    buffer: int = BUFFER,
    timeout: float | None = DEFAULT_TIMEOUT,
) -> TcpSender:
    """A new connection to the receiver of this name or address; `timeout` in seconds.

    Raises:
        FileNotFoundError: there is no such name.
        ConnectionRefusedError: nobody listens there.
        TimeoutError: nobody answers.
        ValueError: as `open`, or `create`: a socket's name is made by its receiver.
    """
    names.no_creation(create)
    end = _connected(*names.port_of(KIND, TYPE, name), nodelay, buffer, timeout)
    return TcpSender(end.detach(), reconnect=(name, nodelay, buffer))


def open_receiver(name: str, create: bool = False, *, buffer: int = BUFFER) -> TcpListener:
    """Listen at `name`, one word or "host:port". A name goes when this end is closed.

    Raises:
        FileExistsError: a living process listens at this name.
        OSError: EADDRINUSE, a process listens at this address.
        FileNotFoundError: there is no such name, and `create` is not given; an address is always there.
    """
    return TcpListener(*names.bind_port(KIND, TYPE, name, create, _buffers(buffer)))


unlink = partial(names.unlink_port, KIND, TYPE)


def _buffers(buffer: int) -> dict[int, int]:
    if not 0 < buffer < 1 << 30:
        raise ValueError(f"buffer must be at least 1 byte and less than 1 GiB, not {buffer:,}")
    return {socket.SO_SNDBUF: buffer, socket.SO_RCVBUF: buffer}


def _connected(family: Any, where: Any, nodelay: bool, buffer: int, timeout: float | None) -> socket.socket:
    Waiter(timeout)  # refuses what is no timeout
    options = _buffers(buffer)
    end = socket.socket(family, TYPE)
    try:
        for option, value in options.items():
            end.setsockopt(socket.SOL_SOCKET, option, value)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(nodelay))
        # 0 would not block, and poll(2) takes 24 days; net.ipv4.tcp_syn_retries gives up long before an hour.
        end.settimeout(None if timeout is None else min(max(timeout, 0.001), 3600.0))
        try:
            end.connect(where)
        except TimeoutError:
            raise TimeoutError(f"{where[0]}:{where[1]} does not answer: does its receiver accept?") from None
        if end.getsockname() == end.getpeername():  # a port that nobody listens at may connect to itself
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"nobody listens at {where[0]}:{where[1]}")
        end.setblocking(False)
        return end
    except BaseException:
        end.close()
        raise


class TcpSender(StreamSender):
    kind, facts = KIND, FACTS
    look_again = LOOK_AGAIN

    def __init__(
        self,
        fd: int,
        max_message: int = LARGEST,
        owed: bytes = b"",
        reconnect: tuple[str, bool, int] | None = None,
    ):
        super().__init__(fd, max_message, owed)
        self._reconnect = reconnect
        self._overdrawn = False

    def _push(self, waiter: Waiter) -> None:
        """Write what is owed. When that is little it goes now: a small message is not left half-way for want of room.

        The kernel looks for room only when it begins a segment, and so it may take any part of a message. It is then
        asked for more, once: the next message waits until there is room again.
        """
        if self._overdrawn:
            if waiter.wait({self.fd: select.POLLOUT}, "the tcp stayed full"):
                self._overdrawn, self._calls.owed = False, 0
            return
        if 0 < len(self._owed) <= SMALL:
            self._overdraw()
        if not self._overdrawn:
            super()._push(waiter)

    def _overdraw(self) -> None:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self.fd)) as end:
            granted = end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MOST)
            try:
                rest, self._owed = self._owed, b""  # Ctrl-C may come between the system call and the next line
                self._owed = memoryview(rest)[end.send(rest) :]
            except BlockingIOError:
                self._owed = rest
            finally:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, granted // 2)
            if not self._owed:
                self._overdrawn, self._owed, self._calls.owed = True, b"", 1

    @property
    def capacity(self) -> Capacity:
        """Both sides' buffers, if the receiver's is like ours."""
        return Capacity(2 * option_of(self.fd, socket.SO_SNDBUF), "bytes", LENGTH_BYTES)

    def clone(self) -> Any:
        """One more connection to the same name. Raises io.UnsupportedOperation where there is no name."""
        self._must_be_open()
        if self._reconnect is None:
            return super().clone()
        name, nodelay, buffer = self._reconnect
        return open_sender(name, nodelay=nodelay, buffer=buffer)

    def __reduce__(self) -> Any:
        if self._overdrawn:
            self._overdrawn, self._calls.owed = False, 0
        arrives, (_, *state) = super().__reduce__()
        return arrives, (partial(type(self), reconnect=self._reconnect), *state)


class TcpReceiver(StreamReceiver):
    kind, facts = KIND, FACTS


class TcpListener(Listener):
    kind, facts = KIND, FACTS

    def _connection(self, fd: int) -> TcpReceiver:
        return TcpReceiver(fd)

    @property
    def address(self) -> str:
        """Where it listens, "host:port"."""
        host, port = self._listening.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
