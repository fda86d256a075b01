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
# # Crash: what is left of a queue when a process dies in the middle of a message?
#
# `kill -9` gives no time to say goodbye. It hits a process between any two of its instructions, also between *this slot is mine*
# and *this slot is ready*. The Linux kernel closes its files then, and a pipe's other side sees an end of file. But in shared memory
# there is no kernel that cleans up. What the dead have left lies there, half done.
#
# In this lab you kill producers and consumers at the worst moment, see a good queue hang for ever, and another one that does not.

# %% [markdown]
# ## A queue with a lock
#
# `multiprocessing.Queue` is a pipe and two locks: who receives holds one of them, so that nobody else takes half of a message.
# It also holds it *while it waits*. What if somebody kills it there?

# %%
import queue
import time

import multiprocess  # multiprocessing, for functions of a notebook

from labkit import launch

locked = multiprocess.get_context("forkserver").Queue()


def waits(locked):
    locked.get()


# %%
consumer = launch(waits, locked)
time.sleep(0.5)
consumer.kill()

locked.put("hello")
time.sleep(0.2)
print("messages in the queue:", locked.qsize())
try:
    print("received", locked.get(timeout=2))
except queue.Empty:
    print("received nothing in 2 s")

# %% [markdown]
# A message is in the queue, a living process wants it, and cannot have it, not in 2 s and not in a year. The lock belongs to a process that does
# not exist any more. A semaphore in shared memory does not know its owner; nobody gives it back (sem_overview(7)).
#
# ## By hand: a queue without a lock
#
# A queue without a lock has none that can be left held. D. Vyukov's bounded queue is the one that most libraries have, for many producers and many
# consumers. Each slot has a *sequence* that says whose turn it is. A producer claims a position, fills the slot, and publishes it:

# %%
import inspect

from labkit.lockfree import vyukov

print(inspect.getsource(vyukov.claim.py_func), inspect.getsource(vyukov.publish.py_func), sep="\n\n")

# %%
from labkit.lockfree.vyukov import Vyukov
from labkit.views.ring import Layout, Ring

plain = Vyukov(8)
layout = Layout(plain.memory.array, capacity=8, slots=vyukov.CELLS, stride=16, sequences=True,
                producer={"write_position": vyukov.WRITE}, consumer={"read_position": vyukov.READ})
ring = Ring(layout)
for number in (10, 11, 12):
    plain.try_send(number)
ring.snapshot("three numbers are in it")

# %% [markdown]
# Now the producer that is killed between the two. It claims a slot, tells us, and would go on to fill it:

# %%
from labkit.sync import PosixSemaphore


def stuck_producer(plain, claimed):
    position = plain.claim()
    claimed.release()
    time.sleep(60)
    plain.publish(position, 13)


claimed = PosixSemaphore(0)
producer = launch(stuck_producer, plain, claimed)
claimed.acquire()
ring.snapshot("the producer has claimed a slot")
producer.kill()

for number in (14, 15):
    plain.try_send(number)
ring.snapshot("it was killed, and others have sent 14 and 15")


# %%
def receive(seconds):
    """What comes within so many seconds, or None."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        number = plain.try_receive()
        if number is not None:
            return number
        time.sleep(0.001)


for attempt in range(4):
    print("received", receive(1))
    ring.snapshot("received" if attempt < 3 else "nothing comes any more")
ring

# %% [markdown]
# 14 and 15 are there, published and complete, and nobody will ever receive them: slot 3 comes first, and slot 3 is being filled. By whom? The
# ring view shows a question mark, because the memory does not say. And the other side:

# %%
accepted = 0
while plain.try_send(100 + accepted):
    accepted += 1
ring.snapshot("and soon it is full, for ever")
print(accepted, "more numbers could be sent, and then no more")

# %% [markdown]
# There is no lock in this queue, and yet everybody waits for one: for its next step. *Lock-free* in the strict sense (M. Herlihy, 1991) is only
# where somebody gets on whatever becomes of the others. Many queues that are called so are not.
#
# Could the others wait for a second, and then take the slot away? No. After a second the owner may be dead; or it was stopped
# (Ctrl-Z, a debugger, a busy machine), and it will go on exactly where it was, and write into a slot that has long been somebody
# else's. **Silence is no proof of death.**
#
# ## A proof of death
#
# Somebody knows for certain who lives: the kernel. It drops the locks of a process when it ends, whatever it died of, and never before. So every
# participant of our queues locks one byte of the queue's file, its own, and whoever wants to know asks for that lock. By
# hand, with fcntl(2):

# %%
import fcntl
import os
import struct
import tempfile

file, path = tempfile.mkstemp()


def lock_request(kind, byte):
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, byte, 1, 0)  # struct flock


def participant(path, byte, locked):
    fd = os.open(path, os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock_request(fcntl.F_WRLCK, byte))
    locked.release()
    time.sleep(60)


def lives(byte):
    answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, lock_request(fcntl.F_WRLCK, byte))
    return struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK


# %%
import signal

locked_it = PosixSemaphore(0)
job = launch(participant, path, 7, locked_it)
locked_it.acquire()
print("at work:", "lives" if lives(7) else "dead")

job.kill(signal.SIGSTOP)
time.sleep(0.5)
print("stopped:", "lives" if lives(7) else "dead")

job.kill()
while job.alive:
    time.sleep(0.001)
print("killed: ", "lives" if lives(7) else "dead")
os.unlink(path)

# %% [markdown]
# ## A queue that survives
#
# In `Mpmc` a slot says in one word whose it is: the lap, the owner's number, and the state. To claim a slot is one atomic exchange of *that word*, and
# no instruction lies between *claimed* and *claimed by me*.
#
#     lap (48 bits) | owner (8 bits) | times (5 bits) | state: FREE, FILLING, FULL, TAKING, POISON
#
# The same crash again: a producer claims a slot, writes half of its message, and is killed.

# %%
from labkit.lockfree import Mpmc


def half_a_message(q, claimed):
    with q.loan(16) as slot:
        slot.array[:8] = list(b"I am abo")
        claimed.release()
        time.sleep(60)


q = Mpmc(8, message_bytes=16)
ring = Ring(q)
q.send(b"before")
producer = launch(half_a_message, q, claimed, name="producer")
claimed.acquire()
q.send(b"after")
ring.snapshot("the producer is filling slot 1")
producer.kill()
while producer.alive:
    time.sleep(0.001)
ring.snapshot("it was killed")

# %%
begin = time.monotonic()
print(q.receive(), q.receive())
print(f"both have come after {time.monotonic() - begin:.3f} s")
ring.snapshot("received: slot 1 was passed over")
ring

# %% [markdown]
# The receiver came to slot 1, asked the kernel about its owner, and exchanged the word for POISON: *there was never a message here*. Whoever comes
# next passes over it, and the slot is free again, in lap 1. Half a message was never received, which is the promise: **whole, or not at all.**
#
# ## Stopped is not dead
#
# Three producers. The first is stopped in the middle of its message, the second is killed in the middle of its message, the third one sends:

# %%
def producer(q, claimed, text):
    with q.loan(len(text)) as slot:
        claimed.release()
        if text == b"never":
            time.sleep(60)
        os.kill(os.getpid(), signal.SIGSTOP)
        slot.array[:] = list(text)


ring = Ring(q)
first = launch(producer, q, claimed, b"late", name="stopped")
claimed.acquire()
second = launch(producer, q, claimed, b"never", name="killed")
claimed.acquire()
ring.snapshot("two producers are filling their slots")
second.kill()
while second.alive:
    time.sleep(0.001)
q.send(b"third")
ring.snapshot("one is stopped, one is killed, and the third has sent")

# %%
try:
    print(q.receive(timeout=0.5))
except TimeoutError as error:
    print("TimeoutError:", error)
ring.snapshot("who was dead was found out; who is stopped keeps its slot")

first.kill(signal.SIGCONT)
print(q.receive(), q.receive())
ring.snapshot("it went on, and nothing was lost")
ring

# %% [markdown]
# Step through it. The slot of the dead one is poison, that of the stopped one is untouched, and the message of the third waits for it: messages
# are received in the order in which their slots were claimed. When the first one went on, it found everything as it had left it.
#
# ## A consumer dies
#
# A consumer is killed after it has taken a message and before it has given it back. Was the message received? Nobody can know what it had done
# with it. So another one gets it again, and is told so:

# %%
def stuck_consumer(q, taken):
    with q.borrow():
        taken.release()
        time.sleep(60)


ring = Ring(q)
for text in (b"one", b"two"):
    q.send(text)
consumer = launch(stuck_consumer, q, claimed, name="consumer")
claimed.acquire()
ring.snapshot("a consumer is reading the first message")
consumer.kill()
while consumer.alive:
    time.sleep(0.001)
ring.snapshot("it was killed")

for _ in range(2):
    with q.borrow() as slot:
        ring.snapshot("taken by us")
        print(bytes(slot.array), "which others had taken before:", slot.times)
ring.snapshot("both are received")
ring

# %% [markdown]
# Redelivered messages come late, behind others. That is **at least once**; who wants *exactly once* has to do something for it
# (exercise 2).
#
# ## The other queues
#
# `Spsc`, for one sender and one receiver, has it easier: nothing is claimed, and a message is sent by a single store (a large one in pieces, which
# count only together). Whoever dies before that store has sent nothing, and whoever dies after it, the whole message. But *one* sender has to
# stay one: each of the two roles is a lock that the kernel drops, as above. A sender is killed in the middle of its second message:

# %%
from labkit.lockfree import Spsc


def dies_at_the_second(q, claimed):
    q.send(b"the first message")
    half_a_message(q, claimed)


single = Spsc(4096)
sender = launch(dies_at_the_second, single, claimed)
claimed.acquire()
try:
    single.send(b"from somebody else")
except ValueError as error:
    print("while it lives:", error)
sender.kill()
while sender.alive:
    time.sleep(0.001)
single.send(b"from the next sender")
print(single.receive(), single.receive())

# %% [markdown]
# The first message is whole, the second never was, and the role is ours: the next message was written over the half one. Now a receiver, which is
# killed before it has released what it reads:

# %%
other = Spsc(4096)
other.send(b"to whom it may concern")
receiver = launch(stuck_consumer, other, claimed)
claimed.acquire()
try:
    other.receive()
except ValueError as error:
    print("while it lives:", error)
receiver.kill()
while receiver.alive:
    time.sleep(0.001)
print("the next receiver gets:", other.receive())

# %% [markdown]
# It was not lost, and it comes to whoever takes the role next.
#
# `Broadcast` has one writer as well, and readers that write nothing at all. The same writer dies, and the next one goes on:

# %%
from labkit.lockfree import Broadcast

news = Broadcast(1 << 12)
writer = launch(dies_at_the_second, news, claimed)
claimed.acquire()
writer.kill()
while writer.alive:
    time.sleep(0.001)
print(news.receive())
news.send(b"from the next writer")
print(news.receive())

# %% [markdown]
# And `labkit.Queue`, which has the methods of `multiprocessing.Queue`, and inside is an `Mpmc`? This is the crash with which the lab began, a
# consumer that is killed while it waits:

# %%
from labkit import Queue

lock_free = Queue()
consumer = launch(waits, lock_free)
time.sleep(0.5)
consumer.kill()
while consumer.alive:
    time.sleep(0.001)

lock_free.put("hello")
print("received", lock_free.get(timeout=2))

# %% [markdown]
# Who waits holds nothing here, and so there is nothing that could be left held.
#
# ## Measure: hundreds of kills
#
# One crash at a chosen place proves little. So: a producer sends as fast as it can and keeps a count of what was accepted, of each `send` that has returned. We kill
# it at a random moment, receive everything, and compare. Again and again:

# %%
from labkit.shared_array import SharedArray


def numbers(q, accepted):
    number = 0
    while True:
        q.send(b"%015d" % number, timeout=None)
        number += 1
        accepted.array[0] = number


def drain(q):
    came = []
    while (message := q.try_receive()) is not None:
        came.append(int(message))
    return came


# %%
import random

large, accepted = Mpmc(4096, message_bytes=16), SharedArray(1, "int64")
large.send(b"here I am")  # and so the queue always has a living sender
large.receive()
more, lost, damaged = [], 0, 0
begin = time.monotonic()
while len(more) < 300 and time.monotonic() - begin < 8:
    accepted.array[0] = 0
    job = launch(numbers, large, accepted)
    while not accepted.array[0]:
        time.sleep(0)
    time.sleep(random.uniform(0, 0.001))
    job.kill()
    while job.alive:
        time.sleep(0.0002)
    came = drain(large)
    lost += max(0, int(accepted.array[0]) - len(came))
    damaged += came != list(range(len(came)))
    more.append(len(came) - int(accepted.array[0]))
print(f"{len(more)} kills; accepted and lost: {lost}; out of order or damaged: {damaged}")

# %%
from collections import Counter

print("messages that came though their send had not returned:", dict(Counter(more)))

# %% [markdown]
# Nothing that was accepted is lost. Now and then one message more comes than was accepted: its producer was killed after it had published the message and before it could
# count it. It can be found only at the receiver, and it is whole.
#
# The tests of this package go further. They let a producer do a number of machine instructions, kill it there, and do that for *every* number, with each
# queue, for sending and for receiving (`tests/test_crash.py`, ptrace(2)). And a model checker goes through all interleavings of a small queue in which
# anybody may die at any step (`labkit/lockfree/models`).
#
# How long do the others have to wait, when somebody has died in front of them?

# %%
from labkit.draw import plot_times

waited = []
for _ in range(15):
    dying = launch(half_a_message, q, claimed)
    claimed.acquire()
    q.send(b"next")
    dying.kill()
    while dying.alive:
        time.sleep(0.0002)
    begin = time.monotonic_ns()
    q.receive()
    waited.append(time.monotonic_ns() - begin)
plot_times({"the shortest": min(waited), "half of them": sorted(waited)[7], "the longest": max(waited)}, "from the death to the next message")

# %% [markdown]
# A receiver looks for the dead before it goes to sleep, and ten times a second while it sleeps. Nobody pays for it while messages flow.
#
# ## Exercise 1: is it dead?
#
# `is_dead(fd, byte, pid)`: process `pid` has locked byte `byte` of the open file `fd` when it began. Has it died? The check shows you processes that live, are
# stopped, and were killed. Mind that a pid is used again.


# %%
def is_dead(fd, byte, pid):
    try:
        os.kill(pid, 0)  # your turn: signal 0 only asks whether there is such a process
    except ProcessLookupError:
        return True
    return False


# %%
from labkit.exercises.crash import check_is_dead

check_is_dead(is_dead)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def is_dead(fd, byte, pid):
#     answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, lock_request(fcntl.F_WRLCK, byte))
#     return struct.unpack_from("h", answer)[0] == fcntl.F_UNLCK
# ```
#
# F_OFD_GETLK asks whether a lock could be had, and takes none. The pid is not needed at all.
# </details>
#
# ## Exercise 2: booked exactly once
#
# A queue of entries, each with a `number` (0, 1, 2, ...) and an `amount`. `book(q, ledger)` receives one and books it, so that at last the sum of `ledger.array` is the sum of all
# amounts. The check kills it before each of its lines, and another process takes over. This is the obvious way, and it loses money:


# %%
def book(q, ledger):
    entry = q.receive(timeout=0)  # your turn
    ledger.array[0] += entry["amount"]


# %%
from labkit.exercises.crash import check_book

check_book(book)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def book(q, ledger):
#     with q.borrow(timeout=0) as slot:
#         number, amount = int(slot.array["number"]), int(slot.array["amount"])
#         ledger.array[number] = amount
# ```
#
# The message is released when the `with` ends, after it is booked: so it is booked at least once. And each number has a place of its own, so that
# booking it twice is the same as once. (Such an action is called *idempotent*.)
# </details>
#
# ## What we learnt
#
# - In shared memory nobody cleans up after the dead. A lock of a dead process stays locked, a claimed slot stays claimed.
# - To have no lock is not enough: a plain queue hangs behind the slot of a dead producer.
# - A timeout proves nothing. The kernel knows who has died, and says so by the locks that it drops.
# - Whoever claims has to leave its name in the same instruction; then anybody can clear up after it.
# - A message that was taken and not given back comes again. *Exactly once* is at least once, and an action that may be repeated.
#
# **Manual pages:** kill(2), signal(7), fcntl(2) (open file description locks), sem_overview(7), pthread_mutexattr_setrobust(3), ptrace(2), pidfd_open(2).
# **Sources:** D. Vyukov, *Bounded MPMC queue* (1024cores.net). M. Herlihy, *Wait-free synchronization* (1991). M. M. Michael, M. L. Scott, *Simple, fast, and practical
# non-blocking and blocking concurrent queue algorithms* (1996). J. Gray, *Notes on data base operating systems* (1978), on doing a thing exactly once. The library's own: `labkit/lockfree/mpmc.py` and `bells.py`.
