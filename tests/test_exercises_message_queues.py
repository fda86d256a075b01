"""The checks of notebook 03-message-queues accept right solutions and refuse typical wrong ones with the reason."""

import time

import pytest
import roles

from labkit import Closed
from labkit.exercises import message_queues
from labkit.exercises.message_queues import check_station, check_urgent_first


@pytest.fixture(autouse=True)
def less_patience(monkeypatch):
    monkeypatch.setattr(message_queues, "PATIENCE", roles.patience(1.5))


# --- urgent first -------------------------------------------------------------------------------------------


def right(rx, handle):
    while True:
        try:
            handle(rx.receive(type=-3))
        except Closed:
            return


def empty(rx, handle): ...


def in_order(rx, handle):
    for message in rx:
        handle(message)


def one_type_after_the_other(rx, handle):
    for urgency in (1, 2, 3):
        try:
            while True:
                handle(rx.receive(timeout=0.1, type=urgency))
        except (TimeoutError, Closed):
            pass


def sorted_beforehand(rx, handle):
    messages = []
    try:
        while True:
            messages.append(rx.receive(timeout=0.2))
    except (TimeoutError, Closed):
        pass
    for message in sorted(messages):  # alarm, report, warning
        handle(message)


def sorted_by_urgency_beforehand(rx, handle):
    messages = []
    while True:
        try:
            while True:
                messages.append(rx.receive(timeout=0.2))
        except TimeoutError:
            pass
        except Closed:
            if not messages:
                return
        messages.sort(key=lambda message: "awr".index(chr(message[0])))
        while messages:
            handle(messages.pop(0))


def alarms_only(rx, handle):
    try:
        while True:
            handle(rx.receive(type=-1))
    except Closed:
        pass


def goes_home_when_one_type_has_ended(rx, handle):
    while True:
        for kind in 1, 2, 3:
            try:
                handle(rx.receive(0, type=kind))
                break
            except TimeoutError:
                pass
            except Closed:
                return


def does_not_catch_the_end(rx, handle):
    while True:
        handle(rx.receive(type=-3))


def waits_for_each_type(rx, handle):
    while True:
        for urgency in (1, 2, 3):
            handle(rx.receive(timeout=0.5, type=urgency))


def never_ends(rx, handle):
    while True:
        try:
            handle(rx.receive(type=-3))
        except Closed:
            time.sleep(0.1)


def test_the_most_urgent_first_is_accepted():
    verdict = check_urgent_first(right)
    assert verdict.right, verdict


@pytest.mark.parametrize(
    "solution, reason",
    [
        (empty, "Nothing was handled"),
        (in_order, "takes no notice of types"),
        (one_type_after_the_other, "do not serve one type to its end"),
        (sorted_beforehand, "do not empty it beforehand"),
        (sorted_by_urgency_beforehand, "do not empty it beforehand"),
        (does_not_catch_the_end, "Catch labkit.Closed"),
        (waits_for_each_type, "your function stopped with"),
        (never_ends, "did not return"),
        (goes_home_when_one_type_has_ended, "of others there may be"),
    ],
)
def test_another_order_is_refused_with_its_reason(solution, reason):
    verdict = check_urgent_first(solution)
    assert not verdict.right
    assert reason in verdict.why, verdict.why


def test_alarms_alone_are_not_all():
    verdict = check_urgent_first(alarms_only)
    assert not verdict.right
    assert "Not handled: warning 1" in verdict.why, verdict.why


# --- station ------------------------------------------------------------------------------------------------


def good(tx, readings):
    dropped = 0
    for urgent, message in readings:
        try:
            tx.send(message, timeout=None if urgent else 0, priority=int(urgent))
        except TimeoutError:
            dropped += 1
    return dropped


def nothing(tx, readings): ...


def always_waits(tx, readings):
    for urgent, message in readings:
        tx.send(message, timeout=None, priority=int(urgent))
    return 0


def never_waits(tx, readings):
    dropped = 0
    for urgent, message in readings:
        try:
            tx.send(message, timeout=0, priority=int(urgent))
        except TimeoutError:
            dropped += 1
    return dropped


def no_priority(tx, readings):
    dropped = 0
    for urgent, message in readings:
        try:
            tx.send(message, timeout=None if urgent else 0)
        except TimeoutError:
            dropped += 1
    return dropped


def does_not_catch(tx, readings):
    for urgent, message in readings:
        tx.send(message, timeout=None if urgent else 0, priority=int(urgent))
    return 0


def counts_what_was_sent(tx, readings):
    return len(readings) - good(tx, readings)


def gives_up_at_the_first(tx, readings):
    for number, (urgent, message) in enumerate(readings):
        try:
            tx.send(message, timeout=None if urgent else 0, priority=int(urgent))
        except TimeoutError:
            return len(readings) - number
    return 0


def does_not_count(tx, readings):
    good(tx, readings)


def urgent_only(tx, readings):
    for urgent, message in readings:
        if urgent:
            tx.send(message, timeout=None, priority=1)
    return sum(not urgent for urgent, _ in readings)


def test_a_station_that_drops_waits_and_counts_is_accepted():
    verdict = check_station(good)
    assert verdict.right, verdict


@pytest.mark.parametrize(
    "solution, reason",
    [
        (nothing, "returns nothing"),
        (always_waits, "timeout=0 never waits"),
        (never_waits, "has to wait for room"),
        (no_priority, "priority=1"),
        (does_not_catch, "catch it, and count"),
        (counts_what_was_sent, "6 were dropped, and you return 4"),
        (gives_up_at_the_first, "never arrived"),
        (does_not_count, "returns nothing"),
        (urgent_only, "every reading that fits"),
    ],
)
def test_another_station_is_refused_with_its_reason(solution, reason):
    verdict = check_station(solution)
    assert not verdict.right
    assert reason in verdict.why, verdict.why
