"""The scripts of docs/deploy/slurm: bash, and when the training one queues its job again, by stand-ins of SLURM."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SLURM = Path(__file__).resolve().parents[2] / "docs" / "deploy" / "slurm"
SCRIPTS = sorted(SLURM.glob("*.sbatch"))
JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "node-[1-2]",
    "SLURM_CPUS_PER_TASK": "4",
}
SCONTROL = """if [ "$1" = show ]; then printf 'node-1\\nnode-2\\n'; else echo "$*" >> requeued; fi"""


@pytest.fixture
def bin_of(tmp_path: Path) -> Path:
    """A folder of commands; the tests add those that differ."""
    folder = tmp_path / "bin"
    folder.mkdir()
    add(folder, "scontrol", SCONTROL)
    add(folder, "squeue", "echo RUNNING")
    add(folder, "rookery", 'echo "$*" >> checked')
    return folder


def add(folder: Path, name: str, body: str) -> None:
    command = folder / name
    command.write_text(f"#!/usr/bin/env bash\n{body}\n")
    command.chmod(0o755)


@contextmanager
def job(folder: Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | JOB | variables | {"PATH": f"{folder}:{os.environ['PATH']}"}
    command = ["bash", str(SLURM / "train.sbatch"), "config.yaml", "run"]
    with subprocess.Popen(
        command, cwd=folder.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        yield process


def ends_with(folder: Path, **variables: str) -> int:
    with job(folder, **variables) as process:
        process.communicate(timeout=20)
    return process.returncode


def takes_term(pid: int) -> bool:
    """Whether a process has a trap for SIGTERM."""
    (caught,) = re.findall(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def requeued(folder: Path) -> list[str]:
    log = folder.parent / "requeued"
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_bash(script):
    result = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_training_that_ends_is_not_queued_again(bin_of):
    add(bin_of, "srun", 'echo "$*, $TORCH_DISABLE_SHARE_RDZV_TCP_STORE, $OMP_NUM_THREADS"  > started')
    assert (ends_with(bin_of), requeued(bin_of)) == (0, [])
    started = (bin_of.parent / "started").read_text()
    assert "--nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint node-1:29400 --rdzv-id 7 " in started
    assert started.endswith("twhin train config.yaml --save-dir run --set parallel.num_lanes=32, 1, 4\n")
    assert (bin_of.parent / "checked").read_text() == (
        "config check config.yaml --set parallel.num_lanes=32 --processes 2 --per-machine 1\n"
    )


def test_one_that_fails_is_queued_again_so_many_times(bin_of):
    add(bin_of, "srun", "exit 137")
    assert (ends_with(bin_of, SLURM_RESTART_COUNT="19"), requeued(bin_of)) == (0, ["requeue 7"])
    assert (ends_with(bin_of, SLURM_RESTART_COUNT="20"), requeued(bin_of)) == (137, ["requeue 7"])
    assert (ends_with(bin_of, SLURM_RESTART_COUNT="20", MAX_RESTARTS="30"), len(requeued(bin_of))) == (0, 2)


@pytest.mark.parametrize("state", ["COMPLETING", "PENDING", ""])
def test_one_that_was_cancelled_is_left_alone(bin_of, state):
    add(bin_of, "srun", "exit 1")
    add(bin_of, "squeue", f"echo {state}")
    assert (ends_with(bin_of), requeued(bin_of)) == (1, [])


def test_a_wrong_configuration_ends_the_job(bin_of):
    add(bin_of, "rookery", "exit 2")
    add(bin_of, "srun", "touch started")
    assert (ends_with(bin_of), requeued(bin_of)) == (2, [])
    assert not (bin_of.parent / "started").exists()


def test_before_the_time_limit_the_ranks_save_first(bin_of):
    wait_for_term = "trap 'sleep .3; echo saved >> requeued; exit 1' TERM; touch started; while :; do sleep .05; done"
    add(bin_of, "srun", wait_for_term)
    with job(bin_of, SLURM_RESTART_COUNT="99") as process:
        deadline = time.monotonic() + 20
        while not (bin_of.parent / "started").exists() or not takes_term(process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert (process.returncode, requeued(bin_of)) == (0, ["saved", "requeue 7"])
