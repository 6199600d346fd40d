"""``rookery ranker evaluate``: what came out of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from rookery.cli.output import JsonFlag, emit, progress_console
from rookery.cli.run_flags import (
    CheckpointFlag,
    FollowFlag,
    RunArgument,
    TimeoutFlag,
    describe_followed,
    followed_run,
    local_run,
    parse_checkpoint,
)

_SHOWN = ("auroc", "gauc", "prauc", "rce", "nrce", "logloss", "calibration", "ece")


def register(app: typer.Typer) -> None:
    """Add the command to the group ``ranker``."""
    app.command("evaluate")(_evaluate)


def _evaluate(
    run: RunArgument,
    split: Annotated[str, typer.Option(help="The partition of validation_data to measure.")] = "test",
    checkpoint: CheckpointFlag = "auto",
    report: Annotated[
        Path | None,
        typer.Option(help="The HTML file to write; left out: RUN/evaluations/SPLIT/report.html.", show_default=False),
    ] = None,
    follow: FollowFlag = False,
    timeout_s: TimeoutFlag = 3600.0,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Replace a field, as in evaluation.num_bootstrap=1000."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure RUN: AUROC, GAUC, RCE, log-loss, calibration and more of each task, with intervals; save a report."""
    from rookery.ranker.run_evaluation import evaluate_run, follow_run

    if not follow:
        folder = local_run(run, checkpoint)
        result = evaluate_run(folder, split, parse_checkpoint(checkpoint), overrides or (), report)
        emit(result, as_json, lambda: _tables(result))
        return
    followed = follow_run(
        followed_run(run, checkpoint), split, overrides or (), report, timeout_s=timeout_s, note=_note
    )
    emit(followed, as_json, lambda: Text(describe_followed(followed)))


def _note(result: Mapping[str, Any]) -> None:
    means = "  ".join(f"{name} {_number(result['mean'][name])}" for name in ("auroc", "rce", "logloss"))
    progress_console.print(f"step {result['step']:,}: {result['split']}  mean over tasks: {means}", highlight=False)


def _tables(result: Mapping[str, Any]) -> Group:
    users = "" if result["num_users"] is None else f", {result['num_users']:,} users"
    title = f"{result['split']} at step {result['step']:,}: {result['num_rows']:,} impressions{users}"
    tables = [_metric_table(title, result)]
    tables += [
        _metric_table(f"{name}: {stratum['num_rows']:,} impressions", stratum)
        for name, stratum in result["strata"].items()
    ]
    return Group(*tables, Text(f"report: {result['report']}"))


def _metric_table(title: str, measured: Mapping[str, Any]) -> Table:
    table = Table("", "positives", *_SHOWN, title=title, title_justify="left")
    for name, task in measured["tasks"].items():
        table.add_row(name, f"{task['positives']:,}", *(_with_interval(task, metric) for metric in _SHOWN))
    table.add_section()
    table.add_row("mean over tasks", "", *(_number(measured["mean"][metric]) for metric in _SHOWN))
    bounds = _bounds(measured["intervals"].get("ndcg"))
    table.caption = f"NDCG of the score: {_number(measured['ndcg'])}{f' ({bounds})' if bounds else ''}"
    table.caption_justify = "left"
    return table


def _with_interval(task: Mapping[str, Any], metric: str) -> str:
    bounds = _bounds(task["intervals"].get(metric))
    return f"{_number(task[metric])}\n{bounds}" if bounds else _number(task[metric])


def _bounds(interval: tuple[float | None, float | None] | None) -> str:
    if interval is None or None in interval:
        return ""
    return "–".join(_number(bound) for bound in interval)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}" if abs(value) >= 1 else f"{value:.4f}"
