"""Checks of notebook 19-electron-security. The learner's code meets pages that attack it, each a Node process."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from labkit.electron import BrowserWindow
from labkit.electron.loop import Promise, log, main_loop
from labkit.electron.node import NodeTransport
from labkit.exercises import Verdict
from labkit.exercises.electron import STUCK, free_main, run

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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What main would log of handlers and preload scripts that fail is part of the verdict."""
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


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


class _Reader:
    """The learner's handler at work, and what it has raised last."""

    def __init__(self, read_note: Callable[..., Any], folder: Path, page: Path):
        self.read_note, self.folder, self.page = read_note, folder, page.as_uri()
        self.events: list[Any] = []
        self.tasks: list[Any] = []
        self.raised: BaseException | None = None

    async def __call__(self, event: Any, name: Any) -> Any:
        self.events.append(event)
        self.tasks.append(asyncio.current_task())
        self.raised = None
        try:
            result = self.read_note(event, name, self.folder, self.page)
            return await result if inspect.isawaitable(result) else result
        except BaseException as error:
            self.raised = error
            raise

    def asked_by(self, win: BrowserWindow, name: str) -> _Answer:
        """A page asks for a note."""
        self.raised = None
        answered, what = run(win, f"ask({name!r}).then((text) => [true, text], (error) => [false, error.message])")
        return _Answer(answered, what if answered else what.partition("': ")[2], self.raised)

    def asked_by_a_ghost(self) -> _Answer:
        """The page that has asked first asks once more; it has gone meanwhile."""
        promise = Promise()

        async def ask() -> None:
            try:
                promise.set_result(_Answer(True, await self(self.events[0], "bread.txt"), None))
            except BaseException as error:
                promise.set_result(_Answer(False, f"{type(error).__name__}: {error}", error))

        main_loop.call(lambda: main_loop.task(ask()))
        try:
            return promise.result(STUCK)
        except TimeoutError:
            raise TimeoutError(free_main() or f"your function has not answered for {STUCK:g} s") from None

    def end(self) -> None:
        """Leave none at work."""
        for task in self.tasks:
            main_loop.call(task.cancel)


class _Answer(NamedTuple):
    """What a page has been told."""

    answered: bool
    what: Any
    """The answer, or the text of the error."""
    raised: BaseException | None


def check_read_note(read_note: Callable[..., Any]) -> Verdict:
    """Whether read_note(event, name, folder, page) reads notes for that page, and nothing else for nobody else.

    Args:
        read_note: the learner's handler, plain or async. A page of ours and a stranger ask it, for notes and for a
            diary beside them.
    """
    with _folder() as root, _quiet():
        notes = NOTES | {f"{secrets.token_hex(4)}.txt": f"buy {secrets.token_hex(4)}"}
        reader = _Reader(read_note, _make_notes(root, notes), root / "page.html")
        (root / "page.html").write_text("<title>ours</title>")
        preferences = {"preload": str(root / "preload.js")}
        (root / "preload.js").write_text(BRIDGE)

        def opened() -> BrowserWindow:
            win = BrowserWindow(web_preferences=preferences, transport=NodeTransport())
            win.web_contents.ipc.handle("app:read-note", reader)
            return win

        try:
            with opened() as ours, opened() as lookalike, opened() as stranger:
                ours.load_file(root / "page.html")
                (root / "page.html.evil").mkdir()
                (root / "page.html.evil" / "page.html").write_text("<title>not ours</title>")
                lookalike.load_file(root / "page.html.evil" / "page.html")
                stranger.load_url("data:text/html,<title>page.html</title>")
                wrong = (
                    _wrong_notes(reader, ours, notes)
                    or _wrong_paths(reader, ours, root)
                    or _wrong_pages(reader, stranger, lookalike)
                )
            wrong = wrong or _wrong_ghost(reader)
        except TimeoutError as error:
            wrong = f"{error}. Return the note, or raise PermissionError."
        finally:
            reader.end()
    return Verdict(
        not wrong,
        wrong or "the notes for our page; five ways out of the folder, two strangers and a ghost were refused.",
    )


def _make_notes(root: Path, texts: dict[str, str]) -> Path:
    notes = root / "notes"
    for name, text in texts.items():
        (notes / name).parent.mkdir(parents=True, exist_ok=True)
        (notes / name).write_text(text)
    (root / "notes-private").mkdir()
    for diary in (root / "diary.txt", root / "notes-private" / "diary.txt"):
        diary.write_text("dear diary")
    (notes / "link.txt").symlink_to("../diary.txt")
    (notes / "up").symlink_to("..")
    return notes


def _wrong_notes(reader: _Reader, win: BrowserWindow, notes: dict[str, str]) -> str:
    for name, text in notes.items():
        answered, what, _ = reader.asked_by(win, name)
        if not answered:
            return f"our own page asked for {name!r}, a note in the folder, and was refused: “{what}”. Return its text."
        if what != text:
            return f"our own page asked for {name!r} and got {what!r}, not the text of the note, {text!r}."
    return ""


def _wrong_paths(reader: _Reader, win: BrowserWindow, root: Path) -> str:
    for name, why in FORBIDDEN.items():
        asked = str(root / "diary.txt") if name == "ABSOLUTE" else name
        answer = reader.asked_by(win, asked)
        if answer.answered and answer.what is not None:
            shown = name if asked == name else "/.../diary.txt"
            return f"the page asked for {shown!r} and got {answer.what!r}: {why}"
        if answer.answered:
            return f"{name!r} was answered with None: the page takes that for a note. Raise PermissionError."
        if wrong := _by_accident(f"{name!r}", answer):
            return wrong
    return ""


def _by_accident(what: str, answer: _Answer) -> str:
    if isinstance(answer.raised, PermissionError):
        return ""
    return f"{what} was not read, but by accident: “{answer.what}”. Refuse it: raise PermissionError."


def _wrong_pages(reader: _Reader, stranger: BrowserWindow, lookalike: BrowserWindow) -> str:
    answer = reader.asked_by(stranger, "bread.txt")
    if answer.answered:
        return (
            f"a page from elsewhere, data:text/html, asked for a note and got {answer.what!r}. The preload script runs "
            "for whatever page the window shows: look at event.sender_frame.url, and raise PermissionError."
        )
    if wrong := _by_accident("a note that a page from elsewhere asked for", answer):
        return wrong
    answer = reader.asked_by(lookalike, "bread.txt")
    if answer.answered:
        return (
            f"a page whose address only resembles ours, .../page.html.evil/page.html, got {answer.what!r}. Compare the "
            "whole address, not how it begins or ends."
        )
    return _by_accident("a note that a page with an address like ours asked for", answer)


def _wrong_ghost(reader: _Reader) -> str:
    answer = reader.asked_by_a_ghost()
    if answer.answered:
        return "a page that has gone meanwhile was served: its sender_frame is None, and nobody vouches for it."
    return _by_accident(
        "a note that a page asked for which has gone meanwhile, and whose sender_frame is None,", answer
    )


# --- a preload script ---------------------------------------------------------------------------------------------

NAMES = "Reflect.ownKeys(globalThis).map(String)"

PROBE = """
(async () => {
    const all = Object.entries(window.notes ?? {});
    const found = { kind: typeof window.notes, exposed: all.map(([name]) => name).sort(), heard: [] };
    const result = async (each) => {
        try { return await each(); } catch (error) { return error.message; }
    };
    if (typeof window.notes?.read === 'function') {
        found.read = await result(() => {
            const promise = window.notes.read('bread.txt', 'more', 'than one');
            found.returned = typeof promise?.then === 'function' ? 'a promise' : String(promise);
            return promise;
        });
        await result(() => window.notes.read('milk.txt'));
    }
    for (const [name, each] of all) {
        if (name === 'onChanged') continue; // it would wait for a callback, not for a channel
        await result(() => each('app:erase-notes', 'app:erase-notes'));
    }
    const isFunction = typeof window.notes?.onChanged === 'function';
    const note = (...args) =>
        found.heard.push(args.map((each) => (each !== null && typeof each === 'object' ? 'the event' : each)));
    if (isFunction) try { window.notes.onChanged(note); } catch (error) { found.failed = error.message; }
    globalThis.found = found;
    return isFunction;
})()
"""

CHANGED = "bread.txt", "milk.txt"


def check_preload(preload: Callable[[], Any]) -> Verdict:
    """Whether preload() is the text of a preload script that exposes notes.read and notes.onChanged, and no more.

    Args:
        preload: the learner's function. Its script runs in a window whose page tries what else it can do with it.
    """
    try:
        text = preload()
    except Exception as error:
        return Verdict(False, f"preload raised {type(error).__name__}: {error}. Return the script as a string.")
    if not isinstance(text, str):
        return Verdict(False, f"preload returns {text!r}: return the script as a string.")
    asked: list[tuple[Any, ...]] = []
    erased: list[Any] = []
    failed: list[Any] = []

    def answer(_: Any, *args: Any) -> str:
        asked.append(args)
        return "buy bread"

    with _folder() as root, _quiet():
        (root / "preload.js").write_text(text)
        (root / "empty.js").write_text("")
        (root / "page.html").write_text("<title>notes</title>")

        def opened(script: str) -> BrowserWindow:
            return BrowserWindow(web_preferences={"preload": str(root / script)}, transport=NodeTransport())

        with opened("preload.js") as win, opened("empty.js") as bare:
            contents = win.web_contents
            contents.on("preload-error", lambda event, path, error: failed.append(str(error)))
            contents.on("console-message", lambda event: None)
            contents.ipc.handle("app:read-note", answer)
            contents.ipc.handle("app:erase-notes", lambda event, *args: erased.append(args))
            contents.ipc.on("app:erase-notes", lambda event, *args: erased.append(args))
            try:
                bare.load_file(root / "page.html")
                before = run(bare, NAMES)
                win.load_file(root / "page.html")
                names = run(win, NAMES)
                subscribed = run(win, PROBE)
                for note in CHANGED:
                    contents.send("app:note-changed", note)
                found = run(win, "found")
            except TimeoutError as error:
                return Verdict(
                    False, f"{error}: a loop in the script does not end, or what `read` returns never comes."
                )
            except Exception as error:
                return Verdict(False, f"JavaScript says {getattr(error, 'name', 'Error')}: {error}")
    if failed:
        why = next((line for line in failed[0].splitlines() if "Error" in line), failed[0])
        return Verdict(False, f"the preload script has failed: {why}")
    found["more"] = sorted({*names} - {*before} - {"notes"})
    return _judge_preload(found, subscribed, asked, erased)


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
    if "returned" not in found:
        return Verdict(False, f"window.notes has {found['exposed']}, and no function `read`.")
    if found["returned"] != "a promise":
        return Verdict(
            False,
            f"read('bread.txt') returns {found['returned']}, not a promise: return that of "
            "ipcRenderer.invoke('app:read-note', name).",
        )
    if found["read"] != "buy bread":
        return Verdict(False, f"read('bread.txt') ended with {found['read']!r}. Its channel is 'app:read-note'.")
    if not asked:
        return Verdict(False, "read('bread.txt') has asked nobody: ipcRenderer.invoke('app:read-note', name).")
    if asked[0] != ("bread.txt",):
        return Verdict(False, f"read('bread.txt', ...) passed on {asked[0]}: main expects one argument, the name.")
    if asked[1:2] != [("milk.txt",)]:
        return Verdict(False, f"read('milk.txt') passed on {asked[1:2]}, not the name that it was given.")
    if not subscribed:
        return Verdict(False, f"window.notes has {found['exposed']}, and no function `onChanged`.")
    if "failed" in found:
        return Verdict(False, f"onChanged(callback) raised “{found['failed']}”: the callback is all that it is given.")
    heard = found["heard"]
    if not heard:
        return Verdict(False, "main sent 'app:note-changed', and onChanged's callback was not called.")
    if "the event" in heard[0]:
        return Verdict(
            False,
            f"onChanged's callback got {heard[0]}: the event is among them. Register (_event, note) => callback(note).",
        )
    if heard != [[note] for note in CHANGED]:
        return Verdict(
            False,
            f"main sent 'app:note-changed' twice, with {' and '.join(CHANGED)}, and onChanged's callback was called "
            f"with {heard}: each time with what main sends.",
        )
    if found["exposed"] != ["onChanged", "read"]:
        return Verdict(False, f"window.notes has {found['exposed']}: whatever is not needed can be abused one day.")
    if found["more"]:
        return Verdict(
            False, f"the page has got {found['more']} beside notes: whatever is not needed can be abused one day."
        )
    return Verdict(True, "two functions, each with its own channel; the page cannot name another, and sees no event.")
