"""A small impression log as records of tf.Example, its configuration, and the same log as Parquet."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import naive_records as naive
import numpy as np

from rookery.config.loader import parse_config
from rookery.data.files_config import RecordsConfig
from rookery.data.record_convert import convert_records
from rookery.data.tfrecord import framed
from rookery.ranker.config import RankerConfig

SCHEMA = [
    {"dtype": "float_list", "feature_name": "all.continuous", "length": 6},
    {"dtype": "int64_list", "feature_name": "binary", "length": 4},
    {"dtype": "int64_list", "feature_name": "item", "length": 1},
    {"dtype": "int64_list", "feature_name": "seen", "length": -1},
    {"dtype": "bytes_list", "feature_name": "user", "length": 1},
    {"dtype": "int64_list", "feature_name": "day", "length": 1},
    {"dtype": "int64_list", "feature_name": "is.click", "length": 1},
    {"dtype": "float_list", "feature_name": "like", "length": 1},
]
RENAMED = {"continuous": "all.continuous", "click": "is.click"}


def record(random: np.random.Generator, number: int) -> naive.Lists:
    item = int(random.integers(0, 30))
    numbers = random.normal(size=6).astype(np.float32)
    click = int(random.random() < 1 / (1 + np.exp(-2 * numbers[0])))
    lists: naive.Lists = {
        "all.continuous": ("float_list", numbers.tolist()),
        "binary": ("int64_list", random.integers(0, 2, 4).tolist()),
        "item": ("int64_list", [item]),
        "seen": ("int64_list", random.integers(0, 30, random.integers(0, 5)).tolist()),
        "user": ("bytes_list", [b"user %d" % random.integers(0, 20)]),
        "day": ("int64_list", [number // 100]),
        "is.click": ("int64_list", [click]),
        "like": ("float_list", [float(item % 3 == 0)]),
    }
    if number % 7 == 0:
        del lists["binary"]
    return lists


def write_records(folder: Path, *, num_files: int = 3, rows_per_file: int = 200, seed: int = 0) -> list[Path]:
    """Files of records, the first of them plain, and ``schema.json``."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "schema.json").write_text(json.dumps({"schema": SCHEMA}))
    files = []
    for number in range(num_files):
        rows = range(number * rows_per_file, (number + 1) * rows_per_file)
        data = b"".join(framed(naive.example(record(random, row))) for row in rows)
        files.append(folder / (f"{number}.gz" if number else "0.tfrecord"))
        files[-1].write_bytes(gzip.compress(data) if number else data)
    return files


def records_config(folder: Path) -> RecordsConfig:
    return RecordsConfig(schema_path=folder / "schema.json", renamed_features=RENAMED, index_dir=folder / "index")


def as_parquet(folder: Path, files: Sequence[Path]) -> Path:
    """The same rows, a row group for each block."""
    convert_records(files, records_config(folder), folder / "parquet")
    return folder / "parquet"


def recorded_settings(inputs: Path | str, save_dir: Path, records: Path | None, **changes: Any) -> dict[str, Any]:
    """A ranker over the log; ``records`` is the folder of the schema, None for Parquet. ``changes`` as ``a__b``."""
    source: dict[str, Any] = {"inputs": [str(inputs)], "batch_size": 48}
    if records is not None:
        source["records"] = records_config(records).model_dump(mode="json")
    tower = {"mlp_config": {"layer_sizes": [8, 1]}}
    settings: dict[str, Any] = {
        "training": {"save_dir": str(save_dir), "num_train_steps": 20, "train_log_every_n": 1, "validate_every_n": 10},
        "runtime": {"device": "cpu"},
        "keys": {"user": "user"},
        "labels": {"click": {}, "like": {}},
        "features": {
            "continuous": [{"name": "continuous", "width": 6}],
            "binary": [{"name": "binary", "width": 4}],
            "discrete": [{"name": "item", "table": "items"}],
            "ragged": [{"name": "seen", "table": "items", "max_length": 3}],
            "tables": [{"name": "items", "embedding_dim": 4, "vocabulary": {}}],
        },
        "train_data": {**source, "rows": {"column": "day", "below": 5}},
        "validation_data": {"valid": {**source, "rows": {"column": "day", "at_least": 5}}},
        "calibration": {"partition": "valid"},
        "model": {
            "tasks": {"click": tower, "like": tower},
            "backbone": {"mlp_config": {"layer_sizes": [16], "final_layer_activation": True}},
            "featurization_config": {"double_norm_log_config": {}},
        },
        "optimizer": {"adam": {}, "single_task_learning_rate": {"constant": 0.01}},
        "parallel": {"num_lanes": 2},
    }
    for name, value in changes.items():
        part, _, field = name.partition("__")
        settings[part] = {**settings[part], field: value}
    return settings


def recorded_config(inputs: Path | str, save_dir: Path, records: Path | None, **changes: Any) -> RankerConfig:
    return parse_config(RankerConfig, recorded_settings(inputs, save_dir, records, **changes), "the recorded ranker")
