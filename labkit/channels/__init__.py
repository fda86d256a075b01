"""channel(kind): two ends of any mechanism, used the same way. One mechanism is one file in this folder."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from labkit.channels.base import Facts, Receiver, Sender

if TYPE_CHECKING:
    from labkit.trace import Trace

KINDS = {
    "pipe": "labkit.channels.pipe",
    "unix_seqpacket": "labkit.channels.unix_seqpacket",
    "posix_mq": "labkit.channels.posix_mq",
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
        TypeError: the mechanism has no such option.
        OSError: the kernel refuses; the text says which limit or permission is in the way.
    """
    module = _module(kind)
    if name is None:
        tx, rx = module.open(**options)
    else:
        tx, rx = _named(module, kind, "open_named")(name, **options)
    if trace is None:
        return tx, rx
    try:
        return trace.traced(tx, rx, label or name or kind)
    except BaseException:
        tx.close()
        rx.close()
        if name is not None:
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
    end: Sender = _named(_module(kind), kind, "open_sender")(name, create=create, **options)
    return end


def receiver(kind: str, name: str, create: bool = False, **options: Any) -> Receiver:
    """The receiving end of a channel of this name: as `sender`."""
    end: Receiver = _named(_module(kind), kind, "open_receiver")(name, create=create, **options)
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


class FactsTable(dict[str, Facts]):
    """Mechanism -> Facts, shown as a table in a notebook."""

    def rows(self) -> list[dict[str, Any]]:
        return [{"kind": kind, **asdict(facts)} for kind, facts in self.items()]

    def _repr_html_(self) -> str:
        def cell(value: Any) -> str:
            if value is None:
                return "no limit"
            return (
                {True: "yes", False: "–"}[value]
                if isinstance(value, bool)
                else f"{value:,}"
                if isinstance(value, int)
                else str(value)
            )

        rows = self.rows()
        head = "".join(f"<th style='text-align:left'>{kind}</th>" for kind in self)
        body = "".join(
            f"<tr><th style='text-align:left'>{field.replace('_', ' ')}</th>"
            + "".join(f"<td style='text-align:left'>{cell(row[field])}</td>" for row in rows)
            + "</tr>"
            for field in rows[0]
            if field != "kind"
        )
        return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"


def facts() -> FactsTable:
    """What is true of each mechanism, in one table: TLPI's comparison, checked by the test suite."""
    return FactsTable({kind: importlib.import_module(module).FACTS for kind, module in KINDS.items()})
