"""The explorer: it finds every interleaving, the shortest that breaks, and real processes do what the model says."""

from __future__ import annotations

import itertools
import math
import os
import random
import time

import pytest
import roles

from labkit import RemoteError, jobs
from labkit.explore import Explorer, acquire, release, until
from tests.roles import interrupt_soon


def steps_of(count):
    def program(s):
        s.done += 1
        for _ in range(count - 1):
            yield
            s.done += 1

    return program


def increment(s):
    value = s.counter
    yield "has read"
    s.counter = value + 1


def guarded(s):
    yield acquire("mutex")
    value = s.counter
    yield "has read"
    s.counter = value + 1
    yield release("mutex")


def philosopher(s, left, right):
    yield acquire(left)
    yield acquire(right)
    s.meals += 1
    yield release(right)
    yield release(left)


def lost_update(program=increment, people="AB"):
    return Explorer(
        dict.fromkeys(people, program),
        shared={"counter": 0},
        semaphores={"mutex": 1},
        at_end={"every increment counts": lambda s: s.counter == len(people)},
    )


def table_of(*forks):
    """Philosophers, each with the numbers of the forks in the order in which he takes them."""
    names = ["Plato", "Zeno", "Hume", "Kant"]
    return Explorer(
        {name: (philosopher, f"fork {a}", f"fork {b}") for name, (a, b) in zip(names, forks, strict=False)},
        shared={"meals": 0},
        semaphores={f"fork {n}": 1 for n in range(len(forks))},
    )


def every_schedule(explorer, at=0, so_far=()):
    """All maximal interleavings, one after the other, by trying everything."""
    moves = [(n, there) for n, there in enumerate(explorer._model.next[at]) if there is not None]
    if not moves:
        yield so_far
    for process, there in moves:
        yield from every_schedule(explorer, there, (*so_far, explorer.names[process]))


# ------------------------------------------------------------------------------------------- enumeration


@pytest.mark.parametrize("n", [1, 2, 3, 6, 10])
def test_two_processes_of_n_steps_have_2n_over_n_interleavings(n):
    explorer = Explorer({"A": steps_of(n), "B": steps_of(n)}, shared={"done": 0})
    assert explorer.interleavings == math.comb(2 * n, n)
    assert explorer.states == (n + 1) ** 2


@pytest.mark.parametrize("counts", [(1, 2, 3), (3, 3, 3), (2, 2, 2, 2)])
def test_several_processes_have_as_many_interleavings_as_the_multinomial_says(counts):
    explorer = Explorer({f"P{n}": steps_of(count) for n, count in enumerate(counts)}, shared={"done": 0})
    expected = math.factorial(sum(counts)) // math.prod(map(math.factorial, counts))
    assert explorer.interleavings == expected


@pytest.mark.parametrize("n", [2, 3, 4])
def test_a_mutex_leaves_one_interleaving_for_each_order_of_the_processes(n):
    explorer = lost_update(guarded, "ABCD"[:n])
    assert explorer.interleavings >= math.factorial(n) and explorer.breaking == 0
    orders = {tuple(dict.fromkeys(schedule)) for schedule in every_schedule(explorer)}
    assert orders == set(itertools.permutations("ABCD"[:n]))


@pytest.mark.parametrize("explorer", [lost_update(people="ABC"), table_of((0, 1), (1, 2), (2, 0))])
def test_the_counts_are_those_of_trying_everything(explorer):
    runs = [explorer.walk(schedule) for schedule in every_schedule(explorer)]
    assert explorer.interleavings == len(runs)
    assert explorer.breaking == sum(not run.right for run in runs) > 0


@pytest.mark.parametrize("n", [2, 3, 4])
def test_philosophers_who_all_take_their_left_fork_first_deadlock_in_n_factorial_ways(n):
    assert table_of(*((k, (k + 1) % n) for k in range(n))).breaking == math.factorial(n)


@pytest.mark.parametrize("explorer", [lost_update(), lost_update(people="ABC"), table_of((0, 1), (1, 2), (2, 0))])
def test_no_interleaving_that_breaks_is_shorter_than_the_shortest(explorer):
    shortest = explorer.shortest()
    lengths = [len(schedule) for schedule in every_schedule(explorer) if not explorer.walk(schedule).right]
    assert not shortest.right and len(shortest.schedule) == min(lengths)


def test_the_lost_update_is_told_step_by_step():
    told = repr(lost_update().shortest())
    assert "1. A begins (its own value = 0)" in told
    assert "sets counter = 1 and ends" in told
    assert "✘ “every increment counts” does not hold at the end: counter = 1" in told


def test_a_deadlock_names_who_waits_for_what_and_who_holds_it():
    run = table_of((0, 1), (1, 0)).shortest()
    assert run.kind == "deadlock"
    assert "Plato waits for fork 1, which Zeno holds" in run.why
    assert "Zeno waits for fork 0, which Plato holds" in run.why


def test_a_process_that_waits_for_itself_is_told_so():
    def twice(s):
        yield acquire("mutex")
        yield acquire("mutex")

    assert "waits for mutex, which itself holds" in Explorer({"A": twice}, semaphores={"mutex": 1}).shortest().why


def test_ordered_forks_never_deadlock():
    explorer = table_of((0, 1), (1, 2), (0, 2))
    assert explorer.shortest() is None and explorer.breaking == 0


def test_a_condition_must_hold_after_every_step():
    def visit(s):
        s.inside += 1
        yield
        s.inside -= 1

    explorer = Explorer(
        {"A": visit, "B": visit}, shared={"inside": 0}, always={"at most one is inside": lambda s: s.inside <= 1}
    )
    assert explorer.shortest().schedule == ("A", "B")
    assert explorer.breaking == 4  # all but A A B B and B B A A
    assert not explorer.walk("ABAB").right, "what broke on the way stays broken"


def test_an_exception_in_a_process_breaks_the_run_and_is_named():
    def divide(s):
        yield
        assert s.rest == 1, "somebody was quicker"
        s.rest = 0

    run = Explorer({"A": divide, "B": divide}, shared={"rest": 1}).shortest()
    assert run.kind == "raised" and "B raised AssertionError: somebody was quicker" in run.why


def test_waiting_for_a_condition_blocks_until_it_holds():
    def sleeper(s):
        yield until("it is awake", lambda s: s.awake)

    def waker(s):
        s.awake = 1
        yield

    explorer = Explorer({"A": sleeper, "B": waker}, shared={"awake": 0})
    assert explorer.breaking == 0
    with pytest.raises(ValueError, match="step 1: A cannot run: it waits until it is awake"):
        explorer.walk("A")


def test_what_comes_before_the_first_yield_counts_as_done_when_it_touches_nothing_shared():
    def quiet(s):
        own = 1
        yield acquire("mutex")
        s.counter += own

    assert Explorer({"A": quiet}, shared={"counter": 0}, semaphores={"mutex": 1}).walk("A").kind == "finished"
    assert lost_update(people="A").walk("A").kind == "unfinished"


def test_loops_are_told_apart_by_what_python_keeps_on_its_stack():
    def thrice(s):
        for _ in ["same", "same", "same"]:
            yield
            s.done += 1

    explorer = Explorer({"A": thrice}, shared={"done": 0})
    assert explorer.interleavings == 1 and explorer.walk("AAA").shared == {"done": 3}


def test_iterators_of_iterators_are_told_apart_too():
    def program(s):
        for _, (_, _) in enumerate(zip([1, 1, 1], (2, 2, 2), strict=True)):
            yield from steps_of(2)(s)
            for _ in reversed(range(2)):
                yield

    explorer = Explorer({"A": program, "B": program}, shared={"done": 0})
    assert explorer.interleavings == math.comb(20, 10)  # ten steps each: three in every round, and the end


def test_a_process_may_go_round_for_ever():
    def blink(s):
        while True:
            s.light = 1 - s.light
            yield

    explorer = Explorer({"A": blink}, shared={"light": 0}, always={"it is dark": lambda s: s.light == 0})
    assert explorer.states == 3 and explorer.interleavings == math.inf and explorer.shortest().schedule == ("A",)
    assert "without end" in repr(explorer)


def test_a_program_may_be_made_of_others():
    def lock(s):
        yield acquire("mutex")

    def program(s):
        yield from lock(s)
        value = s.counter
        yield
        s.counter = value + 1
        yield release("mutex")

    assert lost_update(program).breaking == 0


def test_the_table_is_the_same_each_time():
    assert lost_update().table() == lost_update().table()


def test_lists_are_shared_item_by_item():
    def swap(s):
        first = s.pair[0]
        yield
        s.pair[0] = s.pair[1]
        s.pair[-1] = first

    explorer = Explorer({"A": swap}, shared={"pair": [1, 2]}, at_end={"both are there": lambda s: sum(s.pair) == 3})
    assert explorer.walk("AA").shared == {"pair": [2, 1]} and explorer.breaking == 0


# ------------------------------------------------------------------------------------------- what is refused


def plain(s):
    return s


def wants_fork(s):
    yield acquire("frok")


def yields_number(s):
    yield 7


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        (({},), ValueError, "at least one process"),
        (({"A": plain},), TypeError, "not a generator function"),
        (({"A": wants_fork}, {}, {"fork": 1}), ValueError, "'frok'; the semaphores are: 'fork'"),
        (({"A": yields_number},), TypeError, "A yields 7"),
        (({"A": increment}, {"counter": "0"}), TypeError, "whole numbers"),
        (({"A": increment}, {"a b": 0}), ValueError, "Python name"),
        (({"A": increment}, {"counter": 0}, {"mutex": -1}), ValueError, "0 or more"),
    ],
)
def test_a_program_that_cannot_be_explored_is_refused_with_the_reason(arguments, error, words):
    with pytest.raises(error, match=words):
        Explorer(*arguments)


def test_too_many_states_are_an_error_that_says_what_to_do():
    with pytest.raises(ValueError, match="more than 100 states.*shorten"):
        Explorer({name: steps_of(9) for name in "ABC"}, shared={"done": 0}, most_states=100)


def test_a_misspelt_variable_is_named():
    def typo(s):
        s.conter = 1
        yield

    run = Explorer({"A": typo}, shared={"counter": 0}).shortest()
    assert "nothing shared is called 'conter'; there is: counter" in run.why


def test_what_cannot_be_compared_is_refused():
    def opens(s):
        here = object()
        yield
        del here

    with pytest.raises(TypeError, match="holds “object”"):
        Explorer({"A": opens})


def test_an_impossible_schedule_is_refused_with_the_step():
    explorer = lost_update(guarded)
    with pytest.raises(ValueError, match="step 2: B cannot run: it waits for mutex"):
        explorer.run("AB")
    with pytest.raises(ValueError, match="no process is called 'C'; there are: A, B"):
        explorer.walk("C")
    with pytest.raises(ValueError, match="step 4: A has ended"):
        explorer.walk("AAAA")


# ------------------------------------------------------------------------------------------- real processes


@pytest.mark.parametrize("seed", range(4))
def test_real_processes_end_as_the_model_says_in_any_order(seed):
    explorer = table_of((0, 1), (1, 2), (2, 0)) if seed % 2 else lost_update(people="ABC")
    chance, schedule = random.Random(seed), []
    at = 0
    while moves := [n for n, there in enumerate(explorer._model.next[at]) if there is not None]:
        process = chance.choice(moves)
        schedule.append(explorer.names[process])
        at = explorer._model.next[at][process]
    real, model = explorer.run(schedule), explorer.walk(schedule)
    assert (real.shared, real.kind, real.why, real.steps) == (model.shared, model.kind, model.why, model.steps)
    assert len(set(real.pids.values())) == 3 and not model.pids


def test_real_processes_really_sleep_in_a_deadlock():
    explorer = table_of((0, 1), (1, 2), (2, 0))
    run = explorer.run(explorer.shortest().schedule)
    assert run.kind == "deadlock" and "in real processes" in repr(run)


def test_a_run_may_stop_in_the_middle():
    assert lost_update().run("AB").kind == "unfinished"


def test_a_program_that_depends_on_something_else_is_found_out():
    def moody(s):
        yield
        s.counter = os.getpid()

    with pytest.raises(RuntimeError, match="step 1: A did something else than in the model"):
        Explorer({"A": moody}, shared={"counter": 0}).run("A")


def test_a_process_that_dies_is_told_of():
    def leaves(s):
        if s.counter == 0:
            yield
            if os.getpid() != s.parent:
                os._exit(3)

    with pytest.raises(RemoteError, match="exited 3"):
        Explorer({"A": leaves}, shared={"counter": 0, "parent": os.getpid()}).run("AA")


def test_free_runs_lose_updates_and_counted_are_all():
    race = lost_update().race(60, pause=0.002)
    assert race.times == sum(race.outcomes.values()) == 60
    assert race.broken > 0 and "counter = 1" in repr(race) and "✘" in race._repr_html_()


def test_free_runs_of_a_right_program_are_right(one_cpu):
    race = lost_update(guarded, "ABC").race(100)
    assert race.broken == 0 and list(race.outcomes) == ["all have ended: counter = 3"]


def hungry(s, left, right):
    yield acquire(left)
    yield "has one"
    yield acquire(right)
    yield release(right)
    yield release(left)


def test_a_deadlock_of_free_processes_is_proven_and_the_next_run_goes_on():
    explorer = Explorer({"A": (hungry, "x", "y"), "B": (hungry, "y", "x")}, semaphores={"x": 1, "y": 1})
    race = explorer.race(20, pause=0.003)
    assert race.outcomes.get("deadlock", 0) == race.broken > 0
    assert sum(race.outcomes.values()) == 20


def test_waiting_for_a_condition_that_never_comes_is_proven_too():
    def hopes(s):
        yield until("pigs fly", lambda s: s.flying)

    race = Explorer({"A": hopes, "B": hopes}, shared={"flying": 0}).race(3)
    assert race.outcomes == {"deadlock": 3}


def test_ctrl_c_ends_a_race_and_its_processes():
    def sleeps_in_a_step(s):
        yield
        if os.getpid() != s.parent:
            time.sleep(60)

    timer = interrupt_soon(0.5)
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        Explorer({"A": sleeps_in_a_step}, shared={"n": 0, "parent": os.getpid()}).race(1)
    timer.join()
    assert jobs() == []


def test_a_free_run_that_never_ends_is_given_up(monkeypatch):
    def blink(s):
        while True:
            s.light = 1 - s.light
            yield

    monkeypatch.setattr("labkit.explore.processes.PATIENCE", roles.patience(0.5))
    with pytest.raises(TimeoutError, match="A still running; is there a loop"):
        Explorer({"A": blink}, shared={"light": 0}).race(1)
