"""Lanes hide sessions from each other and from nothing else."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile

import lane
import pytest

pytestmark = pytest.mark.skipif(not lane.possible(), reason="NOT TESTED: the kernel allows no namespaces here")


def in_a_lane(*command: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, lane.__file__, *command], capture_output=True, text=True, **options)


def python(code: str) -> str:
    return in_a_lane(sys.executable, "-c", code, check=True).stdout.strip()


def test_a_lane_has_its_own_processes_objects_and_ports():
    with tempfile.NamedTemporaryFile(dir="/dev/shm"):
        assert python("import os; print(os.listdir('/dev/shm'))") == "[]"
    assert python("import os; print(sorted(int(p) for p in os.listdir('/proc') if p.isdigit()))") == "[1, 2]"
    with socket.create_server(("127.0.0.1", 0)) as ours:
        port = ours.getsockname()[1]
        assert python(f"import socket; socket.create_server(('127.0.0.1', {port})); print('free')") == "free"


def test_all_else_is_as_outside():
    code = """
import os, resource
shm = os.statvfs("/dev/shm")
print(os.getresuid(), os.getcwd(), os.sched_getaffinity(0), shm.f_blocks * shm.f_frsize // 4096)
print([resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")])
"""
    assert python(code) == subprocess.check_output([sys.executable, "-c", code], text=True).strip()


@pytest.mark.parametrize(("code", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 128 + 9)])
def test_the_exit_status_is_that_of_the_command(code, status):
    assert in_a_lane("sh", "-c", code).returncode == status


def test_orphans_are_buried_while_the_command_runs_and_killed_when_it_ends():
    code = """
import os, subprocess, time
orphan = subprocess.check_output(["sh", "-c", "true & sleep 600 >&- & echo $!"], text=True)
deadline = time.monotonic() + 60
while len(there := [p for p in os.listdir("/proc") if p.isdigit()]) > 3 and time.monotonic() < deadline:
    time.sleep(0.01)  # true(1) may still be running, or its body lie there
print(len(there))
"""
    assert python(code) == "3"  # the lane, this code, and the orphan that sleeps


def test_a_lane_dies_with_whoever_started_it(tmp_path):
    command = [sys.executable, lane.__file__, "sh", "-c", "echo runs; exec sleep 600"]
    elsewhere = os.environ | {"TMPDIR": str(tmp_path)}  # what is killed cannot tidy up
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=elsewhere) as run:
        assert run.stdout.readline() == "runs\n"
        run.send_signal(signal.SIGKILL)
        assert run.stdout.read() == ""  # end of file: the last process that could write has gone
