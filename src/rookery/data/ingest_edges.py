"""What happens to the table ``edge`` between loading and writing: duplicates, and who goes to which split.

Each step writes the table anew in the same order of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import duckdb

from rookery.data.ingest_config import SPLITS, FractionsConfig, IngestConfig, LeaveKOutConfig, TimeSplitConfig
from rookery.data.ingest_layout import Layout
from rookery.errors import DataError

_TRAIN, _VALID, _TEST = range(3)


def merge_duplicates(db: duckdb.DuckDBPyConnection, config: IngestConfig, layout: Layout) -> None:
    """One edge for all of the same lhs, relation, rhs and split: the first, with its own weight or the sum of all."""
    if config.duplicates == "keep":
        return
    columns = ["lhs", "rel", "rhs", "split"]
    if layout.weighted:
        # An ordered list: a plain sum of floats would depend on which thread adds what first.
        total = "list_sum(list(weight::DOUBLE ORDER BY edge.rowid))::FLOAT"
        columns.append(f"{total if config.duplicates == 'sum' else 'arg_min(weight, edge.rowid)'} AS weight")
    if layout.timed:
        columns.append("arg_min(time, edge.rowid) AS time")
    _replace_edges(db, f"SELECT {', '.join(columns)} FROM edge GROUP BY lhs, rel, rhs, split ORDER BY min(edge.rowid)")


def assign_splits(db: duckdb.DuckDBPyConnection, config: IngestConfig, layout: Layout) -> None:
    """Divide the edges of the train files by ``config.split``. Raises ``DataError`` if a split that was asked for is
    empty."""
    if config.split is not None:
        if config.split.random is not None:
            _split_by_case(db, random_cases(config.split.random, config.seed))
        elif config.split.time is not None:
            _split_by_case(db, time_cases(config.split.time, layout, lambda quantile: _time_at(db, quantile)))
        elif config.split.leave_k_out is not None:
            _leave_k_out(db, config.split.leave_k_out, layout, config.seed)
    require_edges(config, dict(db.execute("SELECT split, count(*) FROM edge GROUP BY split").fetchall()))


def random_cases(fractions: FractionsConfig, seed: int) -> dict[int, str]:
    """A condition by split: a hash of the two ids.

    Repeated edges, and edges of other relations between the same ids, stay together.
    """
    key = f"md5(concat_ws(chr(31), {seed}, lhs, rhs))"
    return {
        _TEST: f"{key} < '{_threshold(fractions.test)}'",
        _VALID: f"{key} < '{_threshold(fractions.test + fractions.valid)}'",
    }


def _threshold(fraction: float) -> str:
    """The hexadecimal prefix below which ``fraction`` of all digests lie."""
    return f"{int(fraction * 2**64):016x}"


def time_cases(split: TimeSplitConfig, layout: Layout, time_at: Callable[[float], float]) -> dict[int, str]:
    """``time_at``: the time of the first edge after a quantile of the train edges in order of time.

    Raises ``DataError`` where a train file has no times.
    """
    if not layout.timed:
        file = next(s.file for s in layout.sources if s.split == "train" and "time" not in s.roles)
        raise DataError(f"{file}: no time column to split by; pass --time-column, or split at random")
    valid_from, test_from = split.valid_from, split.test_from
    if not split.by_cut_points:
        test_from = time_at(1 - split.test) if split.test else None
        valid_from = time_at(1 - split.test - split.valid) if split.valid else None
    cuts = {_TEST: test_from, _VALID: valid_from}
    return {code: f"time >= {cut!r}::DOUBLE" for code, cut in cuts.items() if cut is not None}


def _time_at(db: duckdb.DuckDBPyConnection, quantile: float) -> float:
    """The time of the first edge after ``quantile`` of all edges of the train files, ordered by time."""
    (count,) = db.execute(f"SELECT count(*) FROM edge WHERE split = {_TRAIN}").fetchall()[0]
    query = f"SELECT time FROM edge WHERE split = {_TRAIN} ORDER BY time LIMIT 1 OFFSET {position_of(quantile, count)}"
    return float(db.execute(query).fetchall()[0][0])


def position_of(quantile: float, count: int) -> int:
    """The place of a quantile among ``count`` ordered values."""
    return min(round(quantile * count), count - 1)


def _split_by_case(db: duckdb.DuckDBPyConnection, cases: Mapping[int, str]) -> None:
    _replace_edges(db, f"SELECT * REPLACE (({split_sql(cases)})::UTINYINT AS split) FROM edge")


def split_sql(cases: Mapping[int, str]) -> str:
    """The split of an edge of a train file is the first case that holds; in the words of both DuckDB and Spark."""
    whens = " ".join(f"WHEN {condition} THEN {code}" for code, condition in cases.items())
    return f"CASE WHEN split <> {_TRAIN} THEN split {whens} ELSE {_TRAIN} END"


def order_from_the_last(layout: Layout, seed: int) -> str:
    """An order of the edges of one lhs entity, the first to be held out first; ``row`` is an edge's place among all."""
    return "time DESC, row DESC" if layout.timed else f"md5(concat_ws(chr(31), {seed}, lhs, rhs, row)), row"


def leave_k_out_cases(rule: LeaveKOutConfig) -> dict[int, str]:
    """By ``place`` (from 1) in ``order_from_the_last`` among the ``num_edges`` train edges of the lhs entity."""
    held_out = rule.test + rule.valid
    return {
        _TEST: f"num_edges > {held_out} AND place <= {rule.test}",
        _VALID: f"num_edges > {held_out} AND place <= {held_out}",
    }


def _leave_k_out(db: duckdb.DuckDBPyConnection, rule: LeaveKOutConfig, layout: Layout, seed: int) -> None:
    last = order_from_the_last(layout, seed)
    held_out = split_sql(leave_k_out_cases(rule))
    db.execute(f"""
        CREATE TEMP TABLE held_out AS
        SELECT row, ({held_out})::UTINYINT AS split
        FROM (
            SELECT row, split, row_number() OVER (PARTITION BY lhs_type, lhs ORDER BY {last}) AS place,
                count(*) OVER (PARTITION BY lhs_type, lhs) AS num_edges
            FROM (SELECT edge.rowid AS row, * FROM edge WHERE split = {_TRAIN}) JOIN relation USING (rel)
        )
        WHERE place <= {rule.test + rule.valid} AND num_edges > {rule.test + rule.valid}
    """)
    db.execute("UPDATE edge SET split = held_out.split FROM held_out WHERE edge.rowid = held_out.row")
    db.execute("DROP TABLE held_out")


def require_edges(config: IngestConfig, counts: Mapping[int, int]) -> None:
    """``counts``: edges by code of split. Raises ``DataError`` if one that was asked for has none."""
    held_out = set(config.split.held_out if config.split else ())
    asked = held_out | {source.split for source in config.sources}
    for code, name in enumerate(SPLITS):
        if name in asked and not counts.get(code):
            remedy = "give it a larger share or an earlier cut" if name in held_out else "name files that hold edges"
            if name == SPLITS[_TRAIN] and counts:
                remedy = "hold out less"
            raise DataError(
                f"{_patterns(config)}: split {name} is empty ({sum(counts.values()):,} edges in all); {remedy}"
            )


def _patterns(config: IngestConfig) -> str:
    return ", ".join(pattern for source in config.sources for pattern in source.patterns)


def _replace_edges(db: duckdb.DuckDBPyConnection, query: str) -> None:
    db.execute(f"CREATE TEMP TABLE next_edge AS {query}")
    db.execute("DROP TABLE edge")
    db.execute("ALTER TABLE next_edge RENAME TO edge")
