"""Checks of notebook 18-electron-ipc. The learner's code runs against windows of its own, each a Node process."""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from labkit.electron import BrowserWindow
from labkit.electron.loop import main_loop
from labkit.electron.node import NodeTransport
from labkit.exercises import Verdict

PATIENCE = 3.0
"""Seconds without news, as main counts them, after which a page no longer expects a message."""

STUCK = 20.0
"""Seconds after which main, or a page, is taken for one that hangs."""

PAGE = "data:text/html,<script>const { ipcRenderer } = require('electron')</script>"


def window(transport: NodeTransport | None = None) -> BrowserWindow:
    """A window that is shown nowhere, whose page may do what it likes with ipcRenderer."""
    preferences = {"contextIsolation": False, "nodeIntegration": True}
    made = BrowserWindow(web_preferences=preferences, transport=transport or NodeTransport())
    made.load_url(PAGE)
    return made


def run(win: BrowserWindow, script: str) -> Any:
    """What a script in the page of a window returns.

    Raises:
        TimeoutError: nothing; the text says whose fault that is. Main goes on.
    """
    try:
        return win.web_contents.execute_java_script(script).result(STUCK)
    except TimeoutError:
        raise TimeoutError(free_main() or f"the page has not answered for {STUCK:g} s") from None


class Stuck(BaseException):
    """Raised in what does not end by itself."""


def free_main() -> str:
    """Have main go on when something has stopped it for good. Returns what to say of that, nothing if main goes on."""
    turned, thread = threading.Event(), main_loop._thread
    main_loop.call(turned.set)
    if thread is None or turned.wait(STUCK / 4):
        return ""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Stuck))
    ended = "It has been ended" if turned.wait(STUCK / 4) else "It cannot be ended from here: restart the kernel"
    return f"main has stood still for {STUCK:g} s, and with it every window: a function does not return. {ended}"


# --- progress -------------------------------------------------------------------------------------------------

STEPS, STEP_SECONDS = 4, 0.05
MOST = 10 * STEPS
"""Messages after which a listener is taken for one that does not stop."""

LISTEN = """
const got = [];
ipcRenderer.on('progress', (event, n) => got.push(n));
ipcRenderer.on('done', () => {
    got.push('done');
    ipcRenderer.send('told');
});
"""


class _Counting:
    """The learner's listener at work for some pages."""

    def __init__(self, listener: Callable[..., Any], pages: int, patience: float):
        self.listener, self.patience = listener, patience
        self.missing, self.all_here = pages, asyncio.Event()
        self.at_work = self.expectant = pages  # listeners that have not returned, pages that have not heard "done"
        self.judge = threading.current_thread()
        self.finished = threading.Event()
        self.beats = self.turns = 0
        self.sent: list[tuple[float, int | None]] = []  # when, and in which turn of main, where main itself has sent it
        self.blocked = self.endless = self.over = False
        self.stuck = ""
        self.error: BaseException | None = None
        self.returned: Any = None
        self.tasks: set[Any] = set()

    async def __call__(self, event: Any, number: int) -> None:
        self.missing -= 1
        if not self.missing:
            self.all_here.set()
        await self.all_here.wait()  # pages that ask at the same time do so however late one of them is
        if self.over:
            return  # what waited behind one that was stuck would be stuck as well
        if not self.tasks:
            self.tasks.add(asyncio.create_task(self._beat()))
        self.tasks.add(asyncio.current_task())
        self.began = time.monotonic()
        asyncio.get_running_loop().call_soon(self._turn)
        try:
            result = self.listener(event, number)
            self.returned = await result if inspect.isawaitable(result) else result
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self.error = self.error or error
        self.at_work -= 1

    def told(self, event: Any) -> None:
        """A page has heard "done"."""
        self.expectant -= 1

    async def _beat(self) -> None:
        """Wait until all is said, or for a while for something new: a while of main's own, who may be late itself."""
        heard, since = 0, 0
        while (self.at_work or self.expectant) and not self.endless and not self.error:
            if (self.beats - since) * 0.01 >= self.patience:
                break
            await asyncio.sleep(0.01)
            self.beats += 1
            if heard < len(self.sent):
                heard, since = len(self.sent), self.beats
        self.finished.set()

    def _turn(self) -> None:
        self.turns += 1

    def sends(self) -> None:
        """A message is about to be sent to a page by the learner's listener, in whatever thread."""
        if threading.current_thread() is self.judge:
            return
        if len(self.sent) >= MOST:
            self.endless = True
            raise Stuck
        if main_loop.here():
            self.sent.append((time.monotonic(), self.turns))
            asyncio.get_running_loop().call_soon(self._turn)
            return
        self.sent.append((time.monotonic(), None))
        if self.at_work and not self.blocked:  # does main wait for this thread?
            turned = threading.Event()
            main_loop.call(turned.set)
            self.blocked = not turned.wait(STUCK / 4)

    def wait(self) -> None:
        """Until all is said, or nothing more will come."""
        beats = 0
        while not self.finished.wait(STUCK):
            if self.beats == beats:
                self.over = True
                self.stuck = free_main() or f"the page has not asked within {STUCK:g} s"
                break
            beats = self.beats
        for task in self.tasks:
            main_loop.call(task.cancel)


class _Told(NodeTransport):
    """It tells who counts what is sent to the page."""

    counting: _Counting | None = None

    def post(self, frame: bytes) -> None:
        if self.counting:
            self.counting.sends()
        super().post(frame)


def check_progress(count: Callable[..., Any], patience: float = PATIENCE) -> Verdict:
    """Whether count(event, number) tells the page that has asked how far it is, and lets main work meanwhile.

    Args:
        count: the learner's listener, plain or async.
        patience: seconds without news after which the page no longer waits for "done".
    """
    try:
        return _progress(count, patience)
    except TimeoutError as error:
        return Verdict(False, f"{error}.")


def _progress(count: Callable[..., Any], patience: float) -> Verdict:
    told = _Told(), _Told()
    with window(told[0]) as first, window(told[1]) as second:
        for win in (first, second):
            run(win, LISTEN + "0")

        def ask(*asked: tuple[BrowserWindow, int]) -> tuple[_Counting, list[list[Any]]]:
            counting = _Counting(count, len(asked), patience)
            for win, transport in zip((first, second), told, strict=True):
                for channel, listener in (("count", counting), ("told", counting.told)):
                    win.web_contents.ipc.remove_all_listeners(channel).on(channel, listener)
                transport.counting = counting
            for win, number in asked:  # later: nothing else may come of a page while a thread waits in `sends`
                run(win, f"setTimeout(() => ipcRenderer.send('count', {number})); 0")
            counting.wait()
            return counting, [] if counting.stuck else [run(win, "got.splice(0)") for win in (first, second)]

        counting, heard = ask((first, STEPS))
        if wrong := _failed(counting) or _wrong_progress(counting, *heard):
            return Verdict(False, wrong)
        numbers = STEPS - 2, STEPS - 1
        counting, heard = ask((first, numbers[0]), (second, numbers[1]))
        wanted = [[*range(1, number + 1), "done"] for number in (*numbers, STEPS)]
        if wrong := _failed(counting):
            return Verdict(False, wrong)
        if heard != wanted[:2]:
            return Verdict(
                False,
                f"two pages asked at the same time, for {numbers[0]} and {numbers[1]}, and heard {heard}: each call of "
                "your listener has a number and an event of its own.",
            )
    return Verdict(True, f"{wanted[2]}, to the page that asked and to no other, and main served others meanwhile.")


def _failed(counting: _Counting) -> str:
    if counting.endless:
        return f"after {len(counting.sent)} messages it would still have gone on: count up to the number, and return."
    if counting.error and not counting.stuck:
        error = counting.error
        return f"your listener raised {type(error).__name__}: {error}. In Electron nobody would tell."
    return counting.stuck and f"{counting.stuck}."


def _wrong_progress(counting: _Counting, got: list[Any], others: list[Any]) -> str:
    wanted = [*range(1, STEPS + 1), "done"]
    if others:
        return (
            f"a window that did not ask was told {others}. Only event.reply, or event.sender, is sure to be who has "
            "asked."
        )
    if not got:
        hint = " What a listener of `on` returns goes nowhere." if counting.returned is not None else ""
        return f"the page heard nothing.{hint} It wants event.reply('progress', n)."
    if got != wanted:
        hint = " It still waits for 'done'." if "done" not in got else ""
        return f"the page asked for {STEPS} and heard {got}, not {wanted}.{hint}"
    numbers = counting.sent[:STEPS]
    for n, (sent, _) in enumerate(numbers):  # a sleep may be longer, and is never shorter
        if sent - counting.began < n * STEP_SECONDS * 0.9:
            took = f"{n + 1} came {(sent - counting.began) * 1000:.1f} ms after the question"
            return f"the numbers came too fast: {took}. A step takes 50 ms: await asyncio.sleep(0.05)."
    if counting.blocked or all(before == after is not None for (_, before), (_, after) in pairwise(numbers)):
        return (
            "right for this page, but nothing else ran in main from one number to the next: no message of any window. "
            "A step takes 50 ms, and main serves others meanwhile: time.sleep stops its only thread, and so does who "
            "waits for a thread. In an async listener, `await asyncio.sleep(0.05)` before each number."
        )
    return ""


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

UNSUBSCRIBE = ("stop()", "stops[0]()", "stop(), stops[0]()", "stops[1]()")
"""What the page does, after each price but the last."""


def check_subscription(on_price: Callable[[], Any]) -> Verdict:
    """Whether on_price() is the text of a JavaScript function that subscribes, and returns what ends just that.

    Args:
        on_price: the learner's function. Its JavaScript finds ipcRenderer.
    """
    try:
        text = on_price()
    except Exception as error:
        return Verdict(False, f"on_price raised {type(error).__name__}: {error}. Return the JavaScript as a string.")
    if not isinstance(text, str):
        return Verdict(False, f"on_price returns {text!r}: return the JavaScript as a string.")
    with window() as win:
        try:
            run(win, f"const onPrice = {text}\n; 0")  # what follows the function may be a comment
            if (kind := run(win, "typeof onPrice")) != "function":
                return Verdict(
                    False, f"the text is that of a {kind}: return that of a function, (callback) => {{ ... }}."
                )
            kind = run(win, SUBSCRIBE)
            for price, stops in enumerate((*UNSUBSCRIBE, "0") if kind == "function" else "0", 1):
                win.web_contents.send("price", price)
                run(win, f"{stops}; 0")
            found = run(win, "({ ...heard, left: ipcRenderer.listenerCount('price') })")
        except TimeoutError as error:
            return Verdict(False, f"{error}: a loop in your JavaScript does not end, and stops the whole page.")
        except Exception as error:
            hint = " The text is that of a function: (callback) => { ... }." if "SyntaxError" in _name(error) else ""
            return Verdict(False, f"JavaScript says {_name(error)}: {error}.{hint}")
    return _judge_subscription(kind, found)


def _name(error: Exception) -> str:
    return str(getattr(error, "name", "Error"))


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
    if found["others"] < 1 + len(UNSUBSCRIBE):
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
    if second != [[1], [1], [2], [2], [3], [4]]:
        return Verdict(
            False,
            "one callback was subscribed twice. One subscription was stopped after price 2, once more after 3, the "
            f"other after 4, and the callback was called with {second}, not [[1], [1], [2], [2], [3], [4]]. Each "
            "subscription needs a wrapper of its own, and stops that and no other.",
        )
    if found["left"] > 2:  # one more may serve all subscriptions
        return Verdict(
            False,
            f"all were stopped, and {found['left'] - 1} listeners of theirs are still registered: they no longer call, "
            "and stay for ever. removeListener takes them out.",
        )
    return Verdict(True, "each subscription ends by itself, takes no other with it, and the page never sees an event.")
