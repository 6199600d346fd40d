"""``rookery data convert-tfrecord`` and ``generate-reference`` in this process, and a training on what they make."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from rookery.cli import main as command_line
from rookery.data.reference_records import reference_columns
from rookery.storage.location import as_remote
from rookery.storage.remote import delete, put

CONTINUOUS = "continuous=home_recap_2022_cont__segdense_vals"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Exit code, stdout, stderr of ``rookery arguments``."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["rookery", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            command_line.main()
        out, err = capsys.readouterr()
        return int(done.value.code or 0), out, err

    return run


@pytest.fixture
def generated(run, tmp_path: Path) -> Path:
    code, out, err = run("data", "generate-reference", tmp_path / "random", "--num-examples", 40, "--num-files", 2)
    assert code == 0, err
    assert f"40 records: {tmp_path}/random/random-00000.tfrecord.gz and 1 more" in " ".join(out.split())
    return tmp_path / "random"


def test_what_is_generated_is_converted(run, generated: Path, tmp_path: Path) -> None:
    flags = ("--schema", generated / "segdense.json", "--rename", CONTINUOUS, "--mask-mantissa", "continuous=16")
    code, out, err = run("data", "convert-tfrecord", generated, tmp_path / "log", *flags, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert (result["num_records"], [file["num_records"] for file in result["files"]]) == (40, [20, 20])
    table = pq.read_table(tmp_path / "log" / "00000-00000.parquet")
    theirs = [column.name for column in reference_columns()]
    assert table.column_names == [name.replace(CONTINUOUS.partition("=")[2], "continuous") for name in theirs]
    assert (table["continuous"].combine_chunks().flatten().to_numpy().view("u4") & 0xFFFF).max() == 0
    code, out, err = run("data", "convert-tfrecord", generated, tmp_path / "log", *flags)
    assert (code, out) == (2, "")
    assert "log: exists; choose another name, or pass --overwrite to replace it" in err
    code, out, _ = run("data", "convert-tfrecord", generated, tmp_path / "log", *flags, "--overwrite")
    assert code == 0
    assert "40 records in" in out


def test_days_and_hours_are_converted(run, generated: Path, tmp_path: Path) -> None:
    for folder in ("2022/05/03", "2022/05/04", "2022/05/04/23"):
        (tmp_path / "log" / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(generated / "random-00000.tfrecord.gz", tmp_path / "log" / folder)
    schema = ("--schema", generated / "segdense.json", "--json")
    days = ("--end-date", "2022/05/04", "--days", 3)
    code, _, err = run("data", "convert-tfrecord", tmp_path / "log", tmp_path / "out", *days, *schema)
    assert code == 2
    assert "no files (.gz, .tfrecord, .tfrecords) for 1 of 3: 2022/05/02; bring them, correct the dates" in err
    code, out, err = run(
        "data", "convert-tfrecord", tmp_path / "log", tmp_path / "out", *days, "--num-missing-days-tol", 1, *schema
    )
    assert code == 0, err
    assert json.loads(out)["num_records"] == 40
    hours = ("--end-datetime", "2022/05/04/23")
    code, out, err = run("data", "convert-tfrecord", tmp_path / "log", tmp_path / "hour", *hours, *schema)
    assert code == 0, err
    assert json.loads(out)["num_records"] == 20


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--rename", "continuous"), "--rename continuous: must be two names with = between them"),
        (("--mask-mantissa", "a=many"), "--mask-mantissa a=many: must be a whole number from 0 to 23"),
        (("--mask-mantissa", "a=24"), "the command line: mask_mantissa_features.a=24: "),
        (("--rename", "a=b"), "renamed_features.a=b: "),
        (("--end-date", "today"), "the command line: end_date=today: must be a day, as in 2022/05/04 or 2022-05-04"),
        (("--end-date", "2022/05/04", "--days", 100_000_000), "days=100000000: "),
        (("--end-datetime", "2022/05/04/01", "--hours", 100_000_000), "hours=100000000: "),
        (("--end-date", "0001/01/01", "--days", 2), "begins before the year 1; take a later end_date or fewer days"),
        (("--end-date", "2022/05/04", "--end-datetime", "2022/05/04/01"), "--end-date and --end-datetime exclude"),
    ],
)
def test_flags_that_mean_nothing_are_refused(run, tmp_path: Path, generated: Path, flags, message) -> None:
    schema = ("--schema", generated / "segdense.json")
    code, out, err = run("data", "convert-tfrecord", generated, tmp_path / "out", *schema, *flags)
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "out").exists()


def ranker_config(folder: Path, partition: dict[str, Any]) -> Path:
    """A small ranker on the features of 2022."""
    tower = {"mlp_config": {"layer_sizes": [4, 1]}}
    config = {
        "training": {"save_dir": str(folder / "run"), "num_train_steps": 3, "validate_every_n": 3},
        "runtime": {"device": "cpu"},
        "keys": {"user": "meta.user_id"},
        "labels": {"fav": {"column": "recap.engagement.is_favorited"}},
        "features": {
            "continuous": [{"name": "continuous", "width": 6000}],
            "binary": [{"name": "binary", "width": 512}],
        },
        "preprocess": {"truncate_and_slice": [{"feature": "continuous", "truncation": 20}]},
        "train_data": partition,
        "validation_data": {"valid": partition},
        "model": {"tasks": {"fav": tower}, "multi_task_type": "share_none"},
        "optimizer": {"adam": {}, "single_task_learning_rate": {"constant": 0.01}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


def test_the_schema_beside_the_records_is_taken(run, generated: Path, tmp_path: Path) -> None:
    for number, place in enumerate((generated, generated / "*.gz", generated / "random-00001.tfrecord.gz")):
        code, out, err = run("data", "convert-tfrecord", place, tmp_path / f"log{number}", "--json")
        assert code == 0, err
        assert json.loads(out)["num_records"] == (20 if number == 2 else 40)
    for file in generated.iterdir():
        put(file, as_remote(f"memory://birds/{file.name}"))
    code, _, err = run("data", "convert-tfrecord", "memory://birds", tmp_path / "bucket")
    assert code == 0, err
    delete(as_remote("memory://birds/segdense.json"))
    code, _, err = run("data", "convert-tfrecord", "memory://birds", tmp_path / "other")
    assert (code, "memory://birds: has no segdense.json beside its records" in err) == (2, True)
    (generated / "segdense.json").rename(tmp_path / "schema.json")
    code, _, err = run("data", "convert-tfrecord", generated, tmp_path / "other")
    assert code == 2
    assert "has no segdense.json beside its records; name their schema with --schema, or with --config" in err


def test_a_configuration_says_how_to_read_the_records(run, generated: Path, tmp_path: Path) -> None:
    described = {
        "schema_path": str(generated / "segdense.json"),
        "renamed_features": dict([CONTINUOUS.split("=")], binary="home_recap_2022_binary__segdense_vals"),
        "mask_mantissa_features": {"continuous": 16},
    }
    config = ranker_config(tmp_path, {"inputs": ["nowhere"], "records": described})
    flags = ("--config", config, "--rename", "user=meta.user_id")
    code, _, err = run("data", "convert-tfrecord", generated, tmp_path / "log", *flags)
    assert code == 0, err
    table = pq.read_table(tmp_path / "log" / "00000-00000.parquet")
    assert {"continuous", "binary", "user"} <= set(table.column_names)
    assert (table["continuous"].combine_chunks().flatten().to_numpy().view("u4") & 0xFFFF).max() == 0
    (generated / "segdense.json").rename(tmp_path / "schema.json")
    more = ("--schema", tmp_path / "schema.json", "--set", "train_data.records.mask_mantissa_features={}")
    code, _, err = run("data", "convert-tfrecord", generated, tmp_path / "other", *flags, *more)
    assert code == 0, err
    bits = pq.read_table(tmp_path / "other" / "00000-00000.parquet")["continuous"].combine_chunks().flatten()
    assert (bits.to_numpy().view("u4") & 0xFFFF).max() > 0
    code, _, err = run(
        "data", "convert-tfrecord", generated, tmp_path / "x", *flags, "--set", "train_data.records=null"
    )
    assert code == 2
    assert "has no train_data.records; name one that trains on records, or --schema" in err
    code, _, err = run("data", "convert-tfrecord", generated, tmp_path / "x", "--set", "train_data.records=null")
    assert code == 2
    assert "--set names fields of a configuration; give it with --config" in err


def test_places_without_records_are_named(run, tmp_path: Path, generated: Path) -> None:
    schema = ("--schema", generated / "segdense.json")
    code, _, err = run("data", "convert-tfrecord", tmp_path / "nowhere", tmp_path / "out", *schema)
    assert code == 2
    assert "nowhere: no file of records there; name a file, a folder or a glob" in err


def test_a_ranker_trains_on_what_is_generated(run, tmp_path: Path, generated: Path) -> None:
    partition = {
        "inputs": [str(generated / "*.gz")],
        "records": {
            "schema_path": str(generated / "segdense.json"),
            "renamed_features": dict([CONTINUOUS.split("=")], binary="home_recap_2022_binary__segdense_vals"),
            "index_dir": str(tmp_path / "index"),
        },
        "batch_size": 16,
    }
    config = ranker_config(tmp_path, partition)
    code, out, err = run("ranker", "train", config, "--json")
    assert code == 0, err
    assert json.loads(out)["step"] == 3
    code, out, err = run("ranker", "evaluate", tmp_path / "run", "--split", "valid", "--json")
    assert code == 0, err
    assert json.loads(out)["num_rows"] == 40
