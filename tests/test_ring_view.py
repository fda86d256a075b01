"""The ring view: what is drawn is what was in memory, slot by slot, and its history can be stepped and replayed."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import roles

from labkit import launch
from labkit.lockfree import Broadcast, Mpmc, Spsc
from labkit.lockfree.vyukov import CELLS, Vyukov
from labkit.page import render
from labkit.report import run
from labkit.shared_array import SharedArray
from labkit.views.ring import MOST_FRAMES, Layout, Ring
from tests.browser import chromium, in_browser, jupyterlab, opened, state, stop_time, until


@pytest.fixture
def own():
    """A ring of one's own of four slots, as an array and its layout."""
    memory = SharedArray(32, np.int64)
    layout = {"capacity": 4, "slots": 64, "producer": {"write_position": 0}, "consumer": {"read_position": 8}}
    made = SimpleNamespace(words=memory.array, layout=Layout(memory.array, **layout))
    yield made
    made.words = made.layout = None
    memory.close()


@pytest.fixture
def small():
    with Mpmc(4, message_bytes=16) as queue:
        yield queue


def shown(ring):
    """The recording as the browser gets it."""
    return json.loads(gzip.decompress(ring._record()))


def last(ring):
    return shown(ring)["frames"][-1]


# --- without a browser ---------------------------------------------------------------------------------------


def test_the_slots_of_a_ring_of_ones_own_follow_from_its_positions(own):
    ring = Ring(own.layout)
    own.words[:2], own.words[8:12] = (6, 3), (40, 50, 20, 30)
    ring.snapshot("three are in it")
    assert ring.history == [["full", "full", "free", "full"]]
    assert [slot[4] for slot in last(ring)["slots"]] == ["40", "50", "", "30"]
    assert [slot[1] for slot in last(ring)["slots"]] == [1, 1, 1, 0]  # laps
    ring.close()


def test_a_slot_of_an_mpmc_goes_through_its_states_and_names_its_owner(small):
    ring = Ring(small)
    ring.snapshot()
    loan = small.loan(5)
    ring.snapshot()
    loan.array[:] = list(b"hello")
    loan.publish()
    ring.snapshot()
    borrowed = small.borrow()
    ring.snapshot()
    borrowed.release()
    ring.snapshot()
    small.loan(5).give_up()
    ring.snapshot()
    assert [states[0] for states in ring.history] == ["free", "filling", "full", "taking", "free", "free"]
    assert ring.history[-1][1] == "poison"
    frames = shown(ring)["frames"]
    assert [frame["slots"][0][4] for frame in frames] == ["", "", "hello", "hello", "", ""]
    assert [frame["slots"][0][1] for frame in frames] == [0, 0, 0, 0, 1, 1]
    assert [frame["values"] for frame in frames] == [[0, 0], [1, 0], [1, 0], [1, 1], [1, 1], [2, 1]]
    assert shown(ring)["owners"][frames[1]["slots"][0][2]].startswith("this notebook (")
    ring.close()


def test_an_owner_that_was_killed_is_dead_and_one_that_is_stopped_is_not(small):
    gate = SharedArray(1)
    ring = Ring(small)
    job = launch(roles.fill_and_wait, small, gate, name="writer")
    assert roles.eventually(lambda: gate.array[0] == 1, 30)
    os.kill(job.pid, signal.SIGSTOP)
    ring.snapshot("stopped")
    assert last(ring)["dead"] == [] and last(ring)["slots"][0][0] == "filling"
    job.kill()
    assert roles.eventually(lambda: not job.alive)
    ring.snapshot("killed")
    owner = last(ring)["slots"][0][2]
    assert last(ring)["dead"] == [owner] and shown(ring)["owners"][owner] == f"writer ({job.pid})"
    small.send(b"next")
    assert small.receive() == b"next"
    ring.snapshot("passed over")
    assert last(ring)["slots"][0][:2] == ["free", 1]
    ring.close()
    gate.close()


def test_vyukovs_queue_does_not_say_who_has_claimed_a_slot():
    queue = Vyukov(4)
    layout = {"slots": CELLS, "stride": 16, "producer": {"write_position": 0}, "consumer": {"read_position": 128}}
    ring = Ring(Layout(queue.memory.array, capacity=4, sequences=True, **layout))
    queue.try_send(5)
    claimed = queue.claim()
    queue.try_send(7)
    ring.snapshot()
    taken = queue.take()
    ring.snapshot()
    assert ring.history == [["full", "filling", "full", "free"], ["taking", "filling", "full", "free"]]
    assert [slot[2] for slot in last(ring)["slots"]] == [-1, -1, None, None]
    queue.publish(claimed, 6)
    assert (queue.release(taken), queue.try_receive(), queue.try_receive(), queue.try_receive()) == (5, 6, 7, None)
    ring.snapshot()
    assert ring.history[-1] == ["free"] * 4
    ring.close()
    queue.close()


def test_an_spsc_is_drawn_by_cache_line_through_all_stages_of_a_message():
    with Spsc(4096) as queue:
        ring = Ring(queue)
        ring.snapshot("empty")
        loan = queue.loan(100)
        ring.snapshot("claimed")
        loan.array[:] = list(b"message " * 12 + b"more")
        loan.publish()
        ring.snapshot("published")
        borrowed = queue.borrow()
        ring.snapshot("being read")
        borrowed.release()
        ring.snapshot("released")
        assert [states[:3] for states in ring.history] == [
            ["free"] * 3,
            ["filling", "filling", "free"],
            ["full", "full", "free"],
            ["taking", "taking", "free"],
            ["free"] * 3,
        ]
        frames = shown(ring)["frames"]
        assert [frame["values"] for frame in frames] == [[0, 0], [0, 0], [112, 0], [112, 0], [112, 112]]
        assert [slot[1] for slot in frames[-1]["slots"][:3]] == [1, 0, 0]  # the second line is read in part
        assert frames[2]["slots"][0][4] == "message mess…" and len(frames[2]["slots"]) == 64
        owners = [shown(ring)["owners"][frames[at]["slots"][0][2]] for at in (1, 3)]
        assert owners == [f"this notebook, {part} ({os.getpid()})" for part in ("sender", "receiver")]
        assert shown(ring)["unit"] == shown(ring)["stride"] == 64
        ring.close()


def test_an_spsc_shows_the_items_of_another_process_lap_after_lap():
    with Spsc(500, dtype=np.int64) as queue:
        ring = Ring(queue)
        for lap in range(3):
            launch(send_numbers, queue.again(), 500, name="writer").wait()
            ring.snapshot("sent")
            slots = last(ring)["slots"]
            assert [slot[0] for slot in slots].count("full") in (63, 64)  # a line that is read in part is full
            assert slots[lap * 500 % 512 // 8][4] == "0 …"
            queue.receive_many(500)
            ring.snapshot("received")
            assert ring.history[-1] == ["free"] * 64 and last(ring)["values"] == [4000 * (lap + 1)] * 2
        ring.close()


def send_numbers(queue, count):
    queue.send_many(np.arange(count))


def test_watching_adds_what_has_changed_and_nothing_twice(own):
    ring = Ring(own.layout)
    with ring.watching("at work"):
        for item in range(3):
            own.words[8 + item] = item
            own.words[0] += 1
            assert roles.eventually(lambda: ring.history and ring.history[-1].count("full") == own.words[0])
    frames = shown(ring)["frames"]
    seen = [(frame["values"], frame["slots"]) for frame in frames]
    assert all(one != two for one, two in itertools.pairwise(seen))
    assert frames[-1]["values"] == [3, 0] and {frame["label"] for frame in frames} == {"at work"}
    ring.close()


def test_a_history_has_an_end_and_says_how_much_was_left_out(own, monkeypatch):
    monkeypatch.setattr("labkit.views.ring.MOST_FRAMES", 5)
    ring = Ring(own.layout)
    for _ in range(8):
        ring.snapshot()
    assert len(shown(ring)["frames"]) == 5 and shown(ring)["left_out"] == 3
    ring.close()


def test_batches_hold_what_is_new_only_and_a_full_history_is_small(small, monkeypatch):
    sent = []
    monkeypatch.setattr(Ring, "send", lambda self, content, buffers: sent.append(buffers[0]))
    ring = Ring(small)
    for n in range(MOST_FRAMES):
        small.send(b"%d" % n)
        ring.snapshot()
        small.receive()
    ring._push(np.frombuffer(b'{"from":0}\n', np.uint8))
    assert min(map(len, sent)) < 100 and len(ring._record()) < 200_000  # the view may have sent others by itself
    ring.close()


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"capacity": 65}, "every one: make it with a capacity of 1 to 64"),
        ({"capacity": 0}, "capacity of 1 to 64"),
        ({"slots": 60}, "a multiple of 8 bytes, not 60"),
        ({"slots": 1024}, "the memory has 256"),
        ({"producer": {"head": 0}}, "a ring has a write_position"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(change, reason):
    layout = {"capacity": 4, "slots": 64, "producer": {"write_position": 0}, "consumer": {"read_position": 8}}
    with pytest.raises(ValueError, match=reason):
        Layout(np.zeros(32, np.int64), **(layout | change))


def test_a_queue_that_cannot_be_drawn_is_refused_with_the_reason():
    with Mpmc(1024) as large, pytest.raises(ValueError, match="has 1,024 slots"):
        Ring(large)
    with Spsc(8192) as large, pytest.raises(ValueError, match="ring of 8,192 bytes"):
        Ring(large)
    with Broadcast(4096) as other, pytest.raises(TypeError, match="an Mpmc, an Spsc, or a Layout"):
        Ring(other)


# --- the exported view ---------------------------------------------------------------------------------------

CELL = """
import numpy as np
from labkit.lockfree import Mpmc
from labkit.shared_array import SharedArray
from labkit.views.ring import Layout, Ring
queue = Mpmc(4, message_bytes=32)
ring = Ring(queue)
ring.snapshot("empty")
loan = queue.loan(20)
ring.snapshot("<img src=x onerror=document.title='pwned'>")
loan.array[:] = list(b"<b>bold</b>         ")
loan.publish()
ring.snapshot("published")
queue.receive()
ring.snapshot("received")
ring
"""
OWN_CELL = """
memory = SharedArray(32, np.int64)
own = Ring(Layout(memory.array, capacity=8, slots=64, producer={"write_position": 0}, consumer={"read_position": 8}))
own.snapshot("empty")
memory.array[[0, 8]] = 1, 55
own.snapshot("one is in it")
own
"""
SPSC_CELL = """
from labkit.lockfree import Spsc
pipe = Spsc(4096)
lines = Ring(pipe)
for number in range(3):
    pipe.send(b"message %d of some length" % number * 8)
pipe.receive()
lines.snapshot("two are in it")
loan = pipe.loan(500)
lines.snapshot("and one is being written")
lines
"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def exported(browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ring")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in (CELL, OWN_CELL, SPSC_CELL)])
    assert run(folder / "ring.ipynb", notebook, timeout=120) == []
    path = folder / "ring.html"
    path.write_text(render([("ring", notebook)]))
    return path.as_uri()


TOO_WIDE = """[...document.querySelectorAll(".labkit-ring, .labkit-ring *")]
    .filter((e) => e instanceof HTMLElement && e.clientWidth && e.scrollWidth > e.clientWidth + 1)
    .filter((e) => getComputedStyle(e).overflow === "visible")
    .map((e) => e.className)"""


def loaded(page, number=0):
    return until(page, lambda s: s.get("frames", 0) > 0, "loaded its history", number=number)


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 700, 380])
def test_a_report_shows_the_history_and_steps_through_it(browser, exported, scheme, width):
    with opened(browser, exported, color_scheme=scheme, viewport={"width": width, "height": 900}) as page:
        assert loaded(page)["frames"] == 4 and state(page)["label"] == "received"
        page.get_by_role("slider", name="Snapshot").first.fill("0")
        assert state(page)["slots"] == ["free"] * 4
        page.get_by_role("button", name="One snapshot on").first.click()
        now = state(page)
        assert now["slots"][0] == "filling" and now["owners"][0] == "A" and "claims slot 0" in now["said"][0]
        assert "claims slot 0" in page.get_by_role("status").first.inner_text()
        page.get_by_role("slider", name="Snapshot").first.press("ArrowRight")
        assert state(page)["slots"][0] == "full"
        assert "slot 0: full" in page.locator(".labkit-ring .circle svg").first.get_attribute("aria-label")
        page.get_by_role("button", name="Now").first.click()
        assert (
            state(page)["at"] == 3 and state(page)["laps"] == [1, 0, 0, 0] and state(page)["dark"] == (scheme == "dark")
        )
        assert page.evaluate(TOO_WIDE) == [] and page.complaints == []


@in_browser
def test_play_replays_it_from_the_beginning_and_stops_at_the_end(browser, exported):
    with opened(browser, exported, clock=True) as page:
        loaded(page)
        stop_time(page)
        page.get_by_role("combobox", name="Speed").first.select_option("1/s")
        page.get_by_role("button", name="Play").first.click()
        assert state(page)["at"] == 0 and state(page)["playing"]
        page.clock.run_for(1_500)
        assert state(page)["at"] == 1 and state(page)["playing"]
        page.get_by_role("button", name="Pause").first.click()
        page.clock.run_for(10_000)
        assert state(page)["at"] == 1 and not state(page)["playing"]
        page.get_by_role("combobox", name="Speed").first.select_option("20/s")
        page.get_by_role("button", name="Play").first.click()
        page.clock.run_for(10_000)
        now = state(page)
        assert now["at"] == 3 and not now["playing"]
        assert now["label"] == "received" and page.complaints == []


@in_browser
def test_a_cache_line_that_two_processes_write_is_marked(browser, exported):
    with opened(browser, exported) as page:
        now = loaded(page, 1)
        assert now["shared"] == ["producer and consumer both write this line: false sharing"]
        assert loaded(page, 0)["shared"] == []
        assert page.locator(".labkit-ring .row.shared").count() == 1


@in_browser
def test_an_spsc_is_shown_as_lines_and_its_positions_point_at_them(browser, exported):
    with opened(browser, exported) as page:
        now = loaded(page, 2)
        assert now["values"] == {"write_position": 600, "read_position": 200} and now["shared"] == []
        assert now["slots"][:19] == ["free"] * 3 + ["full"] * 6 + ["filling"] * 9 + ["free"]
        circle = page.locator(".labkit-ring .circle svg").nth(2)
        assert "lap 0, slot 9" in circle.inner_html() and "lap 0, slot 3" in circle.inner_html()
        assert page.complaints == []


@in_browser
def test_messages_and_labels_are_text_and_never_html(browser, exported):
    with opened(browser, exported) as page:
        loaded(page)
        for at in ("1", "2"):
            page.get_by_role("slider", name="Snapshot").first.fill(at)
        page.get_by_role("slider", name="Snapshot").first.fill("1")
        assert page.locator(".labkit-ring .label").first.inner_text().startswith("<img src=x")
        assert page.locator(".labkit-ring img").count() == 0 and page.title() != "pwned" and page.complaints == []


# --- live ----------------------------------------------------------------------------------------------------

LIVE = """
import asyncio
from pathlib import Path
from labkit.lockfree import Mpmc
from labkit.views.ring import Ring
queue = Mpmc(8, message_bytes=16)
ring = Ring(queue)
display(ring)
with ring.watching("live"):
    while not Path(STOP).exists():
        queue.send(b"tick")
        await asyncio.sleep(0.05)
        queue.receive()
        await asyncio.sleep(0.05)
ring.snapshot("the end")
"""


@in_browser
def test_it_moves_live_in_jupyterlab_in_both_themes(browser, tmp_path: Path):
    new, stop = nbformat.v4, tmp_path / "stop"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [new.new_code_cell(f"STOP = {str(stop)!r}" + LIVE)]
    nbformat.write(new.new_notebook(cells=cells, metadata={"kernelspec": kernel}), tmp_path / "live.ipynb")
    with (
        jupyterlab(tmp_path) as address,
        opened(
            browser, address("lab/tree/live.ipynb"), offline=False, viewport={"width": 1280, "height": 1200}
        ) as page,
    ):
        page.locator(".jp-Notebook .jp-CodeCell").nth(0).wait_for(timeout=60_000)
        page.get_by_text("| Idle").wait_for(timeout=60_000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).first.click()
        now = until(page, lambda s: s["frames"] > 3, "moved", seconds=90)
        assert now["follows"] and now["label"] == "live" and not now["dark"]
        until(page, lambda s: s["frames"] > now["frames"], "went on")
        page.evaluate("document.body.dataset.jpThemeLight = 'false'")
        until(page, lambda s: s["dark"], "became dark")
        stop.touch()
        now = until(page, lambda s: s["label"] == "the end", "came to its end")
        page.get_by_role("slider", name="Snapshot").press("ArrowLeft")
        assert state(page)["at"] == now["at"] - 1 and page.complaints == []
