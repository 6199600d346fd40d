"""Every metric of predicted engagements, of all rows and of strata, with intervals.

A result is the same to the last bit however the rows were batched and whichever rank had them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from rookery.metrics.binary import EPSILON, Predictions, RankingMetrics, ScaledLoss, Statistic, SumMetrics, ratio
from rookery.metrics.bootstrap import Resampling, interval
from rookery.metrics.engagement_rows import EngagementRows
from rookery.metrics.grouped import UserRanking, ndcg
from rookery.metrics.reliability import Histogram, ReliabilityBin, histogram, reliability
from rookery.metrics.runs import Runs

METRICS = ("auroc", "gauc", "rce", "nrce", "logloss", "ece", "calibration", "prauc", "ctr", "mean_prediction")
"""Of each task, in this order everywhere."""

Interval: TypeAlias = tuple[float, float]

_MAX_CELLS = 1 << 20  # rows × replicates at a time: 8 MiB a temporary
_NOT_DEFINED = torch.tensor([torch.nan])


@dataclass(frozen=True)
class MeasureOptions:
    """``num_replicates`` 0: no intervals. ``num_bins`` is for ECE and for reliability diagrams."""

    num_bins: int = 20
    num_replicates: int = 0
    seed: int = 0


@dataclass(frozen=True)
class TaskMetrics:
    """One task. ``values`` has ``METRICS``, NaN where one is not defined; ``intervals`` too, or nothing."""

    count: int  # rows of a weight above zero
    positives: int  # of these
    values: Mapping[str, float]
    intervals: Mapping[str, Interval]
    reliability: Sequence[ReliabilityBin]
    histogram: Histogram  # of log-odds


@dataclass(frozen=True)
class EngagementMetrics:
    """All tasks on one set of rows; ``ndcg`` over the ``num_ranked`` users of whose rows some order beats another.

    ``score_histogram`` has the rows with a gain as its positives, each of weight 1.
    """

    num_rows: int
    num_users: int | None  # None: rows say nothing about users
    tasks: Mapping[str, TaskMetrics]
    ndcg: float
    ndcg_interval: Interval | None
    num_ranked: int
    score_histogram: Histogram

    def means(self) -> dict[str, float]:
        """Each of ``METRICS`` averaged over the tasks in which it is defined (NaN: in none)."""
        values = torch.tensor([[task.values[name] for name in METRICS] for task in self.tasks.values()])
        return dict(zip(METRICS, values.double().nanmean(0).tolist(), strict=True))


class EngagementMeter:
    """Gathers rows batch by batch; ``strata`` names subsets that are measured apart as well."""

    def __init__(self, tasks: Sequence[str], strata: Sequence[str] = ()) -> None:
        self.tasks, self.strata = tuple(tasks), tuple(strata)
        self._parts = [EngagementRows.empty(len(tasks), len(strata))]

    def update(self, rows: EngagementRows) -> None:
        """Take in a batch, from any device; every tensor as ``EngagementRows`` has it."""
        expected = (len(rows), len(self.tasks))
        assert rows.probabilities.shape == rows.labels.shape == rows.weights.shape == expected
        assert rows.scores.shape == rows.gains.shape == expected[:1]
        assert rows.strata.shape == (len(rows), len(self.strata))
        if len(rows):
            self._parts.append(rows.on_cpu())

    def merge(self, other: EngagementMeter) -> None:
        """Take in all rows of a meter of the same tasks and strata."""
        assert (self.tasks, self.strata) == (other.tasks, other.strata), "meters of different tasks or strata"
        self._parts += other._parts[1:]

    def rows(self) -> EngagementRows:
        """All rows so far, in the order they came."""
        return EngagementRows.concat(self._parts[1:] or self._parts)

    def compute(self, options: MeasureOptions) -> tuple[EngagementMetrics, dict[str, EngagementMetrics]]:
        """The metrics of all rows, and those of each stratum by name."""
        rows = self.rows().in_canonical_order()
        strata = {name: rows.select(rows.strata[:, number]) for number, name in enumerate(self.strata)}
        whole = measure(rows, self.tasks, options)
        return whole, {name: measure(part, self.tasks, options) for name, part in strata.items()}


def measure(rows: EngagementRows, tasks: Sequence[str], options: MeasureOptions) -> EngagementMetrics:
    """All metrics of rows that are in canonical order.

    Intervals are 95% percentiles over bootstrap replicates, which draw the users of these rows with replacement.
    """
    users = _user_numbers(rows)
    resampling = Resampling(int(users[-1]) + 1 if len(users) else 0, options.num_replicates, options.seed)
    ndcg_means, num_ranked = _mean_ndcg(rows, users, resampling)
    return EngagementMetrics(
        num_rows=len(rows),
        num_users=None if rows.users is None else resampling.num_users,
        tasks={
            name: _measure_task(rows, number, users, resampling, options.num_bins) for number, name in enumerate(tasks)
        },
        ndcg=ndcg_means[0].item(),
        ndcg_interval=interval(ndcg_means[1:]) if options.num_replicates else None,
        num_ranked=num_ranked,
        score_histogram=histogram(rows.scores, rows.gains > 0, torch.ones(len(rows))),
    )


def _measure_task(
    rows: EngagementRows, number: int, users: Tensor, resampling: Resampling, num_bins: int
) -> TaskMetrics:
    p, y, weights = rows.probabilities[:, number], rows.labels[:, number], rows.weights[:, number]
    task = Predictions(p, y, weights.double(), users, resampling.num_users)
    statistics: list[Statistic] = [SumMetrics.of(task, num_bins), ScaledLoss.of(task), RankingMetrics.of(task)]
    if rows.users is not None:
        statistics.append(UserRanking.of(task))
    chunks = [
        {name: value for each in statistics for name, value in each.under(multiplicity).items()}
        for multiplicity in resampling.chunks(max(1, _MAX_CELLS // max(1, len(p))))
    ]
    measured = {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
    values = {name: measured.get(name, _NOT_DEFINED) for name in METRICS}
    counted = weights > 0
    return TaskMetrics(
        count=int(counted.sum()),
        positives=int((counted & y).sum()),
        values={name: value[0].item() for name, value in values.items()},
        intervals={name: interval(value[1:]) for name, value in values.items()} if resampling.num_replicates else {},
        reliability=reliability(p, y, weights, num_bins),
        histogram=histogram(torch.logit(p.double(), eps=EPSILON), y, weights),
    )


def _mean_ndcg(rows: EngagementRows, users: Tensor, resampling: Resampling) -> tuple[Tensor, int]:
    """The mean over users under each weighting, and over how many users it is."""
    if rows.users is None:
        return _NOT_DEFINED, 0
    per_user = ndcg(rows.scores, rows.gains, users, resampling.num_users)
    ranked = ~per_user.isnan()
    sums = torch.stack([per_user.nan_to_num(), ranked.double()], dim=1)
    size = max(1, _MAX_CELLS // max(1, len(sums)))
    means = [ratio(*(multiplicity.T @ sums).unbind(1)) for multiplicity in resampling.chunks(size)]
    return torch.cat(means), int(ranked.sum())


def _user_numbers(rows: EngagementRows) -> Tensor:
    """``[rows]``: users numbered from 0 in the order of their ids; each row its own where there are no users."""
    if rows.users is None:
        return torch.arange(len(rows))
    return Runs.of(rows.users).numbers
