"""Configuration of optimizers and learning-rate schedules, shared by both models."""

from __future__ import annotations

import itertools
from typing import ClassVar

from pydantic import Field, model_validator

from rookery.config.base import OneOf, StrictModel


class PiecewiseConstant(StrictModel):
    """``learning_rate_values[i]`` holds until step ``learning_rate_boundaries[i]``; the last value from there on."""

    learning_rate_boundaries: tuple[int, ...]
    learning_rate_values: tuple[float, ...]

    @model_validator(mode="after")
    def _lengths_fit(self) -> PiecewiseConstant:
        boundaries = self.learning_rate_boundaries
        if len(self.learning_rate_values) != len(boundaries) + 1:
            raise ValueError(f"{len(boundaries)} boundaries need {len(boundaries) + 1} learning_rate_values")
        if any(later <= earlier for earlier, later in itertools.pairwise(boundaries)):
            raise ValueError("learning_rate_boundaries must increase")
        return self


class LinearRampToConstant(StrictModel):
    """From 0 to ``learning_rate`` in ``num_ramp_steps`` steps, then constant."""

    learning_rate: float = Field(gt=0)
    num_ramp_steps: int = Field(gt=0)


class LinearRampToCosine(StrictModel):
    """A linear ramp, then half a cosine down to ``final_learning_rate`` at step ``final_num_steps``."""

    learning_rate: float = Field(gt=0)
    final_learning_rate: float = Field(ge=0)
    num_ramp_steps: int = Field(gt=0)
    final_num_steps: int = Field(gt=0)

    @model_validator(mode="after")
    def _ramp_ends_first(self) -> LinearRampToCosine:
        if self.final_num_steps <= self.num_ramp_steps:
            raise ValueError("final_num_steps must be larger than num_ramp_steps")
        return self


class LearningRateConfig(StrictModel):
    """One of four schedules of the learning rate over steps."""

    one_of: ClassVar[tuple[OneOf, ...]] = (
        OneOf(("constant", "piecewise_constant", "linear_ramp_to_constant", "linear_ramp_to_cosine"), required=True),
    )

    constant: float | None = Field(default=None, ge=0)
    piecewise_constant: PiecewiseConstant | None = None
    linear_ramp_to_constant: LinearRampToConstant | None = None
    linear_ramp_to_cosine: LinearRampToCosine | None = None


class Sgd(StrictModel):
    """``w -= lr * g``; with momentum ``m``: ``v = m v + g``, ``w -= lr * v``."""

    lr: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)


class Adagrad(StrictModel):
    """``s += g²``, ``w -= lr * g / (sqrt(s) + eps)``, a sum per element."""

    lr: float = Field(default=0.01, gt=0)
    eps: float = Field(default=1e-8, ge=0)


class RowwiseAdagrad(StrictModel):
    """Adagrad with one sum per row: ``s += mean(g²)``. A row costs 4 bytes of state."""

    lr: float = Field(default=0.01, gt=0)
    eps: float = Field(default=1e-8, ge=0)


class Adam(StrictModel):
    """Adam; on tables only rows of the batch move, with the bias correction of the global step."""

    lr: float = Field(default=0.001, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, ge=0)

    @model_validator(mode="after")
    def _betas_below_one(self) -> Adam:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("each of betas must lie in [0, 1)")
        return self


class OptimizerConfig(StrictModel):
    """One optimizer and, if given, the schedule that replaces its constant ``lr``."""

    one_of: ClassVar[tuple[OneOf, ...]] = (OneOf(("sgd", "adagrad", "rowwise_adagrad", "adam"), required=True),)

    sgd: Sgd | None = None
    adagrad: Adagrad | None = None
    rowwise_adagrad: RowwiseAdagrad | None = None
    adam: Adam | None = None
    learning_rate: LearningRateConfig | None = None

    @property
    def kind(self) -> str:
        """The name of the chosen optimizer."""
        return next(name for name in self.one_of[0].fields if getattr(self, name) is not None)

    @property
    def chosen(self) -> Sgd | Adagrad | RowwiseAdagrad | Adam:
        """The parameters of the chosen optimizer."""
        chosen = getattr(self, self.kind)
        assert isinstance(chosen, (Sgd, Adagrad, RowwiseAdagrad, Adam))
        return chosen
