"""The checks of notebook 02-fifos accept a right solution and refuse typical wrong ones with the right reason."""

import os

import pytest
import roles

from labkit.exercises import fifos
from labkit.exercises.fifos import check_serve, check_try_send


@pytest.fixture(autouse=True)
def less_patience(monkeypatch):
    monkeypatch.setattr(fifos, "PATIENCE", roles.patience(2.0))


# --- serve --------------------------------------------------------------------------------------------------


def right(path):
    with open(os.open(path, os.O_RDONLY), "rb") as fifo:
        writing = os.open(path, os.O_WRONLY)
        lines = []
        for line in fifo:
            if line == b"stop\n":
                break
            lines.append(line.rstrip(b"\n"))
        os.close(writing)
        return lines


def right_by_hand(path):
    fd, rest, lines = os.open(path, os.O_RDWR), b"", []
    while b"stop" not in lines:
        *new, rest = (rest + os.read(fd, 4096)).split(b"\n")
        lines += new
    os.close(fd)
    return lines[: lines.index(b"stop")]


def empty(path): ...


def goes_home_after_the_first(path):
    with open(path, "rb") as fifo:
        return fifo.read().splitlines()


def opens_and_does_nothing(path):
    with open(path, "rb") as fifo:
        fifo.read()


def busy(path):
    fd, rest, lines = os.open(path, os.O_RDONLY), b"", []
    while b"stop" not in lines:
        *new, rest = (rest + os.read(fd, 4096)).split(b"\n")
        lines += new
    return lines[:-1]


def opens_again_and_again(path):
    lines = []
    while True:
        with open(path, "rb") as fifo:
            for line in fifo:
                if line == b"stop\n":
                    return lines
                lines.append(line.removesuffix(b"\n"))


def one_read_one_line(path):
    fd, lines = os.open(path, os.O_RDWR), []
    while (line := os.read(fd, 4096)) != b"stop\n":
        lines.append(line.rstrip(b"\n"))
    return lines


def splits_each_read(path):
    fd, lines = os.open(path, os.O_RDWR), []
    while (piece := os.read(fd, 4096)) != b"stop\n":
        lines += piece.splitlines()
    return lines


def with_line_feeds(path):
    return [line + b"\n" for line in right(path)]


def with_stop(path):
    return [*right(path), b"stop"]


def as_text(path):
    return [line.decode() for line in right(path)]


def waits_for_end_of_file(path):
    with open(os.open(path, os.O_RDWR), "rb", buffering=0) as fifo:
        return fifo.readall().splitlines()


def one_text(path):
    return b"\n".join(right(path))


@pytest.mark.parametrize("solution", [right, right_by_hand])
def test_a_right_server_is_accepted(solution):
    verdict = check_serve(solution)
    assert verdict.right, verdict


@pytest.mark.parametrize(
    "solution, reason",
    [
        (empty, "returns nothing yet"),
        (goes_home_after_the_first, "returned after 1 of 4 clients"),
        (opens_and_does_nothing, "returns nothing yet"),
        (busy, "processor time"),
        (opens_again_and_again, "its line is lost"),
        (one_read_one_line, "split at"),
        (splits_each_read, "one line in two pieces"),
        (with_line_feeds, "still end with"),
        (with_stop, "stop is in your list"),
        (as_text, "you return text"),
        (waits_for_end_of_file, "there is no end of file"),
        (one_text, "a list of bytes"),
    ],
)
def test_a_wrong_server_is_refused_with_its_reason(solution, reason):
    verdict = check_serve(solution)
    assert not verdict.right
    assert reason in verdict.why, verdict.why


# --- try_send -----------------------------------------------------------------------------------------------


def sends(path, message):
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        os.write(fd, message)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def nothing(path, message): ...


def waits_in_open(path, message):
    with open(path, "wb", buffering=0) as fifo:
        fifo.write(message)
    return True


def reads_itself(path, message):
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    os.write(fd, message)
    os.close(fd)
    return True


def does_not_catch_enxio(path, message):
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    os.write(fd, message)
    os.close(fd)
    return True


def does_not_catch_enoent(path, message):
    try:
        return does_not_catch_enxio(path, message)
    except FileNotFoundError:
        raise
    except OSError:
        return False


def makes_a_file(path, message):
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CREAT)
        os.write(fd, message)
        os.close(fd)
        return True
    except OSError:
        return False


def does_not_catch_eagain(path, message):
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return False
    os.write(fd, message)
    os.close(fd)
    return True


def waits_in_write(path, message):
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return False
    os.set_blocking(fd, True)
    os.write(fd, message)
    os.close(fd)
    return True


def always_yes(path, message):
    sends(path, message)
    return True


def in_vain(path, message):
    return sends(path, message[:5])


def never_closes(path, message):
    try:
        os.write(os.open(path, os.O_WRONLY | os.O_NONBLOCK), message)
        return True
    except OSError:
        return False


def closes_only_when_all_is_well(path, message):
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        os.write(fd, message)
        os.close(fd)
        return True
    except OSError:
        return False


def test_a_right_try_send_is_accepted():
    verdict = check_try_send(sends)
    assert verdict.right, verdict


@pytest.mark.parametrize(
    "solution, reason",
    [
        (nothing, "returns nothing yet"),
        (waits_in_open, "nobody listens, and your function still waits"),
        (reads_itself, "O_RDWR"),
        (does_not_catch_enxio, "That is ENXIO"),
        (does_not_catch_enoent, "That is ENOENT"),
        (makes_a_file, "without O_CREAT"),
        (does_not_catch_eagain, "That is EAGAIN"),
        (waits_in_write, "full, and your function still waits"),
        (always_yes, "Your message is lost"),
        (in_vain, "instead of"),
        (never_closes, "left the FIFO open"),
        (closes_only_when_all_is_well, "FIFO is full, and your function left the FIFO open"),
    ],
)
def test_a_wrong_try_send_is_refused_with_its_reason(solution, reason):
    verdict = check_try_send(solution)
    assert not verdict.right
    assert reason in verdict.why, verdict.why
