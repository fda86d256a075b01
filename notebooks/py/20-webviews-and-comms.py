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
# # One idea, four programs: Electron, VS Code, Tauri, Jupyter
#
# An Electron window, a panel of a VS Code extension, a Tauri program and a slider in this notebook look like four things. They are one: a
# process that may do everything, a page that may do nothing, and messages between them. What differs is how the messages travel, what may be in
# them, and who answers.
#
# | | Electron | VS Code webview | Tauri | Jupyter comm |
# |---|---|---|---|---|
# | **may everything** | main: Node.js | extension host: Node.js | core: Rust | kernel: Python and others |
# | **may nothing** | renderer: Chromium | an iframe, walled off | the system's webview | the browser's page |
# | **page → process** | `ipcRenderer.send`, `invoke` | `vscode.postMessage` | `invoke`, `emit` | `comm.send`, on *shell* |
# | **process → page** | `webContents.send` | `webview.postMessage` | `emit`, a `Channel` | `comm.send`, on *iopub* |
# | **an answer** | `invoke`: a promise | none: number your messages | `invoke`: a promise | none: number your messages |
# | **what crosses** | structured clone, ports | JSON; ArrayBuffers since 1.57 | JSON, raw bytes | JSON, and buffers beside it |
# | **the wall** | sandboxed process, isolated preload script | no scripts unless `enableScripts`; files only of `localResourceRoots`; your CSP | capabilities: which window may call which command | none: outputs of a trusted notebook *are* the page |
#
# Sources: Electron, [IPC](https://www.electronjs.org/docs/latest/tutorial/ipc); VS Code, [Webview
# API](https://code.visualstudio.com/api/extension-guides/webview); Tauri, [Inter-Process Communication](https://v2.tauri.app/concept/inter-process-communication/)
# and [Capabilities](https://v2.tauri.app/security/capabilities/); Jupyter, [Messaging](https://jupyter-client.readthedocs.io/en/stable/messaging.html).
#
# Three things hold in every column. **Messages are copies**: no reference crosses, and no code. **A message has a name**, a channel, a
# command, a target, and the process decides what it does for it. **Whoever may do more must check**: the page's word is worth nothing.
#
# Electron has its own labs, 18 and 19. This one takes Jupyter's comms apart, the line that every widget hangs on.
#
# ## A kernel, and what it is told
#
# We play the browser. jupyter_client starts a kernel and talks with it over ZeroMQ; what goes over the wire are parts, each a string of bytes:

# %%
from jupyter_client.session import Session

session = Session(key=b"a secret that both know")
message = session.msg("comm_msg", {"comm_id": "1", "data": {"value": 5}})
for part in session.serialize(message):
    print(part)

# %% [markdown]
# A delimiter; an HMAC, so that only who knows the key can ask a kernel to do anything; then four pieces of JSON: header, header of the
# message that this one is about, metadata, and content. Binary buffers would follow, as they are.
#
# `FrontEnd` is that, with a kernel of its own, and a trace has every message. Two of the kernel's sockets matter here: **shell**, where it
# is asked, and **iopub**, where it publishes to whoever listens.

# %%
from labkit import Trace, watch
from labkit.comms import FrontEnd

trace = Trace()
watch(trace)
front = FrontEnd(trace)
print("a kernel, pid", front.pid)

# %% [markdown]
# ## By hand: a comm
#
# In the kernel somebody registers a **target**, a name and what is called when a comm is opened to it. This one sends back what it gets:

# %%
TARGET = """
def opened(comm, message):
    @comm.on_msg
    def heard(message):
        comm.send({"echo": message["content"]["data"], "bytes": sum(len(each) for each in message["buffers"])})

get_ipython().kernel.comm_manager.register_target("lab", opened)
"""


def show(heard):
    for told in heard:
        print(f"   iopub  {told.kind:10} {told.content}")


show(front.run(TARGET))

# %% [markdown]
# Opening is a message as well. The one who opens chooses the comm's number; from then on both sides know it.

# %%
print("shell  comm_open")
show(front.ask("comm_open", {"comm_id": "1", "target_name": "lab", "data": {}}))
print("shell  comm_msg")
show(front.ask("comm_msg", {"comm_id": "1", "data": {"n": 1}}))
print("shell  comm_close")
show(front.ask("comm_close", {"comm_id": "1", "data": {}}))

# %% [markdown]
# There is no reply to any of them. The kernel says that it is *busy* and *idle* again, and what its listener has sent comes in
# between, as a message of its own. And what if nobody has registered the name?

# %%
show(front.ask("comm_open", {"comm_id": "2", "target_name": "nobody", "data": {}}))

# %% [markdown]
# It closes the comm at once: the other side must not go on believing that there is somebody.
#
# ## The same with less to write
#
# `front.open` chooses the number, and `comm.send` returns the data of what comes on the same comm:

# %%
comm, _ = front.open("lab")
for n in range(3):
    print(comm.send({"n": n}))

# %%
watch(trace, view="sequence")

# %% [markdown]
# Zoom in: down goes the message on *shell*, and three come up on *iopub*: busy, the echo, idle. The kernel keeps no trace for us; but it
# stamps each message with the time, and says when it is busy with ours.

# %%
trace.latency()

# %% [markdown]
# ## A kernel does one thing at a time
#
# Comm messages wait in the same line as cells. While a cell runs, a slider does nothing; how long does a message take then?

# %%
import time


def round_trip():
    begin = time.perf_counter()
    comm.send({"are you": "there"})
    return time.perf_counter() - begin


alone = sorted(round_trip() for _ in range(50))[25]
cell = front.send("execute_request", {"code": "import time; time.sleep(1)"})
behind = round_trip()
print(f"alone: {alone * 1e3:.1f} ms; behind a cell that sleeps for a second: {behind * 1e3:.0f} ms")

# %% [markdown]
# It is Electron's rule about main once more: one thread, so do not hold it up. (ipykernel has *subshells* for this since version 7, threads that
# take messages meanwhile. The windows of lab 18 have one.)
#
# ## Bytes beside JSON
#
# JSON has no bytes. An array of a million bytes as a list of numbers, as base64, and as a buffer beside the JSON:

# %%
import base64
import os

BYTES = os.urandom(1_000_000)
WAYS = {
    "a list of numbers": lambda: comm.send({"bytes": list(BYTES)}),
    "base64": lambda: comm.send({"bytes": base64.b64encode(BYTES).decode()}),
    "a buffer": lambda: comm.send({}, [BYTES]),
}
for name, send in WAYS.items():
    begin = time.perf_counter()
    (echo,) = send()
    print(f"{name:18} {(time.perf_counter() - begin) * 1e3:6.1f} ms; {echo['bytes']:,} bytes came in buffers")

# %% [markdown]
# That the first two are echoed, and the buffer is only counted, makes them slower still. All views of these labs, and the windows
# of lab 18, send their messages in buffers.
#
# ## What this costs on the way to a browser
#
# In JupyterLab there is one more process in between. The browser speaks no ZeroMQ, so Jupyter's *server* takes each message from a websocket,
# and puts it on the kernel's socket; and back. Lab 18 measures a round trip from a window in the notebook, which takes this way; above you
# see what is left without server and browser.
#
# ## A widget is a comm
#
# A slider in Python is an object; in the browser it is another. All that connects them is a comm to the target `jupyter.widget`: it is
# opened with the whole state, and each change is a message. Here is what a browser hears:

# %%
from labkit.exercises.webviews_and_comms import WIDGETS, recorded

print(WIDGETS)
messages = recorded()
for kind, content in messages:
    data = content["data"]
    what = {key: value for key, value in data.get("state", data).items() if not key.startswith("_")}
    print(f"{content['comm_id'][:6]}  {kind:10} {data.get('method', ''):7} {str(what)[:80]}")

# %% [markdown]
# Three widgets are more than three comms: each has a *layout* and a *style*, which are widgets, too.
#
# ## Exercise: what does the browser show?
#
# Be the browser. `states(messages)` gets (kind, content) of each message, in order, and returns the state of each widget that is still open: a
# dictionary by `comm_id`. `comm_open` has it in `content["data"]["state"]`; a `comm_msg` with method `"update"` has what is new.


# %%
def states(messages):
    return {}  # your turn


# %%
from labkit.exercises.webviews_and_comms import check_state

check_state(states, messages)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def states(messages):
#     found = {}
#     for kind, content in messages:
#         comm, data = content["comm_id"], content["data"]
#         if kind == "comm_open":
#             found[comm] = dict(data["state"])
#         elif kind == "comm_close":
#             found.pop(comm)
#         elif data["method"] == "update":
#             found[comm].update(data["state"])
#     return found
# ```
#
# A saved notebook keeps just this: the state of each widget by its number.
# </details>
#
# ## Exercise: an answer
#
# Comms and VS Code's webviews have no answers, so everybody builds them: a question carries a number, and its answer the same. Write
# `answer(comm, question)`. A question is `{"id": 7, "call": "double", "args": [21]}`; call what `FUNCTIONS`, a dictionary in the kernel, has under that name, and send
# `{"id": 7, "result": 42}`, or `{"id": 7, "error": "ZeroDivisionError: division by zero"}`, the name of the exception and its text.


# %%
def answer(comm, question):
    ...  # your turn


# %%
from labkit.exercises.webviews_and_comms import check_answer

check_answer(answer)

# %% [markdown]
# <details><summary><b>A solution</b></summary>
#
# ```python
# def answer(comm, question):
#     try:
#         comm.send({"id": question["id"], "result": FUNCTIONS[question["call"]](*question["args"])})
#     except Exception as error:
#         comm.send({"id": question["id"], "error": f"{type(error).__name__}: {error}"})
# ```
#
# A dictionary of functions, not `eval`: the page chooses among what you offer, and can name nothing else.
# </details>

# %%
front.close()

# %% [markdown]
# ## What we learnt
#
# - A page that may not and a process that may: Electron, VS Code, Tauri and Jupyter differ in the words, in what crosses, and in the wall.
# - A comm is a number that both sides know. It is opened to a name; messages go both ways, and none answers another.
# - What goes to a kernel waits in one line with its cells. What a kernel says, it publishes to all who listen.
# - Bytes belong beside the JSON, not in it.
# - A widget is state that is told twice: once whole, then what changes.
# - invoke is send with a number. Electron and Tauri have built it in; elsewhere you do.
#
# **Documentation:** Jupyter, [custom messages](https://jupyter-client.readthedocs.io/en/stable/messaging.html#custom-messages) and
# [widget messaging](https://github.com/jupyter-widgets/ipywidgets/blob/main/packages/schema/messages.md); VS Code, [Webview
# API](https://code.visualstudio.com/api/extension-guides/webview); Tauri, [Calling Rust](https://v2.tauri.app/develop/calling-rust/); HTML standard,
# [postMessage](https://html.spec.whatwg.org/multipage/web-messaging.html).
# **Manual pages:** zmq_socket(3), zmq_msg_send(3), unix(7).
