"""``rookery ranker evaluate`` as a user calls it, in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from evaluated_run import TASKS, read_config, write_config

from rookery.cli import main as command_line
from rookery.ranker.train import train_ranker

METRICS = {"auroc", "gauc", "rce", "nrce", "logloss", "ece", "calibration", "prauc"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    train_ranker(read_config(write_config(folder, num_train_steps=20)))
    return folder / "run"


@pytest.fixture
def rookery(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Exit code, stdout and stderr of ``rookery arguments``."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["rookery", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            command_line.main()
        return int(done.value.code or 0), *capsys.readouterr()

    return call


def test_json_has_every_metric_of_every_task(rookery, run: Path) -> None:
    code, out, _ = rookery("ranker", "evaluate", run, "--split", "test", "--json")
    result = json.loads(out)
    assert code == 0
    assert set(result["tasks"]) == set(TASKS)
    for task in result["tasks"].values():
        assert METRICS | {"count", "positives", "ctr", "mean_prediction", "intervals"} == set(task)
        assert all(isinstance(task[metric], float) for metric in METRICS)
        assert set(task["intervals"]) > METRICS
    assert (result["step"], result["num_rows"]) == (20, 600)
    assert Path(result["report"]).read_text().startswith("<!doctype html>")


def test_a_table_for_people_with_intervals_strata_and_where_the_report_is(rookery, run: Path, tmp_path: Path) -> None:
    code, out, _ = rookery("ranker", "evaluate", run, "--split", "valid", "--report", tmp_path / "page.html")
    assert code == 0
    for words in ("valid at step 20: 500 impressions", "like", "auroc", "in germany", "mean over tasks", "NDCG"):
        assert words in out
    assert out.count("–") > 20
    assert "page.html" in out.replace("\n", "")


def test_following_tells_each_checkpoint_on_stderr_and_the_end_on_stdout(rookery, run: Path) -> None:
    code, out, err = rookery("ranker", "evaluate", run, "--follow", "--timeout", 1, "--split", "valid", "--json")
    assert code == 0
    assert json.loads(out)["reason"] == "finished"
    (run / "evaluations" / "valid" / "step-000000020.json").unlink(missing_ok=True)
    code, out, err = rookery("ranker", "evaluate", run, "--follow", "--timeout", 1, "--split", "valid")
    assert "step 20: valid  mean over tasks: auroc 0." in err
    assert "measured on valid: 1 new checkpoints; its training is done" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--split", "nowhere"), "--split nowhere: no such partition"),
        (("--checkpoint", "7"), "step 7 was not kept"),
        (("--follow", "--checkpoint", "20"), "--follow measures every checkpoint"),
        (("--set", "model.compile=true"), "the model is trained already"),
    ],
)
def test_what_cannot_be_done_is_said_with_exit_code_2(rookery, run: Path, arguments, message: str) -> None:
    code, out, err = rookery("ranker", "evaluate", run, *arguments)
    assert (code, out) == (2, "")
    assert message in err
