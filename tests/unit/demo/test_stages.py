"""Stages of the demo that say how far they are, and that look at what is there already."""

from __future__ import annotations

import shutil
from contextlib import nullcontext

import pytest

from rookery.demo.layout import Layout
from rookery.demo.stages import stages
from rookery.errors import DataError
from rookery.world.config import WorldConfig

TINY = WorldConfig.of_size("tiny", 0)


class Progress:
    """Notes what it is told."""

    def __init__(self):
        self.told = []

    def __call__(self, done, of):
        self.told.append((done, of))

    def aside(self):
        return nullcontext()


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A demo of which the first stage is done, and what that stage told."""
    layout = Layout(tmp_path_factory.mktemp("demo"))
    progress = Progress()
    next(stages(layout, TINY)).run(progress)
    return layout, progress.told


def test_a_world_tells_its_days(begun):
    _, told = begun
    assert told == [(day, 10) for day in range(1, 11)]


def test_a_world_that_is_there_is_looked_at(begun, tmp_path):
    layout = Layout(shutil.copytree(begun[0].folder, tmp_path / "demo"))
    progress = Progress()
    next(stages(layout, TINY)).run(progress)
    assert progress.told == []
    shutil.rmtree(layout.world / "truth")
    with pytest.raises(DataError, match=r"truth/day-04\.parquet: cannot be read .* is damaged: generate it again"):
        next(stages(layout, TINY)).run(progress)
