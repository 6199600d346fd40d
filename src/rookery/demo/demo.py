"""``rookery demo``: all stages one behind the other, then a table and a page."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rookery.checkpoint.files import write_atomically
from rookery.config.loader import load_config
from rookery.demo.layout import RANKERS, Layout
from rookery.demo.measures import Measure, measure_bounds, ranker_measures, timeline_measures
from rookery.demo.page import WITH, WITHOUT, Findings, render_page, served_metrics
from rookery.demo.stages import SPLIT, Progress, Stage, stages
from rookery.errors import DataError
from rookery.ranker.config import RankerConfig
from rookery.ranker.evaluation_files import read_evaluation
from rookery.ranker.report_curves import training_curves
from rookery.timeline.bundle import attach_metrics, read_manifest
from rookery.train.evaluations import evaluated_steps
from rookery.world.config import WorldConfig


class Display(Protocol):
    """Shows the stages as they come."""

    def stage(self, number: int, total: int, title: str) -> AbstractContextManager[Progress]:
        """Open while the stage runs."""
        ...


@dataclass(frozen=True)
class DemoResult:
    """What the demo found, and where it lies."""

    folder: Path
    measures: list[Measure]
    policies: list[dict[str, Any]]
    recall: list[dict[str, Any]]
    not_predicted: tuple[str, ...]
    """Engagements that happened too seldom to be learned: they weigh nothing."""
    bundle: Path
    world: Path
    report: Path


def run_demo(folder: Path, world: WorldConfig, display: Display) -> DemoResult:
    """From nothing to timelines; started again it goes on where it was.

    Raises ``UserError`` where ``folder`` is for something else, ``KeyboardInterrupt`` when a training was interrupted,
    behind its checkpoint.
    """
    layout = Layout(folder.absolute())
    layout.claim(world)
    planned = [*stages(layout, world)]
    for number, stage in enumerate(planned):
        _run(stage, number + 1, len(planned), display)
    return _conclude(layout)


def _run(stage: Stage, number: int, total: int, display: Display) -> None:
    with display.stage(number, total, stage.title) as progress:
        stage.run(progress)


def _conclude(layout: Layout) -> DemoResult:
    runs = {WITHOUT: layout.run(RANKERS[0]), WITH: layout.run(RANKERS[1])}
    evaluations = {name: _last_evaluation(run) for name, run in runs.items()}
    config = load_config(RankerConfig, runs[WITH] / "config.yaml")
    timelines = _read_timelines(layout.timeline_evaluation)
    bounds = measure_bounds(layout.world, config, SPLIT)
    findings = Findings(
        [*ranker_measures(evaluations[WITHOUT], evaluations[WITH], bounds), *timeline_measures(timelines)],
        timelines,
        evaluations,
        {name: training_curves(run) for name, run in runs.items()},
        read_manifest(layout.bundle).weights_left_out,
    )
    attach_metrics(layout.bundle, served_metrics(findings))
    write_atomically(layout.report, render_page(findings, f"A timeline for {layout.folder.name}"))
    return DemoResult(
        layout.folder,
        [*findings.measures],
        timelines["policies"],
        timelines["recall"],
        findings.not_predicted,
        layout.bundle,
        layout.world,
        layout.report,
    )


def _read_timelines(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise DataError(f"{file}: damaged ({error}); remove it, it is measured anew") from error


def _last_evaluation(run: Path) -> dict[str, Any]:
    return dict(read_evaluation(run, SPLIT, max(evaluated_steps(run, SPLIT))))
