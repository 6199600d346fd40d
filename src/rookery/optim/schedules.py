"""Learning-rate schedules: pure functions of the step, so that a resumed run needs no schedule state."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable

from rookery.optim.config import (
    LearningRateConfig,
    LinearRampToConstant,
    LinearRampToCosine,
    OptimizerConfig,
    PiecewiseConstant,
)

Schedule = Callable[[int], float]


def make_schedule(config: LearningRateConfig) -> Schedule:
    """The schedule of a config: step (0 for the first) → learning rate."""
    if config.constant is not None:
        return _constant(config.constant)
    if config.piecewise_constant is not None:
        return _piecewise_constant(config.piecewise_constant)
    if config.linear_ramp_to_constant is not None:
        return _ramp_to_constant(config.linear_ramp_to_constant)
    assert config.linear_ramp_to_cosine is not None
    return _ramp_to_cosine(config.linear_ramp_to_cosine)


def optimizer_schedule(config: OptimizerConfig) -> Schedule:
    """The schedule of an optimizer: its ``learning_rate``, or else its constant ``lr``."""
    if config.learning_rate is None:
        return _constant(config.chosen.lr)
    return make_schedule(config.learning_rate)


def _constant(rate: float) -> Schedule:
    return lambda step: rate


def _piecewise_constant(config: PiecewiseConstant) -> Schedule:
    return lambda step: config.learning_rate_values[bisect.bisect_right(config.learning_rate_boundaries, step)]


def _ramp_to_constant(config: LinearRampToConstant) -> Schedule:
    return lambda step: config.learning_rate * min(1.0, step / config.num_ramp_steps)


def _ramp_to_cosine(config: LinearRampToCosine) -> Schedule:
    num_cosine_steps = config.final_num_steps - config.num_ramp_steps

    def rate(step: int) -> float:
        if step < config.num_ramp_steps:
            return config.learning_rate * step / config.num_ramp_steps
        progress = min(1.0, (step - config.num_ramp_steps) / num_cosine_steps)
        height = 0.5 * (1.0 + math.cos(math.pi * progress))
        return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * height

    return rate
