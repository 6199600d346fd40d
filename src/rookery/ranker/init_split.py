"""Which rows of a log train, which choose, which test: by time, at the turn of a day where there are days."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import duckdb
import pyarrow as pa

from rookery.data.columns import is_number, is_time
from rookery.data.ingest_sources import identifier, parquet_sql
from rookery.errors import DataError
from rookery.ranker.init_log import SPLITS, Log

HELD_OUT = 0.1
"""Share of the rows in the test set, and in the validation set."""

_MIN_DAYS = 4
_MAX_CUTS = 2_000
# Integers of these sizes are seconds, milli-, micro- or nanoseconds of the years 1998 to 2128.
_FIRST_S, _LAST_S = 9e8, 5e9
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Bound:
    """A place in the time column: as the configuration has it, as SQL has it, and for a reader."""

    value: int | float | str
    sql: str
    text: str


@dataclass(frozen=True)
class Part:
    """One partition: ``inputs`` as the configuration names them, ``files`` found there, rows by time or by place."""

    name: str
    inputs: tuple[Path, ...]
    files: tuple[Path, ...]
    at_least: Bound | None = None
    below: Bound | None = None
    offset: int = 0
    limit: int | None = None


@dataclass(frozen=True)
class Clock:
    """How to read the time column: ``ticks`` is SQL for a number of it, ``ticks_per_day`` None where it is no clock."""

    column: str
    ticks: str
    ticks_per_day: int | None
    is_timestamp: bool

    def bound(self, tick: float) -> Bound:
        """The place of a tick."""
        if self.is_timestamp:
            text = (_EPOCH + timedelta(microseconds=int(tick))).isoformat().replace("+00:00", "")
            return Bound(text, f"{int(tick)}", f"{text} UTC")
        value = int(tick) if float(tick).is_integer() else float(tick)
        if self.ticks_per_day is None:
            return Bound(value, repr(value), str(value))
        moment = _EPOCH + timedelta(days=tick / self.ticks_per_day)
        return Bound(value, repr(value), f"{moment:%Y-%m-%d %H:%M} UTC")

    def condition(self, part: Part) -> str:
        """SQL for the rows of a part."""
        signs = {">=": part.at_least, "<": part.below}
        return " AND ".join(f"{self.ticks} {sign} {bound.sql}" for sign, bound in signs.items() if bound) or "true"


def read_clock(db: duckdb.DuckDBPyConnection, log: Log, column: str) -> Clock:
    """What the time column counts. Raises ``DataError`` for one of text or without values."""
    arrow_type = log.schema.field(column).type
    name = identifier(column)
    if is_time(arrow_type):
        return Clock(column, f"epoch_us({name}::TIMESTAMP)", 86_400_000_000, True)
    if not is_number(arrow_type) or pa.types.is_boolean(arrow_type):
        raise DataError(
            f"--time {column}: the column is {arrow_type}; write it as a timestamp, or as a number that grows with time"
        )
    (middle,) = _row(db, f"SELECT median({name}) FROM {parquet_sql(log.files)}")
    if middle is None:
        raise DataError(f"--time {column}: every value is null; leave --time out to split by the order of the rows")
    units = [10**digits for digits in (0, 3, 6, 9) if _FIRST_S <= float(middle) / 10**digits < _LAST_S]
    return Clock(column, name, 86_400 * units[0] if units else None, False)


def split_log(db: duckdb.DuckDBPyConnection, log: Log, clock: Clock | None) -> tuple[Part, ...]:
    """Train, valid and test; of a split folder what it has, with a validation set cut from train if it has none."""
    kept = [Part(name, (path,), (path,)) for name, path in log.splits.items()]
    if "valid" in log.splits:
        return tuple(kept)
    names = SPLITS[:2] if log.splits else SPLITS
    whole = Part("", log.files if log.splits else log.inputs, log.files)
    cut = _by_place(log.num_rows, whole, names) if clock is None else _by_time(db, clock, whole, names)
    return (*cut, *kept[1:])


def _by_place(num_rows: int, whole: Part, names: Sequence[str]) -> tuple[Part, ...]:
    held_out = round(HELD_OUT * num_rows)
    start = num_rows - held_out * (len(names) - 1)
    later = (
        replace(whole, name=name, offset=start + place * held_out, limit=held_out)
        for place, name in enumerate(names[1:])
    )
    return (replace(whole, name=names[0], limit=start), *later)


def _by_time(db: duckdb.DuckDBPyConnection, clock: Clock, whole: Part, names: Sequence[str]) -> tuple[Part, ...]:
    counts = _counts_by_cut(db, whole.files, clock)
    if len(counts) < len(names):
        raise DataError(
            f"--time {clock.column}: {len(counts)} different values cannot be cut into {' and '.join(names)}; "
            "leave --time out to split by the order of the rows"
        )
    bounds = [None, *(clock.bound(start) for start in _starts(counts, len(names) - 1)), None]
    return tuple(
        replace(whole, name=name, at_least=bounds[place], below=bounds[place + 1]) for place, name in enumerate(names)
    )


def _counts_by_cut(db: duckdb.DuckDBPyConnection, files: Sequence[Path], clock: Clock) -> dict[float, int]:
    """Rows from each place where the log may be cut to the next, in order: days, else values, else quantiles."""
    table, ticks = parquet_sql(files), clock.ticks
    if clock.ticks_per_day is not None:
        day = f"floor({ticks} / {clock.ticks_per_day})::BIGINT"
        by_day = _pairs(db, f"SELECT {day}, count(*) FROM {table} WHERE {ticks} IS NOT NULL GROUP BY 1 ORDER BY 1")
        if len(by_day) >= _MIN_DAYS:
            return {number * clock.ticks_per_day: count for number, count in by_day.items()}
    shares = ", ".join(f"{place / _MAX_CUTS}" for place in range(_MAX_CUTS))
    cut = f"SELECT unnest(quantile_disc({ticks}, [{shares}])) FROM {table}"
    (places,) = zip(*db.execute(cut).fetchall(), strict=True)
    distinct = sorted({float(place) if clock.ticks_per_day is None else int(place) for place in places})
    edges = f"SELECT unnest([{', '.join(map(repr, distinct))}]) AS place"
    return _pairs(
        db,
        f"SELECT place, count(*) FROM {table} t ASOF JOIN ({edges}) e ON {ticks} >= e.place GROUP BY 1 ORDER BY 1",
    )


def _starts(counts: Mapping[float, int], num_held_out: int) -> list[float]:
    """Where the held-out parts start, each of about ``HELD_OUT`` of all rows, the last one at the end."""
    places, sizes = list(counts), list(counts.values())
    total, end = sum(sizes), len(sizes)
    starts: list[float] = []
    for remaining in range(num_held_out, 0, -1):
        shares = {at: sum(sizes[at:end]) / total for at in range(remaining, end)}
        end = min(shares, key=lambda at: abs(math.log(shares[at] / HELD_OUT)))
        starts.insert(0, places[end])
    return starts


def _pairs(db: duckdb.DuckDBPyConnection, query: str) -> dict[float, int]:
    return {place: int(count) for place, count in db.execute(query).fetchall()}


def _row(db: duckdb.DuckDBPyConnection, query: str) -> tuple[float | None, ...]:
    row = db.execute(query).fetchone()
    assert row is not None
    return row
