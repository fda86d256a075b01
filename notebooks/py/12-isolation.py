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
# # Isolation: the same name, and another object
#
# Two programs on one machine open the System V queue with the key 77. Do they talk to each other? So far the answer was yes. In a
# container it is no, and nobody changed a line of either program.
#
# What has changed is what a name leads to. The Linux kernel keeps its names in **namespaces**(7), several of each kind, and every
# process is in one of each kind. In this lab you make them, go in, look out, come back, and find out which wall stops what.

# %%
from labkit.replay import needs_namespaces

needs_namespaces("../data/cells/12-isolation.json")

# %% [markdown]
# ## Where am I?
#
# Every process has a folder `/proc/PID/ns` with a link for each kind. The number in it is the namespace: processes with the same
# number share it.

# %%
from labkit.isolation import KINDS, own_namespaces

here = own_namespaces()
for kind, number in here.items():
    print(f"{kind:6} {number}  isolates {KINDS[kind].isolates}")

# %% [markdown]
# A child inherits all of them:

# %%
from labkit import launch

print("the same as its parent's:", launch(own_namespaces).wait() == here)

# %% [markdown]
# ## By hand: unshare(2)
#
# One system call gives a process a new namespace. A process that has no privileges needs a new *user* namespace first, in which it
# has them all; more of that below. This child looks at its number, leaves its IPC namespace for a new one, and looks again:

# %%
# %%needs_namespaces
import ctypes

CLONE_NEWUSER, CLONE_NEWIPC = 0x1000_0000, 0x0800_0000


def unshare():
    before = own_namespaces()["ipc"]
    failed = ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWIPC)
    return before, own_namespaces()["ipc"], failed


before, after, failed = launch(unshare).wait()
print(f"from {before} to {after}, unshare(2) returned {failed}")

# %% [markdown]
# ## The same with labkit
#
# `namespace("ipc")` makes one and keeps it until the `with` is left. `launch(f, inside=ns)` starts a process in it. A queue
# with the key 77 is made here, and asked for in there:

# %%
# %%needs_namespaces
import sysv_ipc

from labkit import namespace


def find():
    try:
        return sysv_ipc.MessageQueue(77).receive()
    except sysv_ipc.ExistentialError as error:
        return f"{type(error).__name__}: {error}"


queue = sysv_ipc.MessageQueue(77, sysv_ipc.IPC_CREAT)
queue.send("from outside")
with namespace("ipc") as ns:
    print("inside: ", launch(find, inside=ns).wait())
print("outside:", launch(find).wait())
queue.remove()

# %% [markdown]
# And the other way round. `objects()` lists what there is: System V, POSIX, sockets, FIFOs, with those who use it. (In a terminal:
# `labkit ls`.) Both sides have a queue 77 now, and they are two:


# %%
# %%needs_namespaces
from labkit import objects


def own_queue():
    queue = sysv_ipc.MessageQueue(77, sysv_ipc.IPC_CREX)
    queue.send("from inside")
    return objects().of("System V queue")


queue = sysv_ipc.MessageQueue(77, sysv_ipc.IPC_CREX)
queue.send("this one is outside")
with namespace("ipc") as ns:
    inside = ns.run(own_queue)
    outside = objects().of("System V queue")
queue.remove()
print("inside:", inside, "", "outside:", outside, sep="\n")

# %% [markdown]
# The same key, another namespace, other bytes. Both have the identifier that the kernel counts in each namespace for itself.
#
# A namespace has no name of its own. It is reached through a process that is in it, by its `/proc/PID/ns/...`, and so
# does nsenter(1): in a terminal it puts you beside the processes in there.

# %%
# %%needs_namespaces
with namespace("ipc", "net") as ns:
    print(ns)
    print(*ns.paths.values(), sep="\n")
    print(f"in a terminal: nsenter --target {ns.pid} --ipc --net ipcs")

# %% [markdown]
# ## The wall, seen
#
# A producer and a consumer, and a System V queue between them. Here the producer is handed its end, and then goes behind the wall:
# the identifier that it holds means nothing there.

# %%
# %%needs_namespaces
from labkit import Trace, channel, watch


def producer(tx):
    for number in range(200):
        try:
            tx.send(b"message %d" % number)
        except EOFError as error:
            refused = str(error)
    return refused


trace = Trace()
tx, rx = channel("sysv_mq", trace=trace)
watch(trace)
with namespace("ipc") as ns:
    print("the producer:", launch(producer, tx, inside=ns).wait())
rx.close()

# %% [markdown]
# Each message ends at the wall: msgsnd(2) says EIDRM or EINVAL, there is no such queue.
#
# ## POSIX queues as files
#
# POSIX queues belong to the IPC namespace, too, and whoever mounts the file system *mqueue*(7) sees those of the namespace in which
# it was mounted. Inside there is a mount namespace as well, so that the mount is nobody else's:


# %%
# %%needs_namespaces
import os
from pathlib import Path

import posix_ipc


def list_queues():
    posix_ipc.MessageQueue("/lab12", posix_ipc.O_CREX, max_messages=4, max_message_size=64).send(b"hello")
    os.mkdir("/dev/shm/queues")
    failed = ctypes.CDLL(None).mount(b"none", b"/dev/shm/queues", b"mqueue", 0, None)
    files = {path.name: path.read_text().strip() for path in Path("/dev/shm/queues").iterdir()}
    return f"mount(2) returned {failed}", files


with namespace("ipc", "mount") as ns:
    print("inside: ", *ns.run(list_queues))
print("outside:", [one.name for one in objects().of("POSIX queue") if "lab12" in one.name])

# %% [markdown]
# ## Limits of its own
#
# Limits belong to a namespace, too: how many messages a POSIX queue may hold, how large a System V segment may be. The files of
# `/proc/sys` show the values of the reader's namespace, and who is privileged there may change them. Outside nothing happens.


# %%
# %%needs_namespaces
LIMITS = {Path("/proc/sys/fs/mqueue/msg_max"): "100", Path("/proc/sys/kernel/shmmax"): "65536"}


def change_limits():
    said = []
    for limit, value in LIMITS.items():
        before = limit.read_text().strip()
        try:
            limit.write_text(value)
        except OSError as refused:
            said.append(f"{limit.name} is {before}; changing it is refused: {refused.strerror}")
        else:
            said.append(f"{limit.name} was {before} and is {limit.read_text().strip()}")
    return said


# %%
# %%needs_namespaces
with namespace("ipc") as ns:
    print("inside: ", *ns.run(change_limits), sep="\n  ")
print("outside:", *(f"{limit.name} is {limit.read_text().strip()}" for limit in LIMITS), sep="\n  ")

# %% [markdown]
# ## How long does it live?
#
# As long as somebody is in it, or has it open. `namespace` keeps a small process in it for you, the *holder*. Here the holder
# is killed while another process is still inside:


# %%
# %%needs_namespaces
import signal
import time

from labkit import RemoteError
from labkit.isolation import those_of


def stays(tx):
    sysv_ipc.MessageQueue(77, sysv_ipc.IPC_CREX)
    tx.send(b"made")
    time.sleep(60)


# %%
# %%needs_namespaces
with namespace("ipc") as ns:
    tx, rx = channel("pipe")
    job = launch(stays, tx, inside=ns)
    rx.receive()
    os.kill(ns.pid, signal.SIGKILL)
    print("after the holder:", len(those_of(job.pid).run(objects).of("System V queue")), "queue inside")
rx.close()
try:
    job.wait()
except RemoteError as ended:
    print(ended)

# %% [markdown]
# Leaving the `with` ended the last process, and with it the namespace and its queue. Nobody has called msgctl(2) to remove it: System
# V objects live until they are removed, *or* until their namespace ends. That is why containers leave none behind.
#
# ## Which wall stops what?
#
# Everything above was about the IPC namespace, whose name promises much. What does it hide, and what not? Before you measure it,
# predict it.
#
# ## Exercise: predict the table
#
# For each mechanism: which kind of namespace hides one made outside from a process inside? Think of what it is found by. Write
# `predict(mechanism)`: "ipc", "mount", "net", "pid", "user" or "uts". The mechanisms are "System V queue", "System V semaphores",
# "System V memory", "POSIX queue", "POSIX memory", "POSIX semaphore", "FIFO", "Unix socket with a path", "Unix socket, abstract",
# "TCP port", "UDP port" and "signal to a pid".


# %%
def predict(mechanism):
    ...  # your turn


# %% [markdown]
# Now the measurement: for each kind, a new namespace of that kind alone. One of everything is made outside and looked for inside,
# and then the other way round.

# %%
from labkit.boundary import Boundary, boundary
from labkit.replay import why_not

refused = why_not()
table = Boundary.load("../data/cells/boundary.json", refused) if refused else boundary()
table

# %%
from labkit.exercises.isolation import check_prediction

check_prediction(predict, table)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def predict(mechanism):
#     by = {
#         "ipc": ["System V queue", "System V semaphores", "System V memory", "POSIX queue"],
#         "mount": ["POSIX memory", "POSIX semaphore", "FIFO", "Unix socket with a path"],
#         "net": ["Unix socket, abstract", "TCP port", "UDP port"],
#         "pid": ["signal to a pid"],
#     }
#     return next(kind for kind, mechanisms in by.items() if mechanism in mechanisms)
# ```
# </details>
#
# What a cell rests on: the call that was tried, and what it said. Three of them:

# %%
for cell in (("POSIX queue", "ipc"), ("POSIX memory", "ipc"), ("signal to a pid", "pid")):
    print(*cell, "→", table[cell].proof)

# %% [markdown]
# Two surprises. POSIX shared memory and semaphores do not care for the IPC namespace: they are files in `/dev/shm`. And the PID
# namespace is a wall that can be seen through from one side: a process inside has a pid outside, too. The *user* and *uts* columns
# are empty: they hide who one is and what the machine is called, and no way to talk.
#
# ## What containers make of it
#
# Docker's `--ipc` chooses which of these walls a container gets. All three are two system calls:
#
# | `docker run --ipc=` | IPC namespace | /dev/shm |
# |---|---|---|
# | `private` | its own | its own |
# | `shareable` | its own, others may join | its own, others may join |
# | `host` | the host's | the host's |
#
# A container with `private`, one more that joins (`--ipc=container:ID`), and one with `host`; each has its own PID namespace. Who
# finds the queue and the memory that the first one has made?


# %%
# %%needs_namespaces
def makes():
    sysv_ipc.MessageQueue(77, sysv_ipc.IPC_CREX)
    posix_ipc.SharedMemory("/lab12", posix_ipc.O_CREX, size=4096).close_fd()


def finds():
    kinds = ("System V queue", "POSIX memory")
    return [kind for kind in kinds if any("4d" in one.name or "lab12" in one.name for one in objects().of(kind))]


with namespace("ipc", "mount", "pid") as first:
    first.run(makes)
    with namespace("pid") as host:
        print("the first itself:    ", first.run(finds))
        print("--ipc=container:first:", launch(finds, inside=first).wait())
        print("--ipc=host:           ", host.run(finds))

# %% [markdown]
# A Kubernetes **pod** is the same idea once more: the containers of a pod share the network and the IPC namespace, kept open by a
# process that does nothing (*pause*, our holder), and have files and pids of their own. So they find each other on 127.0.0.1, and
# not in `/tmp`:


# %%
# %%needs_namespaces
import socket


def serve(tx):
    with socket.create_server(("127.0.0.1", 8080)) as server:
        open("/dev/shm/mine", "w").close()
        tx.send(b"listening")
        server.accept()


def visit():
    socket.create_connection(("127.0.0.1", 8080), 5).close()
    return f"connected to 127.0.0.1:8080; files of the other: {os.listdir('/dev/shm')}"


pod = namespace("net", "ipc", "uts")
with pod, namespace("mount", "pid", inside=pod) as web, namespace("mount", "pid", inside=pod) as sidecar:
    tx, rx = channel("pipe")
    job = web.launch(serve, tx)
    rx.receive()
    print(sidecar.run(visit))
    rx.close()

# %% [markdown]
# ## Two labs side by side
#
# Two people run the same notebook on one machine. Both make the queue with the key 77, and the second is told that it exists. With a
# namespace for each, neither knows of the other:


# %%
# %%needs_namespaces
def lab(tx, until):
    try:
        queue = sysv_ipc.MessageQueue(77, sysv_ipc.IPC_CREX)
    except sysv_ipc.ExistentialError:
        tx.send(b"collision: somebody has key 77 already")
        return
    tx.send(b"made queue 77")
    for _ in until:  # until the end of the lab
        pass
    queue.remove()


# %%
# %%needs_namespaces
def both(first, second):
    said, ends = [], []
    with first, second:
        for ns in (first, second):
            (tx, rx), (until, told) = channel("pipe"), channel("pipe")
            ns.launch(lab, tx, told)
            said.append(rx.receive().decode())
            ends += rx, until
        for end in ends:
            end.close()
    return said


print("one IPC namespace: ", both(namespace("uts"), namespace("uts")))
print("one for each:      ", both(namespace("ipc"), namespace("ipc")))

# %% [markdown]
# ## Exercise: where is the queue?
#
# A queue is stuck somewhere, with a key that you know, in a namespace that you do not. Write `find(key)`: the pid of a process in
# whose IPC namespace there is a queue with this key. `own_namespaces(pid)["ipc"]` is the number of a process's namespace, and
# `those_of(pid, "ipc").run(f)` calls f in it. (`labkit ls --inside PID` does, too.) Processes of others refuse: `OSError`.


# %%
def find(key):
    ...  # your turn


# %%
from labkit.exercises.isolation import check_find_queue

check_find_queue(find)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def find(key):
#     def is_there():
#         try:
#             sysv_ipc.MessageQueue(key)
#         except sysv_ipc.ExistentialError:
#             return False
#         return True
#
#     somebody = {}
#     for pid in filter(str.isdigit, os.listdir("/proc")):
#         try:
#             somebody[own_namespaces(pid)["ipc"]] = int(pid)
#         except OSError:
#             pass  # it has ended, or is not ours
#     for pid in somebody.values():
#         try:
#             # In a user namespace of its own one may only be by entering it, too.
#             if those_of(pid).run(is_there):
#                 return pid
#         except (OSError, RuntimeError):
#             pass  # not ours to enter
# ```
#
# Each namespace is asked once, through one process that is in it.
# </details>
#
# ## Exercise: through the wall
#
# Two namespaces, `a` and `b`, which share neither keys nor ports nor files. Write `talk(speak, listen, a, b)`: it launches
# `speak(tx)` inside a and `listen(rx)` inside b, with the two ends of *some* channel, and returns the two jobs.


# %%
def talk(speak, listen, a, b):
    ...  # your turn


# %%
from labkit.exercises.isolation import check_talk

check_talk(talk)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def talk(speak, listen, a, b):
#     tx, rx = channel("unix_seqpacket")
#     return launch(speak, tx, inside=a), launch(listen, rx, inside=b)
# ```
#
# The channel is made out here, and its ends are handed over as descriptors. A namespace decides what a *name* leads to. A
# descriptor is no name: it has been looked up already. Between strangers SCM_RIGHTS does the same (lab 06).
# </details>
#
# ## What we learnt
#
# - A name leads to an object *in a namespace*. Keys, queue names, ports, paths and pids are names; each kind of namespace keeps some
#   of them, and every process is in one of each kind.
# - The IPC namespace keeps System V objects and POSIX queues. POSIX memory and semaphores are files (mount), as are FIFOs and sockets
#   with a path. Abstract sockets and ports belong to the network, signals to the PID namespace, which is a wall in one direction.
# - A namespace lives as long as somebody is in it or has it open; then its objects go, without being removed one by one.
# - Containers and pods are made of these: which walls they share is what `--ipc=` and a pod are about.
# - A descriptor passes every wall.
#
# **Manual pages:** namespaces(7), ipc_namespaces(7), mount_namespaces(7), network_namespaces(7), pid_namespaces(7),
# user_namespaces(7), unshare(2), setns(2), nsenter(1), lsipc(1), mq_overview(7), shm_overview(7), sem_overview(7), unix(7).
# **Book:** M. Kerrisk, *The Linux Programming Interface*, chapters 28 (clone), 45 to 48, 61; namespaces are younger than the book: the
# same author's series *Namespaces in operation*, LWN.net, 2013.
