"""Remote procedure calls: a server process, and stubs whose methods run there. JSON over HTTP, or gRPC.

    with serve({"mean": mean, "report": report}) as server:                      # JSON over HTTP
    with serve({"mean": mean, "report": report}, "weather.proto") as server:     # the same functions over gRPC
        with server.stub() as stub:
            stub.mean(day="2013-01-31", timeout=0.5)                # {"celsius": ..., "hours": 24}

    caller                      stub                       server process
    stub.mean(day="...")  -->   names and values as bytes  -->  bytes as names and values, mean(day="...")
    a dict, or an error   <--   bytes as a dict            <--  a dict as bytes

A procedure is a function that takes named values and returns a dictionary. Whether it was run is known only when it has
answered. Of a call without an answer nobody can tell whether it was never begun, is still at work, or is done:

    TimeoutError             no answer until the deadline
    Closed                   the server ended, or was killed, before it answered
    ConnectionRefusedError   nobody listens there: it was not run. Another OSError: nothing leads there, not run either
    RemoteError              it was run, and raised

A server listens at 127.0.0.1, where only this machine can call it, unless another address is asked for. Both ways
carry plain values, never pickled objects: who can call a server that unpickles can run whatever he likes in it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import http.client
import http.server
import importlib
import json
import os
import re
import select
import socket
import socketserver
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, unquote

from labkit.channels import channel
from labkit.channels.base import DEFAULT_TIMEOUT, Closed
from labkit.launch import RemoteError, launch

Procedure = Callable[..., Mapping[str, Any]]

LARGEST = 1 << 20
"""Bytes in the largest request of JSON, and in the largest answer."""
START_TIMEOUT = 60.0
IDLE_TIMEOUT = 60.0
"""Seconds after which a server of JSON hangs up on who says nothing, also in the middle of a request."""


def serve(
    procedures: Mapping[str, Procedure],
    proto: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    inside: Any = None,
) -> Server:
    """A process in which these functions can be called by their names; returns when it listens.

    Args:
        procedures: functions by their names; they take named values and return a dictionary of values.
        proto: the .proto file whose service they are, for gRPC; without it JSON over HTTP.
        host: the address of this machine at which it listens.
        port: the port, 0 for one that is free.
        inside: namespaces in which it runs: labkit.isolation.namespace.

    Raises:
        OSError: EADDRINUSE, another server has this port; EADDRNOTAVAIL, this machine has no such address.
        ValueError: the .proto file has no such procedure, or cannot be compiled; or it is no port.
        FileNotFoundError: there is no such .proto file.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"a port is a number from 1 to 65535, or 0 for one that is free, not {port}")
    return Server(dict(procedures), Path(proto).resolve() if proto else None, host, port, inside)


class Server:
    """A process that is called. Closing ends it, as does the end of who made it.

    Attributes:
        host, port: where it listens.
        job: its process: server.job.kill(), server.job.pid.
    """

    def __init__(self, procedures: dict[str, Procedure], proto: Path | None, host: str, port: int, inside: Any):
        self.host, self.port, self.proto = host, port, proto
        self._procedures, self._inside = procedures, inside
        if proto:
            _must_have(compiled(proto), procedures)
        self.start()

    def start(self) -> None:
        """Start it, again perhaps: at the same port as before."""
        run = _serve_grpc if self.proto else _serve_json
        tx, rx = channel("pipe")
        with rx:
            arguments = self._procedures, self.proto, self.host, self.port, tx
            self.job = launch(run, *arguments, name="server", inside=self._inside)
            try:
                said = json.loads(rx.receive(START_TIMEOUT))
            except Closed:
                self.job.wait()  # raises what it raised
                raise
            except BaseException:  # too late, or Ctrl-C
                self.close()
                raise
        if "port" not in said:
            self.close()
            raise OSError(said["errno"], _why_not(said["errno"], said["text"]), f"{self.host}:{self.port}")
        self.port = said["port"]

    def restart(self) -> None:
        """End it, if it still runs, and start it again at the same port."""
        self.close()
        self.start()

    def stub(self, timeout: float = DEFAULT_TIMEOUT) -> Stub:
        """Something to call it with: see `connect`."""
        return connect(self.host, self.port, self.proto, timeout)

    def close(self) -> None:
        """End it. Idempotent."""
        self.job.kill()
        with contextlib.suppress(RemoteError):
            self.job.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        how = f"gRPC, {self.proto.name}" if self.proto else "JSON over HTTP"
        return f"<server at {self.host}:{self.port}, {how}, {self.job.status}>"


def _why_not(number: int, text: str) -> str:
    if number == errno.EADDRINUSE:
        return "another server has this port: take another one, or port=0 for any that is free"
    if number == errno.EADDRNOTAVAIL:
        return "this machine has no such address: 127.0.0.1 is for callers on this machine"
    if number == errno.EACCES:
        return "ports below 1024 are for root: take a higher one, or port=0 for any that is free"
    return f"{text}: give an IPv4 address of this machine, 127.0.0.1 for callers on this machine"


def connect(host: str, port: int, proto: str | Path | None = None, timeout: float = DEFAULT_TIMEOUT) -> Stub:
    """A stub of the server that listens there: its methods are the procedures, called with named values.

    Args:
        host, port: where it listens.
        proto: the .proto file, for a server of gRPC.
        timeout: seconds in which a call must be answered, unless it says otherwise: stub.mean(day=..., timeout=0.5).
    """
    return GrpcStub(host, port, Path(proto), timeout) if proto else JsonStub(host, port, timeout)


class Stub:
    """Calls procedures by their names. It is for one thread at a time."""

    def __init__(self, host: str, port: int, timeout: float):
        self.address, self.timeout = f"{host}:{port}", timeout

    def call(self, name: str, values: dict[str, Any], timeout: float) -> dict[str, Any]:
        """The answer of a procedure.

        Raises:
            TimeoutError: no answer came within `timeout` seconds. It may have been run, or may be yet.
            Closed: the server ended before it answered. It may have been run.
            ConnectionRefusedError: nobody listens there. It was not run.
            OSError: ENETUNREACH, EHOSTUNREACH, nothing leads there. It was not run.
            RemoteError: it raised, or there is no such procedure.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Give up the connection."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Callable[..., dict[str, Any]]:
        if name.startswith("_"):
            raise AttributeError(name)

        def procedure(*, timeout: float | None = None, **values: Any) -> dict[str, Any]:
            patience = self.timeout if timeout is None else timeout
            if patience <= 0:  # gRPC would take 0 for no deadline
                raise self._late(name, patience)
            return self.call(name, values, patience)

        return procedure

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _late(self, name: str, timeout: float) -> TimeoutError:
        return TimeoutError(
            f"{name}: no answer from {self.address} within {timeout:g} s. Whether it was run is unknown: try again "
            "only what may be run twice"
        )

    def _broken(self, name: str) -> Closed:
        return Closed(
            f"{name}: the server at {self.address} ended before it answered. Whether it was run is unknown: try again "
            "only what may be run twice"
        )

    def _unreached(self, name: str, number: int, words: str) -> OSError:
        """ConnectionRefusedError, or another that belongs to the number."""
        if number == errno.ECONNREFUSED:
            why = "nobody listens there. Is the server started, and is that its port?"
        else:
            why = f"{words}. Is that its address, and does a route lead there?"
        return OSError(number, f"{name} was not run: {why}", self.address)


# --- JSON over HTTP -------------------------------------------------------------------------------------------


class _Timed(socket.socket):
    """A connection whose answer is there by the deadline: the timeout of a socket begins anew with each piece of it."""

    deadline: float

    def recv_into(self, *into: Any) -> int:
        self.settimeout(max(self.deadline - time.monotonic(), 1e-6))  # 0 would not wait, and say so in other words
        return super().recv_into(*into)


class JsonStub(Stub):
    """A call is POST /name with the values as a JSON object; the answer is one, too."""

    def __init__(self, host: str, port: int, timeout: float):
        super().__init__(host, port, timeout)
        self._connection = http.client.HTTPConnection(host, port)

    def call(self, name: str, values: dict[str, Any], timeout: float) -> dict[str, Any]:
        body = json.dumps(values).encode()
        if len(body) > LARGEST:
            raise ValueError(f"{name} was not run: its values take {len(body):,} bytes, of at most {LARGEST:,}")
        connection: Any = self._connection
        deadline = time.monotonic() + timeout
        if connection.sock and select.select([connection.sock], [], [], 0)[0]:
            connection.close()  # nobody was to speak: the server has hung up since
        if not connection.sock:
            self._begin(name, timeout)
        with contextlib.ExitStack() as undo:
            undo.callback(connection.close)  # or the next call would get the answer of one that Ctrl-C has ended
            try:
                connection.sock.settimeout(timeout)
                connection.sock.deadline = deadline
                connection.request("POST", f"/{quote(name)}", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                answer = response.read(LARGEST + 1)
            except TimeoutError:
                raise self._late(name, timeout) from None
            except (ConnectionError, http.client.HTTPException):
                raise self._broken(name) from None
            if len(answer) > LARGEST:
                raise OSError(errno.EMSGSIZE, f"the answer of {name} is larger than {LARGEST:,} bytes")
            undo.pop_all()
        return self._result(name, response.status, answer)

    def _result(self, name: str, status: int, answer: bytes) -> dict[str, Any]:
        with contextlib.suppress(ValueError, TypeError, LookupError):
            result = json.loads(answer)
            if status == http.HTTPStatus.OK and isinstance(result, dict):
                return result
            raise RemoteError(f"{name} at {self.address}: {result['error']}")
        raise RemoteError(f"{self.address} answers {name}, but is no server of labkit.rpc: {answer[:40]!r}")

    def _begin(self, name: str, timeout: float) -> None:
        self._connection.timeout = timeout
        try:
            self._connection.connect()
            self._connection.sock = _Timed(fileno=self._connection.sock.detach())
        except TimeoutError:
            raise self._late(name, timeout) from None
        except OSError as reason:
            number = reason.errno or errno.EHOSTUNREACH
            raise self._unreached(name, number, reason.strerror or str(reason)) from None

    def close(self) -> None:
        self._connection.close()


class JsonHandler(http.server.BaseHTTPRequestHandler):
    """What the server does with a request."""

    procedures: Mapping[str, Procedure]
    protocol_version = "HTTP/1.1"  # one connection for many calls
    timeout = IDLE_TIMEOUT
    wbufsize = -1  # an answer goes in one piece: the second of two would wait for an acknowledgement, tcp(7)

    def do_POST(self) -> None:
        size = self.headers["Content-Length"] or ""
        if self.headers["Origin"] is not None:
            # Any page on the web may have its reader's browser POST to 127.0.0.1, and a browser says which page.
            self._refuse(http.HTTPStatus.FORBIDDEN, "web pages may not call procedures: programs may")
        elif not (size.isascii() and size.isdigit()) or self.headers["Transfer-Encoding"]:
            self._refuse(http.HTTPStatus.LENGTH_REQUIRED, "a request says how many bytes it has: Content-Length")
        elif len(size) > len(str(LARGEST)) or int(size) > LARGEST:
            what = f"a request has at most {LARGEST:,} bytes, not {size}"
            self._refuse(http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE, what)
        elif len(body := self.rfile.read(int(size))) < int(size):
            self.close_connection = True  # the caller has hung up
        else:
            self._answer(*self._run(unquote(self.path.removeprefix("/")), body))

    def _refuse(self, status: http.HTTPStatus, why: str) -> None:
        self.close_connection = True  # what we do not read cannot be told from the next request
        self._answer(status, json.dumps({"error": why}))

    def _run(self, name: str, body: bytes) -> tuple[http.HTTPStatus, str]:
        if name not in self.procedures:
            text = f"no procedure called {name!r}; there are: {', '.join(self.procedures)}"
            return http.HTTPStatus.NOT_FOUND, json.dumps({"error": text})
        try:
            result = self.procedures[name](**json.loads(body))
            if not isinstance(result, Mapping):
                raise TypeError(f"{name} returned a {type(result).__name__}, and a procedure returns a dictionary")
            return http.HTTPStatus.OK, json.dumps(dict(result))
        except (Exception, SystemExit) as error:
            return http.HTTPStatus.INTERNAL_SERVER_ERROR, json.dumps({"error": _told(error)})

    def _answer(self, status: http.HTTPStatus, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
            self.wfile.flush()
        except OSError:  # the caller waits no longer
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Say nothing of each request."""


class JsonServer(http.server.ThreadingHTTPServer):
    """Listens without asking a name server what this machine is called, which may take long."""

    server_name, server_port = "", 0

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)


def _told(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).rstrip()  # also if the error's own text cannot be made


def _serve_json(procedures: dict[str, Procedure], _: None, host: str, port: int, tx: Any) -> None:
    handler = type("Handler", (JsonHandler,), {"procedures": procedures})
    with _tells(tx), JsonServer((host, port), handler) as server:
        tx.send(json.dumps({"port": server.server_address[1]}).encode())
        server.serve_forever()


@contextlib.contextmanager
def _tells(tx: Any) -> Iterator[None]:
    """Tell who started us why we cannot listen."""
    try:
        yield
    except OSError as error:
        tx.send(json.dumps({"errno": error.errno, "text": error.strerror or str(error)}).encode())


# --- gRPC -----------------------------------------------------------------------------------------------------


@functools.cache
def compiled(proto: Path) -> Any:
    """The messages of a .proto file, a module made in memory: `protoc` runs inside grpcio-tools, and writes no file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be compiled; what the compiler says of it is on standard error.
    """
    import grpc

    if not proto.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such .proto file", str(proto))
    sys.path.insert(0, str(proto.parent))  # where the compiler looks
    importlib.invalidate_caches()
    try:
        return grpc.protos(proto.name)
    except Exception as reason:
        raise ValueError(f"{proto} cannot be compiled: {reason}") from None
    finally:
        sys.path.remove(str(proto.parent))


def _methods(messages: Any) -> dict[str, Any]:
    """The procedures of a .proto file, by the names that functions have: Mean is mean."""
    services = list(messages.DESCRIPTOR.services_by_name.values())
    if len(services) != 1:
        raise ValueError(f"{messages.DESCRIPTOR.name} must declare one service, not {len(services)}")
    (service,) = services
    return {re.sub("(?<!^)(?=[A-Z])", "_", method.name).lower(): method for method in service.methods}


def _must_have(messages: Any, procedures: Mapping[str, Procedure]) -> None:
    declared = _methods(messages)
    if declared.keys() != procedures.keys():
        raise ValueError(f"the .proto file declares {', '.join(declared)}; the functions are {', '.join(procedures)}")


def _class_of(messages: Any, descriptor: Any) -> Any:
    return getattr(messages, descriptor.name)


class GrpcStub(Stub):
    """A call is an HTTP/2 request with a message of protobuf, its deadline in a header."""

    def __init__(self, host: str, port: int, proto: Path, timeout: float):
        super().__init__(host, port, timeout)
        self._messages = compiled(proto.resolve())
        self._connect()

    def _connect(self) -> None:
        import grpc

        # Calls are never repeated behind our back, and go nowhere else; a new channel does not wait after a refusal.
        options = {"grpc.enable_retries": 0, "grpc.enable_http_proxy": 0, "grpc.use_local_subchannel_pool": 1}
        self._channel = grpc.insecure_channel(self.address, list(options.items()))
        self._calls = {name: self._multicallable(method) for name, method in _methods(self._messages).items()}

    def _multicallable(self, method: Any) -> tuple[Any, Any]:
        request, reply = _class_of(self._messages, method.input_type), _class_of(self._messages, method.output_type)
        path = f"/{method.containing_service.full_name}/{method.name}"
        return request, self._channel.unary_unary(path, request.SerializeToString, reply.FromString)

    def call(self, name: str, values: dict[str, Any], timeout: float) -> dict[str, Any]:
        import grpc

        if name not in self._calls:
            raise RemoteError(f"no procedure called {name!r}; there are: {', '.join(self._calls)}")
        request, ask = self._calls[name]
        try:
            answer = ask(request(**values), timeout=timeout)
        except grpc.RpcError as error:
            code, said = error.code(), error.details() or ""
            if code == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise self._late(name, timeout) from None
            unresolved = re.search("resolution|resolving", said)
            if code == grpc.StatusCode.UNAVAILABLE and (unresolved or "failed to connect" in said.lower()):
                self.close()
                self._connect()
                number = _number_in(said)
                raise self._unreached(name, number, said if unresolved else os.strerror(number)) from None
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                raise self._broken(name) from None
            raise RemoteError(f"{name} at {self.address}: {said} ({code.name})") from None
        return {field.name: getattr(answer, field.name) for field in answer.DESCRIPTOR.fields}

    def close(self) -> None:
        self._channel.close()


def _number_in(said: str) -> int:
    """The errno in what gRPC says, which has only the words for it."""
    near = (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EACCES)
    return next((number for number in near if os.strerror(number) in said), errno.EHOSTUNREACH)


def _serve_grpc(procedures: dict[str, Procedure], proto: Path, host: str, port: int, tx: Any) -> None:
    import concurrent.futures

    import grpc

    messages = compiled(proto)
    with _tells(tx):
        _must_be_free(host, port)
        pool = concurrent.futures.ThreadPoolExecutor(8)
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])  # else two servers could share a port unnoticed
        methods = _methods(messages)
        handlers = {method.name: _handler(messages, method, procedures[name]) for name, method in methods.items()}
        service = next(iter(methods.values())).containing_service.full_name
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        try:
            port = server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as reason:
            raise OSError(errno.EADDRINUSE, str(reason)) from None
        server.start()
        tx.send(json.dumps({"port": port}).encode())
        server.wait_for_termination()


def _must_be_free(host: str, port: int) -> None:
    """gRPC says only that it failed; bind(2) says why."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        if port:
            probe.listen()


def _handler(messages: Any, method: Any, procedure: Procedure) -> Any:
    import grpc

    request, reply = _class_of(messages, method.input_type), _class_of(messages, method.output_type)

    def run(asked: Any, context: Any) -> Any:
        try:
            return reply(**procedure(**{field.name: getattr(asked, field.name) for field in asked.DESCRIPTOR.fields}))
        except (Exception, SystemExit) as error:
            context.abort(grpc.StatusCode.UNKNOWN, _told(error))

    return grpc.unary_unary_rpc_method_handler(run, request.FromString, reply.SerializeToString)
