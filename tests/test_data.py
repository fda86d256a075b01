"""The data is what data/README.md says: real, licensed, unchanged."""

import csv
import gzip
import hashlib
import importlib.util
import re
from datetime import datetime
from pathlib import Path

import pytest

from labkit.page import scrub
from labkit.replay import recorded_runs, replay

DATA = Path(__file__).parents[1] / "data"
README = (DATA / "README.md").read_text()
ROWS = [
    [cell.strip(" `") for cell in line.strip("|").split("|")] for line in README.splitlines() if line.startswith("| `")
]
FILES = {row[0]: row for row in ROWS if len(row) == 6}
RUNS = {row[0]: row for row in ROWS if row[0].endswith(".csv.gz")}


def readings() -> list[dict[str, str]]:
    with open(DATA / "weather-jfk-2013.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_every_input_is_described():
    inputs = {path.name for path in DATA.iterdir() if path.suffix in (".csv", ".txt")}
    assert inputs == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_byte_for_byte_the_one_described(name):
    _, _, _, size, _, checksum = FILES[name]
    content = (DATA / name).read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (int(size.replace(",", "")), checksum)


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_a_source_a_licence_and_a_date(name):
    section = README.split(f"## {name}:")[1].split("\n## ")[0]
    for word in ("**Source:**", "**Licence:**", "**Taken on:**"):
        assert word in section
    assert re.search(r"package\s+`[\w-]+`,\s+version [\d.]+", section), "which package, which version?"
    assert re.search(r"\*\*Taken on:\*\* 20\d\d-\d\d-\d\d", section)
    assert FILES[name][4] in ("CC0-1.0", "public domain")


def test_the_data_is_small():
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 3 * 2**20


def test_the_readings_are_hourly_and_in_order():
    rows = readings()
    times = [datetime.fromisoformat(row["time_hour"]) for row in rows]
    assert len(rows) == 8706
    assert times == sorted(times)
    assert all(time.minute == time.second == 0 for time in times)


def test_the_columns_and_the_missing_values_are_those_of_the_readme():
    rows = readings()
    for column in rows[0]:
        assert f"`{column}`" in README
    missing = {column: sum(row[column] == "NA" for row in rows) for column in rows[0]}
    assert {column: count for column, count in missing.items() if count} == {
        "wind_gust": 7199,
        "pressure": 831,
        "wind_dir": 51,
        "wind_speed": 3,
    }


def test_the_novel_is_thirteen_thousand_short_lines():
    lines = (DATA / "pride-and-prejudice.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 13030
    assert sum(map(bool, lines)) == 10721
    assert max(map(len, lines)) == 74
    assert "a truth universally acknowledged" in "\n".join(lines[:12])


def test_fetch_takes_exactly_the_files_that_are_here():
    spec = importlib.util.spec_from_file_location("fetch", DATA / "fetch.py")
    fetch = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fetch)
    assert {fetch.WEATHER, fetch.NOVEL} == set(FILES)


def test_every_recorded_run_is_described():
    assert {path.name for path in (DATA / "recorded").iterdir()} == set(RUNS)
    assert [f"{name}.csv.gz" for name in recorded_runs()] == sorted(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_a_recorded_run_is_the_one_described_and_nothing_was_lost_in_it(name, capsys):
    _, mechanisms, events, size, checksum = RUNS[name]
    content = (DATA / "recorded" / name).read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (int(size.replace(",", "")), checksum)
    trace = replay(name.removesuffix(".csv.gz"), OSError("the kernel's words"))
    said = capsys.readouterr().out
    assert said.startswith("This machine refuses it (the kernel's words). What you see was recorded on another machine")
    assert len(trace.events()) == int(events.replace(",", "")) and trace.lost == 0
    if not any("killed" in (process.ended or "") for process in trace.processes.values()):
        assert [row["lost"] for row in trace.compare().rows()] == [0] * len(trace.channels)
    assert list(dict.fromkeys(c.kind for c in trace.channels or trace.traced_locks)) == mechanisms.split("`, `")
    assert trace.contents
    begins = b"\n".join(trace.messages()["first"]).decode("latin-1")
    assert begins or trace.traced_locks
    for text in gzip.decompress(content).decode(), begins:
        assert "~" not in scrub(text) and "…" not in scrub(text), "it names a home folder, or tells a secret"
        assert not re.search("/tmp/|/root|token", text)


@pytest.mark.parametrize("name", RUNS)
def test_there_is_a_lab_for_a_recorded_run(name):
    assert (DATA.parent / "notebooks" / f"{name.removesuffix('.csv.gz')}.ipynb").exists()


def test_a_run_that_was_not_recorded_is_refused_with_those_that_were():
    with pytest.raises(ValueError, match="no recorded run called '99-none'; there are: 00-start-here, 01-pipes"):
        replay("99-none")
