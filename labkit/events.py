"""What a trace records: fixed-size events, and the messages they add up to.

An event is one moment in the life of one message at one endpoint. All times are CLOCK_MONOTONIC
nanoseconds (clock_gettime(2)), one clock for every process of a machine.
"""

from __future__ import annotations

import codecs
from enum import IntEnum

import numpy as np


class Action(IntEnum):
    """What happened at an endpoint. A pair (BEGINS, ENDS) encloses one blocking call."""

    SEND_BEGINS = 1
    SEND_ENDS = 2
    RECEIVE_BEGINS = 3  # the receiver asks; it does not know yet which message it will get: message = 0
    RECEIVE_ENDS = 4
    DROPPED = 5  # send gave up (timeout, closed, too large): the message never entered the channel
    GAVE_UP = 6  # receive came back without a message (timeout or end of file): message = 0
    CLOSED = 7  # this endpoint was closed: message = 0
    # Of a lock or semaphore: channel is its number, message the thread's identity (pthread_self(3)).
    LOCK_OPENED = 8  # this process can use it now
    LOCK_WAITS = 9  # asks for it; ACQUIRED or GAVE_UP tells how that ended
    LOCK_ACQUIRED = 10
    LOCK_GAVE_UP = 11
    LOCK_RELEASED = 12  # recorded just before it is given back, so that what is recorded as held never overlaps
    LOCK_CLOSED = 13


FIRST_BYTES = 16
"""Of a message's payload, so many are recorded."""

EVENT = np.dtype(
    [
        ("time_ns", "<i8"),
        ("message", "<u8"),  # (sending endpoint + 1) << 40 | count from 0: unique in a trace
        ("size", "<u4"),  # bytes of the payload as the user sees it
        ("pid", "<u4"),
        ("channel", "<u2"),
        ("endpoint", "<u2"),
        ("action", "<u4"),
        ("first", f"S{FIRST_BYTES}"),  # of SEND_BEGINS: how the payload begins; numpy takes zeros off its end
    ]
)

MESSAGE = np.dtype(
    [
        ("message", "<u8"),
        ("channel", "<u2"),
        ("sender", "<u4"),  # pid
        ("receiver", "<u4"),  # pid, 0 while nobody has received it
        ("size", "<u4"),
        ("send_begins", "<i8"),
        ("send_ends", "<i8"),  # 0 while unknown
        ("receive_begins", "<i8"),  # when the receiver began to wait for it, 0 while unknown
        ("receive_ends", "<i8"),  # 0 while nobody has received it
        ("dropped", "?"),
        ("first", f"S{FIRST_BYTES}"),  # all zeros where the trace records no contents
    ]
)


def beginning(first: bytes, size: int) -> bytes:
    """How a message of so many bytes begins, with the zeros that numpy has taken off."""
    return first.ljust(min(size, FIRST_BYTES), b"\0")


def in_words(begins: bytes, size: int) -> str:
    """How a message begins, for people: “text…” where all of it is letters, else its bytes as 0a ff 00 …"""
    more = size > len(begins)
    try:
        # What was cut off may be the rest of a character, which the decoder waits for.
        text = _UTF8().decode(begins, final=not more).translate(_SIGNS)
    except UnicodeDecodeError:
        text = ""
    if text and all(letter.isprintable() or letter == _JOINER for letter in text):
        return f"“{text}{'…' * more}”"
    return begins.hex(" ") + " …" * more


_UTF8 = codecs.getincrementaldecoder("utf-8")
_SIGNS = str.maketrans("\n\r\t", "↵␍⇥")
_JOINER = "\u200d"  # of several emoji to one


def of_channels(events: np.ndarray) -> np.ndarray:
    """Those events that are about messages."""
    return events if not len(events) or events["action"].max() < Action.LOCK_OPENED else events[~_of_locks(events)]


def of_locks(events: np.ndarray) -> np.ndarray:
    """Those events that are about locks and semaphores."""
    return events[_of_locks(events)]


def _of_locks(events: np.ndarray) -> np.ndarray:
    return np.asarray(events["action"] >= Action.LOCK_OPENED)


def messages(events: np.ndarray) -> np.ndarray:
    """Match events into messages, one row a message, sorted by the time its send began.

    Args:
        events: array of dtype EVENT, in any order.

    Returns:
        array of dtype MESSAGE. A message whose send is not among the events is left out.

    Matching is by message id, never by position: POSIX queues reorder and UDP loses.
    """
    events = events[np.argsort(events["time_ns"], kind="stable")]
    action = events["action"]
    begun = events[action == Action.SEND_BEGINS]
    ids, first = np.unique(begun["message"], return_index=True)
    begun = begun[first]

    rows = np.zeros(len(ids), MESSAGE)
    rows["message"] = ids
    of = {"channel": "channel", "sender": "pid", "size": "size", "first": "first", "send_begins": "time_ns"}
    for field, source in of.items():
        rows[field] = begun[source]

    def place(these: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row number of each event whose message is known, and those events."""
        where = np.searchsorted(ids, these["message"])
        where = np.minimum(where, max(len(ids) - 1, 0))
        known = ids[where] == these["message"] if len(ids) else np.zeros(len(these), bool)
        return where[known], these[known]

    where, ended = place(events[action == Action.SEND_ENDS])
    rows["send_ends"][where] = ended["time_ns"]
    where, ended = place(events[action == Action.DROPPED])
    rows["dropped"][where] = True

    received, began = _receives(events)
    where, received_known = place(received)
    rows["receive_ends"][where] = received_known["time_ns"]
    rows["receiver"][where] = received_known["pid"]
    if len(ids):
        known = ids[np.minimum(np.searchsorted(ids, received["message"]), len(ids) - 1)] == received["message"]
        rows["receive_begins"][where] = began[known]
    rows["dropped"] &= rows["receive_ends"] == 0  # a pipe sends the rest of a message that was given up half-way
    return rows[np.argsort(rows["send_begins"], kind="stable")]


def _receives(events: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The RECEIVE_ENDS events, and for each the time its receive began (0 where that is not recorded)."""
    calls = events[np.isin(events["action"], (Action.RECEIVE_BEGINS, Action.RECEIVE_ENDS, Action.GAVE_UP))]
    # One endpoint is used by one process at a time, so within an endpoint the order is begin, end, begin, end.
    calls = calls[np.argsort(calls["endpoint"], kind="stable")]
    ends = np.flatnonzero(calls["action"] == Action.RECEIVE_ENDS)
    before = np.maximum(ends - 1, 0)
    paired = (
        (ends > 0)
        & (calls["action"][before] == Action.RECEIVE_BEGINS)
        & (calls["endpoint"][before] == calls["endpoint"][ends])
    )
    return calls[ends], np.where(paired, calls["time_ns"][before], 0)
