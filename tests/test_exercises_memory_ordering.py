"""The checks of lab 10 accept right solutions and refuse typical wrong ones with the right reason."""

import pytest

from labkit.exercises import memory_ordering
from labkit.exercises.memory_ordering import PUZZLES, check_can_be_seen, check_fences, check_hand_over
from labkit.lockfree.atomics import (
    acquire_fence,
    fence,
    load_acquire,
    load_plain,
    load_relaxed,
    load_seq_cst,
    release_fence,
    store_plain,
    store_relaxed,
    store_release,
    store_seq_cst,
)


@pytest.fixture(autouse=True)
def few_races(monkeypatch):
    monkeypatch.setattr(memory_ordering, "RACES", 20_000)


# --- what can be seen --------------------------------------------------------------------------------------------

RIGHT = {"A": {"x86", "arm"}, "B": {"arm"}, "C": set(), "D": {"x86"}}


def test_the_puzzles_have_one_weak_outcome_each():
    assert all(len(test.weak) == 1 for test in PUZZLES.values())


def test_right_predictions_are_accepted():
    verdict = check_can_be_seen(lambda: RIGHT)
    assert verdict.right
    assert "release and an acquire" in verdict.why


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"A": {"arm"}}, "This is how:\n1. "),
        ({"A": {"x86"}}, "left's fence is for left only"),
        ({"A": set()}, "A: r1=0  r2=0 can be seen on x86-TSO"),
        ({"B": {"x86", "arm"}}, "in order, and loads are done in order"),
        ({"B": set()}, "ldr may overtake ldr"),
        ({"C": {"arm"}}, "brings x=1 along"),
        ({"D": set()}, "store buffer"),
        ({"D": {"x86", "arm"}}, "more than C11 asks for"),
        ({"D": "x64"}, "a set of 'x86' and 'arm'"),
        ({"E": set()}, "the keys 'A', 'B', 'C' and 'D'"),
    ],
)
def test_wrong_predictions_are_refused_with_their_reason(change, reason):
    verdict = check_can_be_seen(lambda: RIGHT | change)
    assert not verdict.right
    assert reason in verdict.why


def test_no_prediction_and_an_error_are_told():
    assert "returns nothing yet" in check_can_be_seen(lambda: None).why
    assert "ZeroDivisionError" in check_can_be_seen(lambda: 1 / 0).why


# --- fences ------------------------------------------------------------------------------------------------------


def left(a, b):
    store_relaxed(a, 1)
    fence()
    return load_relaxed(b)


def right(a, b):
    store_relaxed(b, 1)
    fence()
    return load_relaxed(a)


def left_without(a, b):
    store_relaxed(a, 1)
    return load_relaxed(b)


def right_without(a, b):
    store_relaxed(b, 1)
    return load_relaxed(a)


def left_too_early(a, b):
    fence()
    store_relaxed(a, 1)
    return load_relaxed(b)


def left_two_fences(a, b):
    fence()
    store_relaxed(a, 1)
    fence()
    return load_relaxed(b)


def left_release_acquire(a, b):
    store_release(a, 1)
    return load_acquire(b)


def right_release_acquire(a, b):
    store_release(b, 1)
    return load_acquire(a)


def left_light_fence(a, b):
    store_relaxed(a, 1)
    release_fence()
    return load_relaxed(b)


def left_seq_cst(a, b):
    store_seq_cst(a, 1)
    return load_seq_cst(b)


def right_seq_cst(a, b):
    store_seq_cst(b, 1)
    return load_seq_cst(a)


def left_looks_first(a, b):
    seen = load_relaxed(b)
    fence()
    store_relaxed(a, 1)
    return seen


def left_says_nothing(a, b):
    store_relaxed(a, 1)
    fence()
    load_relaxed(b)


def left_stops(a, b):
    return [][0]


@pytest.mark.parametrize("one, other", [(left, right), (left_seq_cst, right_seq_cst)])
def test_one_fence_on_each_side_is_right(one, other):
    verdict = check_fences(one, other)
    assert verdict.right
    assert "both went in 0 times" in verdict.why


@pytest.mark.parametrize(
    "one, other, reason",
    [
        (left_without, right_without, "left has no fence between its store and its load"),
        (left, right_without, "right has no fence between its store and its load"),
        (left_too_early, right, "The fence of left is not between"),
        (left_two_fences, right, "operation 1 of left, a fence, can go"),
        (left_release_acquire, right_release_acquire, "left has no fence between"),
        (left_light_fence, right, "The release fence of left does not keep a store before a later load"),
        (left_looks_first, right, "left has to store 1 in a and then return what it loads from b"),
        (left_says_nothing, right, "does not return what it has loaded"),
        (left_stops, right, "IndexError"),
    ],
)
def test_fences_in_the_wrong_places_are_refused_with_their_reason(one, other, reason):
    verdict = check_fences(one, other)
    assert not verdict.right
    assert reason in verdict.why


# --- hand-over ---------------------------------------------------------------------------------------------------


def put(data, flag):
    store_relaxed(data, 1)
    store_release(flag, 1)


def take(data, flag):
    seen = load_acquire(flag)
    return seen, load_relaxed(data)


def put_with_fence(data, flag):
    store_relaxed(data, 1)
    release_fence()
    store_relaxed(flag, 1)


def take_with_fence(data, flag):
    seen = load_relaxed(flag)
    acquire_fence()
    return seen, load_relaxed(data)


def put_relaxed(data, flag):
    store_relaxed(data, 1)
    store_relaxed(flag, 1)


def take_relaxed(data, flag):
    seen = load_relaxed(flag)
    return seen, load_relaxed(data)


def put_releases_the_data(data, flag):
    store_release(data, 1)
    store_relaxed(flag, 1)


def take_acquires_the_data(data, flag):
    seen = load_relaxed(flag)
    return seen, load_acquire(data)


def put_seq_cst(data, flag):
    store_relaxed(data, 1)
    store_seq_cst(flag, 1)


def put_full_fence(data, flag):
    store_relaxed(data, 1)
    fence()
    store_relaxed(flag, 1)


def put_backwards(data, flag):
    store_release(flag, 1)
    store_relaxed(data, 1)


def take_backwards(data, flag):
    found = load_relaxed(data)
    return load_acquire(flag), found


def put_plain_flag(data, flag):
    store_relaxed(data, 1)
    store_plain(flag, 1)


def take_plain_data(data, flag):
    seen = load_acquire(flag)
    return seen, load_plain(data)


def take_one_value(data, flag):
    load_acquire(flag)
    return load_relaxed(data)


@pytest.mark.parametrize("one, other", [(put, take), (put_with_fence, take_with_fence), (put, take_with_fence)])
def test_a_release_and_an_acquire_are_right(one, other):
    verdict = check_hand_over(one, other)
    assert verdict.right
    assert ("stlr" if one is put else "dmb ish") in verdict.why


@pytest.mark.parametrize(
    "one, other, reasons",
    [
        (put_relaxed, take_relaxed, ["Nothing makes the store to flag wait", "put_relaxed is: str"]),
        (put_relaxed, take, ["Nothing makes the store to flag wait"]),
        (put, take_relaxed, ["Nothing makes the load of data wait", "ldr x9, [flag], ldr x10, [data]"]),
        (put_releases_the_data, take, ["You release data"]),
        (put, take_acquires_the_data, ["You acquire data"]),
        (put_seq_cst, take, ["too strong", "xchg"]),
        (put_full_fence, take, ["too strong", "waits until the store buffer is empty"]),
        (put_backwards, take, ["1 in data and then 1 in flag"]),
        (put, take_backwards, ["look at flag first"]),
        (put_plain_flag, take, ["data race"]),
        (put, take_plain_data, ["A plain access to data is a race here"]),
        (put, take_one_value, ["has to return two values"]),
        (put, len, ["two places"]),
    ],
)
def test_a_hand_over_without_order_is_refused_with_its_reason(one, other, reasons):
    verdict = check_hand_over(one, other)
    assert not verdict.right
    for reason in reasons:
        assert reason in verdict.why
