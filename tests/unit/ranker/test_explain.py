from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score
from small_ranker import small_batch, small_config, small_model

from rookery.config.loader import parse_config
from rookery.data.stream import ParquetStream
from rookery.errors import UserError
from rookery.ranker.batch import RankerBatch, RankerFeatures
from rookery.ranker.config import RankerConfig
from rookery.ranker.explain import _embedded, _Predictor, explain, feature_groups, sample_batch
from rookery.ranker.run import LoadedRun, load_run
from rookery.ranker.train import train_ranker

NUM_ITEMS = 30
ROWS = 2000


def write_rows(path: Path, num_rows: int, seed: int) -> None:
    """Likes, by a number strongly, by the item, by one of two flags weakly, by noise and lists not at all; hides."""
    random = np.random.default_rng(seed)
    strong, noise = random.normal(size=(2, num_rows))
    item = random.integers(0, NUM_ITEMS, num_rows)
    flags = random.random((num_rows, 2)) < 0.5
    lists = [random.integers(0, NUM_ITEMS, random.integers(0, 4)).tolist() for _ in range(num_rows)]
    logit = 2.5 * strong + 1.2 * np.sin(item) + 0.6 * flags[:, 1] - 0.5
    like, hide = (random.random((2, num_rows)) < 1 / (1 + np.exp(-np.stack([logit, np.full(num_rows, -2.0)])))).astype(
        np.int8
    )
    columns = {
        "user_id": random.integers(0, 50, num_rows),
        "noise": noise.astype(np.float32),
        "strong": strong.astype(np.float32),
        "idle_flag": flags[:, 0],
        "flag": flags[:, 1],
        "item_id": item,
        "history": pa.array(lists, pa.list_(pa.int64())),
        "weight": random.choice([0.5, 2.0], num_rows).astype(np.float32),
        "like": like,
        "hide": hide,
    }
    pq.write_table(pa.table(columns), path)


def settings(folder: Path) -> dict[str, object]:
    tower = {"mlp_config": {"layer_sizes": [8, 1]}}
    return {
        "runtime": {"num_threads": 1, "device": "cpu"},
        "training": {"save_dir": str(folder / "run"), "num_train_steps": 250, "train_log_every_n": 250},
        "keys": {"user": "user_id", "weight": "weight"},
        "labels": {"like": {"neg_downsampling_rate": 0.5}, "hide": {}},
        "features": {
            "continuous": [{"name": "noise"}, {"name": "strong"}],
            "binary": [{"name": "idle_flag"}, {"name": "flag"}],
            "discrete": [{"name": "item_id", "table": "items"}],
            "ragged": [{"name": "history", "table": "items", "max_length": 3}],
            "tables": [{"name": "items", "embedding_dim": 4, "num_embeddings": NUM_ITEMS, "init_scale": 0.1}],
        },
        "train_data": {"inputs": [str(folder / "train.parquet")], "batch_size": 200},
        "validation_data": {"valid": {"inputs": [str(folder / "valid.parquet")], "batch_size": 128}},
        "model": {"tasks": dict.fromkeys(("like", "hide"), tower), "backbone": {"mlp_config": {"layer_sizes": [16]}}},
        "optimizer": {"adam": {}, "single_task_learning_rate": {"constant": 0.01}},
    }


@dataclass
class World:
    run: LoadedRun
    valid: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("explain")
    write_rows(folder / "train.parquet", 20_000, 0)
    write_rows(folder / "valid.parquet", ROWS, 1)
    train_ranker(parse_config(RankerConfig, settings(folder), "test"))
    return World(load_run(folder / "run"), folder / "valid.parquet")


def test_what_decides_comes_first_and_noise_is_worth_nothing(world: World) -> None:
    found = explain(world.run, "valid", ROWS, 4)
    rises = {one.name: one.logloss_rise.mean for one in found.features}
    first, second, third, fourth, *_ = rises
    assert (first, {second, third}, fourth) == ("strong", {"item_id", "items"}, "flag")
    assert rises["strong"] > 0.3
    assert rises["item_id"] > 10 * abs(rises["history"])
    assert rises["flag"] > 3 * abs(rises["idle_flag"])
    for name in ("noise", "idle_flag"):
        assert abs(rises[name]) < 0.01 * rises["strong"]
    by_name = {one.name: one for one in found.features}
    assert by_name["strong"].tasks["like"].auroc_drop.mean > 0.15
    # Nothing tells of a hide, and nothing is lost.
    assert abs(by_name["strong"].tasks["hide"].auroc_drop.mean) < 0.05
    assert {one.kind for one in found.features} == {"continuous", "binary", "discrete", "ragged", "table"}
    assert 0 < by_name["strong"].logloss_rise.deviation < 0.1


def test_the_numbers_are_those_of_scikit_learn_on_permuted_rows(world: World) -> None:
    """The same permutation, done to the columns of the file before they are preprocessed."""
    run = world.run
    found = {one.name: one for one in explain(run, "valid", ROWS, 2).features}
    batch = sample_batch(run, "valid", ROWS)
    generator = torch.Generator().manual_seed(run.config.runtime.seed)
    orders = [torch.randperm(ROWS, generator=generator) for _ in range(2)]
    stream_columns = columns_of(world, batch)
    labels, weights = batch.labels.numpy(), batch.weights.numpy().astype(np.float64)
    whole = measured(run, stream_columns, labels, weights)
    for name, columns in {"strong": ["strong"], "item_id": ["item_id"], "items": ["item_id", "history"]}.items():
        repeats = [
            measured(run, {**stream_columns, **{c: stream_columns[c][order] for c in columns}}, labels, weights)
            for order in orders
        ]
        for index, task in enumerate(run.model.tasks):
            drops = np.array([whole[0][index] - areas[index] for areas, _ in repeats])
            rises = np.array([losses[index] - whole[1][index] for _, losses in repeats])
            importance = found[name].tasks[task]
            np.testing.assert_allclose(importance.auroc_drop.mean, drops.mean(), atol=1e-7)
            np.testing.assert_allclose(importance.auroc_drop.deviation, drops.std(ddof=1), atol=1e-7)
            np.testing.assert_allclose(importance.logloss_rise.mean, rises.mean(), atol=1e-6)
            np.testing.assert_allclose(importance.logloss_rise.deviation, rises.std(ddof=1), atol=1e-6)
        rises = [sum(losses) - sum(whole[1]) for _, losses in repeats]
        np.testing.assert_allclose(found[name].logloss_rise.mean, np.mean(rises), atol=1e-6)


def columns_of(world: World, batch: RankerBatch) -> dict[str, torch.Tensor]:
    """Raw columns of all rows of the file, in the order of ``batch``, told by two columns of numbers."""
    requests = world.run.preprocessor.requests(labels=False, keys=False)
    columns = next(ParquetStream([world.valid], requests, ROWS, seed=0, shuffle=False))
    place = {value: row for row, value in enumerate(columns["noise"].tolist())}
    order = torch.tensor([place[value] for value in batch.features.continuous[:, 0].tolist()])
    return {name: column[order] for name, column in columns.items()}


def measured(
    run: LoadedRun, columns: dict[str, torch.Tensor], labels: np.ndarray, weights: np.ndarray
) -> tuple[list[float], list[float]]:
    probabilities = run.predict(columns).numpy().astype(np.float64)
    triples = list(zip(labels.T, probabilities.T, weights.T, strict=True))
    return (
        [roc_auc_score(y, p, sample_weight=w) for y, p, w in triples],
        [log_loss(y, p, sample_weight=w) for y, p, w in triples],
    )


def test_rows_are_drawn_at_random_and_always_the_same(world: World) -> None:
    first, second = (sample_batch(world.run, "valid", 300).features.continuous for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    stored = pq.read_table(world.valid).column("noise").to_numpy()
    drawn = [int(np.flatnonzero(stored == value)[0]) for value in first[:, 0].numpy()]
    assert len(set(drawn)) == 300
    assert max(drawn) > ROWS * 0.9
    assert drawn != sorted(drawn)
    assert sample_batch(world.run, "valid", 10 * ROWS).num_rows == ROWS


def test_only_the_group_itself_is_moved(world: World) -> None:
    features = sample_batch(world.run, "valid", 50).features
    order = torch.arange(49, -1, -1)
    for group in feature_groups(world.run.config, world.run.preprocessor):
        moved = group.moved(features, order)
        before, after = flat(features), flat(moved)
        expected = {"item_id", "history"} if group.kind == "table" else {group.name}
        for name, column in before.items():
            wanted = column[order] if name in expected else column
            torch.testing.assert_close(after[name], wanted, rtol=0, atol=0)


def flat(features: RankerFeatures) -> dict[str, torch.Tensor]:
    return {
        "noise": features.continuous[:, 0],
        "strong": features.continuous[:, 1],
        "idle_flag": features.binary[:, 0],
        "flag": features.binary[:, 1],
        **features.discrete,
        **features.ragged,
    }


def test_a_task_without_positives_has_no_auroc_and_does_not_spoil_the_others(world: World) -> None:
    run = world.run
    batch = sample_batch(run, "valid", 400)
    barren = replace(batch, labels=batch.labels * torch.tensor([1.0, 0.0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rookery.ranker.explain.sample_batch", lambda *_: barren)
        found = explain(run, "valid", 400, 1)
    assert math.isnan(found.quality["hide"].auroc)
    assert found.quality["hide"].positives == 0
    strong = next(one for one in found.features if one.name == "strong")
    assert math.isnan(strong.tasks["hide"].auroc_drop.mean)
    assert strong.auroc_drop.mean == pytest.approx(strong.tasks["like"].auroc_drop.mean)
    assert strong.auroc_drop.deviation == 0.0


def test_an_unknown_partition_is_told(world: World) -> None:
    with pytest.raises(UserError, match="--split vlid: no such partition of validation_data; did you mean 'valid'"):
        explain(world.run, "vlid", 10, 1)


def test_vectors_that_are_kept_change_nothing() -> None:
    """Lists attended through a query, joined vectors, positions: as if everything were computed anew."""
    config = small_config()
    model = small_model(config).eval()
    run = LoadedRun(Path("run"), config, 1, model, preprocessor=None)
    features = small_batch(num_rows=40).features
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    predict = _Predictor(run, features)
    torch.testing.assert_close(predict.whole(), run.predict_features(features), rtol=0, atol=0)
    for members, kept in {
        ("item_id",): False,  # the query of "seen"
        ("seen",): False,
        ("item_id", "seen"): True,
        ("tag",): True,
        ("tags",): True,
        ("author",): True,
    }.items():
        group = _embedded(config.features, "table", "some", members)
        assert (group.vectors is not None) == kept
        expected = run.predict_features(group.moved(features, order))
        assert not torch.equal(expected, predict.whole())
        torch.testing.assert_close(predict(group, order), expected, rtol=1e-6, atol=1e-6)


def test_many_rows_go_through_the_network_in_parts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = explain(world.run, "valid", 700, 1)
    monkeypatch.setattr("rookery.ranker.explain._ROWS_AT_ONCE", 99)
    parts = explain(world.run, "valid", 700, 1)
    assert [one.name for one in parts.features] == [one.name for one in whole.features]
    for one, other in zip(parts.features, whole.features, strict=True):
        assert one.logloss_rise.mean == pytest.approx(other.logloss_rise.mean, abs=1e-6)
