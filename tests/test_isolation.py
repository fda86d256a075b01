"""Namespaces: what is inside, what is outside, what is left afterwards, and who refuses."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import filtered
import pytest
import sysv_ipc
from numba.core.caching import _CacheLocator
from roles import eventually, gone

import labkit
from labkit import RemoteError, Trace, channel, launch, namespace
from labkit.boundary import boundary
from labkit.isolation import COMMON, KINDS, own_namespaces, privileged, those_of
from labkit.replay import why_not

needs_namespaces = pytest.mark.skipif(bool(why_not()), reason=f"NOT TESTED: {why_not()}")
as_root = pytest.mark.skipif(not privileged(), reason="it takes CAP_SYS_ADMIN")

# What the manual pages say: ipc_namespaces(7), mq_overview(7), shm_overview(7), sem_overview(7), unix(7),
# network_namespaces(7), pid_namespaces(7), mount_namespaces(7). Nothing else isolates anything.
MANUAL = {
    "System V queue": "ipc",
    "System V semaphores": "ipc",
    "System V memory": "ipc",
    "POSIX queue": "ipc",
    "POSIX memory": "mount",
    "POSIX semaphore": "mount",
    "FIFO": "mount",
    "Unix socket with a path": "mount",
    "Unix socket, abstract": "net",
    "TCP port": "net",
    "UDP port": "net",
    "signal to a pid": "pid",
}


@pytest.fixture(autouse=True)
def nothing_outside_changes():
    """System V objects, mounts, network devices and the host's name are the same before and after."""

    def outside():
        tables = [Path("/proc/sysvipc", kind).read_text() for kind in ("msg", "sem", "shm")]
        return [len(table.splitlines()) for table in tables], Path("/proc/self/mounts").read_text(), os.uname().nodename

    before, devices = outside(), sorted(os.listdir("/sys/class/net"))
    yield
    assert outside() == before
    assert sorted(os.listdir("/sys/class/net")) == devices


def the_manual_pages_table(table):
    return {(m, k): table[m, k].isolated for m in MANUAL for k in table.kinds} == {
        (m, k): MANUAL[m] == k for m in MANUAL for k in table.kinds
    }


@needs_namespaces
def test_the_measured_table_is_that_of_the_manual_pages():
    table = boundary()
    assert table.mechanisms == list(MANUAL)
    assert the_manual_pages_table(table), f"\n{table}"
    assert table["signal to a pid", "pid"].seen_outside, "a PID namespace is a wall in one direction"
    assert (
        table["POSIX queue", "ipc"].proof == "from inside: mq_open fails, ENOENT; from outside: mq_open fails, ENOENT"
    )


NOBODY_SPECIAL = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "--bounding-set=-all", "--no-new-privs"]


def copy_of_compiled_code(folder):
    """For a user who may not write where it is, and would compile all of it again."""
    if "NUMBA_CACHE_DIR" in os.environ:
        shutil.copytree(os.environ["NUMBA_CACHE_DIR"], folder)
        return
    for cache in Path(labkit.__file__).parent.rglob("__pycache__"):
        place = folder / _CacheLocator.get_suitable_cache_subpath(str(cache.parent / "any.py"))
        place.mkdir(parents=True)
        for file in cache.glob("*.nb?"):
            shutil.copy2(file, place)


TABLE = """
from labkit.boundary import boundary
from labkit.isolation import privileged
assert not privileged()
table = boundary()
print({m: [k for k in table.kinds if table[m, k].isolated] for m in table.mechanisms})
"""


@needs_namespaces
@as_root
@pytest.mark.skipif(not shutil.which("setpriv"), reason="no setpriv here (util-linux)")
def test_who_has_no_privileges_measures_the_same(tmp_path):
    for folder in tmp_path.parents[:2]:
        folder.chmod(0o711)
    settings = {**os.environ, "HOME": str(tmp_path), "XDG_RUNTIME_DIR": "", "NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    copy_of_compiled_code(tmp_path / "numba")
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, 1000, 1000)
    if subprocess.run([*NOBODY_SPECIAL, sys.executable, "-c", "import labkit"], env=settings, stderr=-3).returncode:
        pytest.skip("NOT TESTED: this Python is in a folder that only root may enter")
    ran = subprocess.run([*NOBODY_SPECIAL, sys.executable, "-c", TABLE], env=settings, capture_output=True, text=True)
    if ran.returncode and "unshare user" in ran.stderr:
        pytest.skip(f"NOT TESTED: {ran.stderr.strip().splitlines()[-1]}")
    assert ran.returncode == 0, ran.stderr
    assert eval(ran.stdout) == {mechanism: [kind] for mechanism, kind in MANUAL.items()}


@needs_namespaces
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_process_inside_has_a_namespace_of_its_own_and_shares_the_others(kind):
    here = own_namespaces()
    with namespace(kind) as ns:
        inside = ns.run(own_namespaces)
    assert {k for k in KINDS if inside[k] != here[k]} == set(ns.kinds)
    assert kind in ns.kinds
    assert launch(own_namespaces).wait() == here


def find_key():
    try:
        return sysv_ipc.MessageQueue(77).receive()[0].decode()
    except sysv_ipc.ExistentialError:
        return None


def own_key(text):
    sysv_ipc.MessageQueue(77, sysv_ipc.IPC_CREX).send(text)


@needs_namespaces
def test_the_same_key_is_another_queue_on_each_side():
    queue = sysv_ipc.MessageQueue(77, sysv_ipc.IPC_CREX)
    try:
        queue.send("outside")
        with namespace("ipc") as ns:
            assert ns.run(find_key) is None
            ns.run(own_key, "inside")
            assert ns.run(find_key) == "inside"
        assert find_key() == "outside"
    finally:
        queue.remove()


@as_root
def test_a_thread_goes_in_and_comes_back():
    here = own_namespaces("thread-self")
    with namespace("ipc", "net", "uts") as ns, ns.enter():
        assert own_namespaces("thread-self")["ipc"] != here["ipc"]
        own_key("left behind")
        with pytest.raises(ZeroDivisionError), ns.enter():
            raise ZeroDivisionError
    assert own_namespaces("thread-self") == here


def test_what_a_thread_cannot_enter_is_refused_with_what_to_do_instead():
    if why_not():
        pytest.skip(f"NOT TESTED: {why_not()}")
    with namespace("mount") as ns, pytest.raises(ValueError, match=r"launch\(f, inside=ns\)"), ns.enter():
        pass


@pytest.mark.parametrize(
    ("kinds", "says"),
    [(("ipc", "disk"), "no kind of namespace called 'disk'; there are: ipc, mount"), ((), "name at least one kind")],
)
def test_kinds_that_there_are_not(kinds, says):
    with pytest.raises(ValueError, match=says):
        namespace(*kinds)


@needs_namespaces
def test_closed_namespaces_are_refused():
    with namespace("ipc") as ns:
        pass
    ns.close()
    for use in (ns.processes, lambda: ns.run(int), lambda: ns.enter().__enter__()):
        with pytest.raises(ValueError, match="closed"):
            use()


# --- processes inside ---------------------------------------------------------------------------------------


def sleep_inside(tx):
    tx.send(b"%d" % os.getpid())
    time.sleep(100)


@needs_namespaces
def test_a_process_of_a_pid_namespace_is_known_by_its_pid_outside():
    with namespace("pid", "mount") as ns, Trace() as trace:
        tx, rx = channel("pipe", trace=trace)
        job = ns.launch(sleep_inside, tx)
        assert int(rx.receive()) != job.pid
        assert ns.processes() == [job.pid]
        job.kill()
        with pytest.raises(RemoteError, match="killed by SIGKILL"):
            job.wait()
        rx.close()
        assert set(trace.events()["pid"]) == {os.getpid(), job.pid}
        assert trace.processes[job.pid].wall == ", ".join(ns.kinds)


@needs_namespaces
@pytest.mark.parametrize("kinds", [("ipc",), ("pid",)])
def test_how_a_process_inside_ended_is_told(kinds):
    def fails():
        raise KeyError("inside")

    with namespace(*kinds) as ns:
        with pytest.raises(RemoteError, match="KeyError: 'inside'"):
            ns.run(fails)
        job = ns.launch(os._exit, 7)
        with pytest.raises(RemoteError, match="exited 7"):
            job.wait()
        assert ns.run(lambda: 42) == 42


@needs_namespaces
def test_leaving_ends_what_is_still_inside():
    with namespace("ipc") as ns:
        (tx, rx), ignores = channel("pipe"), channel("pipe")

        def stubborn(tx):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            sleep_inside(tx)

        jobs = ns.launch(sleep_inside, tx), ns.launch(stubborn, ignores[0])
        rx.receive()
        ignores[1].receive()
    rx.close()
    ignores[1].close()
    assert eventually(lambda: all(gone(job.pid) for job in jobs))


CREATOR = """
import os, signal, sys, time
from labkit import namespace
ns = namespace(*sys.argv[1:])
job = ns.launch(time.sleep, 100)
print(ns.pid, job.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@needs_namespaces
@pytest.mark.parametrize("kinds", [("ipc", "mount"), ("pid",)])
def test_nothing_outlives_a_creator_that_is_killed(kinds):
    ran = subprocess.run([sys.executable, "-c", CREATOR, *kinds], capture_output=True, text=True, timeout=60)
    pids = [int(pid) for pid in ran.stdout.split()]
    assert len(pids) == 2, ran.stderr
    assert eventually(lambda: all(map(gone, pids)))


@needs_namespaces
def test_a_namespace_lives_as_long_as_somebody_is_in_it():
    with namespace("ipc") as ns:
        tx, rx = channel("pipe")
        job = ns.launch(sleep_inside, tx)
        rx.receive()
        ns.run(own_key, "stays")
        os.kill(ns.pid, signal.SIGKILL)
        assert those_of(job.pid).run(find_key) == "stays"
    rx.close()
    with pytest.raises(ProcessLookupError):
        those_of(job.pid)


@needs_namespaces
def test_containers_of_a_pod_share_what_the_pod_has():
    with namespace("net", "ipc") as pod, namespace("mount", "pid", inside=pod) as one:
        other = namespace("mount", "pid", inside=pod)
        with other:
            ours, theirs, of_pod = one.run(own_namespaces), other.run(own_namespaces), pod.run(own_namespaces)
    assert ours["net"] == theirs["net"] == of_pod["net"] != own_namespaces()["net"]
    assert len({ours["pid"], theirs["pid"], of_pod["pid"]}) == 3


@as_root
@pytest.mark.skipif(not shutil.which("nsenter"), reason="no nsenter here (util-linux)")
def test_nsenter_takes_the_paths():
    with namespace("ipc") as ns:
        ns.run(own_key, "seen by ipcs")
        seen = subprocess.run(["nsenter", f"--ipc={ns.paths['ipc']}", "cat", "/proc/sysvipc/msg"], capture_output=True)
    assert len(seen.stdout.splitlines()) == 2


@needs_namespaces
def test_a_message_ends_at_the_wall():
    def send(tx):
        with pytest.raises(EOFError, match="has been removed"):
            tx.send(b"to nobody")

    with Trace() as trace:
        tx, rx = channel("sysv_mq", trace=trace)
        with namespace("ipc") as ns:
            ns.launch(send, tx).wait()
        rx.close()
        assert trace.latency().n == 0
        assert len(trace.messages()) == 1 and trace.messages()["dropped"].all()


# --- who refuses --------------------------------------------------------------------------------------------


def refusal(kinds, prepare=lambda: None):
    prepare()
    with pytest.raises(OSError) as refused:
        namespace(*kinds)
    return str(refused.value)


def set_limit(name):
    Path("/proc/sys/user", name).write_text("0")


@needs_namespaces
def test_a_limit_of_zero_is_named():
    with namespace("user") as ns:
        assert "user.max_ipc_namespaces is 0" in ns.run(refusal, ("ipc",), lambda: set_limit("max_ipc_namespaces"))
        says = ns.run(refusal, ("user",), lambda: set_limit("max_user_namespaces"))
        assert "user.max_user_namespaces is 0" in says


@pytest.mark.skipif(filtered.UNSHARE < 0, reason="the filter does not know this processor")
def test_a_seccomp_filter_is_named():
    assert "seccomp filter" in launch(refusal, COMMON, filtered.refuse_namespaces).wait()


@as_root
@pytest.mark.skipif(not shutil.which("setpriv"), reason="no setpriv here (util-linux)")
def test_root_without_capabilities_is_told_so():
    code = "from labkit import namespace; namespace('ipc')"
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "CAP_SETFCAP" in ran.stderr or "unshare user" in ran.stderr
