"""``rookery twhin init`` and ``rookery twhin train``."""

from __future__ import annotations

import enum
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from rookery.cli.jobs import Job, expecting
from rookery.cli.output import INTERRUPTED, JsonFlag, emit


class RecipeName(enum.Enum):
    """The models that `init` can write."""

    AUTO = "auto"
    COMPLEX = "complex"
    TRANSE = "transe"
    FACTORS = "factors"
    TWHIN = "twhin"


def register(app: typer.Typer) -> None:
    """Add the commands to the group ``twhin``."""
    app.command("init")(_init)
    app.command("train")(_train)


def _init(
    graph: Annotated[Path, typer.Argument(help="An ingested graph.", show_default=False)],
    recipe: Annotated[RecipeName, typer.Option(help="The model; auto chooses by the graph.")] = RecipeName.AUTO,
    save_dir: Annotated[
        Path, typer.Option(help="Where the run will go unless `train --save-dir` says otherwise.")
    ] = Path("runs/twhin"),
) -> None:
    """Write a commented configuration that fits GRAPH to stdout."""
    from rookery.twhin.init import initial_config

    sys.stdout.write(initial_config(graph, save_dir, None if recipe is RecipeName.AUTO else recipe.value))


def _train(
    config: Annotated[
        Path,
        typer.Argument(
            help="A configuration, as `rookery twhin init` writes it, or one of the-algorithm-ml.", show_default=False
        ),
    ],
    save_dir: Annotated[Path | None, typer.Option(help="The run directory; replaces training.save_dir.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Replace one field, as in model.comparator=l2."),
    ] = None,
    debug_loop: Annotated[
        bool, typer.Option("--debug-loop", help="The same steps without batches made ahead, each logged in detail.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train TwHIN; started again, it goes on where it stopped."""
    from rookery.twhin.from_reference import load_twhin_config
    from rookery.twhin.train import train_twhin

    quoted = json.dumps(str(save_dir))  # a folder named 2024 is no number
    flags = [f"training.save_dir={quoted}"] if save_dir else []
    with expecting(Job.TWHIN, config):
        loaded = load_twhin_config(config, overrides or (), flags)
    result = train_twhin(loaded, debug=debug_loop)
    report = {"save_dir": loaded.training.save_dir, **vars(result)}
    emit(report, as_json, lambda: _table(report))
    if result.signal == "SIGINT":  # a script must not go on; SIGTERM is how a scheduler ends a run well
        raise typer.Exit(INTERRUPTED)


def _table(report: dict[str, object]) -> Table:
    table = Table("", "", show_header=False)
    for name, value in report.items():
        if value is not None:
            table.add_row(name, f"{value:.6g}" if isinstance(value, float) else str(value))
    return table
