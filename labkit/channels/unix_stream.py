"""Unix domain stream socket: unix(7), socketpair(2), connect(2). TLPI ch. 57.

A byte stream as a pipe is, in both directions: four bytes of length go before each message. Without a name it is a
connected pair with one sender. With a name the receiver listens, and each sender has a connection of its own, whose
messages cannot mix with those of others. Only processes of the same user, and root's, are let in: the folder of the
socket is closed to others, and the kernel says who the peer is (SO_PEERCRED).
"""

from __future__ import annotations

import socket
from functools import partial
from typing import Any

from labkit.channels import names
from labkit.channels.base import DEFAULT_TIMEOUT, LOOK_AGAIN, Capacity, Facts
from labkit.channels.listening import Listener
from labkit.channels.packet import BUFFER_OVERHEAD, option_of
from labkit.channels.stream import LARGEST, StreamReceiver, StreamSender

KIND, TYPE = "unix_stream", socket.SOCK_STREAM

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
    namespaced_by="mount",
    copies=3,
    manual="unix(7)",
)


def open() -> tuple[UnixStreamSender, UnixStreamReceiver]:
    """A new connected pair."""
    left, right = socket.socketpair(socket.AF_UNIX, TYPE)
    return UnixStreamSender(left.detach()), UnixStreamReceiver(right.detach())


def open_named(name: str) -> tuple[UnixStreamSender, UnixStreamListener]:
    """Listen at `name`, and connect to it. A name that was left by a dead process is taken over.

    Raises:
        FileExistsError: a living process listens at this name, or something else has it.
        ValueError: the name is not one word of at most 80 bytes.
    """
    rx = open_receiver(name, create=True)
    try:
        return open_sender(name), rx
    except BaseException:
        rx.close()
        raise


def open_sender(name: str, create: bool = False, timeout: float | None = DEFAULT_TIMEOUT) -> UnixStreamSender:
    """A new connection to the receiver of this name; `timeout` in seconds, if too many wait to be accepted.

    Raises:
        FileNotFoundError: there is no such name.
        ConnectionRefusedError: the process that listened has died.
        ValueError: `create`: a socket's name is made by its receiver.
    """
    names.no_creation(create)
    return UnixStreamSender(names.connect(KIND, TYPE, name, timeout).detach(), name=name)


def open_receiver(name: str, create: bool = False) -> UnixStreamListener:
    """Listen at `name`. The name goes when this end is closed.

    Raises:
        FileExistsError: a living process listens at this name, or something else has it.
        FileNotFoundError: there is no such name, and `create` is not given.
    """
    return UnixStreamListener(*names.bind(KIND, TYPE, name, create))


unlink = partial(names.unlink, KIND)


class UnixStreamSender(StreamSender):
    kind, facts = KIND, FACTS
    look_again = LOOK_AGAIN

    def __init__(self, fd: int, max_message: int = LARGEST, owed: bytes = b"", name: str | None = None):
        super().__init__(fd, max_message, owed)
        self._name = name

    @property
    def capacity(self) -> Capacity:
        return Capacity(option_of(self.fd, socket.SO_SNDBUF), "bytes", BUFFER_OVERHEAD)

    def clone(self) -> Any:
        """One more connection to the same name. Raises io.UnsupportedOperation where there is no name."""
        self._must_be_open()
        return open_sender(self._name) if self._name else super().clone()

    def __reduce__(self) -> Any:
        arrives, (_, *state) = super().__reduce__()
        return arrives, (partial(type(self), name=self._name), *state)


class UnixStreamReceiver(StreamReceiver):
    kind, facts = KIND, FACTS


class UnixStreamListener(Listener):
    kind, facts = KIND, FACTS

    def _connection(self, fd: int) -> UnixStreamReceiver:
        return UnixStreamReceiver(fd)

    def _welcome(self, end: socket.socket) -> bool:
        return names.same_user(end)
