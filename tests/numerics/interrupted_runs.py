"""Training commands in processes that are stopped on the way, and what is left of their runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from small_graph import log_lines
from torch import Tensor

from rookery.checkpoint.checkpointer import load_checkpoint
from rookery.checkpoint.layout import best_step

TIMEOUT_S = 300


@dataclass(frozen=True)
class Job:
    """``rookery MODEL train`` with a configuration file, and the run of it that nothing interrupted."""

    model: str
    config: Path
    whole: Path

    def start(self, save_dir: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "rookery", self.model, "train", str(self.config)]
        return subprocess.Popen(
            [*command, "--save-dir", str(save_dir), "--json"],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, save_dir: Path) -> dict[str, Any]:
        """Run to the end; what it printed."""
        process = self.start(save_dir)
        out, err = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, err
        report: dict[str, Any] = json.loads(out)
        return report

    def kill_and_finish(self, save_dir: Path, steps: list[int]) -> dict[str, Any]:
        """Kill at each of ``steps``, go on each time, run to the end."""
        for step in steps:
            process = self.start(save_dir)
            stop_at(process, save_dir, step, signal.SIGKILL)
            process.communicate()
            assert process.returncode == -signal.SIGKILL
        return self.finish(save_dir)


def last_step(save_dir: Path) -> int:
    """The last step that a run has logged, 0 before the first."""
    if not (save_dir / "metrics.jsonl").exists():
        return 0
    complete = (save_dir / "metrics.jsonl").read_text().rpartition("\n")[0].splitlines()
    return json.loads(complete[-1])["step"] if complete else 0


def stop_at(process: subprocess.Popen[str], save_dir: Path, step: int, number: signal.Signals) -> None:
    """Send a signal as soon as ``step`` is logged."""
    deadline = time.monotonic() + TIMEOUT_S
    while last_step(save_dir) < step and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)


def final_tensors(save_dir: Path) -> dict[str, Tensor]:
    """Everything that the last checkpoint holds."""
    stored = load_checkpoint(save_dir)
    groups = ("model", "optimizer", "random")
    return {f"{group}/{name}": tensor for group in groups for name, tensor in stored.tensors(group).items()}


def assert_same_run(left: Path, right: Path) -> None:
    """The same bits in the last checkpoint, the same numbers in the log, the same best step."""
    ours, theirs = final_tensors(left), final_tensors(right)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    logs = []
    for folder in (left, right):
        lines = [{name: value for name, value in line.items() if "time" not in name} for line in log_lines(folder)]
        logs.append([{name: value for name, value in line.items() if not name.endswith("_per_s")} for line in lines])
    assert logs[0] == logs[1]
    assert best_step(left) == best_step(right)
