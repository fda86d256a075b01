"""A real Jupyter kernel that is interrupted, restarted or killed in the middle of a cell leaves nothing within 5 s."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import roles

from labkit import KINDS

jupyter_client = pytest.importorskip("jupyter_client")

ROOT = Path(__file__).parents[1]

FIRST_CELL = """
import os
import struct
from time import sleep
from labkit import KINDS, RemoteError, Trace, channel, jobs, launch
PREFIX = b"n"

def producer(tx, count):
    for number in range(count):
        tx.send(PREFIX + struct.pack("I", number))
    return os.getpid()

def forever(*ends):
    sleep(600)
"""

MIDDLE_CELL = """
trace = Trace()
running = [launch(forever, end) for kind in KINDS for end in channel(kind, trace=trace)]
mine = [channel(kind, trace=trace) for kind in KINDS]
print("running", *[job.pid for job in running], flush=True)
"""

BLOCKING = {
    "wait": "running[0].wait(600)",
    "sleep": "sleep(600)",
    # Said when the cell no longer runs: a Ctrl-C until then ends it, and does not cancel what it waits for.
    "await": "import asyncio; asyncio.get_running_loop().call_soon(print, 'waits'); await running[0]",
    "receive": "mine[0][1].receive(600)",
    "receive from a ring": "mine[-1][1].receive(600)",
}


OPEN = """
def ours(fd):
    try:
        return 'labkit' in os.readlink(f'/proc/self/fd/{fd}')
    except FileNotFoundError:  # closed meanwhile, by another thread or by listdir itself
        return False
[fd for fd in os.listdir('/proc/self/fd') if ours(fd)]
"""


class Kernel:
    """A kernel with its client; cells are run by `run` and `begin`."""

    def __init__(self, folder: Path):
        self.manager = jupyter_client.KernelManager(kernel_name="python3", transport="ipc", ip=str(folder / "k"))
        self.manager.kernel_spec.argv[0] = __import__("sys").executable
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder), "JUPYTER_PLATFORM_DIRS": "1"}
        self.manager.start_kernel(env=environment)
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    @property
    def pid(self) -> int:
        return self.manager.provisioner.process.pid

    def begin(self, code: str) -> str:
        return self.client.execute(textwrap.dedent(code))

    def output(self, request: str, until: str = "", timeout: float = 60) -> str:
        """What the cell prints, errors included, until it is idle or has printed `until`."""
        text, deadline = "", time.monotonic() + timeout
        while time.monotonic() < deadline:
            message = self.client.get_iopub_msg(timeout=timeout)
            if message["parent_header"].get("msg_id") != request:
                continue
            content = message["content"]
            if message["msg_type"] == "stream":
                text += content["text"]
            elif message["msg_type"] == "error":
                text += f"{content['ename']}: {content['evalue']}\n"
            elif message["msg_type"] == "execute_result":
                text += content["data"]["text/plain"]
            elif message["msg_type"] == "status" and content["execution_state"] == "idle":
                return text
            if until and until in text and text.endswith("\n"):
                return text
        raise TimeoutError(text)

    def run(self, code: str) -> str:
        return self.output(self.begin(code))

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()
        self.manager.context.destroy(linger=0)
        self.client.context.destroy(linger=0)


@pytest.fixture(scope="module", autouse=True)
def event_loop_of_jupyter():
    """jupyter_client keeps one event loop as long as the process lives."""
    from jupyter_core.utils import run_sync

    async def nothing():
        pass

    run_sync(nothing)()


@pytest.fixture
def kernel(tmp_path_factory):
    kernel = Kernel(tmp_path_factory.mktemp("k"))
    try:
        assert kernel.run(FIRST_CELL) == ""
        yield kernel
    finally:
        kernel.close()


def middle_of(kernel: Kernel, blocking: str) -> tuple[str, list[int]]:
    """Be in the middle of a cell; returns the request and the pids of its jobs."""
    request = kernel.begin(MIDDLE_CELL + BLOCKING[blocking])
    line = kernel.output(request, until="running")
    pids = [int(word) for word in line.split()[1:]]
    assert len(pids) == 2 * len(KINDS)
    if blocking == "await":
        kernel.output(request, until="waits")
    time.sleep(0.2)
    return request, pids


def test_functions_of_cells_find_what_the_notebook_has_imported_and_defined(kernel):
    code = """
    tx, rx = channel("unix_seqpacket")
    job = launch(producer, tx, 3)
    print(list(rx), job.wait() != os.getpid(), job.name)
    """
    assert (
        kernel.run(code)
        == "[b'n\\x00\\x00\\x00\\x00', b'n\\x01\\x00\\x00\\x00', b'n\\x02\\x00\\x00\\x00'] True producer\n"
    )
    assert kernel.run("def fails(): raise KeyError('lost')\njob = launch(fails)\nawait job").startswith("RemoteError")
    assert kernel.run("import asyncio; await asyncio.gather(*[launch(len, 'ab') for _ in range(3)])") == "[2, 2, 2]"


@pytest.mark.parametrize("blocking", BLOCKING)
def test_an_interrupted_cell_leaves_no_process_and_a_usable_kernel(kernel, blocking):
    request, pids = middle_of(kernel, blocking)
    kernel.manager.interrupt_kernel()
    text = kernel.output(request)
    assert text.startswith("KeyboardInterrupt") and "CancelledError" not in text
    assert "the cell was stopped" in text or blocking != "await"
    assert roles.eventually(lambda: all(map(roles.gone, pids)))
    assert kernel.run("jobs()") == "[]"
    kernel.run("for pair in mine: [end.close() for end in pair]\ntrace.close()")
    assert kernel.run(OPEN) == "[]"
    assert kernel.run("launch(len, 'abc').wait()") == "3"


@pytest.mark.parametrize("blocking", ["wait", "await"])
def test_a_restarted_kernel_leaves_nothing(kernel, blocking):
    _, pids = middle_of(kernel, blocking)
    kernel.manager.shutdown_wait_time = 120.0  # after 5 s it would kill the forkserver, too, before that has swept
    kernel.manager.restart_kernel(now=False)
    assert roles.eventually(lambda: all(map(roles.gone, pids)))


def alive_in(group: int) -> bool:
    """Whether a process of this process group runs: proc_pid_stat(5)."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                return True
    return False


def test_a_killed_kernel_leaves_nothing(kernel):
    group = os.getpgid(kernel.pid)
    _, pids = middle_of(kernel, "wait")
    os.kill(kernel.pid, 9)
    assert roles.eventually(lambda: all(map(roles.gone, pids)))
    assert roles.eventually(lambda: not alive_in(group))  # its forkserver sweeps; jupyter_client would kill that, too


def test_killing_everything_leaves_no_file(tmp_path):
    """Also not the forkserver's socket, which has no name in the file system while it is used."""
    code = (
        "import time\nfrom labkit import channel, launch\n"
        "tx, rx = channel('posix_mq')\nlaunch(time.sleep, 600, tx)\nprint('up', flush=True)\ntime.sleep(600)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    folder = tmp_path / "tmp"
    folder.mkdir()
    parent = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(folder)},
        start_new_session=True,
    )
    assert parent.stdout.readline() == b"up\n"
    os.killpg(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert list(folder.rglob("*")) == []
