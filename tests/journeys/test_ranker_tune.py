"""A study as a user runs it: killed and interrupted in the middle of a trial, it ends as one that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from evaluated_run import write_config

NUM_TRIALS = 3
NUM_STEPS = 300
TIMEOUT_S = 300
SPACE = """
fields:
  optimizer.single_task_learning_rate.constant: {low: 1.0e-4, high: 0.1, log: true}
pruning: null
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write_config(
        folder,
        num_train_steps=NUM_STEPS,
        checkpoint_every_n=10,
        validate_every_n=100,
        train_log_every_n=100,
        keep_best={"metric": "valid/mean/logloss", "mode": "min"},
    )
    (folder / "space.yaml").write_text(SPACE)
    return folder


def start(folder: Path, study: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rookery", "ranker", "tune", "config.yaml", "--space", "space.yaml"]
    command += ["--study", study, "--trials", str(NUM_TRIALS), "--json"]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}  # two processes may share a core
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def stop_in_trial(folder: Path, study: str, trial: int, number: signal.Signals) -> int:
    """Send a signal once the run of ``trial`` has a checkpoint, before it has its last; the exit code."""
    process = start(folder, study)
    run = folder / study / "trials" / f"{trial:05d}"
    deadline = time.monotonic() + TIMEOUT_S
    while not any(run.glob("checkpoints/step-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    process.communicate(timeout=TIMEOUT_S)
    return process.returncode


def finish(folder: Path, study: str) -> dict:
    out, err = start(folder, study).communicate(timeout=TIMEOUT_S)
    assert out, err
    return json.loads(out)


def test_a_stopped_study_goes_on_in_the_middle_of_its_trial(folder):
    whole = finish(folder, "whole")
    assert stop_in_trial(folder, "stopped", 0, signal.SIGKILL) == -signal.SIGKILL
    assert stop_in_trial(folder, "stopped", 1, signal.SIGINT) == 130
    result = finish(folder, "stopped")
    assert [trial["state"] for trial in result["trials"]] == ["finished"] * NUM_TRIALS
    for found, expected in zip(result["trials"], whole["trials"], strict=True):
        for name in ("number", "state", "value", "step", "fields", "reason"):
            assert found[name] == expected[name], name
    assert result["best"]["number"] == whole["best"]["number"]
    best = {study: (folder / study / "best.yaml").read_text() for study in ("whole", "stopped")}
    assert best["whole"] == best["stopped"]
