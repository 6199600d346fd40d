"""How long to train, when to log, validate and save, and on what to run: the same for both models."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from rookery.config.base import StrictModel
from rookery.storage.location import LocationField, RemoteField


class KeepBest(StrictModel):
    """Keep the checkpoint with the best validation metric, whatever else is deleted."""

    metric: str
    mode: Literal["max", "min"] = "max"


class EarlyStopping(StrictModel):
    """Stop after ``patience`` validations in a row that gain no more than ``min_delta`` in ``keep_best.metric``."""

    patience: int = Field(ge=1)
    min_delta: float = Field(default=0.0, ge=0)


class TrainingConfig(StrictModel):
    """With both ``num_train_steps`` and ``num_epochs``, training ends at whichever comes first."""

    save_dir: Path
    num_train_steps: int | None = Field(default=None, ge=1)
    num_epochs: int | None = Field(default=None, ge=1)
    gradient_accumulation: int = Field(default=1, ge=1, description="Batches whose gradients make up one step.")

    train_log_every_n: int = Field(default=100, ge=1, description="Steps between two lines of the log.")
    checkpoint_every_n: int | None = Field(
        default=None, ge=1, description="Steps between two checkpoints; without it one is saved at the end alone."
    )
    checkpoint_max_to_keep: int | None = Field(
        default=None, ge=1, description="Newest checkpoints that are kept (the best one in addition); without it all."
    )
    checkpoint_async: bool = Field(
        default=False, description="Copy a checkpoint and train on while a thread writes the copy; takes its memory."
    )
    initial_checkpoint_dir: LocationField | None = Field(
        default=None, description="Another run, by path or URL, whose weights, not whose step, a new run starts from."
    )
    publish: RemoteField | None = Field(
        default=None,
        description="URL in an object store where each checkpoint is uploaded once it is written; a run whose save_dir "
        "has none goes on from there.",
    )

    validate_every_n: int | None = Field(
        default=None, ge=1, description="Steps between two validations; there is another at the end."
    )
    num_eval_steps: int = Field(default=-1, description="Batches of one validation; below 0: the whole set.")
    keep_best: KeepBest | None = None
    early_stopping: EarlyStopping | None = None

    @model_validator(mode="after")
    def _has_an_end(self) -> TrainingConfig:
        if self.num_train_steps is None and self.num_epochs is None:
            raise ValueError("needs num_train_steps or num_epochs; training would not end")
        return self

    @model_validator(mode="after")
    def _the_best_is_measured(self) -> TrainingConfig:
        if self.keep_best is not None and self.validate_every_n is None:
            raise ValueError("keep_best needs validate_every_n: only a validation tells which checkpoint is the best")
        if self.early_stopping is not None and self.keep_best is None:
            raise ValueError("early_stopping needs keep_best: its metric and mode say what a gain is")
        return self

    @model_validator(mode="after")
    def _validation_is_not_empty(self) -> TrainingConfig:
        if self.num_eval_steps == 0:
            raise ValueError("num_eval_steps=0 would validate on nothing; use -1 for the whole set")
        return self

    def num_steps(self, batches_per_epoch: int) -> int:
        """Steps of the whole run: exactly ``num_train_steps``, or as many as ``num_epochs`` epochs fill."""
        ends = []
        if self.num_train_steps is not None:
            ends.append(self.num_train_steps)
        if self.num_epochs is not None:
            ends.append(-(-self.num_epochs * batches_per_epoch // self.gradient_accumulation))
        return min(ends)


class RuntimeConfig(StrictModel):
    """The machine side of a run."""

    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: a CUDA device if there is one."
    )
    seed: int = Field(default=0, ge=0, description="Seed of initial weights, shuffles and samples.")
    num_threads: int | None = Field(default=None, ge=1, description="CPU threads of torch; without it torch decides.")
    enable_amp: bool = Field(default=False, description="Matrix products in bfloat16 (weights stay as they are).")
    enable_tensorfloat32: bool = Field(default=False, description="Float32 matrix products in TensorFloat32 on CUDA.")
