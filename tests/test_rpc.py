"""Remote procedure calls: the same functions over JSON and gRPC, and an error that says whether a call was run."""

import contextlib
import errno
import http.client
import json
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from roles import eventually, interrupt_soon

from labkit import Closed, RemoteError, launch
from labkit.isolation import namespace, wire
from labkit.replay import why_not
from labkit.rpc import LARGEST, JsonHandler, JsonServer, JsonStub, connect, serve

PROTO = Path(__file__).parents[1] / "notebooks" / "weather.proto"
BOTH = pytest.mark.parametrize("proto", [None, PROTO], ids=["json", "grpc"])
needs_namespaces = pytest.mark.skipif(bool(why_not()), reason=f"NOT TESTED: {why_not()}")


def mean(day):
    return {"celsius": float(len(day)), "hours": 24}


def report(request, celsius):
    """What it does is said by its arguments."""
    if celsius < 0:
        raise ValueError(f"{celsius} is too cold")
    if request:
        with open(request, "a") as file:
            file.write("x")
    while celsius == 50 and not os.path.exists(f"{request} may end"):
        time.sleep(0.01)
    if celsius == 60:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"readings": 1}


WEATHER = {"mean": mean, "report": report}


@pytest.fixture(params=[None, PROTO], ids=["json", "grpc"])
def server(request):
    with serve(WEATHER, request.param) as server:
        yield server


@pytest.fixture
def stub(server):
    with server.stub(timeout=60) as stub:
        yield stub


def test_a_call_returns_what_the_function_returns(stub):
    assert stub.mean(day="2013-01-31") == {"celsius": 10.0, "hours": 24}


def test_text_of_any_language_travels(stub):
    assert stub.mean(day="東京 ☂") == {"celsius": 4.0, "hours": 24}


def test_an_exception_is_raised_here(stub):
    with pytest.raises(RemoteError, match=r"ValueError: -3.0 is too cold"):
        stub.report(request="", celsius=-3.0)
    assert stub.mean(day="1")["hours"] == 24  # and it goes on


def test_a_procedure_that_is_not_there_is_named_with_those_that_are(stub):
    with pytest.raises(RemoteError, match="no procedure called 'median'.*there are: mean, report"):
        stub.median(day="2013-01-31")


def test_wrong_names_of_values_are_an_error(stub):
    with pytest.raises((RemoteError, ValueError), match="date"):
        stub.mean(date="2013-01-31")


def test_a_deadline_ends_the_waiting_and_not_the_work(stub, tmp_path):
    assert stub.mean(day="1")["hours"] == 24
    begun = (tmp_path / "done").exists
    while not begun():  # on a busy machine the time may be over before the work begins
        with pytest.raises(TimeoutError, match=r"within 0.5 s. Whether it was run is unknown"):
            stub.report(request=str(tmp_path / "done"), celsius=50.0, timeout=0.5)
        eventually(begun, 1)
    (tmp_path / "done may end").touch()
    assert stub.mean(day="1", timeout=60)["hours"] == 24  # the late answer is not taken for this one
    assert eventually(lambda: (tmp_path / "done").read_text().startswith("x"))


def test_an_answer_that_comes_by_drops_keeps_to_the_deadline():
    def drips(listener):
        connection, _ = listener.accept()
        with contextlib.suppress(OSError):  # until the caller hangs up
            while True:
                connection.sendall(b"H")
                time.sleep(0.02)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=drips, args=(listener,))
        server.start()
        with connect(*listener.getsockname()) as stub, pytest.raises(TimeoutError, match=r"within 0\.3 s"):
            stub.mean(day="1", timeout=0.3)
        server.join()


def test_a_server_killed_in_mid_call_is_said_to_have_ended(stub, tmp_path):
    with pytest.raises(Closed, match="ended before it answered. Whether it was run is unknown"):
        stub.report(request=str(tmp_path / "done"), celsius=60.0)
    assert (tmp_path / "done").read_text() == "x"


def test_no_server_is_connection_refused_and_the_call_was_not_run(server, stub):
    assert stub.mean(day="1")["hours"] == 24
    server.close()
    if not isinstance(stub, JsonStub):  # gRPC's own thread may not have heard of it: then nobody knows what was run
        with pytest.raises((ConnectionRefusedError, Closed)):
            stub.mean(day="1")
    with pytest.raises(ConnectionRefusedError, match="mean was not run: nobody listens there"):
        stub.mean(day="1")


def test_a_restarted_server_has_the_same_port_and_stubs_find_it_at_once(server, stub):
    assert stub.mean(day="1")["hours"] == 24
    port = server.port
    server.job.kill()
    server.restart()
    assert server.port == port
    assert stub.mean(day="1")["hours"] == 24


@BOTH
def test_at_least_once_counts_twice_what_a_killed_server_had_done(proto, tmp_path):
    done = tmp_path / "done"

    def once_killed(request, celsius):
        done.open("a").write("x")
        if len(done.read_text()) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"readings": len(done.read_text())}

    with serve({"mean": mean, "report": once_killed}, proto) as server, server.stub(60) as stub:
        with pytest.raises(Closed):
            stub.report(request="1", celsius=1.0)
        server.restart()
        assert stub.report(request="1", celsius=1.0) == {"readings": 2}


@BOTH
def test_a_server_listens_on_this_machine_only(proto):
    with serve(WEATHER, proto) as server:
        assert server.host == "127.0.0.1"
        sockets = [path.read_text() for path in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if path.exists()]
        listening = re.findall(rf": (\w+):{server.port:04X} 0+:0000 0A", "".join(sockets))
        # gRPC listens through an IPv6 socket, at the same address: ::ffff:127.0.0.1, ipv6(7)
        assert listening and {address.removeprefix("0000000000000000FFFF0000") for address in listening} == {"0100007F"}


@BOTH
def test_a_port_in_use_is_refused_and_says_what_to_do(proto):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match="another server has this port") as caught:
            serve(WEATHER, proto, port=port)
        assert caught.value.errno == errno.EADDRINUSE


@BOTH
def test_two_servers_do_not_share_a_port(proto):
    with serve(WEATHER, proto) as server, pytest.raises(OSError, match="another server has this port"):
        serve(WEATHER, proto, port=server.port)


@BOTH
def test_an_address_that_is_not_ours_is_refused(proto):
    with pytest.raises(OSError, match="no such address") as caught:
        serve(WEATHER, proto, host="192.0.2.1")
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_a_proto_file_and_functions_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="declares mean, report; the functions are mean"):
        serve({"mean": mean}, PROTO)


def test_a_proto_file_that_is_not_there_or_is_wrong_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such .proto file"):
        serve(WEATHER, tmp_path / "none.proto")
    (tmp_path / "wrong.proto").write_text("this is no proto")
    with pytest.raises(ValueError, match=r"wrong.proto cannot be compiled"):
        serve(WEATHER, tmp_path / "wrong.proto")


def test_nothing_is_written_beside_the_proto_file():
    before = set(PROTO.parent.iterdir())
    with serve(WEATHER, PROTO) as server, server.stub() as stub:
        stub.mean(day="1")
    assert {path.name for path in set(PROTO.parent.iterdir()) - before} <= {"__pycache__"}


@pytest.mark.parametrize(
    ("body", "says"),
    [(b"{", "JSONDecodeError"), (b"[1]", "TypeError"), (b"", "JSONDecodeError"), (b'{"day": 1}', "TypeError")],
)
def test_a_request_that_is_no_json_object_is_answered_with_an_error(body, says):
    with serve(WEATHER) as server, contextlib.closing(http.client.HTTPConnection(server.host, server.port)) as raw:
        raw.request("POST", "/mean", body)
        response = raw.getresponse()
        assert response.status == 500
        assert says in json.loads(response.read())["error"]


def test_a_request_that_would_be_too_large_is_refused_before_it_is_read():
    with serve(WEATHER) as server, socket.create_connection((server.host, server.port)) as raw:
        raw.sendall(b"POST /mean HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (LARGEST + 1))
        assert b"a request has at most" in raw.makefile("rb").read()  # and then it hangs up


def raw(server, request):
    """What a server of JSON answers to these bytes, until it hangs up."""
    with socket.create_connection((server.host, server.port), 60) as peer:
        peer.sendall(request)
        return peer.makefile("rb").read()


BODY = b'\r\nContent-Length: 12\r\n\r\n{"day": "1"}'


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (b"Content-Length: -1\r\n\r\n", b"411"),  # which read(2) would take for: all that comes
        (b"Content-Length: 1e3\r\n\r\nPOST /mean HTTP/1.1" + BODY, b"411"),
        (b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", b"413"),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\nPOST /mean HTTP/1.1" + BODY, b"411"),
        (b"Host: x\r\n\r\nPOST /mean HTTP/1.1" + BODY, b"411"),
    ],
)
def test_a_request_whose_end_is_not_known_is_refused_and_what_follows_is_not_taken_for_another(request_, says):
    with serve(WEATHER) as server:
        answer = raw(server, b"POST /mean HTTP/1.1\r\n" + request_)
    assert answer.startswith(b"HTTP/1.1 " + says) and answer.count(b"HTTP/1.1") == 1


def test_a_web_page_cannot_have_a_browser_call(tmp_path):
    """It may send plain text to any address; and if its own name leads to 127.0.0.1 by now, anything."""
    for headers in (b"Content-Type: text/plain\r\nOrigin: https://evil.example", b"Origin: null"):
        body = json.dumps({"request": str(tmp_path / "done"), "celsius": 1.0}).encode()
        request = b"POST /report HTTP/1.1\r\nContent-Length: %d\r\n%s\r\n\r\n%s" % (len(body), headers, body)
        with serve(WEATHER) as server:
            answer = raw(server, request)
        assert answer.startswith(b"HTTP/1.1 403") and b"web pages may not" in answer
    assert not (tmp_path / "done").exists()


def test_who_sends_half_a_request_is_hung_up_on_and_nothing_was_run(tmp_path):
    handler = type("Impatient", (JsonHandler,), {"procedures": WEATHER, "timeout": 0.1})
    body = json.dumps({"request": str(tmp_path / "done"), "celsius": 1.0}).encode()
    with JsonServer(("127.0.0.1", 0), handler) as server:
        server.host, server.port = server.server_address
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # 0.1 s may be over before we send
                request = b"POST /report HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body) + 1, body)
                assert raw(server, request) == b""
        finally:
            server.shutdown()
            thread.join()
    assert not (tmp_path / "done").exists()


def nothing():
    return None


def a_set():
    return {"days": {1, 2}}


def größe():
    return {"meters": 2}


def leaves():
    raise SystemExit("I go")


class Wordless(Exception):
    def __str__(self):
        raise ValueError


def wordless():
    raise Wordless


def test_what_went_wrong_in_a_procedure_is_told_and_not_taken_for_the_server_s_end():
    with serve({f.__name__: f for f in (nothing, a_set, größe, leaves, wordless)}) as server, server.stub(60) as stub:
        for f, says in (
            (nothing, "nothing returned a NoneType, and a procedure returns a dictionary"),
            (a_set, "set is not JSON serializable"),
            (leaves, "SystemExit: I go"),
            (wordless, "Wordless: <exception"),
        ):
            with pytest.raises(RemoteError, match=says):
                getattr(stub, f.__name__)()
        assert stub.größe() == {"meters": 2}, "names may be of any language"


def test_a_request_that_is_too_large_is_not_sent(tmp_path):
    with serve(WEATHER) as server, server.stub(60) as stub:
        with pytest.raises(ValueError, match=r"report was not run: its values take 1,048,6\d\d bytes, of at most"):
            stub.report(request="x" * LARGEST, celsius=1.0)
        assert stub.mean(day="1")["hours"] == 24


def test_after_ctrl_c_the_next_call_gets_its_own_answer(tmp_path):
    with serve(WEATHER) as server, server.stub(60) as stub:
        stub.mean(day="1")
        pressed = interrupt_soon(0.1)
        with pytest.raises(KeyboardInterrupt):
            pressed.start()
            stub.report(request=str(tmp_path / "done"), celsius=50.0)
        pressed.join()
        (tmp_path / "done may end").touch()
        assert stub.mean(day="1") == {"celsius": 1.0, "hours": 24}


@pytest.mark.parametrize("timeout", [0, -1])
def test_a_deadline_that_has_passed_is_a_timeout(stub, timeout):
    with pytest.raises(TimeoutError, match="within"):
        stub.mean(day="1", timeout=timeout)


@BOTH
def test_what_is_no_port_is_refused(proto):
    for port in (-1, 65536):
        with pytest.raises(ValueError, match=f"a port is a number from 1 to 65535, or 0 .*, not {port}"):
            serve(WEATHER, proto, port=port)


@BOTH
def test_a_name_that_nobody_knows_is_said_to_lead_nowhere(proto):
    with connect("no.such.host.invalid", 80, proto) as stub, pytest.raises(OSError, match="mean was not run: "):
        stub.mean(day="1", timeout=60)


def test_a_proto_file_without_a_service_is_refused(tmp_path):
    (tmp_path / "empty.proto").write_text('syntax = "proto3"; message A {}')
    with pytest.raises(ValueError, match="must declare one service, not 0"):
        serve(WEATHER, tmp_path / "empty.proto")


def test_a_server_that_is_no_server_of_ours_is_a_broken_call():
    """Somebody else listens there, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        thread = threading.Thread(target=lambda: other.accept()[0].close())
        thread.start()
        with connect(*other.getsockname()) as stub, pytest.raises(Closed):
            stub.mean(day="1", timeout=60)
        thread.join()


def test_a_server_of_something_else_is_told_from_ours():
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answers():
            with other.accept()[0] as peer:
                peer.recv(4096)
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

        thread = threading.Thread(target=answers)
        thread.start()
        with (
            connect(*other.getsockname()) as stub,
            pytest.raises(RemoteError, match=r"no server of labkit.rpc: b'hello'"),
        ):
            stub.mean(day="1", timeout=60)
        thread.join()


def ask(host, port, proto):
    with connect(host, port, proto) as stub:
        return stub.mean(day="2013-01-31")


@needs_namespaces
@BOTH
def test_two_network_namespaces_talk(proto):
    with namespace("net") as here, namespace("net", inside=here) as there:
        assert wire(here, there) == ("10.77.0.1", "10.77.0.2")
        with serve(WEATHER, proto, host="10.77.0.2", inside=there) as server:
            assert here.run(ask, server.host, server.port, proto) == {"celsius": 10.0, "hours": 24}
            with pytest.raises((OSError, RemoteError), match="unreachable|nobody listens|within|ended"):
                launch(ask, server.host, server.port, None).wait(60)  # from outside nothing leads there
    assert not any("10.77.0" in line for line in Path("/proc/net/fib_trie").read_text().splitlines())


@needs_namespaces
@BOTH
def test_a_host_to_which_nothing_leads_is_unreachable_and_the_call_was_not_run(proto):
    with namespace("net") as alone, pytest.raises(RemoteError, match="mean was not run: Network is unreachable"):
        alone.run(ask, "10.77.0.2", 4711, proto)


@needs_namespaces
def test_a_second_cable_is_refused():
    with namespace("net") as here, namespace("net", inside=here) as there:
        wire(here, there)
        with pytest.raises(RemoteError, match="veth: File exists"):
            wire(here, there)
