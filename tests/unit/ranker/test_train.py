"""Starting and resuming runs that do not fit: what the message says is to be done."""

from __future__ import annotations

from pathlib import Path

import pytest
from evaluated_run import read_config

from rookery.errors import ConfigError
from rookery.ranker.train import train_ranker

WIDER = "model.backbone.mlp_config.layer_sizes=[24]"


def test_weights_of_another_shape_are_refused_with_what_mends_it(trained: Path, tmp_path: Path) -> None:
    overrides = (
        f"training.save_dir={tmp_path / 'run'}",
        f"training.initial_checkpoint_dir={trained / 'run'}",
        "training.num_train_steps=1",
    )
    with pytest.raises(ConfigError) as raised:
        train_ranker(read_config(trained / "config.yaml", *overrides, WIDER))
    message = str(raised.value)
    assert "float32[16, 2] there, float32[24, 2] in this configuration; configure the model as that run did" in message
    assert "or leave training.initial_checkpoint_dir out" in message
    assert train_ranker(read_config(trained / "config.yaml", *overrides)).step == 1


def test_a_run_that_became_another_model_is_refused(trained: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"restore the configuration to resume, or train in another training\.save_dir"
    ):
        train_ranker(read_config(trained / "config.yaml", WIDER))
