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
# # How Jupyter talks: what happens between Shift + Enter and the result?
#
# You have run hundreds of cells. Each time at least three processes talked: the **front end** in your browser, the Jupyter **server**, and the **kernel**, the
# Python in which the cell runs. Browser and server talk over a WebSocket, server and kernel over **ZeroMQ**, a library of sockets that know *patterns*.
#
# In this lab you use these patterns by hand, write a message to a kernel byte by byte, and put a tap on the line between a front end and its kernel.
#
# ## Request and reply
#
# A ZeroMQ socket has a type, which says what it may do. `REQ` asks and then listens, `REP` listens and then answers. It sends whole messages, connects by itself, and
# again when the line breaks. The other side is a process of its own:

# %%
import zmq

from labkit import launch


def answer(port):
    with zmq.Context() as context, context.socket(zmq.REP) as reply:
        reply.connect(f"tcp://127.0.0.1:{port}")
        for _ in range(2):
            reply.send(reply.recv().upper())


context = zmq.Context()
request = context.socket(zmq.REQ)
port = request.bind_to_random_port("tcp://127.0.0.1")
job = launch(answer, port)
request.send(b"hello")
print(request.recv())

# %%
request.send(b"once more")
try:
    request.send(b"and again")
except zmq.ZMQError as error:
    print("ZMQError:", error)
print(request.recv())
request.close()
job.wait()

# %% [markdown]
# Strictly in turns: who asks twice without listening is stopped. That suits a *heartbeat*, and this is what Jupyter uses it for. It does not suit a cell that runs for an
# hour, while you want to ask for a completion. For everything else Jupyter takes `DEALER` and `ROUTER`: the same without the turns. A `ROUTER` puts in front of each message who
# sent it, and sends to whom the first frame names:

# %%
router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
dealer.identity = b"front end 1"
dealer.connect(f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}")
dealer.send(b"complete this")
dealer.send(b"and run that")
for _ in range(2):
    sender, message = router.recv_multipart()
    print(sender, message)
    router.send_multipart([sender, b"done: " + message])
print(dealer.recv(), dealer.recv())
for socket in (router, dealer):
    socket.close()
# %% [markdown]
# ## Publish and subscribe
#
# What a kernel prints is for everybody who watches it, be it nobody or three browsers. `PUB` sends to all that have subscribed, and **never waits**. Here one subscriber keeps up, and a
# second one takes 2 ms for each message:

# %%
import time
from itertools import pairwise


def subscriber(port, pause):
    with zmq.Context() as context, context.socket(zmq.SUB) as sub:
        sub.rcvhwm = 100  # the high-water mark: messages that may wait here
        sub.connect(f"tcp://127.0.0.1:{port}")
        sub.subscribe(b"")
        numbers = []
        while (message := sub.recv())[:3] != b"end":
            numbers.append(int(message[:8]))
            time.sleep(pause)
    gaps = [b - a - 1 for a, b in pairwise(numbers)]
    return f"{len(numbers):5,} received, {2000 - len(numbers):5,} missed, the most in one go: {max(gaps):,}"


# %%
publisher = context.socket(zmq.XPUB)  # a PUB that hears who subscribes
publisher.sndhwm = 100
publisher.xpub_verbose = True  # of each of them
port = publisher.bind_to_random_port("tcp://127.0.0.1")
jobs = {name: launch(subscriber, port, pause) for name, pause in (("quick", 0), ("slow ", 0.002))}
publisher.recv(), publisher.recv()  # both have subscribed
begin = time.monotonic()
for number in range(2000):
    publisher.send(b"%8d" % number + bytes(10_000))
    time.sleep(0.0002)
print(f"sent in {time.monotonic() - begin:.2f} s")
while any(job.alive for job in jobs.values()):
    publisher.send(b"end")
    time.sleep(0.05)
for name, job in jobs.items():
    print(name, job.wait())
publisher.close(linger=0)

# %% [markdown]
# The slow one has lost messages, whole stretches of them, and neither it nor the publisher was told. The publisher was not held up: there is no back-pressure. That is a
# decision. A kernel must not stand still because somebody's browser does. It is also why output can be missing when a kernel prints faster than it can be shown.
#
# ## Push and pull
#
# The third pattern deals messages out: each goes to *one* of those who are connected, in turns. Inside of a kernel, `print` in any thread pushes its text to the one thread
# that may use the socket for output. Among processes:


# %%
def worker(task_port, result_port, name, pause):
    with zmq.Context() as context, context.socket(zmq.PULL) as tasks, context.socket(zmq.PUSH) as results:
        results.connect(f"tcp://127.0.0.1:{result_port}")
        tasks.connect(f"tcp://127.0.0.1:{task_port}")
        results.send(b"ready")
        while tasks.recv() != b"end":
            time.sleep(pause)
            results.send(name)


tasks, results = context.socket(zmq.PUSH), context.socket(zmq.PULL)
ports = [socket.bind_to_random_port("tcp://127.0.0.1") for socket in (tasks, results)]
jobs = [launch(worker, *ports, *who) for who in ((b"quick", 0.001), (b"quick too", 0.001), (b"slow", 0.02))]
for _ in jobs:
    results.recv()
time.sleep(0.2)

# %%
from collections import Counter

for _ in range(60):
    tasks.send(b"a task")
begin = time.monotonic()
done = [(results.recv(), time.monotonic() - begin) for _ in range(60)]
print(Counter(name.decode() for name, _ in done))
for name in sorted(set(Counter(name for name, _ in done))):
    print(f"{name.decode():10} has done all of its own after {max(when for who, when in done if who == name):.2f} s")
for _ in jobs:
    tasks.send(b"end")
for job in jobs:
    job.wait()
for socket in (tasks, results):
    socket.close(linger=0)
# %% [markdown]
# Dealt out like cards, not to whom is free: the slow one has got as many. (ipyparallel has a scheduler for that reason, lab 16.)
#
# ## A kernel, and how to find it
#
# A kernel is a program that opens five ZeroMQ sockets. Who starts it writes a *connection file*: where they are, and a secret **key**. It is readable for its
# owner only, since whoever has the key can run code as you:

# %%
import os
import subprocess

from jupyter_client import KernelManager

manager = KernelManager()
manager.start_kernel(stderr=subprocess.DEVNULL)
info = manager.get_connection_info()
print(oct(os.stat(manager.connection_file).st_mode & 0o777), os.path.basename(manager.connection_file))
print({name: value for name, value in info.items() if name != "key"})
print("key:", len(info["key"]), "bytes, which are not shown here")

# %% [markdown]
# ## A message by hand
#
# A message is several frames: who it is for (from a `ROUTER`), a delimiter, a **signature**, and four of JSON: its own header, the header of the message that caused it, metadata and
# content. The signature is an HMAC (RFC 2104): a hash of the four and the key, which only somebody who knows the key can make.

# %%
import datetime
import hashlib
import hmac
import json
import uuid


def frames_of(msg_type, content, key):
    header = {"msg_id": uuid.uuid4().hex, "session": "by hand", "username": "me", "version": "5.4"}
    header |= {"msg_type": msg_type, "date": datetime.datetime.now(datetime.UTC).isoformat()}
    parts = [json.dumps(part).encode() for part in (header, {}, {}, content)]
    signature = hmac.new(key, b"".join(parts), hashlib.sha256).hexdigest().encode()
    return [b"<IDS|MSG>", signature, *parts]


def ask(frames, timeout=20.0):
    with context.socket(zmq.DEALER) as shell:
        shell.linger = 0
        shell.connect(f"tcp://127.0.0.1:{info['shell_port']}")
        shell.send_multipart(frames)
        return shell.recv_multipart() if shell.poll(timeout * 1000) else None


# %%
for frame in ask(frames_of("execute_request", {"code": "6 * 7", "silent": False}, info["key"])):
    print(frame.decode()[:110])

# %% [markdown]
# `execute_reply`, and it says *ok*. Where is the 42? Not here: results are for everybody, so they are published. First the same once more with a wrong key:

# %%
answer = ask(frames_of("execute_request", {"code": "print('let me in')"}, b"a guess"), timeout=1.5)
print("answered" if answer else "no answer: the kernel has thrown it away, and has said nothing")

# %% [markdown]
# ## The tap
#
# The Jupyter server sits between the browser and these five sockets and passes on what comes. `Wiretap` does the same, and writes everything down. A front end
# (jupyter_client's, which terminals use) connects to the tap, and the tap to the kernel. It needs no key for it:

# %%
from labkit import Trace, watch
from labkit.wiretap import Wiretap

trace = Trace()
tap = Wiretap(manager, trace)
client = tap.client()

# %%
tap.forget()
client.execute("print('hello')\n6 * 7")
tap.settle()
tap.heard()

# %% [markdown]
# That is Shift + Enter. The request goes over *shell*. Everything that can be seen comes over *iopub*: the kernel is **busy** (the front end shows `[*]`), this is what I run, somebody prints,
# this is the result, and **idle** again. Each says because of which request it was sent: so output finds its cell. The answer on *shell* only says how it went.
#
# Here is the same in time. An arrow begins when a message was made (its header tells) and ends when it passed the tap:

# %%
watch(trace, view="sequence")

# %% [markdown]
# ## Questions to you, and an interruption
#
# `input()` turns the roles around: the kernel asks, over *stdin*, and it asks the front end from which the request came. And *control* is for what must not wait behind
# a long cell:

# %%
tap.forget()
client.execute("name = input('Who are you? ')", allow_stdin=True)
tap.wait_for("input_request")
client.input("a reader")
tap.settle()
tap.heard("stdin")

# %%
tap.forget()
client.execute("import time; time.sleep(60)")
tap.wait_for("execute_input")
time.sleep(0.3)
client.control_channel.send(client.session.msg("interrupt_request", {}))
tap.settle()
tap.heard()

# %% [markdown]
# Two conversations at once: the interruption is answered while the cell is still at work. (A kernel has a thread for *control*.) In the trace there is one more pair, *hb*: the front
# end sends a few bytes each second, and a thread of the kernel sends them back, even when a cell computes. It tells a busy kernel from a dead one:

# %%
time.sleep(1.5)
for info in trace.channels:
    messages = trace.messages()
    print(f"{info.label:20} {int((messages['channel'] == info.number).sum()):3} messages")

# %% [markdown]
# ## A widget
#
# A slider is two halves: an object in the kernel and one in the browser. What keeps them equal is a **comm**: either side opens it, and both send messages through it, on *shell* to
# the kernel and on *iopub* to the front ends. The kernel's half:

# %%
tap.forget()
client.execute("""
from ipywidgets import IntSlider
slider = IntSlider()
slider.observe(lambda change: print("the slider is at", change["new"]), "value")
""")
tap.settle()
opened = next(
    heard
    for heard in tap.heard()
    if heard.content.get("data", {}).get("state", {}).get("_view_name") == "IntSliderView"
)
print(opened.type, opened.content["target_name"], opened.content["comm_id"])
print({name: opened.content["data"]["state"][name] for name in ("min", "max", "value", "_model_name")})

# %% [markdown]
# There is no browser here, so nobody has made the other half. That does not matter: we *are* the front end. Somebody pulls the slider to 7:

# %%
tap.forget()
update = {"method": "update", "state": {"value": 7}, "buffer_paths": []}
pulled = {"comm_id": opened.content["comm_id"], "data": update}
client.shell_channel.send(client.session.msg("comm_msg", pulled))
tap.wait_for("stream")
tap.settle()
tap.heard()

# %% [markdown]
# The message sets the value, and the observer prints: output without a cell, which the front end shows where the comm belongs. *echo_update* goes to all, so that three browsers with the same notebook
# show the same slider. The views in these labs are comms, too: their events travel in *buffers*, frames of bytes behind the JSON, which are not signed.
#
# ## With a server, as in your browser
#
# Now the third process. A real Jupyter server takes the tap for its kernel, and `page` does what the page in your browser does: it opens a **WebSocket** to the server, and
# sends the same message as JSON. Only the server has the kernel's key, so it is the server that signs:

# %%
from labkit.webserver import JupyterServer

client.stop_channels()
tap.close()
served = Trace()
tap = Wiretap(manager, served)
server = JupyterServer(tap)
page = server.connect()
for message in page.execute("print('hello')\n6 * 7"):
    print(f"{message['channel']:6} {message['msg_type']:15} {json.dumps(message['content'])[:60]}")

# %%
watch(served, view="sequence")

# %% [markdown]
# Each way has two legs, with the server in the middle: **WebSocket** to the front end, **ZeroMQ** to the kernel. One WebSocket carries what comes from *shell* and from *iopub*,
# so each message says which. The server does not tell when it has a message; the end of one leg and the begin of the next are the moment at which it passes the tap.

# %%
page.close()
server.close()
tap.close()
tap = Wiretap(manager)
client = tap.client()

# %% [markdown]
# ## Measure: what does Jupyter itself cost?

# %%
from labkit.draw import plot_times

tap.forget()
begin = time.monotonic()
for _ in range(50):
    client.execute_interactive("None", allow_stdin=False, timeout=20)
per_cell = (time.monotonic() - begin) / 50
there = [h.time_ns - h.sent_ns for h in tap.heard("shell") if h.to_kernel]
back = [h.time_ns - h.sent_ns for h in tap.heard("iopub")]
median = sorted(there)[len(there) // 2], sorted(back)[len(back) // 2]
plot_times(
    {"an empty cell": per_cell * 1e9, "a request until the tap": median[0], "output until the tap": median[1]}, "median"
)

# %% [markdown]
# An empty cell takes milliseconds, and most of it is neither the network nor your code: six messages are made, signed, parsed and checked.
#
# ## Exercise 1: is it signed?
#
# Write `verify(key, frames)`: whether somebody who knows the key has made this message. `frames` is what `recv_multipart` returns: any number of identities, then `b"<IDS|MSG>"`, the signature,
# four frames of JSON, and any number of buffers.


# %%
def verify(key, frames): ...  # your turn: hmac.new, hmac.compare_digest


# %%
from labkit.exercises.jupyter_talks import check_verify

check_verify(verify)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def verify(key, frames):
#     if b"<IDS|MSG>" not in frames:
#         return False
#     begin = frames.index(b"<IDS|MSG>") + 1
#     if len(frames) < begin + 5:
#         return False
#     signature, parts = frames[begin], frames[begin + 1 : begin + 5]
#     expected = hmac.new(key, b"".join(parts), hashlib.sha256).hexdigest().encode()
#     return hmac.compare_digest(signature, expected)
# ```
#
# `compare_digest` takes as long whether the first byte is wrong or the last. With `==` one could measure how much of a guess is right.
# </details>
#
# ## Exercise 2: is my cell done?
#
# Two front ends use one kernel. Each hears on *iopub* what is published for either. Write `done(messages, msg_id)`: the position in the list of the message after which nothing more comes
# of the request `msg_id`, or None when it is not done yet. A message has `type`, `header`, `parent` and `content`, as the tap writes them down.


# %%
def done(messages, msg_id): ...  # your turn


# %%
from labkit.exercises.jupyter_talks import check_done

check_done(done)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def done(messages, msg_id):
#     for position, message in enumerate(messages):
#         ours = message.parent.get("msg_id") == msg_id
#         if ours and message.type == "status" and message.content["execution_state"] == "idle":
#             return position
# ```
#
# Not the result (there need not be one), and not the reply: that comes over another socket, and may overtake what was printed before it.
# </details>
#
# ## What we learnt
#
# - Request and reply in turns is for heartbeats; `DEALER` and `ROUTER` ask many things at once. Publishing never waits: who is too slow misses something, and is not told. Push deals out in turns.
# - A kernel is five sockets and a key. Who has the key can run code as you; who has not is ignored.
# - A request goes over *shell*, what can be seen comes over *iopub*, marked with its request, and ends with *idle*. *stdin* asks back, *control* does not queue, *hb* says who lives.
# - A widget is two halves and a comm between them, which uses the same sockets.
#
# **Manual pages:** zmq_socket(3), zmq_setsockopt(3), zmq_msg_send(3), tcp(7), unix(7).
# **Documentation:** *Messaging in Jupyter* (jupyter-client.readthedocs.io), *The ZeroMQ Guide* (zguide.zeromq.org), RFC 2104.

# %%
client.stop_channels()
tap.close()
manager.shutdown_kernel(now=True)
context.term()
