"""Who has a pipe, a FIFO or a file open: proc_pid_fd(5), proc_pid_fdinfo(5). TLPI §5.4, §44.2."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from html import escape
from pathlib import Path


@dataclass(frozen=True)
class Holder:
    """One descriptor of one process."""

    pid: int
    name: str
    """The process's command name; "this process" for ourselves."""
    fd: int
    access: str
    """What the descriptor was opened for: reading, writing or both."""


class Holders(list[Holder]):
    """Descriptors, shown as a table in a notebook."""

    def _cells(self) -> list[tuple[str, ...]]:
        head = ("process", "pid", "descriptor", "open for")
        return [head, *((holder.name, str(holder.pid), str(holder.fd), holder.access) for holder in self)]

    def __repr__(self) -> str:
        if not self:
            return "nobody"
        lines = self._cells()
        widths = [max(len(line[i]) for line in lines) for i in range(4)]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)

    def _repr_html_(self) -> str:
        if not self:
            return "<p>nobody</p>"
        head, *rows = self._cells()
        left = "style='text-align:left'"
        heads = "".join(f"<th {left}>{escape(cell)}</th>" for cell in head)
        body = "".join("<tr>" + "".join(f"<td {left}>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
        return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def holders(where: int | str | Path) -> Holders:
    """Every descriptor of every process that leads to the same kernel object.

    Processes of other users cannot be looked into and are left out (ptrace(2), PTRACE_MODE_READ_FSCREDS).

    Args:
        where: a descriptor of ours, or the path of a FIFO or file. Looking does not open it.

    Raises:
        OSError: EBADF, the descriptor is not open; ENOENT, there is no such path.
    """
    found = os.stat(where)
    wanted = found.st_dev, found.st_ino
    result = Holders()
    for process in sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
        with contextlib.suppress(OSError):  # it has ended, or is not ours
            for fd in sorted(int(entry) for entry in os.listdir(f"/proc/{process}/fd")):
                with contextlib.suppress(OSError):
                    there = os.stat(f"/proc/{process}/fd/{fd}")
                    if (there.st_dev, there.st_ino) == wanted:
                        result.append(Holder(process, _name(process), fd, _access(process, fd)))
    return result


def _name(pid: int) -> str:
    return "this process" if pid == os.getpid() else Path(f"/proc/{pid}/comm").read_text().strip()


def _access(pid: int, fd: int) -> str:
    lines = Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines()
    flags = next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))
    return {os.O_RDONLY: "reading", os.O_WRONLY: "writing"}.get(flags & os.O_ACCMODE, "both")
