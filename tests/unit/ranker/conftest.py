"""A trained run that several test files look at."""

from __future__ import annotations

from pathlib import Path

import pytest
from evaluated_run import read_config, write_config

from rookery.ranker.train import train_ranker


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``write_config`` with a finished run in ``run``: checkpoints of steps 20, 40 and 60."""
    folder = tmp_path_factory.mktemp("trained")
    train_ranker(read_config(write_config(folder, validate_every_n=20)))
    return folder
