"""``rookery replay`` as a user calls it, in this process."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from small_graph import make_config, one_thread, planted_splits, write_graph

from rookery.cli.main import app
from rookery.cli.output import run_command
from rookery.cli.replay import _verdict
from rookery.errors import TrainingError
from rookery.train.replay import Finding, Replay, ReplayedBatch
from rookery.twhin.train import train_twhin


def rookery(*arguments: object) -> int:
    return run_command(lambda: app([*map(str, arguments)], standalone_mode=False))


def test_a_step_is_told_for_people_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = write_graph(tmp_path / "graph", planted_splits())
    run = tmp_path / "run"
    fields = {"training.checkpoint_every_n": 1}
    with one_thread(), pytest.raises(TrainingError):
        train_twhin(make_config(graph, run, fields, optimizer={"sgd": {"lr": 1e25}}))
    capsys.readouterr()
    assert rookery("replay", run) == 0
    out = capsys.readouterr().out
    for words in ("step 2: the loss is not finite with the weights of step 1 either", "largest weight:", "relation"):
        assert words in out
    assert "Micro-batch 0: 32 rows, loss " in out
    assert "rank-0-0.parquet row " in out
    assert rookery("replay", run, "--step", 2, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["step"], told["weights_of_step"], told["batches"][0]["loss"]) == (2, 1, None)
    (graph.path).rename(tmp_path / "moved")
    assert rookery("replay", run) == 2
    assert "pass --graph PATH" in capsys.readouterr().err
    assert rookery("replay", run, "--graph", tmp_path / "moved") == 0


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rookery("replay", tmp_path) == 2
    assert "no config.yaml there; name the save_dir of a training run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("weights_of_step", "loss", "weights", "said"),
    [
        (8, 1.0, (), "which the step began with: it was the machine; start the run again"),
        (5, 1.0, (), "3 steps lie between"),
        (8, math.nan, (), "it is no fault of the machine; lower the learning rate, or mend the rows"),
        (8, math.nan, (Finding("weight", "a", 1, 2),), "the weights of step 8 are not finite themselves"),
    ],
)
def test_what_follows_is_said(weights_of_step: int, loss: float, weights: tuple[Finding, ...], said: str) -> None:
    assert said in _verdict(Replay(9, weights_of_step, weights, ("a", 1.0), (ReplayedBatch(loss, 4, ()),)))
