"""Services hand records on, and lose none and count none twice, whoever is killed at whatever moment."""

import os
import random
import signal
import stat
import time
from functools import partial

import pytest

from labkit import KINDS, RemoteError, Trace, channel, facts
from labkit.services import supervise

RELIABLE = [kind for kind in KINDS if facts()[kind].reliable and facts()[kind].ordered]
KILLS = -(-100 // len(RELIABLE))  # so many a kind: 100 in all, at least
RECORDS = 2000


def ingest():
    for number in range(RECORDS):
        yield {"number": number, "value": number * 37 % 101}


def clean(state, record):
    if record and record["value"] != 13:
        yield record


def aggregate(state, record):
    """One record a hundred numbers: how many there were, and their sum."""
    if state and (record is None or record["number"] // 100 != state["hundred"]):
        yield dict(state)
        state.clear()
    if record:
        state["hundred"] = record["number"] // 100
        state["count"] = state.get("count", 0) + 1
        state["sum"] = state.get("sum", 0) + record["value"]


def alert(state, row):
    if row:
        state["so far"] = state.get("so far", 0) + row["count"]
        yield row | {"so far": state["so far"]}


SERVICES = [ingest, clean, aggregate, alert]


def expected(source, *services):
    """The same in one process, without anything that could be lost."""
    records = list(source())
    for service in services:
        state, yielded = {}, []
        for record in [*records, None]:
            yielded += service(state, record)
        records = yielded
    return records


EXPECTED = expected(*SERVICES)


def until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def wait_for_progress(pipeline):
    before = pipeline.handled()
    while pipeline.handled() == before and any(job.alive for job in pipeline.jobs.values()):
        time.sleep(0.002)


@pytest.mark.parametrize("kind", RELIABLE)
def test_nothing_is_lost_and_nothing_counts_twice_when_services_are_killed_at_random_moments(kind, tmp_path):
    chance, restarts, runs = random.Random(), 0, 0
    while restarts < KILLS:
        runs += 1
        with supervise(SERVICES, partial(channel, kind), tmp_path / str(runs)) as pipeline:
            while len(pipeline.restarts) < KILLS and any(job.alive for job in pipeline.jobs.values()):
                victim = chance.choice(pipeline.names)
                if chance.random() < 0.7:  # in the middle of its work; else as it comes, also while it starts
                    wait_for_progress(pipeline)
                time.sleep(chance.random() * 0.03)
                pipeline.jobs[victim].kill()
            assert pipeline.wait() == EXPECTED
        restarts += len(pipeline.restarts)


def test_all_may_be_killed_at_once(tmp_path):
    with supervise(SERVICES, partial(channel, "unix_seqpacket"), tmp_path) as pipeline:
        for _ in range(3):
            time.sleep(0.05)
            for job in list(pipeline.jobs.values()):
                job.kill()
        assert pipeline.wait() == EXPECTED


def test_a_service_that_is_killed_when_those_behind_it_have_finished_has_nothing_left_to_do(tmp_path):
    def last(state, record):
        yield from [record] if record else []

    def slow_to_end(state, record):
        yield from [record] if record else []

    with supervise([ingest, slow_to_end, last], partial(channel, "pipe"), tmp_path) as pipeline:
        until(lambda: pipeline.jobs["last"].exitcode == 0)
        pipeline.jobs["slow_to_end"].kill()
        assert len(pipeline.wait()) == RECORDS


def test_the_neighbours_of_a_killed_service_keep_running(tmp_path):
    with supervise(SERVICES, partial(channel, "posix_mq"), tmp_path) as pipeline:
        pids = {name: job.pid for name, job in pipeline.jobs.items()}
        pipeline.jobs["clean"].kill()
        assert pipeline.wait() == EXPECTED
        assert [name for _, name in pipeline.restarts] == ["clean"]
        assert {name for name, job in pipeline.jobs.items() if job.pid != pids[name]} == {"clean"}


def test_what_comes_again_is_received_again_and_not_counted_again(tmp_path):
    """At least once, seen in the trace; effectively once, seen in the results."""

    def tired(state, record):
        state["seen"] = state.get("seen", 0) + 1
        if state["seen"] == 100 and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)  # with the record in its hands
        yield from [record] if record else [{"seen": state["seen"]}]

    with Trace() as trace, supervise([ingest, tired], partial(channel, "pipe", trace=trace), tmp_path / "db") as line:
        *records, seen = line.wait()
        received = trace.messages()["receive_ends"].astype(bool).sum()
    assert records == list(ingest())
    assert seen == {"seen": RECORDS + 1}
    assert received > RECORDS + 1


def test_a_slow_service_holds_up_those_before_it_and_nobody_s_outbox_grows(tmp_path):
    def slow(state, record):
        while not (tmp_path / "go").exists():
            time.sleep(0.01)
        return ()

    connect = partial(channel, "posix_mq", max_messages=4)
    with supervise([ingest, clean, slow], connect, tmp_path / "db") as pipeline:
        until(lambda: len(pipeline.results("clean")) >= 5)
        time.sleep(0.2)
        assert len(pipeline.results("clean")) <= 8  # four in the queue, one in each hand, and what is not told yet
        assert len(pipeline.results("ingest")) <= 8
        (tmp_path / "go").touch()
        assert pipeline.wait() == []


def test_a_pipeline_goes_on_where_an_earlier_one_was(tmp_path):
    connect = partial(channel, "unix_stream")
    with supervise(SERVICES, connect, tmp_path) as first:
        until(lambda: len(first.results()) > 3)
    assert len(first.results()) < len(EXPECTED) or not first.restarts
    with supervise(SERVICES, connect, tmp_path) as second:
        assert second.wait() == EXPECTED
    with supervise(SERVICES, connect, tmp_path) as third:
        assert third.wait() == EXPECTED


def test_an_exception_in_a_service_ends_all_and_is_raised(tmp_path):
    def wrong(state, record):
        if record["number"] == 300:
            raise ZeroDivisionError("no such number")
        yield record

    with (
        supervise([ingest, wrong], partial(channel, "pipe"), tmp_path) as pipeline,
        pytest.raises(RemoteError, match="wrong .*raised(?s:.)*ZeroDivisionError: no such number"),
    ):
        pipeline.wait()
    assert not any(job.alive for job in pipeline.jobs.values())
    assert pipeline.restarts == []


def test_what_is_not_json_is_refused_with_the_name_of_the_service(tmp_path):
    def sets(state, record):
        yield {1, 2}

    with (
        supervise([ingest, sets], partial(channel, "pipe"), tmp_path) as pipeline,
        pytest.raises(RemoteError, match="sets .*raised(?s:.)*not JSON serializable"),
    ):
        pipeline.wait()


def yields_none(state, record):
    yield None if record and record["number"] == 3 else record


def returns_a_record(state, record):
    return {"number": 1}


def leaves(state, record):
    raise SystemExit(0)


def leaves_at_once(state, record):
    os._exit(0)


def counts_by_numbers(state, record):
    """After a restart the keys are text, and counting begins anew beside them."""
    parity = record["number"] % 2
    state[parity] = state.get(parity, 0) + 1
    return ()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (yields_none, "yielded None, which would say that no more records come"),
        (returns_a_record, "returned a dict, and not records"),
        (leaves, r"leaves \(pid \d+\) called sys.exit\(\) before it had handled everything"),
        (leaves_at_once, "ended without a result: exited 0"),
        (counts_by_numbers, "after a restart the state would be another"),
    ],
)
def test_a_service_that_would_lose_records_or_counts_is_an_error(wrong, says, tmp_path):
    """Whoever is behind it would finish, with less than everything."""
    with (
        supervise([ingest, wrong, clean], partial(channel, "pipe"), tmp_path) as pipeline,
        pytest.raises(RemoteError, match=says),
    ):
        pipeline.wait()


def test_a_state_may_hold_what_is_no_number(tmp_path):
    def keeps_nan(state, record):
        state["worst"] = [float("nan"), None, 1.5]
        return ()

    with supervise([ingest, keeps_nan], partial(channel, "pipe"), tmp_path) as pipeline:
        assert pipeline.wait() == []


def test_two_pipelines_do_not_work_in_one_folder(tmp_path):
    def stuck(state, record):
        time.sleep(60)

    connect = partial(channel, "pipe")
    with (
        supervise([ingest, stuck], connect, tmp_path),
        pytest.raises(OSError, match=r"another pipeline works in this folder: close\(\) that first"),
    ):
        supervise([ingest, stuck], connect, tmp_path)
    with supervise([ingest, clean], connect, tmp_path) as next_one:
        assert len(next_one.wait()) < RECORDS


def test_a_service_that_is_not_there_is_named_with_those_that_are(tmp_path):
    with supervise([ingest, clean], partial(channel, "pipe"), tmp_path) as pipeline:
        with pytest.raises(ValueError, match="no service called 'cleam'; there are: ingest, clean"):
            pipeline.results("cleam")
        pipeline.wait()
    assert not (tmp_path / "cleam.sqlite").exists()


def test_a_channel_that_loses_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a udp may lose"):
        supervise(SERVICES, partial(channel, "udp"), tmp_path)


def test_services_have_names_of_their_own(tmp_path):
    for services in ([ingest], [ingest, clean, clean], [ingest, partial(clean)]):
        with pytest.raises(ValueError, match="two or more functions with different names"):
            supervise(services, partial(channel, "pipe"), tmp_path)


def test_the_databases_are_for_this_user_only(tmp_path):
    with supervise([ingest, clean], partial(channel, "pipe"), tmp_path / "new") as pipeline:
        pipeline.wait()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_who_closes_it_early_is_told_so_by_wait(tmp_path):
    def stuck(state, record):
        time.sleep(60)
        return ()

    pipeline = supervise([ingest, stuck], partial(channel, "pipe"), tmp_path)
    with pytest.raises(TimeoutError, match="still work after 0.05 s"):
        pipeline.wait(0.05)
    pipeline.close()
    assert "killed by SIGKILL" in repr(pipeline)
    with pytest.raises(ValueError, match="ended by close"):
        pipeline.wait()
