"""Records the runs in data/recorded/ and data/cells/ again: `python data/record.py`. Real processes; small, for git.

It takes root, and a machine that allows namespaces. The processes send records of weather-jfk-2013.csv and never their
own names or places. It prints the rows of README.md.
"""

import hashlib
import time
from pathlib import Path

import nbformat

from labkit import Trace, channel, launch
from labkit.boundary import boundary
from labkit.replay import record_cells
from labkit.report import run
from labkit.sync import PosixSemaphore

HERE = Path(__file__).parent
ROWS = (HERE / "weather-jfk-2013.csv").read_bytes().splitlines()[1:]
KINDS = {
    "00-start-here": ("pipe", "unix_seqpacket", "posix_mq", "shm_ring", "mp_queue"),
    "01-pipes": ("pipe",),
    "02-fifos": ("fifo",),
    "03-message-queues": ("posix_mq", "sysv_mq"),
    "04-shared-memory": ("mmap_file", "posix_shm", "sysv_shm", "shm_ring"),
    "06-sockets": ("unix_stream", "unix_datagram", "unix_seqpacket", "tcp", "udp"),
    "07-signals-and-events": ("signal",),
}
MESSAGES = 400


def producer(tx, rows, pause):
    for row in rows:
        tx.send(row)
        time.sleep(pause)


def consumer(rx):
    return sum(1 for _ in rx)


def philosopher(first, second):
    for _ in range(20):
        with first:
            time.sleep(0.002)
            with second:
                time.sleep(0.003)
        time.sleep(0.004)


def channels(kinds):
    """The same records through one mechanism after the other."""
    with Trace() as trace:
        for kind in kinds:
            tx, rx = channel(kind, trace=trace)
            rows = [row[: tx.max_message] for row in ROWS[:MESSAGES]]
            jobs = launch(consumer, rx), launch(producer, tx, rows, 0.0005)
            for job in jobs:
                job.wait()
        return trace


def locks():
    """Three philosophers; the last takes his forks the other way round, so that nobody starves."""
    with Trace() as trace:
        forks = [trace.lock(PosixSemaphore(), f"fork {n}") for n in (1, 2, 3)]
        pairs = [(forks[0], forks[1]), (forks[1], forks[2]), (forks[0], forks[2])]
        jobs = [launch(philosopher, *pair) for pair in pairs]
        for job in jobs:
            job.wait()
        for fork in forks:
            fork.close()
        return trace


def cells():
    """What the cells of labs 12 and 16 show, and the table that lab 12 measures."""
    for lab in ("12-isolation", "16-outgrowing-one-machine"):
        path = HERE.parent / "notebooks" / f"{lab}.ipynb"
        notebook = nbformat.read(path, 4)
        if failures := run(path, notebook, timeout=120):
            raise SystemExit("\n".join(failures))
        record_cells(notebook, HERE / "cells" / f"{lab}.json")
    boundary().save(HERE / "cells" / "boundary.json")


def main():
    cells()
    runs = {name: channels(kinds) for name, kinds in KINDS.items()} | {"05-semaphores": locks()}
    for name, trace in sorted(runs.items()):
        path = trace.to_csv(HERE / "recorded" / f"{name}.csv.gz")
        raw = path.read_bytes()
        what = ", ".join(f"`{kind}`" for kind in KINDS.get(name, ("PosixSemaphore",)))
        print(
            f"| `{path.name}` | {what} | {len(trace.events()):,} | {len(raw):,} | `{hashlib.sha256(raw).hexdigest()}` |"
        )


if __name__ == "__main__":
    main()
