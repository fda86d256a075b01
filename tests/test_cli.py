"""The `labkit` command: every subcommand starts, and a mistake gets one sentence instead of a traceback."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = ("lab", "doctor", "clean", "report", "bench", "version")


def labkit(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "labkit", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"COLUMNS": "160"} | environment,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )


def one_sentence(failed: subprocess.CompletedProcess[str]) -> str:
    """The message of a user's mistake: exit status 2, one line on stderr, no traceback."""
    assert failed.returncode == 2, failed
    assert failed.stderr.count("\n") == 1, failed.stderr
    assert "Traceback" not in failed.stderr
    return failed.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_help_lists_every_command():
    shown = labkit("--help")
    assert shown.returncode == 0
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", shown.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    shown = labkit(command, "--help")
    assert shown.returncode == 0
    assert "Usage" in shown.stdout


def test_the_installed_script_is_the_same_command():
    script = shutil.which("labkit", path=os.path.dirname(sys.executable))
    assert script is not None, "the package is not installed in this environment"
    shown = subprocess.run([script, "version"], capture_output=True, text=True, check=True)
    assert shown.stdout == labkit("version").stdout
    assert re.fullmatch(r"ipclab \d+\.\d+\.\d+\S*\n", shown.stdout)


def test_doctor_prints_a_table_and_the_same_as_json():
    findings = json.loads(labkit("doctor", "--json").stdout)
    table = labkit("doctor").stdout
    assert set(findings[0]) == {"what", "found", "verdict", "without"}
    for finding in findings:
        assert finding["what"] in table


def test_doctor_says_what_is_lost_without_a_browser():
    shown = labkit("doctor", LABKIT_BROWSER="none").stdout
    assert "missing" in shown
    assert "No PDF reports" in shown


def test_lab_says_that_a_port_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        message = one_sentence(labkit("lab", "--port", str(taken.getsockname()[1]), "--browser", "none"))
    assert "taken" in message
    assert "--port" in message


def test_lab_outside_a_clone_says_where_the_notebooks_are(tmp_path):
    message = one_sentence(labkit("lab", "--folder", str(tmp_path)))
    assert "no notebooks/ folder" in message
    assert "clone" in message


def first_answer(address: str, server: subprocess.Popen, deadline: float) -> tuple[int, bytes]:
    """Status and page of a server that has told its address, which it may do before it listens."""
    while True:
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError:
            raise
        except OSError:  # URLError: the connection was refused
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@contextlib.contextmanager
def lab_at_work(tmp_path, *options: str) -> Iterator[Callable[[str], bytes]]:
    """`labkit lab` with settings of its own; yields what answers with the page at an address of it."""
    port = free_port()
    command = [sys.executable, "-m", "labkit", "lab", "--port", str(port), "--browser", "none", *options]
    private = {name: str(tmp_path / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")}
    with open(tmp_path / "log", "w+") as log:
        server = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=os.environ | private)
        try:
            deadline = time.monotonic() + 60
            url = rf"(http://localhost:{port})(/lab/tree/notebooks\S*)\?(token=\S+)"
            while not (address := re.search(url, (tmp_path / "log").read_text())):
                assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.1)

            def page(path: str = address[2]) -> bytes:
                status, text = first_answer(f"{address[1]}{path}?{address[3]}", server, deadline)
                assert status == 200
                return text

            yield page
        finally:
            server.terminate()
            assert server.wait(timeout=60) is not None


def test_lab_serves_the_start_page_without_opening_a_browser(tmp_path):
    with lab_at_work(tmp_path) as page:
        assert b"JupyterLab" in page()


def test_a_lab_that_was_edited_elsewhere_opens_as_it_was_saved(tmp_path):
    """VS Code does not know of the notebook's twin. JupyterLab with jupytext's own settings refused to open it."""
    twin = tmp_path / "notebooks/py/01-a.py"
    twin.parent.mkdir(parents=True)
    twin.write_text("# %%\nbefore = 1\n")
    os.utime(twin, (1, 1))
    cell = nbformat.v4.new_code_cell("solved = 1")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "notebooks/01-a.ipynb")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with lab_at_work(tmp_path, "--folder", str(tmp_path)) as page:
        model = json.loads(page("/api/contents/notebooks/01-a.ipynb"))
    assert [cell["source"] for cell in model["content"]["cells"]] == ["solved = 1"]


def test_report_wants_html_or_pdf():
    assert "--to html" in one_sentence(labkit("report", "--to", "docx"))


def test_report_of_a_notebook_that_is_not_there_says_so(tmp_path):
    message = one_sentence(labkit("report", str(tmp_path / "nothing.ipynb"), "-o", str(tmp_path / "out.html")))
    assert "No such notebook" in message
    assert not (tmp_path / "out.html").exists()


def test_report_compares_two_files_and_says_so(tmp_path):
    assert "Two files are compared" in one_sentence(labkit("report", "--compare", str(tmp_path)))
    missing = one_sentence(labkit("report", "--compare", str(tmp_path / "a.html"), str(tmp_path / "b.html")))
    assert "No such file" in missing and "a.html" in missing


def test_a_parameter_without_a_value_is_shown_how(tmp_path):
    assert "-p n=10000" in one_sentence(labkit("report", "-p", "n"))


def test_report_into_a_folder_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "file").touch()
    notebook = tmp_path / "empty.ipynb"
    notebook.write_text('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
    message = one_sentence(labkit("report", str(notebook), "-o", str(tmp_path / "file/deeper/out.html")))
    assert "-o" in message


def test_the_help_of_bench_names_all_benchmarks():
    from labkit.bench import NAMES

    words = re.findall(r"\w+", labkit("bench", "--help").stdout)
    assert set(NAMES) <= set(words)


def test_an_unknown_benchmark_is_named_with_those_there_are():
    message = one_sentence(labkit("bench", "nothing"))
    assert "nothing" in message
    assert "launch" in message
