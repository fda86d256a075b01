"""What Binder would build: repo2docker prints its Dockerfile without Docker, and we read it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of what is in git, or would be: repo2docker must not see environments and caches."""
    copy = tmp_path_factory.mktemp("checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
            (copy / name).chmod((ROOT / name).stat().st_mode)
    return copy


@pytest.fixture(scope="module")
def dockerfile(checkout) -> str:
    command = [sys.executable, "-m", "repo2docker", "--no-build", "--no-run", "--debug", "."]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=120, check=False)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    assert "\nFROM " in printed
    return printed


def test_it_takes_the_python_of_the_pin(dockerfile):
    assert "Building conda environment for python=3.13" in dockerfile


def test_it_reads_the_environment_of_binder_and_not_the_one_at_the_root(dockerfile):
    assert '--file "binder/environment.yml"' in dockerfile
    assert '--file "environment.yml"' not in dockerfile


def test_it_runs_post_build_in_the_repository(dockerfile):
    assert re.search(r"^RUN (chmod \+x|\./)\s*binder/postBuild", dockerfile, re.MULTILINE)
    assert re.search(r"^RUN \./binder/postBuild", dockerfile, re.MULTILINE)


def test_it_installs_the_debian_packages_of_apt_txt_and_no_browser(dockerfile):
    lines = (ROOT / "binder/apt.txt").read_text().splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    (install,) = re.findall(r"apt-get install --yes --no-install-recommends (\S.*?) &&", dockerfile)
    assert install.split() == sorted(wanted)
    assert "chromium" not in wanted


def test_post_build_is_a_script_that_stops_at_the_first_error(checkout):
    script = (checkout / "binder/postBuild").read_text()
    assert script.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in script
    subprocess.run(["bash", "-n", "binder/postBuild"], cwd=checkout, check=True)


def test_the_warm_up_of_post_build_works():
    """The part that warms caches, run here and now: it would break the image otherwise."""
    script = (ROOT / "binder/postBuild").read_text()
    (program,) = re.findall(r"^python -c '(.*)'$", script, re.MULTILINE)
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=100)
