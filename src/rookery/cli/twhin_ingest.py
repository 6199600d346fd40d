"""``rookery twhin ingest``: raw edges in, a graph of row numbers out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Group
from rich.table import Table

from rookery.cli.ingest_flags import MAPPING, Flags, read_flags
from rookery.cli.output import JsonFlag, emit, progress_console
from rookery.errors import UserError

if TYPE_CHECKING:
    from rookery.data.graph import Graph

_SHOWN_RELATIONS = 20
_TYPES = "Relations and entity types"
_COLUMNS = "Columns (a name from the header, or a position from 1)"
_FILES = "Files"
_SPLITS = "Splits (all edges train by default)"


def _option(panel: str, text: str, metavar: str | None = None, name: str | None = None) -> Any:
    return typer.Option(*([name] if name else []), metavar=metavar, help=text, rich_help_panel=panel)


Edges = Annotated[
    list[str],
    typer.Argument(
        help="Edge files (CSV, TSV, Parquet; text also as .gz), folders or globs, each as PATH or RELATION=PATH; "
        f"or one mapping: a YAML file, or a folder with {MAPPING}.",
        metavar="EDGES",
        show_default=False,
    ),
]
GraphPath = Annotated[Path, typer.Argument(metavar="GRAPH", help="The graph to write.", show_default=False)]
Relations = Annotated[
    list[str] | None,
    _option(_TYPES, "A relation and the entity types of its sides.", "NAME:LHS:RHS", "--relation"),
]
IdTypes = Annotated[
    list[str] | None, _option(_TYPES, "What the ids of a type are.", "[TYPE=]string|int64", "--id-type")
]
NumEntities = Annotated[list[str] | None, _option(_TYPES, "Ids are 0 … N-1, and all are entities.", "[TYPE=]N")]
LhsColumn = Annotated[str | None, _option(_COLUMNS, "The lhs id.")]
RelationColumn = Annotated[str | None, _option(_COLUMNS, "The relation.")]
RhsColumn = Annotated[str | None, _option(_COLUMNS, "The rhs id.")]
WeightColumn = Annotated[str | None, _option(_COLUMNS, "A weight of at least 0.")]
TimeColumn = Annotated[str | None, _option(_COLUMNS, "A number or ISO 8601, for splits.")]
FileFormat = Annotated[str | None, _option(_FILES, "By default from the name.", "csv|tsv|parquet", "--format")]
Delimiter = Annotated[str | None, _option(_FILES, "Of text files.")]
Header = Annotated[
    bool | None,
    _option(
        _FILES, "By default: if a column is given by name, or line 1 has lhs and rhs.", None, "--header/--no-header"
    ),
]
Valid = Annotated[list[str] | None, _option(_SPLITS, "Files of the split valid.", "EDGES")]
Test = Annotated[list[str] | None, _option(_SPLITS, "Files of the split test.", "EDGES")]
RandomSplit = Annotated[str | None, _option(_SPLITS, "Fractions, as in 0.05,0.05.", "VALID,TEST")]
TimeSplit = Annotated[
    str | None,
    _option(_SPLITS, "The latest fractions, or where valid and test begin: 2012-07-05,2012-07-06.", "VALID,TEST"),
]
LeaveKOut = Annotated[str | None, _option(_SPLITS, "The last edges of each lhs, as in 1,1.", "VALID,TEST")]
Duplicates = Annotated[
    str | None, typer.Option(metavar="keep|drop|sum", help="Repeated edges; sum adds their weights. Default: keep.")
]
Seed = Annotated[int | None, typer.Option(help="Of random splits. Default: 0.")]
Engine = Annotated[
    Literal["duckdb", "spark"],
    typer.Option(help="duckdb: on this machine. spark: on a cluster, or here with --threads; needs the extra spark."),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Default: every core.")]
MemoryLimit = Annotated[str | None, typer.Option(help="Of duckdb, before spilling to disk beside GRAPH. Default: 6GB.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace GRAPH if it is a graph.")]


def register(app: typer.Typer) -> None:
    """Add the command to the group ``twhin``."""
    app.command("ingest")(_ingest)


def _ingest(
    edges: Edges,
    graph: GraphPath,
    relation: Relations = None,
    id_type: IdTypes = None,
    num_entities: NumEntities = None,
    lhs_column: LhsColumn = None,
    relation_column: RelationColumn = None,
    rhs_column: RhsColumn = None,
    weight_column: WeightColumn = None,
    time_column: TimeColumn = None,
    file_format: FileFormat = None,
    delimiter: Delimiter = None,
    header: Header = None,
    valid: Valid = None,
    test: Test = None,
    random_split: RandomSplit = None,
    time_split: TimeSplit = None,
    leave_k_out: LeaveKOut = None,
    duplicates: Duplicates = None,
    seed: Seed = None,
    engine: Engine = "duckdb",
    threads: Threads = None,
    memory_limit: MemoryLimit = None,
    overwrite: Overwrite = False,
    as_json: JsonFlag = False,
) -> None:
    """Turn raw edges into a graph: row numbers, a vocabulary per entity type, splits.

    A headerless TSV `lhs<TAB>relation<TAB>rhs` needs no options; nor does `lhs<TAB>rhs`.
    """
    columns = {"lhs": lhs_column, "relation": relation_column, "rhs": rhs_column}
    config, folder = read_flags(
        Flags(
            files={"train": edges, "valid": valid or [], "test": test or []},
            columns=columns | {"weight": weight_column, "time": time_column},
            shape={"format": file_format, "delimiter": delimiter, "header": header},
            types={"relation": relation or [], "id_type": id_type or [], "num_entities": num_entities or []},
            splits={"random-split": random_split, "time-split": time_split, "leave-k-out": leave_k_out},
            rest={"duplicates": duplicates, "seed": seed},
        )
    )
    started = time.monotonic()
    run = _on_spark(threads, memory_limit) if engine == "spark" else _on_duckdb(threads, memory_limit)
    with progress_console.status("ingesting") as status:
        result = run(
            config,
            folder,
            graph,
            overwrite=overwrite,
            notify=lambda stage: status.update(f"ingesting: {stage}"),
        )
    report = _report(result, time.monotonic() - started)
    emit(report, as_json, lambda: _render(result, report))


def _on_duckdb(threads: int | None, memory_limit: str | None) -> Callable[..., Graph]:
    from rookery.data.ingest import Resources, ingest

    return partial(ingest, resources=Resources(memory_limit, threads))


def _on_spark(threads: int | None, memory_limit: str | None) -> Callable[..., Graph]:
    if memory_limit is not None:
        raise UserError(
            "--memory-limit: is of the engine duckdb; set spark.driver.memory and spark.executor.memory, as "
            "spark-submit and spark-defaults.conf take them"
        )
    from rookery.data.ingest_spark import ingest_with_spark

    return partial(ingest_with_spark, num_threads=threads)


def _report(graph: Graph, elapsed_s: float) -> dict[str, Any]:
    num_edges = {split: info.num_edges for split, info in graph.splits.items()}
    return {
        "graph": graph.path,
        "entity_types": {name: info.num_entities for name, info in graph.entity_types.items()},
        "relations": {relation.name: relation.num_edges for relation in graph.relations},
        "splits": num_edges,
        "weighted": graph.weighted,
        "elapsed_s": elapsed_s,
        "edges_per_s": sum(num_edges.values()) / elapsed_s,
    }


def _render(graph: Graph, report: Mapping[str, Any]) -> Group:
    splits = list(graph.splits)
    relations = Table("relation", "lhs", "rhs", *splits, title=str(graph.path), title_justify="left")
    for relation in sorted(graph.relations, key=lambda one: -sum(one.num_edges.values()))[:_SHOWN_RELATIONS]:
        counts = [f"{relation.num_edges[split]:,}" for split in splits]
        relations.add_row(relation.name, relation.lhs, relation.rhs, *counts)
    if len(graph.relations) > _SHOWN_RELATIONS:
        relations.add_row(f"… {len(graph.relations) - _SHOWN_RELATIONS} more")
    relations.add_section()
    relations.add_row("all", "", "", *(f"{graph.num_edges(split):,}" for split in splits))
    entities = ", ".join(f"{info.num_entities:,} {name}" for name, info in graph.entity_types.items())
    speed = f"{report['elapsed_s']:.1f} s, {report['edges_per_s']:,.0f} edges/s"
    return Group(relations, f"entities: {entities}", speed)
