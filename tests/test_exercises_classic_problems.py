"""The checks of notebook 08 accept right solutions and refuse typical wrong ones with the right reason."""

import time

import pytest
import roles

from labkit.exercises import classic_problems
from labkit.exercises.classic_problems import check_breaking_order, check_meet
from labkit.explore import acquire, release, until

# ------------------------------------------------------------------------------------------- an order that breaks


def shortest():
    return ["Ann", "Ben", "Ann", "Ben"]


def as_text():
    return "Ben Ann Ben Ann"


def later():
    return ["Ann"] * 3 + ["Ben", "Ann", "Ben", "Ann"]


def test_an_order_that_breaks_is_accepted():
    verdict = check_breaking_order(shortest)
    assert verdict.right and "after step 4 both were inside" in verdict.why, verdict


def test_the_order_may_be_text_and_longer_than_needed():
    assert check_breaking_order(as_text).right
    verdict = check_breaking_order(later)
    assert verdict.right and "It also works in 4 steps" in verdict.why, verdict


def nothing(): ...


def one_after_the_other():
    return ["Ann"] * 6 + ["Ben"] * 6


def too_short():
    return ["Ann", "Ben", "Ann"]


def impossible():
    return ["Ann", "Ann", "Ben"]


def strangers():
    return ["Tom"]


def numbers():
    return [0, 1, 0, 1]


def empty():
    return []


def fails():
    return ["Ann"][1]


@pytest.mark.parametrize(
    "solution, reason",
    [
        (nothing, "returns nothing yet"),
        (one_after_the_other, "at no moment were both inside"),
        (too_short, "1 is inside, not 2"),
        (impossible, "Step 3: Ben cannot run"),
        (strangers, "no process is called"),
        (numbers, "a list of names"),
        (empty, "an empty order"),
        (fails, "IndexError"),
    ],
)
def test_an_order_that_does_not_break_is_refused_with_its_reason(solution, reason):
    verdict = check_breaking_order(solution)
    assert not verdict.right
    assert reason in verdict.why, verdict.why


# ------------------------------------------------------------------------------------------- meet


def right(s, mine, theirs):
    yield release(mine)
    yield acquire(theirs)


def the_other_way_round(s, mine, theirs):
    yield release(theirs)
    yield acquire(mine)


@pytest.mark.parametrize("solution", [right, the_other_way_round])
def test_a_meeting_that_always_works_is_accepted(solution):
    verdict = check_meet(solution)
    assert verdict.right and "interleavings of two meetings" in verdict.why, verdict


def not_written(s, mine, theirs): ...


def waits_first(s, mine, theirs):
    yield acquire(theirs)
    yield release(mine)


def says_only(s, mine, theirs):
    yield release(mine)


def waits_for_itself(s, mine, theirs):
    yield release(mine)
    yield acquire(mine)


def says_twice(s, mine, theirs):
    yield release(mine)
    yield release(mine)
    yield acquire(theirs)


def waits_twice(s, mine, theirs):
    yield release(mine)
    yield acquire(theirs)
    yield acquire(theirs)


def misspelt(s, mine, theirs):
    yield release("mine")
    yield acquire(theirs)


def yields_text(s, mine, theirs):
    yield "hello"


def stops(s, mine, theirs):
    yield release(mine)
    raise OSError("the battery is empty")


def spins(s, mine, theirs):
    yield release(mine)
    while not all(s.arrived):
        pass


def sleeps_first(s, mine, theirs):
    yield until("the other is here", lambda s: s.arrived[0] and s.arrived[1])


def holds_an_object(s, mine, theirs):
    lock = object()  # noqa: F841
    yield release(mine)
    yield acquire(theirs)


@pytest.mark.parametrize(
    "solution, reason",
    [
        (not_written, "no yield in your function yet"),
        (waits_first, "before it waits"),
        (says_only, "without having waited for the other"),
        (waits_for_itself, "without having waited for the other"),
        (says_twice, "left in a semaphore"),
        (waits_twice, "Nobody will ever release"),
        (misspelt, "'mine'; the semaphores are"),
        (yields_text, "without having waited for the other"),
        (stops, "the battery is empty"),
        (sleeps_first, "The first meeting was right"),
        (holds_an_object, "holds “object”"),
    ],
)
def test_a_meeting_that_fails_is_refused_with_its_reason(solution, reason):
    verdict = check_meet(solution)
    assert not verdict.right
    assert reason in verdict.why, verdict.why


def test_the_breaking_order_is_told_in_words():
    why = check_meet(waits_first).why
    assert "1. Ann goes on after “is on its way”" in why and "two real processes" in why


def test_a_function_that_spins_is_ended_and_told_so(monkeypatch):
    monkeypatch.setattr(classic_problems, "PATIENCE", roles.patience(1.5))
    began = time.monotonic()
    verdict = check_meet(spins)
    assert not verdict.right and "did not come to its next yield" in verdict.why
    assert time.monotonic() - began < 60
