"""channel(kind): two ends of any mechanism, used the same way. One mechanism is one file in this folder."""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import inspect
from dataclasses import asdict
from html import escape
from typing import TYPE_CHECKING, Any

from labkit.channels.base import Facts, Receiver, Sender, whole

if TYPE_CHECKING:
    from labkit.trace import Trace

KINDS = {
    "pipe": "labkit.channels.pipe",
    "fifo": "labkit.channels.fifo",
    "unix_stream": "labkit.channels.unix_stream",
    "unix_datagram": "labkit.channels.unix_datagram",
    "unix_seqpacket": "labkit.channels.unix_seqpacket",
    "tcp": "labkit.channels.tcp",
    "udp": "labkit.channels.udp",
    "posix_mq": "labkit.channels.posix_mq",
    "sysv_mq": "labkit.channels.sysv_mq",
    "mmap_file": "labkit.channels.mmap_file",
    "posix_shm": "labkit.channels.posix_shm",
    "sysv_shm": "labkit.channels.sysv_shm",
    "signal": "labkit.channels.signal",
    "mp_queue": "labkit.channels.mp_queue",
    "zmq": "labkit.channels.zmq",
    "shm_ring": "labkit.channels.shm_ring",
}
"""The mechanisms and the modules they live in; a module is imported when its mechanism is first used."""


def channel(
    kind: str, name: str | None = None, trace: Trace | None = None, label: str | None = None, **options: Any
) -> tuple[Sender, Receiver]:
    """Open a channel: two ends, data flows left to right.

    Args:
        kind: the mechanism, a key of `KINDS`.
        name: makes it possible for unrelated processes to open an end with `sender` or `receiver`.
        trace: records what happens at both ends.
        label: what views call the channel, the kind unless given.
        options: the mechanism's own, see `help(labkit.channels.posix_mq.open)` and its siblings.

    Raises:
        ValueError: there is no such mechanism, it cannot have a name, or an option is out of range.
        TypeError: the mechanism has no such option, or `trace` is no Trace.
        OSError: the kernel refuses; the text says which limit or permission is in the way.
    """
    if isinstance(trace, type) or (trace is not None and not hasattr(trace, "traced")):
        raise TypeError(f"trace is a labkit.Trace, not {type(trace).__name__}: trace = Trace() makes one")
    module = _module(kind)
    if name is None:
        tx, rx = module.open(**_checked(kind, module.open, options))
    else:
        open_named = _named(module, kind, "open_named")
        tx, rx = open_named(name, **_checked(kind, open_named, options))
    if trace is None:
        return tx, rx
    try:
        return trace.traced(tx, rx, label or name or kind)
    except BaseException:
        tx.close()
        rx.close()
        if name is not None:
            with contextlib.suppress(FileNotFoundError):  # a socket's went with its receiver
                module.unlink(name)
        raise


def sender(kind: str, name: str, create: bool = False, **options: Any) -> Sender:
    """The sending end of a channel of this name, for processes that have nothing in common but the name.

    Args:
        kind: the mechanism, one that has names: `labkit.facts()`.
        name: one word, the same for everybody who is to meet there.
        create: make the name when it is not there yet. A socket's name is made by its receiver.
        options: the mechanism's own, as for `channel`.

    Raises:
        FileNotFoundError: nobody has made the name.
        ValueError: the name cannot be one, or the mechanism has no names.
    """
    open_sender = _named(_module(kind), kind, "open_sender")
    end: Sender = open_sender(name, create=create, **_checked(kind, open_sender, options))
    return end


def receiver(kind: str, name: str, create: bool = False, **options: Any) -> Receiver:
    """The receiving end of a channel of this name: as `sender`.

    It learns that its last sender has gone where the mechanism tells (`facts()[kind].tells_close`). Elsewhere it waits
    on: agree on a last message.
    """
    open_receiver = _named(_module(kind), kind, "open_receiver")
    end: Receiver = open_receiver(name, create=create, **_checked(kind, open_receiver, options))
    return end


def unlink(kind: str, name: str) -> None:
    """Remove a channel's name; the channel itself goes with its last user. Raises FileNotFoundError."""
    _named(_module(kind), kind, "unlink")(name)


def _module(kind: str) -> Any:
    if kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, n=1, cutoff=0.4)
        hint = f' (did you mean "{near[0]}"?)' if near else ""
        raise ValueError(f'no channel called "{kind}"; there are: {", ".join(sorted(KINDS))}{hint}')
    return importlib.import_module(KINDS[kind])


def _named(module: Any, kind: str, function: str) -> Any:
    if not hasattr(module, function):
        named = ", ".join(k for k, m in KINDS.items() if not importlib.import_module(m).FACTS.related_only)
        raise ValueError(
            f"a {kind} has no name: its ends pass from process to process as descriptors. With a name there is: {named}"
        )
    return getattr(module, function)


def _checked(kind: str, opens: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Options of the types that a mechanism's function says it takes; their ranges are its own affair.

    Raises:
        TypeError: it has no such option, or this one is something else.
    """
    takes = inspect.signature(opens).parameters if options else {}
    checked: dict[str, Any] = {}
    for name, value in options.items():
        if name not in takes:
            has = ", ".join(option for option in takes if option not in ("name", "create")) or "none"
            raise TypeError(f"a {kind} has no option {name!r} here; it has: {has}")
        meant = takes[name].annotation
        if value is None and meant.endswith("| None"):
            checked[name] = None
        elif meant.startswith("int"):
            checked[name] = whole(value, name)
        elif meant.startswith("bool") and value not in (True, False):
            raise TypeError(f"{name} is True or False, not {value!r}")
        else:
            checked[name] = value  # a timeout is looked at by who waits
    return checked


class FactsTable(dict[str, Facts]):
    """Mechanism -> Facts, shown as a table in a notebook: a row a mechanism, a column a fact."""

    def rows(self) -> list[dict[str, Any]]:
        return [{"kind": kind, **asdict(facts)} for kind, facts in self.items()]

    def meanings(self) -> dict[str, str]:
        """What each column says, by its name."""
        return _meanings()

    def __repr__(self) -> str:
        heads, rows = list(_meanings()), []
        for kind, fact in self.items():
            values = (getattr(fact, name) for name in heads)
            rows.append([kind, *(("–", "yes")[value] if isinstance(value, bool) else str(value) for value in values)])
        table = [["", *(name.replace("_", " ") for name in heads)], *rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)

    def _repr_html_(self) -> str:
        def cell(value: Any) -> str:
            if isinstance(value, bool):
                return f"<td style='text-align:center'>{'●' if value else '<span style=opacity:.35>–</span>'}</td>"
            if isinstance(value, int):
                return f"<td style='text-align:right'>{value:,}</td>"
            return f"<td style='text-align:left;white-space:nowrap'>{'no limit' if value is None else value}</td>"

        meanings = _meanings()
        head = "".join(
            f"<th style='vertical-align:bottom;text-align:left' title='{escape(meanings[name], quote=True)}'>"
            f"{name.replace('_', ' ')}</th>"
            for name in meanings
        )
        body = "".join(
            f"<tr><th style='text-align:left'>{kind}</th>"
            + "".join(cell(getattr(fact, name)) for name in meanings)
            + "</tr>"
            for kind, fact in self.items()
        )
        return (
            f"<div style='overflow-x:auto'><table><thead><tr><th></th>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table></div>"
            "<small>● yes, – no. Rest the pointer on a heading to read what it means.</small>"
        )


def _meanings() -> dict[str, str]:
    """What each field of Facts says about itself, the text below it in its source."""
    (facts_class,) = ast.parse(inspect.getsource(Facts)).body
    assert isinstance(facts_class, ast.ClassDef)
    found, name = {}, ""
    for line in facts_class.body:
        if isinstance(line, ast.AnnAssign):
            name = ast.unparse(line.target)
        elif isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and name:
            found[name] = inspect.cleandoc(str(line.value.value))
    return found


def facts() -> FactsTable:
    """What is true of each mechanism, in one table: TLPI's comparison, checked by the test suite."""
    return FactsTable({kind: importlib.import_module(module).FACTS for kind, module in KINDS.items()})
