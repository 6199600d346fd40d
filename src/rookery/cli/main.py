"""The command line ``rookery``. Commands import what they run when they run: ``--help`` loads no torch."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import rookery
from rookery.cli import (
    config,
    data,
    demo,
    doctor,
    ranker_results,
    ranker_score,
    ranker_tools,
    ranker_train,
    ranker_weights,
    reader,
    replay,
    serve,
    timeline,
    twhin_ingest,
    twhin_results,
    twhin_train,
    twhin_weights,
    world,
)
from rookery.cli.local_paths import refuse_urls
from rookery.cli.output import run_command


class _Commands(TyperGroup):
    """What a flag may not be is told in the words of the check alone."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")  # of pydantic, by which typer checks
            raise


app = typer.Typer(
    name="rookery",
    cls=_Commands,
    help=rookery.__doc__,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rookery {rookery.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


twhin = typer.Typer(no_args_is_help=True, help="Entity embeddings: from edges to neighbours.")
app.add_typer(twhin, name="twhin")
for _commands in (twhin_ingest, twhin_train, twhin_results, twhin_weights):
    _commands.register(twhin)
ranker = typer.Typer(no_args_is_help=True, help="The heavy ranker: from an impression log to probabilities.")
app.add_typer(ranker, name="ranker")
for _commands in (ranker_train, ranker_results, ranker_score, ranker_tools, ranker_weights):
    _commands.register(ranker)
for _commands in (timeline, serve, reader, replay, data, world, config, doctor, demo):
    _commands.register(app)
refuse_urls(app)


def main() -> None:
    """Entry point: exit 0 when done, 1 when failed, 2 on wrong usage or configuration."""
    # Threads that wait by spinning take the cores from those that work where other processes run: up to 100 times
    # slower there, no faster on an idle machine. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    sys.exit(run_command(app))
