"""A tap between a front end and its kernel passes everything on unchanged, and writes it down."""

import asyncio
import os
import signal
import subprocess
import threading

import psutil
import pytest
import zmq
from jupyter_client import KernelManager
from jupyter_core.utils import run_sync

from labkit import Closed, Trace
from labkit.webserver import JupyterServer
from labkit.wiretap import DELIMITER, Wiretap


@pytest.fixture(scope="module", autouse=True)
def event_loop_of_jupyter():
    """Which jupyter_client makes when it first waits for something, and keeps."""
    run_sync(asyncio.sleep)(0)


@pytest.fixture
def manager():
    manager = KernelManager()
    manager.start_kernel(stderr=subprocess.DEVNULL)
    yield manager
    manager.shutdown_kernel(now=True)
    manager.cleanup_resources()


@pytest.fixture
def tap(manager):
    with Trace() as trace, Wiretap(manager, trace) as tap:
        tap.trace = trace
        yield tap


@pytest.fixture
def client(tap):
    client = tap.client()
    tap.forget()
    yield client
    client.stop_channels()


def types(tap, *sockets):
    return [heard.type for heard in tap.heard(*sockets)]


def test_a_cell_is_heard_from_its_request_to_idle(tap, client):
    request = client.execute("print('hello'); 6 * 7")
    tap.settle()
    assert types(tap, "iopub") == ["status", "execute_input", "stream", "execute_result", "status"]
    tap.wait_for("execute_reply")
    assert sorted(types(tap, "shell")) == ["execute_reply", "execute_request"]
    assert {heard.parent["msg_id"] for heard in tap.heard() if not heard.to_kernel} == {request}
    assert all(heard.sent_ns <= heard.time_ns for heard in tap.heard())
    table = repr(tap.heard())
    assert "front end → kernel" in table and '{"execution_state": "idle"}' in table


def test_the_front_end_gets_what_the_kernel_sent(tap, client):
    reply = client.execute_interactive("1 + 1", allow_stdin=False, timeout=60, output_hook=lambda _: None)
    assert reply["content"]["status"] == "ok"  # jupyter_client has verified its signature with the kernel's key
    passed = tap.wait_for("execute_reply")
    assert passed.frames[0] == DELIMITER and passed.header["msg_id"] == reply["header"]["msg_id"]


def test_questions_of_the_kernel_reach_who_asked_and_answers_come_back(tap, client):
    client.execute("print('hello', input('who? '))", allow_stdin=True)
    assert tap.wait_for("input_request").content["prompt"] == "who? "
    client.get_stdin_msg(timeout=60)
    client.input("a test")
    assert tap.wait_for("stream").content["text"] == "hello a test\n"


def test_an_interruption_overtakes_a_long_cell(tap, client):
    client.execute("import time; print('it runs', flush=True); time.sleep(600)")
    tap.wait_for("stream")
    client.control_channel.send(client.session.msg("interrupt_request", {}))
    assert tap.wait_for("error").content["ename"] == "KeyboardInterrupt"
    tap.wait_for("interrupt_reply")


def test_heartbeats_pass_and_are_not_told_unless_asked_for(tap):
    with zmq.Context() as context, context.socket(zmq.REQ) as hb:
        hb.linger = 0
        hb.connect(f"tcp://127.0.0.1:{tap.connection_info['hb_port']}")
        hb.send(b"are you there?")
        assert hb.poll(60_000) and hb.recv() == b"are you there?"
    assert types(tap) == []
    assert types(tap, "hb") == ["heartbeat", "heartbeat"]


def test_two_front_ends_hear_all_output_and_their_own_replies(tap, client):
    other = tap.client()
    tap.forget()
    request = client.execute("'for all'")
    tap.settle()
    for one in (client, other):
        heard = []
        while not heard or heard[-1]["content"].get("execution_state") != "idle":
            message = one.get_iopub_msg(timeout=60)
            heard += [message] if message["parent_header"].get("msg_id") == request else []
        assert "execute_result" in [message["msg_type"] for message in heard]
    assert client.get_shell_msg(timeout=60)["parent_header"]["msg_id"] == request
    other.stop_channels()


def test_a_trace_has_the_messages_with_their_types_and_both_processes(tap, client):
    client.execute("6 * 7")
    tap.settle()
    messages = tap.trace.messages()
    assert b"execute_request" in messages["first"] and b"execute_result" in messages["first"]
    assert {"front end", "kernel"} == {process.name for process in tap.trace.processes.values()}
    assert {"shell → kernel", "iopub → front end"} <= {channel.label for channel in tap.trace.channels}
    assert (messages["receive_ends"] >= messages["send_begins"]).all()


def test_a_server_stands_between_a_page_and_the_kernel(tap, manager):
    with JupyterServer(tap) as server:
        assert server.ask("/api/kernels")[0]["name"] == "tapped"
        with server.connect() as page:
            came = page.execute("print('hello')\n6 * 7")
            assert "".join(m["content"]["text"] for m in came if m["msg_type"] == "stream") == "hello\n"
            assert [m["content"]["data"]["text/plain"] for m in came if m["msg_type"] == "execute_result"] == ["42"]
            with pytest.raises(TimeoutError, match=r"not done within 0\.5 s"):
                page.execute("import time; time.sleep(600)", timeout=0.5)
        here, kernel, between = tap.trace.pid, manager.provisioner.pid, server.pid
        listens = [c for c in psutil.Process(between).net_connections() if c.status == psutil.CONN_LISTEN]
        assert {c.laddr.ip for c in listens} == {"127.0.0.1"}
    names = {pid: process.name for pid, process in tap.trace.processes.items()}
    assert (names[between], names[kernel]) == ("server", "kernel")
    messages = tap.trace.messages()
    by = {channel.number: channel.label for channel in tap.trace.channels}
    ways = {(by[m["channel"]], int(m["sender"]), int(m["receiver"])) for m in messages}
    assert {
        ("websocket → server", here, between),
        ("shell → kernel", between, kernel),
        ("iopub → server", kernel, between),
        ("websocket → front end", between, here),
    } <= ways
    assert (messages["receive_ends"] >= messages["send_begins"]).all()


COMM = "from ipykernel.comm import Comm; Comm(target_name='lab', data={'n': 7}, buffers=[b'abc\\xff', b''])"


def test_a_page_takes_messages_with_buffers_and_learns_that_the_server_has_ended(tap):
    with JupyterServer(tap) as server, server.connect() as page:
        came = page.execute(COMM)
        assert [m["content"]["data"] for m in came if m["msg_type"] == "comm_open"] == [{"n": 7}]
        killed = threading.Timer(0.5, os.kill, (server.pid, signal.SIGKILL))
        killed.start()
        for _ in range(2):
            with pytest.raises(Closed, match="the server has ended"):
                page.execute("import time; time.sleep(600)")
        killed.join()


def test_a_server_that_cannot_start_says_why(tap, monkeypatch):
    monkeypatch.setattr("labkit.webserver.sys.executable", "/bin/false")
    with pytest.raises(RuntimeError, match="has ended with status 1"):
        JupyterServer(tap)


def test_what_is_no_message_does_not_end_the_tap(tap, client):
    """Its ports are open: whoever is on this machine can send anything."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        stranger.connect(f"tcp://127.0.0.1:{tap.connection_info['shell_port']}")
        for parts in ([b"x"], [b"", b"{", b"{}", b"{}", b"{}"], [b"", b"[]", b"1", b"{}", b"null"], [b"", b"\xff"]):
            stranger.send_multipart([DELIMITER, *parts])
        client.execute("6 * 7")
        assert tap.wait_for("execute_result").content["data"]["text/plain"] == "42"


def test_it_listens_on_this_machine_only(tap):
    assert tap.connection_info["ip"] == "127.0.0.1"


def test_what_does_not_come_is_a_timeout(tap):
    with pytest.raises(TimeoutError, match=r"no shutdown_reply has passed within 0.1 s"):
        tap.wait_for("shutdown_reply", 0.1)
    tap.forget()
    with pytest.raises(TimeoutError, match="not idle again"):
        tap.settle(0.1)


def test_a_kernel_that_does_not_run_cannot_be_tapped():
    with pytest.raises(ValueError, match="a kernel that runs"):
        Wiretap(KernelManager())


def test_closing_twice_is_closing_once(manager):
    tap = Wiretap(manager)
    tap.close()
    tap.close()
