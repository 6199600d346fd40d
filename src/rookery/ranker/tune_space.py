"""The search space of ``rookery ranker tune``: which fields vary, how far, and that each value can be run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from rookery.config.base import OneOf, StrictModel
from rookery.config.document import Problem
from rookery.config.loader import load_config, parse_config, read_config_file
from rookery.config.overrides import apply_overrides
from rookery.config.problems import describe
from rookery.config.suggest import did_you_mean
from rookery.errors import ConfigError
from rookery.ranker.config import RankerConfig
from rookery.ranker.from_reference import REFERENCE, load_ranker_config

Number = int | float
Choice = None | bool | int | float | str | list[Any] | dict[str, Any]
Values = Mapping[str, Choice]
"""A value for each field of the space, by its path."""

# What trials are compared by, and where they are kept: trials that differ in these cannot be compared.
_FIXED = (
    "evaluation",
    "labels",
    "training.keep_best",
    "training.num_eval_steps",
    "training.save_dir",
    "training.validate_every_n",
    "validation_data",
)


class Dimension(StrictModel):
    """The values of one field: a range, or a list of choices.

    A range whose ``low``, ``high`` and ``step`` are written as integers has integers alone.
    """

    one_of: ClassVar[tuple[OneOf, ...]] = (OneOf(("low", "choices"), required=True),)

    low: Number | None = None
    high: Number | None = None
    step: Annotated[Number, Field(gt=0)] | None = None
    log: bool = False
    """Even in the logarithm: for learning rates and sizes."""
    choices: tuple[Choice, ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _is_a_range_or_a_list(self) -> Dimension:
        if self.low is None:
            if (self.high, self.step, self.log) != (None, None, False):
                raise ValueError("choices stand alone; remove high, step and log, or give low instead of choices")
            return self
        if self.high is None or self.high <= self.low:
            raise ValueError(f"needs high, above low={self.low}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs low above 0 and no step")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether a range has integers alone."""
        return all(isinstance(bound, int) for bound in (self.low, self.high, self.step) if bound is not None)

    @property
    def ends(self) -> tuple[Choice, ...]:
        """Values that can be run if all can: the two ends of a range, or every choice."""
        return (self.low, self.high) if self.choices is None else self.choices


class Pruning(StrictModel):
    """A trial is stopped where its best validation so far is worse than the median of earlier trials at that step."""

    num_startup_trials: int = Field(default=5, ge=1)
    """Trials that end undisturbed before any is stopped."""
    num_warmup_steps: int = Field(default=0, ge=0)
    """Training steps in which no trial is stopped."""


class SearchSpace(StrictModel):
    """``SPACE.yaml``."""

    fields: dict[str, Dimension] = Field(min_length=1)
    """By path in the configuration of the ranker, as in ``optimizer.adamw.weight_decay``."""
    pruning: Pruning | None = Pruning()
    """``null``: every trial runs to its end."""


class TrialConfigs:
    """The configurations of a study: one file, with a value for each field of the space put in its place."""

    def __init__(self, config: Path, space: Path) -> None:
        """Raises ``ConfigError`` with everything that cannot be run, before anything is.

        Each end of a range and each choice is tried by itself, all other fields as in ``config``.
        """
        self.space = load_config(SearchSpace, space)
        self._path, self._space_path = config, space
        self.base = load_ranker_config(config)
        _require_selection(self.base, config)
        problems = [
            problem
            for field, dimension in self.space.fields.items()
            for problem in self._field_problems(field, dimension)
        ]
        if problems:
            raise ConfigError("\n".join(dict.fromkeys(problems)))

    def config(self, values: Values, save_dir: Path) -> RankerConfig:
        """The configuration of a trial. Raises ``ConfigError`` where the values do not go together."""
        return self._parsed({**values, "training.save_dir": str(save_dir)}, str(self._space_path))

    def _field_problems(self, field: str, dimension: Dimension) -> list[str]:
        source = f"{self._space_path}: fields.{field}"
        for fixed in _FIXED:
            if f"{field}.".startswith(f"{fixed}.") or f"{fixed}.".startswith(f"{field}."):
                return [f"{source}: trials are compared by {fixed} and kept there; remove it from the space"]
        problems = []
        for value in dimension.ends:
            try:
                self._parsed({field: value}, source)
            except ConfigError as error:
                problems += str(error).splitlines()
        return problems

    def _parsed(self, values: Values, source: str) -> RankerConfig:
        file = read_config_file(self._path, REFERENCE)
        problems: list[Problem] = []
        # Numbers and strings of JSON are the same in YAML.
        apply_overrides(file.data, [f"{field}={json.dumps(value)}" for field, value in values.items()], problems)
        if problems:
            raise ConfigError("\n".join(f"{source}: {describe(problem)}" for problem in problems))
        file.complete()
        return parse_config(RankerConfig, file.data, source)


def _require_selection(config: RankerConfig, path: Path) -> None:
    """Trials are chosen between by ``training.keep_best``, on a partition that a run may look at."""
    best = config.training.keep_best
    if best is None:
        raise ConfigError(
            f"{path}: training.keep_best: tune compares trials by its metric; add it, as in "
            "keep_best: {metric: valid/mean/auroc, mode: max}, with training.validate_every_n"
        )
    name = best.metric.partition("/")[0]
    partition = config.validation_data.get(name)
    field = f"{path}: training.keep_best.metric={best.metric}"
    measured = [other for other, each in config.validation_data.items() if each.during_training]
    if partition is None:
        raise ConfigError(f"{field}: validation_data has no partition {name!r}; {did_you_mean(name, measured)}")
    if not partition.during_training:
        raise ConfigError(
            f"{field}: partition {name!r} is not measured during training (during_training: false); a set that reports "
            f"a model must not choose it: take the metric of another partition ({', '.join(measured) or 'add one'})"
        )
