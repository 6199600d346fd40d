"""``rookery ranker export``, ``explain`` and ``tune`` as a user calls them, in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from evaluated_run import TASKS, read_config, write_config

from rookery.cli import main as command_line
from rookery.config.loader import load_config
from rookery.data.stream import ParquetStream
from rookery.ranker.config import RankerConfig
from rookery.ranker.export import RankerExport
from rookery.ranker.run import load_run
from rookery.ranker.train import train_ranker

KEEP_BEST = {"metric": "valid/mean/auroc", "mode": "max"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tools")
    train_ranker(read_config(write_config(folder, num_train_steps=40)))
    return folder / "run"


@pytest.fixture
def rookery(capsys, monkeypatch):
    """Exit code, stdout and stderr of ``rookery ranker arguments``."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["rookery", "ranker", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            command_line.main()
        return int(done.value.code or 0), *capsys.readouterr()

    return call


@pytest.mark.parametrize("form", ["torch", "onnx"])
def test_an_export_is_told_and_predicts(rookery, run, tmp_path, form):
    code, out, _ = rookery("export", run, tmp_path / "out", "--format", form, "--json")
    result = json.loads(out)
    assert code == 0
    assert (result["format"], result["step"], result["tasks"]) == (form, 40, list(TASKS))
    assert result["proof"]["num_rows"] == 500
    assert result["bytes"] == sum(file.stat().st_size for file in files_of(tmp_path / "out"))
    export = RankerExport.open(tmp_path / "out")
    columns = next(ParquetStream([run.parent / "test.parquet"], export.requests(), 600, seed=0, shuffle=False))
    expected = load_run(run).predict(columns)
    torch.testing.assert_close(export.predict(columns).probabilities, expected, rtol=0, atol=1e-5)


def files_of(export: Path):
    return [file for file in export.rglob("*") if file.is_file() and file != export / "manifest.json"]


def test_an_export_for_people(rookery, run, tmp_path):
    code, out, _ = rookery("export", run, tmp_path / "out", "--rows", run.parent / "test.parquet")
    assert code == 0
    for words in ("torch", "like, hide", "proof.num_rows", "600", "test.parquet"):
        assert words in out.replace("\n", "")


def test_an_export_that_exists_stays(rookery, run, tmp_path):
    rookery("export", run, tmp_path / "out")
    code, out, err = rookery("export", run, tmp_path / "out")
    assert (code, out) == (2, "")
    assert "--overwrite" in err
    assert rookery("export", run, tmp_path / "out", "--overwrite")[0] == 0


def test_explanations_are_sorted_json(rookery, run):
    code, out, _ = rookery("explain", run, "--split", "test", "--rows", 300, "--repeats", 2, "--json")
    result = json.loads(out)
    assert code == 0
    assert (result["split"], result["num_rows"], result["num_repeats"], result["step"]) == ("test", 300, 2, 40)
    rises = [feature["logloss_rise"]["mean"] for feature in result["features"]]
    assert rises == sorted(rises, reverse=True)
    assert {feature["name"] for feature in result["features"]} == {"affinity", "annoyance"}
    assert set(result["features"][0]["tasks"]) == set(result["quality"]) == set(TASKS)


def test_explanations_for_people(rookery, run):
    code, out, _ = rookery("explain", run, "--rows", 300)
    assert code == 0
    for words in ("Permuted 3 times on 300 rows of valid", "affinity", "like", "±", "positives"):
        assert words in out


def test_an_unknown_partition_is_wrong_usage(rookery, run):
    code, out, err = rookery("explain", run, "--split", "tset")
    assert (code, out) == (2, "")
    assert "did you mean 'test'?" in err


@pytest.fixture
def study(tmp_path):
    """Arguments of a study of four short trials."""
    config = write_config(tmp_path, num_train_steps=20, validate_every_n=10, keep_best=KEEP_BEST, train_log_every_n=20)
    space = tmp_path / "space.yaml"
    space.write_text(
        "fields:\n"
        "  optimizer.single_task_learning_rate.constant: {low: 1.0e-4, high: 0.1, log: true}\n"
        "  model.backbone.mlp_config.layer_sizes: {choices: [[4], [8, 8]]}\n"
        "pruning: {num_startup_trials: 1}\n"
    )
    return ["tune", config, "--space", space, "--study", tmp_path / "study", "--trials", 4]


def test_a_study_trains_and_writes_the_best_configuration(rookery, study, tmp_path):
    code, out, err = rookery(*study, "--json")
    result = json.loads(out)
    assert code == 0
    assert "trial 3: " in err
    finished = [trial for trial in result["trials"] if trial["state"] == "finished"]
    assert result["best"] == max(finished, key=lambda trial: trial["value"])
    best = load_config(RankerConfig, Path(result["best_config"]))
    assert best.training.save_dir == tmp_path / "run"
    values = result["best"]["fields"]
    assert list(best.model.backbone.mlp_config.layer_sizes) == values["model.backbone.mlp_config.layer_sizes"]
    # Its run is whole: what the study says of it is what its metrics say.
    lines = [json.loads(line) for line in (Path(result["best_run"]) / "metrics.jsonl").read_text().splitlines()]
    by_step = {
        line["step"]: line["validation/valid/mean/auroc"] for line in lines if "validation/valid/mean/auroc" in line
    }
    assert result["best"]["value"] == max(by_step.values())
    assert load_run(Path(result["best_run"])).step == result["best"]["step"]
    pruned = [trial for trial in result["trials"] if trial["state"] == "pruned"]
    for trial in pruned:
        assert not (tmp_path / "study" / "trials" / f"{trial['number']:05d}" / "checkpoints").exists()
    assert "validation/test" not in json.dumps(lines)


def test_a_study_that_has_ended_is_told_again(rookery, study):
    first = json.loads(rookery(*study, "--json")[1])
    code, out, err = rookery(*study)
    assert code == 0
    assert "trial 0:" not in err
    for words in ("valid/mean/auroc (max)", "layer_sizes", "finished", f"best: trial {first['best']['number']}"):
        assert words in out


def test_a_wrong_space_is_wrong_usage(rookery, study, tmp_path):
    (tmp_path / "space.yaml").write_text("fields: {optimizer.adm.beta_1: {choices: [0.5]}}")
    code, out, err = rookery(*study)
    assert (code, out) == (2, "")
    assert "did you mean 'adam'?" in err
    assert not (tmp_path / "study").exists()
