"""The main loop: one thread that plays Electron's main process. Messages, handlers and events happen in it, one by one.

It has an asyncio loop of its own, in which async handlers run, beside the one of the notebook. It begins with the first
window or message and ends when there is no window, nothing to do, and no async handler at work.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import inspect
import logging
import os
import selectors
import threading
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

from labkit.electron.emitter import EventEmitter

log = logging.getLogger("labkit.electron")

PATIENCE_SECONDS = 0.2
"""How long the thread waits for something new before it ends; to start one takes a millisecond."""


class Promise(concurrent.futures.Future):
    """Something that will be there: `result(timeout)` waits for it in a thread, `await` in an async function."""

    def result(self, timeout: float | None = None) -> Any:
        """As of any Future. In a handler or listener that is a RuntimeError, not a wait for ever: `await` it there."""
        if main_loop.here() and not self.done():
            raise RuntimeError("main's thread cannot wait for what it does itself: make this function async, and await")
        return super().result(timeout)

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.wrap_future(self).__await__()


class App(EventEmitter):
    """What is about the application as a whole. Events: "uncaught-exception" (error), "window-all-closed" ()."""

    def __init__(self) -> None:
        super().__init__()
        self._windows: dict[int, Any] = {}  # those that are open: number -> BrowserWindow

    def when_ready(self) -> Promise:
        """It always is; Electron's programs wait for it."""
        ready = Promise()
        ready.set_result(None)
        return ready

    def is_ready(self) -> bool:
        return True

    def quit(self) -> None:
        """Close all windows. This Python goes on."""
        for window in list(self._windows.values()):
            window.destroy()

    whenReady = when_ready
    isReady = is_ready

    def report(self, error: BaseException) -> None:
        """An error that nobody waits for: an event where somebody listens, else it is logged with its traceback."""
        results: list[Any] = []
        try:
            if not self._emit("uncaught-exception", (error,), results):
                _log(error)
        except BaseException as another:
            _log(another)
        for result in results:
            main_loop.run(result, _log)  # not reported: its listener would hear of its own errors for ever


def _log(error: BaseException) -> None:
    log.error("Uncaught exception in the main process", exc_info=error)


app = App()


class _Selector(selectors.DefaultSelector):
    """Holds on to the tasks of a loop that waits for descriptors of theirs.

    An async handler that nobody can wake any more is collected, and its invocation ends with "reply was never sent".
    But asyncio's streams refer only weakly to who waits for them: while there are any, tasks must not be collected.
    """

    loop: asyncio.AbstractEventLoop | None = None
    quiet = True  # while the main loop registers descriptors of its own
    held: set[asyncio.Task[Any]]

    def register(self, *args: Any, **kwargs: Any) -> Any:
        if not self.quiet and self.loop:
            for task in asyncio.all_tasks(self.loop):
                self.held.add(task)
                task.add_done_callback(self.held.discard)
        return super().register(*args, **kwargs)


class MainLoop:
    """The thread and its queue. All methods may be called from any thread, `call` also while garbage is collected."""

    def __init__(self) -> None:
        self._queue: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._selector: _Selector | None = None
        self._held = 0  # windows
        self._pumping = False
        self._first_steps = 0  # of tasks that have just begun; what is in the queue waits for them

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Have something called in the main loop, after all that was asked for before."""
        self._queue.append((function, args))  # atomic
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it has just ended
                loop.call_soon_threadsafe(self._pump)
        if loop is None or self._loop is not loop:
            self._start()

    def here(self) -> bool:
        """Whether this is the thread of the main loop."""
        return self._thread is threading.current_thread()

    def hold(self) -> None:
        """Keep the thread, until `let_go` is called as often."""
        with self._lock:
            self._held += 1
        self._start()

    def let_go(self) -> None:
        with self._lock:
            self._held -= 1
        self.call(self._look_later)

    def add_reader(self, fd: int, callback: Callable[[], Any]) -> None:
        """Have `callback` called in the main loop whenever there is something to read. In the main loop only."""
        assert self._loop and self._selector
        self._selector.quiet = True
        self._loop.add_reader(fd, callback)
        self._selector.quiet = False

    def remove_reader(self, fd: int) -> None:
        assert self._loop
        self._loop.remove_reader(fd)

    def add_writer(self, fd: int, callback: Callable[[], Any]) -> None:
        """Have `callback` called in the main loop whenever there is room to write. In the main loop only."""
        assert self._loop and self._selector
        self._selector.quiet = True
        self._loop.add_writer(fd, callback)
        self._selector.quiet = False

    def remove_writer(self, fd: int) -> None:
        assert self._loop
        self._loop.remove_writer(fd)

    def later(self, seconds: float, function: Callable[[], Any]) -> None:
        """Have something called after a while. In the main loop only."""
        assert self._loop
        self._loop.call_later(seconds, function)

    def run(self, result: Any, failed: Callable[[BaseException], None] = app.report) -> None:
        """What a listener has returned is awaited when it can be; `failed` is called with what that raises.

        The next message waits for one turn of the loop, so that the first steps of async functions are in the order of
        their messages.
        """
        if not inspect.isawaitable(result):
            return

        async def wait() -> None:
            try:
                await result
            except (asyncio.CancelledError, GeneratorExit):
                raise
            except BaseException as error:
                failed(error)

        if self.here():
            self.task(wait())
        else:
            self.call(lambda: self.task(wait()))

    def task(self, coroutine: Any) -> None:
        """Run a coroutine in the main loop, only there. asyncio refers to it weakly, and so do we: see _Selector."""
        assert self._loop
        self._loop.create_task(coroutine)
        self._first_steps += 1
        if not self._pumping:
            self._come_again()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="labkit electron main", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        selector = _Selector()
        selector.held = set()
        loop = asyncio.SelectorEventLoop(selector)
        selector.loop, selector.quiet = loop, False
        loop.set_exception_handler(_report)
        asyncio.set_event_loop(loop)
        with self._lock:
            self._loop, self._selector = loop, selector
        loop.call_soon(self._pump)
        loop.call_soon(self._look_later)
        try:
            while self._loop is loop:
                try:
                    loop.run_forever()
                except BaseException as error:  # SystemExit of a task that a handler has made
                    app.report(error)
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
            with contextlib.suppress(Exception):
                loop.run_until_complete(loop.shutdown_default_executor())
            asyncio.set_event_loop(None)
            loop.close()

    def _look_later(self) -> None:
        if self._loop:
            self._loop.call_later(PATIENCE_SECONDS, self._look)

    def _look(self) -> None:
        """End the thread when it is not needed."""
        loop = self._loop
        if loop is None:
            return
        with self._lock:
            if self._held:
                return  # who lets go looks again
            if not self._queue and not asyncio.all_tasks(loop):
                self._loop = self._selector = self._thread = None
                loop.stop()
                return
        self._look_later()

    def _pump(self) -> None:
        if not self._pumping and not self._first_steps:
            self._pumping = True
            try:
                self._run_some()
            finally:
                self._pumping = False
            self._come_again()

    def _run_some(self) -> None:
        for _ in range(256):  # then descriptors have their turn
            if not self._queue or self._first_steps:
                return
            function, args = self._queue.popleft()
            try:
                function(*args)
            except BaseException as error:  # also SystemExit: one listener must not end the thread of all
                app.report(error)

    def _come_again(self) -> None:
        if self._loop and self._first_steps:
            self._loop.call_soon(self._go_on)  # after the first step of the task
        elif self._loop and self._queue:
            self._loop.call_soon(self._pump)

    def _go_on(self) -> None:
        self._first_steps = 0
        self._pump()

    def now(self, function: Callable[..., Any], *args: Any) -> None:
        """As `call`, from the main loop itself: at once, unless something waits."""
        self._queue.append((function, args))
        self._pump()


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    if "was destroyed but it is pending" in context["message"]:
        return  # nobody could wake it any more
    error = context.get("exception")
    if error is not None:
        app.report(error)
    else:
        log.error("%s", context["message"])


main_loop = MainLoop()
os.register_at_fork(after_in_child=main_loop.__init__)  # type: ignore[misc]  # the thread is the parent's
