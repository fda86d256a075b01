"""Our ends of the sockets to a renderer's process: written to without waiting, read as long as it is wanted."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable

from labkit.electron.loop import main_loop

READ_BYTES = 1 << 18


def tie(fd: int, pid: int) -> None:
    """Have the kernel kill a process when the other end of this socket, which it has inherited, is closed."""
    with contextlib.suppress(OSError):  # a kernel without it: the renderer ends when it next looks at its socket
        fcntl.fcntl(fd, fcntl.F_SETOWN, pid)
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)


class Outgoing:
    """Our end of a socket, written to without waiting: what does not fit waits here and is written by the main loop."""

    def __init__(self, end: socket.socket, most: int):
        self.end, self.most = end, most
        self.lock = threading.RLock()
        self.waiting: deque[memoryview] = deque()
        self.unread = 0
        self.closed = False

    def write(self, data: bytes) -> None:
        with self.lock:
            if self.closed:
                return
            if self.unread + len(data) > self.most:
                raise BufferError(f"the window does not read: {self.unread:,} bytes wait for it already")
            rest = memoryview(data)
            if not self.waiting:
                rest = rest[self._try(rest) :]
            if rest:
                self.waiting.append(rest)
                self.unread += len(rest)
                if len(self.waiting) == 1:
                    main_loop.call(self._watch)

    def _try(self, data: memoryview) -> int:
        try:
            return self.end.send(data)
        except BlockingIOError:
            return 0
        except OSError:  # it has gone: the end of the other socket tells
            return len(data)

    def _watch(self) -> None:
        with self.lock:
            if self.waiting and not self.closed:
                main_loop.add_writer(self.end.fileno(), self._writable)

    def _writable(self) -> None:
        with self.lock:
            while self.waiting:
                rest = self.waiting[0]
                sent = self._try(rest)
                self.unread -= sent
                if sent < len(rest):
                    self.waiting[0] = rest[sent:]
                    return
                self.waiting.popleft()
            main_loop.remove_writer(self.end.fileno())

    def close(self) -> None:
        """In the main loop."""
        with self.lock:
            if not self.closed:
                self.closed = True
                main_loop.remove_writer(self.end.fileno())
                self.waiting.clear()
                self.end.close()


class Incoming:
    """Our end of a socket, read by the main loop.

    Args:
        end: the socket.
        take: called with all that has been read and not been taken: takes what is whole off its beginning. It returns
            whether more is wanted; if not, nothing is read until `read_on` is called, and who sends has to wait.
        ended: called when the other side has gone.
    """

    def __init__(self, end: socket.socket, take: Callable[[bytearray], bool], ended: Callable[[], None]):
        self.end, self._take, self._ended = end, take, ended
        self.buffer = bytearray()
        self._reading = self._closed = False

    def read_on(self) -> None:
        """Read, or read again; from any thread."""
        main_loop.call(self._read_on)

    def _read_on(self) -> None:
        if not self._closed and not self._reading and self._take(self.buffer) and not self._closed:
            self._reading = True
            main_loop.add_reader(self.end.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            data = self.end.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._ended()
            return
        self.buffer += data
        if not self._take(self.buffer):
            self._stop()

    def _stop(self) -> None:
        if self._reading:
            self._reading = False
            main_loop.remove_reader(self.end.fileno())

    def close(self) -> None:
        """In the main loop."""
        if not self._closed:
            self._closed = True
            self._stop()
            self.end.close()
