"""The ingest on Apache Spark, for edges that one machine does not hold: the same files as ``data/ingest.py`` writes.

Sources, checks and split rules are the same code. Edges and vocabularies stay with the executors: the driver sees
counts, one row for each block of an input file, and the footers of intermediate files. All machines must see input
and output under the same paths.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rookery.data.graph import MANIFEST, Graph
from rookery.data.ingest import Notify, require_outside, say_nothing, write_manifest
from rookery.data.ingest_config import DEFAULT_RELATION, IngestConfig, RelationSpec
from rookery.data.ingest_layout import lay_out
from rookery.data.ingest_load import MAX_FOUND_RELATIONS, require_few_relations
from rookery.data.ingest_sources import Source, resolve_sources
from rookery.data.staging import staged
from rookery.errors import DataError, MissingExtra, RookeryError, UserError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

EDGES_PER_FILE = 1024 * 65_536
"""Edges a file of a split, 1.6 GB without weights: whole row groups, so that the files together have the same ones."""

_SETTINGS = {
    "spark.sql.ansi.enabled": "true",  # arithmetic that overflows is an error
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.legacy.parquet.nanosAsLong": "true",  # else timestamps in nanoseconds are refused
}


def ingest_with_spark(
    config: IngestConfig,
    folder: Path,
    out: Path,
    *,
    num_threads: int | None = None,
    overwrite: bool = False,
    edges_per_file: int = EDGES_PER_FILE,
    notify: Notify = say_nothing,
) -> Graph:
    """Write the graph that ``config`` describes to ``out`` and open it; arguments and errors are those of ``ingest``.

    Spark's own configuration says where it runs and with how much memory; ``num_threads`` is for running it in this
    process. Raises ``MissingExtra`` without PySpark, ``UserError`` without Java.
    """
    _require_spark()
    sources = resolve_sources(config.sources, folder)
    require_outside(sources, out)
    _require_visible(sources)
    with (
        staged(out, overwrite=overwrite, marker=MANIFEST) as staging,
        _session(num_threads) as spark,
        _explained(sources),
    ):
        # They import PySpark, which an ingest without Spark does without.
        from rookery.data.ingest_spark_edges import assign_splits, merge_duplicates
        from rookery.data.ingest_spark_load import load_edges
        from rookery.data.ingest_spark_write import count_edges, write_edges, write_vocabularies

        notify("reading")
        layout = lay_out(config, sources, config.relations or _find_relations(spark, sources))
        edges = load_edges(spark, layout, staging.scratch)
        edges = merge_duplicates(spark, edges, config, layout, staging.scratch)
        edges = assign_splits(spark, edges, config, layout, staging.scratch)
        edges.createOrReplaceTempView("edge")
        counts = count_edges(spark, config)
        notify("counting entities")
        entity_types = write_vocabularies(spark, layout, staging)
        notify("writing edges")
        splits = write_edges(spark, layout, counts, staging, edges_per_file)
        write_manifest(staging.folder, config, layout, entity_types, splits, counts)
    return Graph.open(out)


def _require_spark() -> None:
    if importlib.util.find_spec("pyspark") is None:
        raise MissingExtra(
            "--engine spark needs pyspark, not installed here; install it with: pip install 'rookery[spark]'"
        )
    if not os.environ.get("JAVA_HOME") and shutil.which("java") is None:
        raise UserError("--engine spark needs Java 17 or later and finds none; install it, or say JAVA_HOME")


def _require_visible(sources: list[Source]) -> None:
    for source in sources:
        if source.file.resolve().name.startswith(("_", ".")):
            raise DataError(f"{source.file}: Spark passes over files whose names begin with _ or a dot; rename it")


@contextmanager
def _session(num_threads: int | None) -> Iterator[SparkSession]:
    """A Spark session with settings of its own. What was not running before is stopped at the end."""
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName("rookery twhin ingest").config("spark.ui.showConsoleProgress", "false")
    if num_threads is not None:
        builder = builder.config("spark.master", f"local[{num_threads}]")
    running = SparkSession.getActiveSession()
    spark = running or builder.getOrCreate()
    if num_threads is not None:
        spark.sparkContext.setLogLevel("ERROR")  # what Spark warns of in one process is about its own insides
    try:
        own = spark.newSession()
        for name, value in _SETTINGS.items():
            own.conf.set(name, value)
        yield own
    finally:
        if running is None:
            spark.stop()


@contextmanager
def _explained(sources: list[Source]) -> Iterator[None]:
    """Errors of Spark become ours: the file that is to blame, else the first line of what Spark says."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        yield
    except (PySparkException, Py4JError) as error:
        raise _explain(error, sources) from error


def _explain(error: Exception, sources: list[Source]) -> RookeryError:
    from rookery.data.ingest_problems import parquet_problem, undecodable

    text = str(error)
    for source in sources:
        if source.file.name in text:
            problem: Callable[[Source], DataError | None] = undecodable if source.is_text else parquet_problem
            if found := problem(source):
                return found
    return RookeryError(f"ingest failed in Spark: {text.strip().splitlines()[0]}; what it wrote to stderr has the task")


def _find_relations(spark: SparkSession, sources: list[Source]) -> tuple[RelationSpec, ...]:
    """The relations that undeclared edges have, sorted by name. Reads the relation columns once."""
    from rookery.data.ingest_spark_load import has_header_row, read_shapes

    names = {source.relation or DEFAULT_RELATION for source in sources if "relation" not in source.roles}
    for shape, rows in read_shapes(spark, sources):
        if "relation" not in shape[0].roles:
            continue
        number = shape[0].roles["relation"]
        found = rows.where(f"c{number} <> ''").groupBy(f"c{number}").count().limit(MAX_FOUND_RELATIONS + 3)
        counts = {str(name): count for name, count in found.collect()}
        header = shape[0].columns[number]
        if has_header_row(shape[0]) and counts.get(header) == len(shape):  # once a file, and nowhere else
            del counts[header]
        names |= counts.keys()
        require_few_relations(shape[0], names)
    return tuple(RelationSpec(name=name) for name in sorted(names or {DEFAULT_RELATION}))
