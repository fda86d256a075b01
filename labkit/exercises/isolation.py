"""Checks of notebook 12-isolation."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import sysv_ipc

from labkit.boundary import COLUMNS, Boundary
from labkit.channels import channel
from labkit.exercises import Verdict, last_line, said
from labkit.isolation import Namespace, namespace, own_namespaces
from labkit.launch import Job, RemoteError, jobs
from labkit.replay import Note, why_not

REASONS = {
    "System V": "its keys and identifiers are kept in a table of the IPC namespace: ipc_namespaces(7).",
    "POSIX queue": "its names are kept in the IPC namespace, not in the file system that you see: mq_overview(7).",
    "POSIX memory": "it is a file in /dev/shm, whatever its name looks like: whoever sees that file system has it.",
    "POSIX semaphore": "it is a file in /dev/shm, sem.NAME, like POSIX memory: sem_overview(7).",
    "FIFO": "it is found by its path, and what a path leads to is decided by what is mounted.",
    "Unix socket with a path": "it is found by its path, and that is a matter of what is mounted: unix(7).",
    "Unix socket, abstract": "its name has no file: it is kept in the network namespace: unix(7).",
    "TCP": "ports belong to a network stack, and each network namespace has its own.",
    "UDP": "ports belong to a network stack, and each network namespace has its own.",
    "signal": "a signal is addressed by a pid, and each PID namespace counts its own.",
}


def check_prediction(predict: Callable[[str], Any], table: Boundary) -> Verdict:
    """Whether predict(mechanism) returns the kind of namespace that isolates it.

    Args:
        predict: the learner's function; it gets the name of each mechanism of the table.
        table: as it was measured.
    """
    predicted = {}
    for mechanism in table.mechanisms:
        try:
            predicted[mechanism] = predict(mechanism)
        except Exception as error:
            return Verdict(
                False, f"for {mechanism!r} your function raised {said(error)}. It gets one name after the other."
            )
    if missing := [mechanism for mechanism, kind in predicted.items() if kind in (None, "", "?", ...)]:
        return Verdict(False, f"{len(missing)} to go; what isolates a {missing[0]}? One of {', '.join(COLUMNS)}.")
    for mechanism in table.mechanisms:
        kind = predicted[mechanism]
        if kind not in COLUMNS:
            return Verdict(False, f"{kind!r} is no kind of namespace: {', '.join(COLUMNS)}.")
        if not table[mechanism, kind].isolated:
            why = next(reason for begin, reason in REASONS.items() if mechanism.startswith(begin))
            return Verdict(
                False,
                f"{mechanism}: a new {kind} namespace does not hide it ({table[mechanism, kind].inwards}). Think of "
                f"what it is found by: {why}",
            )
    return Verdict(True, f"all {len(table.mechanisms)} mechanisms, as they were measured on the machine of this run.")


# --- where is the queue? ------------------------------------------------------------------------------------


def _keeps(key: int | None, tx: Any, until: Any) -> None:
    """A process with a queue of this key, until it is told to end."""
    queue = sysv_ipc.MessageQueue(key, sysv_ipc.IPC_CREX) if key is not None else None
    tx.send(b"ready")
    for _ in until:
        pass
    if queue is not None:
        queue.remove()


def _removed(key: int) -> bool:
    """Whether there was a queue with this key in our own namespace; it is gone."""
    try:
        sysv_ipc.MessageQueue(key).remove()
    except sysv_ipc.ExistentialError:
        return False
    return True


def check_find_queue(find: Callable[[int], Any]) -> Verdict | Note:
    """Whether find(key) returns the pid of a process in whose IPC namespace there is a queue with this key.

    Args:
        find: the learner's function. Four IPC namespaces are made, and the queue is in one of them.
    """
    if refused := why_not():
        return Note(refused)
    for where in random.sample(range(4), 3):  # who guesses is not lucky three times
        verdict = _check_find_once(find, where)
        if not verdict.right:
            return verdict
    return Verdict(True, "found three times, each time in another namespace. That is what lsipc(1) in nsenter(1) does.")


def _check_find_once(find: Callable[[int], Any], where: int) -> Verdict:
    key = random.randrange(1 << 20, 1 << 30)
    with contextlib.ExitStack() as stack:
        rooms: list[tuple[Namespace, Any]] = []
        for number in range(4):
            ns = stack.enter_context(namespace("ipc"))
            (tx, rx), (until, told) = channel("pipe"), channel("pipe")
            stack.callback(until.close)
            job = ns.launch(_keeps, key if number == where else None, tx, told, name=f"room {number}")
            rx.receive()
            rx.close()
            rooms.append((ns, job))
        home = own_namespaces()["ipc"]
        try:
            found = find(key)
        except Exception as error:
            return Verdict(False, f"your function raised {said(error)}")
        finally:
            made = _removed(key)
        if own_namespaces()["ipc"] != home:
            return Verdict(
                False,
                "your function has brought this kernel into another namespace, where it stays: restart it. "
                "those_of(pid).run(f) sends a child.",
            )
        if made:
            return Verdict(
                False,
                "your function made a queue with that key in our own namespace: IPC_CREAT makes what is not there. "
                "Only ask for it, sysv_ipc.MessageQueue(key).",
            )
        inodes = [own_namespaces(job.pid)["ipc"] for _, job in rooms]
        if found is None or found is ...:
            return Verdict(
                False,
                "your function returns nothing. The queue exists; but not in our namespace: look into those of other "
                "processes, those_of(pid).run(f), each a namespace once.",
            )
        if isinstance(found, bool) or not isinstance(found, int):
            return Verdict(False, f"you return {found!r}: the answer is the pid of a process, a whole number.")
        if found in inodes:
            return Verdict(
                False,
                f"{found} is the number of a namespace (its inode), not of a process: return the pid of one in it.",
            )
        try:
            seen = own_namespaces(found)["ipc"]
        except OSError:
            return Verdict(False, f"there is no process {found}, or it has ended.")
        if seen == inodes[where]:
            return Verdict(True, "")
        what = "in our own namespace" if seen == own_namespaces()["ipc"] else "in a namespace without that queue"
        return Verdict(False, f"process {found} is {what}: ask inside each for the key, msgget(2), before you answer.")


# --- through the wall -----------------------------------------------------------------------------------------

WORDS = b"through the wall"


def _speak(tx: Any) -> tuple[str, bytes, int]:
    tx.send(WORDS)
    return "speak", WORDS, own_namespaces()["ipc"]


def _listen(rx: Any) -> tuple[str, bytes, int]:
    return "listen", bytes(rx.receive()), own_namespaces()["ipc"]


def check_talk(talk: Callable[..., Any]) -> Verdict | Note:
    """Whether talk(speak, listen, a, b) makes a process in `a` speak to one in `b`.

    Args:
        talk: the learner's function. It launches speak(tx) inside a and listen(rx) inside b, with the ends of one
            channel, and returns the two jobs.
    """
    if refused := why_not():
        return Note(refused)
    before = set(jobs())
    try:
        with namespace("ipc", "net", "mount") as a, namespace("ipc", "net", "mount") as b:
            return _talked(talk, a, b)
    finally:
        for job in set(jobs()) - before:  # outside, for example, where nobody spoke to it
            job.kill()
            with contextlib.suppress(RemoteError):
                job.wait()


def _talked(talk: Callable[..., Any], a: Namespace, b: Namespace) -> Verdict:
    try:
        pair = talk(_speak, _listen, a, b)
        if pair is None or pair is ...:
            return Verdict(False, "your function returns nothing yet: launch both, and return the two jobs.")
        if isinstance(pair, Job) or not hasattr(pair, "__iter__"):
            return Verdict(False, f"you return {pair!r}: return the two jobs, that of speak and that of listen.")
        results = []
        for job in list(pair):
            if not isinstance(job, Job):
                return Verdict(
                    False,
                    f"{job!r} is among what you return, and is no job: return the two jobs, as launch(...) gives them.",
                )
            results.append(job.wait())
    except RemoteError as error:
        line = last_line(error)
        if line.startswith("TimeoutError"):
            return Verdict(
                False,
                f"a process stopped with “{line}”: it waited in vain. Launch both before you wait for one of them, "
                "with the two ends of one channel.",
            )
        return Verdict(
            False,
            f"a process stopped with “{line}”. A name made on one side of a wall leads nowhere on the other. "
            "Descriptors do not care: make one channel here, before anybody goes in, and hand over its two ends, tx to "
            "speak and rx to listen.",
        )
    except Exception as error:
        return Verdict(False, f"your function raised {said(error)}")
    ran = {result[0]: result[1:] for result in results if isinstance(result, tuple) and len(result) == 3}
    for what, ns in (("speak", a), ("listen", b)):
        if what not in ran:
            return Verdict(False, f"no job that you return gives back what {what}() returns: return the two jobs.")
        heard, where = ran[what]
        if heard != WORDS:
            return Verdict(False, f"{heard!r} arrived, not what speak() sends.")
        if where != ns.run(own_namespaces)["ipc"]:
            return Verdict(
                False, f"the message arrived, but {what}() did not run inside its namespaces: launch(..., inside=...)."
            )
    return Verdict(
        True,
        "no name leads from one to the other, and still they talk: a namespace hides names, and a descriptor has none. "
        "It is how container runtimes hand sockets in, and why one passes no descriptor to whom one does not trust.",
    )
