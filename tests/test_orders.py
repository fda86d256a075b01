"""The memory order of each named edge is in the code that Numba makes: in LLVM's language, and for AArch64.

x86-64 forgives: there every load acquires and every store releases, so that a test that runs cannot tell. What is read
here is what a machine that keeps no order by itself is told. The rows are the tables of edges of each algorithm.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, NamedTuple

import pytest
from emitted import aarch64_of, llvm_of
from numba import int64

from labkit.lockfree import bells, broadcast, mpmc, mpmc_entry

LOAD_ACQUIRE, STORE_RELEASE = r"load atomic i64, .* acquire", r"store atomic i64 .* release"
EXCHANGE, ADD, SET_BITS = r"cmpxchg .* acq_rel acquire", r"atomicrmw add .* seq_cst", r"atomicrmw or .* seq_cst"
LDAR, STLR, CAS = r"\bldap?r\b", r"\bstlr\b", r"\bldaxr\b(.*\n)*?.*\bstlxr\b|\bcasal\b"
ADDAL, SETAL = r"\bldaxr\b(.*\n)*?.*\bstlxr\b|\bldaddal\b", r"\bldaxr\b(.*\n)*?.*\bstlxr\b|\bldsetal\b"
SOON = r".*\n(.*\n){0,60}?.*"
AND = "\0"
"""Between two patterns: both are there, in whatever order the compiler has laid the branches out."""


class Row(NamedTuple):
    """An edge in a compiled function of so many words."""

    edge: str
    function: Any
    words: int
    llvm: str
    aarch64: str


MPMC = [
    Row("A, publish", mpmc.publish, 2, STORE_RELEASE, STLR),
    Row("A, give_up", mpmc.give_up, 2, STORE_RELEASE, STLR),
    Row("A, take looks", mpmc.take_at, 6, LOAD_ACQUIRE, LDAR),
    Row("A, take exchanges", mpmc.take_at, 6, EXCHANGE, CAS),
    Row("A, take walks", mpmc._walk_to_take, 6, LOAD_ACQUIRE + AND + EXCHANGE, LDAR + AND + CAS),
    Row("A, retake", mpmc.retake, 4, LOAD_ACQUIRE + AND + EXCHANGE, LDAR + AND + CAS),
    Row("A, hand_back, then BACK", mpmc.hand_back, 2, STORE_RELEASE + SOON + STORE_RELEASE, STLR + SOON + STLR),
    Row("B, release", mpmc.release, 2, STORE_RELEASE, STLR),
    Row("B, claim exchanges", mpmc.claim_at, 5, EXCHANGE, CAS),
    Row("B, claim a run", mpmc.claim_run, 6, EXCHANGE, CAS),
    Row("B, claim walks", mpmc._walk_to_claim, 6, LOAD_ACQUIRE + AND + EXCHANGE, LDAR + AND + CAS),
    Row("H, who helps on", mpmc.help_on, 2, STORE_RELEASE, STLR),
    Row("H, who claims", mpmc.claim, 4, LOAD_ACQUIRE + AND + STORE_RELEASE, LDAR + AND + STLR),
    Row("H, who takes", mpmc.take, 4, LOAD_ACQUIRE + AND + STORE_RELEASE, LDAR + AND + STLR),
    Row("the dead, _take_from", mpmc._take_from, 2, EXCHANGE, CAS),
    Row("who may send, arrive", mpmc.arrive, 2, SET_BITS + SOON + ADD, SETAL + SOON + ADDAL),
    Row("who may send, anybody looks", mpmc.anybody, 3, LOAD_ACQUIRE + SOON + LOAD_ACQUIRE, LDAR + SOON + LDAR),
]
BROADCAST = [
    Row("A, publish", broadcast.publish, 2, STORE_RELEASE, STLR),
    Row("A, seen_more", broadcast.seen_more, 2, LOAD_ACQUIRE, LDAR),
    Row("A, a mark", broadcast.finish, 4, STORE_RELEASE + AND + STORE_RELEASE, STLR + AND + STLR),
    Row("N, forget", broadcast.forget, 3, STORE_RELEASE, STLR),
    Row("N, catch_up", broadcast.catch_up, 3, LOAD_ACQUIRE + SOON + LOAD_ACQUIRE, LDAR + SOON + LDAR),
    Row("N, catch_up_items", broadcast.catch_up_items, 3, LOAD_ACQUIRE + SOON + LOAD_ACQUIRE, LDAR + SOON + LDAR),
    Row("N, start", broadcast.start, 4, LOAD_ACQUIRE + SOON + LOAD_ACQUIRE, LDAR + SOON + LDAR),
    Row("O, forget", broadcast.forget, 3, STORE_RELEASE + AND + "fence release", STLR + SOON + r"dmb\s+ish\n"),
    Row("O, forget much", broadcast.forget, 3, STORE_RELEASE + AND + "fence seq_cst", STLR + SOON + r"dmb\s+ish\n"),
    Row("O, is_whole", broadcast.is_whole, 2, "fence acquire" + SOON + "load atomic i64, .* monotonic",
        r"dmb\s+ishld" + SOON + r"\bldr\b"),
]  # fmt: skip
BELLS = [
    Row("S, arm", bells.arm, 2, SET_BITS + SOON + "fence seq_cst", SETAL + SOON + r"dmb\s+ish\n"),
    Row("S, _wake fences", bells._wake, 2, "fence seq_cst", r"dmb\s+ish\n"),
]
"""`ring` tells the processor nothing: who waits does its part, by membarrier(2)."""

EIGHT_BYTES = mpmc_entry.item_operations(8)
MEMCPY = r"\bbl\s+memcpy"
HOT = [
    Row("mpmc: claim, fill, publish", mpmc_entry.put_at, 5, "memcpy" + AND + STORE_RELEASE, MEMCPY + SOON + STLR),
    Row("mpmc: claim, fill, publish a run", mpmc_entry.put_items, 4, "memcpy" + AND + STORE_RELEASE,
        MEMCPY + SOON + STLR),
    Row("mpmc: take, read, release", mpmc_entry.take_items, 4, "memcpy" + AND + STORE_RELEASE,
        MEMCPY + SOON + STLR),
    Row("mpmc: a message of bytes", mpmc_entry.put_bytes, 3, "memcpy" + AND + STORE_RELEASE,
        MEMCPY + SOON + STLR),
    Row("mpmc: an item, in compiled code", EIGHT_BYTES["send"], 3, EXCHANGE + AND + STORE_RELEASE, CAS + AND + STLR),
    Row("mpmc: an item comes, in compiled code", EIGHT_BYTES["receive"], 3,
        LOAD_ACQUIRE + AND + EXCHANGE + AND + STORE_RELEASE, LDAR + AND + CAS + AND + STLR),
    Row("broadcast: forget, fill, publish", broadcast.write_items, 5,
        STORE_RELEASE + SOON + "fence" + AND + "memcpy" + AND + STORE_RELEASE,
        STLR + SOON + r"dmb\s+ish\n" + AND + MEMCPY),
    Row("broadcast: room for a message", broadcast.claim, 3, STORE_RELEASE + SOON + "fence",
        STLR + SOON + r"dmb\s+ish\n"),
    Row("broadcast: fill and publish a message", broadcast.write_message, 4, "memcpy" + SOON + STORE_RELEASE,
        MEMCPY + SOON + STLR),
    Row("broadcast: look, read, ask", broadcast.take_items, 6,
        LOAD_ACQUIRE + AND + "memcpy" + AND + "fence acquire" + SOON + "load atomic i64, .* monotonic",
        LDAR + AND + MEMCPY + SOON + r"dmb\s+ishld" + SOON + r"\bldr\b"),
    Row("broadcast: read a message, ask", broadcast.take_message, 5, "memcpy" + SOON + "fence acquire",
        MEMCPY + SOON + r"dmb\s+ishld"),
]  # fmt: skip
"""Whole operations, with everything that the compiler has moved into them: what it has left of the order of steps."""

ROWS = [
    *[pytest.param(row, id=f"mpmc: {row.edge}") for row in MPMC],
    *[pytest.param(row, id=f"broadcast: {row.edge}") for row in BROADCAST],
    *[pytest.param(row, id=f"bells: {row.edge}") for row in BELLS],
    *[pytest.param(row, id=row.edge) for row in HOT],
]


@cache
def _own_code(function: Any, words: int) -> tuple[str, str]:
    """Of the function itself, not of Numba's wrappers around it: LLVM's language, AArch64's assembly."""
    llvm = llvm_of(function, (int64,) * words)
    assembly = aarch64_of(llvm)
    bodies = re.findall(r"^define [^\n]*? @[^\n]*\{\n.*?^\}", llvm, re.M | re.S)
    name = function.py_func.__name__
    (mine,) = [
        body
        for body in bodies
        if re.search(rf"@_ZN[^(]*\d{name}B", (head := body.split("\n")[0])) and "cpython" not in head
    ]
    symbol = re.search(r"@(_ZN\w+)", mine)
    assert symbol
    code = re.search(rf"^{re.escape(symbol[1])}:\n(.*?)^\.Lfunc_end", assembly, re.M | re.S)
    assert code
    return mine, code[1]


@pytest.mark.parametrize("row", ROWS)
def test_the_order_of_each_edge_is_in_the_compiled_code(row):
    llvm, _ = _own_code(row.function, row.words)
    for pattern in row.llvm.split(AND):
        assert re.search(pattern, llvm), llvm


@pytest.mark.parametrize("row", ROWS)
def test_on_aarch64_each_edge_is_its_instructions(row):
    _, assembly = _own_code(row.function, row.words)
    for pattern in row.aarch64.split(AND):
        assert re.search(pattern, assembly), assembly


def test_the_fast_path_of_a_sender_that_nobody_waits_for_has_no_barrier_and_one_exchange():
    """What edge S costs is paid by who waits; and a slot is claimed by its own word alone."""
    ring, _ = _own_code(bells.ring, 2)
    assert not re.search(
        "fence (acquire|release|seq_cst)|atomicrmw|cmpxchg", ring.split("br i1")[0]
    )  # up to the branch: nobody waits
    llvm, claim = _own_code(mpmc.claim_at, 5)
    assert 1 <= len(re.findall("cmpxchg", llvm)) <= 2  # the second is of who has to walk
    assert "atomicrmw" not in llvm
    for code in (claim, _own_code(broadcast.publish, 2)[1], _own_code(broadcast.seen_more, 2)[1]):
        assert not re.search(r"\bdmb\b", code)
