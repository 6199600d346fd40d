"""Several processes train what one does: same batches, same parameters, same evaluation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted_impressions import planted_log, write_log, write_vectors
from ranks import run_ranks
from small_graph import log_lines, planted_splits, write_graph
from trained_over_ranks import OPTIMIZERS, require_same_calibrations, tensors, train_on_graph, train_on_log

from rookery.data.graph import Graph
from rookery.errors import TrainingError
from rookery.parallel.world import leave_world, rank
from rookery.ranker.batch import RankerFeatures
from rookery.ranker.evaluation import evaluate as evaluate_ranker
from rookery.ranker.model import RankerModel
from rookery.ranker.run import load_run as load_ranker
from rookery.twhin.run_evaluation import evaluate_run as evaluate_twhin

SIZES = (1, 2, 3, 4)


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
        run_ranks(size, train_on_graph, graph.path, tmp_path / str(size), fields)
    require_same_runs(tmp_path)


LARGE = {"rowwise_adagrad": {"lr": 0.05}}
DROPOUT = {"dropout": {"rate": 0.2}, "final_layer_activation": True}
MASK_NET = {"mask_blocks": [{"output_size": 8, "aggregation_size": 6}] * 2}
DOWNSAMPLED = {"batch_multiplier": 3, "engagements_list": ["like", "share"]}
RANKERS: dict[str, dict[str, Any]] = {
    "tables and batch norm": {
        "features__tables": [
            {"name": "countries", "embedding_dim": 3, "vocabulary": {"min_count": 2}, "dropout": 0.2},
            {"name": "hours", "embedding_dim": 2, "num_embeddings": 24},
            {"name": "categories", "embedding_dim": 4, "values": list(range(7)), "optimizer": {"adagrad": {"lr": 0.1}}},
            {"name": "items", "embedding_dim": 4, "hash_buckets": 64, "optimizer": LARGE, "dropout": 0.1},
        ],
        "model__featurization_config": {"log1p_abs_config": {}},
        "model__backbone": {"mlp_config": {"layer_sizes": [16, 16], **DROPOUT}},
    },
    "uncertainty, down-sampled": {
        "preprocess__downsample_negatives": DOWNSAMPLED,
        "loss": {"uncertainty": {}},
        "model__backbone": {"mask_net_config": {**MASK_NET, "mlp": {"layer_sizes": [8], **DROPOUT}}},
    },
    "gradnorm": {"loss": {"grad_norm": {}}, "optimizer__average": {"decay": 0.99}},
}


@pytest.fixture(scope="module")
def impressions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder, log = tmp_path_factory.mktemp("log"), planted_log()
    write_log(folder / "log", log, num_files=3, row_group_rows=90)
    return folder / "log", write_vectors(folder / "vectors", log)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if place == 0 else LONG) for place, case in enumerate(RANKERS)]
)
def test_any_number_of_processes_trains_the_same_ranker(
    impressions: tuple[Path, Path], tmp_path: Path, case: str
) -> None:
    for size in SIZES:
        run_ranks(size, train_on_log, *impressions, tmp_path / str(size), RANKERS[case])
    require_same_runs(tmp_path)
    for size in SIZES[1:]:
        require_same_calibrations(tmp_path / str(size), tmp_path / "1")


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
    run_ranks(1, train_on_graph, wide_graph(tmp_path / "graph"), tmp_path / "twhin", {"training.num_train_steps": 20})
    run_ranks(1, train_on_log, *impressions, tmp_path / "ranker", {"validation_data__valid__batch_size": 37})
    for measure, run in ((measure_twhin, tmp_path / "twhin"), (measure_ranker, tmp_path / "ranker")):
        (alone,) = run_ranks(1, measure, run)
        for size in SIZES[1:]:
            for found in run_ranks(size, measure, run):
                np.testing.assert_equal(found, alone)


def fit_calibration(run: Path) -> tuple[int, list[float]]:
    """Rows that this process predicted, and what it then has of the maps."""
    predict, rows = RankerModel.unsampled_logits, []

    def counted(model: RankerModel, features: RankerFeatures) -> torch.Tensor:
        rows.append(features.num_rows)
        return predict(model, features)

    RankerModel.unsampled_logits = counted
    try:
        loaded = load_ranker(run)
    finally:
        RankerModel.unsampled_logits = predict
    return sum(rows), [*loaded.model.calibration_scale.tolist(), *loaded.model.calibration_offset.tolist()]


def test_processes_fit_exactly_the_calibration_of_one(impressions: tuple[Path, Path], tmp_path: Path) -> None:
    """Each predicts its part of the rows."""
    run = tmp_path / "run"
    changes = {"validation_data__valid__batch_size": 37, "training__num_train_steps": 20}
    run_ranks(1, train_on_log, *impressions, run, changes)
    (path,) = (run / "calibration").iterdir()
    alone = path.read_bytes()
    for size in SIZES:
        path.unlink()
        found = run_ranks(size, fit_calibration, run)
        assert path.read_bytes() == alone
        assert [maps for _, maps in found] == [found[0][1]] * size
        counts = [num_rows for num_rows, _ in found]
        assert max(counts) - min(counts) <= 37 + 37
        if size == 1:
            (total,) = counts
        assert sum(counts) == total > 200


class Left(Exception):
    """A process is gone, as far as the others can tell."""


def leave_in_the_calibration(log: Path, vectors: Path, run: Path) -> str:
    """Rank 1 leaves when it should predict for the calibration; what the other one says."""
    if rank() == 1:

        def leave(model: RankerModel, features: RankerFeatures) -> torch.Tensor:
            leave_world()
            raise Left

        RankerModel.unsampled_logits = leave
    try:
        train_on_log(log, vectors, run, {"training__num_train_steps": 20})
    except (Left, TrainingError) as error:
        return str(error)
    raise AssertionError("nobody was missed")


def test_a_process_that_is_lost_in_the_calibration_is_named(impressions: tuple[Path, Path], tmp_path: Path) -> None:
    said, _ = run_ranks(2, leave_in_the_calibration, *impressions, tmp_path / "run")
    assert re.search(r"rank 0 waited in vain for the others in (all_)?gather", said), said
    assert re.search("rank 0: in the calibration of step 20 for", said), said
    assert re.search("rank 1: (has ended, in|silent for .*, last heard of in) the calibration of step 20", said), said
    assert not (tmp_path / "run" / "calibration").exists()
