"""``rookery data``: public sets and a generated one, ready for ``rookery twhin`` and ``rookery ranker``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.table import Table

from rookery.cli import data_records
from rookery.cli.output import JsonFlag, emit

if TYPE_CHECKING:
    from rookery.data.adapters.edge_lists import Prepared

Src = Annotated[Path, typer.Argument(help="The folder of the raw files, as downloaded.", show_default=False)]
Out = Annotated[Path, typer.Argument(help="The folder to write.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is a prepared folder.")]


def register(app: typer.Typer) -> None:
    """Add the group ``data``."""
    group = typer.Typer(no_args_is_help=True, help="Public data sets and a generated one, made ready.")
    prepare = typer.Typer(
        no_args_is_help=True,
        help="Turn a public data set into edge lists for `rookery twhin ingest`, or into impressions for "
        "`rookery ranker`.",
    )
    prepare.command("fb15k237")(_fb15k237)
    prepare.command("lightgcn")(_lightgcn)
    prepare.command("higgs")(_higgs)
    prepare.command("kuairand-history")(_kuairand_history)
    prepare.command("kuairand")(_kuairand)
    group.add_typer(prepare, name="prepare")
    group.command("planted")(_planted)
    data_records.register(group)
    app.add_typer(group, name="data")


def _fb15k237(src: Src, out: Out, overwrite: Overwrite = False, as_json: JsonFlag = False) -> None:
    """FB15k-237: train.txt, valid.txt and test.txt of knowledge-graph triples."""
    from rookery.data.adapters import fb15k237

    _show(fb15k237.prepare(src, out, overwrite=overwrite), as_json)


def _lightgcn(
    src: Src,
    out: Out,
    valid_fraction: Annotated[
        float, typer.Option(help="Of each user's train items; 0 leaves all of train for a last fit.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Of the validation items.")] = 0,
    overwrite: Overwrite = False,
    as_json: JsonFlag = False,
) -> None:
    """Gowalla, Yelp2018 or Amazon-Book as LightGCN has them: train.txt and test.txt of `user item item …`."""
    from rookery.data.adapters import lightgcn

    _show(lightgcn.prepare(src, out, valid_fraction=valid_fraction, seed=seed, overwrite=overwrite), as_json)


def _higgs(src: Src, out: Out, overwrite: Overwrite = False, as_json: JsonFlag = False) -> None:
    """Higgs: retweets, mentions and replies on Twitter, split by day."""
    from rookery.data.adapters import higgs

    _show(higgs.prepare(src, out, overwrite=overwrite), as_json)


def _kuairand_history(src: Src, out: Out, overwrite: Overwrite = False, as_json: JsonFlag = False) -> None:
    """KuaiRand: the videos that users watched, liked and watched at length before the impressions."""
    from rookery.data.adapters import kuairand_history

    _show(kuairand_history.prepare(src, out, overwrite=overwrite), as_json)


def _kuairand(src: Src, out: Out, overwrite: Overwrite = False, as_json: JsonFlag = False) -> None:
    """KuaiRand: impressions with leak-free features and eight labels, split by day, for `rookery ranker`."""
    from rookery.data.adapters import kuairand

    result = dataclasses.asdict(kuairand.prepare(src, out, overwrite=overwrite))
    emit(result, as_json, lambda: _render_log(result))


def _planted(
    out: Out,
    num_users: Annotated[int, typer.Option(min=1)] = 2000,
    num_items: Annotated[int, typer.Option(min=1)] = 3000,
    num_communities: Annotated[int, typer.Option(min=1)] = 20,
    num_edges: Annotated[int, typer.Option(min=1, help="Drawn; repeated ones are kept once.")] = 120_000,
    p_inside: Annotated[float, typer.Option(help="How often an edge stays in its user's community.")] = 0.9,
    tail: Annotated[float, typer.Option(help="Zipf exponent of activity by rank; 0 makes all equal.")] = 0.7,
    seed: Annotated[int, typer.Option()] = 0,
    overwrite: Overwrite = False,
    as_json: JsonFlag = False,
) -> None:
    """Generate a graph of users and items in planted communities, with the truth beside it."""
    from rookery.data.planted import PlantedConfig, write_planted

    config = PlantedConfig(num_users, num_items, num_communities, num_edges, p_inside, tail, seed)
    written = write_planted(config, out, overwrite=overwrite)
    result = {"path": out, "num_edges": {"edges": written}, "config": config}
    emit(result, as_json, lambda: _render(result))


def _show(prepared: Prepared, as_json: bool) -> None:
    result = {"path": prepared.path, "num_edges": prepared.num_edges}
    emit(result, as_json, lambda: _render(result))


def _render(result: dict[str, Any]) -> Group:
    table = Table("file", "edges")
    for name, num_edges in result["num_edges"].items():
        table.add_row(name, f"{num_edges:,}")
    return Group(table, f"next: rookery twhin ingest {result['path']} GRAPH")


def _render_log(result: dict[str, Any]) -> Group:
    table = Table("file", "impressions")
    for name, num_rows in result["num_rows"].items():
        table.add_row(f"{name}.parquet", f"{num_rows:,}")
    left_out = f"{result['num_left_out']:,} impressions of other days are left out"
    keys = "--label is_click --label long_view … --user user_id --item video_id --time time_ms"
    return Group(table, left_out, f"next: rookery ranker init {result['path']} {keys} > config.yaml")
