"""Which validation was the best so far, and whether it is time to give up on a better one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rookery.config.suggest import did_you_mean
from rookery.errors import ConfigError
from rookery.train.config import EarlyStopping, KeepBest


@dataclass
class _Progress:
    best_step: int | None = None
    best_value: float | None = None
    # The value that a gain of more than min_delta is measured from.
    reference: float | None = None
    num_without_gain: int = 0


class BestTracker:
    """Follows one validation metric; its state goes into the checkpoint."""

    def __init__(self, keep_best: KeepBest, early_stopping: EarlyStopping | None) -> None:
        self.metric = keep_best.metric
        self._mode = keep_best.mode
        self._early_stopping = early_stopping
        self._progress = _Progress()

    @property
    def best_step(self) -> int | None:
        return self._progress.best_step

    @property
    def best_value(self) -> float | None:
        return self._progress.best_value

    @property
    def should_stop(self) -> bool:
        stopping = self._early_stopping
        return stopping is not None and self._progress.num_without_gain >= stopping.patience

    def update(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Take in a validation; True when it is the best so far. NaN is never the best.

        Raises ``ConfigError`` when the validation does not measure the metric.
        """
        if self.metric not in metrics:
            hint = did_you_mean(self.metric, list(metrics))
            raise ConfigError(f"training.keep_best.metric={self.metric!r}: the validation does not measure it; {hint}")
        value = metrics[self.metric]
        progress = self._progress
        min_delta = self._early_stopping.min_delta if self._early_stopping else 0.0
        if self._gain(value, progress.reference) > min_delta:
            progress.reference, progress.num_without_gain = value, 0
        else:
            progress.num_without_gain += 1
        if self._gain(value, progress.best_value) > 0:
            progress.best_step, progress.best_value = step, value
            return True
        return False

    def state(self) -> dict[str, Any]:
        return {"metric": self.metric, "mode": self._mode, **asdict(self._progress)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a stored state; one of another metric says nothing about this one and is left."""
        progress = dict(state)
        if (progress.pop("metric"), progress.pop("mode")) == (self.metric, self._mode):
            self._progress = _Progress(**progress)

    def _gain(self, value: float, earlier: float | None) -> float:
        if math.isnan(value):
            return -math.inf
        return math.inf if earlier is None else (value - earlier if self._mode == "max" else earlier - value)
