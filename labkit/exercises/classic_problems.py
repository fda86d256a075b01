"""Checks of notebook 08-classic-problems: the learner's function meets every interleaving, and real processes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from labkit.exercises import Verdict, last_line
from labkit.explore import Explorer, Run, until
from labkit.launch import RemoteError, launch

PATIENCE = 10.0
"""Seconds that a learner's function may take."""
FREE_RUNS = 100


# --- exercise 1: find the order that breaks the lock of two flags ---------------------------------------------------


def look_then_enter(s: Any, me: int, other: int) -> Any:
    """A lock without a semaphore: whoever sees that the other has not raised its flag raises its own and goes in."""
    for _ in range(2):
        yield until("the other's flag is down", lambda s: not s.flag[other])
        yield "has looked"
        s.flag[me] = 1
        s.inside += 1
        yield "is inside"
        s.inside -= 1
        s.flag[me] = 0


def two_flags() -> Explorer:
    """Two processes, Ann and Ben, that go in twice each, behind the lock of `look_then_enter`."""
    return Explorer(
        {"Ann": (look_then_enter, 0, 1), "Ben": (look_then_enter, 1, 0)},
        shared={"flag": [0, 0], "inside": 0},
        always={"at most one is inside": lambda s: s.inside <= 1},
    )


def _apart(f: Callable[..., Any], *args: Any) -> Any:
    """What f returns in a process of its own, which is ended when it takes too long."""
    job = launch(f, *args)
    try:
        return job.wait(PATIENCE)
    finally:
        job.kill()


def check_breaking_order(f: Callable[..., Any]) -> Verdict:
    """Whether f() returns an order, a list of "Ann" and "Ben", in which both get inside at the same time.

    f runs in a process of its own; its order is then followed by two real processes.
    """
    try:
        order = _apart(f)
    except RemoteError as error:
        return Verdict(False, f"your function stopped with “{last_line(error)}”.")
    except TimeoutError:
        return Verdict(False, f"your function did not return within {PATIENCE:g} seconds.")
    if order is None or order is ...:
        return Verdict(False, "your function returns nothing yet: return a list of names, who runs at each step.")
    if isinstance(order, str):
        order = order.replace(",", " ").split()
    if not isinstance(order, list | tuple) or not all(isinstance(name, str) for name in order):
        return Verdict(False, f"you return {order!r}; the order is a list of names, such as ['Ann', 'Ben'].")
    explorer = two_flags()
    try:
        run = explorer.run(order)
    except ValueError as reason:
        return Verdict(False, f"that order is impossible. {str(reason)[0].upper()}{str(reason)[1:]}.")
    if run.right:
        return Verdict(False, _why_unbroken(explorer, run))
    broken = next(n for n in range(len(order) + 1) if not explorer.walk(order[:n]).right)
    pids = " and ".join(str(pid) for pid in run.pids.values())
    few = explorer.shortest()
    assert few is not None
    longer = f" It also works in {len(few.schedule)} steps." if broken > len(few.schedule) else ""
    return Verdict(
        True,
        f"after step {broken} both were inside, in two real processes ({pids}) that ran in your order. Each had "
        "looked before the other raised its flag: to look and to act are two steps, and a lock has to do both in one."
        + longer,
    )


def _why_unbroken(explorer: Explorer, run: Run) -> str:
    told = "\n".join(f"{number}. {words}" for number, words in enumerate(run.steps, 1))
    if not run.steps:
        return "an empty order breaks nothing: say who runs first."
    if run.kind == "finished":
        return f"both have ended, and at no moment were both inside:\n{told}\nWhen does the other look in time?"
    return (
        f"after your {len(run.steps)} steps, in real processes, {run.shared['inside']} is inside, not 2:\n{told}\n"
        "Both have to look before either raises its flag."
    )


# --- exercise 2: meet ------------------------------------------------------------------------------------------------


def visitor(s: Any, meet: Callable[..., Any], me: int, mine: str, theirs: str) -> Any:
    """Comes to the meeting point twice, and complains when it goes on before the other has come."""
    for time in (1, 2):
        yield "is on its way"
        s.arrived[me] = time
        yield from meet(s, mine, theirs)
        if min(s.arrived) < time:
            s.alone += 1


def meeting(meet: Callable[..., Any]) -> Explorer:
    """Two processes that come to the same place twice and should wait for each other there."""
    return Explorer(
        {
            "Ann": (visitor, meet, 0, "Ann's mark", "Ben's mark"),
            "Ben": (visitor, meet, 1, "Ben's mark", "Ann's mark"),
        },
        shared={"arrived": [0, 0], "alone": 0},
        semaphores={"Ann's mark": 0, "Ben's mark": 0},
        always={"nobody goes on alone": lambda s: s.alone == 0},
    )


def _explored(meet: Callable[..., Any]) -> tuple[float, Run | None]:
    explorer = meeting(meet)
    return explorer.interleavings, explorer.shortest()


def check_meet(f: Callable[..., Any]) -> Verdict:
    """Whether after `yield from f(s, mine, theirs)` both processes have always come to the meeting point.

    Args:
        f: a generator function; `mine` and `theirs` are names of semaphores that start at 0.
    """
    if not inspect.isgeneratorfunction(f):
        return Verdict(False, "there is no yield in your function yet: yield acquire(...) and yield release(...).")
    try:
        # First in a process of its own: it may never come to its next yield.
        every, broken = _apart(_explored, f)
        explorer = meeting(f)
        if broken is not None:
            explorer.run(broken.schedule)  # raises when real processes do something else
            return Verdict(False, _why_alone(broken))
        if every == float("inf"):
            return Verdict(False, "your function can go round for ever; two semaphores are enough, without a loop.")
        race = explorer.race(FREE_RUNS, pause=0.001)
    except TimeoutError:
        return Verdict(
            False,
            f"your function did not come to its next yield within {PATIENCE:g} seconds. A loop that looks again and "
            "again lets nobody else run: wait with yield acquire(...).",
        )
    except RemoteError as error:
        return Verdict(False, f"your function cannot be explored: {last_line(error).partition(': ')[2]}.")
    except (TypeError, ValueError, RuntimeError) as error:
        return Verdict(False, f"your function cannot be explored: {error}.")
    if race.broken:
        return Verdict(False, f"all interleavings are right, but free runs were not: {race!r}")
    return Verdict(
        True,
        f"all {every:,} interleavings of two meetings were tried and none breaks, and {race.times} free runs in real "
        "processes ended well. Each first says that it is here, and then waits for the other.",
    )


def _why_alone(run: Run) -> str:
    told = "\n".join(f"{number}. {words}" for number, words in enumerate(run.steps, 1))
    if run.kind == "deadlock":
        advice = (
            "Nobody will ever release what they wait for. Does each say that it is here before it waits?"
            if "Ann waits" in run.why and "Ben waits" in run.why
            else "One has gone on and the other waits for ever. Does each release once for every time the other waits?"
        )
    elif run.kind == "raised":
        advice = "Exceptions end a process, and the other one waits in vain."
    elif run.shared["arrived"].count(0):
        advice = "At the first meeting already somebody goes on without having waited for the other."
    else:
        advice = (
            "The first meeting was right, the second was not: something was left in a semaphore. Release exactly as "
            "often as the other acquires."
        )
    return f"{run.why}. This order, followed by two real processes, breaks it:\n{told}\n{advice}"
