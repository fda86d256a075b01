"""Cells for other kernels: the magic `%%kernel NAME`, and completion in its cells. `%load_ext labkit` loads both."""

from __future__ import annotations

import re
import shlex
from typing import Any

from labkit.handing import shell as own_shell
from labkit.kernels import Run, existing, kernel


def load_ipython_extension(shell: Any) -> None:
    """%load_ext labkit: the magic %%kernel, and completion in its cells."""
    shell.register_magic_function(_run_cell, "cell", "kernel")
    if _complete not in shell.Completer.custom_matchers:
        shell.Completer.custom_matchers.append(_complete)


def unload_ipython_extension(shell: Any) -> None:
    """%unload_ext labkit. The kernels live on."""
    shell.magics_manager.magics["cell"].pop("kernel", None)
    if _complete in shell.Completer.custom_matchers:
        shell.Completer.custom_matchers.remove(_complete)


USAGE = "%%kernel NAME [VARIABLE...] [--spec SPEC] [&]"


def _run_cell(line: str, cell: str) -> Run | None:
    """Run the cell in a Jupyter kernel of its own.

        %%kernel NAME [VARIABLE...] [--spec SPEC] [&]

    NAME is any word; the first time the kernel is started, which takes a second. VARIABLEs of this notebook are handed
    to it first, endpoints of channels for good: then they are closed here. With & at the end the cell runs in the
    background, and its output appears here as it comes; `await kernel("NAME")` waits for it. --spec chooses another
    kernel than Python's: see `jupyter kernelspec list`.
    """
    from IPython.core.error import UsageError

    try:
        words = shlex.split(line)
    except ValueError as reason:  # a quote that is not closed
        raise UsageError(f"{USAGE}, not %%kernel {line}: {reason}") from None
    background = words[-1:] == ["&"]
    if background:
        words.pop()
    spec = None
    if "--spec" in words[:-1]:
        place = words.index("--spec")
        spec = words[place + 1]
        del words[place : place + 2]
    if not words or any(word.startswith("-") or not word.isidentifier() for word in words):
        raise UsageError(f"{USAGE}, not %%kernel {line}")
    name, *variables = words
    mine = own_shell().user_ns
    if missing := [variable for variable in variables if variable not in mine]:
        raise UsageError(f"there is no variable {missing[0]!r} here that could be handed to {name}")
    try:
        other = kernel(name, spec)
        if variables:
            other.push(**{variable: mine[variable] for variable in variables})
    except (TypeError, ValueError) as reason:
        raise UsageError(str(reason)) from None
    run = other.run(cell, wait=not background)
    return run if background else None


def _complete(context: Any) -> dict[str, Any]:
    """What IPython's completer asks: the other kernel's completions, when the cursor is in a cell of one."""
    from IPython.core.completer import SimpleCompletion

    first, _, body = context.full_text.partition("\n")
    found = re.match(r"\s*%%kernel\s+(\w+)", first)
    other = existing(found[1]) if found else None
    if other is None or context.cursor_line == 0:
        return {"completions": []}
    lines = context.full_text.split("\n")[1 : context.cursor_line]
    position = sum(len(line) + 1 for line in lines) + context.cursor_position
    reply = other.complete(body, position)
    fragment = body[reply.get("cursor_start", position) : position]
    kinds = {one["text"]: one.get("type") for one in reply.get("metadata", {}).get("_jupyter_types_experimental", [])}
    completions = [SimpleCompletion(text, type=kinds.get(text)) for text in reply.get("matches", [])]
    return {"completions": completions, "matched_fragment": fragment, "suppress": True, "ordered": True}


_complete.matcher_api_version = 2  # type: ignore[attr-defined]
_complete.matcher_identifier = "labkit.kernel"  # type: ignore[attr-defined]
