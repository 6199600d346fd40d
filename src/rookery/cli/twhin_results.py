"""``rookery twhin evaluate``, ``export``, ``index`` and ``neighbors``: what came out of a run."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from rookery.cli.output import JsonFlag, emit, progress_console
from rookery.cli.run_flags import (
    CheckpointFlag,
    FollowFlag,
    OverwriteFlag,
    RunArgument,
    TimeoutFlag,
    describe_followed,
    followed_run,
    local_run,
    parse_checkpoint,
    parse_graph,
)
from rookery.errors import UserError
from rookery.types import Side

if TYPE_CHECKING:
    from rookery.twhin.evaluation import Evaluation
    from rookery.twhin.retrieval import Neighbors
    from rookery.twhin.run_evaluation import Measured

_RELATIONS_SHOWN = 20


class Kind(enum.Enum):
    """A kind of index."""

    EXACT = "exact"
    HNSW = "hnsw"
    IVFPQ = "ivfpq"


class Metric(enum.Enum):
    """What an index compares by."""

    DOT = "dot"
    COSINE = "cosine"
    L2 = "l2"
    L1 = "l1"


SourceArgument = Annotated[str, typer.Argument(help="A training run or an export, by path or URL.", show_default=False)]
GraphFlag = Annotated[
    str | None, typer.Option(help="Where the run's graph lies now, if it has moved.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add the commands to the group ``twhin``."""
    app.command("evaluate")(_evaluate)
    app.command("export")(_export)
    app.command("index")(_index)
    app.command("neighbors")(_neighbors)


def _evaluate(
    run: RunArgument,
    split: Annotated[str, typer.Option(help="The split of the graph to measure.")] = "test",
    checkpoint: CheckpointFlag = "auto",
    graph: GraphFlag = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Replace a field, as in evaluation.num_candidates=1000."),
    ] = None,
    follow: FollowFlag = False,
    timeout_s: TimeoutFlag = 3600.0,
    as_json: JsonFlag = False,
) -> None:
    """Measure RUN by rank: MRR, Hits@k, mean rank, AUC; Recall@K and NDCG@K where the configuration asks for them."""
    from rookery.twhin.run_evaluation import evaluate_run, follow_run

    if not follow:
        folder = local_run(run, checkpoint)
        measured = evaluate_run(folder, split, parse_checkpoint(checkpoint), parse_graph(graph), overrides or ())
        emit(measured.report(), as_json, lambda: _evaluation_tables(measured.evaluation))
        return
    followed = follow_run(
        followed_run(run, checkpoint), split, parse_graph(graph), overrides or (), timeout_s=timeout_s, note=_note
    )
    emit(followed, as_json, lambda: Text(describe_followed(followed)))


def _note(measured: Measured) -> None:
    shown = "  ".join(f"{name} {value:.4f}" for name, value in list(measured.evaluation.metrics().items())[:4])
    progress_console.print(f"step {measured.step:,}: {measured.evaluation.split}  {shown}", highlight=False)


def _export(
    run: RunArgument,
    out: Annotated[Path, typer.Argument(help="The folder to write.", show_default=False)],
    checkpoint: CheckpointFlag = "auto",
    graph: GraphFlag = None,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Write the vectors of RUN to OUT: a Parquet file an entity type, the relations, and a manifest."""
    from rookery.twhin.source import export_run

    folder = local_run(run, checkpoint)
    manifest = export_run(folder, out, parse_checkpoint(checkpoint), parse_graph(graph), overwrite=overwrite)
    result = {
        "out": out,
        "step": manifest.step,
        "comparator": manifest.comparator,
        "dim": manifest.dim,
        "entity_types": manifest.entity_types,
        "num_relations": len(manifest.relations),
        "bytes": sum(int(entry["bytes"]) for entry in manifest.files.values()),
    }
    emit(result, as_json, lambda: _facts(result))


def _index(
    source: SourceArgument,
    out: Annotated[
        Path | None,
        typer.Argument(help="The folder to write; left out: SOURCE/index/TYPE-KIND-METRIC.", show_default=False),
    ] = None,
    entity_type: Annotated[
        str | None, typer.Option("--type", help="The entity type; may be left out if there is one.")
    ] = None,
    kind: Annotated[Kind, typer.Option(help="exact, hnsw (a graph) or ivfpq (a few bytes a vector).")] = Kind.HNSW,
    metric: Annotated[
        Metric | None,
        typer.Option(help="Left out: the run's comparator. cosine for likeness under dot.", show_default=False),
    ] = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="NAME=VALUE", help="As in num_links=48; see docs/retrieval.md."),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Recall is measured at this many neighbours.")] = 20,
    checkpoint: CheckpointFlag = "auto",
    graph: GraphFlag = None,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Index the vectors of one entity type of SOURCE for fast search, and compare it with exact search."""
    from rookery.config.loader import parse_config
    from rookery.twhin.index import build_index
    from rookery.twhin.index_config import KINDS
    from rookery.twhin.source import open_source

    config = parse_config(KINDS[kind.value], _named_values(parameters or ()), "--param")
    folder = local_run(source, checkpoint)
    opened = open_source(folder, parse_checkpoint(checkpoint), parse_graph(graph))
    if entity_type is None and len(opened.entity_types) > 1:
        raise UserError(f"--type is missing: {source} has {', '.join(opened.entity_types)}; pass one of them")
    entity_type = entity_type or opened.entity_types[0]
    compared_by = opened.embeddings.comparator if metric is None else metric.value
    out = out or folder / "index" / f"{entity_type}-{kind.value}-{compared_by}"
    manifest = build_index(opened, entity_type, config, out, metric=compared_by, recall_k=k, overwrite=overwrite)
    result = {"out": out, **manifest.model_dump(exclude={"format", "content", "files", "fingerprint"})}
    emit(result, as_json, lambda: _facts(result))


def _neighbors(
    source: SourceArgument,
    ids: Annotated[
        list[str], typer.Option("--id", help="An entity; repeated: several of one type.", show_default=False)
    ],
    k: Annotated[int, typer.Option("-k", min=1, help="How many neighbours.")] = 20,
    relation: Annotated[
        str | None,
        typer.Option(help="What this relation leads to; left out: entities of the same type that are alike."),
    ] = None,
    side: Annotated[
        Side | None, typer.Option(help="The side of the relation to find; left out: the one that --id is not on.")
    ] = None,
    entity_type: Annotated[str | None, typer.Option("--type", help="The type of --id, where several have it.")] = None,
    num_interests: Annotated[
        int | None,
        typer.Option("--interests", min=1, help="Ask with this many clusters of what --id has met, by likeness."),
    ] = None,
    exclude_known: Annotated[
        bool, typer.Option("--exclude-known", help="Leave out what --id has met in training.")
    ] = False,
    index: Annotated[Path | None, typer.Option(help="Search with an index of `rookery twhin index`.")] = None,
    graph: Annotated[str | None, typer.Option(help="The graph of training edges; left out: the run's own.")] = None,
    checkpoint: CheckpointFlag = "auto",
    as_json: JsonFlag = False,
) -> None:
    """List the nearest neighbours of entities: alike ones, or what a relation leads to from them."""
    from rookery.twhin.retrieval import NeighborRequest, find_neighbors
    from rookery.twhin.source import open_source

    request = NeighborRequest(ids, k, entity_type, relation, side, num_interests, exclude_known)
    opened = open_source(local_run(source, checkpoint), parse_checkpoint(checkpoint), parse_graph(graph))
    found = find_neighbors(opened, request, index)
    result = {"ids": ids, "relation": relation, **vars(found)}
    emit(result, as_json, lambda: _neighbor_table(found, ids, relation))


def _named_values(pairs: Sequence[str]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise UserError(f"--param {pair}: must be NAME=VALUE, as in num_links=48")
    return dict(pair.split("=", 1) for pair in pairs)


def _facts(result: Mapping[str, Any]) -> Table:
    table = Table(show_header=False)
    for name, value in result.items():
        shown = ", ".join(f"{key} {_number(part)}" for key, part in value.items()) if isinstance(value, dict) else value
        table.add_row(name, _number(shown))
    return table


def _evaluation_tables(evaluation: Evaluation) -> Group:
    report: dict[str, Any] = evaluation.report()
    title = f"{evaluation.split}: {evaluation.num_edges:,} edges, {evaluation.num_edges_unseen:,} with an unseen entity"
    tables = []
    for kind, numbers in report.get("link_prediction", {}).items():
        rows = {"both sides" if len(numbers["sides"]) > 1 else "": numbers, **numbers["sides"]}
        tables.append(_metric_table(f"{title}; {kind} ranks", rows, numbers["relations"]))
    if "recommendation" in report:
        numbers = report["recommendation"]
        tables.append(_metric_table(f"{title}; recommendation", {"all": numbers}, numbers["relations"]))
    return Group(*tables)


def _metric_table(title: str, rows: Mapping[str, Any], relations: Mapping[str, Any]) -> Table:
    """``rows`` first, then the relations with most queries."""
    first = next(iter(rows.values()))
    names = [
        name for name, value in first.items() if isinstance(value, (int, float)) and name != "num_masked_positives"
    ]
    table = Table("", *names, title=title, title_justify="left")
    for label, numbers in rows.items():
        table.add_row(label, *(_number(numbers[name]) for name in names))
    if len(relations) > 1:
        table.add_section()
        largest = sorted(relations.items(), key=lambda item: -item[1]["num_queries"])
        for label, numbers in largest[:_RELATIONS_SHOWN]:
            table.add_row(label, *(_number(numbers[name]) for name in names))
        if len(largest) > _RELATIONS_SHOWN:
            table.add_row(f"… {len(largest) - _RELATIONS_SHOWN} more relations with --json")
    return table


def _neighbor_table(found: Neighbors, ids: Sequence[str], relation: str | None) -> Group:
    what = f"{found.entity_type} alike" if relation is None else f"{found.entity_type} by {relation}"
    table = Table("", found.entity_type, found.metric)
    several = len(found.weights) > 1
    if several:
        table.add_column("query")
    for place, neighbor in enumerate(found.neighbors, start=1):
        origin = [f"{neighbor.query + 1} ({found.weights[neighbor.query]:.0%})"] if several else []
        table.add_row(str(place), str(neighbor.id), _number(neighbor.score), *origin)
    return Group(Text(f"{', '.join(ids)}: {what}"), table)


def _number(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 1000 else f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
