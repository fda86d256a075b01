"""A view's ES module and what it imports from beside it, joined into one: anywidget takes one module and no build step.

Every file is a real ES module. Joined, each becomes a function that is called once and returns its exports, so that no
two files can get in each other's way:

    const shared_js = (() => { …; return { duration, element }; })();
    const flow_js = (() => { const { duration } = shared_js; …; return { default: default_ }; })();
    export default flow_js.default;

The same text runs in JupyterLab, Notebook 7, VS Code, Voila and in a report.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

IMPORT = re.compile(r'^import (\{[^}]*\}|\w+) from "(\.\.?/[\w./-]+)\.js";\n', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const) (\w+))", re.MULTILINE)
DEFAULT = re.compile(r"^export default ", re.MULTILINE)
HERE = Path(__file__).parent


@functools.cache
def module(name: str, folder: Path = HERE) -> str:
    """The text of the module NAME.js, of labkit/views unless another folder is given, with all that it needs.

    Raises:
        FileNotFoundError: there is no such module.
        ImportError: one imports what another does not export.
    """
    return f"{_joined(name, folder)}\nexport default {_variable(name)}.default;\n"


@functools.cache
def script(name: str, folder: Path) -> str:
    """The same as an expression: the module's default export, for a script that must run before anything else."""
    return f'(() => {{\n"use strict";\n{_joined(name, folder)}\nreturn {_variable(name)}.default;\n}})()'


def _joined(name: str, folder: Path) -> str:
    parts: dict[str, tuple[str, set[str]]] = {}
    _join(name, folder, parts)
    return "\n".join(text for text, _ in parts.values())


def _join(name: str, folder: Path, parts: dict[str, tuple[str, set[str]]]) -> None:
    """Put the text and the exports of a module into `parts`, behind those that it imports."""
    text = folder.joinpath(f"{name}.js").read_text(encoding="utf-8")
    for names, path in IMPORT.findall(text):
        other = Path(path).name
        if other not in parts:
            _join(other, folder.joinpath(path).parent, parts)
        wanted = set(re.findall(r"(\w+)(?: as \w+)?", names)) if names.startswith("{") else {"default"}
        if missing := wanted - parts[other][1]:
            raise ImportError(f"{name}.js imports {', '.join(sorted(missing))}, which {other}.js does not export")
    exports = EXPORT.findall(text)
    text, default = DEFAULT.subn("const default_ = ", EXPORT.sub("", IMPORT.sub(_import, text)))
    returned = ", ".join(exports + ["default: default_"] * default)
    body = f"const {_variable(name)} = (() => {{\n{text}\nreturn {{ {returned} }};\n}})();"
    parts[name] = body, {*exports, *["default"] * default}


def _import(found: re.Match[str]) -> str:
    names, other = found[1], _variable(Path(found[2]).name)
    what = names.replace(" as ", ": ") + f" = {other}" if names.startswith("{") else f"{names} = {other}.default"
    return f"const {what};\n"


def _variable(name: str) -> str:
    return f"{name.replace('-', '_')}_js"
