"""A run's directory: whose it is, and what is left in it by a start that fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rookery.errors import UserError
from rookery.parallel.world import IsUnwanted

MakeToy = Callable[..., Any]


def test_two_runs_in_one_directory_are_refused(make_toy: MakeToy, tmp_path: Path) -> None:
    from rookery.train.config import TrainingConfig
    from rookery.train.run import open_run

    config = TrainingConfig(save_dir=tmp_path, num_train_steps=1)
    with open_run(config, ""), pytest.raises(UserError, match="another process is training there"):
        make_toy().train(tmp_path, num_train_steps=1)
    make_toy().train(tmp_path, num_train_steps=1)


def test_a_start_that_is_refused_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    from rookery.train.config import TrainingConfig
    from rookery.train.run import open_run

    def refuse(save_dir: Path) -> None:
        with open_run(TrainingConfig(save_dir=save_dir, num_train_steps=1), ""):
            (save_dir / "inputs").mkdir()
            (save_dir / "inputs" / "manifest.json").write_text("{}")
            raise UserError("no")

    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "config.yaml").write_text("kept: true\n")
    for name in ("new/run", "there", "there/run"):
        with pytest.raises(UserError):
            refuse(tmp_path / name)
    assert list(tmp_path.rglob("*")) == [tmp_path / "there", tmp_path / "there" / "config.yaml"]


def test_a_run_that_fails_later_keeps_what_it_wrote(make_toy: MakeToy, tmp_path: Path) -> None:
    def fail(is_unwanted: IsUnwanted) -> Mapping[str, float]:
        raise UserError("no")

    save_dir = tmp_path / "run"
    with pytest.raises(UserError):
        make_toy(validate=fail).train(save_dir, num_train_steps=4, checkpoint_every_n=1, validate_every_n=2)
    assert {"config.yaml", "environment.json", "metrics.jsonl"} <= {path.name for path in save_dir.iterdir()}


def test_a_finished_run_keeps_its_own_configuration(make_toy: MakeToy, tmp_path: Path) -> None:
    from rookery.train.config import RuntimeConfig, TrainingConfig
    from rookery.train.loop import train
    from rookery.train.run import open_run

    make_toy().train(tmp_path, num_train_steps=2)
    config = TrainingConfig(save_dir=tmp_path, num_train_steps=2)
    with open_run(config, "toy: false\n") as run:
        train(make_toy().job, run, config, RuntimeConfig(device="cpu"))
    assert (tmp_path / "config.yaml").read_text() == "toy: true\n"
