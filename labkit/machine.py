"""What of the machine is ours: what a control group grants, what is left of it, and our pid. cgroups(7)."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from pathlib import Path

_known_as: tuple[int, int] | None = None


def known_pid() -> int:
    """Our pid as those know it who launched us: in a PID namespace getpid(2) returns another. pid_namespaces(7)."""
    return _known_as[1] if _known_as and _known_as[0] == os.getpid() else os.getpid()


def is_known_as(pid: int) -> None:
    """Say what `known_pid` is to return in this process."""
    global _known_as
    _known_as = os.getpid(), pid


def facts() -> dict[str, str]:
    """The machine in words, so that two people can compare their figures. It names no host and no user."""
    cores = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    limit, there = memory_limit(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    usable = min(limit or there, there)
    model = re.search(r"^model name\s*:\s*(.+)$", read(Path("/proc/cpuinfo")) or "", re.MULTILINE)
    return {
        "processor": model[1] if model else platform.machine(),
        "cores": f"{cores} of {os.cpu_count()}" + (f", of which {quota:g} are granted" if quota else ""),
        "memory": f"{usable / 2**30:.1f} GiB",
        "Linux": platform.release(),
        "container": container(),
        "Python": platform.python_version(),
        "labkit": sys.modules["labkit"].__version__,  # not imported: it is the highest floor
        "written": time.strftime("%Y-%m-%d %H:%M %Z"),
    }


def container() -> str:
    """What kind of container this is, as far as the signs tell that its makers leave."""
    signs = {
        "Binder": "BINDER_SERVICE_HOST" in os.environ,
        "Kubernetes": "KUBERNETES_SERVICE_HOST" in os.environ,
        "Podman": Path("/run/.containerenv").exists(),
        "Docker": Path("/.dockerenv").exists(),
        "WSL": "microsoft" in platform.release().lower(),
        # systemd's interface for containers: LXC, nspawn and others write their name there
        read(Path("/run/systemd/container")) or "": True,
    }
    return next((name for name, seen in signs.items() if seen and name), "none seen")


def cpu_quota() -> float | None:
    """Cores that the control group grants, or None without a quota: cgroups(7), cpu.max."""
    for folder in _cgroups("cpu"):
        quota, _, period = (read(folder / "cpu.max") or "").partition(" ")
        if not quota:  # version 1 keeps them in two files
            quota, period = read(folder / "cpu.cfs_quota_us") or "max", read(folder / "cpu.cfs_period_us") or ""
        if quota.isdigit() and period.isdigit() and int(period):
            return int(quota) / int(period)
    return None


def memory_limit() -> int | None:
    """Bytes that the control group grants, or None without a limit: cgroups(7), memory.max."""
    limits = [
        int(text)
        for folder in _cgroups("memory")
        for text in (read(folder / "memory.max"), read(folder / "memory.limit_in_bytes"))
        if text and text.isdigit()
    ]
    return min(limits, default=None)


def memory_left() -> int:
    """Bytes that can still be had, as far as the kernel says: of the machine, and of the control group."""
    left = 1 << 60
    for line in (read(Path("/proc/meminfo")) or "").splitlines():
        name, _, amount = line.partition(":")
        if name == "MemAvailable":
            left = int(amount.split()[0]) * 1024
    for folder in _cgroups("memory"):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            most, now = read(folder / limit) or "", read(folder / used) or ""
            if most.isdigit() and now.isdigit():
                left = min(left, max(0, int(most) - int(now)))
    return left


def _cgroups(controller: str) -> list[Path]:
    """The folders of this process's control group, innermost first, version 2 before version 1."""
    folders = []
    for line in (read(Path("/proc/self/cgroup")) or "").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = Path("/sys/fs/cgroup") / (controller if controllers else "")
        inside = root / group.lstrip("/")
        # In a container the path may be the host's: then only the root of the mount exists, which is our group.
        folders += [folder for folder in (inside, *inside.parents) if folder.is_relative_to(root) and folder.is_dir()]
    return folders


def read(path: Path) -> str | None:
    """The text of a file of /proc or /sys, or None where this kernel or container does not show it."""
    try:
        return path.read_text().strip()
    except OSError:
        return None
