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
# # Pipes: what is between `ls` and `grep`
#
# You type `ls | grep csv`. Neither program knows the other, and still what one prints is what the other reads. What is that
# thing between them? How much fits into it, and who may use it? How does `grep` know that `ls` has finished, and what happens
# to `ls` when `grep` leaves first?
#
# In this lab you build the line yourself, look at the bytes on their way, and let every one of its promises be kept and
# broken.

# %% [markdown]
# ## Two programs and a pipe
#
# pipe(2) gives two file descriptors: what is written into one can be read from the other. A program that is started inherits
# descriptors, and every program reads 0 and writes 1. So all it takes is to lay the right descriptor in the right place:

# %%
import os
from subprocess import PIPE, Popen

read_end, write_end = os.pipe()
ls = Popen(["ls", "../data"], stdout=write_end)
grep = Popen(["grep", "csv"], stdin=read_end, stdout=PIPE)
os.close(write_end)  # both ends are with the programs now; ours would only be in the way (we come to that)
os.close(read_end)

print("grep found:", grep.communicate()[0].decode(), end="")
print("exit statuses:", ls.wait(), grep.returncode)

# %% [markdown]
# ## The four calls of a shell
#
# `Popen` hides how. A shell does it with four system calls: pipe(2), fork(2) to have a process for each program, dup2(2) to
# make the pipe its standard output or input, and execve(2) to become the program. fork is not for a notebook, whose kernel has
# several threads, and so we do it in a process of our own that has one:

# %%
from labkit import launch


def shell():
    read_end, write_end = os.pipe()
    out_read, out_write = os.pipe()  # for what grep prints
    for program, standard, end in (
        (["ls", "../data"], 1, write_end),
        (["grep", "csv"], 0, read_end),
    ):
        if os.fork() == 0:  # the child: a copy of us
            os.dup2(end, standard)
            if standard == 0:
                os.dup2(out_write, 1)
            os.execvp(program[0], program)  # ... and now another program; the rest is closed
    os.close(write_end), os.close(read_end), os.close(out_write)
    found = os.read(out_read, 1000)
    return found.decode(), [os.wait()[1] for _ in range(2)]


found, statuses = await launch(shell)
print("grep found:", found, end="")
print("exit statuses:", statuses)

# %% [markdown]
# That is all there is to `|`. "The rest is closed" is Python's doing: its descriptors are *close-on-exec* unless dup2 or
# `pass_fds` says otherwise. In C you close them by hand, and whoever forgets one meets a hang that you will meet below.

# %% [markdown]
# ## Byte by byte
#
# To see what travels, we take the pipe apart and stand in the middle: `ls` writes to us, we note each read(2), and write the
# same bytes on to `grep`.

# %%
import time


def spy(first, second):
    begin, seen = time.monotonic(), []
    left = Popen(first, stdout=PIPE)
    right = Popen(second, stdin=PIPE, stdout=PIPE)
    while piece := os.read(left.stdout.fileno(), 1 << 16):
        seen.append((time.monotonic() - begin, piece))
        os.write(right.stdin.fileno(), piece)
    left.communicate()
    return seen, right.communicate()[0].decode()


seen, found = spy(["ls", "../data"], ["grep", "csv"])
for when, piece in seen:
    print(f"after {when * 1e3:.1f} ms, one read of {len(piece)} bytes:", piece)
print("grep found:", found, end="")

# %% [markdown]
# There are no lines in a pipe, no records, no objects: bytes, with `\n` as one of them. Here they are, each with its place in
# the stream:

# %%
stream = b"".join(piece for _, piece in seen)
for start in range(0, len(stream), 16):
    row = stream[start : start + 16]
    text = "".join(chr(byte) if 32 <= byte < 127 else "·" for byte in row)
    print(f"{start:4}  {row.hex(' '):47}  {text}")

# %% [markdown]
# `ls` wrote several lines, and one read took them all. Who put them together, the pipe or the program? Let us see with a
# source that gives a line every 20 ms, and with three programs that pass it on:

# %%
SOURCE = 'head -n 16 ../data/README.md | while read -r line; do echo "$line"; sleep 0.02; done | '
ways = {
    "tr": "tr a-z A-Z",
    "tr, told to write each line (stdbuf -oL)": "stdbuf -oL tr a-z A-Z",
    "dd, one byte at a time (bs=1)": "dd bs=1 status=none",
}
arrivals = {}
for label, program in ways.items():
    seen, _ = spy(["sh", "-c", SOURCE + program], ["cat"])
    arrivals[label], so_far = [(0, 0)], 0
    for when, piece in seen:
        so_far += len(piece)
        arrivals[label].append((when * 1e3, so_far))
    print(f"{label:42} {len(seen):5,} reads for {so_far:,} bytes")

# %%
from labkit.draw import plot_lines

plot_lines(arrivals, "time (ms)", "bytes arrived", style="steps")

# %% [markdown]
# It is the **program**. The C library (stdio, setvbuf(3)) collects what a program prints as long as it does not go to a
# terminal, and `tr` says nothing until it is done. The pipe itself hands on at once whatever it gets. `dd` wrote every byte by
# itself, and still there are far fewer reads than bytes: a read takes all that is there, and the pipe does not remember where
# one write ended and the next began. Whenever a pipeline seems to hang although its first program prints: this is why.
#
# ## How much fits in
#
# Nobody reads; we write until the kernel says *would block*:

# %%
import fcntl
import select


def fill(size):
    """Bytes that fit into an empty pipe in writes of this size."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)  # O_NONBLOCK: an error, EAGAIN, instead of waiting
    inside = 0
    try:
        while True:
            inside += os.write(write_end, bytes(size))
    except BlockingIOError:
        return inside
    finally:
        os.close(read_end), os.close(write_end)


read_end, write_end = os.pipe()
print(f"the kernel says  {fcntl.fcntl(write_end, fcntl.F_GETPIPE_SZ):,} bytes (F_GETPIPE_SZ)")
print(f"single bytes     {fill(1):,} fit")
print(f"writes of 2,049  {fill(2049):,} bytes fit")
for end in (read_end, write_end):
    os.close(end)

# %% [markdown]
# Half as much, for one byte more? Let us try all sizes:

# %%
sizes = range(16, select.PIPE_BUF + 1)
plot_lines({"": [(size, fill(size)) for size in sizes]}, "bytes in each write", "bytes that fit in")

# %% [markdown]
# The pipe is not one buffer but a ring of memory pages, 16 of them unless told otherwise. Linux keeps a small write together
# in one page. When the rest of a page is too small for the next write it stays empty, and the next page is begun: just above
# one half of a page, almost every second byte is wasted. (That is with pages of 4,096 bytes. Some ARM machines have larger
# ones, which many small writes share.) The number of pages can be changed, up to a limit:

# %%
from pathlib import Path

read_end, write_end = os.pipe()
limit = int(Path("/proc/sys/fs/pipe-max-size").read_text())
print(f"a page has {os.sysconf('SC_PAGE_SIZE'):,} bytes; the limit for a pipe is {limit:,} bytes")
for wish in (1, 10_000, limit, limit + 1):
    try:
        print(f"wish {wish:9,}: {fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, wish):9,} bytes")
    except PermissionError as error:
        print(f"wish {wish:9,}: {error}")

# %% [markdown]
# (root is not held to the limit, unless it is in a container that has taken CAP_SYS_RESOURCE from it.) And a program that does
# not ask for O_NONBLOCK? It **sleeps** until somebody reads. `yes` prints `y` for ever, as fast as it can, and here nobody
# reads:

# %%
import struct
import termios


def waiting(fd):
    """Bytes in the pipe: FIONREAD, pipe(7)."""
    return struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0]


def processor_time(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 65_536)
yes = Popen(["yes"], stdout=write_end)
for _ in range(3):
    time.sleep(0.1)
    state, seconds = processor_time(yes.pid)
    print(f"{waiting(read_end):,} bytes wait; yes: state {state}, {seconds:.2f} s of processor time")
yes.kill(), yes.wait()
for end in (read_end, write_end):
    os.close(end)

# %% [markdown]
# State `S` is sleeping, proc_pid_stat(5). This is **backpressure**, and it costs nothing: the faster program runs at the pace
# of the slower one, and a gigabyte can pass through a pipe that never holds more than these few pages.

# %% [markdown]
# ## Many writers
#
# May several processes write into the same pipe? Four of them do, each with a letter of its own. A second pipe, `ready`,
# through which not a byte goes, tells us when all are up: each writer closes its copy of it, and when the last one has, we see
# end of file. Then we let the pipe get full before we read, so that all four have to wait for room.

# %%
import sys

WRITER = """
import os, sys
letter, size = sys.argv[1].encode(), int(sys.argv[2])
os.close(2) # ready
for _ in range(300_000 // size):
    os.write(1, letter * size)
"""


def four_writers(size):
    data, ready = os.pipe(), os.pipe()
    program = [sys.executable, "-I", "-S", "-c", WRITER]
    writers = [Popen([*program, letter, str(size)], stdout=data[1], stderr=ready[1]) for letter in "ABCD"]
    os.close(data[1]), os.close(ready[1])
    os.read(ready[0], 1)
    time.sleep(0.05)
    received = b"".join(iter(lambda: os.read(data[0], 5_000), b""))
    os.close(data[0]), os.close(ready[0])
    [writer.wait() for writer in writers]
    return received


# %%
sizes = [500, 4_096, 20_000, 100_000]
streams = {size: four_writers(size) for size in sizes}

# %%
from labkit.draw import plot_strips, torn

for size, stream in streams.items():
    writes = len(stream) // size
    print(f"writes of {size:7,} bytes: {torn(stream, size):3} of {writes:5,} were mixed with others")
strips = {f"{size:,} bytes a write": stream for size, stream in streams.items()}
plot_strips(strips, sizes, window=(300_000, 600_000))

# %% [markdown]
# One colour is one writer; a black line is a place where a single write was cut and another writer came in between. Up to
# **PIPE_BUF** bytes a write is *atomic*: it goes in whole or waits. Beyond, the kernel puts in as much as there is room
# for, and whoever is quickest takes the next page. Where exactly is the border?

# %%
print("PIPE_BUF:", select.PIPE_BUF)
sizes = [256, 1024, 4095, 4096, 4097, 6000, 10_000, 30_000]
share = [(size, 100 * torn(stream := four_writers(size), size) / (len(stream) // size)) for size in sizes]
print(*(f"{size:,}: {part:.0f} %" for size, part in share), sep="   ")
plot_lines({"": share}, "bytes in each write", "writes cut (%)", log="x", style="dots")

# %% [markdown]
# Below it never happens, by promise: POSIX demands at least 512 bytes, pipe(7) says what Linux gives. Above, it *may* happen;
# how often depends on who runs when, and tomorrow it may be zero: that is what makes such mistakes hard to find. A log that
# several processes share through a pipe stays readable exactly as long as each line is one write of at most PIPE_BUF bytes.

# %% [markdown]
# ## Why only relatives
#
# A pipe has no name. All there is of it is a number, and that number means something to one process only: it is an index into
# that process's table of open files. Here is our table, as the kernel shows it, and that of a child to which we pass one end:

# %%
read_end, write_end = os.pipe()
child = Popen(["sleep", "60"], pass_fds=[write_end])
stranger = Popen(["sleep", "60"])
for who, pid in (("we", os.getpid()), ("child", child.pid), ("stranger", stranger.pid)):
    for fd in (read_end, write_end):
        link = f"/proc/{pid}/fd/{fd}"
        print(f"{who:9} descriptor {fd}: {os.readlink(link) if os.path.lexists(link) else 'not there'}")

# %% [markdown]
# The same number in square brackets is the same pipe. The stranger has been given nothing, and so its number leads nowhere:

# %%
from subprocess import run

program = f"import os; os.write({write_end}, b'hello')"
for who, ends in (("stranger", []), ("child", [write_end])):
    done = run([sys.executable, "-c", program], pass_fds=ends, capture_output=True, text=True)
    print(f"{who:9} exit status {done.returncode}  {done.stderr.strip().splitlines()[-1:]}")
print("in the pipe:", os.read(read_end, 100))
child.kill(), stranger.kill(), child.wait(), stranger.wait()
for end in (read_end, write_end):
    os.close(end)

# %% [markdown]
# So a descriptor has to be *inherited* from the process that made the pipe, or be *handed over* through a socket, which is
# what `launch` does (SCM_RIGHTS, unix(7)). When two programs share no ancestor who could arrange that, they need a name to
# meet at: that is a FIFO, and the next lab.
#
# ## The same through a channel
#
# `channel("pipe")` does what you did above: two ends, the lengths in front of the messages, non-blocking descriptors with a
# timeout, and the closing of copies. What travels is *Pride and Prejudice*, one line a message:

# %%
from labkit import channel, sender

novel = [line for line in Path("../data/pride-and-prejudice.txt").read_bytes().splitlines() if line]


def narrate(tx, lines, pause=0.0):
    for line in lines:
        tx.send(line)
        if pause:
            time.sleep(pause)


def listen(rx, pause=0.0):
    words = 0
    for line in rx:  # until every copy of the other end is closed
        words += len(line.split())
        if pause:
            time.sleep(pause)
    return words


tx, rx = channel("pipe")
listener, narrator = launch(listen, rx), launch(narrate, tx, novel)
print(f"{await listener:,} words in {len(novel):,} lines")

# %% [markdown]
# And it says so when you ask for what a pipe cannot do:

# %%
try:
    sender("pipe", "jane")
except ValueError as error:
    print(error)

# %% [markdown]
# ## Watch
#
# A slow listener behind a small pipe (one page), and a narrator who does not wait for anybody. Watch how the pipe fills up, and
# how from then on the narrator goes at the listener's pace:

# %%
from labkit import Trace, watch

trace = Trace()
tx, rx = channel("pipe", capacity=4096, trace=trace)
watch(trace)

listener, narrator = launch(listen, rx, 0.008), launch(narrate, tx, novel[:250])
print(await listener, "words")

# %% [markdown]
# How many lines had been sent, and how many received, at each moment? The distance between the two is what was in between:

# %%
messages = trace.messages()
first = messages["send_begins"][0]
counts = {}
for label, moments in (("sent", messages["send_ends"]), ("received", messages["receive_ends"])):
    counts[label] = [((moment - first) / 1e6, number) for number, moment in enumerate(sorted(moments), 1)]
plot_lines(counts, "time (ms)", "messages")

# %% [markdown]
# The listener goes on steadily, the narrator in leaps. That is how a byte stream is best received: one read(2) takes all that
# the pipe holds, and the lines are handed out one by one from the receiver's own memory. Meanwhile the narrator fills the empty
# pipe again, and sleeps until the next read.

# %% [markdown]
# ## Measure
#
# What does it cost to write in small pieces? Two processes, nothing but write(2) and read(2), and the bytes that come through
# in a second:


# %%
def pour(tx, size, total):
    os.set_blocking(tx.fileno(), True)
    piece = bytes(size)
    for _ in range(total // size):
        os.write(tx.fileno(), piece)


def drain(rx):
    os.set_blocking(rx.fileno(), True)
    amount, begin = len(os.read(rx.fileno(), 1 << 20)), time.monotonic()
    while piece := os.read(rx.fileno(), 1 << 20):
        amount += len(piece)
    return amount / (time.monotonic() - begin)


speeds = {}
for label, capacity in (("64 KiB pipe", 1 << 16), ("1 MiB pipe", 1 << 20)):
    speeds[label] = []
    for size in (1, 4, 16, 64, 256, 1024, 4096, 1 << 14, 1 << 16, 1 << 18, 1 << 20):
        tx, rx = channel("pipe", capacity=capacity)
        drained, _ = launch(drain, rx), launch(pour, tx, size, min(20_000 * size, 1 << 26))
        speeds[label].append((size, await drained / 1e6))

# %%
for label, points in speeds.items():
    size, speed = max(points, key=lambda point: point[1])
    print(f"{label:12} one byte a write: {points[0][1]:.2f} MB/s; {size:,} bytes: {speed:,.0f} MB/s")
plot_lines(speeds, "bytes in each write", "MB/s", log="xy", style="dots")

# %% [markdown]
# On the left the line is straight: a system call costs about the same for one byte as for a hundred, so a hundred times the
# bytes are almost a hundred times the speed. On the right copying takes over. That is why stdio collects before it writes.
#
# And messages? Which word does Jane Austen use most? Counting takes longer than narrating, so lines pile up in the pipe,
# and how many can is up to its size:

# %%
from collections import Counter


def favourite(rx):
    words = Counter()
    for line in rx:
        words.update(line.lower().split())
    return words.most_common(1)[0]


race = Trace()
for label, capacity in (("4 KiB", 4096), ("64 KiB", 1 << 16), ("1 MiB", 1 << 20)):
    tx, rx = channel("pipe", capacity=capacity, trace=race, label=label)
    listener, narrator = launch(favourite, rx), launch(narrate, tx, novel)
    print(label, await listener)
race.compare()

# %% [markdown]
# Every message waits for those in front of it: the larger the pipe, the further to the right its line. A large buffer evens
# out a producer that comes in bursts, and it saves wake-ups; it makes nobody's work faster, and the last message waits for
# longer.
#
# ## Break it: the end that never comes
#
# `wc` counts lines until end of file. We send it two, and wait for its answer:

# %%
from subprocess import TimeoutExpired

from labkit.holders import holders

read_end, write_end = os.pipe()
wc = Popen(["wc", "-l"], stdin=read_end, stdout=PIPE)
os.close(read_end)
witness = Popen(["sleep", "60"], pass_fds=[write_end])  # has nothing to do with it, and yet a copy
os.write(write_end, b"It is a truth\nuniversally acknowledged\n")
try:
    wc.wait(timeout=0.5)
except TimeoutExpired:
    print("wc has not answered for half a second. Who has this pipe open?")
holders(write_end)

# %% [markdown]
# Two still hold it for writing, so more could come, and `wc` does right to wait. **End of file is not something a writer
# sends; it is what the kernel says when no descriptor for writing is left.** We close ours:

# %%
os.close(write_end)
try:
    wc.wait(timeout=0.5)
except TimeoutExpired:
    print("wc still waits:")
holders(f"/proc/{wc.pid}/fd/0")

# %% [markdown]
# And the last copy is in a process that does not even know of it. This is how real pipelines hang: a child that was started in
# between, for something else, inherits the end and keeps it. (Python therefore makes descriptors close-on-exec; in C it is
# O_CLOEXEC and up to you.)

# %%
witness.kill()
witness.wait()
print("wc:", wc.communicate()[0].decode().strip(), "lines")

# %% [markdown]
# ## Break it: the reader has gone
#
# `head` takes three lines and leaves. `yes` would go on for ever. What stops it?

# %%
yes = Popen(["yes", "and so on"], stdout=PIPE)
head = Popen(["head", "-n", "3"], stdin=yes.stdout, stdout=PIPE)
yes.stdout.close()
print(head.communicate()[0].decode(), end="")
print(f"head ended with status {head.wait()}, yes with {yes.wait()}")

# %%
import signal

print("killed by", signal.Signals(-yes.returncode).name)
print("a shell would say", 128 - yes.returncode)

# %% [markdown]
# Writing into a pipe that nobody can read any more brings the signal SIGPIPE, and that kills. Good for `yes`, which would
# never look at an error. A program that wants to live ignores the signal, and gets the error EPIPE from write(2) instead.
# Python does that for itself:

# %%
read_end, write_end = os.pipe()
os.close(read_end)
try:
    os.write(write_end, b"is anybody there?")
except BrokenPipeError as error:
    print("in Python:", repr(error))
os.close(write_end)

yes = Popen(["yes"], stdout=PIPE, stderr=PIPE, restore_signals=False)  # SIGPIPE stays ignored
yes.stdout.close()
print("yes, with SIGPIPE ignored:", yes.communicate()[1].decode().strip())
print("its exit status:", yes.returncode)

# %% [markdown]
# Our channel says the same in its own word, `Closed`:

# %%
from labkit import Closed

tx, rx = channel("pipe")
rx.close()
try:
    tx.send(b"is anybody there?")
except Closed as error:
    print("Closed:", error)

# %% [markdown]
# ## Exercise 1: a pipeline of any length
#
# Write `pipeline(commands)`: it starts all commands (lists of strings, as for `Popen`) at the same time, connects each one's
# standard output with the next one's standard input, and returns what the last one prints, as bytes. It leaves no process and
# no open descriptor behind.


# %%
def pipeline(commands):
    ...  # your turn: os.pipe or stdout=PIPE, Popen, close


# %%
from labkit.exercises.pipes import check_pipeline

check_pipeline(pipeline)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def pipeline(commands):
#     running, source = [], None
#     for command in commands:
#         process = Popen(command, stdin=source, stdout=PIPE)
#         if source is not None:
#             source.close()          # the program has its own copy; ours would hide from it that the reader has gone
#         running.append(process)
#         source = process.stdout
#     with source:
#         output = source.read()      # until end of file
#     for process in running:
#         process.wait()
#     return output
# ```
#
# All run at the same time, so nothing has to fit into memory, and `yes | head -n 3` ends: `head` leaves, ours was the last
# other copy of the reading end and is closed, `yes` gets SIGPIPE.
# </details>
#
# ## Exercise 2: whole lines, few system calls
#
# Several processes write log lines into one pipe. Write `write_lines(lines, fd)`: it writes all `lines` (bytes, each with its
# `\n`, none longer than PIPE_BUF) to the descriptor `fd`, in order, so that **no line is ever torn**, and in as few writes as
# it can: a write(2) for each line would be correct, and slow, as you have measured.


# %%
def write_lines(lines, fd):
    ...  # your turn: os.write, select.PIPE_BUF


# %%
from labkit.exercises.pipes import check_write_lines

check_write_lines(write_lines, novel)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def write_lines(lines, fd):
#     batch = b""
#     for line in lines:
#         if len(batch) + len(line) > select.PIPE_BUF:
#             os.write(fd, batch)
#             batch = b""
#         batch += line
#     if batch:                       # the last one is not full
#         os.write(fd, batch)
# ```
#
# Each write is at most PIPE_BUF bytes, so it goes in whole, and it ends where a line ends.
# </details>
#
# ## What we learnt
#
# - A pipe is a stream of bytes in a few pages of the kernel's memory. It knows no lines; the lumps come from the programs' own buffers.
# - Full means that the writer sleeps, empty that the reader sleeps. Nobody has to look after their pace.
# - Writes of up to PIPE_BUF bytes stay whole whoever else writes; longer ones may be mixed.
# - End of file comes when the *last* copy of the writing end is closed, in whatever process it is. When a reader hangs, look who holds the pipe.
# - When the last reader has gone, a writer gets SIGPIPE, or EPIPE when it ignores that.
# - A pipe has no name: its descriptors are inherited or handed over.
#
# **Manual pages:** pipe(2), pipe(7), fork(2), dup2(2), execve(2), read(2), write(2), fcntl(2) (F_SETPIPE_SZ), setvbuf(3), signal(7),
# proc_pid_fd(5), stdbuf(1).
# **Book:** M. Kerrisk, *The Linux Programming Interface*, chapters 5, 13.2, 20, 24 to 27, and 44.1 to 44.6.
