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
# # Electron's IPC: one main process, and windows that may do nothing
#
# An editor, a chat program, a password manager: many desktop programs are Electron underneath. A **main** process owns files, menus
# and windows. Each window is a **renderer**, a browser page in a process of its own, which may touch nothing of the machine. What
# it wants, it has to ask main for. How do they talk, and what does it cost?
#
# Here *main is this Python kernel*. The renderer is a window in the notebook, a sandboxed frame in the output of a cell; where nobody
# looks, in a report or on CI, it is a Node process without a display. Its HTML and JavaScript are in the folder `electron`, as an
# Electron programmer writes them, and run in Electron unchanged.
#
# | in the page: `ipcRenderer` | in main | the answer |
# |---|---|---|
# | `send(channel, ...args)` | `ipc_main.on(channel, listener)` | none, or `event.reply(...)`, a message of its own |
# | `invoke(channel, ...args)` | `ipc_main.handle(channel, handler)` | a promise: what the handler returns, or its error |
# | `on(channel, listener)` | `window.web_contents.send(channel, ...args)` | none |
# | `sendSync(channel, ...args)` | `ipc_main.on`, `event.return_value = ...` | the page stands still until it is there |
# | `port.postMessage(message)` | `MessageChannelMain`, `port.on("message", ...)` | a channel of its own |
#
# **Channel** is Electron's word for the name on a message, what others call a topic. All channels of a window share one link.

# %%
import logging

from labkit import Trace, watch
from labkit.electron import BrowserWindow, ipc_main

said = []  # what main logs, here instead of in red
logging.getLogger("labkit.electron").addFilter(lambda record: said.append(record.getMessage()))

# %% [markdown]
# ## The page, and what stands between it and us
#
# The page's script knows nothing of Electron. All it has is `window.api`, four functions, each for one message. They come from the
# **preload** script, which runs before the page, in a world of its own:

# %%
from IPython.display import Code

Code("electron/preload.js")

# %%
Code("electron/renderer.js")

# %% [markdown]
# Main opens the window. A trace records its messages like those of any channel; `await window.load_file(...)` ends when the page has loaded.

# %%
trace = Trace()
watch(trace)

# %%
preferences = {"preload": "electron/preload.js"}
window = BrowserWindow(title="The main window", web_preferences=preferences, trace=trace)
await window.load_file("electron/index.html")

# %% [markdown]
# ## Scenario 1: the page sends, and main opens a window
#
# Until main listens, what the page sends goes nowhere, silently. This is main's side. The listener gets an event, which says who has
# sent, and the arguments: *copies* of what the page had. `web_contents.send` may come before the page has loaded: it waits.

# %%
opened = []


def open_new_window(event, data):
    new = BrowserWindow(title=data["title"], web_preferences=preferences, trace=trace)
    new.load_file("electron/new-window.html")
    new.web_contents.send("window-data", data)
    opened.append(new)


ipc_main.on("open-new-window", open_new_window)
print("main listens on", ipc_main.event_names()[1:])

# %% [markdown]
# **Click "Open a new window"** above, as often as you like. So that this also works where nobody clicks, the cell clicks once, and
# then asks the new window what it shows:


# %%
def click(button, window=window):
    return window.web_contents.execute_java_script(f"document.getElementById('{button}').click()")


def shows(text, window=window):
    """The text of an element of the page, as soon as there is one with `text` in it."""
    return window.web_contents.execute_java_script(f"""new Promise(function look(done) {{
        const all = [...document.querySelectorAll('h1, p, li')].map((each) => each.textContent);
        const found = all.findLast((each) => each.includes({text!r}));
        found ? done(found) : setTimeout(look, 10, done);
    }})""")


await click("open")
print(await shows("asked for"), "→", await shows("opened by", opened[0]))

# %% [markdown]
# The date in the message crossed twice, from page to main and from main to page, and was a `Date`, then a Python `datetime`, then a
# `Date` again: that is *structured clone*, more of it below. And this is main.js, the same main in JavaScript, with which this folder
# runs in Electron:

# %%
Code("electron/main.js")

# %% [markdown]
# ## Scenario 2: the page asks, and main reads a file
#
# `invoke` gives the page a promise. Whatever the handler returns fulfils it; plain functions and `async` ones will do.

# %%
from pathlib import Path


def read_file(event, name):
    return Path(name).read_text(encoding="utf-8")


ipc_main.handle("read-file", read_file)

# %%
await click("read")
print(await shows("read 6"))

# %% [markdown]
# **Click "Read it"**, and put another name into the field. A file that does not exist is an exception in the handler; the promise is
# rejected, and the page's `catch` sees an error. Only its text crosses, in Electron's words; the traceback stays in main, in its log.

# %%
await window.web_contents.execute_java_script("document.getElementById('name').value = 'no-such-file.txt'")
await click("read")
print("the page:  ", await shows("ENOENT"))
print("main's log:", said.pop())

# %% [markdown]
# This handler reads *any* file that a page names. It is the hole that the next lab closes.
#
# ## Scenario 3: main speaks first
#
# Nobody has asked: after five seconds main sends a message, and the page shows it. Meanwhile nothing waits.

# %%
import asyncio


async def remind():
    await asyncio.sleep(5)
    window.web_contents.send("show-notification", {"title": "Five seconds", "body": "have passed"})


reminder = asyncio.create_task(remind())

# %%
await reminder
print(await shows("have passed"))

# %% [markdown]
# ## What has crossed
#
# The whole conversation, an arrow a message. An `invoke` is two of them, there and back; a `send` is one. The file of scenario 2 is
# the large one.

# %%
watch(trace, view="sequence")

# %%
trace.latency()

# %% [markdown]
# ## Several windows, and who gets the answer
#
# To try things out we take windows that nobody needs to see, Node processes, in which the page itself may `require('electron')`,
# as everybody did before 2020. (The next lab is about why nobody does any more.)

# %%
OLD_WAYS = {"contextIsolation": False, "nodeIntegration": True}


async def playground():
    window = BrowserWindow(web_preferences=OLD_WAYS, transport="node")
    await window.load_file("electron/playground.html")
    return window, window.web_contents.execute_java_script


(first, js1), (second, js2) = await playground(), await playground()
print("pids:", first.web_contents.get_os_process_id(), second.web_contents.get_os_process_id())

# %% [markdown]
# `event.reply` sends to the page that has sent, whichever that is; `web_contents.send` to the window that you name; for all windows
# there is a loop. Each page asks who it is:

# %%
ipc_main.on("who-am-i", lambda event: event.reply("you-are", f"window {event.sender.id}"))

ASK = """new Promise((done) => {
    ipcRenderer.once('you-are', (event, name) => done(name));
    ipcRenderer.send('who-am-i');
})"""
print(await js1(ASK), "and", await js2(ASK))

# %% [markdown]
# ## Listeners that nobody removes
#
# A page that listens each time it is shown, and never stops, works for ten times as many listeners after ten times. Nothing fails; it
# gets slower, and what the listeners refer to is never freed. `leak.js` has both ways:

# %%
Code("electron/leak.js")

# %%
for show in ("showLeaky", "showTidy"):
    await js1(f"ipcRenderer.removeAllListeners('price'); painted = 0; showTenTimes({show})")
    first.web_contents.send("price", 42)
    listeners, painted = await js1("[ipcRenderer.listenerCount('price'), painted]")
    print(f"{show:10} shown ten times, visible once: {listeners:2} listeners; one message was painted {painted} times")

# %% [markdown]
# `removeListener` wants the *same function*. The one that was registered is the arrow that wraps the callback, not the callback: who
# removes the callback removes nothing, silently.
#
# ## send or invoke? Measured
#
# How many round trips are there a second, one after the other and all at once, and how many messages when nobody answers?

# %%
ipc_main.handle("echo", lambda event, value: value)

alone = await js1("measure('echo', 1000)")
print(f"invoke, one by one:  {alone['alone']:8,.0f} a second, p50 {alone['p50']:.3f} ms, p99 {alone['p99']:.3f} ms")
print(f"invoke, all at once: {alone['atOnce']:8,.0f} a second")

counted = []
ipc_main.on("count", lambda event, n: counted.append(n))
ms = await js1("""(async () => {
    const begin = performance.now();
    for (let i = 0; i < 10000; i++) ipcRenderer.send('count', i);
    await ipcRenderer.invoke('echo', 0);  // behind all of them: when it is answered, they have been received
    return performance.now() - begin;
})()""")
print(f"send:                {len(counted) / ms * 1000:8,.0f} a second")

# %% [markdown]
# One by one, an `invoke` mostly waits: for the other process to be woken, twice. All at once, the waits overlap. So do not ask for a
# thousand things one by one. Where does the time of one round trip go? The same size over a bare Unix socket to cat(1) and back,
# and the cost of making bytes of the values:

# %%
import socket
import subprocess
from timeit import repeat

from labkit.electron.clone import decode, encode

ours, theirs = socket.socketpair()
cat = subprocess.Popen(["cat"], stdin=theirs, stdout=theirs)  # a process that sends back what it gets
theirs.close()


def ask():
    ours.send(b"x" * 40)
    return ours.recv(40)


bare = sorted(repeat(ask, number=1, repeat=1000))[500]
ours.close()
cat.wait()
clone = min(repeat(lambda: decode(encode(["echo", 1])), number=1000, repeat=5)) / 1000
print(f"a Unix socket there and back: {bare * 1e3:.3f} ms; clone, both ways: {2 * clone * 1e3:.3f} ms")
print(f"the rest of {alone['p50']:.3f} ms: two event loops, which find out whose message it is and whom to call")

# %% [markdown]
# In a window in the notebook the same takes much longer, since every message goes through Jupyter: the kernel, ZeroMQ, the
# server, a websocket, the page around the frame, the frame. Headless this is a Node window once more:

# %%
here = BrowserWindow(title="Playground", web_preferences=OLD_WAYS)
await here.load_file("electron/playground.html")
found = await here.web_contents.execute_java_script("measure('echo', 100)")
print(f"a window here: p50 {found['p50']:.2f} ms one by one, {found['atOnce']:,.0f} a second all at once")
here.close()

# %% [markdown]
# ## sendSync, and why it blocks
#
# `sendSync` returns the answer itself. So the page's only thread sits in read(2) until main has answered: no timer, no click, no paint.
# A clock in the page counts its ticks, once while an answer that takes half a second is awaited, and once while it is blocked for:


# %%
async def slow(event, *_):
    await asyncio.sleep(0.5)
    event.return_value = "done"


async def slow_too(event):
    await asyncio.sleep(0.5)
    return "done"


ipc_main.on("slow", slow)
ipc_main.handle("slow", slow_too)
for ask in ("await ipcRenderer.invoke('slow')", "ipcRenderer.sendSync('slow')"):
    ticks, value = await js1(f"""(async () => {{
        let ticks = 0;
        const clock = setInterval(() => ticks++, 10);
        const value = {ask};
        const counted = ticks;
        clearInterval(clock);
        return [counted, value];
    }})()""")
    print(f"{ask:34} {value!r}; the page's clock ticked {ticks} times")

# %% [markdown]
# In a window in the notebook there is no `sendSync`: a frame cannot wait for a kernel, and says so. Electron's documentation advises
# against it as well.
#
# ## In which order?
#
# Whatever one page sends arrives in the order in which it was sent, over all channels, `send` and `invoke` mixed. *Answers* come when they
# are ready: handlers do not wait for each other.

# %%
arrived = []
ipc_main.on("a", lambda event, n: arrived.append(n))
ipc_main.on("b", lambda event, n: arrived.append(n))
ipc_main.handle("c", lambda event, n: arrived.append(n))
await js1("""(async () => {
    let last;
    for (let i = 0; i < 300; i += 3) {
        ipcRenderer.send('a', i);
        ipcRenderer.send('b', i + 1);
        last = ipcRenderer.invoke('c', i + 2);
    }
    await last;
})()""")
print("in order over three channels:", arrived == list(range(300)))


# %%
async def takes(event, seconds):
    await asyncio.sleep(seconds)
    return seconds


ipc_main.handle("takes", takes)
print("answers as they come:", await js1("""(async () => {
    const came = [];
    await Promise.all([0.3, 0.1, 0.2].map((s) => ipcRenderer.invoke('takes', s).then((s) => came.push(s))));
    return came;
})()"""))

# %% [markdown]
# Between two windows there is no order at all. And a handler that does not `await` but works, or sleeps, holds up *everybody*: main has
# one thread, in Electron as here.
#
# ## What can cross
#
# Arguments and results are copied by **structured clone**: more than JSON, less than pickle. No reference crosses, and no code.

# %%
print(await js1("""(async () => {
    const same = { name: 'shared' };
    const value = { nan: NaN, nothing: undefined, big: 2n ** 70n, when: new Date(0), map: new Map([[1, same]]), same };
    const back = await ipcRenderer.invoke('echo', value);
    return [back, 'one object still: ' + (back.map.get(1) === back.same)];
})()"""))
print(encode({"text": "å", "n": 1}))

# %%
for value in ("() => 1", "document.body", "new Proxy({}, {})", "Symbol()"):
    print(f"{value:18}", await js1(f"ipcRenderer.invoke('echo', {value}).catch((error) => error.message)"))

# %% [markdown]
# ## Ports: a line of one's own
#
# A `MessageChannelMain` has two ports. A port can be sent, like a file descriptor over a Unix socket (lab 06): main makes the two
# ends of a line and gives each window one. From then on the windows talk to each other, and no listener of main is in between.

# %%
from labkit.electron import MessageChannelMain

line = MessageChannelMain()
GET = """new Promise((got) => ipcRenderer.once('port', (event) => {
    globalThis.port = event.ports[0];
    port.onmessage = (message) => heard.push(message.data);
    got();
})); globalThis.heard = [];"""
for contents, port in ((first.web_contents, line.port1), (second.web_contents, line.port2)):
    await contents.execute_java_script(GET.replace("new Promise", "globalThis.gets = new Promise"))
    contents.post_message("port", None, [port])
    await contents.execute_java_script("gets")

await js1("for (const word of ['over', 'a', 'port']) port.postMessage(word)")
print(await js2("new Promise(function look(done) { heard.length == 3 ? done(heard) : setTimeout(look, 10, done); })"))

# %% [markdown]
# ## Break it
#
# What does the page see when there is no handler, when a handler raises, when it returns what cannot cross?

# %%
ipc_main.handle("divides", lambda event, n: 1 / n)
ipc_main.handle("a-lambda", lambda event: lambda: 1)
for ask in ("'nobody'", "'divides', 0", "'a-lambda'"):
    print(await js1(f"ipcRenderer.invoke({ask}).catch((error) => error.message)"))

# %% [markdown]
# A renderer that dies takes nothing with it but its page. Main is told, and its other windows do not notice:

# %%
import os
import signal

loop = asyncio.get_running_loop()
gone = loop.create_future()
second.web_contents.on("render-process-gone", lambda event, details: loop.call_soon_threadsafe(gone.set_result, details))
os.kill(second.web_contents.get_os_process_id(), signal.SIGKILL)
print((await gone)["reason"], "- and the first window:", await js1("ipcRenderer.invoke('echo', 'still here')"))

# %% [markdown]
# And a window that is closed while main works for it: the handler runs to its end, and its result goes nowhere.

# %%
finished = asyncio.Event()


async def works(event):
    await asyncio.sleep(0.2)
    loop.call_soon_threadsafe(finished.set)
    return "nobody will hear of this"


ipc_main.handle("works", works)
await js1("ipcRenderer.invoke('works'); 1")
first.close()
await finished.wait()
print("the window is", first, "and the handler has finished")

# %% [markdown]
# ## Exercise: progress
#
# A page sends `'count'` with a number. Main is to count up to it, a step every 50 ms, and tell *the page that has asked* each time:
# `'progress'` with 1, 2, 3, ..., and at last `'done'`. Other windows want to be served meanwhile. Write the listener.


# %%
def count(event, number):
    ...  # your turn


# %%
from labkit.exercises.electron import check_progress

check_progress(count)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# async def count(event, number):
#     for n in range(1, number + 1):
#         await asyncio.sleep(0.05)
#         event.reply("progress", n)
#     event.reply("done")
# ```
#
# `time.sleep` would stop main's only thread, and with it every window. `event.reply` knows who has asked.
# </details>
#
# ## Exercise: a subscription that ends
#
# The `onNotification` of our preload.js has a leak: a page cannot stop listening. Write it anew, as JavaScript: `on_price` returns the text of a
# function. It gets the page's callback, calls it with each price of channel `'price'` (the price only, no event), and returns a function
# that stops *this* subscription and no other. `ipcRenderer` is there.


# %%
def on_price():
    return """
    (callback) => {
        ipcRenderer.on('price', callback);  // your turn
    }
    """


# %%
from labkit.exercises.electron import check_subscription

check_subscription(on_price)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def on_price():
#     return """
#     (callback) => {
#         const listener = (_event, price) => callback(price);
#         ipcRenderer.on('price', listener);
#         return () => ipcRenderer.removeListener('price', listener);
#     }
#     """
# ```
#
# The wrapper is what is registered, so the wrapper is what must be removed. It also keeps the event, and with it `event.sender`, the
# whole ipcRenderer, from the page.
# </details>
#
# ## What we learnt
#
# - Main owns the machine, a renderer owns a page; everything between them is a message, and a copy.
# - `send` is a message, `invoke` a question with an answer or an error, `web_contents.send` main's own word. `event.reply` answers who asked.
# - Messages of one page keep their order over all channels; answers come when they are ready; main has one thread, so handlers `await`.
# - An `invoke` costs two wake-ups. Ask for many things at once, or for one that holds them all.
# - `sendSync` stops the page. A listener that is not removed stays. A function that wraps another is not the other.
# - A port is an end of a line that can be given away.
#
# **Electron's documentation:** [Inter-process communication](https://www.electronjs.org/docs/latest/tutorial/ipc),
# [Process model](https://www.electronjs.org/docs/latest/tutorial/process-model),
# [MessagePorts](https://www.electronjs.org/docs/latest/tutorial/message-ports), [ipcMain](https://www.electronjs.org/docs/latest/api/ipc-main),
# [ipcRenderer](https://www.electronjs.org/docs/latest/api/ipc-renderer), [webContents](https://www.electronjs.org/docs/latest/api/web-contents).
# **HTML standard:** [structured clone](https://html.spec.whatwg.org/multipage/structured-data.html),
# [channel messaging](https://html.spec.whatwg.org/multipage/web-messaging.html).
# **Manual pages:** socketpair(2), unix(7), read(2), poll(2), cat(1).
