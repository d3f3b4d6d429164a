"""The tables of one Nsight Systems SQLite export as arrays; a column that its version lacks reads as unknown."""

from __future__ import annotations

import itertools
import sqlite3

import numpy as np

from g4lab.errors import bad
from g4lab.trace.model import Problem

UNKNOWN = -1
# Both times zero is CUPTI's mark of a record that it could not time.
_USABLE = "typeof(start) = 'integer' AND typeof([end]) = 'integer' AND [end] >= start AND (start <> 0 OR [end] <> 0)"


class Export:
    """An open export. problems: rows left out so far, with their counts. strings: the texts that ids stand for."""

    def __init__(self, connection: sqlite3.Connection):
        connection.text_factory = lambda text: text.decode("utf-8", "replace")
        self._connection = connection
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')").fetchall()
        self._columns = {name: self._columns_of(name) for (name,) in tables}
        self.problems: list[Problem] = []
        self.strings = self.pairs("StringIds", "id", "value")

    def _columns_of(self, table: str) -> set[str]:
        quoted = table.replace('"', '""')
        return {row[1] for row in self._connection.execute(f'PRAGMA table_info("{quoted}")')}

    def has(self, table: str, *columns: str) -> bool:
        """Whether the export has the table, with these columns."""
        return table in self._columns and self._columns[table].issuperset(columns)

    def pairs(self, table: str, key: str, value: str) -> dict:
        """Two columns of a table as a dict; empty where the export lacks them."""
        return (
            dict(self._connection.execute(f"SELECT {key}, {value} FROM {table}")) if self.has(table, key, value) else {}
        )

    def rows(self, table: str, *columns: str) -> list[tuple]:
        """All rows of a small table; none where the export lacks it or one of the columns."""
        if not self.has(table, *columns):
            return []
        return self._connection.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchall()

    def events(self, table: str, only: str = "1", **columns: str) -> dict[str, np.ndarray]:
        """Events of a table as arrays: ts_us and dur_us (float64), and `columns` by their new names (int64).

        A column may be followed by arithmetic ("globalTid & 16777215"); unknown is -1. Rows that cannot be placed in
        time (no start or end, or the end first) are left out and counted as a problem.

        Args:
            only: an SQL condition on the rows that are meant.
        """
        wanted = ["start", "[end]", *(self._integer(table, expression) for expression in columns.values())]
        values = np.empty(0, np.int64)
        if self.has(table):
            if not self.has(table, "start", "end"):
                raise bad("table", table, "the columns start and end that Nsight Systems writes")
            where = f"FROM {table} WHERE ({only})"
            cursor = self._connection.execute(f"SELECT {', '.join(wanted)} {where} AND {_USABLE}")
            values = np.fromiter(itertools.chain.from_iterable(cursor), np.int64)
            ((all_rows,),) = self._connection.execute(f"SELECT COUNT(*) {where}")
            self._left_out(table, all_rows - len(values) // len(wanted))
        start, end, *others = values.reshape(-1, len(wanted)).T
        # The difference is taken of whole nanoseconds: that of two floats would lose digits.
        times = {"ts_us": start / 1e3, "dur_us": (end - start) / 1e3}
        return times | dict(zip(columns, others, strict=True))

    def texts(self, table: str, column: str, only: str = "1") -> list[str | None]:
        """A text column of the rows that `events` returns for the same table and condition."""
        column = column if self.has(table, column) else "NULL"
        query = f"SELECT {column} FROM {table} WHERE ({only}) AND {_USABLE}"
        return [value if isinstance(value, str) else None for (value,) in self._connection.execute(query)]

    def _integer(self, table: str, expression: str) -> str:
        column = expression.split()[0]
        if not self.has(table, column):
            return str(UNKNOWN)
        return f"CASE typeof({column}) WHEN 'integer' THEN {expression} ELSE {UNKNOWN} END"

    def _left_out(self, table: str, rows: int) -> None:
        if rows:
            what = f"{table}: rows without a start and an end, or with the end first, were left out"
            self.problems.append(Problem(what, rows))
