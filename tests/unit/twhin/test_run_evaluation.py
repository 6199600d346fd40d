"""Measuring checkpoints of a TwHIN run, one or all as they come."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small_graph import make_config, planted_splits, write_graph

from rookery.cli.main import app
from rookery.cli.output import run_command
from rookery.errors import RunNotFound, UserError
from rookery.train.evaluations import evaluated_steps
from rookery.twhin.run_evaluation import Measured, evaluate_run, follow_run
from rookery.twhin.train import train_twhin


@pytest.fixture
def run(tmp_path: Path) -> Path:
    graph = write_graph(tmp_path / "graph", planted_splits())
    fields = {"training.num_train_steps": 6, "training.checkpoint_every_n": 2}
    train_twhin(make_config(graph, tmp_path / "run", fields))
    return tmp_path / "run"


def followed(run: Path) -> tuple[list[Measured], dict[str, object]]:
    noted: list[Measured] = []
    return noted, follow_run(run, "valid", timeout_s=0.1, note=noted.append)


def test_each_checkpoint_is_measured_once_and_the_last_ends_it(run: Path) -> None:
    noted, result = followed(run)
    assert [each.step for each in noted] == result["evaluated"] == [2, 4, 6]
    assert result["reason"] == "finished"
    assert evaluated_steps(run, "valid") == [2, 4, 6]
    kept = json.loads((run / "evaluations" / "valid" / "step-000000006.json").read_text())
    assert kept["metrics"] == evaluate_run(run, "valid", 6).evaluation.metrics()
    assert followed(run) == ([], {**result, "evaluated": []})


def test_a_damaged_checkpoint_is_passed_over_and_the_command_ends_well_or_names_the_last(
    run: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def evaluate() -> tuple[int, str, str]:
        arguments = ["twhin", "evaluate", str(run), "--split", "valid", "--follow", "--timeout", "1"]
        try:
            code = run_command(lambda: app(arguments))
        except SystemExit as end:  # as typer ends what went well
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    def flip(step: int) -> None:
        file = run / "checkpoints" / f"step-{step:09d}" / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)

    flip(4)
    code, out, _ = evaluate()
    assert (code, evaluated_steps(run, "valid")) == (0, [2, 6])
    assert "2 new checkpoints, and 1 damaged ones passed over; its training is done" in " ".join(out.split())
    assert "DAMAGED CHECKPOINT " in caplog.text
    shutil.rmtree(run / "evaluations")
    flip(6)
    code, _, err = evaluate()
    assert (code, evaluated_steps(run, "valid")) == (2, [2])
    assert "the checkpoint of step 6, the last that came, is damaged" in err


def test_following_what_never_starts(tmp_path: Path) -> None:
    with pytest.raises(RunNotFound, match=r"no checkpoint came within 0\.1 s"):
        followed(tmp_path / "nowhere")


def test_one_checkpoint_cannot_be_named_beside_follow() -> None:
    from rookery.cli.run_flags import followed_run

    followed_run("run", "auto")
    with pytest.raises(UserError, match="--checkpoint best: --follow measures every checkpoint"):
        followed_run("run", "best")
