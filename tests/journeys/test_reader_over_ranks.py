"""torchrun's processes that train from ``rookery reader`` processes: the run that one process makes of local files."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from served_readers import Reader, settings, starting
from survived_runs import assert_equal, final_tensors, last_step, log_of, require_survived
from torchrun_agents import Agent, Agents
from training_jobs import Job

SIZE = 2


@pytest.fixture
def job(model: str, request: pytest.FixtureRequest) -> Job:
    job: Job = request.getfixturevalue(model)
    return job


def start(agents: Agents, job: Job, run: Path, readers: list[Reader]) -> Agent:
    arguments = job.arguments(run, SIZE, **settings(readers))
    return agents.start(["--standalone", f"--nproc-per-node={SIZE}"], arguments, run.with_name("log"))


LONG = pytest.mark.long


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "num_readers"),
    [
        pytest.param("twhin", 1, marks=LONG),
        pytest.param("twhin", 2, marks=LONG),
        pytest.param("long_ranker", 1, marks=LONG),
        pytest.param("long_ranker", 2, marks=LONG),
    ],
)
def test_the_same_run_as_from_local_files(job: Job, run: Path, agents: Agents, num_readers: int) -> None:
    """That of one process to 1e-5, that of two to the bit."""
    with starting(job, "--save-dir", run, count=num_readers) as readers:
        said = start(agents, job, run, readers).finish()
    assert "its tickets go" not in said
    require_survived(run, job.whole, to_the_bit=False)
    local = run.with_name("local")
    job.run(local, SIZE)
    assert_equal(final_tensors(run), final_tensors(local))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["twhin", pytest.param("long_ranker", marks=LONG)])
def test_one_of_two_readers_is_killed(job: Job, run: Path, agents: Agents) -> None:
    """The process whose own it was goes on with that of the other."""
    with starting(job, "--save-dir", run, count=2) as readers:
        agent = start(agents, job, run, readers)
        agents.wait_until(lambda: last_step(run) >= job.num_steps // 3)
        readers[0].command.send(signal.SIGKILL)
        killed_at = log_of(run)[-1]["step"]
        said = agent.finish()
    assert killed_at < job.num_steps
    assert f"reader {readers[0].address}: " in said
    assert "its tickets go to the others" in said
    require_survived(run, job.whole, to_the_bit=False)


@pytest.mark.slow
@pytest.mark.parametrize("model", [pytest.param("twhin", marks=LONG), pytest.param("long_ranker", marks=LONG)])
def test_the_one_that_both_share_is_killed_and_comes_back(job: Job, run: Path, agents: Agents) -> None:
    with starting(job, "--save-dir", run) as readers:
        agent = start(agents, job, run, readers)
        agents.wait_until(lambda: last_step(run) >= job.num_steps // 3)
        readers[0].command.send(signal.SIGKILL)
        agents.wait_until(lambda: "no reader answers; training waits" in agent.said())
        readers[0].start()
        said = agent.finish()
    assert f"reader {readers[0].address} answers" in said
    require_survived(run, job.whole, to_the_bit=False)
