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
# # FIFOs: two strangers meet at a name
#
# A pipe passes from parent to child; who is not of the family cannot use it. But the program that measures and the program
# that stores were started by different people, at different times, and neither knows the other's process number. Where can
# they meet?
#
# At a **name**. A FIFO is a pipe with a name in the file system. In this lab strangers meet there, wait for each other, talk
# all at once, miss each other, and die.

# %% [markdown]
# ## A pipe in the file system
#
# mkfifo(3) makes the name. It looks like a file, and it is none: the `p` stands for pipe, and its size stays 0.

# %%
import os
import tempfile
from subprocess import PIPE, Popen, run

folder = tempfile.mkdtemp(prefix="ipclab-")
path = f"{folder}/post"
os.mkfifo(path, 0o600)
print(run(["ls", "-l", folder], stdout=PIPE, text=True).stdout)

# %% [markdown]
# Any program that can open a file can use it. Here are two that have nothing in common but the name:

# %%
listener = Popen(["cat", path], stdout=PIPE)
speaker = Popen(["sh", "-c", f"echo 'Hello, whoever you are.' > {path}"])

print("cat heard:", listener.communicate()[0].decode(), end="")
print("exit statuses:", speaker.wait(), listener.wait())
print("size of the file:", os.stat(path).st_size, "bytes: nothing was ever stored on disk")

# %% [markdown]
# ## Open waits for the other
#
# Who came first, `cat` or `echo`? It did not matter. open(2) of a FIFO sleeps until *both* sides are there. To see that, here
# is a stranger who notes when it asked, when it was let in, and when it left, on the clock that all processes share:

# %%
import sys
import time

STRANGER = """
import os, sys, time
path, way = sys.argv[1:]
asked = time.monotonic()
fd = os.open(path, os.O_WRONLY if way == "writer" else os.O_RDONLY)
opened = time.monotonic()
time.sleep(0.1)
os.close(fd)
print(asked, opened, time.monotonic())
"""


# %%
def meet(*ways):
    strangers, python = [], [sys.executable, "-I", "-S", "-c"]
    for way in ways:
        strangers.append((way, Popen([*python, STRANGER, path, way], stdout=PIPE)))
        time.sleep(0.3)
    for way, process in strangers:
        asked, opened, left = map(float, process.communicate()[0].split())
        yield way, asked, opened, "waits in open(2)"
        yield way, opened, left, "has it open"


# %%
from labkit.draw import plot_spans

plot_spans(meet("writer", "reader"))

# %%
plot_spans(meet("reader", "writer"))

# %% [markdown]
# Whoever is first sleeps in open(2), costs nothing, and both are let in at the same moment. Opening is a meeting: when a
# program has the writing end, somebody is there who reads.
#
# ## Two Jupyter kernels
#
# Nothing is more of a stranger to this notebook than another notebook. We start two kernels, as JupyterLab does when you open
# two notebooks. Each knows the path, and that is all they share:

# %%
import asyncio

from jupyter_client.manager import AsyncKernelManager


async def start(name):
    kernel = AsyncKernelManager(transport="ipc", connection_file=f"{folder}/{name}.json")
    await kernel.start_kernel()
    cell = kernel.client()
    cell.start_channels()
    await cell.wait_for_ready()
    return kernel, cell


(jane, jane_cell), (lizzy, lizzy_cell) = await asyncio.gather(start("jane"), start("lizzy"))

# %%
async def execute(client, code):
    """Run a cell in another kernel; returns what it prints."""
    printed = []

    def hear(message):
        if message["msg_type"] == "stream":
            printed.append(message["content"]["text"])

    await client.execute_interactive(code, output_hook=hear)
    return "".join(printed)


# %%
WRITES = """
import os
with open(path, "w") as post:
    post.write(f"Dear stranger, I am process {os.getpid()}.")
"""
READS = """
import os
with open(path) as post:
    print(f"process {os.getpid()} has got a letter:", post.read())
"""
both = jane_cell, lizzy_cell
await asyncio.gather(*(execute(cell, f"path = {path!r}") for cell in both))
_, heard = await asyncio.gather(execute(jane_cell, WRITES), execute(lizzy_cell, READS))
print(heard, end="")

# %%
for kernel, cell in ((jane, jane_cell), (lizzy, lizzy_cell)):
    cell.stop_channels()
    await kernel.shutdown_kernel(now=True)

# %% [markdown]
# ## Many senders
#
# A name is open to all who may use it: any number of senders can have the same FIFO open. Four programs, each `grep`, pick one
# quarter of 2013 out of the weather of JFK airport, and all write to the same name. We read slowly, so that they all have to
# wait for room.

# %%
from pathlib import Path

DATA = "../data/weather-jfk-2013.csv"
QUARTERS = {"A": "[123]", "B": "[456]", "C": "[789]", "D": "1[012]"}
rows = Path(DATA).read_bytes().splitlines(keepends=True)[1:]


def four_greps(option=""):
    command = "exec grep {} '^JFK,2013,{},' {} > {}"
    greps = [Popen(["sh", "-c", command.format(option, q, DATA, path)]) for q in QUARTERS.values()]
    received = b""
    with open(path, "rb", buffering=0) as fifo:
        time.sleep(0.2)
        while piece := fifo.read(1000):
            received += piece
    [grep.wait() for grep in greps]
    return received


streams = {"grep --line-buffered": four_greps("--line-buffered"), "grep": four_greps()}

# %% [markdown]
# All bytes have arrived. But are they rows?

# %%
whole = set(rows)
for label, stream in streams.items():
    lines = stream.splitlines(keepends=True)
    torn = [line for line in lines if line not in whole]
    print(f"{label:22} {len(stream):,} bytes, {len(lines):,} lines, {len(torn)} of them torn")
print("for example:", torn[:2])

# %% [markdown]
# Which stretch came from whom? Each row tells by its month which `grep` has sent it; `?` is a line that nobody has sent. These
# are the 20,000 bytes of each in which they take turns most often:

# %%
from labkit.draw import liveliest, plot_strips


def sender_of(line):
    if line not in whole:
        return b"?"
    return b"ABCD"[(int(line.split(b",")[2]) - 1) // 3 :][:1]


strips = {
    label: b"".join(sender_of(line) * len(line) for line in stream.splitlines(keepends=True))
    for label, stream in streams.items()
}
plot_strips({label: liveliest(strip, 20_000) for label, strip in strips.items()})

# %% [markdown]
# The same program, the same data. With `--line-buffered` each row is one write(2), shorter than PIPE_BUF, and the kernel keeps
# it whole among however many senders. Without it, stdio writes blocks, each of which is whole as well, but ends in the middle
# of a row. **The rule for many senders: one message, one write, at most PIPE_BUF bytes.**
#
# ## Nobody there
#
# Not everybody has time to wait. With O_NONBLOCK open(2) says at once how things are:

# %%
import errno


def attempt(call, *arguments):
    try:
        return call(*arguments)
    except OSError as error:
        return f"{errno.errorcode[error.errno]}: {error.strerror}"


print("open for writing, nobody reads:   ", attempt(os.open, path, os.O_WRONLY | os.O_NONBLOCK))

reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
print("open for reading, nobody writes:   descriptor", reading)
print("read, no sender has come:         ", attempt(os.read, reading, 100))

writing = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
print("open for writing, somebody reads:  descriptor", writing)
print("read, a sender has nothing to say:", attempt(os.read, reading, 100))
for end in (writing, reading):
    os.close(end)

# %% [markdown]
# A writer without a reader is refused (ENXIO): where should its bytes go? A reader without a writer is let in and reads `b''`,
# the same as end of file. Only when a sender is there and silent does it get EAGAIN.
#
# ## What remains after death
#
# Somebody holds the FIFO open, and a message is in it. Then everybody who had it open is killed.

# %%
from labkit.holders import holders

holder = Popen(["sh", "-c", f"exec sleep 60 <> {path}"])  # <> opens for both, which on Linux never waits
while not holders(path):
    time.sleep(0.01)
run(["sh", "-c", f"echo 'The treasure is buried under the oak.' > {path}"])

looking = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
print("before:", os.read(looking, 13), "...")
os.close(looking)
holders(path)

# %% [markdown]
# The one who wrote it is gone already, and we have read the first words. The rest is in the kernel as long as somebody holds
# the FIFO.

# %%
holder.kill()  # kill -9
holder.wait()
print("who has it open:", holders(path))
print("the name:       ", "still there" if os.path.exists(path) else "gone")

looking = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
print("the rest:       ", os.read(looking, 100))
os.close(looking)

# %% [markdown]
# **The name stays, the data goes.** The name belongs to the file system and stays until somebody unlinks it, across reboots if
# the folder does. The bytes belong to the open pipe and go with its last user. A message that is to outlive everybody needs a
# message queue or a file.
#
# ## Who may
#
# A name needs a guard, and a FIFO has the one that files have: owner, group, permissions. First with a mode that forbids to
# read, then with one that allows it, a stranger tries to listen. (root may read everything: if that is who we are, the
# stranger is another user.)

# %%
os.chmod(folder, 0o711)
other = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
for mode in (0o222, 0o666):
    os.chmod(path, mode)
    listener = Popen(["head", "-c", "5", path], stdout=PIPE, stderr=PIPE, env={"LC_ALL": "C"}, **other)
    if mode & 0o444:
        run(["sh", "-c", f"echo hello > {path}"])
    out, complaint = listener.communicate()
    print(f"{oct(mode)}: heard {out}, {complaint.decode().strip() or 'no complaint'}")
os.chmod(path, 0o600)

# %% [markdown]
# mkfifo(3) makes it with the mode you give, less your umask. Mode 0600 is the right default, and what labkit does: yourself
# and nobody else.
#
# ## The same through a channel
#
# In labkit a name is one word, and lies in a private folder. Two programs, started like any other, both know the word
# `weather`. `sender` waits until somebody receives:

# %%
LISTENER = """
from labkit import receiver
with receiver("fifo", "weather", create=True) as rx:
    for number, row in enumerate(rx, 1):
        pass
print(number, "rows, the last from", row.split(b",")[-1].decode())
"""
SPEAKER = """
from labkit import sender
with sender("fifo", "weather", create=True) as tx:
    for row in open("../data/weather-jfk-2013.csv", "rb").read().splitlines()[1:]:
        tx.send(row)
"""
listener = Popen([sys.executable, "-c", LISTENER], stdout=PIPE)
speaker = Popen([sys.executable, "-c", SPEAKER])
print(listener.communicate()[0].decode(), end="")
print("exit statuses:", speaker.wait(), listener.wait())

# %% [markdown]
# Both have ended, the name is still there, as we have learnt. The one who knows that nobody will come any more removes it:

# %%
from labkit import unlink

unlink("fifo", "weather")

# %% [markdown]
# ## Watch
#
# Four stations, one collector. Each station sends its quarter's first rows, at its own pace:

# %%
from labkit import Trace, channel, launch, watch


def station(tx, rows, pause):
    for row in rows:
        tx.send(row.rstrip())
        time.sleep(pause)


def collect(rx):
    return sum(1 for _ in rx)


trace = Trace()
tx, rx = channel("fifo", trace=trace)
watch(trace)

collector = launch(collect, rx)
for number in range(4):
    start = number * len(rows) // 4
    launch(station, tx.clone(), rows[start : start + 60], 0.01 * (number + 1), name=f"station {number + 1}")
tx.close()
print(await collector, "rows")

# %% [markdown]
# The end came when the slowest station had closed: end of file needs every sender to go, also here. Who sent when?

# %%
from labkit.draw import plot_lines

messages, lines = trace.messages(), {}
first = messages["send_begins"].min()
for number, pid in enumerate(dict.fromkeys(messages["sender"].tolist()), 1):
    times = messages["receive_ends"][messages["sender"] == pid]
    lines[f"station {number}"] = [((time - first) / 1e6, count) for count, time in enumerate(times, 1)]
plot_lines(lines, "time (ms)", "rows received")

# %% [markdown]
# ## Measure
#
# What does the name cost? The same rows through a pipe and through a FIFO, each twice, at a pace that lets none of them wait
# in a queue:

# %%
race = Trace()
for kind in ("pipe", "fifo", "pipe", "fifo"):
    tx, rx = channel(kind, trace=race)
    collector = launch(collect, rx)
    launch(station, tx, rows[:1000], 0.0002)
    await collector
race.compare()

# %% [markdown]
# Do the two kinds differ more than two runs of the same kind? Once it is open, a FIFO *is* a pipe, the same code in the Linux
# kernel. The name is looked up once, at open(2).
#
# ## Break it: the host who goes home after the first guest
#
# A server reads lines from a FIFO and answers each. Two clients come, the second half a second after the first:

# %%
from subprocess import TimeoutExpired

SERVER = "while read -r line; do echo \"served: $line\"; done"
server = Popen(["sh", "-c", f"{SERVER} < {path}"], stdout=PIPE)
for guest in ("Mr Bingley", "Mr Darcy"):
    client = Popen(["sh", "-c", f"echo {guest} > {path}"])
    try:
        client.wait(timeout=1)
        print(f"{guest} was let in")
        time.sleep(0.5)
    except TimeoutExpired:
        print(f"{guest} stands at the door. The server: exit status {server.poll()}")
        client.kill(), client.wait()
print(server.communicate()[0].decode(), end="")

# %% [markdown]
# The first guest left, and with the last writer's close came end of file: the server thought that was all. (Had Mr Darcy come
# before Mr Bingley was quite gone, he would have been let in: a mistake that hides in tests.) The cure is as old as the trouble:
# **the server holds a writing end itself**, and so the last writer never leaves. In the shell `<>` opens for both:

# %%
server = Popen(["sh", "-c", f"{SERVER} <> {path}"], stdout=PIPE)
for guest in ("Mr Bingley", "Mr Darcy", "Mr Collins"):
    run(["sh", "-c", f"echo {guest} > {path}"], timeout=5)
    print(server.stdout.readline().decode(), end="")
print("still serving:", server.poll() is None)
server.kill()
rest = server.communicate()

# %% [markdown]
# ## Exercise 1: a server for guests who come and go
#
# Write `serve(path)`: it opens the FIFO at `path` and receives lines from clients who come and go, until one of them sends the
# line `stop`. It returns all lines before that as a list of bytes, without their `\n`. While nobody is there, it sleeps. Lines
# may come in pieces, and several at once.


# %%
def serve(path):
    ...  # your turn: os.open, os.read


# %%
from labkit.exercises.fifos import check_serve

check_serve(serve)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def serve(path):
#     with open(os.open(path, os.O_RDONLY), "rb") as fifo:
#         writing = os.open(path, os.O_WRONLY)   # our own: now there is no end of file, and read sleeps
#         lines = []
#         for line in fifo:                      # puts pieces together, and takes lines apart
#             if line == b"stop\n":
#                 break
#             lines.append(line.rstrip(b"\n"))
#         os.close(writing)
#         return lines
# ```
#
# The first `os.open` waits for the first client; the second does not wait, because we read. To open again after each end of
# file looks right too, but a client who comes between that end of file and your `close` loses its message.
# </details>
#
# ## Exercise 2: say it, if anybody listens
#
# Write `try_send(path, message)`: it sends `message` (bytes, at most PIPE_BUF of them) into the FIFO at `path` when that is
# possible **at once**, and returns `True`. It returns `False`, having sent nothing, when nobody listens, when the FIFO is
# full, or when there is no FIFO. It never waits, and makes nothing.


# %%
def try_send(path, message):
    ...  # your turn: os.open with O_NONBLOCK, os.write


# %%
from labkit.exercises.fifos import check_try_send

check_try_send(try_send)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def try_send(path, message):
#     try:
#         fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)   # ENXIO: nobody listens; ENOENT: no such name
#     except OSError:
#         return False
#     try:
#         os.write(fd, message)                             # EAGAIN: full; EPIPE: the reader has just left
#         return True
#     except OSError:
#         return False
#     finally:
#         os.close(fd)
# ```
#
# No more than PIPE_BUF bytes go in whole or not at all, so there is nothing to take back. Nor can you look first and open
# then: between the two the reader may leave. Try, and listen to what the kernel says.
# </details>
#
# ## Tidy up
#
# The name stays until somebody removes it, and that is us:

# %%
os.unlink(path)
os.rmdir(folder)

# %% [markdown]
# ## What we learnt
#
# - A FIFO is a pipe with a name: strangers meet at a path, guarded by the permissions of files.
# - Opening is a meeting: open(2) sleeps until both sides are there, or says ENXIO with O_NONBLOCK.
# - Many may send. Their messages stay whole when each is one write of at most PIPE_BUF bytes; look what your library's buffer does.
# - End of file comes when the last sender has gone, which for a server is every time. It keeps a writing end of its own.
# - The name outlives everybody until it is unlinked; the data goes with the last who has it open.
#
# **Manual pages:** fifo(7), mkfifo(1), mkfifo(3), open(2) (ENXIO, O_NONBLOCK), pipe(7), unlink(2), chmod(2).
# **Book:** M. Kerrisk, *The Linux Programming Interface*, chapters 44.7 to 44.10, and 43.
