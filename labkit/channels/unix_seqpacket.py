"""Unix domain sequenced-packet socket: unix(7), socketpair(2), connect(2). TLPI ch. 57.

The kernel keeps messages apart, in order, and tells both sides when the other has gone. Without a name it is a
connected pair. With a name the receiver listens, and each sender has a connection of its own. Only processes of the
same user, and root's, are let in: the folder of the socket is closed to others, and the kernel says who the peer is
(SO_PEERCRED).
"""

from __future__ import annotations

import socket
from functools import partial

from labkit.channels import names
from labkit.channels.base import DEFAULT_TIMEOUT, TAG_BYTES, Facts
from labkit.channels.listening import Listener
from labkit.channels.packet import PacketReceiver, PacketSender, checked, grant, too_large

KIND, TYPE = "unix_seqpacket", socket.SOCK_SEQPACKET
MAX_MESSAGE = 1 << 17

FACTS = Facts(
    boundaries=True,
    ordered=True,
    tells_close=True,
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


def open(*, max_message: int = MAX_MESSAGE) -> tuple[SeqpacketSender, SeqpacketReceiver]:
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
        return SeqpacketSender(left.detach(), max_message), SeqpacketReceiver(right.detach(), max_message)


def open_named(name: str, *, max_message: int = MAX_MESSAGE) -> tuple[SeqpacketSender, SeqpacketListener]:
    """Listen at `name`, and connect to it. A name that was left by a dead process is taken over.

    Raises:
        FileExistsError: a living process listens at this name, or something else has it.
        ValueError: as `open`, or the name is not one word of at most 80 bytes.
    """
    rx = open_receiver(name, create=True, max_message=max_message)
    try:
        return open_sender(name, max_message=max_message), rx
    except BaseException:
        rx.close()
        raise


def open_sender(
    name: str, create: bool = False, *, max_message: int = MAX_MESSAGE, timeout: float | None = DEFAULT_TIMEOUT
) -> SeqpacketSender:
    """A new connection to the receiver of this name; `timeout` in seconds, if too many wait to be accepted.

    Raises:
        FileNotFoundError: there is no such name.
        ConnectionRefusedError: the process that listened has died.
        ValueError: as `open`, or `create`: a socket's name is made by its receiver.
    """
    names.no_creation(create)
    checked(max_message)
    with names.connect(KIND, TYPE, name, timeout) as end:
        grant(end, max_message)
        return SeqpacketSender(end.detach(), max_message)


def open_receiver(name: str, create: bool = False, *, max_message: int = MAX_MESSAGE) -> SeqpacketListener:
    """Listen at `name`. The name goes when this end is closed.

    Raises:
        FileExistsError: a living process listens at this name, or something else has it.
        FileNotFoundError: there is no such name, and `create` is not given.
    """
    checked(max_message)
    return SeqpacketListener(*names.bind(KIND, TYPE, name, create), max_message)


unlink = partial(names.unlink, KIND)


class SeqpacketSender(PacketSender):
    kind, facts = KIND, FACTS


class SeqpacketReceiver(PacketReceiver):
    kind, facts = KIND, FACTS
    nothing_is_end = True


class SeqpacketListener(Listener):
    kind, facts = KIND, FACTS

    def receive(self, timeout: float | None = DEFAULT_TIMEOUT) -> bytes:
        message = super().receive(timeout)
        if len(message) > self._options + TAG_BYTES:
            raise too_large(self._options)
        return message

    def _connection(self, fd: int) -> SeqpacketReceiver:
        return SeqpacketReceiver(fd, self._options)

    def _welcome(self, end: socket.socket) -> bool:
        return names.same_user(end)
