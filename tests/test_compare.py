"""Two runs side by side: reports and saved traces, and what is neither."""

from __future__ import annotations

import json
import re

import pytest

from labkit.bench.made_up import MadeUp
from labkit.compare import read_run
from labkit.report import report, report_comparison
from labkit.trace import Trace


def a_trace(folder, n: int, channels: int = 2) -> Trace:
    """A trace of n made-up messages, saved and loaded: only its figures matter here."""
    made = MadeUp(n, channels)
    header = {
        "machine": {"processor": f"machine of {n}", "Python": "3.11"},
        "recorder": 0,
        "saved_ns": 1,
        "lost": 0,
        "forgotten": 0,
        "locks": [],
        "processes": [],
        "channels": [vars(channel) for channel in made.channels],
    }
    from labkit import export

    return Trace.load(export.to_csv(folder / f"{n}.csv", made.events(), header))


def compared(tmp_path, one, other) -> tuple[int, str]:
    status = report_comparison(one, other, tmp_path / "both.html")
    return status, (tmp_path / "both.html").read_text() if status == 0 else ""


def test_two_runs_are_laid_side_by_side_with_their_machines_and_figures(tmp_path):
    slow, fast = a_trace(tmp_path, 2_000), a_trace(tmp_path, 4_000)
    one, other = report(slow, tmp_path / "slow.html"), fast.to_csv(tmp_path / "fast.csv.gz")
    status, page = compared(tmp_path, one, other)
    text = re.sub("<[^>]+>", "|", page)
    assert status == 0 and "slow.html and fast.csv.gz, side by side" in page
    for trace, name in ((slow, "slow.html"), (fast, "fast.csv.gz")):
        for row in trace.compare()._cells():
            label, count, half, most, longest, lost, *_ = row
            assert f"|{label}||{name}||{half}||{most}||{longest}|" in text
            assert f"|{count}||{lost}|" in text
    ratios = [b / a for a, b in zip(*([each.p50 for each in t.compare().latencies] for t in (slow, fast)), strict=True)]
    assert [f"× {ratio:.2f}" in text for ratio in ratios] == [True, True]
    assert page.count("<svg") == 1


def test_the_machine_of_a_saved_trace_is_the_one_that_recorded_it(tmp_path):
    trace = a_trace(tmp_path, 2_000)
    assert trace.machine["processor"] == "machine of 2000"
    run = read_run(trace.to_csv(tmp_path / "again.csv"))
    assert run.machine == trace.machine
    _, page = compared(tmp_path, report(trace, tmp_path / "a.html"), tmp_path / "again.csv")
    assert '<tr class="differs"><td>processor</td>' not in page, (
        "a report of a loaded trace tells where it was recorded"
    )


def test_what_only_one_of_them_has_is_named(tmp_path):
    one, other = a_trace(tmp_path, 2_000, 2), a_trace(tmp_path, 3_000, 3)
    paths = one.to_csv(tmp_path / "a.csv"), other.to_csv(tmp_path / "b.csv")
    status, page = compared(tmp_path, *paths)
    assert status == 0 and "Only in one of them: b.csv: posix_mq." in page


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("<!doctype html><p>a page</p>", "is no whole report of labkit report"),
        ('<!doctype html><script type="application/json" id="labkit-report">{</script>', "is no whole report"),
        ("hello", "is not a trace that labkit saved"),
        (None, "No such file"),
    ],
)
def test_what_is_neither_report_nor_trace_is_named_in_one_sentence(tmp_path, capsys, content, sentence):
    path = tmp_path / "thing.html"
    if content is not None:
        path.write_text(content)
    assert report_comparison(path, path, tmp_path / "both.html") == 2
    said = capsys.readouterr().err
    assert sentence in said and "thing.html" in said and said.count("\n") == 1


def test_a_run_without_messages_says_what_to_do(tmp_path, capsys):
    with Trace() as empty:
        path = report(empty, tmp_path / "empty.html")
    assert report_comparison(path, path, tmp_path / "both.html") == 2
    assert "no message was received in it" in capsys.readouterr().err


def test_a_report_that_was_cut_off_is_refused(tmp_path, capsys):
    path = report(a_trace(tmp_path, 2_000), tmp_path / "a.html")
    path.write_text(path.read_text()[:40_000])
    assert report_comparison(path, path, tmp_path / "both.html") == 2
    assert "is no whole report" in capsys.readouterr().err


def test_a_report_of_a_newer_labkit_says_so(tmp_path, capsys):
    path = report(a_trace(tmp_path, 2_000), tmp_path / "a.html")
    text = path.read_text()
    about = json.loads(re.search(r'id="labkit-report">(.*?)</script>', text)[1])
    path.write_text(text.replace(json.dumps(about), json.dumps(about | {"format": 9})))
    assert report_comparison(path, path, tmp_path / "both.html") == 2
    assert "was written by a newer labkit (format 9)" in capsys.readouterr().err
