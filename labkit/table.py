"""A list of dataclasses that shows itself as a table, in a terminal and in a notebook."""

from __future__ import annotations

from html import escape
from typing import Any, ClassVar


class Table(list[Any]):
    """Rows. A kind of table says what its columns are called, and what a row has in them."""

    columns: ClassVar[tuple[str, ...]]
    empty: ClassVar[str] = "nothing"

    def cells(self, row: Any) -> tuple[str, ...]:
        """The texts of one row."""
        raise NotImplementedError

    def __repr__(self) -> str:
        if not self:
            return self.empty
        lines = [self.columns, *map(self.cells, self)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)

    def _repr_html_(self) -> str:
        if not self:
            return f"<p>{escape(self.empty)}</p>"

        def line(tag: str, texts: tuple[str, ...]) -> str:
            cells = "".join(f"<{tag} style='text-align:left'>{escape(text)}</{tag}>" for text in texts)
            return f"<tr>{cells}</tr>"

        body = "".join(line("td", self.cells(row)) for row in self)
        return (
            "<div style='overflow-x:auto'><table>"
            f"<thead>{line('th', self.columns)}</thead><tbody>{body}</tbody></table></div>"
        )
