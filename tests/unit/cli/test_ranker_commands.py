"""``rookery ranker init``, ``train`` and ``score`` in this process: what they print, what they say of a bad start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq
import pytest
from evaluated_run import TASKS, write_config
from impression_log import write_log

from rookery.cli import main as command_line
from rookery.config.loader import load_config
from rookery.ranker.config import RankerConfig
from rookery.ranker.train import train_ranker
from rookery.train.loop import TrainingResult


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Exit code, stdout, stderr of ``rookery ranker arguments``."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["rookery", "ranker", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            command_line.main()
        out, err = capsys.readouterr()
        return int(done.value.code or 0), out, err

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run in ``run``: checkpoints of steps 20, 40 and 60."""
    folder = tmp_path_factory.mktemp("trained")
    train_ranker(load_config(RankerConfig, write_config(folder)))
    return folder


def test_init_prints_a_configuration_and_tells_of_outcomes(run, tmp_path: Path) -> None:
    flags = ("--label", "clicked", "--label", "liked", "--user", "user_id", "--item", "video_id", "--time", "time_ms")
    code, out, err = run("init", write_log(tmp_path), *flags, "--save-dir", "runs/mine")
    assert code == 0
    (tmp_path / "config.yaml").write_text(out)
    config = load_config(RankerConfig, tmp_path / "config.yaml")
    assert config.tasks == ("clicked", "liked")
    assert config.training.save_dir == Path("runs/mine")
    assert "stay_time is left out as an outcome: it alone tells liked" in err


def test_init_needs_a_label_that_is_there(run, tmp_path: Path) -> None:
    log = write_log(tmp_path)
    assert run("init", log, "--label", "click")[::2] == (
        2,
        f"error: --label click: {log} has no such column; did you mean 'clicked'?\n",
    )
    code, out, err = run("init", log)
    assert (code, out) == (2, "")
    assert "--label" in err


@pytest.mark.parametrize(
    ("signal", "code"),
    [(None, 0), ("SIGTERM", 0), ("SIGINT", 130)],
)
def test_train_prints_the_result(
    run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, signal: str | None, code: int
) -> None:
    reason: Literal["finished", "interrupted"] = "interrupted" if signal else "finished"
    trained: list[tuple[RankerConfig, bool]] = []

    def fake(config: RankerConfig, *, debug: bool) -> TrainingResult:
        trained.append((config, debug))
        return TrainingResult(5, 9, reason, 0.5, None, None, signal)

    monkeypatch.setattr("rookery.ranker.train.train_ranker", fake)
    path = write_config(tmp_path)
    found, out, _ = run(
        "train", path, "--save-dir", "2024", "--set", "training.num_train_steps=9", "--debug-loop", "--json"
    )
    assert found == code
    report = json.loads(out)
    assert (report["step"], report["reason"], report["signal"], report["save_dir"]) == (5, reason, signal, "2024")
    ((config, debug),) = trained
    assert (config.training.num_train_steps, config.training.save_dir, debug) == (9, Path("2024"), True)


def test_train_tells_where_a_configuration_is_wrong(run, tmp_path: Path) -> None:
    path = write_config(tmp_path)
    text = path.read_text()
    path.write_text(text.replace("inputs:\n  - " + str(tmp_path / "train.parquet"), "input: x"))
    code, _, err = run("train", path)
    assert code == 2
    assert f"{path}:" in err
    assert "train_data" in err
    path.write_text(text)
    code, _, err = run("train", path, "--set", "train_data.inputs=[nowhere.parquet]")
    assert code == 2
    assert "nowhere.parquet" in err
    assert not (tmp_path / "run").exists()


def test_score_prints_what_it_wrote(run, trained: Path, tmp_path: Path) -> None:
    out_file = tmp_path / "out.parquet"
    code, out, _ = run("score", trained / "run", trained / "test.parquet", out_file, "--json")
    assert code == 0
    report = json.loads(out)
    assert {name: report[name] for name in ("run", "step", "out", "num_rows")} == {
        "run": str(trained / "run"),
        "step": 60,
        "out": str(out_file),
        "num_rows": 600,
    }
    assert report["columns"] == ["user_id", *(f"probability.{task}" for task in TASKS), "score"]
    assert pq.read_table(out_file).column_names == report["columns"]
    code, shown, _ = run(
        "score", trained / "run", trained / "test.parquet", out_file, "--overwrite", "--checkpoint", "20"
    )
    assert code == 0
    assert "600" in shown
    assert pq.read_schema(out_file).metadata[b"rookery.step"] == b"20"


def test_score_refuses_in_one_line(run, trained: Path, tmp_path: Path) -> None:
    rows, out = trained / "test.parquet", tmp_path / "out.parquet"
    out.write_text("mine")
    refusals = {
        (
            "score",
            trained / "run",
            rows,
            out,
        ): f"error: {out}: exists; choose another name, or pass --overwrite to replace it\n",
        ("score", trained / "run", tmp_path / "no.parquet", tmp_path / "new"): "no Parquet file there",
        ("score", tmp_path / "no-run", rows, tmp_path / "new"): "name the save_dir of a training run",
        (
            "score",
            trained / "run",
            rows,
            tmp_path / "new",
            "--checkpoint",
            "first",
        ): "must be auto, best, latest or a step",
    }
    for arguments, message in refusals.items():
        code, printed, err = run(*arguments)
        assert (code, printed) == (2, "")
        assert message in err
    assert out.read_text() == "mine"
