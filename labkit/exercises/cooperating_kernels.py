"""Checks of notebook 13-cooperating-kernels."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

from labkit.channels import channel
from labkit.exercises import Verdict, last_line
from labkit.kernels import Kernel, KernelError, Kernels, kernel

PATIENCE = 5.0
"""Seconds until a ball must have come."""


@contextlib.contextmanager
def _players(*names: str) -> Iterator[list[Kernel]]:
    """Kernels for one check."""
    players = Kernels()
    try:
        players.extend(map(kernel, names))
        yield players
    finally:
        players.stop()


# --- a ring of three ----------------------------------------------------------------------------------------


def _play(tx: Any, rx: Any, name: str, begins: bool, patience: float) -> tuple[str, str]:
    """In a kernel: begin with the ball, or pass it on with one's name on it. Returns how it went, and the ball."""
    try:
        if begins:
            tx.send(name.encode())
        ball = rx.receive(timeout=patience).decode()
        if not begins:
            tx.send(f"{ball} {name}".encode())
    except TimeoutError:
        return "stuck", ""
    except EOFError:
        return "closed", ""
    return "went", ball


def check_ring(ring: Callable[[list[Kernel]], Any]) -> Verdict:
    """Whether ring(players) joins kernels to a ring through which a ball goes once around.

    Args:
        ring: the learner's function. It gets three kernels and pushes `rx` and `tx` to each.
    """
    with _players("ann", "ben", "cat") as players:
        try:
            ring(players)
        except Exception as error:
            return Verdict(False, f"your function raised {type(error).__name__}: {error}")
        for player in players:
            if missing := [end for end in ("rx", "tx") if not player.pull(f"{end!r} in globals()")]:
                return Verdict(
                    False,
                    f"{player.name} has no {' and no '.join(missing)}: player.push(rx=..., tx=...) hands them over.",
                )
            if not player.pull("hasattr(tx, 'send') and hasattr(rx, 'receive')"):
                return Verdict(False, f"{player.name} has rx and tx the wrong way round: tx sends, rx receives.")
        return _goes_around(players)


def _goes_around(players: list[Kernel]) -> Verdict:
    """Whether a ball that the first one sends comes back to it through all others in their order."""
    names = [player.name for player in players]
    for player in reversed(players):  # the first one begins when all others wait
        player.push(_play=_play, _how=(player.name, player is players[0], PATIENCE))
        player.run("_went = _play(tx, rx, *_how)", wait=False)
    went = {}
    for player in players:
        player.wait(PATIENCE * 4)
        went[player.name], ball = player.pull("_went")
        if player is players[0]:
            way = ball.split()
    if way == names[:1]:
        return Verdict(False, f"the ball never left {names[0]}: its tx and rx are ends of the same channel.")
    if way and way != names:
        return Verdict(False, f"the ball went {' → '.join([*way, way[0]])}, and not {' → '.join([*names, names[0]])}.")
    closed = [name for name, how in went.items() if how == "closed"]
    if closed:
        return Verdict(
            False,
            f"{closed[0]} found nobody at the other side. An end that nobody has any more is closed: did you hand each "
            "end over once, and to the right kernel?",
        )
    stuck = [name for name in (*names[1:], names[0]) if went[name] == "stuck"]
    if stuck:
        return Verdict(
            False,
            f"no ball came to {stuck[0]} within {PATIENCE:g} s. Who holds the tx that leads to {stuck[0]}'s rx? "
            f"The ring is to be closed: {names[-1]}'s tx leads to {names[0]}'s rx.",
        )
    return Verdict(True, "once around: three kernels, three channels, and every end has exactly one owner.")


# --- an honest score ----------------------------------------------------------------------------------------

DIES = """
import os, signal
for number, ball in enumerate(rx):
    if number == returned:
        os.kill(os.getpid(), signal.SIGKILL)
    tx.send(ball)
"""

COUNTS = """
score, why = None, ""
try:
    score = player(tx, rx)
except Exception as error:
    why = repr(error)
"""


def check_player(player: Callable[[Any, Any], Any]) -> Verdict:
    """Whether player(tx, rx) counts the balls that came back from a kernel that dies with one in its hand.

    Args:
        player: the learner's function; it runs in a kernel of its own.
    """
    with _players("ann", "ben") as (ann, ben):
        returned = random.randrange(5, 50)
        (to_ben, at_ben), (to_ann, at_ann) = channel("pipe"), channel("pipe")
        ben.push(rx=at_ben, tx=to_ann, returned=returned)
        try:
            ann.push(player=player, tx=to_ben, rx=at_ann)
            ben.run(DIES, wait=False)
            ann.run(COUNTS, wait=False)
            ann.wait(PATIENCE * 2)
            score, why = ann.pull("(score, why)")
        except TypeError as error:
            return Verdict(False, str(error))
        except TimeoutError:
            return Verdict(
                False,
                f"your function still runs after {PATIENCE * 2:g} s, and ben was killed long ago: let what send() and "
                "receive() raise then end the loop.",
            )
        except KernelError as error:
            return Verdict(False, f"in ann's kernel your function stopped with “{last_line(error)}”.")
    if why and "Closed" in why:
        return Verdict(False, f"ben is dead, and that ended your function: {why}. Catch EOFError, return the score.")
    if why:
        return Verdict(False, f"in ann's kernel your function raised {why}.")
    if score is None or score is ...:
        return Verdict(False, "your function returns nothing: return how many balls came back.")
    if score == returned + 1:
        return Verdict(
            False,
            f"you counted {score}, and {returned} came back: one was sent, and ben died with it. Count what you got.",
        )
    if score != returned:
        return Verdict(False, f"you counted {score!r}, and {returned} came back before ben was killed.")
    return Verdict(True, f"{returned} balls came back before ben was killed, and you counted them, not those you sent.")
