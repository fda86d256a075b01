"""Checks of notebook 15-services."""

from __future__ import annotations

import contextlib
import csv
import itertools
import os
import signal
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from labkit.channels import channel
from labkit.exercises import Verdict, last_line
from labkit.launch import RemoteError, launch
from labkit.services import supervise

# --- deposit: at least once, and counted once -----------------------------------------------------------------

MOST_STATEMENTS = 12
PATIENCE = 10.0
"""Seconds that the learner's function gets."""


def check_deposit(deposit: Callable[..., Any]) -> Verdict:
    """Whether deposit(db, number, amount) counts each number once, killed before any of its statements or not.

    Args:
        deposit: the learner's function. It runs in processes of its own, each of which opens the database anew.
    """
    try:
        if why := _deposits_twice(deposit):
            return Verdict(False, why)
        for statement in range(1, MOST_STATEMENTS):
            why, ended = _deposit_is_killed(deposit, statement)
            if why:
                return Verdict(False, why)
            if ended:
                return Verdict(
                    True,
                    f"each number counts once. The process was killed before each of the {statement - 1} statements "
                    "that your function makes, the number came again, and the balance was right every time.",
                )
    except RemoteError as error:
        return Verdict(False, f"your function stopped with “{last_line(error)}”.")
    except TimeoutError:
        return Verdict(False, f"your function had not returned after {PATIENCE:g} seconds.")
    except TypeError as error:  # it cannot be sent to a process
        return Verdict(False, str(error))
    return Verdict(False, f"your function makes more than {MOST_STATEMENTS} statements for one number: two are enough.")


def _deposits_twice(deposit: Callable[..., Any]) -> str:
    with _bank() as path:
        _run(deposit, path, [(1, 100), (2, 30)])
        if (balance := _balance(path)) != 130:
            hint = "Nothing was kept: who closes without commit loses it, `with db:` commits." if balance == 0 else ""
            return f"100 and 30 were deposited, and the balance is {balance}. {hint}".rstrip()
        _run(deposit, path, [(2, 30)])
        if (balance := _balance(path)) != 130:
            return (
                "100 and 30 were deposited, number 2 came again to a new process, and the balance is "
                f"{balance}. What a process remembers dies with it: look the number up in the table `seen`."
            )
    return ""


def _deposit_is_killed(deposit: Callable[..., Any], statement: int) -> tuple[str, bool]:
    """What is wrong after the process was killed before this statement; whether it made no so many."""
    with _bank() as path:
        try:
            _run(deposit, path, [(1, 100)], statement)
            return "", True
        except RemoteError:
            kept, seen = _balance(path), _seen(path)
        _run(deposit, path, [(1, 100)])
        balance = _balance(path)
    if balance == 100:
        return "", False
    before = f"the process was killed before its statement {statement}; it left a balance of {kept}"
    then = f"the number came again, and the balance was {balance}"
    if kept and not seen:
        why = "What was counted was not yet seen: both belong into one transaction."
    elif seen and not kept:
        why = "It was marked as seen, and not yet counted, so that it never will be: both belong into one transaction."
    else:
        why = "Look the number up, mark it, and count it in one transaction."
    return f"{before}, number {'seen' if seen else 'not seen'}; {then}. {why}", False


@contextlib.contextmanager
def _bank() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="labkit-bank-") as folder:
        path = str(Path(folder, "bank.sqlite"))
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.executescript(
                "create table seen (number integer primary key);"
                "create table account (balance integer); insert into account values (0);"
            )
        yield path


def _run(deposit: Callable[..., Any], path: str, records: list[tuple[int, int]], killed_before: int = 0) -> None:
    job = launch(_deposits, deposit, path, records, killed_before)
    try:
        job.wait(PATIENCE)
    finally:
        job.kill()


def _deposits(deposit: Callable[..., Any], path: str, records: list[tuple[int, int]], killed_before: int = 0) -> None:
    """Runs in the child: what arrives. SQLite says before each statement that it begins."""
    statements = itertools.count(1)

    def begins(_: str) -> None:
        if next(statements) == killed_before:
            os.kill(os.getpid(), signal.SIGKILL)

    with contextlib.closing(sqlite3.connect(path)) as db:
        db.set_trace_callback(begins)
        for number, amount in records:
            deposit(db, number, amount)


def _balance(path: str) -> int:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return int(db.execute("select balance from account").fetchone()[0])


def _seen(path: str) -> bool:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute("select * from seen").fetchone() is not None


# --- longest rain: a service of one's own -------------------------------------------------------------------------

HOURS = 200
KILLED_AT = (58, 60, 120)
"""In the middle of the longest rain, and after it."""


def check_rain(longest_rain: Callable[..., Any], data: str = "../data/weather-jfk-2013.csv") -> Verdict:
    """Whether longest_rain(state, record) yields {"hours": n} at the end, although it is killed on the way.

    Args:
        longest_rain: the learner's service.
        data: the weather.
    """
    with open(data) as file:
        rows = list(csv.DictReader(file))
    start = 200  # 11 hours of rain begin 54 hours later
    hours = rows[start : start + HOURS]
    right = _longest(hours)
    with tempfile.TemporaryDirectory(prefix="labkit-rain-") as folder:

        def ingest() -> Iterator[dict[str, str]]:
            yield from hours

        def rain(state: Any, record: Any) -> list[Any]:
            """Handles a record, and is killed before it can say so, some times, once each."""
            handled = longest_rain(state, record) or ()
            handled = [handled] if isinstance(handled, dict) else list(handled)  # returned, and not yielded: fine
            for number in KILLED_AT:
                mark = Path(folder, f"killed-{number}")
                if record == hours[number] and not mark.exists():
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            return handled

        try:
            with supervise([ingest, rain], partial(channel, "pipe"), Path(folder, "db")) as pipeline:
                found = pipeline.wait(20)
        except RemoteError as error:
            return Verdict(False, _explain(last_line(error)))
        except TypeError as error:  # it cannot be sent to a process
            return Verdict(False, str(error))
        except TimeoutError:
            return Verdict(False, "your service had not handled 200 records after 20 seconds.")
    return _judge(found, hours, right)


def _judge(found: list[Any], hours: list[dict[str, str]], right: int) -> Verdict:
    if not found:
        return Verdict(False, "your service yields nothing: at the end, when record is None, yield {'hours': ...}.")
    if len(found) > 1:
        return Verdict(False, f"your service yields {len(found)} records: one, at the end, when record is None.")
    hours_found = found[0].get("hours") if isinstance(found[0], dict) else None
    if hours_found == right:
        return Verdict(
            True, f"{right} hours, although the service was killed {len(KILLED_AT)} times: its state was not in it."
        )
    after = [_longest(hours[begin:]) for begin in KILLED_AT]
    if hours_found in (*after, *(_longest(hours[begin + 1 :]) for begin in KILLED_AT)):
        why = (
            f"that is the longest rain since one of the {len(KILLED_AT)} moments at which the service was killed. What "
            "is in variables outside of `state` dies with the process: keep all of it in `state`."
        )
    elif hours_found == sum(float(hour["precip"] or 0) > 0 for hour in hours):
        why = "those are all the hours with rain; wanted are those without a dry hour between them."
    else:
        why = "a dry hour (precip is 0) ends a rain, and the last rain may end with the records."
    return Verdict(False, f"your service yields {found[0]}, and the longest rain had {right} hours: {why}")


def _longest(hours: list[dict[str, str]]) -> int:
    return max(len(list(run)) for _, run in itertools.groupby(hours, lambda hour: float(hour["precip"]) > 0) if _)


def _explain(line: str) -> str:
    if "NoneType" in line:
        return f"your service stopped with “{line}”. At the end record is None: that is when to yield the result."
    if "JSON" in line:
        return f"your service stopped with “{line}”. State and records are kept as JSON: numbers, text, lists, dicts."
    if "KeyError" in line:
        return f"your service stopped with “{line}”. At first `state` is an empty dictionary: state.get('hours', 0)."
    return f"your service stopped with “{line}”."
