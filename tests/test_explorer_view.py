"""The explorer's view in a page without a kernel: choosing, undoing, the shortest interleaving, keys, themes, text."""

from __future__ import annotations

import nbformat
import pytest

from labkit.explore import Explorer, acquire, release
from labkit.page import Page
from labkit.views.explorer import Steps
from tests.browser import chromium, in_browser, jupyterlab, opened, state, stop_time, until
from tests.roles import eventually


def increment(s):
    value = s.counter
    yield "has <b>read</b>"
    s.counter = value + 1


def philosopher(s, left, right):
    yield acquire(left)
    yield acquire(right)
    s.meals += 1
    yield release(right)
    yield release(left)


def explorers():
    lost = Explorer(
        {"A": increment, "<i>B</i>": increment},
        shared={"counter": 0},
        at_end={"both <u>count</u>": lambda s: s.counter == 2},
    )
    table = {"Plato": (philosopher, "fork 0", "fork 1"), "Zeno": (philosopher, "fork 1", "fork 0")}
    deadlock = Explorer(table, shared={"meals": 0}, semaphores={"fork 0": 1, "fork 1": 1})
    ordered = {"Plato": (philosopher, "fork 0", "fork 1"), "Zeno": (philosopher, "fork 0", "fork 1")}
    right = Explorer(ordered, shared={"meals": 0}, semaphores={"fork 0": 1, "fork 1": 1})
    return {"lost": lost, "deadlock": deadlock, "right": right}


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The address of a page for each explorer."""
    folder, addresses = tmp_path_factory.mktemp("explorer"), {}
    for name, explorer in explorers().items():
        page = Page(name)
        buffers = [(["table"], explorer.table())]
        page.body.append(page.view(name, {"_esm": str(Steps._esm)}, buffers))
        path = folder / f"{name}.html"
        path.write_text(page.html())
        addresses[name] = path.as_uri()
    return addresses


def ready(page):
    return until(page, lambda s: True, "appeared")


def run(page, name):
    return page.get_by_role("button", name=f"Run {name} one step")


@in_browser
def test_the_reader_chooses_who_runs_and_finds_the_lost_update(browser, pages):
    with opened(browser, pages["lost"]) as page:
        ready(page)
        for name in ("A", "<i>B</i>", "A"):
            run(page, name).click()
            assert state(page)["verdict"] == ""
        run(page, "<i>B</i>").click()
        now = state(page)
        assert now["chosen"] == ["A", "<i>B</i>", "A", "<i>B</i>"] and now["shared"] == {"counter": "1"}
        assert now["verdict"] == "wrong" and "✘ Broken" in page.locator(".verdict").inner_text()
        assert "✘ Broken" in page.get_by_role("status").text_content()
        assert page.complaints == []


@in_browser
def test_an_order_that_goes_well_says_what_holds(browser, pages):
    with opened(browser, pages["lost"]) as page:
        ready(page)
        for name in ("A", "A", "<i>B</i>", "<i>B</i>"):
            run(page, name).click()
        assert state(page)["verdict"] == "right"
        assert page.locator(".verdict").inner_text() == "✔ All have ended, and this holds: “both <u>count</u>”."
        assert run(page, "A").is_disabled()


@in_browser
def test_text_is_never_taken_for_markup(browser, pages):
    with opened(browser, pages["lost"]) as page:
        ready(page)
        run(page, "<i>B</i>").click()
        assert page.locator(".labkit-steps :is(b b, i, u)").count() == 0
        assert not page.get_by_text("Semaphores").is_visible(), "there are none"
        assert "has <b>read</b>" in page.locator(".labkit-steps").inner_text()
        assert page.complaints == []


@in_browser
def test_a_blocked_process_cannot_be_chosen_and_says_on_what_it_waits(browser, pages):
    with opened(browser, pages["deadlock"]) as page:
        ready(page)
        run(page, "Plato").click()
        run(page, "Plato").click()
        assert run(page, "Zeno").is_disabled()
        assert "waits for fork 1, which Plato holds" in page.get_by_role("group", name="Zeno", exact=True).inner_text()
        assert "held by Plato" in page.get_by_role("group", name="Semaphores").inner_text()
        page.keyboard.press("2")
        assert state(page)["chosen"] == ["Plato", "Plato"]


@in_browser
def test_keys_choose_undo_restart_and_stay_in_the_view(browser, pages):
    with opened(browser, pages["deadlock"]) as page:
        ready(page)
        page.evaluate("window.heard = 0; document.addEventListener('keydown', () => window.heard++)")
        page.locator(".labkit-steps").focus()
        for key in "1", "z":
            page.keyboard.press(key)
        now = state(page)
        assert now["chosen"] == ["Plato", "Zeno"] and now["verdict"] == "wrong"
        assert "Plato waits for fork 1, which Zeno holds" in now["text"]
        page.keyboard.press("u")
        assert state(page)["chosen"] == ["Plato"] and state(page)["verdict"] == ""
        page.keyboard.press("p")
        page.keyboard.press("Backspace")
        page.keyboard.press("r")
        assert state(page)["chosen"] == []
        page.keyboard.press("u")  # nothing to undo
        assert state(page)["chosen"] == [] and page.evaluate("window.heard") == 0
        assert page.complaints == []


@in_browser
def test_the_shortest_is_played_step_by_step_and_stops_when_the_reader_takes_over(browser, pages):
    with opened(browser, pages["deadlock"], clock=True) as page:
        ready(page)
        stop_time(page)
        page.get_by_role("button", name="Show the shortest that breaks").click()
        assert state(page)["playing"] and state(page)["chosen"] == []
        page.clock.run_for(1_000)
        assert state(page)["playing"] and state(page)["chosen"] == ["Plato"]
        page.get_by_role("button", name="Undo").click()
        assert not state(page)["playing"] and state(page)["chosen"] == []
        page.clock.run_for(10_000)
        assert state(page)["chosen"] == []
        page.keyboard.press("s")
        page.clock.run_for(10_000)
        now = state(page)
        assert now["verdict"] == "wrong" and now["chosen"] == ["Plato", "Zeno"] and not now["playing"]


@in_browser
def test_a_reader_who_wants_no_motion_sees_the_shortest_at_once(browser, pages):
    with opened(browser, pages["deadlock"], reduced_motion="reduce") as page:
        ready(page)
        page.get_by_role("button", name="Show the shortest that breaks").click()
        assert state(page)["verdict"] == "wrong" and not state(page)["playing"]


@in_browser
def test_a_right_program_says_that_it_cannot_be_broken(browser, pages):
    with opened(browser, pages["right"]) as page:
        ready(page)
        assert page.get_by_role("button", name="Show the shortest that breaks").is_disabled()
        assert "none breaks" in page.locator(".count").inner_text()
        page.get_by_role("button", name="Hint").click()
        assert "nothing can go wrong any more" in page.locator(".verdict").inner_text()


@in_browser
def test_a_hint_leads_to_the_break(browser, pages):
    with opened(browser, pages["lost"]) as page:
        ready(page)
        page.get_by_role("button", name="Hint").click()
        assert "From here it can break in 4 steps." in page.locator(".verdict").inner_text()
        run(page, "A").click()
        run(page, "A").click()
        assert "nothing can go wrong any more" in page.locator(".verdict").inner_text()


@in_browser
def test_a_step_of_the_past_leads_back_to_it(browser, pages):
    with opened(browser, pages["lost"]) as page:
        ready(page)
        for _ in range(2):
            run(page, "A").click()
        page.get_by_role("button", name="Step 1: A. Go back").click()
        assert state(page)["chosen"] == ["A"]
        assert page.locator("pre .here").first.inner_text().strip() == 'yield "has <b>read</b>"'


@in_browser
@pytest.mark.parametrize("width", [320, 700, 1280])
def test_nothing_sticks_out_of_the_view(browser, pages, width):
    with opened(browser, pages["deadlock"], viewport={"width": width, "height": 900}, reduced_motion="reduce") as page:
        ready(page)
        page.keyboard.press("Tab")
        page.get_by_role("button", name="Show the shortest that breaks").click()
        outside = page.evaluate("""() => {
            const box = document.querySelector(".labkit-steps").getBoundingClientRect();
            return [...document.querySelectorAll(".labkit-steps :is(button, .item, .process, .verdict)")]
                .map((e) => [e.className || e.textContent, e.getBoundingClientRect()])
                .filter(([, r]) => r.left < box.left - 1 || r.right > box.right + 1).map(([name]) => name);
        }""")
        assert outside == []


@in_browser
def test_the_view_follows_the_page_from_light_to_dark(browser, pages):
    with opened(browser, pages["lost"], color_scheme="light") as page:
        ready(page)
        ground = "getComputedStyle(document.querySelector('.labkit-steps')).backgroundColor"
        light = page.evaluate(ground)
        page.emulate_media(color_scheme="dark")
        assert eventually(lambda: page.evaluate(ground) != light)  # the page's own policy forbids wait_for_function
        page.evaluate("document.body.dataset.jpThemeLight = 'true'")  # as JupyterLab says it
        assert eventually(lambda: page.evaluate(ground) == light)


@in_browser
def test_paper_shows_how_it_breaks(browser, pages):
    with opened(browser, pages["deadlock"]) as page:
        ready(page)
        page.emulate_media(media="print")
        until(page, lambda s: s["verdict"] == "wrong", "showed the end on paper")


CELL = """
from labkit.explore import Explorer

def increment(s):
    value = s.counter
    yield "has read"
    s.counter = value + 1

Explorer({"A": increment, "B": increment}, shared={"counter": 0}, at_end={"both count": lambda s: s.counter == 2})
"""


@in_browser
def test_in_jupyterlab_the_keys_are_the_views_and_not_the_notebooks(browser, tmp_path):
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [nbformat.v4.new_code_cell(CELL.strip()), nbformat.v4.new_markdown_cell("Below.")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), tmp_path / "live.ipynb")
    with (
        jupyterlab(tmp_path) as address,
        opened(browser, address("lab/tree/live.ipynb"), offline=False) as page,
    ):
        page.locator(".jp-Notebook .jp-CodeCell").wait_for(timeout=60_000)
        page.get_by_text("| Idle").wait_for(timeout=60_000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).first.click()
        until(page, lambda s: s["states"] == 12, "appeared", seconds=90)

        page.locator(".labkit-steps .verdict").click()  # anywhere in the view
        for key in "1", "2", "a", "b":  # a and b would insert cells above and below, 2 would make a heading
            page.keyboard.press(key)
        now = until(page, lambda s: s["verdict"] == "wrong", "broke")
        assert now["chosen"] == ["A", "B", "A", "B"]
        assert page.locator(".jp-Notebook .jp-Cell").count() == 2
        assert page.complaints == []


def test_a_terminal_shows_the_counts(capsys):
    explorer = explorers()["lost"]
    explorer._ipython_display_()
    assert capsys.readouterr().out == f"{explorer!r}\n"
    assert repr(explorer) == "<explorer of A, <i>B</i>: 6 interleavings through 12 states; 4 break>"
