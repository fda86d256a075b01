"""labkit ls: what it lists is what the system's own tools list, of programs that are not ours."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import posix_ipc
import pytest
import sysv_ipc

from labkit import channel, objects, receiver
from labkit.objects import _LIST_QUEUES, KINDS, Object, age


def one(kind, part):
    """The object of this kind whose name has this part."""
    found = [row for row in objects() if row.kind == kind and part in row.name]
    assert len(found) == 1, f"{len(found)} of {kind} with {part!r} in:\n{objects()}"
    return found[0]


def none(kind, part):
    return not [row for row in objects() if row.kind == kind and part in row.name]


@pytest.fixture
def program():
    """Start a program of its own, and end it."""
    started = []

    def start(*command, **options):
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def python(program, code):
    process = program(sys.executable, "-S", "-c", code + "\nprint('ready', flush=True)\nimport time; time.sleep(60)")
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.skipif(not shutil.which("ipcmk"), reason="no ipcmk here (util-linux)")
def test_system_v_objects_of_another_program_are_listed_as_lsipc_lists_them():
    made = {}
    try:
        for option, letter in (("-Q", "q"), ("-S2", "s"), ("-M8192", "m")):
            said = subprocess.run(["ipcmk", option], capture_output=True, text=True, check=True).stdout
            made[letter] = said.split()[-1]
        for letter, kind in (("q", "System V queue"), ("s", "System V semaphores"), ("m", "System V memory")):
            found = one(kind, f"id {made[letter]}")
            option = {"q": "-q", "s": "-s", "m": "-m"}[letter]
            said = subprocess.run(["lsipc", option, "--raw", "-b"], capture_output=True, text=True, check=True).stdout
            line = next(line for line in said.splitlines() if f" {made[letter]} " in f" {line} ")
            assert line.split()[0] in found.name
            assert found.owner == os.getuid() and found.mode == 0o644
            assert time.time() - found.created < 60
        assert one("System V memory", f"id {made['m']}").bytes == 8192
        assert "its creator has ended" in one("System V memory", f"id {made['m']}").abandoned
    finally:
        for letter, identifier in made.items():
            subprocess.run(["ipcrm", f"-{letter}", identifier], check=True)
    assert none("System V queue", f"id {made['q']}")


def test_what_waits_in_a_queue_that_nobody_uses_any_more_is_told():
    code = "import sysv_ipc, sys; q = sysv_ipc.MessageQueue(None, sysv_ipc.IPC_CREX); q.send('left'); print(q.id)"
    identifier = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    try:
        found = one("System V queue", f"id {identifier}")
        assert found.bytes == 4 and found.users == ()
        assert found.abandoned == "1 messages wait, and everybody who used it last has ended"
        semaphore = sysv_ipc.Semaphore(None, sysv_ipc.IPC_CREX)
        semaphore.release()
        assert one("System V semaphores", f"id {semaphore.id}").users == (os.getpid(),)
        semaphore.remove()
    finally:
        subprocess.run(["ipcrm", "-q", identifier], check=True)


def test_attached_memory_says_by_whom():
    memory = sysv_ipc.SharedMemory(None, sysv_ipc.IPC_CREX, size=4096)
    try:
        memory.detach()
        memory.attach()
        assert one("System V memory", f"id {memory.id}").users == (os.getpid(),)
    finally:
        memory.detach()
        memory.remove()


def test_posix_objects(a_name):
    name = f"/{a_name[:200]}"
    queue = posix_ipc.MessageQueue(name, posix_ipc.O_CREX, 0o600, max_messages=2, max_message_size=8)
    memory = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, 0o640, size=4096)
    semaphore = posix_ipc.Semaphore(name, posix_ipc.O_CREX, 0o600)
    try:
        queue.send(b"waits")
        found = one("POSIX queue", name)
        assert found.users == (os.getpid(),) and found.mode == 0o600 and not found.abandoned
        assert found.bytes == 5
        assert one("POSIX memory", name).bytes == 4096
        assert one("POSIX semaphore", name).users == (os.getpid(),)
        queue.close()
        memory.close_fd()
        semaphore.close()
        if os.geteuid() == 0 or os.path.ismount("/dev/mqueue"):
            assert one("POSIX queue", name).abandoned == "nobody has it open, 5 bytes wait in it"
        assert one("POSIX memory", name).abandoned == "nobody has it open or mapped"
        assert one("POSIX semaphore", name).abandoned
    finally:
        posix_ipc.unlink_message_queue(name)
        posix_ipc.unlink_shared_memory(name)
        posix_ipc.unlink_semaphore(name)
    assert none("POSIX queue", name) and none("POSIX memory", name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount the file system of the queues")
def test_a_queue_that_goes_while_the_list_is_made_is_not_in_it(a_name):
    names = [f"/{a_name[:200]}{letter}" for letter in "ab"]
    for name in names:
        posix_ipc.MessageQueue(name, posix_ipc.O_CREX, max_messages=1, max_message_size=8).close()
    program = (
        "import os, sys, posix_ipc\n"
        "listed = os.scandir\n"
        "def scandir(path):\n"
        "    entries = list(listed(path))\n"
        "    posix_ipc.unlink_message_queue(sys.argv[1])\n"
        "    return entries\n"
        "os.scandir = scandir\n"
    )
    try:
        command = [sys.executable, "-c", program + _LIST_QUEUES, names[0]]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stderr
        found = [f"/{row[0]}" for row in json.loads(said.stdout)]
        assert names[0] not in found and names[1] in found
    finally:
        posix_ipc.unlink_message_queue(names[1])


@pytest.mark.skipif(not shutil.which("ss"), reason="no ss here (iproute2)")
def test_sockets_of_another_program_are_listed_as_ss_lists_them(program, tmp_path):
    path = tmp_path / "meeting.sock"
    process = python(
        program,
        "import socket\n"
        f"u = socket.socket(socket.AF_UNIX); u.bind({str(path)!r}); u.listen()\n"
        "a = socket.socket(socket.AF_UNIX); a.bind('\\0abstract-of-a-test'); a.listen()\n"
        "t = socket.create_server(('127.0.0.1', 0)); six = socket.create_server(('::1', 0), family=socket.AF_INET6)\n"
        "d = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); d.bind(('127.0.0.1', 0))",
    )
    said = subprocess.run(["ss", "-H", "-a", "-n", "-p", "-x", "-t", "-u"], capture_output=True, text=True, check=True)
    lines = [line.split() for line in said.stdout.splitlines() if f"pid={process.pid}," in line]
    assert len(lines) == 5
    for line in lines:
        kind = {"u": "Unix socket", "t": "TCP socket"}["t" if line[0] == "tcp" else "u"]
        kind = "UDP socket" if line[0] == "udp" else kind
        found = one(kind, line[4])
        assert found.users == (process.pid,)
    assert one("Unix socket", str(path)).owner == os.getuid()


def test_a_connection_says_where_to():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            port, own = server.getsockname()[1], client.getsockname()[1]
            client.send(b"unread")
            assert one("TCP socket", f"127.0.0.1:{own} to 127.0.0.1:{port}").users == (os.getpid(),)
            assert one("TCP socket", f"127.0.0.1:{port} to 127.0.0.1:{own}").bytes == 6
            assert one("TCP socket", f"127.0.0.1:{port} listens")


def test_a_fifo_of_another_program(program, tmp_path):
    path = tmp_path / "pipe line"
    os.mkfifo(path, 0o600)
    process = python(program, f"import os; fd = os.open({str(path)!r}, os.O_RDWR)")
    assert one("FIFO", str(path)).users == (process.pid,)


def test_shared_mappings(program, tmp_path):
    path = tmp_path / "mapped"
    path.write_bytes(bytes(8192))
    process = python(program, f"import mmap; f = open({str(path)!r}, 'r+b'); m = mmap.mmap(f.fileno(), 0)")
    found = one("shared mapping", str(path))
    assert found.users == (process.pid,) and found.bytes == 8192


@pytest.mark.skipif(not shutil.which("lsof"), reason="no lsof here")
def test_who_has_a_fifo_and_a_mapping_is_what_lsof_says(program, tmp_path):
    fifo, path = tmp_path / "fifo", tmp_path / "file"
    os.mkfifo(fifo)
    path.write_bytes(bytes(4096))
    code = f"import mmap, os; fd = os.open({str(fifo)!r}, os.O_RDWR); f = open({str(path)!r}, 'r+b')"
    started = [python(program, code + "; m = mmap.mmap(f.fileno(), 0)") for _ in range(2)]
    for kind, where in (("FIFO", fifo), ("shared mapping", path)):
        said = subprocess.run(["lsof", "-t", str(where)], capture_output=True, text=True).stdout.split()
        assert one(kind, str(where)).users == tuple(sorted(map(int, said)))
        assert set(one(kind, str(where)).users) == {process.pid for process in started}


def test_labkits_own_are_found_by_their_names(a_name):
    ends = [receiver(kind, a_name, create=True) for kind in ("fifo", "unix_stream")]
    ring = channel("shm_ring")
    try:
        assert one("FIFO", f"fifo/{a_name}").users == (os.getpid(),)
        assert one("Unix socket", f"unix_stream/{a_name}").users == (os.getpid(),)
        assert [row for row in objects() if row.kind == "shared mapping" and "labkit" in row.name]
    finally:
        for end in (*ends, *ring):
            end.close()


def test_the_command_prints_what_objects_returns(a_name):
    memory = posix_ipc.SharedMemory(f"/{a_name}", posix_ipc.O_CREX, size=4096)
    memory.close_fd()
    command = [sys.executable, "-m", "labkit", "ls"]
    try:
        table = subprocess.run([*command, "posix mem"], capture_output=True, text=True, check=True).stdout
        assert a_name in table and "look abandoned" in table
        listed = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout
        row = next(row for row in json.loads(listed)["objects"] if a_name in row["name"])
        assert Object(**{**row, "users": tuple(row["users"])}) == one("POSIX memory", a_name)
    finally:
        memory.unlink()
    unknown = subprocess.run([*command, "--inside", "999999999"], capture_output=True, text=True)
    assert unknown.returncode == 2 and "no process 999999999" in unknown.stderr
    misspelt = subprocess.run([*command, "fifos"], capture_output=True, text=True)
    assert misspelt.returncode == 2 and "no kind of object begins with 'fifos'; there are: " in misspelt.stderr


def test_every_kind_can_be_asked_for_by_its_name():
    found = objects()
    assert {row.kind for row in found} <= set(KINDS)
    for kind in KINDS:
        assert list(found.of(kind)) == [row for row in found if row.kind == kind]


def test_ages_have_one_unit():
    assert [age(seconds) for seconds in (-1, 5, 119, 121, 7201, 3 * 86400)] == [
        "0 s", "5 s", "119 s", "2 min", "2 h", "3 days",
    ]  # fmt: skip


def test_a_table_shows_text_as_text():
    found = objects()
    found.append(Object("FIFO", "<script>", None, None, None, None, (), 1, "ipc", "nobody"))
    assert "&lt;script&gt;" in found._repr_html_() and "<script>" not in found._repr_html_()
    assert "<script>" in repr(found) and Path("/proc").exists()
