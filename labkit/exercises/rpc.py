"""Checks of notebook 14-remote-procedure-calls."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labkit.channels import channel
from labkit.exercises import Verdict, last_line
from labkit.launch import Job, RemoteError, launch
from labkit.rpc import connect, serve

# --- the stub -----------------------------------------------------------------------------------------------------


def _answers(requests: Any, replies: Any, seen: Any) -> None:
    """A server with two procedures. What it is asked is written down."""
    procedures: dict[str, Callable[..., Any]] = {
        "add": lambda a, b: a + b,
        "nothing": lambda: None,
    }
    for request in requests:
        seen.send(request)
        try:
            call = json.loads(request)
            reply = {"result": procedures[call["name"]](**call["values"])}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.send(json.dumps(reply).encode())


def check_stub(make_stub: Callable[..., Any]) -> Verdict:
    """Whether make_stub(ask) returns an object whose methods are calls to a server.

    Args:
        make_stub: the learner's function. The server is a process of its own.
    """
    (ask_tx, requests), (replies, answers), (seen_tx, seen) = channel("pipe"), channel("pipe"), channel("pipe")
    job = launch(_answers, requests, replies, seen_tx)

    def ask(request: bytes) -> bytes:
        if not isinstance(request, bytes):
            raise TypeError(f"ask takes bytes, not {type(request).__name__}: encode the text")
        ask_tx.send(request)
        return answers.receive(timeout=10)

    try:
        why = _try_stub(make_stub, ask, seen)
    except Exception as error:
        why = f"your stub raised {type(error).__name__}: {error}"
    finally:
        for end in (ask_tx, answers, seen):
            end.close()
        job.kill()
    return Verdict(not why, why or "any name, any values, results and errors: what is behind it cannot be seen.")


def _try_stub(make_stub: Callable[..., Any], ask: Callable[[bytes], bytes], seen: Any) -> str:
    stub = make_stub(ask)
    if stub is None or stub is ...:
        return "make_stub returns nothing: return an object with a __getattr__."
    try:
        result = stub.add(a=2, b=40)
    except AttributeError as error:
        return (
            f"{error}: the stub need not know the procedures; Python calls __getattr__(name) for each it has not got."
        )
    try:
        asked = json.loads(seen.receive(timeout=0))
    except TimeoutError:
        return "stub.add(a=2, b=40) sent no request: ask() was not called."
    if asked != {"name": "add", "values": {"a": 2, "b": 40}}:
        return f"stub.add(a=2, b=40) sent {asked}, and not {{'name': 'add', 'values': {{'a': 2, 'b': 40}}}}."
    if isinstance(result, bytes | str | dict):
        return f"stub.add(a=2, b=40) returned {result!r}: return what is under 'result' in the reply, which is JSON."
    if result != 42:
        return f"stub.add(a=2, b=40) returned {result!r}, and the server had answered 42."
    if (result := stub.nothing()) is not None:
        return f"stub.nothing() returned {result!r}: the result was null, which is None."
    try:
        result = stub.add(a=2, b="x")
    except RuntimeError as error:
        return "" if "TypeError" in str(error) else f"“{error}” was raised, without what the server had said."
    except Exception as error:
        return f"the server had answered with an error, and the stub raised {type(error).__name__}, not RuntimeError."
    return f"the server had answered with an error, and stub.add returned {result!r}: raise it here, as RuntimeError."


# --- surely, and once -----------------------------------------------------------------------------------------------

PATIENCE = 20.0
GIVES_UP = 1.0


def check_report(report_surely: Callable[..., Any]) -> Verdict:
    """Whether report_surely(remote, celsius, seconds) gets one reading to a server that is killed, and gives up.

    Args:
        report_surely: the learner's function; it runs in a process of its own.
    """
    try:
        return Verdict(False, why) if (why := _is_killed(report_surely) or _stays_away(report_surely)) else RIGHT
    except TypeError as error:  # it cannot be sent to a process
        return Verdict(False, str(error))
    except RemoteError as error:
        line = last_line(error)
        hint = ""
        if "Closed" in line:
            hint = " The server was killed in mid-call: labkit.Closed is an EOFError. Try again."
        elif "ConnectionRefusedError" in line:
            hint = " While the server is being started again nobody listens: try again a little later."
        return Verdict(False, f"your function stopped with “{line}”.{hint}")


RIGHT = Verdict(
    True,
    "the server was killed before the effect, and after it; there was an answer in the end, and one reading. And when "
    "there was no server, your function gave up in time.",
)


def _is_killed(report_surely: Callable[..., Any]) -> str:
    """The server is killed before the effect in the first attempt, after it in the second one."""
    with tempfile.TemporaryDirectory(prefix="labkit-rpc-") as folder:
        path = str(Path(folder, "readings.sqlite"))
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("create table readings (request text primary key, celsius real)")

        def report(request: str, celsius: float) -> dict[str, int]:
            attempt = len(list(Path(folder).glob("attempt-*"))) + 1
            Path(folder, f"attempt-{attempt}").touch()
            if attempt == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            with sqlite3.connect(path) as db:
                db.execute("insert or ignore into readings values (?, ?)", (request, celsius))
            if attempt == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return {"readings": db.execute("select count(*) from readings").fetchone()[0]}

        with serve({"report": report}) as server:
            ended = threading.Event()
            keeper = threading.Thread(target=_keep, args=(server, ended))
            keeper.start()
            try:
                answer = _patiently(launch(_reports, report_surely, server.host, server.port, 10.0))
            except TimeoutError:
                return f"your function had not returned after {PATIENCE:g} seconds."
            finally:
                ended.set()
                keeper.join()
        with contextlib.closing(sqlite3.connect(path)) as db:
            readings = db.execute("select count(*) from readings").fetchone()[0]
        attempts = len(list(Path(folder).glob("attempt-*")))
    if attempts == 0:
        return "your function made no call: remote.report(request=..., celsius=celsius)."
    if attempts < 3:
        return f"the server was killed in attempt {attempts}, and your function returned {answer!r} without an answer."
    if readings > 1:
        return (
            f"one reading was reported, and the server has {readings}: each attempt had a request name of its own, so "
            "that the server took it for a new one. Choose the name once, before the first attempt."
        )
    if answer != {"readings": 1}:
        return f"the server answered {{'readings': 1}}, and your function returned {answer!r}: return the answer."
    return ""


def _patiently(job: Job) -> Any:
    try:
        return job.wait(PATIENCE)
    finally:
        job.kill()


def _keep(server: Any, ended: threading.Event) -> None:
    """Start the server again whenever it was killed."""
    while not ended.wait(0.02):
        if not server.job.alive:
            server.start()


def _reports(f: Callable[..., Any], host: str, port: int, seconds: float) -> Any:
    with connect(host, port) as remote:
        return f(remote, 21.5, seconds)


def _stays_away(report_surely: Callable[..., Any]) -> str:
    """Nobody listens: it has to give up."""
    with serve({"report": _never}) as server:
        pass  # it has ended, and its port is known
    job: Job = launch(_gives_up, report_surely, server.host, server.port)
    try:
        raised, seconds = job.wait(GIVES_UP + 10)
    except TimeoutError:
        return (
            f"there was no server, and after {GIVES_UP + 10:g} seconds your function still tried; it had {GIVES_UP:g}."
        )
    finally:
        job.kill()
    if raised != "TimeoutError":
        return f"there was no server for {GIVES_UP:g} s, and your function ended with {raised}: raise TimeoutError."
    if seconds < 0.7 * GIVES_UP:
        return f"there was no server, and your function gave up after {seconds:.1f} s, although it had {GIVES_UP:g}."
    return ""


def _never(request: str, celsius: float) -> dict[str, int]:
    raise AssertionError("nobody calls this")


def _gives_up(f: Callable[..., Any], host: str, port: int) -> tuple[str, float]:
    begin = time.monotonic()
    try:
        result = _reports(f, host, port, GIVES_UP)
    except Exception as error:
        return type(error).__name__, time.monotonic() - begin
    return f"the result {result!r}", time.monotonic() - begin
