"""Edge files into one DuckDB table in the order of their rows; the first row that is no edge ends the ingest.

The table ``edge`` has the columns lhs, rel, rhs, split and, where the layout asks for them, weight and time. Its
``rowid`` counts the rows of all files from 0: the order that everything later keeps, whatever the number of threads.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from itertools import accumulate

import duckdb
import pyarrow as pa

from rookery.data.ingest_config import DEFAULT_RELATION, SPLITS, RelationSpec
from rookery.data.ingest_layout import Layout
from rookery.data.ingest_problems import explain_bad_row, explain_unreadable
from rookery.data.ingest_sources import Source, literal
from rookery.errors import DataError

MAX_FOUND_RELATIONS = 10_000
"""More relations than this must be declared: the column is more likely one of ids."""


def find_relations(db: duckdb.DuckDBPyConnection, sources: Sequence[Source]) -> tuple[RelationSpec, ...]:
    """The relations that undeclared edges have, sorted by name. Reads the relation columns once."""
    names: set[str] = set()
    for source in sources:
        if "relation" in source.roles:
            names |= _distinct_relations(db, source)
        else:
            names.add(source.relation or DEFAULT_RELATION)
    return tuple(RelationSpec(name=name) for name in sorted(names or {DEFAULT_RELATION}))


def _distinct_relations(db: duckdb.DuckDBPyConnection, source: Source) -> set[str]:
    column = source.column_sql("relation")
    query = f"SELECT DISTINCT {column}::VARCHAR FROM {source.table_sql()} LIMIT {MAX_FOUND_RELATIONS + 2}"
    try:
        found = {name for (name,) in db.execute(query).fetchall() if name}  # load_edges reports the empty ones
    except duckdb.Error as error:
        raise explain_unreadable(db, source, error) from error
    require_few_relations(source, found)
    return found


def require_few_relations(source: Source, found: Collection[str]) -> None:
    """Raise ``DataError`` where the relations that ``source`` was found to have are too many to be relations."""
    if len(found) > MAX_FOUND_RELATIONS:
        raise DataError(
            f"{source.file}: {source.column_name('relation')} holds more than {MAX_FOUND_RELATIONS:,} relations "
            f"(such as {min(found)!r}); if it is not the relation, pass --lhs-column and --rhs-column; "
            "if it is, declare the relations in a mapping"
        )


def load_edges(db: duckdb.DuckDBPyConnection, layout: Layout) -> None:
    """Fill ``edge`` from the files and check every row. Raises ``DataError``."""
    _create_tables(db, layout)
    counts = [_load_source(db, source, layout) for source in layout.sources]
    starts = [0, *accumulate(counts)]
    first_bad = _first_bad_row(db, layout)
    if first_bad is not None:
        number = bisect_right(starts, first_bad) - 1
        raise explain_bad_row(layout.sources[number], first_bad - starts[number], layout)


def edge_columns(layout: Layout) -> dict[str, str]:
    """Columns of ``edge`` and their SQL types."""
    columns = {"lhs": layout.id_sql, "rel": "UINTEGER", "rhs": layout.id_sql, "split": "UTINYINT"}
    if layout.weighted:
        columns["weight"] = "FLOAT"
    if layout.timed:
        columns["time"] = "DOUBLE"
    return columns


def _create_tables(db: duckdb.DuckDBPyConnection, layout: Layout) -> None:
    columns = ", ".join(f"{name} {sql_type}" for name, sql_type in edge_columns(layout).items())
    db.execute(f"CREATE TEMP TABLE edge ({columns})")
    names = ", ".join(map(literal, layout.relation_names()))
    db.execute(f"CREATE TYPE relation_name AS ENUM ({names})")
    codes = {name: code for code, name in enumerate(layout.entity_types)}
    rows = ", ".join(f"({rel}, {codes[r.lhs]}, {codes[r.rhs]})" for rel, r in enumerate(layout.relations))
    db.execute("CREATE TEMP TABLE relation (rel UINTEGER, lhs_type USMALLINT, rhs_type USMALLINT)")
    db.execute(f"INSERT INTO relation VALUES {rows}")


def _load_source(db: duckdb.DuckDBPyConnection, source: Source, layout: Layout) -> int:
    values = {
        "lhs": id_sql(source.column_sql("lhs"), source, "lhs", layout),
        "rel": _relation_sql(source, layout),
        "rhs": id_sql(source.column_sql("rhs"), source, "rhs", layout),
        "split": str(SPLITS.index(source.split)),
        "weight": _weight_sql(source),
        "time": _time_sql(source),
    }
    selected = ", ".join(f"{values[name]} AS {name}" for name in edge_columns(layout))
    try:
        (count,) = db.execute(f"INSERT INTO edge SELECT {selected} FROM {source.table_sql()}").fetchall()[0]
    except duckdb.Error as error:
        raise explain_unreadable(db, source, error) from error
    return int(count)


def id_sql(column: str, source: Source, side: str, layout: Layout) -> str:
    """An id from an SQL ``column``, in the words of both DuckDB and Spark.

    NULL for what is no id: empty, or not written as an integer should be where integers are due.
    """
    is_integer = pa.types.is_integer(source.column_type(side))
    if layout.side_id_type(source, side) == "string":
        return f"{column}::STRING" if is_integer else f"nullif({column}::STRING, '')"
    number = f"try_cast({column} AS BIGINT)"
    if not is_integer:  # casts also take '1.5', '1_000' and ' 1': an integer must read back as it was written
        number = f"CASE WHEN {number}::STRING = {column} THEN {number} END"
    return number if layout.id_sql == "BIGINT" else f"({number})::STRING"


def _relation_sql(source: Source, layout: Layout) -> str:
    if source.relation is not None:
        return str(layout.relation_names().index(source.relation))
    return f"enum_code(try_cast({source.column_sql('relation')}::VARCHAR AS relation_name))"


def _weight_sql(source: Source) -> str:
    return f"try_cast({source.column_sql('weight')} AS FLOAT)" if "weight" in source.roles else "1"


def _time_sql(source: Source) -> str:
    if "time" not in source.roles:
        return "0"
    column, found = source.column_sql("time"), source.column_type("time")
    if pa.types.is_integer(found) or pa.types.is_floating(found):
        return f"{column}::DOUBLE"
    moment = f"epoch(try_cast({column} AS TIMESTAMPTZ))"
    return moment if pa.types.is_temporal(found) else f"coalesce(try_cast({column} AS DOUBLE), {moment})"


def _first_bad_row(db: duckdb.DuckDBPyConnection, layout: Layout) -> int | None:
    bad = ["lhs IS NULL", "rhs IS NULL", "rel IS NULL"]
    if layout.weighted:
        bad.append("weight IS NULL OR NOT (weight >= 0 AND isfinite(weight))")
    if layout.timed:
        bad.append("time IS NULL OR NOT isfinite(time)")
    first = [db.execute(f"SELECT min(rowid) FROM edge WHERE {' OR '.join(bad)}").fetchall()[0][0]]
    for code, name in enumerate(layout.entity_types):
        limit = layout.num_entities.get(name)
        for side in ("lhs", "rhs") if limit else ():
            outside = f"{side}_type = {code} AND try_cast({side} AS BIGINT) NOT BETWEEN 0 AND {limit} - 1"
            query = f"SELECT min(edge.rowid) FROM edge JOIN relation USING (rel) WHERE {outside}"
            first.append(db.execute(query).fetchall()[0][0])
    return min((row for row in first if row is not None), default=None)
