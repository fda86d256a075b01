# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Electron security: the page is not your friend
#
# A page shows what others have written: messages, mail, advertisements, a README. One day one of them is a script. In a browser it
# would have the page, and no more. In an Electron program it sits one message away from a process that may do whatever you may do.
#
# What can a page reach, and what keeps it? In this lab you open windows on pages that attack, with a guard and without it, and see
# what comes through. The pages are in the folder `electron`, `attack-*`. They are real, and harmless: they count what they could take.

# %%
import logging
import tempfile
from pathlib import Path

from labkit.electron import BrowserWindow, ipc_main

said = []  # what main logs, here instead of in red
logging.getLogger("labkit.electron").addFilter(lambda record: said.append(record.getMessage()))

# %% [markdown]
# ## The old ways: a page with Node in it
#
# Until 2020 a page of Electron could `require` everything that Node has. This window is as they were; it is a Node process, in which
# there is something to reach. The script in it is no virus, it looks for a way out:

# %%
from IPython.display import Code

Code("electron/attack-machine.js")


# %%
async def attack(page, **options):
    """What the page could reach: its own list, read by main."""
    window = BrowserWindow(**options)
    await window.load_file(f"electron/{page}")
    found = await window.web_contents.execute_java_script("results")
    if options:
        window.close()  # nobody looks at it
    for name, result in found.items():
        print(f"{name:50} {result[:52]}")


OLD_WAYS = {"nodeIntegration": True, "contextIsolation": False, "sandbox": False}
await attack("attack-machine.html", web_preferences=OLD_WAYS, transport="node")

# %% [markdown]
# Files, programs, modules: with `nodeIntegration` any script in any page is *you*. There is nothing left to attack. Now the same
# page in a window as it is made unless you say otherwise: no Node in it, the preload script in another world, the whole in a sandbox.

# %%
await attack("attack-machine.html")

# %% [markdown]
# In a window in the notebook this is a frame with `sandbox="allow-scripts"` and nothing else: its origin is `null`, so that it is a
# stranger to JupyterLab around it, and its Content-Security-Policy lets nothing out, not to the kernel's server either. Headless it is
# a Node process that has no such functions. (But Node's *contexts*, which keep page and preload script apart there, are no wall
# against somebody who knows Node well: its documentation says so. The frame, and Electron's sandbox, are processes of the browser.)
#
# ## The bridge: one narrow function for each message
#
# So the page has to ask main. It can do so through what the preload script exposes, and *how* that is written decides everything.
# These two are the mistake that is made most, and the way it should be:

# %%
Code("electron/preload-leaky.js")

# %%
Code("electron/preload-safe.js")

# %% [markdown]
# Main has three notes. Reading them is for the page. Erasing them is for the menu of another window, "and no page of ours calls it".

# %%
folder = Path(tempfile.mkdtemp(prefix="labkit-notes-"))
NOTES = folder / "notes"
NOTES.mkdir()
for name in ("bread.txt", "milk.txt", "eggs.txt"):
    (NOTES / name).write_text(f"buy {name[:-4]}")


def erase_notes(event, *_):
    return f"erased {len(list(NOTES.iterdir()))} notes (not really)"


ipc_main.on("app:tell-me-news", lambda event: event.reply("app:news", "none"))
ipc_main.handle("app:read-note", lambda event, name: (NOTES / name).read_text())
ipc_main.handle("app:erase-notes", erase_notes)

# %%
for preload in ("preload-leaky.js", "preload-safe.js"):
    print(preload)
    await attack("attack-channels.html", web_preferences={"preload": f"electron/{preload}"}, transport="node")
    print()

# %% [markdown]
# With the leaky bridge the page names the channel, and main has no way to know that *this* page should not. With the narrow one it
# has no word for erasing. Two things hold in both: what crosses the bridge is copied and frozen, so that nobody can replace a function
# under the feet of others, and of the event's `sender`, ipcRenderer, the bridge leaves an empty object. (Before Electron 29 some of it
# came through.)
#
# A narrow function is named after what the application does, not after a mechanism: `notes.read`, not `invoke`. And its channel is
# too: `app:read-note`, who and what. `read`, `data` or `message` are taken twice one day, by a library of yours.
#
# ## Who is asking?
#
# A preload script runs for *whatever page* the window shows. A link is followed, a server is not what it was, and a stranger has your
# `window.notes`. This one came as a `data:` page:

# %%
from urllib.parse import quote

STRANGER = "data:text/html," + quote(Path("electron/stranger.html").read_text())
SAFE = {"preload": "electron/preload-safe.js"}
READ = "notes.read('bread.txt').catch((error) => error.message)"


async def both():
    with BrowserWindow(web_preferences=SAFE) as ours, BrowserWindow(web_preferences=SAFE) as theirs:
        await ours.load_file("electron/notes.html")
        await theirs.load_url(STRANGER)
        for window in (ours, theirs):
            title, answer = await window.web_contents.execute_java_script(f"{READ}.then((text) => [document.title, text])")
            print(f"{title:28} {answer}")


await both()

# %% [markdown]
# Main can know better: each event says in `sender_frame` which page has sent it. Compare its *whole* address with the pages that you
# have; "begins with" would let `notes.html.evil.example` in. When the page has gone meanwhile it is `None`: then trust nobody.
#
# Nobody must be able to forget it. So there is one place where a handler is registered, and it checks:

# %%
PAGES = {Path("electron/notes.html").resolve().as_uri()}


def handle_trusted(channel, handler):
    def guarded(event, *args):
        frame = event.sender_frame
        if frame is None or frame.url not in PAGES:
            raise PermissionError("this page may not ask")
        return handler(event, *args)

    ipc_main.remove_handler(channel)
    ipc_main.handle(channel, guarded)


handle_trusted("app:read-note", lambda event, name: (NOTES / name).read_text())
await both()

# %% [markdown]
# ## Which file?
#
# The page is ours, and yet what it passes on may be somebody else's: a name from a link in a mail. Beside the notes lies a diary, in
# a folder whose name begins in the same way, and somebody has put a link into the notes:

# %%
(folder / "diary.txt").write_text("dear diary")
(folder / "notes-private").mkdir()
(folder / "notes-private" / "diary.txt").write_text("dearest diary")
(NOTES / "link.txt").symlink_to("../diary.txt")
(NOTES / "up").symlink_to("..")

TRICKS = ["bread.txt", "../diary.txt", str(folder / "diary.txt"), "../notes-private/diary.txt", "link.txt", "up/diary.txt"]

# %% [markdown]
# Three guards. The first is none; the second compares text, as one sees it everywhere; the third asks where the name *leads*: `resolve`
# follows every `..` and every link, and `is_relative_to` compares folders, not letters.

# %%
import os.path


def no_guard(name):
    return (NOTES / name).read_text()


def compares_text(name):
    path = os.path.normpath(NOTES / name)
    if not path.startswith(str(NOTES)):
        raise PermissionError(name)
    return Path(path).read_text()


def resolves(name):
    path = (NOTES / name).resolve()
    if not path.is_relative_to(NOTES.resolve()) or not path.is_file():
        raise PermissionError(name)
    return path.read_text()


# %%
async def tricks():
    with BrowserWindow(web_preferences=SAFE, transport="node") as window:
        await window.load_file("electron/notes.html")
        for guard in (no_guard, compares_text, resolves):
            handle_trusted("app:read-note", lambda event, name, guard=guard: guard(name))
            print(f"\n{guard.__name__}:")
            for name in TRICKS:
                read = f"notes.read({name!r}).catch((error) => 'refused')"
                print(f"   {name.replace(str(folder), '/...'):32}", await window.web_contents.execute_java_script(read))


await tricks()

# %% [markdown]
# The comparison of texts stops `..`, since `normpath` has taken it away, and an absolute name; it is blind to links, and to a folder
# with a longer name. `resolve` is right about what is there *when it looks*. Whoever may write into the folder can exchange a link
# between the look and the open; against him the kernel must do both at once: openat2(2) with RESOLVE_BENEATH.
#
# ## Prototypes
#
# Page and preload script are both JavaScript. Without `contextIsolation` they live in one world and share `Array.prototype`. This preload
# script has a secret, and joins a list with it; and it merges settings, as many libraries do:

# %%
Code("electron/preload-secret.js")

# %%
Code("electron/attack-prototype.js")

# %%
for isolation in (False, True):
    print(f"contextIsolation: {isolation}")
    preferences = {"preload": "electron/preload-secret.js", "contextIsolation": isolation}
    await attack("attack-prototype.html", web_preferences=preferences, transport="node")
    print()

# %% [markdown]
# Isolation keeps the two worlds' prototypes apart, and the secret is safe. It does *not* repair the merge: `__proto__` crosses the
# bridge as the ordinary property that `JSON.parse` has made of it, and the merge, on the other side, walks into the prototype of all
# objects there. The bridge copies what you let through; so let through the one field that you know, as `configureNarrowly` does:

# %%
preferences = {"preload": "electron/preload-secret.js"}
with BrowserWindow(web_preferences=preferences, transport="node") as window:
    await window.load_file("electron/notes.html")
    trick = """api.configureNarrowly(JSON.parse('{"theme": "dark", "__proto__": {"admin": true}}'))"""
    print("an admin?", await window.web_contents.execute_java_script(f"{trick}; api.mayErase()"))

# %% [markdown]
# And in main? Objects arrive in Python as dictionaries, in which `__proto__` is a key like any other. (In a window in the notebook page and
# preload script share a world, because a frame has only one: there this attack comes through, and the sandbox is the wall.)
#
# ## A flood
#
# A page may send without end. Here one sends 50,000 lines to main's log at once, while another window asks for a note again and
# again. How long does *that* one wait?

# %%
import time

lines = []
ipc_main.on("app:log", lambda event, line: lines.append(line))


async def flooded(times):
    with (
        BrowserWindow(web_preferences=SAFE, transport="node") as bad,
        BrowserWindow(web_preferences=SAFE, transport="node") as good,
    ):
        await bad.load_file("electron/attack-flood.html")
        await good.load_file("electron/notes.html")
        flood = bad.web_contents.execute_java_script(f"flood({times})")
        waits = []
        while not flood.done():
            begin = time.monotonic()
            await good.web_contents.execute_java_script(READ)
            waits.append(time.monotonic() - begin)
        print(f"main took {len(lines):,} lines; the other window asked {len(waits)} times, ", end="")
        print(f"and waited {1000 * max(waits):.1f} ms at most")


await flooded(50_000)

# %% [markdown]
# Main reads no more than a thousand messages of one window ahead. Then the page stands still in write(2), in its own process, and
# others have their turn: back-pressure, as in a pipe (lab 01). (A frame in the notebook cannot be made to wait: there `send` is
# refused with an error until main has read.) What is *not* bounded is what your listener does with it: `lines` has grown by all of
# it. So count, and close a window that misbehaves:

# %%
lines.clear()
budget = {}


def log(event, line):
    begin, count = budget.get(event.sender.id, (time.monotonic(), 0))
    if time.monotonic() - begin > 1:
        begin, count = time.monotonic(), 0
    budget[event.sender.id] = begin, count + 1
    if count < 1000:
        lines.append(line[:200])
    elif window := BrowserWindow.from_web_contents(event.sender):
        window.destroy()


ipc_main.remove_all_listeners("app:log")
ipc_main.on("app:log", log)
await flooded(50_000)
print(f"main has kept {len(lines):,} lines, and has closed the window that sent them")

# %% [markdown]
# ## Exercise: the reader of notes
#
# Put it together. `read_note(event, name, folder, page)` returns the text of a note in `folder`, to nobody but the page with the address
# `page`, and nothing that is outside of the folder, whatever it is called. Refuse by raising `PermissionError`.


# %%
def read_note(event, name, folder, page):
    return (folder / name).read_text()  # your turn


# %%
from labkit.exercises.electron_security import check_read_note

check_read_note(read_note)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def read_note(event, name, folder, page):
#     frame = event.sender_frame
#     if frame is None or frame.url != page:
#         raise PermissionError("this page may not ask")
#     path = (folder / name).resolve()
#     if not path.is_relative_to(folder.resolve()):
#         raise PermissionError("there is no such note")
#     return path.read_text()
# ```
# </details>
#
# ## Exercise: a preload script
#
# `preload` returns the text of a preload script. It exposes `window.notes` with two functions and nothing else: `read(name)`, which asks on
# channel `'app:read-note'` and passes on *one* argument, and `onChanged(callback)`, which calls the page's callback with what main sends on
# `'app:note-changed'`, without the event.


# %%
def preload():
    return """
    const { contextBridge, ipcRenderer } = require('electron');
    contextBridge.exposeInMainWorld('notes', { invoke: (...args) => ipcRenderer.invoke(...args) });  // your turn
    """


# %%
from labkit.exercises.electron_security import check_preload

check_preload(preload)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def preload():
#     return """
#     const { contextBridge, ipcRenderer } = require('electron');
#     contextBridge.exposeInMainWorld('notes', {
#         read: (name) => ipcRenderer.invoke('app:read-note', name),
#         onChanged: (callback) => { ipcRenderer.on('app:note-changed', (_event, note) => callback(note)); },
#     });
#     """
# ```
# </details>

# %%
import shutil

shutil.rmtree(folder)

# %% [markdown]
# ## What we learnt
#
# - A page with Node in it is you. `nodeIntegration` stays off, `contextIsolation` and `sandbox` stay on; all three are so by default.
# - The preload script is the narrow place: one function for one message, named after what it is for, its channel fixed, no event.
# - Main trusts no message: who has sent it (`sender_frame`, the whole address, on every handler), what is in it, where a name leads.
# - Compare where paths lead, not how they are spelled.
# - Isolation keeps prototypes apart; it does not make foreign objects safe to merge.
# - Back-pressure bounds what waits. What a listener keeps, it has to bound itself.
#
# **Electron's documentation:** [Security](https://www.electronjs.org/docs/latest/tutorial/security), its checklist most of all,
# [Context isolation](https://www.electronjs.org/docs/latest/tutorial/context-isolation),
# [Process sandboxing](https://www.electronjs.org/docs/latest/tutorial/sandbox), [contextBridge](https://www.electronjs.org/docs/latest/api/context-bridge).
# **HTML standard:** [sandboxing](https://html.spec.whatwg.org/multipage/browsers.html#sandboxing).
# **Node:** [vm is no security mechanism](https://nodejs.org/api/vm.html).
# **Manual pages:** openat2(2), realpath(3), symlink(7), path_resolution(7), write(2).
