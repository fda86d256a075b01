"""What is particular to FIFOs: a name in the file system, nobody there yet, one receiver, many senders."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import roles

from labkit import Closed, Trace, channel, launch, receiver, sender, unlink
from labkit.channels import base, fifo

ROOT = Path(__file__).parents[1]


def path_of(name: str) -> Path:
    return base.kind_dir("fifo") / name


def test_a_fifo_is_a_special_file_for_its_owner_only_and_stays_until_it_is_unlinked(a_name):
    tx, rx = channel("fifo", name=a_name)
    tx.close()
    rx.close()
    assert path_of(a_name).is_fifo()
    assert path_of(a_name).stat().st_mode & 0o777 == 0o600
    unlink("fifo", a_name)
    assert not path_of(a_name).exists()


def test_before_the_first_sender_a_receiver_waits_and_after_the_last_it_is_closed(a_name):
    rx = receiver("fifo", a_name, create=True)
    for timeout in (0, 0.02):
        with pytest.raises(TimeoutError):
            rx.receive(timeout)
    sender("fifo", a_name).close()
    with pytest.raises(Closed):
        rx.receive()
    rx.close()


def test_a_receiver_waits_without_using_the_processor_until_the_first_sender_comes(a_name):
    rx = receiver("fifo", a_name, create=True)
    job = launch(roles.receive_all, rx)
    assert roles.eventually(lambda: roles.sleeping(job.pid))
    before = roles.processor_seconds(job.pid)
    with pytest.raises(TimeoutError):
        job.wait(0.3)
    assert roles.processor_seconds(job.pid) - before < 0.1
    with sender("fifo", a_name) as tx:
        tx.send(b"at last")
    assert job.wait() == [b"at last"]


def test_a_receiver_goes_on_with_the_next_sender(a_name):
    rx = receiver("fifo", a_name, create=True)
    for round_ in (b"1", b"2"):
        with sender("fifo", a_name) as tx:
            tx.send(round_)
        assert list(rx) == [round_]
    rx.close()


def test_a_sender_waits_until_somebody_receives(a_name):
    came = []
    waiting = threading.Thread(target=lambda: came.append(sender("fifo", a_name, create=True, timeout=60)))
    waiting.start()
    assert roles.eventually(path_of(a_name).is_fifo)
    rx = receiver("fifo", a_name)
    waiting.join()
    came[0].send(b"here you are")
    assert rx.receive() == b"here you are"
    came[0].close()
    rx.close()


@pytest.mark.parametrize("timeout", [0, 0.05])
def test_a_sender_whom_nobody_receives_from_times_out(a_name, timeout):
    with pytest.raises(TimeoutError, match="ENXIO"):
        sender("fifo", a_name, create=True, timeout=timeout)
    for nonsense in (-1, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            sender("fifo", a_name, timeout=nonsense)


def test_ctrl_c_ends_the_wait_for_a_receiver(a_name):
    timer = roles.interrupt_soon(0.1)
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        sender("fifo", a_name, create=True, timeout=None)
    timer.join()


def test_a_second_receiver_is_refused_also_when_the_first_has_moved_to_another_process(a_name):
    rx = receiver("fifo", a_name, create=True)
    with pytest.raises(FileExistsError, match="has a receiver already"):
        receiver("fifo", a_name)
    job = launch(roles.hold, rx)
    with pytest.raises(FileExistsError, match="has a receiver already"):
        receiver("fifo", a_name)
    job.kill()
    assert roles.eventually(lambda: not job.alive)
    receiver("fifo", a_name).close()


def test_a_name_that_a_sender_still_uses_is_not_taken_over(a_name):
    tx, rx = channel("fifo", name=a_name)
    tx.send(b"unread")
    rx.close()
    assert not path_of(a_name).is_socket()
    with receiver("fifo", a_name) as again:  # a receiver is welcome, somebody who wants the name alone is not
        with pytest.raises(FileExistsError):
            channel("fifo", name=a_name)
        tx.send(b"more")
        assert again.receive()
    with pytest.raises(FileExistsError, match="still sends"):
        channel("fifo", name=a_name)
    tx.close()


@pytest.mark.parametrize("line", range(1, 7))
def test_what_is_sent_while_a_name_is_refused_arrives_whole(a_name, line):
    """Before each line of the function that looks whether somebody sends."""
    tx, rx = channel("fifo", name=a_name)
    rx.close()
    passed = []

    def on_line(frame, event, argument):
        if event == "line":
            passed.append(frame.f_lineno)
            if len(passed) == line:
                tx.send(b"whole")
        return on_line

    sys.settrace(lambda frame, *_: on_line if frame.f_code is fifo._has_sender.__code__ else None)
    try:
        with pytest.raises(FileExistsError, match="still sends"):
            channel("fifo", name=a_name)
    finally:
        sys.settrace(None)
    assert passed
    with receiver("fifo", a_name) as again:
        if len(passed) < line:
            tx.send(b"whole")
        assert again.receive() == b"whole"
    tx.close()


@pytest.mark.parametrize("what", ["a file", "a link to a file", "a link to a FIFO", "a folder"])
def test_what_is_no_fifo_is_refused_and_left_alone(a_name, what, tmp_path):
    path, elsewhere = path_of(a_name), tmp_path / "elsewhere"
    if what == "a file":
        path.write_text("mine")
    elif what == "a link to a file":
        elsewhere.write_text("mine")
        path.symlink_to(elsewhere)
    elif what == "a link to a FIFO":
        os.mkfifo(elsewhere)
        path.symlink_to(elsewhere)
    else:
        path.mkdir()
    before = path.lstat()
    for ask in (channel, sender, receiver):
        with pytest.raises(FileExistsError, match="left alone"):
            ask("fifo", name=a_name)
    with pytest.raises(FileExistsError, match="left alone"):
        unlink("fifo", a_name)
    assert (path.lstat().st_ino, path.lstat().st_mtime) == (before.st_ino, before.st_mtime)
    path.rmdir() if what == "a folder" else path.unlink()


def test_messages_of_many_processes_stay_whole(a_name):
    rx = receiver("fifo", a_name, create=True)
    senders = [sender("fifo", a_name) for _ in range(4)]
    size = senders[0].max_message - 40
    jobs = [launch(roles.send_many, tx, b"%d" % n, size, 200) for n, tx in enumerate(senders)]
    received = list(rx)
    for job in jobs:
        job.wait()
    assert len(received) == 800
    assert all(map(roles.is_whole, received))
    rx.close()


def test_a_traced_fifo_takes_messages_of_the_same_size_as_a_bare_one():
    with Trace() as trace:
        tx, rx = channel("fifo", trace=trace)
        longest = os.urandom(tx.max_message)
        tx.send(longest)
        assert rx.receive() == longest
        tx.close()
        rx.close()
    assert fifo.ATOMIC + 4 + base.TAG_BYTES == select.PIPE_BUF


def test_any_program_may_write_into_it(a_name):
    """It is a file: what a shell writes arrives, if it begins with its length."""
    rx = receiver("fifo", a_name, create=True)
    subprocess.run(["sh", "-c", f"printf '\\005\\000\\000\\000hello' > {path_of(a_name)}"], check=True)
    assert list(rx) == [b"hello"]
    rx.close()


def test_a_folder_without_rights_is_the_kernels_own_error(a_name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = base.kind_dir("fifo")
    code = (
        "import os, sys; from labkit import channels; from labkit.channels import base, fifo\n"
        f"base.kind_dir = fifo.kind_dir = lambda kind: {str(folder)!r}\n"
        "os.getuid() or os.setuid(65534)\n"
        f"try: fifo.open_named({a_name!r})\n"
        "except PermissionError: sys.exit(0)\n"
        "sys.exit('it was made')"
    )
    folder.chmod(0o500)
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    folder.chmod(0o700)
