"""Kill a process after exactly N machine instructions of an operation: ptrace(2), PTRACE_SINGLESTEP.

    report = sweep("send", begin, work, check)

Each kill point N has a new queue (`begin`) and a child, forked from this process, in which everything is compiled and
imported already. The child prepares itself and raises MARK, a signal that nobody minds: there it stops, because it is
traced. It is let go on for N instructions and is killed. Then `check` looks whether what is left keeps the promises of
the queue. A second MARK says that the operation is over: a first child is walked up to there, so that the number of
kill points is known, and what changed in shared memory at which of them.

Children of one process that execute the same compiled code of ours take the same way through it. Through Python and the
C library they do not: malloc(3), for one, goes further when a pool is used up, which depends on how often the parent
has allocated something. So N is not counted from the beginning, but told as a landmark to which the child comes for the
k-th time, an instruction of the compiled code or a system call, and so many more after it. A breakpoint brings the
child to the landmark at full speed. Then it is looked whether it is where N was in the child that was walked through.
Two instructions between which shared memory did not change, nor the Linux kernel was called, leave the same behind when
the process dies. So it is enough to kill where something changed; LABKIT_CRASH=all kills after each instruction of the
compiled code all the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import cfunc, njit, types

from labkit.lockfree.atomics import load_int, on_stack

MARK = int(signal.SIGURG)  # ignored by who is not traced: signal(7)
TRAP = int(signal.SIGTRAP)
DEADLINE = 200
"""Seconds after which a child that hangs is killed by its own alarm(2)."""

TRACEME, CONT, SINGLESTEP, DETACH, SETOPTIONS, GETREGSET, SETREGSET = 0, 7, 9, 17, 0x4200, 0x4204, 0x4205
EXITKILL = 1 << 20  # the traced die with who traces them
NT_PRSTATUS = 1
WALL = 0x4000_0000

# Index of the program counter in struct user_regs_struct; how a system call is encoded, and a breakpoint.
MACHINES = {
    "x86_64": (16, b"\x0f\x05", b"\xcc"),
    "aarch64": (32, b"\x01\x00\x00\xd4", b"\x00\x00\x20\xd4"),
}
COUNTER, SYSTEM_CALL, BREAKPOINT = MACHINES.get(platform.machine(), (-1, b"", b""))

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long

_WORD, _INT = types.int64, types.int32
_ptrace = types.ExternalFunction("ptrace", _WORD(_WORD, _WORD, _WORD, _WORD))
_waitpid = types.ExternalFunction("waitpid", _INT(_INT, _WORD, _INT))
_getpid = types.ExternalFunction("getpid", _INT())
_kill = types.ExternalFunction("kill", _INT(_INT, _INT))
_CallOneArg = types.ExternalFunction("PyObject_CallOneArg", _WORD(_WORD, _WORD))


@njit
def mark():
    """The operation begins, or ends, here. For compiled code."""
    _kill(_getpid(), MARK)


@cache
def _caller() -> Any:
    @cfunc(_WORD(_WORD, _WORD))
    def call_marked(function, argument):
        mark()
        result = _CallOneArg(function, argument)
        mark()
        return result

    _caller.keep = call_marked  # type: ignore[attr-defined]
    return ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object, ctypes.py_object)(call_marked.address)


def call_marked(function: Callable[[Any], Any], argument: Any) -> Any:
    """Call a builtin, or any other callable, between two marks."""
    return _caller()(function, argument)


@njit
def _walk(pid, steps):
    """Let a stopped process do so many instructions: how many it did, fewer when it came to its next mark.

    Negative when it ended by itself: minus the status of waitpid(2), minus 2.
    """
    status = on_stack()
    passed_on = 0
    for done in range(steps):
        if _ptrace(SINGLESTEP, pid, 0, passed_on) != 0 or _waitpid(pid, status, WALL) != pid:
            return -1
        state = load_int(status)
        if state & 0xFF != 0x7F:
            return -2 - state
        number = state >> 8 & 0xFF
        if number == MARK:
            return done
        passed_on = number if number != TRAP else 0
    return steps


@njit
def _record(pid, steps, memory, copy, registers, counter, counters, changed):
    """The same, writing down each instruction's address, and which of them changed the shared memory."""
    copy[:] = memory
    for done in range(steps):
        iovec = on_stack_iovec(registers)
        if counter >= 0:
            _ptrace(GETREGSET, pid, NT_PRSTATUS, iovec.ctypes.data)
            counters[done] = registers[counter]
        reached = _walk(pid, 1)
        if reached != 1:
            return done if reached == 0 else reached
        for word in range(memory.size):
            if memory[word] != copy[word]:
                changed[done] = 1
                copy[word] = memory[word]
    return steps


@njit
def on_stack_iovec(registers):
    """struct iovec, of the array in which registers are wanted."""
    iovec = np.empty(2, np.int64)
    iovec[0], iovec[1] = registers.ctypes.data, registers.size * 8
    return iovec


class Stepped:
    """A child that has stopped before the first instruction of its operation.

    Args:
        work: what the child does; it comes to `mark` twice.
    """

    def __init__(self, work: Callable[[], object]):
        self.pid = forked(lambda: _be_traced(work))
        self._wait_for_mark()
        _libc.ptrace(SETOPTIONS, self.pid, None, EXITKILL)

    def _wait_for_mark(self) -> None:
        while True:
            _, status = os.waitpid(self.pid, WALL)
            if not os.WIFSTOPPED(status):
                self.pid = 0
                raise AssertionError(f"the child ended ({status:#x}) before it came to its mark")
            if os.WSTOPSIG(status) == MARK:
                return
            _libc.ptrace(CONT, self.pid, None, os.WSTOPSIG(status))

    def walk(self, steps: int) -> int:
        """Do so many instructions; how many it did, fewer when the operation is over."""
        done = int(_walk(self.pid, steps))
        assert done >= 0, f"the child ended while it was stepped: {-2 - done:#x}"
        return done

    def run_to(self, address: int, times: int) -> None:
        """Run at full speed until this instruction is about to be executed for the n-th time."""
        with open(f"/proc/{self.pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(address)
            there = memory.read(len(BREAKPOINT))
            for time in range(times):
                if time:
                    self.walk(1)
                memory.seek(address)
                memory.write(BREAKPOINT)
                self._run_to_breakpoint()
                memory.seek(address)
                memory.write(there)
                registers, iovec = self._registers()
                registers[COUNTER] = address  # x86 has gone past the breakpoint
                assert _libc.ptrace(SETREGSET, self.pid, NT_PRSTATUS, iovec.ctypes.data) == 0

    def walk_to_store(self, times: int, memory: np.ndarray) -> None:
        """Step until this memory has changed so many times."""
        for _ in range(times):
            copy = memory.copy()
            while np.array_equal(memory, copy):
                assert self.walk(1) == 1, "the child did less than the one that was walked through"

    def _run_to_breakpoint(self) -> None:
        passed_on = 0
        while passed_on != TRAP:
            _libc.ptrace(CONT, self.pid, None, passed_on)
            _, status = os.waitpid(self.pid, WALL)
            assert os.WIFSTOPPED(status), f"the child ended: {status:#x}"
            passed_on = os.WSTOPSIG(status)
            assert passed_on != MARK, "the child took another way than the one that was walked through"

    def _registers(self) -> tuple[np.ndarray, np.ndarray]:
        """Its registers, and the struct iovec that says where they are."""
        registers = np.zeros(128, np.int64)
        iovec = np.array([registers.ctypes.data, registers.nbytes])
        assert _libc.ptrace(GETREGSET, self.pid, NT_PRSTATUS, iovec.ctypes.data) == 0
        return registers, iovec

    def go(self, point: Point, memory: np.ndarray) -> None:
        """To this point of the operation, or its end."""
        if point.times:
            self.run_to(point.landmark, point.times)
        if point.stores:
            self.walk_to_store(point.stores, memory)
        else:
            self.walk(point.further)
        if point.address:
            at = int(self._registers()[0][COUNTER])
            assert at == point.address, f"the child is at {at:#x}, where the other was at {point.address:#x}"

    def code(self, address: int, size: int) -> bytes:
        """What is in its memory, nothing where it has none."""
        with contextlib.suppress(OSError), open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(size)
        return b""

    def finish(self) -> None:
        """Do the rest of the operation at full speed, up to the second mark."""
        _libc.ptrace(CONT, self.pid, None, None)
        self._wait_for_mark()

    def kill(self) -> None:
        """kill -9."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, WALL)
            self.pid = 0

    def stop(self) -> None:
        """Trace it no longer, and leave it stopped as by SIGSTOP."""
        assert _libc.ptrace(DETACH, self.pid, None, int(signal.SIGSTOP)) == 0
        os.waitpid(self.pid, os.WUNTRACED)

    def resume(self) -> int:
        """After `stop`: SIGCONT, and its exit status."""
        os.kill(self.pid, signal.SIGCONT)
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def __enter__(self) -> Stepped:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def forked(work: Callable[[], object]) -> int:
    """The pid of a child that does this work and ends, with status 0 when it succeeds."""
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of threads, of which the child uses none
        pid = os.fork()
    if pid:
        return pid
    status = 3
    try:
        signal.alarm(DEADLINE)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _be_traced(work: Callable[[], object]) -> None:
    if _libc.ptrace(TRACEME, 0, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace(PTRACE_TRACEME)")
    work()


@cache
def why_not() -> str:
    """Why processes cannot be stepped here; empty when they can."""
    try:
        with Stepped(_nothing) as child:
            child.walk(3)
    except AssertionError as reason:
        return f"ptrace(2) is not allowed here ({reason})"
    return ""


def _nothing() -> None:
    os.kill(os.getpid(), MARK)
    os.kill(os.getpid(), MARK)


# --- sweeps -------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """What a sweep found.

    Attributes:
        operation: what was killed.
        instructions: how many it has.
        points: after which of them it was killed.
        violations: kill point -> what was wrong then.
        answers: kill point -> what `check` returned.
    """

    operation: str
    instructions: int = 0
    points: list[int] = field(default_factory=list)
    violations: dict[int, str] = field(default_factory=dict)
    answers: dict[int, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        text = f"{self.operation}: {self.instructions} instructions, killed after {len(self.points)} of them"
        text += f", {len(self.violations)} violations"
        for point, what in list(self.violations.items())[:5]:
            text += f"\n    after {point}: {what}"
        return text


def everywhere() -> bool:
    """Whether to kill after every instruction, not only where something changed."""
    return os.environ.get("LABKIT_CRASH") == "all"


def shared(size: int) -> np.ndarray:
    """Zeroed words of memory that children share."""
    return np.frombuffer(mmap.mmap(-1, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE), np.int64)


def sweep(
    operation: str,
    begin: Callable[[], Any],
    work: Callable[[Any], object],
    check: Callable[[Any], Any],
    watch: Callable[[Any], np.ndarray],
    *,
    few: int = 60,
    longest: int = 400_000,
    every: bool | None = None,
) -> Report:
    """Kill an operation after N instructions, for many N.

    Args:
        begin: makes what one kill point needs; it has a close().
        work: what the child does with that: it comes to `mark` twice.
        check: looks at what is left, and raises AssertionError when a promise is broken.
        watch: the shared memory, as words: where it changes, the child is killed.
        few: at most so many kill points, chosen evenly, if not everywhere.
        longest: no operation has more instructions than this.
        every: everywhere, also where nothing changed; None: when LABKIT_CRASH says so.
    """
    every = everywhere() if every is None else every
    with contextlib.closing(begin()) as scene:
        work(scene)  # what is not compiled yet is compiled now; who is not traced has no marks
    with contextlib.closing(begin()) as scene:
        found = record(lambda: work(scene), watch(scene), longest)
    points = sorted({0, *(found.compiled if every else spread(found.changes, few)), found.instructions})
    report = Report(operation, found.instructions, points)
    for point in points:
        with contextlib.closing(begin()) as scene:
            try:
                with Stepped(lambda scene=scene: work(scene)) as child:
                    child.go(found.point(point), watch(scene))
                report.answers[point] = check(scene)
            except AssertionError as wrong:
                report.violations[point] = (str(wrong) or traceback.format_exc()).splitlines()[0]
    return report


class Point(NamedTuple):
    """A place in an operation.

    Attributes:
        landmark: address of an instruction that comes before it.
        times: how often one comes to the landmark; 0: there is none, it is counted from the beginning.
        further: how many instructions come then, if no stores are counted.
        stores: how often the memory changes then, where that is done by code that is not steady, else 0.
        address: where it is, when it is steady, else 0.
    """

    landmark: int
    times: int
    further: int
    stores: int
    address: int


@dataclass
class Recording:
    """An operation that was walked through.

    Attributes:
        instructions: how many it has.
        changes: after which of them something is different for others: the shared memory has changed, or the Linux
            kernel was called.
        compiled: these, and all that are compiled queues: code that lies in memory of no file. The others are those of
            Python's interpreter and the C library.
        addresses: of all of them.
        has_stored: for each instruction whether it has changed the memory.
        is_steady: whether it is one of the queues', or calls the Linux kernel: all children come to it equally often.
    """

    instructions: int
    changes: list[int]
    compiled: list[int]
    addresses: np.ndarray
    has_stored: np.ndarray
    is_steady: np.ndarray

    @cached_property
    def landmarks(self) -> np.ndarray:
        """For each instruction the last steady one, at or before it, that was executed for the first time or came after
        one that is not steady; or -1. From a landmark to the next steady instruction all children go the same way.
        """
        first = np.zeros(self.instructions, bool)
        first[np.unique(self.addresses, return_index=True)[1]] = True
        comes_back = ~np.concatenate(([False], self.is_steady[:-1]))
        is_landmark = self.is_steady & (first | comes_back)
        return np.maximum.accumulate(np.where(is_landmark, np.arange(self.instructions), -1))

    def point(self, n: int) -> Point:
        """Where one is after `n` instructions."""
        if COUNTER < 0:
            return Point(0, 0, n, 0, 0)
        last = min(n, self.instructions - 1)
        landmark = int(self.landmarks[last])
        first = max(landmark, 0)
        address = int(self.addresses[landmark]) if landmark >= 0 else 0
        times = np.count_nonzero(self.addresses[: landmark + 1] == address)
        wanders = 0 < n < self.instructions and not self.is_steady[n - 1 : n + 1].any()
        stores = np.count_nonzero(self.has_stored[first:n]) if wanders else 0
        here = int(self.addresses[n]) if self.is_steady[last] and n == last else 0
        return Point(address, times, n - first, stores, here)


def record(work: Callable[[], object], memory: np.ndarray, longest: int) -> Recording:
    """Walk through an operation."""
    counters, changed = np.zeros(longest, np.int64), np.zeros(longest, np.int8)
    with Stepped(work) as child:
        registers = np.zeros(128, np.int64)
        done = int(_record(child.pid, longest, memory, np.empty_like(memory), registers, COUNTER, counters, changed))
        assert 0 <= done < longest, f"after {longest} instructions the operation was not over, or it ended: {done}"
        counters = counters[:done]
        places = np.unique(counters).tolist() if COUNTER >= 0 else []
        calls = [one for one in places if child.code(one, len(SYSTEM_CALL)) == SYSTEM_CALL]
        called = np.flatnonzero(np.isin(counters, calls))
        is_compiled = np.full(done, COUNTER < 0)
        for start, end in _compiled_places(child.pid):
            is_compiled |= (counters >= start) & (counters < end)
    changes = set((np.flatnonzero(changed[:done]) + 1).tolist()) | {
        n + side for n in called.tolist() for side in (0, 1)
    }
    compiled = {n + side for n in np.flatnonzero(is_compiled).tolist() for side in (0, 1)}
    is_compiled[called] = True
    return Recording(done, sorted(changes), sorted(changes | compiled), counters, changed[:done] != 0, is_compiled)


def _compiled_places(pid: int) -> list[tuple[int, int]]:
    """Where in the memory of a process there is code that comes from no file: proc_pid_maps(5)."""
    places = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        place, rights, *_, inode = line.split()[:5]
        if "x" in rights and inode == "0" and "[" not in line:
            start, _, end = place.partition("-")
            places.append((int(start, 16), int(end, 16)))
    return places


def spread(points: list[int], few: int) -> list[int]:
    """At most `few` of them, evenly."""
    if len(points) <= few:
        return points
    return [points[n * (len(points) - 1) // (few - 1)] for n in range(few)]
