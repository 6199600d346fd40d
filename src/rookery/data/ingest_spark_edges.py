"""Duplicates and splits on Spark: the rules of ``data/ingest_edges.py``, which writes their conditions."""

from __future__ import annotations

from pathlib import Path

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812

from rookery.data.ingest_config import IngestConfig, LeaveKOutConfig
from rookery.data.ingest_edges import (
    leave_k_out_cases,
    order_from_the_last,
    position_of,
    random_cases,
    split_sql,
    time_cases,
)
from rookery.data.ingest_layout import Layout
from rookery.data.ingest_spark_write import sorted_files

_NUM_BINS = 4096


def merge_duplicates(
    spark: SparkSession, edges: DataFrame, config: IngestConfig, layout: Layout, scratch: Path
) -> DataFrame:
    """One edge for all of the same lhs, relation, rhs and split: the first, with its own weight or the sum of all.

    Rows are numbered anew: a seeded order of edges depends on their numbers.
    """
    if config.duplicates == "keep":
        return edges
    columns = ["min(row) AS row"]
    if layout.weighted:
        # Added one after the other in the order of the rows: the sum of floats depends on it.
        in_order = "array_sort(collect_list(named_struct('row', row, 'weight', weight::DOUBLE)))"
        total = f"aggregate({in_order}, 0::DOUBLE, (sum, edge) -> sum + edge.weight)::FLOAT"
        columns.append(f"{total if config.duplicates == 'sum' else 'min_by(weight, row)'} AS weight")
    if layout.timed:
        columns.append("min_by(time, row) AS time")
    merged = edges.groupBy("lhs", "rel", "rhs", "split").agg(*map(F.expr, columns))
    return _numbered(spark, merged, scratch / "merged")


def assign_splits(
    spark: SparkSession, edges: DataFrame, config: IngestConfig, layout: Layout, scratch: Path
) -> DataFrame:
    """Divide the edges of the train files by ``config.split``."""
    if config.split is None:
        return edges
    if config.split.leave_k_out is not None:
        return _leave_k_out(spark, edges, config.split.leave_k_out, layout, config.seed, scratch / "divided")
    if config.split.time is not None:
        cases = time_cases(config.split.time, layout, lambda quantile: _time_at(edges, quantile))
    elif config.split.random is not None:
        cases = random_cases(config.split.random, config.seed)
    return edges.withColumn("split", F.expr(split_sql(cases)))


def _numbered(spark: SparkSession, edges: DataFrame, folder: Path) -> DataFrame:
    """``row`` becomes the place of an edge in the order of ``row``."""
    files = sorted_files(edges.orderBy("row"), folder)
    starts = spark.createDataFrame([(file.path.name, file.start) for file in files], "name STRING, start BIGINT")
    written = spark.read.parquet(f"file://{folder}").select(
        "*", F.col("_metadata.file_name").alias("name"), F.col("_metadata.row_index").alias("place")
    )
    numbered = written.join(F.broadcast(starts), "name").withColumn("row", F.col("start") + F.col("place"))
    return numbered.drop("name", "start", "place")


def _time_at(edges: DataFrame, quantile: float) -> float:
    """The time of the first edge after ``quantile`` of all edges of the train files, ordered by time.

    Counts the edges in bins and looks into the bin that has the place, until that holds one time alone: two or three
    passes for seconds of many years.
    """
    train = edges.where("split = 0").select("time")
    low, high, count = train.selectExpr("min(time)", "max(time)", "count(*)").collect()[0]
    position = position_of(quantile, count) if count else 0
    while low is not None and low < high:
        inside = train.where(F.col("time").between(low, high))
        share = (F.col("time") / 2 - low / 2) / (high / 2 - low / 2)  # halves: the whole range may overflow
        binned = inside.withColumn("bin", F.least(F.floor(share * _NUM_BINS), F.lit(_NUM_BINS - 1)))
        for _, low, high, count in sorted(  # noqa: B007  # the bin that is left when the loop ends is the next range
            binned.groupBy("bin").agg(F.min("time"), F.max("time"), F.count("*")).collect()
        ):
            if position < count:
                break
            position -= count
    return float(low)


def _leave_k_out(
    spark: SparkSession, edges: DataFrame, rule: LeaveKOutConfig, layout: Layout, seed: int, folder: Path
) -> DataFrame:
    """Sorts the edges of one lhs entity in one task, which spills to disk."""
    edges.createOrReplaceTempView("undivided")
    one = "PARTITION BY split, lhs_type, lhs"
    placed = spark.sql(f"""
        SELECT undivided.*, count(*) OVER ({one}) AS num_edges,
            row_number() OVER ({one} ORDER BY {order_from_the_last(layout, seed)}) AS place
        FROM undivided JOIN relation USING (rel)
    """)
    divided = placed.withColumn("split", F.expr(split_sql(leave_k_out_cases(rule)))).drop("num_edges", "place")
    divided.write.parquet(f"file://{folder}")
    return spark.read.parquet(f"file://{folder}")
