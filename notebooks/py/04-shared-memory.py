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
# # Shared memory: why is it the fastest, and what does it cost?
#
# Every mechanism so far was a go-between: one process gives its bytes to the kernel, another gets them from the kernel.
# **Shared memory** does away with that. The same memory is in both processes, and what one writes there *is* where the other
# reads. No system call, no copy on the way.
#
# And nobody who keeps order. In this lab you lose money by adding one and one, get it back with a semaphore, and measure
# what "no copy" is worth on your machine.

# %% [markdown]
# ## The same page in two processes
#
# POSIX shared memory is a file in a file system that exists in memory only: shm_open(3) makes it, mmap(2) lays it into the
# address space. Another program, which knows the name, does the same:

# %%
import mmap
import os
from pathlib import Path

import posix_ipc

name = f"/board-{os.getpid()}"
memory = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600, size=4096)
board = mmap.mmap(memory.fd, 4096)
board[:5] = b"hello"
print(os.stat("/dev/shm" + name).st_size, "bytes in /dev/shm, and they begin with", bytes(board[:5]))

# %%
import subprocess
import sys

OTHER = """
import mmap, os, posix_ipc, sys
board = mmap.mmap(posix_ipc.SharedMemory(sys.argv[1]).fd, 4096)
print(f"process {os.getpid()} reads", bytes(board[:5]))
board[:5] = b"HELLO"
print([line.split()[4] for line in open("/proc/self/maps") if sys.argv[1] in line], "is the inode it has mapped")
"""
print(subprocess.run([sys.executable, "-c", OTHER, name], capture_output=True, text=True).stdout)

print(f"process {os.getpid()} reads", bytes(board[:5]), "and nothing was sent")
print([line.split()[4] for line in Path("/proc/self/maps").read_text().splitlines() if name in line], "is our inode")

# %% [markdown]
# The same inode, so the same pages of memory. Removing the name leaves those who have mapped it alone, as with any file:

# %%
posix_ipc.unlink_shared_memory(name)
print("name gone:", not os.path.exists("/dev/shm" + name), "  memory still there:", bytes(board[:5]))
board.close()
memory.close_fd()

# %% [markdown]
# ## Four ways to the same thing
#
# All of them give memory; they differ in how a stranger finds it and how long it lives.
#
# | | found by | lives until |
# |---|---|---|
# | POSIX, shm_overview(7) | a name in `/dev/shm` | it is unlinked and nobody uses it, or a restart |
# | System V, shmget(2) | a key | it is removed and nobody uses it, or a restart |
# | mapped file, mmap(2) | a path | it is deleted: it survives a restart |
# | memfd, memfd_create(2) | nothing: the descriptor is handed over | its last user has gone, however that ended |
#
# The last two and System V by hand:

# %%
import tempfile

import sysv_ipc

with tempfile.TemporaryFile() as file:
    file.truncate(4096)
    mapped = mmap.mmap(file.fileno(), 4096)  # the file may be closed then, the mapping stays

memfd = os.memfd_create("lab")
os.truncate(memfd, 4096)
anonymous = mmap.mmap(memfd, 4096)

segment = sysv_ipc.SharedMemory(None, sysv_ipc.IPC_CREX, size=4096)
for way, write in (("file", mapped.write), ("memfd", anonymous.write), ("System V", segment.write)):
    write(b"the same bytes for everybody")
    print(f"{way:9} written")

segment.detach()
segment.remove()  # without this line it would stay until the next restart
for mapping in (mapped, anonymous):
    mapping.close()
os.close(memfd)

# %% [markdown]
# Which one, then? Between relatives a **memfd**: nothing can be left behind, and it can be *sealed* so that nobody
# truncates it under your feet. Between strangers a POSIX name. `SharedArray` of labkit is a sealed memfd that NumPy sees as
# an array, and it can be handed to `launch`:

# %%
import inspect

from labkit import shared_array

print(inspect.getsource(shared_array.SharedArray._map))

# %% [markdown]
# ## Two processes add one, and one is lost
#
# A counter in shared memory. Each process reads it, adds one, and writes it back. Let us do it slowly first: two
# processes, and each takes its two steps when we say so.

# %%
from labkit import channel, launch
from labkit.shared_array import SharedArray


def add_one_slowly(counter, go, done):
    go.receive()
    value = counter.array[0]
    done.send(b"read %d" % value)
    go.receive()
    counter.array[0] = value + 1
    done.send(b"wrote %d" % counter.array[0])


counter = SharedArray(2, "int64")
switches = {}
for who in ("A", "B"):
    (go, going), (doing, done) = channel("pipe"), channel("pipe")
    switches[who] = go, done, launch(add_one_slowly, counter, going, doing, name=who)

for who in ("A", "B", "A", "B"):
    go, done, _ = switches[who]
    go.send(b"go")
    print(f"{who}: {done.receive().decode():8} the counter is {counter.array[0]}")

# %% [markdown]
# Two additions, and the counter says 1. B read before A had written, and so wrote over what A had done: the **lost update**.
# Nothing crashed, nobody was told. And when we do not hold them by the hand?

# %%
import time

for _, _, job in switches.values():
    job.wait()


def add_many(counter, times):
    array = counter.array
    while not array[1]:  # the starting gun is in shared memory, too
        time.sleep(0.0001)
    for _ in range(times):
        array[0] += 1


def race(times, runner=add_many):
    counter.array[:] = 0
    jobs = [launch(runner, counter, times) for _ in range(2)]
    counter.array[1] = 1
    for job in jobs:
        job.wait()
    return int(counter.array[0])


# %%
for attempt in range(4):
    total = race(300_000)
    print(f"2 × 300,000 additions: the counter says {total:9,}, {600_000 - total:9,} are lost")

# %% [markdown]
# Another number each time. How much is lost depends on who runs when, on how many processors there are, on what else your
# machine is doing. Here are races of different lengths, five of each:

# %%
from labkit.draw import plot_lines

lost = {"the worst of five": [], "the best of five": []}
for times in (100, 1_000, 10_000, 100_000, 300_000):
    shares = sorted(100 - race(times) / (2 * times) * 100 for _ in range(5))
    lost["the worst of five"].append((times, shares[-1]))
    lost["the best of five"].append((times, shares[0]))
plot_lines(lost, "additions by each of two processes", "additions lost (%)", log="x", style="dots")

# %% [markdown]
# A race may go well: a short one is often over for one process before the other has begun. That is what makes this mistake
# so treacherous. It passes the test and waits for the day on which the machine is busy.
#
# **On one processor too.** The kernel takes the processor away in the middle of the addition as well as anywhere else; the
# other process then runs for milliseconds, and *everything* it has counted is wiped out by a single write:

# %%
def add_many_on_one(counter, times):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    add_many(counter, times)


for attempt in range(3):
    print(f"one processor, 1,200,000 additions: {1_200_000 - race(600_000, add_many_on_one):9,} are lost")

# %% [markdown]
# ## The same with a semaphore
#
# Reading, adding and writing must not be taken apart: a **critical section**. A semaphore with the value 1 lets one process in
# and makes the others wait, sem_overview(7):

# %%
from labkit.sync import PosixSemaphore


def add_guarded(counter, mutex, times):
    array = counter.array
    for _ in range(times):
        with mutex:
            array[0] += 1


mutex = PosixSemaphore(1)
counter.array[0] = 0
begin = time.monotonic()
jobs = [launch(add_guarded, counter, mutex, 30_000) for _ in range(2)]
for job in jobs:
    await job
guarded = (time.monotonic() - begin) / 60_000
print(f"2 × 30,000 additions: the counter says {int(counter.array[0]):,}")

begin, counter.array[1] = time.monotonic(), 1
add_many(counter, 60_000)
bare = (time.monotonic() - begin) / 60_000
print(f"an addition takes {bare * 1e9:,.0f} ns alone, and {guarded * 1e9:,.0f} ns with a semaphore and somebody else")

# %% [markdown]
# Right, and slower. That is the bargain: the kernel's mechanisms came with order built in, here you build it yourself, and
# you pay for it only where you need it.
#
# ## The same through a channel
#
# How do messages go through shared memory? By a **bounded buffer**: slots in a circle, one semaphore that counts the filled ones
# and one that counts the free ones. A sender waits for a free slot, fills it, and makes `filled` one more; a receiver the
# other way round. By hand it is a dozen lines:

# %%
SLOTS, SIZE = 4, 200
slots = SharedArray((SLOTS, SIZE), "uint8")
filled, free = PosixSemaphore(0), PosixSemaphore(SLOTS)


def send_lines(slots, filled, free, lines):
    for position, line in enumerate(lines):
        free.acquire()
        slots.array[position % SLOTS] = list(line.ljust(SIZE))
        filled.release()


def receive_lines(slots, filled, free, count):
    lines = []
    for position in range(count):
        filled.acquire()
        lines.append(bytes(slots.array[position % SLOTS]).rstrip())
        free.release()
    return lines


# %%
weather = Path("../data/weather-jfk-2013.csv").read_bytes().splitlines()[1:]
receiving = launch(receive_lines, slots, filled, free, 1000)
sending = launch(send_lines, slots, filled, free, weather[:1000])
print("all there, in order:", await receiving == weather[:1000])

# %% [markdown]
# `channel("posix_shm")` is that, made fast, and made safe against a process that is killed in the middle; `mmap_file` is the same
# in a file, `sysv_shm` the same with System V semaphores and room for many senders and receivers, `shm_ring` does without
# semaphores.
#
# ## Watch

# %%
from labkit import Trace, watch


def producer(tx, lines, pause):
    for line in lines:
        tx.send(line)
        time.sleep(pause)


def consumer(rx, pause=0.0):
    received = 0
    for line in rx:
        received += 1
        time.sleep(pause)
    return received


trace = Trace()
tx, rx = channel("posix_shm", max_messages=8, trace=trace)
watch(trace)
listening, sending = launch(consumer, rx, 0.015), launch(producer, tx, weather[:150], 0.01)
await listening

# %% [markdown]
# ## Count the copies
#
# How often is a message copied on its way? Let us look for it. The kernel shows the memory of our children, proc_pid_mem(5).
# `places` reads all of it and says where the message lies after it has arrived:

# %%
from labkit.holders import places


def sends(tx, word):
    message = word * 50
    tx.send(message)
    time.sleep(60)
    return message


def receives(rx, word):
    message = rx.receive()
    time.sleep(60)
    return message


def count_copies(label, word, *jobs):
    time.sleep(0.5)  # by then it has arrived
    for job in jobs:
        print(f"{label:10} {job.name:8}", ", ".join(place.split("/")[-1] for place in places(job.pid, word * 50)))
        job.kill()


# %%
for kind in ("pipe", "posix_shm"):
    tx, rx = channel(kind)
    word = b"nowhere else in the world: " + os.urandom(4)
    count_copies(kind, word, launch(sends, tx, word), launch(receives, rx, word))

# %% [markdown]
# *private* is memory that one process has for itself. The pipe's message lies in three such places, and it was in a fourth that
# we may not look into, the kernel's: it was copied **three times**, into the kernel, out of it into a buffer of the receiver
# (one read(2) takes all that is there), and from there into the `bytes` that you get. The bounded buffer's slot is in both
# processes, and is *one* place: copied **twice**, in and out. And when the message is made where the other one looks for it?


# %%
def makes(shared, word):
    for start in range(0, shared.array.size, len(word)):
        shared.array[start : start + len(word)] = list(word)
    time.sleep(60)


def looks(shared, word):
    assert shared.array[0] == word[0]
    time.sleep(60)


word = b"nowhere else in the world: " + os.urandom(4)
shared = SharedArray(50 * len(word), "uint8")
making = launch(makes, shared, word)
time.sleep(0.2)
count_copies("in place", word, making, launch(looks, shared, word))

# %% [markdown]
# One place, the same in both: **no copy**. The column *copies* of `labkit.facts()` was counted like this.
#
# ## Measure: what is a copy worth?
#
# The limit for everything that copies is how fast this machine can copy memory. So that is what we measure first, in pieces
# that fit into the processor's cache, and in some that fit into no cache:

# %%
import numpy as np


def copied(size, seconds=0.1):
    """Bytes that one processor copies in a second, in pieces of this size."""
    source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)
    begin, pieces = time.monotonic(), 0
    while time.monotonic() - begin < seconds:
        for _ in range(10):
            np.copyto(target, source)
        pieces += 10
    return pieces * size / (time.monotonic() - begin)


sizes = [1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20]
speed = {"copying, in the cache": [(size, copied(size) / 1e9) for size in sizes]}
memory_speed = copied(1 << 26) / 1e9
speed["copying, in memory"] = [(size, memory_speed) for size in (sizes[0], sizes[-1])]
print(f"1 MiB again and again: {speed['copying, in the cache'][-1][1]:.1f} GB/s, 64 MiB: {memory_speed:.1f} GB/s")


# %%
def pour(tx, size, count):
    message = bytes(size)
    for _ in range(count):
        tx.send(message, timeout=None)


def swallow(rx):
    rx.receive()  # from here on both are there
    begin, received = time.monotonic(), 0
    for message in rx:
        received += len(message)
        end = time.monotonic()
    return received / (end - begin)


async def bandwidth(kind, size, **options):
    """Bytes a second from one process to another."""
    tx, rx = channel(kind, **options)
    swallowing = launch(swallow, rx)
    launch(pour, tx, size, min(20_000, (128 << 20) // size))
    return await swallowing


# %%
for size in sizes:
    options = {"pipe": {}, "unix_stream": {}, "posix_shm": {"max_message": size}, "shm_ring": {"capacity": 8 << 20}}
    for kind in options:
        speed.setdefault(kind, []).append((size, await bandwidth(kind, size, **options[kind]) / 1e9))

# %%
plot_lines(speed, "bytes in a message", "GB/s", log="xy", style="dots")

# %%
for kind, points in speed.items():
    print(f"{kind:22}", *(f"{gigabytes:7.2f}" for _, gigabytes in points), "GB/s")

# %% [markdown]
# For small messages the copying hardly counts. What costs is the work around each one: system calls, and waking somebody who
# sleeps. A ring that needs neither while both are awake is ahead there. For large ones the copying is what counts, and
# everybody stays below the top line: two copies take longer than one, each goes from one processor's cache to the other's
# or through memory, and the receiver's object needs new memory each time.
#
# And without any copy? Two processes, one array, two semaphores: *your turn*, *my turn*. The sender fills the array (that
# would be its work in any case) and says so; nothing is sent but that.

# %%
def hand_over(shared, full, empty, times):
    for _ in range(times):
        empty.acquire()
        shared.array[0] ^= 1  # it is ours now: read and write where it lies
        full.release()


def price(size, times=2_000):
    """Seconds for handing an array of this size over, once, one way."""
    shared, full, empty = SharedArray(size, "uint8"), PosixSemaphore(0), PosixSemaphore(0)
    job = launch(hand_over, shared, full, empty, times)
    begin = time.monotonic()
    for _ in range(times):
        empty.release()
        full.acquire()
        shared.array[-1] ^= 1
    seconds = time.monotonic() - begin
    job.wait()
    return seconds / times / 2


for size in (1 << 10, 1 << 16, 1 << 20, 1 << 24):
    each = price(size)
    print(f"{size:11,} bytes handed over in {each * 1e6:5.1f} µs: as if copied at {size / each / 1e9:10,.1f} GB/s")

# %% [markdown]
# The time hardly depends on the size: it is the time of waking a process up. *That* is why shared memory is the fastest:
# not that it copies faster, but that it need not copy.
#
# ## NumPy arrays without a copy
#
# The temperatures of a year, and two processes that convert them from Fahrenheit to Celsius, each its half. Nothing is sent back
# and forth but the news that they are done:

# %%
readings = [line.split(b",")[5] for line in weather]
fahrenheit = np.array([np.nan if reading == b"NA" else float(reading) for reading in readings])

temperatures = SharedArray(len(fahrenheit))
temperatures.array[:] = fahrenheit


def to_celsius(temperatures, half):
    part = np.array_split(temperatures.array, 2)[half]  # a view, not a copy
    part -= 32
    part /= 1.8


for job in [launch(to_celsius, temperatures, half) for half in (0, 1)]:
    await job
print(f"the coldest hour had {np.nanmin(temperatures.array):.1f} °C, the hottest {np.nanmax(temperatures.array):.1f} °C")

# %% [markdown]
# No lock was needed, because nobody touched what the other did. To divide the data is better than to guard it.
#
# ## Break it
#
# **Kill the one who holds the semaphore.** It will never give it back, and a POSIX semaphore does not know who had it:

# %%
def take_and_hold(mutex):
    mutex.acquire()
    time.sleep(60)


mutex = PosixSemaphore(1)
job = launch(take_and_hold, mutex)
time.sleep(0.2)
job.kill()
try:
    mutex.acquire(timeout=0.5)
except TimeoutError as error:
    print("POSIX:   ", error)

# %% [markdown]
# A System V semaphore remembers what each process did to it, and takes it back when the process dies: SEM_UNDO, semop(2). That is
# what guards `sysv_shm`. A process sends there as fast as it can and is killed, again and again; the others go on:

# %%
from labkit.sync import SysvSemaphores

mutex = SysvSemaphores((1,))
job = launch(take_and_hold, mutex)
time.sleep(0.2)
job.kill()
mutex.acquire(timeout=5)
print("System V: got it, the kernel has undone what the dead one did")
mutex.close()


def send_for_ever(tx):
    while True:
        tx.send(b"0123456789" * 500, timeout=None)


tx, rx = channel("sysv_shm")
for _ in range(20):
    victim = launch(send_for_ever, tx.clone())
    received = [rx.receive() for _ in range(50)]
    victim.kill()
tx.close()
print("20 senders were killed;", len({*received, *rx}), "kind of message arrived: whole ones")
rx.close()

# %% [markdown]
# **Take the memory away.** A file that is mapped can be truncated by anybody who may write to it. Who then touches the memory
# gets no error but a signal:

# %%
def touch(path):
    with open(path, "r+b") as file:
        memory = mmap.mmap(file.fileno(), 4096)
        os.truncate(path, 0)
        return memory[0]


from labkit import RemoteError

with tempfile.NamedTemporaryFile() as file:
    file.truncate(4096)
    try:
        await launch(touch, file.name)
    except RemoteError as error:
        print(error)

# %% [markdown]
# SIGBUS: the address is there, the memory behind it is not. A memfd can be sealed against that, F_ADD_SEALS in fcntl(2), and
# that is what `SharedArray` and `shm_ring` do:

# %%
try:
    os.truncate(counter._fd, 0)
except PermissionError as error:
    print(error)

# %% [markdown]
# ## Exercise 1: a bank
#
# Accounts are numbers in shared memory, and several processes move money at the same time. Write
# `transfer(accounts, source, target, amount, mutex)`: it moves `amount` from `accounts[source]` to `accounts[target]` and returns
# True; when there is not enough it changes nothing and returns False. No money may be lost, and no account may ever be below
# zero. `mutex` is a PosixSemaphore with the value 1.


# %%
def transfer(accounts, source, target, amount, mutex):
    ...  # your turn


# %%
from labkit.exercises.shared_memory import check_transfer

check_transfer(transfer)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def transfer(accounts, source, target, amount, mutex):
#     with mutex:
#         if accounts[source] < amount:
#             return False
#         accounts[source] -= amount
#         accounts[target] += amount
#         return True
# ```
#
# Looking *and* changing are one critical section. Whoever looks first and takes the mutex then has looked at yesterday's
# balance. `with` gives the mutex back on both ways out.
# </details>
#
# ## Exercise 2: frames that are never torn, without a lock
#
# A camera writes frames of 64 numbers into `words[1:65]`; many readers want the newest one and must never hold up the camera. A
# lock would. Instead, `words[0]` is a **version number**: odd while a frame is being written, even when it is whole. A
# reader that finds it odd, or different after copying, tries again. The Linux kernel calls this a *seqlock*; it gives
# every process the time of day that way, vdso(7).
#
# Write `write(words, frame)` and `read(words)`, which returns a copy of a whole frame.


# %%
def write(words, frame):
    ...  # your turn


def read(words):
    ...  # your turn


# %%
from labkit.exercises.shared_memory import check_snapshot

check_snapshot(write, read)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def write(words, frame):
#     words[0] += 1           # odd: do not read now
#     words[1:65] = frame
#     words[0] += 1           # even: whole
#
# def read(words):
#     while True:
#         version = words[0]
#         frame = words[1:65].copy()
#         if version % 2 == 0 and words[0] == version:
#             return frame
# ```
#
# There is one writer, so nobody else changes the version. In C this needs memory barriers as well: processors may carry out
# stores and loads in another order than they are written, ARM more freely than x86. Between two calls of NumPy there is so much
# other work that you will hardly ever see it, which is not the same as never; `labkit/lockfree/spsc.py` shows how it is
# done properly.
# </details>
#
# ## What we learnt
#
# - Shared memory is the same pages in two address spaces. Nothing is sent; that is why it is fast, and why nobody is told.
# - Reading, changing and writing back is three steps. Whoever may be interrupted in between needs a critical section, on one processor too.
# - A race that loses nothing in a test has not been won.
# - What costs is copying and waking, not the bytes: hand the memory over instead of copying it.
# - A semaphore whose holder dies stays taken, unless the kernel undoes it (SEM_UNDO).
# - A mapped file can be truncated under your feet (SIGBUS); a sealed memfd cannot.
#
# **Manual pages:** shm_overview(7), shm_open(3), mmap(2), memfd_create(2), shmget(2), shmat(2), sem_overview(7), sem_wait(3), semop(2),
# fcntl(2) (F_ADD_SEALS), posix_fallocate(3), proc_pid_maps(5), proc_pid_mem(5).
# **Book:** M. Kerrisk, *The Linux Programming Interface*, chapters 45, 47, 48, 49, 53 and 54.
