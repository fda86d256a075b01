"""What the processes of the tests do, and small helpers. Children import this file, so it imports next to nothing."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def sizes(count: int, largest: int) -> list[int]:
    """Mixed sizes, the same in every process: mostly small, some up to the largest."""
    few = (1, 2, 7, 8, 9, 60, 64, 100, 333, 1000)
    return [few[n % 10] if n % 97 else 1 + (n * 7919) % largest for n in range(count)]


def numbered(number: int, size: int) -> bytes:
    """A message whose content follows from its number and size."""
    seed = b"%08d" % number
    return (seed * (size // 8 + 1))[:size]


def send_numbered(tx: Any, count: int, largest: int) -> None:
    for number, size in enumerate(sizes(count, largest)):
        tx.send(numbered(number, size))


def check_numbered(rx: Any, largest: int) -> int:
    """How many messages came; raises at the first that is not the one that was sent."""
    count, expected = 0, sizes(200_000, largest)
    for message in rx:
        assert message == numbered(count, expected[count]), f"message {count} differs"
        count += 1
    return count


def send_all(tx: Any, messages: list[bytes]) -> None:
    for message in messages:
        tx.send(message)


def send_slowly(tx: Any, messages: list[bytes]) -> None:
    for message in messages:
        tx.send(message)
        time.sleep(0.0002)


def send_many(tx: Any, mark: bytes, size: int, count: int) -> None:
    """Messages that can be told apart by sender and are recognisably whole."""
    for number in range(count):
        body = mark * size
        tx.send(b"%s %06d %08x " % (mark, number, zlib.crc32(body)) + body)


def is_whole(message: bytes) -> bool:
    _, _, checksum, body = message.split(b" ", 3)
    return zlib.crc32(body) == int(checksum, 16)


def receive_all(rx: Any) -> list[bytes]:
    return list(rx)


def count_all(rx: Any) -> int:
    return sum(1 for _ in rx)


def send_forever(tx: Any, message: bytes) -> None:
    while True:
        tx.send(message, timeout=None)


def receive_forever(rx: Any) -> None:
    while True:
        rx.receive(timeout=None)


def hold(*ends: Any) -> None:
    """Keep the ends and do nothing with them."""
    time.sleep(600)


def echo(rx: Any, tx: Any) -> None:
    for message in rx:
        tx.send(message)


def interrupt_soon(seconds: float = 0.3) -> threading.Timer:
    """Ctrl-C in a moment, for the main thread. Start it where KeyboardInterrupt is expected, then join it."""
    return threading.Timer(seconds, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))


def eventually(condition: Callable[[], object], seconds: float = 60.0, pause: float = 0.01) -> bool:
    """Whether the condition comes true within some seconds. It is looked at after each pause."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def patience(seconds: float) -> float:
    """How long to wait for a process that may never get ready: so long, or longer where processes are slow to start."""
    from labkit import launch

    begin = time.monotonic()
    launch(int).wait()
    return max(seconds, 100 * (time.monotonic() - begin))  # it takes 10 ms when nothing else runs


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie that nobody reaps has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def sleeping(pid: int) -> bool:
    """Whether a process waits in the kernel."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def comes_to_rest(*pids: int) -> bool:
    """Whether processes, once each waits for what it has to wait for, use next to no processor time."""

    def rests() -> bool:
        before = [processor_seconds(pid) for pid in pids]
        time.sleep(0.5)
        return all(processor_seconds(pid) - used <= 0.05 for pid, used in zip(pids, before, strict=True))

    return eventually(rests)


def take_often(lock: Any, count: int, pause: float = 0.0) -> None:
    for _ in range(count):
        with lock:
            if pause:
                time.sleep(pause)


def hand_on(lock: Any) -> None:
    from labkit import launch

    launch(take_often, lock, 1).wait()


def take_both(first: Any, second: Any, mine: Any, other: Any) -> None:
    """Takes the first, waits until the other process has its first too, and takes the second."""
    with first:
        other.release()
        mine.acquire()
        with second:
            pass


def take_both_often(first: Any, second: Any, count: int) -> None:
    for _ in range(count):
        with first, second:
            pass


def move_tokens(source: Any, target: Any, count: int) -> None:
    for _ in range(count):
        source.acquire()
        target.release()


def take_and_sleep(lock: Any, ready: Any) -> None:
    lock.acquire()
    ready.release()
    time.sleep(60)


def fill_and_wait(queue, gate):
    """Claim a slot of a queue, begin to fill it, say so, and wait to be killed."""
    with queue.loan(4) as slot:
        slot.array[:2] = 7
        gate.array[0] = 1
        time.sleep(100)


def send_to_name(kind: str, name: str, message: bytes, create: bool = False) -> None:
    from labkit import sender

    with sender(kind, name, create=create) as tx:
        tx.send(message)


def receive_from_name(kind: str, name: str) -> bytes:
    from labkit import receiver

    with receiver(kind, name) as rx:
        return rx.receive()


def make_name_and_die(kind: str, name: str, message: bytes) -> None:
    from labkit import channel

    tx, _rx = channel(kind, name=name)
    tx.send(message)
    os.kill(os.getpid(), signal.SIGKILL)


def send_as_another_user(kind: str, name: str) -> bool:
    """Whether a process of another user, who knows where its owner has noted the name, can send to it."""
    from labkit import Closed, channels
    from labkit.channels import base

    module, folder = channels._module(kind), Path(os.environ["XDG_RUNTIME_DIR"], "labkit")
    base.runtime_dir = lambda: folder
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    try:
        module.open_sender(name).send(b"intruder", timeout=0.1)
    except (OSError, Closed):
        return False
    return True


def send_from_a_namespace(kind: str, name: str, space: str) -> bool | None:
    """Whether a process in a new namespace can send to the name; None if the kernel makes no such namespace here."""
    from labkit import Closed, sender

    new = {"mount": 0x20000, "ipc": 0x8000000, "net": 0x40000000, "pid": 0x20000000, "user": 0x10000000}
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(new[space]) and libc.unshare(new[space] | new["user"]):
        return None
    if space == "pid" and (child := os.fork()):  # the next child is the first process of the new namespace
        return {0: True, 1: False}[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]
    if space == "mount":
        recursive, private = 0x4000, 1 << 18
        libc.mount(b"none", b"/", None, recursive | private, None)
        for folder in ("/dev/shm", os.environ["XDG_RUNTIME_DIR"]):
            if libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, b"mode=700"):
                return None
    try:
        end = sender(kind, name)
        end.send(b"over the wall")
        end.close()
        sent = True
    except (OSError, Closed):
        sent = False
    if space == "pid":
        os._exit(not sent)
    return sent
