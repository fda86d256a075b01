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
# # Services: what is lost when one of them is killed?
#
# A weather station measures every hour. One program reads its records, a second one throws away what is broken, a third one makes a
# row a day of them, and a fourth raises an alarm. Each is a process of its own: it can be changed, restarted and moved to another
# machine without the others. That is what **services** are for. It is also why one of them will be killed while the others work.
#
# In this lab you join four services by message queues, sockets and a lock-free ring without changing a line of them, kill them at
# random, and count.
#
# ## Four functions
#
# A service takes one record at a time and *yields* what it makes of it. What it has to remember lies in `state`, a dictionary. At the
# end `record` is `None`. The first one is the source:

# %%
import csv


def ingest():
    with open("../data/weather-jfk-2013.csv") as file:
        yield from csv.DictReader(file)


def clean(state, record):
    """Only hours at which the sensors worked, in units that are used everywhere."""
    if record and "NA" not in (record["temp"], record["pressure"]):
        celsius = (float(record["temp"]) - 32) / 1.8
        yield {"day": record["time_hour"][:10], "temp": celsius, "pressure": float(record["pressure"])}


# %%
def aggregate(state, record):
    """A row a day: how many hours, and their means."""
    if state and (record is None or record["day"] != state["day"]):
        hours = state["hours"]
        yield {"day": state["day"], "hours": hours, "temp": state["temp"] / hours, "pressure": state["pressure"] / hours}
        state.clear()
    if record:
        state["day"] = record["day"]
        for name, value in (("hours", 1), ("temp", record["temp"]), ("pressure", record["pressure"])):
            state[name] = state.get(name, 0) + value


def alert(state, row):
    """The same rows, and whether the pressure fell by more than 15 hPa in a day: a storm."""
    if row:
        fall = state.get("pressure", row["pressure"]) - row["pressure"]
        state["pressure"] = row["pressure"]
        yield row | {"storm": fall > 15}


# %% [markdown]
# In one process they are four loops, one after the other. So we know what has to come out:

# %%
expected = list(ingest())
for service in (clean, aggregate, alert):
    state, records = {}, [*expected, None]
    expected = [made for record in records for made in service(state, record)]

hours = sum(row["hours"] for row in expected)
print(f"{len(expected)} days, {hours:,} hours, {sum(row['storm'] for row in expected)} storms; the first day:")
print(expected[0])

# %% [markdown]
# ## By hand: a queue, and kill -9
#
# First without help. A process takes records from a POSIX queue, works for a moment on each, and counts it in a database. It is killed
# five times, and each time another one takes its place:

# %%
import sqlite3
import tempfile
import time
from pathlib import Path

from labkit import channel, launch

folder = Path(tempfile.mkdtemp())


def count(rx, path):
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("create table if not exists counted (n)")
    for message in rx:
        time.sleep(0.001)  # the work
        db.execute("insert into counted values (?)", (int(message),))


def send(tx, n):
    for number in range(n):
        tx.send(b"%d" % number)


# %%
tx, rx = channel("posix_mq")
sending = launch(send, tx, 500)
for _ in range(5):
    victim = launch(count, rx.clone(), folder / "by-hand.sqlite")
    time.sleep(0.08)
    victim.kill()
await launch(count, rx, folder / "by-hand.sqlite")
await sending
[(counted,)] = sqlite3.connect(folder / "by-hand.sqlite").execute("select count(*) from counted")
print("500 were sent,", counted, "were counted")

# %% [markdown]
# The queue is not to blame. It has kept what nobody had taken. But a record that was *in the hands* of a process died with it: it was
# gone from the queue, and not yet in the database. That is **at most once**.
#
# Could the process put the number into the database first, and take the record then? Then it would be counted, and never handled. The
# order does not help, as long as there are two steps: between any two steps there is room for a kill.
#
# ## At least once, and counted once
#
# Two ideas together help.
#
# 1. **Keep it until it is confirmed.** The sender keeps each record in its own database, the *outbox*, until the receiver has said that it
#    has handled it. Who is restarted says how far it was, and gets all from there on again. Now nothing is lost, and
#    some records come twice: *at least once*.
# 2. **One transaction.** Each record has a number. The receiver writes its new state, what it yields, *and the number* in one transaction of its
#    own database: all of it happens, or nothing. What comes again is known by its number, and passed over.
#
# Both together are called *effectively once*. Here is that transaction, out of labkit.services:

# %%
import inspect

from labkit.services import Memory

print(inspect.getsource(Memory.keep))

# %% [markdown]
# And `supervise` launches the services, and whoever was killed again. The dead one's channels die with it. So the supervisor makes new ones, and sends
# their ends to the new process *and to its neighbours, who have kept running*: descriptors travel through a Unix socket, unix(7), SCM_RIGHTS.
#
# ## Message queues
#
# `supervise` wants to know how to open a channel. That is all that it has to know about it:

# %%
from functools import partial

from labkit.services import supervise

services = [ingest, clean, aggregate, alert]

took, begin = {}, time.monotonic_ns()
with supervise(services, partial(channel, "posix_mq"), folder / "first") as pipeline:
    print(pipeline)
    rows = await pipeline
took["posix_mq"] = time.monotonic_ns() - begin
print("as expected:", rows == expected)

# %% [markdown]
# ## Sockets, and the lock-free ring
#
# The services do not know what joins them. So let us change it:

# %%
for kind in ("unix_seqpacket", "tcp", "shm_ring"):
    begin = time.monotonic_ns()
    with supervise(services, partial(channel, kind), folder / kind) as pipeline:
        assert await pipeline == expected
    took[kind] = time.monotonic_ns() - begin

# %%
from labkit.draw import plot_times

plot_times(took, "8,706 records through four services")

# %% [markdown]
# They hardly differ, although the ring alone is a hundred times as fast as a queue (lab 00). The services spend their time with something else:

# %%
begin = time.monotonic_ns()
memory = Memory(folder / "one.sqlite")
for number in range(2000):
    memory.keep(number, [{"day": "2013-01-01", "temp": 3.9, "pressure": 1012.6}], ended=False)
memory.close()
print(f"a transaction takes {(time.monotonic_ns() - begin) / 2000 / 1000:.0f} µs")

# %% [markdown]
# A promise that survives kill -9 has to be written down, and three services write one for each record. Measure before you choose a mechanism: here
# it does not matter, so take the one that is easiest to operate.
#
# ## Kill them
#
# First one of them, and look. Here `clean` is killed when a third of the work is done:

# %%
import asyncio

from labkit import Trace, watch

trace = Trace()
watch(trace)
with supervise(services, partial(channel, "posix_mq", trace=trace), folder / "one") as pipeline:
    while pipeline.handled()["clean"] < 3000:
        await asyncio.sleep(0.01)
    pipeline.jobs["clean"].kill()
    rows = await pipeline
print("as expected:", rows == expected)

# %% [markdown]
# Its neighbours have gone on with new channels to the new `clean`. What lay in the old queue, and what was in its hands, was sent again.
# The trace knows how many messages were sent, and the databases how many records were handled:

# %%
sent = trace.messages()["channel"]
for left, right in zip(pipeline.names, pipeline.names[1:], strict=False):
    numbers = [info.number for info in trace.channels if info.label.startswith(f"{left} → {right}")]
    times, handled = sum((sent == number).sum() for number in numbers), pipeline.handled()[right]
    print(f"{left:9} → {right:9}  sent {times:5,}  handled {handled:5,}  too many: {times - handled}")

# %% [markdown]
# Those were sent once more, because their sender could not know what had become of them. *Once* is not something that a channel can promise. It is what the
# receiver makes of *at least once*.
#
# Now at random moments, whichever it may be, ten times:

# %%
import random

with supervise(services, partial(channel, "unix_seqpacket"), folder / "killed") as pipeline:
    while len(pipeline.restarts) < 10 and any(job.alive for job in pipeline.jobs.values()):
        await asyncio.sleep(random.random() * 0.1)
        pipeline.jobs[random.choice(pipeline.names)].kill()
    rows = await pipeline

print("killed and restarted:", *(name for _, name in pipeline.restarts))
print("as expected:", rows == expected)

# %% [markdown]
# Nothing is lost, nothing counts twice: the rows are the same, to the last digit. (The test suite does this a hundred times, over every mechanism.)
#
# ## A slow consumer
#
# Somebody has `alert` ask a slow server for each day. What becomes of the others?

# %%
def slow_alert(state, row):
    time.sleep(0.03)
    yield from alert(state, row)


def eager_aggregate(state, record):
    """A row an hour, so that there is much to do."""
    if record:
        yield {"day": record["day"], "pressure": record["pressure"]}


slow = Trace()
connect = partial(channel, "posix_mq", max_messages=10, trace=slow)
with supervise([ingest, clean, eager_aggregate, slow_alert], connect, folder / "slow") as pipeline:
    await asyncio.sleep(2)
    waiting = {name: len(pipeline.results(name)) for name in pipeline.names[:-1]}

# %%
watch(slow, view="occupancy")
print("records in the outbox of each:", waiting)

# %% [markdown]
# The last queue is full at once. Then `eager_aggregate` waits in send, takes nothing any more, and the queue *before* it fills; and so on, up to the
# source, which stops reading the file. That is **back-pressure**: nobody has programmed it. It is there because every queue is bounded, and whoever finds it
# full waits. (`supervise` adds a bound of its own, 64 records that are not confirmed, for channels that hold more.) With queues without bounds the slowest service would decide how much memory you need.
#
# ## The results
#
# They lie in the database of the last service: what it has yielded, with numbers. SQLite speaks JSON:

# %%
database = sqlite3.connect(folder / "killed" / "alert.sqlite")
query = """select message ->> 'day', message ->> 'pressure', message ->> 'storm' from outbox where message != ''"""
days = database.execute(query).fetchall()
print(*(f"{day}  {pressure:.1f} hPa" for day, pressure, storm in days if storm), sep="\n")

# %%
from labkit.draw import plot_lines

points = [(number, pressure) for number, (day, pressure, storm) in enumerate(days)]
storms = [points[number] for number, (_, _, storm) in enumerate(days) if storm]
lines, style = {"mean of the day": points, "storm": storms}, {"mean of the day": "line", "storm": "points"}
plot_lines(lines, "day of 2013", "pressure (hPa)", style=style)

# %% [markdown]
# ## What is not promised
#
# `alert` only writes into its database. Had it sent a mail before the transaction, and been killed between the two, it would have sent it again: what a service
# does to the rest of the world is *at least once*, whatever the database says. Either the rest of the world knows the number and passes over what it has seen, or
# somebody gets two mails. And if a service has a *bug*, a restart finds the same record and the same bug. So `supervise` restarts who was killed, and
# ends everything when a service raises:

# %%
from labkit import RemoteError


def broken(state, record):
    yield {"temp": float(record["temp"])}


try:
    with supervise([ingest, broken], partial(channel, "pipe"), folder / "broken") as pipeline:
        await pipeline
except RemoteError as error:
    print(str(error).splitlines()[0], "…", str(error).splitlines()[-1])

# %% [markdown]
# ## Exercise 1: count it once
#
# Deposits reach your process *at least once*. Write `deposit(db, number, amount)`: it adds the amount to the balance, unless this number was there before.
# `db` is a connection to SQLite with two tables, `seen (number integer primary key)` and `account (balance)`, which has one row. The check kills your process
# before each of its statements in turn, opens the database anew, and sends the number again.


# %%
def deposit(db, number, amount):
    ...  # your turn


# %%
from labkit.exercises.services import check_deposit

check_deposit(deposit)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def deposit(db, number, amount):
#     with db:  # one transaction: commits at the end
#         new = db.execute("insert or ignore into seen values (?)", (number,)).rowcount
#         if new:
#             db.execute("update account set balance = balance + ?", (amount,))
# ```
#
# The primary key decides whether it is new. Both changes happen, or none.
# </details>
#
# ## Exercise 2: a service of your own
#
# How many hours did the longest rain last? Write the service `longest_rain(state, record)`. A record is a row of the file; `precip` is text, the inches of
# rain in that hour. At the end, when `record` is `None`, it yields `{"hours": n}`. It will be killed three times on the way.


# %%
def longest_rain(state, record):
    ...  # your turn


# %%
from labkit.exercises.services import check_rain

check_rain(longest_rain)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def longest_rain(state, record):
#     if record is None:
#         yield {"hours": state.get("longest", 0)}
#     elif float(record["precip"]) > 0:
#         state["now"] = state.get("now", 0) + 1
#         state["longest"] = max(state["now"], state.get("longest", 0))
#     else:
#         state["now"] = 0
# ```
#
# All that it remembers is in `state`, also the rain that has not ended yet.
# </details>
#
# ## What we learnt
#
# - A service that is a function of a state and a record does not know what joins it to the others. Choose by measuring: writing things down costs more than any
#   channel here.
# - *At most once*: taken from the queue and lost. *At least once*: kept until confirmed, and sent again. *Effectively once*: that, and a number that is
#   written in the same transaction as the effect.
# - A source must be able to begin again where it was; a state must be outside of the process.
# - Bounded queues make back-pressure, back to the source. Unbounded ones only hide who is too slow.
# - A supervisor restarts who was killed. A bug it cannot repair.
#
# Grown-up versions of this: Kafka and Flink (checkpoints, replay), Erlang/OTP (supervisors), systemd (`Restart=on-failure`), the *transactional outbox* of
# microservices.
#
# **Manual pages:** mq_overview(7), unix(7), cmsg(3), signal(7), kill(2), pidfd_open(2); SQLite: *Transactions*, *Write-Ahead Logging*.
# **Book:** M. Kleppmann, *Designing Data-Intensive Applications*, chapters 8 and 11; J. Armstrong, *Programming Erlang*, chapter 23.

# %%
import shutil

shutil.rmtree(folder)
