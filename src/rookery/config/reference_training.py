"""The ``training`` section of twitter/the-algorithm-ml, the same for both of its models, and what it is in ours."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from rookery.config.base import StrictModel
from rookery.config.translation import Note, unused


class ReferenceTraining(StrictModel):
    """Lengths and intervals count steps; an evaluator beside the training measures every checkpoint."""

    save_dir: str = "/tmp/model"  # noqa: S108 - the default there
    initial_checkpoint_dir: str | None = None
    checkpoint_every_n: int = Field(default=1000, gt=0)
    checkpoint_max_to_keep: int | None = Field(default=None, gt=0)
    train_log_every_n: int = Field(default=1000, gt=0)
    num_eval_steps: int = 16384
    gradient_accumulation: int | None = Field(default=None, gt=0)
    eval_log_every_n: int | None = unused("an evaluation here reports once, when it has seen all of its rows")
    eval_timeout_in_s: float | None = unused(
        "validation is a part of training here and waits for nothing; beside a training it is the flag --timeout of "
        "`evaluate RUN --follow`"
    )


def training_section(training: ReferenceTraining, num_train_steps: int, *, validates: bool) -> dict[str, Any]:
    """Our section; every checkpoint is validated where there is something to validate on (``validates``)."""
    section: dict[str, Any] = {
        "save_dir": training.save_dir,
        "num_train_steps": num_train_steps,
        "gradient_accumulation": training.gradient_accumulation or 1,
        "train_log_every_n": training.train_log_every_n,
        "checkpoint_every_n": training.checkpoint_every_n,
        "checkpoint_max_to_keep": training.checkpoint_max_to_keep,
        "initial_checkpoint_dir": training.initial_checkpoint_dir,
    }
    if validates:
        section["num_eval_steps"] = -1 if training.num_eval_steps < 0 else training.num_eval_steps
        section["validate_every_n"] = training.checkpoint_every_n
    return {name: value for name, value in section.items() if value is not None}


def training_notes(training: ReferenceTraining, *, validates: bool) -> list[Note]:
    """What changed its meaning, or acts on nothing."""
    notes = []
    if not validates and training.num_eval_steps != type(training).model_fields["num_eval_steps"].default:
        text = "no validation_data is taken over, so that nothing is validated; set both where there is some"
        notes.append(Note(("training.num_eval_steps",), text))
    if (training.gradient_accumulation or 1) > 1:
        text = (
            f"a step here is {training.gradient_accumulation} batches, there it is one: steps of training, logs, "
            "checkpoints and schedules come that much later; divide them to have them as there"
        )
        notes.append(Note(("training.gradient_accumulation",), text, ("training", "gradient_accumulation")))
    if training.initial_checkpoint_dir is not None:
        text = "names a run of Rookery; weights of the-algorithm-ml are brought in by `rookery … import-weights`"
        notes.append(Note(("training.initial_checkpoint_dir",), text, ("training", "initial_checkpoint_dir")))
    return notes
