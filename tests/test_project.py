"""The files around the code agree with each other: dependencies, notebooks and their twins, links, changes."""

import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = [path for path in (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "data/README.md")) if path.exists()]


@cache
def files() -> list[Path]:
    """Every file that is in git, or would be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for path in (ROOT / name for name in listed.stdout.split("\0") if name) if path.is_file()]


def requirements(extra: str | None = None) -> dict[str, Requirement]:
    project = PROJECT["project"]
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return {canonicalize_name(one.name): one for one in map(Requirement, lines)}


def constraints() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(one.name): one for one in found}


# ---------------------------------------------------------------------------------------------------------------------
# One list of dependencies


@pytest.mark.parametrize("name", ["environment.yml", "binder/environment.yml"])
def test_a_conda_environment_is_thin(name):
    environment = yaml.safe_load((ROOT / name).read_text())
    packages = [one for one in environment["dependencies"] if isinstance(one, str)]
    python, *others = packages
    assert others == ["pip"]
    assert environment["channels"] == ["conda-forge"]
    pin = Version(python.removeprefix("python="))
    assert pin in Requirement(f"x{PROJECT['project']['requires-python']}").specifier
    assert f"Programming Language :: Python :: {pin}" in PROJECT["project"]["classifiers"]


def test_both_conda_environments_pin_the_same_python():
    pins = {
        yaml.safe_load((ROOT / name).read_text())["dependencies"][0]
        for name in ("environment.yml", "binder/environment.yml")
    }
    assert len(pins) == 1


def test_the_conda_environment_installs_the_package_with_the_versions_that_passed():
    *_, last = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert last == {"pip": ["--constraint constraints.txt", "--editable ."]}


def test_binder_installs_the_package_with_the_versions_that_passed():
    lines = (ROOT / "binder/postBuild").read_text().splitlines()
    (install,) = [line for line in lines if "pip install" in line]
    assert install.endswith("--constraint constraints.txt --editable .")
    assert (ROOT / "binder/postBuild").stat().st_mode & 0o111


def test_every_dependency_has_exactly_one_version_that_passed():
    pinned = constraints()
    for name, wanted in (requirements() | requirements("test")).items():
        (version,) = pinned[name].specifier
        assert version.operator == "=="
        assert version.version in wanted.specifier, f"{name}: {version} does not satisfy {wanted}"


def test_constraints_name_versions_only():
    for one in constraints().values():
        assert one.url is None
        assert [version.operator for version in one.specifier] == ["=="]


def test_what_the_other_pythons_install_is_on_the_list():
    (line,) = re.findall(r"^CORE_NEEDS *:= *(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {canonicalize_name(name) for name in line.split()} <= requirements().keys() | requirements("test").keys()


def test_queues_and_channels_are_tested_on_every_python():
    modules = {"channels", "queue"} | {path.stem for path in (ROOT / "labkit/lockfree").glob("*.py")}
    tested = [path for path in (ROOT / "tests").glob("test_*.py") if path.stem.removeprefix("test_") in modules]
    assert len(tested) >= 4
    says_so = re.compile(r"^pytestmark = .*every_python", re.MULTILINE)  # as the Makefile looks for it
    assert [path.name for path in tested if not says_so.search(path.read_text())] == []


# ---------------------------------------------------------------------------------------------------------------------
# Notebooks


def cells(notebook) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_there_are_notebooks():
    assert (ROOT / "notebooks/00-start-here.ipynb").exists()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stripped_of_what_a_run_leaves(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.source.strip(), f"an empty cell: {cell.id}"
        if cell.cell_type == "code":
            assert cell.outputs == [], f"clear its outputs: jupyter nbconvert --clear-output --inplace {path.name}"
            assert cell.execution_count is None
    assert "widgets" not in notebook.metadata


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_and_its_twin_say_the_same(path):
    twin = path.parent / "py" / f"{path.stem}.py"
    assert twin.exists(), f"make it with: jupytext --sync notebooks/{path.name}"
    notebook, text = nbformat.read(path, as_version=4), jupytext.read(twin)
    assert cells(text) == cells(notebook), f"they differ; run: jupytext --sync notebooks/{path.name}"
    assert cells(jupytext.reads(jupytext.writes(notebook, "py:percent"), "py:percent")) == cells(text)


def test_every_twin_has_a_notebook():
    assert {path.stem for path in (ROOT / "notebooks/py").glob("*.py")} == {path.stem for path in NOTEBOOKS}


# ---------------------------------------------------------------------------------------------------------------------
# Pages


def links(page: Path) -> set[str]:
    """Every relative link and image of a Markdown page."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    return {link.partition("#")[0] for link in found if not re.match(r"[a-z]+:|#", link)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page):
    broken = [link for link in links(page) if not (page.parent / link).exists()]
    assert broken == []


def test_every_anchor_of_the_readme_is_a_heading_of_it():
    text = (ROOT / "README.md").read_text()
    headings = {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        for heading in re.findall(r"^#+ +(.*)$", text, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


def test_the_readme_names_the_two_commands_and_the_public_address_is_left_open_in_one_place():
    text = (ROOT / "README.md").read_text()
    assert "make lab" in text
    assert "make test" in text
    assert text.count("OWNER/REPO") == 1
    assert "mybinder.org" in text[: text.index("OWNER/REPO") + 200]


def test_the_make_commands_that_pages_name_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = re.findall(r"(?:`|^ {4})make ([a-z-]+)", page.read_text(), re.MULTILINE)
        assert set(named) <= targets, page


def test_make_help_tells_every_command_that_a_user_types():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("lab", "test", "report", "clean", "distclean"):
        assert f"make {target} " in shown


def test_the_changelog_has_a_place_for_what_comes_next():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## Unreleased$", text, re.MULTILINE)


def test_the_licence_is_the_one_that_the_package_states():
    assert PROJECT["project"]["license"] == "BSD-3-Clause"
    assert (ROOT / "LICENSE").read_text().startswith("BSD 3-Clause License")


# ---------------------------------------------------------------------------------------------------------------------
# Files


def texts() -> list[tuple[Path, str]]:
    found = []
    for path in files():
        try:
            found.append((path, path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue
    return found


def test_no_file_names_a_folder_of_somebody_s_machine():
    somebody = re.compile(r"/(?:root|home/(?!jovyan)\w+|Users/\w+)/")
    named = {str(path.relative_to(ROOT)): found[0] for path, text in texts() if (found := somebody.search(text))}
    assert named == {}


def test_no_file_is_large():
    large = {str(path.relative_to(ROOT)): path.stat().st_size for path in files() if path.stat().st_size > 2 * 2**20}
    assert large == {}


def test_ci_runs_the_readme_s_test_command():
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & 0o111
    assert script.read_text().rstrip().endswith("exec make test")
