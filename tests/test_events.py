"""Events add up to messages, messages to latency and throughput."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.events import EVENT, MESSAGE, Action, in_words, messages
from labkit.stats import Comparison, Latency, Throughput, amount, duration, plot_latencies, plot_throughputs

FIRST = 1 << 40


def events(*rows) -> np.ndarray:
    """Rows of (time, action, message, endpoint); 10 bytes, channel 3, and the endpoint's number + 100 as pid."""
    made = np.zeros(len(rows), EVENT)
    for event, (time, action, message, endpoint) in zip(made, rows, strict=True):
        event["time_ns"], event["action"], event["message"] = time, action, message
        event["size"], event["pid"], event["channel"], event["endpoint"] = 10, endpoint + 100, 3, endpoint
    return made


ONE = (
    (5, Action.RECEIVE_BEGINS, 0, 1),
    (10, Action.SEND_BEGINS, FIRST, 0),
    (12, Action.SEND_ENDS, FIRST, 0),
    (20, Action.RECEIVE_ENDS, FIRST, 1),
)


def test_four_events_are_one_message():
    (row,) = messages(events(*ONE))
    assert row["message"] == FIRST
    assert (row["channel"], row["sender"], row["receiver"], row["size"]) == (3, 100, 101, 10)
    assert (row["receive_begins"], row["send_begins"], row["send_ends"], row["receive_ends"]) == (5, 10, 12, 20)
    assert not row["dropped"]


BEGINNINGS = [
    (b"hello", 5, "“hello”"),
    (b"sixteen bytes...", 16, "“sixteen bytes...”"),
    (b"sixteen bytes...", 17, "“sixteen bytes...…”"),
    (b"two\r\nlines\t", 11, "“two␍↵lines⇥”"),
    ("fünfzehn Byte..é".encode()[:16], 17, "“fünfzehn Byte..…”"),  # half a letter is not told
    (b"half \xc3", 6, "68 61 6c 66 20 c3"),  # nor does a whole message end in one
    ("管道 🎉".encode(), 11, "“管道 🎉”"),
    ("👩\u200d🚀".encode(), 11, "“👩\u200d🚀”"),
    (b"\0\x01\xff", 3, "00 01 ff"),
    (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", 900, "89 50 4e 47 0d 0a 1a 0a 00 00 00 0d 49 48 44 52 …"),
    ("\u202eright to left".encode()[:16], 30, "e2 80 ae 72 69 67 68 74 20 74 6f 20 6c 65 66 74 …"),
    (b"<img src=x onerr", 40, "“<img src=x onerr…”"),
]


@pytest.mark.parametrize(("begins", "size", "words"), BEGINNINGS)
def test_how_a_message_begins_is_text_or_bytes(begins, size, words):
    assert in_words(begins, size) == words


def test_no_events_are_no_messages():
    assert len(messages(np.empty(0, EVENT))) == 0
    assert messages(np.empty(0, EVENT)).dtype == MESSAGE


@given(st.permutations(ONE))
def test_the_order_of_events_does_not_matter(rows):
    assert messages(events(*rows)) == messages(events(*ONE))


def test_a_message_that_nobody_received_has_zeros():
    (row,) = messages(events(*ONE[1:3]))
    assert (row["receive_ends"], row["receiver"], row["receive_begins"]) == (0, 0, 0)


def test_a_send_that_has_not_ended_has_a_zero():
    (row,) = messages(events(ONE[1]))
    assert row["send_ends"] == 0


def test_a_message_whose_send_was_lost_is_left_out():
    assert len(messages(events(ONE[0], ONE[3]))) == 0
    two = (*ONE, (30, Action.RECEIVE_ENDS, FIRST + 99, 1), (31, Action.SEND_ENDS, FIRST - 1, 0))
    assert list(messages(events(*two))["message"]) == [FIRST]


def test_a_receive_whose_begin_was_lost_has_a_zero():
    (row,) = messages(events(*ONE[1:]))
    assert (row["receive_begins"], row["receive_ends"]) == (0, 20)
    other = (2, Action.RECEIVE_BEGINS, 0, 2)  # of another endpoint
    (row,) = messages(events(other, *ONE[1:]))
    assert row["receive_begins"] == 0


def test_a_receive_that_gave_up_does_not_begin_the_next_message():
    (row,) = messages(events((1, Action.RECEIVE_BEGINS, 0, 1), (2, Action.GAVE_UP, 0, 1), *ONE))
    assert row["receive_begins"] == 5
    (row,) = messages(events((1, Action.RECEIVE_BEGINS, 0, 1), (2, Action.GAVE_UP, 0, 1), *ONE[1:]))
    assert row["receive_begins"] == 0


def test_a_dropped_message_is_marked_unless_it_came_through_all_the_same():
    dropped = (11, Action.DROPPED, FIRST, 0)
    assert messages(events(ONE[1], dropped))["dropped"].all()
    assert not messages(events(*ONE, dropped))["dropped"].any()


def test_a_duplicated_message_counts_once():
    assert len(messages(events(*ONE, *ONE))) == 1


@settings(deadline=None)
@given(
    order=st.permutations(range(20)),
    gap=st.integers(1, 1000),
)
def test_reordered_messages_find_each_other(order, gap):
    rows = [(n * gap, Action.SEND_BEGINS, FIRST + n, 0) for n in range(20)]
    rows += [(10_000_000 + n, Action.RECEIVE_ENDS, FIRST + which, 1) for n, which in enumerate(order)]
    found = messages(events(*rows))
    assert list(found["message"] - FIRST) == list(range(20))
    assert list(found["receive_ends"] - 10_000_000) == [order.index(n) for n in range(20)]


def some_messages(latencies, size=100, dropped=0, lost=0) -> np.ndarray:
    rows = np.zeros(len(latencies) + dropped + lost, MESSAGE)
    rows["send_begins"] = 1000 * (1 + np.arange(len(rows)))
    rows["size"] = size
    for row, latency in zip(rows, latencies, strict=False):
        row["receive_ends"] = row["send_begins"] + latency
    rows["send_ends"] = rows["send_begins"] + 1
    rows["dropped"][len(latencies) : len(latencies) + dropped] = True
    rows["send_ends"][rows["dropped"]] = 0
    return rows


def test_latency_counts_what_was_received_and_what_was_lost():
    latency = Latency.of(some_messages(range(1, 101), dropped=2, lost=3), "pipe")
    assert (latency.n, latency.lost, latency.longest) == (100, 3, 100)
    assert latency.p50 == pytest.approx(50.5)
    assert latency.p99 == pytest.approx(99, abs=0.1)
    assert list(latency.samples) == list(range(1, 101))
    assert repr(latency) == "Latency('pipe', n=100, p50=50.5 ns, p90=90.1 ns, p99=99 ns, longest=100 ns, lost=3)"


def test_throughput_is_measured_from_the_first_send_to_the_last_receive():
    throughput = Throughput.of(some_messages([500] * 11, size=1000), "pipe")
    assert (throughput.messages, throughput.bytes) == (11, 11_000)
    assert throughput.seconds == pytest.approx(10_500e-9)
    assert throughput.messages_per_second == pytest.approx(11 / 10_500e-9)
    assert throughput.bytes_per_second == pytest.approx(11_000 / 10_500e-9)
    assert repr(throughput).startswith("Throughput('pipe', 1.05 M messages/s, 1.05 GB/s, 11 messages in 10.5 µs")


def test_nothing_received_is_no_error():
    empty = np.zeros(0, MESSAGE)
    for rows in (empty, some_messages([], dropped=2, lost=1)):
        latency, throughput = Latency.of(rows), Throughput.of(rows)
        assert np.isnan(latency.p50)
        assert latency.n == throughput.messages == 0
        assert throughput.messages_per_second == throughput.bytes_per_second == 0
        assert "p50=–" in repr(latency)
        assert "0 messages" in repr(throughput)
        assert latency.plot()._repr_svg_().startswith("<svg")
        assert throughput.plot()._repr_svg_().startswith("<svg")


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0 ns"),
        (1, "1 ns"),
        (999, "999 ns"),
        (999.6, "1 µs"),
        (1500, "1.5 µs"),
        (12.3e6, "12.3 ms"),
        (999_600_000, "1 s"),
        (4e9, "4 s"),
        (7.2e12, "7,200 s"),
    ],
)
def test_durations_are_said_as_people_say_them(ns, text):
    assert duration(ns) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (12, "12"), (1200, "1.2 k"), (3.4e6, "3.4 M"), (999_900, "1 M"), (5e12, "5,000 G")]
)
def test_amounts_are_said_as_people_say_them(number, text):
    assert amount(number) == text


def test_plots_show_every_channel_and_use_no_global_state():
    import sys

    several = [Latency.of(some_messages(range(1, 50)), label) for label in ("pipe", "posix_mq")]
    svg = plot_latencies(several)._repr_svg_()
    assert svg.startswith("<svg")
    assert "half within" in plot_latencies(several).axes.get_legend().get_texts()[1].get_text()
    bars = plot_throughputs([Throughput.of(some_messages([5] * 9), label) for label in ("a", "b", "c")])
    assert [tick.get_text() for tick in bars.axes.get_yticklabels()] == ["a", "b", "c"]
    assert "matplotlib.pyplot" not in sys.modules


def test_a_comparison_is_a_table_and_two_plots():
    comparison = Comparison.of(
        [("pipe", some_messages([5] * 9)), ("<ring>", some_messages([])), ("mq", some_messages([7]))]
    )
    assert [row["channel"] for row in comparison.rows()] == ["pipe", "<ring>", "mq"]
    lines = repr(comparison).splitlines()
    assert len(lines) == 4
    assert len({line.index("half") if "half" in line else None for line in lines}) == 2
    html = comparison._repr_html_()
    assert "<svg" in html and "<table" in html
    assert "&lt;ring&gt;" in html


def test_a_hundred_thousand_messages_are_matched_at_once():
    count = 100_000
    rows = np.zeros(2 * count, EVENT)
    rows["time_ns"] = np.arange(2 * count)
    rows["message"] = FIRST + np.arange(2 * count) // 2
    rows["action"] = np.tile([Action.SEND_BEGINS, Action.RECEIVE_ENDS], count)
    found = messages(rows)
    assert len(found) == count
    assert (found["receive_ends"] - found["send_begins"] == 1).all()
