"""What is particular to System V: notes that let objects be removed after a kill -9, message types, limits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import roles

from labkit import Closed, RemoteError, Trace, channel, launch, sender, unlink
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


# --- sysv_mq ------------------------------------------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["bare", "traced"])
def queue(request):
    trace = Trace() if request.param else None
    tx, rx = channel("sysv_mq", trace=trace)
    yield tx, rx
    tx.close()
    rx.close()
    if trace:
        trace.close()


def test_a_receiver_chooses_messages_by_their_type(queue):
    tx, rx = queue
    for number, message in ((3, b"three"), (1, b"one"), (2, b"two"), (1, b"one again")):
        tx.send(message, type=number)
    assert rx.receive(type=2) == b"two"
    assert rx.receive(type=-3) == b"one"  # the lowest type up to 3
    assert rx.receive(type=0) == b"three"  # the oldest
    with pytest.raises(TimeoutError):
        rx.receive(timeout=0.02, type=2)
    assert rx.receive(type=1) == b"one again"


def test_a_receiver_that_waits_for_a_type_is_not_woken_by_another(queue):
    tx, rx = queue
    sending = threading.Timer(0.1, lambda: [tx.send(b"no", type=1), tx.send(b"yes", type=7)])
    sending.start()
    assert rx.receive(type=7) == b"yes"
    sending.join()
    assert rx.receive() == b"no"


def test_the_receiver_knows_the_type_of_what_came():
    tx, rx = channel("sysv_mq")
    sending = threading.Timer(0.1, tx.send, (b"late",), {"type": 2**31 - 1})
    tx.send(b"x", type=42)
    rx.receive()
    assert rx.last_type == 42
    sending.start()
    rx.receive()
    assert rx.last_type == 2**31 - 1
    sending.join()


@pytest.mark.parametrize("nonsense", [0, -1, 2**31, 2**70])
def test_a_type_that_cannot_be_is_refused(queue, nonsense):
    tx, rx = queue
    with pytest.raises(ValueError, match="a type is 1"):
        tx.send(b"x", type=nonsense)
    tx.send(b"fine")
    assert rx.receive() == b"fine"


def test_what_a_closed_sender_left_is_received_by_type_before_closed_is_raised(queue):
    tx, rx = queue
    tx.send(b"5", type=5)
    tx.close()
    with pytest.raises(Closed):
        rx.receive(type=4)
    assert rx.receive(type=5) == b"5"
    with pytest.raises(Closed):
        rx.receive()


@pytest.mark.parametrize("doing", ["sending", "receiving"])
def test_a_process_that_waits_learns_at_once_that_the_queue_was_removed(a_name, doing):
    tx, rx = channel("sysv_mq", name=a_name)
    if doing == "sending":
        with pytest.raises(TimeoutError):
            while True:
                tx.send(bytes(1000), timeout=0)
    removing = threading.Timer(0.1, unlink, ("sysv_mq", a_name))
    removing.start()
    with pytest.raises(Closed, match="removed"):
        tx.send(bytes(1000), None) if doing == "sending" else rx.receive(None)
    removing.join()
    for use in (lambda: tx.send(b"x"), lambda: rx.receive(), lambda: rx.receive(timeout=0)):
        with pytest.raises(Closed, match="removed"):
            use()
    tx.close()
    rx.close()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"max_message": 0}, ValueError, "max_message"),
        ({"max_message": 1 << 20}, ValueError, "kernel.msgmax"),
        ({"capacity": 100}, ValueError, "largest message"),
        ({"capacity": 1 << 40}, ValueError, "capacity"),
    ],
    ids=str,
)
def test_an_option_out_of_range_is_refused(options, error, says):
    with pytest.raises(error, match=says):
        channel("sysv_mq", **options)


def test_a_smaller_queue_holds_less():
    tx, rx = channel("sysv_mq", max_message=100, capacity=500)
    assert tx.capacity.amount == 500
    for _ in range(5):
        tx.send(bytes(100), timeout=0)
    with pytest.raises(TimeoutError):
        tx.send(bytes(100), timeout=0)
    with pytest.raises(OSError, match="1 to 100"):
        tx.send(bytes(101))
    tx.close()
    rx.close()


def test_a_capacity_that_only_root_may_have_is_explained_and_leaves_nothing():
    def ask():
        os.getuid() or os.setuid(65533)
        with tempfile.TemporaryDirectory(dir="/tmp") as folder:
            os.environ["XDG_RUNTIME_DIR"] = folder
            try:
                channel("sysv_mq", capacity=1 << 30)
            except PermissionError as reason:
                return str(reason), os.listdir(kind_dir(notes.UNNAMED))
            return None

    text, left = launch(ask).wait()
    assert "kernel.msgmnb" in text
    assert left == []


def test_a_queue_whose_users_were_killed_is_gone_when_its_job_has_ended():
    tx, rx = channel("sysv_mq")
    path = tx.note.path
    jobs = launch(roles.hold, tx), launch(roles.hold, rx)
    assert path.exists()
    for job in jobs:
        job.kill()
    for job in jobs:
        with pytest.raises(RemoteError, match="SIGKILL"):
            job.wait()
    assert not path.exists()
    assert notes.find("msg", notes.read(path)[1]) is None


def test_unrelated_processes_do_not_get_somebody_elses_queue(a_name):
    """A queue of another user that happens to have our key is refused, and stays as it is."""
    if os.geteuid() != 0:
        pytest.skip("needs a second user: run as root")
    key = notes.key_of("sysv_mq", a_name)
    code = f"import os; from labkit.libc import libc; os.setuid(65534); assert libc.msgget({key}, 0o3666) >= 0"
    subprocess.run([sys.executable, "-c", code], check=True)
    try:
        for ask in (lambda: channel("sysv_mq", name=a_name), lambda: sender("sysv_mq", a_name)):
            with pytest.raises(PermissionError, match="somebody else"):
                ask()
    finally:
        libc.msgctl(libc.msgget(key, 0), notes.IPC_RMID, notes.ffi.NULL)


# --- limits of the machine, in an IPC namespace of our own --------------------------------------------------

EXHAUST = """
import ctypes, sys
from pathlib import Path
kind, limit, value = sys.argv[1:]
if ctypes.CDLL(None).unshare(0x8000000):  # CLONE_NEWIPC
    sys.exit(77)
Path("/proc/sys/kernel", limit).write_text(value)
from labkit import channel
from labkit.channels import notes
from labkit.channels.base import kind_dir
kept = []
try:
    while len(kept) < 20:
        kept.append(channel(kind))
except OSError as reason:
    there = len(list(kind_dir(notes.UNNAMED).iterdir()))
    print(len(kept), there, reason.errno, reason)
"""


@pytest.mark.parametrize(
    ("kind", "limit", "value", "says"),
    [
        ("sysv_mq", "msgmni", "3", "kernel.msgmni"),
        ("sysv_shm", "shmmni", "3", "kernel.shmmni"),
        ("sysv_shm", "sem", "250 32000 32 3", "kernel.sem"),
        ("sysv_shm", "shmmax", "4096", "fewer or smaller"),
    ],
)
def test_a_machine_at_its_limit_is_explained_and_nothing_is_left(kind, limit, value, says):
    if os.geteuid() != 0:
        pytest.skip("needs an IPC namespace of its own: run as root")
    command = [sys.executable, "-c", EXHAUST, kind, limit, value]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    if done.returncode == 77:
        pytest.skip("no permission to make an IPC namespace here")
    made, noted, _, text = done.stdout.split(" ", 3)
    assert made == noted  # the one that failed has left no note
    assert int(made) == (0 if limit == "shmmax" else 3)
    assert says in text
