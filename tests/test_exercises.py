"""Every exercise's check accepts a right solution and refuses typical wrong ones with the right reason."""

import time
from pathlib import Path

import pytest

from labkit.exercises.start_here import check_strongest_wind, read_rows

ROWS = read_rows(Path(__file__).parent.parent / "data" / "weather-jfk-2013.csv")


def right(rx):
    strongest = 0.0
    for message in rx:
        speed = message.decode().split(",")[9]
        if speed != "NA":
            strongest = max(strongest, float(speed))
    return strongest


def empty(rx): ...


def ignores_missing(rx):
    return max(float(message.split(b",")[9]) for message in rx)


def returns_at_once(rx):
    for message in rx:
        speed = message.split(b",")[9]
        if speed != b"NA":
            return float(speed)


def newest(rx):
    speed = 0.0
    for message in rx:
        value = message.split(b",")[9]
        if value != b"NA":
            speed = float(value)
    return speed


def as_text(rx):
    return max(m.decode().split(",")[9] for m in rx if m.split(b",")[9] != b"NA")


def as_text_then_float(rx):
    return float(as_text(rx))


def splits_bytes_by_text(rx):
    return max(float(message.split(",")[9]) for message in rx)


def never_ends(rx):
    while True:
        try:
            rx.receive()
        except EOFError:
            time.sleep(1)


def misses_end_of_file(rx):
    strongest = 0.0
    while True:
        speed = rx.receive().split(b",")[9]
        if speed != b"NA":
            strongest = max(strongest, float(speed))


def wind_gust(rx):
    speeds = [message.split(b",")[10] for message in rx]
    return max(float(speed) for speed in speeds if speed != b"NA")


def remembered(rx):
    return max(float(g) for row in ROWS if (g := row.split(b",")[9]) != b"NA")


def a_list(rx):
    return [float(g) for m in rx if (g := m.split(b",")[9]) != b"NA"]


def test_the_right_solution_is_accepted():
    verdict = check_strongest_wind(right, ROWS)
    assert verdict.right, verdict


@pytest.mark.parametrize(
    "solution, reason",
    [
        (empty, "returns nothing yet"),
        (ignores_missing, "reports NA"),
        (returns_at_once, "inside the loop"),
        (newest, "last reading"),
        (as_text, "which is text"),
        (as_text_then_float, "you compare text"),
        (splits_bytes_by_text, "bytes, not text"),
        (misses_end_of_file, "end of file"),
        (wind_gust, "wind_gust"),
        (remembered, "other rows"),
        (a_list, "list"),
    ],
)
def test_a_wrong_solution_is_refused_with_its_reason(solution, reason):
    verdict = check_strongest_wind(solution, ROWS)
    assert not verdict.right
    assert reason in verdict.why, verdict.why


def test_a_solution_that_never_returns_is_ended_and_told_so(monkeypatch):
    monkeypatch.setattr("labkit.exercises.outcome.__defaults__", ("pipe", 1.0))
    verdict = check_strongest_wind(never_ends, ROWS)
    assert not verdict.right
    assert "did not return" in verdict.why


def test_a_verdict_is_shown_as_text_not_as_html():
    from labkit.exercises import Verdict

    assert "<script>" not in Verdict(False, "<script>")._repr_html_()
