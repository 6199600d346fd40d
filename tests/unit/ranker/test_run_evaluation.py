"""What ``evaluate`` keeps of a run, and following one."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from evaluated_run import read_config

from rookery.errors import DataError, RunNotFound, UserError
from rookery.ranker.evaluation_files import read_evaluation
from rookery.ranker.run_evaluation import evaluate_run, follow_run
from rookery.ranker.train import train_ranker
from rookery.train.evaluations import evaluated_steps

FEW = ("evaluation.num_bootstrap=2",)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run of its own, with three checkpoints and no evaluation."""
    ignored = shutil.ignore_patterns("evaluations", "tensorboard", ".lock")
    return Path(shutil.copytree(trained / "run", tmp_path / "run", ignore=ignored))


def test_the_evaluation_and_a_report_are_kept(run: Path) -> None:
    result = evaluate_run(run, "test", overrides=FEW)
    kept = json.loads((run / "evaluations" / "test" / "step-000000060.json").read_text())
    assert kept == {name: json.loads(json.dumps(value)) for name, value in result.items() if name in kept}
    assert kept["step"] == 60
    assert result["report"] == str(run / "evaluations" / "test" / "report.html")
    assert "<h1>Evaluation on test</h1>" in Path(result["report"]).read_text()


def test_another_checkpoint_and_another_place_for_the_report(run: Path, tmp_path: Path) -> None:
    result = evaluate_run(run, "valid", 20, FEW, tmp_path / "new" / "page.html")
    assert result["step"] == 20
    assert evaluated_steps(run, "valid") == [20]
    assert not (run / "evaluations" / "valid" / "report.html").exists()
    assert "step 20" in (tmp_path / "new" / "page.html").read_text()


def test_the_same_evaluation_twice_is_the_same(run: Path) -> None:
    first, second = (evaluate_run(run, "test", overrides=FEW) for _ in range(2))
    assert {**first, "elapsed_s": 0} == {**second, "elapsed_s": 0}


def test_fields_of_the_evaluation_can_be_replaced(run: Path) -> None:
    other = '[{"name": "many", "column": "country", "value": "fr"}]'
    result = evaluate_run(run, "test", overrides=[*FEW, f"evaluation.stratifiers={other}", "evaluation.num_bins=4"])
    assert set(result["strata"]) == {"many"}
    assert len(result["diagrams"]["like"]["reliability"]) == 4


def test_fields_of_the_model_cannot(run: Path) -> None:
    with pytest.raises(UserError, match=r"--set model\.compile=true: the model is trained already"):
        evaluate_run(run, "test", overrides=["model.compile=true"])
    assert not (run / "evaluations").exists()


def followed(run: Path, **arguments: Any) -> tuple[list[int], dict[str, Any]]:
    noted: list[Mapping[str, Any]] = []
    result = follow_run(run, "test", FEW, timeout_s=0.1, note=noted.append, **arguments)
    return [each["step"] for each in noted], result


def test_following_measures_each_checkpoint_once_and_stops_behind_the_last(run: Path) -> None:
    evaluate_run(run, "test", 40, FEW)
    steps, result = followed(run)
    assert steps == result["evaluated"] == [20, 60]
    assert result["reason"] == "finished"
    assert evaluated_steps(run, "test") == [20, 40, 60]
    assert followed(run) == ([], {**result, "evaluated": []})
    page = (run / "evaluations" / "test" / "report.html").read_text()
    assert "AUROC on test" in page  # over the evaluated steps, beside what training measured


def test_following_passes_over_a_damaged_checkpoint(run: Path) -> None:
    file = run / "checkpoints" / "step-000000040" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    steps, result = followed(run)
    assert steps == result["evaluated"] == [20, 60]
    assert (result["damaged"], result["reason"]) == ([40], "finished")


def test_the_last_step_of_epochs_is_known(trained: Path, tmp_path: Path) -> None:
    # 3,000 rows in batches of 200: 15 batches an epoch.
    ends = (f"training.save_dir={tmp_path / 'run'}", "training.num_train_steps=null", "training.num_epochs=2")
    train_ranker(read_config(trained / "config.yaml", *ends))
    assert followed(tmp_path / "run")[1] == {
        "run": str(tmp_path / "run"),
        "split": "test",
        "evaluated": [20, 30],
        "damaged": [],
        "reason": "finished",
    }
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("num_epochs: 2", "num_epochs: 3"))
    assert followed(tmp_path / "run")[1]["reason"] == "timeout"


def test_following_gives_up_in_time(run: Path) -> None:
    shutil.rmtree(run / "checkpoints" / "step-000000060")
    steps, result = followed(run)
    assert (steps, result["reason"]) == ([20, 40], "timeout")


def test_following_what_never_starts(tmp_path: Path) -> None:
    with pytest.raises(RunNotFound, match=r"no checkpoint came within 0\.1 s"):
        followed(tmp_path / "nowhere")


def test_what_is_not_there(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunNotFound, match=r"no config\.yaml there"):
        evaluate_run(tmp_path, "test")
    with pytest.raises(RunNotFound, match="step 7 was not kept; kept steps: 20, 40, 60"):
        evaluate_run(run, "test", 7)


def test_a_place_that_cannot_be_written(run: Path) -> None:
    (run / "evaluations").write_text("a file in the way")
    with pytest.raises(UserError, match=r"step-000000060\.json: cannot be written"):
        evaluate_run(run, "test", overrides=FEW)


def test_a_report_that_cannot_be_written_is_told_before_anything_is_measured(run: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    places = {
        tmp_path / "folder": "folder: is a folder",
        tmp_path / "file" / "page.html": "file: Not a directory",
        Path("/proc/new/page.html"): "cannot be written",
    }
    for place, problem in places.items():
        for measure in (evaluate_run, functools.partial(follow_run, timeout_s=0.1, note=print)):
            with pytest.raises(UserError, match=f"{problem}.*--report must name a file that can be written"):
                measure(run, "test", overrides=FEW, report=place)
    assert not (run / "evaluations").exists()
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("score_histogram", "score_histogram: Field required"),
        ("tasks.like.gauc", r"tasks\.like\.gauc: Field required"),
        ("diagrams.like", r"the file: .*diagrams of \['hide'\]"),
        ("diagrams.hide.reliability.0.ctr", r"diagrams\.hide\.reliability\.0\.ctr"),
    ],
)
def test_a_kept_evaluation_that_lacks_something(run: Path, without: str, message: str) -> None:
    evaluate_run(run, "test", overrides=FEW)
    path = run / "evaluations" / "test" / "step-000000060.json"
    result = json.loads(path.read_text())
    assert read_evaluation(run, "test", 60) == result
    *parents, last = without.split(".")
    parent = functools.reduce(lambda inner, key: inner[int(key) if key.isdecimal() else key], parents, result)
    del parent[last]
    path.write_text(json.dumps(result))
    with pytest.raises(DataError, match=rf"step-000000060\.json: {message}.*delete it and evaluate again"):
        read_evaluation(run, "test", 60)


@pytest.mark.parametrize("text", ["{", "{}", "[]", "\x00"])
def test_a_kept_evaluation_that_is_not_one(run: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is told where it is asked for, and leaves a gap in the curves of another one's report."""
    evaluate_run(run, "test", 20, FEW)
    damaged = run / "evaluations" / "test" / "step-000000020.json"
    damaged.write_text(text)
    with pytest.raises(DataError, match="delete it and evaluate again"):
        read_evaluation(run, "test", 20)
    evaluate_run(run, "test", 40, FEW)
    result = evaluate_run(run, "test", 60, FEW)
    assert f"{damaged}: " in caplog.text
    assert "AUROC on test" in Path(result["report"]).read_text()
