"""The labs on Electron in a real JupyterLab: a reader clicks the buttons, and the windows answer."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.browser import Notebook, chromium, in_browser, jupyterlab, opened

ROOT = Path(__file__).parents[1]


class Lab(Notebook):
    """A lab, whose cells a test runs one after the other."""

    def __init__(self, page: Any, path: Path):
        super().__init__(page)
        self.cells = nbformat.read(path, 4).cells
        self.at = 0

    def run_cell(self, number: int) -> None:
        self.page.evaluate(
            """async (number) => {
                jupyterapp.shell.currentWidget.content.activeCellIndex = number;
                await jupyterapp.commands.execute("notebook:run-cell");
            }""",
            number,
        )

    def run_until(self, text: str) -> None:
        """Run the code cells from here to the one that has this in it, without that one."""
        while text not in self.cells[self.at].source:
            if self.cells[self.at].cell_type == "code":
                self.run_cell(self.at)
            self.at += 1

    def window(self, title: str) -> Any:
        """The page in the window of this title."""
        bar = self.page.locator(".labkit-window").filter(has=self.page.locator("h3", has_text=title))
        return bar.first.frame_locator("iframe").frame_locator("iframe")


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("labs")
    (root / "data").symlink_to(ROOT / "data")
    shutil.copytree(ROOT / "notebooks" / "electron", root / "notebooks" / "electron")
    for path in (ROOT / "notebooks").glob("*-electron-*.ipynb"):
        shutil.copy(path, root / "notebooks")
    return root / "notebooks"


@pytest.fixture
def lab(browser, folder) -> Iterator[Lab]:
    with (
        jupyterlab(folder, "--LabApp.expose_app_in_browser=True") as address,
        opened(browser, address("lab/tree/18-electron-ipc.ipynb"), offline=False) as page,
    ):
        yield Lab(page, folder / "18-electron-ipc.ipynb")


@in_browser
def test_a_reader_clicks_through_the_three_scenarios(lab):
    lab.run_until("def click(")
    main = lab.window("The main window")
    main.get_by_role("button", name="Open a new window").click()
    lab.window("Window 1").get_by_text(re.compile("^opened by the main window on ")).wait_for()

    lab.run_until('await click("read")')
    main.get_by_role("button", name="Read it").click()
    main.get_by_text("read 684768 characters: PRIDE AND PREJUDICE").wait_for()
    main.locator("#name").fill("no-such-file.txt")
    main.get_by_role("button", name="Read it").click()
    main.get_by_text("Error: ENOENT: no such file or directory, open 'no-such-file.txt'").wait_for()

    lab.run_until("await reminder")
    main.get_by_text("Five seconds: have passed").wait_for()
