"""What crosses the link between main and a renderer: frames, each a small header and one structured clone.

    byte  0        kind, one of Kind
    byte  1        frame of the page that it is from or for; 0 is the main frame
    bytes 2, 3     how many ports travel with it
    bytes 4 to 7   document: which load of the window it belongs to, from 1; a frame of an earlier one is dropped
    bytes 8 to 11  number: of the invocation, the synchronous message, the script or the port; else a count of messages
    bytes 12 to 19 time_ns: when its sender began to send, CLOCK_MONOTONIC nanoseconds; 0 when nobody asked for it
    bytes 20 to 23 took_ns: how long it took then to clone the message, at most 4 seconds
    then           the numbers of the ports, four bytes each
    then           the clone: one value, as labkit.electron.clone.encode makes it; empty where the table says "none"

All little-endian; `electron-shim.js` writes and reads the same. A port has a number that is unique in its window:
odd when the renderer has chosen it, even when main has. A clone refers to a port by its place among the numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple


class Kind(IntEnum):
    """What a frame is, and which value its clone holds."""

    # From a renderer to main
    SEND = 1  # [channel, ...arguments]
    SEND_SYNC = 2  # [channel, ...arguments]; answered by REPLY_SYNC with the same number
    INVOKE = 3  # [channel, ...arguments]; answered by REPLY or FAILED with the same number
    POST = 4  # [channel, message], with ports
    SEND_TO_HOST = 5  # [channel, ...arguments]
    STATE = 6  # [what, detail]: "dom-ready", "did-finish-load", "did-fail-load", "preload-error", "close", "reload"
    CONSOLE = 7  # [level, text]: level is "debug", "log", "info", "warning" or "error"
    EVALUATED = 8  # [true, value] or [false, text of the error]; the number is that of EVALUATE
    RECEIVED = 9  # one byte, its kind, and no clone: a traced message of main has been delivered; its number
    # From main to a renderer
    SEND_TO_PAGE = 32  # [channel, ...arguments]
    POST_TO_PAGE = 33  # [channel, message], with ports
    REPLY = 34  # the value
    FAILED = 35  # text of the error
    REPLY_SYNC = 36  # the value
    EVALUATE = 37  # text of a script
    LOAD = 38  # what the transport's own host wants to know of the page
    # Both ways; the number is the port's
    PORT_MESSAGE = 64  # message, with ports: posted by the peer of this port
    PORT_CLOSED = 65  # none
    PORT_RETURNED = 66  # message, with ports: came for a port that has been transferred away; from a renderer
    PORT_MOVED = 67  # none: main has the port now, nothing more comes for it; the renderer answers with the same


class Malformed(ValueError):
    """Bytes that are no frame, or a frame that does not hold what its kind says."""


class Frame(NamedTuple):
    """A frame, taken apart. The clone is not decoded yet."""

    kind: int
    frame: int
    document: int
    number: int
    time_ns: int
    took_ns: int
    ports: tuple[int, ...]
    clone: bytes


HEADER = struct.Struct("<BBHIIQI")


def pack(
    kind: int, clone: bytes = b"", *, number: int = 0, document: int = 0, ports: Sequence[int] = (), time_ns: int = 0
) -> bytes:
    """A frame as bytes."""
    numbers = struct.pack(f"<{len(ports)}I", *ports) if ports else b""
    return HEADER.pack(kind, 0, len(ports), document, number, time_ns, 0) + numbers + clone


def unpack(data: bytes) -> Frame:
    """The frame that these bytes are.

    Raises:
        Malformed: they are none.
    """
    if len(data) < HEADER.size:
        raise Malformed(f"a frame has at least {HEADER.size} bytes, this has {len(data)}")
    kind, frame, count, document, number, time_ns, took_ns = HEADER.unpack_from(data)
    start = HEADER.size + 4 * count
    if len(data) < start:
        raise Malformed(f"a frame with {count} ports has at least {start} bytes, this has {len(data)}")
    ports = struct.unpack_from(f"<{count}I", data, HEADER.size) if count else ()
    return Frame(kind, frame, document, number, time_ns, took_ns, ports, data[start:])
