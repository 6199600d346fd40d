"""Files of twitter/the-algorithm-ml, taken as they are: its configurations train through the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reference_configs import SCHEMA, TASKS, TWHIN_YAML, ranker_yaml

SMALL = (
    "model.backbone.mask_net_config.mask_blocks=[{output_size: 8, aggregation_size: 4}]",
    "model.backbone.mask_net_config.mlp.layer_sizes=[8]",
    "model.tasks.*.mlp_config.layer_sizes=[4, 1]",
    "training.num_train_steps=4",
    "training.checkpoint_every_n=2",
    "training.validate_every_n=2",
    "training.num_eval_steps=1",
)


def rookery(home: Path, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command where ``HOME`` and ``TML_BASE`` are ``home``."""
    environment = {**os.environ, "HOME": str(home), "TML_BASE": str(home)}
    command = [sys.executable, "-m", "rookery", *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stderr
    return result


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Records, their schema where the configuration looks for it, and the configuration."""
    rookery(tmp_path, "data", "generate-reference", tmp_path / "records", "--num-examples", 300)
    (tmp_path / SCHEMA).parent.mkdir(parents=True)
    shutil.copy(tmp_path / "records" / "segdense.json", tmp_path / SCHEMA)
    (tmp_path / "local_prod.yaml").write_text(ranker_yaml())
    return tmp_path


def log_lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def check_run(run: Path, num_steps: int, every_n: int) -> None:
    """Every step has a finite loss, every checkpoint a measurement on each partition."""
    lines = log_lines(run)
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert list(losses) == list(range(1, num_steps + 1))
    assert np.isfinite(list(losses.values())).all()
    steps = [str(step) for step in range(every_n, num_steps + 1, every_n)]
    assert [path.name.lstrip("step-0") for path in sorted((run / "checkpoints").iterdir())] == steps
    validated = [line for line in lines if any(name.startswith("validation/") for name in line)]
    assert [str(line["step"]) for line in validated] == steps
    for line in validated:
        for partition, tasks in {"validation": TASKS, "train": TASKS, **{task: (task,) for task in TASKS}}.items():
            prefix = f"validation/{partition}/"
            measured = {name for name in line if name.startswith(prefix) and name.endswith("/logloss")}
            assert measured == {f"{prefix}{task}/logloss" for task in (*tasks, "mean")}


def test_the_heavy_rankers_configuration_trains_on_random_records(home: Path) -> None:
    overrides = [argument for field in SMALL for argument in ("--set", field)]
    result = rookery(home, "ranker", "train", home / "local_prod.yaml", *overrides, "--json")
    assert json.loads(result.stdout)["step"] == 4
    assert f"{home / 'local_prod.yaml'}: training.eval_timeout_in_s: " in result.stderr
    check_run(home / "runs" / "recap", num_steps=4, every_n=2)
    found = rookery(home, "ranker", "evaluate", home / "runs" / "recap", "--split", TASKS[0], "--json")
    assert set(json.loads(found.stdout)["tasks"]) == {TASKS[0]}


def test_records_that_were_converted_train_by_the_same_configuration(home: Path) -> None:
    file, log = home / "local_prod.yaml", home / "log"
    rookery(home, "data", "convert-tfrecord", home / "records", log, "--config", file)
    parquet = [
        f"{field}.{value}"
        for field in ("train_data", "validation_data.*")
        for value in (f"inputs=[{log}]", "records=null")
    ]
    overrides = [argument for field in (*SMALL, *parquet) for argument in ("--set", field)]
    rookery(home, "ranker", "train", file, *overrides)
    check_run(home / "runs" / "recap", num_steps=4, every_n=2)


def test_paths_that_do_not_exist_are_told_with_the_override(home: Path) -> None:
    (home / "records").rename(home / "elsewhere")
    result = rookery(home, "ranker", "train", home / "local_prod.yaml", code=2)
    assert "--set 'train_data.inputs=[PATH]' --set 'validation_data.*.inputs=[PATH]'" in result.stderr
    assert not (home / "runs").exists()
    (home / SCHEMA).unlink()
    result = rookery(home, "ranker", "train", home / "local_prod.yaml", code=2)
    assert "--set train_data.records.schema_path=PATH" in result.stderr


@pytest.mark.long
def test_the_production_network_trains_on_random_records(home: Path) -> None:
    rookery(home, "ranker", "train", home / "local_prod.yaml")
    check_run(home / "runs" / "recap", num_steps=20, every_n=10)


def test_twhins_configuration_trains_on_random_edges(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "edges").mkdir()
    for part in range(2):
        columns = {"lhs": random.integers(0, 4241, 1700), "rel": random.integers(0, 3, 1700)}
        columns["rhs"] = random.integers(0, 725, 1700)
        pq.write_table(pa.table(columns), tmp_path / "edges" / f"part-{part}.parquet")
    (tmp_path / "local.yaml").write_text(TWHIN_YAML)
    result = rookery(tmp_path, "twhin", "train", tmp_path / "local.yaml", "--json")
    assert json.loads(result.stdout)["step"] == 5 * 7  # five epochs of 3,400 edges in batches of 500, the last short
    assert "train_data.limit: " in result.stderr
    losses = [line["loss"] for line in log_lines(tmp_path / "model") if "loss" in line]
    assert len(losses) == 4 and np.isfinite(losses).all()
    (tmp_path / "edges").rename(tmp_path / "elsewhere")
    result = rookery(tmp_path, "twhin", "train", tmp_path / "local.yaml", "--save-dir", tmp_path / "other", code=2)
    assert "--set train_data.data_root=PATH" in result.stderr
