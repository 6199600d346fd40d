"""One small world, whose files the tests of this folder read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rookery.data.engagements import ENGAGEMENTS
from rookery.world.config import WorldConfig
from rookery.world.generate import generate_world
from rookery.world.world import World

CONFIG = WorldConfig(
    num_users=1_500,
    num_communities=10,
    num_topics=8,
    mean_following=20,
    posts_per_day=400,
    impressions_per_day=20_000,
    history_days=2,
    log_days=4,
    seed=1,
)


@dataclass(frozen=True)
class Written:
    """A world's folder, with its log and the truth as tables in order."""

    folder: Path

    @cached_property
    def log(self) -> pa.Table:
        return self._read("impressions")

    @cached_property
    def truth(self) -> pa.Table:
        return self._read("truth")

    @cached_property
    def world(self) -> World:
        return World.open(self.folder)

    def _read(self, name: str) -> pa.Table:
        return pa.concat_tables([pq.read_table(file) for file in sorted((self.folder / name).glob("*.parquet"))])

    @cached_property
    def labels(self) -> np.ndarray:
        """``[rows, 10]``."""
        return np.stack([self.log[name].to_numpy() for name in ENGAGEMENTS], axis=1)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """``[rows, 10]``."""
        return np.stack([self.truth[f"probability.{name}"].to_numpy() for name in ENGAGEMENTS], axis=1).astype(float)

    def rows(self, column: str) -> np.ndarray:
        """The row numbers of a column of ids."""
        return np.array([int(name.split("_")[1]) for name in self.log[column].to_pylist()])


@pytest.fixture(scope="session")
def config() -> WorldConfig:
    return CONFIG


@pytest.fixture(scope="session")
def written(tmp_path_factory) -> Written:
    folder = tmp_path_factory.mktemp("worlds") / "world"
    generate_world(folder, CONFIG)
    return Written(folder)
