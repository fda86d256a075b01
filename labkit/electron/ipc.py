"""ipcMain, the events that its listeners get, and how a message finds its way to them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
from collections.abc import Callable
from typing import Any

from labkit.electron.clone import BigInt, CloneError, Error, Map, Set, decode, encode, undefined
from labkit.electron.emitter import EventEmitter
from labkit.electron.frames import Frame, Kind, Malformed
from labkit.electron.loop import app, log, main_loop
from labkit.electron.ports import MessagePortMain

NEVER_SENT = "reply was never sent"


class Throw(Exception):  # it is no error: it throws one
    """Throws any value as JavaScript can: `raise Throw("no such thing")` in a handler rejects with just that text."""

    def __init__(self, value: Any):
        super().__init__(value)
        self.value = value


class IpcMain(EventEmitter):
    """Electron's ipcMain: listeners for what is sent, and handlers for what is invoked, by channel.

    A channel is any string. Listeners and handlers may be plain or async functions; both are called in the main loop,
    with an event and the arguments.
    """

    def __init__(self) -> None:
        super().__init__()
        self._handlers: dict[str, Callable[..., Any]] = {}
        self.on("error", _ignore)  # a channel may be called so

    def handle(self, channel: str, handler: Any = undefined) -> None:
        """Answer `ipcRenderer.invoke(channel, ...)` with what `handler(event, ...)` returns, or with what it raises.

        Raises:
            Error: the channel has a handler already.
            TypeError: the handler cannot be called.
        """
        if channel in self._handlers:
            raise Error(f"Attempted to register a second handler for '{channel}'")
        if not callable(handler):
            raise TypeError(f"Expected handler to be a function, but found type '{type_of(handler)}'")
        self._handlers[channel] = handler

    def handle_once(self, channel: str, handler: Any = undefined) -> None:
        """As `handle`, for one invocation: the handler is removed before it runs."""
        if not callable(handler):
            self.handle(channel, handler)

        def once(event: Any, *args: Any) -> Any:
            self.remove_handler(channel)
            return handler(event, *args)

        self.handle(channel, once)

    def remove_handler(self, channel: str) -> None:
        """Remove the handler of a channel, if there is one. Invocations that it is working on are answered."""
        self._handlers.pop(channel, None)

    handleOnce = handle_once
    removeHandler = remove_handler


def _ignore(*_: Any) -> None:
    pass


ipc_main = IpcMain()


class _Event:
    """What all events of IPC have: where it is from."""

    type = "frame"

    def __init__(self, sender: Any, frame: Any, document: int):
        self.sender = sender
        """The WebContents of the window that has sent it."""
        self.process_id: int = frame.process_id
        self.frame_id: int = frame.frame_id
        self.default_prevented = False
        self._frame, self._document = frame, document

    @property
    def sender_frame(self) -> Any:
        """The frame that has sent it; None when that page has gone meanwhile: then trust nothing."""
        return None if self.sender._is_gone(self._document) else self._frame

    def prevent_default(self) -> None:
        """There is nothing to prevent; Electron has it."""
        self.default_prevented = True

    @property
    def processId(self) -> int:
        return self.process_id

    @property
    def frameId(self) -> int:
        return self.frame_id

    @property
    def senderFrame(self) -> Any:
        return self.sender_frame

    preventDefault = prevent_default


class IpcMainInvokeEvent(_Event):
    """What a handler gets first. It has neither reply nor return_value: the answer is what the handler returns."""


class IpcMainEvent(_Event):
    """What a listener gets first."""

    ports: Any = undefined
    """The ports that came with it, a list, when it was sent with ipcRenderer.postMessage."""

    def __init__(self, sender: Any, frame: Any, document: int, answer: Answer | None = None):
        super().__init__(sender, frame, document)
        self._answer = answer

    def reply(self, channel: str, *args: Any) -> None:
        """Send to the very frame that this came from; nothing happens when it has gone."""
        if not self.sender._is_gone(self._document):
            self._frame.send(channel, *args)

    @property
    def return_value(self) -> Any:
        """Set it, once, now or later, to answer ipcRenderer.sendSync."""
        return undefined

    @return_value.setter
    def return_value(self, value: Any) -> None:
        if self._answer:
            self._answer.send(Kind.REPLY_SYNC, value)

    @property
    def returnValue(self) -> Any:
        return undefined

    @returnValue.setter
    def returnValue(self, value: Any) -> None:
        self.return_value = value


class Answer:
    """The right to answer one invocation or synchronous message. Whoever loses it has answered "never sent"."""

    def __init__(self, contents: Any, frame: Frame):
        self._contents, self._document, self._number = contents, frame.document, frame.number
        self._synchronous = frame.kind == Kind.SEND_SYNC
        self._sent = False

    def send(self, kind: Kind, value: Any) -> None:
        """Answer, the first time; later times do nothing.

        Raises:
            CloneError: the value cannot be cloned. It can be tried again with another.
        """
        if self._sent:
            return
        clone = encode(value)
        self._sent = True
        self._contents._answer(kind, self._document, self._number, clone)

    def give_up(self) -> None:
        """Nobody will answer any more."""
        if not self._sent:
            self._sent = True
            kind, value = (Kind.REPLY_SYNC, {"error": NEVER_SENT}) if self._synchronous else (Kind.FAILED, NEVER_SENT)
            with contextlib.suppress(Exception):  # the interpreter may be ending
                main_loop.call(self._contents._answer, kind, self._document, self._number, encode(value))

    __del__ = give_up

    def failed(self, error: BaseException) -> None:
        """The listener that would have answered has raised."""
        app.report(error)
        self.give_up()


def dispatch(contents: Any, frame: Frame) -> None:
    """A message has come from a window: to its listeners, or its handler. In the main loop.

    Raises:
        Malformed: it holds no channel and arguments.
    """
    origin = contents.main_frame
    kind = Kind(frame.kind)
    answer = Answer(contents, frame) if kind in (Kind.INVOKE, Kind.SEND_SYNC) else None
    ports = [MessagePortMain(end) for end in contents.ports.take(frame.ports)]
    try:
        channel, *args = decode(frame.clone, ports=ports)
        if not isinstance(channel, str):
            raise TypeError(f"a channel is a str, not {channel!r}")
    except (ValueError, TypeError, IndexError) as reason:
        raise Malformed(f"a {kind.name} frame does not hold a channel and arguments: {reason}") from None
    emitters = origin.ipc, contents.ipc, ipc_main
    if kind == Kind.INVOKE:
        handler = next((each._handlers[channel] for each in emitters if channel in each._handlers), None)
        assert answer
        _invoke(channel, handler, IpcMainInvokeEvent(contents, origin, frame.document), args, answer)
        return
    event = IpcMainEvent(contents, origin, frame.document, answer)
    results: list[Any] = []
    try:
        if kind == Kind.SEND:
            contents._emit("ipc-message", (event, channel, *args), results)
        elif kind == Kind.SEND_SYNC:
            if not contents.listener_count("ipc-message-sync") and not any(e.listener_count(channel) for e in emitters):
                log.warning(
                    "WebContents #%d called ipcRenderer.sendSync() with '%s' channel without listeners.",
                    contents.id,
                    channel,
                )
            contents._emit("ipc-message-sync", (event, channel, *args), results)
        elif kind == Kind.SEND_TO_HOST:
            contents._emit("ipc-message-host", (event, channel, *args), results)
            return
        else:
            event.ports = ports
        for emitter in emitters:
            emitter._emit(channel, (event, *args), results)
    except BaseException:
        # Its traceback holds the event, and whoever keeps that would keep the page waiting.
        if answer and not any(hasattr(result, "__await__") for result in results):
            answer.give_up()
        raise
    finally:
        only = answer if len(results) == 1 else None
        for result in results:
            main_loop.run(result, only.failed if only else app.report)


def _invoke(
    channel: str, handler: Callable[..., Any] | None, event: IpcMainInvokeEvent, args: list[Any], answer: Answer
) -> None:
    if handler is None:
        _fail(channel, Error(f"No handler registered for '{channel}'"), answer)
        return
    try:
        result = handler(event, *args)
    except BaseException as error:  # also SystemExit: one handler must not end the thread of all
        _fail(channel, error, answer)
        return
    if hasattr(result, "add_done_callback"):  # a future: whoever has it settles it, or nobody
        _when_done(channel, result, answer)
    elif hasattr(result, "__await__"):
        event.sender._begun()
        main_loop.task(_wait(channel, result, event, answer))
    else:
        _succeed(channel, result, answer)


async def _wait(channel: str, result: Any, event: IpcMainInvokeEvent, answer: Answer) -> None:
    try:
        value = await result
        while hasattr(value, "__await__"):  # as promises do
            value = await value
    except (asyncio.CancelledError, GeneratorExit):
        raise  # nobody answers
    except BaseException as error:
        _fail(channel, error, answer)
    else:
        _succeed(channel, value, answer)
    finally:
        event.sender._done()


def _when_done(channel: str, future: Any, answer: Answer) -> None:
    """Answer with what a future comes to hold. Only the future refers to the answer: when it is lost, so is that."""

    def done(future: Any) -> None:
        if future.cancelled():
            return
        if error := future.exception():
            main_loop.call(_fail, channel, error, answer)
        else:
            main_loop.call(_settle, channel, future.result(), answer)

    future.add_done_callback(done)


def _settle(channel: str, value: Any, answer: Answer) -> None:
    if hasattr(value, "add_done_callback"):
        _when_done(channel, value, answer)
    else:
        _succeed(channel, value, answer)


def _succeed(channel: str, value: Any, answer: Answer) -> None:
    try:
        answer.send(Kind.REPLY, value)
    except CloneError as error:
        _fail(channel, Error(str(error)), answer)


def _fail(channel: str, error: BaseException, answer: Answer) -> None:
    text = error_text(error)
    traced = None if isinstance(error, (Error, CloneError, Throw)) else error
    log.error("Error occurred in handler for '%s': %s", channel, text, exc_info=traced)
    if isinstance(error, Throw) and (error.value is None or error.value is undefined):
        # JavaScript's toString fails here too, and the invocation is never answered: see NEVER_SENT.
        app.report(TypeError(f"Cannot read properties of {_js_text(error.value)} (reading 'toString')"))
        answer._sent = True
        return
    answer.send(Kind.FAILED, text)


def error_text(error: BaseException) -> str:
    """What JavaScript would say of an exception: "Name: message", only the name when there is no message.

    An OSError about a file reads as Node's do: "Error: ENOENT: no such file or directory, open 'notes.txt'".
    """
    if isinstance(error, Throw):
        return _js_text(error.value)
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        why = _NODE_WORDS.get(error.errno, (error.strerror or "").lower())
        return f"Error: {errno.errorcode.get(error.errno, error.errno)}: {why}, open '{error.filename}'"
    if isinstance(error, CloneError):
        return f"Error: {error}"
    name, message = (error.name if isinstance(error, Error) else type(error).__name__), str(error)
    return f"{name}: {message}" if message else name


_NODE_WORDS = {
    errno.EISDIR: "illegal operation on a directory",
    errno.EEXIST: "file already exists",
    errno.EMFILE: "too many open files",
    errno.ELOOP: "too many symbolic links encountered",
}


def _js_text(value: Any) -> str:
    """String(value) in JavaScript, of what can be thrown."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, BaseException):
        return error_text(value)
    if callable(getattr(value, "to_string", None)):
        return str(value.to_string())
    if isinstance(value, dict):
        return _js_text(value["toString"]()) if callable(value.get("toString")) else "[object Object]"
    if isinstance(value, (list, tuple)):
        return ",".join("" if item is None or item is undefined else _js_text(item) for item in value)
    if isinstance(value, (Map, Set, set, frozenset)):
        return "[object Map]" if isinstance(value, Map) else "[object Set]"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        if value.is_integer() and abs(value) < 1e21:
            return str(int(value))
    return str(value)


def type_of(value: Any) -> str:
    """JavaScript's typeof."""
    if value is undefined:
        return "undefined"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "string"
    if isinstance(value, BigInt) or (isinstance(value, int) and abs(value) > 2**53):
        return "bigint"
    return "number" if isinstance(value, (int, float)) else "object"
