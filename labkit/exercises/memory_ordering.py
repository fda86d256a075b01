"""Checks of notebook 10-memory-ordering: the models judge the learner's functions, and two processes race them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from labkit.exercises import Verdict
from labkit.litmus import Litmus, compare
from labkit.litmus.reading import Operation, Program
from labkit.lockfree.atomics import fence, load_acquire, load_relaxed, store_relaxed, store_release

MACHINES = {"x86": "x86-TSO", "arm": "Armv8"}
RACES = 500_000

# --- exercise 1: what can be seen? ---------------------------------------------------------------------------------


def _a_left(x, y):
    store_relaxed(x, 1)
    fence()
    return load_relaxed(y)


def _a_right(x, y):
    store_relaxed(y, 1)
    return load_relaxed(x)


def _b_left(x, y):
    store_relaxed(x, 1)
    store_release(y, 1)


def _b_right(x, y):
    seen = load_relaxed(y)
    return seen, load_relaxed(x)


def _c_right(x, y):
    seen = load_acquire(y)
    return seen, load_relaxed(x)


def _d_left(x, y):
    store_release(x, 1)
    return load_acquire(y)


def _d_right(x, y):
    store_release(y, 1)
    return load_acquire(x)


PUZZLES = {
    "A": Litmus("A", _a_left, _a_right),
    "B": Litmus("B", _b_left, _b_right),
    "C": Litmus("C", _b_left, _c_right),
    "D": Litmus("D", _d_left, _d_right),
}
"""The tests of exercise 1. Each has one outcome that no order of its operations, one after the other, explains."""

_WHY = {
    (
        "A",
        "arm",
    ): "Nothing keeps right's store before its load: left's fence is for left only.",
    ("B", "x86"): "A store buffer lets the stores out in order, and loads are done in order.",
    (
        "B",
        "arm",
    ): "The release orders the stores, but nothing orders the loads: ldr may overtake ldr.",
    ("C", "x86"): "A store buffer lets the stores out in order, and loads are done in order.",
    ("C", "arm"): "stlr waits for the store before it, and nothing overtakes ldar: r1=1 brings x=1 along.",
    ("D", "arm"): "On Arm a ldar waits until an older stlr has reached memory, which is more than C11 asks for.",
}


def check_can_be_seen(f: Callable[[], Any]) -> Verdict:
    """Whether f() says for each puzzle on which machines its weak outcome can be seen.

    Args:
        f: f() returns a dictionary from "A", "B", "C", "D" to a set of "x86" and "arm", perhaps empty.
    """
    try:
        said = f()
    except Exception as error:
        return Verdict(False, f"your function stopped with “{type(error).__name__}: {error}”.")
    if said is None:
        return Verdict(False, "your function returns nothing yet: it has to return a dictionary.")
    if not isinstance(said, dict) or set(said) != set(PUZZLES):
        keys = ", ".join(map(repr, said)) if isinstance(said, dict) else repr(said)
        return Verdict(False, f"return a dictionary with the keys 'A', 'B', 'C' and 'D', not {keys}.")
    for name, test in PUZZLES.items():
        answer = {said[name]} if isinstance(said[name], str) else said[name]
        if not isinstance(answer, set | frozenset | tuple | list) or set(answer) - set(MACHINES):
            return Verdict(False, f"the answer for {name} is a set of 'x86' and 'arm', not {said[name]!r}.")
        for machine, title in MACHINES.items():
            problem = _judge_prediction(name, test, machine, title, machine in answer)
            if problem:
                return Verdict(False, problem)
    return Verdict(
        True,
        "A fence on one side is not enough (A); hand-over wants a release and an acquire (B, C); and these two do not "
        "keep a store before a later load (D): C11 allows it, x86 does it, and Arm happens not to.",
    )


def _judge_prediction(name: str, test: Litmus, machine: str, title: str, said: bool) -> str | None:
    (weak,) = test.weak
    can_be = weak in test.allowed(machine)
    if said == can_be:
        return None
    words = test.in_words(weak)
    if said:
        return f"{name}: {words} cannot be seen on {title}. {_WHY[name, machine]}"
    steps = test.how(weak) if machine == "x86" else None
    return f"{name}: {words} can be seen on {title}. {_numbered(steps) if steps else _WHY[name, machine]}"


def _numbered(steps: list[str]) -> str:
    return "\n".join(["This is how:", *(f"{number}. {step}" for number, step in enumerate(steps, 1))])


# --- exercise 2: the fewest fences ---------------------------------------------------------------------------------


def check_fences(left: Callable[..., Any], right: Callable[..., Any]) -> Verdict:
    """Whether of two that announce themselves and then look for the other at least one sees the other, by few fences.

    Args:
        left: left(a, b) stores 1 in a and returns what it then loads from b; fences anywhere.
        right: right(a, b) stores 1 in b and returns what it then loads from a; fences anywhere.
    """
    test, problem = _read("Dekker", left, right)
    if test is None:
        return Verdict(False, problem)
    a, b = test.program.places
    for who, thread, mine, other in (("left", 0, a, b), ("right", 1, b, a)):
        found = [(one.kind, one.place, one.value) for one in test.program.threads[thread] if one.kind != "fence"]
        if found != [("store", mine, 1), ("load", other, 0)]:
            return Verdict(False, f"{who} has to store 1 in {mine} and then return what it loads from {other}.")
        if not any(whose == thread for whose, _ in test.program.returned):
            return Verdict(False, f"{who} does not return what it has loaded: how should it know of the other?")
    both_in = (0, 0)
    if both_in in test.allowed("x86"):
        return Verdict(
            False, f"on x86 both can find a 0 and go in. {_where_to_put(test)}{_numbered(_how(test, both_in))}"
        )
    if both_in in test.allowed("arm"):
        return Verdict(False, f"on Arm both can find a 0 and go in. {_where_to_put(test)}")
    if both_in in test.allowed("c11"):
        return Verdict(
            False,
            "x86 and Arm would do, but C11 does not promise it of these orders, and a compiler goes by C11. Use a "
            "sequentially consistent fence on each side.",
        )
    for thread, who in enumerate(("left", "right")):
        for number, operation in enumerate(test.program.threads[thread]):
            if operation.kind == "fence" and not _needs(test.program, thread, number, both_in):
                return Verdict(
                    False,
                    f"it is right, but operation {number + 1} of {who}, a fence, can go: without it no model lets both "
                    "in either. A fence takes some ten nanoseconds in which the processor does nothing else.",
                )
    seen = test.run(RACES)
    return Verdict(
        True,
        f"no model lets both in, and in {seen.times:,} races here both went in {seen.counts[both_in]} times. Each of "
        "the two orders its own store before its own load: nobody can do that for the other.",
    )


def _read(name: str, left: Callable[..., Any], right: Callable[..., Any]) -> tuple[Litmus | None, str]:
    """The test, or what is wrong with its functions."""
    try:
        return Litmus(name, left, right), ""
    except (TypeError, ValueError) as error:
        return None, f"{error}."
    except Exception as error:
        return None, f"your function stopped with “{type(error).__name__}: {error}”."


def _how(test: Litmus, outcome: tuple[int, ...]) -> list[str]:
    steps = test.how(outcome)
    assert steps is not None, "only outcomes that x86 allows are explained"
    return steps


def _where_to_put(test: Litmus) -> str:
    """What is wrong with the first side that has no full fence between its store and its load."""
    for who, thread in zip(("left", "right"), test.program.threads, strict=True):
        kinds = [one.kind for one in thread]
        fences = [n for n, one in enumerate(thread) if one.kind == "fence"]
        between = [n for n in fences if kinds.index("store") < n < kinds.index("load")]
        if any(thread[n].order == "seq_cst" for n in between):
            continue
        if any(one.order == "seq_cst" for one in thread if one.kind == "store"):
            continue
        if between:
            return f"The {thread[between[0]].order} fence of {who} does not keep a store before a later load. "
        if fences:
            return f"The fence of {who} is not between its store and its load, where the reordering happens. "
        return f"{who} has no fence between its store and its load. "
    return ""


def _needs(program: Program, thread: int, number: int, outcome: tuple[int, ...]) -> bool:
    """Whether an outcome is allowed somewhere when a fence of the program is left out."""
    from labkit.litmus import models

    def without(operations: tuple[Operation, ...]) -> tuple[Operation, ...]:
        return (*operations[:number], *operations[number + 1 :])

    threads = tuple(without(one) if at == thread else one for at, one in enumerate(program.threads))
    moved = tuple((whose, at - 1 if whose == thread and at > number else at) for whose, at in program.returned)
    fewer = Program((threads[0], threads[1]), program.places, moved, program.names)
    return any(outcome in models.allowed(fewer, model) for model in ("x86", "arm", "c11"))


# --- exercise 3: a hand-over that is right on Arm too --------------------------------------------------------------


def check_hand_over(put: Callable[..., Any], take: Callable[..., Any]) -> Verdict:
    """Whether who sees the flag also sees the data, on every machine, and for nothing on x86.

    Args:
        put: put(data, flag) stores 1 in data, then 1 in flag.
        take: take(data, flag) loads flag, then data, and returns both.
    """
    test, problem = _read("hand-over", put, take)
    if test is None:
        return Verdict(False, problem)
    data, flag = test.program.places
    stores = [(one.kind, one.place, one.value) for one in test.program.threads[0] if one.kind != "fence"]
    loads = [(one.kind, one.place) for one in test.program.threads[1] if one.kind != "fence"]
    if stores != [("store", data, 1), ("store", flag, 1)]:
        return Verdict(False, f"put has to store 1 in {data} and then 1 in {flag}: that is the order of a hand-over.")
    if loads != [("load", flag), ("load", data)]:
        return Verdict(
            False, f"take has to look at {flag} first: data that was read before may be older than the flag."
        )
    ordered = [number for _, number in test.program.returned]
    if len(ordered) != 2 or ordered != sorted(ordered):
        return Verdict(False, f"take has to return two values: what it found in {flag}, and what in {data}.")
    for operation in (*test.program.threads[0], *test.program.threads[1]):
        if operation.order == "plain" and operation.place == flag:
            return Verdict(
                False,
                f"{flag} is touched by both at any time. A plain access is not for that: the compiler may leave it out "
                "or move it, and C11 calls it a data race.",
            )
    late = (1, 0)
    arms = {f.__name__: compare(f).parts[0] for f in (put, take)}
    if late in test.allowed("c11") or late in test.allowed("arm"):
        return Verdict(False, _why_late(test, arms))
    for name, part in arms.items():
        slow = [line for line in part["x86-64"] if line.startswith(("lock", "mfence", "xchg"))]
        if slow:
            return Verdict(
                False,
                f"it is right, but too strong: {name} costs “{slow[0]}” on x86-64, which waits until the store buffer "
                "is empty. A hand-over needs no such order. What does the release of a store cost, and an acquire?",
            )
    listing = "; ".join(f"{name}: {', '.join(part['AArch64'])}" for name, part in arms.items())
    return Verdict(
        True,
        f"who sees the flag sees the data, on x86, on Arm and in C11. On AArch64 it is {listing}. On x86-64 it is "
        "plain moves, the same as before: there it cost nothing, but it also tells the compiler.",
    )


def _why_late(test: Litmus, arms: dict[str, Any]) -> str:
    """Which side of a hand-over is not in order, and the instructions that show it."""
    data, flag = test.program.places
    put, take = test.program.threads
    (store_data, store_flag), (load_flag, load_data) = (
        [n for n, one in enumerate(side) if one.kind != "fence"] for side in (put, take)
    )
    released = put[store_flag].order in ("release", "seq_cst") or any(
        one.kind == "fence" and one.order in ("release", "seq_cst") for one in put[store_data + 1 : store_flag]
    )
    acquired = take[load_flag].order in ("acquire", "seq_cst") or any(
        one.kind == "fence" and one.order in ("acquire", "seq_cst") for one in take[load_flag + 1 : load_data]
    )
    begin = f"on Arm take can see {flag}=1 and still {data}=0. "
    if not released:
        name, listing = next(iter(arms.items()))
        hint = (
            f"You release {data}; what says “everything before me is done” is the store to {flag}. "
            if put[store_data].order in ("release", "seq_cst")
            else ""
        )
        what = f"Nothing makes the store to {flag} wait for the store to {data}. {hint}"
    elif not acquired:
        name, listing = list(arms.items())[1]
        hint = (
            f"You acquire {data}; what says “nothing after me is done before me” is the load of {flag}. "
            if take[load_data].order in ("acquire", "seq_cst")
            else ""
        )
        what = f"Nothing makes the load of {data} wait for the load of {flag}. {hint}"
    else:
        name, listing = next(iter(arms.items()))
        what = f"A plain access to {data} is a race here, since take reads it whatever the flag says. "
    return f"{begin}{what}On AArch64, {name} is: {', '.join(listing['AArch64'])}."
