"""Measuring predicted engagements of a log's rows, of one model and of two on the same draws of users."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rookery.metrics.binary import Predictions, RankingMetrics, SumMetrics
from rookery.metrics.bootstrap import Resampling, interval
from rookery.metrics.grouped import UserRanking
from rookery.metrics.runs import Runs

METRICS = ("auroc", "gauc", "rce", "calibration", "ece")
NUM_BINS = 20


@dataclass(frozen=True)
class LabelledRows:
    """Labels ``[rows, labels]`` (bool) and users ``[rows]`` of the rows that are predicted."""

    names: Sequence[str]
    labels: np.ndarray
    users: np.ndarray

    def replicates(self, probabilities: np.ndarray, label: str, num_bootstrap: int) -> dict[str, Tensor]:
        """Each metric of ``probabilities [rows, labels]``, ``[1 + num_bootstrap]``: of the rows, then of draws of them.

        Users are drawn with all their rows; draw *k* is the same for every model.
        """
        number = self.names.index(label)
        order = np.argsort(self.users, kind="stable")
        p = torch.from_numpy(probabilities[order, number].astype(np.float32))
        y = torch.from_numpy(self.labels[order, number])
        users = Runs.of(torch.from_numpy(self.users[order])).numbers
        rows = Predictions(p, y, torch.ones(len(p), dtype=torch.float64), users, int(users[-1]) + 1)
        statistics = (SumMetrics.of(rows, NUM_BINS), RankingMetrics.of(rows), UserRanking.of(rows))
        chunks = [
            {name: value for each in statistics for name, value in each.under(multiplicity).items()}
            for multiplicity in Resampling(rows.num_users, num_bootstrap, seed=0).chunks(64)
        ]
        return {name: torch.cat([chunk[name] for chunk in chunks]) for name in METRICS}

    def measured(self, probabilities: np.ndarray, num_bootstrap: int) -> dict[str, dict[str, object]]:
        """By label: metrics, and 95% intervals over draws of users if there are any."""
        found = {}
        for label in self.names:
            by_metric = self.replicates(probabilities, label, num_bootstrap)
            found[label] = {
                **{name: value[0].item() for name, value in by_metric.items()},
                "intervals": {name: interval(value[1:]) for name, value in by_metric.items()},
            }
        return found

    def gain(
        self, ours: Sequence[np.ndarray], theirs: np.ndarray, label: str, num_bootstrap: int
    ) -> dict[str, tuple[float, float, float]]:
        """Metrics of ``ours`` (their mean over seeds) less those of ``theirs``, each with its paired 95% interval."""
        other = self.replicates(theirs, label, num_bootstrap)
        mine = [self.replicates(each, label, num_bootstrap) for each in ours]
        gains = {name: torch.stack([each[name] for each in mine]).mean(0) - other[name] for name in METRICS[:3]}
        return {name: (gain[0].item(), *interval(gain[1:])) for name, gain in gains.items()}


def ece_of_exact(probabilities: np.ndarray) -> float:
    """The ECE to expect where each label is drawn from its probability ``[rows]``: what is left is chance.

    Of a bin, the sum of p − y is then nearly normal, of variance Σ p (1 − p), and its absolute value √(2/π) of the
    deviation in the mean.
    """
    bins = np.minimum((probabilities * NUM_BINS).astype(int), NUM_BINS - 1)
    variances = np.bincount(bins, probabilities * (1 - probabilities), NUM_BINS)
    return float(np.sqrt(variances).sum()) * math.sqrt(2 / math.pi) / len(probabilities)
