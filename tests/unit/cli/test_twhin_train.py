"""``rookery twhin train`` in this process: what it says of a bad start, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
from small_graph import make_config, planted_splits, write_graph

from rookery.cli import main as command_line
from rookery.config.loader import dump_config
from rookery.train.loop import TrainingResult


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of ``rookery arguments``."""
    monkeypatch.setattr("sys.argv", ["rookery", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        command_line.main()
    out, err = capsys.readouterr()
    return int(done.value.code or 0), out, err


@pytest.fixture
def config(tmp_path: Path) -> Path:
    graph = write_graph(tmp_path / "graph", planted_splits())
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(make_config(graph, tmp_path / "run")))
    return path


def stopped(reason: Literal["finished", "interrupted"], signal: str | None) -> TrainingResult:
    return TrainingResult(5, 9, reason, 0.5, None, None, signal)


def test_a_save_dir_that_cannot_be_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, config: Path, tmp_path: Path
) -> None:
    (tmp_path / "edges.tsv").write_text("a\tb\n")
    code, out, err = run(capsys, monkeypatch, "twhin", "train", config, "--save-dir", tmp_path / "edges.tsv")
    assert (code, out) == (2, "")
    assert err == (
        f"error: training.save_dir={tmp_path / 'edges.tsv'}: no run can be kept there (File exists); name a folder "
        "that can be made and written, in the configuration or with --save-dir\n"
    )


def test_what_an_empty_file_lacks_is_laid_to_the_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty.yaml").write_text("")
    code, _, err = run(capsys, monkeypatch, "twhin", "train", tmp_path / "empty.yaml", "--save-dir", tmp_path / "run")
    assert code == 2
    assert f"{tmp_path / 'empty.yaml'}: training: needs num_train_steps" in err
    assert "--set" not in err


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (stopped("finished", None), 0),
        (stopped("interrupted", "SIGTERM"), 0),
        (stopped("interrupted", "SIGINT"), 130),
    ],
)
def test_only_ctrl_c_is_no_success(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    config: Path,
    result: TrainingResult,
    code: int,
) -> None:
    monkeypatch.setattr("rookery.twhin.train.train_twhin", lambda *_, **__: result)
    found, out, _ = run(capsys, monkeypatch, "twhin", "train", config, "--json")
    assert found == code
    assert json.loads(out)["signal"] == result.signal
