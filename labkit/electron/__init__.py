"""Electron's inter-process communication: the main process is this Python, renderers run unmodified JavaScript.

    from labkit.electron import BrowserWindow, ipc_main

    ipc_main.handle("app:open", lambda event, name: open(name).read())     # ipcRenderer.invoke("app:open", name)
    ipc_main.on("app:ready", lambda event: event.reply("app:welcome"))     # ipcRenderer.send("app:ready")

    window = BrowserWindow(web_preferences={"preload": "preload.js"})
    window.load_file("index.html").result(10)
    window.web_contents.send("app:note", {"text": "hello"})                # ipcRenderer.on("app:note", ...)
    window.close()

What Electron's documentation says of ipcMain, BrowserWindow, webContents, MessageChannelMain, ipcRenderer and
contextBridge holds, names included: every method has its camelCase name, too. Differences are the languages': an
exception crosses as "ValueError: its text", an OSError about a file as Node's ("Error: ENOENT: no such file or
directory, open 'x'"), and `raise Throw(value)` throws what is no exception. `labkit.electron.clone` has the table of
what becomes what.

Everything in main happens in one thread that plays Electron's main process: listeners and plain handlers one after
another, async handlers side by side, in an asyncio loop of that thread. What `load_file` and `execute_java_script`
return can be waited for, with `.result(timeout)` or `await`; do the first in no handler, since it stops the thread that
would answer. What goes wrong where nobody waits for it is logged as "labkit.electron", or is an event of `app`,
"uncaught-exception".

`BrowserWindow(trace=trace)` records the messages of a window in a labkit.Trace, as two channels between two processes.

In a notebook that is open in JupyterLab a window is a sandboxed frame in the cell's output (labkit.electron.jupyter).
Elsewhere it is a Node process: no display, no network, a document without layout, and vm contexts where Electron has
isolated worlds, which keep apart but are no wall against hostile pages. `transport="chromium"` runs a window in a
headless Chromium, with real isolated worlds and a real document (labkit.electron.chromium). All of them end with this
process, however it ends.
"""

from labkit.electron.clone import CloneError, Error, undefined
from labkit.electron.ipc import Throw, ipc_main
from labkit.electron.loop import app
from labkit.electron.pages import LoadError
from labkit.electron.ports import MessageChannelMain, MessagePortMain
from labkit.electron.window import BrowserWindow

ipcMain = ipc_main

__all__ = [
    "BrowserWindow",
    "CloneError",
    "Error",
    "LoadError",
    "MessageChannelMain",
    "MessagePortMain",
    "Throw",
    "app",
    "ipcMain",
    "ipc_main",
    "undefined",
]
