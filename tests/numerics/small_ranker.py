"""A small ranker of every kind of feature, and features for it, made without files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rookery.config.loader import parse_config
from rookery.ranker.batch import RankerBatch, RankerFeatures, TableSize
from rookery.ranker.config import RankerConfig
from rookery.ranker.model import FeatureSizes, RankerModel

TASKS = ("click", "like", "hide")
NUM_CONTINUOUS, NUM_BINARY, DENSE, LENGTH, NUM_VECTORS = 5, 3, 4, 6, 11
TABLES = {"item": TableSize(20, 6), "tag": TableSize(9, 3)}


def small_config(**changes: Any) -> RankerConfig:
    """The configuration; ``changes`` replace whole fields of its top level, or of ``model`` as ``model__<field>``."""
    tower = {"mlp_config": {"layer_sizes": [8, 4, 1], "batch_norm": {"affine": False}}}
    raw: dict[str, Any] = {
        "training": {"save_dir": "run", "num_train_steps": 4},
        "labels": {task: {} for task in TASKS},
        "keys": {"user": "user_id", "position": "position"},
        "features": {
            "continuous": [{"name": "numbers", "width": NUM_CONTINUOUS}],
            "binary": [{"name": "flags", "width": NUM_BINARY}],
            "dense": [{"name": "text.vector", "width": DENSE}],
            "discrete": [{"name": "item_id", "table": "item"}, {"name": "tag", "table": "tag"}],
            "ragged": [
                {"name": "seen", "table": "item", "max_length": LENGTH, "pooling": "attention", "query": "item_id"},
                {"name": "tags", "table": "tag", "max_length": LENGTH},
            ],
            "tables": [
                {"name": "item", "embedding_dim": 6, "hash_buckets": 19, "init_scale": 0.5},
                {"name": "tag", "embedding_dim": 3, "hash_buckets": 8, "init_scale": 0.5},
            ],
            "embeddings": [{"name": "author", "export": "vectors", "table": "user", "key": "author_id"}],
        },
        "train_data": {"inputs": ["log.parquet"]},
        "model": {
            "tasks": dict.fromkeys(TASKS, tower),
            "backbone": {"mask_net_config": {"mask_blocks": [{"output_size": 8, "aggregation_size": 6}] * 2}},
            "featurization_config": {"double_norm_log_config": {}},
            "position_debias_config": {"max_position": 5, "num_dims": 2, "drop_probability": 0.5},
        },
        "optimizer": {"adam": {}, "single_task_learning_rate": {"constant": 0.01}},
    }
    for name, value in changes.items():
        part, _, field = name.rpartition("__")
        (raw[part] if part else raw)[field] = value
    return parse_config(RankerConfig, raw, "the small ranker")


def small_vectors() -> dict[str, Tensor]:
    return {"author": torch.randn(NUM_VECTORS, 7, generator=torch.Generator().manual_seed(9))}


def small_model(config: RankerConfig, vectors: Mapping[str, Tensor] | None = None) -> RankerModel:
    sizes = FeatureSizes(NUM_CONTINUOUS, NUM_BINARY, {"text.vector": DENSE}, TABLES)
    torch.manual_seed(config.runtime.seed)
    return RankerModel(config, sizes, vectors or small_vectors(), torch.device("cpu"))


def small_batch(seed: int = 0, num_rows: int = 13) -> RankerBatch:
    """Random rows; lists of every length, unknown ids, missing authors."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    lengths = integers(0, LENGTH + 1, num_rows)
    padding = torch.arange(LENGTH) >= lengths.unsqueeze(1)
    labels = (torch.rand(num_rows, len(TASKS), generator=generator) < 0.4).float()
    weights = torch.rand(num_rows, generator=generator) + 0.5
    return RankerBatch(
        features=RankerFeatures(
            continuous=torch.randn(num_rows, NUM_CONTINUOUS, generator=generator) * 10,
            binary=integers(0, 2, num_rows, NUM_BINARY).float(),
            dense={"text.vector": torch.randn(num_rows, DENSE, generator=generator)},
            discrete={"item_id": integers(0, 20, num_rows), "tag": integers(0, 9, num_rows)},
            ragged={
                "seen": integers(0, 20, num_rows, LENGTH).masked_fill(padding, -1),
                "tags": integers(0, 9, num_rows, LENGTH).masked_fill(padding, -1),
            },
            joined={"author": integers(0, NUM_VECTORS + 1, num_rows)},
            position=integers(-1, 8, num_rows),
        ),
        labels=labels,
        loss_weights=weights,
        weights=weights.unsqueeze(1).expand(-1, len(TASKS)),
        groups=integers(0, 4, num_rows),
        strata={},
    )
