"""The checks of notebook 12-isolation accept right solutions and refuse typical wrong ones with the reason."""

import concurrent.futures
import contextlib
import ctypes
import json
import os
import re
import time
from pathlib import Path

import filtered
import nbformat
import pytest
import sysv_ipc

from labkit import channel, launch, sender
from labkit.boundary import Boundary
from labkit.exercises.isolation import check_find_queue, check_prediction, check_talk
from labkit.isolation import own_namespaces, privileged, those_of
from labkit.replay import MAGIC, key, why_not

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "data" / "cells"
needs_namespaces = pytest.mark.skipif(bool(why_not()), reason=f"NOT TESTED: {why_not()}")

TABLE = Boundary.load(RUNS / "boundary.json", "it is a test")
RIGHT = {mechanism: TABLE.isolated_by(mechanism)[0] for mechanism in TABLE.mechanisms}


# --- the prediction -----------------------------------------------------------------------------------------


def test_the_right_prediction_is_accepted():
    assert check_prediction(RIGHT.get, TABLE).right


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({}, "12 to go"),
        ({"System V queue": "ipc"}, "11 to go"),
        ({**RIGHT, "POSIX memory": "ipc"}, "a file in /dev/shm"),
        ({**RIGHT, "Unix socket, abstract": "mount"}, "has no file"),
        ({**RIGHT, "signal to a pid": "user"}, "addressed by a pid"),
        ({**RIGHT, "TCP port": "network"}, "no kind of namespace"),
        ({**RIGHT, "FIFO": ["mount"]}, "no kind of namespace"),
    ],
)
def test_wrong_predictions_are_refused_with_the_reason(wrong, says):
    verdict = check_prediction(wrong.get, TABLE)
    assert not verdict.right and says in verdict.why


def test_a_prediction_that_raises_is_told_for_which_mechanism():
    verdict = check_prediction({"System V queue": "ipc"}.__getitem__, TABLE)
    assert not verdict.right and "for 'System V semaphores' your function raised KeyError" in verdict.why


def test_the_recorded_table_is_that_of_the_manual_pages_and_says_that_it_is_recorded():
    assert {kind for kinds in map(TABLE.isolated_by, TABLE.mechanisms) for kind in kinds} == {
        "ipc",
        "mount",
        "net",
        "pid",
    }
    assert "it is a test" in repr(TABLE) and "it is a test" in TABLE._repr_html_()


def test_a_table_is_saved_and_loaded(tmp_path):
    TABLE.save(tmp_path / "table.json")
    assert Boundary.load(tmp_path / "table.json") == TABLE


# --- where is the queue? ------------------------------------------------------------------------------------


def find(wanted):
    def is_there():
        try:
            sysv_ipc.MessageQueue(wanted)
        except sysv_ipc.ExistentialError:
            return False
        return True

    somebody = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            somebody[own_namespaces(pid)["ipc"]] = int(pid)
    for pid in somebody.values():
        try:
            if those_of(pid).run(is_there):
                return pid
        except (OSError, RuntimeError):
            pass
    return None


def not_written(wanted): ...


def looks_only_here(wanted):
    try:
        sysv_ipc.MessageQueue(wanted)
    except sysv_ipc.ExistentialError:
        return None
    return os.getpid()


def returns_itself(wanted):
    return os.getpid()


def returns_the_namespace(wanted):
    return own_namespaces(find(wanted))["ipc"]


def raises(wanted):
    raise PermissionError("not ours")


def one_per_namespace():
    """Pids, one for each IPC namespace but ours, oldest process first."""
    found = {}
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(OSError):
            found.setdefault(own_namespaces(pid)["ipc"], pid)
    del found[own_namespaces()["ipc"]]
    return list(found.values())


def asked(pid, f):
    try:
        return those_of(pid).run(f)
    except (OSError, RuntimeError):
        return None  # it has ended, or is not ours


def reads_the_kernels_list(wanted):
    def is_there():
        lines = Path("/proc/sysvipc/msg").read_text().splitlines()[1:]
        return any(int(line.split()[0]) == wanted for line in lines)

    return next(pid for pid in one_per_namespace() if asked(pid, is_there))


def asks_all_at_once(wanted):
    def is_there():
        with contextlib.suppress(sysv_ipc.ExistentialError):
            return sysv_ipc.MessageQueue(wanted).key == wanted

    pids = one_per_namespace()
    with concurrent.futures.ThreadPoolExecutor() as threads:
        return dict(zip(threads.map(asked, pids, [is_there] * len(pids)), pids, strict=True))[True]


def takes_the_newest(wanted):
    return one_per_namespace()[-1]


def takes_who_looked(wanted):
    def is_there():
        with contextlib.suppress(sysv_ipc.ExistentialError):
            sysv_ipc.MessageQueue(wanted)
            return os.getpid()

    return next(pid for other in one_per_namespace() if (pid := asked(other, is_there)))


def makes_it(wanted):
    sysv_ipc.MessageQueue(wanted, sysv_ipc.IPC_CREAT)
    return os.getpid()


def as_text(wanted):
    return str(find(wanted))


def finds_none(wanted):
    return next(pid for pid in one_per_namespace() if pid < 0)


@needs_namespaces
@pytest.mark.parametrize("right", [find, reads_the_kernels_list, asks_all_at_once])
def test_the_queue_is_found(right):
    verdict = check_find_queue(right)
    assert verdict.right, verdict


@needs_namespaces
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (not_written, "returns nothing"),
        (looks_only_here, "those of other processes"),
        (returns_itself, "in our own namespace"),
        (returns_the_namespace, "not of a process"),
        (raises, "PermissionError: not ours"),
        (takes_the_newest, "a namespace without that queue"),
        (takes_who_looked, "there is no process"),
        (makes_it, "IPC_CREAT makes what is not there"),
        (as_text, "a whole number"),
        (finds_none, "your function raised StopIteration"),
    ],
)
def test_who_does_not_find_it_is_told_why(wrong, says):
    verdict = check_find_queue(wrong)
    assert not verdict.right and says in verdict.why


def goes_in_and_stays(wanted):
    for pid in one_per_namespace():
        with open(f"/proc/{pid}/ns/ipc") as room:
            ctypes.CDLL(None).setns(room.fileno(), 0)
        with contextlib.suppress(sysv_ipc.ExistentialError):
            sysv_ipc.MessageQueue(wanted)
            return pid


@needs_namespaces
@pytest.mark.skipif(not privileged(), reason="NOT TESTED: only who is privileged can go in by itself")
def test_who_goes_in_and_stays_is_told_so_and_lives():
    verdict = launch(check_find_queue, goes_in_and_stays).wait()
    assert not verdict.right and "brought this kernel into another namespace" in verdict.why


# --- through the wall ---------------------------------------------------------------------------------------


def talk(speak, listen, a, b):
    tx, rx = channel("unix_seqpacket")
    return launch(speak, tx, inside=a), launch(listen, rx, inside=b)


def by_a_key(speak, listen, a, b):
    tx, rx = channel("sysv_mq")
    return launch(speak, tx, inside=a), launch(listen, rx, inside=b)


def by_a_name(speak, listen, a, b):
    def speaks():
        speak(sender("posix_mq", "exercise"))

    tx, rx = channel("pipe")
    tx.close()
    return launch(speaks, inside=a), launch(listen, rx, inside=b)


def outside(speak, listen, a, b):
    tx, rx = channel("pipe")
    return launch(speak, tx), launch(listen, rx)


def forgets_to_return(speak, listen, a, b):
    tx, rx = channel("pipe")
    for job in (launch(speak, tx, inside=a), launch(listen, rx, inside=b)):
        job.wait()


def who_listens_first(speak, listen, a, b):
    tx, rx = channel("pipe")
    return [b.launch(listen, rx), a.launch(speak, tx)]


def one_after_the_other(speak, listen, a, b):
    tx, rx = channel("posix_mq")
    speaking = a.launch(speak, tx)
    speaking.wait()
    yield speaking
    yield b.launch(listen, rx)


def late_to_speak(speak, listen, a, b):
    tx, rx = channel("shm_ring")
    listening = b.launch(listen, rx)
    time.sleep(4)
    return a.launch(speak, tx), listening


def from_threads(speak, listen, a, b):
    calls = zip((speak, listen), channel("unix_stream"), (a, b), strict=True)
    with concurrent.futures.ThreadPoolExecutor() as threads:
        return tuple(threads.map(lambda call: launch(*call[:2], inside=call[2]), calls))


def not_launched(speak, listen, a, b):
    tx, rx = channel("pipe")
    return speak(tx), listen(rx)


def their_results(speak, listen, a, b):
    return [job.wait() for job in talk(speak, listen, a, b)]


def only_one_job(speak, listen, a, b):
    return talk(speak, listen, a, b)[1]


def the_same_job_twice(speak, listen, a, b):
    return 2 * [talk(speak, listen, a, b)[0]]


def two_channels(speak, listen, a, b):
    (tx, _), (_, rx) = channel("pipe"), channel("pipe")
    return launch(speak, tx, inside=a), launch(listen, rx, inside=b)


def the_wrong_ends(speak, listen, a, b):
    tx, rx = channel("pipe")
    return launch(speak, rx, inside=a), launch(listen, tx, inside=b)


def the_other_way_round(speak, listen, a, b):
    return talk(speak, listen, b, a)


def does_not_wait(speak, listen, a, b):
    tx, rx = channel("pipe")
    launch(lambda rx: rx.receive(timeout=0), rx, inside=b).wait()
    return launch(speak, tx, inside=a)


@needs_namespaces
@pytest.mark.parametrize("right", [talk, who_listens_first, one_after_the_other, late_to_speak, from_threads])
def test_a_descriptor_passes_the_wall(right):
    verdict = check_talk(right)
    assert verdict.right, verdict


@needs_namespaces
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (by_a_key, "leads nowhere on the other"),
        (by_a_name, "leads nowhere on the other"),
        (outside, "did not run inside"),
        (forgets_to_return, "returns nothing yet"),
        (not_launched, "is no job: return the two jobs"),
        (their_results, "is no job: return the two jobs"),
        (only_one_job, "return the two jobs, that of speak"),
        (the_same_job_twice, "no job that you return gives back what listen() returns"),
        (two_channels, "make one channel here"),
        (the_wrong_ends, "tx to speak and rx to listen"),
        (the_other_way_round, "speak() did not run inside"),
        (does_not_wait, "it waited in vain"),
    ],
)
def test_who_does_not_pass_it_is_told_why(wrong, says):
    verdict = check_talk(wrong)
    assert not verdict.right and says in verdict.why


@needs_namespaces
def test_who_listens_in_vain_is_ended_with_the_check():
    made = []

    def raises(speak, listen, a, b):
        tx, rx = channel("pipe")
        made.extend([tx, launch(listen, rx)])
        raise NotImplementedError

    verdict = check_talk(raises)
    tx, listening = made
    assert not listening.alive
    assert verdict.why == "your function raised NotImplementedError"
    tx.close()


# --- where namespaces are refused ---------------------------------------------------------------------------


def test_every_cell_that_needs_namespaces_is_recorded():
    notebook = nbformat.read(ROOT / "notebooks" / "12-isolation.ipynb", 4)
    cells = [cell.source.partition("\n")[2] for cell in notebook.cells if cell.source.startswith(MAGIC)]
    recording = json.loads((RUNS / "12-isolation.json").read_text())
    assert cells and {key(cell) for cell in cells} == set(recording), "record it again: python data/record.py"


def run_refused(path):
    """Run the lab as in a container that refuses namespaces; returns failures, and what was shown."""
    from labkit.report import run

    filtered.refuse_namespaces()
    notebook = nbformat.read(path, 4)
    failures = run(path, notebook, timeout=60)
    return failures, json.dumps(notebook.cells)


@pytest.mark.skipif(filtered.UNSHARE < 0, reason="the filter does not know this processor")
def test_a_container_that_refuses_namespaces_sees_the_recorded_run_and_the_reason():
    failures, shown = launch(run_refused, ROOT / "notebooks" / "12-isolation.ipynb").wait(110)
    assert failures == []
    assert "a seccomp filter refuses it" in shown
    assert len(re.findall(r"\[recorded on another machine: ", shown)) >= 10
    assert "from inside" in shown and "Recorded on another machine" in shown
