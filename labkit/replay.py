"""Recorded runs: what a lab shows where the kernel refuses to run it."""

from __future__ import annotations

from pathlib import Path

from labkit.trace import Trace


def recorded_runs() -> list[str]:
    """The names that `replay` knows."""
    return sorted(path.name.removesuffix(".csv.gz") for folder in _folders() for path in folder.glob("*.csv.gz"))


def replay(name: str, refused: BaseException | None = None) -> Trace:
    """A run of a lab that was recorded on another machine, and one printed sentence that says so.

        try:
            tx, rx = channel("posix_mq", trace=trace)
        except OSError as refused:
            trace = replay("03-message-queues", refused)

    Args:
        name: one of `recorded_runs()`.
        refused: what the kernel has said here; it is quoted.

    Raises:
        ValueError: there is no such run.
    """
    for folder in _folders():
        path = folder / f"{name}.csv.gz"
        if path.exists():
            trace = Trace.load(path)
            why = f"This machine refuses it ({refused}). " if refused else ""
            where, when = (trace.machine.get(key, "unknown") for key in ("processor", "written"))
            print(f"{why}What you see was recorded on another machine: {where}, {when}.")
            return trace
    there = ", ".join(recorded_runs()) or "none; they are in data/recorded/ of the repository"
    raise ValueError(f"no recorded run called {name!r}; there are: {there}")


def _folders() -> list[Path]:
    """data/recorded/ beside the package, and beside the notebooks, where the package is installed elsewhere."""
    found = [Path(__file__).parents[1], Path.cwd(), Path.cwd().parent]
    return list(dict.fromkeys(folder for root in found if (folder := root / "data" / "recorded").is_dir()))
