"""The checks of lab 11 accept right solutions and refuse typical wrong ones with the right reason."""

import fcntl
import os
import struct

import pytest

from labkit.exercises.crash import check_book, check_is_dead

# --- a proof of death --------------------------------------------------------------------------------------------


def request(kind, byte):
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, byte, 1, 0)


def asks_for_the_lock(fd, byte, pid):
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, request(fcntl.F_WRLCK, byte))
    return struct.unpack_from("h", answer)[0] == fcntl.F_UNLCK


def asks_for_the_pid(fd, byte, pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def asks_whether_it_runs(fd, byte, pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "TZX"
    except FileNotFoundError:
        return True


def takes_the_lock(fd, byte, pid):
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, request(fcntl.F_WRLCK, byte))
    except BlockingIOError:
        return False
    return True


@pytest.mark.leaves("processes", reason="the killed ones are reaped when the check ends")
def test_to_ask_for_the_lock_is_right():
    verdict = check_is_dead(asks_for_the_lock)
    assert verdict.right, verdict
    assert "not while it is stopped" in verdict.why


@pytest.mark.parametrize(
    "function, reason",
    [
        (asks_for_the_pid, "a zombie"),
        (asks_whether_it_runs, "SIGSTOP"),
        (takes_the_lock, "has locked the byte itself"),
        (lambda fd, byte, pid: True, "a process that lives is not dead"),
        (lambda fd, byte, pid: False, "a process that was killed is dead"),
        (lambda fd, byte, pid: None, "returns nothing yet"),
        (lambda fd, byte, pid: 1 // 0, "ZeroDivisionError"),
    ],
)
def test_what_is_no_proof_is_refused_with_its_reason(function, reason):
    verdict = check_is_dead(function)
    assert not verdict.right
    assert reason in verdict.why


# --- booked exactly once -----------------------------------------------------------------------------------------


def books_in_its_place(q, ledger):
    with q.borrow(timeout=0) as slot:
        number, amount = int(slot.array["number"]), int(slot.array["amount"])
        ledger.array[number] = amount


def receives_first(q, ledger):
    entry = q.receive(timeout=0)
    ledger.array[entry["number"]] = entry["amount"]


def adds_up(q, ledger):
    with q.borrow(timeout=0) as slot:
        amount = int(slot.array["amount"])
        ledger.array[0] += amount


def releases_too_early(q, ledger):
    with q.borrow(timeout=0) as slot:
        number, amount = int(slot.array["number"]), int(slot.array["amount"])
    ledger.array[number] = amount


def books_nothing(q, ledger):
    q.receive(timeout=0)


def waits(q, ledger):
    with q.borrow() as slot:
        ledger.array[int(slot.array["number"])] = int(slot.array["amount"])


def stops(q, ledger):
    raise KeyError("no")


def test_to_book_in_a_place_of_its_own_before_the_release_is_right():
    verdict = check_book(books_in_its_place)
    assert verdict.right, verdict
    assert "killed at" in verdict.why and "exactly once" in verdict.why


@pytest.mark.parametrize(
    "function, reasons",
    [
        (receives_first, ["killed before “ledger.array[entry[", "an entry of 500 was lost"]),
        (adds_up, ["an entry of 500 was booked twice"]),
        (releases_too_early, ["killed before “ledger.array[number] = amount”", "an entry of 500 was lost"]),
        (books_nothing, ["the sum of the ledger is 0 instead of 573"]),
        (stops, ["KeyError"]),
    ],
)
def test_what_loses_or_doubles_is_refused_with_the_line_where_it_was_killed(function, reasons):
    verdict = check_book(function)
    assert not verdict.right
    for reason in reasons:
        assert reason in verdict.why
