from __future__ import annotations

from typing import Any

import pytest

from rookery.config.loader import parse_config
from rookery.errors import ConfigError
from rookery.train.config import RuntimeConfig, TrainingConfig


def parse(**fields: Any) -> TrainingConfig:
    return parse_config(TrainingConfig, {"save_dir": "run", **fields}, "config.yaml")


@pytest.mark.parametrize(
    ("fields", "batches_per_epoch", "num_steps"),
    [
        ({"num_train_steps": 7}, 100, 7),
        ({"num_epochs": 3}, 5, 15),
        ({"num_epochs": 3, "gradient_accumulation": 2}, 5, 8),
        ({"num_epochs": 3, "num_train_steps": 10}, 5, 10),
        ({"num_epochs": 1, "num_train_steps": 10}, 5, 5),
    ],
)
def test_number_of_steps(fields: dict[str, Any], batches_per_epoch: int, num_steps: int) -> None:
    assert parse(**fields).num_steps(batches_per_epoch) == num_steps


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "needs num_train_steps or num_epochs"),
        ({"num_train_steps": 5, "num_eval_steps": 0}, "num_eval_steps=0"),
        ({"num_train_steps": 5, "keep_best": {"metric": "mrr"}}, "keep_best needs validate_every_n"),
        ({"num_train_steps": 5, "early_stopping": {"patience": 2}}, "early_stopping needs keep_best"),
        ({"num_train_steps": 5, "checkpoint_every_n": 0}, "checkpoint_every_n=0"),
        ({"num_train_steps": 5, "checkpoint_evry_n": 3}, "did you mean 'checkpoint_every_n'"),
        (
            {"num_train_steps": 5, "validate_every_n": 1, "keep_best": {"metric": "m", "mode": "best"}},
            "keep_best.mode=best",
        ),
    ],
)
def test_what_cannot_be_run_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(**fields)


@pytest.mark.parametrize("fields", [{"device": "gpu"}, {"seed": -1}, {"num_threads": 0}])
def test_a_machine_that_cannot_be_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        parse_config(RuntimeConfig, fields, "config.yaml")
