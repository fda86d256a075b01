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
# # Signals and events: a tap on the shoulder
#
# All mechanisms so far wait until somebody looks: a message lies in a pipe until it is read. But how does a program learn what it
# has *not* asked for: that its child has died, that nobody reads its output any more, that it is to end now?
#
# The Linux kernel taps it on the shoulder: it sends a **signal**. In this lab processes are told things, lose some of what
# they are told, and talk to each other by nothing but taps. We install no handler in this notebook's own kernel, which Jupyter
# needs undisturbed: everything happens in processes of their own.

# %% [markdown]
# ## What the kernel tells about a death
#
# Five programs end, each in its own way. Their parent, that is us, gets SIGCHLD for each, and waitpid(2) says what has
# happened:

# %%
import signal
import subprocess
import sys

ENDINGS = {
    "returns": "pass",
    "exits with 3": "raise SystemExit(3)",
    "is asked to end": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "is killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "touches memory that is not there": "import ctypes; ctypes.string_at(1)",
}
for what, code in ENDINGS.items():
    status = subprocess.run([sys.executable, "-S", "-c", code]).returncode
    meaning = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    print(f"{what:35} {status:4}  {meaning}")

# %% [markdown]
# A process ends by itself, with a number of its choice, or by a signal, whose number Python shows as a negative one. Most signals
# end a process unless it has said otherwise; that is their *default action*, signal(7).
#
# ## What the kernel tells a writer
#
# `yes` writes the same line for ever. `head` reads one line and goes. Nobody has told `yes` to stop, and still:

# %%
yes = subprocess.Popen(["yes", "still there?"], stdout=subprocess.PIPE)
head = subprocess.Popen(["head", "-n", "1"], stdin=yes.stdout, stdout=subprocess.PIPE)
yes.stdout.close()  # only head reads now
print("head read:", head.communicate()[0].decode(), end="")
print("yes ended by", signal.Signals(-yes.wait()).name)

# %% [markdown]
# SIGPIPE: whoever writes into a pipe that nobody reads is ended, and so a whole pipeline ends from its back to its front. (Python
# itself ignores SIGPIPE and gets the error EPIPE instead, a `BrokenPipeError`.)
#
# ## A request and an order
#
# SIGTERM is a request: a process may catch it, tidy up, and go. SIGKILL is an order to the kernel, and the process
# never hears of it. This one catches all that it can:

# %%
from labkit import RemoteError, channel, launch


def stubborn(tx):
    refused = []
    for number in signal.valid_signals():
        try:
            signal.signal(number, lambda number, frame: tx.send(signal.Signals(number).name.encode()))
        except OSError:  # EINVAL
            refused.append(signal.Signals(number).name)
    tx.send(f"cannot be caught: {', '.join(sorted(refused))}".encode())
    while True:
        signal.pause()


# %%
tx, rx = channel("pipe")
job = launch(stubborn, tx)
print(rx.receive().decode())
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    job.kill(number)
    print("it was told:", rx.receive().decode(), "and is", job.status)
job.kill(signal.SIGKILL)
try:
    job.wait()
except RemoteError as error:
    print(error)
rx.close()

# %% [markdown]
# ## Waiting for a death without a signal
#
# SIGCHLD comes to parents only, and to the whole process. A **pidfd**, pidfd_open(2), is a descriptor of a process, child or not,
# ours or another user's: poll(2) says when it ends, together with whatever else is being waited for, and it never means another
# process that has got the same number later.

# %%
import os
import select
import time

sleeper = subprocess.Popen(["sleep", "0.2"])
pidfd = os.pidfd_open(sleeper.pid)
poll = select.poll()
poll.register(pidfd, select.POLLIN)
print("at once:         ", "it has ended" if poll.poll(0) else "it runs")
begun = time.monotonic()
poll.poll()
print(f"after {time.monotonic() - begun:.1f} seconds:", "it has ended, with status", sleeper.wait())
os.close(pidfd)

# %% [markdown]
# ## Ordinary signals merge
#
# Can one count with signals? A process **blocks** a signal: it is not disturbed, and the signal stays *pending* until it has
# time. We send it SIGUSR1 many times, and as often a **real-time signal**. When we have done, it takes what is pending:

# %%
TAKES = """
import signal
numbers = signal.SIGUSR1, signal.SIGRTMIN
signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
print("blocked", flush=True)
input()
taken = {number: 0 for number in numbers}
while information := signal.sigtimedwait(numbers, 0):
    taken[information.si_signo] += 1
print(*taken.values())
"""


def python(code):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], **pipes)


# %%
NUMBERS = signal.SIGUSR1, signal.SIGRTMIN


def send_many(count):
    process = python(TAKES)
    process.stdout.readline()
    for _ in range(count):
        for number in NUMBERS:
            process.send_signal(number)
    return [int(number) for number in process.communicate("go\n")[0].split()]


# %%
counts = [1, 10, 100, 1000]
arrived = [send_many(count) for count in counts]
usual, queued = arrived[-1]
print(f"of {counts[-1]} SIGUSR1 arrived: {usual}, of {counts[-1]} real-time signals: {queued}")

# %%
from labkit.draw import plot_lines

lines = {"SIGUSR1": [], "a real-time signal": []}
for count, taken in zip(counts, arrived, strict=True):
    for line, number in zip(lines.values(), taken, strict=True):
        line.append((count, number))
plot_lines(lines, "signals sent", "signals received", log="xy", style="dots")

# %% [markdown]
# **A pending ordinary signal is one bit.** Sending it again changes nothing: SIGCHLD says *some* children have died, never how
# many. Real-time signals (SIGRTMIN to SIGRTMAX) are **queued**: as many arrive as were sent.
#
# ## A signal with a payload
#
# And they carry something: sigqueue(3) takes a number or a pointer, eight bytes, along. The receiver need not be interrupted
# to get them: **signalfd**(2) makes a descriptor from which signals are read like any data. This is all by hand, with the C
# library's own functions:

# %%
READS = """
import os, signal
from labkit.libc import ffi, libc
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
wanted = ffi.new("sigset_t *")
libc.sigemptyset(wanted)
libc.sigaddset(wanted, signal.SIGRTMIN)
fd = libc.signalfd(-1, wanted, 0)
print("blocked", flush=True)
payload = None
while payload != 0:
    record = os.read(fd, 128)  # a struct signalfd_siginfo
    sender = int.from_bytes(record[12:16], "little")  # ssi_pid
    payload = int.from_bytes(record[48:56], "little")  # ssi_ptr
    print(sender, payload)
"""

# %%
from labkit.libc import libc

process = python(READS)
process.stdout.readline()
sent = [*range(1000, 0, -1), 0]
for payload in sent:
    libc.sigqueue(process.pid, signal.SIGRTMIN, payload)
records = [line.split() for line in process.communicate()[0].splitlines()]
in_order = [int(payload) for _, payload in records] == sent
print(f"{len(records)} signals, in the order in which they were sent: {in_order}")
print("their sender:", *{sender for sender, _ in records}, "and we are", os.getpid())

# %% [markdown]
# These two programs have a single **thread**, on purpose. A signal to a process goes to any thread that does not block it, so
# that in a program with several all of them have to.
#
# ## The same through a channel
#
# Eight bytes, in order, none lost, and the sender's number with each: that is enough to carry messages. `channel("signal")`
# cuts a message into pieces of seven bytes, each with a byte of description in front, and puts them together again. Here is
# how *Pride and Prejudice* begins, tapped on a shoulder:

# %%
from labkit import Trace, watch


SENTENCE = "It is a truth universally acknowledged, that a single man in possession"


def says(tx):
    for word in SENTENCE.split():
        tx.send(word.encode())
        time.sleep(0.02)


def hears(rx):
    return b" ".join(rx).decode()


trace = Trace()
tx, rx = channel("signal", trace=trace)
watch(trace)
listening = launch(hears, rx)
speaking = launch(says, tx)
print(await listening)

# %% [markdown]
# ## Measure
#
# What does it cost? The weather of JFK airport, a year of it, record by record, against a pipe and a message queue:

# %%
from pathlib import Path

rows = Path("../data/weather-jfk-2013.csv").read_bytes().splitlines()[1:]


def produce(tx, rows):
    for row in rows:
        tx.send(row)


def consume(rx):
    return sum(1 for message in rx)


race = Trace()
for kind in ("pipe", "posix_mq", "signal"):
    tx, rx = channel(kind, trace=race)
    listening = launch(consume, rx)
    launch(produce, tx, rows)
    print(f"{kind:10} {await listening:,} messages")
race.compare()

# %%
pieces = sum(-(-(len(row) + 8) // 7) for row in rows)
rate = {t.label: t.messages_per_second for t in race.compare().throughputs}
print(f"{len(rows):,} records were {pieces:,} signals, {pieces / len(rows):.0f} each (8 bytes for the trace).")
print(f"The pipe carried {rate['pipe'] / rate['signal']:.1f} times as many records a second.")

# %% [markdown]
# Signals are for telling *that* something happened. Whoever has something to say uses a channel made for it.
#
# ## Break it: the queue is full
#
# Queued signals are kept in the kernel's memory, so there is a limit on them, for all processes of a user together:
# RLIMIT_SIGPENDING. We lower it to 100 for a process that does not listen (a few may be taken by other programs of ours):

# %%
import resource


def deaf(rx, ready):
    resource.setrlimit(resource.RLIMIT_SIGPENDING, (100, 100))
    ready.send(b"here")
    time.sleep(60)


tx, rx = channel("signal")
ready, is_ready = channel("pipe")
job = launch(deaf, rx, ready)
is_ready.receive()
sent = 0
try:
    while True:
        tx.send(b"hello?", timeout=0)
        sent += 1
except TimeoutError as error:
    print(f"after {sent} signals: {error}")
job.kill()
tx.close()

# %% [markdown]
# ## Break it: the wrong address
#
# A signal goes to a *number*. What if that process does not expect it? The default action of a real-time signal is the same as
# that of most others:

# %%
innocent = subprocess.Popen(["sleep", "60"])
libc.sigqueue(innocent.pid, signal.SIGRTMIN, 42)
print("sleep ended with", innocent.wait(10), "which is minus the number of the signal:", int(signal.SIGRTMIN))

# %% [markdown]
# Process numbers are used again, and a tap meant for a friend kills a stranger. `channel("signal")` therefore sends through
# a pidfd, and compares the time at which the process was started.
#
# ## Why handlers may do so little
#
# A handler runs *in the middle of something*. Here somebody counts: reads the total, adds one, writes it back. A timer interrupts
# it over and over, and the handler counts too, in the same variable:

# %%
COUNTS = """
import signal, time
total = handled = counted = 0
def plus_one(value):
    return value + 1
def on_alarm(number, frame):
    global total, handled
    total, handled = total + 1, handled + 1
signal.signal(signal.SIGALRM, on_alarm)
signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
end = time.monotonic() + 0.5
while time.monotonic() < end:
    BEFORE
    total = plus_one(total)  # read, add, write: not one step
    AFTER
    counted += 1
signal.setitimer(signal.ITIMER_REAL, 0)
print(counted, handled, total)
"""

# %%
block = "signal.pthread_sigmask(signal.SIG_{}BLOCK, [signal.SIGALRM])".format
for before, after in (("pass", "pass"), (block(""), block("UN"))):
    process = python(COUNTS.replace("BEFORE", before).replace("AFTER", after))
    counted, handled, total = map(int, process.communicate()[0].split())
    lost = counted + handled - total
    how = "at any moment" if before == "pass" else "blocked meanwhile"
    print(f"{how:17}: counted {counted:,}, in the handler {handled:,}, total {total:,}: {lost:,} lost")

# %% [markdown]
# Each lost one is a handler that came between reading and writing: its own addition was overwritten. With the signal **blocked**
# meanwhile none is lost.
#
# In C it is worse: a handler that calls printf(3) or malloc(3) while the program is inside of the same function finds
# its data half-changed, or waits for a lock that the interrupted code holds, for ever. signal-safety(7) lists the few functions
# that are allowed. A handler should set a flag, or write one byte, and nothing else.
#
# ## When Python runs a handler
#
# Python protects you from the worst: the real handler only sets a flag, and your function is called later, in the main thread,
# between two steps of the interpreter. *How* late? An alarm is set for 50 ms from now, and the main thread is busy in one long
# step:

# %%
def late(busy):
    heard = []
    signal.signal(signal.SIGALRM, lambda *_: heard.append(time.monotonic()))
    begun = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    if busy:
        sum(range(20_000_000))  # one call, all in C
    else:
        time.sleep(0.2)
    return heard[0] - begun


for busy in (False, True):
    print(f"{'in one long call of C' if busy else 'asleep':22}: called after {await launch(late, busy) * 1e3:.0f} ms")

# %% [markdown]
# ## The self-pipe trick
#
# How does an event loop, which sleeps in poll(2), learn of signals, without doing anything in a handler? The handler writes
# one byte into a pipe, and the loop polls the other end like any other descriptor. Python has it built in:

# %%
def loop(rx, ready):
    listen, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.set_wakeup_fd(wake)  # the C handler writes the signal's number here
    ready.send(b"ready")
    poll, happened = select.poll(), []
    for fd in (listen, rx.fileno()):
        poll.register(fd, select.POLLIN)
    while len(happened) < 3:
        for fd, _ in poll.poll():
            what = signal.Signals(os.read(listen, 1)[0]).name if fd == listen else rx.receive().decode()
            happened.append(what)
    return happened


# %%
(tx, rx), (ready, is_ready) = channel("pipe"), channel("pipe")
job = launch(loop, rx, ready)
is_ready.receive()
tx.send(b"a message")
time.sleep(0.1)
job.kill(signal.SIGUSR1)
time.sleep(0.1)
tx.send(b"another message")
print("one loop, two sources:", await job)
tx.close()

# %% [markdown]
# `asyncio` does the same in `loop.add_signal_handler`, and so does this very notebook's kernel.
#
# ## eventfd: the tap as a descriptor
#
# Two processes of yours that only want to say "there is something" need no signals. An **eventfd**(2) is a number in the kernel
# with a descriptor: notify adds to it, wait takes it all and sleeps at 0. It merges like an ordinary signal, but it counts.

# %%
from labkit.sync import Eventfd

bell = Eventfd()
for _ in range(3):
    bell.notify()
print("rung three times, heard once, and told:", bell.wait())


def rings(bell):
    for _ in range(1000):
        bell.notify()


await launch(rings, bell)
print("rung by another process:", bell.wait())
bell.close()

# %% [markdown]
# ## Exercise: a graceful end
#
# Write `serve(rx, work)`: it calls `work(message)` for every message of `rx` until the sender has closed. When SIGTERM comes, it
# finishes the message in hand, takes no other, and returns, also when it was just waiting for one.


# %%
def serve(rx, work):
    ...  # your turn


# %%
from labkit.exercises.signals import check_shutdown

check_shutdown(serve)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# from labkit import Closed
#
# def serve(rx, work):
#     stop = []
#     signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
#     while not stop:
#         try:
#             work(rx.receive(timeout=0.1))
#         except TimeoutError:
#             pass
#         except Closed:
#             return
# ```
#
# The handler only makes a note. After a handler Python goes on waiting by itself (PEP 475), hence the timeout: nobody would
# look at the note otherwise. An event loop would use the self-pipe trick instead.
# </details>
#
# ## Exercise: all children
#
# Write `collect(start)`: `start()` starts some children and returns their pids. Return a dictionary of all of them, pid to exit
# status (negative: the signal that killed it), when all have ended. They end at the same moment.


# %%
def collect(start):
    ...  # your turn


# %%
from labkit.exercises.signals import check_collect

check_collect(collect)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def collect(start):
#     found = {}
#
#     def reap(*_):
#         try:
#             while True:
#                 pid, status = os.waitpid(-1, os.WNOHANG)
#                 if pid == 0:
#                     return  # the others still run
#                 found[pid] = os.waitstatus_to_exitcode(status)
#         except ChildProcessError:
#             return  # none is left
#
#     signal.signal(signal.SIGCHLD, reap)
#     pids = start()
#     while len(found) < len(pids):
#         time.sleep(0.01)
#     return found
# ```
#
# One SIGCHLD may stand for many deaths, hence the loop. Where nothing else is to be done meanwhile, no signal is needed:
# `{pid: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in start()}`.
# </details>
#
# ## What we learnt
#
# - A signal says that something has happened: a child has died (SIGCHLD), nobody reads (SIGPIPE), you are to end (SIGTERM). Its
#   default action is mostly the end of the process; SIGKILL and SIGSTOP cannot be caught.
# - Ordinary signals merge: one pending bit each. Real-time signals queue, in order, with a payload of eight bytes, up to
#   RLIMIT_SIGPENDING.
# - A handler runs in the middle of something. It sets a flag or writes a byte; all else is done later, by a loop.
# - Better than being interrupted is to be asked: signalfd, pidfd, eventfd and the self-pipe turn events into descriptors
#   that poll(2) waits for.
#
# **Manual pages:** signal(7), sigaction(2), sigprocmask(2), kill(2), sigqueue(3), rt_sigqueueinfo(2), signalfd(2), pidfd_open(2),
# pidfd_send_signal(2), waitpid(2), eventfd(2), signal-safety(7), getrlimit(2), pipe(7).
# **Book:** M. Kerrisk, *The Linux Programming Interface*, chapters 20, 21, 22, 26 and 63.
