"""The heavy ranker as a user runs it: from a log to scores on the command line, and through a death on the way."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from forked_commands import TIMEOUT_S
from planted_impressions import (
    DAY_US,
    FIRST_DAY_US,
    NUM_DAYS,
    OUTCOMES,
    TASKS,
    planted_config,
    planted_log,
    write_log,
    write_vectors,
)
from sklearn.metrics import roc_auc_score
from survived_runs import assert_same_run, require_survived
from training_jobs import Job, run_whole

from rookery.config.loader import load_config
from rookery.ranker.config import RankerConfig

NUM_STEPS = 120


def rookery(*arguments: object) -> str:
    """Run a command in a process of its own; what it printed."""
    command = [sys.executable, "-m", "rookery", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def report(*arguments: object) -> dict[str, Any]:
    return json.loads(rookery(*arguments, "--json"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which ``init`` and ``train`` have run on the planted log, as the page says."""
    folder = tmp_path_factory.mktemp("journey")
    write_log(folder / "log", planted_log(9_000))
    labels = [argument for task in TASKS for argument in ("--label", task)]
    keys = ("--user", "user_id", "--item", "item_id", "--time", "time")
    (folder / "config.yaml").write_text(rookery("ranker", "init", folder / "log", *labels, *keys))
    result = report("ranker", "train", folder / "config.yaml", "--save-dir", folder / "run")
    assert result["reason"] == "finished"
    assert result["best_step"] is not None
    return folder


@pytest.mark.slow
def test_what_init_writes_uses_no_outcome(trained: Path) -> None:
    features = load_config(RankerConfig, trained / "config.yaml").features
    groups = (features.continuous, features.binary, features.dense, features.discrete, features.ragged)
    columns = {feature.source for group in groups for feature in group}
    assert columns & {*OUTCOMES, *TASKS} == set()
    assert {"user_id", "item_id", "country", "category", "recent_items", "stats", "is_follower"} <= columns


@pytest.mark.slow
def test_the_trained_model_ranks_nearly_as_well_as_the_truth(trained: Path) -> None:
    """Half of the way from chance to the true probabilities, at least, on a day that nothing was chosen by."""
    log = planted_log(9_000)
    times = log.table["time"].cast(pa.int64()).to_numpy()
    test = times >= FIRST_DAY_US + (NUM_DAYS - 1) * DAY_US
    found = report("ranker", "evaluate", trained / "run", "--split", "test")["tasks"]
    for task in TASKS:
        truth = roc_auc_score(log.labels(task)[test], log.probabilities[task][test])
        assert found[task]["auroc"] - 0.5 > 0.5 * (truth - 0.5)
        assert found[task]["count"] == test.sum()
    assert found["click"]["calibration"] == pytest.approx(1, abs=0.1)
    assert found["click"]["ece"] < 0.05


@pytest.mark.slow
def test_scores_of_the_test_day_are_what_was_evaluated(trained: Path) -> None:
    rows = planted_log(9_000).table
    rows = rows.filter(pa.array(rows["time"].cast(pa.int64()).to_numpy() >= FIRST_DAY_US + (NUM_DAYS - 1) * DAY_US))
    pq.write_table(rows.drop_columns([*TASKS, *OUTCOMES, "position"]), trained / "day.parquet")
    result = report("ranker", "score", trained / "run", trained / "day.parquet", trained / "scores.parquet")
    scores = pq.read_table(trained / "scores.parquet")
    assert result["num_rows"] == scores.num_rows == rows.num_rows
    evaluated = report("ranker", "evaluate", trained / "run", "--split", "test")
    assert result["step"] == evaluated["step"]
    for task in TASKS:
        probabilities = scores[f"probability.{task}"].to_numpy()
        area = roc_auc_score(rows[task].to_numpy(), probabilities)
        assert evaluated["tasks"][task]["auroc"] == pytest.approx(area, abs=1e-9)
        assert evaluated["tasks"][task]["mean_prediction"] == pytest.approx(
            probabilities.mean(dtype=np.float64), rel=1e-6
        )


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Every kind of state at once: two optimizers, schedules, a table and joined vectors that move in the backward
    pass, batch normalisation, dropout, learned task weights, averaged weights, down-sampling, accumulated batches.
    """
    folder = tmp_path_factory.mktemp("stateful")
    log = planted_log()
    write_log(folder / "log", log)
    ramp = {"learning_rate": 0.01, "final_learning_rate": 0, "num_ramp_steps": 20, "final_num_steps": NUM_STEPS}
    schedule = {"linear_ramp_to_cosine": ramp}
    dropout = {"batch_norm": {}, "dropout": {"rate": 0.2}}
    config = planted_config(folder / "log", folder / "unused", write_vectors(folder / "vectors", log))
    changed = config.model_dump(mode="json")
    changed["training"] |= {
        "num_train_steps": NUM_STEPS,
        "train_log_every_n": 2,
        "checkpoint_every_n": 7,
        "checkpoint_max_to_keep": 2,
        "gradient_accumulation": 2,
        "validate_every_n": 30,
        "keep_best": {"metric": "valid/mean/logloss", "mode": "min"},
    }
    changed["train_data"] |= {"buffer_rows": 500}
    changed["preprocess"] |= {"downsample_negatives": {"batch_multiplier": 2.0, "engagements_list": ["like", "share"]}}
    changed["features"]["tables"][3] |= {"dropout": 0.2, "optimizer": {"adam": {}, "learning_rate": schedule}}
    changed["features"]["embeddings"][0] |= {"trainable": True, "optimizer": {"rowwise_adagrad": {}}}
    changed["model"] |= {
        "backbone": {"mask_net_config": {"mask_blocks": [{"output_size": 8, "aggregation_size": 6}] * 2}},
        "tasks": {task: {"mlp_config": {"layer_sizes": [8, 1], **dropout}} for task in TASKS},
        "featurization_config": {"double_norm_log_config": {}},
    }
    changed["loss"] = {"grad_norm": {}}
    changed["calibration"] = {"partition": "valid"}
    rates = {"backbone_learning_rate": schedule, "tower_learning_rates": dict.fromkeys(TASKS, schedule)}
    changed["optimizer"] = {"adamw": {}, "multi_task_learning_rates": rates, "average": {"decay": 0.9}}
    return run_whole(folder, RankerConfig.model_validate(changed))


@pytest.mark.slow
def test_kill_minus_nine_at_random_moments_costs_no_bit(job: Job, tmp_path: Path) -> None:
    chance = random.Random(20260)
    job.kill_and_run(tmp_path / "killed", sorted(chance.randint(0, NUM_STEPS - 10) for _ in range(3)))
    require_survived(tmp_path / "killed", job.whole, to_the_bit=True)
    calibrations = [
        {path.name: path.read_bytes() for path in (run / "calibration").iterdir()}
        for run in (tmp_path / "killed", job.whole)
    ]
    assert calibrations[0] == calibrations[1] != {}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_parameters(job: Job, tmp_path: Path) -> None:
    job.run(tmp_path / "again")
    assert_same_run(tmp_path / "again", job.whole)
