"""The checks of notebook 04-shared-memory accept right solutions and refuse typical wrong ones with the reason."""

import time

import pytest
import roles

from labkit.exercises import shared_memory
from labkit.exercises.shared_memory import check_snapshot, check_transfer


@pytest.fixture(autouse=True)
def less_patience(monkeypatch):
    monkeypatch.setattr(shared_memory, "PATIENCE", roles.patience(6.0))


# --- transfer -----------------------------------------------------------------------------------------------


def right(accounts, source, target, amount, mutex):
    with mutex:
        if accounts[source] < amount:
            return False
        accounts[source] -= amount
        accounts[target] += amount
        return True


def nothing(accounts, source, target, amount, mutex): ...


def without_mutex(accounts, source, target, amount, mutex):
    if accounts[source] < amount:
        return False
    accounts[source] -= amount
    accounts[target] += amount
    return True


def looks_outside(accounts, source, target, amount, mutex):
    if accounts[source] < amount:
        return False
    with mutex:
        accounts[source] -= amount
        accounts[target] += amount
    return True


def keeps_the_mutex_when_refused(accounts, source, target, amount, mutex):
    mutex.acquire()
    if accounts[source] < amount:
        return False
    accounts[source] -= amount
    accounts[target] += amount
    mutex.release()
    return True


def keeps_the_mutex(accounts, source, target, amount, mutex):
    mutex.acquire()
    if accounts[source] < amount:
        mutex.release()
        return False
    accounts[source] -= amount
    accounts[target] += amount
    return True


def overdraws(accounts, source, target, amount, mutex):
    with mutex:
        accounts[source] -= amount
        accounts[target] += amount
        return True


def two_critical_sections(accounts, source, target, amount, mutex):
    with mutex:
        enough = accounts[source] >= amount
    if not enough:
        return False
    with mutex:
        accounts[source] -= amount
        accounts[target] += amount
    return True


def swaps(accounts, source, target, amount, mutex):
    return right(accounts, target, source, amount, mutex)


def raises(accounts, source, target, amount, mutex):
    with mutex:
        raise LookupError("no such account")


def returns_what_numpy_says(accounts, source, target, amount, mutex):
    with mutex:
        enough = accounts[source] >= amount
        if enough:
            accounts[source] -= amount
            accounts[target] += amount
        return enough


def keeps_the_last_coin(accounts, source, target, amount, mutex):
    with mutex:
        if accounts[source] <= amount:
            return False
        accounts[source] -= amount
        accounts[target] += amount
        return True


@pytest.mark.parametrize("solution", [right, returns_what_numpy_says])
def test_a_transfer_under_the_mutex_is_accepted(solution):
    verdict = check_transfer(solution)
    assert verdict.right, verdict


@pytest.mark.parametrize(
    "solution, reason",
    [
        (nothing, "returns nothing"),
        (without_mutex, "wrote over what the first had written"),
        (looks_outside, "looking belongs under the mutex"),
        (two_critical_sections, "looking belongs under the mutex"),
        (keeps_the_mutex_when_refused, "on every way out"),
        (keeps_the_mutex, "still taken"),
        (overdraws, "the answer is False"),
        (keeps_the_last_coin, "is all that there is, and enough"),
        (swaps, "the accounts are"),
        (raises, "no such account"),
    ],
)
def test_another_transfer_is_refused_with_its_reason(solution, reason):
    verdict = check_transfer(solution)
    assert not verdict.right
    assert reason in verdict.why, verdict.why


# --- snapshot -----------------------------------------------------------------------------------------------


def write(words, frame):
    words[0] += 1
    words[1:65] = frame
    words[0] += 1


def read(words):
    while True:
        version = words[0]
        frame = words[1:65].copy()
        if version % 2 == 0 and words[0] == version:
            return frame


def write_one_by_one(words, frame):
    words[0] += 1
    for n, number in enumerate(frame, 1):
        words[n] = number
    words[0] += 1


def write_through_a_view(words, frame):
    words[0] += 1
    words[1:65][:] = frame
    words[0] += 1


def write_nothing(words, frame): ...


def plain_write(words, frame):
    words[1:65] = frame


def plain_read(words):
    return words[1:65].copy()


def version_after(words, frame):
    words[1:65] = frame
    words[0] += 2


def never_even(words, frame):
    words[0] |= 1
    words[1:65] = frame


def read_a_view(words):
    return words[1:65]


def read_nothing(words): ...


def read_without_a_second_look(words):
    while words[0] % 2:
        pass
    time.sleep(0.00002)
    return words[1:65].copy()


def read_any_stable_version(words):
    while True:
        version = words[0]
        frame = words[1:65].copy()
        if words[0] == version:
            return frame


def read_the_version_too(words):
    return words[0:65].copy()


@pytest.mark.parametrize("writer", [write, write_one_by_one, write_through_a_view])
def test_a_version_before_and_after_is_accepted(writer):
    verdict = check_snapshot(writer, read)
    assert verdict.right, verdict


def test_a_reader_that_gives_up_is_told_to_try_again():
    words = shared_memory._new_words()
    try:
        found = shared_memory._reads(read_nothing, words)
    finally:
        words.close()
    assert "try again" in shared_memory._judge_frames(*found)


@pytest.mark.parametrize(
    "writer, reader, reason",
    [
        (write_nothing, read, "a frame full of 7 was written"),
        (write, read_nothing, "returns nothing"),
        (write, read_the_version_too, "a frame has 64 numbers"),
        (plain_write, plain_read, "were torn"),
        (write, plain_read, "were torn"),
        (write, read_any_stable_version, "were torn"),
        (write, read_without_a_second_look, "were torn"),
        (write, read_a_view, "not a copy"),
        (version_after, read, r"were torn|was even"),
        (never_even, read, "not done within"),
    ],
)
def test_another_protocol_is_refused_with_its_reason(writer, reader, reason, monkeypatch):
    monkeypatch.setattr(shared_memory, "PATIENCE", roles.patience(3.0))
    verdict = check_snapshot(writer, reader)
    assert not verdict.right
    assert any(part in verdict.why for part in reason.split("|")), verdict.why
