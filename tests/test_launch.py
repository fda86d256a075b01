"""launch: what travels to a child, what comes back, and that no child outlives anything."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
from pathlib import Path

import pytest
import roles

from labkit import KINDS, RemoteError, channel, jobs, launch, stop_all
from labkit.channels import notes
from labkit.launch import _jobs

pytestmark = pytest.mark.every_python

ROOT = Path(__file__).parents[1]

FOR_EVER = {
    "sleeping": lambda: time.sleep(600),
    "in Python": lambda: [None for _ in iter(int, 1)],
    "in C, holding the GIL": lambda: sum(range(10**13)),
    "in a regular expression": lambda: __import__("re").match(r"(a+)+$", "a" * 64 + "b"),
}


def script(text: str, tmp_path: Path, **options) -> subprocess.Popen[str]:
    """A program of its own, started."""
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(text))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def notebook(code: str) -> dict:
    """The names that a cell defines, as a notebook has them: in a module called __main__ that nobody can import."""
    module = types.ModuleType("__main__")
    exec(compile(textwrap.dedent(code), "<cell>", "exec"), module.__dict__)
    return module.__dict__


# --- what travels -------------------------------------------------------------------------------------------


def test_a_job_returns_what_its_function_returns():
    job = launch(lambda a, b: a + b, 1, 2)
    assert job.wait() == 3
    assert job.wait() == 3
    assert (job.exitcode, job.alive, job.status) == (0, False, "exited 0")


@pytest.mark.parametrize(
    "value", [None, 0, "text", b"\0" * 3_000_000, {"a": [1, (2, {3})]}, float("inf"), ValueError("x")]
)
def test_results_come_back_whole(value):
    assert repr(launch(lambda: value).wait()) == repr(value)


def test_a_function_brings_what_its_notebook_has_defined():
    cell = notebook(
        """
        import os
        import collections as c
        import labkit
        STEP = 2
        class Point:
            def __init__(self, x): self.x = x
        def helper(x): return x + STEP
        def f(x): return Point(helper(x)).x, os.getpid(), c.Counter("aa")["a"], labkit.__name__
        """
    )
    moved, pid, counted, name = launch(cell["f"], 40).wait()
    assert (moved, counted, name) == (42, 2, "labkit")
    assert pid != os.getpid()


def test_a_function_among_the_arguments_brings_its_own_too():
    cell = notebook("import math\ndef area(r): return math.pi * r\ndef apply(f, x): return f(x)")
    assert launch(cell["apply"], cell["area"], 2).wait() == pytest.approx(6.28, abs=0.01)


def test_an_object_of_a_notebooks_class_travels_both_ways():
    cell = notebook("class Point:\n    def __init__(self, x): self.x = x\ndef twice(p): return Point(p.x * 2)")
    assert launch(cell["twice"], cell["Point"](4)).wait().x == 8


def test_a_module_beside_the_notebook_is_imported_not_copied():
    assert launch(lambda: roles.__name__).wait() == "roles"


def test_closures_lambdas_builtins_methods_partials_and_callables_can_be_launched():
    factor = 3

    class Scale:
        def __init__(self, by):
            self.by = by

        def times(self, x):
            return self.by * x

        def __call__(self, x):
            return self.by * x

    for f in (lambda x: factor * x, Scale(3).times, Scale(3), functools.partial(lambda a, b: a * b, 3)):
        assert launch(f, 5).wait() == 15
    assert launch(len, "abc").wait() == 3
    assert launch(os.getpid).wait() != os.getpid()
    assert launch("abc".upper).wait() == "ABC"


def test_a_job_is_called_after_its_function_unless_told_otherwise():
    def worker():
        pass

    one, two, three = launch(worker), launch(worker, name="Alice"), launch(functools.partial(worker))
    assert [job.name for job in (one, two, three)] == ["worker", "Alice", "partial"]
    for job in (one, two, three):
        job.wait()
    assert repr(two) == f"<job Alice, pid {two.pid}, exited 0>"


# --- ends given away ----------------------------------------------------------------------------------------


def test_ends_are_given_away_also_inside_lists_tuples_and_dictionaries():
    pairs = [channel("pipe") for _ in range(4)]
    senders = [tx for tx, _ in pairs]

    def send(alone, listed, named):
        for tx in (alone, *listed, named["in"][0]):
            tx.send(b"x")

    job = launch(send, senders[0], [senders[1], senders[2]], {"in": (senders[3],)})
    assert all(tx.closed for tx in senders)
    assert [list(rx) for _, rx in pairs] == [[b"x"]] * 4  # end of file arrives by itself
    job.wait()


def test_a_clone_stays_here():
    tx, rx = channel("pipe")
    job = launch(roles.send_all, tx.clone(), [b"there"])
    job.wait()
    tx.send(b"here")
    assert rx.receive() == b"there"
    assert rx.receive() == b"here"
    tx.close()
    rx.close()


def test_an_end_handed_over_twice_is_one_end():
    tx, rx = channel("pipe")
    assert launch(lambda a, b: a is b, tx, tx).wait()
    assert list(rx) == []


@pytest.mark.parametrize("function", [42, None, "f", roles.sizes(1, 1)])
def test_what_is_no_function_is_refused(function):
    with pytest.raises(TypeError, match=r"launch\(f, x\)"):
        launch(function)


def test_what_cannot_be_sent_is_named_and_the_ends_stay_usable():
    tx, rx = channel("pipe")
    stays = (number for number in range(3))

    def uses():
        return stays

    with pytest.raises(TypeError, match="uses cannot be sent.*'stays', a generator"):
        launch(uses)
    with pytest.raises(TypeError, match="'tx'.*hand it over as an argument"):
        launch(lambda: tx.send(b"x"))
    with pytest.raises(TypeError, match="argument 2 of hold, a generator, cannot be sent"):
        launch(roles.hold, tx, stays, rx)
    tx.send(b"fine")
    assert rx.receive() == b"fine"
    tx.close()
    rx.close()


def test_a_variable_that_is_not_assigned_yet_hides_no_culprit():
    def make():
        stays = (number for number in range(3))

        def f():
            return stays, later

        with pytest.raises(TypeError, match="'stays'"):
            launch(f)
        later = 1
        return later

    make()


def test_a_result_that_cannot_be_sent_is_a_remote_error():
    with pytest.raises(RemoteError, match="the result, a generator, cannot be sent back"):
        launch(lambda: (n for n in range(3))).wait()


def test_an_argument_that_cannot_be_unpacked_there_is_a_remote_error():
    class Bad:
        def __reduce__(self):
            return int, ("not a number",)

    with pytest.raises(RemoteError, match="ValueError.*not a number"):
        launch(roles.hold, Bad()).wait()


def test_more_descriptors_than_a_message_carries_are_refused():
    ends = [end for _ in range(130) for end in channel("pipe")]
    with pytest.raises(ValueError, match="too many fds"):
        launch(roles.hold, ends)
    for end in ends:
        end.close()


# --- how it ends --------------------------------------------------------------------------------------------


def test_an_exception_comes_back_with_a_traceback_that_begins_in_the_readers_code():
    cell = notebook("def inner(): raise KeyError('lost')\ndef outer(): inner()")
    job = launch(cell["outer"])
    with pytest.raises(RemoteError, match="outer .* raised") as caught:
        job.wait()
    error = caught.value
    assert error.exitcode == job.exitcode == 1
    lines = error.traceback.splitlines()
    assert lines[0].startswith("Traceback")
    assert "<cell>" in lines[1] and "outer" in lines[1]
    assert lines[-1] == "KeyError: 'lost'"


@pytest.mark.parametrize(("status", "code"), [(3, 3), ("words", 1), (255, 255)])
def test_sys_exit_is_an_error_with_its_status(status, code, capfd):
    with pytest.raises(RemoteError, match="SystemExit") as caught:
        launch(sys.exit, status).wait()
    assert caught.value.exitcode == code


@pytest.mark.parametrize("status", [None, 0])
def test_sys_exit_with_success_is_success(status):
    job = launch(sys.exit, status)
    assert job.wait() is None
    assert job.exitcode == 0


def test_a_process_that_ends_without_a_word_is_an_error():
    with pytest.raises(RemoteError, match="ended without a result: exited 7") as caught:
        launch(os._exit, 7).wait()
    assert caught.value.exitcode == 7


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGSEGV"])
def test_a_killed_process_is_an_error_that_names_the_signal(name):
    job = launch(roles.hold)
    job.kill(signal.Signals[name])
    with pytest.raises(RemoteError, match=f"killed by {name}") as caught:
        job.wait()
    assert caught.value.exitcode == -signal.Signals[name]
    assert caught.value.traceback is None
    job.kill()  # nothing happens


def test_a_process_killed_by_a_signal_without_a_name_is_an_error_too():
    job = launch(roles.hold)
    job.kill(signal.SIGRTMIN + 3)
    with pytest.raises(RemoteError, match=f"killed by signal {signal.SIGRTMIN + 3}"):
        job.wait()


def test_a_process_killed_while_it_reports_is_an_error():
    def slow():
        class Big:
            def __reduce__(self):
                os.kill(os.getpid(), signal.SIGKILL)

        return Big()

    with pytest.raises(RemoteError, match="SIGKILL"):
        launch(slow).wait()


def test_a_process_that_hangs_is_said_to_hang():
    job = launch(roles.hold)
    with pytest.raises(TimeoutError, match=r"hold \(pid \d+\) still runs after 0.05 s.*kill\(\)"):
        job.wait(0.05)
    assert job.alive
    assert job.exitcode is None
    for nonsense in (-1, float("nan")):
        with pytest.raises(ValueError, match="timeout must be at least 0"):
            job.wait(nonsense)
    job.kill()


@pytest.mark.parametrize("timeout", [None, 1e12, float("inf")])
def test_one_may_wait_for_a_job_as_long_as_one_likes(timeout):
    assert launch(sum, [1, 2]).wait(timeout) == 3


def test_a_job_ends_although_a_process_that_it_forked_lives_on():
    def fork():
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
        return pid

    grandchild = launch(fork).wait(60)
    os.kill(grandchild, signal.SIGKILL)


# --- several at once ----------------------------------------------------------------------------------------


def test_many_jobs_at_once_each_give_their_own_result_and_status():
    running = [launch(lambda n: n * n, n) for n in range(25)]
    assert [job.wait() for job in running] == [n * n for n in range(25)]


def test_exit_statuses_are_right_when_threads_start_and_end_jobs_at_the_same_time():
    found, done = [], []

    def work(n):
        for _ in range(12):
            job = launch(os._exit, n)
            with pytest.raises(RemoteError):
                job.wait()
            found.append((job.exitcode, n))
        done.append(n)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(1, 6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(done) == [1, 2, 3, 4, 5]
    assert all(code == expected for code, expected in found)


def test_jobs_lists_those_that_run():
    assert jobs() == []
    one, two = launch(roles.hold), launch(roles.hold)
    assert {job.pid for job in jobs()} == {one.pid, two.pid}
    one.kill()
    with pytest.raises(RemoteError):
        one.wait()
    assert [job.pid for job in jobs()] == [two.pid]
    stop_all()
    assert jobs() == [] and not _jobs


def test_stop_all_ends_also_those_that_ignore_the_interrupt():
    def deaf(ready):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        ready.send(b"deaf")
        time.sleep(600)

    tx, rx = channel("unix_seqpacket")
    running = [launch(deaf, tx.clone()) for _ in range(3)]
    for _ in running:
        rx.receive()
    stop_all(grace=0.3)
    assert [job.status for job in running] == ["killed by SIGKILL"] * 3
    tx.close()
    rx.close()


def test_a_job_can_be_awaited_and_gathered():
    async def main():
        slow, quick = launch(lambda: time.sleep(0.2) or "slow"), launch(lambda: "quick")
        assert await asyncio.gather(slow, quick) == ["slow", "quick"]
        assert await slow == "slow"  # again
        with pytest.raises(RemoteError, match="ZeroDivisionError"):
            await launch(lambda: 1 / 0)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(waiting := asyncio.ensure_future(_wait(launch(roles.hold))), 0.05)
        assert waiting.cancelled()

    async def _wait(job):
        return await job

    asyncio.run(main())
    stop_all()


def test_observers_are_called_once_and_before_wait_returns():
    seen = []
    for _ in range(20):
        job = launch(int)
        job.when_ended(lambda job: seen.append(job.status))
        job.wait()
        job.when_ended(lambda job: seen.append(job.status))
    assert seen == ["exited 0"] * 40


def test_an_observer_that_fails_harms_nobody():
    job = launch(time.sleep, 0.3)
    job.when_ended(lambda _: 1 / 0)
    assert job.wait(60) is None


def test_a_thread_can_launch():
    results = []
    thread = threading.Thread(target=lambda: results.append(launch(len, "abc").wait()))
    thread.start()
    thread.join()
    assert results == [3]


def test_a_child_outlives_the_thread_that_launched_it():
    launched = []
    thread = threading.Thread(target=lambda: launched.append(launch(lambda: time.sleep(0.3) or "alive")))
    thread.start()
    thread.join()
    assert launched[0].wait() == "alive"


def test_a_child_can_launch_children_of_its_own():
    cell = notebook(
        """
        import os
        from labkit import launch
        def nest(depth): return [os.getpid(), *(launch(nest, depth - 1).wait() if depth else [])]
        """
    )
    assert len(set(launch(cell["nest"], 2).wait())) == 3


def test_children_of_a_child_end_with_it():
    def leave_one_behind():
        from labkit import launch

        return launch(time.sleep, 600).pid

    grandchild = launch(leave_one_behind).wait()
    assert roles.eventually(lambda: roles.gone(grandchild))


def test_killing_a_child_kills_its_children():
    tx, rx = channel("pipe")

    def nest(tx):
        from labkit import launch

        tx.send(str(launch(time.sleep, 600).pid).encode())
        time.sleep(600)

    job = launch(nest, tx)
    grandchild = int(rx.receive())
    job.kill()
    assert roles.eventually(lambda: roles.gone(grandchild))
    rx.close()


# --- Ctrl-C -------------------------------------------------------------------------------------------------


def test_ctrl_c_in_wait_stops_every_job():
    running = launch(roles.hold), launch(roles.hold)
    timer = roles.interrupt_soon()
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        running[0].wait()
    timer.join()
    assert not any(job.alive for job in running)


def test_ctrl_c_while_a_child_is_being_started_leaves_none():
    for delay in 3 * (0.0005, 0.001, 0.002, 0.004, 0.008, 0.012, 0.02):
        timer = roles.interrupt_soon(delay)
        try:
            timer.start()
            until = time.monotonic() + delay + 1  # Python loses a Ctrl-C that comes in the middle of some __del__
            while time.monotonic() < until:
                launch(int)
            timer.join()
        except KeyboardInterrupt:
            pass
        timer.join()
        stop_all()
    assert launch(len, "abc").wait() == 3


# --- when the parent dies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("doing", FOR_EVER)
def test_a_child_dies_with_its_parent_whatever_it_does(doing, tmp_path):
    lines = {
        "sleeping": "time.sleep(600)",
        "in Python": "[None for _ in iter(int, 1)]",
        "in C, holding the GIL": "sum(range(10**13))",
        "in a regular expression": "re.match(r'(a+)+$', 'a' * 64 + 'b')",
    }
    parent = script(
        f"""
        import re, time
        from labkit import channel, launch
        def forever(tx):
            tx.send(b"begun")
            {lines[doing]}
        tx, rx = channel("pipe")
        job = launch(forever, tx)
        rx.receive()
        print(job.pid, flush=True)
        time.sleep(600)
        """,
        tmp_path,
    )
    child = int(parent.stdout.readline())
    time.sleep(0.1)
    assert not roles.gone(child)
    parent.kill()
    parent.communicate()
    assert roles.eventually(lambda: roles.gone(child))


def test_killing_the_whole_process_group_leaves_nothing(tmp_path):
    parent = script(
        """
        import os, time
        from labkit import KINDS, Trace, channel, launch
        def hold(*ends): time.sleep(600)
        trace = Trace()
        jobs = [launch(hold, end) for kind in KINDS for end in channel(kind, trace=trace)]
        kept = [channel(kind) for kind in KINDS]
        print(*[job.pid for job in jobs], flush=True)
        time.sleep(600)
        """,
        tmp_path,
        start_new_session=True,
    )
    children = list(map(int, parent.stdout.readline().split()))
    assert len(children) == 2 * len(KINDS)
    os.killpg(parent.pid, signal.SIGKILL)
    parent.communicate()
    assert roles.eventually(lambda: all(map(roles.gone, children)))
    notes.sweep()  # System V objects have no descriptor to go with: the next who opens one does this


def test_a_script_that_ends_ends_its_jobs(tmp_path):
    parent = script(
        """
        import time
        from labkit import launch
        print(launch(time.sleep, 600).pid)
        """,
        tmp_path,
    )
    out, err = parent.communicate(timeout=60)
    assert (parent.returncode, err) == (0, "")
    assert roles.eventually(lambda: roles.gone(int(out)))


def test_a_plain_script_needs_no_name_guard(tmp_path):
    parent = script(
        """
        import os
        from labkit import channel, launch
        PREFIX = b"line "
        def producer(tx, count):
            for number in range(count):
                tx.send(PREFIX + str(number).encode())
            return os.getpid()
        tx, rx = channel("shm_ring")
        job = launch(producer, tx, 3)
        print(list(rx), job.wait() != os.getpid())
        """,
        tmp_path,
    )
    out, err = parent.communicate(timeout=60)
    assert (out, err) == ("[b'line 0', b'line 1', b'line 2'] True\n", "")


def test_jobs_end_also_when_the_forkserver_was_killed(tmp_path):
    parent = script(
        """
        import os, signal, time
        from multiprocess import forkserver
        from labkit import launch
        def slow(): time.sleep(0.5); return "done"
        job = launch(slow)
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
        try: print(job.wait(60))
        except Exception as reason: print(type(reason).__name__)
        print(launch(len, "abc").wait(60))
        """,
        tmp_path,
    )
    out, _ = parent.communicate(timeout=150)
    assert out.splitlines()[0] in ("done", "RemoteError")
    assert out.splitlines()[1] == "3"


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.08, 0.2, 0.4])
def test_ctrl_c_for_all_processes_during_the_first_launch_leaves_a_usable_parent(delay, tmp_path):
    """Terminals and Jupyter signal the whole group, and so the forkserver while it loads what it needs."""
    parent = script(
        """
        import os, time
        from labkit import launch
        try:
            os.write(1, b"up\\n")
            launch(time.sleep, 600).wait()
        except KeyboardInterrupt:
            print(launch(len, "abc").wait())
        """,
        tmp_path,
        start_new_session=True,
    )
    parent.stdout.readline()
    time.sleep(delay)
    os.killpg(parent.pid, signal.SIGINT)
    out, err = parent.communicate(timeout=60)
    assert out == "3\n", err


def test_a_hundred_jobs_leave_no_memory_and_no_descriptor():
    def rss():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    for _ in range(20):
        launch(int).wait()
    before, descriptors = rss(), len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        launch(int).wait()
    assert rss() - before < 10_000_000
    assert roles.eventually(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)
