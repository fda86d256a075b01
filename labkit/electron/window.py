"""BrowserWindow, its WebContents and its main frame: a window is a renderer somewhere, and what main holds of it."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from labkit.electron import pages
from labkit.electron.clone import CloneError, Error, decode, encode, undefined
from labkit.electron.emitter import EventEmitter
from labkit.electron.frames import Frame, Kind, Malformed, pack, unpack
from labkit.electron.ipc import NEVER_SENT, IpcMain, dispatch
from labkit.electron.loop import Promise, app, log, main_loop
from labkit.electron.ports import MessagePortMain, Ports, disentangle, give
from labkit.electron.transport import Page, Transport

MOST_WAITING = 1024
"""Messages of one window that wait in main, unanswered invocations included; then its renderer has to wait."""

_numbers = itertools.count(1)
_MISSING: Any = object()


class WebFrameMain:
    """The main frame of a window, as main sees it. Frames within frames are out of reach."""

    parent = None
    name = ""
    frame_id = 1

    def __init__(self, contents: WebContents):
        self._contents = weakref.ref(contents)
        self.ipc = IpcMain()
        """Listeners and handlers for this frame alone; they come before those of the window and of ipc_main."""
        self.process_id = 0
        self.url = ""

    @property
    def origin(self) -> str:
        """Where the page is from, serialised: "file://", and "null" of a data: page."""
        parts = urlsplit(self.url)
        return "file://" if parts.scheme == "file" else "null"

    @property
    def top(self) -> WebFrameMain:
        return self

    @property
    def frames(self) -> list[WebFrameMain]:
        return []

    def send(self, channel: Any = undefined, *args: Any) -> None:
        """Send to the page: `ipcRenderer.on(channel, (event, ...args) => ...)`.

        Arguments that cannot be cloned are logged, and nothing is sent, as in Electron.

        Raises:
            TypeError: the channel is no str, or the window has been destroyed.
        """
        if not isinstance(channel, str):
            raise TypeError("Missing required channel argument")
        contents = self._here()
        try:
            clone = encode([channel, *args])
        except CloneError:
            log.error("Error sending from webFrameMain:  Error: Failed to serialize arguments")
            return
        contents._send(Kind.SEND_TO_PAGE, clone)

    def post_message(self, channel: Any = _MISSING, message: Any = _MISSING, transfer: Any = undefined) -> None:
        """Send one value and ports to the page: `ipcRenderer.on(channel, (event, message) => event.ports)`.

        Raises:
            TypeError: the channel is no str, the message is missing, or the window has been destroyed.
            CloneError: the message cannot be cloned.
            Error: what is to be transferred is no list of ports, or one is named twice or was handed on before.
        """
        contents = self._here()
        if channel is _MISSING or (message is _MISSING and isinstance(channel, str)):
            raise TypeError("Insufficient number of arguments.")
        if not isinstance(channel, str):
            found = {id(None): "null", id(undefined): "undefined"}.get(id(channel), "")
            raise TypeError(f"Error processing argument at index 0, conversion failure from {found}")
        many = isinstance(transfer, (list, tuple))
        ports = [port for port in transfer if isinstance(port, MessagePortMain)] if many else []
        clone = encode([channel, message], ports=ports)
        if transfer is not undefined and (not many or len(ports) != len(transfer)):
            raise Error("Invalid value for transfer")
        ends = disentangle(ports)
        give(contents, ends, lambda numbers: contents._send(Kind.POST_TO_PAGE, clone, numbers))

    def execute_java_script(self, code: str) -> Promise:
        """Run a script in the page, once it is loaded; what it returns, awaited, can be waited for."""
        return self._here()._evaluate(code)

    def is_destroyed(self) -> bool:
        contents = self._contents()
        return contents is None or contents.is_destroyed()

    def _here(self) -> WebContents:
        contents = self._contents()
        if contents is None or contents.is_destroyed():
            raise TypeError("Object has been destroyed")
        return contents

    postMessage = post_message
    executeJavaScript = execute_java_script
    isDestroyed = is_destroyed

    @property
    def processId(self) -> int:
        return self.process_id

    @property
    def routingId(self) -> int:
        return self.frame_id

    frameId = routingId


class WebContents(EventEmitter):
    """The page in a window, and main's end of the link to it.

    Events, beside those that Electron documents for IPC ("ipc-message", "ipc-message-sync"): "dom-ready" (),
    "did-finish-load" (), "did-fail-load" (event, number, name, url), "console-message" (event), "preload-error" (event,
    path, error), "render-process-gone" (event, details), "destroyed" ().
    """

    def __init__(self, number: int, transport: Transport, preferences: dict[str, Any], record: Any):
        super().__init__()
        self.id = number
        self.ipc = IpcMain()
        """Listeners and handlers for this window alone; they come before those of ipc_main."""
        self.main_frame = WebFrameMain(self)
        self.ports = Ports(self)
        self.console: list[str] = []
        """What the page has written to its console, the last thousand lines."""
        self._transport, self._preferences, self._record = transport, preferences, record
        self._document = 0
        self._destroyed = False
        self._shown = False  # once
        self._gone = False  # its renderer, without being asked to
        self._loading: Promise | None = None
        self._unsent: list[tuple[Kind, bytes, tuple[int, ...]]] = []  # before the first page
        self._scripts: dict[int, Promise] = {}
        self._count = itertools.count(1)
        self._waiting = 0  # frames that are not dispatched, and invocations that are not answered
        self._refusing = False
        self._stopped: tuple[int, int] | None = None  # the document and number of the synchronous message that waits
        self._lock = threading.RLock()

    # Electron's interface

    def send(self, channel: Any = undefined, *args: Any) -> None:
        """Send to the page's main frame, as WebFrameMain.send."""
        self.main_frame.send(channel, *args)

    def post_message(self, channel: Any = _MISSING, message: Any = _MISSING, transfer: Any = undefined) -> None:
        """Send a value and ports to the page's main frame, as WebFrameMain.post_message."""
        self.main_frame.post_message(channel, message, transfer)

    def send_to_frame(self, frame: Any, channel: Any = undefined, *args: Any) -> bool:
        """Send to a frame by its number, or [process, number]. Returns whether there is such a frame."""
        process, number = (self.main_frame.process_id, frame) if isinstance(frame, int) else frame
        if self._destroyed or (process, number) != (self.main_frame.process_id, self.main_frame.frame_id):
            return False
        self.main_frame.send(channel, *args)
        return True

    def execute_java_script(self, code: str) -> Promise:
        """Run a script in the page, once it is loaded; what it returns, awaited, can be waited for."""
        return self.main_frame.execute_java_script(code)

    def load_file(self, path: str | os.PathLike[str], options: dict[str, Any] | None = None) -> Promise:
        """Show a page of this machine. The result can be waited for: it is there when the page has loaded.

        Args:
            path: of the page, relative to the current directory.
            options: what its location says beside the path: `query`, a dictionary, or `search`; and `hash`.
        """
        given = options or {}
        search = given.get("search") or urlencode(given.get("query", {}))
        rest = ("?" + search.lstrip("?") if search else "") + ("#" + given["hash"] if given.get("hash") else "")
        return self.load_url(f"file://{quote(str(Path(path).resolve()))}{rest}")

    def load_url(self, url: str) -> Promise:
        """Show a file: or data: page. The result can be waited for: it is there when the page has loaded.

        Raises, when it is waited for:
            LoadError: it cannot be loaded.
        """
        if self._destroyed:
            raise TypeError("Object has been destroyed")
        self._settle(pages.LoadError("ERR_ABORTED", -3, self.main_frame.url), self._document)
        promise = Promise()
        promise.set_running_or_notify_cancel()
        try:
            html, folder = pages.read(url)
            if self._gone:
                raise pages.LoadError("ERR_FAILED", -2, url)
        except pages.LoadError as error:
            promise.set_exception(error)
            main_loop.call(self.emit, "did-fail-load", {}, error.number, error.name, error.url)
            return promise
        if self._document:  # else they are on their way to the page that comes now
            self.ports.close()
        with self._left_behind() as left:
            if self.is_destroyed() or self._gone:  # meanwhile
                left[promise] = pages.LoadError("ERR_FAILED", -2, url)
                return promise
            self._go_on()
            self._loading = promise
            self._document += 1
            self.main_frame.url = url
            wanted = self._preferences
            page = Page(
                document=self._document,
                url=url,
                html=html,
                folder=folder,
                preload=wanted["preload"],
                context_isolation=wanted["contextIsolation"],
                sandbox=wanted["sandbox"],
                node_integration=wanted["nodeIntegration"],
                traced=self._record is not None,
            )
            self._transport.load(page)
            unsent, self._unsent = self._unsent, []
            for kind, clone, ports in unsent:
                self._send(kind, clone, ports)
        return promise

    def reload(self) -> Promise:
        """Load the same page again."""
        return self.load_url(self.main_frame.url)

    def get_url(self) -> str:
        return self.main_frame.url

    def is_destroyed(self) -> bool:
        return self._destroyed

    def is_loading(self) -> bool:
        return self._loading is not None

    def get_os_process_id(self) -> int:
        """The renderer's pid, where it has one of its own."""
        return self._transport.process_id

    # What comes from the renderer

    def _open(self) -> None:
        self._transport.open(self._received, self._lost)
        self.main_frame.process_id = self._transport.process_id

    def _received(self, data: bytes) -> bool:
        """A frame, from the transport, in any thread."""
        came = time.monotonic_ns() if self._record else 0
        with self._lock:
            self._waiting += 1
            more = self._waiting < MOST_WAITING
            self._refusing |= not more
        if main_loop.here():
            main_loop.now(self._dispatch, data, came)
        else:
            main_loop.call(self._dispatch, data, came)
        return more

    def _begun(self) -> None:
        with self._lock:
            self._waiting += 1

    def _done(self) -> None:
        with self._lock:
            self._waiting -= 1
            resume = self._refusing and self._waiting < MOST_WAITING // 2
            if resume:
                self._refusing = False
        if resume and not self._destroyed:
            self._transport.resume()

    def _dispatch(self, data: bytes, came: int) -> None:
        try:
            if self._destroyed:
                return
            frame = unpack(data)
            with self._lock:
                is_current = frame.document == self._document
                if frame.kind == Kind.SEND_SYNC:
                    self._stopped = frame.document, frame.number
                    if not is_current:
                        self._go_on()
            if is_current:
                self._receive(frame, came)
        except Malformed as reason:
            log.error("WebContents #%d: dropped a malformed message of its renderer: %s", self.id, reason)
        finally:
            self._done()

    def _go_on(self) -> None:
        """Let a page that waits in sendSync and has been left go on: until then its renderer takes no other.

        Hold the lock.
        """
        if self._stopped:
            document, number = self._stopped
            self._stopped = None
            self._transport.post(pack(Kind.REPLY_SYNC, encode({"error": NEVER_SENT}), number=number, document=document))

    def _receive(self, frame: Frame, came: int) -> None:
        kind = frame.kind
        is_message = Kind.SEND <= kind <= Kind.SEND_TO_HOST
        if self._record and (is_message or kind in (Kind.PORT_MESSAGE, Kind.RECEIVED)):
            self._record.received(frame, came)
        if is_message:
            dispatch(self, frame)
        elif kind in (Kind.PORT_MESSAGE, Kind.PORT_CLOSED, Kind.PORT_RETURNED, Kind.PORT_MOVED):
            self.ports.receive(frame)
        elif kind == Kind.STATE:
            self._state(frame.document, *_list(frame, 2))
        elif kind == Kind.CONSOLE:
            self._console(*_list(frame, 2))
        elif kind == Kind.EVALUATED:
            with self._lock:
                promise = self._scripts.pop(frame.number, None)
            if promise:
                done, value = _list(frame, 2)
                if done:
                    promise.set_result(value)
                else:
                    promise.set_exception(value if isinstance(value, BaseException) else Error(str(value)))
        elif kind != Kind.RECEIVED:
            raise Malformed(f"there is no kind {kind}")

    def _state(self, document: int, what: str, detail: Any) -> None:
        if what == "did-finish-load":
            self._settle(None, document)
            self.emit(what)
            if not self._shown and self.id in app._windows:
                self._shown = True
                app._windows[self.id].emit("ready-to-show")
        elif what == "did-fail-load":
            error = pages.LoadError(str(detail).removeprefix("net::"), -2, self.main_frame.url)
            self._settle(error, document)
            self.emit(what, {}, error.number, error.name, error.url)
        elif what == "dom-ready":
            self.emit(what)
        elif what == "preload-error":
            log.error("Unable to load preload script: %s\n%s", self._preferences["preload"], detail)
            self.emit(what, {}, self._preferences["preload"], detail)
        elif what == "reload":
            self.reload()
        elif what == "close" and self.id in app._windows:
            app._windows[self.id].close()

    def _console(self, level: Any, text: Any) -> None:
        if not isinstance(level, str) or not isinstance(text, str):
            raise Malformed(f"a frame of kind {Kind.CONSOLE} holds two strings")
        self.console.append(text)
        del self.console[:-1000]
        if not self.emit("console-message", ConsoleMessage(level, text, self.main_frame)):
            print(f"[window {self.id}] {text}")

    def _settle(self, error: pages.LoadError | None, document: int) -> None:
        with self._lock:
            if document != self._document:
                return  # another page has been wanted since
            loading, self._loading = self._loading, None
        if loading and error:
            loading.set_exception(error)
        elif loading:
            loading.set_result(None)

    def _lost(self, how: str) -> None:
        """The renderer has gone, though nobody closed the window."""
        main_loop.call(self._crashed, how)

    def _crashed(self, how: str) -> None:
        if self._destroyed:
            return
        details = {"reason": "killed" if "killed" in how else "crashed", "exitCode": 1, "detail": how}
        log.error("WebContents #%d: its renderer has gone: %s", self.id, how)
        with self._left_behind():
            self._gone = True
            self._document += 1  # whatever it had begun belongs to a page that is no more
            if self._record:
                self._record.close(how.partition("\n")[0])
        self.ports.close()
        self.emit("render-process-gone", {}, details)

    @contextlib.contextmanager
    def _left_behind(self) -> Iterator[dict[Promise, Exception]]:
        """Under the lock: what the page has begun, which ends when the lock is free, for then others are told."""
        left: dict[Promise, Exception] = {}
        try:
            with self._lock:
                if self._loading:
                    left[self._loading] = pages.LoadError("ERR_FAILED", -2, self.main_frame.url)
                for promise in self._scripts.values():
                    left[promise] = Error("Render frame was disposed before its script had run")
                self._loading, self._scripts = None, {}
                yield left
        finally:
            for promise, error in left.items():
                promise.set_exception(error)

    # What goes to the renderer

    def _send(self, kind: Kind, clone: bytes, ports: Sequence[int] = ()) -> None:
        with self._lock:
            if self._document == 0:
                self._unsent.append((kind, clone, tuple(ports)))
                return
            self._post(kind, clone, next(self._count) & 0xFFFF_FFFF, ports)

    def _post(self, kind: Kind, clone: bytes, number: int, ports: Sequence[int] = ()) -> None:
        """Hold the lock where the order matters."""
        data = pack(kind, clone, number=number, document=self._document, ports=ports)
        if len(data) > self._transport.max_bytes:
            raise ValueError(
                f"this message is too large for a window: {len(data):,} bytes, and {self._transport.max_bytes:,} can"
                " be sent; send it in parts"
            )
        if self._record and kind != Kind.EVALUATE and kind <= Kind.PORT_MESSAGE:
            message = self._record.sends(kind, number, clone)
            self._transport.post(data)
            self._record.sent(message)
        else:
            self._transport.post(data)

    def _post_port(self, kind: Kind, number: int, clone: bytes, ports: Sequence[int]) -> None:
        if not self._destroyed:
            self._post(kind, clone, number, ports)

    def _answer(self, kind: Kind, document: int, number: int, clone: bytes) -> None:
        """The reply to an invocation or synchronous message, unless its page has gone."""
        with self._lock:
            if not self._is_gone(document):
                if kind == Kind.REPLY_SYNC:
                    self._stopped = None
                try:
                    self._post(kind, clone, number)
                except (ValueError, BufferError) as reason:
                    failed = Kind.REPLY_SYNC if kind == Kind.REPLY_SYNC else Kind.FAILED
                    self._post(failed, encode(f"Error: {reason}"), number)

    def _is_gone(self, document: int) -> bool:
        return self._destroyed or document != self._document

    def _evaluate(self, code: str) -> Promise:
        promise = Promise()
        promise.set_running_or_notify_cancel()
        with self._lock:
            if self._destroyed:
                raise TypeError("Object has been destroyed")
            if self._document == 0:
                raise Error("there is no page yet to run a script in: load_file or load_url first")
            if self._gone:
                raise Error("there is no page any more to run a script in: its renderer has gone")
            number = next(self._count) & 0xFFFF_FFFF
            self._scripts[number] = promise
            self._post(Kind.EVALUATE, encode(str(code)), number)
        return promise

    def _destroy(self) -> None:
        with self._left_behind():
            if self._destroyed:
                return
            self._destroyed = True
        self.ports.close()
        self._transport.close()
        if self._record:
            self._record.close("closed")
        main_loop.call(self.emit, "destroyed")

    postMessage = post_message
    sendToFrame = send_to_frame
    executeJavaScript = execute_java_script
    loadFile = load_file
    loadURL = load_url
    getURL = get_url
    isDestroyed = is_destroyed
    isLoading = is_loading
    getOSProcessId = get_os_process_id

    @property
    def mainFrame(self) -> WebFrameMain:
        return self.main_frame


class ConsoleMessage:
    """What "console-message" is emitted with."""

    def __init__(self, level: str, message: str, frame: WebFrameMain):
        self.level, self.message, self.frame = level, message, frame

    def __str__(self) -> str:
        return self.message


def _list(frame: Frame, length: int) -> list[Any]:
    try:
        value = decode(frame.clone)
    except ValueError as reason:
        raise Malformed(str(reason)) from None
    if not isinstance(value, list) or len(value) != length:
        raise Malformed(f"a frame of kind {frame.kind} holds a list of {length}")
    return value


def _preferences(given: dict[str, Any]) -> dict[str, Any]:
    """webPreferences with all that we know, under Electron's names. What we do not know makes no difference."""
    known = {"contextIsolation": True, "sandbox": True, "preload": None, "nodeIntegration": undefined}
    snake = {"context_isolation": "contextIsolation", "node_integration": "nodeIntegration"}
    for name, value in given.items():
        known[snake.get(name, name)] = value
    if known["nodeIntegration"] is undefined:
        # Electron wants it said; here a page that is walled off from nothing finds require("electron").
        known["nodeIntegration"] = not known["contextIsolation"]
    elif known["nodeIntegration"] and "sandbox" not in given:
        known["sandbox"] = False
    if known["preload"] is not None:
        path = Path(known["preload"])
        if not path.is_absolute():
            path = Path.cwd() / path
        known["preload"] = str(path)
    return known


class BrowserWindow(EventEmitter):
    """A window: a renderer with a page in it. Events: "ready-to-show" (), "close" (event), "closed" ().

        win = BrowserWindow(web_preferences={"preload": "preload.js"})
        win.load_file("index.html")

    Args:
        options: Electron's options as a dictionary, in place of or beside the keywords.
        web_preferences: a dictionary of `preload` (path of a script that runs before the page), `contextIsolation` and
            `sandbox` (both True unless given), `nodeIntegration`; snake_case does as well. webPreferences is the same.
        transport: where the renderer runs: "jupyter", a frame in the notebook; "node", a process without a display;
            "chromium", a browser without a display, for pages that need one; or a Transport of your own. Unless given:
            "jupyter" in a notebook that is open in JupyterLab or Notebook, else "node"; a notebook that is run without
            being shown has the window in its output all the same, recorded.
        trace: a labkit.Trace that records each message of the window, both ways, as one of a channel.
        title: what the window is called, in views too; "window 1" there unless given.
        width, height: of its page where it is seen, in pixels.
        show: Electron's, without effect here.

    Raises:
        OSError: the renderer cannot be started.
    """

    def __init__(
        self,
        options: dict[str, Any] | None = None,
        *,
        web_preferences: dict[str, Any] | None = None,
        transport: str | Transport | None = None,
        trace: Any = None,
        **others: Any,
    ):
        super().__init__()
        given = {**(options or {}), **others}
        preferences = web_preferences or given.get("webPreferences") or given.get("web_preferences") or {}
        self.id = next(_numbers)
        made = transport if isinstance(transport, Transport) else _transport(transport, given)
        record = None
        if trace is not None:
            from labkit.electron.tracing import Record  # with numpy and all of the trace, which others do without

            name = given.get("title") or f"window {self.id}"
            record = Record(trace, name, MOST_WAITING, made.most_unread)
        self.web_contents = WebContents(self.id, made, _preferences(preferences), record)
        self.title: str = given.get("title", "")
        self._closed = False
        main_loop.hold()
        try:
            self.web_contents._open()
        except BaseException:
            main_loop.let_go()
            if record:
                record.close("did not start")
            raise
        if record:
            record.opened(made.process_id)
        app._windows[self.id] = self

    def load_file(self, path: str | os.PathLike[str], options: dict[str, Any] | None = None) -> Promise:
        """Show a page of this machine, as WebContents.load_file."""
        return self._here().load_file(path, options)

    def load_url(self, url: str) -> Promise:
        """Show a file: or data: page. The result can be waited for: it is there when the page has loaded."""
        return self._here().load_url(url)

    def close(self) -> None:
        """Close it, unless a listener of "close" calls its event's prevent_default()."""
        if not self._closed:
            event = CloseEvent()
            self.emit("close", event)
            if not event.default_prevented:
                self.destroy()

    def destroy(self) -> None:
        """Close it, whoever is against it. Its renderer ends; invocations that it waits for are never answered."""
        if self._closed:
            return
        self._closed = True
        self.web_contents._destroy()
        app._windows.pop(self.id, None)
        main_loop.call(self._after)
        main_loop.let_go()

    def _after(self) -> None:
        self.emit("closed")
        if not app._windows:
            app.emit("window-all-closed")

    def is_destroyed(self) -> bool:
        return self._closed

    def set_title(self, title: str) -> None:
        """Call it something else; a view that shows it already goes on with the title it was made with."""
        self._here()
        self.title = title

    def get_title(self) -> str:
        return self.title

    def show(self) -> None:
        """Electron's, without effect here, as are hide and focus."""

    hide = focus = show

    def _here(self) -> WebContents:
        if self._closed:
            raise TypeError("Object has been destroyed")
        return self.web_contents

    def __enter__(self) -> BrowserWindow:
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy()

    def __repr__(self) -> str:
        state = "destroyed" if self._closed else self.web_contents.get_url() or "empty"
        return f"<BrowserWindow {self.id}: {state}>"

    @staticmethod
    def get_all_windows() -> list[BrowserWindow]:
        """The windows that are open."""
        return list(app._windows.values())

    @staticmethod
    def from_web_contents(contents: WebContents) -> BrowserWindow | None:
        """The window of event.sender, or None when it has been destroyed."""
        return next((window for window in app._windows.values() if window.web_contents is contents), None)

    @staticmethod
    def from_id(number: int) -> BrowserWindow | None:
        return app._windows.get(number)

    loadFile = load_file
    loadURL = load_url
    isDestroyed = is_destroyed
    getAllWindows = get_all_windows
    fromWebContents = from_web_contents
    fromId = from_id
    setTitle = set_title
    getTitle = get_title

    @property
    def webContents(self) -> WebContents:
        return self.web_contents


class CloseEvent:
    """What "close" is emitted with."""

    default_prevented = False

    def prevent_default(self) -> None:
        self.default_prevented = True

    preventDefault = prevent_default


def _transport(kind: str | None, options: dict[str, Any]) -> Transport:
    seen = {name: options[name] for name in ("title", "width", "height") if name in options}
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    kernel = getattr(shell, "kernel", None) is not None
    # Jupyter's server tells the kernel which notebook it works for; who runs a notebook without showing it does not.
    looked_at = kernel and "JPY_SESSION_NAME" in os.environ
    if kind == "jupyter" or (kind is None and looked_at):
        from labkit.electron.jupyter import JupyterTransport

        return JupyterTransport(**seen)
    if kind in ("node", None):
        from labkit.electron.node import NodeTransport

        if kind == "node" or not kernel:
            return NodeTransport()
        from labkit.electron.jupyter import Shown

        return Shown(NodeTransport(), "in Node, without a display", **seen)
    if kind == "chromium":
        from labkit.electron.chromium import ChromiumTransport

        return ChromiumTransport()
    raise ValueError(f'no transport called "{kind}"; there are: chromium, jupyter, node')


atexit.register(app.quit)
os.register_at_fork(after_in_child=app._windows.clear)  # they are the parent's
