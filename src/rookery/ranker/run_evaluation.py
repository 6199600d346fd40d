"""``rookery ranker evaluate``: measure checkpoints of a run, keep what came out, draw the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rookery.config.loader import load_config
from rookery.ranker.build import build_preprocessor
from rookery.ranker.config import RankerConfig
from rookery.ranker.evaluation import evaluate
from rookery.ranker.evaluation_files import evaluated_steps, evaluation_folder, write_evaluation, write_text
from rookery.ranker.follow import is_last, measured_while_there, new_checkpoints
from rookery.ranker.inputs import Inputs
from rookery.ranker.partition import open_partition
from rookery.ranker.report import render_report
from rookery.ranker.run import INPUTS, load_run
from rookery.train.runtime import prepare_runtime

Result = Mapping[str, Any]


def evaluate_run(
    run: Path,
    split: str,
    checkpoint: Literal["auto", "latest", "best"] | int = "auto",
    overrides: Sequence[str] = (),
    report: Path | None = None,
) -> dict[str, Any]:
    """Measure one checkpoint on a partition; keep the evaluation and a report (left out: beside it) and return it.

    ``overrides`` replace fields of the run's configuration, as in ``evaluation.num_bootstrap=1000``.
    """
    loaded = load_run(run, checkpoint)
    config = load_config(RankerConfig, run / "config.yaml", overrides)
    prepare_runtime(config.runtime)
    start = time.perf_counter()
    found = evaluate(config, split, loaded.model, loaded.preprocessor, num_bootstrap=config.evaluation.num_bootstrap)
    result = {"step": loaded.step, **found.report(), "elapsed_s": round(time.perf_counter() - start, 3)}
    write_evaluation(run, split, loaded.step, result)
    written = report or evaluation_folder(run, split) / "report.html"
    write_text(written, render_report(run, split, loaded.step))
    return {"run": str(run), "report": str(written), **result}


def follow_run(
    run: Path,
    split: str,
    overrides: Sequence[str],
    report: Path | None,
    *,
    timeout_s: float,
    note: Callable[[Result], None],
) -> dict[str, Any]:
    """Measure every checkpoint of a run in training that is not measured yet; stop behind its last one.

    Ends too when ``timeout_s`` pass without a new checkpoint. Each evaluation is kept, drawn and passed to ``note``.
    """
    evaluated: list[int] = []

    def measure(step: int) -> None:
        note(evaluate_run(run, split, step, overrides, report))
        evaluated.append(step)

    reason = "timeout"
    for step in new_checkpoints(run, timeout_s=timeout_s):
        if step not in evaluated_steps(run, split):
            measured_while_there(run, step, measure)
        if is_last(run, step, load_config(RankerConfig, run / "config.yaml").training, _num_steps(run)):
            reason = "finished"
            break
    return {"run": str(run), "split": split, "evaluated": evaluated, "reason": reason}


def _num_steps(run: Path) -> int:
    """Steps of the whole training; an epoch is counted from the files, as training does."""
    config = load_config(RankerConfig, run / "config.yaml")
    if config.training.num_epochs is None:
        return config.training.num_steps(0)
    preprocessor = build_preprocessor(config, Inputs.open(run / INPUTS))
    stream = open_partition(config, config.train_data, preprocessor, shuffle=config.train_data.shuffle)
    return config.training.num_steps(stream.batches_per_epoch)
