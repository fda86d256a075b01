"""Messages on a byte stream: each is preceded by its length, four bytes in the machine's order."""

from __future__ import annotations

import struct
from collections import deque

LENGTH = struct.Struct("=I")


class Unframer:
    """Cuts a byte stream back into messages, in whatever pieces it arrives."""

    def __init__(self, rest: bytes = b""):
        self.ready: deque[bytes] = deque()
        self._pieces: list[bytes] = []
        self._have = 0
        self._need = LENGTH.size
        if rest:
            self.feed(rest)

    def feed(self, piece: bytes) -> None:
        """Take the next bytes of the stream; whole messages are then in `ready`."""
        if self._pieces or len(piece) < self._need:
            self._pieces.append(piece)
            self._have += len(piece)
            if self._have < self._need:
                return  # a large message is joined once, when it is whole, not grown piece by piece
            piece = b"".join(self._pieces)
            self._pieces.clear()
        ready, unpack, at, end = self.ready.append, LENGTH.unpack_from, 0, len(piece)
        self._need = LENGTH.size
        while end - at >= 4:
            start = at + 4
            stop = start + unpack(piece, at)[0]
            if stop > end:
                self._need = stop - at
                break
            ready(piece[start:stop])
            at = stop
        if at < end:
            self._pieces.append(piece[at:])
        self._have = end - at

    def rest(self) -> bytes:
        """Everything that was fed and not yet taken, as it came: for handing the stream to another process."""
        whole = b"".join(LENGTH.pack(len(message)) + message for message in self.ready)
        return whole + b"".join(self._pieces)
