"""A receiver that any number of senders find by its name, each with a connection of its own: listen(2), accept(2).

    sender A ──connection──┐
    sender B ──connection──┼── epoll(7) ── receive()
    somebody new ──────────┘ listening socket

The connections that have something take turns, a message each, so that a busy sender does not keep the others waiting;
every TURNS messages the kernel is asked who else has something. A connection has its own buffer, and so a message
whose sender dies half-way is forgotten with it.

The channel is closed when there has been a sender, all have gone, and none waits to be accepted. It may be received
from again when another has come. TLPI §56.5, §63.4.
"""

from __future__ import annotations

import errno
import io
import os
import select
import socket
from collections import deque
from collections.abc import Iterable
from typing import Any

from labkit.channels.base import DEFAULT_TIMEOUT, Closed, Receiver, Waiter, arrived, travelling
from labkit.channels.names import Name

TURNS = 16


class Listener(Receiver):
    """Receives from all senders that connect. It owns the listening socket, the connections and the name.

    Args:
        listening: the socket.
        name: to be removed when this end closes.
        options: what `_connection` needs, the same in every process.
        connections: those that were accepted already, in another process.
        came: whether there has been a sender.
    """

    def __init__(
        self,
        listening: socket.socket,
        name: Name | None,
        options: Any = None,
        connections: Iterable[Any] = (),
        came: bool = False,
    ):
        self._listening, self.name, self._options, self._came = listening, name, options, came
        listening.setblocking(False)
        self._connections: dict[int, Any] = {}
        self._ready: deque[Any] = deque()  # connections that may have something
        self._turns = TURNS
        self._begin()
        for connection in connections:
            self._add(connection)

    def _begin(self) -> None:
        """Begin an epoll set. A copy made by fork(2) would share its parent's, which knows the parent's descriptors."""
        epoll = select.epoll()
        for fd in (self._listening.fileno(), *self._connections):
            epoll.register(fd, select.EPOLLIN)
        self._epoll, self._epoll_of = epoll, os.getpid()

    def _connection(self, fd: int) -> Receiver:
        """The receiving end of one connection."""
        raise NotImplementedError

    def _welcome(self, end: socket.socket) -> bool:
        """Whether messages of this peer are to be received at all."""
        return True

    def receive(self, timeout: float | None = DEFAULT_TIMEOUT) -> bytes:
        ready = self._ready
        if ready and self._turns:
            self._turns -= 1
            try:
                message: bytes | None = ready[0]._receive()
            except MemoryError:
                message = None  # it will come again below, where the connection is dropped
            if message is not None:
                ready.rotate(-1)
                return message
        return self._retry(timeout)

    def _retry(self, timeout: float | None) -> bytes:
        waiter = None
        while True:
            self._must_be_open()
            self._look()
            while self._ready:
                try:
                    message: bytes | None = self._ready[0]._receive()
                except MemoryError:
                    self._drop(self._ready.popleft())  # it announced a message larger than this machine's memory
                    raise
                if message is not None:
                    self._ready.rotate(-1)
                    return message
                connection = self._ready.popleft()
                if connection._calls.errno not in (errno.EAGAIN, errno.EINTR):
                    self._drop(connection)
            if self._came and not self._connections:
                if not self._look():
                    raise Closed("every sender has closed its connection, and nobody waits to be accepted")
                continue
            if timeout == 0:
                raise TimeoutError("nothing has come from any sender")
            waiter = waiter or Waiter(timeout)
            waiter.wait({self._epoll.fileno(): select.POLLIN}, "nothing came from any sender")

    def _look(self) -> bool:
        """Ask the kernel who has something, and accept who has come; whether there was anything."""
        self._turns = TURNS
        if self._epoll_of != os.getpid():
            self._begin()
        found = self._epoll.poll(0)
        waiting = False
        for fd, _ in found:
            if fd == self._listening.fileno():
                waiting = True
            elif self._connections[fd] not in self._ready:
                self._ready.append(self._connections[fd])
        if waiting:
            self._accept()
        return bool(found)

    def _accept(self) -> None:
        while True:
            try:
                end, _ = self._listening.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as reason:
                if self._ready:  # first what the others have sent; then the descriptors may do
                    return
                raise OSError(
                    reason.errno, f"accept: {os.strerror(reason.errno or errno.EIO)}; a sender waits to be accepted"
                ) from reason
            if self._welcome(end):
                self._came = True
                self._add(self._connection(end.detach()))
            else:
                end.close()

    def _add(self, connection: Any) -> None:
        self._epoll.register(connection.fileno(), select.EPOLLIN)
        self._connections[connection.fileno()] = connection
        self._ready.append(connection)

    def _drop(self, connection: Any) -> None:
        del self._connections[connection.fileno()]
        self._epoll.unregister(connection.fileno())  # closing would not do while a process made by fork(2) has a copy
        connection.close()

    @property
    def senders(self) -> int:
        """How many connections there are, of those that have been accepted."""
        return len(self._connections)

    def fileno(self) -> int:
        if self._epoll_of != os.getpid() and not self.closed:
            self._begin()
        return self._epoll.fileno()

    def clone(self) -> Any:
        raise io.UnsupportedOperation("a name has one receiver, to which any number of senders connect")

    def _farewell(self) -> None:
        if self.name:
            self.name.remove()

    def _let_go(self) -> None:
        self._epoll.close()
        self._listening.close()
        self._ready.clear()
        for connection in self._connections.values():
            connection.given_away()
        self._connections.clear()
        if self.name:
            self.name.let_go()

    def __reduce__(self) -> Any:
        connections = list(self._connections.values())
        return _arrives, (
            type(self),
            travelling(self._listening.fileno()),
            self.name,
            self._options,
            connections,
            self._came,
        )


def _arrives(
    end: type[Listener], ticket: Any, name: Name, options: Any, connections: list[Any], came: bool
) -> Listener:
    return end(socket.socket(fileno=arrived(ticket)), name, options, connections, came)
