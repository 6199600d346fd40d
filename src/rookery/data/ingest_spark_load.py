"""Edge files into one Spark table whose ``row`` counts the rows of all files from 0, as ``data/ingest_load.py`` does.

Spark reads a file in blocks and in any order. Each row keeps its file, its block and its place there; how many rows
each block has is known once all are read, and with that the number of every row, without a sort.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812  # what everybody calls it

from rookery.data.ingest_config import SPLITS
from rookery.data.ingest_layout import Layout
from rookery.data.ingest_load import id_sql
from rookery.data.ingest_problems import explain_bad_line, explain_bad_row
from rookery.data.ingest_sources import Source, open_bytes
from rookery.errors import DataError

_OF_FILE = "file", "block", "place"
_BAD_LINE, _BAD_VALUE = 1, 2
_BOM = b"\xef\xbb\xbf"
_NUMBER = r"^\\s*[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]+)?\\s*$"
_ISO_8601 = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,6})?)?(Z|[+-][0-9]{2}(:?[0-9]{2})?)?)?$"
)

Shape = list[Source]
"""Files that are read alike: all but their names and places in the order is equal."""


@dataclass(frozen=True)
class _Block:
    """A block of a file of a shape, and what its rows' places lack to their numbers in the file."""

    shape: int
    file: str
    block: int
    shift: int
    source: int


def load_edges(spark: SparkSession, layout: Layout, scratch: Path) -> DataFrame:
    """The checked edges: lhs, rel, rhs, split, ``row`` and, where the layout asks for them, weight and time.

    Raises ``DataError`` for the first row that is no edge.
    """
    create_relations(spark, layout)
    loaded = _load(spark, layout, scratch / "loaded")
    blocks, counts = _blocks(loaded, layout)
    starts = [sum(counts[:number]) for number in range(len(counts))]
    table = [(b.shape, b.file, b.block, b.shift, b.source, starts[b.source]) for b in blocks]
    places = spark.createDataFrame(
        table, "shape INT, file STRING, block BIGINT, shift BIGINT, source INT, start BIGINT"
    )
    numbered = loaded.join(F.broadcast(places), ["shape", "file", "block"]).withColumn(
        "number", F.col("place") + F.col("shift")
    )
    rows = numbered.where("number >= 0")  # -1 is a header
    _require_good(rows, layout)
    optional = [name for name, there in (("weight", layout.weighted), ("time", layout.timed)) if there]
    return rows.select("lhs", "rel", "rhs", "split", *optional, (F.col("start") + F.col("number")).alias("row"))


def create_relations(spark: SparkSession, layout: Layout) -> None:
    """The view ``relation``: name, rel, and the codes of the entity types of both sides."""
    codes = {name: code for code, name in enumerate(layout.entity_types)}
    rows = [(r.name, rel, codes[r.lhs], codes[r.rhs]) for rel, r in enumerate(layout.relations)]
    table = spark.createDataFrame(rows, "name STRING, rel INT, lhs_type INT, rhs_type INT")
    F.broadcast(table).createOrReplaceTempView("relation")


def read_shapes(spark: SparkSession, sources: Sequence[Source]) -> Iterator[tuple[Shape, DataFrame]]:
    """The rows of each shape: ``c0``, ``c1`` … as the file has them, ``broken``, and their place."""
    keyed = sorted(sources, key=_shape_key)
    for _, group in groupby(keyed, key=_shape_key):
        shape = list(group)
        paths = [_escaped(source.file) for source in shape]
        yield shape, _read(spark, shape[0], paths)


def has_header_row(source: Source) -> bool:
    """Whether the header of a file is among its rows: of CSV, Spark takes it off."""
    return source.header and source.format == "tsv"


def _shape_key(source: Source) -> str:
    return repr(replace(source, file=Path()))


def _escaped(file: Path) -> str:
    """The file as Spark takes it: by a URI, without a meaning for what else were a glob."""
    return "file://" + "".join(f"\\{letter}" if letter in r"\*?[]{}" else letter for letter in str(file.resolve()))


def _read(spark: SparkSession, source: Source, paths: list[str]) -> DataFrame:
    if source.format == "parquet":
        rows = spark.read.option("recursiveFileLookup", "true").parquet(*paths)
        columns = [F.col(f"`{name.replace('`', '``')}`").alias(f"c{n}") for n, name in enumerate(source.columns)]
        place = _place(F.lit(0), F.col("_metadata.row_index"))
        return rows.select(*columns, F.lit(False).alias("broken"), *place)
    place = _place(F.col("_metadata.file_block_start"), F.monotonically_increasing_id())
    return (_read_csv if source.format == "csv" else _read_lines)(spark, source, paths, place)


def _place(block: Column, place: Column) -> list[Column]:
    values = F.col("_metadata.file_path"), block.cast("BIGINT"), place.cast("BIGINT")
    return [value.alias(name) for value, name in zip(values, _OF_FILE, strict=True)]


def _read_lines(spark: SparkSession, source: Source, paths: list[str], place: list[Column]) -> DataFrame:
    """Text without quotes: a line is a row wherever a block of the file begins."""
    lines = spark.read.option("recursiveFileLookup", "true").text(paths).where("value <> ''")
    num_columns = len(source.columns)
    fields = F.split("value", rf"\Q{source.delimiter}\E", -1)
    columns = [F.get(F.col("fields"), n).alias(f"c{n}") for n in range(num_columns)]
    broken = (F.size("fields") != num_columns) | ~F.is_valid_utf8(F.col("value"))
    return lines.select(fields.alias("fields"), "value", *place).select(*columns, broken.alias("broken"), *_OF_FILE)


def _read_csv(spark: SparkSession, source: Source, paths: list[str], place: list[Column]) -> DataFrame:
    """Quoted fields may hold line ends, so that a file is read by one task.

    Read as Latin-1, which keeps every byte: Spark would put something else in place of what is not UTF-8.
    """
    names = [f"c{n}" for n in range(len(source.columns))]
    rows = spark.read.options(recursiveFileLookup=True, columnPruning=False).csv(
        paths,
        schema=", ".join(f"{name} STRING" for name in (*names, "wrong")),
        sep=source.delimiter.encode().decode("latin-1"),
        quote='"',
        escape='"',
        multiLine=True,
        header=source.header,
        encoding="ISO-8859-1",
        columnNameOfCorruptRecord="wrong",
    )
    texts = [F.expr(f"encode({name}, 'ISO-8859-1')::STRING").alias(name) for name in names]
    valid = F.expr(" AND ".join(f"coalesce(is_valid_utf8({name}), true)" for name in names))
    decoded = rows.select(*texts, "wrong", *place)
    return decoded.select(*names, (F.col("wrong").isNotNull() | ~valid).alias("broken"), *_OF_FILE)


def _load(spark: SparkSession, layout: Layout, folder: Path) -> DataFrame:
    """Every row of every file, on disk."""
    parts = [
        _edges_of(spark, number, shape[0], rows, layout)
        for number, (shape, rows) in enumerate(read_shapes(spark, _without_marks(layout.sources)))
    ]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.unionByName(part)
    whole.write.parquet(f"file://{folder}")
    return spark.read.parquet(f"file://{folder}")


def _without_marks(sources: Sequence[Source]) -> Sequence[Source]:
    for source in sources:
        if source.format == "csv" and not source.header:
            with open_bytes(source.file) as stream:
                if stream.read(len(_BOM)) == _BOM:
                    raise DataError(
                        f"{source.file}: begins with a byte order mark; take it off, or pass --engine duckdb"
                    )
    return sources


def _edges_of(spark: SparkSession, number: int, source: Source, rows: DataFrame, layout: Layout) -> DataFrame:
    if source.relation is not None:
        rows = rows.withColumn("name", F.lit(source.relation))
    else:
        rows = rows.withColumn("name", F.expr(f"{_column(source, 'relation')}::STRING"))
    values = {
        "shape": f"{number}",
        **{name: name for name in (*_OF_FILE, "broken", "rel", "lhs_type", "rhs_type")},
        "lhs": id_sql(_column(source, "lhs"), source, "lhs", layout),
        "rhs": id_sql(_column(source, "rhs"), source, "rhs", layout),
        "split": f"{SPLITS.index(source.split)}",
        "weight": _weight_sql(source),
        "time": _time_sql(source),
    }
    edges = rows.join(spark.table("relation"), "name", "left").selectExpr(
        *(f"{expression} AS {name}" for name, expression in values.items())
    )
    problem = f"CASE WHEN broken THEN {_BAD_LINE} WHEN {_is_bad(layout)} THEN {_BAD_VALUE} ELSE 0 END AS problem"
    return edges.selectExpr("*", problem).drop("broken", "lhs_type", "rhs_type")


def _column(source: Source, role: str) -> str:
    return f"c{source.roles[role]}"


def _weight_sql(source: Source) -> str:
    if "weight" not in source.roles:
        return "1::FLOAT"
    column = _column(source, "weight")
    if source.is_text:  # Java also reads 1f and 0x1p3 as numbers
        column = f"CASE WHEN {column} RLIKE '{_NUMBER}' THEN {column} END"
    return f"try_cast({column} AS FLOAT)"


def _time_sql(source: Source) -> str:
    """A number as it is, a moment as seconds since 1970."""
    if "time" not in source.roles:
        return "0::DOUBLE"
    column, found = _column(source, "time"), source.column_type("time")
    if pa.types.is_integer(found) or pa.types.is_floating(found):
        return f"{column}::DOUBLE"
    if pa.types.is_timestamp(found) and found.unit == "ns":  # rounded to microseconds, as DuckDB does
        ticks = f"({column} + 500)"
        return f"(({ticks} - pmod({ticks}, 1000)) DIV 1000) / 1e6::DOUBLE"
    if pa.types.is_temporal(found):
        return f"unix_micros({column}::TIMESTAMP) / 1e6::DOUBLE"
    number = f"CASE WHEN {column} RLIKE '{_NUMBER}' THEN try_cast({column} AS DOUBLE) END"
    moment = (
        f"CASE WHEN {column} RLIKE '{_ISO_8601}' THEN unix_micros(try_cast({column} AS TIMESTAMP)) / 1e6::DOUBLE END"
    )
    return f"coalesce({number}, {moment})"


def _is_bad(layout: Layout) -> str:
    bad = ["lhs IS NULL", "rhs IS NULL", "rel IS NULL"]
    if layout.weighted:  # NaN is the largest number to Spark
        bad.append("weight IS NULL OR weight < 0 OR weight >= 'Infinity'::FLOAT")
    if layout.timed:
        bad.append("time IS NULL OR time >= 'Infinity'::DOUBLE OR time = '-Infinity'::DOUBLE")
    for code, name in enumerate(layout.entity_types):
        if limit := layout.num_entities.get(name):
            outside = f"NOT BETWEEN 0 AND {limit} - 1"
            bad += [f"{side}_type = {code} AND try_cast({side} AS BIGINT) {outside}" for side in ("lhs", "rhs")]
    return " OR ".join(f"({condition})" for condition in bad)


def _blocks(loaded: DataFrame, layout: Layout) -> tuple[list[_Block], list[int]]:
    """The blocks of all files, and the rows of each source."""
    sources = _sources_by_place(layout)
    counted = loaded.groupBy("shape", "file", "block").agg(F.min("place"), F.count("*"))
    by_file: dict[tuple[int, str], list[tuple[int, int, int]]] = defaultdict(list)
    for shape, file, *rest in counted.collect():
        by_file[shape, file].append(tuple(rest))
    blocks, counts = [], [0] * len(layout.sources)
    for (shape, file), parts in by_file.items():
        number = sources[shape, _plain_path(file)]
        source = layout.sources[number]
        start = -1 if has_header_row(source) else 0
        for block, first, count in sorted(parts):
            blocks.append(_Block(shape, file, block, start - first, number))
            start += count
        counts[number] = start
    return blocks, counts


def _sources_by_place(layout: Layout) -> dict[tuple[int, str], int]:
    """The number of each source by its shape and path."""
    numbers = {id(source): number for number, source in enumerate(layout.sources)}
    shapes = groupby(sorted(layout.sources, key=_shape_key), key=_shape_key)
    return {
        (shape, str(source.file.resolve())): numbers[id(source)]
        for shape, (_, group) in enumerate(shapes)
        for source in group
    }


def _plain_path(uri: str) -> str:
    return "/" + unquote(uri.removeprefix("file:")).lstrip("/")


def _require_good(rows: DataFrame, layout: Layout) -> None:
    first = rows.where("problem > 0").selectExpr("min(struct(source, number, problem)) AS first").collect()[0].first
    if first is None:
        return
    source = layout.sources[first.source]
    if first.problem == _BAD_LINE:
        raise explain_bad_line(source, first.number)
    raise explain_bad_row(source, first.number, layout)
