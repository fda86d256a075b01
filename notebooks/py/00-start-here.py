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
# # Start here: how processes talk
#
# Two programs run on the same machine. Each has its own memory, and the kernel guards the wall between them. So how does a
# word get from one to the other? That is **inter-process communication**, IPC.
#
# In this notebook real processes on *your* machine talk through real mechanisms of the kernel. You watch every message travel,
# measure it, break it, and take a report home. Run the cells from top to bottom: **Shift + Enter**.

# %% [markdown]
# ## The wall
#
# `launch` starts another process and runs a function there. The function may change whatever it likes:

# %%
from labkit import launch

greeting = ["hello"]


def change():
    greeting.append("changed!")
    return greeting


there = launch(change).wait()
print("over there:", there)
print("here:      ", greeting)

# %% [markdown]
# The other process changed *its copy*. Ours is as it was. Memory is private (that is what makes a process a process),
# and anything that is to be shared has to go through the Linux kernel.
#
# ## One mechanism by hand
#
# The oldest way is the **pipe**, pipe(2): a buffer inside the kernel with one end to write and one to read. Here both are
# in our own process, so that nothing is hidden:

# %%
import os

read_end, write_end = os.pipe()
print("two file descriptors:", read_end, write_end)

os.write(write_end, b"first message, ")
os.write(write_end, b"second message")
print("one read gives:", os.read(read_end, 100))

# %% [markdown]
# Two writes, one read: a pipe carries a *stream of bytes*, it does not keep messages apart. And how does the reader learn that
# no more will come? When **every** write end is closed, read returns nothing: end of file.

# %%
os.close(write_end)
print("after the last writer has closed:", os.read(read_end, 100))
os.close(read_end)

# %% [markdown]
# Now with a second program at the other end. `tr` knows nothing of Python; it reads its standard input, which is our pipe:

# %%
import subprocess

read_end, write_end = os.pipe()
tr = subprocess.Popen(["tr", "a-z", "A-Z"], stdin=read_end, stdout=subprocess.PIPE)
os.close(read_end)  # tr has its own copy of this end now

os.write(write_end, b"it is a truth universally acknowledged")
os.close(write_end)  # without this line, tr would wait for ever
print(tr.communicate()[0].decode())

# %% [markdown]
# Textbooks use `os.fork()` here. We do not, and neither should you in a notebook: a Jupyter kernel has several threads,
# fork(2) copies only one of them, and a lock that another one held stays locked in the copy for ever. `launch` asks a
# single-threaded server process to fork instead.
#
# ## The same through a channel
#
# `channel(kind)` gives the two ends of any mechanism: `tx` sends, `rx` receives, data flows left to right. It takes care of
# the message boundaries. What we send is real: the hourly weather at New York's JFK airport in 2013, one record a message.

# %%
from pathlib import Path

weather = Path("../data/weather-jfk-2013.csv").read_bytes().splitlines()
header, rows = weather[0], weather[1:]
print(f"{len(rows):,} records, for example:\n", header.decode(), "\n", rows[0].decode())

# %%
import time


def producer(tx, rows, pause=None):
    for row in rows:
        tx.send(row)
        if pause:
            time.sleep(pause)


def consumer(rx):
    received = 0
    for message in rx:  # ends when the last sender has closed
        received += 1
    return received


# %% [markdown]
# ## Watch
#
# A `Trace` records what both ends do. `watch` draws it while it happens: processes are boxes, the channel is the line between
# them, each dot is one message. The producer pauses a little after each record, as a sensor would.

# %%
from labkit import Trace, channel, watch

trace = Trace()
tx, rx = channel("pipe", trace=trace)
watch(trace)

listening = launch(consumer, rx)  # gives rx away: it lives over there now
sending = launch(producer, tx, rows[:300], 0.01)
print("received:", await listening)
await sending  # raises what went wrong over there, if anything did

# %% [markdown]
# When the producer has ended you can go back: drag the slider, choose a slower speed, step from message to message. Real
# messages take microseconds; the view says how much it slows them down.
#
# ## Five mechanisms
#
# The same function, the same records, as fast as they go. Only the name of the mechanism changes:
#
# | kind | what it is | manual |
# |---|---|---|
# | `pipe` | a stream of bytes through a kernel buffer; labkit puts a length before each message | pipe(7) |
# | `unix_seqpacket` | a pair of sockets that keeps messages apart | unix(7) |
# | `posix_mq` | a queue inside the kernel: messages have priorities and may outlive their sender | mq_overview(7) |
# | `shm_ring` | a lock-free ring in shared memory: the kernel is not asked at all, except to sleep | memfd_create(2) |
# | `mp_queue` | Python's own `multiprocessing.Queue`, to compare with: a pipe, locks, pickle and a thread | pipe(7) |

# %% tags=["parameters"]
n = len(rows)  # how many records each of them carries
kinds = ["pipe", "unix_seqpacket", "posix_mq", "shm_ring", "mp_queue"]

# %%
race = Trace()
watch(race)
for kind in kinds:
    tx, rx = channel(kind, trace=race)
    listening = launch(consumer, rx)
    sending = launch(producer, tx, rows[:n])
    print(f"{kind:15} {await listening:,} messages")

# %% [markdown]
# Too fast to see? The replay is slowed down; slow it down further until single messages become visible.
#
# ## Measure
#
# `compare` matches every send with its receive. On the left: which share of the messages took at most so long. On the
# right: how many went through in a second.

# %%
race.compare()

# %% [markdown]
# These latencies are long, because the producer did its best to fill each channel: a message spends most of its time
# *waiting in the queue*. How long does a message take when nothing is in its way? Send one every half millisecond:

# %%
calm = Trace()
for kind in kinds:
    tx, rx = channel(kind, trace=calm)
    listening = launch(consumer, rx)
    sending = launch(producer, tx, rows[:1000], 0.0005)
    await listening

calm.compare()

# %% [markdown]
# How much of that is the mechanism's? No message can be faster than the way of one cache line between two cores, and none that
# goes through the kernel faster than a system call that does nothing. Both are measured here and drawn in:

# %%
watch(calm, view="latency")

# %% [markdown]
# Now the receiver sleeps when a message comes, and most of the time is the kernel waking it up. Two different questions, two
# different answers: **throughput** is about the cost of a message, **latency** about who has to be woken.
#
# ## Which one to choose
#
# Not by speed alone. What each mechanism promises (all of them, far more than four), checked by labkit's test suite both
# ways. A heading sorts the table, and says what it means:

# %%
from labkit import facts

watch(facts())


# %% [markdown]
# And the speed, in the numbers of this very run:

# %%
order = sorted(race.compare().throughputs, key=lambda t: t.messages_per_second)
times = order[-1].messages_per_second / order[0].messages_per_second
print(f"Most messages a second: {order[-1].label}, {times:.1f} times as many as {order[0].label}.")

quickest = min(calm.compare().latencies, key=lambda latency: latency.p50)
print(f"Shortest way when nothing is queued: {quickest}")

# %% [markdown]
# A rule of thumb to start with:
#
# - **Between related processes, without a second thought:** a pipe, or a Unix socket pair when messages must stay apart or
#   descriptors are to travel.
# - **The receiver comes and goes, urgent messages overtake:** a POSIX message queue.
# - **Between programs that know only a name:** a FIFO or a Unix socket; on different machines, TCP.
# - **Speed is what matters, one sender and one receiver:** shared memory with a lock-free ring.
#
# ## Break it
#
# What does the other side notice when a process is killed, with no time to say goodbye?

# %%
from labkit import RemoteError

tx, rx = channel("pipe")
listening = launch(consumer, rx)
sending = launch(producer, tx, rows, 0.01)
time.sleep(0.3)
sending.kill()  # kill -9

try:
    sending.wait()
except RemoteError as error:
    print("the producer: ", error)
print("the consumer:  end of file after", listening.wait(), "messages")

# %% [markdown]
# The kernel closes what a dead process had open, whatever it died of, and so the consumer sees an ordinary end of file. And the
# other way round?

# %%
from labkit import Closed

tx, rx = channel("pipe")
rx.close()
try:
    tx.send(b"is anybody there?")
except Closed as error:
    print("Closed:", error)

# %% [markdown]
# ## Exercise
#
# Write `strongest_wind(rx)`: it receives weather records until the sender has closed, and returns the largest `wind_speed`
# (column 9, counted from 0) in miles per hour, as a float. The check runs your function in a process of its own, on the other end of a
# real pipe.


# %%
def strongest_wind(rx):
    ...  # your turn


# %%
from labkit.exercises.start_here import check_strongest_wind

check_strongest_wind(strongest_wind, rows)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def strongest_wind(rx):
#     strongest = 0.0
#     for message in rx:
#         speed = message.decode().split(",")[9]
#         if speed != "NA":
#             strongest = max(strongest, float(speed))
#     return strongest
# ```
#
# A message is bytes, hence `decode`; some hours have no reading and say `NA`; as text, `'9.2'` is larger than `'25.3'`.
# </details>
#
# ## Take it home
#
# `report` writes one HTML file with the moving picture in it. It needs no network and no Jupyter: download it from the file
# browser on the left (folder `reports`), open it, send it to a colleague.

# %%
from labkit import report

report(race, "../reports/my-first-report.html")

# %% [markdown]
# The whole notebook, or all of them, from a terminal: `labkit report notebooks/00-start-here.ipynb -o report.html`, or
# `--to pdf`, or `-p n=1000` for another number in the cell above that sets `n`. And two of them, from two machines, side by
# side: `labkit report --compare mine.html yours.html`.
#
# ## What we learnt
#
# - A process's memory is its own; what is shared goes through the kernel, or through memory that the kernel maps for both.
# - A pipe is a stream of bytes; messages need boundaries, from the mechanism or from you.
# - End of file comes when the **last** sender has closed, also when it was killed.
# - Throughput is what a message costs; latency is mostly waiting, in a queue or to be woken.
#
# ## The labs
#
# | lab | question |
# |---|---|
# | **00-start-here** (this one) | How do processes talk, and which way should I choose? |
# | [01-pipes](01-pipes.ipynb) | What is a pipe, how much does it hold, and when do writes mix? |
# | [02-fifos](02-fifos.ipynb) | How do processes meet that have nothing in common but a name? |
# | [03-message-queues](03-message-queues.ipynb) | How can a message outlive its sender, and what when the receiver is slow? |
# | [04-shared-memory](04-shared-memory.ipynb) | Why is shared memory the fastest way, and what goes wrong in it? |
# | [05-semaphores](05-semaphores.ipynb) | How do processes wait for each other, and how do they deadlock? |
# | [06-sockets](06-sockets.ipynb) | Stream, datagram, TCP, UDP: what does each promise, and to whom am I talking? |
# | [07-signals-and-events](07-signals-and-events.ipynb) | What does the kernel tell a process, and how does it listen? |
# | [08-classic-problems](08-classic-problems.ipynb) | Which interleaving breaks it? Philosophers, readers and writers, a barber, a barrier. |
# | [09-lock-free-queue](09-lock-free-queue.ipynb) | How do two processes share a ring without a lock, and what makes it fast? |
# | [10-memory-ordering](10-memory-ordering.ipynb) | Who sees what, and when? Store buffers, fences, and what the compiler does. |
# | [11-crash](11-crash.ipynb) | What is left of a queue when a process dies in the middle of a message? |
# | [12-isolation](12-isolation.ipynb) | What does a namespace hide, and what gets through the wall? |
# | [13-cooperating-kernels](13-cooperating-kernels.ipynb) | How do two Jupyter kernels play ping-pong, and what when one dies? |
# | [14-remote-procedure-calls](14-remote-procedure-calls.ipynb) | No answer has come: was it done? JSON over HTTP, gRPC, ipyparallel. |
# | [15-services](15-services.ipynb) | Four services in a line: what is lost when one of them is killed? |
# | [16-outgrowing-one-machine](16-outgrowing-one-machine.ipynb) | What if one machine is not enough, and which mechanism leads to another? |
# | [17-how-jupyter-talks](17-how-jupyter-talks.ipynb) | What happens between Shift + Enter and the result? ZeroMQ, kernels, widgets. |
# | [18-electron-ipc](18-electron-ipc.ipynb) | How do the windows of an Electron program talk with its main process? |
# | [19-electron-security](19-electron-security.ipynb) | What can a hostile page reach, and which guard stops it? |
# | [20-webviews-and-comms](20-webviews-and-comms.ipynb) | What have Electron, VS Code, Tauri and Jupyter in common? |
#
# And beyond the labs:
#
# | read | for |
# |---|---|
# | `help(channel)`, `labkit/channels/` | every mechanism is one short file |
# | `labkit/lockfree/spsc.py` | the ring: its memory map, and why it is right |
# | `labkit doctor` in a terminal | what this machine and container allow |
#
# **Manual pages:** pipe(2), pipe(7), fork(2), unix(7), socketpair(2), mq_overview(7), memfd_create(2), mmap(2), poll(2), signal(7).
# **Book:** M. Kerrisk, *The Linux Programming Interface*, chapters 43, 44, 52, 54, 57.
