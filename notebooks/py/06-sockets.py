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
# # Sockets: one interface, many ways to talk
#
# A browser talks to a server on another continent, a window to the program that draws it, a database to its clients on the
# same machine. All of them use the same few calls: socket, bind, connect, send, recv. What differs is what happens between
# the two ends, and that is decided by two words when the socket is made: its **domain** (where the other may be) and its
# **type** (what is kept of what you sent).
#
# Does a message arrive as you sent it? Does it arrive at all? Who is at the other end? And why does a tiny request sometimes
# take 40 milliseconds?

# %% [markdown]
# ## Three types
#
# socketpair(2) makes two sockets of the Unix domain that are connected to each other already. Three messages go into one end:
# what comes out of the other, when we ask for up to 100 bytes at a time?

# %%
import socket

TYPES = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM, "seqpacket": socket.SOCK_SEQPACKET}


def receive_all(end, most):
    """What recv returns, call after call, until nothing is left."""
    end.setblocking(False)
    try:
        while piece := end.recv(most):
            yield piece
    except BlockingIOError:
        return


for name, kind in TYPES.items():
    left, right = socket.socketpair(socket.AF_UNIX, kind)
    for message in (b"It is", b" a truth", b" universally"):
        left.send(message)
    print(f"{name:10}", list(receive_all(right, 100)))
    left.close(), right.close()

# %% [markdown]
# A **stream** carries bytes and forgets where one message ended and the next began. **Datagrams** and **sequenced packets** keep
# the boundaries. That has a price: if you ask for less than the message, what happens to the rest?

# %%
for name, kind in TYPES.items():
    left, right = socket.socketpair(socket.AF_UNIX, kind)
    for message in (b"It is", b" a truth", b" universally"):
        left.send(message)
    print(f"{name:10}", list(receive_all(right, 4)))
    left.close(), right.close()

# %% [markdown]
# The stream gives all of it, cut where *we* cut. The others throw the rest of each message away. And how does one learn that the
# other side has gone?

# %%
for name, kind in TYPES.items():
    left, right = socket.socketpair(socket.AF_UNIX, kind)
    left.close()
    right.settimeout(0.2)
    try:
        print(f"{name:10} recv gives", right.recv(100))
    except TimeoutError:
        print(f"{name:10} recv gives nothing: it still waits, and would for ever")
    right.close()

# %% [markdown]
# Streams and sequenced packets have a *connection*, and the kernel tells when it ends. Datagrams have none: each is a letter of its
# own, and nobody can know whether another will be written.
#
# ## Across the network, and back
#
# The Internet domain has the same types under other names: a stream is **TCP**, a datagram **UDP**. An address is a machine and a
# *port*. We stay on this machine: 127.0.0.1 is the loopback interface, on which whatever is sent comes back in. The server
# listens, the client connects, and accept(2) gives the server a new socket for this one conversation:

# %%
listening = socket.create_server(("127.0.0.1", 0))  # port 0: any that is free
print("listening at", listening.getsockname())

client = socket.create_connection(listening.getsockname())
server, address = listening.accept()
print("the server sees a client at", address, "- the client says it is at", client.getsockname())

client.send(b"half a mess")
client.send(b"age\n")
print("the server receives", server.recv(100))
for end in (client, server, listening):
    end.close()

# %% [markdown]
# ## The same through a channel
#
# labkit has all of them as channels, and puts a length before each message where the kernel keeps none apart. With a **name**
# unrelated processes meet: the receiver makes it, any number of senders connect. Here three producers, each a process of its own
# with a connection of its own, send the weather of JFK airport in January, May and September of 2013.

# %%
import time
from pathlib import Path

from labkit import Trace, channel, launch, watch

rows = Path("../data/weather-jfk-2013.csv").read_bytes().splitlines()[1:]


def producer(tx, rows, pause):
    for row in rows:
        tx.send(row)
        time.sleep(pause)


def count(rx):
    return sum(1 for _ in rx)


# %%
trace = Trace()
tx, rx = channel("unix_stream", name="weather", trace=trace)
watch(trace)

senders = [tx.clone(), tx.clone(), tx]  # a clone of a named sender is one more connection
counting = launch(count, rx)
for n, end in enumerate(senders):
    launch(producer, end, rows[n * 2900 :][:150], 0.01)
print("received:", await counting)

# %% [markdown]
# The same messages as arrows over time, one line a process. Zoom in (the buttons, or Ctrl and the wheel) until single messages
# have a slope: the flatter, the longer it took. The receiver's line is framed while it sleeps.

# %%
watch(trace, view="sequence")

# %% [markdown]
# The receiver sleeps in epoll(7) until any of the connections has something, and serves them in turn. It ended by itself: when
# the last connection was closed and nobody waited to be accepted.
#
# ## Who is there?
#
# A TCP server knows an address, and on one machine all processes have the same. A Unix socket can do better: the kernel tells
# who the other side is, and nobody can lie to the kernel. Here a stranger connects, a program we know nothing of:

# %%
import os
import struct
import sys
import tempfile
from subprocess import Popen

folder = tempfile.mkdtemp(prefix="ipclab-")
listening = socket.socket(socket.AF_UNIX)
listening.bind(f"{folder}/door")
listening.listen()

knock = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1)"
stranger = Popen([sys.executable, "-I", "-S", "-c", knock, f"{folder}/door"])
visitor, _ = listening.accept()

credentials = visitor.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
pid, uid, gid = struct.unpack("iII", credentials)
print(
    f"at the door: process {pid} of user {uid}; the process we started is {stranger.pid}, and we are user {os.getuid()}"
)
visitor.close(), listening.close()
print("it left, with exit status", stranger.wait())
# %% [markdown]
# This is SO_PEERCRED. labkit's named Unix channels ask it of everybody who connects, and let only the same user in (and root).
# The door itself is a file, and it is still there, although nobody listens any more. Somebody who knocks now?

# %%
late = socket.socket(socket.AF_UNIX)
try:
    late.connect(f"{folder}/door")
except ConnectionRefusedError as error:
    print(os.listdir(folder), error)
late.close()
os.unlink(f"{folder}/door")
os.rmdir(folder)

# %% [markdown]
# ## Hand over an open file
#
# The most surprising thing that goes through a Unix socket is a **file descriptor**: SCM_RIGHTS in unix(7). The other process gets an
# open file, pipe or socket that it could not have opened itself. We open a file and remove its name; nobody can open it any more.


# %%
def reader(connection):
    with connection:
        message, (fd,), *_ = socket.recv_fds(connection, 100, 1)
        with open(fd, "rb") as file:
            return f"process {os.getpid()} was told {message.decode()!r} and reads {file.read()!r}"


with tempfile.TemporaryFile() as secret:
    secret.write(b"The treasure is buried under the oak.")
    secret.seek(4)
    left, right = socket.socketpair()
    job = launch(reader, right)
    right.close()
    socket.send_fds(left, [b"look at this"], [secret.fileno()])
    print(job.wait())
    print("and our own position in the file is now", os.lseek(secret.fileno(), 0, os.SEEK_CUR))
    left.close()

# %% [markdown]
# The file had no name and the other process was never told one. It began to read where *we* stood, and when it had read to the end,
# so had we: not a copy of the file was sent, and not its name, but the same *open file description*, open(2). This is how `launch`
# gives the ends of channels away, and how a web server hands connections to its workers.
#
# ## What UDP loses
#
# On the loopback interface no wire can lose anything. And yet: we send 2,000 numbered datagrams before the receiver looks for the
# first time.

# %%
COUNT, SIZE = 2000, 500

tx, rx = channel("udp")
for number in range(COUNT):
    tx.send(b"%06d" % number + bytes(SIZE - 6))
tx.close()

arrived = [int(message[:6]) for message in rx]
print(f"sent {COUNT:,}, arrived {len(arrived):,}, lost {COUNT - len(arrived):,}")
print(f"the first {arrived[-1] + 1:,} are there, the rest is gone; receive buffer: {rx.receive_buffer:,} bytes")
rx.close()

# %% [markdown]
# Every single send succeeded. The datagrams that found the receiver's buffer full were dropped, and nobody was told. When the
# receiver keeps reading, but more slowly than the sender sends, the loss is spread out. How fast may one send?


# %%
def slow(rx):
    received = 0
    for _ in rx:
        received += 1
        time.sleep(0.0005)  # it has something to do
    return received


def lost_at(pause):
    tx, rx = channel("udp", receive_buffer=20_000)
    receiving = launch(slow, rx)
    begun = time.perf_counter()
    for number in range(1000):
        tx.send(b"%06d" % number + bytes(SIZE - 6))
        time.sleep(max(0, begun + number * pause - time.perf_counter()))
    seconds = time.perf_counter() - begun
    tx.close()
    return 1000 / seconds, 100 * (1 - receiving.wait() / 1000)


points = sorted(lost_at(pause) for pause in (0.0015, 0.001, 0.0007, 0.0005, 0.0003, 0.0001, 0.00003))
print("messages a second: percent lost -", ", ".join(f"{rate:,.0f}: {lost:.0f}" for rate, lost in points))

# %%
from labkit.draw import plot_lines

plot_lines({"lost": points}, "messages sent a second", "lost, %", log="x", style="dots")

# %% [markdown]
# Up to the speed of the receiver nothing is lost, beyond it everything that is too much. A TCP or Unix sender would *wait* instead:
# that is flow control. UDP has none, and for a video call that is right. A late picture is worth nothing.
#
# ## Forty milliseconds
#
# A client sends a request in two parts, 100 bytes of header and 100 bytes of body, and waits for the answer. Over the loopback
# interface, where nothing is far. How long does that take?


# %%
def answer(connection):
    with connection:
        received = 0
        while piece := connection.recv(1000):
            received += len(piece)
            if received % 200 == 0:
                connection.send(b"done")


# %%
def exchanges(nodelay, count=40):
    listening = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listening.getsockname())
    connection, _ = listening.accept()
    job = launch(answer, connection)
    connection.close(), listening.close()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, nodelay)
    for number in range(count):
        begun = time.perf_counter()
        client.send(b"h" * 100)
        client.send(b"b" * 100)
        client.recv(100)
        yield number, 1000 * (time.perf_counter() - begun)
    client.close()
    job.wait()


# %%
times = {"as it comes": list(exchanges(False)), "with TCP_NODELAY": list(exchanges(True))}
for label, points in times.items():
    print(f"{label:17} median {sorted(ms for _, ms in points)[len(points) // 2]:8.3f} ms")

plot_lines(times, "request number", "time, ms", log="y", style="dots")

# %% [markdown]
# Two ideas, each good, that do not suit each other. **Nagle's algorithm** in the sender: do not send another small segment while an
# earlier one has not been acknowledged, there may be more to put in. **Delayed acknowledgement** in the receiver: do not
# acknowledge at once, there may be an answer to put it in. So the body waits for the acknowledgement of the header, the
# acknowledgement waits for an answer, and the answer waits for the body, until the receiver's timer ends it after some 40 ms.
# (Only the very first request is quick: a new connection acknowledges at once for a while, TCP_QUICKACK in tcp(7).)
#
# TCP_NODELAY switches Nagle off. Better still is to send the request in *one* call: then there is nothing to wait for. That is why
# labkit's `tcp` writes length and message together, and sets TCP_NODELAY unless told otherwise.
#
# ## Measure
#
# All of them with the same messages, one every millisecond, so that nothing has to queue:

# %%
kinds = ["unix_stream", "unix_seqpacket", "unix_datagram", "tcp", "udp"]

calm = Trace()
for kind in kinds:
    tx, rx = channel(kind, trace=calm)
    counting = launch(count, rx)
    await launch(producer, tx, rows[:500], 0.001)
    await counting

calm.compare()

# %% [markdown]
# TCP and UDP go through the whole network code of the Linux kernel, addresses, checksums and acknowledgements, to arrive on the
# same machine. Unix sockets put the message into the other's queue. At this pace the difference is often lost in what all of them
# pay: the waking of a receiver that sleeps. What each of them promises:

# %%
from labkit import facts

table = facts()
type(table)({kind: table[kind] for kind in kinds})

# %% [markdown]
# ## Break it
#
# **The receiver is killed.** Who sends through a Unix socket learns it with the next message. And through TCP?

# %%
from labkit import Closed


def hold(rx):
    time.sleep(60)


for kind in ("unix_stream", "tcp", "udp"):
    tx, rx = channel(kind)
    holding = launch(hold, rx)
    holding.kill()
    while holding.alive:
        time.sleep(0.01)
    for number in (1, 2, 3):
        try:
            tx.send(b"are you there?")
            print(f"{kind:12} message {number}: sent")
        except Closed as error:
            print(f"{kind:12} message {number}: {error}")
            break
    tx.close()

# %% [markdown]
# TCP and UDP *take* the first message: only when it has come to the other side does somebody answer that nobody is there (a reset,
# an ICMP message), and the next send hears of it. That a send succeeded never means that anybody has received.
#
# **The name remains.** A process that listened was killed, and left its socket's file behind. Who connects is refused; the
# next one who listens takes the name over:

# %%
from labkit import receiver, sender


def listen_and_die():
    with receiver("unix_stream", "weather", create=True):
        os.kill(os.getpid(), 9)


dying = launch(listen_and_die)
while dying.alive:
    time.sleep(0.01)
try:
    sender("unix_stream", "weather")
except ConnectionRefusedError as error:
    print(error)

with receiver("unix_stream", "weather") as rx, sender("unix_stream", "weather") as tx:
    tx.send(b"back in business")
    print(rx.receive())


# %% [markdown]
# ## Exercise 1: exactly so many bytes
#
# Every program that talks over a stream needs this. Write `receive_exactly(connection, size)`: it returns exactly `size` bytes,
# in however many pieces they come, takes none of what follows, and raises `EOFError` when the other side closes before they
# are complete.


# %%
def receive_exactly(connection, size): ...  # your turn


# %%
from labkit.exercises.sockets import check_receive_exactly

check_receive_exactly(receive_exactly)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def receive_exactly(connection, size):
#     pieces = []
#     while size:
#         piece = connection.recv(min(size, 65536))
#         if not piece:
#             raise EOFError("the other side has closed half-way")
#         pieces.append(piece)
#         size -= len(piece)
#     return b"".join(pieces)
# ```
#
# `recv(n)` gives *at most* n bytes and is content with one. What it takes beyond your message is missing in the next.
# </details>
#
# ## Exercise 2: an echo for several
#
# Write `serve(listening, clients)`: it accepts `clients` many connections, answers everything that a client says with the
# same bytes, and returns when all have gone. Clients come when they like, and one that says nothing must not keep the others
# waiting. The check is three clients of a real TCP server, your function, in a process of its own.


# %%
def serve(listening, clients): ...  # your turn


# %%
from labkit.exercises.sockets import check_serve

check_serve(serve)

# %% [markdown]
# <details><summary><b>A solution with a thread for each client</b></summary>
#
# ```python
# import threading
#
# def serve(listening, clients):
#     def echo(connection):
#         with connection:
#             while said := connection.recv(65536):
#                 connection.sendall(said)
#
#     threads = []
#     for _ in range(clients):
#         connection, _ = listening.accept()
#         threads.append(threading.Thread(target=echo, args=(connection,)))
#         threads[-1].start()
#     for thread in threads:
#         thread.join()
# ```
#
# </details>
#
# <details><summary><b>A solution in which the kernel says who is ready</b></summary>
#
# ```python
# import selectors
#
# def serve(listening, clients):
#     selector = selectors.DefaultSelector()  # epoll(7) on Linux
#     selector.register(listening, selectors.EVENT_READ)
#     while clients:
#         for key, _ in selector.select():
#             if key.fileobj is listening:
#                 connection, _ = listening.accept()
#                 selector.register(connection, selectors.EVENT_READ)
#             elif said := key.fileobj.recv(65536):
#                 key.fileobj.sendall(said)
#             else:
#                 selector.unregister(key.fileobj)
#                 key.fileobj.close()
#                 clients -= 1
# ```
#
# One thread for any number of clients. (What if a client never reads its answers? Then `sendall` waits for it, and all the others
# with it: a server that must not be held up keeps what it could not send, and asks the kernel when there is room.)
# </details>
#
# ## What we learnt
#
# - A stream has no messages, only bytes; datagrams and sequenced packets keep them apart, and cut off what you did not ask for.
# - A connection tells you when it ends; a datagram is all there is.
# - The kernel vouches for the other side of a Unix socket (SO_PEERCRED), and carries open files across (SCM_RIGHTS).
# - UDP loses what the receiver leaves no room for, and tells nobody; TCP and Unix sockets make the sender wait.
# - That a send succeeded does not mean that anybody has received.
# - Two small writes and then a wait cost 40 ms over TCP: Nagle and delayed acknowledgement. Write once, or set TCP_NODELAY.
#
# **Manual pages:** socket(2), socketpair(2), bind(2), listen(2), accept(2), connect(2), send(2), recv(2), unix(7), tcp(7), udp(7), ip(7), socket(7),
# cmsg(3), epoll(7).
# **Book:** M. Kerrisk, *The Linux Programming Interface*, chapters 56 to 61 and 63.
