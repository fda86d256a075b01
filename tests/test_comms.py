"""A front end without a browser: what it says to a real kernel, what it hears, and what a trace has of that."""

import os
import signal
import stat
import subprocess
import sys

import pytest
import roles

from labkit import Trace
from labkit.comms import FrontEnd

TARGET = """
def opened(comm, message):
    comm.send({"welcome": message["content"]["data"]})
    @comm.on_msg
    def heard(message):
        comm.send({"echo": message["content"]["data"], "bytes": sum(len(each) for each in message["buffers"])})
get_ipython().kernel.comm_manager.register_target("lab", opened)
"""


@pytest.fixture(scope="module")
def traced():
    trace = Trace()
    with FrontEnd(trace) as front:
        front.run(TARGET)
        yield front, trace


pytestmark = pytest.mark.leaves("processes", "descriptors", "threads", reason="the kernel belongs to the whole module")


def test_a_message_on_a_comm_is_heard_and_so_is_what_the_kernel_sends_back(traced):
    front, _ = traced
    comm, heard = front.open("lab", {"hello": 1})
    assert [told.content["data"] for told in heard if told.kind == "comm_msg"] == [{"welcome": {"hello": 1}}]
    assert comm.send({"n": 2}) == [{"echo": {"n": 2}, "bytes": 0}]
    assert comm.send({}, [b"x" * 100_000]) == [{"echo": {}, "bytes": 100_000}]
    assert [told.kind for told in comm.close()] == ["status", "status"]
    assert comm.send({"n": 3}) == []


def test_a_comm_without_a_target_is_closed_by_the_kernel(traced):
    _, heard = traced[0].open("nobody")
    assert "comm_close" in [told.kind for told in heard]


def test_an_error_in_the_kernel_is_raised_here(traced):
    with pytest.raises(RuntimeError, match="ZeroDivisionError: division by zero"):
        traced[0].run("1 / 0")


def test_who_waits_too_short_is_told_so(traced, tmp_path):
    front, _ = traced
    code = f"import os, time\nwhile not os.path.exists({str(tmp_path / 'go')!r}):\n    time.sleep(0.01)"
    message = front.send("execute_request", {"code": code})
    with pytest.raises(TimeoutError, match="not done"):
        front.told(message, timeout=0.05)
    (tmp_path / "go").touch()
    front.told(message)
    front._client.get_shell_msg(timeout=60)


def test_the_trace_has_each_message_of_both_ways_once_and_in_order(traced):
    front, trace = traced
    comm, _ = front.open("lab")
    before = len(trace.messages())
    for n in range(5):
        comm.send({"n": n})
    rows = trace.messages()[before:]
    assert [trace.channels[each].label for each in rows["channel"]].count("shell") == 5
    iopub = [
        bytes(first).decode() for first in rows["first"][[trace.channels[c].label == "iopub" for c in rows["channel"]]]
    ]
    assert iopub == ["busy", "comm_msg", "idle"] * 5
    assert (rows["receive_ends"] >= rows["send_begins"]).all()
    assert {int(pid) for pid in rows["sender"]} == {trace.pid, front.pid}
    assert roles.eventually(lambda: trace.processes[front.pid].name == "kernel")


def test_closing_ends_the_kernel():
    trace = Trace()
    front = FrontEnd(trace)
    front.run("1")
    front.close()
    front.close()
    assert not front._manager.has_kernel
    assert trace.processes[front.pid].ended == "shut down"


PARENT = """
import time
from labkit.comms import FrontEnd
with FrontEnd() as front:
    print(front.pid, flush=True)
    time.sleep(100)
"""


def test_a_kill_9_leaves_neither_kernel_nor_socket(tmp_path):
    own = os.environ | {"TMPDIR": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path)}
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=own, cwd=tmp_path) as parent:
        kernel = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    assert roles.eventually(lambda: not os.path.exists(f"/proc/{kernel}")), "the kernel lives on"
    assert [path for path in tmp_path.rglob("*") if "kernel" in path.name or stat.S_ISSOCK(path.stat().st_mode)] == []
