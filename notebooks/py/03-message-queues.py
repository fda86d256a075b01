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
# # Message queues: can you send to somebody who is not there yet?
#
# A pipe is a telephone line: both must be there, and when one hangs up it is over. A **message queue** is a letter box. It
# belongs to the kernel, not to a process: you put messages in and go home, and whoever comes later finds them, whole, and
# the urgent ones on top if you like.
#
# Linux has two kinds. **System V** queues are from the 1980s, **POSIX** queues from the 1990s, which had learnt from the
# others' mistakes. In this lab you use both, side by side, see what happens when a letter box is full, and find out why a
# limit says something else than it means.

# %% [markdown]
# ## Two programs that never meet
#
# A weather station measures, sends what it has, and ends. *Then* a reader starts. Each is a program of its own, and knows
# nothing of the other but a name. First the POSIX way, mq_open(3), through the thin package `posix_ipc`:

# %%
import os
import subprocess
import sys
from pathlib import Path

weather = Path("../data/weather-jfk-2013.csv").read_text().splitlines()[1:]

STATION = """
import os, posix_ipc, sys
queue = posix_ipc.MessageQueue(sys.argv[1], posix_ipc.O_CREX, mode=0o600, max_messages=10, max_message_size=200)
lines = sys.stdin.read().splitlines()
for line in lines:
    queue.send(line)
print(f"station: I am process {os.getpid()}, I have sent {len(lines)} readings, and I end now")
"""

name = f"/weather-{os.getpid()}"
station = subprocess.run([sys.executable, "-c", STATION, name], input="\n".join(weather[:8]), text=True)
print("the station has ended, status", station.returncode)

# %% [markdown]
# Nobody is there now. Where are the readings? On Linux a POSIX queue is a file of a file system of its own, and reading that
# file tells how it is filled:

# %%
import posix_ipc

queue = posix_ipc.MessageQueue(name)
print(os.pread(queue.mqd, 100, 0).decode())
print(queue.current_messages, "messages wait; there is room for", queue.max_messages)
queue.close()

# %% [markdown]
# QSIZE is in bytes. And now the reader comes:

# %%
READER = """
import os, posix_ipc, sys
queue = posix_ipc.MessageQueue(sys.argv[1])
while queue.current_messages:
    message, priority = queue.receive()
    print(f"reader {os.getpid()}:", message.decode()[:40], "...")
"""

print(subprocess.run([sys.executable, "-c", READER, name], capture_output=True, text=True).stdout)

# %% [markdown]
# Nobody will remove the queue, though. It stays, messages and all, until somebody *unlinks* it or the machine is restarted:
# **kernel persistence**, TLPI §43.2.

# %%
posix_ipc.unlink_message_queue(name)
try:
    posix_ipc.MessageQueue(name)
except posix_ipc.ExistentialError as error:
    print(error)

# %% [markdown]
# ## The same with System V
#
# Here a queue has no name but a number, its **key**. ftok(3) makes one out of the name of a file that both programs know:

# %%
import sysv_ipc

key = sysv_ipc.ftok("../data/README.md", 3, silence_warning=True)
STATION = """
import sys, sysv_ipc
queue = sysv_ipc.MessageQueue(int(sys.argv[1]), sysv_ipc.IPC_CREX, mode=0o600)
for line in sys.stdin:
    queue.send(line.rstrip())
"""
subprocess.run([sys.executable, "-c", STATION, str(key)], input="\n".join(weather[:8]), text=True, check=True)

print(f"key {key:#x}\n")
for line in Path("/proc/sysvipc/msg").read_text().splitlines():  # ipcs -q shows the same
    fields = line.split()
    if fields[0] in ("key", str(key)):
        print("".join(f"{field:>12}" for field in fields[:7]))

# %% [markdown]
# `lspid` is who sent last: a process that is no more. `cbytes` and `qnum` are what waits. The reader:

# %%
READER = """
import sys, sysv_ipc
queue = sysv_ipc.MessageQueue(int(sys.argv[1]))
while queue.current_messages:
    message, type = queue.receive()
    print("of type", type, ":", message.decode()[:40], "...")
queue.remove()
"""
print(subprocess.run([sys.executable, "-c", READER, str(key)], capture_output=True, text=True).stdout)

# %% [markdown]
# Nearly the same program, and still there are differences that matter:
#
# | | POSIX | System V |
# |---|---|---|
# | found by | a name, `/weather` | a key, an integer that may collide |
# | held as | a file descriptor: poll(2), close, hand over | an identifier of the whole system: nothing to close |
# | who still uses it? | the kernel counts: unlinked, it goes with its last user | nobody counts: removed, it is gone for everybody at once |
# | order | priority, then age | age, or chosen by *type* |
# | is there something? | mq_notify(3), poll | only by asking, or by waiting |
# | limits | messages and bytes, RLIMIT_MSGQUEUE for each user | bytes of the queue, kernel.msgmnb |
#
# "Nobody counts" is why so many machines have dead System V queues lying about. labkit keeps a note beside each one of
# its own, so that they go even after kill -9.

# %% [markdown]
# ## Priorities and types
#
# Letters in a box have an order. A storm warning should not wait behind a hundred ordinary readings. With POSIX each message has
# a **priority**, and the highest comes out first. Our readings get the speed of the wind, column 9, as their priority:

# %%
from labkit import channel


def wind(line):
    speed = line.split(",")[9]
    return 0 if speed == "NA" else round(float(speed))


tx, rx = channel("posix_mq")
for line in weather[:10]:
    tx.send(line.encode(), priority=wind(line))
tx.close()
print("sent:    ", [wind(line) for line in weather[:10]])
print("received:", [wind(message.decode()) for message in rx])

# %% [markdown]
# Messages of the same priority stay in the order in which they were sent. The receiver has no say in it: it gets the highest.
#
# With System V each message has a **type**, a positive number, and it is the *receiver* who chooses: the oldest of all (0),
# the oldest of one type (n), or the lowest type up to n (−n), msgop(2):

# %%
tx, rx = channel("sysv_mq")
for number, message in [(3, b"report"), (1, b"alarm"), (2, b"warning"), (3, b"second report"), (1, b"second alarm")]:
    tx.send(message, type=number)

print("the oldest:              ", rx.receive(type=0))
print("the oldest of type 2:    ", rx.receive(type=2))
print("the lowest type up to 3: ", rx.receive(type=-3), rx.receive(type=-3), rx.receive(type=-3))
for end in (tx, rx):
    end.close()

# %% [markdown]
# So one System V queue can serve many receivers, each with a type of its own. The classic use: everybody sends requests with
# type 1 to a server, and the server answers with the *process id of the client* as the type. There and back in one queue:

# %%
from labkit import launch


def server(requests, answers, count):
    for _ in range(count):
        client, line = requests.receive(type=1).split(b" ", 1)
        answers.send(line.split(b",")[5] + b" degrees F", type=int(client))


def client(requests, answers, line):
    requests.send(b"%d " % os.getpid() + line.encode(), type=1)
    return os.getpid(), answers.receive(type=os.getpid())


tx, rx = channel("sysv_mq")
serving = launch(server, rx.clone(), tx.clone(), 4)
for job in [launch(client, tx.clone(), rx.clone(), weather[hour]) for hour in (0, 6, 12, 18)]:
    print(await job)
await serving
for end in (tx, rx):
    end.close()

# %% [markdown]
# ## The same through a channel
#
# You have seen it already: `channel("posix_mq")` and `channel("sysv_mq")` have the usual two ends, with `priority=` and `type=`
# in addition. With a name, two functions that never run at the same time can meet, and `sender` and `receiver` open one
# end each. The station is over before the reader begins:

# %%
from labkit import receiver, sender, unlink


def send_some(kind, name, lines):
    with sender(kind, name, create=True) as tx:
        for line in lines:
            tx.send(line.encode())
    return os.getpid()


def read_some(kind, name, count):
    with receiver(kind, name) as rx:
        return os.getpid(), [rx.receive().decode()[:16] for _ in range(count)]


for kind in ("posix_mq", "sysv_mq"):
    print(kind, "sent by", await launch(send_some, kind, "station", weather[:3]))
    print(kind, "read by", *await launch(read_some, kind, "station", 3))
    unlink(kind, "station")

# %% [markdown]
# ## Watch
#
# A station sends in bursts, a reader takes its time for each reading. The queue lies between them and *decouples* the two: the
# station does not have to wait for the reader, as long as there is room.

# %%
import time

from labkit import Trace, watch


def bursts(tx, lines, size, pause):
    for start in range(0, len(lines), size):
        for line in lines[start : start + size]:
            tx.send(line.encode())
        time.sleep(pause)


def take_time(rx, pause):
    for _ in rx:
        time.sleep(pause)


calm = Trace()
watch(calm)
tx, rx = channel("posix_mq", trace=calm)
reader, station = launch(take_time, rx, 0.012), launch(bursts, tx, weather[:96], 8, 0.15)
await reader

# %% [markdown]
# How many messages were in the box at each moment? Each send adds one, each receive takes one away. And the same once more
# with a reader that is too slow: it needs longer for a burst than there is between two.

# %%
busy = Trace()
tx, rx = channel("posix_mq", trace=busy)
reader, station = launch(take_time, rx, 0.025), launch(bursts, tx, weather[:96], 8, 0.15)
await reader

# %%
from labkit.draw import plot_lines


def occupancy(trace):
    """(ms, messages in the queue) at each moment at which it changed."""
    messages = trace.messages()
    changes = [(when, 1) for when in messages["send_ends"]] + [(when, -1) for when in messages["receive_ends"]]
    first, inside, points = messages["send_begins"][0], 0, []
    for when, change in sorted(changes):
        inside += change
        points.append(((when - first) / 1e6, max(inside, 0)))
    return points


lines = {"a reader in time": occupancy(calm), "a reader too slow": occupancy(busy)}
plot_lines(lines, "time (ms)", "messages in the queue", style="steps")

# %% [markdown]
# `watch` draws the same, and below it when the station was inside `send` and the reader inside `receive`. Where the queue is full
# the station is blocked (hatched): that is *backpressure*. The reader in time waits instead (framed).

# %%
watch(busy, view="occupancy")

# %%
for label, trace in (("in time", calm), ("too slow", busy)):
    messages = trace.messages()
    waited = (messages["send_ends"] - messages["send_begins"]) / 1e6
    inside = max(amount for _, amount in occupancy(trace))
    print(f"reader {label}: at most {inside} in the queue, the longest send took {waited.max():.2f} ms")

# %% [markdown]
# A reader in time empties the box between two bursts: teeth. The slow one does not get to the bottom before the next burst
# comes, soon the box is full, and then the station has to wait for room in the middle of its work. That is
# **back-pressure**. A queue makes up for *bursts*, never for a receiver that is too slow on the whole: it only puts off the
# moment at which you notice.

# %% [markdown]
# ## Measure
#
# What does all that comfort cost? Four mechanisms, the same messages, as fast as they go, and then one every half millisecond,
# so that the receiver has to be woken each time:

# %%
kinds = ["pipe", "unix_seqpacket", "posix_mq", "sysv_mq"]
rows = [line.encode() for line in weather]


def consumer(rx):
    return sum(1 for _ in rx)


def producer(tx, rows, pause=0.0):
    for row in rows:
        tx.send(row)
        if pause:
            time.sleep(pause)


race, quiet = Trace(), Trace()
for trace, some, pause in ((race, rows, 0.0), (quiet, rows[:800], 0.0005)):
    for kind in kinds:
        tx, rx = channel(kind, trace=trace)
        listening, sending = launch(consumer, rx), launch(producer, tx, some, pause)
        await listening
race.compare()

# %%
quiet.compare()

# %% [markdown]
# Look at the throughput of the first and at the latency of the second: two different questions. All four copy each message
# into the kernel and out again, and all have to wake a receiver that sleeps. Where the sender wins the
# race, a message spends most of its time behind others: the fewer fit in, the shorter it waits, and the oftener the sender has
# to sleep. Where the receiver keeps up, it hardly waits at all. So how many fit in?

# %%
for kind in kinds:
    tx, rx = channel(kind)
    print(f"{kind:15} holds {tx.capacity.amount:9,} {tx.capacity.unit}")
    tx.close(), rx.close()

# %% [markdown]
# ## Tell me when something comes
#
# A program with other things to do does not want to sit in mq_receive(3). A POSIX queue can *notify* it, mq_notify(3): by
# a signal, when a message comes into an **empty** queue, and **once**. Here it is by hand, in a process of its own:

# %%
def notified(rx, rearm):
    import signal

    from labkit.libc import SIGEV_SIGNAL, ffi, libc

    received = []
    event = ffi.new("struct sigevent *", {"sigev_notify": SIGEV_SIGNAL, "sigev_signo": signal.SIGUSR1})

    def something_came(number, frame):
        if rearm:
            libc.mq_notify(rx.fileno(), event)  # first register again, then empty the queue: the order matters
        try:
            while True:
                received.append(rx.receive(timeout=0))
        except (TimeoutError, EOFError):
            pass

    signal.signal(signal.SIGUSR1, something_came)
    libc.mq_notify(rx.fileno(), event)
    time.sleep(0.6)  # "other things to do": the signal interrupts them
    return len(received)


# %%
for rearm in (False, True):
    tx, rx = channel("posix_mq")
    job = launch(notified, rx, rearm)
    time.sleep(0.1)
    for line in weather[:5]:
        tx.send(line.encode())
        time.sleep(0.05)
    print(f"registered {'again each time' if rearm else 'once':16} {await job} of 5 messages were noticed")
    tx.close()

# %% [markdown]
# Why register *before* emptying? A message that comes between "it is empty" and "tell me" would find nobody registered, and the next
# one a queue that is not empty: silence for ever. Registered first, the worst that can happen is a notification for
# nothing. Whoever waits for something that others change must arm first and look afterwards; you will meet that rule again
# with semaphores and signals.
#
# On Linux there is a simpler way: the queue is a descriptor, so poll(2), epoll(7) and asyncio can wait for it among a hundred
# others. A System V queue has neither.

# %%
import select

for kind in ("posix_mq", "sysv_mq"):
    tx, rx = channel(kind)
    try:
        poll = select.poll()
        poll.register(rx, select.POLLIN)
        tx.send(b"x")
        print(kind, "is ready:", poll.poll(0) == [(rx.fileno(), select.POLLIN)])
    except OSError as error:
        print(kind, "cannot be polled:", error)
    tx.close(), rx.close()

# %% [markdown]
# ## Break it: limits that say something else
#
# Each queue takes memory of the kernel. So that nobody takes all of it, the bytes of all POSIX queues of one *user* are
# limited: RLIMIT_MSGQUEUE, getrlimit(2). What does the kernel say when it is reached? A process with a small limit makes
# queues until it may not any more:

# %%
def until_refused(limit):
    import resource

    resource.setrlimit(resource.RLIMIT_MSGQUEUE, (limit, limit))
    queues = []
    while True:
        try:
            name = f"/limit-{os.getpid()}-{len(queues)}"
            queues.append(posix_ipc.MessageQueue(name, posix_ipc.O_CREX, max_messages=10, max_message_size=2000))
            posix_ipc.unlink_message_queue(name)
        except OSError as error:
            descriptors = len(os.listdir("/proc/self/fd"))
            allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            return len(queues), str(error), descriptors, allowed


made, says, descriptors, allowed = await launch(until_refused, 100_000)
print(f"{made} queues were made, and then: {says!r}")
print(f"the process had {descriptors} descriptors open and may have {allowed:,}")

# %% [markdown]
# It speaks of open *files* (the error is EMFILE), and files are not the trouble at all: mq_open(3) had to choose one of the
# errors that there were. Knowing this saves an afternoon. labkit gets the same answer from the kernel, and translates it:

# %%
def until_refused_by_labkit(limit):
    import resource

    resource.setrlimit(resource.RLIMIT_MSGQUEUE, (limit, limit))
    ends = []
    try:
        while True:
            ends.append(channel("posix_mq"))
    except OSError as error:
        return error.errno, str(error)


import errno

number, text = await launch(until_refused_by_labkit, 100_000)
print(errno.errorcode[number], "-", text)

# %% [markdown]
# The other limits belong to the machine, or rather to the IPC namespace, namespaces(7). An ordinary user may not go beyond:

# %%
for path in ("fs/mqueue/msg_max", "fs/mqueue/msgsize_max", "kernel/msgmax", "kernel/msgmnb", "kernel/msgmni"):
    try:
        print(f"{path:22} {int(Path('/proc/sys', path).read_text()):12,}")
    except OSError as error:
        print(f"{path:22} {error}")

# %% [markdown]
# And what if a receiver is killed? What it had taken out of the queue dies with it; what it had not is still there for the
# next. A letter box does not know whether a letter was *read*:

# %%
def take_three_and_hold(rx):
    taken = [rx.receive() for _ in range(3)]
    time.sleep(60)
    return taken


tx, rx = channel("sysv_mq")
victim = launch(take_three_and_hold, rx.clone())
for line in weather[:8]:
    tx.send(line.encode())
time.sleep(0.2)
victim.kill()
tx.close()
print("for the next one:", [message.decode().split(",")[4] for message in rx], "o'clock")
rx.close()

# %% [markdown]
# Hours 1 to 3 are lost. If that must not happen, the receiver has to *acknowledge*: a second queue back, and a sender that
# sends again what was not acknowledged. The brokers you may know (RabbitMQ, Kafka) are that idea, made large.

# %% [markdown]
# ## Exercise 1: the most urgent first
#
# The station sends alarms (type 1), warnings (type 2) and reports (type 3) through a System V queue. Write
# `serve(rx, handle)`: it takes messages until every sender has closed, and calls `handle(message)` for each: always the most
# urgent one that is *there at that moment*, and of equally urgent ones the oldest. While your function is busy with
# one message, others come.


# %%
def serve(rx, handle):
    ...  # your turn: rx.receive(type=...), labkit.Closed


# %%
from labkit.exercises.message_queues import check_urgent_first

check_urgent_first(serve)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# from labkit import Closed
#
# def serve(rx, handle):
#     while True:
#         try:
#             message = rx.receive(type=-3)   # the lowest type up to 3
#         except Closed:
#             return
#         handle(message)
# ```
#
# The queue chooses, at the moment of each receive. Whoever collects first and sorts afterwards, or serves all of one type
# before looking at the next, misses what comes in between.
# </details>
#
# ## Exercise 2: a station that never waits, almost
#
# Nobody knows whether the reader is fast enough, or there at all. Write `report(tx, readings)`, where `tx` sends into a POSIX
# queue and `readings` is a list of `(urgent, message)`. An ordinary reading that does not fit in is **dropped**: the station
# never waits for it. An **urgent** one must arrive: it overtakes the ordinary ones, and if the queue is full it waits for
# room. Return how many readings were dropped.


# %%
def report(tx, readings):
    ...  # your turn: tx.send(message, timeout=..., priority=...)


# %%
from labkit.exercises.message_queues import check_station

check_station(report)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def report(tx, readings):
#     dropped = 0
#     for urgent, message in readings:
#         try:
#             tx.send(message, timeout=None if urgent else 0, priority=int(urgent))
#         except TimeoutError:
#             dropped += 1
#     return dropped
# ```
#
# `timeout=0` is O_NONBLOCK, and the TimeoutError is its EAGAIN. Dropping is a decision, and it belongs to the sender who knows
# what may be dropped, not to chance.
# </details>
#
# ## What we learnt
#
# - A message queue belongs to the kernel: sender and receiver need not exist at the same time. It stays until it is removed, also when nobody remembers it.
# - Messages stay whole, and have an order of their own: POSIX by priority, System V by a type that the receiver chooses.
# - A queue evens out bursts. A receiver that is too slow on the whole fills any queue, and then the sender waits or drops: decide which.
# - mq_notify tells once, and only when the queue was empty: register first, then empty it.
# - EMFILE from mq_open means RLIMIT_MSGQUEUE; too many *files* it is not.
# - A message that was received is gone, whatever becomes of the receiver.
#
# **Manual pages:** mq_overview(7), mq_open(3), mq_send(3), mq_receive(3), mq_notify(3), getrlimit(2), sysvipc(7), msgget(2), msgop(2),
# msgctl(2), ftok(3), proc_sysvipc(5), ipcs(1), ipcrm(1).
# **Book:** M. Kerrisk, *The Linux Programming Interface*, chapters 43, 45, 46, 51 and 52.
