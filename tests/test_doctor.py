"""What labkit.doctor says is what the kernel does, and looking leaves nothing behind."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.doctor import Finding, Verdict, doctor, find_browser

ROOT = Path(__file__).parents[1]
module = sys.modules["labkit.doctor"]  # labkit.doctor itself is the function


@pytest.fixture(scope="module")
def findings() -> dict[str, Finding]:
    return {finding.what: finding for finding in doctor()}


def test_every_finding_says_what_is_lost_in_one_sentence(findings):
    for finding in findings.values():
        assert finding.verdict in ("good", "limited", "missing")
        assert finding.found
        assert finding.without.endswith(".")
        assert "\n" not in finding.found + finding.without


def test_everything_the_labs_use_is_looked_at(findings):
    wanted = "cores memory clock memfd /dev/shm namespaces ptrace browser Node POSIX System".split()
    assert [word for word in wanted if not any(word in what for what in findings)] == []


def test_the_cores_are_those_this_process_may_use():
    pinned = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    program = f"{pinned}; from labkit.doctor import _cores; print(*_cores())"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert child.stdout.startswith("1 of ") or module.cpu_quota() is not None
    assert child.stdout.strip().endswith("limited")


def test_a_control_group_quota_counts(tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text("536870912\n")
    monkeypatch.setattr("labkit.machine._cgroups", lambda controller: [tmp_path])
    assert module.cpu_quota() == 1.5
    assert module.memory_limit() == 512 * 2**20
    assert module._memory() == (module._memory()[0], "limited")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert module.cpu_quota() is None
    assert module.memory_limit() is None


def test_queues_are_found_usable_exactly_where_one_can_be_made(findings):
    import posix_ipc

    name = f"/labkit-{os.getpid()}-d0c"
    try:
        posix_ipc.MessageQueue(name, posix_ipc.O_CREX, max_messages=1, max_message_size=16).close()
        posix_ipc.unlink_message_queue(name)
        possible = True
    except (posix_ipc.Error, OSError):
        possible = False
    assert (findings["POSIX queues usable"].verdict == "good") == possible


def test_a_refusal_of_the_kernel_is_a_finding_and_no_error():
    def refused() -> tuple[str, Verdict]:
        raise PermissionError(1, "Operation not permitted")

    finding = module._careful("something", refused, "It is lost.")
    assert finding == Finding("something", "refused: [Errno 1] Operation not permitted", "missing", "It is lost.")


def test_a_probe_that_fails_tells_its_reason():
    assert module._probe("import sys; sys.exit('Operation not permitted')") == "Operation not permitted"
    assert module._probe("pass") is None


def test_looking_changes_nothing_of_this_process():
    def state() -> tuple[object, ...]:
        namespaces = sorted(os.readlink(path) for path in Path("/proc/self/ns").iterdir())
        return namespaces, len(os.listdir("/proc/self/fd")), sorted(os.listdir("/dev/shm")), os.getcwd()

    doctor()  # the first look imports posix_ipc
    before = state()
    doctor()
    assert state() == before


def test_the_browser_is_the_one_of_the_environment_variable(tmp_path, monkeypatch):
    chosen = tmp_path / "my-browser"
    chosen.write_text("#!/bin/sh\n")
    chosen.chmod(0o755)
    monkeypatch.setenv("LABKIT_BROWSER", str(chosen))
    assert find_browser() == str(chosen)
    monkeypatch.setenv("LABKIT_BROWSER", "none")
    assert find_browser() is None


def test_without_the_variable_a_chromium_on_the_path_is_found(tmp_path, monkeypatch):
    monkeypatch.delenv("LABKIT_BROWSER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_browser() is None
    (tmp_path / "google-chrome").write_text("#!/bin/sh\n")
    (tmp_path / "google-chrome").chmod(0o755)
    assert find_browser() == str(tmp_path / "google-chrome")


def findings_of_a_child(before: str, *wrapper: str) -> dict[str, dict[str, str]]:
    """What a process finds after it (and the wrapper around it) gave up something."""
    program = f"{before}\nimport dataclasses, json\nfrom labkit.doctor import doctor\n"
    program += "print(json.dumps({one.what: dataclasses.asdict(one) for one in doctor()}))"
    command = [*wrapper, sys.executable, "-c", program]
    child = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


def test_without_any_allowance_for_queues_they_are_missing():
    found = findings_of_a_child("import resource; resource.setrlimit(resource.RLIMIT_MSGQUEUE, (0, 0))")
    assert found["POSIX queues usable"]["verdict"] == "missing"
    assert found["POSIX queue limits"]["verdict"] == "limited"
    assert "refused" in found["POSIX queues usable"]["found"]


def test_few_open_files_are_limited():
    found = findings_of_a_child("import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))")
    assert found["open files"]["verdict"] == "limited"


def test_where_the_kernel_refuses_namespaces_they_are_missing(findings):
    if findings["user namespaces"].verdict != "good" or not shutil.which("unshare"):
        pytest.skip("needs a user namespace in which namespaces can be forbidden: user_namespaces(7)")
    forbid = "\n".join(f"open('/proc/sys/user/max_{kind}_namespaces', 'w').write('0')" for kind in ("user", "ipc"))
    found = findings_of_a_child(forbid, "unshare", "--user", "--map-root-user")
    for what in ("user namespaces", "IPC namespaces"):
        assert found[what]["verdict"] == "missing"
        assert found[what]["found"].startswith("refused: ")


def test_the_size_of_dev_shm_is_that_of_the_mounted_file_system(findings):
    if findings["user namespaces"].verdict != "good" or not shutil.which("unshare"):
        pytest.skip("needs a mount namespace of its own")
    mount = (
        "import subprocess; subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64m', 'none', '/dev/shm'], check=True)"
    )
    found = findings_of_a_child(mount, "unshare", "--user", "--map-root-user", "--mount")
    assert found["/dev/shm"]["found"] == "64 MiB, 64 free"
    assert found["/dev/shm"]["verdict"] == "limited"
