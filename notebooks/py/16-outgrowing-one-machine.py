# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Outgrowing one machine
#
# Everything so far happened on one machine: one Linux kernel, one memory. What if that is too small? Then there are two questions. Which
# of the mechanisms still works when the other side is on another host? And who starts the processes over there, brings them their work,
# and notices when one dies? The first has an answer in the tables of these labs. For the second there are engines that others have built
# and tested for years; here you use one of them, **ipyparallel**, the Jupyter project's own.

# %%
from labkit.replay import needs_namespaces

needs_namespaces("../data/cells/16-outgrowing-one-machine.json")

# %% [markdown]
# ## By hand
#
# Work that is divided, on one machine: a process for each part, and the results collected. `launch` does that, and for some minutes'
# work on one machine nothing more is needed:

# %%
import os
import socket

from labkit import launch


def count_primes(lowest, highest):
    found = sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(max(lowest, 2), highest))
    return found, socket.gethostname(), os.getpid()


lowest = [0, 5_000, 10_000, 15_000]
highest = [5_000, 10_000, 15_000, 20_000]
jobs = [launch(count_primes, low, high) for low, high in zip(lowest, highest, strict=True)]
results = [job.wait() for job in jobs]
print(sum(found for found, _, _ in results), "primes, counted by processes", *{pid for _, _, pid in results})

# %% [markdown]
# But `launch` cannot go further than this machine. It gives a child its channels as *descriptors*, and a descriptor is a number in a table
# of this Linux kernel. Through a wire go bytes only. So somebody has to be there already, listening on a network socket.
#
# ## The same on a cluster
#
# In ipyparallel these are the **engines**: processes that wait for work. They and your notebook connect to a **controller**, which hands
# work to whichever engine is free and watches their heartbeats. `cluster(2)` starts a controller and two engines on this machine:

# %%
import time

from labkit import cluster

begin = time.perf_counter()
c = cluster(2)
print(f"{c}, up in {time.perf_counter() - begin:.1f} s")

# %%
for found, host, pid in c.map(count_primes, lowest, highest):
    print(found, "primes, counted by process", pid)

# %% [markdown]
# The function was written in this notebook. It was pickled and sent, as `launch` does it, but over TCP. Everything that ipyparallel can
# do is there as well: `c.client` is its own client.
#
# Who talks to whom? The controller listens on a good dozen ports, on 127.0.0.1 only. Anybody who could connect *and* knew the key in
# its connection file could run code here. That is what an engine is for, and why that file is readable only for you.

# %%
from pathlib import Path

connection = next(Path(c.client.cluster.profile_dir, "security").glob("*client.json"))
print(connection.name, "may be read by:", oct(connection.stat().st_mode & 0o777))
print("controller and engines meet at", c.client.cluster.controller_ip)

# %% [markdown]
# ## Measure: a parameter sweep
#
# How long does a message take there and back, by mechanism and size? Each point of such a *sweep* is independent of all others, and that
# is what clusters are best at. This function is part of `labkit bench`:

# %%
import inspect

from labkit.bench import sweep_cost

print(inspect.getsource(sweep_cost.round_trip))

# %% tags=["parameters"]
TRIPS = 200

# %%
from itertools import product

points = list(product(sweep_cost.KINDS, sweep_cost.SIZES))
times = c.map(sweep_cost.round_trip, *zip(*points, strict=True), [TRIPS] * len(points))

# %%
from labkit.draw import plot_lines

lines = {kind: [] for kind in sweep_cost.KINDS}
for (kind, size), took in zip(points, times, strict=True):
    lines[kind].append((size, took))
plot_lines(lines, "bytes in a message", "there and back, median (µs)", log="xy", style="dots")

# %% [markdown]
# A warning. These two engines shared the processors of one machine, and so each measured also what the other did. For results that count,
# have one engine on each machine, and write down which machine it was. For everything but measuring time this does not matter.
#
# ## Break it
#
# An engine dies in the middle of the work. The controller misses its heartbeats and gives what was not begun to the other. What it was
# just working on has failed, and says so:


# %%
def fragile(n):
    time.sleep(0.2)
    if n == 3:
        os.kill(os.getpid(), 9)
    return n * n


try:
    c.map(fragile, range(8), progress=False)
except Exception as error:
    print(type(error).__name__, *str(error).splitlines(), sep="\n")
print(c)

# %% [markdown]
# Should it be tried again? That depends on whether it is harmful to do it twice, and only the author of the function knows. Lab 14 is
# about that question.

# %%
c.stop()

# %% [markdown]
# ## The other side is on another host
#
# Which mechanisms still find it there? Another host has another Linux kernel: other IPC objects, other files, other pids, another network
# stack. Namespaces (lab 12) make a "host" like that here. A receiver with a name on this side, a sender over there:


# %%
import contextlib

from labkit import facts, receiver, sender, unlink

NAMED = [kind for kind, fact in facts().items() if not fact.related_only]


def reach(kind):
    try:
        with sender(kind, "lab16") as tx:
            tx.send(b"hello", timeout=2)
    except (OSError, EOFError) as refused:
        return str(refused).partition("; ")[0]
    return "reached it"


def ask(kind, where=None):
    with receiver(kind, "lab16", create=True):
        said = launch(reach, kind, inside=where).wait()
    with contextlib.suppress(FileNotFoundError):  # some names go with their receiver
        unlink(kind, "lab16")
    return said


# %%
# %%needs_namespaces
from labkit import namespace

with namespace("ipc", "mount", "net", "pid", "uts") as elsewhere:
    for kind in NAMED:
        print(f"{kind:15} here: {ask(kind):12} elsewhere: {ask(kind, elsewhere)}")

# %% [markdown]
# None, not even tcp and udp: labkit notes in a file of this host which port belongs to a name, and listens on 127.0.0.1, which means
# another host in each network namespace. What the facts say of each is why, and what becomes of it when you have to cross:

# %%
BY = {
    "ipc": "stays: its names and memory belong to one kernel",
    "mount": "stays: a path, but what it names is one kernel's, even on NFS",
    "mount, pid": "stays: a kernel signals its own processes",
    "net": "crosses, if it listens on an address the other host can reach",
    "none": "stays: no name, and no wire carries a descriptor",
}
for kind, fact in facts().items():
    print(f"{kind:15} {BY[fact.namespaced_by]}")

# %% [markdown]
# Two are left, TCP and UDP, and what is made of them: HTTP, gRPC (lab 14), ZeroMQ over tcp://, MPI. What they cost: no shared memory, so
# that every byte is copied and sent; latency of the wire instead of the scheduler's; the other side may be unreachable without being dead, and
# nobody can tell the difference; no common clock, and so a trace of two hosts cannot be merged by time alone.
#
# ## Exercise: what crosses?
#
# Write `crosses(fact)`: True when a mechanism with these facts can, as such, lead to a process on another host. `fact` is one row of
# `facts()`; `namespaced_by` and `related_only` are two of its fields.


# %%
def crosses(fact):
    ...  # your turn


# %%
from labkit.exercises.outgrowing_one_machine import check_crosses

check_crosses(crosses)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def crosses(fact):
#     return fact.namespaced_by == "net" and not fact.related_only
# ```
#
# A name in the network's namespace is an address and a port, and addresses are the only names that mean something to another host.
# </details>
#
# ## Exercise: a sweep that survives
#
# In a long sweep some point will fail. Write `collect(c, f, points)`: it has f(point) computed for each point by the engines of `c`, and
# returns a dictionary from each point to its result, or to `None` where f raised.


# %%
def collect(c, f, points):
    ...  # your turn


# %%
from labkit.exercises.outgrowing_one_machine import check_collect

check_collect(collect)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def collect(c, f, points):
#     def careful(point):
#         try:
#             return f(point)
#         except Exception:
#             return None
#
#     return dict(zip(points, c.map(careful, points, progress=False)))
# ```
#
# The error is caught where it happens, on the engine: `map` raises the first one it hears of, and then the other results are lost with it.
# `careful` takes f along, as a function of this notebook takes along what it refers to.
# </details>
#
# ## Your machines
#
# `cluster(profile="course")` starts engines wherever a profile says. `ipython profile create --parallel --profile=course` makes one;
# what follows goes into its `ipcluster_config.py`. Three examples:
#
# ```python
# c.Cluster.engine_launcher_class = "ssh"                     # one engine on each of two hosts, by ssh(1)
# c.SSHEngineSetLauncher.engines = {"host1.example": 1, "host2.example": 1}
# c.Cluster.controller_ip = "0.0.0.0"                         # or they could not reach the controller: asked for in so many words
#
# c.Cluster.engine_launcher_class = "slurm"                   # also: pbs, sge, lsf, htcondor
# c.SlurmEngineSetLauncher.queue = "teaching"
#
# c.Cluster.engine_launcher_class = "mpi"                     # mpiexec starts them, and they can use mpi4py
# ```
#
# labkit has to be installed there, in the same version of Python. Who has got an `ipcontroller-client.json` of a cluster that runs already,
# for example from a teacher, connects with `cluster(url_file=...)`.
#
# ## When to reach for something else
#
# - **ipyparallel**: you think in engines, want to see and steer each of them from a notebook, or have MPI or a batch system.
# - **Dask**: the *data* is too large. Arrays and tables that look like NumPy's and pandas', cut into blocks; a scheduler that keeps
#   track of what depends on what. It runs on one machine, on batch systems (dask-jobqueue) and on Kubernetes (dask-kubernetes, its own
#   operator). An ipyparallel cluster can become a Dask cluster: `c.client.become_dask()`.
# - **Ray**: the *program* is distributed. Actors, which are processes with a state that others call; objects in shared memory on each
#   machine; training and serving of models. It brings a cluster launcher for clouds and an operator for Kubernetes (KubeRay).
# - **MPI**: all processes compute in step and exchange borders with each other, on a fast network.
# - **None of these**: services that run for months and talk to others. Those want RPC or a message broker (labs 14, 15).
#
# ## What we learnt
#
# - A descriptor passes every wall, but no wire. Between hosts there are addresses and bytes.
# - Of all mechanisms only those named by the network cross, and what is built on them.
# - Starting processes elsewhere, giving them work and noticing their death is a program of its own. Use one that exists.
# - Independent points are easy to distribute. What may be done twice can be tried again; what raises is caught where it runs.
# - Engines run code for whoever has the key: keep the connection file secret, and listen on 127.0.0.1 unless you need more.
#
# **Manual pages:** namespaces(7), tcp(7), udp(7), ssh(1). **Read on:** ipyparallel.readthedocs.io, docs.dask.org, docs.ray.io.
