"""What the README shows is true: its example runs as a script, its table is that of Facts, its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from labkit import facts

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_example_runs_as_a_plain_script(tmp_path):
    code = EXAMPLES[0]
    script = tmp_path / "example.py"
    script.write_text(code.replace('"run.html"', repr(str(tmp_path / "run.html"))))
    done = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    words = len((ROOT / "data" / "pride-and-prejudice.txt").read_text().split())
    assert f"[{words}, None]" in done.stdout
    assert "n=13,030" in done.stdout
    assert (tmp_path / "run.html").exists()


@pytest.mark.parametrize("number, prints", [(1, str(sum(n**2 for n in range(1000)))), (2, "")])
def test_the_other_examples_run_as_they_stand(number, prints, tmp_path):
    script = tmp_path / "example.py"
    script.write_text(EXAMPLES[number].replace("result(10)", "result(100)"))  # seconds, on a machine that is busy
    done = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == prints


def test_the_table_of_mechanisms_says_what_the_facts_say():
    yes = {True: "yes", False: "no"}
    for kind, fact in facts().items():
        row = next(line for line in README.splitlines() if line.startswith(f"| `{kind}`"))
        boundaries, tells, named, many = (cell.strip().split(",")[0] for cell in row.split("|")[3:7])
        assert boundaries == yes[fact.boundaries]
        assert tells == yes[fact.tells_close]
        assert named == yes[not fact.related_only]
        assert (many == "yes") == fact.many_senders


def test_every_lab_is_in_the_table_of_labs():
    labs = README[README.index("## Labs") : README.index("## The command")]
    for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        assert f"| [{path.stem}](notebooks/{path.name}) |" in labs


def test_every_command_of_the_readme_exists():
    listed = re.findall(r"^    labkit (\w+)", README, re.MULTILINE)
    help_text = subprocess.run([sys.executable, "-m", "labkit", "--help"], capture_output=True, text=True).stdout
    assert listed
    for command in listed:
        assert command in help_text


def test_the_floor_plan_names_every_module():
    plan = README[README.index("## The house") : README.index("## Where it runs")]
    for path in (ROOT / "labkit").glob("[a-z]*.py"):
        assert path.stem in plan, f"{path.name} is missing in the floor plan"
