"""UDP on this machine: udp(7), ip(7). TLPI §56.6, §61.12.

Datagrams: the kernel keeps messages apart, and that is all it promises. There is no connection, nothing is
acknowledged, nothing sent again. On the loopback interface no wire loses anything, but a receiver that is slower than
the sender does: what finds its buffer full is dropped, and send never waits nor hears of it. The order is kept here as
a rule, not by promise.

Without a name two sockets are connected to each other, and so receive from nobody else; a lifeline beside them tells
the receiver that its sender has gone. With a name the receiver has a port, noted in `runtime_dir()/udp/<name>`, or the
address "host:port" that is its name. Anybody on this machine may send to it, and the kernel does not say who did.

A datagram to a port where nobody is comes back as an ICMP message. The next send then fails with ECONNREFUSED, which is
raised as Closed, and sends nothing; the one after that is sent again. TLPI §61.3.
"""

from __future__ import annotations

import errno
import socket
from functools import partial

from labkit.channels import names
from labkit.channels.base import TAG_BYTES, Capacity, Facts, Lifeline
from labkit.channels.packet import BUFFER_OVERHEAD, PacketReceiver, PacketSender, option_of

KIND, TYPE = "udp", socket.SOCK_DGRAM
MAX_MESSAGE = 65_507 - TAG_BYTES  # 65,535 bytes of an IP packet, less its header and UDP's
RECEIVE_BUFFER = 1 << 18

FACTS = Facts(
    boundaries=True,
    ordered=False,
    tells_close=False,
    pollable=True,
    duplex=True,
    related_only=False,
    many_senders=True,
    many_receivers=True,
    reliable=False,
    handed_over=True,
    persistence="process",
    max_message=MAX_MESSAGE,
    namespaced_by="net",
    copies=3,
    manual="udp(7)",
)


def open(*, receive_buffer: int = RECEIVE_BUFFER) -> tuple[UdpSender, UdpReceiver]:
    """Two sockets of the loopback interface that are connected to each other.

    Args:
        receive_buffer: bytes asked for (SO_RCVBUF): what finds them full is lost. The kernel grants twice as much, of
            which it needs a part itself, and silently less beyond net.core.rmem_max.

    Raises:
        ValueError: receive_buffer is not positive, or 1 GiB or more.
    """
    here = "127.0.0.1", 0
    options = _buffers(receive_buffer)
    with names.bound(TYPE, socket.AF_INET, here, {}) as left, names.bound(TYPE, socket.AF_INET, here, options) as right:
        for end, other in ((left, right), (right, left)):
            end.connect(other.getsockname())
            end.setblocking(False)
        near, far = Lifeline.pair()
        return UdpSender(left.detach(), MAX_MESSAGE, near), UdpReceiver(right.detach(), MAX_MESSAGE, far)


def open_named(name: str, *, receive_buffer: int = RECEIVE_BUFFER) -> tuple[UdpSender, UdpReceiver]:
    """Receive at `name`, one word or "host:port", and connect to it.

    Raises:
        FileExistsError: a living process receives at this name.
        OSError: EADDRINUSE, a process has this address.
        ValueError: the name is neither, or as `open`.
    """
    rx = open_receiver(name, create=True, receive_buffer=receive_buffer)
    try:
        return open_sender(name), rx
    except BaseException:
        rx.close()
        raise


def open_sender(name: str, create: bool = False) -> UdpSender:
    """A sender to the receiver of this name or address. That nobody is at an address shows only when sending.

    Raises:
        FileNotFoundError: there is no such name.
        ConnectionRefusedError: the process that had the name has died.
        ValueError: `create`: a socket's name is made by its receiver.
    """
    names.no_creation(create)
    family, where = names.port_of(KIND, TYPE, name)
    with socket.socket(family, TYPE) as end:
        end.connect(where)  # sends nothing: it sets where to, and lets errors come back
        end.setblocking(False)
        return UdpSender(end.detach(), MAX_MESSAGE)


def open_receiver(name: str, create: bool = False, *, receive_buffer: int = RECEIVE_BUFFER) -> UdpReceiver:
    """Receive at `name`, one word or "host:port". A name goes when this end is closed.

    Raises:
        FileExistsError: a living process receives at this name.
        OSError: EADDRINUSE, a process has this address.
        FileNotFoundError: there is no such name, and `create` is not given; an address is always there.
    """
    end, made = names.bind_port(KIND, TYPE, name, create, _buffers(receive_buffer))
    end.setblocking(False)
    return UdpReceiver(end.detach(), MAX_MESSAGE, name=made)


unlink = partial(names.unlink_port, KIND, TYPE)


def _buffers(receive_buffer: int) -> dict[int, int]:
    if not 0 < receive_buffer < 1 << 30:
        raise ValueError(f"receive_buffer must be at least 1 byte and less than 1 GiB, not {receive_buffer:,}")
    return {socket.SO_RCVBUF: receive_buffer}


class UdpSender(PacketSender):
    kind, facts = KIND, FACTS
    gone = PacketSender.gone | {errno.ECONNREFUSED: "an earlier message came back, nobody receives at that port"}

    @property
    def capacity(self) -> Capacity:
        """The receiver's buffer, if it is as large as ours would be. The sender never waits for it."""
        return Capacity(2 * RECEIVE_BUFFER, "bytes", BUFFER_OVERHEAD)


class UdpReceiver(PacketReceiver):
    kind, facts = KIND, FACTS

    @property
    def receive_buffer(self) -> int:
        """Bytes that the kernel has granted, of which it needs a part itself."""
        return option_of(self.fd, socket.SO_RCVBUF)
