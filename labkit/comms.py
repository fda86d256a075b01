"""A front end without a browser: it talks with a kernel of its own as JupyterLab does, and a trace has each message.

    notebook: front end                          kernel
        shell   comm_open, comm_msg, execute_request ->      read one by one
        iopub   <- status, comm_open, comm_msg, stream       published to whoever listens

A kernel keeps no trace of ours. It stamps what it sends, so we know when it sent; and it says "busy" when it begins
with a message of ours, so we know when it had that. See https://jupyter-client.readthedocs.io/en/stable/messaging.html.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
import uuid
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
from jupyter_client import KernelManager

from labkit.events import EVENT, FIRST_BYTES, Action
from labkit.folders import own_folder
from labkit.trace import Trace

START_SECONDS = 60
ANSWER_SECONDS = 30
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HIGH_WATER = 1000  # messages that ZeroMQ keeps on each side unless told otherwise


class Told(NamedTuple):
    """What a kernel has published."""

    kind: str
    content: dict[str, Any]
    buffers: list[bytes]


class FrontEnd:
    """A kernel of its own, and the two sockets of it that comms use: shell to ask, iopub to be told.

    Args:
        trace: has the messages both ways, "shell" and "iopub", if given.

    Raises:
        RuntimeError: the kernel does not start.
    """

    def __init__(self, trace: Trace | None = None):
        self._record: _Record | None = None
        with contextlib.ExitStack() as undo:
            folder = undo.enter_context(own_folder("kernel"))  # Unix sockets, no ports, which nobody else can reach
            address = {"transport": "ipc", "ip": f"{folder}/k", "connection_file": f"{folder}/kernel.json"}
            self._manager = KernelManager(**address)
            self._manager.start_kernel()
            undo.callback(self._manager.shutdown_kernel, now=True)
            self._client = self._manager.blocking_client()
            self._client.start_channels()
            undo.callback(self._client.stop_channels)
            self._client.wait_for_ready(timeout=START_SECONDS)
            shutil.rmtree(folder, ignore_errors=True)  # all is connected: a kill -9 of us leaves nothing
            self._undo = undo.pop_all()
        self.pid: int = self._manager.provisioner.pid  # type: ignore[union-attr]
        """The kernel's process."""
        if trace is not None:
            self._record = _Record(trace, self.pid)

    def send(self, kind: str, content: dict[str, Any], buffers: Any = None) -> str:
        """Send a message on shell, and do not wait. Returns its id, for `told`."""
        session, socket = self._client.session, self._client.shell_channel.socket
        message = session.msg(kind, content)
        begins = time.monotonic_ns()
        session.send(socket, message, buffers=buffers)
        if self._record:
            self._record.sent(message["msg_id"], kind, content, buffers, begins)
        return str(message["msg_id"])

    def told(self, message: str, timeout: float = ANSWER_SECONDS) -> list[Told]:
        """All that the kernel publishes because of a message that was sent, up to that it is idle again.

        Raises:
            TimeoutError: it was not idle after `timeout` seconds.
        """
        deadline, heard = time.monotonic() + timeout, []
        while True:
            left = deadline - time.monotonic()
            try:
                came = self._client.get_iopub_msg(timeout=max(0, left))
            except Exception as error:  # queue.Empty
                raise TimeoutError(f"the kernel was not done with message {message} after {timeout:g} s") from error
            if self._record:
                self._record.came(came)
            if came["parent_header"].get("msg_id") == message:
                heard.append(Told(came["msg_type"], came["content"], [bytes(each) for each in came["buffers"]]))
                if heard[-1].content.get("execution_state") == "idle":
                    return heard

    def ask(self, kind: str, content: dict[str, Any], buffers: Any = None) -> list[Told]:
        """Send a message, and return what the kernel publishes because of it."""
        return self.told(self.send(kind, content, buffers))

    def run(self, code: str) -> list[Told]:
        """Run code in the kernel, as a cell.

        Raises:
            RuntimeError: it has failed; the text is the error's.
        """
        heard = self.ask(
            "execute_request", {"code": code, "silent": False, "store_history": False, "stop_on_error": True}
        )
        self._client.get_shell_msg(timeout=ANSWER_SECONDS)  # execute_reply; messages of comms have no reply
        for kind, content, _ in heard:
            if kind == "error":
                raise RuntimeError(f"{content['ename']}: {content['evalue']}")
        return heard

    def open(self, target: str, data: dict[str, Any] | None = None) -> tuple[Comm, list[Told]]:
        """Open a comm. Returns our end of it, and what the kernel says: comm_close where it has no such target."""
        comm = Comm(self, uuid.uuid4().hex)
        content = {"comm_id": comm.id, "target_name": target, "data": data or {}}
        return comm, self.ask("comm_open", content)

    def close(self) -> None:
        """End the kernel. Idempotent."""
        if self._record:
            self._record.close()
            self._record = None
        self._undo.close()

    def __enter__(self) -> FrontEnd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Comm:
    """The front end's end of a comm. Messages go both ways, and none is the answer to another."""

    def __init__(self, front: FrontEnd, identifier: str):
        self._front, self.id = front, identifier

    def send(self, data: dict[str, Any], buffers: Any = None) -> list[dict[str, Any]]:
        """Send a message, and return the data of those that come on this comm because of it."""
        heard = self._front.ask("comm_msg", {"comm_id": self.id, "data": data}, buffers)
        return [
            told.content["data"] for told in heard if told.kind == "comm_msg" and told.content["comm_id"] == self.id
        ]

    def close(self) -> list[Told]:
        """Tell the kernel that nobody listens any more."""
        return self._front.ask("comm_close", {"comm_id": self.id, "data": {}})


class _Record:
    """Writes down the messages of a front end, for a trace, which takes them."""

    def __init__(self, trace: Trace, kernel: int):
        self._trace, self._kernel, self._here = trace, kernel, trace.pid
        self._behind = time.monotonic_ns() - time.time_ns()  # what the wall clock is behind CLOCK_MONOTONIC
        self._events: deque[tuple[Any, ...]] = deque(maxlen=1 << 16)
        self._shell = trace.foreign("jupyter", "shell", _HIGH_WATER, "messages", 0)
        self._iopub = trace.foreign("jupyter", "iopub", _HIGH_WATER, "messages", 0)
        self._asked: dict[str, tuple[int, int, int]] = {}  # by Jupyter's id: ours, size, when it was sent
        self._counts = [0, 0]
        trace.add_process(kernel, "kernel")
        self._end = trace.add_source(self._take)

    def sent(self, message: str, kind: str, content: dict[str, Any], buffers: Any, begins: int) -> None:
        channel, sends, _ = self._shell
        number, size = self._number(0, sends), _size(content, buffers)
        self._asked[message] = number, size, begins
        self._write(begins, number, size, self._here, channel, sends, Action.SEND_BEGINS, kind)
        self._write(time.monotonic_ns(), number, size, self._here, channel, sends, Action.SEND_ENDS)

    def came(self, message: dict[str, Any]) -> None:
        now, parent = time.monotonic_ns(), message["parent_header"].get("msg_id")
        made = message["header"]["date"]
        if isinstance(made, str):  # where ipyparallel is loaded, which has jupyter_client leave dates as they are
            made = datetime.fromisoformat(made)
        stamped = (made - _EPOCH) // timedelta(microseconds=1) * 1000 + self._behind
        if message["content"].get("execution_state") == "busy" and parent in self._asked:
            number, size, begun = self._asked.pop(parent)
            channel, _, receives = self._shell
            for action in (Action.RECEIVE_BEGINS, Action.RECEIVE_ENDS):
                known = (number, size) if action == Action.RECEIVE_ENDS else (0, 0)
                self._write(max(begun, stamped), *known, self._kernel, channel, receives, action)
        channel, sends, receives = self._iopub
        number, size = self._number(1, sends), _size(message["content"], message["buffers"])
        stamped = min(stamped, now)
        kind = message["content"].get("execution_state") or message["msg_type"]
        self._write(stamped, number, size, self._kernel, channel, sends, Action.SEND_BEGINS, kind)
        self._write(stamped, number, size, self._kernel, channel, sends, Action.SEND_ENDS)
        self._write(now, 0, 0, self._here, channel, receives, Action.RECEIVE_BEGINS)
        self._write(now, number, size, self._here, channel, receives, Action.RECEIVE_ENDS)

    def close(self) -> None:
        now = time.monotonic_ns()
        ours, kernels = (self._shell[1], self._iopub[2]), (self._shell[2], self._iopub[1])
        for pid, ends in ((self._here, ours), (self._kernel, kernels)):
            for channel, end in zip((self._shell[0], self._iopub[0]), ends, strict=True):
                self._write(now, 0, 0, pid, channel, end, Action.CLOSED)
        self._end()
        self._trace.process_ended(self._kernel, "shut down")

    def _number(self, way: int, sends: int) -> int:
        self._counts[way] += 1
        return (sends + 1) << 40 | self._counts[way]

    def _write(self, *fields: Any) -> None:
        *event, first = fields if isinstance(fields[-1], str) else (*fields, "")
        self._events.append((*event, first.encode()[:FIRST_BYTES] if self._trace.contents else b""))

    def _take(self) -> np.ndarray:
        taken = [self._events.popleft() for _ in range(len(self._events))]
        return np.array(taken, EVENT) if taken else np.empty(0, EVENT)


def _size(content: dict[str, Any], buffers: Any) -> int:
    """Bytes of what a message holds, as JSON and beside it."""
    return len(json.dumps(content, default=str)) + sum(memoryview(each).nbytes for each in buffers or ())
