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

from labkit import Closed, RemoteError, launch
from labkit.isolation import namespace, wire
from labkit.replay import why_not
from labkit.rpc import LARGEST, connect, serve

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
    if celsius == 50:
        time.sleep(0.4)
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
    with server.stub(timeout=20) as stub:
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
    with pytest.raises(TimeoutError, match=r"within 0.1 s. Whether it was run is unknown"):
        stub.report(request=str(tmp_path / "done"), celsius=50.0, timeout=0.1)
    assert stub.mean(day="1", timeout=20)["hours"] == 24  # the late answer is not taken for this one
    assert (tmp_path / "done").read_text() == "x"


def test_a_server_killed_in_mid_call_is_said_to_have_ended(stub, tmp_path):
    with pytest.raises(Closed, match="ended before it answered. Whether it was run is unknown"):
        stub.report(request=str(tmp_path / "done"), celsius=60.0)
    assert (tmp_path / "done").read_text() == "x"


def test_no_server_is_connection_refused_and_the_call_was_not_run(server, stub):
    assert stub.mean(day="1")["hours"] == 24
    server.close()
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

    with serve({"mean": mean, "report": once_killed}, proto) as server, server.stub(20) as stub:
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


def test_a_server_that_is_no_server_of_ours_is_a_broken_call():
    """Somebody else listens there, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        thread = threading.Thread(target=lambda: other.accept()[0].close())
        thread.start()
        with connect(*other.getsockname()) as stub, pytest.raises(Closed):
            stub.mean(day="1", timeout=5)
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
            stub.mean(day="1", timeout=5)
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
                launch(ask, server.host, server.port, None).wait(20)  # from outside nothing leads there
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
