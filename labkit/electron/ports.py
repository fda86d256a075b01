"""Message ports: channels that can be handed from main to a page, from page to page, and back.

    MessagePortMain -> End <-> End <- a MessagePort in a page, known there by its number

A channel has two ends, and an end lives somewhere: here, in a window, or in a message on its way. Main knows all of
those that are not both in one page, and passes on what goes from window to window. An end that leaves a window may
still be sent messages there; they come back (PORT_RETURNED) before the window says that there are no more (PORT_MOVED),
and only then does what came later follow: so that the order is kept wherever an end goes.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from labkit.electron.clone import Error, decode, encode, undefined
from labkit.electron.emitter import EventEmitter
from labkit.electron.frames import Frame, Kind
from labkit.electron.loop import log, main_loop

_lock = threading.RLock()  # over all ends: who is whose peer, where each lives, in which order messages go
_alive: set[MessagePortMain] = set()  # started: their peer may post to them whoever else has forgotten them


class Window(Protocol):
    """What an end needs of the window that it lives in."""

    ports: Ports

    def _post_port(self, kind: Kind, number: int, clone: bytes, ports: Sequence[int]) -> None: ...


class End:
    """One end of a channel."""

    def __init__(self) -> None:
        self.peer: End | None = None
        self.window: Any = None  # where it lives, else here or on its way
        self.number = 0  # in that window
        self.port: weakref.ref[MessagePortMain] | None = None  # what stands for it here
        self.queue: deque[tuple[bytes, list[End]]] = deque()
        self.later: deque[tuple[bytes, list[End]]] | None = None  # while the window that it has left sends things back
        self.started = False
        self.closed = False
        self.peer_closed = False

    def deliver(self, clone: bytes, ends: list[End], returned: bool = False) -> None:
        """A message for this end. Hold the lock."""
        if self.closed:
            for end in ends:
                end.close()
        elif self.later is not None and not returned:
            self.later.append((clone, ends))
        elif self.window is not None:
            give(self.window, ends, lambda numbers: self._forward(clone, numbers))
        else:
            self.queue.append((clone, ends))
            if self.started:
                main_loop.call(self.pump)

    def _forward(self, clone: bytes, numbers: list[int]) -> None:
        self.window._post_port(Kind.PORT_MESSAGE, self.number, clone, numbers)

    def pump(self) -> None:
        """Emit one message, in the main loop."""
        with _lock:
            port = self.port() if self.port else None
            if not self.started or port is None or self.closed:
                return
            entry = self.queue.popleft() if self.queue else None
        try:
            if entry:
                clone, ends = entry
                ports = [MessagePortMain(end) for end in ends]
                try:
                    data = decode(clone, ports=ports)
                except ValueError as reason:
                    log.error("Dropped a malformed message to a port: %s", reason)
                else:
                    port.emit("message", MessageEvent(data, ports))
        finally:
            if self.peer_closed and not self.queue and self.later is None:
                self.gone()

    def close(self) -> None:
        """It is closed where it lives."""
        with _lock:
            if self.closed:
                return
            self._end()
            if self.peer:
                self.peer.hang_up()

    def hang_up(self) -> None:
        """Its peer has been closed. What it has been sent before comes first, also when it is not started yet.

        Hold the lock.
        """
        if self.closed or self.peer_closed:
            return
        self.peer_closed = True
        if self.window is not None:
            if self.later is None:
                self._farewell()
        elif self.started:
            main_loop.call(self.pump)
        elif not self.queue and self.later is None:
            main_loop.call(self.gone)

    def _farewell(self) -> None:
        self.window._post_port(Kind.PORT_CLOSED, self.number, b"", ())
        self._end()

    def gone(self) -> None:
        with _lock:
            if self.port is None:
                return  # on its way: whoever gets it is told
            self._end()

    def _end(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self.window is not None:
            self.window.ports.here.pop(self.number, None)
        for _, ends in [*self.queue, *(self.later or ())]:
            for end in ends:
                end.close()
        self.queue.clear()
        port = self.port() if self.port else None
        if port is not None:
            _alive.discard(port)
            main_loop.call(port._closed)

    def flushed(self) -> None:
        """The window that it has left has nothing more to send back. Hold the lock."""
        later, self.later = self.later or deque(), None
        for clone, ends in later:
            self.deliver(clone, ends)
        if self.peer_closed and not self.closed:
            self.peer_closed = False
            self.hang_up()


def give(window: Any, ends: Sequence[End], post: Any) -> None:
    """Ends go to live in a window: `post(numbers)` sends the frame that carries them, what they had queued follows."""
    with _lock:
        numbers = []
        for end in ends:
            end.window, end.number = window, window.ports.next_number()
            window.ports.here[end.number] = end
            numbers.append(end.number)
        post(numbers)
        for end in ends:
            queue, end.queue = end.queue, deque()
            for clone, nested in queue:
                end.deliver(clone, nested, returned=True)
            if end.peer_closed and end.later is None:
                end._farewell()


class Ports:
    """The ends that live in one window."""

    def __init__(self, window: Any):
        self.window = window
        self.here: dict[int, End] = {}
        self.leaving: dict[int, End] = {}  # they have left, and the window has not said yet that nothing more is there
        self._last = 0

    def next_number(self) -> int:
        self._last += 2  # ours are even
        return self._last

    def take(self, numbers: Sequence[int]) -> list[End]:
        """The ends that come from the window in a frame with these numbers."""
        with _lock:
            ends = []
            for number in numbers:
                end = self.here.pop(number, None)
                if end is None:
                    end, other = End(), End()
                    end.peer, other.peer = other, end
                    other.window, other.number = self.window, number
                    self.here[number] = other
                else:
                    end.window, end.number, end.later = None, 0, deque()
                    self.leaving[number] = end
                    self.window._post_port(Kind.PORT_MOVED, number, b"", ())
                ends.append(end)
            return ends

    def receive(self, frame: Frame) -> None:
        """A frame about a port has come from the window."""
        with _lock:
            ends = self.take(frame.ports)
            here = self.here.get(frame.number)
            if frame.kind == Kind.PORT_MESSAGE and here and here.peer:
                here.peer.deliver(frame.clone, ends)
            elif frame.kind == Kind.PORT_CLOSED and here:
                here.close()
            elif frame.kind == Kind.PORT_RETURNED and frame.number in self.leaving:
                self.leaving[frame.number].deliver(frame.clone, ends, returned=True)
            elif frame.kind == Kind.PORT_MOVED and frame.number in self.leaving:
                self.leaving.pop(frame.number).flushed()

    def close(self) -> None:
        """The page has gone, and its ports with it."""
        with _lock:
            for end in [*self.here.values()]:
                end.close()
            for end in [*self.leaving.values()]:
                end.flushed()
            self.here.clear()
            self.leaving.clear()


@dataclass
class MessageEvent:
    """What a "message" listener of a port is called with."""

    data: Any
    ports: list[MessagePortMain]


class MessagePortMain(EventEmitter):
    """A port in main. Events: "message" (an event with data and ports), once it is started, and "close" ().

    Messages wait until `start()`. A port that is handed to a page, or through another port, is used up here. One that
    is forgotten before it was started closes its channel.
    """

    def __init__(self, end: End):
        super().__init__()
        self._end: End | None = end
        end.port = weakref.ref(self)
        if end.peer_closed and not end.queue and end.later is None:
            main_loop.call(end.gone)

    def post_message(self, message: Any = undefined, transfer: Sequence[MessagePortMain] = ()) -> None:
        """Send a value to the other end, with ports. Does nothing when the port is closed or has been handed on.

        Raises:
            CloneError: the message cannot be cloned.
            TypeError: something to be transferred is no port.
            Error: a port is this one, is named twice, or has been handed on before.
        """
        with _lock:
            end = self._end
            if end is None or end.closed:
                return
            many = isinstance(transfer, (list, tuple))
            ports = list(transfer) if many else []
            clone = encode(message, ports=[port for port in ports if isinstance(port, MessagePortMain)])
            if not many and transfer is not undefined:
                raise TypeError("transferables must be an array of MessagePorts")
            for index, port in enumerate(ports):
                if not isinstance(port, MessagePortMain):
                    raise TypeError(f"Port at index {index} is not a valid port")
            for index, port in enumerate(ports):
                if port is self:
                    raise Error(f"Port at index {index} contains the source port.")
            ends = disentangle(ports)
            if end.peer:
                end.peer.deliver(clone, ends)

    def start(self) -> None:
        """Begin to emit what has come and will come."""
        with _lock:
            end = self._end
            if end is None or end.closed or end.started:
                return
            end.started = True
            _alive.add(self)
            for _ in range(max(len(end.queue), 1)):
                main_loop.call(end.pump)

    def close(self) -> None:
        """Close the channel; "close" is emitted at both ends."""
        if self._end:
            self._end.close()

    def _closed(self) -> None:
        if self._end and self._end.port and self._end.port() is self:
            self.emit("close")

    def _take(self) -> End:
        """Its end, which is somebody else's from now on. Hold the lock."""
        end = self._end
        assert end
        _alive.discard(self)
        self._end, end.port, end.started = None, None, False
        return end

    def __del__(self) -> None:
        end = getattr(self, "_end", None)
        if end is not None and not end.closed and not end.started:
            with contextlib.suppress(Exception):  # the interpreter may be ending
                main_loop.call(end.close)

    postMessage = post_message


def disentangle(ports: Sequence[Any]) -> list[End]:
    """The ends of ports that are to be transferred; the ports are used up.

    Raises:
        Error: one is named twice, or has been handed on before.
    """
    with _lock:
        for index, port in enumerate(ports):
            found = "already neutered" if port._end is None else "a duplicate" if port in ports[:index] else ""
            if found:
                raise Error(f"Port at index {index} is {found}.")
        return [port._take() for port in ports]


class MessageChannelMain:
    """A channel of two ports, `port1` and `port2`."""

    def __init__(self) -> None:
        one, two = End(), End()
        one.peer, two.peer = two, one
        self.port1, self.port2 = MessagePortMain(one), MessagePortMain(two)
