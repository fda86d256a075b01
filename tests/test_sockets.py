"""What is particular to sockets: names, listening, many senders, stale files, other users, limits, what UDP loses."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import roles

import labkit
from labkit import Closed, Trace, channel, launch, receiver, sender, unlink
from labkit.channels import base, names

ROOT = Path(__file__).parents[1]
LISTENING = ("unix_stream", "unix_seqpacket", "tcp")
UNIX = ("unix_stream", "unix_seqpacket", "unix_datagram")
BY_NAME = (*UNIX, "tcp", "udp")
STREAMS = ("unix_stream", "tcp")


def path_of(kind: str, name: str) -> Path:
    return base.kind_dir(kind) / name


def in_a_process(kind: str, name: str, *, die: bool) -> subprocess.Popen[str]:
    """A process that receives at this name; it prints a line when it does, and then waits or dies."""
    code = (
        "import os, sys\nfrom labkit import receiver\n"
        f"rx = receiver({kind!r}, {name!r}, create=True)\nprint('ready', flush=True)\n"
        f"os.kill(os.getpid(), 9) if {die} else sys.stdin.read()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=-1, stdout=-1, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


# --- names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BY_NAME)
def test_a_name_is_for_its_owner_only_and_goes_when_its_receiver_closes(a_name, kind):
    tx, rx = channel(kind, name=a_name)
    assert path_of(kind, a_name).stat().st_mode & 0o777 == 0o600
    rx.close()
    assert not path_of(kind, a_name).exists()
    tx.close()


@pytest.mark.parametrize("kind", BY_NAME)
def test_a_name_goes_with_a_receiver_that_was_handed_to_another_process_when_that_ends(a_name, kind):
    tx, rx = channel(kind, name=a_name)
    tx.send(b"before")
    job = launch(lambda rx: rx.receive(), rx)
    assert job.wait() == b"before"
    assert not path_of(kind, a_name).exists()
    tx.close()


@pytest.mark.parametrize("kind", BY_NAME)
def test_a_name_goes_at_exit_also_when_nobody_closes_its_receiver(a_name, kind):
    code = f"from labkit import receiver; rx = receiver({kind!r}, {a_name!r}, create=True)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert not path_of(kind, a_name).exists()


@pytest.mark.parametrize("kind", BY_NAME)
def test_a_copy_made_by_fork_does_not_take_the_name_with_it(a_name, kind):
    code = (
        "import os, sys; from labkit import receiver\n"
        f"rx = receiver({kind!r}, {a_name!r}, create=True)\n"
        "child = os.fork()\n"
        "if not child: sys.exit()\n"
        "os.waitpid(child, 0)\n"
        f"from pathlib import Path; assert Path({str(path_of(kind, a_name))!r}).exists()\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("kind", BY_NAME)
def test_a_second_receiver_is_refused_and_disturbs_nobody(a_name, kind):
    tx, rx = channel(kind, name=a_name)
    for ask in (lambda: receiver(kind, a_name), lambda: receiver(kind, a_name, create=True)):
        with pytest.raises(FileExistsError, match="alive"):
            ask()
    with pytest.raises(TimeoutError):
        rx.receive(timeout=0)  # the attempt was no sender that came and went
    tx.send(b"still here")
    assert rx.receive() == b"still here"
    tx.close()
    rx.close()


@pytest.mark.parametrize("kind", BY_NAME)
def test_a_stale_name_says_that_nobody_listens_and_is_taken_over(a_name, kind):
    end(in_a_process(kind, a_name, die=True))
    assert path_of(kind, a_name).exists()
    with pytest.raises(ConnectionRefusedError, match="has died"):
        sender(kind, a_name)
    for create in (False, True):
        with receiver(kind, a_name, create=create) as rx:
            with sender(kind, a_name) as tx:
                tx.send(b"again")
            assert rx.receive() == b"again"
        end(in_a_process(kind, a_name, die=True))


@pytest.mark.parametrize("kind", BY_NAME)
def test_a_name_that_was_made_again_does_not_go_with_its_first_owner(a_name, kind):
    first = receiver(kind, a_name, create=True)
    unlink(kind, a_name)
    second = receiver(kind, a_name, create=True)
    first.close()
    with sender(kind, a_name) as tx:
        tx.send(b"for the second")
    assert second.receive() == b"for the second"
    second.close()


@pytest.mark.parametrize("kind", BY_NAME)
@pytest.mark.parametrize("what", ["a FIFO", "a link", "a folder"])
def test_something_else_of_that_name_is_refused_and_left_alone(a_name, kind, what, tmp_path):
    path = path_of(kind, a_name)
    if what == "a FIFO":
        os.mkfifo(path)
    elif what == "a link":
        (tmp_path / "mine").write_text("1\n")
        path.symlink_to(tmp_path / "mine")
    else:
        path.mkdir()
    before = path.lstat().st_ino
    for ask in (channel, sender, lambda kind, name: receiver(kind, name, create=True)):
        with pytest.raises(FileExistsError, match="left alone"):
            ask(kind, name=a_name)
    with pytest.raises(FileExistsError, match="left alone"):
        unlink(kind, a_name)
    assert path.lstat().st_ino == before
    path.rmdir() if what == "a folder" else path.unlink()


@pytest.mark.parametrize("kind", BY_NAME)
def test_a_sender_does_not_make_a_sockets_name(a_name, kind):
    with pytest.raises(ValueError, match="made by its receiver"):
        sender(kind, a_name, create=True)


@pytest.mark.parametrize("kind", UNIX)
def test_a_runtime_directory_with_a_path_longer_than_a_sockets_works(a_name, kind, tmp_path, monkeypatch):
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    tx, rx = channel(kind, name=a_name)
    tx.send(b"from afar")
    assert rx.receive() == b"from afar"
    assert (long / "labkit" / kind / a_name).is_socket()
    with pytest.raises(FileExistsError):
        receiver(kind, a_name)
    tx.close()
    rx.close()


@pytest.mark.parametrize("kind", ["unix_stream", "unix_seqpacket"])
def test_a_process_of_another_user_is_turned_away_even_when_it_reaches_the_socket(a_name, kind):
    if os.geteuid() != 0:
        pytest.skip("needs a second user: run as root")
    tx, rx = channel(kind, name=a_name)
    path, folder = path_of(kind, a_name), base.runtime_dir()
    for open_to_all in (folder.parent, folder, path.parent):
        open_to_all.chmod(0o755)
    path.chmod(0o666)
    type_ = {"unix_stream": socket.SOCK_STREAM, "unix_seqpacket": socket.SOCK_SEQPACKET}[kind]
    code = (
        "import os, socket; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        f"s = socket.socket(socket.AF_UNIX, {int(type_)}); s.connect({str(path)!r})\n"
        "s.send(b'\\5\\0\\0\\0hello')\n"
    )
    try:
        subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)
    finally:
        for private in (folder.parent, folder, path.parent):
            private.chmod(0o700)
    with pytest.raises(TimeoutError):
        rx.receive(timeout=0.05)
    tx.send(b"one of us")
    assert rx.receive() == b"one of us"
    tx.close()
    rx.close()


@pytest.mark.parametrize("kind", ["tcp", "udp"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_an_address_is_a_name(kind, host):
    with socket.socket(socket.AF_INET6 if host == "[::1]" else socket.AF_INET) as free:
        try:
            free.bind((host.strip("[]"), 0))
        except OSError:
            pytest.skip("no IPv6 here")
        name = f"{host}:{free.getsockname()[1]}"
    with receiver(kind, name) as rx:
        with pytest.raises(OSError) as caught:
            receiver(kind, name)
        assert caught.value.errno == errno.EADDRINUSE
        with sender(kind, name) as tx:
            tx.send(b"by address")
        assert rx.receive() == b"by address"
    with pytest.raises(FileNotFoundError, match="an address"):
        unlink(kind, name)


@pytest.mark.parametrize("kind", ["tcp", "udp"])
@pytest.mark.parametrize("name", ["127.0.0.1:", ":5000", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:http", "a/b:1"])
def test_what_is_no_address_is_refused(kind, name):
    for ask in (channel, sender, receiver):
        with pytest.raises(ValueError, match="host:port"):
            ask(kind, name=name)


def test_an_address_where_nobody_listens_refuses_the_connection():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        name = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ConnectionRefusedError):
            sender("tcp", name)


# --- listening ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LISTENING)
def test_a_receiver_waits_for_the_first_sender_and_is_closed_after_the_last_and_goes_on_with_the_next(a_name, kind):
    rx = receiver(kind, a_name, create=True)
    for timeout in (0, 0.02):
        with pytest.raises(TimeoutError):
            rx.receive(timeout)
    for round_ in (b"1", b"2"):
        first, second = sender(kind, a_name), sender(kind, a_name)
        first.send(round_)
        first.close()
        assert rx.receive() == round_
        with pytest.raises(TimeoutError):
            rx.receive(timeout=0.02)  # the second is still there
        second.close()
        for _ in range(2):
            with pytest.raises(Closed):
                rx.receive()
    rx.close()


@pytest.mark.parametrize("kind", LISTENING)
def test_what_was_sent_before_anybody_accepted_arrives_also_when_its_senders_are_dead(a_name, kind):
    rx = receiver(kind, a_name, create=True)

    def send_and_die(kind, name, message):
        tx = labkit.sender(kind, name)
        tx.send(message)
        os.kill(os.getpid(), 9)

    jobs = [launch(send_and_die, kind, a_name, b"%d" % n) for n in range(5)]
    assert roles.eventually(lambda: not any(job.alive for job in jobs))
    assert sorted(rx) == [b"%d" % n for n in range(5)]
    rx.close()


@pytest.mark.parametrize("kind", LISTENING)
def test_a_busy_sender_does_not_keep_the_others_waiting(a_name, kind):
    rx = receiver(kind, a_name, create=True)
    busy = launch(roles.send_forever, sender(kind, a_name), b"busy")
    for _ in range(100):
        assert rx.receive() == b"busy"
    with sender(kind, a_name) as late:
        late.send(b"late")
    others = 0
    while (message := rx.receive()) == b"busy":
        others += 1
        assert others < 100_000
    assert message == b"late"
    busy.kill()
    rx.close()


@pytest.mark.parametrize("kind", LISTENING)
def test_senders_take_turns(a_name, kind):
    rx = receiver(kind, a_name, create=True)
    senders = [sender(kind, a_name) for _ in range(3)]
    for n, tx in enumerate(senders):
        for _ in range(20):
            tx.send(b"%d" % n)
        tx.close()
    received = list(rx)
    assert sorted(received) == sorted(b"%d" % n for n in range(3) for _ in range(20))
    assert set(received[:6]) == {b"0", b"1", b"2"}
    rx.close()


@pytest.mark.parametrize("kind", STREAMS)
def test_a_half_sent_message_of_a_killed_sender_is_forgotten_and_the_others_go_on(a_name, kind):
    rx = receiver(kind, a_name, create=True)
    other = sender(kind, a_name)
    victim = launch(roles.send_all, sender(kind, a_name), [b"whole", bytes(20_000_000)])
    assert rx.receive() == b"whole"
    assert roles.eventually(lambda: roles.sleeping(victim.pid))
    victim.kill(signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        rx.receive(timeout=0)
    victim.kill()
    other.send(b"unharmed")
    other.close()
    assert list(rx) == [b"unharmed"]
    rx.close()


@pytest.mark.parametrize("kind", LISTENING)
def test_a_receiver_travels_with_its_connections_and_what_it_has_read(a_name, kind):
    rx = receiver(kind, a_name, create=True)
    senders = [sender(kind, a_name) for _ in range(3)]
    for tx in senders:
        for n in range(5):
            tx.send(b"%d" % n)
    first = rx.receive()
    waiting = sender(kind, a_name)  # nobody has accepted it yet
    waiting.send(b"in the queue")
    job = launch(roles.receive_all, rx)
    for tx in (*senders, waiting):
        tx.close()
    assert sorted([first, *job.wait()]) == sorted([b"%d" % n for n in range(5)] * 3 + [b"in the queue"])


@pytest.mark.parametrize("kind", STREAMS)
def test_a_clone_of_a_named_sender_is_one_more_connection_also_from_another_process(a_name, kind):
    rx = receiver(kind, a_name, create=True)

    def send_with_a_clone(tx):
        with tx.clone() as clone:
            clone.send(b"clone" * 100_000)
        tx.send(b"first")

    job = launch(send_with_a_clone, sender(kind, a_name))
    assert sorted(map(len, rx)) == [5, 500_000]
    job.wait()
    with pytest.raises(io.UnsupportedOperation, match="one receiver"):
        rx.clone()
    rx.close()


@pytest.mark.parametrize("kind", LISTENING)
def test_a_receiver_without_descriptors_says_that_somebody_waits_and_loses_nothing(a_name, kind):
    def starve(kind, rx):
        limit = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        taken = []
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            pass
        try:
            rx.receive(timeout=60)
        except OSError as reason:
            told = reason.errno, str(reason)
        os.close(taken[0])
        return told, rx.receive(timeout=60)

    rx = receiver(kind, a_name, create=True)
    tx = sender(kind, a_name)
    tx.send(b"patience")
    (number, text), message = launch(starve, kind, rx).wait()
    assert number == errno.EMFILE
    assert "waits to be accepted" in text
    assert message == b"patience"
    tx.close()


@pytest.mark.parametrize("kind", UNIX[:2])
def test_a_sender_that_finds_the_queue_full_waits_and_times_out(a_name, kind, monkeypatch):
    monkeypatch.setattr(names, "BACKLOG", 0)  # the kernel lets one more wait
    rx = receiver(kind, a_name, create=True)
    waiting = [sender(kind, a_name)]
    for timeout in (0, 0.05):
        with pytest.raises(TimeoutError, match="accepts nobody"):
            sender(kind, a_name, timeout=timeout)
    coming = threading.Thread(target=lambda: waiting.append(sender(kind, a_name, timeout=60)))
    coming.start()
    with pytest.raises(TimeoutError):
        rx.receive(timeout=0.02)  # which accepts
    coming.join()
    for tx in waiting:
        tx.close()
    rx.close()


@pytest.mark.parametrize("kind", LISTENING)
def test_the_events_of_several_senders_are_recorded(a_name, kind):
    with Trace() as trace:
        tx, rx = channel(kind, name=a_name, trace=trace)
        second = tx.clone()
        for end_ in (tx, second):
            for n in range(10):
                end_.send(b"%d" % n)
            end_.close()
        assert len(list(rx)) == 20
        rx.close()
        assert len(trace.messages()) == 20


@pytest.mark.parametrize("kind", ["unix_seqpacket", "unix_datagram"])
def test_a_message_that_is_larger_than_the_receiver_takes_is_an_error_not_a_shorter_message(a_name, kind):
    rx = receiver(kind, a_name, create=True, max_message=100)
    tx = sender(kind, a_name, max_message=1000)
    tx.send(bytes(1000))
    tx.send(b"fits")
    with pytest.raises(OSError, match="cut off") as caught:
        rx.receive()
    assert caught.value.errno == errno.EMSGSIZE
    assert rx.receive() == b"fits"
    tx.close()
    rx.close()


# --- what each protocol does --------------------------------------------------------------------------------


def test_udp_loses_what_a_slow_receiver_leaves_no_room_for_and_nobody_is_told():
    tx, rx = channel("udp", receive_buffer=20_000)
    for number in range(1000):
        tx.send(b"%06d" % number)
    tx.close()
    received = [int(message) for message in rx]
    assert 10 < len(received) < 500
    assert received == list(range(len(received)))  # the first are there, the others found no room
    rx.close()


def test_a_larger_receive_buffer_loses_less():
    kept = []
    for buffer in (10_000, 100_000):
        tx, rx = channel("udp", receive_buffer=buffer)
        for _ in range(1000):
            tx.send(b"x")
        tx.close()
        kept.append(sum(1 for _ in rx))
        rx.close()
    assert kept[0] * 3 < kept[1]


def test_udp_hears_once_that_nobody_is_there_and_may_go_on(a_name):
    with socket.socket(type=socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        name = f"127.0.0.1:{free.getsockname()[1]}"
    tx = sender("udp", name)
    tx.send(b"lost")
    poll = select.poll()
    poll.register(tx.fileno(), 0)  # an error is always told
    assert poll.poll(30_000)
    with pytest.raises(Closed, match="came back"):
        tx.send(b"not sent")
    with receiver("udp", name) as rx:
        tx.send(b"here")
        assert rx.receive() == b"here"
    tx.close()


def test_udp_takes_the_largest_datagram_and_no_larger_one():
    tx, rx = channel("udp")
    tx.send(bytes(tx.max_message))
    assert len(rx.receive()) == 65_499
    with pytest.raises(OSError, match="too large"):
        tx.send(bytes(tx.max_message + 1))
    tx.close()
    rx.close()


def test_an_empty_datagram_of_somebody_else_is_not_the_end(a_name):
    rx = receiver("unix_datagram", a_name, create=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other, names.making("unix_datagram") as folder:
        other.connect(f"/proc/self/fd/{folder}/{a_name}")
        other.send(b"")
        other.send(b"something")
    assert rx.receive() == b"something"
    rx.close()


def test_a_named_datagram_receiver_has_a_queue_of_a_few_messages(a_name):
    tx, rx = channel("unix_datagram", name=a_name)
    assert tx.capacity.unit == "messages"
    sent = 0
    with pytest.raises(TimeoutError):
        while True:
            tx.send(b"x", timeout=0)
            sent += 1
    assert sent == tx.capacity.amount
    tx.close()
    rx.close()


def test_small_messages_are_never_left_half_way_in_a_full_tcp_connection():
    for size in (1, 9, 50, 333, 3000):
        tx, rx = channel("tcp")
        sent = 0
        with pytest.raises(TimeoutError, match="full"):
            while True:
                tx.send(roles.numbered(sent, size), timeout=0)
                sent += 1
        tx.close()
        assert [rx.receive() for _ in range(sent)] == [roles.numbered(n, size) for n in range(sent)]
        with pytest.raises(Closed):
            rx.receive()
        rx.close()


def test_a_tcp_connection_that_is_overdrawn_travels():
    tx, rx = channel("tcp")
    sent = 0
    with pytest.raises(TimeoutError):
        while True:
            tx.send(bytes(3000), timeout=0)
            sent += 1
    job = launch(roles.send_all, tx, [b"more"])
    received = list(rx)
    assert len(received) == sent + 1
    assert received[-1] == b"more"
    job.wait()
    rx.close()


def test_tcp_sends_at_once_unless_told_otherwise():
    for nodelay in (True, False):
        tx, rx = channel("tcp", nodelay=nodelay)
        with socket.socket(fileno=os.dup(tx.fileno())) as end_:
            assert bool(end_.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) == nodelay
        tx.send(b"x")
        assert rx.receive() == b"x"
        tx.close()
        rx.close()


def test_a_connection_of_somebody_else_to_the_port_of_a_pair_is_not_taken_for_ours(monkeypatch):
    """A stranger is faster than our own connection."""
    from labkit.channels import tcp

    strangers, connected = [], tcp._connected

    def after_a_stranger(family, where, *rest):
        strangers.append(socket.create_connection(where))
        return connected(family, where, *rest)

    monkeypatch.setattr(tcp, "_connected", after_a_stranger)
    tx, rx = channel("tcp")
    strangers[0].close()
    tx.send(b"ours")
    assert rx.receive() == b"ours"
    tx.close()
    rx.close()


def test_a_timeout_that_is_none_is_refused_when_connecting(a_name):
    for kind in ("unix_stream", "unix_seqpacket", "tcp"):
        rx = receiver(kind, a_name, create=True)
        for nonsense in (-1, float("nan")):
            with pytest.raises(ValueError, match="timeout"):
                sender(kind, a_name, timeout=nonsense)
        for long in (1e12, float("inf"), None):
            sender(kind, a_name, timeout=long).close()
        rx.close()


def test_a_tcp_address_that_does_not_answer_times_out_and_is_named():
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        where = f"127.0.0.1:{deaf.getsockname()[1]}"
        waiting = []
        with pytest.raises(TimeoutError, match=f"{where} does not answer"):
            while len(waiting) < 10:  # one or two fit in
                waiting.append(sender("tcp", where, timeout=0.1))
        for tx in waiting:
            tx.close()


@pytest.mark.parametrize("kind", LISTENING)
def test_a_connection_that_ends_while_a_forked_process_has_a_copy_is_forgotten(a_name, kind):
    rx = receiver(kind, a_name, create=True)
    job = launch(roles.send_all, sender(kind, a_name), [b"one"])
    assert rx.receive() == b"one"
    with forked(lambda: None):
        job.wait()
        with pytest.raises(Closed):
            rx.receive()
        next_one = sender(kind, a_name)
        next_one.send(b"two")
        assert rx.receive() == b"two"
        next_one.close()
    rx.close()


@pytest.mark.parametrize("kind", LISTENING)
def test_a_copy_made_by_fork_accepts_senders_of_its_own_and_takes_nothing_from_its_parent(a_name, kind):
    rx = receiver(kind, a_name, create=True)
    first = sender(kind, a_name)
    first.send(b"one")
    assert rx.receive() == b"one"
    second = sender(kind, a_name)
    second.send(b"for the child")
    reading, writing = os.pipe()

    def receive_there():
        first.given_away()
        second.given_away()
        os.write(writing, rx.receive())

    with forked(receive_there):
        assert os.read(reading, 100) == b"for the child"
        second.send(b"the child's own, too")
        first.send(b"two")
        assert rx.receive() == b"two"
        with pytest.raises(TimeoutError):
            rx.receive(timeout=0)
    os.close(reading)
    os.close(writing)
    for one in (first, second, rx):
        one.close()


@contextlib.contextmanager
def forked(do):
    """A copy of this process that does something and then stays as long as the block."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            do()
            signal.pause()
        os._exit(1)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize("kind", STREAMS)
def test_a_sender_that_announces_more_than_there_is_memory_for_is_dropped_and_the_others_go_on(a_name, kind):
    def with_little_memory():
        rx = receiver(kind, a_name, create=True)
        good, bad = sender(kind, a_name), sender(kind, a_name)
        for tx in (good, bad):
            tx.send(b"hello")
            rx.receive()
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGESIZE") + (1 << 29), resource.RLIM_INFINITY))
        os.write(bad.fileno(), b"\xff\xff\xff\xff")
        errors, came = 0, []
        for n in range(20):
            good.send(b"%d" % n)
        while len(came) < 20:
            try:
                came.append(rx.receive())
            except MemoryError:
                errors += 1
        return errors, came, rx.senders

    assert launch(with_little_memory).wait() == (1, [b"%d" % n for n in range(20)], 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_port_that_cannot_be_noted_for_want_of_room_is_free_again(kind):
    code = (
        "import errno, os\nfrom labkit import channel, receiver\n"
        f"[end.close() for end in channel({kind!r})]\n"
        f"receiver({kind!r}, 'first', create=True).close()\n"
        "try: open(os.environ['XDG_RUNTIME_DIR'] + '/full', 'wb', buffering=0).write(bytes(1 << 20))\n"
        "except OSError: pass\n"
        "before = len(os.listdir('/proc/self/fd'))\n"
        f"try: receiver({kind!r}, 'second', create=True)\n"
        "except OSError as reason: print(reason.errno == errno.ENOSPC, len(os.listdir('/proc/self/fd')) - before)\n"
        "os.unlink(os.environ['XDG_RUNTIME_DIR'] + '/full')\n"
        f"print(receiver({kind!r}, 'second', create=True).receive.__name__)\n"
    )
    prepare = 'mkdir -p "$XDG_RUNTIME_DIR"; mount -t tmpfs -o size=16k none "$XDG_RUNTIME_DIR"; exec "$@"'
    with tempfile.TemporaryDirectory() as folder:
        command = ["unshare", "--mount", "sh", "-ec", prepare, "sh", sys.executable, "-c", code]
        environment = {**os.environ, "XDG_RUNTIME_DIR": folder}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if "unshare failed" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"needs a namespace: {done.stderr}")
    assert done.stdout == "True 0\nreceive\n", done.stderr


def test_waiting_for_senders_costs_no_processor_time(a_name):
    for kind in LISTENING:
        rx = receiver(kind, a_name, create=True)
        tx = sender(kind, a_name)
        job = launch(roles.receive_forever, rx)
        tx.send(b"x")
        assert roles.comes_to_rest(job.pid)
        job.kill()
        assert roles.eventually(lambda job=job: not job.alive)
        tx.close()
        unlink(kind, a_name)
