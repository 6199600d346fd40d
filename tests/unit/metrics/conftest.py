"""Rows of engagements, made or drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rookery.metrics.engagement_rows import EngagementRows


@pytest.fixture
def made():
    """Rows of ``num_tasks`` tasks; ``levels`` rounds predictions to so many values, so that they tie."""

    def make(
        num_rows: int, num_tasks: int = 3, *, num_users: int = 12, levels: int | None = None, seed: int = 0
    ) -> EngagementRows:
        random = np.random.default_rng(seed)
        p = 1 / (1 + np.exp(-random.normal(-0.5, 1.5, (num_rows, num_tasks))))
        labels = random.random((num_rows, num_tasks)) < p
        shown = p if levels is None else np.round(p * levels) / levels
        weights = random.choice([0.0, 0.1, 1.0, 33.3], (num_rows, num_tasks), p=[0.1, 0.2, 0.6, 0.1])
        scores = np.round(random.normal(size=num_rows), 1 if levels else 6)
        return EngagementRows(
            probabilities=torch.from_numpy(shown.astype(np.float32)),
            labels=torch.from_numpy(labels),
            weights=torch.from_numpy(weights.astype(np.float32)),
            scores=torch.from_numpy(scores.astype(np.float32)),
            gains=torch.from_numpy(random.integers(0, 4, num_rows).astype(np.float32)),
            strata=torch.from_numpy(random.random((num_rows, 2)) < 0.5),
            users=torch.from_numpy(
                random.integers(-(2**60), 2**60, num_users)[random.integers(0, num_users, num_rows)]
            ),
        )

    return make
