"""Real clusters of ipyparallel: engines on this machine, those of a profile, and those that somebody else started."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import ipyparallel
import pytest
import roles

from labkit import cluster
from labkit.bench import sweep_cost

KEEPS = pytest.mark.leaves("descriptors", "threads", reason="ipyparallel keeps event loops, tqdm a thread")
pytestmark = KEEPS


@pytest.fixture(scope="module")
def two():
    """A cluster for all tests that do it no harm."""
    with cluster(2) as c:
        yield c


def until(condition, what, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it never {what}"
        time.sleep(0.05)


def test_functions_run_on_the_engines_with_what_they_refer_to(two, tmp_path):
    offset = 10

    def f(n, word):
        (tmp_path / str(os.getpid())).touch()
        for _ in range(6000):  # so that the other engine has its share, however slow it is
            if len(list(tmp_path.iterdir())) == 2:
                break
            time.sleep(0.01)
        return os.getpid(), word * n + str(offset)

    results = two.map(f, [1, 2, 3, 4], "abcd", progress=False)
    assert [text for _, text in results] == ["a10", "bb10", "ccc10", "dddd10"], "in the order of the rows"
    assert len({pid for pid, _ in results} - {os.getpid()}) == 2
    assert repr(two) == "<cluster on this machine, 2 engines>"


def test_a_bar_shows_how_far_it_is(two, capsys):
    def slowly(n):
        return n

    assert two.map(slowly, range(4)) == [0, 1, 2, 3]
    assert "slowly: 100%" in capsys.readouterr().out


def test_what_a_function_raises_is_raised_here(two):
    with pytest.raises(ipyparallel.error.RemoteError, match="division by zero"):
        two.map(lambda n: 1 / n, [1, 0], progress=False)
    numbers = (n for n in range(3))
    with pytest.raises(TypeError, match="'numbers', a generator, stays in this process"):
        two.map(lambda n: next(numbers), [1])
    assert two.map(abs, [], progress=False) == []


@pytest.mark.leaves("processes", reason="the forkserver of each engine lives as long as its engine")
def test_the_sweep_of_labkit_bench_runs_on_the_engines(two):
    points = [("pipe", 8), ("posix_mq", 128), ("shm_ring", 2048)]
    times = two.map(sweep_cost.round_trip, *zip(*points, strict=True), [20] * 3, progress=False)
    assert all(microseconds > 0 for microseconds in times)


def test_it_listens_on_this_machine_only(two):
    controller = two.client.cluster.controller.pid
    inodes = set()
    for process in [controller, *children(controller)]:
        for fd in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(OSError):
                inodes.add(os.readlink(fd))
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    addresses = {line[1].split(":")[0] for line in listening if line[3] == "0A" and f"socket:[{line[9]}]" in inodes}
    assert addresses == {"0100007F"}, "127.0.0.1, as the kernel writes it"


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_dead_engine_is_noticed_and_the_others_go_on():
    with cluster(2) as c:
        os.kill(c.client[0].apply_sync(os.getpid), signal.SIGKILL)
        until(lambda: len(c.client.ids) == 1, "noticed")
        assert c.map(abs, [-1, 2], progress=False) == [1, 2]
        os.kill(c.client[:].apply_sync(os.getpid)[0], signal.SIGKILL)
        until(lambda: not c.client.ids, "noticed")
        with pytest.raises(ValueError, match="no engine is left"):
            c.map(abs, [1])
    with pytest.raises(ValueError, match="this cluster is stopped"):
        c.map(abs, [1])
    assert repr(c) == "<cluster on this machine, stopped>"


@pytest.mark.parametrize("progress", [True, False])
def test_a_controller_that_is_killed_ends_the_waiting(progress):
    with cluster(1) as c:
        killed = threading.Timer(0.5, os.killpg, (c.client.cluster.controller.pid, signal.SIGKILL))
        killed.start()
        with pytest.raises(ConnectionError, match="the controller of this cluster has ended: stop it"):
            c.map(time.sleep, [1] * 100, progress=progress)
        killed.join()


def test_engines_that_all_die_end_the_waiting():
    with cluster(1) as c, pytest.raises(ConnectionError, match="no engine is left.*, and not all is done"):
        c.map(os._exit, [1] * 8, progress=False)


def test_ctrl_c_ends_the_waiting(two):
    pressed = roles.interrupt_soon(0.5)
    with pytest.raises(KeyboardInterrupt):
        pressed.start()
        two.map(time.sleep, [1] * 100, progress=False)
    pressed.join()
    until(lambda: two.client.outstanding == set(), "forgot what had not begun")
    assert two.map(abs, [-1], progress=False) == [1]


PARENT = """
import sys, time
from labkit import cluster
c = cluster(2)
c.client[:].apply_async(time.sleep, 100)
print(c.client.cluster.profile_dir, c.client.cluster.controller.pid, flush=True)
{end}
"""


@pytest.mark.parametrize(("end", "number"), [("time.sleep(100)", signal.SIGKILL), ("sys.exit()", 0)])
def test_nothing_is_left_of_it(end, number, tmp_path):
    """No process: the fixture of all tests looks for those."""
    own = os.environ | {"TMPDIR": str(tmp_path), "IPYTHONDIR": str(tmp_path / "ipython")}
    command = [sys.executable, "-c", PARENT.format(end=end)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=own) as parent:
        folder, controller = parent.stdout.readline().split()
        assert Path(folder).stat().st_mode & 0o777 == 0o700
        if number:
            os.kill(parent.pid, number)
        assert parent.wait(60) == -number
    until(lambda: not Path(folder).exists() and not Path(f"/proc/{controller}/cmdline").exists(), "was all gone")
    assert [path.name for path in tmp_path.iterdir() if path.name != "ipython"] == []


# --- other people's machines --------------------------------------------------------------------------------


@pytest.fixture
def ipython_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return tmp_path / "ipython"


def make_profile(ipython_dir, name, config):
    (ipython_dir / f"profile_{name}").mkdir(parents=True)
    (ipython_dir / f"profile_{name}" / "ipcluster_config.py").write_text("c = get_config()\n" + config)


def test_a_profile_says_how_many_engines_start_and_how(ipython_dir):
    make_profile(ipython_dir, "course", 'c.Cluster.n = 1\nc.Cluster.controller_args = ["--HeartMonitor.period=200"]\n')
    with cluster(profile="course") as c:
        assert repr(c) == "<cluster of profile course, 1 engines>"
        url_file = next((ipython_dir / "profile_course" / "security").glob("ipcontroller*client.json"))
        with cluster(url_file=url_file, n=1) as guest:
            assert guest.map(abs, [-1], progress=False) == [1]
        assert c.map(abs, [-2], progress=False) == [2], "who only found it has not stopped it"


def test_engines_that_never_come_are_given_up_with_what_to_check(ipython_dir):
    broken = f"c.LocalEngineLauncher.engine_cmd = [{sys.executable!r}, '-c', 'import no_such_package']\n"
    make_profile(ipython_dir, "broken", broken + "c.LocalEngineSetLauncher.delay = 0\n")
    with pytest.raises(TimeoutError, match=r"not up within \d+ s(.|\n)*What to check:(.|\n)*firewall") as error:
        cluster(n=1, profile="broken", timeout=round(roles.patience(5)))
    assert "no_such_package" in str(error.value)


def test_a_cluster_that_nobody_can_reach_is_given_up_with_what_to_check(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it listens, and never says a word
        port = silent.getsockname()[1]
        names = ("registration", "control", "mux", "task", "task_scheme", "iopub", "notification", "broadcast")
        info = dict.fromkeys(names, port) | {"interface": "tcp://127.0.0.1", "location": "127.0.0.1", "ssh": ""}
        info |= {
            "task_scheme": "leastload",
            "key": "k",
            "pack": "json",
            "unpack": "json",
            "signature_scheme": "hmac-sha256",
            "curve_serverkey": None,
        }
        url_file = tmp_path / "ipcontroller-client.json"
        url_file.write_text(json.dumps(info))
        with pytest.raises(TimeoutError, match=r"nobody answers at the addresses in .* within 2 s(.|\n)*What to check"):
            cluster(url_file=url_file, timeout=2)


def test_what_is_asked_for_wrongly_is_refused(ipython_dir, tmp_path):
    with pytest.raises(ValueError, match="there is no IPython profile 'nowhere': `ipython profile create --parallel"):
        cluster(profile="nowhere")
    with pytest.raises(FileNotFoundError, match="a controller writes ipcontroller-client.json"):
        cluster(url_file=tmp_path / "no.json")
    with pytest.raises(ValueError, match="give one of them"):
        cluster(profile="a", url_file="b")
    with pytest.raises(ValueError, match="at least 1 engine, not 0"):
        cluster(0)
