"""Training through failures that torchrun sees, and answers with processes started anew.

Each ends with the run that nothing touched: the same parameters to 1e-5, and a ledger that proves that no row was lost
or read twice.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from survived_runs import last_step, require_survived
from torchrun_agents import Agents, Machines
from training_jobs import GRACE_S, Job

from rookery.checkpoint.checkpointer import load_checkpoint
from rookery.checkpoint.layout import checkpoint_steps


@pytest.mark.slow
@pytest.mark.parametrize("model", ["twhin", pytest.param("ranker", marks=pytest.mark.long)])
def test_a_machine_that_is_gone_leaves_a_smaller_world(
    jobs: Callable[[str], Job], run: Path, tmp_path: Path, model: str, agents: Agents
) -> None:
    """Two agents of torchrun with a process each; one agent and its process die. The other one goes on alone from the
    newest checkpoint, with the same global batch.
    """
    job = jobs(model)
    machines = Machines(agents, "1:2")
    arguments = job.arguments(run, 2, parallel__timeout_s=20)
    staying = machines.start(arguments, tmp_path / "agent-0", is_host=True)
    leaving = machines.start(arguments, tmp_path / "agent-1", is_host=False)
    # One that is late finds the other under way alone: torchrun then starts both anew.
    agents.wait_until(lambda: checkpoint_steps(run) and load_checkpoint(run).state["world_size"] == 2)
    leaving.kill_machine()
    died_at = last_step(run)
    said = staying.finish()
    assert died_at < job.num_steps
    assert "resumed with 1 processes, 2 before" in said
    assert load_checkpoint(run).state["world_size"] == 1
    require_survived(run, job.whole, to_the_bit=False)


@pytest.mark.slow
def test_a_machine_that_comes_late_makes_a_larger_world(twhin: Job, run: Path, tmp_path: Path, agents: Agents) -> None:
    """One agent trains alone; when it has a checkpoint another one comes, and both go on from the newest.

    The steps of the first wait for the second one's agent, which takes longer to start than they do.
    """
    machines = Machines(agents, "1:2", last_call_s=1)
    arguments = twhin.arguments(run)
    first = machines.start(arguments, tmp_path / "agent-0", is_host=True)
    agents.wait_until(lambda: checkpoint_steps(run))
    training = first.children()[-1]
    os.kill(training, signal.SIGSTOP)
    late = machines.start(arguments, tmp_path / "agent-1", is_host=False)
    agents.wait_until(lambda: first.is_told_to_end(training))
    os.kill(training, signal.SIGCONT)
    said = first.finish()
    late.finish()
    assert "resumed with 2 processes, 1 before" in said
    assert load_checkpoint(run).state["world_size"] == 2
    require_survived(run, twhin.whole, to_the_bit=False)


@pytest.mark.slow
@pytest.mark.long
def test_a_machine_that_dies_and_comes_again(twhin: Job, run: Path, tmp_path: Path, agents: Agents) -> None:
    """As a Job starts a pod again: the agent that stays waits for it, since two machines are asked for."""
    machines = Machines(agents, "2")
    arguments = twhin.arguments(run, 2, parallel__timeout_s=20)
    staying = machines.start(arguments, tmp_path / "agent-0", is_host=True)
    dying = machines.start(arguments, tmp_path / "agent-1", is_host=False)
    agents.wait_until(lambda: checkpoint_steps(run))
    dying.kill_machine()
    died_at = last_step(run)
    again = machines.start(arguments, tmp_path / "agent-1-again", is_host=False)
    staying.finish()
    again.finish()
    assert died_at < twhin.num_steps
    assert load_checkpoint(run).state["world_size"] == 2
    require_survived(run, twhin.whole, to_the_bit=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("twhin", 2),
        pytest.param("twhin in torchrec", 3, marks=pytest.mark.long),
        pytest.param("ranker in torchrec", 3, marks=pytest.mark.long),
    ],
)
def test_torchrun_restarts_a_process_that_died(
    jobs: Callable[[str], Job], run: Path, tmp_path: Path, agents: Agents, model: str, size: int
) -> None:
    """Of three one has shards that nobody else has."""
    job = jobs(model)
    launch = ["--standalone", f"--nproc-per-node={size}", "--max-restarts=1"]
    agent = agents.start(launch, job.arguments(run, size), tmp_path / "agent")
    agents.wait_until(lambda: checkpoint_steps(run))
    os.kill(agent.children()[-1], signal.SIGKILL)
    died_at = last_step(run)
    agent.finish()
    assert died_at < job.num_steps
    require_survived(run, job.whole, to_the_bit=False)


@pytest.mark.slow
def test_sigterm_to_torchrun(twhin: Job, run: Path, tmp_path: Path, agents: Agents) -> None:
    """Its processes save and exit 0; torchrun itself says 1."""
    agent = agents.start(["--standalone", "--nproc-per-node=2"], twhin.arguments(run, 2), tmp_path / "agent")
    agents.wait_until(lambda: checkpoint_steps(run))
    agent.process.send_signal(signal.SIGTERM)
    said = agent.finish(1, GRACE_S)
    assert '"reason": "interrupted"' in said
    assert checkpoint_steps(run)[-1] == last_step(run) < twhin.num_steps
    twhin.run(run, 2)
    require_survived(run, twhin.whole, to_the_bit=False)
