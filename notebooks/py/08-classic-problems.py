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
# # Classic problems: who runs next?
#
# Two processes share something. Each does the right thing, and once in a while the result is wrong. Every test has passed. How can
# that be, and how do you find an order of events that comes up once in a thousand runs?
#
# In this notebook real processes get it wrong before your eyes. Then *you* take the place of the kernel's scheduler and choose who
# runs next, until you have found the order that breaks it; and every other order is tried as well.

# %% [markdown]
# ## A number that two processes count up
#
# By hand first. `memfd_create` makes a file that exists in memory only. Two processes map it, mmap(2), and from then on they
# see the same eight bytes:

# %%
import mmap
import os
import sys

from labkit import launch

fd = os.memfd_create("counter")
os.ftruncate(fd, 8)
memory = f"/proc/{os.getpid()}/fd/{fd}"  # the path by which our children find it


def count_up(memory, times):
    with open(memory, "r+b") as file:
        counter = memoryview(mmap.mmap(file.fileno(), 8)).cast("q")
    for _ in range(times):
        counter[0] += 1


def value():
    return int.from_bytes(os.pread(fd, 8, 0), sys.byteorder)


# %%
os.pwrite(fd, bytes(8), 0)
times = 1_000_000
jobs = [launch(count_up, memory, times) for _ in range(2)]
for job in jobs:
    job.wait()
print(f"{2 * times:,} increments, and the counter says {value():,}: {2 * times - value():,} are lost")

# %% [markdown]
# Run the cell again: another number. Nothing has failed, nobody has been told. What Python makes of `counter[0] += 1`
# shows why:

# %%
import dis

dis.dis("counter[0] += 1")

# %% [markdown]
# It reads the number, adds one to what it has read, and stores the sum. If the other process runs *between* the reading and the
# storing, its work is overwritten. (Nor would it help if this were a single machine instruction: another processor may be
# working on the same memory.)
#
# ## Take the scheduler's place
#
# The same as a small program for the **explorer**. It is a generator function, and each `yield` marks a place where another
# process may run; what lies between two yields is one step. `s` is the shared memory.

# %%
from labkit.explore import Explorer


def increment(s):
    value = s.counter
    yield "has read"
    s.counter = value + 1


lost_update = Explorer(
    {"A": increment, "B": increment},
    shared={"counter": 0},
    at_end={"both increments count": lambda s: s.counter == 2},
)
lost_update

# %% [markdown]
# Your turn: press the buttons, or click into the view and use the keys **1** and **2**, **u** to undo, **r** to start again. Can you make
# one increment disappear? In the corner you see how many orders there are, and how many of them break. **h** gives a hint, **s** shows
# the shortest order that breaks. In words it is:

# %%
lost_update.shortest()

# %% [markdown]
# So far this was a model. `run` follows an order with the same functions in **real processes**, real shared memory between
# them, each held back until it is its turn:

# %%
lost_update.run(["A", "B", "A", "B"])

# %% [markdown]
# And when nobody holds them back? `race` lets both go at the same moment, again and again, and counts how it ended:

# %%
lost_update.race(1000)

# %% [markdown]
# How often it goes wrong depends on your machine. With several processors the two really run at once. With a single one, the
# kernel would have to switch at just the wrong moment, and so it goes well nearly always. *Nearly always* is the worst that can
# happen to you: no test will find it.
#
# With `pause` a process is held up now and then at a yield, as happens on a busy machine:

# %%
lost_update.race(200, pause=0.001)

# %% [markdown]
# ### The right one
#
# A **semaphore** is a number that the kernel guards. `acquire` waits until it is above zero and takes one, `release` gives one
# back, sem_overview(7). One that starts at 1 lets a single process in at a time: a *mutex*.

# %%
from labkit.explore import acquire, release


def guarded(s):
    yield acquire("mutex")
    value = s.counter
    yield "has read"
    s.counter = value + 1
    yield release("mutex")


mutex = Explorer(
    {"A": guarded, "B": guarded},
    shared={"counter": 0},
    semaphores={"mutex": 1},
    at_end={"both increments count": lambda s: s.counter == 2},
)
mutex

# %%
mutex.race(1000)

# %% [markdown]
# “None breaks” is more than any number of runs can tell you, since every order was tried. But it is said of the *model*, which knows
# only the interruptions that you have marked. Take the `yield` away, and the model sees no problem any more:

# %%
def hasty(s):
    yield "begins"
    value = s.counter
    os.sched_yield()  # a system call, as good an occasion to switch as any
    s.counter = value + 1


unmarked = Explorer(
    dict.fromkeys("ABCD", hasty),
    shared={"counter": 0},
    at_end={"all increments count": lambda s: s.counter == 4},
)
print(unmarked)
unmarked.race(500)

# %% [markdown]
# Real processes are interrupted wherever the kernel pleases. Put a `yield` between any two touches of what is shared.
#
# ## Measure: what does a lock cost?
#
# `PosixSemaphore` is the same semaphore for programs of your own. Nobody waits in the first two lines; in the third one
# two processes compete.

# %%
import time

from labkit.sync import PosixSemaphore


def guarded_count(memory, mutex, times):
    with open(memory, "r+b") as file:
        counter = memoryview(mmap.mmap(file.fileno(), 8)).cast("q")
    began = time.monotonic_ns()
    for _ in range(times):
        if mutex:
            mutex.acquire()
        counter[0] += 1
        if mutex:
            mutex.release()
    return (time.monotonic_ns() - began) / times


# %%
mutex = PosixSemaphore(1)
for words, guard, people in ("alone, unguarded", None, 1), ("alone, guarded", mutex, 1), ("two, guarded", mutex, 2):
    os.pwrite(fd, bytes(8), 0)
    jobs = [launch(guarded_count, memory, guard, 30_000) for _ in range(people)]
    cost = sum(job.wait() for job in jobs) / people
    print(f"{words:18} {cost:7,.0f} ns an increment, {30_000 * people - value()} lost")

# %% [markdown]
# As long as nobody has to wait, a POSIX semaphore needs no system call at all, futex(7); most of what you see is Python calling the C
# library. A lock costs little. No lock costs the right result.
#
# ## The dining philosophers
#
# Three philosophers sit around a table, with one fork between each two of them. To eat, one needs both forks. So each takes the
# left one, then the right one, eats, and puts them back (E. W. Dijkstra's problem). Each fork is a semaphore. Can you make them starve?

# %%
def philosopher(s, left, right):
    yield acquire(left)
    yield acquire(right)
    yield release(right)
    yield release(left)


greedy = Explorer(
    {
        "Hypatia": (philosopher, "fork 1", "fork 2"),
        "Confucius": (philosopher, "fork 2", "fork 3"),
        "Averroes": (philosopher, "fork 3", "fork 1"),
    },
    semaphores={"fork 1": 1, "fork 2": 1, "fork 3": 1},
)
greedy

# %% [markdown]
# A **deadlock**: each holds what another one waits for, in a circle. The same order, for real. `run` has checked that
# in the end all three processes slept in the kernel, each before a semaphore at zero, with nobody left to release one:

# %%
greedy.run(greedy.shortest().schedule)

# %%
greedy.race(500)

# %%
greedy.race(200, pause=0.001)

# %% [markdown]
# Rare? The more they are, the more orders there are, and the fewer of them break: the larger the program, the better such a
# mistake hides.

# %%
for n in range(2, 8):
    seats = {f"philosopher {k}": (philosopher, f"fork {k}", f"fork {(k + 1) % n}") for k in range(n)}
    table = Explorer(seats, semaphores={f"fork {k}": 1 for k in range(n)})
    share = table.interleavings / table.breaking
    print(f"{n} philosophers: {table.interleavings:>26,} interleavings, one in {share:,.0f} breaks")

# %% [markdown]
# In an ordinary program it looks like this. Only a time-out brings the deadlock to light:

# %%
def dine(left, right, meals):
    for meal in range(meals):
        left.acquire()
        time.sleep(0.001)  # reaching for the other one
        try:
            right.acquire(timeout=1)
        except TimeoutError as error:
            left.release()
            return f"hungry after {meal} meals: {error}"
        right.release()
        left.release()
    return f"has had {meals} meals"


def dinner(*seats):
    forks = [PosixSemaphore(1) for _ in seats]
    jobs = [launch(dine, forks[left], forks[right], 50) for left, right in seats]
    for name, job in zip(["Hypatia", "Confucius", "Averroes"], jobs, strict=True):
        print(f"{name:10} {job.wait()}")


dinner((0, 1), (1, 2), (2, 0))

# %% [markdown]
# ### The right ones
#
# Break the circle. If *everybody takes the fork with the lower number first*, the last one reaches for the same fork as the first:

# %%
dinner((0, 1), (1, 2), (0, 2))

# %%
ordered = Explorer(
    {
        "Hypatia": (philosopher, "fork 1", "fork 2"),
        "Confucius": (philosopher, "fork 2", "fork 3"),
        "Averroes": (philosopher, "fork 1", "fork 3"),
    },
    semaphores={"fork 1": 1, "fork 2": 1, "fork 3": 1},
)
print(ordered)
ordered.race(500)


# %% [markdown]
# Or let one fewer sit down than there are forks. The one who is left standing does not hold any:

# %%
def seated(s, left, right):
    yield acquire("chair")
    yield from philosopher(s, left, right)
    yield release("chair")


print(Explorer(
    {
        "Hypatia": (seated, "fork 1", "fork 2"),
        "Confucius": (seated, "fork 2", "fork 3"),
        "Averroes": (seated, "fork 3", "fork 1"),
    },
    semaphores={"fork 1": 1, "fork 2": 1, "fork 3": 1, "chair": 2},
))


# %% [markdown]
# ## Readers and writers
#
# A page of two lines. A writer changes both; two readers read both. Nobody locks anything, and each line by itself is always right:

# %%
def careless_writer(s):
    s.page[0] = 1
    yield "first line written"
    s.page[1] = 1


def careless_reader(s):
    first = s.page[0]
    yield "first line read"
    if s.page[1] != first:
        s.torn += 1


whole = {"nobody reads half a change": lambda s: s.torn == 0}
careless = Explorer(
    {"writer": careless_writer, "reader 1": careless_reader, "reader 2": careless_reader},
    shared={"page": [0, 0], "torn": 0},
    always=whole,
)
careless

# %%
careless.race(200, pause=0.001)

# %% [markdown]
# A mutex around everything would do, but readers do not disturb each other. So the *first* reader locks the room for all of
# them, and the *last* one unlocks it. How many there are is shared as well, and needs a mutex of its own:

# %%
def writer(s):
    yield acquire("room")
    yield from careless_writer(s)
    yield release("room")


def reader(s):
    yield acquire("mutex")
    s.readers += 1
    if s.readers == 1:
        yield acquire("room")
    yield release("mutex")
    yield from careless_reader(s)
    yield acquire("mutex")
    s.readers -= 1
    if s.readers == 0:
        yield release("room")
    yield release("mutex")


# %%
def library(claims):
    return Explorer(
        {"writer": writer, "reader 1": reader, "reader 2": reader},
        shared={"page": [0, 0], "torn": 0, "readers": 0},
        semaphores={"room": 1, "mutex": 1},
        always=claims,
    )


print(library(whole))
library(whole).race(200, pause=0.001)

# %% [markdown]
# Do the readers really read at the same time? Claim that they never do, and let the explorer refute you:

# %%
library({"the readers never meet": lambda s: s.readers < 2}).shortest()


# %% [markdown]
# (As long as readers keep coming, the writer waits: it is treated *correctly* and may still starve.)
#
# ## The sleeping barber
#
# When nobody is there, the barber falls asleep; whoever comes wakes him up. `until` waits for a condition.

# %%
from labkit.explore import until


def barber(s):
    if s.waiting == 0:
        yield "has looked: nobody there"
        s.asleep = 1
        yield until("somebody wakes him", lambda s: not s.asleep)
    s.waiting -= 1
    s.served += 1


def customer(s):
    yield "walks to the shop"
    s.waiting += 1
    yield "sits down"
    s.asleep = 0
    yield until("the hair is cut", lambda s: s.served)


sleepy = Explorer({"barber": barber, "customer": customer}, shared={"waiting": 0, "asleep": 0, "served": 0})
sleepy

# %%
sleepy.race(200, pause=0.002)


# %% [markdown]
# Both wait, each for the other, and no lock is involved: a **lost wake-up**. The customer woke up a barber who was not asleep yet, and
# nobody remembered it. To look and to fall asleep have to be one step (that is what futex(2) is for), or the wake-up has to be
# remembered. A semaphore remembers: it counts.

# %%
def alert_barber(s):
    yield acquire("customers")
    s.served += 1
    yield release("haircuts")


def loud_customer(s):
    yield "walks to the shop"
    yield release("customers")
    yield acquire("haircuts")


alert = Explorer(
    {"barber": alert_barber, "customer": loud_customer},
    shared={"served": 0},
    semaphores={"customers": 0, "haircuts": 0},
)
print(alert)
alert.race(200, pause=0.002)


# %% [markdown]
# ## A barrier
#
# Nobody may start the next lap before all have finished this one. The last to arrive opens a gate, and everybody who
# goes through holds it open for the next. It works, once:

# %%
def runner(s, me):
    for lap in (1, 2):
        s.lap[me] = lap
        yield acquire("mutex")
        s.arrived += 1
        last = s.arrived == 2
        yield release("mutex")
        if last:
            yield release("gate")
        yield acquire("gate")
        yield release("gate")
        if min(s.lap) < lap:
            s.early += 1


def track(runner, *gates):
    return Explorer(
        {"Atalanta": (runner, 0), "Achilles": (runner, 1)},
        shared={"lap": [0, 0], "arrived": 0, "early": 0},
        semaphores={"mutex": 1} | dict.fromkeys(gates, 0),
        always={"nobody goes on before all have arrived": lambda s: s.early == 0},
    )


# %%
gate = track(runner, "gate")
gate

# %%
gate.race(200, pause=0.001)


# %% [markdown]
# The gate stays open: in the second lap it stops nobody. A barrier that can be used again has two gates. The last one to arrive lets
# exactly as many through the first as there are; the last one to leave lets as many through the second.

# %%
def patient_runner(s, me):
    for lap in (1, 2):
        s.lap[me] = lap
        yield from gate_of_all("in", s, +1, 2)
        if min(s.lap) < lap:
            s.early += 1
        yield from gate_of_all("out", s, -1, 0)


def gate_of_all(gate, s, change, last):
    yield acquire("mutex")
    s.arrived += change
    if s.arrived == last:
        yield release(gate)
        yield release(gate)
    yield release("mutex")
    yield acquire(gate)


barrier = track(patient_runner, "in", "out")
print(barrier)
barrier.race(200, pause=0.001)

# %% [markdown]
# For programs of your own there is `Barrier`: one atomic addition, and a futex(2) on which all but the last sleep. What does it cost
# to wait for each other?

# %%
from labkit.sync import Barrier


def laps(barrier, times):
    barrier.wait()  # until all processes are there
    began = time.monotonic_ns()
    for _ in range(times):
        barrier.wait()
    return (time.monotonic_ns() - began) / times


for runners in 2, 4, 8:
    with Barrier(runners) as meeting_point:
        jobs = [launch(laps, meeting_point, 300) for _ in range(runners)]
        cost = max(job.wait() for job in jobs)
    print(f"{runners} runners: {cost / 1000:6.1f} µs a lap, {cost / 1000 / runners:5.1f} µs for each of them")

# %% [markdown]
# Nearly all of it is the kernel putting processes to sleep and waking them up again.
#
# ## Break it
#
# A philosopher dies with a fork in his hand: kill -9, no time for a `finally`. A POSIX semaphore does not know who took it. For a
# System V semaphore the kernel keeps book (SEM_UNDO, semop(2)) and gives back what a dead process held:

# %%
import signal

from labkit import RemoteError
from labkit.sync import SysvSemaphores


def take_and_die(fork):
    fork.acquire()
    os.kill(os.getpid(), signal.SIGKILL)


for fork in PosixSemaphore(1), SysvSemaphores([1]):
    try:
        launch(take_and_die, fork).wait()
    except RemoteError as error:
        print(f"{type(fork).__name__}: {error}")
    try:
        fork.acquire(timeout=1)
        print("  the fork has come back\n")
    except TimeoutError as error:
        print(f"  the fork is gone: {error}\n")
    fork.close()

# %% [markdown]
# ## Exercises
#
# **1. Break a lock.** Ann and Ben need no semaphore, they say: each looks whether the other's flag is down, raises its own, and goes in.
# Write `breaking_order()`: it returns a list of names, who runs at each step, after which both are inside. The check has two real
# processes run in your order.

# %%
import inspect

from labkit.exercises.classic_problems import check_breaking_order, look_then_enter

print(inspect.getsource(look_then_enter))


# %%
def breaking_order():
    ...  # your turn: return ["Ann", ...]


check_breaking_order(breaking_order)


# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def breaking_order():
#     return ["Ann", "Ben", "Ann", "Ben"]
# ```
#
# Both look before either raises its flag. `two_flags()` in `labkit.exercises.classic_problems` gives you its explorer, to play with.
# </details>
#
# **2. Meet.** Ann and Ben come to a meeting point, from different sides, twice. Whoever is first waits for the other. Each has a semaphore that
# starts at 0: `mine` is the name of one's own, `theirs` that of the other. Write `meet(s, mine, theirs)` with `yield acquire(...)` and
# `yield release(...)`. The check tries every interleaving, follows the one that breaks in real processes, or else lets them run freely.

# %%
def meet(s, mine, theirs):
    ...  # your turn


# %%
from labkit.exercises.classic_problems import check_meet

check_meet(meet)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def meet(s, mine, theirs):
#     yield release(mine)
#     yield acquire(theirs)
# ```
#
# First say that you are here, then wait. The other way round both wait for what neither has said.
# </details>
#
# ## What we learnt
#
# - What looks like one step is several, and another process may run in between: a *race condition*.
# - A test tries a few orders. A model tries all of them, but only between the places that you have marked.
# - Locks taken in a circle can deadlock; taken in one order by everybody, they cannot.
# - A wake-up that nobody remembers is lost: check and sleep in one step, or count.
# - What works once may not work twice: a barrier has to be ready for its next use.
# - A lock outlives its dead holder, unless the kernel keeps book.
#
# **Manual pages:** sem_overview(7), sem_init(3), sem_wait(3), sem_post(3), semop(2), memfd_create(2), mmap(2), futex(2), futex(7), sched_yield(2), proc_pid_stat(5).
# **Books:** M. Kerrisk, *The Linux Programming Interface*, chapters 47, 48, 53, 54; A. B. Downey, *The Little Book of Semaphores*, which has these problems
# and many more.
