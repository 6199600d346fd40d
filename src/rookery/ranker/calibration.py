"""Calibration behind training: a map of each task's logit, fitted on a partition, kept beside the checkpoint it is of.

RUN/calibration/step-000001000.json
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rookery.checkpoint.files import write_atomically
from rookery.errors import DataError
from rookery.nn.calibration import CalibrationMap, fit_platt
from rookery.parallel.world import gather_on_chief, is_chief, on_all, on_chief, share_object
from rookery.ranker.config import RankerConfig
from rookery.ranker.model import RankerModel
from rookery.ranker.partition import evaluation_batches
from rookery.ranker.preprocess import Preprocessor

logger = logging.getLogger(__name__)

_Predictions = tuple[Tensor, Tensor, Tensor]
"""Logits, labels and weights of a batch, each ``[rows, tasks]``."""


@dataclass(frozen=True)
class Calibration:
    """``scale · logit + offset`` by task, what it was fitted on, and in ``fitted`` by which method."""

    step: int
    partition: str
    method: str
    scale: Mapping[str, float]
    offset: Mapping[str, float]
    fitted: Mapping[str, str]

    def apply(self, model: RankerModel) -> None:
        """Let ``model`` give calibrated probabilities."""
        model.set_calibration(*(torch.tensor([by[task] for task in model.tasks]) for by in (self.scale, self.offset)))


def calibrated(
    run: Path, step: int, config: RankerConfig, model: RankerModel, preprocessor: Preprocessor
) -> Calibration | None:
    """The calibration of a checkpoint, fitted and stored if it is not there yet; None where none is configured.

    Of several processes all call it.
    """
    if config.calibration is None:
        return None
    path = run / "calibration" / f"step-{step:09d}.json"
    stored = share_object(on_all(lambda: _read(path) if is_chief() and path.exists() else None))
    if stored is not None and (stored.partition, stored.method) == (
        config.calibration.partition,
        config.calibration.method,
    ):
        return stored
    fitted = fit_calibration(step, config, model, preprocessor)
    on_chief(lambda: _write(fitted, path))
    return fitted


def fit_calibration(step: int, config: RankerConfig, model: RankerModel, preprocessor: Preprocessor) -> Calibration:
    """Fit the maps of all tasks to the labels of the configured partition.

    Each process predicts its part of the rows, the chief fits: what one process alone comes to.
    """
    assert config.calibration is not None
    partition = config.calibration.partition
    mine = on_all(lambda: _predictions(config, partition, model, preprocessor))
    parts = gather_on_chief(mine)
    fitted = share_object(None if parts is None else _fit(step, config, [part for each in parts for part in each]))
    assert fitted is not None
    return fitted


def _fit(step: int, config: RankerConfig, parts: Sequence[_Predictions]) -> Calibration:
    assert config.calibration is not None
    partition, method = config.calibration.partition, config.calibration.method
    logits, labels, weights = (torch.cat(column) for column in zip(*parts, strict=True))
    maps = {
        task: fit_platt(logits[:, index], labels[:, index], weights[:, index], method)
        for index, task in enumerate(config.tasks)
    }
    _warn_of_lesser_maps(maps, partition, method)
    return Calibration(
        step,
        partition,
        method,
        scale={task: each.scale for task, each in maps.items()},
        offset={task: each.offset for task, each in maps.items()},
        fitted={task: each.method for task, each in maps.items()},
    )


def _warn_of_lesser_maps(maps: Mapping[str, CalibrationMap], partition: str, method: str) -> None:
    for task, each in maps.items():
        if each.method == "identity":
            logger.warning(
                "task %r is not calibrated: its label is the same in all rows of partition %r; give "
                "calibration.partition rows with both",
                task,
                partition,
            )
        elif each.method != method:
            logger.warning(
                "task %r: its logits do not order the labels of partition %r in a way that a scale could be fitted to; "
                "only the mean was calibrated",
                task,
                partition,
            )


@torch.no_grad()
def _predictions(
    config: RankerConfig, partition: str, model: RankerModel, preprocessor: Preprocessor
) -> list[_Predictions]:
    """Of the batches of a partition that are this process's."""
    model.eval()
    parts = []
    for batch in evaluation_batches(config, config.validation_data[partition], preprocessor, model.device):
        with torch.autocast(model.device.type, torch.bfloat16, enabled=config.runtime.enable_amp):
            logits = model.unsampled_logits(batch.features)
        parts.append((logits.cpu(), batch.labels.cpu(), batch.weights.cpu()))
    return parts


def _write(fitted: Calibration, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, json.dumps(vars(fitted), indent=1) + "\n")


def _read(path: Path) -> Calibration:
    try:
        return Calibration(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not a calibration ({error}); delete it, it is fitted anew from the data") from error
