"""A small trained run whose metrics are worth a look: two features, two tasks, three days."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from rookery.config.loader import load_config
from rookery.ranker.config import RankerConfig

TASKS = ("like", "hide")
SCORE_WEIGHTS = {"like": 1.0, "hide": -5.0}


def write_impressions(path: Path, num_rows: int, seed: int) -> None:
    """Likes and (rare) hides whose chances two numbers tell; a few users have many rows."""
    random = np.random.default_rng(seed)
    numbers = random.normal(size=(2, num_rows)).astype(np.float32)
    like = random.random(num_rows) < 1 / (1 + np.exp(-numbers[0] + 0.5))
    hide = random.random(num_rows) < 1 / (1 + np.exp(-numbers[1] + 3))
    columns = {
        "user_id": random.geometric(0.05, num_rows),
        "country": random.choice(["de", "fr"], num_rows),
        "affinity": numbers[0],
        "annoyance": numbers[1],
        "like": like.astype(np.int8),
        "hide": hide.astype(np.int8),
    }
    pq.write_table(pa.table(columns), path)


def write_config(folder: Path, **training: Any) -> Path:
    """A configuration over ``train.parquet``, ``valid.parquet`` and ``test.parquet`` of ``folder``, made here too."""
    for seed, (name, num_rows) in enumerate({"train": 3000, "valid": 500, "test": 600}.items()):
        write_impressions(folder / f"{name}.parquet", num_rows, seed)
    tower = {"mlp_config": {"layer_sizes": [8, 1]}}
    config = {
        "runtime": {"num_threads": 1, "device": "cpu"},
        "training": {
            "save_dir": str(folder / "run"),
            "num_train_steps": 60,
            "train_log_every_n": 10,
            "checkpoint_every_n": 20,
            **training,
        },
        "keys": {"user": "user_id"},
        "labels": {task: {} for task in TASKS},
        "features": {"continuous": [{"name": "affinity"}, {"name": "annoyance"}]},
        "train_data": {"inputs": [str(folder / "train.parquet")], "batch_size": 200},
        "validation_data": {
            "valid": {"inputs": [str(folder / "valid.parquet")], "batch_size": 128},
            "test": {"inputs": [str(folder / "test.parquet")], "batch_size": 128, "during_training": False},
        },
        "model": {"tasks": dict.fromkeys(TASKS, tower), "backbone": {"mlp_config": {"layer_sizes": [16]}}},
        "optimizer": {"adam": {}, "single_task_learning_rate": {"constant": 0.02}},
        "score": {"weights": SCORE_WEIGHTS},
        "evaluation": {
            "stratifiers": [{"name": "in germany", "column": "country", "value": "de"}],
            "num_bootstrap": 20,
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def read_config(path: Path, *overrides: str) -> RankerConfig:
    return load_config(RankerConfig, path, overrides)
