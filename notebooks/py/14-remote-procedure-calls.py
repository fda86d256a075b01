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
# # Remote procedure calls: no answer has come. Was it done?
#
# `mean(day="2013-01-31")` is a function call: it returns, or it raises. A **remote procedure call** looks just the same, and the function runs in another
# process, perhaps on another machine. That is convenient, and it hides a question that no local call has: when the other side is killed in the middle, was
# the work done or not?
#
# In this lab you call one tiny service in three ways, look at the bytes, measure, kill the server in mid-call, and count.
#
# ## The service
#
# Two functions. `mean` answers a question; asking twice changes nothing. `report` has an *effect*: a reading more in a database.

# %%
import csv
import sqlite3
import tempfile
import time
from pathlib import Path

weather, folder = Path("../data/weather-jfk-2013.csv").resolve(), Path(tempfile.mkdtemp())
database = str(folder / "readings.sqlite")
sqlite3.connect(database).execute("create table readings (request text, celsius real)")


# %%
def mean(day):
    with open(weather) as file:
        temps = [(float(row["temp"]) - 32) / 1.8 for row in csv.DictReader(file) if row["time_hour"].startswith(day)]
    return {"celsius": sum(temps) / len(temps), "hours": len(temps)}


def report(request, celsius):
    with sqlite3.connect(database) as db:
        db.execute("insert into readings values (?, ?)", (request, celsius))
    time.sleep(0.3)  # the answer takes a while
    return {"readings": db.execute("select count(*) from readings").fetchone()[0]}


mean("2013-01-31")

# %% [markdown]
# ## By hand: two channels
#
# A call is two messages: a request with the name and the values, and a reply with the result or the error. The caller's side, which looks like the function
# and only sends and receives, is called the **stub**:

# %%
import json

from labkit import Trace, channel, launch, watch


def server(requests, replies):
    procedures = {"mean": mean}
    for request in requests:
        call = json.loads(request)
        try:
            reply = {"result": procedures[call["name"]](**call["values"])}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.send(json.dumps(reply).encode())


def stub(name, **values):
    ask.send(json.dumps({"name": name, "values": values}).encode())
    reply = json.loads(answers.receive())
    if "error" in reply:
        raise RuntimeError(reply["error"])
    return reply["result"]


# %%
trace = Trace()
ask, requests = channel("unix_stream", trace=trace, label="requests")
replies, answers = channel("unix_stream", trace=trace, label="replies")
job = launch(server, requests, replies)
for day in ("2013-01-31", "2013-07-31", "2013-13-31"):
    try:
        print(day, stub("mean", day=day))
    except RuntimeError as error:
        print(day, "the server raised", error)
ask.close(), answers.close()
watch(trace, view="sequence")

# %% [markdown]
# Request, reply, request, reply: the caller does nothing while it waits. An error is a reply, too, and the stub raises it *here*. All that a framework for
# remote procedure calls adds to these twenty lines are conventions: how a server is found, how values are written, and what happens when something fails.
#
# ## JSON over HTTP
#
# The convention that everybody knows: the name is in the path, the values are the body, the status says whether it went well. `serve` starts a process
# that listens on 127.0.0.1, and has these functions. It takes nothing but the standard library (labkit/rpc.py). First without a stub, so that
# the bytes can be seen:

# %%
import socket

from labkit.rpc import serve

http = serve({"mean": mean, "report": report})
print(http)

body = b'{"day": "2013-01-31"}'
request = b"POST /mean HTTP/1.1\r\nHost: lab\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
with socket.create_connection((http.host, http.port)) as connection:
    connection.sendall(request)
    print(connection.recv(4096).decode())

# %% [markdown]
# And with one:

# %%
http_stub = http.stub()
print(http_stub.mean(day="2013-01-31"))
try:
    http_stub.mean(date="2013-01-31")
except RuntimeError as error:
    print(error)

# %% [markdown]
# ## gRPC
#
# In gRPC the service is written down first, in a `.proto` file, from which stubs for a dozen languages are made. Ours is compiled when it is used:

# %%
print(Path("weather.proto").read_text())

# %%
from labkit.rpc import compiled

proto = Path("weather.proto").resolve()
messages = compiled(proto)
as_protobuf = messages.Day(day="2013-01-31").SerializeToString()
print(len(as_protobuf), "bytes of protobuf:", as_protobuf.hex(" "))
print(len(body), "bytes of JSON:    ", body.hex(" "))

# %% [markdown]
# `0a` says *field 1, a text*, `0a` says *10 bytes*, and then they come. The names of the fields do not travel: both sides know them. That is the gain, and also the duty:
# a field's number may never change. The same functions, served over gRPC:

# %%
grpc = serve({"mean": mean, "report": report}, proto)
grpc_stub = grpc.stub()
print(grpc, grpc_stub.mean(day="2013-01-31"))

# %% [markdown]
# ## ipyparallel
#
# The third one is Jupyter's own: engines, which are kernels, and a controller that hands them work. You do not call what the server has: you *send the function*.

# %%
import logging

import ipyparallel

cluster = ipyparallel.Cluster(n=1, controller_args=["--HeartMonitor.period=200"], log_level=logging.ERROR)
begin = time.monotonic()
cluster.start_cluster_sync()
client = cluster.connect_client_sync()
client.wait_for_engines(1, timeout=40, interactive=False)
engine = client[0]
print(f"up in {time.monotonic() - begin:.1f} s")


def hours_of(path, day):
    return {"hours": sum(day in line for line in open(path))}


print(engine.apply_sync(hours_of, str(weather), "2013-01-31T"))

# %% [markdown]
# Who can send functions can run anything. So it is for people who trust each other: messages are signed with a key that lies in a file only you can read.
# A server of JSON or protobuf takes plain values, and runs only what it has.
#
# ## Measure
#
# What does a call cost? Not `mean` itself, but everything around it. A procedure that does nothing, called one after the other:


# %%
def nothing(day):
    return {"celsius": 0.0, "hours": 0}


def nothing_reported(request, celsius):
    return {"readings": 0}


quick = [serve({"mean": nothing, "report": nothing_reported}, how) for how in (None, proto)]
stubs = [one.stub() for one in quick]
calls = {
    "a function": (lambda: nothing("2013-01-31"), 1000),
    "JSON over HTTP": (lambda: stubs[0].mean(day="2013-01-31"), 300),
    "gRPC": (lambda: stubs[1].mean(day="2013-01-31"), 300),
    "ipyparallel": (lambda: engine.apply_sync(nothing, "2013-01-31"), 40),
}

# %%
from statistics import median

from labkit.draw import plot_times

took = {}
for name, (call, times) in calls.items():
    call(), call()
    samples = []
    for _ in range(times):
        begin = time.perf_counter_ns()
        call()
        samples.append(time.perf_counter_ns() - begin)
    took[name] = median(samples)
plot_times(took, "one call, median")

# %%
print(*(f"{name:15} {1e9 / ns:12,.0f} calls a second" for name, ns in took.items()), sep="\n")

# %% [markdown]
# Thousands of local calls go into one remote call. So remote procedures are made *coarse*: one call for a whole day, not one for each hour. The
# differences between the three are the languages in which they are written and how much they do; on a real network its latency is added to each.
#
# ## A deadline
#
# A local call returns or raises. A remote one can also do *neither*. So every remote call has a deadline, and here is what it means:


# %%
def readings():
    return sqlite3.connect(database).execute("select count(*) from readings").fetchone()[0]


for name, remote in (("JSON over HTTP", http_stub), ("gRPC", grpc_stub)):
    before = readings()
    try:
        remote.report(request="a", celsius=3.5, timeout=0.1)
    except TimeoutError as error:
        print(f"{name}: {error}")
    time.sleep(0.5)
    print(f"{name}: {readings() - before} reading more in the database")

# %% [markdown]
# The caller has given up, and the server has done it all the same. **A deadline is not a cancellation.** It only says how long you want to wait.
#
# ## kill -9 in mid-call
#
# Now the server is killed while it works on a call. Twice: at a moment when the reading is in the database and the answer is not yet sent, and before it
# has arrived at all. The caller sees the same each time:

# %%
import threading


def call_and_kill(server, remote, celsius, after, request="b"):
    """Call report; the server is killed after so many seconds, and started again."""
    before = readings()
    if after == 0:
        server.close()
    else:
        threading.Timer(after, server.job.kill).start()
    try:
        remote.report(request=request, celsius=celsius)
    except (EOFError, OSError) as error:
        print(f"{type(error).__name__}: {error}")
    server.restart()
    return readings() - before


for server, remote in ((http, http_stub), (grpc, grpc_stub)):
    for after in (0.1, 0):
        print("-->", call_and_kill(server, remote, 4.0, after), "reading more", end="\n\n")

# %% [markdown]
# `ConnectionRefusedError` is the kind error: it was not run, for certain. `Closed` says nothing at all. Two programs could react in two ways:
#
# - **At most once:** never try again. If it was not done, it never will be.
# - **At least once:** try again until there is an answer. If it was done, it is done twice.


# %%
def try_again(remote, **values):
    """At least once: until an answer comes."""
    for attempt in range(1, 100):
        try:
            return attempt, remote.report(**values)
        except (EOFError, OSError):
            time.sleep(0.1)


def killed_once(server, remote, **values):
    """The same while the server is killed in the middle of the first attempt; how many readings more there are."""
    before = readings()
    threading.Timer(0.15, server.restart).start()
    attempts, _ = try_again(remote, **values)
    return f"{attempts} attempts, {readings() - before} readings more"


print("JSON over HTTP:", killed_once(http, http_stub, request="c", celsius=5.0))
print("gRPC:          ", killed_once(grpc, grpc_stub, request="d", celsius=5.0))

# %% [markdown]
# One reading, reported once, is there twice. For `mean` that would not matter: it is *idempotent*. For readings, orders and payments it does.
#
# ## Once, all the same
#
# The caller cannot know. But the server can, if the caller gives each *request* a name of its own, and the same one when it tries again:

# %%
once = str(folder / "once.sqlite")
sqlite3.connect(once).execute("create table readings (request text primary key, celsius real)")


def report_once(request, celsius):
    with sqlite3.connect(once) as db:  # a transaction
        db.execute("insert or ignore into readings values (?, ?)", (request, celsius))
    time.sleep(0.3)
    return {"readings": db.execute("select count(*) from readings").fetchone()[0]}


for how in (None, proto):
    with serve({"mean": mean, "report": report_once}, how) as server, server.stub() as remote:
        threading.Timer(0.15, server.restart).start()
        attempts, answer = try_again(remote, request=f"over {server}", celsius=6.0)
        print(f"{attempts} attempts, and the server has {answer['readings']} readings")

# %% [markdown]
# Two servers, two requests, two readings, although each was sent more than once. The name and the effect are written in *one* transaction. (Lab 15 makes services
# of this that survive hundreds of kills.)
#
# ## Two hosts
#
# So far both sides were on one machine, and the server listened on 127.0.0.1, where nobody else can call it. Two network namespaces with a cable between them are two
# hosts, as far as the Linux kernel's network is concerned (lab 12). Where they are refused, the loopback must do:

# %%
from labkit.isolation import namespace, wire
from labkit.replay import why_not
from labkit.rpc import connect


def call_from(host, port):
    with connect(host, port, proto) as remote:
        return remote.mean(day="2013-01-31")


# %%
if refused := why_not():
    print("Here both hosts are this one, 127.0.0.1:", refused)
    print(launch(call_from, grpc.host, grpc.port).wait())
else:
    with namespace("net") as here, namespace("net", inside=here) as there:
        _, address = wire(here, there)
        with serve({"mean": mean, "report": report}, proto, host=address, inside=there) as server:
            print(server)
            print("called from the other host:", here.run(call_from, server.host, server.port))

# %% [markdown]
# That server had to be told its address in so many words. A server that listens at `0.0.0.0` because it was easy is how databases get on the front page.
#
# ## Exercise 1: the stub
#
# Write `make_stub(ask)`. `ask(request)` sends bytes and returns the bytes of the reply, in the format of our server by hand above: the request is the JSON of
# `{"name": ..., "values": {...}}`, the reply of `{"result": ...}` or `{"error": text}`. What you return is an object on which *any* method can be called with named
# values; it returns the result, or raises RuntimeError with the server's text.


# %%
def make_stub(ask): ...  # your turn: a class with __getattr__


# %%
from labkit.exercises.rpc import check_stub

check_stub(make_stub)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def make_stub(ask):
#     class Stub:
#         def __getattr__(self, name):
#             def call(**values):
#                 reply = json.loads(ask(json.dumps({"name": name, "values": values}).encode()))
#                 if "error" in reply:
#                     raise RuntimeError(reply["error"])
#                 return reply["result"]
#
#             return call
#
#     return Stub()
# ```
#
# Python asks `__getattr__` for every attribute that is not there. So a stub need not know what the server has; gRPC's does, from the `.proto` file.
# </details>
#
# ## Exercise 2: surely, and once
#
# The server knows requests by their name, as `report_once` does. It is killed now and then, before or after the effect. Write `report_surely(remote, celsius,
# seconds)`: it calls `remote.report(request=..., celsius=celsius)` until there is an answer, and returns that. After `seconds` in all it gives up with TimeoutError.
# The errors of a call are those from above: `EOFError` (which `labkit.Closed` is), `ConnectionRefusedError` and `TimeoutError`, which are `OSError`s.


# %%
def report_surely(remote, celsius, seconds): ...  # your turn


# %%
from labkit.exercises.rpc import check_report

check_report(report_surely)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# import uuid
#
# def report_surely(remote, celsius, seconds):
#     request, end = str(uuid.uuid4()), time.monotonic() + seconds
#     while (left := end - time.monotonic()) > 0:
#         try:
#             return remote.report(request=request, celsius=celsius, timeout=left)
#         except (EOFError, OSError):
#             time.sleep(min(0.05, left))
#     raise TimeoutError(f"no answer within {seconds} s: the reading may be there, or not")
# ```
#
# One name for all attempts, a little rest between them, and a deadline for the whole, which each attempt is told.
# </details>
#
# ## What we learnt
#
# - A remote call is two messages. A stub makes it look like a function, and cannot make it one: it is thousands of times as slow, and it may have *no outcome*.
# - A deadline says how long the caller waits. It does not say what the server does.
# - Not run: *connection refused*. Everything else is unknown. Trying again is at least once, not trying again at most once.
# - Once is what a server makes of at least once, with the request's own name, written in one transaction with the effect.
# - JSON can be read by everybody; protobuf is smaller and checked, and wants a `.proto` file; ipyparallel sends functions, to people who are trusted.
# - A server listens on 127.0.0.1, unless you have a reason.
#
# **Manual pages:** tcp(7), ip(7), connect(2), listen(2), veth(4), rtnetlink(7), network_namespaces(7).
# **Book:** W. R. Stevens, *UNIX Network Programming*, volume 2, chapter 16; A. Birrell, B. Nelson, *Implementing Remote Procedure Calls* (1984).
# **Documentation:** grpc.io, *Core concepts*, *Deadlines*, *Retry*; RFC 9110, section 9.2.2 (idempotent methods); ipyparallel.readthedocs.io.

# %%
import shutil

for one in (http, grpc, *quick):
    one.close()
client.close()
cluster.stop_cluster_sync()
shutil.rmtree(folder)
