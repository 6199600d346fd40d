"""What a run logged while it trained, as curves: from ``metrics.jsonl`` and from kept evaluations."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rookery.errors import DataError
from rookery.ranker.evaluation_files import read_evaluation
from rookery.ranker.report_charts import Series
from rookery.train.evaluations import evaluated_steps

logger = logging.getLogger(__name__)

MAX_POINTS = 240  # of a drawn curve: more than pixels tell apart
_OVER_STEPS = (("auroc", "AUROC"), ("rce", "RCE, %"), ("calibration", "calibration ratio"))


@dataclass(frozen=True)
class CurveGroup:
    """Curves that share a drawing."""

    title: str
    curves: Sequence[Series]
    log: bool


def training_curves(run: Path) -> list[CurveGroup]:
    """Loss, loss by task, learning rates, and three metrics of each partition that training measured."""
    logged = _read_log(run / "metrics.jsonl")
    groups = [
        CurveGroup("training loss", _series(logged, {"loss": "loss"}), log=False),
        CurveGroup("training loss by task", _series(logged, _below(logged, "loss/")), log=True),
    ]
    for partition in _partitions(logged):
        for metric, title in _OVER_STEPS:
            names = {
                name: task
                for name, task in _below(logged, f"validation/{partition}/").items()
                if task.endswith(f"/{metric}")
            }
            named = {name: task.removesuffix(f"/{metric}") for name, task in names.items()}
            groups.append(CurveGroup(f"{title} on {partition}", _series(logged, named), log=False))
    groups.append(CurveGroup("learning rate", _merged(_series(logged, _below(logged, "lr/"))), log=False))
    return [group for group in groups if any(curve.defined() for curve in group.curves)]


def evaluation_curves(run: Path, split: str) -> list[CurveGroup]:
    """The same three metrics over the checkpoints that were evaluated; nothing for a single one.

    Evaluations that are damaged are left out with a warning.
    """
    evaluations = list(_evaluations(run, split))
    if len(evaluations) < 2:
        return []
    groups = []
    for metric, title in _OVER_STEPS:
        tasks = dict.fromkeys(task for each in evaluations for task in each["tasks"])
        curves = [
            Series(task, [(each["step"], each["tasks"].get(task, {}).get(metric)) for each in evaluations])
            for task in tasks
        ]
        groups.append(CurveGroup(f"{title} on {split}", curves, log=False))
    return [group for group in groups if any(curve.defined() for curve in group.curves)]


def _evaluations(run: Path, split: str) -> Iterator[Mapping[str, Any]]:
    for step in evaluated_steps(run, split):
        try:
            yield read_evaluation(run, split, step)
        except DataError as damage:
            logger.warning("%s; the curves are drawn without it", damage)


def _read_log(path: Path) -> list[Mapping[str, Any]]:
    """Whole lines of the log; a run in training may be writing the last one. Damaged ones are left out and told."""
    if not path.exists():
        return []
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    entries = [_entry(line) for line in lines]
    damaged = [number for number, entry in enumerate(entries, 1) if entry is None]
    if damaged:
        logger.warning(
            "%s: %d lines are no metrics of a step, the first is line %d; the curves are drawn without them: remove "
            "them, or restore the file",
            path,
            len(damaged),
            damaged[0],
        )
    return [entry for entry in entries if entry is not None]


def _entry(line: bytes) -> Mapping[str, Any] | None:
    """``{"step": 100, "loss": 0.4, …}``, None for what is something else."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
        return None
    return entry if all(value is None or isinstance(value, (int, float)) for value in entry.values()) else None


def _partitions(logged: Iterable[Mapping[str, Any]]) -> list[str]:
    names = (name.split("/")[1] for entry in logged for name in entry if name.startswith("validation/"))
    return list(dict.fromkeys(names))


def _below(logged: Iterable[Mapping[str, Any]], prefix: str) -> dict[str, str]:
    """Names that begin with ``prefix``, and what follows it, in the order of their first appearance."""
    return {name: name.removeprefix(prefix) for entry in logged for name in entry if name.startswith(prefix)}


def _series(logged: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[Series]:
    return [
        Series(shown, _thinned([(entry["step"], entry[name]) for entry in logged if entry.get(name) is not None]))
        for name, shown in names.items()
    ]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``MAX_POINTS`` of them: means of as many neighbours as that takes."""
    size = -(-len(points) // MAX_POINTS)
    if size <= 1:
        return points
    chunks = [points[start : start + size] for start in range(0, len(points), size)]
    return [(chunk[-1][0], sum(y for _, y in chunk) / len(chunk)) for chunk in chunks]


def _merged(curves: Iterable[Series]) -> list[Series]:
    """Curves that are the same drawn once, under all their names."""
    names: dict[tuple[tuple[float, float | None], ...], list[str]] = {}
    for curve in curves:
        names.setdefault(tuple(curve.points), []).append(curve.name)
    return [Series(", ".join(own), points) for points, own in names.items()]
