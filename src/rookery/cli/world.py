"""``rookery world``: a simulated society with known laws."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from rookery.cli.output import JsonFlag, emit, progress_console

if TYPE_CHECKING:
    from rookery.world.generate import Generated


class SizeName(str, enum.Enum):
    """The sizes of ``WorldConfig.of_size``."""

    TINY = "tiny"
    SMALL = "small"
    MEDIUM = "medium"
    LARGE = "large"


def register(app: typer.Typer) -> None:
    """Add the group ``world``."""
    group = typer.Typer(no_args_is_help=True, help="A simulated society whose laws are known.")
    group.command("generate")(_generate)
    group.callback()(_group)
    app.add_typer(group, name="world")


def _group() -> None:
    """Without it, a group of one command would be the command."""


def _generate(
    out: Annotated[Path, typer.Argument(help="The folder to write.", show_default=False)],
    size: Annotated[
        SizeName, typer.Option(help="300, 4 thousand, 100 thousand or 500 thousand users.")
    ] = SizeName.SMALL,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is a world.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Generate users, posts, follows, and days of impressions with their true probabilities."""
    from rookery.world.config import WorldConfig
    from rookery.world.generate import generate_world

    columns = (TextColumn("day {task.completed} of {task.total}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=progress_console, transient=True) as progress:
        bar = progress.add_task("days", total=None)
        generated = generate_world(
            out,
            WorldConfig.of_size(size.value, seed),
            overwrite=overwrite,
            notify=lambda done, days: progress.update(bar, completed=done, total=days),
        )
    emit(vars(generated), as_json, lambda: _render(generated))


def _render(generated: Generated) -> Group:
    out = generated.path
    table = Table("engagement", "rate in the log")
    for name, rate in generated.base_rates.items():
        table.add_row(name, f"{rate:.2g}")
    edges = ", ".join(f"{count:,} {name}" for name, count in generated.num_edges.items())
    return Group(
        table,
        f"{generated.num_impressions:,} impressions, {generated.num_posts:,} posts; edges: {edges}",
        f"next: rookery twhin ingest {out}/history GRAPH",
    )
