"""Checks of notebook 18-electron-ipc. The learner's code runs against windows of its own, each a Node process."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from labkit.electron import BrowserWindow
from labkit.electron.loop import main_loop
from labkit.electron.node import NodeTransport
from labkit.exercises import Verdict

PATIENCE = 3.0
"""Seconds after which a page no longer expects a message."""

PAGE = "data:text/html,<script>const { ipcRenderer } = require('electron')</script>"


def window(transport: NodeTransport | None = None) -> BrowserWindow:
    """A window that is shown nowhere, whose page may do what it likes with ipcRenderer."""
    preferences = {"contextIsolation": False, "nodeIntegration": True}
    made = BrowserWindow(web_preferences=preferences, transport=transport or NodeTransport())
    made.load_url(PAGE)
    return made


def run(win: BrowserWindow, script: str) -> Any:
    """What a script in the page of a window returns."""
    return win.web_contents.execute_java_script(script).result(20)


# --- progress -------------------------------------------------------------------------------------------------

STEPS, STEP_SECONDS = 4, 0.05

LISTEN = """
const got = [];
const all = new Promise((done) => {
    ipcRenderer.on('progress', (event, n) => got.push(n));
    ipcRenderer.on('done', () => done(got.push('done')));
});
"""


class _Counting:
    """The learner's listener at work: whether it raised, and how often something else ran in main meanwhile."""

    def __init__(self, listener: Callable[..., Any]):
        self.listener = listener
        self.beats = 0
        self.over = False
        self.began: tuple[float, int | None] = 0.0, None
        self.error: Exception | None = None
        self.returned: Any = None

    async def __call__(self, event: Any, number: int) -> None:
        heart = asyncio.create_task(self._beat())
        await asyncio.sleep(0)
        self.began = self.now()
        try:
            result = self.listener(event, number)
            self.returned = await result if inspect.isawaitable(result) else result
        except Exception as error:
            self.error = error
        self.over = True
        await heart

    async def _beat(self) -> None:
        while not self.over:
            self.beats += 1
            await asyncio.sleep(0.01)

    def now(self) -> tuple[float, int | None]:
        """The time, and how often something else has run in main, if it is the listener who asks, in main."""
        return time.monotonic(), self.beats if main_loop.here() and not self.over else None


class _Timed(NodeTransport):
    """It remembers when something was sent to the page."""

    def __init__(self, counting: _Counting) -> None:
        super().__init__()
        self.counting = counting
        self.sent: list[tuple[float, int | None]] = []

    def post(self, frame: bytes) -> None:
        self.sent.append(self.counting.now())
        super().post(frame)


def check_progress(count: Callable[..., Any], patience: float = PATIENCE) -> Verdict:
    """Whether count(event, number) tells the page that has asked how far it is, and lets main work meanwhile.

    Args:
        count: the learner's listener, plain or async.
        patience: seconds that the page waits for "done".
    """
    counting = _Counting(count)
    timed = _Timed(counting)
    with window(timed) as asks, window() as other:
        for win in (asks, other):
            run(win, LISTEN + "0")
        asks.web_contents.ipc.on("count", counting)
        got = run(
            asks,
            f"ipcRenderer.send('count', {STEPS});"
            f"Promise.race([all, new Promise((late) => setTimeout(late, {patience * 1000}))]).then(() => got)",
        )
        sent = [counting.began, *(each for each in timed.sent if each[0] > counting.began[0])]
        heard = run(other, "got")
    return _judge_progress(counting, got, heard, sent[: STEPS + 1])


def _judge_progress(
    counting: _Counting, got: list[Any], heard: list[Any], sent: list[tuple[float, int | None]]
) -> Verdict:
    steps = [after[0] - before[0] for before, after in pairwise(sent)]
    # Who awaits the end of a step is overtaken by what waits for less, however late both are.
    blocked = all(before[1] == after[1] is not None for before, after in pairwise(sent))
    wanted = [*range(1, STEPS + 1), "done"]
    if counting.error:
        error = counting.error
        return Verdict(False, f"your listener raised {type(error).__name__}: {error}. In Electron nobody would tell.")
    if heard:
        return Verdict(
            False,
            f"a window that did not ask was told {heard}. Only event.reply, or event.sender, is sure to be who has "
            "asked.",
        )
    if not got:
        hint = " What a listener of `on` returns goes nowhere." if counting.returned is not None else ""
        return Verdict(False, f"the page heard nothing.{hint} It wants event.reply('progress', n).")
    if got != wanted:
        hint = " It still waits for 'done'." if "done" not in got else ""
        return Verdict(False, f"the page asked for {STEPS} and heard {got}, not {wanted}.{hint}")
    if any(seconds < STEP_SECONDS * 0.9 for seconds in steps):  # a sleep may be longer, and is never shorter
        shortest = f"one step took {min(steps) * 1000:.1f} ms"
        return Verdict(False, f"the numbers came too fast: {shortest}. A step takes 50 ms: await asyncio.sleep.")
    if blocked:
        return Verdict(
            False,
            "right for this page, but nothing else ran in main meanwhile: no message of any window. time.sleep stops "
            "main's only thread; in an async listener, `await asyncio.sleep(0.05)` lets it go on.",
        )
    return Verdict(True, f"{got}, to the page that asked and to no other, and main served others meanwhile.")


# --- a subscription that ends -----------------------------------------------------------------------------------

SUBSCRIBE = """
const heard = { first: [], second: [], others: 0 };
const note = (list) => (...args) =>
    list.push(args.map((each) => (each !== null && typeof each === 'object' ? 'the event' : each)));
ipcRenderer.on('price', () => (heard.others += 1));
const second = note(heard.second);
const stop = onPrice(note(heard.first));
const stops = [onPrice(second), onPrice(second)];
typeof stop
"""


def check_subscription(on_price: Callable[[], Any]) -> Verdict:
    """Whether on_price() is the text of a JavaScript function that subscribes, and returns what ends just that.

    Args:
        on_price: the learner's function. Its JavaScript finds ipcRenderer.
    """
    text = on_price()
    if not isinstance(text, str):
        return Verdict(False, f"on_price returns {text!r}: return the JavaScript as a string.")
    with window() as win:
        try:
            run(win, f"const onPrice = ({text.strip().rstrip(';')}); 0")
            kind = run(win, SUBSCRIBE)
            win.web_contents.send("price", 1)
            if kind == "function":
                run(win, "stop(); 0")
                win.web_contents.send("price", 2)
                run(win, "stops[0](); 0")
                win.web_contents.send("price", 3)
            found = run(win, "({ ...heard, left: ipcRenderer.listenerCount('price') })")
        except Exception as error:
            return Verdict(False, f"JavaScript says {getattr(error, 'name', 'Error')}: {error}")
    return _judge_subscription(kind, found)


def _judge_subscription(kind: str, found: dict[str, Any]) -> Verdict:
    first, second = found["first"], found["second"]
    if not first:
        return Verdict(False, "a price was sent, and the callback was not called: ipcRenderer.on('price', ...).")
    if "the event" in first[0]:
        return Verdict(
            False,
            "the callback got the event. Its `sender` is ipcRenderer itself: a page that has it sends what it likes. "
            "Register (_event, price) => callback(price).",
        )
    if first[0] != [1]:
        return Verdict(False, f"the callback was called with {first[0]}, and the price was 1: call it with the price.")
    if kind != "function":
        return Verdict(False, f"it returns {kind}, so a page cannot stop listening: return a function that does.")
    if found["others"] < 3:
        return Verdict(
            False,
            "stopping this subscription has stopped a listener that somebody else had: removeAllListeners takes all of "
            "the channel. removeListener takes one.",
        )
    if len(first) > 1:
        return Verdict(
            False,
            "it was stopped, and was called once more. removeListener wants the function that was *registered*; for "
            "any other it does nothing, and says nothing. Keep your wrapper in a constant.",
        )
    if len(second) != 5 or found["left"] != 2:
        return Verdict(
            False,
            f"one callback was subscribed twice and stopped once; it was then called {len(second) - 4} times, not "
            "once. Each subscription needs a wrapper of its own.",
        )
    return Verdict(True, "each subscription ends by itself, takes no other with it, and the page never sees an event.")
