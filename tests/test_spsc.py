"""The lock-free ring: against a model, between processes, against damage, and what its compiled code really does."""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
import random
import re
import shutil
import subprocess
import sys
import tracemalloc
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import roles
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llvmlite import binding
from numba import int64

from labkit import channel, launch
from labkit.channels import shm_ring
from labkit.lockfree import spsc
from labkit.lockfree.entry import new_state
from labkit.lockfree.spsc_entry import (
    CLOSED,
    CORRUPT,
    FULL,
    REFUSED,
    SENT,
    SPINS,
    ring_entries,
    ring_functions,
)

pytestmark = pytest.mark.every_python

ROOT = Path(__file__).parents[1]
CAPACITY = 4096


class Ring:
    """A ring in private memory with its builtins, followed by a page that nobody may touch."""

    def __init__(self, capacity: int = CAPACITY, start: int = 0, most: int = 0):
        size, page = spsc.DATA + capacity, mmap.PAGESIZE
        self.mapping = mmap.mmap(-1, size + page)
        self.bytes = np.frombuffer(self.mapping, np.uint8)
        self.address = int(self.bytes.ctypes.data)
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(self.address + size), page, 0) == 0
        self.words = self.bytes[:size].view(np.int64)
        self.capacity = capacity
        self.state = new_state(self.address, capacity, most or capacity - spsc.FRAME)
        self.state[SPINS // 8 + 1] = -1  # no bell
        made = {name: entry.builtin(self.state, self.bytes) for name, entry in ring_entries().items()}
        self.send, self.receive, self.spin = made["send"], made["receive"], made["spin"]
        self.begin(start)

    def begin(self, start: int = 0) -> None:
        """An empty ring whose positions are at `start`."""
        self.words[:] = 0
        ring_functions()["create"](self.address, self.capacity)
        for word in (spsc.WRITE, spsc.READ, spsc.READ_SEEN, spsc.WRITE_SEEN):
            self.words[word // 8] = start


# --- against a model ----------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    start=st.integers(0, 2 * CAPACITY // 8).map(lambda n: n * 8),
    operations=st.lists(st.one_of(st.none(), st.integers(1, CAPACITY - 8)), max_size=60),
)
def test_the_ring_behaves_like_a_deque_with_limited_room(ring, start, operations):
    ring.begin(start)
    model, used = deque(), 0
    for number, size in enumerate(operations):
        if size is None:
            expected = model.popleft() if model else None
            assert ring.receive() == expected
            used -= 8 + -(-len(expected) // 8) * 8 if expected else 0
        else:
            message = roles.numbered(number, size)
            needed = 8 + -(-size // 8) * 8
            fits = used + needed <= CAPACITY
            assert ring.send(message) == (SENT if fits else FULL)
            if fits:
                model.append(message)
                used += needed
    while model:
        assert ring.receive() == model.popleft()
    assert ring.receive() is None


@pytest.fixture(scope="module")
def ring():
    return Ring()


def test_messages_wrap_round_at_every_alignment(ring):
    for start in range(0, CAPACITY, 8):
        ring.begin(CAPACITY * 5 + start)
        for size in (1, 7, 8, 9, 100, CAPACITY - 8):
            message = roles.numbered(start, size)
            assert ring.send(message) == SENT
            assert ring.receive() == message


def test_positions_may_be_as_large_as_a_word_allows(ring):
    start = (1 << 62) + 8
    ring.begin(start)
    assert ring.send(b"far along") == SENT
    assert ring.receive() == b"far along"


def test_a_message_as_large_as_the_ring_fits_and_one_more_byte_is_refused(ring):
    ring.begin()
    largest = bytes(CAPACITY - spsc.FRAME)
    assert ring.send(largest) == SENT
    assert ring.send(b"x") == FULL
    assert ring.receive() == largest
    assert ring.send(largest + b"x") == REFUSED
    assert ring.send(b"") == REFUSED


def test_a_receiver_that_has_gone_is_told_to_the_sender(ring):
    ring.begin()
    ring.words[spsc.RECEIVER_GONE // 8] = 1
    assert ring.send(b"x") == CLOSED


def test_spinning_sees_what_is_there(ring):
    ring.begin()
    ring.state[SPINS // 8] = 50
    assert ring.spin() == 0
    ring.send(b"x")
    assert ring.spin() == 1


@pytest.mark.parametrize("capacity", [4096, 1 << 16, 1 << 20])
@pytest.mark.parametrize("top", [8, 3000])
def test_two_processes_hammer_a_ring_and_every_byte_is_right(capacity, top):
    tx, rx = channel("shm_ring", capacity=capacity)
    count = 60_000
    jobs = launch(roles.check_numbered, rx, top), launch(roles.send_numbered, tx, count, top)
    assert jobs[0].wait() == count
    jobs[1].wait()


def test_no_wake_up_is_lost_when_both_sides_sleep_again_and_again():
    """A ping-pong through two rings with messages that fill them: each side sleeps for almost every message."""
    (tx, far_rx), (far_tx, rx) = channel("shm_ring", capacity=4096), channel("shm_ring", capacity=4096)
    job = launch(roles.echo, far_rx, far_tx)
    for number in range(3000):
        message = roles.numbered(number, 1 + number * 37 % tx.max_message)
        tx.send(message)
        assert rx.receive() == message
    tx.close()
    job.wait()
    rx.close()


# --- damage -------------------------------------------------------------------------------------------------


def damage(seed: int, rounds: int) -> dict[str, int]:
    """Flip bits, write words of nonsense, and use the ring all the same; a wrong access kills this process."""
    dice, ring = random.Random(seed), Ring()
    nonsense = [0, 1, 7, -1, -8, 1 << 31, 1 << 62, (1 << 63) - 1, -(1 << 63), CAPACITY, CAPACITY + 1, CAPACITY * 3 + 4]
    header = [spsc.WRITE, spsc.READ, spsc.READ_SEEN, spsc.WRITE_SEEN, spsc.LOST, spsc.RECEIVER_GONE, spsc.SENDER_SLEEPS]
    room, seen = np.zeros(CAPACITY, np.uint8), {"bytes": 0, "empty": 0, "corrupt": 0, "other": 0}
    for _ in range(rounds):
        ring.begin(dice.randrange(0, 3 * CAPACITY, 8))
        for _ in range(dice.randrange(4)):
            ring.send(bytes(dice.randrange(1, 900)))
        for _ in range(dice.randrange(1, 4)):
            if dice.random() < 0.5:
                ring.words[dice.choice(header) // 8] = dice.choice(nonsense)
            else:
                bit = dice.randrange(8 * (600 if dice.random() < 0.5 else spsc.DATA + CAPACITY))
                ring.bytes[bit // 8] ^= 1 << bit % 8
        for _ in range(4):
            sent = ring.send(bytes(dice.randrange(1, CAPACITY - 8)))
            assert sent in (SENT, FULL, CLOSED, CORRUPT)
            received = ring.receive()
            if isinstance(received, bytes):
                assert 0 < len(received) <= CAPACITY
                seen["bytes"] += 1
            else:
                assert received in (None, CORRUPT)
                seen["empty" if received is None else "corrupt"] += 1
            taken = ring_functions()["take_bytes"](ring.address, CAPACITY, room.ctypes.data, CAPACITY)
            assert taken == spsc.CORRUPT or 0 <= taken <= CAPACITY
    return seen


def test_a_damaged_ring_gives_an_error_or_bytes_and_never_a_crash():
    here = sys.modules[__name__]
    jobs = [launch(damage, seed, 6000) for seed in (1, 2)]
    for job in jobs:
        seen = job.wait(100)
        assert min(seen["bytes"], seen["empty"], seen["corrupt"]) > 100
    assert here.damage is damage


def test_an_end_on_a_damaged_ring_raises_a_clear_error():
    for word, value in ((spsc.READ, 1 << 40), (spsc.READ, 4)):
        tx, rx = channel("shm_ring")
        tx.send(b"x")
        tx._words[word // 8] = value
        with pytest.raises(OSError, match="positions contradict") as caught:
            rx.receive()
        assert caught.value.errno == errno.EBADMSG
        tx.close()
        rx.close()
    tx, rx = channel("shm_ring")
    tx._words[spsc.WRITE // 8] = -8
    with pytest.raises(OSError, match="positions contradict"):
        tx.send(b"x")
    tx.close()
    rx.close()


@pytest.mark.parametrize(
    ("word", "value", "says"),
    [
        (spsc.MAGIC, 0, "magic"),
        (spsc.MAGIC, 1234, "magic"),
        (spsc.VERSION, 2, "version"),
        (spsc.CAPACITY, 8192, "capacity"),
        (spsc.WRITE, -8, "positions"),
        (spsc.READ, 1 << 30, "positions"),
    ],
)
def test_a_foreign_unfinished_or_newer_segment_is_refused(word, value, says):
    tx, rx = channel("shm_ring")
    tx._words[word // 8] = value
    memory, lifeline = os.dup(tx.memory), tx.lifeline.clone()
    with pytest.raises(OSError, match=says) as caught:
        shm_ring.RingSender(memory, shm_ring.CAPACITY, lifeline)
    assert caught.value.errno == errno.EBADMSG
    del caught
    gc.collect()  # and what it was given is closed: the fixture looks
    tx.close()
    rx.close()


@pytest.mark.parametrize("size", [0, 4096, spsc.DATA + shm_ring.CAPACITY - 4096])
def test_a_short_segment_is_refused(size):
    memory = os.memfd_create("short")
    os.ftruncate(memory, size)
    left, right = shm_ring.Lifeline.pair()
    with pytest.raises(OSError, match="size is wrong"):
        shm_ring.RingReceiver(memory, shm_ring.CAPACITY, left)
    right.close()
    gc.collect()


def test_nobody_can_shrink_the_memory_of_a_ring():
    tx, rx = channel("shm_ring")
    for size in (0, spsc.DATA, 1 << 24):
        with pytest.raises(PermissionError):
            os.ftruncate(tx.memory, size)
    assert os.fstat(tx.memory).st_nlink == 0  # and it has no name
    tx.close()
    rx.close()


# --- what the compiled code does ----------------------------------------------------------------------------

ORDERS = [
    (spsc.publish, (int64, int64), r"store atomic i64 .* release", "edge A, publish"),
    (spsc.readable, (int64, int64), r"load atomic i64, .* acquire", "edge A, readable"),
    (spsc.release, (int64, int64), r"store atomic i64 .* release", "edge B, release"),
    (spsc.reserve, (int64, int64, int64), r"load atomic i64, .* acquire", "edge B, reserve"),
    (
        spsc.set_sleeps,
        (int64, int64, int64),
        r"store atomic i64 .* monotonic.*\n(.*\n)*?.*fence seq_cst",
        "edge S, sleep",
    ),
    (spsc.must_wake, (int64, int64), r"fence seq_cst\n(.*\n)*?.*load atomic i64, .* monotonic", "edge S, wake"),
    (spsc.create, (int64, int64), r"store atomic i64 .* release", "the magic number is written last"),
    (spsc.identity, (int64, int64), r"load atomic i64, .* acquire", "the magic number is read first"),
]


def llvm_of(function, signature) -> str:
    function.compile(signature)
    return function.inspect_llvm(function.signatures[-1])


@pytest.mark.parametrize(("function", "signature", "pattern", "edge"), ORDERS, ids=[edge for *_, edge in ORDERS])
def test_the_memory_order_of_each_edge_is_in_the_compiled_code(function, signature, pattern, edge):
    assert re.search(pattern, llvm_of(function, signature)), edge


@pytest.mark.parametrize(
    ("function", "signature", "instruction"),
    [
        (spsc.publish, (int64, int64), "stlr"),
        (spsc.release, (int64, int64), "stlr"),
        (spsc.readable, (int64, int64), "ldar|ldapr"),
        (spsc.reserve, (int64, int64, int64), "ldar|ldapr"),
        (spsc.must_wake, (int64, int64), r"dmb\s+ish"),
    ],
)
def test_on_aarch64_the_edges_are_its_acquire_and_release_instructions(function, signature, instruction):
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    triple = "aarch64-unknown-linux-gnu"
    try:
        machine = binding.Target.from_triple(triple).create_target_machine()
    except RuntimeError:
        pytest.skip("this llvmlite knows no AArch64")
    text = re.sub(r"^target (triple|datalayout) .*$", "", llvm_of(function, signature), flags=re.M)
    text = re.sub(r'"(target-cpu|target-features|tune-cpu)"="[^"]*"', "", text)
    assembly = machine.emit_assembly(binding.parse_assembly(f'target triple = "{triple}"\n{text}'))
    assert re.search(instruction, assembly)


def test_builtins_own_every_reference_they_return_and_no_more():
    tx, rx = channel("shm_ring")
    message, none = b"x" * 50, None

    def counts():
        return sys.getrefcount(message), sys.getrefcount(none), sys.getrefcount(SENT)

    def use(times):
        for _ in range(times):
            tx.send(message)
            rx.receive()
            rx._receive()  # None
            rx._sleeps(0)
            tx._send(b"")

    use(100)
    before = counts()
    tracemalloc.start()
    gc.collect()
    memory = tracemalloc.get_traced_memory()[0]
    use(100_000)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - memory
    tracemalloc.stop()
    assert all(abs(now - then) < 100 for now, then in zip(counts(), before, strict=True))
    assert grown < 100_000  # a byte a call; other threads may have some
    tx.close()
    rx.close()


def test_builtins_say_what_is_wrong_with_their_arguments():
    tx, rx = channel("shm_ring")
    for ask in (
        lambda: tx._send(),
        lambda: tx._send(b"a", b"b"),
        lambda: tx._send(message=b"a"),
        lambda: tx._send("text"),
        lambda: tx._send(None),
        lambda: rx._receive(1),
        lambda: rx._spin(1),
        lambda: rx._sleeps(),
        lambda: rx._sleeps("no"),
    ):
        with pytest.raises(TypeError):
            ask()
    with pytest.raises(OverflowError):
        rx._sleeps(1 << 80)
    assert tx._send.__name__ == "ring_send"
    assert "bytes-like" in tx._send.__doc__
    tx.close()
    rx.close()


def test_a_builtin_that_outlives_its_end_works_on_memory_that_is_still_there():
    tx, rx = channel("shm_ring")
    send, receive = tx._send, rx._receive
    tx.close()
    rx.close()
    gc.collect()
    assert send(b"x") == CLOSED
    assert receive() is None


def test_an_exported_buffer_is_released_again():
    tx, rx = channel("shm_ring")
    message = bytearray(b"12345678")
    tx.send(message)
    message.extend(b"9")  # BufferError while somebody holds it
    with pytest.raises(OSError):
        tx.send(memoryview(bytearray(tx.max_message + 1)))
    rx.receive()
    tx.close()
    rx.close()


def test_an_edited_source_makes_another_key_of_the_compiled_code(tmp_path):
    shutil.copytree(ROOT / "labkit", tmp_path / "labkit", ignore=shutil.ignore_patterns("__pycache__"))

    def key():
        code = "from labkit.lockfree.entry import SOURCES; print(SOURCES)"
        return subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True).stdout

    before = key()
    assert len(before) > 16
    assert key() == before
    for edited in ("atomics.py", "spsc.py"):
        with (tmp_path / "labkit" / "lockfree" / edited).open("a") as file:
            file.write("# edited\n")
        assert key() not in ("", before)
        before = key()


def test_traces_compiled_code_has_another_key_when_its_own_source_is_edited():
    """numba keys by a function's file; what `record` does is in the same file as what is cached."""
    from labkit import trace_entry

    for name in ("record", "record_sent", "record_bare"):
        function = getattr(trace_entry, name)
        assert Path(function.py_func.__code__.co_filename) == Path(trace_entry.__file__)
