"""The queues of others, as sides of a comparison. Each may be missing, and then says why.

C++: compiled from peers.cpp, loaded with ctypes, run in the same processes on the same kind of shared memory as ours.
Python: the packages of the extra `peers`, and what the standard library has.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import itertools
import multiprocessing
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from labkit.bench.pairs import Side, memory, nothing

SLOTS = 16384  # of all C++ queues; boost's are compiled with it

CPP_FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", "-march=native", "-fPIC", "-shared"]


@dataclass(frozen=True)
class Missing:
    """Why a peer cannot take part."""

    name: str
    why: str


# --- C++ ------------------------------------------------------------------------------------------------------


@functools.cache
def compiled() -> str | Missing:
    """The path of the compiled peers, which are removed when this process ends."""
    compiler = next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    if compiler is None:
        return Missing("C++", "no C++ compiler here (Debian: apt-get install g++)")
    folder = tempfile.TemporaryDirectory(prefix="labkit-peers-")
    library = f"{folder.name}/peers.so"
    source = str(Path(__file__).with_name("peers.cpp"))
    done = subprocess.run([compiler, *CPP_FLAGS, source, "-o", library], capture_output=True, text=True, timeout=300)
    if done.returncode:
        return Missing("C++", f"{compiler} failed: {done.stderr.strip().splitlines()[0]}")
    _keep.append(folder)
    return library


_keep: list[Any] = []


@functools.cache
def _library(path: str) -> ctypes.CDLL:
    return ctypes.CDLL(path)


def _function(path: str, name: str, words: int, result: Any = ctypes.c_int64) -> Callable[..., int]:
    function = _library(path)[name]
    function.argtypes, function.restype = [ctypes.c_int64] * words, result
    made: Callable[..., int] = function
    return made


@contextlib.contextmanager
def cpp_queue(path: str, name: str, queues: int = 1) -> Iterator[tuple[str, str, list[Any]]]:
    """`queues` empty queues of this name in shared memory of their own."""
    size = _function(path, f"{name}_bytes", 1)(SLOTS)
    with contextlib.ExitStack() as stack:
        memories = [stack.enter_context(memory(size)) for _ in range(queues)]
        for one in memories:
            _function(path, f"{name}_create", 2, None)(one.array.ctypes.data, SLOTS)
        yield path, name, memories


def cpp_produce(shared: Any, count: int) -> None:
    path, name, (queue,) = shared
    _function(path, f"{name}_produce", 2)(queue.array.ctypes.data, count)


def cpp_consume(shared: Any, count: int) -> None:
    path, name, (queue,) = shared
    found = _function(path, f"{name}_consume", 2)(queue.array.ctypes.data, count)
    assert found == count * (count - 1) // 2, "the C++ queue lost something"


def cpp_consume_some(shared: Any, count: int) -> None:
    path, name, (queue,) = shared
    _function(path, f"{name}_consume", 2)(queue.array.ctypes.data, count)


def cpp_ping(shared: Any, count: int) -> None:
    path, name, (there, back) = shared
    _function(path, f"{name}_ping", 3)(there.array.ctypes.data, back.array.ctypes.data, count)


def cpp_pong(shared: Any, count: int) -> None:
    path, name, (there, back) = shared
    _function(path, f"{name}_pong", 3)(there.array.ctypes.data, back.array.ctypes.data, count)


def _cpp(title: str, name: str, count: int, roles: tuple[Any, ...], queues: int = 1) -> Side | Missing:
    path = compiled()
    if isinstance(path, Missing):
        return Missing(title, path.why)
    if not hasattr(_library(path), f"{name}_create"):
        return Missing(title, "no boost headers here (Debian: apt-get install libboost-dev)")
    return Side(title, functools.partial(cpp_queue, path, name, queues), roles, count)


def cpp_stream(title: str, name: str, count: int, many: int = 1) -> Side | Missing:
    """`many` producers and as many consumers."""
    consume = cpp_consume if many == 1 else cpp_consume_some
    return _cpp(title, name, count, (cpp_produce, consume) * many)


def cpp_round_trip(title: str, name: str, count: int) -> Side | Missing:
    return _cpp(title, name, count, (cpp_ping, cpp_pong), queues=2)


# --- Python ---------------------------------------------------------------------------------------------------


def put_all(queue: Any, count: int, message: Any = b"8 bytes.") -> None:
    put = queue.put
    for _ in itertools.repeat(None, count):
        put(message)


def get_all(queue: Any, count: int) -> None:
    get = queue.get
    for _ in itertools.repeat(None, count):
        get()


def ping_queues(queues: Any, count: int) -> None:
    there, back = queues
    for _ in itertools.repeat(None, count):
        there.put(b"8 bytes.")
        back.get()


def pong_queues(queues: Any, count: int) -> None:
    there, back = queues
    for _ in itertools.repeat(None, count):
        there.get()
        back.put(b"8 bytes.")


@contextlib.contextmanager
def mp_queues(number: int = 1) -> Iterator[Any]:
    """One queue, or a tuple of them."""
    queues = tuple(multiprocessing.get_context("forkserver").Queue() for _ in range(number))
    try:
        yield queues[0] if number == 1 else queues
    finally:
        for queue in queues:
            queue.close()


def mp_queue(count: int, roles: tuple[Any, ...] = (put_all, get_all), queues: int = 1) -> Side:
    return Side("multiprocessing.Queue", functools.partial(mp_queues, queues), roles, count)


def _same(what: Any) -> Any:
    return what


@contextlib.contextmanager
def _faster_fifo() -> Iterator[Any]:
    import faster_fifo

    queue = faster_fifo.Queue(1 << 20, loads=bytes, dumps=_same)
    try:
        yield queue
    finally:
        queue.close()


def faster_fifo(count: int) -> Side | Missing:
    """Raw bytes, without pickle."""
    return _installed("faster_fifo", "faster-fifo") or Side("faster-fifo", _faster_fifo, (put_all, get_all), count)


@contextlib.contextmanager
def _membridge(bytes_: int) -> Iterator[Any]:
    import membridge

    name = f"/labkit-bench-{os.getpid()}-{secrets.token_hex(4)}"
    memory = membridge.SharedMemory.create(name, bytes_ + 24)
    try:
        memory.spsc()
        yield name
    finally:
        membridge.SharedMemory.remove(name)


def _membridge_open(name: str, me: int) -> Any:
    import membridge

    memory = membridge.SharedMemory.open(name)
    return memory, memory.spsc()


def membridge_push(shared: Any, count: int) -> None:
    push = shared[1].push
    for _ in itertools.repeat(None, count):
        while not push(b"8 bytes."):
            pass


def membridge_pop(shared: Any, count: int) -> None:
    pop = shared[1].pop
    for _ in itertools.repeat(None, count):
        while pop() is None:
            pass


def membridge(count: int) -> Side | Missing:
    """It has no way to wait: both ends try again."""
    return _installed("membridge", "membridge") or Side(
        "membridge", functools.partial(_membridge, 1 << 20), (membridge_push, membridge_pop), count, _membridge_open
    )


ICEORYX_DEPTH = 8


@contextlib.contextmanager
def _iceoryx(items: int) -> Iterator[Any]:
    prefix = f"labkit_bench_{os.getpid()}_{secrets.token_hex(4)}_"
    with tempfile.TemporaryDirectory(prefix="labkit-iceoryx-") as folder:
        try:
            yield prefix, folder, items
        finally:
            for left in Path("/dev/shm").glob(f"{prefix}*"):  # of a process that was killed
                left.unlink(missing_ok=True)


def _iceoryx_open(shared: Any, me: int) -> Any:
    import iceoryx2 as iox

    prefix, folder, items = shared
    iox.set_log_level(iox.LogLevel.Fatal)
    config = iox.config.default()
    config.global_cfg.prefix = iox.FileName.new(prefix)
    config.global_cfg.root_path = iox.Path.new(folder)
    node = iox.NodeBuilder.new().config(config).create(iox.ServiceType.Ipc)
    service = (
        node.service_builder(iox.ServiceName.new("labkit bench"))
        .publish_subscribe(ctypes.c_double * items)
        .enable_safe_overflow(False)
        .subscriber_max_buffer_size(ICEORYX_DEPTH)
        .history_size(0)
        .open_or_create()
    )
    if me == 0:
        wait = iox.BackpressureStrategy.RetryUntilDelivered
        port = service.publisher_builder().backpressure_strategy(wait).create()
        while not service.dynamic_config.number_of_subscribers:
            os.sched_yield()
        port.update_connections()
    else:
        port = service.subscriber_builder().buffer_size(ICEORYX_DEPTH).create()
    return port, items, service, node


def iceoryx_send(shared: Any, count: int) -> None:
    publisher, items, *_ = shared
    array = np.ones(items)
    source, size = array.ctypes.data, array.nbytes
    for _ in itertools.repeat(None, count):
        sample = publisher.loan_uninit()
        ctypes.memmove(sample.payload_ptr, source, size)
        sample.assume_init().send()


def iceoryx_receive(shared: Any, count: int) -> None:
    subscriber, items, *_ = shared
    for _ in itertools.repeat(None, count):
        while (sample := subscriber.receive()) is None:
            pass
        array = np.empty(items)
        ctypes.memmove(array.ctypes.data, sample.payload_ptr, array.nbytes)
        sample.delete()


def iceoryx(count: int, bytes_: int) -> Side | Missing:
    """Arrays are copied in and out, as by ours in this row; it could also lend them."""
    return _installed("iceoryx2", "iceoryx2") or Side(
        "iceoryx2", functools.partial(_iceoryx, bytes_ // 8), (iceoryx_send, iceoryx_receive), count, _iceoryx_open
    )


@contextlib.contextmanager
def _socketpair(bytes_: int) -> Iterator[Any]:
    ends = socket.socketpair()
    try:
        yield bytes_, ends
    finally:
        for end in ends:
            end.close()


def socket_send(shared: Any, count: int) -> None:
    size, (end, _) = shared
    array = np.ones(size // 8)
    for _ in itertools.repeat(None, count):
        end.sendall(array)


def socket_receive(shared: Any, count: int) -> None:
    size, (_, end) = shared
    for _ in itertools.repeat(None, count):
        array = np.empty(size // 8)
        view, there = array.view(np.uint8).data, 0
        while there < size:
            there += end.recv_into(view[there:])


def socketpair(count: int, bytes_: int) -> Side:
    return Side("socketpair", functools.partial(_socketpair, bytes_), (socket_send, socket_receive), count)


def append_and_pop(_: Any, count: int) -> None:
    here: list[bytes] = []
    append, pop, message = here.append, here.pop, b"8 bytes."
    for _ in itertools.repeat(None, count):
        append(message)
        pop()


def plain_list(count: int) -> Side:
    return Side("list.append + pop", nothing, (append_and_pop,), count)


def mp_arrays(count: int, bytes_: int) -> Side:
    return Side(
        "multiprocessing.Queue",
        functools.partial(_mp_arrays, bytes_),
        (mp_array_put, mp_array_get),
        count,
    )


@contextlib.contextmanager
def _mp_arrays(bytes_: int) -> Iterator[Any]:
    with mp_queues() as queue:
        yield queue, bytes_


def mp_array_put(shared: Any, count: int) -> None:
    queue, size = shared
    put_all(queue, count, np.ones(size // 8))


def mp_array_get(shared: Any, count: int) -> None:
    get_all(shared[0], count)


@functools.cache
def _installed(module: str, package: str) -> Missing | None:
    try:
        importlib.import_module(module)
    except ImportError:
        return Missing(package, f"{package} is not installed: pip install -e '.[peers]'")
    return None
