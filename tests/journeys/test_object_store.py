"""Both models with everything in a bucket: data, the graph, the run; begun on one machine, gone on with on another."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
import pytest
import yaml
from planted_impressions import planted_config, planted_log, write_log
from small_graph import config_data, one_thread, planted_splits, write_graph
from stores import BUCKET, OFFLINE, s3_server, store_environment, upload
from survived_runs import assert_equal, final_tensors

from rookery.checkpoint.layout import checkpoint_steps
from rookery.cli.main import app
from rookery.cli.output import run_command
from rookery.config.loader import dump_config
from rookery.storage.location import RemotePath
from rookery.storage.remote import files_under
from rookery.train.evaluations import evaluated_steps, evaluation_path


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with s3_server() as environment:
        yield environment


@pytest.fixture
def bucket(server) -> RemotePath:
    return RemotePath("s3", BUCKET) / uuid.uuid4().hex


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


def run(cache: Path, *arguments: object) -> Done:
    """A command, as on a machine whose cache is ``cache``; in this process, that the servers are in, too."""
    out, err = io.StringIO(), io.StringIO()
    with mock.patch.dict(os.environ, ROOKERY_CACHE=str(cache)), redirect_stdout(out), redirect_stderr(err):
        code = run_command(lambda: app([*map(str, arguments)], standalone_mode=False))
    return Done(code, out.getvalue(), err.getvalue())


def report(cache: Path, *arguments: object) -> dict[str, Any]:
    done = run(cache, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_same_weights(here: Path, there: Path) -> None:
    assert_equal(final_tensors(here), final_tensors(there))


def test_twhin_from_bucket_to_bucket(bucket, tmp_path):
    graph = write_graph(tmp_path / "graph", planted_splits(), num_files=2)
    upload(tmp_path / "graph", bucket / "graph")
    fields = {
        "training.num_train_steps": 20,
        "training.checkpoint_every_n": 4,
        "training.checkpoint_max_to_keep": 2,
        "train_data.buffer_rows": 60,
    }
    whole = tmp_path / "whole.yaml"
    whole.write_text(yaml.safe_dump(config_data(graph, tmp_path / "whole", fields)))
    report(tmp_path / "a", "twhin", "train", whole)

    run_url = bucket / "run"
    there = {**fields, "graph": f"{bucket}/graph", "training.publish": str(run_url), "train_data.data_root": None}
    config = tmp_path / "there.yaml"
    config.write_text(yaml.safe_dump(config_data(graph, tmp_path / "first", there)))
    limit = ("--set", "training.num_train_steps=10")
    assert report(tmp_path / "a", "twhin", "train", config, *limit)["step"] == 10
    # Another machine: nothing but the configuration.
    second = report(tmp_path / "b", "twhin", "train", config, "--save-dir", tmp_path / "second")
    assert (second["step"], second["reason"]) == (20, "finished")
    assert checkpoint_steps(tmp_path / "second") == [16, 20]
    assert_same_weights(tmp_path / "whole", tmp_path / "second")
    assert {name.split("/")[1] for name in files_under(run_url) if name.startswith("checkpoints/")} == {
        "step-000000016",
        "step-000000020",
    }

    here = report(tmp_path / "c", "twhin", "evaluate", tmp_path / "second", "--split", "valid")
    fetched = report(tmp_path / "c", "twhin", "evaluate", run_url, "--split", "valid", "--checkpoint", "latest")
    assert fetched["metrics"] == here["metrics"]
    followed = report(tmp_path / "d", "twhin", "evaluate", run_url, "--split", "valid", "--follow")
    assert (followed["run"], followed["evaluated"], followed["reason"]) == (str(run_url), [16, 20], "finished")
    copy = tmp_path / "d" / "s3" / run_url.key
    assert evaluated_steps(copy, "valid") == [16, 20]
    measured = json.loads(evaluation_path(copy, "valid", 20).read_text())
    assert measured["metrics"] == here["metrics"]
    report(tmp_path / "c", "twhin", "export", run_url, tmp_path / "vectors")
    upload(tmp_path / "vectors", bucket / "vectors")
    neighbors = [
        report(tmp_path / "c", "twhin", "neighbors", source, "--id", "user-1", "--type", "user", "-k", 3)["neighbors"]
        for source in (tmp_path / "second", bucket / "vectors", run_url)
    ]
    assert neighbors[0] == neighbors[1] == neighbors[2]

    for name, earlier in (("warm", run_url), ("warm-here", tmp_path / "second")):
        fields = {"graph": f"{bucket}/graph", "training.initial_checkpoint_dir": str(earlier)}
        config.write_text(
            yaml.safe_dump(config_data(graph, tmp_path / name, {**fields, "training.num_train_steps": 1}))
        )
        report(tmp_path / "c", "twhin", "train", config)
    assert_same_weights(tmp_path / "warm", tmp_path / "warm-here")
    moved = (
        final_tensors(tmp_path / "warm")["model/table.item"] - final_tensors(tmp_path / "second")["model/table.item"]
    )
    assert moved.norm() < final_tensors(tmp_path / "second")["model/table.item"].norm() / 2


def test_the_ranker_from_bucket_to_bucket(bucket, tmp_path):
    log = tmp_path / "log"
    write_log(log, planted_log(2_000))
    upload(log, bucket / "log")
    common = {"training__checkpoint_every_n": 10, "training__checkpoint_max_to_keep": 1, "calibration": None}
    whole = tmp_path / "whole.yaml"
    whole.write_text(dump_config(planted_config(log, tmp_path / "whole", **common)))
    report(tmp_path / "a", "ranker", "train", whole)

    run_url = bucket / "run"
    place = Path("log")
    settings = planted_config(place, tmp_path / "first", **common, training__publish=str(run_url))
    text = dump_config(settings).replace("- log\n", f"- {bucket}/log\n")
    assert text.count(f"{bucket}/log") == 3
    config = tmp_path / "there.yaml"
    config.write_text(text)
    report(tmp_path / "a", "ranker", "train", config, "--set", "training.num_train_steps=15")
    second = report(tmp_path / "b", "ranker", "train", config, "--save-dir", tmp_path / "second")
    assert second["step"] == 30
    assert_same_weights(tmp_path / "whole", tmp_path / "second")

    here = report(tmp_path / "c", "ranker", "evaluate", tmp_path / "second")
    fetched = report(tmp_path / "c", "ranker", "evaluate", run_url)
    assert fetched["tasks"] == here["tasks"]
    followed = report(tmp_path / "d", "ranker", "evaluate", run_url, "--follow", "--timeout", 5)
    assert (followed["run"], followed["evaluated"], followed["reason"]) == (str(run_url), [30], "finished")
    copy = tmp_path / "d" / "s3" / run_url.key
    measured = json.loads(evaluation_path(copy, "test", 30).read_text())
    assert measured["tasks"] == here["tasks"]
    assert (copy / "evaluations" / "test" / "report.html").exists()
    again = report(tmp_path / "d", "ranker", "evaluate", run_url, "--follow", "--timeout", 5)
    assert (again["evaluated"], again["reason"]) == ([], "finished")
    for name, source in (("here", tmp_path / "second"), ("there", run_url)):
        report(tmp_path / "c", "ranker", "score", source, log, tmp_path / f"{name}.parquet")
    assert pq.read_table(tmp_path / "here.parquet").equals(pq.read_table(tmp_path / "there.parquet"))


def test_an_evaluator_of_the_ranker_beside_training(bucket, tmp_path, monkeypatch):
    """It is there before the run is, on another machine, and measures each checkpoint as it is published."""
    monkeypatch.setattr("rookery.train.follow._LIST_EVERY_S", 0.05)
    log = tmp_path / "log"
    write_log(log, planted_log(900))
    fields = {"training__num_train_steps": 6, "training__checkpoint_every_n": 2}
    config = tmp_path / "config.yaml"
    settings = planted_config(log, tmp_path / "run", **fields, training__publish=str(bucket / "run"))
    config.write_text(dump_config(settings))
    environment = {**os.environ, "ROOKERY_CACHE": str(tmp_path / "a")}
    command = [sys.executable, "-m", "rookery", "ranker", "train", str(config)]
    trainer = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        evaluate = ("ranker", "evaluate", bucket / "run", "--follow", "--split", "valid", "--timeout", 60)
        done = run(tmp_path / "cache", *evaluate, "--json")
        _, err = trainer.communicate(timeout=60)
    finally:
        trainer.kill()
    assert (trainer.returncode, done.returncode) == (0, 0), err + done.stderr
    followed = json.loads(done.stdout)
    assert (followed["evaluated"], followed["reason"]) == ([2, 4, 6], "finished")
    here = report(tmp_path / "b", "ranker", "evaluate", tmp_path / "run", "--split", "valid", "--checkpoint", 4)
    copy = tmp_path / "cache" / "s3" / (bucket / "run").key
    assert json.loads(evaluation_path(copy, "valid", 4).read_text())["tasks"] == here["tasks"]


def test_what_cannot_be_reached_ends_with_2_and_the_remedy(bucket, server, tmp_path):
    graph = write_graph(tmp_path / "graph", planted_splits())
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(config_data(graph, tmp_path / "run")))
    absent = f"s3://no-such-{BUCKET}/run"
    for arguments, said in (
        (("twhin", "evaluate", absent), "there is no bucket 'no-such-birds'; correct the URL or make the bucket"),
        (("twhin", "evaluate", f"{bucket}/none"), "nothing there; name the training.publish of a run"),
        (("twhin", "evaluate", "ftp://a/b"), "RUN ftp://a/b: must be a path, or a URL such as s3://BUCKET/FOLDER"),
        (("twhin", "evaluate", absent, "--follow"), "there is no bucket 'no-such-birds'"),
        (("twhin", "train", config, "--set", f"training.publish={absent}"), "there is no bucket 'no-such-birds'"),
        (("twhin", "train", config, "--set", f"graph={bucket}/none"), "none/manifest.json: no such object"),
    ):
        done = run(tmp_path / "cache", *arguments)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    with store_environment("s3", OFFLINE):
        done = run(tmp_path / "cache", "twhin", "evaluate", f"{bucket}/run")
    assert done.returncode == 2
    assert "access is refused" in done.stderr
    assert "AWS_ACCESS_KEY_ID" in done.stderr
    assert not (tmp_path / "run").exists()
