"""Several processes train what one does: same batches, same parameters, same evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted_impressions import planted_config, planted_log, write_log, write_vectors
from ranks import run_ranks
from small_graph import log_lines, make_config, planted_splits, write_graph
from torch import Tensor

from rookery.checkpoint.checkpointer import load_checkpoint
from rookery.data.graph import Graph
from rookery.parallel.world import world_size
from rookery.ranker.evaluation import evaluate as evaluate_ranker
from rookery.ranker.run import load_run as load_ranker
from rookery.ranker.train import train_ranker
from rookery.twhin.run_evaluation import evaluate_run as evaluate_twhin
from rookery.twhin.train import train_twhin

LANES = 12
SIZES = (1, 2, 3, 4)
BATCH = 48

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"sgd": {"lr": 1.0}},
    "momentum": {"sgd": {"lr": 0.2, "momentum": 0.9}},
    "adagrad": {"adagrad": {"lr": 0.05}},
    "rowwise_adagrad": {"rowwise_adagrad": {"lr": 0.05}},
    "adam": {"adam": {"lr": 0.01}},
}


def table_fields(**by_place: Any) -> dict[str, Any]:
    """Fields of the first and of the second table, each ``field=(first, second)``."""
    return {
        f"model.embeddings.tables.{place}.{field}": value
        for field, pair in by_place.items()
        for place, value in enumerate(pair)
    }


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    folder = tmp_path_factory.mktemp("data") / "graph"
    return write_graph(folder, planted_splits(300), num_files=3, row_group_size=7)


def train(graph: Path, save_dir: Path, fields: Mapping[str, Any]) -> None:
    all_fields = {
        "parallel.num_lanes": LANES,
        "train_data.per_replica_batch_size": BATCH // world_size(),
        "training.num_train_steps": 200,
        "training.train_log_every_n": 50,
        "training.validate_every_n": 100,
        "validation_data": {"split": "valid"},
        "train_data.negative_alpha": 0.5,
        **fields,
    }
    train_twhin(make_config(Graph.open(graph), save_dir, all_fields))


def tensors(save_dir: Path) -> dict[str, Tensor]:
    stored = load_checkpoint(save_dir)
    return {name: tensor for group in ("model", "optimizer") for name, tensor in stored.tensors(group).items()}


LONG = pytest.mark.long


@pytest.mark.parametrize(
    "pair",
    [
        pytest.param(("momentum", "adam"), id="momentum and adam"),
        pytest.param(("adagrad", "rowwise_adagrad"), id="both kinds of adagrad", marks=LONG),
        pytest.param(("sgd", "adagrad"), id="sgd and adagrad", marks=LONG),
    ],
)
def test_any_number_of_processes_trains_the_same_twhin(graph: Graph, tmp_path: Path, pair: tuple[str, str]) -> None:
    fields = table_fields(optimizer=[OPTIMIZERS[name] for name in pair])
    for size in SIZES:
        run_ranks(size, train, graph.path, tmp_path / str(size), fields)
    require_same_runs(tmp_path)


SHARDED: dict[str, tuple[tuple[str, str], tuple[str, str]]] = {
    "row_wise, column_wise": (("row_wise", "rowwise_adagrad"), ("column_wise", "sgd")),
    "table_wise, data_parallel": (("table_wise", "adagrad"), ("data_parallel", "adam")),
    "table_row_wise, auto": (("table_row_wise", "sgd"), ("auto", "rowwise_adagrad")),
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if place == 0 else LONG) for place, case in enumerate(SHARDED)]
)
def test_any_sharding_trains_the_same_twhin(graph: Graph, tmp_path: Path, case: str) -> None:
    """80 steps by two processes, 80 by four, 40 by one: a run goes on whatever its tables lay like before."""
    pytest.importorskip("fbgemm_gpu", reason="needs the cluster extra")
    kinds, optimizers = zip(*SHARDED[case], strict=True)
    fields = table_fields(optimizer=[OPTIMIZERS[name] for name in optimizers], embedding_dim=(16, 16))
    run_ranks(1, train, graph.path, tmp_path / "1", fields)
    sharding = {"user": kinds[0], "item": kinds[1]}
    fields |= {"model.embeddings.backend": "torchrec", "parallel.sharding.tables": sharding}
    for size, num_steps in ((2, 80), (4, 160), (1, 200)):
        stops = {"training.num_train_steps": num_steps, "training.validate_every_n": 40}
        run_ranks(size, train, graph.path, tmp_path / "sharded", {**fields, **stops})
    torch.testing.assert_close(tensors(tmp_path / "sharded"), tensors(tmp_path / "1"), rtol=1e-5, atol=1e-5)


LARGE = {"rowwise_adagrad": {"lr": 0.05}}
MASK_NET = {"mask_net_config": {"mask_blocks": [{"output_size": 8, "aggregation_size": 6}] * 2}}
DOWNSAMPLED = {"batch_multiplier": 3, "engagements_list": ["like", "share"]}
RANKERS: dict[str, dict[str, Any]] = {
    "tables and batch norm": {
        "features__tables": [
            {"name": "countries", "embedding_dim": 3, "vocabulary": {"min_count": 2}},
            {"name": "hours", "embedding_dim": 2, "num_embeddings": 24},
            {"name": "categories", "embedding_dim": 4, "values": list(range(7)), "optimizer": {"adagrad": {"lr": 0.1}}},
            {"name": "items", "embedding_dim": 4, "hash_buckets": 64, "optimizer": LARGE},
        ],
        "model__featurization_config": {"log1p_abs_config": {}},
    },
    "uncertainty, down-sampled": {
        "preprocess__downsample_negatives": DOWNSAMPLED,
        "loss": {"uncertainty": {}},
        "model__backbone": MASK_NET,
    },
    "gradnorm": {"loss": {"grad_norm": {}}, "optimizer__average": {"decay": 0.99}},
}


@pytest.fixture(scope="module")
def impressions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder, log = tmp_path_factory.mktemp("log"), planted_log()
    write_log(folder / "log", log, num_files=3, row_group_rows=90)
    return folder / "log", write_vectors(folder / "vectors", log)


def train_on(log: Path, vectors: Path, save_dir: Path, changes: Mapping[str, Any]) -> None:
    fields: dict[str, Any] = {
        "parallel__num_lanes": LANES,
        "training__num_train_steps": 200,
        "training__train_log_every_n": 50,
        "training__validate_every_n": 100,
        "train_data__batch_size": 96,
        "model__position_debias_config__drop_probability": 0.0,
        "runtime": {"device": "cpu", "num_threads": 1},
        "calibration": {"partition": "valid"},
    }
    train_ranker(planted_config(log, save_dir, vectors, **{**fields, **changes}))


def calibrations(run: Path) -> dict[str, dict[str, Any]]:
    return {path.name: json.loads(path.read_text()) for path in (run / "calibration").iterdir()}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if place == 0 else LONG) for place, case in enumerate(RANKERS)]
)
def test_any_number_of_processes_trains_the_same_ranker(
    impressions: tuple[Path, Path], tmp_path: Path, case: str
) -> None:
    for size in SIZES:
        run_ranks(size, train_on, *impressions, tmp_path / str(size), RANKERS[case])
    require_same_runs(tmp_path)
    for size in SIZES[1:]:
        require_same_calibrations(tmp_path / str(size), tmp_path / "1")


def require_same_calibrations(run: Path, other: Path) -> None:
    """By the same steps, to 1e-3: a map is fitted to few labels."""
    found, expected = calibrations(run), calibrations(other)
    assert found.keys() >= expected.keys() != set()
    for name, fitted in expected.items():
        for field in ("scale", "offset"):
            assert found[name][field] == pytest.approx(fitted[field], rel=1e-3, abs=1e-3), (name, field)


RANKER_TABLES = {
    "countries": ("row_wise", {"rowwise_adagrad": {"lr": 0.05}}),
    "hours": ("table_wise", {"adagrad": {"lr": 0.1}}),
    "categories": ("column_wise", {"sgd": {"lr": 0.1}}),
    "items": ("table_row_wise", {"sgd": {"lr": 0.1}}),
}


def test_any_sharding_trains_the_same_ranker(impressions: tuple[Path, Path], tmp_path: Path) -> None:
    """80 steps by two processes, 60 by three, 60 by one; fewer batches of the calibration's rows than processes."""
    pytest.importorskip("fbgemm_gpu", reason="needs the cluster extra")
    tables = [
        {**table, "embedding_dim": 24, "optimizer": RANKER_TABLES[table["name"]][1]}
        for table in RANKERS["tables and batch norm"]["features__tables"]
    ]
    changes = {"features__tables": tables, "validation_data__valid__batch_size": 100_000}
    run_ranks(1, train_on, *impressions, tmp_path / "1", changes)
    changes |= {
        "features__backend": "torchrec",
        "parallel__sharding": {"tables": {name: kind for name, (kind, _) in RANKER_TABLES.items()}},
    }
    for size, num_steps in ((2, 80), (3, 140), (1, 200)):
        stop = {"training__num_train_steps": num_steps, "training__validate_every_n": 20}
        run_ranks(size, train_on, *impressions, tmp_path / "sharded", {**changes, **stop})
    torch.testing.assert_close(tensors(tmp_path / "sharded"), tensors(tmp_path / "1"), rtol=1e-5, atol=1e-5)
    require_same_calibrations(tmp_path / "sharded", tmp_path / "1")


def require_same_runs(folder: Path) -> None:
    """Equal parameters and optimizer states, to 1e-5; equal logs and validations."""
    whole, alone = tensors(folder / "1"), log_lines(folder / "1")
    for size in SIZES[1:]:
        torch.testing.assert_close(tensors(folder / str(size)), whole, rtol=1e-5, atol=1e-5)
        for line, expected in zip(log_lines(folder / str(size)), alone, strict=True):
            assert line.keys() == expected.keys()
            for name in line:
                # Shares of ids are means over processes, not over rows.
                if not name.startswith(("time/", "unknown/", "miss/")) and not name.endswith("_per_s"):
                    # Metrics of rare labels magnify differences of 1e-6 in a parameter.
                    assert line[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-4, nan_ok=True), name


def measure_twhin(run: Path) -> dict[str, Any]:
    return evaluate_twhin(
        run,
        "valid",
        overrides=["evaluation.metrics=[link_prediction, recommendation]", "evaluation.chunk_memory_mib=1"],
    ).evaluation.report()


def measure_ranker(run: Path) -> dict[str, float]:
    loaded = load_ranker(run)
    return evaluate_ranker(loaded.config, "valid", loaded.model, loaded.preprocessor, num_bootstrap=5).metrics()


def wide_graph(folder: Path) -> Path:
    """So many entities that queries come in several chunks."""
    rng = np.random.default_rng(0)
    edges = np.stack([rng.integers(0, 3000, 3000), rng.integers(0, 2, 3000), rng.integers(0, 2000, 3000)], 1)
    triples = list(map(tuple, np.unique(edges, axis=0).tolist()))
    splits = {"train": triples[::2], "valid": triples[1::2]}
    return write_graph(folder, splits, num_entities={"user": 3000, "item": 2000}, row_group_size=50).path


def test_processes_measure_exactly_what_one_does(impressions: tuple[Path, Path], tmp_path: Path) -> None:
    run_ranks(1, train, wide_graph(tmp_path / "graph"), tmp_path / "twhin", {"training.num_train_steps": 20})
    run_ranks(1, train_on, *impressions, tmp_path / "ranker", {"validation_data__valid__batch_size": 37})
    for measure, run in ((measure_twhin, tmp_path / "twhin"), (measure_ranker, tmp_path / "ranker")):
        (alone,) = run_ranks(1, measure, run)
        for size in SIZES[1:]:
            for found in run_ranks(size, measure, run):
                np.testing.assert_equal(found, alone)
