"""The comparison table of all mechanisms, to sort and to search: facts.js."""

from __future__ import annotations

import gzip
import json
import uuid
from typing import Any

import traitlets

from labkit.channels import FactsTable
from labkit.views.esm import module
from labkit.views.live import Shown


class FactsView(Shown):
    """Shows labkit.facts(), a row a mechanism. Nothing is sent back."""

    _esm = module("facts")
    key = traitlets.Unicode().tag(sync=True)
    recording = traitlets.Bytes().tag(sync=True)

    def __init__(self, table: FactsTable, **options: Any):
        self._table = table
        super().__init__(key=uuid.uuid4().hex, recording=record(table), **options)

    def __repr__(self) -> str:
        return repr(self._table)

    def stands_in(self) -> dict[str, str]:
        return self.as_page(self._table._repr_html_())


def record(table: FactsTable) -> bytes:
    """The table as facts.js draws it, gzip of JSON: columns with their meanings, rows."""
    columns = [{"name": name, "meaning": meaning} for name, meaning in table.meanings().items()]
    rows = [[row["kind"], *(row[column["name"]] for column in columns)] for row in table.rows()]
    return gzip.compress(json.dumps({"columns": columns, "rows": rows}).encode(), 6, mtime=0)
