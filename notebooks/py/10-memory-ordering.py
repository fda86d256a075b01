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
# # Memory ordering: who sees what, and when?
#
# Two processes share two numbers, x and y, both 0. One stores 1 in x and then reads y. The other stores 1 in y and then reads x.
# Whoever comes second must find the other's 1, whatever the order. Can *both* find 0?
#
# In this lab two real processes try it a million times. What you see depends on the processor under you and on the compiler, and
# is the reason why code that shares memory says `acquire`, `release` and `fence`.

# %% [markdown]
# ## Two functions, two numbers
#
# `load_relaxed` and `store_relaxed` read and write 64 bits of memory at an address, whole, and promise nothing else. Numba compiles
# each of them to one instruction.

# %%
from labkit.lockfree.atomics import load_relaxed, store_relaxed


def sb_left(x, y):
    store_relaxed(x, 1)
    return load_relaxed(y)


def sb_right(x, y):
    store_relaxed(y, 1)
    return load_relaxed(x)


# %% [markdown]
# By hand, and one after the other: shared memory, two addresses in it, and the two functions compiled.

# %%
import numba

from labkit.shared_array import SharedArray

memory = SharedArray(32)
x = memory.array.ctypes.data
y = x + 128  # bytes further: another cache line

print("left found: ", numba.njit(sb_left)(x, y))
print("right found:", numba.njit(sb_right)(x, y))

# %% [markdown]
# The second one found the 1. Such a pair of short functions with a question is a **litmus test**. `Litmus` draws it:

# %%
from labkit.litmus import Litmus

sb = Litmus("SB, store buffering", sb_left, sb_right)
sb

# %% [markdown]
# ## All orders, one after the other
#
# The four operations can be interleaved in six ways, as long as each process does its own in the order in which they are
# written. The outcomes of all of them:

# %%
sorted(sb.allowed("sc"))

# %% [markdown]
# (0, 0) is not among them. That every run be like one of these is called **sequential consistency**, and it is what everybody
# takes for granted (L. Lamport, 1979).
#
# ## What really happens
#
# Two processes, each on a processor of its own, run their function on a thousand pairs of numbers in a row, meet, and do it
# again, a million times in all:

# %%
seen = sb.run()
seen

# %%
from labkit.litmus import plot_seen

plot_seen([seen])

# %% [markdown]
# On a machine with two processors the orange line is there: both found 0, again and again. No interleaving explains it. (With one
# processor the text says why nothing is to be seen. There, and on Binder, read on: what a processor *may* do is computed below.)
#
# ## Why: the store buffer
#
# A store to memory takes long, because the cache line has to be fetched from the other processor first. A processor does not
# wait for that. It puts the store into a queue, its **store buffer**, and goes on; its loads overtake it. Only the processor itself
# looks into its buffer.
#
# The same as a model for the explorer, with two more processes, which empty the buffers. Can you make both see 0?

# %%
from labkit.explore import Explorer, until


def processor(s, me, other):
    s.buffer[me] = 1
    yield "its store waits in the buffer"
    s.seen[me] = s.memory[other]


def store_buffer(s, me):
    yield until("there is a store", lambda s, me=me: s.buffer[me])
    s.memory[me], s.buffer[me] = 1, 0


def machine(processor):
    return Explorer(
        {"left": (processor, 0, 1), "right": (processor, 1, 0),
         "left's buffer": (store_buffer, 0), "right's buffer": (store_buffer, 1)},
        shared={"memory": [0, 0], "buffer": [0, 0], "seen": [0, 0]},
        at_end={"one has seen the other": lambda s: s.seen[0] or s.seen[1]},
    )


machine(processor)

# %% [markdown]
# This machine is the whole of the memory model of x86, called **TSO**, total store order (Sewell et al., 2010). A litmus test
# can be asked how it comes to an outcome on it:

# %%
for step in sb.how((0, 0)):
    print(step)

# %% [markdown]
# ## A fence
#
# A **fence** waits until the store buffer is empty. Put one between the store and the load, and (0, 0) is gone:

# %%
from labkit.lockfree.atomics import fence


def sb_left_fenced(x, y):
    store_relaxed(x, 1)
    fence()
    return load_relaxed(y)


def sb_right_fenced(x, y):
    store_relaxed(y, 1)
    fence()
    return load_relaxed(x)


plot_seen([Litmus("SB, with a fence on each side", sb_left_fenced, sb_right_fenced).run()])


# %%
def fenced_processor(s, me, other):
    s.buffer[me] = 1
    yield until("its store buffer is empty", lambda s, me=me: not s.buffer[me])
    s.seen[me] = s.memory[other]


machine(fenced_processor)

# %% [markdown]
# ## Break it: a lock without a fence
#
# Is that of any importance? Here is the oldest idea of a lock (Dekker's, 1962, without its waiting): say that you want to go in, and go in
# if the other has not said so. Two processes pass by a thousand doors, again and again. Behind each door is a number, and
# whoever gets in adds one to it.

# %%
from labkit import launch
from labkit.lockfree.atomics import pause


def visit(memory, me, rounds, fenced):
    mine, other, count, inside = 64 * me, 64 * (1 - me), 128, 0
    for lap in range(1, rounds + 1):
        store_relaxed(memory + mine, lap)
        while load_relaxed(memory + other) < lap:  # both begin at the same time
            pause()
        for door in range(memory + 256, memory + 256 * 1000, 256):
            store_relaxed(door + mine, lap)  # I want to go in
            if fenced:
                fence()
            if load_relaxed(door + other) < lap:  # the other has not said so
                store_relaxed(door + count, load_relaxed(door + count) + 1)
                inside += 1
    return inside


def visitor(doors, me, rounds, fenced):
    return numba.njit(visit)(doors.array.ctypes.data, me, rounds, fenced)


# %%
import numpy as np

for fenced in (False, True):
    doors = SharedArray((1000, 32), np.int64)
    jobs = [launch(visitor, doors, me, 300, fenced) for me in (0, 1)]
    visits = sum(job.wait() for job in jobs)
    counted = doors.array[1:, 16].sum()
    print(f"{'with' if fenced else 'without'} fences: {visits:,} went in, {counted:,} were counted, {visits - counted:,} lost")

# %% [markdown]
# Each one that is lost is a moment when both were inside, where at most one may be. (With one processor none is.) The algorithm has
# been proved correct. The proof is about sequential consistency, and the processors in our computers do not have that.
#
# ## The other tests
#
# Five more shapes of two operations against two. **MP**, message passing: data, then a flag; who sees the flag, does it see the data?
# **LB**, load buffering: can both see a store that is made only later? **R**, **S** and **2+2W** ask in which order stores arrive;
# what is left in a place in the end is part of their outcome. (The compiler fence is no instruction; it makes sure that the processor
# gets the two in this order.)

# %%
from labkit.litmus import classics, run_all

tests = classics()
tests["MP"]

# %%
results = run_all(tests.values())
plot_seen(results)

# %% [markdown]
# A square is an outcome that only the store buffers explain; a cross is one that x86 forbids, and you see it *never*. Now the table: what was seen here, and
# what each model allows. The columns are computed, by trying all runs of a machine (the first two) or all executions that the rules of
# the model admit.

# %%
from labkit.litmus import table

fenced = run_all(classics(fence=fence).values())
table([*results, *fenced])

# %% [markdown]
# On **x86** one thing only can happen: a load overtakes an older store (SB and R). Stores reach memory in order, loads are done
# in order. On **Arm** everything can, unless the program asks for order. There is no single fact about “the” memory.
#
# ## Not only the processor: the compiler
#
# A compiler moves loads and stores as well. It works for a program that is alone with its memory, where nobody can tell. These two
# functions store three times, first with plain stores, as an ordinary assignment in C does, then with relaxed atomic ones:

# %%
from labkit.litmus import compare
from labkit.lockfree.atomics import store_plain


def plain(x, y):
    store_plain(x, 1)
    store_plain(y, 1)
    store_plain(x, 2)


def atomic(x, y):
    store_relaxed(x, 1)
    store_relaxed(y, 1)
    store_relaxed(x, 2)


compare(plain, atomic)

# %% [markdown]
# The first plain store is gone. x is 2 in the end anyway, said the compiler, so who needs the 1? Somebody who sees y=1 and expects
# that x has been written. Processors of this kind let stores out in order, and all the same:

# %%
def reader(x, y):
    seen = load_relaxed(y)
    return seen, load_relaxed(x)


for writer in (plain, atomic):
    print(Litmus(f"x=1, y=1, x=2 {writer.__name__}", writer, reader).run())

# %% [markdown]
# If you have two processors, you see y=1 with x=0 in the first and never in the second (r1 is y, r2 is x). No processor reordered
# anything here: the compiler did. In the language C this is a *data race*, and the behaviour of the program is undefined.
#
# ## The line that matters
#
# The order is written into the load or the store itself. Three stores, on two kinds of processors. One of the
# columns is not what runs here: LLVM compiles the same function once more, for the other kind.

# %%
from labkit.lockfree.atomics import store_release, store_seq_cst


def store_relaxed_(x, y):
    store_relaxed(x, 1)


def store_release_(x, y):
    store_release(x, 1)


def store_seq_cst_(x, y):
    store_seq_cst(x, 1)


compare(store_relaxed_, store_release_, store_seq_cst_)

# %% [markdown]
# On **x86-64** a relaxed store and a release store are the same instruction: x86 never lets a store overtake anything older, so
# the order costs nothing, and *forgetting it costs nothing either*, until the program runs elsewhere. A sequentially consistent store
# is an `xchg`, which empties the store buffer. On **AArch64** they differ: `str` promises nothing, `stlr` comes after everything before it.
# The same for loads, and for the fence:

# %%
from labkit.lockfree.atomics import load_acquire, load_seq_cst


def load_relaxed_(x, y):
    return load_relaxed(x)


def load_acquire_(x, y):
    return load_acquire(x)


def load_seq_cst_(x, y):
    return load_seq_cst(x)


def fence_(x, y):
    fence()


compare(load_relaxed_, load_acquire_, load_seq_cst_, fence_)

# %% [markdown]
# A **release** store says: everything before me is done. An **acquire** load says: nothing after me is done before me. A
# load that sees a release store and acquires it sees also what was stored before it. Such a pair is an *edge*, and the lock-free ring of this package
# names each of its edges: `labkit/lockfree/spsc.py`. With a release and an acquire, which tests are left?

# %%
pairs = classics(load=load_acquire, store=store_release)
table(run_all([pairs["SB"], pairs["MP"], pairs["LB"], pairs["S"]]))

# %% [markdown]
# Message passing is safe everywhere. Store buffering is not: to keep a store before a later load takes more, a fence or
# sequentially consistent operations.
#
# ## What it costs
#
# A million stores in a row of each kind, in one process:

# %%
import time

from labkit.draw import plot_times


def cost_of(store):
    @numba.njit
    def many(place, times):
        for n in range(times):
            store(place, n)

    many(x, 10)
    return min(timed(many) for _ in range(7))


def timed(many):
    begin = time.monotonic_ns()
    many(x, 1_000_000)
    return (time.monotonic_ns() - begin) / 1_000_000


kinds = {"relaxed": store_relaxed, "release": store_release, "seq_cst": store_seq_cst}
plot_times({kind: cost_of(store) for kind, store in kinds.items()}, "one store")

# %% [markdown]
# That is why nobody simply takes the strongest order everywhere.
#
# ## Exercise 1: what can be seen?
#
# Four tests. Each has one outcome that no order of its operations explains: can it be seen on x86? On Arm?

# %%
import IPython

from labkit.exercises.memory_ordering import PUZZLES

IPython.display.display(*PUZZLES.values())


# %%
def can_be_seen():
    return {"A": set(), "B": set(), "C": set(), "D": set()}  # your turn: put "x86", "arm" or both into each set


# %%
from labkit.exercises.memory_ordering import check_can_be_seen

check_can_be_seen(can_be_seen)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def can_be_seen():
#     return {"A": {"x86", "arm"}, "B": {"arm"}, "C": set(), "D": {"x86"}}
# ```
#
# A: the right one has no fence, and its load overtakes its store. B: nothing keeps the two loads of the reader in order, on Arm. D: to release and
# to acquire is not enough for store buffering. That Arm forbids it is a property of `stlr` and `ldar` that C11 does not promise.
# </details>
#
# ## Exercise 2: the fewest fences
#
# Both say that they want to go in, and look whether the other does. See to it that they never both find 0, on any machine, with as few
# fences as possible.


# %%
def enter_left(a, b):
    store_relaxed(a, 1)  # your turn: where do you need a fence()?
    return load_relaxed(b)


def enter_right(a, b):
    store_relaxed(b, 1)
    return load_relaxed(a)


# %%
from labkit.exercises.memory_ordering import check_fences

check_fences(enter_left, enter_right)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def enter_left(a, b):
#     store_relaxed(a, 1)
#     fence()
#     return load_relaxed(b)
#
# def enter_right(a, b):
#     store_relaxed(b, 1)
#     fence()
#     return load_relaxed(a)
# ```
#
# One on each side: whichever store reaches memory second, the load after it comes later still. A fence orders what its own
# processor does. It cannot do so for the other's.
# </details>
#
# ## Exercise 3: right on x86, wrong on Arm
#
# One puts data into memory and raises a flag, the other looks at the flag and then at the data. You have seen above that it works here. Why
# is it wrong on Arm? Look at its assembly, and mend it, so that it costs *nothing* on x86-64.


# %%
def put(data, flag):
    store_relaxed(data, 1)  # your turn: which order does which operation need?
    store_relaxed(flag, 1)


def take(data, flag):
    seen = load_relaxed(flag)
    return seen, load_relaxed(data)


compare(put, take)

# %%
from labkit.exercises.memory_ordering import check_hand_over

check_hand_over(put, take)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def put(data, flag):
#     store_relaxed(data, 1)
#     store_release(flag, 1)
#
# def take(data, flag):
#     seen = load_acquire(flag)
#     return seen, load_relaxed(data)
# ```
#
# The release belongs to the *flag*: it says that the data before it is there. The acquire belongs to the flag too: the data after it is
# not read before. Half of the pair is no better than none.
# </details>
#
# ## What we learnt
#
# - Memory is not one place where things happen one after the other. Each processor has a queue of stores that only it can see.
# - x86 lets loads overtake older stores, and nothing else; Arm reorders whatever the program does not order.
# - The compiler reorders too, and leaves out; only atomic operations tell it that somebody is watching.
# - Release and acquire make a hand-over safe, for no instruction on x86. A store before a load needs a fence, on both sides.
# - That a test never failed here says nothing of another processor. A model says what may happen on all of them.
#
# **Manual pages:** mmap(2), memfd_create(2), sched_setaffinity(2), membarrier(2), futex(7).
# **Sources:** P. Sewell et al., *x86-TSO: a rigorous and usable programmer's model* (2010). J. Alglave et al., *Litmus: running
# tests against hardware* (2011) and *Herding cats* (2014). C. Pulte et al., *Simplifying ARM concurrency* (2018). H.-J. Boehm,
# S. V. Adve, *Foundations of the C++ concurrency memory model* (2008). O. Lahav et al., *Repairing sequential consistency in C/C++11*
# (2017). L. Lamport, *How to make a multiprocessor computer that correctly executes multiprocess programs* (1979). E. W. Dijkstra, *Cooperating
# sequential processes* (1965), which tells of Dekker's algorithm.
