"""Checks of notebook 01-pipes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labkit.channels.pipe import open as open_pipe
from labkit.exercises import Verdict, last_line
from labkit.holders import holders
from labkit.launch import Job, RemoteError, launch

PATIENCE = 5.0
"""Seconds that the learner's function gets."""

COMMANDS = (
    [["printf", "pear\\nfig\\napple\\nplum\\n"], ["grep", "p"], ["sort"]],
    [["echo", "alone"]],
    [["seq", "60000"], ["cat"], ["sed", "s/$/ lines of a song/"], ["tail", "-n", "30000"]],
)


def check_pipeline(f: Callable[..., Any]) -> Verdict:
    """Whether f(commands) connects programs as a shell does, and returns the last one's output as bytes.

    Args:
        f: the learner's function; it runs in a process of its own, which is looked into for what it leaves behind.
    """
    for commands in (*COMMANDS, [["yes"], ["head", "-n", "3"]]):
        words = " | ".join(" ".join(command) for command in commands)
        ends = commands[1:] == [["head", "-n", "3"]]
        job = launch(_tried, f, commands, name=getattr(f, "__name__", "your function"))
        try:
            output, left = job.wait(PATIENCE)
        except RemoteError as error:
            return Verdict(False, f"for `{words}` your function stopped with “{last_line(error)}”.")
        except TimeoutError:
            return Verdict(False, f"`{words}` was not done within {PATIENCE:g} seconds. {_why_it_waits(job, ends)}")
        finally:
            _end(job)
        wrong = _wrong_output(output, _expected(commands)) or left
        if wrong:
            return Verdict(False, f"for `{words}` {wrong}")
    return Verdict(
        True,
        "programs of all kinds ran side by side, end of file travelled down the line, and where the last one left "
        "first, SIGPIPE travelled up. No process and no descriptor was left.",
    )


def _tried(f: Callable[..., Any], commands: list[list[str]]) -> tuple[Any, str]:
    """What f returns, and what is wrong with what it left behind. Runs in the child."""
    os.setpgid(0, 0)  # so that all that it starts can be ended
    before = _descriptors()
    output = f(commands)
    after = _descriptors()  # of what f dropped, Python has closed the rest by now
    left = after - before
    if left:
        return output, (
            f"your output is right, but {_count(len(left))} still open in your process ({', '.join(sorted(left))}). "
            "A program that builds a thousand pipelines would run out of them: close what you opened."
        )
    with contextlib.suppress(ChildProcessError):
        pid, _ = os.waitpid(-1, os.WNOHANG)
        state = "a zombie: nobody has taken its exit status" if pid else "still running"
        return output, f"your output is right, but a program was left behind, {state}. wait() for each of them."
    return output, ""


def _count(number: int) -> str:
    return "one descriptor is" if number == 1 else f"{number} descriptors are"


def _descriptors() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(f"{fd} → {os.readlink(f'/proc/self/fd/{fd}')}")
    return {text for text in found if "/proc/" not in text}


def _expected(commands: list[list[str]]) -> bytes:
    """What a shell gets."""
    texts: dict[int, bytes] = {0: b"apple\npear\nplum\n", 1: b"alone\n"}
    texts[2] = b"".join(b"%d lines of a song\n" % n for n in range(30001, 60001))
    return texts[COMMANDS.index(commands)] if commands in COMMANDS else b"y\n" * 3


def _wrong_output(output: Any, expected: bytes) -> str:
    if output is None or output is ...:
        return "your function returns nothing yet: write its body, and return what the last program printed."
    if isinstance(output, str):
        return "you return text. A pipe carries bytes: do not decode, the programs decide what they mean."
    if not isinstance(output, bytes | bytearray):
        return f"you return a {type(output).__name__}; what the last program printed is bytes."
    if output == expected:
        return ""
    if output and expected.startswith(output):
        return (
            f"you return {len(output):,} of {len(expected):,} bytes: the beginning. One read gives what is there now, "
            "not all that will come: read until it gives nothing."
        )
    return f"you return {_short(output)} where a shell gets {_short(expected)}. Who reads from whom?"


def _short(data: bytes | bytearray) -> str:
    return repr(bytes(data[:40])) + ("…" if len(data) > 40 else "")


def _why_it_waits(job: Job, ends: bool) -> str:
    """Look into the processes of a line that hangs, and say who holds which end."""
    for link in sorted(Path(f"/proc/{job.pid}/fd").iterdir(), key=lambda link: int(link.name)):
        with contextlib.suppress(OSError):
            if int(link.name) < 3 or not os.readlink(link).startswith("pipe:"):
                continue
            ours = holders(link)
            readers = [h for h in ours if h.access == "reading" and h.pid != job.pid and _group(h.pid) == job.pid]
            if readers and any((holder.pid, holder.access) == (job.pid, "writing") for holder in ours):
                program = readers[0].name
                return (
                    f"Your own process still holds the writing end of the pipe that {program} reads: {program} waits "
                    "for an end of file that cannot come. Close your copy once the program has its own."
                )
    if ends:
        return (
            "`yes` never stops by itself: only SIGPIPE ends it, and that comes when nobody holds the reading end any "
            "more. Start all programs at the same time, let them read from each other, and close your own copies."
        )
    return (
        "Do you wait for a program before somebody reads what it writes? A pipe holds some 64 KB, then the writer "
        "sleeps: start all programs first, read until end of file, and wait() last."
    )


def _group(pid: int) -> int:
    with contextlib.suppress(OSError):
        return os.getpgid(pid)
    return -1


def _end(job: Job) -> None:
    """End a child and whatever it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(job.pid, signal.SIGKILL)
    job.kill()


def check_write_lines(f: Callable[..., Any], lines: list[bytes]) -> Verdict:
    """Whether f(lines, fd) writes whole lines in few writes, alone and beside other processes.

    Args:
        f: the learner's function; it runs in processes of their own.
        lines: real lines; a line feed is added to each.
    """
    lines = [line.rstrip(b"\n") + b"\n" for line in lines]
    try:
        return _check_alone(f, lines) or _check_together(f, lines)
    except RemoteError as error:
        text = last_line(error)
        hint = " os.write takes the descriptor first, then bytes." if "TypeError" in text else ""
        return Verdict(False, f"your function stopped with “{text}”.{hint}")


def _check_alone(f: Callable[..., Any], lines: list[bytes]) -> Verdict | None:
    """One process and a pipe in packet mode, in which each read gives what one write wrote: O_DIRECT, pipe(2)."""
    packets = _packets(f, lines)
    if isinstance(packets, Verdict):
        return packets
    got, wanted = b"".join(packets), b"".join(lines)
    if not got:
        return Verdict(False, "nothing was written yet: write the body, with os.write(fd, …).")
    if got != wanted:
        return Verdict(False, _wrong_bytes(got, wanted, lines))
    largest = max(map(len, packets))
    cut = next((packet for packet in packets if not packet.endswith(b"\n")), None)
    if cut is not None and largest == select.PIPE_BUF == len(cut):
        return Verdict(
            False,
            f"a write of yours is {select.PIPE_BUF:,} bytes or more and does not end with a line: it ends with "
            f"{cut[-20:]!r}. Beyond PIPE_BUF ({select.PIPE_BUF:,}) bytes the kernel cuts it where it likes, and "
            "another process's line comes in between. Collect whole lines; write before the next would not fit.",
        )
    if cut is not None:
        return Verdict(False, f"a write of yours ends within a line, with {cut[-20:]!r}: others may come in between.")
    fewest = _fewest(lines)
    if len(packets) > 2 * fewest:
        each = "one for each line" if len(packets) >= len(lines) else f"{len(packets):,} of them"
        return Verdict(
            False,
            f"every line stays whole, but you use too many system calls: {each} where {fewest:,} are enough "
            f"for these {len(lines):,} lines. Put as many lines into one write as PIPE_BUF allows.",
        )
    return None


def _wrong_bytes(got: bytes, wanted: bytes, lines: list[bytes]) -> str:
    if wanted.startswith(got):
        missing = len(lines) - got.count(b"\n")
        return f"the last {missing:,} lines are missing. What is in your batch when the loop has ended?"
    if got == wanted.replace(b"\n", b""):
        return "the line feeds are missing: write each line with its \\n."
    if len(got) > len(wanted):
        more = len(got) - len(wanted)
        return f"you write {more:,} bytes more than the lines have. Do you empty the batch after each write?"
    return "what comes out is not what went in: write all lines, unchanged, in their order."


def _fewest(lines: list[bytes]) -> int:
    writes, room = 0, 0
    for line in lines:
        if len(line) > room:
            writes, room = writes + 1, select.PIPE_BUF
        room -= len(line)
    return writes


def _packets(f: Callable[..., Any], lines: list[bytes]) -> list[bytes] | Verdict:
    tx, rx = open_pipe()
    flags = fcntl.fcntl(tx.fileno(), fcntl.F_GETFL)
    fcntl.fcntl(tx.fileno(), fcntl.F_SETFL, flags | os.O_DIRECT)
    job = launch(_writes, f, lines, tx, name=getattr(f, "__name__", "your function"))
    with rx:
        packets = _until_end(rx.fileno(), [job])
    if packets is None:
        return Verdict(False, f"your function did not return within {PATIENCE:g} seconds. Does its loop end?")
    job.wait(PATIENCE)
    return packets


def _writes(f: Callable[..., Any], lines: list[bytes], tx: Any) -> None:
    """Runs in the child: the learner gets an ordinary descriptor, on which a write waits.

    O_NONBLOCK belongs to the open file description, which all clones of an end share: the next one to arrive sets it
    for everybody again. So the pipe is opened once more, through proc_pid_fd(5), and keeps packet mode if it has that.
    """
    packet_mode = fcntl.fcntl(tx.fileno(), fcntl.F_GETFL) & os.O_DIRECT
    fd = os.open(f"/proc/self/fd/{tx.fileno()}", os.O_WRONLY)
    fcntl.fcntl(fd, fcntl.F_SETFL, packet_mode)
    try:
        f(lines, fd)
    finally:
        os.close(fd)


def _until_end(fd: int, jobs: list[Job]) -> list[bytes] | None:
    """All that comes until end of file, read by read, or None when that takes too long: then the jobs are ended."""
    deadline = time.monotonic() + PATIENCE
    pieces: list[bytes] = []
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        piece = os.read(fd, 1 << 16)
        if not piece:
            return pieces
        pieces.append(piece)
        if time.monotonic() > deadline:
            break
    for job in jobs:
        job.kill()
    return None


def _check_together(f: Callable[..., Any], lines: list[bytes]) -> Verdict:
    """Three processes and one ordinary pipe: each line says whose it is."""
    tx, rx = open_pipe(capacity=1 << 14)
    names = [b"red ", b"green ", b"blue "]
    share = len(lines) // 3
    theirs = {name: [name + line for line in lines[n * share : (n + 1) * share]] for n, name in enumerate(names)}
    jobs = [launch(_writes, f, theirs[name], tx.clone(), name=name.decode().strip()) for name in names]
    tx.close()
    with rx:
        pieces = _until_end(rx.fileno(), jobs)
    if pieces is None:
        return Verdict(False, f"three processes together were not done within {PATIENCE:g} seconds.")
    for job in jobs:
        job.wait(PATIENCE)
    received = b"".join(pieces).splitlines(keepends=True)
    for name in names:
        if [line for line in received if line.startswith(name)] != theirs[name]:
            return Verdict(False, "alone it works; beside two other processes lines were torn: is a write too long?")
    return Verdict(
        True,
        f"{len(received):,} lines from three processes came through one pipe, every one of them whole, and "
        f"{len(lines):,} lines took you about {_fewest(lines):,} writes.",
    )
