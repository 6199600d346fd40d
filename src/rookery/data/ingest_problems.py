"""What is wrong with an edge file: from a failed read or a bad row to file, line, column, value and remedy.

Runs only when an ingest has failed already: files are read again, at leisure, to name the place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from rookery.config.suggest import did_you_mean
from rookery.data.ingest_config import parse_time
from rookery.data.ingest_layout import Layout
from rookery.data.ingest_sources import Source, open_text, read_records, shorten, unreadable_text
from rookery.errors import DataError

# Rejected lines that DuckDB keeps: the first is looked for among them.
_MAX_REJECTS = 1000
_INT64 = range(-(2**63), 2**63)
_FLOAT32_MAX = 3.4028235e38
_CANONICAL_INTEGER = re.compile(r"0|-?[1-9][0-9]*")


def explain_unreadable(db: duckdb.DuckDBPyConnection, source: Source, error: duckdb.Error) -> Exception:
    """Why DuckDB could not read ``source``; ``error`` itself where the file is not to blame."""
    if isinstance(error, duckdb.OutOfMemoryException):
        return error
    found = _text_problem(db, source) if source.is_text else parquet_problem(source)
    return found or error


def _text_problem(db: duckdb.DuckDBPyConnection, source: Source) -> DataError | None:
    columns = ", ".join(f"count(c{number})" for number in range(len(source.columns)))
    options = f", store_rejects = true, rejects_limit = {_MAX_REJECTS}"
    try:
        db.execute(f"SELECT {columns} FROM {source.table_sql(options)}").fetchall()  # rejects are stored at its end
        first = db.execute("SELECT line, error_type, csv_line FROM reject_errors ORDER BY line LIMIT 1").fetchone()
    except duckdb.Error:
        return _whole_text_problem(source)
    if first is None:
        return None
    line, kind, text = first
    problem = _line_problem(source, kind, text.strip("\r\n"))
    return DataError(f"{source.file}, line {line}: {problem}")


def undecodable(source: Source) -> DataError | None:
    """Why a text file cannot be read to its end as UTF-8, if it cannot."""
    try:
        with open_text(source.file) as lines:
            while lines.read(1 << 20):
                pass
    except (OSError, EOFError, UnicodeDecodeError) as cause:
        return unreadable_text(source.file, cause)
    return None


def _whole_text_problem(source: Source) -> DataError:
    return undecodable(source) or DataError(
        f"{source.file}: cannot be read as {source.format} with the delimiter {source.delimiter!r}; "
        "check that every line ends the same way (all LF or all CR LF) and that quotation marks are closed"
    )


def _line_problem(source: Source, kind: str, text: str) -> str:
    shown = repr(shorten(text))
    if "COLUMNS" in kind:
        _, record = next(read_records([text], source.format, source.delimiter), (0, []))
        return _ragged(source, len(record), shown)
    if "ENCODING" in kind or "UNICODE" in kind:
        return f"not UTF-8: {shown}; convert the file, for example with iconv -t utf-8"
    if "QUOTE" in kind:
        return (
            f"a quotation mark is not closed: {shown}; close it, or pass --format tsv if quotation marks mean nothing"
        )
    return f"not a line of edges: {shown}; mend it or take it out"


def _ragged(source: Source, num_columns: int, shown: str) -> str:
    return f"{num_columns} columns where line 1 has {len(source.columns)}: {shown}; mend the line or take it out"


def explain_bad_line(source: Source, number: int) -> DataError:
    """Why record ``number`` (from 0, without the header) of a text file is not one of its columns in UTF-8."""
    try:
        with open_text(source.file) as lines:
            line, record = next(
                islice(read_records(lines, source.format, source.delimiter), number + source.header, None)
            )
    except (OSError, EOFError, UnicodeDecodeError) as error:
        return unreadable_text(source.file, error)
    shown = repr(shorten(source.delimiter.join(record)))
    return DataError(f"{source.file}, line {line}: {_ragged(source, len(record), shown)}")


def parquet_problem(source: Source) -> DataError | None:
    """The first row group of ``source`` that cannot be read, if there is one."""
    names = [source.columns[number] for number in source.roles.values()]
    with pq.ParquetFile(source.file) as file:
        for row_group in range(file.metadata.num_row_groups):
            for name in names:
                try:
                    file.read_row_group(row_group, columns=[name])
                except (pa.ArrowException, OSError):
                    place = f"row group {row_group}, column {name!r}"
                    return DataError(f"{source.file}, {place}: cannot be decoded; write the file again")
    return None


def explain_bad_row(source: Source, number: int, layout: Layout) -> DataError:
    """What is wrong with edge ``number`` (from 0) of ``source``."""
    row = _read_text_row(source, number, layout) if source.is_text else _read_parquet_row(source, number, layout)
    for role in source.roles:
        problem = row.problem(role)
        if problem:
            return DataError(f"{source.file}, {row.place}, {source.column_name(role)} ({role}): {problem}")
    return DataError(f"{source.file}, {row.place}: {row.values} is no edge; write its numbers and times plainly")


def _read_text_row(source: Source, number: int, layout: Layout) -> _Row:
    with open_text(source.file) as lines:
        records = read_records(lines, source.format, source.delimiter)
        for _ in range(number + source.header):
            next(records)
        line, record = next(records)
    values = {role: record[column] for role, column in source.roles.items()}
    return _Row(f"line {line}", values, source, layout)


def _read_parquet_row(source: Source, number: int, layout: Layout) -> _Row:
    with pq.ParquetFile(source.file) as file:
        row_group = 0
        while number >= file.metadata.row_group(row_group).num_rows:
            number -= file.metadata.row_group(row_group).num_rows
            row_group += 1
        names = [source.columns[column] for column in source.roles.values()]
        table = file.read_row_group(row_group, columns=names)
    values = {role: table.column(source.columns[column])[number].as_py() for role, column in source.roles.items()}
    return _Row(f"row group {row_group}, row {number}", values, source, layout)


@dataclass(frozen=True)
class _Row:
    """One edge as its file has it. ``place`` is its line, or its row group and the row in it; values by role."""

    place: str
    values: Mapping[str, object]
    source: Source
    layout: Layout

    def problem(self, role: str) -> str | None:
        """What is wrong with the value of ``role``, and the remedy."""
        value = self.values[role]
        text = "" if value is None else str(value)
        match role:
            case "relation":
                return self._relation_problem(text)
            case "weight":
                return _weight_problem(text)
            case "time":
                return _time_problem(value)
        return self._id_problem(role, text)

    def _id_problem(self, side: str, text: str) -> str | None:
        if not text:
            return "is empty; give every edge both ids, or take the line out"
        if self.layout.side_id_type(self.source, side) == "string":
            return None
        if not _CANONICAL_INTEGER.fullmatch(text):
            return f"{shorten(text)!r} is not an integer; mend it, or use string ids (--id-type string)"
        if int(text) not in _INT64:
            return f"{text} does not fit in 64 bits; use string ids (--id-type string)"
        return self._range_problem(side, int(text))

    def _range_problem(self, side: str, value: int) -> str | None:
        name = self.source.relation or self.values.get("relation")
        for relation in self.layout.relations:
            entity_type = relation.lhs if side == "lhs" else relation.rhs
            limit = self.layout.num_entities.get(entity_type)
            if relation.name == name and limit is not None and not 0 <= value < limit:
                return f"{value} is out of range: num_entities of {entity_type!r} says 0 to {limit - 1}; mend either"
        return None

    def _relation_problem(self, text: str) -> str | None:
        if not text:
            return "is empty; give every edge a relation, or take the line out"
        known = self.layout.relation_names()
        if text in known:
            return None
        return f"unknown relation {shorten(text)!r}; {did_you_mean(text, known)}; mend it or declare it"


def _weight_problem(text: str) -> str | None:
    try:
        weight = float(text)
    except ValueError:
        return f"{shorten(text)!r} is not a number; give every edge a weight of at least 0"
    if math.isfinite(weight) and 0 <= weight <= _FLOAT32_MAX:
        return None
    return f"{text} is no weight; weights are finite and at least 0"


def _time_problem(value: object) -> str | None:
    try:
        parse_time(value)
    except ValueError:
        text = "" if value is None else str(value)
        return f"{shorten(text)!r} is not a time; write a number, or ISO 8601 such as 2012-07-05T12:00:00Z"
    return None
