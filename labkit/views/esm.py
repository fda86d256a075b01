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

IMPORT = re.compile(r'^import (\{[^}]*\}|\w+) from "\./(\w+)\.js";\n', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const) (\w+))", re.MULTILINE)
DEFAULT = re.compile(r"^export default ", re.MULTILINE)


@functools.cache
def module(name: str) -> str:
    """The text of the module labkit/views/NAME.js with all that it needs.

    Raises:
        FileNotFoundError: there is no such module.
        ImportError: one imports what another does not export.
    """
    parts: dict[str, tuple[str, set[str]]] = {}
    _join(name, parts)
    return "\n".join(text for text, _ in parts.values()) + f"\nexport default {name}_js.default;\n"


def _join(name: str, parts: dict[str, tuple[str, set[str]]]) -> None:
    """Put the text and the exports of a module into `parts`, behind those that it imports."""
    text = Path(__file__).with_name(f"{name}.js").read_text(encoding="utf-8")
    for names, other in IMPORT.findall(text):
        if other not in parts:
            _join(other, parts)
        wanted = set(re.findall(r"(\w+)(?: as \w+)?", names)) if names.startswith("{") else {"default"}
        if missing := wanted - parts[other][1]:
            raise ImportError(f"{name}.js imports {', '.join(sorted(missing))}, which {other}.js does not export")
    exports = EXPORT.findall(text)
    text, default = DEFAULT.subn("const default_ = ", EXPORT.sub("", IMPORT.sub(_import, text)))
    returned = ", ".join(exports + ["default: default_"] * default)
    body = f"const {name}_js = (() => {{\n{text}\nreturn {{ {returned} }};\n}})();"
    parts[name] = body, {*exports, *["default"] * default}


def _import(found: re.Match[str]) -> str:
    names, other = found[1], found[2]
    what = names.replace(" as ", ": ") + f" = {other}_js" if names.startswith("{") else f"{names} = {other}_js.default"
    return f"const {what};\n"
