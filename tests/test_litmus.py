"""Litmus tests: what the models allow is what the literature says, and what two processes see is never more."""

import os
import re

import pytest

from labkit.litmus import Litmus, compare, plot_seen, run_all, table
from labkit.litmus.models import this_machine
from labkit.lockfree.atomics import (
    acquire_fence,
    add,
    compiler_fence,
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

# --- store buffering ---------------------------------------------------------------------------------------------


def sb_left(x, y):
    store_relaxed(x, 1)
    return load_relaxed(y)


def sb_right(x, y):
    store_relaxed(y, 1)
    return load_relaxed(x)


def sb_left_fenced(x, y):
    store_relaxed(x, 1)
    fence()
    return load_relaxed(y)


def sb_right_fenced(x, y):
    store_relaxed(y, 1)
    fence()
    return load_relaxed(x)


def sb_left_acq_rel(x, y):
    store_release(x, 1)
    return load_acquire(y)


def sb_right_acq_rel(x, y):
    store_release(y, 1)
    return load_acquire(x)


def sb_left_seq_cst(x, y):
    store_seq_cst(x, 1)
    return load_seq_cst(y)


def sb_right_seq_cst(x, y):
    store_seq_cst(y, 1)
    return load_seq_cst(x)


def sb_left_light(x, y):
    store_relaxed(x, 1)
    release_fence()
    acquire_fence()
    compiler_fence()
    return load_relaxed(y)


# --- message passing ---------------------------------------------------------------------------------------------


def mp_left(x, y):
    store_relaxed(x, 1)
    store_relaxed(y, 1)


def mp_right(x, y):
    seen = load_relaxed(y)
    return seen, load_relaxed(x)


def mp_left_release(x, y):
    store_relaxed(x, 1)
    store_release(y, 1)


def mp_right_acquire(x, y):
    seen = load_acquire(y)
    return seen, load_relaxed(x)


def mp_left_fence(x, y):
    store_relaxed(x, 1)
    release_fence()
    store_relaxed(y, 1)


def mp_right_fence(x, y):
    seen = load_relaxed(y)
    acquire_fence()
    return seen, load_relaxed(x)


def mp_left_compiler(x, y):
    store_relaxed(x, 1)
    compiler_fence()
    store_relaxed(y, 1)


# --- the others --------------------------------------------------------------------------------------------------


def lb_left(x, y):
    seen = load_relaxed(x)
    store_relaxed(y, 1)
    return seen


def lb_right(x, y):
    seen = load_relaxed(y)
    store_relaxed(x, 1)
    return seen


def lb_left_copies(x, y):
    seen = load_relaxed(x)
    store_relaxed(y, seen)
    return seen


def lb_right_copies(x, y):
    seen = load_relaxed(y)
    store_relaxed(x, seen)
    return seen


def r_left(x, y):
    store_relaxed(x, 1)
    store_relaxed(y, 1)


def r_right(x, y):
    store_relaxed(y, 2)
    return load_relaxed(x)


def s_left(x, y):
    store_relaxed(x, 2)
    store_relaxed(y, 1)


def s_right(x, y):
    seen = load_relaxed(y)
    store_relaxed(x, 1)
    return seen


def w_left(x, y):
    store_relaxed(x, 1)
    store_relaxed(y, 2)


def w_right(x, y):
    store_relaxed(y, 1)
    store_relaxed(x, 2)


def coherence_left(x, y):
    store_relaxed(x, 1)


def coherence_right(x, y):
    first = load_relaxed(x)
    return first, load_relaxed(x)


def twice_plain(x, y):
    store_plain(x, 1)
    store_plain(y, 1)
    store_plain(x, 2)


def twice(x, y):
    store_relaxed(x, 1)
    store_relaxed(y, 1)
    store_relaxed(x, 2)


def reader_plain(x, y):
    seen = load_plain(y)
    return seen, load_plain(x)


# left, right, an outcome, and which of sc, x86, arm and c11 allow it. Alglave et al. 2014; Sewell et al. 2010,
# section 2; for C11, where a release and an acquire leave store buffering allowed, Lahav et al. 2017, section 1.
PUBLISHED = [
    (sb_left, sb_right, (0, 0), "x86 arm c11"),
    (sb_left_fenced, sb_right_fenced, (0, 0), ""),
    (sb_left_fenced, sb_right, (0, 0), "x86 arm c11"),
    (sb_left_acq_rel, sb_right_acq_rel, (0, 0), "x86 c11"),
    (sb_left_seq_cst, sb_right_seq_cst, (0, 0), ""),
    (sb_left_light, sb_right_fenced, (0, 0), "x86 c11"),
    (mp_left, mp_right, (1, 0), "arm c11"),
    (mp_left_release, mp_right_acquire, (1, 0), ""),
    (mp_left_release, mp_right, (1, 0), "arm c11"),
    (mp_left, mp_right_acquire, (1, 0), "arm c11"),
    (mp_left_fence, mp_right_fence, (1, 0), ""),
    (mp_left_fence, mp_right_acquire, (1, 0), ""),
    (mp_left_compiler, mp_right_fence, (1, 0), "arm c11"),
    (lb_left, lb_right, (1, 1), "arm c11"),
    (lb_left_copies, lb_right, (1, 1), "arm c11"),
    (r_left, r_right, (0, 2), "x86 arm c11"),
    (s_left, s_right, (1, 2), "arm c11"),
    (w_left, w_right, (1, 1), "arm c11"),
    (coherence_left, coherence_right, (1, 0), ""),
    (coherence_left, coherence_right, (0, 1), "sc x86 arm c11"),
]


@pytest.mark.parametrize(
    "left, right, outcome, models", PUBLISHED, ids=lambda case: getattr(case, "__name__", None) or str(case)
)
def test_a_model_allows_what_the_literature_says(left, right, outcome, models):
    test = Litmus("test", left, right)
    allowing = {model for model in ("sc", "x86", "arm", "c11") if outcome in test.allowed(model)}
    assert allowing == set(models.split())


@pytest.mark.parametrize("left, right", [(left, right) for left, right, _, _ in PUBLISHED])
def test_a_weaker_model_allows_all_that_a_stronger_one_does(left, right):
    test = Litmus("test", left, right)
    sc, x86, arm, c11 = (test.allowed(model) for model in ("sc", "x86", "arm", "c11"))
    assert sc <= x86 <= c11 <= set(test.outcomes)
    assert sc <= arm <= c11


def test_values_out_of_thin_air_are_no_outcome():
    test = Litmus("copies", lb_left_copies, lb_right_copies)
    assert test.outcomes == [(0, 0)]


def test_a_race_of_plain_accesses_may_have_any_outcome_in_c():
    test = Litmus("plain", twice_plain, reader_plain)
    assert test.allowed("c11") == set(test.outcomes)
    assert (1, 0) not in test.allowed("arm") & test.allowed("x86")


def test_the_machine_tells_how_an_outcome_comes_about():
    steps = Litmus("SB", sb_left, sb_right).how((0, 0))
    assert len(steps) == 6
    assert steps.index("left reads y: 0") < steps.index("left's x = 1 reaches memory")
    assert Litmus("SB", sb_left, sb_right).how((0, 0), "sc") is None
    with pytest.raises(ValueError, match="machines that run step by step"):
        Litmus("SB", sb_left, sb_right).how((0, 0), "arm")


# --- reading -----------------------------------------------------------------------------------------------------


def test_a_test_is_read_from_its_functions():
    test = Litmus("R", r_left, r_right)
    assert test.names == ("r1", "y")
    assert test.weak == [(0, 2)]
    assert repr(test) == "R\n  left    right\n  x = 1   y = 2\n  y = 1   r1 = x"
    assert "r1=0  y=2" in test._repr_html_()


def helper(place):
    fence()
    return load_relaxed(place)


def calls_a_helper(x, y):
    store_relaxed(x, 1)
    return helper(y)


def test_functions_that_it_calls_are_read_too():
    assert (0, 0) not in Litmus("SB", calls_a_helper, sb_right_fenced).allowed("x86")


def branches(x, y):
    if load_relaxed(x):
        store_relaxed(y, 1)


def compares(x, y):
    return load_relaxed(x) == 1


def stores_text(x, y):
    store_relaxed(x, "one")


def computes_an_address(x, y):
    return load_relaxed(5)


def adds(x, y):
    return add(x, 1)


def one_place(x):
    return load_relaxed(x)


def returns_a_number(x, y):
    return 5


@pytest.mark.parametrize(
    "function, error, words",
    [
        (branches, TypeError, "straight line"),
        (compares, TypeError, "straight line"),
        (stores_text, ValueError, "small whole numbers"),
        (computes_an_address, TypeError, "one of the two places"),
        (adds, TypeError, "loads, stores and fences"),
        (one_place, TypeError, "the same two places"),
        (returns_a_number, ValueError, "return what was loaded"),
    ],
)
def test_what_is_no_litmus_test_is_refused_with_the_reason(function, error, words):
    with pytest.raises(error, match=words):
        Litmus("wrong", function, function)


def test_a_model_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="there are: sc, x86, arm, c11"):
        Litmus("SB", sb_left, sb_right).allowed("alpha")


def test_no_observation_is_refused():
    with pytest.raises(ValueError, match="nothing is observed"):
        Litmus("nothing", coherence_left, fence_only)


def fence_only(x, y):
    fence()


# --- running -----------------------------------------------------------------------------------------------------

SEVERAL = [
    Litmus("SB", sb_left, sb_right),
    Litmus("SB, fences", sb_left_fenced, sb_right_fenced),
    Litmus("SB, seq_cst", sb_left_seq_cst, sb_right_seq_cst),
    Litmus("MP", mp_left_release, mp_right_acquire),
    Litmus("R", r_left, r_right),
    Litmus("S", s_left, s_right),
    Litmus("W", w_left, w_right),
    Litmus("twice", twice, mp_right),
]


@pytest.fixture(scope="module")
def seen():
    return {one.test.name: one for one in run_all(SEVERAL, 500_000)}


def test_two_processes_never_see_what_the_model_of_this_machine_forbids(seen):
    for one in seen.values():
        assert one.times > 0
        assert one.forbidden(this_machine()) == []


def test_both_processes_took_part(seen):
    assert len(seen["SB"].counts) > 1
    assert {y for _, y in seen["R"].counts} <= {1, 2}
    assert set(seen["W"].counts) <= {(1, 1), (1, 2), (2, 1), (2, 2)}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor: nothing runs at the same time")
def test_two_processors_see_stores_late_and_with_a_fence_they_do_not(seen):
    for _ in range(200):  # on a busy machine the two may hardly ever run at once
        if (late := seen["SB"].weak) > 0:
            break
        seen["SB"] = SEVERAL[0].run(500_000)
    assert late > 0
    assert seen["SB, fences"].weak == seen["SB, seq_cst"].weak == 0


def test_one_processor_says_why_nothing_is_seen(monkeypatch):
    mine = min(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {mine})
    alone = SEVERAL[0].run(20_000)
    assert alone.processors == 1
    assert alone.weak == 0
    assert "take turns" in repr(alone)


def test_a_run_that_takes_too_long_is_ended():
    with pytest.raises(TimeoutError):
        SEVERAL[0].run(1000, patience=0)
    with pytest.raises(ValueError, match="at least once"):
        SEVERAL[0].run(0)


def test_pictures_and_tables_say_what_came_out(seen):
    shown = repr(table(seen.values()))
    assert re.search(r"SB, fences +r1=0  r2=0 +never +✘ forbidden +✘ forbidden +✘ forbidden +✘ forbidden", shown)
    assert re.search(r"SB +r1=0  r2=0 +[\dn].* +✘ forbidden +✔ allowed +✔ allowed +✔ allowed", shown)
    assert "✘ forbidden</td>" in table(seen.values())._repr_html_()
    assert plot_seen(seen.values())._repr_svg_().startswith("<svg")


# --- assembly ----------------------------------------------------------------------------------------------------


def relaxed(x, y):
    store_relaxed(x, 1)


def release(x, y):
    store_release(x, 1)


def seq_cst(x, y):
    store_seq_cst(x, 1)


@pytest.mark.parametrize(
    "function, x86, arm",
    [
        (relaxed, "mov", "str"),
        (release, "mov", "stlr"),
        (seq_cst, "xchg", "stlr"),
        (sb_left_fenced, "mov (lock|mfence) mov", "str dmb ldr"),
        (sb_left_acq_rel, "mov mov", "stlr ldar"),
        (mp_right_acquire, "mov mov", "ldar ldr"),
        (mp_left_fence, "mov mov", "str dmb str"),
        (mp_right_fence, "mov mov", "ldr dmb ldr"),
        (twice, "mov mov mov", "str str str"),
        (twice_plain, "mov mov", "str str"),
    ],
)
def test_the_instructions_of_both_processors_are_shown(function, x86, arm):
    (shown,) = compare(function).parts
    names = {processor: " ".join(line.split()[0] for line in shown[processor]) for processor in ("x86-64", "AArch64")}
    assert re.fullmatch(re.sub(r"\b(mov|xchg)\b", r"\1q", x86), names["x86-64"])
    assert names["AArch64"] == arm


def test_the_compiler_leaves_a_plain_store_out_and_never_an_atomic_one():
    assert [line.split()[-1] for line in compare(twice_plain).parts[0]["x86-64"]] == ["(y)", "(x)"]
    assert [line.split()[-1] for line in compare(twice).parts[0]["AArch64"]] == ["[x]", "[y]", "[x]"]


def waits_plain(x, y):
    while load_plain(x) == 0:
        pass
    return load_relaxed(y)


def waits_relaxed(x, y):
    while load_relaxed(x) == 0:
        pass
    return load_relaxed(y)


@pytest.mark.parametrize("processor", ["x86-64", "AArch64"])
def test_a_loop_is_shown_and_what_the_compiler_has_taken_out_of_it(processor):
    """A plain load is done once, before the loop, which then never ends; a relaxed one is done each time."""

    def in_the_loop(function):
        lines = compare(function).parts[0][processor]
        begin = lines.index("again:")
        (end,) = [n for n, line in enumerate(lines) if line.endswith(" again")]
        assert begin < end
        return [line for line in lines[begin:end] if "x)" in line or "[x]" in line]

    assert not in_the_loop(waits_plain)
    assert len(in_the_loop(waits_relaxed)) == 1


def test_assembly_needs_two_places():
    with pytest.raises(TypeError, match="two places"):
        compare(one_place)
