"""What a real Electron printed, line by line: the same calls are made here, and give the same.

Each line of tests/electron/golden-22.3.25.log is a test, with its number. Where a line cannot hold, INSTEAD says what
does and why: Electron has changed since, or the main process is Python and no JavaScript.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labkit.doctor import find_browser
from labkit.electron import BrowserWindow, Error, MessageChannelMain, Throw, app, ipc_main, undefined
from labkit.electron.clone import Boxed, DataView, Date, RegExp, SparseArray
from labkit.electron.clone import Map as JsMap
from labkit.electron.clone import Set as JsSet

HERE = Path(__file__).parent / "electron"
LINES = [json.loads(line[4:]) for line in (HERE / "golden-22.3.25.log").read_text(encoding="utf-8").splitlines()]
WAIT = 60

MISSING = "ENOENT: no such file or directory, open 'path/to/file.txt'"
NEWER = "Electron has changed since 22"
PYTHON = "main is Python"
NO_HANDLER = "Error invoking remote method '{0}': Error: No handler registered for '{0}'"


def _no_handler(channel: str) -> dict[str, Any]:
    return {"name": "Error", "message": NO_HANDLER.format(channel), "isErr": True, "own": ["stack", "message"]}


_LOGGED = "Error occurred in handler for '{0}': Error: No handler registered for '{0}'"

INSTEAD: dict[str, tuple[str, Any]] = {
    "versions": (PYTHON, {"electron": "labkit"}),
    "S2 main console.error": (
        f"{PYTHON}: an exception is written as Python does",
        ["Error occurred in handler for 'read-file': Error: " + MISSING],
    ),
    "ev props": (
        f"{NEWER}: 25 added type",
        {
            "fid": "number",
            "pid": "number",
            "senderIsWC": True,
            "sfParent": None,
            "reply": "function",
            "ports": "<undefined>",
            "type": "frame",
            "argc": 3,
        },
    ),
    "InvokeEvent keys": (
        f"{NEWER}: what was internal is hidden, type was added",
        ["frameId", "preventDefault", "processId", "sender", "senderFrame", "type"],
    ),
    "rendererEvent": (
        f"{NEWER}: senderId has gone",
        {"keys": ["ports", "sender"], "senderSame": True, "sid": "<undefined>", "ports": 0, "args": 2},
    ),
    "no handler": (f"{NEWER}: the error's name is said", _no_handler("nope")),
    "no handler errlog": (f"{NEWER}: the error's name is said", [_LOGGED.format("nope")]),
    "throw object errlog": (
        f"{PYTHON}: logged as it crosses",
        ["Error occurred in handler for 't': [object Object]"],
    ),
    "throw custom toString errlog": (f"{PYTHON}: logged as it crosses", ["Error occurred in handler for 't': custom!"]),
    "handler not fn setup": (
        f"{NEWER}: 27 made it a TypeError",
        "TypeError: Expected handler to be a function, but found type 'number'",
    ),
    "handler not fn": (f"{NEWER}: the error's name is said", _no_handler("t")),
    "handler not fn errlog": (f"{NEWER}: the error's name is said", [_LOGGED.format("t")]),
    "handler string setup": (
        f"{NEWER}: 27 made it a TypeError",
        "TypeError: Expected handler to be a function, but found type 'undefined'",
    ),
    "handleOnce twice": (
        f"{NEWER}: the error's name is said",
        {"ok": ["first", NO_HANDLER.format("t")], "t": "object"},
    ),
    "handleOnce twice errlog": (f"{NEWER}: the error's name is said", [_LOGGED.format("t")]),
    "handleOnce throwing removed?": (
        f"{NEWER}: the error's name is said",
        {"ok": ["Error invoking remote method 't': Error: x", NO_HANDLER.format("t")], "t": "object"},
    ),
    "handleOnce throwing removed? errlog": (
        f"{NEWER}: the error's name is said",
        ["Error occurred in handler for 't': Error: x", _LOGGED.format("t")],
    ),
    "type err": (
        f"{PYTHON}: the stack is the renderer's, whose frames have other names",
        {"ok": {"seen": "TypeError: m", "back": "[object Error]:TypeError"}, "t": "object"},
    ),
    "pm undef": (f"{NEWER}: a message may be left out", "ok"),
    "cb raw": (f"{NEWER}: 29 shows nothing of ipcRenderer", '[[],"undefined"]'),
    "cb raw2": (f"{NEWER}: 29 shows nothing of ipcRenderer", '[[],"undefined"]'),
    "cb inv": (f"{NEWER}: the error's name is said", ["Error", NO_HANDLER.format("nope")]),
    "cb inv errlog": (f"{NEWER}: the error's name is said", [_LOGGED.format("nope")]),
    "warns": (
        f"{PYTHON}: windows have other numbers",
        ["WebContents #{id} called ipcRenderer.sendSync() with 'nobody-sync' channel without listeners."],
    ),
    **{
        f"wc.send({args})": (f"{NEWER}: 27 made it a TypeError", "TypeError: Missing required channel argument")
        for args in ("[]", "[null]", "[5]", "[{}]")
    },
}


_NO_BUFFER = {"name": "ReferenceError", "message": "Buffer is not defined", "isErr": True, "own": ["stack", "message"]}
IN_CHROMIUM: dict[str, tuple[str, Any]] = {
    "type buffer": ("a browser has no Buffer of Node's; Electron brings one along", _NO_BUFFER),
}


class Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def take(self) -> list[str]:
        taken, self.lines = self.lines, []
        return taken


class Stage:
    """A window with renderer.html, and what the tests ask of it."""

    def __init__(self, transport: str | None = None) -> None:
        self.transport = transport
        self.log = Log()
        self.logger = logging.getLogger("labkit.electron")
        self.logger.addHandler(self.log)
        self.logger.propagate = False
        self.window = self.open(web_preferences={"contextIsolation": False, "nodeIntegration": True})
        self.contents = self.window.web_contents
        self.contents.on("console-message", lambda message: self.log.lines.append(str(message)))
        loading = self.window.load_file(HERE / "renderer.html")
        self.contents.send("early", "sent-before-load")
        loading.result(WAIT)
        self.bridged = self.open(web_preferences={"preload": HERE / "bridge-preload.js"})
        self.bridged.load_file(HERE / "bridge.html").result(WAIT)

    def open(self, **options: Any) -> BrowserWindow:
        return BrowserWindow(transport=self.transport, **options)

    def run(self, code: str) -> Any:
        return self.contents.execute_java_script(code).result(WAIT)

    def bridge(self, code: str) -> Any:
        return self.bridged.web_contents.execute_java_script(code).result(WAIT)

    def close(self) -> None:
        for window in BrowserWindow.get_all_windows():
            window.destroy()
        self.logger.removeHandler(self.log)
        self.logger.propagate = True
        ipc_main.remove_all_listeners()
        ipc_main.on("error", lambda *_: None)
        ipc_main._handlers.clear()


@pytest.fixture(scope="module")
def stage(warm_up):
    stage = Stage("node")
    yield stage
    stage.close()


@pytest.fixture(scope="module")
def chromium(warm_up):
    if find_browser() is None:
        pytest.skip("NOT TESTED: no browser; install the Debian package chromium (apt-get install chromium)")
    stage = Stage("chromium")
    yield stage
    stage.close()


def eventually(condition: Callable[[], Any], seconds: float = WAIT) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return value


def text(call: Callable[[], Any], otherwise: str = "ok") -> str:
    """How JavaScript would write what a call raises."""
    try:
        call()
    except Error as error:
        return f"{error.name}: {error}"
    except TypeError as error:
        return f"TypeError: {error}"
    except Exception as error:  # CloneError is a plain Error there
        return f"Error: {error}"
    return otherwise


def inspect(value: Any, seen: tuple[int, ...] = ()) -> str:
    """A value as Node's util.inspect writes it."""
    inner = (*seen, id(value))
    if id(value) in seen:
        return "[Circular *1]"
    mark = "<ref *1> " if _contains(value, value) else ""
    if value is undefined or value is None:
        return "undefined" if value is undefined else "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value}n" if abs(value) > 2**53 or type(value).__name__ == "BigInt" else str(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, str):
        return "'" + "".join(f"\\u{ord(c):x}" if 0xD800 <= ord(c) < 0xE000 else c for c in value) + "'"
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, Date):
        return "Invalid Date"
    if isinstance(value, RegExp):
        return f"/{value.source}/{value.flags}"
    if isinstance(value, Boxed):
        kinds = {"bool": "Boolean", "str": "String", "BigInt": "BigInt"}
        return f"[{kinds.get(type(value.value).__name__, 'Number')}: {inspect(value.value)}]"
    if isinstance(value, Error):
        return f"{value.name}: {value}"
    if isinstance(value, bytearray):
        return f"ArrayBuffer {{ [Uint8Contents]: <{value.hex(' ')}>, byteLength: {len(value)} }}"
    if isinstance(value, DataView):
        inside = inspect(bytearray(bytes(value.buffer)))
        return f"DataView {{\n  byteLength: {value.length},\n  byteOffset: {value.offset},\n  buffer: {inside}\n}}"
    if isinstance(value, bytes):
        return f"Uint8Array({len(value)}) [ {', '.join(map(str, value))} ]"
    if isinstance(value, np.ndarray):
        return f"{value.dtype.name.capitalize()}Array({len(value)}) [ {', '.join(_number(float(x)) for x in value)} ]"
    if isinstance(value, JsMap) or (isinstance(value, dict) and not all(isinstance(key, str) for key in value)):
        pairs = (f"{inspect(key, inner)} => {inspect(each, inner)}" for key, each in value.items())
        return f"Map({len(value)}) {{ {', '.join(pairs)} }}"
    if isinstance(value, (JsSet, set)):
        return f"Set({len(value)}) {{ {', '.join(inspect(each, inner) for each in value)} }}"
    if isinstance(value, dict):
        names = ((f"['{key}']" if key == "__proto__" else key, each) for key, each in value.items())
        pairs = (f"{key}: {inspect(each, inner)}" for key, each in names)
        return mark + (f"{{ {', '.join(pairs)} }}" if value else "{}")
    if isinstance(value, SparseArray):
        parts = [inspect(value.items[i], inner) if i in value.items else "<1 empty item>" for i in range(value.length)]
        parts += [f"{key}: {inspect(each, inner)}" for key, each in value.properties.items()]
        return f"[ {', '.join(parts)} ]"
    assert isinstance(value, list), value
    return f"[ {', '.join(inspect(each, inner) for each in value)} ]"


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    if value == 0 and math.copysign(1, value) < 0:
        return "-0"
    return str(int(value)) if value.is_integer() else str(value)


def _contains(value: Any, wanted: Any) -> bool:
    return isinstance(value, dict) and any(each is wanted for each in value.values())


# ----------------------------------------------------------------------------------------------------------------------
# What is done for each line. A name that ends in a digit or not, as in the log.

SCENES: dict[str, Callable[[Stage], Any]] = {}


def scene(*labels: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers what gives the value of a line; of several lines, one after another, when it yields a tuple."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for index, label in enumerate(labels):
            SCENES[label] = function if len(labels) == 1 else _part(function, index)
        return function

    return register


def _part(function: Callable[..., Any], index: int) -> Callable[[Stage], Any]:
    def part(stage: Stage) -> Any:
        known = stage.__dict__.setdefault("known", {})
        if function not in known:
            known[function] = function(stage)
        return known[function][index]

    return part


@scene("versions")
def _(stage):
    return {"electron": stage.run("process.versions.electron")}


@scene("send-before-load delivered?")
def _(stage):
    return stage.run("early.then(([event, text]) => text)")


@scene("S1 arg", "S1 new window", "windows", "S1 distinct process")
def _(stage):
    seen = []

    def open_window(event, data):
        other = stage.open()
        other.load_url("data:text/html,new-window.html")
        seen.append((data, other))

    ipc_main.once("open-new-window", open_window)
    stage.run("void ipcRenderer.send('open-new-window', 'some data')")
    (data, other) = eventually(lambda: seen and seen[0])
    page = other.web_contents.get_url().removeprefix("data:text/html,")
    count = len([window for window in BrowserWindow.get_all_windows() if window in (stage.window, other)])
    distinct = other.web_contents.get_os_process_id() != stage.contents.get_os_process_id()
    other.destroy()
    return data, page, count, distinct


@scene("S2 ok", "S2 err", "S2 main console.error")
def _(stage, tmp_path_factory=None):
    async def read_file(event, path):
        return Path(path).read_text(encoding="utf-8")

    ipc_main.handle("read-file", read_file)
    there = HERE / "hello.txt"
    ok = {"content": stage.run(f"ipcRenderer.invoke('read-file', {json.dumps(str(there))})").strip()}
    stage.log.take()
    err = stage.run(
        "ipcRenderer.invoke('read-file', 'path/to/file.txt').catch((error) => ({ error: String(error),"
        " name: error.name, keys: Object.getOwnPropertyNames(error), code: own(error.code) }))"
    )
    ipc_main.remove_handler("read-file")
    return ok, err, stage.log.take()


@scene("S3")
def _(stage):
    stage.run("globalThis.note = waitFor('show-notification'); undefined")
    stage.contents.send("show-notification", "Hello from main!", 5)
    return stage.run("note.then(([event, ...args]) => args)")


@scene("IpcMainEvent keys", "ev props")
def _(stage):
    seen = []
    ipc_main.once("ev", lambda *args: seen.append(args))
    stage.run("void ipcRenderer.send('ev', 1, undefined)")
    event, *_ = args = eventually(lambda: seen and seen[0])
    wanted = ["frameId", "preventDefault", "processId", "reply", "sender"]
    keys = [name for name in sorted(dir(event)) if name in wanted]
    return keys, {
        "fid": "number" if isinstance(event.frameId, int) else "",
        "pid": "number" if isinstance(event.processId, int) else "",
        "senderIsWC": event.sender is stage.window.web_contents,
        "sfParent": event.senderFrame.parent,
        "reply": "function" if callable(event.reply) else "",
        "ports": "<undefined>" if event.ports is undefined else event.ports,
        "type": event.type,
        "argc": len(args),
    }


@scene("InvokeEvent keys", "iev")
def _(stage):
    seen = []
    ipc_main.handle("iev", lambda event: seen.append(event))
    stage.run("ipcRenderer.invoke('iev')")
    ipc_main.remove_handler("iev")
    (event,) = seen
    camel = [name for name in dir(event) if not name.startswith("_") and "_" not in name]
    reply = "undefined" if not hasattr(event, "reply") else "function"
    return sorted(camel), {"reply": reply, "rv": hasattr(event, "return_value") or hasattr(event, "returnValue")}


@scene("rendererEvent")
def _(stage):
    stage.run("globalThis.it = waitFor('revent'); undefined")
    stage.contents.send("revent", 1, undefined)
    return stage.run(
        "it.then(([event, ...args]) => ({ keys: Object.keys(event).sort(), senderSame: event.sender === ipcRenderer,"
        " sid: own(event.senderId), ports: event.ports.length, args: args.length }))"
    )


def invoking(label: str, handler: Any, code: str = "() => ipcRenderer.invoke('t', 1)", logged: bool = True) -> None:
    """A line for what the renderer gets, and one for what main has logged."""

    def both(stage: Stage) -> tuple[Any, list[str]]:
        stage.log.take()
        ipc_main.remove_handler("t")
        if handler:
            ipc_main.handle("t", handler)
        value = stage.run(f"attempt({code})")
        ipc_main.remove_handler("t")
        return value, stage.log.take()

    scene(*([label, f"{label} errlog"] if logged else [label]))(both if logged else lambda stage: both(stage)[0])


def throwing(error: BaseException) -> Callable[..., Any]:
    def handler(*_: Any) -> Any:
        raise error

    return handler


def returning(value: Any) -> Callable[..., Any]:
    return lambda *_: value


invoking("no handler", None, "() => ipcRenderer.invoke('nope')")
invoking("throw Error", throwing(Error("some error")))
invoking("throw TypeError w/ props", throwing(TypeError("bad type")))
invoking("throw string", throwing(Throw("plain")))
invoking("throw empty string", throwing(Throw("")))
invoking("throw number 0", throwing(Throw(0)))
invoking("throw object", throwing(Throw({"a": 1})))
invoking("throw custom toString", throwing(Throw({"toString": lambda: "custom!"})))
invoking("throw Error empty msg", throwing(Error("")))
invoking("return undefined", returning(undefined), logged=False)
invoking("return function", returning(print))
invoking("return {fn}", returning({"fn": print}))
invoking("return symbol", returning(object()))
invoking("return object with error key", returning({"error": "x"}), logged=False)
invoking(
    "return Error obj",
    returning(Error("rr", "RangeError")),
    "async () => { const e = await ipcRenderer.invoke('t');"
    " return [e instanceof Error, e.name, e.message, own(e.code), typeof e.stack]; }",
    logged=False,
)


@scene("unhandledRejection", "throw undefined", "throw undefined errlog")
def _(stage):
    seen = []
    app.on("uncaught-exception", seen.append)
    stage.log.take()
    ipc_main.handle("t", throwing(Throw(undefined)))
    first = stage.run(
        "Promise.race([attempt(() => ipcRenderer.invoke('t')),"
        " new Promise((resolve) => setTimeout(resolve, 300, 'TIMEOUT'))])"
    )
    ipc_main.remove_handler("t")
    app.remove_all_listeners()
    return str(seen[0]), first, stage.log.take()


@scene("return promise-of-promise")
def _(stage):
    async def inner():
        return 7

    async def outer(event):
        return inner()

    ipc_main.handle("pp", outer)
    value = stage.run("attempt(() => ipcRenderer.invoke('pp'))")
    ipc_main.remove_handler("pp")
    return value


for _name, _value in {
    "arg function": "() => 1",
    "arg promise": "Promise.resolve(1)",
    "arg symbol": "Symbol('s')",
    "arg WeakMap": "new WeakMap()",
    "arg DOM": "document.body",
    "arg location": "location",
    "arg Blob": "new Blob(['x'])",
    "arg window proxy": "window",
}.items():
    scene(_name)(lambda stage, value=_value: stage.run(f"attempt(() => ipcRenderer.invoke('t', {value}))"))


@scene("send function throws sync")
def _(stage):
    return stage.run("attempt(() => ipcRenderer.send('t', () => 1))")


@scene("invoke sync throw?")
def _(stage):
    return stage.run("attempt(() => throwsAtOnce(() => ipcRenderer.invoke('t', () => 1)))")


@scene("second handler setup", "second handler")
def _(stage):
    ipc_main.handle("t", lambda event: 1)
    setup = text(lambda: ipc_main.handle("t", lambda event: 2))
    value = stage.run("attempt(() => ipcRenderer.invoke('t'))")
    ipc_main.remove_handler("t")
    return setup, value


@scene("handler not fn setup", "handler not fn", "handler not fn errlog")
def _(stage):
    stage.log.take()
    setup = text(lambda: ipc_main.handle("t", 5))
    return setup, stage.run("attempt(() => ipcRenderer.invoke('t'))"), stage.log.take()


@scene("handler string setup", "handler string")
def _(stage):
    setup = text(lambda: ipc_main.handle("t"))
    ipc_main.handle("t", lambda event: 1)
    value = stage.run("attempt(() => ipcRenderer.invoke('t'))")
    ipc_main.remove_handler("t")
    return setup, value


TWICE = (
    "attempt(async () => { const said = [];"
    " for (let i = 0; i < 2; i++) said.push(await ipcRenderer.invoke('t').catch((error) => error.message));"
    " return said; })"
)


@scene("handleOnce twice", "handleOnce twice errlog")
def _(stage):
    stage.log.take()
    ipc_main.handle_once("t", lambda event: "first")
    return stage.run(TWICE), stage.log.take()


@scene("handleOnce throwing removed?", "handleOnce throwing removed? errlog")
def _(stage):
    stage.log.take()
    ipc_main.handleOnce("t", throwing(Error("x")))
    return stage.run(TWICE), stage.log.take()


@scene("removeHandler missing")
def _(stage):
    return "undefined" if ipc_main.remove_handler("not there") is None else "something"


for _name, _call in {
    "missing channel invoke": "ipcRenderer.invoke()",
    "numeric channel": "ipcRenderer.invoke(5)",
    "null channel send": "ipcRenderer.send(null)",
    "no channel send": "ipcRenderer.send()",
    "obj channel send": "ipcRenderer.send({})",
}.items():
    scene(_name)(lambda stage, call=_call: stage.run(f"attempt(() => {call})"))


@scene("empty channel")
def _(stage):
    ipc_main.handle("", lambda event: "empty ok")
    value = stage.run("attempt(() => ipcRenderer.invoke(''))")
    ipc_main.remove_handler("")
    return value


@scene("error channel on", "after error channel")
def _(stage):
    value = stage.run("attempt(() => { ipcRenderer.send('error', 'payload'); return 'sent'; })")
    ipc_main.handle("alive?", lambda event: "alive")
    alive = stage.run("ipcRenderer.invoke('alive?')")
    ipc_main.remove_handler("alive?")
    return value, alive


@scene("renderer after error msg")
def _(stage):
    stage.contents.send("error", "nobody listens")
    return stage.run("1 + 1")


def _type(name: str) -> None:
    @scene(f"type {name}")
    def _(stage: Stage) -> Any:
        seen = []

        def echo(event: Any, value: Any = undefined) -> Any:
            seen.append(inspect(value))
            return value

        ipc_main.handle("echo", echo)
        code = f"async () => shown(await ipcRenderer.invoke('echo', values[{json.dumps(name)}]()))"
        result = stage.run(f"attempt({code})")
        ipc_main.remove_handler("echo")
        return {"ok": {"seen": seen[0], "back": result["ok"]}, "t": "object"} if "ok" in result else result


for _line in LINES:
    if _line[0].startswith("type "):
        _type(_line[0].removeprefix("type "))


@scene("cyc identity", "shared identity", "shared across args")
def _(stage):
    ipc_main.handle("same", lambda event, *args: list(args))
    values = (
        stage.run(
            "attempt(async () => { const [it] = await ipcRenderer.invoke('same', values.cyc());"
            " return it.self === it; })"
        ),
        stage.run(
            "attempt(async () => { const [[a, b]] = await ipcRenderer.invoke('same', values.shared());"
            " return a === b; })"
        ),
        stage.run(
            "attempt(async () => { const it = {}; const [a, b] = await ipcRenderer.invoke('same', it, it);"
            " return a === b; })"
        ),
    )
    ipc_main.remove_handler("same")
    return values


def synchronous(label: str, *listeners: Any) -> None:
    @scene(label)
    def _(stage: Stage) -> Any:
        for listener in listeners:
            ipc_main.on("sync", listener)
        value = stage.run("attempt(() => ipcRenderer.sendSync('sync'))")
        ipc_main.remove_all_listeners("sync")
        return value


def _set(*values: Any) -> Callable[..., None]:
    def listener(event: Any) -> None:
        for value in values:
            event.return_value = value

    return listener


synchronous("sendSync", _set({"a": [1]}))
synchronous("sendSync undefined rv", _set(undefined))
synchronous("sendSync twice rv", _set(1, 2), _set(3))


@scene("returnValue getter", "sendSync getter")
def _(stage):
    seen = []

    def listener(event):
        event.returnValue = 5
        seen.append("undefined" if event.returnValue is undefined else repr(event.returnValue))

    ipc_main.once("sync", listener)
    value = stage.run("attempt(() => ipcRenderer.sendSync('sync'))")
    return seen[0], value


async def _late(event):
    await asyncio.sleep(0.02)
    event.return_value = "late"


synchronous("sendSync async rv", _late)


@scene("sendSync no listener 3s", "warns")
def _(stage):
    stage.log.take()
    value = stage.run("JSON.stringify([ipcRenderer.sendSync('nobody-sync')])")
    return value, stage.log.take()


@scene("rv fn", "sendSync fn rv")
def _(stage):
    seen = []

    def listener(event):
        try:
            event.return_value = print
        except Exception as error:
            seen.append(str(error))

    ipc_main.once("sync", listener)
    value = stage.run("JSON.stringify([ipcRenderer.sendSync('sync')])")
    return seen[0], ["after gc", value]


@scene("never resolves+gc")
def _(stage):
    ipc_main.handle("never", lambda event: asyncio.Future())
    value = stage.run("ipcRenderer.invoke('never').catch((error) => error.message)")
    ipc_main.remove_handler("never")
    return value


@scene(
    "mid-invoke destroy errs",
    "wc.isDestroyed",
    "send after destroy",
    "senderFrame after destroy",
    "reply after destroy",
)
def _(stage):
    seen, go, done = [], asyncio.Event(), []

    async def slow(event):
        seen.append((event, asyncio.get_running_loop()))
        await go.wait()
        done.append(1)

    other = stage.open(web_preferences={"contextIsolation": False})
    ipc_main.handle("slow", slow)
    heard = []
    ipc_main.once("heard", lambda event: heard.append(event))
    other.load_url(
        "data:text/html,<script>const i = require('electron').ipcRenderer; i.send('heard'); i.invoke('slow')</script>"
    )
    event, loop = eventually(lambda: seen and seen[0])
    contents = other.web_contents
    stage.log.take()
    other.destroy()
    loop.call_soon_threadsafe(go.set)
    eventually(lambda: done)
    time.sleep(0.02)
    ipc_main.remove_handler("slow")
    return (
        stage.log.take(),
        contents.is_destroyed(),
        text(lambda: contents.send("x")),
        "undefined" if event.sender_frame is None else "there",  # 22's was undefined, today's is null
        text(lambda: heard[0].reply("x"), "no throw"),
    )


@scene("reload mid-invoke")
def _(stage):
    seen, go, done = [], asyncio.Event(), []

    async def slow(event):
        seen.append(asyncio.get_running_loop())
        await go.wait()
        done.append("handler finished")
        return "too late"

    other = stage.open(web_preferences={"contextIsolation": False})
    ipc_main.handle("slow", slow)
    page = "data:text/html,<script>const { ipcRenderer } = require('electron'); globalThis.got = false</script>"
    other.load_url(page).result(WAIT)
    go_on = "ipcRenderer.invoke('slow').then(() => { got = true; }); undefined"
    other.web_contents.execute_java_script(go_on).result(WAIT)
    (loop,) = eventually(lambda: seen)
    stage.log.take()
    other.web_contents.reload().result(WAIT)
    loop.call_soon_threadsafe(go.set)
    eventually(lambda: done)
    got = other.web_contents.execute_java_script("got").result(WAIT)
    ipc_main.remove_handler("slow")
    other.destroy()
    return {"fin": done[0], "got": got, "errs": stage.log.take()}


for _args, _given in {"[]": (), "[null]": (None,), "[5]": (5,), "[{}]": ({},)}.items():
    scene(f"wc.send({_args})")(lambda stage, given=_given: text(lambda: stage.contents.send(*given)))


@scene("wc.send fn")
def _(stage):
    stage.log.take()
    said = text(lambda: stage.contents.send("x", print), "no throw")
    return f"{said}; errs={json.dumps(stage.log.take())}"


def _closed_post() -> str:
    port = MessageChannelMain().port1
    port.close()
    return text(lambda: port.post_message(1))


def _neutered(stage: Stage) -> str:
    channel = MessageChannelMain()
    stage.contents.post_message("x", 1, [channel.port1])
    return text(lambda: stage.contents.post_message("x", 1, [channel.port1]))


def _duplicate(stage: Stage) -> str:
    channel = MessageChannelMain()
    return text(lambda: stage.contents.post_message("x", 1, [channel.port1, channel.port1]))


def _on_a_port(call: Callable[[Any], Any]) -> str:
    channel = MessageChannelMain()  # held: a port that is forgotten closes the other
    return text(lambda: call(channel.port1))


for _name, _function in {
    "wc.postMessage fn": lambda stage: text(lambda: stage.contents.post_message("x", print)),
    "pm noargs": lambda stage: text(lambda: stage.contents.post_message()),
    "pm nullch": lambda stage: text(lambda: stage.contents.postMessage(None, 1)),
    "pm nomsg": lambda stage: text(lambda: stage.contents.post_message("x")),
    "pm nulltransfer": lambda stage: text(lambda: stage.contents.post_message("x", 1, None)),
    "pm numtransfer": lambda stage: text(lambda: stage.contents.post_message("x", 1, 5)),
    "pm nullport": lambda stage: text(lambda: stage.contents.post_message("x", 1, [None])),
    "pm dup": _duplicate,
    "pm neutered": _neutered,
    "pm self": lambda stage: _on_a_port(lambda port: port.post_message(1, [port])),
    "pm badport": lambda stage: _on_a_port(lambda port: port.post_message(1, [None])),
    "pm closedpost": lambda stage: _closed_post(),
    "pm undef": lambda stage: _on_a_port(lambda port: port.post_message()),
    "pm fnport": lambda stage: _on_a_port(lambda port: port.post_message(print)),
}.items():
    scene(_name)(_function)


@scene("renderer postMessage bad transfer")
def _(stage):
    return stage.run("attempt(() => ipcRenderer.postMessage('x', 1, [{}]))")


@scene("port2 close evt", "port1 close evt")
def _(stage):
    channel, closed = MessageChannelMain(), []
    channel.port1.on("close", lambda: closed.append(1))
    channel.port2.on("close", lambda: closed.append(2))
    channel.port1.close()
    eventually(lambda: len(closed) == 2)
    return 2 in closed, 1 in closed


@scene("port queue")
def _(stage):
    channel, got = MessageChannelMain(), []
    channel.port2.on("message", lambda event: got.append([event.data, len(event.ports)]))
    channel.port1.post_message("q1")
    channel.port1.post_message("q2")
    time.sleep(0.02)
    before = len(got)
    channel.port2.start()
    eventually(lambda: len(got) == 2)
    channel.port1.close()
    return {"before": before, "got": got}


@scene("ev.ports", "port rt")
def _(stage):
    seen, answers = [], []
    ipc_main.once("port", lambda event, message: seen.append((message, event.ports)))
    stage.run(
        "globalThis.channel = new MessageChannel();"
        " channel.port1.onmessage = (event) => channel.port1.postMessage(event.data * 2);"
        " ipcRenderer.postMessage('port', 'hi', [channel.port2]); undefined"
    )
    message, ports = eventually(lambda: seen and seen[0])
    ports[0].on("message", lambda event: answers.append(event.data))
    ports[0].start()
    ports[0].post_message(21)
    eventually(lambda: answers)
    ports[0].close()
    return [message, len(ports), type(ports[0]).__name__], answers[0]


@scene("postMessage no transfer")
def _(stage):
    seen = []
    ipc_main.once("plain", lambda event, message: seen.append([message, event.ports]))
    stage.run("ipcRenderer.postMessage('plain', 'hi')")
    return eventually(lambda: seen and seen[0])


@scene("ordering")
def _(stage):
    seen = []

    def heard(event, number):
        seen.append(number)

    def answered(event, number):
        seen.append(number)
        event.return_value = number

    async def handled(event, number):
        seen.append(number)

    ipc_main.on("order", heard)
    ipc_main.on("order-sync", answered)
    ipc_main.handle("order", handled)
    stage.run(
        "for (let i = 0; i < 600; i += 3) { ipcRenderer.send('order', i); ipcRenderer.invoke('order', i + 1);"
        " ipcRenderer.sendSync('order-sync', i + 2); } undefined"
    )
    ipc_main.remove_all_listeners("order")
    ipc_main.remove_all_listeners("order-sync")
    ipc_main.remove_handler("order")
    return seen == list(range(600))


@scene("cascade")
def _(stage):
    seen = []
    emitters = (
        ("frame.ipc", stage.contents.main_frame.ipc),
        ("wc.ipc", stage.contents.ipc),
        ("ipcMain", ipc_main),
    )
    stage.contents.once("ipc-message", lambda event, channel: seen.append("ipc-message"))
    for name, emitter in reversed(emitters):
        emitter.once("cascade", lambda event, name=name: seen.append(name))
    stage.run("ipcRenderer.send('cascade')")
    eventually(lambda: len(seen) == 4)
    return seen


@scene("dup listeners + removeListener removes last")
def _(stage):
    seen = []

    def one(event):
        seen.append(1)

    def two(event):
        seen.append(2)

    for listener in (one, two, one):
        ipc_main.on("dup", listener)
    stage.run("ipcRenderer.sendSync('nobody', ipcRenderer.send('dup'))")
    ipc_main.remove_listener("dup", one)
    stage.run("ipcRenderer.sendSync('nobody', ipcRenderer.send('dup'))")
    ipc_main.remove_all_listeners("dup")
    return seen


@scene("uncaughtException")
def _(stage):
    seen, later = [], []

    def boom(event):
        raise Error("listener boom")

    app.on("uncaught-exception", lambda error: seen.append(str(error)))
    ipc_main.on("boom", boom)
    ipc_main.on("boom", later.append)
    stage.run("ipcRenderer.sendSync('nobody', ipcRenderer.send('boom'))")
    app.remove_all_listeners()
    ipc_main.remove_all_listeners("boom")
    assert later == []
    return seen[0]


@scene("remove during emit still calls")
def _(stage):
    seen = []

    def g(event):
        seen.append("g")

    def f(event):
        seen.append("f")
        ipc_main.remove_listener("during", g)

    ipc_main.on("during", f)
    ipc_main.on("during", g)
    stage.run("ipcRenderer.sendSync('nobody', ipcRenderer.send('during'))")
    ipc_main.remove_all_listeners("during")
    return seen


BRIDGE = {
    "require": "typeof require",
    "nowrite": "api.n = 5; api.n",
    "strict": "String(caught(() => { 'use strict'; api.n = 5; }))",
    "overwriteGlobal": "window.api = 1; typeof window.api",
    "del": "delete window.api",
    "frozen": "[api, api.arr, api.obj.x, api.fn].map(Object.isFrozen)",
    "fnid": "api.ret(api.fn) === api.fn",
    "err": "(() => { const e = caught(api.thrower);"
    " return [e.name, e.message, e instanceof Error, e.constructor === Error]; })()",
    "t123": "(() => { const e = caught(api.throw123); return [e.name, e.message]; })()",
    "prom": "api.prom()",
    "rej": "api.rej().catch((e) => [e instanceof Error, e.message])",
    "cb": "api.cb((x) => x + 1)",
    "cls": "caught(() => new api.klass()).message",
    "date": "api.date instanceof Date",
    "sym": "typeof api.sym",
    "retsym": "typeof api.ret(Symbol('x'))",
    "proto": "(() => { const r = api.retClass();"
    " return [Object.getPrototypeOf(r) === Object.prototype, JSON.stringify(r), typeof r.method]; })()",
    "getter": "['get' in Object.getOwnPropertyDescriptor(api, 'getter'), api.getter]",
    "map": "api.map instanceof Map",
    "undef": "'undef' in api && api.undef === undefined",
    "nul": "api.nul",
    "raw": "JSON.stringify([Object.keys(raw), typeof raw.on])",
    "raw2": "JSON.stringify([Object.keys(raw2.ipcRenderer), typeof raw2.ipcRenderer.on])",
    "cyc": "cyc.o === cyc",
    "inv": "caughtLater(() => api.invoke('nope')).then((e) => [e.name, e.message])",
    "invDom": "caughtLater(() => api.invoke('x', document.body)).then((e) => e.message)",
    "invFn": "caughtLater(() => api.invoke('x', () => 1)).then((e) => e.message)",
    "argFn": "api.getArgs(() => 1, new Map(), document.body, Symbol('x'))",
    "sameProto": "api.arr instanceof Array && Object.getPrototypeOf(api.obj) === Object.prototype",
    "api": "JSON.stringify(Object.keys(api))",
}
for _name, _code in BRIDGE.items():
    scene(f"cb {_name}")(lambda stage, code=_code: stage.bridge(code))


@scene("cb inv errlog")
def _(stage):
    stage.log.take()
    stage.bridge(BRIDGE["inv"])
    return stage.log.take()


@scene("preloadResults")
def _(stage):
    return stage.bridge("({ ...preloadResults })")


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def line(stage: Stage, number: int) -> tuple[str, Any, Any, str]:
    """A line's label, what it gives here, what it should, and why that is not what Electron printed."""
    label, golden = LINES[number - 1]
    if label == "errs":  # what was logged since the labels before it: they say it themselves
        golden, label = ([], "mid-invoke destroy errs") if number < len(LINES) else (LINES[-1][1], "cb inv errlog")
    instead = INSTEAD | (IN_CHROMIUM if stage.transport == "chromium" else {})
    reason, expected = instead.get(label, ("", golden))
    try:
        value = plain(SCENES[label](stage))
    except Exception as error:
        value = f"{type(error).__name__}: {error}"
    if label == "warns":
        expected = [expected[0].format(id=stage.contents.id)]
    return label, value, expected, reason


@pytest.mark.parametrize("number", range(1, len(LINES) + 1))
def test_a_line_that_electron_printed(stage, number):
    _, value, expected, reason = line(stage, number)
    assert value == expected, reason


@pytest.mark.browser
@pytest.mark.parametrize("number", range(1, len(LINES) + 1))
def test_a_line_that_electron_printed_in_a_chromium(chromium, number):
    _, value, expected, reason = line(chromium, number)
    assert value == expected, reason


def test_every_exception_is_about_a_line_and_says_why():
    labels = {label for label, _ in LINES}
    assert {label for label in INSTEAD if not label.startswith("cb inv errlog")} <= labels
    assert all(reason for reason, _ in INSTEAD.values())
    gc.collect()
