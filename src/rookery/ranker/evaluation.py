"""Evaluation of a partition: every metric of every task, on calibrated probabilities.

``docs/ranker-evaluation.md`` defines each number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import takewhile

import torch
from torch import Tensor

from rookery.config.suggest import did_you_mean
from rookery.errors import TrainingError, UserError
from rookery.metrics.engagement import METRICS, EngagementMeter, EngagementMetrics, MeasureOptions, TaskMetrics
from rookery.metrics.engagement_rows import EngagementRows
from rookery.parallel.world import IsUnwanted, gather_wanted, never
from rookery.ranker.batch import RankerBatch
from rookery.ranker.config import RankerConfig
from rookery.ranker.model import RankerModel
from rookery.ranker.partition import evaluation_batches
from rookery.ranker.preprocess import Preprocessor
from rookery.train.job import Validate


@dataclass(frozen=True)
class Evaluation:
    """What came out, for one partition; ``strata`` by the names of ``evaluation.stratifiers``."""

    split: str
    whole: EngagementMetrics
    strata: Mapping[str, EngagementMetrics]

    def metrics(self) -> dict[str, float]:
        """``<task>/<metric>``, ``mean/<metric>`` (over tasks) and ``ndcg``; NaN where one is not defined."""
        of_tasks = {
            f"{task}/{name}": value
            for task, measured in self.whole.tasks.items()
            for name, value in measured.values.items()
        }
        means = {f"mean/{name}": value for name, value in self.whole.means().items()}
        return {**of_tasks, **means, "ndcg": self.whole.ndcg}

    def report(self) -> dict[str, object]:
        """JSON; a number that is not defined is null."""
        strata = {name: _described(metrics) for name, metrics in self.strata.items()}
        diagrams = {
            name: {"reliability": [asdict(each) for each in task.reliability], "histogram": asdict(task.histogram)}
            for name, task in self.whole.tasks.items()
        }
        scores = asdict(self.whole.score_histogram)
        return {
            "split": self.split,
            **_described(self.whole),
            "strata": strata,
            "diagrams": diagrams,
            "score_histogram": scores,
        }


def evaluate(
    config: RankerConfig, split: str, model: RankerModel, preprocessor: Preprocessor, *, num_bootstrap: int
) -> Evaluation:
    """Measure ``model``, in evaluation mode, on all rows of a partition of ``validation_data``.

    Raises ``UserError`` for a partition that the configuration does not have, ``TrainingError`` if a probability is not
    finite.
    """
    if split not in config.validation_data:
        known = list(config.validation_data)
        hint = did_you_mean(split, known) if known else "validation_data names none"
        raise UserError(f"--split {split}: no such partition of validation_data; {hint}")
    batches = evaluation_batches(config, config.validation_data[split], preprocessor, model.device)
    return _measure(config, split, model, batches, num_bootstrap=num_bootstrap)


def make_validation(config: RankerConfig, model: RankerModel, preprocessor: Preprocessor) -> Validate:
    """What the loop calls to validate: the partitions with ``during_training``, without intervals.

    Names are those of ``Evaluation.metrics`` behind ``<partition>/``. ``training.num_eval_steps`` bounds the batches of
    each partition.
    """
    chosen = {name: each for name, each in config.validation_data.items() if each.during_training}
    num_batches = config.training.num_eval_steps if config.training.num_eval_steps >= 0 else None

    def validate(is_unwanted: IsUnwanted) -> dict[str, float]:
        metrics: dict[str, float] = {}
        model.network.embeddings.gather_tables()
        for name, partition in chosen.items():
            batches = evaluation_batches(config, partition, preprocessor, model.device, num_batches)
            found = _measure(config, name, model, batches, num_bootstrap=0, is_unwanted=is_unwanted)
            metrics |= {f"{name}/{metric}": value for metric, value in found.metrics().items()}
        return metrics

    return validate


def _measure(
    config: RankerConfig,
    split: str,
    model: RankerModel,
    batches: Iterable[RankerBatch],
    *,
    num_bootstrap: int,
    is_unwanted: IsUnwanted = never,
) -> Evaluation:
    tasks = config.validation_data[split].tasks or config.evaluation.tasks or model.tasks
    meter = EngagementMeter(tasks, tuple(each.name for each in config.evaluation.stratifiers))
    places = torch.tensor([model.tasks.index(task) for task in tasks])
    for batch in takewhile(lambda _: not is_unwanted(), batches):
        meter.update(_measured_rows(config, model, batch, places))
    meter = _of_all_processes(meter, is_unwanted)
    options = MeasureOptions(config.evaluation.num_bins, num_bootstrap, config.runtime.seed)
    whole, strata = meter.compute(options)
    return Evaluation(split, whole, strata)


def _of_all_processes(mine: EngagementMeter, is_unwanted: IsUnwanted) -> EngagementMeter:
    meter, *others = gather_wanted(mine, is_unwanted)
    for other in others:
        meter.merge(other)
    return meter


@torch.no_grad()
def _measured_rows(config: RankerConfig, model: RankerModel, batch: RankerBatch, places: Tensor) -> EngagementRows:
    """Predictions and labels of a batch, on the CPU; ``places`` are the measured tasks among those of the model."""
    with torch.autocast(model.device.type, torch.bfloat16, enabled=config.runtime.enable_amp):
        probabilities = model.probabilities(batch.features)
    scores = model.score(probabilities)
    probabilities = probabilities.cpu()
    if not probabilities.isfinite().all():
        raise TrainingError(
            "the model predicts probabilities that are not finite: its parameters are not; take an earlier checkpoint "
            "with --checkpoint STEP, and train anew with a lower learning rate"
        )
    labels, weights = batch.labels.cpu() > 0, batch.weights.cpu()
    return EngagementRows(
        probabilities=probabilities[:, places],
        labels=labels[:, places],
        weights=weights[:, places],
        scores=scores.cpu(),
        gains=_gains(labels & (weights > 0), model.score_weights.cpu()),
        strata=_strata(config, batch).cpu(),
        users=None if config.keys.user is None else batch.groups.cpu(),
    )


def _gains(engaged: Tensor, score_weights: Tensor) -> Tensor:
    """``[rows]``: what showing a row was worth, the weights of the engagements that it got; nothing below zero."""
    return (engaged * score_weights).sum(1).clamp(min=0)


def _strata(config: RankerConfig, batch: RankerBatch) -> Tensor:
    columns = [batch.strata[each.name] for each in config.evaluation.stratifiers]
    return torch.stack(columns, 1) if columns else torch.empty(batch.num_rows, 0, dtype=torch.bool)


def _described(metrics: EngagementMetrics) -> dict[str, object]:
    return {
        "num_rows": metrics.num_rows,
        "num_users": metrics.num_users,
        "ndcg": _defined(metrics.ndcg),
        "num_ranked": metrics.num_ranked,
        "intervals": {} if metrics.ndcg_interval is None else {"ndcg": [*map(_defined, metrics.ndcg_interval)]},
        "mean": {name: _defined(value) for name, value in metrics.means().items()},
        "tasks": {name: _described_task(task) for name, task in metrics.tasks.items()},
    }


def _described_task(task: TaskMetrics) -> dict[str, object]:
    return {
        **{name: _defined(task.values[name]) for name in METRICS},
        "count": task.count,
        "positives": task.positives,
        "intervals": {name: [*map(_defined, bounds)] for name, bounds in task.intervals.items()},
    }


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None
