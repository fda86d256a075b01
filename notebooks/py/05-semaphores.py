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
# # Semaphores: who may go on, and who has to wait
#
# Memory that two processes share is fast, and dangerous. Both read a number, both add one, both write it back: one of the
# two additions is gone. Who may go first, who has to wait, and what if the one that everybody waits for never comes back?
#
# In this lab processes count, exclude each other, take turns, fill a buffer, are killed at the worst moment, and wait for
# each other in a circle. You see each of these happen.

# %% [markdown]
# ## What goes wrong
#
# A number in a file that two processes have mapped into their memory, mmap(2). Each adds one, many times:

# %%
import mmap
import tempfile
from pathlib import Path

from labkit import launch

folder = tempfile.TemporaryDirectory()
number = Path(folder.name, "number")
number.write_bytes(bytes(8))


def count(path, times, lock=None):
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 8) as memory:
        for _ in range(times):
            if lock:
                lock.acquire()
            value = int.from_bytes(memory[:8], "little")
            memory[:8] = (value + 1).to_bytes(8, "little")
            if lock:
                lock.release()
        return int.from_bytes(memory[:8], "little")


# %%
times = 300_000
jobs = [launch(count, number, times) for _ in range(2)]
found = max([await job for job in jobs])
print(f"{2 * times:,} additions, the number is {found:,}: {2 * times - found:,} are lost")

# %% [markdown]
# To read, to add and to write are three steps. When the other process comes in between, its additions are overwritten. The steps
# belong together; they are a **critical section**, in which at most one process may be at a time.
#
# ## A semaphore by hand
#
# A semaphore is a number that several processes share, and that is never negative. sem_wait(3) takes one, and *sleeps while there
# is none*; sem_post(3) gives one back and wakes a sleeper. That is all. The module `posix_ipc` has just these calls:

# %%
import posix_ipc

semaphore = posix_ipc.Semaphore(None, posix_ipc.O_CREX, initial_value=1)  # sem_open(3)
semaphore.acquire()  # sem_wait(3): 1 becomes 0
print("value after acquire:", semaphore.value)

try:
    semaphore.acquire(timeout=0.1)  # sem_timedwait(3): nobody is there to give one back
except posix_ipc.BusyError as error:
    print("a second acquire:   ", error)

semaphore.release()  # sem_post(3): 0 becomes 1
print("value after release:", semaphore.value)

# %% [markdown]
# A POSIX semaphore with a name is a small file in shared memory. It stays until somebody removes it:

# %%
print([path.name for path in Path("/dev/shm").glob("sem." + semaphore.name.strip("/"))])
semaphore.unlink()  # sem_unlink(3): the name goes, who has it open goes on
semaphore.close()

# %% [markdown]
# The older ones are **System V** semaphores, semget(2) and semop(2). They come in sets, and the kernel can keep book of who took
# what, with the flag `SEM_UNDO`. We shall need that.

# %%
import sysv_ipc

old = sysv_ipc.Semaphore(None, sysv_ipc.IPC_CREX, initial_value=1)  # semget(2), semctl(2) SETVAL
old.undo = True
old.P()  # semop(2) with -1; Dijkstra's name for it, from the Dutch
print("value:", old.value, "- last used by process", old.last_pid)
old.V()  # semop(2) with +1
old.remove()  # semctl(2) IPC_RMID

# %% [markdown]
# ## Mutual exclusion
#
# A semaphore that starts at 1 lets one process in at a time: a **mutex**. `labkit.sync` has all kinds with the same two
# methods, and each can be handed to another process:

# %%
from labkit.sync import PosixSemaphore

mutex = PosixSemaphore(1)
number.write_bytes(bytes(8))

times = 50_000
jobs = [launch(count, number, times, mutex) for _ in range(2)]
found = max([await job for job in jobs])
print(f"{2 * times:,} additions, the number is {found:,}: {2 * times - found:,} are lost")

# %% [markdown]
# ## Watch
#
# `trace.lock` puts a recorder around a semaphore. A process has the semaphore where its lane is solid, and waits for it where
# the lane is hatched. Drag the slider, or point at a bar:

# %%
import time

from labkit import Trace, watch


def visitor(room, visits, stay):
    for _ in range(visits):
        with room:  # acquire, and release at the end
            time.sleep(stay)
        time.sleep(stay / 3)


trace = Trace()
room = trace.lock(PosixSemaphore(1), "room")
watch(trace)

jobs = [launch(visitor, room, 8, 0.03, name=name) for name in ("Jane", "Lizzy", "Kitty")]
for job in jobs:
    await job

# %% [markdown]
# Never are two lanes solid at the same moment. The trace counts it:

# %%
trace.locks()

# %% [markdown]
# ## Counting
#
# Start it at 3 instead of 1 and it counts places: three get in, the fourth waits until one leaves.

# %%
counting = Trace()
places = counting.lock(PosixSemaphore(3), "three places")
watch(counting)

jobs = [launch(visitor, places, 4, 0.03, name=f"guest {n}") for n in range(1, 7)]
for job in jobs:
    await job
print("guests:", len(jobs), "- most inside at once:", counting.locks()[0].most_at_once)

# %% [markdown]
# ## What it costs
#
# To take a lock that is free and to give it back, without anybody waiting. First with the modules that do little more than the
# call itself, then a mutex of `labkit.sync`, which is made of a word in shared memory and of futex(2):

# %%
import fcntl
import os
from timeit import timeit

from labkit.draw import plot_times
from labkit.sync import Mutex

descriptor = os.open(number, os.O_RDWR)
names = {
    "posix": posix_ipc.Semaphore(None, posix_ipc.O_CREX, initial_value=1),
    "sysv": sysv_ipc.Semaphore(None, sysv_ipc.IPC_CREX, initial_value=1),
    "mutex": Mutex(),
    "flock": lambda how: fcntl.flock(descriptor, how),
}
statements = {
    "sem_wait, sem_post": "posix.acquire(); posix.release()",
    "semop, twice": "sysv.P(); sysv.V()",
    "flock, twice": f"flock({fcntl.LOCK_EX}); flock({fcntl.LOCK_UN})",
    "Mutex (in Python)": "mutex.acquire(); mutex.release()",
}
costs = {label: min(timeit(s, globals=names, number=1000) for _ in range(9)) * 1e6 for label, s in statements.items()}
plot_times(costs, "taken and given back, nobody waits")

# %%
names["posix"].unlink()
names["sysv"].remove()
os.close(descriptor)

# %% [markdown]
# A free POSIX semaphore is taken by *one instruction* on memory that the processes share, and the kernel is asked only to sleep and
# to wake: that is the idea of the futex. `semop` and `flock` ask it each time. The `Mutex` does not ask it either; its instruction
# is just as short, and the rest is the Python around it, there to be read: `labkit/sync/futex.py`.
#
# ## Order: A before B before C
#
# A semaphore that starts at 0 is a *gate*. Who comes waits there until somebody else, from outside, opens it. Nobody holds
# anything here: one process releases what another acquires. That is how processes are put **in order**.

# %%
order = Trace()
after_a, after_b = (order.lock(PosixSemaphore(0), f"after {name}") for name in "AB")
watch(order)


def step(wait_for=None, then_open=None):
    if wait_for:
        wait_for.acquire()
    time.sleep(0.1)  # its work
    if then_open:
        then_open.release()
    return time.monotonic()


c = launch(step, after_b, name="C")  # started in the wrong order, on purpose
b = launch(step, after_a, after_b, name="B")
a = launch(step, None, after_a, name="A")
ends = {job.name: await job for job in (c, b, a)}
print("they ended in the order", ", ".join(sorted(ends, key=ends.get)))

# %% [markdown]
# The triangle in the view is a release of what somebody else waits for.
#
# ## A bounded buffer
#
# A producer and a consumer share a few places in memory. The producer has to wait while all are full, the consumer while all are
# empty. Two semaphores do both: **free** counts empty places, **items** counts full ones. What one releases, the other acquires.

# %%
from inspect import getsource

from labkit.exercises.semaphores import Slots

print(getsource(Slots.append))

# %% [markdown]
# The memory guards nothing. What goes through it is real: hourly weather at New York's JFK airport.

# %%
rows = Path("../data/weather-jfk-2013.csv").read_bytes().splitlines()[1:]


def producer(buffer, free, items, rows):
    for row in rows:
        free.acquire()
        buffer.append(row)
        items.release()


def consumer(buffer, free, items, count):
    strongest = 0.0
    for _ in range(count):
        items.acquire()
        wind = buffer.pop().split(b",")[9]
        free.release()
        strongest = max(strongest, float(wind) if wind != b"NA" else 0.0)
        time.sleep(0.002)  # it is the slower of the two
    return strongest


# %%
flow = Trace()
free, items = flow.lock(PosixSemaphore(Slots.PLACES), "free"), flow.lock(PosixSemaphore(0), "items")
watch(flow)

buffer, some = Slots(), rows[:200]
consuming = launch(consumer, buffer, free, items, len(some))
producing = launch(producer, buffer, free, items, some)
print("strongest wind:", await consuming, "mph")
print("computed here: ", max(float(row.split(b",")[9]) for row in some if row.split(b",")[9] != b"NA"), "mph")
await producing
buffer.close()

# %% [markdown]
# Zoom in (+): at first the producer runs ahead, until the places are full. From then on it waits for `free` after each item, and the
# slow consumer sets the pace: that is **backpressure**.
#
# ## Break it: the holder is killed
#
# A process is killed with kill -9 while it is inside. It has no time to give back what it holds. What becomes of the others?

# %%
def holder(lock, inside):
    lock.acquire()
    inside.release()
    time.sleep(60)


from labkit.sync import SysvSemaphores

broken = Trace()
posix, undo = broken.lock(PosixSemaphore(1), "POSIX"), broken.lock(SysvSemaphores([1]), "System V")
watch(broken)

for lock, kind in ((posix, "POSIX"), (undo, "System V")):
    inside = PosixSemaphore(0)
    victim = launch(holder, lock, inside, name=f"{kind} victim")
    inside.acquire()  # now it is inside
    victim.kill()
    try:
        launch(visitor, lock, 1, 0.05, name=f"{kind} heir").wait(2)
        print(f"{kind}: the heir got in")
    except TimeoutError:
        print(f"{kind}: the heir waits in vain")

# %%
broken.locks()

# %% [markdown]
# A POSIX semaphore is a number and does not know who took it: **it stays taken, for ever**. With `SEM_UNDO` the kernel has kept
# book for each process, and undoes it when the process ends, whatever it died of.
#
# That is right for a mutex, and wrong for counting: an item that was put into the buffer does not disappear with the one who put
# it there. And what the victim was changing when it died may be half changed. A `Mutex` therefore tells the next one, who can
# look at the data first:

# %%
from labkit import stop_all

stop_all()  # the heir that still waits
posix.close()
undo.close()  # a System V set stays in the kernel until its last user has closed it

robust, inside = Mutex(), PosixSemaphore(0)
victim = launch(holder, robust, inside, name="victim")
inside.acquire()
victim.kill()

try:
    robust.acquire(timeout=5)
except OSError as error:
    print(f"{type(error).__name__}: {error}")
    robust.recover()  # we have seen to the data; now it is ours
robust.release()

# %% [markdown]
# ## Break it: a deadlock
#
# Two philosophers sit at a table with two forks, and each needs both. Each takes the one at its left hand first. When both have
# one, both wait for the other's, and neither will ever put down what it holds.

# %%
def philosopher(first, second, meals):
    for _ in range(meals):
        with first:
            time.sleep(0.02)  # enough for the other to take its first one
            with second:
                time.sleep(0.01)


table = Trace()
forks = [table.lock(PosixSemaphore(1), f"fork {n}") for n in (1, 2)]
watch(table)

# %%
import asyncio

plato = launch(philosopher, forks[0], forks[1], 20, name="Plato")
hypatia = launch(philosopher, forks[1], forks[0], 20, name="Hypatia")
while not (found := table.deadlock()):
    await asyncio.sleep(0.05)
await asyncio.sleep(1)  # look at the view
print(found)
plato.kill()
hypatia.kill()

# %% [markdown]
# The trace has drawn who waits for whom, and found a circle. Four things have to come together for that (Coffman, 1971): things
# that only one can have, who has one waits for another, nobody takes anything away, and a circle. Take one of them away. The
# circle is the easiest: **everybody takes them in the same order**.

# %%
cured = Trace()
forks = [cured.lock(PosixSemaphore(1), f"fork {n}") for n in (1, 2)]
watch(cured)

plato = launch(philosopher, forks[0], forks[1], 10, name="Plato")
hypatia = launch(philosopher, forks[0], forks[1], 10, name="Hypatia")  # fork 1 first, she too
await plato
await hypatia
print("both have eaten; a deadlock?", cured.deadlock())

# %% [markdown]
# A System V set offers another way: `ops` takes both at once or none, so that nobody waits while holding one. See `help(SysvSemaphores)`.
#
# ## Locks on files
#
# Programs that share a file often lock the file itself. Linux has three kinds, all advisory (who does not ask is not stopped), all
# released when the holder dies. They differ in **whose** the lock is:

# %%
from labkit import RemoteError
from labkit.sync import FileLock

with tempfile.NamedTemporaryFile() as file:
    for how in ("flock", "ofd", "fcntl"):
        lock, again = FileLock(file.name, how), FileLock(file.name, how)  # the same file, opened twice
        lock.acquire()
        try:
            again.acquire(timeout=0)
            print(f"{how:6} the second one in this process gets it too: the lock is the process's")
        except TimeoutError:
            print(f"{how:6} the second one in this process has to wait: the lock is the open file's")
        again.close()

        stranger = launch(lambda path, how: FileLock(path, how).acquire(timeout=0), file.name, how)
        try:
            stranger.wait()
            print(f"{how:6} after that was closed, another process gets it: OUR LOCK IS LOST")
        except RemoteError:
            print(f"{how:6} after that was closed, another process has to wait")
        lock.close()

# %% [markdown]
# `fcntl` locks are POSIX, and have this trap: *any* close of the file in the process, perhaps in a library that you never heard of,
# drops the lock (fcntl(2), TLPI §55.3.5). `ofd`, open file description locks, were added to Linux to mend it.
#
# ## Exercise 1: in turn
#
# Three processes run your function, with `me` 0, 1 and 2. They are to say A, B, C, A, B, C, A, B, C, in this order, however they are
# started. `gates` are three semaphores: the first starts at 1, the others at 0. `say(letter)` speaks.


# %%
def in_turn(me, gates, say):
    ...  # your turn: three times, say("ABC"[me])


# %%
from labkit.exercises.semaphores import check_in_turn

check_in_turn(in_turn)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def in_turn(me, gates, say):
#     for _ in range(3):
#         gates[me].acquire()
#         say("ABC"[me])
#         gates[(me + 1) % 3].release()
# ```
#
# At most one gate is open at any time; it goes round. `% 3` closes the circle: after C comes A.
# </details>
#
# ## Exercise 2: many producers, many consumers
#
# With two producers, both may be in `append` at the same time: a mutex has to keep them apart, beside `free` and `items`. Write
# both functions. `free` starts at 4, `items` at 0, `mutex` at 1. Then try what happens when the mutex is taken *first*.


# %%
def put(buffer, item, free, items, mutex):
    ...  # your turn: buffer.append(item)


def take(buffer, free, items, mutex):
    ...  # your turn: return buffer.pop()


# %%
from labkit.exercises.semaphores import check_buffer

check_buffer(put, take, rows[:200])

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def put(buffer, item, free, items, mutex):
#     free.acquire()
#     with mutex:
#         buffer.append(item)
#     items.release()
#
# def take(buffer, free, items, mutex):
#     items.acquire()
#     with mutex:
#         item = buffer.pop()
#     free.release()
#     return item
# ```
#
# Who takes the mutex first and then waits for an item keeps out everybody who could bring one: a deadlock. The check names it.
# </details>
#
# ## What we learnt
#
# - To read, change and write are several steps; what belongs together is guarded by a semaphore that starts at 1.
# - The same number counts places (it starts at n), and puts processes in order (it starts at 0, and another one releases it).
# - A semaphore does not know who took it. A killed holder's stays taken; `SEM_UNDO`, file locks and a robust mutex notice.
# - A deadlock is a circle of processes that each hold what the next one waits for. Taking locks in one order prevents it.
# - A free lock is cheap where it is a word in shared memory, and costs a system call where it is the kernel's.
#
# **Manual pages:** sem_overview(7), sem_wait(3), sem_post(3), sem_open(3), sysvipc(7), semget(2), semop(2), futex(2), flock(2),
# fcntl(2), mmap(2), signal(7).
# **Book:** M. Kerrisk, *The Linux Programming Interface*, chapters 47 (System V semaphores), 53 (POSIX semaphores), 55 (file
# locking), and 30 for mutexes between threads. The bounded buffer and the names P and V are from E. W. Dijkstra, *Cooperating sequential
# processes* (1965).
