"""Records the runs in data/recorded/ and data/cells/ again: `python data/record.py`. Real processes; small, for git.

`python data/record.py 01-pipes cells` records some of them. The cells take root, and a machine that allows namespaces.
The processes send records of weather-jfk-2013.csv, or what a lab itself sends, and never their own names or places. It
prints the rows of README.md.
"""

import hashlib
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import nbformat

from labkit import Trace, channel, launch
from labkit.boundary import boundary
from labkit.replay import record_cells
from labkit.report import run
from labkit.services import supervise
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
    "09-lock-free-queue": ("shm_ring",),
}
PHILOSOPHERS = {"05-semaphores": 3, "08-classic-problems": 5}
OWN = (
    "13-cooperating-kernels",
    "14-remote-procedure-calls",
    "17-how-jupyter-talks",
    "18-electron-ipc",
    "20-webviews-and-comms",
)
"""Labs that run from top to bottom, and whose own `trace` is kept."""
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


def locks(count):
    """Philosophers at a table; the last takes his forks the other way round, so that nobody starves."""
    with Trace() as trace:
        forks = [trace.lock(PosixSemaphore(), f"fork {n}") for n in range(1, count + 1)]
        pairs = [(forks[n], forks[n + 1]) for n in range(count - 1)] + [(forks[0], forks[-1])]
        jobs = [launch(philosopher, *pair) for pair in pairs]
        for job in jobs:
            job.wait()
        for fork in forks:
            fork.close()
        return trace


def ingest():
    for row in ROWS[:MESSAGES]:
        yield {"time": row.split(b",")[-1].decode(), "temp": row.split(b",")[5].decode()}


def clean(state, record):
    if record and record["temp"] != "NA":
        yield record | {"temp": float(record["temp"])}


def alert(state, record):
    if record and record["temp"] < 20:
        yield record


def pipeline():
    """Three services, one of which is killed when it has done a third of its work, and is restarted."""
    with Trace() as trace, tempfile.TemporaryDirectory(prefix="labkit-record-") as folder:
        with supervise([ingest, clean, alert], partial(channel, "posix_mq", trace=trace), folder) as services:
            while services.handled()["clean"] < MESSAGES // 3:
                time.sleep(0.001)
            services.jobs["clean"].kill()
            services.wait()
        return trace


def own(lab):
    """What a lab records when it runs from top to bottom."""
    path = HERE.parent / "notebooks" / f"{lab}.ipynb"
    notebook = nbformat.read(path, 4)
    with tempfile.TemporaryDirectory(prefix="labkit-record-") as folder:
        saved = Path(folder, "run.csv")
        notebook.cells.append(nbformat.v4.new_code_cell(f"trace.to_csv({str(saved)!r})"))
        if failures := run(path, notebook, timeout=120):
            raise SystemExit("\n".join(failures))
        return Trace.load(saved)


def cells():
    """What the cells of labs 12 and 16 show, and the table that lab 12 measures."""
    for lab in ("12-isolation", "16-outgrowing-one-machine"):
        path = HERE.parent / "notebooks" / f"{lab}.ipynb"
        notebook = nbformat.read(path, 4)
        if failures := run(path, notebook, timeout=120):
            raise SystemExit("\n".join(failures))
        record_cells(notebook, HERE / "cells" / f"{lab}.json")
    boundary().save(HERE / "cells" / "boundary.json")


def main(wanted):
    runs = {name: partial(channels, kinds) for name, kinds in KINDS.items()}
    runs |= {name: partial(locks, count) for name, count in PHILOSOPHERS.items()}
    runs |= {name: partial(own, name) for name in OWN} | {"15-services": pipeline}
    if "cells" in wanted or not wanted:
        cells()
    for name in sorted(set(wanted or runs) - {"cells"}):
        trace = runs[name]()
        path = trace.to_csv(HERE / "recorded" / f"{name}.csv.gz")
        raw = path.read_bytes()
        kinds = dict.fromkeys(known.kind for known in trace.channels or trace.traced_locks)
        what = ", ".join(f"`{kind}`" for kind in kinds)
        checksum, events = hashlib.sha256(raw).hexdigest(), len(trace.events())
        print(f"| `{path.name}` | {what} | {events:,} | {len(raw):,} | `{checksum}` |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
