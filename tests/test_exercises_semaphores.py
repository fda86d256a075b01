"""The checks of lab 05 accept right solutions and refuse typical wrong ones with the right reason."""

import re
import time
from pathlib import Path

import pytest
import roles

from labkit.exercises import semaphores
from labkit.exercises.semaphores import check_buffer, check_in_turn
from labkit.exercises.start_here import read_rows

ROWS = read_rows(Path(__file__).parent.parent / "data" / "weather-jfk-2013.csv")[:120]

# --- in turn ---------------------------------------------------------------------------------------------------


def in_turn(me, gates, say):
    for _ in range(3):
        gates[me].acquire()
        say("ABC"[me])
        gates[(me + 1) % 3].release()


def with_own_names(me, gates, say):
    mine, following = gates[me], gates[me - 2]
    for _ in range(3):
        mine.acquire(timeout=5)
        say("ABC"[me])
        following.release()


def nothing(me, gates, say): ...


def nobody_waits(me, gates, say):
    for _ in range(3):
        say("ABC"[me])


def sleeps(me, gates, say):
    for _ in range(3):
        time.sleep(0.1 * (1 + me))
        say("ABC"[me])


def speaks_then_waits(me, gates, say):
    for _ in range(3):
        say("ABC"[me])
        gates[me].acquire()
        gates[(me + 1) % 3].release()


def opens_its_own_gate(me, gates, say):
    for _ in range(3):
        gates[me].acquire()
        say("ABC"[me])
        gates[me].release()


def waits_for_the_next(me, gates, say):
    for _ in range(3):
        gates[(me + 1) % 3].acquire()
        say("ABC"[me])
        gates[me].release()


def one_round(me, gates, say):
    gates[me].acquire()
    say("ABC"[me])
    gates[(me + 1) % 3].release()


def last_opens_nothing(me, gates, say):
    for _ in range(3):
        gates[me].acquire()
        say("ABC"[me])
        if me < 2:
            gates[me + 1].release()


def too_many_gates(me, gates, say):
    gates[me].acquire()
    gates[me + 1].release()


@pytest.mark.parametrize("solution", [in_turn, with_own_names])
def test_who_speaks_in_turn_is_right(solution):
    verdict = check_in_turn(solution)
    assert verdict.right and "ABCABCABC" in verdict.why, verdict


@pytest.mark.parametrize(
    "solution, reason",
    [
        (nothing, "nobody said anything"),
        (nobody_waits, "Nobody waited at a gate"),
        (sleeps, "a sleep"),
        (speaks_then_waits, "before you speak"),
        (opens_its_own_gate, "does it open its own gate instead"),
        (waits_for_the_next, "gates\\[me\\]|At place 1"),
        (one_round, "3 times"),
        (last_opens_nothing, "Does C open the gate of A again"),
        (too_many_gates, "IndexError"),
    ],
)
def test_who_speaks_out_of_turn_is_told_why(solution, reason, monkeypatch):
    monkeypatch.setattr(semaphores, "PATIENCE", roles.patience(2.0))
    verdict = check_in_turn(solution)
    assert not verdict.right
    assert re.search(reason, verdict.why), verdict.why


# --- the buffer ------------------------------------------------------------------------------------------------


def put(buffer, item, free, items, mutex):
    free.acquire()
    with mutex:
        buffer.append(item)
    items.release()


def take(buffer, free, items, mutex):
    items.acquire()
    with mutex:
        item = buffer.pop()
    free.release()
    return item


def put_holding_the_mutex(buffer, item, free, items, mutex):
    with mutex:
        free.acquire()
        buffer.append(item)
        items.release()


def take_holding_the_mutex(buffer, free, items, mutex):
    with mutex:
        items.acquire()
        item = buffer.pop()
        free.release()
    return item


def put_without_mutex(buffer, item, free, items, mutex):
    free.acquire()
    buffer.append(item)
    items.release()


def take_without_mutex(buffer, free, items, mutex):
    items.acquire()
    item = buffer.pop()
    free.release()
    return item


def put_without_free(buffer, item, free, items, mutex):
    with mutex:
        buffer.append(item)
    items.release()


def take_without_items(buffer, free, items, mutex):
    with mutex:
        return buffer.pop()


def put_that_tells_nobody(buffer, item, free, items, mutex):
    free.acquire()
    with mutex:
        buffer.append(item)


def put_that_keeps_the_mutex(buffer, item, free, items, mutex):
    free.acquire()
    mutex.acquire()
    buffer.append(item)
    items.release()


def take_that_returns_nothing(buffer, free, items, mutex):
    items.acquire()
    with mutex:
        buffer.pop()
    free.release()


def empty_put(buffer, item, free, items, mutex): ...


def empty_take(buffer, free, items, mutex): ...


def put_of_text(buffer, item, free, items, mutex):
    free.acquire()
    with mutex:
        buffer.append(str(item))


def test_the_right_buffer_is_accepted():
    verdict = check_buffer(put, take, ROWS)
    assert verdict.right and "all 120 items" in verdict.why, verdict


@pytest.mark.parametrize(
    "wrong_put, wrong_take, reasons",
    [
        (empty_put, empty_take, ["do nothing yet"]),
        (put, take_holding_the_mutex, ["deadlock: consumer", "waits for items", "holds mutex", "take the mutex last"]),
        (put_holding_the_mutex, take, ["deadlock: ", "waits for free, which", "take the mutex last"]),
        (put_without_mutex, take_without_mutex, ["were lost", "hold the mutex meanwhile"]),
        (put_without_mutex, take, ["hold the mutex meanwhile"]),
        (put_without_free, take, ["put was called 120 times and waited for free 0 times"]),
        (put, take_that_returns_nothing, ["does take return"]),
        (put_of_text, take, ["TypeError", "bytes"]),
    ],
)
def test_a_wrong_buffer_is_refused_with_its_reason(wrong_put, wrong_take, reasons):
    verdict = check_buffer(wrong_put, wrong_take, ROWS)
    assert not verdict.right
    for reason in reasons:
        assert reason in verdict.why, verdict.why


@pytest.mark.parametrize(
    "wrong_put, wrong_take, reason",
    [
        (put, take_without_items, "waits for items"),
        (put_that_tells_nobody, take, "items"),
        (put_that_keeps_the_mutex, take, "mutex"),
    ],
)
def test_a_buffer_at_which_somebody_waits_for_ever_is_given_up(wrong_put, wrong_take, reason, monkeypatch):
    monkeypatch.setattr(semaphores, "PATIENCE", roles.patience(3.0))
    verdict = check_buffer(wrong_put, wrong_take, ROWS)
    assert not verdict.right
    assert reason in verdict.why, verdict.why
