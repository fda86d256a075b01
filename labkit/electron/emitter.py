"""Node's EventEmitter, which Electron's objects are: registration order, snapshots, once; camelCase names as well."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from labkit.electron.clone import Error

Listener = Callable[..., Any]


@dataclass(eq=False)
class _Entry:
    """A registration of a listener."""

    listener: Listener
    once: bool
    called: bool = False  # one that is for once


class EventEmitter:
    """Listeners by name of the event. All methods may be called from any thread.

    `on` and the other methods that change something return the emitter, so that calls can be chained. What an async
    listener does is done in the main loop.
    """

    def __init__(self) -> None:
        self._listeners: dict[str, tuple[_Entry, ...]] = {}
        self._changing = threading.RLock()

    def on(self, name: str, listener: Listener) -> Any:
        """Call `listener` each time, after those that were registered before; twice when it is registered twice."""
        return self._add(name, listener, once=False)

    def once(self, name: str, listener: Listener) -> Any:
        """Call `listener` the next time only."""
        return self._add(name, listener, once=True)

    def _add(self, name: str, listener: Listener, once: bool) -> Any:
        if not callable(listener):
            raise TypeError(f'The "listener" argument must be of type function. Received {listener!r}')
        with self._changing:
            self._listeners[name] = (*self._listeners.get(name, ()), _Entry(listener, once))
        return self

    def remove_listener(self, name: str, listener: Listener) -> Any:
        """Remove a listener once, the registration that is the most recent; without any it does nothing."""
        with self._changing:
            for entry in reversed(self._listeners.get(name, ())):
                if entry.listener == listener:
                    self._drop(name, entry)
                    break
        return self

    def remove_all_listeners(self, name: str | None = None) -> Any:
        """Remove those of one event, or without a name all."""
        with self._changing:
            if name is None:
                self._listeners.clear()
            else:
                self._listeners.pop(name, None)
        return self

    def _drop(self, name: str, entry: _Entry) -> None:
        rest = tuple(other for other in self._listeners.get(name, ()) if other is not entry)
        if rest:
            self._listeners[name] = rest
        else:
            self._listeners.pop(name, None)

    def emit(self, name: str, *args: Any) -> bool:
        """Call the listeners that there are now, in order. Returns whether there were any.

        What one of them raises ends it, and the others are not called. Without a listener "error" is raised.
        """
        from labkit.electron.loop import main_loop  # which is made of emitters

        results: list[Any] = []
        try:
            return self._emit(name, args, results)
        finally:
            for result in results:
                main_loop.run(result)

    def _emit(self, name: str, args: tuple[Any, ...], results: list[Any]) -> bool:
        """As `emit`; what the listeners return is put into `results`, to be awaited by who calls this."""
        entries = self._listeners.get(name)
        if not entries:
            if name == "error":
                raise args[0] if args and isinstance(args[0], BaseException) else Error("Unhandled error.")
            return False
        for entry in entries:
            if entry.once:
                with self._changing:
                    if entry.called:
                        continue  # a listener before it has emitted the same event: it was called then
                    entry.called = True
                    self._drop(name, entry)
            results.append(entry.listener(*args))
        return True

    def listener_count(self, name: str) -> int:
        """How many there are of one event."""
        return len(self._listeners.get(name, ()))

    def listeners(self, name: str) -> list[Listener]:
        """Those of one event, in order."""
        return [entry.listener for entry in self._listeners.get(name, ())]

    def event_names(self) -> list[str]:
        """The events that have listeners, in the order in which they came to have some."""
        return list(self._listeners)

    add_listener = addListener = on
    off = removeListener = remove_listener
    removeAllListeners = remove_all_listeners
    listenerCount = listener_count
    eventNames = event_names
