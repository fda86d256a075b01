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
# # Cooperating kernels: whose turn is it?
#
# The thing behind this page that remembers your variables is a **kernel**: a process that reads cells from a socket, runs them, and
# writes what they show to another socket. Nothing says that a page has only one. In this lab two kernels, alice and bob, play
# ping-pong: over a FIFO, over a POSIX message queue and over a ring in shared memory, and you watch the ball.

# %%
import os

print("this kernel is process", os.getpid())

# %% [markdown]
# ## By hand
#
# What starts kernels for JupyterLab is a library, `jupyter_client`, and we can use it as well. It writes a *connection file* with the
# addresses of five sockets and a key, and starts a process that is told where that file is. Here they are Unix sockets (lab 06) in a
# folder that nobody else may enter:

# %%
import tempfile

from jupyter_client import AsyncKernelManager

folder = tempfile.TemporaryDirectory()
manager = AsyncKernelManager(transport="ipc", ip=f"{folder.name}/socket")
await manager.start_kernel()
client = manager.client()
client.start_channels()
await client.wait_for_ready()
print(*sorted(os.listdir(folder.name)))

# %% [markdown]
# A cell is a message, `execute_request`, and what it prints comes back as messages, too. `execute_interactive` sends the one and
# shows the others as they come. The code below runs over there; `os` has to be imported there as well:

# %%
reply = await client.execute_interactive("import os; print('and that one is', os.getpid())")
print(reply["msg_type"], reply["content"]["status"])

# %%
client.stop_channels()
await manager.shutdown_kernel()
folder.cleanup()

# %% [markdown]
# ## The same with labkit
#
# After `%load_ext labkit` a cell that begins with `%%kernel alice` runs in a kernel called alice. The first time she is started,
# which takes a second. She and her variables stay until she is stopped, or until this kernel ends, in whatever way.

# %%
# %load_ext labkit

# %%
# %%kernel alice
import os

secret = 42
print("alice is process", os.getpid())

# %%
print("secret" in globals())

# %% [markdown]
# Her memory is hers: the kernel (the one in Linux) sees to that. So how do two kernels work together? With what all the labs before
# were about. By a name, for example, as in lab 02. With `&` a cell runs in the background, and its output appears under it
# as it comes, while you go on:

# %%
# %%kernel bob &
from labkit import receiver

with receiver("fifo", "lab13", create=True) as rx:
    print("bob has got", rx.receive())

# %%
# %%kernel alice
import time

from labkit import sender

tx = None
while tx is None:
    try:
        tx = sender("fifo", "lab13")
    except FileNotFoundError:
        time.sleep(0.1)  # bob has not come yet
tx.send(b"hello from process %d" % os.getpid())
tx.close()

# %% [markdown]
# `await kernel("bob")` waits until his cell has ended. Look above: what he printed is there. The name stays until it is removed.

# %%
from labkit import kernel, kernels, unlink

await kernel("bob")
unlink("fifo", "lab13")
kernels()

# %% [markdown]
# ## Ends travel
#
# A name is not needed. `%%kernel alice tx` first hands alice what is called `tx` here. The end of a channel is given away: its
# descriptor goes through a Unix socket (SCM_RIGHTS, lab 06), and here it is closed. Anything else is copied.

# %%
from labkit import channel

tx, rx = channel("pipe")

# %%
# %%kernel alice tx
tx.send(b"I was handed this end")
tx.close()

# %%
print(list(rx))
print("tx here:", tx)

# %% [markdown]
# ## Ping-pong
#
# Three tables, each with two channels: one for the ball on its way to bob, one for its way back.

# %%
from labkit import Trace, watch

KINDS = ["fifo", "posix_mq", "shm_ring"]
trace = Trace()
there = {kind: channel(kind, trace=trace, label=f"{kind} to bob") for kind in KINDS}
back = {kind: channel(kind, trace=trace, label=f"{kind} back") for kind in KINDS}
watch(trace)

# %% [markdown]
# bob returns every ball, at one table after the other. He stops when alice has closed her end: then his `for` ends. (In Python,
# without a cell: `kernel("bob").push(to=to, ball_from=ball_from)`.)

# %%
to = {kind: back[kind][0] for kind in KINDS}
ball_from = {kind: there[kind][1] for kind in KINDS}

# %%
# %%kernel bob to ball_from &
for kind in to:
    for ball in ball_from[kind]:
        to[kind].send(ball)
    to[kind].close()
    print(kind, "is over")

# %%
to = {kind: there[kind][0] for kind in KINDS}
ball_from = {kind: back[kind][1] for kind in KINDS}

# %%
# %%kernel alice to ball_from
for kind in to:
    begin = time.perf_counter()
    for number in range(300):
        to[kind].send(b"ball %d" % number)
        ball_from[kind].receive()
    print(f"{kind}: {(time.perf_counter() - begin) / 300 * 1e6:.0f} µs a rally")
    to[kind].close()

# %% [markdown]
# While alice played, the view above showed the ball. It is the same trace, the same dots, as with processes that `launch` made: for
# the Linux kernel a Jupyter kernel is a process like any other.
#
# ## Measure
#
# How long a ball was in the air, one way:

# %%
await kernel("bob")
trace.compare()

# %% [markdown]
# A rally is two of these, and what Python does in between. A ping-pong of a few bytes measures one thing above all: how long it takes
# to wake somebody who sleeps. That takes much longer than copying the ball, and so the ring, the fastest way in lab 09, is not ahead
# here: it is made for many messages in a row, which find their receiver awake. How long a waking takes depends on the mechanism,
# the scheduler, and on what else the processors do: play again when the machine is idle, or busy.
#
# ## Break it
#
# A new game, alice and bob both in the background. In the middle of it bob is killed. What does alice learn, and how?

# %%
game = Trace()
(to_bob, at_bob), (to_alice, at_alice) = channel("fifo", trace=game), channel("fifo", trace=game)
watch(game)

# %%
# %%kernel bob at_bob to_alice &
for ball in at_bob:
    to_alice.send(ball)

# %%
# %%kernel alice to_bob at_alice &
rallies = 0
try:
    while True:
        to_bob.send(b"ball")
        at_alice.receive()
        rallies += 1
        time.sleep(0.01)
except EOFError as error:
    print(f"{type(error).__name__} after {rallies} rallies: {error}")

# %%
import asyncio
import signal

while len(game.messages()) < 60:
    await asyncio.sleep(0.05)
kernel("bob").kill(signal.SIGKILL)
await kernel("alice")
kernels()

# %% [markdown]
# Nobody told alice with a message. The Linux kernel closed bob's descriptors when he died, and whoever waits for the other end of a FIFO
# learns that: `Closed`, which is an `EOFError`. What bob knew is gone. A cell for him says so, and what to do:

# %% tags=["raises-exception"]
# %%kernel bob
print(to)

# %%
kernel("bob").restart()

# %% [markdown]
# The new bob has another pid, and no variables. `kernels().stop()` ends all of them and gives their memory back.

# %%
kernels().stop()

# %% [markdown]
# ## Exercise: a ring of three
#
# Write `ring(players)`. It gets a list of kernels. Make channels, and push to each of them an `rx` and a `tx`, so that the ball goes
# from the first to the second, from there to the third, and so on, and from the last to the first.


# %%
def ring(players):
    ...  # your turn


# %%
from labkit.exercises.cooperating_kernels import check_ring

check_ring(ring)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def ring(players):
#     channels = [channel("pipe") for _ in players]
#     for number, player in enumerate(players):
#         _, rx = channels[number]
#         tx, _ = channels[(number + 1) % len(players)]
#         player.push(rx=rx, tx=tx)
# ```
#
# Channel number n leads *to* player n. Every end has exactly one owner, and none is left here: had we kept a `tx`, its receiver would
# never see the end of the file.
# </details>
#
# ## Exercise: an honest score
#
# Write `player(tx, rx)`, alice's side of the game: it sends `b"ball"`, waits for it to come back, and so on until bob has gone, however
# that happens. It returns how many balls *came back*. bob may die with the ball in his hand.


# %%
def player(tx, rx):
    ...  # your turn


# %%
from labkit.exercises.cooperating_kernels import check_player

check_player(player)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def player(tx, rx):
#     score = 0
#     try:
#         while True:
#             tx.send(b"ball")
#             rx.receive()
#             score += 1
#     except EOFError:
#         return score
# ```
#
# Both calls may be the one that learns of it: `send` when bob died before it (EPIPE), `receive` when he died after. A ball that was sent
# is not yet a ball that came back: where the other side may die, only its answer tells what it has done. That is the question of every
# protocol over a network, too.
# </details>
#
# ## What we learnt
#
# - A Jupyter kernel is a process that talks to the front end through sockets. A page can use several, each with its own memory.
# - Kernels cooperate as processes do: by a name, or by descriptors that are handed over. An end that was handed over is gone here.
# - `%%kernel NAME` runs a cell there and waits; with `&` it runs in the background, and `await kernel(NAME)` waits without freezing the
#   page.
# - Who dies closes its descriptors, and so its partner learns of it, if the mechanism tells: Closed. What was on its way may be lost.
# - Kernels here die with the notebook, also after kill -9: each holds a pipe whose other end is ours (lab 01), and the Linux kernel sends
#   SIGKILL when that closes (fcntl(2), F_SETSIG).
#
# **Manual pages:** pipe(7), fifo(7), mq_overview(7), unix(7) for SCM_RIGHTS, fcntl(2), pidfd_open(2), kill(2).
# **Read on:** *Messaging in Jupyter*, jupyter-client.readthedocs.io; lab 17 traces these messages.
