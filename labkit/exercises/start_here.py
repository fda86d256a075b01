"""Checks of notebook 00-start-here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from labkit.exercises import Verdict, last_line, outcome
from labkit.launch import RemoteError

WIND_SPEED, WIND_GUST = 9, 10


def check_strongest_wind(f: Callable[..., Any], rows: list[bytes]) -> Verdict:
    """Whether f(rx) returns the largest wind_speed (column 9, miles per hour) of all rows as a float.

    Args:
        f: the learner's function; it gets the receiving end of a pipe.
        rows: the weather records, one a message.
    """
    for stream in (rows, rows[100:160]):  # the second so that a remembered answer does not pass
        verdict = _check_one(f, stream)
        if not verdict.right:
            return verdict
    speeds = _numbers(rows, WIND_SPEED)
    return Verdict(
        True,
        f"{max(speeds):.1f} mph, found among {len(rows):,} messages; {len(rows) - len(speeds)} of them had no reading. "
        "Your function ran in a process of its own and stopped when the sender closed its end: no end mark was needed.",
    )


def _texts(rows: list[bytes], column: int) -> list[bytes]:
    return [text for row in rows if (text := row.split(b",")[column]) != b"NA"]


def _numbers(rows: list[bytes], column: int) -> list[float]:
    return [float(text) for text in _texts(rows, column)]


def _check_one(f: Callable[..., Any], stream: list[bytes]) -> Verdict:
    speeds = _numbers(stream, WIND_SPEED)
    try:
        found = outcome(f, stream)
    except RemoteError as error:
        return Verdict(False, _explain(last_line(error)))
    except TimeoutError:
        return Verdict(
            False,
            "your function did not return within 10 seconds. Does it wait for more than will come? "
            "`for message in rx:` ends by itself when the sender has closed.",
        )
    if found is None or found is ...:
        return Verdict(False, "your function returns nothing yet: write its body, and return the strongest wind.")
    if isinstance(found, str | bytes):
        return Verdict(
            False,
            f"you return {found!r}, which is text. Compared as text, '9.2' is larger than '25.3', because '9' comes "
            "after '2': turn each value into a float before you compare.",
        )
    if not isinstance(found, int | float):
        return Verdict(False, f"you return a {type(found).__name__}; the strongest wind is one number, a float.")
    if abs(found - max(speeds)) < 1e-9:
        return Verdict(True, "")
    as_text = float(max(_texts(stream, WIND_SPEED)))
    gust = max(_numbers(stream, WIND_GUST), default=None)
    reasons = {
        speeds[0]: "that is the first reading. Does your function return inside the loop? Receive all messages first.",
        speeds[-1]: "that is the last reading. Keep the largest one you have seen, not the newest.",
        as_text: "you compare text: '9.2' is larger than '25.3' as text. Turn each value into a float first.",
        gust: "that is the strongest wind_gust, column 10. wind_speed is column 9, counted from 0.",
        min(speeds): "that is the weakest wind: max, not min.",
    }
    why = reasons.get(
        found,
        "a stream of other rows gives another answer: compute it from the messages that come, and look at all of them.",
    )
    return Verdict(False, f"you return {found:.6g} mph where the strongest wind is {max(speeds):.6g} mph: {why}")


def _explain(error: str) -> str:
    if "could not convert" in error and "NA" in error:
        return (
            f"your function stopped with “{error}”. Some hours have no reading: the sensor reports NA. Skip those rows "
            "before you call float()."
        )
    if error.startswith("labkit.channels.base.Closed") or "Closed" in error:
        return (
            f"your function stopped with “{error}”. That is end of file: the sender has closed and everything was "
            "received. Catch labkit.Closed, or let `for message in rx:` do it for you."
        )
    if "bytes-like" in error or "TypeError" in error:
        return (
            f"your function stopped with “{error}”. A message is bytes, not text: message.decode().split(',') or "
            "message.split(b',')."
        )
    return f"your function stopped with “{error}”."


def read_rows(path: str | Path) -> list[bytes]:
    """The records of a CSV file as messages, without its header."""
    return Path(path).read_bytes().splitlines()[1:]
