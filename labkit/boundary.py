"""Which kind of namespace isolates which mechanism: measured, one cell after the other.

    table = boundary()                  # mechanisms x kinds of namespaces, on this machine, in a second or two
    table["POSIX queue", "ipc"].isolated, table["POSIX queue", "ipc"].proof

A cell is found out both ways. An object is made outside, and a process in a new namespace of that one kind looks for it
by its name or key; then one is made inside, and we look for it from here. Where neither finds anything, the namespace
isolates the mechanism. The proof is what the system call has said.

Where no namespace can be made, Boundary.load reads a table of another machine, with the reason why it is shown.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import posix_ipc
import sysv_ipc

from labkit import machine
from labkit.channels import channel
from labkit.channels.base import runtime_dir
from labkit.isolation import Namespace, namespace
from labkit.libc import failed, libc

SMALL_PIDS = 40
COLUMNS = ("ipc", "mount", "net", "pid", "user", "uts")


@dataclass(frozen=True)
class Cell:
    """Whether a kind of namespace isolates a mechanism, and what was said to prove it.

    Attributes:
        seen_inside: what was made outside is found from inside.
        seen_outside: what was made inside is found from outside.
        inwards: what the system call said that looked from inside.
        outwards: what it said from outside.
    """

    seen_inside: bool
    seen_outside: bool
    inwards: str
    outwards: str

    @property
    def isolated(self) -> bool:
        """Who is inside finds nothing of what is outside."""
        return not self.seen_inside

    @property
    def verdict(self) -> str:
        """In a word or two. A PID namespace is a wall in one direction: outside, its processes have pids too."""
        if self.seen_inside:
            return "·" if self.seen_outside else "hidden inside only"
        return "one way" if self.seen_outside else "isolated"

    @property
    def proof(self) -> str:
        return f"from inside: {self.inwards}; from outside: {self.outwards}"


class Boundary(dict[tuple[str, str], Cell]):
    """(mechanism, kind of namespace) -> Cell, shown as a table.

    Attributes:
        why_recorded: "" when it was measured here and now; else the sentence that says why it could not be.
    """

    why_recorded = ""

    @property
    def mechanisms(self) -> list[str]:
        return list(dict.fromkeys(mechanism for mechanism, _ in self))

    @property
    def kinds(self) -> list[str]:
        return list(dict.fromkeys(kind for _, kind in self))

    def isolated_by(self, mechanism: str) -> list[str]:
        """The kinds of namespaces that isolate it."""
        return [kind for kind in self.kinds if self[mechanism, kind].isolated]

    def save(self, path: str | Path) -> None:
        """Write it as JSON, to be recorded."""
        rows = [{"mechanism": m, "kind": k, **asdict(cell)} for (m, k), cell in self.items()]
        Path(path).write_text(json.dumps(rows, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path, why: str = "") -> Boundary:
        """Read what `save` has written."""
        found = cls()
        for row in json.loads(Path(path).read_text()):
            where = row.pop("mechanism"), row.pop("kind")
            found[where] = Cell(**row)
        found.why_recorded = why
        return found

    def __repr__(self) -> str:
        rows = ([m, *(self[m, kind].verdict for kind in self.kinds)] for m in self.mechanisms)
        lines = [["", *self.kinds], *rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
        return text + (f"\nRecorded elsewhere: {self.why_recorded}" if self.why_recorded else "")

    def _repr_html_(self) -> str:
        def cell(found: Cell) -> str:
            mark = f"<b style='color:#0072B2'>{'◧' if found.seen_outside else '■'} {found.verdict}</b>"
            if not found.isolated:
                mark = f"<span style='opacity:.45'>{found.verdict}</span>"
            return f"<td style='text-align:center' title='{escape(found.proof, quote=True)}'>{mark}</td>"

        heads = "".join(f"<th style='text-align:center'>{escape(kind)}</th>" for kind in self.kinds)
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(mechanism)}</th>"
            + "".join(cell(self[mechanism, kind]) for kind in self.kinds)
            + "</tr>"
            for mechanism in self.mechanisms
        )
        foot = "Rest the pointer on a cell to read what the system calls said."
        if self.why_recorded:
            foot = f"<b>Recorded on another machine:</b> {escape(self.why_recorded)}<br>{foot}"
        return (
            f"<div style='overflow-x:auto'><table><thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table>"
            f"</div><small>{foot}</small>"
        )


def boundary(kinds: tuple[str, ...] = COLUMNS, progress: Callable[[str], None] = lambda kind: None) -> Boundary:
    """Measure the table.

    Args:
        kinds: of namespaces, the columns.
        progress: called with each kind before it is measured.

    Raises:
        OSError: a namespace is refused; the text says by what.
    """
    columns = {}
    for kind in kinds:
        progress(kind)
        with namespace(kind) as ns:
            columns[kind] = _column(ns)
    table = Boundary()
    for mechanism in MECHANISMS:
        for kind in kinds:
            table[mechanism, kind] = columns[kind][mechanism]
    return table


def _column(ns: Namespace) -> dict[str, Cell]:
    """All mechanisms, across the wall of one namespace."""
    with made() as places:
        inwards = ns.run(look_for, places)
    (tx, rx), (until, seen) = channel("pipe"), channel("pipe")
    with until:
        job = ns.launch(_inside, tx, seen)
        outwards = look_for(json.loads(rx.receive()))
    rx.close()
    job.wait()
    return {name: Cell(inwards[name][0], outwards[name][0], inwards[name][1], outwards[name][1]) for name in MECHANISMS}


def _inside(tx: Any, seen: Any) -> None:
    with made() as places:
        tx.send(json.dumps(places).encode())
        for _ in seen:  # until the other side has looked, and closes
            pass


@contextlib.contextmanager
def made() -> Iterator[dict[str, Any]]:
    """One object of each mechanism, while the `with` lasts: what it is called."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(mechanism.make()) for name, mechanism in MECHANISMS.items()}


def look_for(places: dict[str, Any]) -> dict[str, tuple[bool, str]]:
    """For each mechanism whether the object is found here, and what the system call said."""
    found = {}
    for name, place in places.items():
        mechanism = MECHANISMS[name]
        try:
            mechanism.find(place)
        except OSError as reason:
            found[name] = False, f"{mechanism.call} fails, {errno.errorcode[reason.errno or 0]}"
        else:
            found[name] = True, f"{mechanism.call} succeeds"
    return found


# --- the mechanisms: how one is made, and looked for by its name -----------------------------------------------


@dataclass(frozen=True)
class Mechanism:
    """How an object is made (and removed), how it is looked for, and by which system call."""

    call: str
    make: Callable[[], contextlib.AbstractContextManager[Any]]
    find: Callable[[Any], None]


def _key() -> int:
    return secrets.randbelow(0x7FFF_FFFE) + 1


def _name() -> str:
    return f"/labkit-{os.getpid()}-{secrets.token_hex(8)}"


def _posix(f: Callable[[], Any]) -> Any:
    """Call posix_ipc, whose errors carry no errno."""
    try:
        return f()
    except posix_ipc.ExistentialError:
        raise FileNotFoundError(errno.ENOENT, "there is none") from None


@contextlib.contextmanager
def _message_queue() -> Iterator[int]:
    queue = sysv_ipc.MessageQueue(_key(), sysv_ipc.IPC_CREX)
    try:
        yield queue.key
    finally:
        queue.remove()


@contextlib.contextmanager
def _semaphores() -> Iterator[int]:
    semaphores = sysv_ipc.Semaphore(_key(), sysv_ipc.IPC_CREX)
    try:
        yield semaphores.key
    finally:
        semaphores.remove()


@contextlib.contextmanager
def _segment() -> Iterator[int]:
    memory = sysv_ipc.SharedMemory(_key(), sysv_ipc.IPC_CREX, size=4096)
    try:
        yield memory.key
    finally:
        memory.detach()
        memory.remove()


def _find_key(call: str) -> Callable[[int], None]:
    def find(key: int) -> None:
        arguments = (key, 0, 0) if call != "msgget" else (key, 0)
        if getattr(libc, call)(*arguments) < 0:
            raise failed(call)

    return find


@contextlib.contextmanager
def _posix_queue() -> Iterator[str]:
    queue = posix_ipc.MessageQueue(_name(), posix_ipc.O_CREX, max_messages=1, max_message_size=16)
    try:
        yield queue.name
    finally:
        queue.close()
        queue.unlink()


@contextlib.contextmanager
def _posix_memory() -> Iterator[str]:
    memory = posix_ipc.SharedMemory(_name(), posix_ipc.O_CREX, size=4096)
    try:
        yield memory.name
    finally:
        memory.close_fd()
        memory.unlink()


@contextlib.contextmanager
def _posix_semaphore() -> Iterator[str]:
    semaphore = posix_ipc.Semaphore(_name(), posix_ipc.O_CREX)
    try:
        yield semaphore.name
    finally:
        semaphore.unlink()
        semaphore.close()


@contextlib.contextmanager
def _fifo() -> Iterator[str]:
    path = str(runtime_dir() / f"wall-{secrets.token_hex(8)}")
    os.mkfifo(path, 0o600)
    try:
        yield path
    finally:
        os.unlink(path)


@contextlib.contextmanager
def _socket_with_path() -> Iterator[str]:
    path = str(runtime_dir() / f"wall-{secrets.token_hex(8)}")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        try:
            yield path
        finally:
            os.unlink(path)


@contextlib.contextmanager
def _abstract_socket() -> Iterator[str]:
    name = f"\0labkit-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(name)
        listening.listen()
        yield name


def _connect_unix(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(path)


@contextlib.contextmanager
def _tcp_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def _connect_tcp(port: int) -> None:
    socket.create_connection(("127.0.0.1", port), 5).close()


@contextlib.contextmanager
def _udp_port() -> Iterator[int]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiving:
        receiving.bind(("127.0.0.1", 0))
        yield receiving.getsockname()[1]


def _send_udp(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect(("127.0.0.1", port))
        one.send(b"anybody?")
        one.send(b"again")  # where nobody is, the first was answered with an error, which this one returns: udp(7)


@contextlib.contextmanager
def _process() -> Iterator[int]:
    """The pid of a process, as seen outside, and too large to be that of another one in a new PID namespace."""
    if (pid := machine.known_pid()) > SMALL_PIDS or pid != os.getpid():
        yield pid
        return
    children: list[subprocess.Popen[bytes]] = []
    try:
        while not children or children[-1].pid <= SMALL_PIDS:
            children.append(subprocess.Popen(["sleep", "60"]))
        yield children[-1].pid
    finally:
        for child in children:
            child.kill()
            child.wait()


def _signal_zero(pid: int) -> None:
    os.kill(pid, 0)


def _open_posix(opener: Callable[[str], Any], close: str) -> Callable[[str], None]:
    def find(name: str) -> None:
        getattr(_posix(lambda: opener(name)), close)()

    return find


MECHANISMS = {
    "System V queue": Mechanism("msgget", _message_queue, _find_key("msgget")),
    "System V semaphores": Mechanism("semget", _semaphores, _find_key("semget")),
    "System V memory": Mechanism("shmget", _segment, _find_key("shmget")),
    "POSIX queue": Mechanism("mq_open", _posix_queue, _open_posix(lambda n: posix_ipc.MessageQueue(n), "close")),
    "POSIX memory": Mechanism("shm_open", _posix_memory, _open_posix(lambda n: posix_ipc.SharedMemory(n), "close_fd")),
    "POSIX semaphore": Mechanism("sem_open", _posix_semaphore, _open_posix(lambda n: posix_ipc.Semaphore(n), "close")),
    "FIFO": Mechanism("stat", _fifo, lambda path: (os.stat(path), None)[1]),
    "Unix socket with a path": Mechanism("connect", _socket_with_path, _connect_unix),
    "Unix socket, abstract": Mechanism("connect", _abstract_socket, _connect_unix),
    "TCP port": Mechanism("connect", _tcp_port, _connect_tcp),
    "UDP port": Mechanism("send", _udp_port, _send_udp),
    "signal to a pid": Mechanism("kill", _process, _signal_zero),
}
