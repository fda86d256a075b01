"""Unix domain datagram socket: unix(7), socketpair(2). TLPI §57.3.

The kernel keeps messages apart, and unlike UDP it loses none: a sender waits while the receiver's queue is full. There
are no connections, and so nobody tells the receiver that its last sender has gone. A pair without a name has a lifeline
for that; with a name the receiver times out instead. A sender is told: ECONNREFUSED.

Of a pair the sender's buffer is the limit (SO_SNDBUF). To a named receiver at most net.unix.max_dgram_qlen messages
more than one may be on their way, 11 as Linux comes.
"""

from __future__ import annotations

import errno
import socket
from functools import partial
from pathlib import Path

from labkit.channels import names
from labkit.channels.base import DEFAULT_TIMEOUT, Capacity, Facts, Lifeline
from labkit.channels.packet import PacketReceiver, PacketSender, checked, grant

KIND, TYPE = "unix_datagram", socket.SOCK_DGRAM
MAX_MESSAGE = 1 << 17

FACTS = Facts(
    boundaries=True,
    ordered=True,
    tells_close=False,
    pollable=True,
    duplex=True,
    related_only=False,
    many_senders=True,
    many_receivers=True,
    reliable=True,
    handed_over=True,
    persistence="process",
    max_message=MAX_MESSAGE,
    namespaced_by="mount",
    copies=3,
    manual="unix(7)",
)


def open(*, max_message: int = MAX_MESSAGE) -> tuple[DatagramSender, DatagramReceiver]:
    """A new connected pair.

    Args:
        max_message: bytes in the largest message. It sets SO_SNDBUF, the bytes that may wait in the socket.

    Raises:
        ValueError: max_message is not positive, or more than net.core.wmem_max lets this user ask for.
    """
    checked(max_message)
    left, right = socket.socketpair(socket.AF_UNIX, TYPE)
    with left, right:
        grant(left, max_message)
        here, there = Lifeline.pair()
        for end in (left, right):
            end.setblocking(False)
        return DatagramSender(left.detach(), max_message, here), DatagramReceiver(right.detach(), max_message, there)


def open_named(name: str, *, max_message: int = MAX_MESSAGE) -> tuple[DatagramSender, DatagramReceiver]:
    """Receive at `name`, and connect to it. A name that was left by a dead process is taken over.

    Raises:
        FileExistsError: a living process receives at this name, or something else has it.
        ValueError: as `open`, or the name is not one word of at most 80 bytes.
    """
    rx = open_receiver(name, create=True, max_message=max_message)
    try:
        return open_sender(name, max_message=max_message), rx
    except BaseException:
        rx.close()
        raise


def open_sender(name: str, create: bool = False, *, max_message: int = MAX_MESSAGE) -> DatagramSender:
    """A sender to the receiver of this name.

    Raises:
        FileNotFoundError: there is no such name.
        ConnectionRefusedError: the process that received has died.
        ValueError: as `open`, or `create`: a socket's name is made by its receiver.
    """
    names.no_creation(create)
    checked(max_message)
    with names.connect(KIND, TYPE, name, DEFAULT_TIMEOUT) as end:
        grant(end, max_message)
        return DatagramSender(end.detach(), max_message)


def open_receiver(name: str, create: bool = False, *, max_message: int = MAX_MESSAGE) -> DatagramReceiver:
    """Receive at `name`. The name goes when this end is closed.

    Raises:
        FileExistsError: a living process receives at this name, or something else has it.
        FileNotFoundError: there is no such name, and `create` is not given.
    """
    checked(max_message)
    end, made = names.bind(KIND, TYPE, name, create)
    return DatagramReceiver(end.detach(), max_message, name=made)


unlink = partial(names.unlink, KIND)


class DatagramSender(PacketSender):
    kind, facts = KIND, FACTS
    gone = PacketSender.gone | {
        errno.ECONNREFUSED: "the receiver has closed its socket",
        errno.ENOTCONN: "the receiver has closed its socket",
    }

    @property
    def capacity(self) -> Capacity:
        if self.lifeline:
            return super().capacity
        return Capacity(int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text()) + 1, "messages")


class DatagramReceiver(PacketReceiver):
    kind, facts = KIND, FACTS
