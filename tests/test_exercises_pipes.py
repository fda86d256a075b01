"""The checks of notebook 01-pipes accept a right solution and refuse typical wrong ones with the right reason."""

import os
import select
import subprocess
import time
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
import roles

from labkit.channels.pipe import open as open_pipe
from labkit.exercises import pipes
from labkit.exercises.pipes import check_pipeline, check_write_lines

NOVEL = (Path(__file__).parent.parent / "data" / "pride-and-prejudice.txt").read_bytes().splitlines()
LINES = [line for line in NOVEL if line][:6000]


@pytest.fixture(autouse=True)
def less_patience(monkeypatch):
    monkeypatch.setattr(pipes, "PATIENCE", roles.patience(2.0))


# --- pipeline -----------------------------------------------------------------------------------------------


def right(commands):
    running, source = [], None
    for command in commands:
        process = Popen(command, stdin=source, stdout=PIPE)
        if source is not None:
            source.close()
        running.append(process)
        source = process.stdout
    with source:
        output = source.read()
    for process in running:
        process.wait()
    return output


def right_by_hand(commands):
    source, running = None, []
    for command in commands:
        read_end, write_end = os.pipe()
        running.append(Popen(command, stdin=source, stdout=write_end))
        os.close(write_end)
        if source is not None:
            os.close(source)
        source = read_end
    output = b"".join(iter(lambda: os.read(source, 65536), b""))
    os.close(source)
    for process in running:
        process.wait()
    return output


def empty(commands): ...


def keeps_the_writing_end(commands):
    source, running, kept = None, [], []
    for command in commands:
        read_end, write_end = os.pipe()
        kept.append(write_end)
        running.append(Popen(command, stdin=source, stdout=write_end))
        source = read_end
    running[-1].wait()
    os.close(kept[-1])
    return b"".join(iter(lambda: os.read(source, 65536), b""))


def keeps_the_reading_ends(commands):
    source, running, kept = None, [], []
    for command in commands:
        read_end, write_end = os.pipe()
        running.append(Popen(command, stdin=source, stdout=write_end))
        os.close(write_end)
        kept.append(read_end)
        source = read_end
    return b"".join(iter(lambda: os.read(source, 65536), b""))


def one_after_the_other(commands):
    output = None
    for command in commands:
        output = subprocess.run(command, input=output, stdout=PIPE).stdout
    return output


def waits_before_it_reads(commands):
    running, source = [], None
    for command in commands:
        running.append(Popen(command, stdin=source, stdout=PIPE))
        if source is not None:
            source.close()
        source = running[-1].stdout
    for process in running:
        process.wait()
    with source:
        return source.read()


def reads_once(commands):
    running, source = [], None
    for command in commands:
        running.append(Popen(command, stdin=source, stdout=PIPE))
        if source is not None:
            source.close()
        source = running[-1].stdout
    with source:
        output = os.read(source.fileno(), 65536)
    for process in running:
        process.wait()
    return output


def as_text(commands):
    return right(commands).decode()


def keeps_descriptors(commands):
    output = right(commands)
    os.dup(1)
    return output


def leaves_zombies(commands):
    output = right(commands)
    global abandoned
    abandoned = Popen(["true"])
    os.waitid(os.P_PID, abandoned.pid, os.WEXITED | os.WNOWAIT)
    return output


def only_the_last(commands):
    return subprocess.run(commands[-1], stdin=subprocess.DEVNULL, stdout=PIPE).stdout


@pytest.mark.parametrize("solution", [right, right_by_hand])
def test_a_right_pipeline_is_accepted(solution):
    verdict = check_pipeline(solution)
    assert verdict.right, verdict


@pytest.mark.parametrize(
    "solution, reason",
    [
        (empty, "returns nothing yet"),
        (keeps_the_writing_end, "the writing end of the pipe that grep reads"),
        (keeps_the_reading_ends, "still open in your process"),
        (one_after_the_other, "only SIGPIPE ends it"),
        (waits_before_it_reads, "read until end of file, and wait() last"),
        (reads_once, "not all that will come"),
        (as_text, "you return text"),
        (keeps_descriptors, "one descriptor is still open"),
        (leaves_zombies, "zombie"),
        (only_the_last, "Who reads from whom"),
    ],
)
def test_a_wrong_pipeline_is_refused_with_its_reason(solution, reason):
    verdict = check_pipeline(solution)
    assert not verdict.right
    assert reason in verdict.why, verdict.why


# --- write_lines --------------------------------------------------------------------------------------------


def batches(lines, fd):
    batch = b""
    for line in lines:
        if len(batch) + len(line) > select.PIPE_BUF:
            os.write(fd, batch)
            batch = b""
        batch += line
    if batch:
        os.write(fd, batch)


def nothing(lines, fd): ...


def each_line(lines, fd):
    for line in lines:
        os.write(fd, line)


def all_at_once(lines, fd):
    os.write(fd, b"".join(lines))


def in_pieces(lines, fd):
    text = b"".join(lines)
    for start in range(0, len(text), 1000):
        os.write(fd, text[start : start + 1000])


def forgets_the_last(lines, fd):
    batch = b""
    for line in lines:
        if len(batch) + len(line) > select.PIPE_BUF:
            os.write(fd, batch)
            batch = b""
        batch += line


def never_empties(lines, fd):
    batch = b""
    for line in lines[:300]:
        batch += line
        if len(batch) > select.PIPE_BUF - 100:
            os.write(fd, batch)


def through_stdio(lines, fd):
    with open(fd, "wb", buffering=8192, closefd=False) as out:
        out.writelines(lines)


def without_line_feeds(lines, fd):
    batches([line.rstrip(b"\n") for line in lines], fd)


def text(lines, fd):
    os.write(fd, "".join(line.decode() for line in lines))


def never_returns(lines, fd):
    while True:
        time.sleep(1)


def test_a_right_write_lines_is_accepted():
    verdict = check_write_lines(batches, LINES)
    assert verdict.right, verdict


def test_a_write_waits_also_when_another_writer_arrives_and_makes_its_clone_non_blocking():
    tx, rx = open_pipe()
    seen = []

    def another_arrives(lines, fd):
        os.set_blocking(tx.fileno(), False)
        seen.append(os.get_blocking(fd))

    pipes._writes(another_arrives, [], tx)
    tx.close(), rx.close()
    assert seen == [True]


@pytest.mark.parametrize(
    "solution, reason",
    [
        (nothing, "nothing was written yet"),
        (each_line, "one for each line"),
        (all_at_once, "Beyond PIPE_BUF"),
        (in_pieces, "ends within a line"),
        (forgets_the_last, "lines are missing"),
        (never_empties, "empty the batch"),
        (through_stdio, "Beyond PIPE_BUF"),
        (without_line_feeds, "line feeds are missing"),
        (text, "then bytes"),
        (never_returns, "did not return"),
    ],
)
def test_a_wrong_write_lines_is_refused_with_its_reason(solution, reason):
    verdict = check_write_lines(solution, LINES)
    assert not verdict.right
    assert reason in verdict.why, verdict.why
