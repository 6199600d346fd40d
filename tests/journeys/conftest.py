"""The jobs that several journeys share: each is run once without an interruption, and compared with often."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torchrun_agents import Agents, running_agents
from training_jobs import Job, ranker_job, twhin_job


@pytest.fixture(scope="session")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Job]:
    """A job by its model. Tests write nothing where it lies."""
    make = {"twhin": twhin_job, "ranker": ranker_job}
    return functools.cache(lambda model: make[model](tmp_path_factory.mktemp(model)))


@pytest.fixture
def twhin(jobs: Callable[[str], Job]) -> Job:
    return jobs("twhin")


@pytest.fixture(scope="session")
def long_ranker(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """So long that its readers are still asked when it is at a third of its steps."""
    return ranker_job(tmp_path_factory.mktemp("long-ranker"), 144)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file that processes wait for."""
    return tmp_path / "gate"


@pytest.fixture
def agents() -> Iterator[Agents]:
    with running_agents() as agents:
        yield agents
