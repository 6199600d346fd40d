"""A trained ranker, opened for evaluation, scoring and export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from rookery.checkpoint.checkpointer import load_checkpoint
from rookery.checkpoint.layout import best_step
from rookery.config.loader import load_config
from rookery.errors import RunNotFound
from rookery.nn.mlp import pack_for_scoring
from rookery.optim.average import load_average
from rookery.parallel.world import on_all
from rookery.ranker.batch import RankerFeatures
from rookery.ranker.build import AVERAGE, build_model, build_preprocessor
from rookery.ranker.calibration import calibrated
from rookery.ranker.config import RankerConfig
from rookery.ranker.inputs import INPUTS, Inputs
from rookery.ranker.model import RankerModel
from rookery.ranker.preprocess import Preprocessor
from rookery.train.runtime import choose_device


@dataclass(frozen=True)
class LoadedRun:
    """Model and preprocessor of one checkpoint, ready to predict."""

    path: Path
    config: RankerConfig
    step: int
    model: RankerModel
    preprocessor: Preprocessor

    def predict(self, columns: Mapping[str, Tensor]) -> Tensor:
        """Calibrated probabilities ``[batch, tasks]`` of raw columns, as the stream hands them out; on the CPU."""
        return self.predict_features(self.preprocessor.features(columns).to(self.model.device))

    @torch.no_grad()
    def predict_features(self, features: RankerFeatures) -> Tensor:
        """The same of what the network sees, on its device."""
        with self.autocast():
            return self.model.probabilities(features).cpu()

    def autocast(self) -> torch.autocast:
        """The precision that the run computes in."""
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.config.runtime.enable_amp)


def run_config(run: Path, overrides: Sequence[str] = ()) -> RankerConfig:
    """The configuration of a run, with fields replaced as in ``evaluation.num_bins=10``.

    Raises ``RunNotFound`` where there is no run.
    """
    path = run / "config.yaml"
    if not path.exists():
        raise RunNotFound(f"{run}: no config.yaml there; name the save_dir of a training run")
    return load_config(RankerConfig, path, overrides)


def load_run(
    run: Path, checkpoint: Literal["auto", "latest", "best"] | int = "auto", device: torch.device | None = None
) -> LoadedRun:
    """Load a run; ``auto`` is the best checkpoint if one is kept, else the latest. ``device`` replaces the run's own.

    Raises ``RunNotFound`` when there is no such run or checkpoint. Where a checkpoint's calibration was not fitted yet,
    that is done now, from the run's own data; of several processes all load it, and each predicts its part.
    """
    loaded = on_all(lambda: load_weights(run, checkpoint, device))
    pack_for_scoring(loaded.model.eval())
    calibration = calibrated(run, loaded.step, loaded.config, loaded.model, loaded.preprocessor)
    if calibration is not None:
        calibration.apply(loaded.model)
    return loaded


def load_weights(
    run: Path, checkpoint: Literal["auto", "latest", "best"] | int = "auto", device: torch.device | None = None
) -> LoadedRun:
    """The same without calibration, for whoever looks at the weights: averaged ones, where the run averages."""
    config = run_config(run)
    if checkpoint == "auto":
        checkpoint = "latest" if best_step(run) is None else "best"
    stored = load_checkpoint(run, checkpoint)
    inputs = Inputs.open(run / INPUTS)
    preprocessor = build_preprocessor(config, inputs)
    model = build_model(config, preprocessor, inputs, device or choose_device(config.runtime.device))
    model.load_tensors(stored.tensors("model"))
    if config.optimizer.average is not None:
        load_average(dict(model.named_parameters()), stored.tensors(AVERAGE))
    return LoadedRun(run, config, stored.step, model, preprocessor)
