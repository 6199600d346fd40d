"""The whole preprocessor against plain Python, row by row; one result for training, scoring and exported programs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_impressions import NaivePreprocessor, counted
from planted_impressions import (
    NUM_CATEGORIES,
    NUM_ITEMS,
    NUM_USERS,
    TASKS,
    item_id,
    planted_config,
    planted_log,
    user_id,
    write_log,
    write_vectors,
)
from torch import Tensor, nn

from rookery.ranker.batch import RankerFeatures
from rookery.ranker.config import RankerConfig
from rookery.ranker.inputs import Inputs
from rookery.ranker.partition import evaluation_batches, open_partition
from rookery.ranker.preprocess import Preprocessor

CPU = torch.device("cpu")
ODD = [np.nan, np.inf, -np.inf, 3e38, -3.4e38, 65519.9, -70000.0, 256.7, 255.5, -0.4, 0.0, 1.0, 2.0, 1 + 2**-9, 1e-30]
KINDS = [None, "bfloat16", "float16", "bool", "uint8"]


def odd_numbers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Numbers among which every fifth is at the edge of some type, or none."""
    values = rng.normal(scale=20, size=shape)
    return np.where(rng.random(shape) < 0.2, rng.choice(ODD, shape), values).astype(np.float32)


def odd_table(seed: int, num_rows: int = 60) -> pa.Table:
    """A planted log with numbers, ids, lists and times that are missing or odd."""
    rng = np.random.default_rng(seed)
    table = planted_log(num_rows, seed).table
    time_ms = table.column("time").cast(pa.int64()).to_numpy() // 1000

    def with_nulls(values: np.ndarray) -> pa.Array:
        return pa.array(values, mask=rng.random(num_rows) < 0.1)

    def lists(values: np.ndarray) -> pa.Array:
        flat = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        return pa.array(flat.to_pylist(), flat.type, mask=rng.random(num_rows) < 0.1)

    with np.errstate(over="ignore"):
        halves = odd_numbers(rng, num_rows, 4).astype(np.float16)
    recent = [None if row is None else [*row, None] for row in table["recent_items"].to_pylist()]
    columns = {
        "age": with_nulls(odd_numbers(rng, num_rows)),
        "stats": lists(odd_numbers(rng, num_rows, 6)),
        "item_text": lists(halves),
        "hour": with_nulls(rng.integers(0, 24, num_rows)),
        "position": with_nulls(rng.integers(0, 12, num_rows)),
        "item_id": with_nulls(np.array([item_id(i) for i in rng.integers(0, NUM_ITEMS + 3, num_rows)])),
        "recent_items": pa.array(recent, pa.list_(pa.int64())),
        "served": with_nulls(time_ms - rng.integers(0, 7_200_000, num_rows)),
    }
    for name, column in columns.items():
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, column)
    return table


def odd_config(folder: Path, draw: Mapping[str, Any]) -> RankerConfig:
    (folder / "mask.json").write_text(json.dumps(draw["mask"]))
    config = planted_config(
        folder / "log",
        folder / "run",
        folder / "vectors",
        preprocess={
            "truncate_and_slice": [{"feature": "stats", "truncation": 5, "mask_path": str(folder / "mask.json")}],
            "extract_features": [
                {"name": "one_stat", "source_tensor": "stats", "index": 1},
                {"name": "one_flag", "source_tensor": "flags", "index": 2},
            ],
            "downcast": {name: kind for name, kind in draw["downcast"].items() if kind},
            "rectify_labels": {
                "label_rectification_window_in_hours": draw["hours"],
                "served_timestamp_field": "served",
                "impressed_timestamp_field": "time",
                "label_to_engaged_timestamp_field": {"click": "click_time", "like": "like_time"},
            },
        },
        labels={task: {"pos_downsampling_rate": 0.5, "neg_downsampling_rate": 0.1} for task in TASKS},
        train_data__rows=None,
        train_data__limit=40,
        train_data__offset=5,
        evaluation={
            "stratifiers": [
                {"name": "japan", "column": "country", "value": "jp"},
                {"name": "flagged", "column": "one_flag", "value": 1},
            ]
        },
    )
    features = config.features.model_dump(mode="json")
    features["continuous"] += [{"name": "stat", "column": "one_stat"}, {"name": "hour_as_number", "column": "hour"}]
    features["discrete"] += [
        {"name": "stat_as_id", "column": "one_stat", "table": "few"},
        {"name": "last_item", "column": "item_id", "table": "known_items"},
    ]
    features["ragged"] += [{"name": "known_recent", "column": "recent_items", "table": "known_items", "max_length": 2}]
    features["tables"] += [
        {"name": "few", "embedding_dim": 2, "values": [0, 1, 2]},
        {"name": "known_items", "embedding_dim": 2, "vocabulary": {"min_count": draw["min_count"], "max_size": 20}},
    ]
    return RankerConfig.model_validate({**config.model_dump(mode="json"), "features": features})


def naive(config: RankerConfig, rows: list[dict[str, Any]], mask: list[bool]) -> NaivePreprocessor:
    train = rows[5:45]
    items = next(table.vocabulary for table in config.features.tables if table.name == "known_items")
    assert items is not None
    vocabularies = {
        "countries": counted(train, ["country"], 2, None),
        "categories": list(range(NUM_CATEGORIES - 1)),
        "few": [0, 1, 2],
        "known_items": counted(train, ["item_id", "recent_items"], items.min_count, items.max_size),
    }
    items_of_export = [item_id(i) for i in range(NUM_ITEMS - 5)]
    users_of_export = [user_id(u) for u in range(NUM_USERS)]
    joined = {"item_vector": items_of_export, "recent_vectors": items_of_export, "user_vector": users_of_export}
    return NaivePreprocessor(config, {"stats": mask}, vocabularies, joined)


def by_name(features: RankerFeatures) -> dict[str, Tensor]:
    """Every tensor but the position, which is read with the labels alone."""
    numbers = {"continuous": features.continuous, "binary": features.binary}
    return {**numbers, **features.dense, **features.discrete, **features.ragged, **features.joined}


draws = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10**6),
        "mask": st.lists(st.booleans(), min_size=5, max_size=5).filter(lambda mask: sum(mask) >= 2),
        "downcast": st.fixed_dictionaries({name: st.sampled_from(KINDS) for name in ("age", "stats", "item_text")}),
        "hours": st.sampled_from([0.5, 1.0, 2.5]),
        "min_count": st.integers(1, 4),
    }
)


@settings(max_examples=25, deadline=None)
@given(draw=draws)
def test_every_row_is_what_plain_python_makes_of_it(draw: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, table = Path(name), odd_table(draw["seed"])
        (folder / "log").mkdir()
        pq.write_table(table, folder / "log" / "a.parquet", row_group_size=17)
        write_vectors(folder / "vectors", planted_log(10))
        config, rows = odd_config(folder, draw), table.to_pylist()
        expected = naive(config, rows, draw["mask"])
        preprocessor = Preprocessor(config, Inputs.build(config))
        whole = config.validation_data["valid"].model_copy(update={"rows": None, "batch_size": 64})
        (batch,) = evaluation_batches(config, whole, preprocessor, CPU)
    found = by_name(batch.features)
    for name in found:
        assert found[name].tolist() == [expected.features(row)[name] for row in rows], name
    assert batch.features.position is not None
    assert batch.features.position.tolist() == [expected.position(row) for row in rows]
    for place, task in enumerate(TASKS):
        assert batch.labels[:, place].tolist() == [expected.label(row, task) for row in rows]
        weights = [expected.weight(row, task) for row in rows]
        assert batch.loss_weights.tolist() == [weight for weight, _ in weights]
        assert batch.weights[:, place].tolist() == pytest.approx([weight for _, weight in weights])
    users = [row["user_id"] for row in rows]
    assert (
        len(set(zip(users, batch.groups.tolist(), strict=True))) == len(set(users)) == len(set(batch.groups.tolist()))
    )
    assert batch.strata["japan"].tolist() == [row["country"] == "jp" for row in rows]
    assert batch.strata["flagged"].tolist() == [bool(row["flags"][2]) for row in rows]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[RankerConfig, Preprocessor]:
    folder = tmp_path_factory.mktemp("planted")
    log = planted_log(1500)
    write_log(folder / "log", log)
    config = planted_config(folder / "log", folder / "run", write_vectors(folder / "vectors", log))
    return config, Preprocessor(config, Inputs.build(config))


def test_scoring_sees_what_training_sees(planted: tuple[RankerConfig, Preprocessor]) -> None:
    config, preprocessor = planted
    valid = config.validation_data["valid"]
    trained = [by_name(batch.features) for batch in evaluation_batches(config, valid, preprocessor, CPU)]
    stream = open_partition(config, valid, preprocessor, labels=False, num_epochs=1)
    assert not {"click", "weight", "like", "position"} & set(stream.types)
    scored = [by_name(preprocessor.features(columns)) for columns in stream]
    for one, other in zip(trained, scored, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


class Flat(nn.Module):
    """The features of columns as a list of tensors, for export."""

    def __init__(self, preprocessor: Preprocessor) -> None:
        super().__init__()
        self.preprocessor = preprocessor

    def forward(self, columns: dict[str, Tensor]) -> list[Tensor]:
        return list(by_name(self.preprocessor.features(columns)).values())


def test_an_exported_program_sees_the_same(tmp_path: Path) -> None:
    draw = {
        "mask": [True, False, True, True, False],
        "downcast": {"age": "bfloat16", "stats": "float16", "item_text": "uint8"},
        "hours": 1.0,
        "min_count": 1,
    }
    (tmp_path / "log").mkdir()
    pq.write_table(odd_table(3), tmp_path / "log" / "a.parquet")
    write_vectors(tmp_path / "vectors", planted_log(10))
    config = odd_config(tmp_path, draw)
    preprocessor = Preprocessor(config, Inputs.build(config))
    whole = config.validation_data["valid"].model_copy(update={"rows": None, "batch_size": 32})
    first, second = open_partition(config, whole, preprocessor, labels=False, num_epochs=1)
    batch = torch.export.Dim("batch", min=1, max=4096)
    shapes = {"columns": {name: {0: batch} for name in first}}
    program = torch.export.export(Flat(preprocessor), (dict(first),), dynamic_shapes=shapes).module()
    for columns in (first, second):
        exported = program(dict(columns))
        for found, expected in zip(exported, Flat(preprocessor)(dict(columns)), strict=True):
            assert torch.equal(found, expected)


def test_columns_are_taken_of_a_block_that_the_network_does_not_see(tmp_path: Path) -> None:
    log = planted_log(200)
    write_log(tmp_path / "log", log)
    extract = [{"name": "second", "source_tensor": "stats", "index": 1}]
    config = planted_config(
        tmp_path / "log",
        tmp_path / "run",
        features__blocks=[{"name": "stats", "width": 6}],
        features__continuous=[{"name": "second"}],
        preprocess={"extract_features": extract, "downcast": {"stats": "float16"}},
    )
    preprocessor = Preprocessor(config, Inputs.build(config))
    stream = open_partition(config, config.train_data, preprocessor)
    features = preprocessor.features(next(stream))
    stats = np.stack(log.table.column("stats").to_numpy()[:64]).astype(np.float16).astype(np.float32)
    assert preprocessor.num_continuous == 1
    assert features.continuous[:, 0].tolist() == stats[:, 1].tolist()
