"""The views can be used by keyboard, by ear, without motion and without colours, each of them."""

from __future__ import annotations

import itertools

import nbformat
import pytest

from labkit.bench import streaming
from labkit.page import render
from labkit.report import run
from labkit.views.flow import Flow
from labkit.views.sequence import Sequence
from tests.browser import chromium, in_browser, opened, until
from tests.roles import eventually
from tests.test_pictures import VIEWS

NAMES = ("flow", "sequence", "occupancy", "latency", "dashboard", "locks", "facts", "ring", "steps")


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def every_view(tmp_path_factory):
    """The address of a page with every view there is."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in VIEWS.split("---")])
    folder = tmp_path_factory.mktemp("views")
    assert run(folder / "views.ipynb", notebook, timeout=120) == []
    path = folder / "views.html"
    path.write_text(render([("views", notebook)]))
    return path.as_uri()


# Everything in a view that can be worked with, and every part of it that scrolls and has nothing in it to stand on.
CONTROLS = """(view) => [view, ...view.querySelectorAll("*")].filter((e) => {
    if (!e.getClientRects().length || e.disabled) return false;
    const style = getComputedStyle(e), scrolls = (over, all, part) => /auto|scroll/.test(over) && all > part + 1;
    return e.matches("button, select, input, [tabindex='0']")
        || scrolls(style.overflowX, e.scrollWidth, e.clientWidth) && !e.querySelector("button, [tabindex='0']")
        || scrolls(style.overflowY, e.scrollHeight, e.clientHeight) && !e.querySelector("button, [tabindex='0']");
})"""
START = f"""(name) => {{
    const view = document.querySelector(`.labkit-${{name}}`), controls = ({CONTROLS})(view);
    const before = document.createElement("button");
    view.before(before);
    before.focus();
    return controls.length;
}}"""
HERE = f"""(name) => {{
    const view = document.querySelector(`.labkit-${{name}}`), e = document.activeElement, style = getComputedStyle(e);
    const named = e.ariaLabel || e.labels?.[0]?.innerText || e.innerText?.trim();
    const seen = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
    return [view.contains(e) ? ({CONTROLS})(view).indexOf(e) : -1, named, seen, e.outerHTML.slice(0, 80)];
}}"""


@in_browser
@pytest.mark.parametrize("name", NAMES)
def test_the_keyboard_reaches_every_control_and_each_has_a_name_and_shows_the_focus(browser, every_view, name):
    with opened(browser, every_view, reduced_motion="reduce") as page:
        until(page, lambda s: len(s.get("parts", [])) == 4 and s["parts"][2]["series"], "drew", number=8)
        count, reached = page.evaluate(START, name), set()
        assert count >= 2
        for _ in range(count):
            page.keyboard.press("Tab")
            at, named, seen, html = page.evaluate(HERE, name)
            assert at >= 0, f"the focus left the view early, for {html}"
            assert named and seen, html
            reached.add(at)
        assert len(reached) == count
        assert page.evaluate("(name) => document.querySelector(`.labkit-${name}`).ariaLabel", name)
        assert page.locator(f".labkit-{name} :is(canvas, svg[role=img]):not([aria-label], [aria-hidden])").count() == 0
        assert page.complaints == []


PICTURES = """() => new Promise((done) => {
    const canvas = document.querySelector(".stage canvas"), seen = new Set(), begun = performance.now();
    const look = (now) => {
        seen.add(canvas.toDataURL());
        now < begun + 600 ? requestAnimationFrame(look) : done([seen.size, performance.now() - begun]);
    };
    requestAnimationFrame(look);
})"""


@in_browser
@pytest.mark.parametrize("view", [Flow, Sequence])
def test_who_wants_no_motion_sees_what_is_live_once_a_second(browser, tmp_path, view):
    url, batches = streaming.page_to_feed(tmp_path, view), itertools.count(step=3)

    def fed(page, code):
        """What a script says just after news have come, which the view shows for a second."""
        number = next(batches)
        streaming.feed(page, number, number + 3)
        return page.evaluate(code)

    with opened(browser, url) as page:
        assert eventually(lambda: fed(page, PICTURES)[0] > 2), "others see it move"
    with opened(browser, url, reduced_motion="reduce") as page:
        seen, milliseconds = fed(page, PICTURES)
        assert seen <= 2 + milliseconds // 1000
        assert eventually(lambda: fed(page, "labkitFed.el.labkitView.state().animating")), "waits for the next second"
        assert page.complaints == []
