"""Counts over all rows of a log: labels by partition, and how well ids carry over to later rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb

from rookery.data.columns import ColumnRequest
from rookery.data.ingest_sources import identifier, parquet_sql
from rookery.data.locate import locate_row
from rookery.data.row_groups import list_row_groups
from rookery.errors import DataError
from rookery.ranker.init_log import Log
from rookery.ranker.init_split import Clock, Part

FREQUENT = 5
"""Rows from which on a value has a vector of its own."""


@dataclass(frozen=True)
class PartCounts:
    """Rows of a partition, and those of them in which each label is 1."""

    num_rows: int
    positives: Mapping[str, int]


@dataclass(frozen=True)
class IdCounts:
    """Distinct values of a column in training rows, those in ``FREQUENT`` rows or more, and how often these come later.

    ``rows_per_value``: mean number of training rows with a value. ``known_share``: of the validation rows, those with
    a frequent value.
    """

    num_values: int
    num_frequent: int
    rows_per_value: float
    known_share: float


class RowCounter:
    """Asks DuckDB about the partitions of a log."""

    def __init__(self, db: duckdb.DuckDBPyConnection, clock: Clock | None, parts: Sequence[Part]) -> None:
        self._db = db
        self._clock = clock
        self._parts = {part.name: part for part in parts}

    def labels(self, labels: Sequence[str]) -> dict[str, PartCounts]:
        """Rows and positives of each partition."""
        sums = ", ".join(f"coalesce(sum({identifier(name)}::DOUBLE), 0)" for name in labels)
        counts = {}
        for name, part in self._parts.items():
            (num_rows, *positives), *_ = self._db.execute(f"SELECT count(*), {sums} FROM {self._rows(part)}").fetchall()
            counts[name] = PartCounts(num_rows, dict(zip(labels, map(int, positives), strict=True)))
        return counts

    def ids(self, column: str) -> IdCounts:
        """How the values of ``column`` are spread over training rows and later ones."""
        name = identifier(column)
        self._db.execute(f"""
            CREATE OR REPLACE TEMP TABLE counted AS
            SELECT {name} AS value, count(*) AS n FROM {self._rows(self._parts["train"])}
            WHERE {name} IS NOT NULL GROUP BY 1
        """)
        ((num_values, num_frequent, rows_per_value),) = self._db.execute(f"""
            SELECT count(*), count(*) FILTER (n >= {FREQUENT}), coalesce(avg(n), 0) FROM counted
        """).fetchall()
        ((known,),) = self._db.execute(f"""
            SELECT avg((counted.value IS NOT NULL)::INTEGER) FROM {self._rows(self._parts["valid"])} later
            LEFT JOIN counted ON later.{name} = counted.value AND counted.n >= {FREQUENT}
        """).fetchall()
        return IdCounts(num_values, num_frequent, rows_per_value, known or 0.0)

    def _rows(self, part: Part) -> str:
        """A table expression of the rows of a partition."""
        where = self._clock.condition(part) if self._clock is not None else "true"
        limit = f" LIMIT {part.limit}" if part.limit is not None else ""
        return f"(SELECT * FROM {parquet_sql(part.files)} WHERE {where}{limit} OFFSET {part.offset})"


def require_labels(log: Log, labels: Sequence[str]) -> None:
    """Raise ``DataError`` with the place of the first label that is neither 0 nor 1, in the log's file order."""
    slices, types = list_row_groups(log.files, [ColumnRequest(name, "label") for name in labels])
    for name in labels:
        found = locate_row(slices, types[name], lambda values: (values != 0) & (values != 1))
        if found is not None:
            raise DataError(
                f"{found} is {found.value:g}; a label is 0 or 1: correct it, or name a column "
                "that says whether it happened"
            )
