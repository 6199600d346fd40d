"""The jobs that several journeys share: each is run once without an interruption, and compared with often."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torchrun_agents import Agents, running_agents
from training_jobs import Job, ranker_job, torchrec_ranker_job, torchrec_twhin_job, twhin_job


@pytest.fixture(scope="session")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Job]:
    """A job by its model, with ``in torchrec`` one of sharded tables. Tests write nothing where it lies."""
    make = {
        "twhin": twhin_job,
        "ranker": ranker_job,
        "twhin in torchrec": torchrec_twhin_job,
        "ranker in torchrec": torchrec_ranker_job,
    }

    @functools.cache
    def job(name: str) -> Job:
        if name.endswith("in torchrec"):
            pytest.importorskip("fbgemm_gpu", reason="needs the cluster extra")
        return make[name](tmp_path_factory.mktemp(name.replace(" ", "-")))

    return job


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
