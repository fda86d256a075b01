"""A Jupyter server, and a front end that talks with it over a WebSocket as the page in a browser does.

    with Wiretap(manager, trace) as tap, JupyterServer(tap) as server, server.connect() as page:
        page.execute("6 * 7")

    page                       server, another process            tap                 kernel
    execute(...)  -- WebSocket, JSON -->   -- shell, signed frames -->  --------------->
                  <-- WebSocket, JSON --   <-- iopub, signed frames --  <---------------

The server is jupyter_server's own. It takes the tap for its kernel (allow_external_kernels, jupyter_client 8.4 or
newer): so it is the server's words that are heard there. In the trace it is a process between the front end and the
kernel. It does not say when it has a message; it passes on at once, so we take the time at which that passes the tap.

Sources: https://jupyter-server.readthedocs.io/en/stable/developers/websocket-protocols.html, RFC 6455.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import secrets
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any, Self

from labkit.channels.base import Closed
from labkit.folders import own_folder
from labkit.wiretap import START_TIMEOUT, Wiretap

CLOSE_TIMEOUT = 10.0


class JupyterServer:
    """A Jupyter server in a process of its own, at 127.0.0.1, whose only kernel is behind a tap. It dies with us.

    Attributes:
        pid: its process.
        port: where it listens; only who knows its token is let in.

    Raises:
        TimeoutError: it was not up within a minute.
        RuntimeError: it has ended instead; the text has its last words.
    """

    def __init__(self, tap: Wiretap):
        self.tap, self.port = tap, 0
        self._token = secrets.token_hex(24)
        with contextlib.ExitStack() as undo:
            folder = Path(undo.enter_context(own_folder("server")))
            (folder / "kernels").mkdir()
            info = {**tap.connection_info, "key": tap.connection_info["key"].decode(), "kernel_name": "tapped"}
            (folder / "kernels" / "kernel.json").write_text(json.dumps(info))
            os.mkfifo(folder / "leash", 0o600)
            undo.callback(os.close, os.open(folder / "leash", os.O_RDWR | os.O_CLOEXEC))
            said = undo.enter_context(tempfile.TemporaryFile())
            options = {
                "ip": "127.0.0.1",
                "port": 0,
                "root_dir": folder,
                "allow_external_kernels": True,
                "external_connection_dir": folder / "kernels",
                "open_browser": False,
                "allow_root": True,
                "log_level": "ERROR",
            }
            places = dict.fromkeys(("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"), str(folder))
            told = [f"--ServerApp.{name}={value}" for name, value in options.items()]
            led = ["-m", "labkit.leash", "--sweep", str(folder / "leash"), str(os.getpid())]
            self._process = subprocess.Popen(
                [sys.executable, *led, "jupyter_server", *told],
                env=os.environ | places | {"JUPYTER_TOKEN": self._token, "JUPYTER_NO_CONFIG": "1"},
                stdout=said,
                stderr=said,
            )
            self.pid = self._process.pid
            undo.callback(self._end)
            self._wait_until_up(folder / f"jpserver-{self.pid}.json", said)
            self._kernel: str = self.ask("/api/kernels")[0]["id"]
            tap.passes_through(self.pid, "server")
            self._undo = undo.pop_all()

    def _wait_until_up(self, note: Path, said: Any) -> None:
        """The server writes down where it listens, and answers a moment later."""
        end = time.monotonic() + START_TIMEOUT
        while True:
            if self._process.poll() is not None:
                said.seek(0)
                words = said.read()[-2000:].decode(errors="replace").strip()
                raise RuntimeError(f"the Jupyter server has ended with status {self._process.returncode}:\n{words}")
            with contextlib.suppress(FileNotFoundError, ValueError, urllib.error.URLError):
                self.port = json.loads(note.read_text())["port"]
                self.ask("/api")
                return
            if time.monotonic() > end:
                raise TimeoutError(f"the Jupyter server was not up within {START_TIMEOUT:g} s")
            time.sleep(0.02)

    def ask(self, path: str) -> Any:
        """GET from the server's REST interface, "/api/kernels" for instance."""
        address = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(address, headers={"Authorization": f"token {self._token}"})
        with urllib.request.urlopen(request, timeout=START_TIMEOUT) as answer:
            return json.load(answer)

    def connect(self) -> Page:
        """A front end, connected by a WebSocket."""
        import websocket

        session = uuid.uuid4().hex
        address = f"ws://127.0.0.1:{self.port}/api/kernels/{self._kernel}/channels?session_id={session}"
        socket = websocket.create_connection(
            address, timeout=START_TIMEOUT, header=[f"Authorization: token {self._token}"], suppress_origin=True
        )
        return Page(self, socket, session)

    def close(self) -> None:
        """End it. Idempotent."""
        self._undo.close()

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(CLOSE_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.tap.has_gone(self.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Page:
    """What the page in the browser does: it sends requests over a WebSocket, and hears what belongs to them."""

    def __init__(self, server: JupyterServer, socket: Any, session: str):
        self._server, self._socket, self._session = server, socket, session

    def execute(self, code: str, timeout: float = 30.0) -> list[dict[str, Any]]:
        """Run code as a cell. Returns what came because of it, up to that the kernel is idle and has replied.

        Raises:
            TimeoutError: that had not come after `timeout` seconds.
            Closed: the server has ended.
        """
        import websocket

        now = datetime.datetime.now(datetime.UTC).isoformat()
        header = {"msg_id": uuid.uuid4().hex, "session": self._session, "username": "reader", "date": now}
        header |= {"version": "5.4", "msg_type": "execute_request"}
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False, "stop_on_error": True}
        message = {"channel": "shell", "header": header, "parent_header": {}, "metadata": {}, "content": content}
        text = json.dumps({**message, "buffers": []})
        tap, end = self._server.tap, time.monotonic() + timeout
        begins = time.monotonic_ns()
        try:
            self._socket.send(text)
        except (websocket.WebSocketConnectionClosedException, ConnectionError):
            raise Closed("the server has ended: JupyterServer(tap) starts a new one") from None
        tap.crossed("websocket", True, header, len(text), begins)
        came: list[dict[str, Any]] = []
        wanted = {"execute_reply", "idle"}
        while wanted:
            self._socket.settimeout(max(0.001, end - time.monotonic()))
            try:
                text = self._socket.recv()
            except websocket.WebSocketTimeoutException:
                raise TimeoutError(f"the cell was not done within {timeout:g} s") from None
            except (websocket.WebSocketConnectionClosedException, ConnectionError):
                raise Closed("the server has ended before the cell was done") from None
            message = json.loads(_without_buffers(text))
            tap.crossed("websocket", False, message["header"], len(text), time.monotonic_ns())
            if message["parent_header"].get("msg_id") == header["msg_id"]:
                came.append(message)
                wanted -= {message["msg_type"], message["content"].get("execution_state")}
        return came

    def close(self) -> None:
        """Close the WebSocket. Idempotent."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _without_buffers(text: str | bytes) -> str | bytes:
    """The JSON of a message. One with buffers comes as binary: how many parts, where each begins, JSON, the buffers."""
    if isinstance(text, str):
        return text
    count = int.from_bytes(text[:4], "big")
    begins = struct.unpack_from(f">{count}I", text, 4)
    return text[slice(*(*begins, None)[:2])]
