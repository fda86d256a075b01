"""Objects on their way between two Jupyter kernels: the bytes in a memfd, ends of channels as descriptors (SCM_RIGHTS).

`take` and `give` run in the other kernel, which loads this file and no more of what starts kernels.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import socket
import struct
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import dill
from multiprocess import reduction

from labkit.baggage import Baggage, unpacking
from labkit.channels.base import Endpoint
from labkit.launch import ends_in, pickled

MOST_DESCRIPTORS = 252
"""Descriptors in one message, less one for the memory they come with: SCM_MAX_FD in unix(7)."""


@contextlib.contextmanager
def packed(values: dict[str, Any]) -> Iterator[tuple[bytes, list[int]]]:
    """The values as bytes, and the descriptors that belong to them. Those made for the journey are closed at the end.

    Raises:
        TypeError: a value cannot be sent.
    """
    baggage = Baggage()
    try:
        with baggage.packing():
            payload = _pickle(values)
        yield payload, baggage.descriptors
    finally:
        baggage.arrived()


def _pickle(values: dict[str, Any]) -> bytes:
    try:
        return dill.dumps(sys.path) + pickled(values, reduction.ForkingPickler)
    except Exception:
        for name, value in values.items():
            try:
                pickled(value, reduction.ForkingPickler)
            except Exception as reason:
                raise TypeError(
                    f"{name}, a {type(value).__name__}, cannot travel to another kernel: {reason}. "
                    "Make it there, in a %%kernel cell"
                ) from None
        raise


def send(sock: socket.socket, number: int, payload: bytes, descriptors: list[int]) -> None:
    """Send a numbered message of any size. The bytes go in a memfd, so that nobody has to wait for the other side."""
    with open(os.memfd_create("labkit-hand", os.MFD_CLOEXEC), "wb") as memory:
        memory.write(payload)
        memory.flush()
        socket.send_fds(sock, [struct.pack("<Q", number)], [memory.fileno(), *descriptors])


def receive(sock: socket.socket, number: int) -> tuple[bytes, list[int]]:
    """The message with this number; what came before it was not taken, and never will be."""
    while True:
        text, (memory, *descriptors), _, _ = socket.recv_fds(sock, 8, MOST_DESCRIPTORS + 1, socket.MSG_CMSG_CLOEXEC)
        with open(memory, "rb") as file:
            payload = file.read() if file.seek(0) == 0 else b""
        if struct.unpack("<Q", text)[0] == number:
            return payload, descriptors
        _close(descriptors)


def _close(descriptors: list[int]) -> None:
    for fd in descriptors:
        os.close(fd)


def take(hand: int, number: int) -> None:
    """In the kernel: make variables of what was handed over."""
    with socket.socket(fileno=os.dup(hand)) as sock:
        payload, descriptors = receive(sock, number)
    file = io.BytesIO(payload)
    with unpacking(descriptors):
        theirs = dill.load(file)
        sys.path += [place for place in theirs if place not in sys.path]  # what they have imported is found here, too
        values = dill.load(file)
    _received.update(ends_in(values))
    shell().push(values)


def give(hand: int, number: int, expression: str) -> None:
    """In the kernel: send a value back."""
    value = eval(expression, shell().user_ns)
    with socket.socket(fileno=os.dup(hand)) as sock:
        send(sock, number, pickled(value), [])


def shell() -> Any:
    return sys.modules["IPython"].get_ipython()


_received: weakref.WeakSet[Endpoint] = weakref.WeakSet()


@atexit.register
def _close_received() -> None:
    """Who ends well says so to the other side, and to the trace."""
    for end in list(_received):
        end.close()
