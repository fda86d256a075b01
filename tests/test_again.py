"""What `make test` does with a test that fails: tests.again, in a pytest of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest, time

made = []

@pytest.fixture(scope="module")
def shared():
    made.append(1)
    if len(made) == 1:
        raise OSError("a fixture that was not ready")
    return len(made)

def test_whose_fixture_fails_once(shared):
    assert shared == 2

runs = []

def test_by_chance():
    runs.append(1)
    print("the first words")
    assert len(runs) == 2, "only the second time"

def test_always():
    assert 0, "each time"

@pytest.mark.timeout(0.2)
def test_that_hangs():
    runs.append(1)
    time.sleep(60)

def test_that_a_hang_was_not_repeated():
    assert len(runs) == 3
"""


@pytest.mark.parametrize("lanes", [(), ("-n1",)], ids=["alone", "side by side"])
def test_what_fails_is_run_once_more_and_its_first_failure_is_shown(tmp_path, lanes):
    (tmp_path / "test_them.py").write_text(TESTS)
    options = "-p tests.again -p no:cacheprovider -c /dev/null --timeout-method=signal".split()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *lanes, "--rootdir", tmp_path, tmp_path],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 failed, 3 passed, 3 rerun" in done.stdout, done.stdout
    for shown in ("only the second time", "a fixture that was not ready", "the first words", "each time"):
        assert shown in done.stdout
