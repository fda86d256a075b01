"""Checks of notebook 16-outgrowing-one-machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from labkit.channels import facts
from labkit.channels.base import Facts
from labkit.cluster import Cluster, cluster
from labkit.exercises import Verdict, said

REASONS = {
    "ipc": "its name is kept in the IPC namespace of one kernel",
    "mount": "it is found by a path, and what is behind that is in one kernel's memory",
    "mount, pid": "a kernel delivers signals to its own processes",
    "none": "it has no name, and a descriptor does not travel through a wire",
}


def check_crosses(crosses: Callable[[Facts], Any]) -> Verdict:
    """Whether crosses(fact) tells which mechanisms can lead to another host.

    Args:
        crosses: the learner's function; it gets the facts of each mechanism.
    """
    for kind, fact in facts().items():
        try:
            answer = crosses(fact)
        except Exception as error:
            return Verdict(False, f"for {kind} your function raised {said(error)}")
        if answer is None or answer is ...:
            return Verdict(False, "your function returns nothing yet: True, or False.")
        right = fact.namespaced_by == "net"
        if bool(answer) and not right:
            return Verdict(False, f"{kind} does not cross: {REASONS[fact.namespaced_by]}.")
        if right and not answer:
            return Verdict(False, f"{kind} crosses: it is found by an address and a port, from another host too.")
    return Verdict(True, "TCP and UDP, and what is built on them. Everything else ends where its kernel ends.")


def _unreliable(point: int) -> tuple[int, int]:
    """What the check has computed: the square of a number, and by whom. It raises for every fifth."""
    time.sleep(point / 50)  # so that they do not end in the order in which they began
    if point % 5 == 2:
        raise ArithmeticError(f"{point} is a bad point")
    return point * point, os.getpid()


def check_collect(collect: Callable[[Cluster, Callable[..., Any], list[int]], Any]) -> Verdict:
    """Whether collect(c, f, points) returns what f returned on the engines, and None where it raised.

    Args:
        collect: the learner's function; it gets a cluster of two engines.
    """
    points = [7, 3, 1, 12, 4, 10, 2, 9]
    with cluster(2) as c:
        engines = c.client[:].apply_sync(os.getpid)
        try:
            found = collect(c, _unreliable, list(points))
        except ArithmeticError:
            return Verdict(False, "f was called in this kernel, and raised: c.map(...) has the engines call it.")
        except Exception as error:
            if "bad point" in str(error):
                return Verdict(
                    False,
                    "f raised, and all other results were lost with that. map raises what it hears first: let the "
                    "engines call a function of yours that calls f and catches what it raises.",
                )
            return Verdict(False, f"your function raised {said(error)}")
    if found is None or found is ...:
        return Verdict(False, "your function returns nothing yet: return a dictionary.")
    if not isinstance(found, dict):
        return Verdict(False, f"you return a {type(found).__name__}, not a dictionary from each point to its result.")
    if missing := [point for point in points if point not in found]:
        return Verdict(False, f"{missing[0]} is not in your dictionary; where f raises, its value is None.")
    for point in points:
        result = found[point]
        if point % 5 == 2:
            if result is not None:
                return Verdict(
                    False, f"f({point}) raised, and you have {result!r} for it, not None: are they in order?"
                )
            continue
        if result is None:
            return Verdict(
                False,
                f"f({point}) did not raise, and you have None for it. What f raises for another point is to cost that "
                "point only: catch it on the engine, in a function of yours that calls f.",
            )
        if not (isinstance(result, tuple) and len(result) == 2):
            return Verdict(False, f"f({point}) is ({point * point}, ...), and you have {result!r}: keep all of it.")
        square, pid = result
        if square != point * point:
            return Verdict(False, f"f({point}) is ({point * point}, ...), and you have {result!r}: are they in order?")
        if pid == os.getpid():
            return Verdict(False, f"f({point}) was computed in this kernel: c.map(...) has the engines do it.")
        if pid not in engines:
            return Verdict(
                False, f"process {pid} computed f({point}), and is no engine of c: c.map(...) has the engines do it."
            )
    return Verdict(True, "all points that can be computed, by engines, and None for the others.")
