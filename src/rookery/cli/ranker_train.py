"""``rookery ranker init`` and ``rookery ranker train``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from rookery.cli.jobs import Job, expecting
from rookery.cli.output import INTERRUPTED, JsonFlag, emit, progress_console


def register(app: typer.Typer) -> None:
    """Add the commands to the group ``ranker``."""
    app.command("init")(_init)
    app.command("train")(_train)


def _init(
    log: Annotated[
        list[Path],
        typer.Argument(
            help="Parquet files with one row an impression, or a folder of them; of a folder with train.parquet, "
            "valid.parquet and test.parquet these are the partitions.",
            show_default=False,
        ),
    ],
    labels: Annotated[list[str], typer.Option("--label", help="A column of 0 and 1 to predict; repeat it for more.")],
    user: Annotated[str | None, typer.Option(help="The column of the user.")] = None,
    item: Annotated[str | None, typer.Option(help="The column of what was shown.")] = None,
    time: Annotated[
        str | None, typer.Option(help="The column of when it was shown: splits the log; else the order of rows does.")
    ] = None,
    embeddings: Annotated[
        list[str] | None,
        typer.Option(
            "--embedding", metavar="EXPORT:TABLE:KEY", help="Join vectors of a TwHIN export to a column of ids."
        ),
    ] = None,
    save_dir: Annotated[
        Path, typer.Option(help="Where the run will go unless `train --save-dir` says otherwise.")
    ] = Path("runs/ranker"),
) -> None:
    """Write a commented configuration that fits the log to stdout."""
    from rookery.ranker.init import InitRequest, initial_config
    from rookery.ranker.init_columns import Roles

    roles = Roles(tuple(labels), user, item, time)
    request = InitRequest(tuple(log), roles, tuple(embeddings or ()), save_dir)
    sys.stdout.write(initial_config(request, lambda line: progress_console.print(line, markup=False, soft_wrap=True)))


def _train(
    config: Annotated[
        Path,
        typer.Argument(
            help="A configuration, as `rookery ranker init` writes it, or one of the-algorithm-ml.", show_default=False
        ),
    ],
    save_dir: Annotated[Path | None, typer.Option(help="The run directory; replaces training.save_dir.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Replace one field, as in training.num_epochs=2."),
    ] = None,
    debug_loop: Annotated[
        bool, typer.Option("--debug-loop", help="The same steps without batches made ahead, each logged in detail.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train the heavy ranker; started again, it goes on where it stopped."""
    from rookery.ranker.from_reference import load_ranker_config
    from rookery.ranker.train import train_ranker

    quoted = json.dumps(str(save_dir))  # a folder named 2024 is no number
    flags = [f"training.save_dir={quoted}"] if save_dir else []
    with expecting(Job.RANKER, config):
        loaded = load_ranker_config(config, overrides or (), flags)
    result = train_ranker(loaded, debug=debug_loop)
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
