"""Checks of notebook 06-sockets."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import termios
import time
from collections.abc import Callable
from typing import Any

from labkit.exercises import Verdict, last_line, let_sleep
from labkit.launch import Job, RemoteError, launch

PATIENCE = 5.0
"""Seconds that the learner's function gets for one step."""

IDLE = 0.5
"""Seconds in which nobody says anything, and a server is to sleep."""


def _name(f: Callable[..., Any]) -> str:
    return getattr(f, "__name__", "your function")


# --- receive_exactly ----------------------------------------------------------------------------------------

HEADER, BODY = b"HEAD", bytes(range(256)) * 800
AFTER = b"NEXT"


def check_receive_exactly(f: Callable[..., Any]) -> Verdict:
    """Whether f(connection, size) returns exactly `size` bytes of a stream, and raises EOFError when it ends before.

    Args:
        f: the learner's function; it runs in a process of its own, and so does who sends.
    """
    for check in (_in_pieces, _cut_short):
        try:
            wrong = check(f)
        except TimeoutError:
            wrong = (
                f"your function had not returned after {PATIENCE:g} seconds. recv gives b'' when the other side has "
                "closed, and then gives it for ever: that is end of file, raise EOFError."
                if check is _cut_short
                else f"your function had not returned after {PATIENCE:g} seconds. Does it wait for more than `size` "
                "bytes? recv(n) waits until there is something, and gives at most n bytes: ask for what is missing."
            )
        if wrong:
            return Verdict(False, wrong)
    return Verdict(
        True,
        f"{len(HEADER)} bytes, then {len(BODY):,}, then {len(AFTER)}, from a sender that sent them in pieces of all "
        "sizes: each came out whole, and nothing of the next was taken. When the stream ended half-way your function "
        "said so.",
    )


def _with_sender(f: Callable[..., Any], pieces: list[bytes], pause: float) -> Any:
    """What f(connection) returns in a process of its own, while another one sends these pieces and closes."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        listening = launch(f, ours, name="your function")
        ours.close()
        sending = launch(_send_pieces, theirs, pieces, pause, name="sender")
        theirs.close()
        try:
            return listening.wait(PATIENCE)
        finally:
            for job in (listening, sending):
                job.kill()


def _send_pieces(connection: socket.socket, pieces: list[bytes], pause: float) -> None:
    with connection, contextlib.suppress(OSError):  # the other side may have had enough
        for piece in pieces:
            connection.sendall(piece)
            begin = time.monotonic()
            time.sleep(pause)
            while _unread(connection) and time.monotonic() < begin + 20 * pause:
                time.sleep(pause / 10)


def _unread(connection: socket.socket) -> int:
    """Whether the other side has not yet received all: SIOCOUTQ, unix(7)."""
    return struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))[0]


def _in_pieces(f: Callable[..., Any]) -> str:
    def three(connection: socket.socket) -> list[Any]:
        got = []
        for size in (len(HEADER), len(BODY), len(AFTER)):
            try:
                got.append(f(connection, size))
            except Exception as reason:
                got.append(reason)
                break
        return got

    cut = len(BODY) // 3
    pieces = [HEADER[:1], HEADER[1:] + BODY[:cut], BODY[cut:-1], BODY[-1:] + AFTER]
    got = _with_sender(three, pieces, 0.1)
    for number, (value, right) in enumerate(zip(got, (HEADER, BODY, AFTER), strict=False)):
        wrong = _wrong_bytes(number, value, right)
        if wrong:
            return wrong
    return ""


def _wrong_bytes(number: int, value: Any, right: bytes) -> str:
    which = f"call {number + 1}, for {len(right):,} bytes"
    if value is None or value is ...:
        return "your function returns nothing yet: write its body, and return the bytes."
    if isinstance(value, Exception):
        if isinstance(value, EOFError) and number:
            return (
                f"{which}, raised EOFError, although all was sent. Bytes are missing: a call before took more than it "
                "was asked for, and they are lost to the next. Never ask recv for more than is still missing."
            )
        return f"{which}, stopped with “{type(value).__name__}: {value}”."
    if isinstance(value, str):
        return "you return text. A stream carries bytes: do not decode them, half a character may be among them."
    if not isinstance(value, bytes | bytearray | memoryview):
        return f"you return a {type(value).__name__}; what was received is bytes. b''.join(pieces) makes one of many."
    got = bytes(value)
    if got == right:
        return ""
    if len(got) < len(right):
        return (
            f"{which}, returned {len(got):,}. One recv gives what is there now, which may be a part: go on until you "
            "have them all."
        )
    if len(got) > len(right):
        return (
            f"{which}, returned {len(got):,}: some of what follows as well, and that is now missing there. A stream "
            "has no boundaries; ask recv for no more than is still missing."
        )
    return f"{which}, returned as many but others: they are in another order, or an earlier call took some of them."


def _cut_short(f: Callable[..., Any]) -> str:
    def one(connection: socket.socket) -> tuple[str, Any]:
        try:
            got = f(connection, 100)
        except EOFError:
            return "EOFError", None
        except Exception as reason:
            return "stopped", f"{type(reason).__name__}: {reason}"
        return "returned", got

    how, what = _with_sender(one, [b"x" * 40], 0)
    if how == "EOFError":
        return ""
    if how == "stopped":
        return (
            f"the sender closed after 40 of 100 bytes, and your function stopped with “{what}”; EOFError is asked for."
        )
    shown = f"{len(what)} bytes" if isinstance(what, bytes | bytearray) else repr(what)
    return (
        f"the sender closed after 40 of 100 bytes, and you return {shown} as if all was well. recv gives b'' at end of "
        "file: raise EOFError then, so that nobody takes half a message for a whole one."
    )


# --- serve --------------------------------------------------------------------------------------------------

CLIENTS = 3


def check_serve(f: Callable[..., Any]) -> Verdict:
    """Whether f(listening, clients) answers several clients at once with what they say, until all have gone.

    Args:
        f: the learner's function; it runs in a process of its own and gets a listening socket.
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
        server = launch(_timed, f, listening, name=_name(f))
    try:
        wrong = _talk(address, server)
        if wrong:
            return Verdict(False, wrong)
        try:
            busy = server.wait(PATIENCE)
        except TimeoutError:
            return Verdict(
                False,
                f"all {CLIENTS} clients have gone, and your function has not returned. recv gives b'' when a client "
                "has closed: count those, and return after the last.",
            )
        if busy > IDLE / 2:
            return Verdict(
                False,
                f"the answers are right, but your function used {busy:.1f} s of processor time while nobody said "
                "anything. Let the kernel wake you: select, poll, or a thread a client that sleeps in recv.",
            )
    except RemoteError as error:
        return Verdict(False, _explain(last_line(error)))
    finally:
        server.kill()
    return Verdict(
        True,
        f"{CLIENTS} clients were connected at once; one said nothing for a long time and kept nobody waiting, one "
        f"came in the middle. While all were silent your function slept: {busy * 1e3:.0f} ms of processor time in all.",
    )


def _timed(f: Callable[..., Any], listening: socket.socket) -> float:
    begin = time.process_time()
    with listening:
        f(listening, CLIENTS)
    return time.process_time() - begin


def _explain(error: str) -> str:
    hint = ""
    if "BrokenPipe" in error or "ConnectionReset" in error:
        hint = " A client that goes must not end the server."
    elif "BlockingIOError" in error:
        hint = " Nothing was there yet (EAGAIN): that is no error, wait until there is."
    return f"your function stopped with “{error}”.{hint}"


def _talk(address: tuple[str, int], server: Job) -> str:
    """Be the clients; returns what was wrong with the answers, nothing when all was well."""
    with contextlib.ExitStack() as stack:

        def client() -> socket.socket:
            end = stack.enter_context(socket.create_connection(address, PATIENCE))
            end.settimeout(PATIENCE)
            return end

        try:
            silent, busy = client(), client()
        except OSError:
            return _gone(server) or "nobody accepts: the listening socket was closed."
        wrong = (
            _answered(busy, b"hello", server, "Client 2 says something while client 1 is connected and silent")
            or _answered(busy, b"again", server, "Client 2 says something for the second time")
            or _answered(silent, b"at last", server, "Client 1 says something, after client 2 was answered")
            or _answered(busy, os.urandom(50_000), server, "Client 2 sends 50,000 bytes at once")
        )
        if wrong:
            return wrong
        let_sleep(server.pid, IDLE)  # nobody says anything
        busy.close()
        try:
            late = client()
        except OSError:
            return _gone(server) or "Client 3 comes when client 2 has gone, and nobody accepts any more."
        return _answered(
            late, b"am I late?", server, "Client 3 comes when client 2 has gone, and client 1 is still there"
        ) or _answered(silent, b"still here", server, "Client 1 speaks again, after another client has gone")


def _gone(server: Job) -> str:
    """What to say when the learner's function has ended too early; raises what it raised."""
    deadline = time.monotonic() + 0.5
    while server.alive and time.monotonic() < deadline:
        time.sleep(0.01)
    if server.alive:
        return ""
    server.wait()
    return (
        f"your function has returned although not all {CLIENTS} clients have come and gone. Is its body still empty, "
        "or does it return after the first? Go on until the last has closed."
    )


def _answered(end: socket.socket, said: bytes, server: Job, what: str) -> str:
    heard = b""
    try:
        end.sendall(said)
        while len(heard) < len(said):
            piece = end.recv(1 << 16)
            if not piece:
                raise ConnectionResetError
            heard += piece
    except TimeoutError:
        if heard:
            return (
                f"{what}, and only {len(heard):,} of {len(said):,} bytes come back. send may take a part, recv may "
                "give one: sendall, and receive until b''."
            )
        return _gone(server) or (
            f"{what}, and gets no answer within {PATIENCE:g} seconds. Does your function wait in recv or accept for "
            "one client, while another has something? Give each a thread, or ask select who is ready."
        )
    except OSError:
        return _gone(server) or (
            f"{what}, and your function closes the connection. One recv is not all that a client has to say: go on "
            "until it gives b''."
        )
    if heard != said:
        return f"{what}, {said[:40]!r}, and hears {heard[:40]!r}: an echo is the same bytes, to the one who said them."
    return ""
