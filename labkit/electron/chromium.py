"""The transport with a real browser: a window is a headless Chromium, the worlds are its own isolated worlds.

main and the browser talk over two descriptors (--remote-debugging-pipe), in messages of the Chrome DevTools Protocol. A
page calls a binding that only its preload script's world has; main calls a function of that world. sendSync is a
synchronous request to an address that does not exist, which main answers in place of the network.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from labkit.doctor import find_browser
from labkit.electron.clone import decode, encode, undefined
from labkit.electron.frames import Frame, Kind, pack, unpack
from labkit.electron.loop import main_loop
from labkit.electron.sockets import Incoming, Outgoing, tie
from labkit.electron.transport import Page, Transport
from labkit.folders import own_folder

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --disable-extensions --disable-dev-shm-usage --mute-audio"
    " --no-default-browser-check --remote-debugging-pipe"
).split()
FOLDERS = ("TMPDIR", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
WORLD = "labkit preload"
BLANK = "about:blank#labkit"  # the page that is none
NAMES = "secret", "here", "binding", "receive", "start", "helper"
AT_ONCE = "undefined", "object", "boolean", "number", "string"  # an object that has no number is null
LEVELS = {"warning": "warning", "error": "error", "assert": "error", "debug": "debug", "info": "info"}
_HERE = Path(__file__).parent


@cache
def _library() -> str:
    """The library as the beginning of a script: each module in a function of its own."""
    shim = "createRenderer deepFreeze EventEmitter isError isPlain isPlatform Kind messageOf MOST_NESTED tag TOO_DEEP"
    names = {
        "clone.js": ("", "decode encode"),
        "electron-shim.js": ("decode encode", shim),
        "chromium-page.js": (f"decode encode {shim}", "mainWorld helper preloadWorld"),
    }
    parts = ["const labkit = {};"]
    for name, (wanted, given) in names.items():
        source = re.sub(r"^import .*?;$", "", (_HERE / name).read_text(encoding="utf-8"), flags=re.M | re.S)
        source = re.sub(r"^export ", "", source, flags=re.M)
        takes, gives = ", ".join(wanted.split()), ", ".join(given.split())
        parts.append(f"(() => {{ const {{ {takes} }} = labkit;\n{source}\nObject.assign(labkit, {{ {gives} }}); }})();")
    return "\n".join(parts)


class ChromiumTransport(Transport):
    """A headless Chromium with one page. See the module."""

    supports_sync = True

    def __init__(self) -> None:
        self._closed = False
        self._more = True
        self._calls: dict[int, Callable[[dict[str, Any]], None]] = {}
        self._last_call = 0
        self._session = ""
        # A page can be left at any moment, by any thread. Under the lock: what belongs to the last that was wanted,
        self._lock = threading.RLock()
        self._document = 0
        self._names: dict[str, str] = {}  # that only this document knows
        self._contexts: dict[str, int] = {}  # "page" and "preload"
        self._ready = False  # its scripts have run
        self._unsent: deque[bytes] = deque()
        self._requests: dict[int, str] = {}  # synchronous messages that wait, and for which request
        self._answers: dict[int, bytes] = {}  # those that were answered before the request came
        # and what is about the way there.
        self._wanted: Page | None = None  # the next
        self._awaited = ""  # the binding by which the page that is on its way tells that it is there
        self._when_blank: Callable[[], None] | None = None
        self._scripts: list[str] = []  # that the renderer has for each page that comes
        self._bindings: list[str] = []

    # The browser

    def open(self, on_message: Callable[[bytes], Any], on_closed: Callable[[str], None]) -> None:
        self._on_message, self._on_closed = on_message, on_closed
        browser = find_browser()
        if browser is None:
            raise FileNotFoundError(
                "a window of this transport is a Chromium, and there is none on PATH: install chromium, or set"
                ' LABKIT_BROWSER to it; transport="node" needs no browser'
            )
        self._folder = contextlib.ExitStack()
        self._profile = self._folder.enter_context(own_folder("window"))
        ours, theirs = zip(*(socket.socketpair() for _ in range(4)), strict=True)
        out, read, self._lifeline, self._broom = ours
        # The browser wants the first two under the numbers 3 and 4, from which they must be out of the way before.
        reads, writes = (fcntl.fcntl(end.fileno(), fcntl.F_DUPFD_CLOEXEC, 10) for end in theirs[:2])
        command = shlex.join([browser, *FLAGS, f"--user-data-dir={self._profile}", "about:blank"])
        try:
            self._process = subprocess.Popen(
                ["/bin/bash", "-c", f"exec {command} 3<&{reads} 4>&{writes}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(reads, writes, theirs[2].fileno()),
                start_new_session=True,
                # Whatever it writes goes when its profile goes.
                env=os.environ | dict.fromkeys(FOLDERS, self._profile),
            )
            tie(theirs[2].fileno(), self._process.pid)
            # Waits until our end of its input closes, which is when we end, however that is.
            sweep = 'read _; sleep 1; rm -rf -- "$1"'
            sweeper = ["/bin/sh", "-c", sweep, "sh", self._profile]
            self._sweeper = subprocess.Popen(sweeper, stdin=theirs[3], start_new_session=True)
        except BaseException:
            for end in ours:
                end.close()
            self._folder.close()
            raise
        finally:
            os.close(reads)
            os.close(writes)
            for end in theirs:
                end.close()
        self.process_id = self._process.pid
        for end in ours:
            end.setblocking(False)
        self._out = Outgoing(out, self.most_unread)
        self._in = Incoming(read, self._take_apart, self._ended)
        self._in.read_on()
        self._call("Target.getTargets", {}, self._targets)

    def _targets(self, result: dict[str, Any]) -> None:
        page = next((each for each in result["targetInfos"] if each["type"] == "page"), None)
        if page is None:
            self._call("Target.createTarget", {"url": "about:blank"}, self._attach)
        else:
            self._attach(page)

    def _attach(self, target: dict[str, Any]) -> None:
        self._call("Target.attachToTarget", {"targetId": target["targetId"], "flatten": True}, self._attached)

    def _attached(self, result: dict[str, Any]) -> None:
        with self._lock:
            self._session = result["sessionId"]
            self._call("Page.enable")
            self._call("Runtime.enable")
            self._call("Inspector.enable")
            self._call("Fetch.enable", {"patterns": [{"urlPattern": "http*"}]})
            self._load_next()

    # The protocol

    def _call(
        self,
        method: str,
        parameters: dict[str, Any] | None = None,
        then: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        with self._lock:
            self._last_call += 1
            message: dict[str, Any] = {"id": self._last_call, "method": method, "params": parameters or {}}
            if self._session:
                message["sessionId"] = self._session
            if then:
                self._calls[self._last_call] = then
            if not self._closed:
                self._out.write(json.dumps(message).encode() + b"\0")

    def _take_apart(self, buffer: bytearray) -> bool:
        *whole, rest = buffer.split(b"\0")
        del buffer[: len(buffer) - len(rest)]
        self._more = True
        for each in whole:
            if not self._closed:
                self._message(json.loads(each))
        return self._more

    def resume(self) -> None:
        self._in.read_on()

    def _give(self, frame: bytes) -> None:
        self._more &= bool(self._on_message(frame))

    def _message(self, message: dict[str, Any]) -> None:
        if "id" in message:
            then = self._calls.pop(message["id"], None)
            if then:
                then(message.get("result") or {"error": message.get("error", {}).get("message", "")})
            return
        handler = getattr(self, "_on_" + message["method"].replace(".", "_"), None)
        if handler:
            handler(**message["params"])

    # A page

    def load(self, page: Page) -> None:
        with self._lock:
            self._document, self._wanted = page.document, page
            self._names = {name: f"labkit{secrets.token_hex(8)}" for name in NAMES}
            self._contexts, self._ready = {}, False
            self._unsent.clear()
            for request in self._requests.values():  # the old page waits, and lets no new one in
                self._call("Fetch.failRequest", {"requestId": request, "errorReason": "Aborted"})
            self._requests.clear()
            self._answers.clear()
            self._load_next()

    def _load_next(self) -> None:
        """Begin with the page that is wanted, when none is on its way, which would get the scripts of this one.

        Hold the lock.
        """
        page, names = self._wanted, self._names
        if page is None or self._awaited or not self._session:
            return
        self._wanted, self._awaited = None, names["here"]
        for identifier in self._scripts:
            self._call("Page.removeScriptToEvaluateOnNewDocument", {"identifier": identifier})
        self._scripts.clear()
        for name in self._bindings:
            self._call("Runtime.removeBinding", {"name": name})
        self._bindings = [names["here"], names["binding"]]
        world = {"worldName": WORLD} if page.context_isolation else {}
        self._call("Runtime.addBinding", {"name": names["here"]})
        only = {"executionContextName": WORLD} if page.context_isolation else {}
        self._call("Runtime.addBinding", {"name": names["binding"], **only})
        config = {
            **names,
            "document": page.document,
            "contextIsolation": page.context_isolation,
            "nodeIntegration": page.node_integration,
            "traced": page.traced,
            "maxBytes": self.max_bytes,
            "process": {
                "type": "renderer",
                "platform": "linux",
                "versions": {"electron": "labkit"},
                "env": {},
                "argv": [],
            },
        }
        told = json.dumps(config)
        self._add(f"labkit.helper({told});" + (f"labkit.mainWorld({told});" if page.context_isolation else ""), {})
        self._add(f"labkit.preloadWorld({told});", world)
        if page.preload:
            self._add_preload(page, world)
        # The browser's process navigates and the renderer's takes scripts: wait until it has taken all.
        self._call("Runtime.evaluate", {"expression": "0"}, lambda _: self._navigate(page))

    def _navigate(self, page: Page) -> None:
        here = self._awaited

        def navigated(result: dict[str, Any]) -> None:
            why = result.get("errorText") or result.get("error")
            if why:
                self._no_more_awaited(here)
                self._tell(Kind.STATE, ["did-fail-load", why], page.document)
            elif "loaderId" not in result:  # it has only scrolled in the page that is there: leave that first
                self._when_blank = look
                self._call("Page.navigate", {"url": BLANK})

        def look() -> None:
            self._call("Page.getNavigationHistory", {}, looked)

        def looked(history: dict[str, Any]) -> None:
            entries = history.get("entries")  # none while the browser goes from one process to another
            if entries and entries[history["currentIndex"]]["url"] == BLANK:
                self._navigate(page)
            else:  # the renderer is there, and the browser does not know it yet
                look()

        with self._lock:
            if self._wanted:  # another, meanwhile
                self._no_more_awaited(here)
            else:
                self._call("Page.navigate", {"url": page.url}, navigated)

    def _on_Page_frameNavigated(self, frame: dict[str, Any], **_: Any) -> None:
        if frame["url"] + frame.get("urlFragment", "") == BLANK and self._when_blank:
            look, self._when_blank = self._when_blank, None
            look()

    def _no_more_awaited(self, here: str) -> None:
        """A page has come, or will not."""
        with self._lock:
            if here == self._awaited:
                self._awaited = ""
                self._load_next()

    def _add(self, code: str, world: dict[str, str]) -> None:
        inner = "".join(f"delete globalThis[{json.dumps(name)}];" for name in self._bindings)
        outer = f"if (location.href !== {json.dumps(BLANK)}) {{ {_library()}\n{code} }}"
        self._add_source(f"if (window === window.top) {{ {outer} }} else {{ {inner} }}", world)

    def _add_preload(self, page: Page, world: dict[str, str]) -> None:
        path = page.preload or ""
        try:
            source = Path(path).read_text(encoding="utf-8")
        except OSError as reason:
            self._failed(page, f"Error: {reason}")
            return
        if path.endswith(".mjs"):
            self._failed(page, "Error: in this transport a preload script is no module: use .js")
            return
        where = f"{json.dumps(path)}, {json.dumps(os.path.dirname(path))}"
        names = "exports, require, module, __filename, __dirname, process, global"
        start = json.dumps(self._names["start"])
        self._add_source(f"globalThis[{start}]?.(function ({names}) {{ {source}\n}}, {where});", world)

    def _failed(self, page: Page, why: str) -> None:
        # Later, without the lock: who is told takes the window's, and who has that may be waiting for ours.
        main_loop.call(self._tell, Kind.STATE, ["preload-error", why], page.document)

    def _add_source(self, source: str, world: dict[str, str]) -> None:
        def added(result: dict[str, Any]) -> None:
            if "identifier" in result:
                self._scripts.append(result["identifier"])

        self._call("Page.addScriptToEvaluateOnNewDocument", {"source": source, **world}, added)

    def _tell(self, kind: Kind, value: Any, document: int) -> None:
        """A frame that the page would have sent if it could."""
        self._give(pack(kind, encode(value), document=document))

    def post(self, frame: bytes) -> None:
        with self._lock:
            if self._closed:
                return
            if frame[0] == Kind.REPLY_SYNC:
                self._answer(frame)
            else:
                self._unsent.append(frame)
                self._send_on()

    def _send_on(self) -> None:
        """Send, in order, what has somebody to hear it; a script waits until those of the page have run."""
        while self._unsent and (self._ready or ("preload" in self._contexts and self._unsent[0][0] != Kind.EVALUATE)):
            self._send(self._unsent.popleft())

    def _answer(self, frame: bytes) -> None:
        parts = unpack(frame)
        if parts.document == self._document:
            request = self._requests.pop(parts.number, None)
            if request:
                self._fulfil(request, frame)
            else:
                self._answers[parts.number] = frame

    def _send(self, frame: bytes) -> None:
        if frame[0] == Kind.EVALUATE:
            self._evaluate(unpack(frame))
        else:
            function = f"(text) => globalThis[{json.dumps(self._names['receive'])}](text)"
            self._call(
                "Runtime.callFunctionOn",
                {
                    "functionDeclaration": function,
                    "executionContextId": self._contexts["preload"],
                    "arguments": [{"value": base64.b64encode(frame).decode()}],
                },
            )

    def _fulfil(self, request: str, frame: bytes) -> None:
        self._call(
            "Fetch.fulfillRequest",
            {
                "requestId": request,
                "responseCode": 200,
                "responseHeaders": [{"name": "Access-Control-Allow-Origin", "value": "*"}],
                "body": base64.b64encode(base64.b64encode(frame)).decode(),
            },
        )

    def _evaluate(self, frame: Frame) -> None:
        helper, context = json.dumps(self._names["helper"]), self._contexts["page"]

        def ran(result: dict[str, Any]) -> None:
            failed = "exceptionDetails" in result
            value = (result["exceptionDetails"].get("exception") if failed else result.get("result")) or {}
            if value.get("type") in AT_ONCE and "objectId" not in value:
                answer(
                    encode([not failed, _primitive(value)])
                )  # the page may wait in sendSync by now, and tell no more
                return
            argument = {key: value[key] for key in ("objectId", "unserializableValue", "value") if key in value}
            self._call(
                "Runtime.callFunctionOn",
                {
                    "functionDeclaration": f"(value) => globalThis[{helper}]({str(not failed).lower()}, value)",
                    "executionContextId": context,
                    "arguments": [argument],
                },
                told,
            )

        def told(result: dict[str, Any]) -> None:
            text = result.get("result", {}).get("value")
            answer(base64.b64decode(text) if text else encode([False, "the page has gone"]))

        def answer(clone: bytes) -> None:
            self._give(pack(Kind.EVALUATED, clone, number=frame.number, document=frame.document))

        parameters = {"expression": decode(frame.clone), "contextId": context, "awaitPromise": True, "replMode": False}
        self._call("Runtime.evaluate", parameters, ran)

    # What the browser tells

    def _on_Runtime_bindingCalled(self, name: str, payload: str, executionContextId: int) -> None:
        with self._lock:
            self._no_more_awaited(name)
            if name == self._names.get("here"):  # before any other script of the document
                self._contexts, self._ready = {"page": executionContextId}, False
            if name != self._names.get("binding"):
                return
            frame = base64.b64decode(payload)
            self._contexts["preload"] = executionContextId
            parts = unpack(frame)
            self._ready |= parts.kind == Kind.STATE and decode(parts.clone)[0] == "dom-ready"
            self._send_on()
        self._give(frame)

    def _on_Fetch_requestPaused(self, requestId: str, request: dict[str, Any], **_: Any) -> None:
        with self._lock:
            before, prefix, number = request["url"].partition(f"https://{self._names.get('secret')}.invalid/?")
            if before or not prefix:  # of a page that has been left, too
                self._call("Fetch.failRequest", {"requestId": requestId, "errorReason": "BlockedByClient"})
            elif frame := self._answers.pop(int(number), None):
                self._fulfil(requestId, frame)
            else:
                self._requests[int(number)] = requestId

    def _on_Page_javascriptDialogOpening(self, type: str, message: str, **_: Any) -> None:  # noqa: A002
        """Nobody is there to answer: an alert is a line of the console, all else but leaving is declined."""
        self._call("Page.handleJavaScriptDialog", {"accept": type == "beforeunload"})
        self._note("info", f"{type}: {message}")

    def _on_Runtime_consoleAPICalled(self, type: str, args: list[dict[str, Any]], **_: Any) -> None:  # noqa: A002
        self._note(LEVELS.get(type, "log"), " ".join(_shown(each) for each in args))

    def _on_Runtime_exceptionThrown(self, exceptionDetails: dict[str, Any], **_: Any) -> None:
        exception = exceptionDetails.get("exception", {})
        self._note("error", f"{exceptionDetails['text']} {exception.get('description', exception.get('value', ''))}")

    def _note(self, level: str, text: str) -> None:
        with self._lock:
            document = self._document if self._contexts else 0  # else the page that has been left says it
        if document:
            self._tell(Kind.CONSOLE, [level, text], document)

    def _on_Inspector_targetCrashed(self) -> None:
        self._ended("the process of its page has crashed")

    # The end

    def _ended(self, why: str = "") -> None:
        if self._closed:
            return
        self._closed = True
        self._kill()
        code = self._process.wait()
        self._free()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
        self._on_closed(why or how)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # its helpers, too

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._kill()
            main_loop.call(self._free)

    def _free(self) -> None:
        self._out.close()
        self._in.close()
        self._lifeline.close()
        self._process.wait()
        self._folder.close()
        self._sweeper.kill()
        self._sweeper.wait()
        self._broom.close()


def _primitive(value: dict[str, Any]) -> Any:
    """What Runtime.evaluate has told of a value that is no object."""
    if value["type"] == "number":
        return float(value["value"] if "value" in value else value["unserializableValue"])
    return undefined if value["type"] == "undefined" else value["value"]


def _shown(value: dict[str, Any]) -> str:
    if "value" in value:
        return value["value"] if isinstance(value["value"], str) else json.dumps(value["value"])
    return str(value.get("unserializableValue", value.get("description", value["type"])))
