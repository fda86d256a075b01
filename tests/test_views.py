"""The flow view: what is sent to the browser is exact where it says so, and the browser shows what the trace holds."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import re
import struct
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest

from labkit import Trace, channel, launch
from labkit.bench import streaming
from labkit.bench.made_up import MadeUp
from labkit.events import Action, messages
from labkit.report import report
from labkit.views import esm, recording, settle, watch
from labkit.views.dashboard import Dashboard
from labkit.views.flow import Flow
from labkit.views.sequence import Sequence
from tests.browser import chromium, in_browser, jupyterlab, moves, opened, picture, rests, state, until

N = 400


def producer(tx):
    for number in range(N):
        tx.send(b"x" * (1 + number % 90))


def consumer(rx):
    return sum(1 for _ in rx)


def recorded(*kinds):
    """A trace of real processes that have sent N messages over each of these mechanisms."""
    trace = Trace()
    ends = [channel(kind, trace=trace) for kind in kinds]
    jobs = [launch(consumer, rx) for _, rx in ends] + [launch(producer, tx) for tx, _ in ends]
    for job in jobs:
        job.wait()
    return trace


def header_of(packed):
    raw = gzip.decompress(packed)
    length = struct.unpack_from("<q", raw)[0]
    header = json.loads(raw[8 : 8 + length])
    width = 1 + 5 * header["columns"] + 2 * sum(p["seen"] is not None for p in header["processes"])
    moments = np.frombuffer(raw, "<f8", width * header["moments"], 8 + length).reshape(-1, width)
    return header, moments


# ------------------------------------------------------------------------------------------- without a browser


@pytest.mark.parametrize("factor", [1, 1.5, 2, 3, 11, 21, 150, 12_345])
def test_every_thinning_divides_the_next_so_that_a_thin_sample_is_part_of_a_dense_one(factor):
    step = recording.round_up(factor)
    assert step >= factor and recording.round_up(step + 1) % step == 0


def test_the_receipt_of_a_sampled_message_is_sampled_too():
    trace = MadeUp(4_000)
    found = messages(recording.sample(trace.events(), np.full(4, 10)))
    assert len(found) == 400
    assert np.all(found["receive_ends"] > 0) and np.all(found["receive_begins"] > 0) and np.all(found["send_ends"] > 0)


def test_totals_are_exact_however_thin_the_sample():
    trace = MadeUp(40_000)
    header, moments = header_of(recording.record(trace, limit=1_000))
    totals = moments[-1][1:21].reshape(4, 5)
    found = trace.messages()
    assert max(header["every"]) > 1 and header["rows"] <= 1_000
    assert totals[:, 0].tolist() == totals[:, 1].tolist() == [10_000] * 4
    assert totals[:, 3].sum() == found["size"].sum()


def test_time_in_calls_is_the_sum_of_the_calls():
    trace = MadeUp(4_000)
    _, moments = header_of(recording.record(trace))
    found = trace.messages()
    in_send, in_receive = moments[-1][21:].reshape(-1, 2).T
    assert in_send.sum() == (found["send_ends"] - found["send_begins"]).sum()
    assert in_receive.sum() == (found["receive_ends"] - found["receive_begins"]).sum()


def test_a_tally_fed_in_pieces_knows_what_one_fed_at_once_knows():
    events = MadeUp(4_000).events()
    whole, pieces = recording.Tally(), recording.Tally()
    whole.add(events)
    for piece in np.array_split(events, 7):
        pieces.add(piece)
    order = [list(pieces.pids).index(pid) for pid in whole.pids]
    assert np.array_equal(whole.channels, pieces.channels) and np.array_equal(whole.calls, pieces.calls[order])
    assert whole.links == pieces.links and whole.seen == pieces.seen


def test_a_recording_of_100_000_messages_is_at_most_3_5_megabytes():
    assert len(recording.record(MadeUp(100_000))) <= 3_500_000


@pytest.mark.parametrize("trace", [MadeUp(0), MadeUp(0, channels=1)])
def test_an_empty_trace_makes_a_recording(trace):
    header, _ = header_of(recording.record(trace))
    assert header["rows"] == 0 and header["median"] is None


def test_a_receive_that_gave_up_and_one_still_waiting_are_recorded():
    events = MadeUp(4, channels=1).events()[:3].copy()
    events["endpoint"], events["message"] = (1, 1, 1), 0
    events["action"] = Action.RECEIVE_BEGINS, Action.GAVE_UP, Action.RECEIVE_BEGINS
    start = int(events["time_ns"][0])
    waits = recording._empty_receives(events, recording.Tally(epoch=start))
    assert [wait[1:] for wait in waits] == [
        [0, int(events["time_ns"][1]) - start],
        [int(events["time_ns"][2]) - start, -1],
    ]


def test_watch_outside_of_a_notebook_says_what_to_do_instead(capsys):
    with Trace() as trace:
        watch(trace)
    assert "notebook" in capsys.readouterr().out


def test_a_front_end_that_fails_does_not_break_the_run(monkeypatch):
    def gone(*_, **__):
        raise ConnectionError("the browser has gone")

    monkeypatch.setattr(Flow, "send", gone)
    with Trace() as trace:
        flow = Flow(trace)
        tx, rx = channel("pipe", trace=trace)
        for number in range(20):
            tx.send(b"%d" % number)
            assert rx.receive() == b"%d" % number
        settle()
        header, moments = header_of(flow.recording)
        flow.close()
    assert header["rows"] == 20 and moments[-1][1:3].tolist() == [20, 20]


def test_a_closed_view_listens_no_longer():
    from labkit.views.live import live

    with Trace() as trace:
        flow = Flow(trace)
        flow.close()
        assert not trace._subscribers and flow not in live


def test_batches_carry_each_message_once_complete_and_hold_nothing_back(monkeypatch):
    sent = []
    monkeypatch.setattr(Flow, "send", lambda self, content, buffers: sent.append((content, buffers)))
    with Trace() as trace:
        flow = Flow(trace)
        events = MadeUp(800, channels=4).events()
        for piece in np.array_split(events, 11):  # cut anywhere, also between the two ends of a message
            flow._push(piece)
        flow.close()
    complete = [row[0] for _, (rows, _) in sent for row in np.frombuffer(rows).reshape(13, -1).T if np.isfinite(row[8])]
    assert len(complete) == len(set(complete)) == 800 and len(flow._pending) == 0
    assert all(np.isfinite(np.frombuffer(checkpoint)).all() for _, (_, checkpoint) in sent)


def test_what_waits_for_its_receipt_is_bounded():
    from labkit.views import flow as module

    with Trace() as trace:
        flow = module.Flow(trace)
        events = MadeUp(60_000, channels=1).events()
        lost = events[events["action"] <= Action.SEND_ENDS]
        for piece in np.array_split(lost, 200):
            flow._push(piece)
        flow.close()
    assert len(flow._pending) <= module.PENDING


def test_every_view_is_one_module_that_imports_nothing():
    for path in Path(esm.__file__).parent.glob("*.js"):
        text = path.read_text()
        if "\nexport default " not in text:
            continue
        joined = esm.module(path.stem)
        assert joined.count("export default") == 1 and not re.search("^import ", joined, re.MULTILINE)
        assert joined.count("const shared_js = ") == 1, "what several import is there once"


def test_a_module_that_imports_what_there_is_not_is_refused(tmp_path):
    (tmp_path / "below.js").write_text("export const here = 1;\n")
    (tmp_path / "above.js").write_text('import { here, there } from "./below.js";\nexport default here;\n')
    with pytest.raises(ImportError, match=r"above.js imports there, which below.js does not export"):
        esm.module("above", tmp_path)


# ------------------------------------------------------------------------------------------- the exported view


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def exported(browser, tmp_path_factory):
    """A report of real processes, and the messages that the trace itself holds."""
    with recorded("pipe", "posix_mq") as trace:
        path = report(trace, tmp_path_factory.mktemp("views") / "run.html")
        epoch = int(trace.events()["time_ns"].min())
        return SimpleNamespace(url=path.as_uri(), found=trace.messages(), epoch=epoch, trace=trace)


def paused(page):
    until(page, lambda s: s["mode"] == "replay", "loaded its recording")
    if state(page)["playing"]:
        page.get_by_role("button", name="Pause").click()
    return until(page, lambda s: not s["playing"], "paused")


@in_browser
def test_dots_move_while_it_plays_and_stand_still_when_paused(browser, exported):
    with opened(browser, exported.url) as page:
        until(page, lambda s: s["playing"] and s["dots"] > 0, "drew a dot")
        assert moves(page, picture)

        paused(page)
        assert rests(page, picture) and not state(page)["animating"]
        assert page.complaints == []


@in_browser
@pytest.mark.parametrize("share", [0, 0.25, 0.5, 0.9, 1])
def test_the_slider_shows_the_counts_of_that_moment(browser, exported, share):
    with opened(browser, exported.url) as page:
        paused(page)
        page.get_by_role("slider").fill(str(round(10_000 * share)))
        now = state(page)
        for number, shown in enumerate(now["channels"]):
            own = exported.found[exported.found["channel"] == number]
            entered = np.minimum(own["send_ends"], own["receive_ends"]) - exported.epoch
            arrived = own["receive_ends"] - exported.epoch
            # the shown moment is a float: allow it the last nanosecond
            for count, times in ((shown["sent"], entered), (shown["received"], arrived)):
                assert np.sum(times <= now["time_ns"] - 1) <= count <= np.sum(times <= now["time_ns"] + 1)
        assert page.complaints == []


@in_browser
def test_stepping_goes_from_message_to_message_and_back(browser, exported):
    begins = np.sort(exported.found["send_begins"] - exported.epoch)
    with opened(browser, exported.url) as page:
        paused(page)
        page.get_by_role("slider").fill("0")
        seen = []
        for _ in range(4):
            page.get_by_role("button", name="Next message").click()
            seen.append(state(page)["selected"]["sent_ns"])
        page.get_by_role("button", name="One message back").click()
        seen.append(state(page)["selected"]["sent_ns"])
        first = int(np.searchsorted(begins, seen[0] - 1))
        assert first <= 1 and np.allclose(seen, begins[[first, first + 1, first + 2, first + 3, first + 2]], atol=1)
        assert "bytes, “x" in page.locator(".note").inner_text()


@in_browser
def test_the_speed_is_said_in_words_and_messages_too_short_to_see_are_said_to_be_stretched(browser, crowded):
    with opened(browser, crowded.as_uri()) as page:
        paused(page)
        page.get_by_role("combobox").select_option("2000")
        assert state(page)["speed"] == 2000
        assert "2,000× slower" in page.locator(".note").inner_text()
        page.get_by_role("combobox").select_option("1")
        assert "real time" in page.locator(".note").inner_text() and "shown" in page.locator(".note").inner_text()


@in_browser
def test_the_keyboard_reaches_every_control(browser, exported):
    with opened(browser, exported.url) as page:
        paused(page)
        page.get_by_role("button", name="Play").focus()
        names = []
        for _ in range(5):
            names.append(page.evaluate("document.activeElement.ariaLabel"))
            page.keyboard.press("Tab")
        assert names == ["Play", "One message back", "Next message", "Time in the recording", "Speed of the replay"]


@in_browser
def test_the_end_shows_the_totals_and_how_the_processes_ended(browser, exported):
    with opened(browser, exported.url) as page:
        paused(page)
        page.get_by_role("slider").fill("10000")
        now = state(page)
        assert [(c["sent"], c["received"], c["inside"]) for c in now["channels"]] == [(N, N, 0)] * 2
        assert {p["state"] for p in now["processes"]} == {"ended"} and len(now["processes"]) == 4
        page.get_by_role("button", name="Next message").click()  # nothing beyond the last one
        assert f"{N} messages sent, {N} received" in page.get_by_role("status").inner_text()


@in_browser
def test_paper_shows_how_it_ended(browser, exported):
    with opened(browser, exported.url) as page:
        until(page, lambda s: s["playing"] and s["dots"] > 0, "played")
        page.emulate_media(media="print")
        now = until(page, lambda s: not s["playing"], "stopped for paper")
        assert now["share"] == 1 and [(c["sent"], c["received"]) for c in now["channels"]] == [(N, N)] * 2
        assert {p["state"] for p in now["processes"]} == {"ended"}
        assert page.locator(".note").inner_text().startswith("The end of a recording of")


@in_browser
def test_a_reader_who_wants_no_motion_gets_none(browser, exported):
    with opened(browser, exported.url, reduced_motion="reduce") as page:
        now = until(page, lambda s: s["mode"] == "replay", "loaded its recording")
        assert not now["playing"]


@in_browser
@pytest.mark.parametrize("width", [280, 700, 1280, 1600])
def test_nothing_sticks_out_of_the_view(browser, exported, width):
    with opened(browser, exported.url, viewport={"width": width + 48, "height": 900}) as page:
        paused(page)
        outside = page.evaluate("""() => {
            const box = document.querySelector(".labkit-flow").getBoundingClientRect();
            return [...document.querySelectorAll(".labkit-flow :is(button, select, input, .clock, .note, canvas)")]
                .filter((e) => e.getClientRects().length)
                .map((e) => [e.className || e.tagName, e.getBoundingClientRect()])
                .filter(([, r]) => r.left < box.left - 1 || r.right > box.right + 1).map(([name]) => name);
        }""")
        assert outside == []


@in_browser
@pytest.mark.parametrize("width", [900, 1280])
def test_a_line_of_four_processes_is_seen_whole(browser, tmp_path, width):
    trace = Trace()

    def first(tx):
        tx.send(b"go")

    def between(rx, tx):
        for message in rx:
            tx.send(message)

    ends = [channel("pipe", trace=trace) for _ in range(3)]
    jobs = [launch(list, ends[2][1]), launch(between, ends[1][1], ends[2][0])]
    jobs += [launch(between, ends[0][1], ends[1][0]), launch(first, ends[0][0])]
    for job in jobs:
        job.wait(60)
    trace.close()
    with opened(
        browser, report(trace, tmp_path / "line.html").as_uri(), viewport={"width": width, "height": 900}
    ) as page:
        paused(page)
        stage = page.locator(".labkit-flow .stage")
        assert stage.evaluate("stage => stage.scrollWidth - stage.clientWidth") == 0


@in_browser
def test_a_report_written_while_processes_still_ran_is_replayed(browser, tmp_path):
    with Trace() as trace:
        (tx, rx), (end, begun) = channel("pipe", trace=trace), channel("pipe", trace=trace)

        def reader(rx, until):
            rx.receive()
            with contextlib.suppress(EOFError):
                until.receive(60)

        job = launch(reader, rx, begun)
        tx.send(b"it runs")
        url = report(trace, tmp_path / "run.html").as_uri()
        assert job.alive
        end.close()
        job.wait(60)
    with opened(browser, url) as page:
        until(page, lambda s: s["mode"] == "replay", "took its recording for the whole")


@in_browser
def test_the_view_follows_the_page_from_light_to_dark(browser, exported):
    with opened(browser, exported.url, color_scheme="light") as page:
        paused(page)
        light = picture(page)
        page.emulate_media(color_scheme="dark")
        assert moves(page, picture, light)


@pytest.fixture(scope="module")
def crowded(browser, tmp_path_factory):
    """The report of a trace with 100,000 messages and a label that would be markup if it were taken for HTML."""
    trace = MadeUp(100_000)
    trace.channels[0].label = "<img src=x onerror=alert(1)>"
    trace.processes[1000].name = "<script>alert(2)</script>"
    return report(trace, tmp_path_factory.mktemp("views") / "crowded.html")


@in_browser
def test_many_messages_are_thinned_and_counted_exactly(browser, crowded):
    with opened(browser, crowded.as_uri()) as page:
        most = until(page, lambda s: s["playing"] and s["dots"] > 20, "drew dots")["dots"]
        most = max(most, *(state(page)["dots"] for _ in range(10) if not page.wait_for_timeout(100)))
        now = paused(page)
        assert now["messages"] == 100_000 and 20 < most <= 330 and min(now["density"]) > 1
        page.get_by_role("slider").fill("10000")
        assert [c["received"] for c in state(page)["channels"]] == [25_000] * 4
    assert crowded.stat().st_size <= 5_000_000


@in_browser
@pytest.mark.parametrize(("view", "most"), [(Flow, 800 * 256), (Sequence, 60_000)])
def test_a_page_keeps_so_many_messages_however_long_it_streams(browser, tmp_path, view, most):
    with opened(browser, streaming.page_to_feed(tmp_path, view)) as page:
        assert streaming.feed(page, 0, 60, 1000) == min(60_000, most)  # fewer than fit are all kept
        assert most / 2 <= streaming.feed(page, 60, 260, 1000) <= most
        assert page.complaints == []


@in_browser
@pytest.mark.parametrize("view", [Flow, Sequence, Dashboard])
def test_news_that_comes_while_a_recording_is_unpacked_is_not_lost(browser, tmp_path, view):
    packed = base64.b64encode(recording.record(MadeUp(4_000, channels=1))).decode()
    both = f"""([packed, ...news]) => {{
        labkitFed.record(Uint8Array.from(atob(packed), (c) => c.charCodeAt(0)));
        return ({streaming.FEED})(...news);
    }}"""
    with opened(browser, streaming.page_to_feed(tmp_path, view)) as page:
        streaming.feed(page, 0, 3)
        page.evaluate(both, [packed, [3, 5, 60]])
        until(page, lambda s: s["messages"] == 4_000 + 2 * 60, "has both")
        assert page.complaints == []


@in_browser
def test_text_is_never_taken_for_markup(browser, crowded):
    with opened(browser, crowded.as_uri()) as page:
        paused(page)
        assert page.locator(".labkit-flow img, .labkit-flow script, table img").count() == 0
        assert page.complaints == []


# ------------------------------------------------------------------------------------------- live, in JupyterLab

FIRST_CELL = """
import time
from labkit import Trace, channel, launch, watch
trace = Trace()
tx, rx = channel("pipe", trace=trace)
watch(trace)
watch(trace)
"""
SECOND_CELL = """
def consumer(rx):
    return sum(1 for _ in rx)

def producer(tx):
    import os, time
    while not os.path.exists(STOP):
        tx.send(b"x" * 20)
        time.sleep(0.01)

jobs = launch(consumer, rx), launch(producer, tx)
"""


@in_browser
def test_dots_move_live_in_jupyterlab_and_the_replay_has_every_message(browser, tmp_path: Path):
    new, stop = nbformat.v4, tmp_path / "stop"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new.new_notebook(
        cells=[new.new_code_cell(FIRST_CELL.strip()), new.new_code_cell(f"STOP = {str(stop)!r}" + SECOND_CELL)],
        metadata={"kernelspec": kernel},
    )
    nbformat.write(notebook, tmp_path / "live.ipynb")
    with (
        jupyterlab(tmp_path) as address,
        opened(
            browser, address("lab/tree/live.ipynb"), offline=False, viewport={"width": 1280, "height": 1400}
        ) as page,
    ):
        page.locator(".jp-Notebook .jp-CodeCell").nth(1).wait_for(timeout=60_000)
        page.get_by_text("| Idle").wait_for(timeout=60_000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).first.click()

        until(page, lambda s: s["mode"] == "live" and s["dots"] > 0, "drew a dot live", seconds=90)
        assert moves(page, picture)

        page.get_by_role("button", name="Pause").first.click()  # pausing one view leaves the other alone
        assert rests(page, picture) and state(page, 1)["playing"]

        stop.touch()
        until(page, lambda s: s["mode"] == "replay" and not s["playing"], "came to an end", number=1, seconds=60)
        now = state(page, 1)
        assert now["messages"] == now["channels"][0]["sent"] == now["channels"][0]["received"] > 50
        assert {p["state"] for p in now["processes"]} == {"ended"}
        assert page.complaints == []
