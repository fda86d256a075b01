"""Checks of notebook 13-cooperating-kernels."""

from __future__ import annotations

import contextlib
import functools
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from labkit.channels import channel
from labkit.exercises import Verdict, last_line, let_sleep, said
from labkit.kernels import Kernel, KernelError, Kernels, Run, kernel

PATIENCE = 5.0
"""Seconds that who waits for a ball must have slept."""


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


def _play(tx: Any, rx: Any, name: str, begins: bool, tell: Any) -> tuple[str, str]:
    """In a kernel: begin with the ball, or pass it on with one's name on it. Returns how it went, and the ball."""
    with tell:
        try:
            if begins:
                tx.send(name.encode())
            tell.send(b"I wait")
            ball = rx.receive(timeout=None).decode(errors="replace")
            if not begins:
                tx.send(f"{ball} {name}".encode())
        except EOFError:
            return "closed", ""
        except Exception as error:
            return f"raised “{said(error)}”", ""
    return "went", ball


def check_ring(ring: Callable[[list[Kernel]], Any]) -> Verdict:
    """Whether ring(players) joins kernels to a ring through which a ball goes once around.

    Args:
        ring: the learner's function. It gets three kernels and pushes `rx` and `tx` to each.
    """
    with _players("ann", "ben", "cat") as players:
        try:
            ring(list(players))
        except Exception as error:
            return Verdict(False, f"your function raised {said(error)}")
        try:
            for player in players:
                if wrong := _lacks(player):
                    return Verdict(False, wrong)
            return _goes_around(players)
        except KernelError as error:
            text = str(error).partition("\n")[0]
            return Verdict(
                False, f"{text}. Your function hands over the ends, no more: the check has the players play."
            )


def _lacks(player: Kernel) -> str:
    """What is wrong with what a player was handed, if anything is."""
    if missing := [end for end in ("rx", "tx") if not player.pull(f"{end!r} in globals()")]:
        return f"{player.name} has no {' and no '.join(missing)}: player.push(rx=..., tx=...) hands them over."
    for end, verb, other in (("tx", "send", "receive"), ("rx", "receive", "send")):
        can, can_other, what = player.pull(
            f"(hasattr({end}, {verb!r}), hasattr({end}, {other!r}), type({end}).__name__)"
        )
        if not can and can_other:
            return f"{player.name} has rx and tx the wrong way round: tx sends, rx receives."
        if not can:
            return (
                f"what {player.name} has as {end}, a {what}, is no end of a channel: tx, rx = channel(...) makes two."
            )
    return ""


def _any_done(*games: Run) -> bool:
    return any(game.done for game in games)


def _goes_around(players: list[Kernel]) -> Verdict:
    """Whether a ball that the first one sends comes back to it through all others in their order."""
    first, *others = players
    names = [player.name for player in players]
    games: dict[str, Run] = {}
    for player in (*reversed(others), first):  # the first one begins when all others wait
        tell, told = channel("pipe")
        player.push(_play=_play, _how=(player.name, player is first, tell))
        games[player.name] = player.run("_went = _play(tx, rx, *_how)", wait=False)
        with told, contextlib.suppress(EOFError):
            told.receive(timeout=60)
    for player in (first, *others, first):  # a ball that comes late, on a busy machine, comes to one after the other
        let_sleep(player.pid, PATIENCE, functools.partial(_any_done, games[player.name], games[first.name]))
    went = {player.name: player.pull("_went") for player in players if games[player.name].done}
    way = went[first.name][1].split() if first.name in went else []
    if way == names:
        return Verdict(True, "once around: three kernels, three channels, and every end has exactly one owner.")
    if way == names[:1]:
        return Verdict(False, f"the ball never left {names[0]}: its tx and rx are ends of the same channel.")
    if way:
        return Verdict(False, f"the ball went {' → '.join([*way, way[0]])}, and not {' → '.join([*names, names[0]])}.")
    for name, (how, _) in went.items():
        if how == "closed":
            return Verdict(
                False,
                f"{name} found nobody at the other side. An end that nobody has any more is closed: did you hand each "
                "end over once, and to the right kernel?",
            )
        if how != "went":
            return Verdict(False, f"{name}, who has the rx and tx of your function, {how}.")
    stuck = next((name for name in names[1:] if name not in went), names[0])
    return Verdict(
        False,
        f"no ball came to {stuck}, who slept for {PATIENCE:g} s. Who holds the tx that leads to {stuck}'s rx? "
        f"The ring is to be closed: {names[-1]}'s tx leads to {names[0]}'s rx.",
    )


# --- an honest score ----------------------------------------------------------------------------------------

DIES = """
import os, signal
for number, ball in enumerate(rx):
    tell.send(ball)
    if number == returned:
        os.kill(os.getpid(), signal.SIGKILL)
    tx.send(ball)
"""

SLOW = 1.2
"""Seconds for which the other side once keeps the ball."""

COUNTS = """
score, why = None, ""
try:
    score = player(tx, rx)
except Exception as error:
    why = repr(error)
"""


def check_player(player: Callable[[Any, Any], Any]) -> Verdict:
    """Whether player(tx, rx) counts the balls that came back from somebody who dies with one in his hand, or without.

    Args:
        player: the learner's function; it runs in a kernel of its own.
    """
    with _players("ann", "ben") as (ann, ben):
        try:
            if wrong := _dies_with_the_ball(player, ann, ben) or _dies_without_it(player, ann):
                return Verdict(False, wrong)
        except TypeError as error:
            return Verdict(False, str(error))
        except KernelError as error:
            return Verdict(False, f"in ann's kernel your function stopped with “{last_line(error)}”.")
    return Verdict(
        True,
        "ben was killed with the ball in his hand, and you counted what had come back, not what you had sent. When he "
        "had gone before you sent, that ended your function as well.",
    )


def _dies_with_the_ball(player: Callable[[Any, Any], Any], ann: Kernel, ben: Kernel) -> str:
    """What is wrong when ben, a kernel, is killed by what comes after his last answer: receive() says so."""
    returned = random.randrange(5, 50)
    (to_ben, at_ben), (to_ann, at_ann), (tell, told) = channel("pipe"), channel("pipe"), channel("pipe")
    with told:
        ben.push(rx=at_ben, tx=to_ann, tell=tell, returned=returned)
        ann.push(player=player, tx=to_ben, rx=at_ann)
        ben.run(DIES, wait=False)
        game = ann.run(COUNTS, wait=False)
        got, dead = 0, False
        while not game.done:
            let_sleep(ben.pid, PATIENCE, lambda: game.done or not ben.alive)
            last_chance = not ben.alive
            let_sleep(ann.pid, PATIENCE, lambda: game.done)
            balls, dead = _heard(told)
            got += balls  # who is slow plays on
            if last_chance or not balls:
                break
        if not game.done and dead:
            return (
                f"your function still runs, {PATIENCE:g} s and more after ben was killed: let what send() and "
                "receive() raise then end the loop."
            )
        if not game.done:
            return (
                f"your function still runs, and ben waits for ball number {got + 1}: send the ball first, and then "
                "wait until it comes back."
            )
        got += _heard(told)[0]
    score, why = _counted(ann)
    if why and "Closed" in why:
        return f"ben is dead, and that ended your function: {why}. Catch EOFError, return the score."
    if why:
        return f"in ann's kernel your function raised {why}."
    if score is None or score is ...:
        return "your function returns nothing: return how many balls came back."
    if got <= returned:
        return (
            f"you counted {score!r}, and ben, who was to have {returned + 1} balls, has had {got}: play until send() "
            "or receive() says that he has gone."
        )
    if score == returned + 1:
        return f"you counted {score}, and {returned} came back: one was sent, and ben died with it. Count what you got."
    if score != returned:
        return f"you counted {score!r}, and {returned} came back before ben was killed."
    return ""


def _dies_without_it(player: Callable[[Any, Any], Any], ann: Kernel) -> str:
    """What is wrong when the other side, here the check, has gone before the next ball is sent: send() says so."""
    returned = random.randrange(3, 9)
    (to_ben, at_ben), (to_ann, at_ann) = channel("pipe"), channel("pipe")
    with at_ben, to_ann:
        ann.push(player=player, tx=to_ben, rx=at_ann)
        game = ann.run(COUNTS, wait=False)
        for number in range(1, returned + 1):
            ball = _next_ball(game, at_ben)
            if number == 1:
                time.sleep(SLOW)
            if number == returned:
                at_ben.close()
            with contextlib.suppress(EOFError):
                to_ann.send(ball)
    let_sleep(ann.pid, PATIENCE, lambda: game.done)
    if not game.done:
        return "your function still runs, and the other side had gone before you sent: let what send() raises end it."
    score, why = _counted(ann)
    if why:
        return (
            f"the other side had gone before you sent, and that ended your function: {why}. send() may be the one that "
            "says so, as receive() may: have both inside the try, and catch EOFError."
        )
    if score != returned:
        return (
            f"you counted {score!r}, and {returned} came back, the first of them after {SLOW:g} s. Who is slow has not "
            "gone: go on until send() or receive() raises EOFError."
        )
    return ""


def _heard(told: Any) -> tuple[int, bool]:
    """How many balls ben has told of since, and whether he is dead."""
    balls = 0
    try:
        while told.receive(timeout=0):
            balls += 1
    except EOFError:
        return balls, True
    except TimeoutError:
        pass
    return balls, False


def _next_ball(game: Run, at_ben: Any) -> bytes:
    """The ball; another one when the game is over, or nobody sends one for long."""
    for _ in range(300):
        try:
            return bytes(at_ben.receive(timeout=0.1))
        except TimeoutError:
            if game.done:
                break
        except EOFError:
            break
    return b"no ball"


def _counted(ann: Kernel) -> tuple[Any, str]:
    """What the learner's function has returned, and what it raised, if it did."""
    ann.wait()
    score, why = ann.pull("(score, why)")
    return score, why
