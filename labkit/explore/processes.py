"""The same programs in real processes: real shared memory, real semaphores, stepped one at a time or running freely.

All of it lies in one memfd that every process maps, and disappears with them:

    word 0              1: give up, everybody
    3 words a process   the round it is ready for; what it waits for (semaphore + 1, or -1: a condition); looks at it
    the shared cells    one word each: what the programs see as `s`
    semaphores          four words each: unnamed POSIX semaphores, sem_init(3) with pshared
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import random
import time
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.channels import channel
from labkit.channels.base import Closed, Receiver, Sender, arrived, travelling
from labkit.explore.model import Model, State, judge
from labkit.explore.program import Program, Request, Shared, asked, values
from labkit.launch import Job, RemoteError, launch
from labkit.libc import failed, ffi, libc

if TYPE_CHECKING:
    from labkit.explore import Run

WORD = 8
OWN = 3  # words of each process
READY, WAITING, LOOKS = range(OWN)
HELD_UP = 0.25
"""At this share of the yields a free run pauses, when it is told to."""
LOOK_AGAIN = 0.0002
"""Seconds between two looks at a condition."""
PATIENCE = 20.0
"""Seconds after which something must have happened, on however busy a machine."""


class GaveUp(BaseException):
    """This round is over before its end: some processes would wait for ever."""


class Memory:
    """The memory that all processes of an ensemble map. Handed to a child, it is the same memory there."""

    def __init__(self, processes: int, cells: int, semaphores: int, fd: int | None = None):
        self.sizes = processes, cells, semaphores
        self.first_cell = 1 + OWN * processes
        self.first_semaphore = self.first_cell + cells
        size = WORD * (self.first_semaphore + 4 * semaphores)
        self.fd = os.memfd_create("labkit-explore", os.MFD_CLOEXEC) if fd is None else fd
        if fd is None:
            os.posix_fallocate(self.fd, 0, size)
        self._map = mmap.mmap(self.fd, size)
        self._raw = ffi.from_buffer(self._map, require_writable=True)
        self.words = memoryview(self._map).cast("q")
        self.cells = self.words[self.first_cell : self.first_semaphore]

    def __reduce__(self) -> Any:
        return _arrived_memory, (self.sizes, travelling(self.fd))

    def own(self, process: int, what: int) -> int:
        """The index of a word of a process."""
        return 1 + OWN * process + what

    def semaphore(self, number: int) -> Any:
        return ffi.cast("sem_t *", self._raw + WORD * (self.first_semaphore + 4 * number))

    def close(self) -> None:
        self.cells.release()
        self.words.release()
        ffi.release(self._raw)
        self._map.close()
        os.close(self.fd)


def _arrived_memory(sizes: tuple[int, int, int], ticket: Any) -> Memory:
    return Memory(*sizes, fd=arrived(ticket))


def value_of(semaphore: Any) -> int:
    found = ffi.new("int *")
    if libc.sem_getvalue(semaphore, found):
        raise failed("sem_getvalue")
    return int(found[0])


def post(semaphore: Any) -> None:
    if libc.sem_post(semaphore):
        raise failed("sem_post")


# --- in the child -----------------------------------------------------------------------------------------------


class Actor:
    """One process of an ensemble, in the child."""

    def __init__(self, memory: Memory, me: int, program: Program, primed: bool, names: dict[str, int], layout: Any):
        self.memory, self.me, self.program, self.primed, self.names = memory, me, program, primed, names
        self.shared = Shared(layout, memory.cells)
        self.generator: Any = None
        self.request: Request | None = None

    def begin(self) -> None:
        self.generator, self.request = self.program.start(self.shared), None
        if self.primed:
            self._stands(next(self.generator))

    def _stands(self, value: Any) -> None:
        self.request = asked(value, self.program.name, self.names)

    def step(self) -> dict[str, Any]:
        """Get what is needed, go on to the next yield, and tell where that is."""
        try:
            self._obtain()
            self._stands(next(self.generator))
        except StopIteration:
            return {"line": None, "error": ""}
        except GaveUp:
            return {"line": None, "error": "", "gave_up": True}
        except Exception as error:
            return {"line": None, "error": f"{type(error).__name__}: {error}" if str(error) else type(error).__name__}
        return {"line": self.generator.gi_frame.f_lineno, "error": ""}

    def _obtain(self) -> None:
        request = self.request
        if request is None or request.action == "pass":
            return
        words, own = self.memory.words, self.memory.own
        if request.action == "release":
            post(self.memory.semaphore(self.names[request.words]))
        elif request.action == "acquire":
            number = self.names[request.words]
            words[own(self.me, WAITING)] = number + 1
            self._take(self.memory.semaphore(number))
            words[own(self.me, WAITING)] = 0
        elif request.condition is not None:
            words[own(self.me, WAITING)] = -1
            while not request.condition(self.shared):
                words[own(self.me, LOOKS)] += 1
                self._unless_over()
                time.sleep(LOOK_AGAIN)
            words[own(self.me, WAITING)] = 0

    def _take(self, semaphore: Any) -> None:
        """sem_wait(3), again after a signal (EINTR)."""
        while libc.sem_wait(semaphore):
            if ffi.errno != errno.EINTR:
                raise failed("sem_wait")
        self._unless_over()

    def _unless_over(self) -> None:
        if self.memory.words[0]:
            self.memory.words[self.memory.own(self.me, WAITING)] = 0
            raise GaveUp

    def race(self, number: int, pause: float, chance: random.Random) -> dict[str, Any]:
        """Run freely to the end, together with the others as soon as all are ready."""
        words, own = self.memory.words, self.memory.own
        self.begin()
        words[own(self.me, READY)] = number
        others = range(self.memory.sizes[0])
        while any(words[own(other, READY)] < number for other in others):
            os.sched_yield()
        while True:
            if pause and self.request and chance.random() < HELD_UP:  # it stands at a yield
                time.sleep(chance.random() * pause)
            found = self.step()
            if found["line"] is None:
                return found


def act(memory: Memory, me: int, given: Any, primed: bool, names: Any, layout: Any, rx: Receiver, tx: Sender) -> None:
    """The child's function: do as ordered until the orders end."""
    actor, chance = Actor(memory, me, Program(*given), primed, names, layout), random.Random()
    actor.begin()
    with contextlib.suppress(Closed):
        while True:
            order = rx.receive(timeout=None).split()
            found = actor.step() if order[0] == b"step" else actor.race(int(order[1]), float(order[2]), chance)
            tx.send(json.dumps(found).encode(), timeout=None)


# --- in the parent ----------------------------------------------------------------------------------------------


class Ensemble:
    """The real processes of a model, and their memory. A context manager: nothing is left afterwards."""

    def __init__(self, model: Model):
        self.model = model
        self.names = [program.name for program in model.programs]
        self.memory = Memory(len(self.names), len(model.cells), len(model.semaphores))
        self.shared = Shared(model.layout, self.memory.cells)
        self.jobs: list[Job] = []
        self.orders: list[Sender] = []
        self.reports: list[Receiver] = []
        try:
            for number, value in enumerate(model.semaphores.values()):
                if libc.sem_init(self.memory.semaphore(number), 1, value):
                    raise failed("sem_init")
            self._fill()
            for me, program in enumerate(model.programs):
                self._employ(me, program)
        except BaseException:
            self.close()
            raise

    def _employ(self, me: int, program: Program) -> None:
        orders, rx = channel("pipe")
        self.orders.append(orders)
        tx, reports = channel("pipe")
        self.reports.append(reports)
        given = program.name, program.function, program.args
        numbers = {name: n for n, name in enumerate(self.model.semaphores)}
        arguments = (self.memory, me, given, self.model.primed[me], numbers, self.model.layout, rx, tx)
        self.jobs.append(launch(act, *arguments, name=program.name))

    def __enter__(self) -> Ensemble:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, whatever they wait for."""
        self.memory.words[0] = 1
        for end in (*self.orders, *self.reports):
            end.close()
        for job in self.jobs:
            job.kill()
        for job in self.jobs:
            with contextlib.suppress(RemoteError, TimeoutError):
                job.wait(PATIENCE)
        self.memory.close()

    def _fill(self) -> None:
        """Everything as at the start: the cells, the semaphores, nobody waiting."""
        for at, value in enumerate(self.model.cells):
            self.memory.cells[at] = value
        for number, value in enumerate(self.model.semaphores.values()):
            semaphore = self.memory.semaphore(number)
            while value_of(semaphore) < value:
                post(semaphore)
            while value_of(semaphore) > value:
                libc.sem_trywait(semaphore)
        self.memory.words[0] = 0

    # -- one step at a time

    def follow(self, planned: Run, path: list[int]) -> Run:
        """Step the processes in the planned order and compare each moment with the model's."""
        for step, (name, number) in enumerate(zip(planned.schedule, path[1:], strict=True), 1):
            me, state = self.names.index(name), self.model.states[number]
            self.orders[me].send(b"step")
            found = self._report(me, PATIENCE)
            place = self.model.places[me][state.places[me]]
            here = tuple(self.memory.cells), (found["line"], found["error"])
            there = state.cells, (place.line, place.error)
            if here != there:
                raise RuntimeError(
                    f"step {step}: {name} did something else than in the model: it left {self._cells(here[0])} where "
                    f"the model has {self._cells(there[0])}. A program's steps may depend on the shared state and its "
                    "own variables only, not on time, chance or global variables"
                )
        if planned.kind == "deadlock":
            self._prove(self.model.states[path[-1]])
        return replace(planned, pids={name: job.pid for name, job in zip(self.names, self.jobs, strict=True)})

    def _cells(self, cells: tuple[int, ...]) -> dict[str, Any]:
        return values(self.model.layout, cells)

    def _prove(self, state: State) -> None:
        """Let everybody who has not ended try to go on: all of them must be found asleep."""
        stuck = [me for me, at in enumerate(state.places) if self.model.places[me][at].line is not None]
        for me in stuck:
            self.orders[me].send(b"step")
        deadline = time.monotonic() + PATIENCE
        while not self.stuck(stuck):
            if time.monotonic() > deadline:
                raise RuntimeError("the model finds a deadlock here, but the real processes do not all wait")
            time.sleep(0.001)

    def _report(self, me: int, timeout: float) -> Any:
        try:
            return json.loads(self.reports[me].receive(timeout=timeout))
        except Closed:
            self.jobs[me].wait(PATIENCE)  # raises what happened there
            raise

    def stuck(self, waiting: list[int]) -> bool:
        """Whether all these processes wait for what only they could bring about: a proof, not a timeout.

        Each waits for a semaphore that is 0 and sleeps in the kernel, or has looked at its condition twice more since
        we came. All others have ended, so that nothing changes any more.
        """
        words, own = self.memory.words, self.memory.own
        wanted = [words[own(me, WAITING)] for me in waiting]
        looks = [words[own(me, LOOKS)] for me in waiting]
        if 0 in wanted or not self._asleep(waiting, wanted):
            return False
        deadline = time.monotonic() + 1.0
        for me, want, seen in zip(waiting, wanted, looks, strict=True):
            while want < 0 and words[own(me, LOOKS)] < seen + 2:
                if time.monotonic() > deadline or words[own(me, WAITING)] != want:
                    return False
                time.sleep(LOOK_AGAIN)
        return [words[own(me, WAITING)] for me in waiting] == wanted and self._asleep(waiting, wanted)

    def _asleep(self, waiting: list[int], wanted: list[int]) -> bool:
        return all(
            value_of(self.memory.semaphore(want - 1)) == 0 and _state(self.jobs[me].pid) == "S"
            for me, want in zip(waiting, wanted, strict=True)
            if want > 0
        )

    # -- freely

    def race(self, times: int, pause: float) -> Race:
        outcomes: dict[str, int] = {}
        wrong: set[str] = set()
        began = time.monotonic()
        for number in range(1, times + 1):
            self._fill()
            for orders in self.orders:
                orders.send(b"race %d %a" % (number, pause))
            verdict = self._finish()
            words = "deadlock" if verdict.kind == "deadlock" else verdict.why
            outcomes[words] = outcomes.get(words, 0) + 1
            if verdict.wrong:
                wrong.add(words)
        return Race(times, outcomes, wrong, time.monotonic() - began, pause)

    def _finish(self) -> Any:
        """Wait until a round has ended, or can never end."""
        pending, errors = list(range(len(self.names))), {}
        deadlock: dict[str, Request | None] = {}
        deadline = time.monotonic() + PATIENCE
        while pending:
            if time.monotonic() > deadline:
                late = " and ".join(self.names[me] for me in pending)
                raise TimeoutError(
                    f"a free run had not ended after {PATIENCE:g} s: {late} still running; is there a loop?"
                )
            for nth, me in enumerate(list(pending)):
                with contextlib.suppress(TimeoutError):
                    found = self._report(me, 0.0 if nth else 0.005)
                    pending.remove(me)
                    if found["error"]:
                        errors[self.names[me]] = found["error"]
            if pending and not deadlock and self.stuck(pending):
                deadlock = {self.names[me]: None for me in pending}
                self.memory.words[0] = 1
            if deadlock:
                self._wake(pending)
        state = values(self.model.layout, self.memory.cells)
        return judge(self.shared, state, errors, self.model.always, self.model.at_end, not deadlock, deadlock, {})

    def _wake(self, pending: list[int]) -> None:
        """Let those go who would wait for ever; they see that the round is over."""
        for me in pending:
            want = self.memory.words[self.memory.own(me, WAITING)]
            if want > 0:
                post(self.memory.semaphore(want - 1))


def _state(pid: int) -> str:
    """A process's state, "S" for sleeping: proc_pid_stat(5)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


@dataclass(frozen=True)
class Race:
    """How many free runs of real processes ended in which way."""

    times: int
    outcomes: dict[str, int]
    """How it ended, in words -> how often."""
    wrong: set[str]
    """Those of them that are not right."""
    seconds: float
    pause: float

    @property
    def broken(self) -> int:
        """How many runs ended wrong."""
        return sum(count for words, count in self.outcomes.items() if words in self.wrong)

    def _rows(self) -> list[tuple[str, str, int]]:
        ordered = sorted(self.outcomes.items(), key=lambda item: (item[0] in self.wrong, -item[1]))
        return [("✘" if words in self.wrong else "✔", words, count) for words, count in ordered]

    def __repr__(self) -> str:
        lines = [f"{self.times:,} free runs in {self.seconds:.1f} s, {self.broken:,} of them wrong"]
        most = max(self.outcomes.values(), default=1)
        lines += [
            f"  {mark} {count:6,} {'█' * max(1, round(30 * count / most))} {words}"
            for mark, words, count in self._rows()
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        most = max(self.outcomes.values(), default=1)
        rows = "".join(
            f'<tr><td style="text-align:left">{mark} {escape(words)}</td><td style="text-align:right">{count:,}</td>'
            f'<td style="text-align:left;width:16em"><div aria-hidden="true" style="height:1em;min-width:2px;'
            f'width:{100 * count / most:.1f}%;background:{"#009E73" if mark == "✔" else "#D55E00"}"></div></td></tr>'
            for mark, words, count in self._rows()
        )
        caption = f"{self.times:,} free runs in {self.seconds:.1f} s, {self.broken:,} of them wrong"
        return f"<p>{caption}</p><table><tbody>{rows}</tbody></table>"
