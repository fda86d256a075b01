"""What labkit adds to each mechanism: send and receive, over the bare system calls in a Python loop, paired in one run.

A channel that holds the whole message is sent into and received from in one process, so that nobody has to be woken and
the calls themselves are what is measured. 1 MB, more than a byte stream holds, goes from one process to another there.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from labkit.bench import Row, middle, paired
from labkit.channels import KINDS, channel, facts
from labkit.launch import launch

PAIRS = 9
SECONDS = 0.02  # that one sample of small messages takes, about
LARGE, LARGE_COUNT = 1 << 20, 150

Ends = tuple[Callable[[bytes], Any], Callable[[int], Any]]
"""send(message) and receive(size of the message) as bare calls."""


@contextmanager
def bare_pipe() -> Iterator[Ends]:
    read_end, write_end = os.pipe()
    try:
        yield partial(os.write, write_end), partial(os.read, read_end)
    finally:
        os.close(read_end)
        os.close(write_end)


@contextmanager
def bare_fifo() -> Iterator[Ends]:
    with tempfile.TemporaryDirectory() as folder:
        os.mkfifo(f"{folder}/fifo")
        read_end = os.open(f"{folder}/fifo", os.O_RDONLY | os.O_NONBLOCK)
        write_end = os.open(f"{folder}/fifo", os.O_WRONLY)
        try:
            yield partial(os.write, write_end), partial(os.read, read_end)
        finally:
            os.close(read_end)
            os.close(write_end)


@contextmanager
def bare_socketpair(kind: socket.SocketKind) -> Iterator[Ends]:
    left, right = socket.socketpair(socket.AF_UNIX, kind)
    with left, right:
        yield left.send, right.recv


@contextmanager
def bare_inet(kind: socket.SocketKind) -> Iterator[Ends]:
    with ExitStack() as stack:
        right = stack.enter_context(socket.socket(socket.AF_INET, kind))
        left = stack.enter_context(socket.socket(socket.AF_INET, kind))
        right.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            right.listen(1)
        left.connect(right.getsockname())
        if kind == socket.SOCK_STREAM:
            left.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            right = stack.enter_context(right.accept()[0])
        yield left.send, right.recv


@contextmanager
def bare_posix_mq() -> Iterator[Ends]:
    import posix_ipc

    queue = posix_ipc.MessageQueue(
        f"/labkit-{os.getpid()}-{secrets.token_hex(4)}", posix_ipc.O_CREX, max_messages=10, max_message_size=8192
    )
    queue.unlink()
    try:
        yield queue.send, lambda _: queue.receive()[0]
    finally:
        queue.close()


@contextmanager
def bare_sysv_mq() -> Iterator[Ends]:
    import sysv_ipc

    queue = sysv_ipc.MessageQueue(None, sysv_ipc.IPC_CREX, max_message_size=8192)
    try:
        yield queue.send, lambda _: queue.receive()[0]
    finally:
        queue.remove()


@contextmanager
def bare_shared_memory(semaphores: str) -> Iterator[Ends]:
    """A copy in and a copy out, with the two semaphores of a bounded buffer."""
    memory = mmap.mmap(-1, LARGE)
    with ExitStack() as stack:
        if semaphores == "posix":
            import posix_ipc

            pair = []
            for value in (0, 1):
                name = f"/labkit-{os.getpid()}-{secrets.token_hex(4)}"
                pair.append(posix_ipc.Semaphore(name, posix_ipc.O_CREX, initial_value=value))
                posix_ipc.unlink_semaphore(name)
                stack.callback(pair[-1].close)
        else:
            import sysv_ipc

            pair = [sysv_ipc.Semaphore(None, sysv_ipc.IPC_CREX, initial_value=value) for value in (0, 1)]
            for semaphore in pair:
                stack.callback(semaphore.remove)
        filled, free = pair

        def send(message: bytes) -> None:
            free.acquire()
            memory[: len(message)] = message
            filled.release()

        def receive(size: int) -> bytes:
            filled.acquire()
            message = memory[:size]
            free.release()
            return message

        yield send, receive
    memory.close()


@contextmanager
def bare_signal() -> Iterator[Ends]:
    """Eight bytes a signal, to ourselves; the number and the signalfd are a channel's, which all threads block."""
    from labkit.libc import libc

    tx, rx = channel("signal")
    number, me = int(rx._page[0]) >> 32, os.getpid()  # type: ignore[attr-defined]

    def send(message: bytes) -> None:
        for start in range(0, len(message), 8):
            libc.sigqueue(me, number, int.from_bytes(message[start : start + 8], "little"))

    def receive(size: int) -> bytes:
        pieces = os.read(rx.fileno(), 128 * (size // 8))
        return b"".join(pieces[at + 48 : at + 56] for at in range(0, len(pieces), 128))

    with tx, rx:
        yield send, receive


@contextmanager
def bare_mp_queue() -> Iterator[Ends]:
    import multiprocess

    queue = multiprocess.get_context("forkserver").Queue()
    try:
        yield queue.put, lambda _: queue.get()
    finally:
        queue.close()
        queue.join_thread()


@contextmanager
def bare_zmq() -> Iterator[Ends]:
    import zmq

    with tempfile.TemporaryDirectory() as folder, zmq.Context() as context:
        pull, push = context.socket(zmq.PULL), context.socket(zmq.PUSH)
        with pull, push:
            pull.bind(f"ipc://{folder}/zmq")
            push.connect(f"ipc://{folder}/zmq")
            yield push.send, lambda _: pull.recv()


BARE: dict[str, Callable[[], contextlib.AbstractContextManager[Ends]]] = {
    "pipe": bare_pipe,
    "fifo": bare_fifo,
    "unix_stream": partial(bare_socketpair, socket.SOCK_STREAM),
    "unix_datagram": partial(bare_socketpair, socket.SOCK_DGRAM),
    "unix_seqpacket": partial(bare_socketpair, socket.SOCK_SEQPACKET),
    "tcp": partial(bare_inet, socket.SOCK_STREAM),
    "udp": partial(bare_inet, socket.SOCK_DGRAM),
    "posix_mq": bare_posix_mq,
    "sysv_mq": bare_sysv_mq,
    "mmap_file": partial(bare_shared_memory, "posix"),
    "posix_shm": partial(bare_shared_memory, "posix"),
    "sysv_shm": partial(bare_shared_memory, "sysv"),
    "signal": bare_signal,
    "mp_queue": bare_mp_queue,
    "zmq": bare_zmq,
}
THREADED = ("mp_queue", "zmq")  # a thread carries their messages on: one at a time would measure its waking
STREAMS = ("pipe", "unix_stream", "tcp")  # and fifo, but for the 1 MB: its messages are atomic, hence small


def options(kind: str, size: int) -> dict[str, Any]:
    """What makes a channel take messages of this size where the default does not; one slot, as the bare buffer has."""
    default = facts()[kind].max_message
    if default is None or size <= default:
        return {}
    buffer = kind in ("mmap_file", "posix_shm", "sysv_shm")
    return {"max_message": size, "max_messages": 1} if buffer else {"max_message": size} if kind == "posix_mq" else {}


def takes(kind: str, size: int) -> bool:
    """Whether the mechanism can, here: a queue's largest message is the machine's to decide."""
    try:
        tx, rx = channel(kind, **options(kind, size))
    except OSError:
        return False
    with tx, rx:
        return size <= tx.max_message


@contextmanager
def labkit_ends(kind: str, size: int) -> Iterator[Ends]:
    tx, rx = channel(kind, **options(kind, size))
    with tx, rx:
        yield tx.send, lambda _: rx.receive()


def small(ends: Callable[[], contextlib.AbstractContextManager[Ends]], size: int, burst: int = 1) -> float:
    """Seconds of one send and one receive; `burst` messages are sent before they are received."""
    message, count = bytes(size), 0
    with ends() as (send, receive):
        for _ in range(20):
            send(message)
            receive(size)
        begun = time.perf_counter()
        rounds = 100 // burst if size < LARGE else 1
        while time.perf_counter() - begun < SECONDS:
            for _ in range(rounds):
                for _ in range(burst):
                    send(message)
                for _ in range(burst):
                    receive(size)
            count += rounds * burst
        return (time.perf_counter() - begun) / count


def large_labkit(kind: str) -> float:
    """Seconds that LARGE_COUNT messages of 1 MB take between two processes, sender and receiver ours."""
    tx, rx = channel(kind)

    def produce(tx: Any) -> None:
        message = bytes(LARGE)
        for _ in range(LARGE_COUNT):
            tx.send(message)

    job = launch(produce, tx)
    rx.receive()
    begun = time.perf_counter()
    for _ in range(LARGE_COUNT - 1):
        rx.receive()
    seconds = time.perf_counter() - begun
    job.wait()
    rx.close()
    return seconds


def large_bare(kind: str) -> float:
    """The same with os.write and os.read on the very descriptors of such a channel, the message in one piece."""
    tx, rx = channel(kind)

    def produce(tx: Any) -> None:
        message, fd = memoryview(bytes(LARGE)), tx.fileno()
        os.set_blocking(fd, True)
        for _ in range(LARGE_COUNT):
            sent = 0
            while sent < LARGE:
                sent += os.write(fd, message[sent:])

    job = launch(produce, tx)
    os.set_blocking(rx.fileno(), True)
    begun = 0.0
    for number in range(LARGE_COUNT):
        pieces, missing = [], LARGE
        while missing:
            pieces.append(os.read(rx.fileno(), min(missing, 1 << 16)))
            missing -= len(pieces[-1])
        b"".join(pieces)
        if not number:
            begun = time.perf_counter()
    seconds = time.perf_counter() - begun
    job.wait()
    rx.close()
    return seconds


def run(progress: Callable[[], None]) -> list[Row]:
    rows = []
    for kind in KINDS:
        if kind not in BARE:
            continue
        for size in (64, 4096, LARGE):
            if not takes(kind, size):
                continue
            if size == LARGE and kind in STREAMS:
                ours, theirs = partial(large_labkit, kind), partial(large_bare, kind)
            else:
                burst = 1 if kind not in THREADED else 100 if size < LARGE else 10
                ours = partial(small, partial(labkit_ends, kind, size), size, burst)
                theirs = partial(small, BARE[kind], size, burst)
            ours()
            low, median, high = middle(paired(ours, theirs, PAIRS, progress))
            what = f"{kind}, {size:,} B: send + receive / bare calls"
            rows.append(Row(what, f"{median:.2f}x ({low:.2f} to {high:.2f})", "<= 1.5x", median <= 1.5))
    return rows
