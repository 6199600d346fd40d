"""What runs leave behind, and the proof that one which went on after a failure is the run that nothing touched."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rookery.checkpoint.checkpointer import load_checkpoint
from rookery.checkpoint.files import Checkpoint
from rookery.checkpoint.layout import best_step


def log_of(run: Path) -> list[dict[str, Any]]:
    """The log of a run, as far as its lines are whole."""
    return [json.loads(line) for line in _whole_lines(run / "metrics.jsonl")]


def last_step(run: Path) -> int:
    """The last step that a run has logged, 0 before the first."""
    lines = _whole_lines(run / "metrics.jsonl")
    return int(json.loads(lines[-1])["step"]) if lines else 0


def _whole_lines(file: Path) -> list[str]:
    return file.read_text().rpartition("\n")[0].splitlines() if file.exists() else []


def checkpoint_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:09d}"


def tensors_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """What was learned, and the state of what learns it."""
    groups = ("model", "optimizer")
    return {f"{group}/{name}": tensor for group in groups for name, tensor in checkpoint.tensors(group).items()}


def final_tensors(run: Path) -> dict[str, Tensor]:
    """Everything that the last checkpoint holds."""
    return tensors_of(load_checkpoint(run))


def assert_equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    """The same names, the same bits."""
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def assert_same_run(left: Path, right: Path) -> None:
    """The same bits in the last checkpoint, the same numbers in the log, the same best step."""
    assert_equal(final_tensors(left), final_tensors(right))
    logs = [
        [
            {name: line[name] for name in line if "time" not in name and not name.endswith("_per_s")}
            for line in log_of(folder)
        ]
        for folder in (left, right)
    ]
    assert logs[0] == logs[1]
    assert best_step(left) == best_step(right)


def require_survived(run: Path, whole: Path, *, to_the_bit: bool) -> None:
    """The run ended where the untouched one did: same parameters and states, and the same rows were read.

    To the bit, with every line of the log, or to 1e-5.
    """
    ours, theirs = load_checkpoint(run), load_checkpoint(whole)
    if to_the_bit:
        assert_same_run(run, whole)
    torch.testing.assert_close(tensors_of(ours), tensors_of(theirs), rtol=1e-5, atol=1e-5)
    require_all_rows(ours, theirs)
    assert last_step(run) == last_step(whole) == ours.step == theirs.step


def require_all_rows(ours: Checkpoint, theirs: Checkpoint) -> None:
    """No row was lost or doubled: each finished epoch was proved by the run, the last one as far as it went is that of
    the untouched run.
    """
    place, ledger = ours.state["stream"], ours.state["ledger"]
    is_finished = ledger["current"]["rows"] + ledger["current"]["skipped"] == place["num_rows"]
    assert place == theirs.state["stream"]
    assert ledger["since"] == 0
    assert ledger["epochs_proved"] == place["epoch"] + is_finished > 1
    assert ledger == theirs.state["ledger"]


def require_clean(said: str) -> None:
    """A message, and no traceback."""
    assert "error: " in said
    assert "Traceback" not in said, said
