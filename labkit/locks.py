"""What a trace tells about locks and semaphores: who held and awaited which one when, and deadlocks.

    events            spans                                      wait-for graph at a moment
    waits, acquired   "A held fork 1 from … to …"    --->        A waits for fork 2, which B holds
    gave up, released "A waited for fork 2 from … to …"          a cycle in it is a deadlock

Everything here is numpy on arrays of dtype labkit.events.EVENT; no process and no lock is touched. What is not
recorded is not known: a process that uses an untraced copy of a semaphore can end a wait that looks hopeless here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import Any

import numpy as np

from labkit.events import Action, of_locks
from labkit.stats import duration

FOREVER = 1 << 62
"""The end, in nanoseconds, of what has not ended."""

GOT, IN_VAIN, HELD, GIVEN = range(4)
"""Kinds of span: a wait that ended with the lock, one that did not (or not yet), a hold, a release by a non-holder."""

SPAN = np.dtype([("begin", "<i8"), ("end", "<i8"), ("thread", "<u8"), ("pid", "<u4"), ("lock", "<u2"), ("kind", "<u2")])
NEWEST = 300  # waits in vain that are looked at for past deadlocks

Actor = tuple[int, int]
"""A thread of a process: pid, thread."""


@dataclass(frozen=True)
class LockInfo:
    """A traced lock or semaphore."""

    number: int
    kind: str
    label: str
    count: int
    """How many could be taken when it was traced first."""
    owned: bool
    """Only its holder may release it (a mutex, a file lock); anybody may release a semaphore."""
    gives_back: bool
    """The kernel takes it from a process that ends: SEM_UNDO, file locks."""


@dataclass(frozen=True)
class Deadlock:
    """Processes that wait for each other in a circle; its text names them."""

    sentence: str
    processes: tuple[str, ...]
    locks: tuple[str, ...]
    since_ns: int
    """When the last of them began to wait: CLOCK_MONOTONIC."""
    until_ns: int | None = None
    """When one of them gave up or was killed, None while it lasts."""
    actors: tuple[Actor, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return self.sentence

    def __repr__(self) -> str:
        return f"<deadlock: {self.sentence}>"


@dataclass(frozen=True)
class LockRow:
    """One lock in figures. Times in nanoseconds, nan where there was no wait."""

    label: str
    kind: str
    acquired: int
    gave_up: int
    median_wait: float
    longest_wait: float
    most_at_once: int
    """The most that were held at the same time; 0 for a semaphore that others release than take it."""
    held_by: tuple[str, ...]
    waited_for_by: tuple[str, ...]


class Locks(list[LockRow]):
    """The rows of `Trace.locks()`; a notebook shows them as a table."""

    HEAD = (
        "lock",
        "kind",
        "taken",
        "gave up",
        "half within",
        "longest",
        "most at once",
        "held by",
        "awaited by",
    )

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (
                *(row.label, row.kind, f"{row.acquired:,}", f"{row.gave_up:,}"),
                *(duration(row.median_wait), duration(row.longest_wait), str(row.most_at_once or "–")),
                *(", ".join(row.held_by) or "–", ", ".join(row.waited_for_by) or "–"),
            )
            for row in self
        ]

    def __repr__(self) -> str:
        lines = [self.HEAD, *self._cells()]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.HEAD))]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(title)}</th>" for title in self.HEAD)
        body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in cells) + "</tr>" for cells in self._cells())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class History:
    """Everything that the events tell about locks.

    Args:
        events: of dtype EVENT, in any order; those about messages are passed over.
        infos: the traced locks by number.
        processes: by pid, with `name`, `ended` and `ended_ns`, as Trace.processes.
        own_pid: the process that made the trace: it has a copy of everything, and counts only where it took part.
        unheard: numbers of locks that are on their way to processes that have not been heard of.
    """

    def __init__(
        self,
        events: np.ndarray,
        infos: list[LockInfo],
        processes: Mapping[int, Any],
        own_pid: int,
        unheard: Collection[int] = (),
    ):
        events = of_locks(events)
        self.events = events = events[np.argsort(events["time_ns"], kind="stable")]
        self.infos, self.processes, self.own_pid, self.unheard = infos, processes, own_pid, unheard
        self.newest = int(events["time_ns"][-1]) if len(events) else 0
        used = events[np.isin(events["action"], (Action.LOCK_WAITS, Action.LOCK_ACQUIRED, Action.LOCK_RELEASED))]
        pairs, first = np.unique(np.stack([used["pid"].astype("u8"), used["message"]]), axis=1, return_index=True)
        order = np.argsort(first)
        self.actors: list[Actor] = [(int(pid), int(thread)) for pid, thread in pairs[:, order].T]
        self.spans = np.sort(np.concatenate([self._waits(), *self._holds()]), order=["begin", "end"])

    def died(self, pid: int) -> int:
        """When a process has ended, FOREVER while it runs."""
        process = self.processes.get(pid)
        return process.ended_ns if process is not None and process.ended_ns else FOREVER

    @cached_property
    def names(self) -> dict[Actor, str]:
        """What each thread is called: its process, and more only where that is not enough."""
        called = {pid: getattr(self.processes.get(pid), "name", "") or f"process {pid}" for pid, _ in self.actors}
        twice = [name for name in called.values() if list(called.values()).count(name) > 1]
        names = {}
        for pid, thread in self.actors:
            siblings = [t for p, t in self.actors if p == pid]
            text = called[pid] + (f" ({pid})" if called[pid] in twice else "")
            names[pid, thread] = text + (f", thread {siblings.index(thread) + 1}" if len(siblings) > 1 else "")
        return names

    # -- spans

    def _waits(self) -> np.ndarray:
        """A wait begins with WAITS and ends with the next ACQUIRED or GAVE_UP of the same thread on the same copy."""
        calls = self.events[
            np.isin(self.events["action"], (Action.LOCK_WAITS, Action.LOCK_ACQUIRED, Action.LOCK_GAVE_UP))
        ]
        calls = calls[np.lexsort((calls["time_ns"], calls["message"], calls["channel"], calls["endpoint"]))]
        begins = np.flatnonzero(calls["action"] == Action.LOCK_WAITS)
        after = np.minimum(begins + 1, max(len(calls) - 1, 0))
        same = after > begins
        for name in ("endpoint", "channel", "message"):
            same &= calls[name][after] == calls[name][begins]
        same &= calls["action"][after] != Action.LOCK_WAITS
        spans = _spans_of(calls[begins], IN_VAIN)
        spans["end"][same] = calls["time_ns"][after][same]
        spans["kind"][same & (calls["action"][after] == Action.LOCK_ACQUIRED)] = GOT
        for pid in np.unique(spans["pid"]):
            own = spans["pid"] == pid
            spans["end"][own] = np.minimum(spans["end"][own], self.died(int(pid)))
        return spans

    def _holds(self) -> Iterable[np.ndarray]:
        """A hold is an ACQUIRED and the next RELEASED of the same thread; first taken, first given back."""
        changes = self.events[np.isin(self.events["action"], (Action.LOCK_ACQUIRED, Action.LOCK_RELEASED))]
        for info in self.infos:
            of_this = changes[changes["channel"] == info.number]
            given, held = [], []
            for pid, thread in self.actors:
                own = of_this[(of_this["pid"] == pid) & (of_this["message"] == thread)]
                if not len(own):
                    continue
                step = np.where(own["action"] == Action.LOCK_ACQUIRED, 1, -1)
                low = np.minimum.accumulate(np.minimum(np.cumsum(step), 0))
                gift = (step < 0) & (low < np.concatenate([[0], low[:-1]]))  # it gave what it had not taken
                given.append(_spans_of(own[gift], GIVEN))
                given[-1]["end"] = given[-1]["begin"]
                spans, back = _spans_of(own[step > 0], HELD), own["time_ns"][(step < 0) & ~gift]
                spans["end"][: len(back)] = back
                held.append(self._until_death(spans, info, of_this, (pid, thread)))
            yield from given
            if info.owned or not any(len(part) for part in given):  # else it counts things: nobody holds those
                yield from held

    def _until_death(self, spans: np.ndarray, info: LockInfo, changes: np.ndarray, actor: Actor) -> np.ndarray:
        """What a dead process held ends when the kernel takes it back, or when somebody else has it."""
        died = self.died(actor[0])
        left = np.flatnonzero(spans["end"] > died) if died < FOREVER else ()
        others = changes[(changes["action"] == Action.LOCK_ACQUIRED) & (changes["pid"] != actor[0])]["time_ns"]
        for row in left:
            if info.gives_back:
                spans["end"][row] = died
            if info.count == 1:  # the news of a death may come after the next one has taken it
                later = others[others > spans["begin"][row]]
                spans["end"][row] = min(int(spans["end"][row]), int(later[0]) if len(later) else FOREVER)
        return spans

    # -- deadlocks

    def deadlock(self, moment: int | None = None) -> Deadlock | None:
        """The deadlock at a moment (CLOCK_MONOTONIC nanoseconds), or now."""
        now = FOREVER - 1 if moment is None else moment
        waits = [w for w in self._open((GOT, IN_VAIN), now) if self.died(int(w["pid"])) > now]
        needs = [((int(w["pid"]), int(w["thread"])), w, self._givers(w, now)) for w in waits]
        stuck = {actor for actor, _, givers in needs if givers}
        while True:
            hopeless = {actor for actor, _, givers in needs if givers and actor in stuck and givers <= stuck}
            if hopeless == stuck:
                break
            stuck = hopeless
        if not stuck:
            return None
        next_of: dict[Actor, tuple[Actor, Any]] = {}
        for actor, wait, givers in needs:
            if givers and actor in stuck and givers <= stuck:
                took = self.spans[(self.spans["kind"] <= IN_VAIN) & (self.spans["lock"] == wait["lock"])]
                takers = {(int(s["pid"]), int(s["thread"])) for s in took} if self._counts_things(wait) else set()
                one = min(givers, key=lambda giver: (giver in takers, self.actors.index(giver)))
                next_of.setdefault(actor, (one, wait))
        return self._named(next_of, now)

    def _counts_things(self, wait: Any) -> bool:
        """Whether others give than take, as in a bounded buffer, as far as can be guessed."""
        info = self.infos[int(wait["lock"])]
        return not info.owned and info.count != 1

    def _open(self, kinds: tuple[int, ...], now: int) -> np.ndarray:
        spans = self.spans
        return spans[np.isin(spans["kind"], kinds) & (spans["begin"] <= now) & (spans["end"] > now)]

    def _givers(self, wait: Any, now: int) -> set[Actor]:
        """Those of whom one must act before this wait can end; empty when it can end by itself, or nothing is known."""
        lock, waiter = int(wait["lock"]), (int(wait["pid"]), int(wait["thread"]))
        info = self.infos[lock]
        own = self.events[(self.events["channel"] == lock) & (self.events["time_ns"] <= now)]
        action = own["action"]
        held = [s for s in self._open((HELD,), now) if s["lock"] == lock]
        if info.owned:
            free = len(held) == 0
        else:
            count = info.count - np.count_nonzero(action == Action.LOCK_ACQUIRED)
            count += np.count_nonzero(action == Action.LOCK_RELEASED)
            dead = [pid for pid, _ in self.actors if self.died(pid) <= now]
            theirs = self.spans[np.isin(self.spans["pid"], dead) & (self.spans["lock"] == lock)]
            theirs = theirs[(theirs["kind"] == HELD) & (theirs["end"] <= now)]
            count += self._undone(theirs, own[action == Action.LOCK_RELEASED])
            free = bool(count > 0)
        if free:
            return set()
        gave = self.spans[(self.spans["kind"] == GIVEN) & (self.spans["lock"] == lock) & (self.spans["begin"] <= now)]
        counts = len(gave) > 0 and not info.owned  # it counts things: those who have given will give again
        found = {(int(s["pid"]), int(s["thread"])) for s in (gave if counts else held)}
        if info.owned and found == {waiter}:
            return found
        found.discard(waiter)
        if not info.owned and not counts and (not found or info.count > 1):  # whoever has it may come to release it
            others = self._who_has_it(own, waiter[0], now)
            if others is None:
                return set()
            found |= others
        return {actor for actor in found if self.died(actor[0]) > now}

    def _undone(self, holds: np.ndarray, releases: np.ndarray) -> int:
        """How many holds ended without a release of their own: the kernel, or the next holder, has taken them back."""
        gone = 0
        for pid in np.unique(holds["pid"]):
            ends = holds["end"][holds["pid"] == pid]
            gone += int(np.count_nonzero(~np.isin(ends, releases["time_ns"][releases["pid"] == pid])))
        return gone

    def _who_has_it(self, own: np.ndarray, waiting_pid: int, now: int) -> set[Actor] | None:
        """The threads of other processes that can use a semaphore; None while one has not come so far."""
        opened = own["pid"][own["action"] == Action.LOCK_OPENED]
        closed = own["pid"][own["action"] == Action.LOCK_CLOSED]
        found: set[Actor] = set()
        if len(own) and int(own["channel"][0]) in self.unheard:
            return None
        for pid in set(opened.tolist()) - {waiting_pid}:
            there = np.count_nonzero(opened == pid) > np.count_nonzero(closed == pid)
            took_part = pid != self.own_pid or np.any((own["pid"] == pid) & (own["action"] == Action.LOCK_RELEASED))
            if there and took_part and self.died(pid) > now:
                threads = {actor for actor in self.actors if actor[0] == pid}
                if not threads:
                    return None
                found |= threads
        return found

    def _named(self, next_of: dict[Actor, tuple[Actor, Any]], now: int) -> Deadlock | None:
        actor = next(iter(next_of))
        path: list[Actor] = []
        while actor not in path:
            path.append(actor)
            actor = next_of[actor][0]
        circle = path[path.index(actor) :]
        if self._only_takers(circle, next_of, now):
            return None
        start = circle.index(min(circle, key=lambda actor: self.names[actor]))
        circle = circle[start:] + circle[:start]
        holds = {(int(s["pid"]), int(s["thread"]), int(s["lock"])) for s in self._open((HELD,), now)}
        parts, locks = [], []
        for place, actor in enumerate(circle):
            following, wait = next_of[actor]
            lock, wanted = int(wait["lock"]), int(next_of[circle[place - 1]][1]["lock"])
            locks.append(self.infos[lock].label)
            does = f"holds {self.infos[wanted].label} and waits" if (*actor, wanted) in holds else "waits"
            has = "holds" if (*following, lock) in holds else "has not released"
            who = self.names[following] if following != actor else "it itself"
            parts.append(f"{self.names[actor]} {does} for {self.infos[lock].label}, which {who} {has}")
        waits = [next_of[actor][1] for actor in circle]
        until = min(int(wait["end"]) for wait in waits)
        return Deadlock(
            "; ".join(parts),
            tuple(self.names[actor] for actor in circle),
            tuple(locks),
            max(int(wait["begin"]) for wait in waits),
            until if until < FOREVER else None,
            tuple(circle),
        )

    def _only_takers(self, circle: list[Actor], next_of: dict[Actor, tuple[Actor, Any]], now: int) -> bool:
        """Whether all wait for one semaphore that none of them is known to hold or to have released.

        So consumers wait for the first message while their producer is still to be launched.
        """
        locks = {int(next_of[actor][1]["lock"]) for actor in circle}
        gave = self.spans[(self.spans["kind"] == GIVEN) & (self.spans["begin"] <= now)]
        known = np.concatenate([gave, self._open((HELD,), now)])
        who = {(int(s["pid"]), int(s["thread"])) for s in known if int(s["lock"]) in locks}
        return len(locks) == 1 and not who & set(circle)

    def deadlocks(self) -> list[Deadlock]:
        """Every deadlock so far, by the time it began. One ends only because somebody gives up or is killed."""
        vain = self.spans[self.spans["kind"] == IN_VAIN]
        found: dict[tuple[Any, ...], Deadlock] = {}
        for end in np.unique(vain["end"])[-NEWEST:].tolist():
            dead = self.deadlock(end - 1)
            if dead:
                found.setdefault((dead.actors, dead.since_ns), dead)
        return sorted(found.values(), key=lambda dead: dead.since_ns)

    # -- figures

    def rows(self) -> Locks:
        """Each lock in figures."""
        rows, now = Locks(), FOREVER - 1
        for info in self.infos:
            own = self.spans[self.spans["lock"] == info.number]
            actions = self.events["action"][self.events["channel"] == info.number]
            waits = own[np.isin(own["kind"], (GOT, IN_VAIN))]
            times = (waits["end"] - waits["begin"])[waits["end"] < FOREVER]
            open_now = own[own["end"] > now]
            rows.append(
                LockRow(
                    *(info.label, info.kind, int(np.count_nonzero(waits["kind"] == GOT))),
                    int(np.count_nonzero(actions == Action.LOCK_GAVE_UP)),
                    *(float(np.median(times)), float(times.max())) if len(times) else (np.nan, np.nan),
                    most_at_once(own[own["kind"] == HELD]),
                    self._who(open_now[open_now["kind"] == HELD]),
                    self._who(open_now[open_now["kind"] == IN_VAIN]),
                )
            )
        return rows

    def _who(self, spans: np.ndarray) -> tuple[str, ...]:
        names = []
        for span in spans:
            process = self.processes.get(int(span["pid"]))
            ended = f" ({process.ended})" if process is not None and process.ended else ""
            names.append(self.names[int(span["pid"]), int(span["thread"])] + ended)
        return tuple(names)


def most_at_once(spans: np.ndarray) -> int:
    """The largest number of spans that overlap."""
    if not len(spans):
        return 0
    times = np.concatenate([spans["begin"], spans["end"]])
    steps = np.repeat([1, -1], len(spans))
    return int(np.cumsum(steps[np.lexsort((steps, times))]).max())  # at the same time, ends come first


def _spans_of(events: np.ndarray, kind: int) -> np.ndarray:
    """Spans that begin with these events and have not ended."""
    spans = np.zeros(len(events), SPAN)
    for name, source in (("begin", "time_ns"), ("thread", "message"), ("pid", "pid"), ("lock", "channel")):
        spans[name] = events[source]
    spans["end"], spans["kind"] = FOREVER, kind
    return spans
