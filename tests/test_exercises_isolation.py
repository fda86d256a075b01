"""The checks of notebook 12-isolation accept right solutions and refuse typical wrong ones with the reason."""

import contextlib
import json
import os
import re
from pathlib import Path

import filtered
import nbformat
import pytest
import sysv_ipc

from labkit import channel, launch, sender
from labkit.boundary import Boundary
from labkit.exercises.isolation import check_find_queue, check_prediction, check_talk
from labkit.isolation import own_namespaces, those_of
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
    ],
)
def test_wrong_predictions_are_refused_with_the_reason(wrong, says):
    verdict = check_prediction(wrong.get, TABLE)
    assert not verdict.right and says in verdict.why


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


@needs_namespaces
def test_the_queue_is_found():
    assert check_find_queue(find).right


@needs_namespaces
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (not_written, "returns nothing"),
        (looks_only_here, "those of other processes"),
        (returns_itself, "in our own namespace"),
        (returns_the_namespace, "not of a process"),
        (raises, "PermissionError: not ours"),
    ],
)
def test_who_does_not_find_it_is_told_why(wrong, says):
    verdict = check_find_queue(wrong)
    assert not verdict.right and says in verdict.why


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


@needs_namespaces
def test_a_descriptor_passes_the_wall():
    assert check_talk(talk).right


@needs_namespaces
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (by_a_key, "leads nowhere on the other"),
        (by_a_name, "leads nowhere on the other"),
        (outside, "did not run inside"),
        (forgets_to_return, "returns nothing yet"),
    ],
)
def test_who_does_not_pass_it_is_told_why(wrong, says):
    verdict = check_talk(wrong)
    assert not verdict.right and says in verdict.why


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
