"""The checks of notebook 19-electron-security accept right solutions and refuse typical wrong ones with the reason."""

import os.path
from pathlib import Path

import pytest

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


def returns_the_path(event, name, folder, page):
    return str(folder / name)


def refuses_all(event, name, folder, page):
    raise PermissionError("no")


def test_a_reader_that_looks_where_a_name_leads_and_who_asks_is_right():
    verdict = check_read_note(read_note)
    assert verdict.right, verdict


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
    ],
)
def test_a_hole_is_found_and_named(wrong, says):
    verdict = check_read_note(wrong)
    assert not verdict.right and says in verdict.why, verdict


# --- a preload script ---------------------------------------------------------------------------------------------

RIGHT = """
const { contextBridge, ipcRenderer } = require('electron');
contextBridge.exposeInMainWorld('notes', {
    read: (name) => ipcRenderer.invoke('app:read-note', name),
    onChanged: (callback) => { ipcRenderer.on('app:note-changed', (_event, note) => callback(note)); },
});
"""


def test_a_narrow_preload_script_is_right():
    verdict = check_preload(lambda: RIGHT)
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
        (RIGHT.replace("read:", "ask: (...all) => ipcRenderer.invoke(...all), read:"), "chose the channel"),
    ],
)
def test_a_preload_script_that_gives_away_too_much_is_refused_with_the_reason(wrong, says):
    verdict = check_preload(lambda: wrong)
    assert not verdict.right and says in verdict.why, verdict
