"""The checks of notebook 19-electron-security accept right solutions and refuse typical wrong ones with the reason."""

import asyncio
import errno
import os
from pathlib import Path

import pytest

from labkit.exercises import electron, electron_security
from labkit.exercises.electron_security import check_preload, check_read_note

# --- the reader of notes ----------------------------------------------------------------------------------------


def read_note(event, name, folder, page):
    frame = event.sender_frame
    if frame is None or frame.url != page:
        raise PermissionError("this page may not ask")
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise PermissionError("there is no such note")
    return path.read_text()


async def reads_in_a_thread(event, name, folder, page):
    await asyncio.sleep(0)
    return await asyncio.to_thread(read_note, event, name, folder, page)


def lists_the_notes(event, name, folder, page):
    notes = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()}
    if getattr(event.sender_frame, "url", None) != page or name not in notes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
    return notes[name].read_text()


class Refused(PermissionError):
    pass


def has_an_error_of_its_own(event, name, folder, page):
    path, notes = os.path.realpath(folder / name), os.path.realpath(folder)
    if not event.sender_frame or event.sender_frame.url != page or os.path.commonpath([path, notes]) != notes:
        raise Refused(name)
    return Path(path).read_text()


def guards_nothing(event, name, folder, page):
    return (folder / name).read_text()


def forbids_dots(event, name, folder, page):
    if ".." in name:
        raise PermissionError
    return (folder / name).read_text()


def compares_letters(event, name, folder, page):
    path = os.path.normpath(folder / name)
    if not path.startswith(str(folder)):
        raise PermissionError
    return Path(path).read_text()


def is_blind_to_links(event, name, folder, page):
    path = Path(os.path.normpath(folder / name))
    if not path.is_relative_to(folder):
        raise PermissionError
    return path.read_text()


def is_blind_to_links_in_the_middle(event, name, folder, page):
    path = Path(os.path.normpath(folder / name))
    if not path.is_relative_to(folder) or path.is_symlink():
        raise PermissionError
    return path.read_text()


def takes_only_the_last_part(event, name, folder, page):
    return (folder / Path(name).name).read_text()


def returns_none(event, name, folder, page):
    path = (folder / name).resolve()
    return path.read_text() if path.is_relative_to(folder.resolve()) else None


def trusts_every_page(event, name, folder, page):
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise PermissionError
    return path.read_text()


def trusts_how_it_ends(event, name, folder, page):
    if event.sender_frame and not event.sender_frame.url.endswith("page.html"):
        raise PermissionError
    return trusts_every_page(event, name, folder, page)


def trusts_how_it_begins(event, name, folder, page):
    if event.sender_frame and not event.sender_frame.url.startswith(page):
        raise PermissionError
    return trusts_every_page(event, name, folder, page)


def trusts_ghosts(event, name, folder, page):
    if event.sender_frame and event.sender_frame.url != page:
        raise PermissionError
    return trusts_every_page(event, name, folder, page)


async def trusts_ghosts_later(event, name, folder, page):
    return trusts_ghosts(event, name, folder, page)


def trips_over_strangers(event, name, folder, page):
    if event.sender_frame and event.sender_frame.url != page:
        raise NoSuchError("a slip")  # noqa: F821
    return read_note(event, name, folder, page)


def trips_over_ghosts(event, name, folder, page):
    if event.sender_frame.url != page:
        raise PermissionError
    return trusts_every_page(event, name, folder, page)


def has_learnt_the_notes_by_heart(event, name, folder, page):
    read_note(event, name, folder, page)
    return {"bread.txt": "buy bread", "shopping/milk.txt": "buy milk"}[name]


def returns_the_open_file(event, name, folder, page):
    return (folder / name).open()


def exits(event, name, folder, page):
    raise SystemExit(3)


def returns_the_path(event, name, folder, page):
    return str(folder / name)


def refuses_all(event, name, folder, page):
    raise PermissionError("no")


@pytest.mark.parametrize("right", [read_note, reads_in_a_thread, lists_the_notes, has_an_error_of_its_own])
def test_a_reader_that_looks_where_a_name_leads_and_who_asks_is_right(right, caplog):
    verdict = check_read_note(right)
    assert verdict.right, verdict
    assert not caplog.records, "what is refused is no news to the learner"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (guards_nothing, "leads out of the folder"),
        (forbids_dots, "forget the folder"),
        (compares_letters, "only *begins*"),
        (is_blind_to_links, "a symbolic link leads out"),
        (is_blind_to_links_in_the_middle, "in the middle"),
        (takes_only_the_last_part, "was refused"),
        (returns_none, "Raise PermissionError"),
        (trusts_every_page, "from elsewhere"),
        (trusts_how_it_ends, "resembles ours"),
        (trusts_how_it_begins, "resembles ours"),
        (trusts_ghosts, "has gone meanwhile"),
        (returns_the_path, "not the text of the note"),
        (refuses_all, "was refused"),
        (trusts_ghosts_later, "has gone meanwhile"),
        (trips_over_strangers, "by accident: “NameError"),
        (trips_over_ghosts, "by accident: “AttributeError"),
        (has_learnt_the_notes_by_heart, "was refused: “KeyError"),
        (returns_the_open_file, "Return its text"),
        (exits, "SystemExit"),
    ],
)
def test_a_hole_is_found_and_named(wrong, says):
    verdict = check_read_note(wrong)
    assert not verdict.right and says in verdict.why, verdict


def test_a_reader_that_never_returns_is_ended_and_main_goes_on():
    def never_returns(event, name, folder, page):
        while name:
            pass

    verdict = check_read_note(never_returns)
    assert not verdict.right and "main has stood still" in verdict.why and "has been ended" in verdict.why, verdict
    assert check_read_note(read_note).right


def test_a_reader_that_waits_for_ever_is_refused_with_the_reason(monkeypatch):
    async def waits(event, name, folder, page):
        if event.sender_frame is None:
            await asyncio.sleep(1e6)
        return read_note(event, name, folder, page)

    monkeypatch.setattr(electron_security, "STUCK", 2.0)
    verdict = check_read_note(waits)
    assert not verdict.right and "has not answered" in verdict.why, verdict


# --- a preload script ---------------------------------------------------------------------------------------------

RIGHT = """
const { contextBridge, ipcRenderer } = require('electron');
contextBridge.exposeInMainWorld('notes', {
    read: (name) => ipcRenderer.invoke('app:read-note', name),
    onChanged: (callback) => { ipcRenderer.on('app:note-changed', (_event, note) => callback(note)); },
});
"""


READ, CHANGED = "(name) => ipcRenderer.invoke('app:read-note', name)", "(_event, note) => callback(note)"

IN_ANOTHER_STYLE = """
'use strict';
const electron = require('electron');
const callbacks = new Set();
electron.ipcRenderer.on('app:note-changed', (_event, ...rest) => callbacks.forEach((each) => each(...rest)));
async function read(name) {
    if (typeof name !== 'string') throw new TypeError('a name');
    return await electron.ipcRenderer.invoke('app:read-note', String(name));
}
function onChanged(callback) {
    if (typeof callback !== 'function') throw new TypeError('a function');
    callbacks.add(callback);
    return () => callbacks.delete(callback);
}
electron.contextBridge.exposeInMainWorld('notes', Object.freeze({ read, onChanged }));
console.log('preloaded');
"""


@pytest.mark.parametrize(
    "right", [RIGHT, IN_ANOTHER_STYLE, f"{{{RIGHT}}}", RIGHT.replace("Renderer.on(", "Renderer.addListener(")]
)
def test_a_narrow_preload_script_is_right(right):
    verdict = check_preload(lambda: right)
    assert verdict.right, verdict


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (None, "as a string"),
        ("const { contextBridge } =", "SyntaxError"),
        ("window.notes = {};", "has no window.notes"),
        (RIGHT.replace("(name) => ipcRenderer.invoke('app:read-note', name)", "ipcRenderer.invoke"), "the channel"),
        (RIGHT.replace("read:", "load:"), "no function `read`"),
        (RIGHT.replace("'app:read-note'", "'read-note'"), "Its channel is"),
        (RIGHT.replace("(name) =>", "(...name) =>").replace(", name)", ", ...name)"), "one argument"),
        (RIGHT.replace("onChanged", "changed"), "no function `onChanged`"),
        (RIGHT.replace("'app:note-changed'", "'changed'"), "was not called"),
        (RIGHT.replace("(_event, note) => callback(note)", "callback"), "the event is among them"),
        (RIGHT.replace("read:", "version: 1, read:"), "not needed"),
        (RIGHT.replace(READ, f"(name) => {{ ({READ})(name); }}"), "returns undefined, not a promise"),
        (RIGHT.replace("invoke", "send"), "returns undefined, not a promise"),
        (RIGHT.replace(READ, "async (name) => 'buy bread'"), "has asked nobody"),
        (RIGHT.replace(", name)", ", 'bread.txt')"), "not the name that it was given"),
        (RIGHT.replace(READ, "ipcRenderer.invoke('app:read-note', 'bread.txt')"), "no function `read`"),
        (RIGHT.replace("ipcRenderer.on(", "ipcRenderer.once("), "called with [['bread.txt']]"),
        (RIGHT.replace(CHANGED, "() => callback('bread.txt')"), "called with [['bread.txt'], ['bread.txt']]"),
        (RIGHT.replace(CHANGED, "(event, note) => callback(note, event)"), "the event is among them"),
        (RIGHT.replace("(callback) => {", "(callback) => { null.f();"), "onChanged(callback) raised"),
        (
            RIGHT + "contextBridge.exposeInMainWorld('ask', (...all) => ipcRenderer.invoke(...all));",
            "got ['ask'] beside",
        ),
        ("throw new Error('a slip');", "has failed: Error: a slip"),
        (RIGHT.replace("read:", "ask: (...all) => ipcRenderer.invoke(...all), read:"), "chose the channel"),
    ],
)
def test_a_preload_script_that_gives_away_too_much_is_refused_with_the_reason(wrong, says):
    verdict = check_preload(lambda: wrong)
    assert not verdict.right and says in verdict.why, verdict


def test_a_function_that_raises_is_told_what_it_raised():
    verdict = check_preload(lambda: 1 / 0)
    assert not verdict.right and "ZeroDivisionError" in verdict.why, verdict


@pytest.mark.parametrize("script", ["while (true);", RIGHT.replace(READ, "(name) => new Promise(() => {})")])
def test_a_script_that_does_not_end_is_refused_with_the_reason(script, monkeypatch):
    monkeypatch.setattr(electron, "STUCK", 4.0)
    verdict = check_preload(lambda: script)
    assert not verdict.right and "does not end" in verdict.why, verdict
