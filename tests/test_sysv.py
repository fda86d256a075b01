"""What is particular to System V: notes that let objects be removed after a kill -9, message types, limits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.channels import notes
from labkit.channels.base import kind_dir
from labkit.libc import libc

IPC_NEW = notes.IPC_CREAT | notes.IPC_EXCL | 0o600


def make(note: notes.Note) -> notes.Note:
    """The objects that a note is about."""
    for kind in note.objects:
        between = {"msg": (), "shm": (4096,), "sem": (1,)}[kind]
        assert notes.CALLS[kind][0](note.key, *between, IPC_NEW) >= 0
    return note


def there(note: notes.Note) -> list[str]:
    """The objects of a note that are still there."""
    return [kind for kind in note.objects if notes.find(kind, note.key) is not None]


# --- notes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objects", [("msg",), ("sem",), ("shm", "sem")], ids="+".join)
def test_the_last_user_of_an_object_without_a_name_removes_it(objects):
    first = make(notes.Note.unnamed(*objects))
    second = first.clone()
    first.close()
    first.close()
    assert there(second) == list(objects)
    assert second.path.exists()
    second.close()
    assert there(second) == []
    assert not second.path.exists()


def test_an_object_whose_users_were_all_killed_is_swept_and_one_in_use_is_kept():
    code = (
        "import os; from labkit.channels import notes; from labkit.libc import libc\n"
        "note = notes.Note.unnamed('msg'); libc.msgget(note.key, 0o3600)\n"
        "print(note.path, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL
    path = Path(done.stdout.strip())
    _, key = notes.read(path)
    used = make(notes.Note.unnamed("sem"))  # which sweeps
    assert not path.exists()
    assert notes.find("msg", key) is None
    notes.sweep()
    assert there(used) == ["sem"]
    used.close()


def test_a_process_that_ends_with_an_open_end_leaves_nothing():
    code = (
        "from labkit.channels import notes; from labkit.libc import libc\n"
        "note = notes.Note.unnamed('msg'); libc.msgget(note.key, 0o3600); print(note.path)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    path = Path(done.stdout.strip())
    assert not path.exists()
    assert notes.find("msg", notes.read(path)[1]) is None


def test_a_process_made_by_a_plain_fork_does_not_remove_what_its_parent_uses():
    note = make(notes.Note.unnamed("msg"))
    child = os.fork()
    if child == 0:
        note.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert there(note) == ["msg"]
    note.close()
    assert there(note) == []


def test_a_note_that_was_killed_before_its_object_was_made_is_swept():
    path = kind_dir(notes.UNNAMED) / "shm+sem-00abcdef"
    path.touch()
    notes.sweep()
    assert not path.exists()


def test_a_file_that_is_no_note_is_left_alone():
    path = kind_dir(notes.UNNAMED) / "precious.txt"
    path.touch()
    notes.sweep()
    assert path.exists()
    path.unlink()


def test_an_object_of_another_user_with_our_key_is_refused_and_not_removed():
    if os.geteuid() != 0:
        pytest.skip("needs a second user: run as root")
    key = notes.key_of("sysv_mq", "whose")
    code = f"import os; from labkit.libc import libc; os.setuid(65534); assert libc.msgget({key}, 0o3666) >= 0"
    subprocess.run([sys.executable, "-c", code], check=True)
    try:
        for ask in (lambda: notes.find("msg", key), lambda: notes.unlink("sysv_mq", "whose", "msg")):
            with pytest.raises(PermissionError, match="somebody else"):
                ask()
        assert libc.msgget(key, 0) >= 0
    finally:
        libc.msgctl(libc.msgget(key, 0), notes.IPC_RMID, notes.ffi.NULL)
