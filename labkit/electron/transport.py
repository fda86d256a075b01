"""What a transport offers a window: a renderer somewhere, and a link to it that carries frames both ways.

A transport runs `electron-shim.js` and the page in a renderer of its own: a Node process, a frame in the notebook, a
tab of a Chromium. It knows nothing of channels, handlers or ports; frames are bytes to it, but for their first byte.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Page:
    """What a renderer is to show: a page, and how it is walled in."""

    document: int
    """Which load of the window this is, from 1; the renderer puts it into its frames."""
    url: str
    """Where the page is from, as its `location` says: "file:///..." or "data:text/html,..."."""
    html: str
    folder: Path | None
    """Where scripts that the page names by a relative address are looked for; None for a data: page."""
    preload: str | None
    """The path of the preload script, absolute."""
    context_isolation: bool
    sandbox: bool
    node_integration: bool
    traced: bool
    """Whether the renderer puts times into its frames, and tells when it has received one."""


class Transport(ABC):
    """A renderer and the link to it. One window has one."""

    supports_sync = False
    """Whether the renderer can wait for a reply without letting anything else run: ipcRenderer.sendSync."""
    max_bytes = 1 << 27
    """The largest frame that crosses."""
    most_unread = 1 << 28
    """Bytes that the renderer may leave unread."""
    process_id = 0
    """The renderer's pid, where it has one that we know; else a number of its own."""

    @abstractmethod
    def open(self, on_message: Callable[[bytes], bool], on_closed: Callable[[str], None]) -> None:
        """Start the renderer.

        Args:
            on_message: called with each frame, in order, by any thread. It never blocks. It returns False when the
                window has more waiting than it will hold: the transport then reads no more until `resume` is called, or
                where it cannot wait tells the renderer that the message was refused.
            on_closed: called once, by any thread, when the renderer has gone without being asked to: how it ended.

        Raises:
            OSError: it cannot be started; the text says what to do.
        """

    @abstractmethod
    def load(self, page: Page) -> None:
        """Show a page, in place of the one before. The renderer answers with frames of kind STATE."""

    @abstractmethod
    def post(self, frame: bytes) -> None:
        """Send a frame, from any thread, without waiting for the renderer. After close it does nothing.

        Raises:
            BufferError: the renderer has not read what came before, and there is too much of it.
        """

    def resume(self) -> None:  # noqa: B027  # a transport that cannot wait has nothing to do
        """What was waiting has been dealt with: read on."""

    @abstractmethod
    def close(self) -> None:
        """End the renderer, and free everything; no frame comes after. Idempotent, from any thread, without waiting."""
