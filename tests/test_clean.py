"""`labkit clean` removes what labkit made and nobody uses, and nothing else. All on real kernel objects."""

import contextlib
import mmap
import os
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import lane
import posix_ipc
import pytest
import sysv_ipc

from labkit import sync
from labkit.channels import notes, receiver
from labkit.channels.base import kind_dir, runtime_dir
from labkit.clean import leftovers, remove
from labkit.folders import own_folder

SHM = Path("/dev/shm")

# A process that makes a segment as labkit names it, keeps it open in one of two ways, and waits.
HOLD = """
import mmap, os, pathlib, secrets, sys
path = pathlib.Path(f"/dev/shm/labkit-{os.getpid()}-{secrets.token_hex(8)}")
file = open(path, "x+b")
file.truncate(4096)
if sys.argv[1] == "mapped":
    memory = mmap.mmap(file.fileno(), 4096)
    file.close()
print(path, flush=True)
sys.stdin.read()
"""
# A process that makes a POSIX queue and notes it as labkit's posix_mq channel does.
QUEUE = """
import sys
from labkit.channels import channel
tx, rx = channel("posix_mq", name=sys.argv[1])
tx.send(b"unread")
print(sys.argv[1], flush=True)
sys.stdin.read()
"""

# A process that has a folder of its own, with something in it, and waits.
FOLDER = """
import pathlib, sys
from labkit.folders import own_folder
with own_folder(sys.argv[1]) as folder:
    pathlib.Path(folder, "deep").mkdir()
    pathlib.Path(folder, "deep", "file").write_text("x")
    print(folder, flush=True)
    sys.stdin.read()
"""

Start = Callable[..., tuple[subprocess.Popen[str], str]]


@pytest.fixture(autouse=True)
def private_runtime_dir(tmp_path, monkeypatch):
    """Notes of our own, so that a queue of somebody who works on this machine is never touched."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a program and returns it with the name it printed; at the end nothing of it is left."""
    children, paths = [], []

    def start(program: str, argument: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-c", program, argument]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        children.append(child)
        name = child.stdout.readline().strip()
        assert name, "the child made nothing"
        paths.append(name)
        return child, name

    yield start
    for child in children:
        child.kill()
        child.communicate()
    for path in paths:
        if path.startswith("/dev/shm/"):
            Path(path).unlink(missing_ok=True)


@pytest.fixture
def a_name() -> Iterator[str]:
    name = f"test-clean-{secrets.token_hex(6)}"
    yield name
    with contextlib.suppress(posix_ipc.ExistentialError):
        posix_ipc.unlink_message_queue(f"/{name}")


def kill(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGKILL)
    child.wait()


def found(name: str):
    return next((one for one in leftovers() if one.name == name), None)


@pytest.mark.parametrize("how", ["open", "mapped"])
def test_a_segment_that_a_living_process_uses_is_kept(start, how):
    child, path = start(HOLD, how)
    segment = found(path)
    assert segment.users == (child.pid,)
    assert segment.size == 4096
    assert not segment.removable
    assert not remove(segment)
    assert os.path.exists(path)


@pytest.mark.parametrize("how", ["open", "mapped"])
def test_a_segment_of_a_killed_process_is_removed(start, how):
    child, path = start(HOLD, how)
    kill(child)
    segment = found(path)
    assert (segment.maker, segment.users, segment.removable) == (child.pid, (), True)
    assert remove(segment)
    assert not os.path.exists(path)
    assert not remove(segment), "a second time there is nothing to remove"


def test_a_segment_is_kept_while_anybody_else_has_it_mapped_after_its_maker_died(start):
    child, path = start(HOLD, "open")
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 4096):
        file.close()
        kill(child)
        assert found(path).users == (os.getpid(),)
        assert not remove(found(path))
    assert remove(found(path))


def test_a_segment_whose_maker_lives_is_kept_although_nobody_has_it_open():
    path = SHM / f"labkit-{os.getpid()}-{secrets.token_hex(8)}"
    path.touch()
    try:
        assert found(str(path)).made_by_living
        assert not remove(found(str(path)))
    finally:
        path.unlink()


@pytest.mark.parametrize(
    "name", ["labkit-notes", "labkit-1a-ff", "labkit-0-ff", "labkit-99999999-xyz", "psm_labkit-1-f"]
)
def test_a_foreign_segment_is_never_touched(name):
    path = SHM / name
    path.touch(exist_ok=False)
    try:
        assert found(str(path)) is None
    finally:
        path.unlink()


def test_a_link_that_looks_like_ours_is_not_followed(tmp_path):
    treasure = tmp_path / "treasure"
    treasure.write_text("mine")
    link = SHM / f"labkit-4194304-{secrets.token_hex(8)}"  # a pid that cannot be: pid_max is 4194304
    link.symlink_to(treasure)
    try:
        assert found(str(link)) is None
    finally:
        link.unlink()
    assert treasure.read_text() == "mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_segment_of_another_user_is_never_touched():
    path = SHM / f"labkit-4194304-{secrets.token_hex(8)}"
    path.touch()
    os.chown(path, 65534, 65534)
    try:
        assert found(str(path)) is None
    finally:
        path.unlink()


def test_a_named_queue_is_kept_while_used_and_removed_once_its_process_was_killed(start, a_name):
    child, _ = start(QUEUE, a_name)
    assert found(f"/{a_name}").users == (child.pid,)
    assert not remove(found(f"/{a_name}"))

    kill(child)
    assert found(f"/{a_name}").removable
    assert remove(found(f"/{a_name}"))
    with pytest.raises(posix_ipc.ExistentialError):
        posix_ipc.MessageQueue(f"/{a_name}", write=False)
    assert found(f"/{a_name}") is None, "its note is gone as well"


def test_a_queue_that_labkit_did_not_make_is_never_touched(a_name):
    posix_ipc.MessageQueue(f"/{a_name}", posix_ipc.O_CREX, max_messages=1, max_message_size=16).close()
    assert found(f"/{a_name}") is None


def test_a_note_whose_queue_is_gone_is_removed(start, a_name):
    child, _ = start(QUEUE, a_name)
    kill(child)
    posix_ipc.unlink_message_queue(f"/{a_name}")
    note = found(f"/{a_name}")
    assert note.kind == "note"
    assert remove(note)
    assert leftovers() == [one for one in leftovers() if one.name != f"/{a_name}"]
    assert not (runtime_dir() / "posix_mq" / a_name).exists()


# A process that opens a channel, sends one message, and waits.
OPEN = """
import sys
from labkit.channels import channel
kind, name = sys.argv[1].split()
tx, rx = channel(kind, name=None if name == "-" else name)
tx.send(b"unread")
print(name, flush=True)
sys.stdin.read()
"""
SEGMENTS = {"posix_shm": "shared memory", "mmap_file": "mapped file"}
SYSTEM_V = {"sysv_mq": "System V queue", "sysv_shm": "System V segment"}


def found_by_note(kind: str, name: str):
    wanted = {"posix_shm": f"/dev/shm/{name}", "mmap_file": str(runtime_dir() / kind / name)}
    return found(wanted.get(kind, f"{kind}/{name}"))


@pytest.mark.parametrize(("kind", "what"), (SEGMENTS | SYSTEM_V).items())
def test_a_channel_with_a_name_is_kept_while_used_and_removed_once_its_process_was_killed(start, kind, what, a_name):
    child, _ = start(OPEN, f"{kind} {a_name}")
    one = found_by_note(kind, a_name)
    assert (one.kind, one.users, one.removable) == (what, (child.pid,), False)
    assert not remove(one)
    assert unread(kind, a_name, child) == 0

    kill(child)
    assert found_by_note(kind, a_name).removable
    assert remove(found_by_note(kind, a_name))
    assert found_by_note(kind, a_name) is None
    with pytest.raises(FileNotFoundError):
        receiver(kind, a_name)
    assert [path for path in runtime_dir().rglob("*") if path.is_file()] == []


# A process that makes something of labkit.sync, and waits.
SYNC = """
import sys
import labkit.sync
kind, name = sys.argv[1].split()
thing = labkit.sync.Barrier(2, name=name) if kind == "Barrier" else getattr(labkit.sync, kind)(name=name)
print(name, flush=True)
sys.stdin.read()
"""
SYNC_KINDS = {
    "PosixSemaphore": ("POSIX semaphore", "/dev/shm/sem.{name}"),
    "SysvSemaphores": ("System V semaphores", "sysv_semaphore/{name}"),
    "Futex": ("mapped file", "{folder}/futex/{name}"),
    "Mutex": ("mapped file", "{folder}/mutex/{name}"),
    "Barrier": ("mapped file", "{folder}/barrier/{name}"),
}


@pytest.mark.parametrize("kind", SYNC_KINDS)
def test_a_lock_with_a_name_is_kept_while_used_and_removed_once_its_process_was_killed(start, kind, a_name):
    child, _ = start(SYNC, f"{kind} {a_name}")
    what, pattern = SYNC_KINDS[kind]
    name = pattern.format(name=a_name, folder=runtime_dir())
    one = found(name)
    assert (one.kind, one.users, one.removable) == (what, (child.pid,), False)
    assert not remove(one)
    kill(child)
    assert remove(found(name))
    assert found(name) is None
    with pytest.raises(FileNotFoundError):
        getattr(sync, kind).open(a_name)
    assert [path for path in runtime_dir().rglob("*") if path.is_file()] == []


def unread(kind: str, name: str, child: subprocess.Popen[str]) -> int:
    """0 when a channel is still there: whoever takes one receiver only says so."""
    try:
        receiver(kind, name).close()
    except OSError as reason:
        assert "receiver already" in str(reason)
    return 0 if child.poll() is None else 1


@pytest.mark.parametrize(("kind", "what"), SYSTEM_V.items())
def test_system_v_objects_without_a_name_are_listed_and_removed_after_a_kill(start, kind, what):
    child, _ = start(OPEN, f"{kind} -")
    [one] = [one for one in leftovers() if one.kind == what]
    assert one.users == (child.pid,)
    assert not remove(one)
    kill(child)
    [one] = [one for one in leftovers() if one.kind == what]
    assert one.removable
    assert remove(one)
    assert [one for one in leftovers() if one.kind == what] == []
    assert remove(one) is False


def test_a_note_whose_system_v_object_was_removed_by_somebody_is_removed(start, a_name):
    child, _ = start(OPEN, f"sysv_mq {a_name}")
    kill(child)
    notes.remove_objects(("msg",), notes.key_of("sysv_mq", a_name))
    note = found(f"sysv_mq/{a_name}")
    assert (note.kind, note.state) == ("note", "what it notes is gone")
    assert remove(note)
    assert found(f"sysv_mq/{a_name}") is None


def test_system_v_objects_that_labkit_did_not_make_are_never_touched():
    key = 0x1AB0000 + os.getpid() % 60000
    queue = sysv_ipc.MessageQueue(key, sysv_ipc.IPC_CREX)
    try:
        before = len(leftovers())
        note = kind_dir("sysv") / "not-a-note"
        note.touch()
        assert len(leftovers()) == before
        assert sysv_ipc.MessageQueue(key).id == queue.id
    finally:
        queue.remove()


def test_looking_changes_nothing_and_opens_nothing_for_long(start):
    start(HOLD, "open")
    before = sorted(os.listdir("/dev/shm")), len(os.listdir("/proc/self/fd"))
    leftovers()
    assert (sorted(os.listdir("/dev/shm")), len(os.listdir("/proc/self/fd"))) == before


@pytest.mark.skipif(os.geteuid() != 0 or not lane.possible(), reason="root alone can look into every process")
def test_root_can_look_into_every_process_and_others_are_told_how_many_they_cannot():
    """In a lane, where only our processes are: there are some on a machine into which not even root may look."""
    program = (
        "import os; from labkit.clean import hidden_processes\n"
        "print(hidden_processes()); os.setuid(65534); print(hidden_processes())"
    )
    command = [sys.executable, lane.__file__, sys.executable, "-c", program]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    as_root, as_nobody = map(int, child.stdout.split())
    assert as_root == 0 and as_nobody > 0


# ---------------------------------------------------------------------------------------------------------------------
# The command


def labkit_clean(*arguments: str, answer: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "labkit", "clean", *arguments]
    environment = os.environ | {"COLUMNS": "200"}
    return subprocess.run(command, input=answer, capture_output=True, text=True, env=environment, check=False)


def test_the_command_lists_and_asks_before_it_removes(start):
    child, path = start(HOLD, "open")
    kill(child)
    listed = labkit_clean("--dry-run")
    assert path in listed.stdout
    assert os.path.exists(path)

    refused = labkit_clean(answer="n\n")
    assert path in refused.stdout
    assert "Remove" in refused.stdout
    assert os.path.exists(path)


def test_the_command_removes_after_yes_and_keeps_what_is_used(start, a_name):
    gone, gone_path = start(HOLD, "mapped")
    _, kept_path = start(HOLD, "mapped")
    queue_child, _ = start(QUEUE, a_name)
    kill(gone)
    kill(queue_child)
    done = labkit_clean(answer="y\n")
    assert done.returncode == 0, done.stderr
    assert not os.path.exists(gone_path)
    assert os.path.exists(kept_path)
    assert "in use by" in done.stdout
    with pytest.raises(posix_ipc.ExistentialError):
        posix_ipc.MessageQueue(f"/{a_name}", write=False)


def test_a_runtime_directory_that_is_not_ours_alone_is_one_sentence(tmp_path):
    (tmp_path / "labkit").mkdir(mode=0o777)
    os.chmod(tmp_path / "labkit", 0o777)
    failed = labkit_clean("--yes")
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert "XDG_RUNTIME_DIR" in failed.stderr


# ---------------------------------------------------------------------------------------------------------------------
# What lies in the runtime directory: FIFOs, sockets' files, noted ports

RECEIVE = """
import sys
from labkit import receiver
kind, name = sys.argv[1].split(":")
rx = receiver(kind, name, create=True)
print(name, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    "kind", ["fifo", "unix_stream", "unix_seqpacket", "unix_datagram", "tcp", "udp", "signal", "zmq"]
)
def test_a_name_in_the_runtime_directory_is_kept_while_received_at_and_removed_once_its_process_was_killed(
    start, a_name, kind
):
    child, _ = start(RECEIVE, f"{kind}:{a_name}")
    path = runtime_dir() / kind / a_name
    assert not found(str(path)).removable
    assert not remove(found(str(path)))
    assert path.exists()

    kill(child)
    assert found(str(path)).removable
    assert remove(found(str(path)))
    assert not path.exists()
    assert found(str(path)) is None


def test_what_is_no_name_of_ours_in_these_folders_is_never_touched(tmp_path):
    folder = runtime_dir()
    for kind in ("fifo", "unix_stream", "tcp"):
        (folder / kind).mkdir()
    (folder / "fifo" / "a-file").touch()
    (folder / "unix_stream" / "a-file").touch()
    (folder / "tcp" / "a-folder").mkdir()
    assert [one for one in leftovers() if str(folder) in one.name] == []


@pytest.mark.parametrize("what", ["window", "kernel", "cluster", "server", "print"])
def test_the_folder_of_a_killed_process_is_removed_and_that_of_a_living_one_is_kept(start, what):
    child, path = start(FOLDER, what)
    folder = found(path)
    assert (folder.kind, folder.maker, folder.removable) == ("folder", child.pid, False)
    assert not remove(folder) and os.path.exists(f"{path}/deep/file")
    kill(child)
    assert found(path).removable
    assert remove(found(path)) and not os.path.exists(path)
    assert found(path) is None


def test_a_folder_in_which_somebody_still_has_a_file_open_is_kept(start):
    child, path = start(FOLDER, "window")
    with open(f"{path}/deep/file"):
        kill(child)
        assert found(path).users == (os.getpid(),) and not remove(found(path))
    assert remove(found(path))


def test_a_folder_goes_with_its_owner_who_ends_as_usual():
    with own_folder("kernel") as path:
        assert os.stat(path).st_mode & 0o777 == 0o700
        assert not found(path).removable, "we have it, and it may be used from outside"
    assert not os.path.exists(path)


@pytest.mark.parametrize(
    "name", ["labkit-window-5tyclg_5", "labkit-other-1-abcdefgh", "labkit-window-1-short", "pymp-x"]
)
def test_a_folder_that_is_not_proved_to_be_ours_is_never_touched(name, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for there in (tmp_path / name, tmp_path / f"labkit-window-{os.getpid()}-abcdefgh"):
        there.mkdir()
    assert found(str(there)), "this one is, by its name"
    assert found(str(tmp_path / name)) is None


def test_without_a_descriptor_left_there_is_an_error_and_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"), own_folder("kernel"):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert list(tmp_path.iterdir()) == [] and not list(Path("/tmp").glob(f"labkit-kernel-{os.getpid()}-*"))
