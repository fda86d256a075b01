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
# # The lock-free queue: how do two processes share a ring without waiting for each other?
#
# In the lab on shared memory every message cost a semaphore on each side. Somebody had to wait, and the kernel had to be asked.
# Can two processes pass messages through memory with no lock and no system call at all?
#
# You build such a queue here, from a wrong one to one that keeps up with C++, and measure each step on your machine. Before
# you begin, read the lab on memory ordering, at least its first half; *release* and *acquire* come from there.

# %% [markdown]
# ## A ring by hand
#
# Some slots in a circle, and two numbers. `write_position` counts how many items were ever sent, `read_position` how many were ever
# received. They are never wrapped: the slot of a position is `position % CAPACITY`, full is when they differ by `CAPACITY`, and empty when
# they are the same.

# %%
import numpy as np

from labkit.shared_array import SharedArray

CAPACITY = 8
memory = SharedArray(32, np.int64)
words = memory.array  # word 0 is write_position, word 1 is read_position, and the slots begin at word 8


def send_by_hand(item):
    if words[0] - words[1] == CAPACITY:
        return False
    words[8 + words[0] % CAPACITY] = item
    words[0] += 1
    return True


def receive_by_hand():
    if words[0] == words[1]:
        return None
    item = int(words[8 + words[1] % CAPACITY])
    words[1] += 1
    return item


# %% [markdown]
# Only the sender writes `write_position`, and only the receiver writes `read_position`. That is the whole idea (L. Lamport, 1983): where each word
# has a single writer, nobody needs a lock. And neither of the two can hold up the other: each says what there is to say after
# a few steps, whatever the other does. That is called **wait-free**, which is even more than lock-free (M. Herlihy, 1991).
#
# The **ring view** shows the memory itself. Step through it with the buttons, or play it:

# %%
from labkit.views.ring import Layout, Ring

layout = Layout(words, capacity=CAPACITY, slots=64, producer={"write_position": 0}, consumer={"read_position": 8})
ring = Ring(layout)
ring.snapshot("empty")
for item in range(100, 112):
    sent = send_by_hand(item)
    ring.snapshot(f"send {item}: " + ("done" if sent else "it is full"))
    if item % 3 == 2:
        ring.snapshot(f"received {receive_by_hand()}")
ring

# %% [markdown]
# Beside the circle you see the same as cache lines. Both positions are in one line, which two processes are going to write. Remember that line, it will
# cost us dearly.
#
# ## Wrong: no order at all
#
# Python would be much too slow for what comes. From now on functions are compiled by Numba, and memory is an address. This one
# waits for the first item, in the way in which one would write it in C without a second thought:

# %%
from numba import njit

from labkit.lockfree.atomics import load_plain

def wait_for_item(write_position, slot):
    while load_plain(write_position) == 0:
        pass
    return load_plain(slot)


def receiver(memory, ready):
    ring, wait = memory.array.ctypes.data, njit(wait_for_item)
    wait(ring + 192, ring + 64)  # compiled now: at this place there is an item already
    ready.release()
    return wait(ring, ring + 64)


# %%
import time

from labkit import launch
from labkit.sync import PosixSemaphore

words[:], words[24], ready = 0, 1, PosixSemaphore(0)
job = launch(receiver, memory, ready)
ready.acquire()
time.sleep(0.3)
send_by_hand(77)
try:
    print("received", job.wait(2))
except TimeoutError as error:
    print("sent, and:", error)
job.kill()

# %% [markdown]
# The item is in memory since two seconds, and the receiver looks at that memory all the time. Does it? This is what has been made of
# the loop, for two kinds of processors:

# %%
from labkit.litmus import compare
from labkit.lockfree.atomics import load_relaxed


def wait_relaxed(write_position, slot):
    while load_relaxed(write_position) == 0:
        pass
    return load_plain(slot)


compare(wait_for_item, wait_relaxed)

# %% [markdown]
# In the first one the load is *before* the loop. Nothing in the loop changes that memory, said the compiler, so it is enough to look
# once. With `load_relaxed` it is told that somebody else may write there, and looks every time. **x86 forgives a lot, the compiler does not.**
#
# ## Wrong: atomic, and in the wrong order
#
# So all accesses are atomic now. `relaxed` promises that a word is read and written whole, and nothing on what comes first. The
# compiler may exchange two relaxed stores, and an Arm processor does so while it runs. What would that do to us? We exchange
# them ourselves, by hand: first the position, then the item.

# %%
from labkit.lockfree.atomics import store_relaxed
from labkit.rings import NOTHING, Ends, stream

CAPACITY, WRITE, READ, SLOTS = 1024, 0, 8, 64


@njit
def send_exchanged(ring, item):
    write = load_relaxed(ring + WRITE)
    if write - load_relaxed(ring + READ) == CAPACITY:
        return False
    store_relaxed(ring + WRITE, write + 1)
    store_relaxed(ring + SLOTS + write % CAPACITY * 8, item)
    return True


@njit
def receive_relaxed(ring):
    read = load_relaxed(ring + READ)
    if read == load_relaxed(ring + WRITE):
        return NOTHING
    item = load_relaxed(ring + SLOTS + read % CAPACITY * 8)
    store_relaxed(ring + READ, read + 1)
    return item


# %% [markdown]
# `stream` starts two processes, sends 1, 2, 3, ... through the ring again and again, and counts what is not the number that was to come:

# %%
@njit
def send_relaxed(ring, item):
    write = load_relaxed(ring + WRITE)
    if write - load_relaxed(ring + READ) == CAPACITY:
        return False
    store_relaxed(ring + SLOTS + write % CAPACITY * 8, item)
    store_relaxed(ring + WRITE, write + 1)
    return True


wrong = stream(
    {"exchanged": Ends(send_exchanged, receive_relaxed), "as written": Ends(send_relaxed, receive_relaxed)}, rounds=3
)
for name, streamed in wrong.items():
    print(f"{name}: {streamed}")

# %% [markdown]
# Where two processors are at work, the first line counts items that came *before they were there*: the slot still held what was in it a lap
# ago. (With one processor it happens only when the sender is interrupted between two instructions.)
#
# The second line is right on x86, and for a bad reason: this processor lets stores out in order, and today's compiler
# left them where they were. What of other machines? The last two lines of each function are a litmus test:

# %%
from labkit.litmus import Litmus


def put(slot, write_position):
    store_relaxed(slot, 1)
    store_relaxed(write_position, 1)


def take(slot, write_position):
    seen = load_relaxed(write_position)
    return seen, load_relaxed(slot)


hand_over = Litmus("hand-over, relaxed", put, take)
for model in ("x86", "arm", "c11"):
    print(f"{model}: the position without the item can be seen:", (1, 0) in hand_over.allowed(model))

# %% [markdown]
# ## Right: release and acquire
#
# One word more in two places. `store_release` comes after everything before it, `load_acquire` before everything after it. Together they are
# an **edge**: who sees the position sees the item. There are two edges in a ring:
#
# | edge | released by | acquired by | says |
# |---|---|---|---|
# | A | the sender's store of `write_position` | the receiver's load of it | the item is there |
# | B | the receiver's store of `read_position` | the sender's load of it | it has been read, the slot may be used again |
#
# The places of the positions are arguments, since we want to move them later:

# %%
from labkit.lockfree.atomics import load_acquire, store_release


def ring_with(WRITE, READ, SLOTS):
    @njit
    def send(ring, item):
        write = load_relaxed(ring + WRITE)  # only we write it
        if write - load_acquire(ring + READ) == CAPACITY:  # edge B
            return False
        store_relaxed(ring + SLOTS + write % CAPACITY * 8, item)
        store_release(ring + WRITE, write + 1)  # edge A
        return True

    @njit
    def receive(ring):
        read = load_relaxed(ring + READ)
        if read == load_acquire(ring + WRITE):  # edge A
            return NOTHING
        item = load_relaxed(ring + SLOTS + read % CAPACITY * 8)
        store_release(ring + READ, read + 1)  # edge B
        return item

    return Ends(send, receive)


# %% [markdown]
# The line that matters, `store_release`, beside what it was before, and the load that belongs to it:

# %%
def publish_relaxed(write_position, slot):
    store_relaxed(slot, 7)
    store_relaxed(write_position, 1)


def publish_release(write_position, slot):
    store_relaxed(slot, 7)
    store_release(write_position, 1)


def look_relaxed(write_position, slot):
    return load_relaxed(write_position) + load_relaxed(slot)


def look_acquire(write_position, slot):
    return load_acquire(write_position) + load_relaxed(slot)


compare(publish_relaxed, publish_release, look_relaxed, look_acquire)

# %% [markdown]
# On x86-64 nothing has changed: the order is free there. On AArch64 `str` became `stlr` and `ldr` became `ldar`. A program without them is wrong
# on half of the world's computers, and no test on a PC will ever tell.

# %% [markdown]
# ## Watch
#
# Two real processes, slowly: the producer takes 20 ms for an item, the consumer 35 ms. The view looks at their memory some hundred times a second,
# and keeps what has changed. Watch how it fills up, and who waits then:

# %%
def slow_producer(memory, count):
    words = memory.array
    for item in range(1, count + 1):
        while words[0] - words[1] == 8:
            time.sleep(0.001)
        words[8 + words[0] % 8] = item
        words[0] += 1
        time.sleep(0.02)


def slow_consumer(memory, count):
    words, items = memory.array, []
    while len(items) < count:
        if words[0] > words[1]:
            items.append(int(words[8 + words[1] % 8]))
            words[1] += 1
            time.sleep(0.035)
    return items == list(range(1, count + 1))


# %%
import IPython

words[:] = 0
ring = Ring(layout)
IPython.display.display(ring)
with ring.watching("two processes at work"):
    consuming, producing = launch(slow_consumer, memory, 40), launch(slow_producer, memory, 40)
    print("all there, in order:", await consuming)

# %% [markdown]
# (These two are in Python and have no acquire and no release. On x86 it goes well, as above, and on Arm it may not.)
#
# ## Measure, step 1: false sharing
#
# The two positions are in one cache line. A processor that writes to a line takes it away from all others, the *whole* line: 64
# bytes. So the sender, which only wants to write its own position, takes the receiver's away, and the other way round. Nothing
# is shared but the line; it is called **false sharing**. The remedy is distance. 128 bytes, since processors fetch lines in pairs:

# %%
from labkit.draw import plot_times

rings, medians = {"one cache line": ring_with(0, 8, 64)}, {}


def measure(name):
    """The new ring beside the first one, in turns, in one run."""
    found = stream({one: rings[one] for one in ("one cache line", name)})
    assert not any(one.wrong for one in found.values())
    medians.update({one: found[one].median for one in found if one not in medians})
    print(f"{name}: {found['one cache line'].median / found[name].median:.1f} times as fast as in one cache line")
    return plot_times(medians, "from process to process, one item")


rings["128 bytes apart"] = ring_with(0, 128, 256)
measure("128 bytes apart")

# %% [markdown]
# Nothing was wrong in either, `measure` looks. How much that is worth depends on how far your two processors are from each other, and on who else
# uses them: on a busy machine you measure the others. It may even cost time: for every item each side still reads the other's position, and with
# the two apart that is one more line that travels. Distance alone does not help who looks at the other each time; the next step looks seldom.

# %% [markdown]
# The same as a picture: the view shows the line that two processes write with a red border, and there is none any more.

# %%
apart = SharedArray(64, np.int64)
ring = Ring(Layout(apart.array, capacity=8, slots=256, producer={"write_position": 0}, consumer={"read_position": 128}))
ring.snapshot("each position in a line of its own")
ring

# %% [markdown]
# ## Step 2: remember what you saw
#
# There is more to save. At each item, the sender looks at the other's position, a line that the other has just written and that has to be
# fetched. But if there was room for 500 items a moment ago, there is room for at least 499 now: positions only grow. So each side keeps a copy of
# what it saw last, in its own line, and looks again only when that says full, or empty.

# %%
def ring_that_remembers(WRITE, READ, SLOTS, SEEN=8):  # SEEN: beside one's own position
    @njit
    def send(ring, item):
        write = load_relaxed(ring + WRITE)
        if write - load_relaxed(ring + WRITE + SEEN) == CAPACITY:
            store_relaxed(ring + WRITE + SEEN, load_acquire(ring + READ))  # edge B
            if write - load_relaxed(ring + WRITE + SEEN) == CAPACITY:
                return False
        store_relaxed(ring + SLOTS + write % CAPACITY * 8, item)
        store_release(ring + WRITE, write + 1)  # edge A
        return True

    @njit
    def receive(ring):
        read = load_relaxed(ring + READ)
        if read == load_relaxed(ring + READ + SEEN):
            store_relaxed(ring + READ + SEEN, load_acquire(ring + WRITE))  # edge A
            if read == load_relaxed(ring + READ + SEEN):
                return NOTHING
        return finish(ring, read)

    return Ends(send, receive)


# %%
@njit
def finish(ring, read):
    item = load_relaxed(ring + 256 + read % CAPACITY * 8)
    store_release(ring + 128, read + 1)  # edge B
    return item


rings["remembers what it saw"] = ring_that_remembers(0, 128, 256)
measure("remembers what it saw")

# %% [markdown]
# ## Step 3: many at once
#
# Each store of a position makes the other side fetch that line once more. Who has several items copies them all, and publishes them with one
# store. An edge does not care how much it carries:

# %%
@njit
def send_many(ring, items, count):
    write = load_relaxed(ring)
    room = CAPACITY - (write - load_relaxed(ring + 8))
    if room < count:
        store_relaxed(ring + 8, load_acquire(ring + 128))  # edge B, for all of them
        room = CAPACITY - (write - load_relaxed(ring + 8))
    count = min(count, room)
    for n in range(count):
        store_relaxed(ring + 256 + (write + n) % CAPACITY * 8, load_relaxed(items + 8 * n))
    store_release(ring, write + count)  # edge A, for all of them
    return count


@njit
def receive_many(ring, to, most):
    read = load_relaxed(ring + 128)
    count = min(most, load_acquire(ring) - read)  # edge A
    for n in range(count):
        store_relaxed(to + 8 * n, load_relaxed(ring + 256 + (read + n) % CAPACITY * 8))
    if count > 0:
        store_release(ring + 128, read + count)  # edge B
    return count


# %%
rings["64 at once"] = Ends(send_many, receive_many, batch=64)
measure("64 at once")

# %% [markdown]
# Each step changed nothing in what the queue *does*. It is the same two counters and the same two edges; only the number of times a cache line
# travels from one processor to the other became smaller. (With one processor for both no line travels anywhere, and you see that the
# steps hardly differ.)
#
# ## From Python: the price of a call
#
# A Python program calls the compiled `send` for every item. What does the call alone cost? Calling an `@njit` function goes through Numba's
# *dispatcher*, which looks at the types of all arguments each time. But a compiled function is an address, and CPython calls an address without
# further questions when it is told that it is a **builtin**, like `list.append`. `labkit.lockfree.entry` does that: the function is written in
# Numba and calls Python's C API itself.

# %%
from numba import cfunc

from labkit.lockfree.entry import (BUILTIN, METH_O, RING, WORD, Entry, PyLong_AsLong, PyLong_AsVoidPtr,
                                   PyLong_FromLongLong, new_state)

ring_send, ring_receive = rings["remembers what it saw"].send, rings["remembers what it saw"].receive
home = SharedArray(2048, np.int64)
state = new_state(home.array.ctypes.data, CAPACITY, 8)


@cfunc(BUILTIN)
def send_builtin(self, item):
    ring = load_relaxed(PyLong_AsVoidPtr(self) + RING)
    return PyLong_FromLongLong(WORD(ring_send(ring, PyLong_AsLong(item))))


@cfunc(BUILTIN)
def receive_builtin(self, ignored):
    return PyLong_FromLongLong(ring_receive(load_relaxed(PyLong_AsVoidPtr(self) + RING)))


fast_send, fast_receive = (Entry(f, METH_O).builtin(state, home) for f in (send_builtin, receive_builtin))
print(fast_send(42), fast_receive(None), type(fast_send))

# %%
from timeit import repeat

from labkit.lockfree import Mpmc, Spsc

address, stack, spsc, mpmc = home.array.ctypes.data, [], Spsc(), Mpmc(1024, 64)
message = b"12345678"


def cost(statement):
    return min(repeat(statement, globals=globals(), number=20_000, repeat=7)) / 20_000 * 1e9


plot_times(
    {
        "list: append, pop": cost("stack.append(7); stack.pop()"),
        "our ring through builtins": cost("fast_send(7); fast_receive(None)"),
        "our ring through the dispatcher": cost("ring_send(address, 7); ring_receive(address)"),
        "Spsc, 8 bytes": cost("spsc.send(message); spsc.receive()"),
        "Mpmc, 8 bytes": cost("mpmc.send(message); mpmc.receive()"),
    },
    "send and receive once, in one process",
)

# %% [markdown]
# The ring itself takes a few nanoseconds. All the rest is the way to it, and with a builtin the way is about as short as for a list. The last two
# are the library's. `Spsc` also makes a bytes object and copies the message; `Mpmc` besides keeps a record of who owns the slot, in case
# that somebody dies (the lab on crashes).
#
# ## The library
#
# `labkit.lockfree` has such queues ready: checked, blocking when you want it, safe against a process that dies. `Spsc` is your last ring: one
# sender, one receiver, the same two edges. This is how it receives a batch:

# %%
import inspect

from labkit.lockfree.spsc import take_items

print(inspect.getsource(take_items.py_func))

# %% [markdown]
# `Mpmc` has many senders and many receivers. `labkit.Queue` is an `Mpmc` that takes any Python object, with the methods of
# `multiprocessing.Queue`. In your own `@njit` loop an `Spsc(1024, dtype=np.int64)` is an argument like any other, with the same
# methods. Here all of them are used from Python, one message at a time, or 64:


# %%
def one_by_one(q, role, count):
    if role == "sender":
        for _ in range(count):
            q.send(message)
    else:
        for _ in range(count):
            q.receive()


def objects(q, role, count):
    if role == "sender":
        for _ in range(count):
            q.put(message)
    else:
        for _ in range(count):
            q.get()


# %%
import os


def batches(q, role, count):
    items = np.arange(64)
    while count > 0:
        if role == "sender":
            q.send_many(items)
            count -= 64
        else:
            count -= len(q.receive_many(64))


def by_hand(memory, role, count):
    ring, items = memory.array.ctypes.data, np.arange(64)
    act = send_many if role == "sender" else receive_many
    while count > 0:
        done = act(ring, items.ctypes.data, min(64, count))
        count -= done
        if done == 0:
            os.sched_yield()


# %% [markdown]
# Two processes take turns through all of the queues: A B C A B C. Each queue holds about a thousand messages of 8 bytes. The first round is left
# out, since in it your functions are compiled:


# %%
def side(role, queues, start):
    """One of the two processes: nanoseconds for a message of each queue, in each round."""
    times = {name: [] for name in queues}
    for _ in range(6):
        for name, (end, loop, count) in queues.items():
            start.wait()
            begin = time.monotonic_ns()
            loop(end, role, count)
            times[name].append((time.monotonic_ns() - begin) / count)
    return times


# %%
from labkit import Queue, channel
from labkit.sync import Barrier

queues = {
    "multiprocessing.Queue": (channel("mp_queue"), one_by_one, 2_000),
    "labkit.Queue": ([Queue(1000)] * 2, objects, 20_000),
    "Mpmc": ([Mpmc(1024, 64)] * 2, one_by_one, 100_000),
    "Spsc": ([Spsc(1 << 14)] * 2, one_by_one, 100_000),
    "Spsc of items, 64 at once": ([Spsc(1024, dtype=np.int64)] * 2, batches, 320_000),
    "our last ring, 64 at once": ([SharedArray(2048, np.int64)] * 2, by_hand, 320_000),
}
start, jobs = Barrier(2), []
for n, role in enumerate(("sender", "receiver")):
    mine = {name: (ends[n], loop, count) for name, (ends, loop, count) in queues.items()}
    jobs.append(launch(side, role, mine, start, name=role))
_, found = [job.wait() for job in jobs]
times = {name: np.median(some[1:]) for name, some in found.items()}
plot_times(times, "one message of 8 bytes, Python to Python")

# %%
for name in list(queues)[1:]:
    print(f"{name}: {times['multiprocessing.Queue'] / times[name]:.0f} times as fast")
plot_times({name: times[name] for name in list(queues)[2:]}, "the last four once more, larger")

# %% [markdown]
# The step from the first to the second bar is the kernel, which is not asked any more, and a thread that is not needed. `labkit.Queue` still
# pickles each object. `Mpmc` claims a slot for each message, `Spsc` has nothing to claim. And with 64 in a call the call, which was nearly
# everything, is shared by 64. (With one processor for both, or on a busy machine, you see rather how often the two have to take turns.)
#
# Your ring has the shortest way of all, for it does the least: it does not look at what it is given, it does not
# know how to sleep, and whether there is anybody at the other side it will never know.

# %% [markdown]
# An `Mpmc` in the ring view. Its slots say themselves what they are and whose: claimed, published, taken. Here we take one slot through its
# life, step by step:

# %%
small = Mpmc(8, message_bytes=16)
ring = Ring(small)
ring.snapshot("empty")
loan = small.loan(5)
ring.snapshot("we have claimed a slot, and are filling it")
loan.array[:] = list(b"hello")
loan.publish()
ring.snapshot("published")
borrowed = small.borrow()
ring.snapshot("taken: being read where it lies")
borrowed.release()
ring.snapshot("released: free again, one lap later")
ring

# %% [markdown]
# ## Break it: a second producer
#
# Our ring is for *one* sender. `write_position` has a single writer, everything rests on that. What if two send?

# %%
def sender(memory, count, start):
    address, send = memory.array.ctypes.data, ring_with(0, 128, 256).send
    send(address + 16384, 0)  # compiled now, in another place
    start.wait()
    return sum(bool(send(address, 1)) for _ in range(count))


lost, start = SharedArray(4096, np.int64), Barrier(2)
lost.array[16] = 10_000_000  # as if so many had been received already: it never gets full
jobs = [launch(sender, lost, 100_000, start) for _ in range(2)]
accepted = sum(job.wait() for job in jobs)
print(f"{accepted:,} items were accepted, {lost.array[0]:,} are in the ring: {accepted - lost.array[0]:,} are lost")

# %% [markdown]
# (With one processor, one of them has to be interrupted in the middle of `send` for that, and you may see none.) Both read the same
# `write_position`, both wrote into the same slot, both moved on by one. With many producers a slot has to be *claimed* by an
# atomic compare-and-exchange first: that is what `Mpmc` does, and why it takes longer.
#
# ## Exercise 1: the missing edges
#
# All accesses here are relaxed. Give each of the four accesses to a position the order that it needs, and no more than that.

# %%
from labkit.exercises.lock_free_queue import CAPACITY, FIRST_SLOT, READ_POSITION, WRITE_POSITION


def send(ring, item):
    write = load_relaxed(ring + WRITE_POSITION)
    if write - load_relaxed(ring + READ_POSITION) == CAPACITY:  # your turn: which loads acquire?
        return False
    store_relaxed(ring + FIRST_SLOT + write % CAPACITY * 8, item)
    store_relaxed(ring + WRITE_POSITION, write + 1)  # which stores release?
    return True


def receive(ring):
    read = load_relaxed(ring + READ_POSITION)
    if read == load_relaxed(ring + WRITE_POSITION):
        return NOTHING
    item = load_relaxed(ring + FIRST_SLOT + read % CAPACITY * 8)
    store_relaxed(ring + READ_POSITION, read + 1)
    return item


# %%
from labkit.exercises.lock_free_queue import check_edges

check_edges(send, receive)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def send(ring, item):
#     write = load_relaxed(ring + WRITE_POSITION)
#     if write - load_acquire(ring + READ_POSITION) == CAPACITY:
#         return False
#     store_relaxed(ring + FIRST_SLOT + write % CAPACITY * 8, item)
#     store_release(ring + WRITE_POSITION, write + 1)
#     return True
#
#
# def receive(ring):
#     read = load_relaxed(ring + READ_POSITION)
#     if read == load_acquire(ring + WRITE_POSITION):
#         return NOTHING
#     item = load_relaxed(ring + FIRST_SLOT + read % CAPACITY * 8)
#     store_release(ring + READ_POSITION, read + 1)
#     return item
# ```
#
# The other's position is acquired, one's own is released. One's own may be loaded relaxed: nobody else writes it.
# </details>
#
# ## Exercise 2: receive a batch
#
# `take_many(ring, to, most)` copies what is there, `most` items at most, into the array at address `to`, and returns how many. It looks at `write_position` once and
# moves `read_position` once. Mind the end of the ring.


# %%
def take_many(ring, to, most):
    return 0  # your turn


# %%
from labkit.exercises.lock_free_queue import check_receive_many

check_receive_many(take_many)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def take_many(ring, to, most):
#     read = load_relaxed(ring + READ_POSITION)
#     count = min(most, load_acquire(ring + WRITE_POSITION) - read)
#     for n in range(count):
#         item = load_relaxed(ring + FIRST_SLOT + (read + n) % CAPACITY * 8)
#         store_relaxed(to + 8 * n, item)
#     if count > 0:
#         store_release(ring + READ_POSITION, read + count)
#     return count
# ```
#
# The position is a count, so that the end of the ring is only a matter of `%`. The release comes after the last copy.
# </details>
#
# ## Exercise 3: which capacities?
#
# Suppose positions had 8 bits only, and went from 255 to 0. The slot of a position is `position % capacity`. With which capacities from 1 to 16 does the
# ring still work after the wrap?


# %%
def capacities():
    return set(range(1, 17))  # your turn


# %%
from labkit.exercises.lock_free_queue import check_capacities

check_capacities(capacities)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def capacities():
#     return {capacity for capacity in range(1, 17) if 256 % capacity == 0}
# ```
#
# 1, 2, 4, 8 and 16: only they divide 256.
# </details>
#
# ## What we learnt
#
# - Where each word has one writer, two processes need no lock; full and empty follow from two counters that never wrap.
# - The compiler is the first to break a ring without atomics, then comes the processor. A test on x86 shows only the first.
# - Two edges make it right: the position released by its owner and acquired by the other.
# - What costs is cache lines that travel: put what different processes write into different lines, remember what you saw, publish many at once.
# - From Python the call is the price. A builtin made of compiled code costs little more than `list.append`.
#
# **Manual pages:** memfd_create(2), mmap(2), sched_setaffinity(2), sched_yield(2), futex(2).
# **Sources:** L. Lamport, *Specifying concurrent program modules* (1983). J. Giacomoni, T. Moseley, M. Vachharajani, *FastForward for efficient pipeline parallelism*
# (2008). M. Thompson et al., *Disruptor* (2011). E. Rigtorp, *SPSCQueue* (github.com/rigtorp/SPSCQueue). D. Vyukov, *Bounded MPMC queue* (1024cores.net).
# *C11*, §5.1.2.4 and §7.17.3. The library's own: `labkit/lockfree/spsc.py` and `mpmc.py`, which open with their memory map and edges.
