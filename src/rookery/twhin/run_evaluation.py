"""Measure checkpoints of a run on a split of its graph."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rookery.config.loader import load_config
from rookery.errors import UserError
from rookery.storage.location import Location
from rookery.train.config import TrainingConfig
from rookery.train.evaluations import IN_RUN, evaluation_path, require_writable, write_evaluation
from rookery.train.follow import follow
from rookery.train.runtime import prepare_runtime
from rookery.twhin.config import TwhinConfig
from rookery.twhin.evaluation import Evaluation, Evaluator
from rookery.twhin.source import open_run


@dataclass(frozen=True)
class Measured:
    """An evaluation of the checkpoint of ``step``, and the seconds that it took."""

    run: Path
    step: int
    evaluation: Evaluation
    elapsed_s: float

    def report(self) -> dict[str, Any]:
        """JSON."""
        return {
            "run": self.run,
            "step": self.step,
            "metrics": self.evaluation.metrics(),
            **self.evaluation.report(),
            "elapsed_s": self.elapsed_s,
        }


def evaluate_run(
    run: Path,
    split: str,
    checkpoint: Literal["auto", "latest", "best"] | int = "auto",
    graph: Location | None = None,
    overrides: Sequence[str] = (),
) -> Measured:
    """Measure one checkpoint; ``graph`` is where the run's graph lies now, ``overrides`` replace fields.

    Raises ``RunNotFound``, ``DataError`` or ``UserError`` for what is not there or does not fit.
    """
    loaded = open_run(run, checkpoint, graph)
    if loaded.graph is None:
        raise UserError(f"{run}: trained on bare row numbers; pass the graph of these rows with --graph PATH")
    config = load_config(TwhinConfig, run / "config.yaml", overrides)
    prepare_runtime(config.runtime)
    evaluator = Evaluator.from_graph(loaded.graph, split, config.evaluation, config.train_data.on_corrupt)
    start = time.perf_counter()
    evaluation = evaluator.evaluate(loaded.model.embeddings())
    return Measured(run, loaded.step, evaluation, round(time.perf_counter() - start, 3))


def follow_run(
    run: Location,
    split: str,
    graph: Location | None = None,
    overrides: Sequence[str] = (),
    *,
    timeout_s: float,
    note: Callable[[Measured], None],
) -> dict[str, Any]:
    """Measure every checkpoint of a run in training as it comes, once; stop behind its last one.

    The evaluations stay in ``RUN/evaluations/<split>/``. ``note`` is told of each. As ``rookery.train.follow.follow``.
    """

    def measure(folder: Path, step: int) -> None:
        require_writable(evaluation_path(folder, split, step), IN_RUN)
        measured = evaluate_run(folder, split, step, graph, overrides)
        write_evaluation(folder, split, step, _plain(measured.report()))
        note(measured)

    return follow(run, split, _training, measure, timeout_s=timeout_s)


def _training(run: Path) -> TrainingConfig:
    return load_config(TwhinConfig, run / "config.yaml").training


def _plain(value: Any) -> Any:
    """As JSON has it: a number that is not defined is null, a path a string."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
