"""Checks of notebook 19-electron-security. The learner's code meets pages that attack it, each a Node process."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from labkit.electron import BrowserWindow
from labkit.electron.node import NodeTransport
from labkit.exercises import Verdict
from labkit.exercises.electron import run

BRIDGE = """
const { contextBridge, ipcRenderer } = require('electron');
contextBridge.exposeInMainWorld('ask', (name) => ipcRenderer.invoke('app:read-note', name));
"""


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A new folder, removed afterwards with all that is in it."""
    folder = Path(tempfile.mkdtemp(prefix="labkit-exercise-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- the reader of notes ----------------------------------------------------------------------------------------

NOTES = {"bread.txt": "buy bread", "shopping/milk.txt": "buy milk"}
FORBIDDEN = {
    "../diary.txt": "`..` leads out of the folder. Resolve the path, and compare where it leads.",
    "ABSOLUTE": "an absolute name makes `folder / name` forget the folder. Resolve, and compare where it leads.",
    "../notes-private/diary.txt": "that folder's name only *begins* like the notes'. Compare paths, not letters: "
    "is_relative_to.",
    "link.txt": "a symbolic link leads out of the folder: follow links before you compare, `resolve()`.",
    "up/diary.txt": "a symbolic link in the middle of the name leads out of the folder: `resolve()` follows it.",
}


def check_read_note(read_note: Callable[..., Any]) -> Verdict:
    """Whether read_note(event, name, folder, page) reads notes for that page, and nothing else for nobody else.

    Args:
        read_note: the learner's handler. A page of ours and a stranger ask it, for notes and for a diary beside them.
    """
    with _folder() as root:
        notes, page = _make_notes(root), root / "page.html"
        page.write_text("<title>ours</title>")
        preferences = {"preload": str(root / "preload.js")}
        (root / "preload.js").write_text(BRIDGE)
        events: list[Any] = []

        def handler(event: Any, name: Any) -> Any:
            events.append(event)
            return read_note(event, name, notes, page.as_uri())

        def opened() -> BrowserWindow:
            win = BrowserWindow(web_preferences=preferences, transport=NodeTransport())
            win.web_contents.ipc.handle("app:read-note", handler)
            return win

        with opened() as ours, opened() as lookalike, opened() as stranger:
            ours.load_file(page)
            (root / "page.html.evil").mkdir()
            (root / "page.html.evil" / "page.html").write_text("<title>not ours</title>")
            lookalike.load_file(root / "page.html.evil" / "page.html")
            stranger.load_url("data:text/html,<title>page.html</title>")
            wrong = _wrong_notes(ours) or _wrong_paths(ours, root) or _wrong_pages(stranger, lookalike)
        if wrong:
            return Verdict(False, wrong)
        try:  # its window has been closed, so its page has gone
            read_note(events[0], "bread.txt", notes, page.as_uri())
        except Exception:
            return Verdict(
                True, "both notes for our page; five ways out of the folder, two strangers and a ghost were refused."
            )
        return Verdict(
            False, "a page that has gone meanwhile was served: its sender_frame is None, and nobody vouches for it."
        )


def _make_notes(root: Path) -> Path:
    notes = root / "notes"
    for name, text in NOTES.items():
        (notes / name).parent.mkdir(parents=True, exist_ok=True)
        (notes / name).write_text(text)
    (root / "notes-private").mkdir()
    for diary in (root / "diary.txt", root / "notes-private" / "diary.txt"):
        diary.write_text("dear diary")
    (notes / "link.txt").symlink_to("../diary.txt")
    (notes / "up").symlink_to("..")
    return notes


def _ask(win: BrowserWindow, name: str) -> tuple[bool, Any]:
    """Whether a page gets an answer, and the answer or the text of the error."""
    answered, what = run(win, f"ask({name!r}).then((text) => [true, text], (error) => [false, error.message])")
    return answered, what if answered else what.partition("': ")[2]


def _wrong_notes(win: BrowserWindow) -> str:
    for name, text in NOTES.items():
        answered, what = _ask(win, name)
        if not answered:
            return f"our own page asked for {name!r}, a note in the folder, and was refused: “{what}”."
        if what != text:
            return f"our own page asked for {name!r} and got {what!r}, not the text of the note, {text!r}."
    return ""


def _wrong_paths(win: BrowserWindow, root: Path) -> str:
    for name, why in FORBIDDEN.items():
        asked = str(root / "diary.txt") if name == "ABSOLUTE" else name
        answered, what = _ask(win, asked)
        if answered and what is not None:
            return f"the page asked for {name if asked == name else '/.../diary.txt'!r} and got {what!r}: {why}"
        if not answered and "PermissionError" not in what:
            return f"{name!r} was not read, but by accident: “{what}”. Refuse it: raise PermissionError."
        if answered:
            return f"{name!r} was answered with {what!r}: the page takes that for a note. Raise PermissionError."
    return ""


def _wrong_pages(stranger: BrowserWindow, lookalike: BrowserWindow) -> str:
    answered, what = _ask(stranger, "bread.txt")
    if answered:
        return (
            f"a page from elsewhere, data:text/html, asked for a note and got {what!r}. The preload script runs for "
            "whatever page the window shows: look at event.sender_frame.url."
        )
    answered, what = _ask(lookalike, "bread.txt")
    if answered:
        return (
            f"a page whose address only resembles ours, .../page.html.evil/page.html, got {what!r}. Compare the whole "
            "address, not how it begins or ends."
        )
    return ""


# --- a preload script ---------------------------------------------------------------------------------------------

PROBE = """
(async () => {
    const all = Object.entries(window.notes ?? {});
    const found = { kind: typeof window.notes, names: all.map(([name]) => name).sort(), read: null, heard: [] };
    if (typeof window.notes?.read === 'function') {
        found.read = await window.notes.read('bread.txt', 'more', 'than one').catch((error) => error.message);
    }
    for (const [name, each] of all) {
        if (name === 'onChanged') continue; // it would wait for a callback, not for a channel
        try { await each('app:erase-notes', 'app:erase-notes'); } catch {}
    }
    const isFunction = typeof window.notes?.onChanged === 'function';
    if (isFunction) window.notes.onChanged((...args) => found.heard.push(...args.map((each) => typeof each)));
    globalThis.found = found;
    return isFunction;
})()
"""


def check_preload(preload: Callable[[], Any]) -> Verdict:
    """Whether preload() is the text of a preload script that exposes notes.read and notes.onChanged, and no more.

    Args:
        preload: the learner's function. Its script runs in a window whose page tries what else it can do with it.
    """
    text = preload()
    if not isinstance(text, str):
        return Verdict(False, f"preload returns {text!r}: return the script as a string.")
    asked: list[tuple[Any, ...]] = []
    erased: list[Any] = []
    failed: list[Any] = []

    def answer(_: Any, *args: Any) -> str:
        asked.append(args)
        return "buy bread"

    with _folder() as root:
        (root / "preload.js").write_text(text)
        (root / "page.html").write_text("<title>notes</title>")
        with BrowserWindow(web_preferences={"preload": str(root / "preload.js")}, transport=NodeTransport()) as win:
            contents = win.web_contents
            contents.on("preload-error", lambda event, path, error: failed.append(str(error)))
            contents.on("console-message", lambda event: None)
            contents.ipc.handle("app:read-note", answer)
            contents.ipc.handle("app:erase-notes", lambda event, *args: erased.append(args))
            contents.ipc.on("app:erase-notes", lambda event, *args: erased.append(args))
            with _quiet():
                win.load_file(root / "page.html").result(20)
                subscribed = run(win, PROBE)
                contents.send("app:note-changed", "bread.txt")
                found = run(win, "found")
    if failed:
        why = next((line for line in failed[0].splitlines() if "Error" in line), failed[0])
        return Verdict(False, f"the preload script has failed: {why}")
    return _judge_preload(found, subscribed, asked, erased)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What main would log of a preload script that fails is part of the verdict."""
    from labkit.electron.loop import log

    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _judge_preload(found: dict[str, Any], subscribed: bool, asked: list[Any], erased: list[Any]) -> Verdict:
    if found["kind"] == "undefined":
        return Verdict(
            False,
            "the page has no window.notes. The preload script's window is another one than the page's: "
            "contextBridge.exposeInMainWorld('notes', {...}).",
        )
    if erased:
        return Verdict(
            False,
            "the page has just called 'app:erase-notes': it was the page that chose the channel. Write each channel "
            "into the function.",
        )
    if found["read"] is None:
        return Verdict(False, f"window.notes has {found['names']}, and no function `read`.")
    if found["read"] != "buy bread":
        return Verdict(False, f"read('bread.txt') ended with {found['read']!r}. Its channel is 'app:read-note'.")
    if asked[0] != ("bread.txt",):
        return Verdict(False, f"read('bread.txt', ...) passed on {asked[0]}: main expects one argument, the name.")
    if not subscribed:
        return Verdict(False, f"window.notes has {found['names']}, and no function `onChanged`.")
    if not found["heard"]:
        return Verdict(False, "main sent 'app:note-changed', and onChanged's callback was not called.")
    if found["heard"] != ["string"]:
        return Verdict(
            False,
            f"onChanged's callback got {found['heard']}: the event is among them. Register "
            "(_event, note) => callback(note).",
        )
    if found["names"] != ["onChanged", "read"]:
        return Verdict(False, f"window.notes has {found['names']}: whatever is not needed can be abused one day.")
    return Verdict(True, "two functions, each with its own channel; the page cannot name another, and sees no event.")
