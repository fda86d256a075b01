"""Checks of notebook 02-fifos."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import struct
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from labkit.exercises import Verdict, last_line, let_sleep
from labkit.launch import Job, RemoteError, launch

PATIENCE = 5.0
"""Seconds that the learner's function gets."""

IDLE = 0.4
"""Seconds between two clients, in which a server is to sleep."""

PAUSE = 0.1
"""Seconds between two writes of a client, in which a server is to read the first."""

BUSY = 0.1
"""Seconds of processor time that show that it did not: a server that sleeps uses some milliseconds in all."""


@contextlib.contextmanager
def _fifo() -> Iterator[str]:
    """The path of a new FIFO, in a folder of its own that is removed afterwards with all that is in it."""
    folder = tempfile.mkdtemp(prefix="labkit-exercise-")
    path = os.path.join(folder, "fifo")
    try:
        os.mkfifo(path, 0o600)
        yield path
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- serve --------------------------------------------------------------------------------------------------

VISITS = (
    ("one line", [b"Mr Bingley\n"]),
    ("three lines in one write", [b"Mr Darcy\nMiss Bingley\nMrs Hurst\n"]),
    ("a line in two writes", [b"Mr Coll", b"ins\n"]),
    ("the line stop", [b"stop\n"]),
)
LINES = b"".join(piece for _, pieces in VISITS for piece in pieces).splitlines()[:-1]


def check_serve(f: Callable[..., Any]) -> Verdict:
    """Whether f(path) receives the lines of clients who come one after the other, until one of them says stop.

    Args:
        f: the learner's function; it runs in a process of its own, and so does each client.
    """
    with _fifo() as path:
        server = launch(_timed, f, path, name=getattr(f, "__name__", "your function"))
        clients: list[Job] = []
        try:
            for number, (what, pieces) in enumerate(VISITS):
                clients.append(launch(_visit, path, pieces, name=f"client {number + 1}"))
                wrong = _visited(clients[-1], server, number, what)
                if wrong:
                    return Verdict(False, wrong)
                let_sleep(server.pid, IDLE)
                if number + 1 < len(VISITS) and _stands_at_the_door(server.pid, path):
                    return Verdict(
                        False,
                        f"client {number + 1} has gone, and you have closed the FIFO, to open it again. A client who "
                        "comes between that end of file and your close finds a reader, writes, and its line is lost. "
                        "Keep one descriptor for all clients, and a writing end beside it, so that no end of file "
                        "comes.",
                    )
            lines, busy = server.wait(PATIENCE)
        except RemoteError as error:
            return Verdict(False, f"your function stopped with “{last_line(error)}”.")
        except TimeoutError:
            return Verdict(
                False,
                f"your function did not return within {PATIENCE:g} seconds after the line stop. With a writing end of "
                "its own there is no end of file: look at each line, and return when it is stop.",
            )
        finally:
            for job in (server, *clients):
                job.kill()
    wrong = _wrong_lines(lines)
    if wrong:
        return Verdict(False, wrong)
    if busy > BUSY:
        return Verdict(
            False,
            f"the lines are right, but your function used {busy:.1f} s of processor time, although nobody was there "
            "most of the time. After the last client read gives b'' at once, over and over: keep a writing end open "
            "yourself, and it sleeps instead.",
        )
    return Verdict(
        True,
        f"{len(VISITS)} clients came and went, each a process of its own, and their {len(LINES)} lines are complete. "
        f"While nobody was there your function slept: {busy * 1e3:.0f} ms of processor time in all.",
    )


def _stands_at_the_door(pid: int, path: str) -> bool:
    """Whether a process has closed a FIFO and waits in open(2) for its next writer."""
    with contextlib.suppress(OSError):  # ENOENT: it has ended; ENXIO: it does not open it
        if not _has_open(pid, path):
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            return True
    return False


def _has_open(pid: int, path: str) -> bool:
    """Whether a process has a descriptor of what is at this path, or was: proc_pid_fd(5)."""
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(fd).removesuffix(" (deleted)") == path:
                return True
    return False


def _timed(f: Callable[..., Any], path: str) -> tuple[Any, float]:
    begin = time.process_time()
    return f(path), time.process_time() - begin


def _visit(path: str, pieces: list[bytes]) -> None:
    fd = os.open(path, os.O_WRONLY)
    for piece in pieces:
        os.write(fd, piece)
        begin = time.monotonic()
        time.sleep(PAUSE)
        while _unread(fd) and time.monotonic() < begin + 20 * PAUSE:  # a server on a busy machine
            time.sleep(PAUSE / 10)
    os.close(fd)


def _unread(fd: int) -> int:
    """Bytes in a pipe or FIFO: FIONREAD, ioctl_fionread(2)."""
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0])


def _visited(client: Job, server: Job, number: int, what: str) -> str:
    """Wait for a client to be done; returns what was wrong with the server, nothing when all was well."""
    deadline = time.monotonic() + PATIENCE
    last = number == len(VISITS) - 1  # the server may be gone before this client is
    while client.alive and (server.alive or last) and time.monotonic() < deadline:
        time.sleep(0.01)
    if not client.alive:
        with contextlib.suppress(RemoteError):
            client.wait()
            return ""
        return f"client {number + 1} ({what}) got EPIPE: you closed the FIFO while it was still writing."
    if server.alive:
        if number == 0:
            return "no client was let in: your function has not opened the FIFO for reading."
        return (
            f"client {number + 1} ({what}) stands at the door: nobody has the FIFO open for reading any more, and your "
            "function has not returned either."
        )
    lines, _ = server.wait()  # raises what it raised
    if lines is None or lines is ...:
        return "your function returns nothing yet: write its body, and return the lines."
    return (
        f"your function returned after {number} of {len(VISITS)} clients, with {_shown(lines)}. End of file says that "
        "the last client has gone, not that no other will come: go on until the line stop. It does not come at all "
        "while you have a writing end open yourself."
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 100 else text[:100] + "…"


def _wrong_lines(lines: Any) -> str:
    if lines is None or lines is ...:
        return "your function returns nothing yet: collect the lines, and return them."
    if not isinstance(lines, list | tuple):
        return f"you return a {type(lines).__name__}; the lines are a list of bytes."
    lines = list(lines)
    if any(isinstance(line, str) for line in lines):
        return "you return text. A FIFO carries bytes: the lines are bytes, do not decode them."
    if lines == LINES:
        return ""
    if lines == [*LINES, b"stop"]:
        return "stop is in your list: it ends the list, it does not belong to it."
    if [line.rstrip(b"\n") for line in lines] == LINES:
        return "your lines still end with \\n: take it off."
    if any(b"\n" in line.rstrip(b"\n") for line in lines):
        return (
            f"one of your lines is several: {_shown(max(lines, key=len))}. One read gives all that is there, and a "
            "client may have sent three lines at once: split at \\n."
        )
    if b"Mr Coll" in lines:
        return (
            "you have 'Mr Coll' and 'ins', which are one line in two pieces. One read gives what is there now, which "
            "may be half a line: keep what follows the last \\n until the rest has come."
        )
    missing = [line for line in LINES if line not in lines]
    if missing:
        return f"{len(missing)} of {len(LINES)} lines are missing, for example {missing[0]!r}."
    return f"you return {_shown(lines)} where {_shown(LINES)} was sent."


# --- try_send -----------------------------------------------------------------------------------------------

MESSAGE = b"to whom it may concern\n"


def check_try_send(f: Callable[..., Any]) -> Verdict:
    """Whether f(path, message) sends at once or not at all, and says which.

    Args:
        f: the learner's function; it runs in a process of its own.
    """
    for check in (_somebody_listens, _nobody_listens, _no_name, _full):
        with _fifo() as path:
            try:
                wrong = check(f, path)
            except RemoteError as error:
                wrong = f"{SITUATION[check]}, and your function stopped with “{last_line(error)}”. " + _advice(error)
            except _LeftOpen:
                wrong = (
                    f"{SITUATION[check]}, and your function left the FIFO open. As long as you have it its reader "
                    "sees no end of file, and who tries often runs out of descriptors: os.close(fd), in a finally."
                )
            except TimeoutError:
                wrong = (
                    f"{SITUATION[check]}, and your function still waits after {PATIENCE:g} seconds. Open with "
                    "O_NONBLOCK: then neither open nor write ever waits."
                )
        if wrong:
            return Verdict(False, wrong)
    return Verdict(
        True,
        "when somebody listened the message arrived; without a listener, without a FIFO and with a full one your "
        "function said so at once, and left nothing behind.",
    )


def _advice(error: RemoteError) -> str:
    for name, advice in (
        ("ENXIO", "That is ENXIO, nobody has it open for reading: catch it, it is the answer."),
        ("ENOENT", "That is ENOENT, there is no such name: nobody can listen there, so the answer is False."),
        ("EAGAIN", "That is EAGAIN, the FIFO is full: nothing was written, so the answer is False."),
    ):
        if f"[Errno {getattr(errno, name)}]" in last_line(error):
            return advice
    return ""


class _LeftOpen(Exception):
    """The learner's function has returned and not closed the FIFO."""


def _answer(f: Callable[..., Any], path: str) -> Any:
    job = launch(_try, f, path, name=getattr(f, "__name__", "your function"))
    try:
        answer, left_open = job.wait(PATIENCE)
    finally:
        job.kill()
    if left_open:
        raise _LeftOpen
    return answer


def _try(f: Callable[..., Any], path: str) -> tuple[Any, bool]:
    return f(path, MESSAGE), _has_open(os.getpid(), path)


@contextlib.contextmanager
def _listening(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


def _somebody_listens(f: Callable[..., Any], path: str) -> str:
    with _listening(path) as fd:
        answer = _answer(f, path)
        got = os.read(fd, 1 << 16)
    if answer is None or answer is ...:
        return "your function returns nothing yet: True when it has sent the message, False when not."
    if got != MESSAGE:
        return f"somebody listened, and heard {got!r} instead of {MESSAGE!r}."
    return "" if answer is True else f"somebody listened and got the message; you return {answer!r} instead of True."


def _nobody_listens(f: Callable[..., Any], path: str) -> str:
    answer = _answer(f, path)
    if answer is False:
        return ""
    return (
        f"nobody listens, and you return {answer!r}. Your message is lost. Do you open with O_RDWR? Then you are the "
        "reader yourself, and open never says that nobody is there: use O_WRONLY | O_NONBLOCK."
    )


def _no_name(f: Callable[..., Any], path: str) -> str:
    os.unlink(path)
    answer = _answer(f, path)
    with contextlib.suppress(FileNotFoundError):
        kind = "an ordinary file" if stat.S_ISREG(os.lstat(path).st_mode) else "something"
        return (
            f"there was no FIFO, and now there is {kind} of its name, which nobody reads. open(path, 'w') and O_CREAT "
            "make what is not there: use os.open without O_CREAT."
        )
    return "" if answer is False else f"there is no FIFO, and you return {answer!r} instead of False."


def _full(f: Callable[..., Any], path: str) -> str:
    with _listening(path):
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        try:
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(fd, bytes(512))
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(fd, b"-")
            answer = _answer(f, path)
        finally:
            os.close(fd)
    return "" if answer is False else f"the FIFO is full, nothing can have been sent, and you return {answer!r}."


SITUATION = {
    _somebody_listens: "somebody listens",
    _nobody_listens: "nobody listens",
    _no_name: "there is no FIFO",
    _full: "somebody listens but the FIFO is full",
}
