"""Measure checkpoints of a run, keep what came out, draw the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rookery.errors import UserError
from rookery.ranker.build import build_preprocessor
from rookery.ranker.evaluation import evaluate
from rookery.ranker.inputs import INPUTS, Inputs
from rookery.ranker.report import render_report
from rookery.ranker.run import load_run, run_config
from rookery.storage.location import Location
from rookery.train.evaluations import (
    IN_RUN,
    evaluation_folder,
    evaluation_path,
    require_writable,
    write_evaluation,
    write_text,
)
from rookery.train.follow import follow
from rookery.train.runtime import prepare_runtime

_REPORT = "--report must name a file that can be written"
_SETTABLE = ("evaluation.", "validation_data.", "runtime.")


def evaluate_run(
    run: Path,
    split: str,
    checkpoint: Literal["auto", "latest", "best"] | int = "auto",
    overrides: Sequence[str] = (),
    report: Path | None = None,
) -> dict[str, Any]:
    """Measure one checkpoint on a partition, keep the evaluation and a report (left out: beside it), and return it.

    ``overrides`` replace fields of the sections ``evaluation``, ``validation_data`` and ``runtime``. Raises
    ``RunNotFound`` and ``UserError`` for what is not there or cannot be written, before anything is read from the
    partition.
    """
    _check_settable(overrides)
    if report is not None:
        require_writable(report, _REPORT)
    config = run_config(run, overrides)
    device = prepare_runtime(config.runtime)
    loaded = load_run(run, checkpoint, device)
    require_writable(evaluation_path(run, split, loaded.step), IN_RUN)
    preprocessor = build_preprocessor(config, Inputs.open(run / INPUTS))  # other strata need another one
    start = time.perf_counter()
    found = evaluate(config, split, loaded.model, preprocessor, num_bootstrap=config.evaluation.num_bootstrap)
    result = {"step": loaded.step, **found.report(), "elapsed_s": round(time.perf_counter() - start, 3)}
    write_evaluation(run, split, loaded.step, result)
    drawn = report or evaluation_folder(run, split) / "report.html"
    write_text(drawn, render_report(run, split, loaded.step), IN_RUN if report is None else _REPORT)
    return {"run": str(run), "report": str(drawn), **result}


def follow_run(
    run: Location,
    split: str,
    overrides: Sequence[str] = (),
    report: Path | None = None,
    *,
    timeout_s: float,
    note: Callable[[Mapping[str, Any]], None],
) -> dict[str, Any]:
    """Measure every checkpoint of a run in training that is not measured yet; stop behind its last one.

    ``note`` is told of each evaluation. Stops too when ``timeout_s`` pass without a new checkpoint; raises
    ``RunNotFound`` when not one came.
    """
    _check_settable(overrides)
    if report is not None:
        require_writable(report, _REPORT)
    return follow(
        run,
        split,
        lambda folder: run_config(folder).training,
        lambda folder, step: note(evaluate_run(folder, split, step, overrides, report)),
        timeout_s=timeout_s,
    )


def _check_settable(overrides: Sequence[str]) -> None:
    for override in overrides:
        if not override.startswith(_SETTABLE):
            raise UserError(
                f"--set {override}: the model is trained already; fields of evaluation, validation_data and runtime "
                "can be replaced"
            )
