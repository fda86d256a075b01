"""Node's EventEmitter, which Electron's objects are: registration order, snapshots, once; camelCase names as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from labkit.electron.clone import Error

Listener = Callable[..., Any]


class EventEmitter:
    """Listeners by name of the event. All methods may be called from any thread.

    `on` and the other methods that change something return the emitter, so that calls can be chained.
    """

    def __init__(self) -> None:
        self._listeners: dict[str, tuple[tuple[Listener, bool], ...]] = {}  # each a listener and whether it is for once

    def on(self, name: str, listener: Listener) -> Any:
        """Call `listener` each time, after those that were registered before; twice when it is registered twice."""
        return self._add(name, listener, once=False)

    def once(self, name: str, listener: Listener) -> Any:
        """Call `listener` the next time only."""
        return self._add(name, listener, once=True)

    def _add(self, name: str, listener: Listener, once: bool) -> Any:
        if not callable(listener):
            raise TypeError(f'The "listener" argument must be of type function. Received {listener!r}')
        self._listeners[name] = (*self._listeners.get(name, ()), (listener, once))
        return self

    def remove_listener(self, name: str, listener: Listener) -> Any:
        """Remove a listener once, the registration that is the most recent; without any it does nothing."""
        entries = self._listeners.get(name, ())
        for index in reversed(range(len(entries))):
            if entries[index][0] == listener:
                self._keep(name, entries[:index] + entries[index + 1 :])
                break
        return self

    def remove_all_listeners(self, name: str | None = None) -> Any:
        """Remove those of one event, or without a name all."""
        if name is None:
            self._listeners.clear()
        else:
            self._listeners.pop(name, None)
        return self

    def _keep(self, name: str, entries: tuple[tuple[Listener, bool], ...]) -> None:
        if entries:
            self._listeners[name] = entries
        else:
            self._listeners.pop(name, None)

    def emit(self, name: str, *args: Any) -> bool:
        """Call the listeners that there are now, in order. Returns whether there were any.

        What one of them raises ends it, and the others are not called. Without a listener "error" is raised.
        """
        return self._emit(name, args, None)

    def _emit(self, name: str, args: tuple[Any, ...], results: list[Any] | None) -> bool:
        entries = self._listeners.get(name)
        if not entries:
            if name == "error":
                raise args[0] if args and isinstance(args[0], BaseException) else Error("Unhandled error.")
            return False
        for entry in entries:
            listener, once = entry
            if once:
                now = self._listeners.get(name, ())
                at = next((i for i, other in enumerate(now) if other is entry), None)
                if at is None:
                    continue  # a listener before it has emitted the same event: it was called then
                self._keep(name, now[:at] + now[at + 1 :])
            result = listener(*args)
            if results is not None:
                results.append(result)
        return True

    def listener_count(self, name: str) -> int:
        """How many there are of one event."""
        return len(self._listeners.get(name, ()))

    def listeners(self, name: str) -> list[Listener]:
        """Those of one event, in order."""
        return [listener for listener, _ in self._listeners.get(name, ())]

    def event_names(self) -> list[str]:
        """The events that have listeners, in the order in which they came to have some."""
        return list(self._listeners)

    add_listener = addListener = on
    off = removeListener = remove_listener
    removeAllListeners = remove_all_listeners
    listenerCount = listener_count
    eventNames = event_names
