"""Listening in between a front end and its Jupyter kernel: every message of all five sockets, with its time.

    manager = KernelManager()                       # of jupyter_client
    manager.start_kernel()
    with Wiretap(manager, trace) as tap:
        client = tap.client()                       # a front end that talks through the tap
        client.execute("6 * 7")
        tap.heard()                                 # a row a message

    front end               tap                      kernel
    shell    DEALER  --->   ROUTER | DEALER  --->    ROUTER       execute_request, execute_reply, comm_msg, ...
    control  DEALER  --->   ROUTER | DEALER  --->    ROUTER       interrupt_request, shutdown_request, ...
    stdin    DEALER  <---   ROUTER | DEALER  <---    ROUTER       input_request, input_reply
    iopub    SUB     <---   XPUB   | XSUB    <---    XPUB         status, stream, display_data, ...
    hb       REQ     --->   ROUTER | DEALER  --->    REP          any bytes, sent back

The tap passes every frame on as it is. It need not know the key that messages are signed with; it could not change one
either. It sits where the Jupyter server sits, which does the same between a WebSocket of the browser and these sockets.

In the trace a message is sent at the time that its own header tells, and received when it passes the tap. Heartbeats
have no header.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import queue
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import zmq

from labkit.events import EVENT, FIRST_BYTES, Action
from labkit.table import Table
from labkit.trace import Trace

SOCKETS = ("shell", "control", "stdin", "iopub", "hb")
DELIMITER = b"<IDS|MSG>"
START_TIMEOUT = 60.0
_LOOK_UP = 50
"""Milliseconds after which the tap looks whether it is to end."""


@dataclass(frozen=True)
class Heard:
    """A message that has passed."""

    time_ns: int
    """When it passed, CLOCK_MONOTONIC."""
    sent_ns: int
    """When it was made, as its header says, on the same clock."""
    socket: str
    to_kernel: bool
    type: str
    """Its msg_type; "heartbeat" on hb."""
    header: dict[str, Any]
    parent: dict[str, Any]
    """The header of the message that it was sent because of; empty when there was none."""
    content: dict[str, Any]
    frames: tuple[bytes, ...]
    """As it was on the wire, after what routes it: delimiter, signature, four times JSON, buffers."""

    @property
    def size(self) -> int:
        """Bytes of all frames."""
        return sum(map(len, self.frames))


class Conversation(Table):
    """Messages in the order in which they have passed."""

    columns = ("ms", "socket", "direction", "message", "because of", "content")
    empty = "nothing was said"

    def cells(self, row: Heard) -> tuple[str, ...]:
        """The texts of one row."""
        since = (row.time_ns - self[0].time_ns) / 1e6
        direction = "front end → kernel" if row.to_kernel else "kernel → front end"
        content = json.dumps(row.content, ensure_ascii=False)
        content = content if len(content) <= 60 else content[:59] + "…"
        return f"{since:.1f}", row.socket, direction, row.type, row.parent.get("msg_type", ""), content


class Wiretap:
    """A tap between front ends and the kernel of a jupyter_client KernelManager. Listens on 127.0.0.1.

    Args:
        manager: of a kernel that runs, over TCP, which is Jupyter's way unless told otherwise.
        trace: records the messages, too.

    Raises:
        ValueError: the kernel does not run, or does not use TCP.
    """

    def __init__(self, manager: Any, trace: Trace | None = None):
        info = manager.get_connection_info()
        if info["transport"] != "tcp" or not manager.has_kernel:
            raise ValueError("the tap wants the manager of a kernel that runs, with transport='tcp'")
        self._manager, self._trace = manager, trace
        self._heard: list[Heard] = []
        self._told = threading.Condition()
        self._context = zmq.Context()
        self._pairs: dict[str, tuple[Any, Any]] = {}  # of each name: our side to the front end, our side to the kernel
        ports = {}
        identity = os.urandom(8)  # one for all, as a front end has: the kernel asks for input where it was called from
        for name in SOCKETS:
            here = self._context.socket(zmq.XPUB if name == "iopub" else zmq.ROUTER)
            there = self._context.socket(zmq.XSUB if name == "iopub" else zmq.DEALER)
            if name not in ("iopub", "hb"):
                there.identity = identity
            for end in (here, there):
                end.linger = 0
                end.hwm = 0  # nothing is dropped, and nobody waits for a kernel that has gone
            ports[f"{name}_port"] = here.bind_to_random_port("tcp://127.0.0.1")
            there.connect(f"tcp://{info['ip']}:{info[f'{name}_port']}")
            self._pairs[name] = here, there
        self.connection_info: Any = {**info, "ip": "127.0.0.1", **ports}
        """What a front end must know: as in a connection file, with the ports of the tap."""
        self._record = _Record(trace, manager.provisioner.pid) if trace else None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="labkit wiretap", daemon=True)
        self._thread.start()

    def client(self) -> Any:
        """A front end, jupyter_client's blocking one, that talks through the tap. Close it with stop_channels().

        Raises:
            TimeoutError: the kernel has not answered within a minute.
        """
        from jupyter_client.blocking import BlockingKernelClient

        client = BlockingKernelClient()
        client.load_connection_info(self.connection_info)
        client.start_channels()
        end = time.monotonic() + START_TIMEOUT
        # Its own wait_for_ready takes a kernel for dead that does not send a heartbeat within a second.
        client.kernel_info()
        while not (_came(client.get_shell_msg, 0.5) and _came(client.get_iopub_msg, 0.5)):
            if time.monotonic() > end:
                client.stop_channels()
                raise TimeoutError(f"the kernel did not answer within {START_TIMEOUT:g} s: does it run?")
            client.kernel_info()
        while _came(client.get_shell_msg, 0.2) or _came(client.get_iopub_msg, 0.2):
            pass
        return client

    def heard(self, *sockets: str) -> Conversation:
        """What has passed since it was last forgotten, on these sockets, on all unless named, without heartbeats."""
        with self._told:
            return Conversation(h for h in self._heard if h.socket in (sockets or SOCKETS[:-1]))

    def forget(self) -> None:
        """Begin anew."""
        with self._told:
            self._heard.clear()

    def wait_for(self, message: str, timeout: float = 30.0) -> Heard:
        """The first message of this type, waiting for it. Raises TimeoutError."""
        found: list[Heard] = []

        def is_there() -> bool:
            found[:] = [heard for heard in self._heard if heard.type == message]
            return bool(found)

        with self._told:
            if not self._told.wait_for(is_there, timeout):
                raise TimeoutError(f"no {message} has passed within {timeout:g} s")
        return found[0]

    def settle(self, timeout: float = 30.0) -> None:
        """Wait until the kernel is idle again after every request that has made it busy. Raises TimeoutError."""

        def is_settled() -> bool:
            said: dict[str, set[str]] = {"busy": set(), "idle": set(), "starting": set()}
            for heard in self._heard:
                if heard.type == "status":
                    said[heard.content["execution_state"]].add(heard.parent.get("msg_id", ""))
            return bool(said["busy"]) and said["busy"] <= said["idle"]

        with self._told:
            if not self._told.wait_for(is_settled, timeout):
                raise TimeoutError(f"the kernel was not idle again within {timeout:g} s")

    def passes_through(self, pid: int, name: str) -> None:
        """From now on it is this process that talks here, for a front end behind it: see labkit.webserver."""
        if self._record:
            self._record.passes_through(pid, name)

    def has_gone(self, pid: int) -> None:
        """That process has ended."""
        if self._trace is not None:
            self._trace.process_ended(pid, "ended")

    def crossed(self, name: str, to_kernel: bool, header: dict[str, Any], size: int, time_ns: int) -> None:
        """A message on the way before the tap: sent by the front end at this time, or received there, CLOCK_MONOTONIC.

        Its other end is where it passes the tap, which is waited for; the server's own messages do not.
        """

        def passed() -> Heard | None:
            return next((h for h in reversed(self._heard) if h.header.get("msg_id") == header["msg_id"]), None)

        with self._told:
            heard = self._told.wait_for(passed, 5.0 if to_kernel else 0.5)
        if heard and self._record:
            here, there = (time_ns, heard.time_ns) if to_kernel else (heard.time_ns, time_ns)
            self._record.add(name, to_kernel, header["msg_type"], size, here, there, before=True)

    def close(self) -> None:
        """End it; who talks through it is cut off. Idempotent."""
        self._stop.set()
        self._thread.join()
        if self._record:
            self._record.close()
            self._record = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _listen(self) -> None:
        poller = zmq.Poller()
        ways = {}
        for name, (here, there) in self._pairs.items():
            for end, other, to_kernel in ((here, there, True), (there, here, False)):
                poller.register(end, zmq.POLLIN)
                ways[end] = name, other, to_kernel
        while not self._stop.is_set():
            for end, _ in poller.poll(_LOOK_UP):
                name, other, to_kernel = ways[end]
                frames = end.recv_multipart()
                now = time.monotonic_ns()
                other.send_multipart(frames)
                if heard := _parsed(now, name, to_kernel, frames):
                    with self._told:
                        self._heard.append(heard)
                        self._told.notify_all()
                    if self._record:
                        self._record.write(heard)
        for end in ways:
            end.close()
        self._context.term()


def _came(get: Any, timeout: float) -> bool:
    """Whether a message came, which is passed over."""
    with contextlib.suppress(queue.Empty):
        get(timeout=timeout)
        return True
    return False


def _parsed(now: int, name: str, to_kernel: bool, frames: list[bytes]) -> Heard | None:
    """The message in some frames; None for what is none: a subscription, or whatever somebody sends to an open port."""
    if name == "hb":
        return Heard(now, now, name, to_kernel, "heartbeat", {}, {}, {}, tuple(frames[-1:]))
    if DELIMITER not in frames:
        return None
    frames = frames[frames.index(DELIMITER) :]
    with contextlib.suppress(ValueError, TypeError, LookupError, AttributeError):
        header, parent, _, content = (dict(json.loads(frame)) for frame in frames[2:6])
        made = datetime.datetime.fromisoformat(header["date"].replace("Z", "+00:00")).timestamp()
        sent = min(now, int(made * 1e9) - time.time_ns() + time.monotonic_ns())
        return Heard(now, sent, name, to_kernel, str(header["msg_type"]), header, parent, content, tuple(frames))
    return None


class _Record:
    """Writes down what passes, for a trace: a channel for each socket and direction that is used."""

    def __init__(self, trace: Trace, kernel: int):
        self._trace, self._front_end, self._kernel = trace, os.getpid(), kernel
        self._events: deque[tuple[Any, ...]] = deque()
        self._channels: dict[tuple[str, int, int], tuple[int, int, int]] = {}  # by name, sender and receiver
        self._near, self._direct = self._front_end, True  # who talks here: the front end, or a server for it
        self._lock = threading.Lock()
        self._count = 0
        trace.add_process(kernel, "kernel")
        trace.add_process(self._front_end, "front end")
        self._end = trace.add_source(self._take)

    def passes_through(self, pid: int, name: str) -> None:
        self._trace.add_process(pid, name)
        self._near, self._direct = pid, False

    def write(self, heard: Heard) -> None:
        sent = heard.time_ns if heard.to_kernel and not self._direct else heard.sent_ns
        self.add(heard.socket, heard.to_kernel, heard.type, heard.size, sent, heard.time_ns)

    def add(
        self, name: str, to_kernel: bool, kind: str, size: int, sent: int, received: int, before: bool = False
    ) -> None:
        """A message between the kernel and who talks with it, or `before` that, from front end to server."""
        near, far = (self._front_end, self._near) if before else (self._near, self._kernel)
        sender, receiver = (near, far) if to_kernel else (far, near)
        with self._lock:
            if (name, sender, receiver) not in self._channels:
                whom = "server" if before and to_kernel else "kernel" if to_kernel else "front end"
                if not before and not to_kernel and not self._direct:
                    whom = "server"
                kind_of_channel = "websocket" if before else "zmq"
                self._channels[name, sender, receiver] = self._trace.foreign(
                    kind_of_channel, f"{name} → {whom}", 1000, "messages", 0
                )
            channel, sends, receives = self._channels[name, sender, receiver]
            self._count += 1
            message = (sends + 1) << 40 | self._count, size
            first = kind.encode()[:FIRST_BYTES] if self._trace.contents else b""
            for at, pid, endpoint, action, told in (
                (sent, sender, sends, Action.SEND_BEGINS, first),
                (sent, sender, sends, Action.SEND_ENDS, b""),
                (received, receiver, receives, Action.RECEIVE_ENDS, b""),
            ):
                self._events.append((at, *message, pid, channel, endpoint, action, told))

    def _take(self) -> np.ndarray:
        return np.array([self._events.popleft() for _ in range(len(self._events))], EVENT)

    def close(self) -> None:
        for (_, *people), (channel, *ends) in self._channels.items():
            for pid, endpoint in zip(people, ends, strict=True):
                self._events.append((time.monotonic_ns(), 0, 0, pid, channel, endpoint, Action.CLOSED, b""))
        self._end()
