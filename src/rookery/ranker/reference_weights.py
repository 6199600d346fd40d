"""Weights of the reference's heavy ranker as a run of ours, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from rookery.checkpoint.foreign import Taken, read_weights, renamed, take_over, write_weights
from rookery.errors import ConfigError
from rookery.ranker.config import RankerConfig
from rookery.ranker.model import RankerModel
from rookery.ranker.reference_names import reference_name, reference_tensors
from rookery.ranker.run import load_weights
from rookery.ranker.train import opened_job
from rookery.train.loop import save_start


def import_weights(config: RankerConfig, file: Path, *, partial: bool = False) -> Taken:
    """Make ``training.save_dir`` a run at step 0 with the weights of ``file``; training goes on from there.

    ``partial``: tensors that the file has not start as in any new run, and what else it has is left. Raises
    ``DataError`` naming every tensor that does not fit, ``ConfigError`` for a model that the reference cannot have,
    ``UserError`` where the run has a checkpoint already; then nothing is written.
    """
    _require_local(config)
    stored = read_weights(file)
    stored = renamed(stored, {name: reference_name(name) for name in stored}, file)
    taken: list[Taken] = []

    def fill(model: RankerModel) -> None:
        taken.append(take_over(reference_tensors(config, model), stored, file, partial=partial))

    with opened_job(config, fill) as (run, job):
        save_start(job, run, config.training, config.runtime)
    return taken[0]


def export_weights(
    run: Path, file: Path, checkpoint: Literal["auto", "latest", "best"] | int = "auto", *, overwrite: bool = False
) -> tuple[int, int]:
    """Write the weights of a run under the reference's names; the step, and how many tensors there are."""
    loaded = load_weights(run, checkpoint, torch.device("cpu"))
    return loaded.step, write_weights(reference_tensors(loaded.config, loaded.model), file, overwrite=overwrite)


def _require_local(config: RankerConfig) -> None:
    if config.features.backend != "local":
        raise ConfigError(
            f"features.backend={config.features.backend}: weights are taken over by one process; import them with "
            "--set features.backend=local, and start the sharded run by training.initial_checkpoint_dir"
        )
