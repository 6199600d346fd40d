"""``rookery demo``: the whole of TwHIN on a small generated graph."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.table import Table

from rookery.cli.output import JsonFlag, emit, progress_console

if TYPE_CHECKING:
    from rookery.twhin.demo import DemoResult


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(_demo)


def _demo(
    folder: Annotated[Path, typer.Option(help="Where the graph and the run go.")] = Path("demo"),
    as_json: JsonFlag = False,
) -> None:
    """Train TwHIN on a small graph with planted communities and hold it against the truth."""
    from rookery.twhin.demo import run_demo

    started = time.monotonic()
    result = run_demo(folder, lambda stage: progress_console.print(f"[bold]{stage}[/]"))
    report = {**vars(result), "elapsed_s": time.monotonic() - started}
    emit(report, as_json, lambda: _render(result, report["elapsed_s"]))


def _render(result: DemoResult, elapsed_s: float) -> Group:
    metrics = Table("metric", "TwHIN", "the truth itself", "chance", "reached", title="What was learned")
    for metric in result.metrics:
        reached = f"{metric.model / metric.truth:.0%}"
        metrics.add_row(metric.name, f"{metric.model:.3f}", f"{metric.truth:.3f}", f"{metric.chance:.3f}", reached)
    neighbors = Table("user", "community", "most similar users (* of the same community)", title="Nearest neighbours")
    for example in result.examples:
        pairs = zip(example.neighbors.neighbors, example.same_community, strict=True)
        shown = ", ".join(f"{neighbor.id}{'*' if same else ''}" for neighbor, same in pairs)
        neighbors.add_row(example.id, str(example.community), shown)
    run = result.folder / "run"
    user = result.examples[0].id
    return Group(
        metrics, neighbors, f"{elapsed_s:.0f} s; next: rookery twhin neighbors {run} --id {user} --relation like -k 20"
    )
