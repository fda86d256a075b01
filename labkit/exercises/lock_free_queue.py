"""Checks of notebook 09-lock-free-queue: two real processes run the learner's ring, and a reader looks at its order.

A ring may be wrong and never fail on x86. So its functions are also called here, on one processor, with stand-ins for
the atomics that write down each load and store with its memory order (labkit.litmus.reading): what was done before what
can then be said exactly, for every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from labkit.exercises import Verdict, last_line
from labkit.launch import RemoteError
from labkit.litmus.reading import FENCES, LOADS, STORES, with_stand_ins
from labkit.lockfree.atomics import load_acquire, load_relaxed, store_relaxed, store_release
from labkit.rings import NOTHING, Ends, Streamed, stream

CAPACITY = 64
WRITE_POSITION, READ_POSITION, FIRST_SLOT = 0, 128, 256
"""Where things are in the ring of the exercises: byte offsets from its address."""

ITEMS = 50_000
ADDRESS = 1 << 20  # at which the ring stands while it is read
ARRAY = 1 << 30  # and the array of a batch
STEPS = 10_000

NAMES = {WRITE_POSITION: "write_position", READ_POSITION: "read_position"}


@dataclass(frozen=True)
class Step:
    """One load, store or fence."""

    kind: str
    order: str
    address: int = 0
    value: int = 0

    @property
    def place(self) -> str:
        offset = self.address - ADDRESS
        if offset in NAMES:
            return NAMES[offset]
        if FIRST_SLOT <= offset < FIRST_SLOT + 8 * CAPACITY:
            return f"slot {(offset - FIRST_SLOT) // 8}"
        return "the array" if self.address >= ARRAY else f"byte {offset} of the ring"

    @property
    def in_slot(self) -> bool:
        return FIRST_SLOT <= self.address - ADDRESS < FIRST_SLOT + 8 * CAPACITY


class Odd(Exception):
    """The function does something that no ring does."""


def trace(function: Callable[..., Any], memory: dict[int, int], *arguments: Any) -> tuple[Any, list[Step]]:
    """What a function returns on this memory (address -> word, changed as it says), and all that it does."""
    done: list[Step] = []

    def note(step: Step) -> None:
        done.append(step)
        if len(done) > STEPS:
            raise Odd("it does not come to an end: with nobody else there, it waits for ever. Return instead")

    def load(order: str) -> Callable[..., int]:
        def stand_in(address: int) -> int:
            note(Step("load", order, int(address), memory.get(int(address), 0)))
            return memory.get(int(address), 0)

        return stand_in

    def store(order: str) -> Callable[..., None]:
        def stand_in(address: int, value: int) -> None:
            memory[int(address)] = int(value)
            note(Step("store", order, int(address), int(value)))

        return stand_in

    def fence(order: str) -> Callable[..., None]:
        return lambda: note(Step("fence", order))

    stand_ins: dict[str, Callable[..., Any]] = {name: load(order) for name, order in LOADS.items()}
    stand_ins |= {name: store(order) for name, order in STORES.items()}
    stand_ins |= {name: fence(order) for name, order in FENCES.items()}
    stand_ins["pause"] = lambda: note(Step("pause", ""))
    return with_stand_ins(function, stand_ins)(*arguments), done


def ring(write: int, read: int) -> dict[int, int]:
    """Memory of a ring at these positions; the item at position p is 1000 + p."""
    memory = {ADDRESS + FIRST_SLOT + p % CAPACITY * 8: 1000 + p for p in range(max(0, write - CAPACITY), write)}
    return memory | {ADDRESS + WRITE_POSITION: write, ADDRESS + READ_POSITION: read}


# --- exercise 1: the missing edges -----------------------------------------------------------------------------


def check_edges(send: Callable[..., Any], receive: Callable[..., Any]) -> Verdict:
    """Whether a ring's four accesses to positions have the orders that they need, and no more.

    Args:
        send: send(ring, item): whether there was room.
        receive: receive(ring): the item, or NOTHING.
    """
    problem = _guarded(lambda: _wrong_send(send) or _wrong_receive(receive) or _wrong_order(send, receive))
    problem = problem or _does_not_work(Ends(send, receive))
    if problem:
        return Verdict(False, problem)
    return Verdict(
        True,
        "who sees the position sees the item (edge A: release in send, acquire in receive), and who sees that it was "
        "read may overwrite it (edge B, the other way round). Your own position and the slot need no order: at that "
        "moment nobody else writes them. On x86-64 all this costs no instruction, on AArch64 it is stlr and ldar.",
    )


def _wrong_order(send: Callable[..., Any], receive: Callable[..., Any]) -> str | None:
    _, steps = trace(send, ring(5, 3), ADDRESS, 7)
    problem = _wrong_edge(True, steps, WRITE_POSITION, READ_POSITION)
    if problem:
        return problem
    _, steps = trace(receive, ring(5, 3), ADDRESS)
    return _wrong_edge(False, steps, READ_POSITION, WRITE_POSITION)


def _guarded(judge: Callable[[], str | None]) -> str | None:
    try:
        return judge()
    except Odd as reason:
        return f"{reason}."
    except Exception as reason:
        return f"your function stopped with “{type(reason).__name__}: {reason}”."


def _wrong_send(send: Callable[..., Any]) -> str | None:
    for write, read in ((0, 0), (5, 3), (CAPACITY + 2, 7), (CAPACITY - 1, 0)):
        memory = ring(write, read)
        before = dict(memory)
        said, _ = trace(send, memory, ADDRESS, 77)
        where = f"with write_position {write} and read_position {read}"
        if not said:
            return f"{where} there is room, and send says that there is none (it returned {said!r})."
        if memory[ADDRESS + WRITE_POSITION] != write + 1:
            found = memory[ADDRESS + WRITE_POSITION]
            return f"{where} send has to leave write_position at {write + 1}, not {found}: it is a count, not an index."
        if memory.get(ADDRESS + FIRST_SLOT + write % CAPACITY * 8) != 77:
            return f"{where} the item belongs into slot {write % CAPACITY}, and it is not there."
        if memory[ADDRESS + READ_POSITION] != before[ADDRESS + READ_POSITION]:
            return "send changes read_position, which belongs to the receiver."
    memory = ring(CAPACITY + 3, 3)
    before = dict(memory)
    said, _ = trace(send, memory, ADDRESS, 77)
    if said or memory != before:
        return f"the ring is full ({CAPACITY} items), and send writes all the same: it overwrites what nobody has read."
    return None


def _wrong_receive(receive: Callable[..., Any]) -> str | None:
    for write, read in ((1, 0), (5, 3), (CAPACITY + 2, CAPACITY + 1), (CAPACITY + 7, 7)):
        memory = ring(write, read)
        said, _ = trace(receive, memory, ADDRESS)
        where = f"with write_position {write} and read_position {read}"
        if said != 1000 + read:
            return f"{where} the next item is {1000 + read}, in slot {read % CAPACITY}, and receive returned {said!r}."
        if memory[ADDRESS + READ_POSITION] != read + 1:
            found = memory[ADDRESS + READ_POSITION]
            return f"{where} receive has to leave read_position at {read + 1}, not at {found}."
        if memory[ADDRESS + WRITE_POSITION] != write:
            return "receive changes write_position, which belongs to the sender."
    memory = ring(5, 5)
    said, _ = trace(receive, memory, ADDRESS)
    if said != NOTHING or memory != ring(5, 5):
        return f"the ring is empty: receive has to return NOTHING ({NOTHING}) and change nothing; it returned {said!r}."
    return None


_RELEASE = {
    True: "The receiver could see the new position and find an old item. x86 keeps stores in order; Arm does not, and "
    "the compiler need not.",
    False: "The sender could see the slot free and overwrite it before the item is read: not on x86, but on Arm.",
}
_ACQUIRE = {
    True: "No processor stores before the load on which that depends, but C11 promises it only of an acquire, and a "
    "compiler goes by C11.",
    False: "The receiver could read the slot before it looks at the position, and find an old item: x86 does its loads "
    "in order, Arm does not.",
}


def _wrong_edge(sends: bool, steps: list[Step], own: int, other: int) -> str | None:
    """What is wrong with the order of what was done, or None."""
    who, edge = ("send", "A") if sends else ("receive", "B")
    slot = next(n for n, step in enumerate(steps) if step.in_slot)
    told = next(n for n, step in enumerate(steps) if step.kind == "store" and step.place == NAMES[own])
    looked = next((n for n, step in enumerate(steps) if step.kind == "load" and step.place == NAMES[other]), None)
    done = "written" if sends else "read"
    if looked is None or looked > slot:
        return f"{who} touches the slot before it has looked at {NAMES[other]}: the slot may still be the other's."
    if told < slot:
        return (
            f"{who} moves {NAMES[own]} before it has {done} the slot. The other may come in between, and "
            f"{'read what is not yet there' if sends else 'overwrite what you are about to read'}, on x86 too."
        )
    if steps[told].order == "plain" or steps[looked].order == "plain":
        plain = NAMES[own] if steps[told].order == "plain" else NAMES[other]
        return f"{who} touches {plain} by a plain access, which the compiler may keep in a register: use an atomic one."
    released = _has(steps, told, "release", between=(slot, told))
    acquired = _has(steps, looked, "acquire", between=(looked, slot))
    slot_access = "store to" if sends else "load of"
    if not released:
        return (
            f"edge {edge} begins in {who}, and {who} does not release: nothing keeps the {slot_access} the slot before "
            f"the store to {NAMES[own]}. {_RELEASE[sends]}"
        )
    if not acquired:
        return (
            f"edge {'B' if sends else 'A'} ends in {who}, and {who} does not acquire: nothing keeps the {slot_access} "
            f"the slot behind the load of {NAMES[other]}. {_ACQUIRE[sends]}"
        )
    if steps[told].order == "seq_cst" or any(step.kind == "fence" and step.order == "seq_cst" for step in steps):
        return (
            f"it is right, but {who} pays for an order that nobody needs: a sequentially consistent store or fence "
            "empties the store buffer, some ten nanoseconds each time. A release is enough."
        )
    for n, step in enumerate(steps):
        if step.order in ("acquire", "release") and n not in (told, looked) and step.kind != "fence":
            return (
                f"it is right, but {who} orders more than it has to: the {step.kind} of {step.place} needs no order, "
                f"{'it is yours alone at that moment' if step.in_slot else 'only you write it'}. On AArch64 it costs."
            )
    return None


def _has(steps: list[Step], access: int, order: str, between: tuple[int, int]) -> bool:
    """Whether an access has this order itself, or by a fence between two steps."""
    fences = [step for step in steps[between[0] : between[1]] if step.kind == "fence"]
    return any(step.order in (order, "seq_cst") for step in (steps[access], *fences))


def _does_not_work(ends: Ends) -> str | None:
    """What two processes find, or None."""
    try:
        found = stream({"yours": ends}, ITEMS, 1, patience=30.0)["yours"]
    except RemoteError as error:
        return f"in two processes it stopped with “{last_line(error)}”."
    return _judge(found)


def _judge(found: Streamed) -> str | None:
    if found.wrong and found.first:
        wanted, came = found.first
        return (
            f"between two processes {found.wrong:,} items of {found.came:,} were wrong: {came:,} came for {wanted:,}."
        )
    if found.came < found.count:
        return f"of {found.count:,} items between two processes {found.came:,} came, and then nothing any more."
    return None


# --- exercise 2: a batch ---------------------------------------------------------------------------------------


def check_receive_many(receive_many: Callable[..., Any]) -> Verdict:
    """Whether receive_many(ring, to, most) takes what is there in one go, with one acquire and one release.

    Args:
        receive_many: copies up to `most` items into the array at address `to`, and returns how many.
    """
    problem = _guarded(lambda: _wrong_batch(receive_many))
    if problem is None:
        problem = _does_not_work(Ends(_send_first, receive_many, batch=48))
    if problem:
        return Verdict(False, problem)
    return Verdict(
        True,
        f"however many items there are, it looks at write_position once and moves read_position once. Each of these "
        f"is a cache line fetched from the other processor, and now {CAPACITY} items share its price.",
    )


def _send_first(ring, items, count):
    """The other end: one item of those that are to be sent."""
    write = load_relaxed(ring + WRITE_POSITION)
    if write - load_acquire(ring + READ_POSITION) == CAPACITY:
        return 0
    store_relaxed(ring + FIRST_SLOT + write % CAPACITY * 8, load_relaxed(items))
    store_release(ring + WRITE_POSITION, write + 1)
    return 1


def _wrong_batch(receive_many: Callable[..., Any]) -> str | None:
    cases = (
        (5, 5, 8, "the ring is empty"),
        (5, 2, 8, "three items are there and eight are asked for"),
        (20, 2, 8, "18 items are there and eight are asked for"),
        (CAPACITY + 4, CAPACITY - 3, 8, "seven items are there, and they lie across the end of the ring"),
        (CAPACITY + 7, 7, 100, "the ring is full and more is asked for than it holds"),
    )
    for write, read, most, what in cases:
        memory, wanted = ring(write, read), min(most, write - read)
        said, steps = trace(receive_many, memory, ADDRESS, ARRAY, most)
        if said is None:
            return "it returns nothing: how many items did it receive?"
        if said != wanted:
            return f"{what}: it has to return {wanted}, not {said!r}."
        came = [memory.get(ARRAY + 8 * n) for n in range(wanted)]
        items = [1000 + read + n for n in range(wanted)]
        if came != items:
            n = next(n for n in range(wanted) if came[n] != items[n])
            slot = (read + n) % CAPACITY
            return f"{what}: item {n} of the array has to be {items[n]}, from slot {slot}, not {came[n]}."
        if any(ARRAY + 8 * wanted <= step.address for step in steps if step.kind == "store"):
            return f"{what}: it writes more than {wanted} items into the array."
        if memory[ADDRESS + READ_POSITION] != read + wanted:
            return f"{what}: read_position has to be {read + wanted} afterwards, not {memory[ADDRESS + READ_POSITION]}."
        if wanted:
            problem = _wrong_batch_order(steps, what, wanted)
            if problem:
                return problem
    return None


def _wrong_batch_order(steps: list[Step], what: str, wanted: int) -> str | None:
    slots = [n for n, step in enumerate(steps) if step.in_slot and step.kind == "load"]
    moves = [n for n, step in enumerate(steps) if step.kind == "store" and step.place == "read_position"]
    looks = [n for n, step in enumerate(steps) if step.kind == "load" and step.place == "write_position"]
    if len(moves) > 1:
        return f"{what}: it moves read_position {len(moves)} times. Once, at the end, says the same for one cache line."
    if moves[0] < slots[-1]:
        return f"{what}: it moves read_position before it has read the last slot, which the sender may overwrite now."
    if len(looks) > 1 and wanted > 1:
        return f"{what}: it looks at write_position {len(looks)} times. Once tells how many items there are."
    if looks[0] > slots[0]:
        return f"{what}: it reads a slot before it has looked at write_position: the item may not be there yet."
    if not _has(steps, looks[0], "acquire", between=(looks[0], slots[0])):
        return "the load of write_position has to acquire: it is edge A, for all the items at once."
    if not _has(steps, moves[0], "release", between=(slots[-1], moves[0])):
        return "the store of read_position has to release: it is edge B, for all the slots at once."
    return None


# --- exercise 3: which capacities? -----------------------------------------------------------------------------


def check_capacities(capacities: Callable[[], Any]) -> Verdict:
    """Whether capacities() returns those of 1 to 16 that a ring may have whose positions have 8 bits and wrap.

    Args:
        capacities: returns a set of numbers.
    """
    try:
        said = capacities()
    except Exception as reason:
        return Verdict(False, f"your function stopped with “{type(reason).__name__}: {reason}”.")
    if not isinstance(said, set | frozenset | list | tuple) or not all(isinstance(one, int) for one in said):
        return Verdict(False, f"return a set of numbers from 1 to 16, not {said!r}.")
    for capacity in range(1, 17):
        broken = _breaks(capacity)
        if broken and capacity in said:
            before, after, there, due = broken
            return Verdict(
                False,
                f"with {capacity} slots position {before} is in slot {before % capacity}. The next is position {after} "
                f"again, in slot {there}, where slot {due} was due. Slots are left out then, and what lies in "
                "others is overwritten.",
            )
        if not broken and capacity not in said:
            return Verdict(
                False, f"{capacity} slots would do as well: 256 % {capacity} is 0, so the slots go on in a circle."
            )
    if set(said) - set(range(1, 17)):
        return Verdict(False, "the question was about 1 to 16.")
    return Verdict(
        True,
        "a capacity has to divide the number at which positions wrap, which is a power of two on every machine. With a "
        "power of two, position % capacity is also a single `and` instead of a division. With 64 bits nobody lives to "
        "see the wrap; Mpmc takes any capacity, its positions are a lap and an index.",
    )


def _breaks(capacity: int) -> tuple[int, int, int, int] | None:
    """Where the slots of an 8-bit position do not go on in a circle."""
    there, due = 0, (255 % capacity + 1) % capacity  # position 0 is in slot 0
    return None if there == due else (255, 0, there, due)
