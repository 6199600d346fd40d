"""``rookery replay``: a step that was not taken because its loss was not finite, computed once more."""

from __future__ import annotations

from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from rookery.cli.jobs import Job, job_of
from rookery.cli.output import JsonFlag, emit
from rookery.cli.run_flags import parse_graph
from rookery.errors import RunNotFound, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rookery.train.replay import Finding, Replay


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("replay")(_replay)


def _replay(
    run: Annotated[Path, typer.Argument(help="A training run, of TwHIN or the ranker.", show_default=False)],
    step: Annotated[
        int | None, typer.Option(min=1, help="The step; left out: the latest whose loss was not finite.")
    ] = None,
    graph: Annotated[
        str | None, typer.Option(help="Where the graph of TwHIN lies now, if it has moved.", show_default=False)
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Compute the loss of the rows kept in RUN/not-finite once more, and tell what of it is not finite.

    The weights are those of the newest checkpoint from before that step. Nothing is written.
    """
    replay = _replayed(run, step, graph)
    verdict = _verdict(replay)
    emit({"run": run, **asdict(replay), "verdict": verdict}, as_json, lambda: _render(replay, verdict))


def _replayed(run: Path, step: int | None, graph: str | None) -> Replay:
    config = run / "config.yaml"
    if not config.exists():
        raise RunNotFound(f"{run}: no config.yaml there; name the save_dir of a training run")
    if job_of(config) is Job.TWHIN:
        from rookery.twhin.replay import replay_step

        return replay_step(run, step, parse_graph(graph))
    if graph is not None:
        raise UserError(f"--graph {graph}: {run} is a run of the ranker, which has no graph; leave it out")
    from rookery.ranker.replay import replay_step as replay_ranker

    return replay_ranker(run, step)


def _verdict(replay: Replay) -> str:
    """What follows of it, in a sentence."""
    between = replay.step - 1 - replay.weights_of_step
    weights = f"the weights of step {replay.weights_of_step:,}"
    if replay.weights:
        return f"{weights} are not finite themselves: go back to an earlier checkpoint, or start anew"
    if not all(isfinite(batch.loss) for batch in replay.batches):
        return (
            f"the loss is not finite with {weights} either: it is no fault of the machine; lower the learning rate, or "
            "mend the rows below"
        )
    if between:
        lying = f"{between:,} steps lie" if between > 1 else "a step lies"
        return (
            f"the loss is finite with {weights}, and {lying} between: that, or the machine, made the weights what they "
            "were; train again with a smaller training.checkpoint_every_n to come closer"
        )
    return f"the loss is finite with {weights}, which the step began with: it was the machine; start the run again"


def _render(replay: Replay, verdict: str) -> Group:
    name, size = replay.largest
    parts: list[Text | Table] = [
        Text(f"step {replay.step:,}: {verdict}"),
        Text(f"largest weight: {size:.4g} in {name}"),
    ]
    if replay.weights:
        parts.append(_table("Weights that are not finite", replay.weights))
    for number, batch in enumerate(replay.batches):
        title = f"Micro-batch {number}: {batch.num_rows:,} rows, loss {batch.loss:.6g}"
        parts.append(_table(title, batch.findings) if batch.findings else Text(f"{title}, all of it finite"))
    return Group(*parts)


def _table(title: str, findings: Sequence[Finding]) -> Table:
    table = Table("not finite", "", "how many", Column("first", overflow="fold"), title=title, title_justify="left")
    for found in findings:
        table.add_row(found.kind, found.name, f"{found.count:,} of {found.total:,}", "\n".join(found.first))
    return table
