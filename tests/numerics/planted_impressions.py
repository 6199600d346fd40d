"""A small impression log whose true probabilities are known, with a feature of every kind, and configurations on it.

Users and items have latent vectors. A row is an impression of an item by a user at a time; its tasks are drawn one by
one from probabilities that depend on the product of the latents, on numbers, on the country, on the recent items and
on the position. ``click`` is common, ``like`` and ``share`` rarer, ``report`` rare. ``watch_time_s`` and the times of
engagement are outcomes: a model that reads them cheats.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rookery.config.loader import parse_config
from rookery.data.graph import Vocabulary
from rookery.ranker.config import RankerConfig
from rookery.twhin.embeddings import Embeddings
from rookery.twhin.export import write_export

TASKS = ("click", "like", "share", "report")
BASES = {"click": -0.6, "like": -3.0, "share": -4.0, "report": -5.0}
OUTCOMES = ("watch_time_s", "click_time", "like_time")
COUNTRIES = ("jp", "us", "br", "in", "de", "is")
NUM_USERS, NUM_ITEMS, NUM_CATEGORIES, DIM = 60, 40, 8, 4
NUM_DAYS = 5
FIRST_DAY_US = 1_650_844_800_000_000  # 2022-04-25 00:00 UTC
DAY_US = 86_400_000_000


@dataclass(frozen=True)
class PlantedLog:
    """Rows by rising time, and the true probability ``[rows]`` of each task; the latter are not in the rows."""

    table: pa.Table
    probabilities: Mapping[str, np.ndarray]
    users: np.ndarray
    items: np.ndarray
    """Latents ``[users, DIM]`` and ``[items, DIM]``."""

    @property
    def num_rows(self) -> int:
        return int(self.table.num_rows)

    def labels(self, task: str) -> np.ndarray:
        return self.table.column(task).to_numpy().astype(np.int64)


def user_id(user: int) -> str:
    return f"u{user:02d}"


def item_id(item: int) -> int:
    return 1000 + 7 * item


def planted_log(num_rows: int = 3000, seed: int = 0) -> PlantedLog:
    """Rows over ``NUM_DAYS`` days, the same for the same seed; the world (latents, effects) is always the same."""
    world = np.random.default_rng(1)
    users, items = world.normal(size=(NUM_USERS, DIM)), world.normal(size=(NUM_ITEMS, DIM))
    rng = np.random.default_rng((seed, num_rows))
    user = (NUM_USERS * rng.random(num_rows) ** 2).astype(int)  # some are far busier than others
    item = (NUM_ITEMS * rng.random(num_rows) ** 1.5).astype(int)
    country = np.minimum(user % 11, len(COUNTRIES) - 1)
    stats = rng.normal(size=(num_rows, 6)).astype(np.float32)
    flags = rng.random((num_rows, 3)) < (0.2, 0.5, 0.9)
    position = rng.integers(0, 10, num_rows)
    time_us = FIRST_DAY_US + np.sort(rng.integers(0, NUM_DAYS * DAY_US, num_rows))
    recent = [[item_id(i) for i in rng.integers(0, NUM_ITEMS, rng.integers(0, 9))] for _ in range(num_rows)]
    logit = (
        0.7 * (users[user] * items[item]).sum(1)
        + 0.8 * stats[:, 0]
        + 0.6 * flags[:, 0]
        + 0.3 * country
        - 0.15 * position
        + 0.4 * np.array([item_id(i) in row for i, row in zip(item, recent, strict=True)])
    )
    probabilities = {task: 1 / (1 + np.exp(-(base + logit))) for task, base in BASES.items()}
    labels = {task: (rng.random(num_rows) < p).astype(np.int8) for task, p in probabilities.items()}
    for task, label in labels.items():  # rare ones are somewhere in any log
        label[np.argmax(probabilities[task])] = 1
    age = np.where(rng.random(num_rows) < 0.9, 18 + 2.0 * (user % 30), np.nan)
    columns = {
        "user_id": pa.array([user_id(u) for u in user]),
        "item_id": pa.array([item_id(i) for i in item], pa.int64()),
        "time": pa.array(time_us, pa.timestamp("us", "UTC")),
        "position": pa.array(position, pa.int16()),
        "age": pa.array(age, from_pandas=True),  # NaN is null
        "hour": pa.array((time_us // 3_600_000_000 % 24).astype(np.int8)),
        "stats": _lists(stats),
        "is_follower": pa.array(flags[:, 0]),
        "flags": _lists(flags.astype(np.uint8)),
        "item_text": _lists((items[item] + 0.1 * rng.normal(size=(num_rows, DIM))).astype(np.float32)),
        "country": pa.array([COUNTRIES[c] if rng.random() < 0.98 else None for c in country]),
        "category": pa.array(item % NUM_CATEGORIES, pa.int32()),
        "recent_items": pa.array([row if rng.random() < 0.97 else None for row in recent], pa.list_(pa.int64())),
        "weight": pa.array(rng.choice([0.5, 1.0, 2.0], num_rows), pa.float32()),
        **{task: pa.array(label) for task, label in labels.items()},
        **_outcomes(rng, time_us, labels),
    }
    return PlantedLog(pa.table(columns), probabilities, users, items)


def write_log(folder: Path, log: PlantedLog, *, num_files: int = 2, row_group_rows: int = 300) -> list[Path]:
    """``part-0.parquet`` and so on, rows in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-log.num_rows // num_files)
    files = [folder / f"part-{number}.parquet" for number in range(num_files)]
    for number, file in enumerate(files):
        pq.write_table(log.table.slice(number * size, size), file, row_group_size=row_group_rows)
    return files


def write_vectors(folder: Path, log: PlantedLog, items: Sequence[int] = range(NUM_ITEMS - 5)) -> Path:
    """A TwHIN export with the true latents of all users and of some items (the last five have none)."""
    ids = {"user": [user_id(u) for u in range(NUM_USERS)], "item": [item_id(i) for i in items]}
    rows = {
        "user": torch.tensor(log.users, dtype=torch.float32),
        "item": torch.tensor(log.items[list(items)], dtype=torch.float32),
    }
    vocabularies = {name: Vocabulary(name, pa.table({"id": pa.array(values)})) for name, values in ids.items()}
    write_export(Embeddings((), "dot", "rhs", rows, {}), vocabularies, folder, run="planted", step=1, overwrite=True)
    return folder


def planted_settings(log: Path, save_dir: Path, vectors: Path | None = None, **changes: Any) -> dict[str, Any]:
    """A configuration that reads every kind of feature: train on the first three days, valid the fourth, test the last.

    ``changes`` replace values by dotted path, with ``__`` for the dot: ``keys__weight=None``.
    """
    day = [f"2022-04-{25 + day}T00:00:00" for day in range(NUM_DAYS)]
    tower = {"mlp_config": {"layer_sizes": [8, 1]}}
    settings: dict[str, Any] = {
        "training": {"save_dir": str(save_dir), "num_train_steps": 30, "train_log_every_n": 10},
        "keys": {"user": "user_id", "item": "item_id", "time": "time", "weight": "weight", "position": "position"},
        "labels": {task: {} for task in TASKS},
        "features": {
            "continuous": [{"name": "age"}, {"name": "stats", "width": 6}],
            "binary": [{"name": "is_follower"}, {"name": "flags", "width": 3}],
            "dense": [{"name": "item_text", "width": DIM}],
            "discrete": [
                {"name": "country", "table": "countries"},
                {"name": "hour", "table": "hours"},
                {"name": "category", "table": "categories"},
                {"name": "item", "column": "item_id", "table": "items"},
            ],
            "ragged": [{"name": "recent_items", "table": "items", "max_length": 5}],
            "tables": [
                {"name": "countries", "embedding_dim": 3, "vocabulary": {"min_count": 2}},
                {"name": "hours", "embedding_dim": 2, "num_embeddings": 24},
                {"name": "categories", "embedding_dim": 3, "values": list(range(NUM_CATEGORIES - 1))},
                {"name": "items", "embedding_dim": 4, "hash_buckets": 64},
            ],
        },
        "train_data": {"inputs": [str(log)], "rows": {"column": "time", "below": day[3]}, "batch_size": 64},
        "validation_data": {
            "valid": {"inputs": [str(log)], "rows": {"column": "time", "at_least": day[3], "below": day[4]}},
            "test": {
                "inputs": [str(log)],
                "rows": {"column": "time", "at_least": day[4]},
                "during_training": False,
            },
        },
        "model": {
            "backbone": {"mlp_config": {"layer_sizes": [16]}},
            "tasks": {task: copy.deepcopy(tower) for task in TASKS},
            "position_debias_config": {"max_position": 10, "num_dims": 2, "drop_probability": 0.1},
        },
        "optimizer": {"adam": {}, "single_task_learning_rate": {"constant": 0.01}},
    }
    if vectors is not None:
        settings["features"]["embeddings"] = [
            {"name": "item_vector", "export": str(vectors), "table": "item", "key": "item_id"},
            {"name": "user_vector", "export": str(vectors), "table": "user", "key": "user_id", "trainable": True},
            {
                "name": "recent_vectors",
                "export": str(vectors),
                "table": "item",
                "key": "recent_items",
                "max_length": 3,
            },
        ]
    for path, value in changes.items():
        *parents, leaf = path.split("__")
        place = settings
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    return settings


def planted_config(log: Path, save_dir: Path, vectors: Path | None = None, **changes: Any) -> RankerConfig:
    """``planted_settings``, parsed."""
    return parse_config(RankerConfig, planted_settings(log, save_dir, vectors, **changes), "test")


def _lists(values: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _outcomes(rng: np.random.Generator, time_us: np.ndarray, labels: Mapping[str, np.ndarray]) -> dict[str, pa.Array]:
    """What is known only after the engagement: watch time, and times up to two hours later, null without one."""
    num_rows = len(time_us)
    late_us = time_us + rng.integers(1, 7_200_000_000, num_rows)
    return {
        "watch_time_s": pa.array(
            np.where(labels["click"] == 1, 10 + rng.exponential(20, num_rows), rng.random(num_rows))
        ),
        "click_time": pa.array(late_us, pa.timestamp("us", "UTC"), mask=labels["click"] == 0),
        "like_time": pa.array(late_us // 1000, mask=labels["like"] == 0),
    }
