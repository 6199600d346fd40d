"""However tables lie over however many processes, training is that of one process whose tables are local."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from planted_impressions import planted_log, write_log, write_vectors
from ranks import run_ranks
from small_graph import Triple, write_graph
from trained_over_ranks import (
    NUM_STEPS,
    OPTIMIZERS,
    require_same_calibrations,
    tensors,
    train_on_graph,
    train_on_log,
)

from rookery.data.graph import Graph

SIZES = (1, 2, 3, 4)
DIM = 48
"""A multiple of 4 in each of two, three and four columns."""
NUM_ROWS = 20
LOCAL = tuple(OPTIMIZERS)
FUSED = ("sgd", "adagrad", "rowwise_adagrad")
"""What fbgemm has on CPU."""


class Laid(NamedTuple):
    """How a table lies, and what moves it."""

    kind: str
    optimizer: str

    @property
    def table(self) -> str:
        return f"{self.kind}_{self.optimizer}"


ONE_OF_EACH = (
    Laid("row_wise", "rowwise_adagrad"),
    Laid("column_wise", "sgd"),
    Laid("table_wise", "adagrad"),
    Laid("data_parallel", "adam"),
    Laid("table_row_wise", "sgd"),
    Laid("auto", "rowwise_adagrad"),
)
# Row-wise Adagrad by columns is refused: its state would depend on the number of processes.
ALL = (
    *(Laid(kind, name) for kind in ("row_wise", "table_wise", "table_row_wise", "auto") for name in FUSED),
    *(Laid("column_wise", name) for name in FUSED if name != "rowwise_adagrad"),
    *(Laid("data_parallel", name) for name in LOCAL),
)


@pytest.fixture(autouse=True)
def _cluster() -> None:
    pytest.importorskip("fbgemm_gpu", reason="needs the cluster extra")


# -- TwHIN ------------------------------------------------------------------------------------------------------------


def ring_graph(folder: Path, tables: Sequence[Laid], edges_per_relation: int = 60) -> Graph:
    """An entity type for each table; the entities of one like those of the next, mostly within a community of five."""
    rng = np.random.default_rng(0)
    triples: set[Triple] = set()
    while len(triples) < edges_per_relation * len(tables):
        lhs, rhs = (int(row) for row in rng.integers(NUM_ROWS, size=2))
        if lhs % 5 == rhs % 5 or rng.random() < 0.05:
            triples.add((lhs, len(triples) % len(tables), rhs))
    edges = [sorted(triples)[place] for place in rng.permutation(len(triples))]
    names = [laid.table for laid in tables]
    relations = tuple((f"likes {to}", one, to) for one, to in zip(names, [*names[1:], names[0]], strict=True))
    splits = {"train": edges[len(edges) // 10 :], "valid": edges[: len(edges) // 10]}
    entities = dict.fromkeys(names, NUM_ROWS)
    return write_graph(folder, splits, relations=relations, num_entities=entities, num_files=3, row_group_size=7)


def twhin_fields(tables: Sequence[Laid]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for place, laid in enumerate(tables):
        fields[f"model.embeddings.tables.{place}.optimizer"] = OPTIMIZERS[laid.optimizer]
        fields[f"model.embeddings.tables.{place}.embedding_dim"] = DIM
    return fields


def sharded_twhin(tables: Sequence[Laid]) -> dict[str, Any]:
    sharding = {laid.table: laid.kind for laid in tables}
    return {"model.embeddings.backend": "torchrec", "parallel.sharding.tables": sharding}


def test_any_sharding_trains_the_same_twhin(tmp_path: Path) -> None:
    """80 steps by two processes, 60 by three, 60 by one: a run goes on whatever its tables lay like."""
    graph = ring_graph(tmp_path / "graph", ONE_OF_EACH).path
    fields = twhin_fields(ONE_OF_EACH)
    run_ranks(1, train_on_graph, graph, tmp_path / "1", fields)
    fields |= sharded_twhin(ONE_OF_EACH)
    for size, num_steps in ((2, 80), (3, 140), (1, NUM_STEPS)):
        stops = {"training.num_train_steps": num_steps, "training.validate_every_n": 40}
        run_ranks(size, train_on_graph, graph, tmp_path / "sharded", {**fields, **stops})
    require_same(tmp_path / "sharded", tmp_path / "1")


@pytest.mark.long
def test_every_kind_with_every_optimizer_trains_the_same_twhin(tmp_path: Path) -> None:
    graph = ring_graph(tmp_path / "graph", ALL).path
    fields = twhin_fields(ALL)
    run_ranks(1, train_on_graph, graph, tmp_path / "local", fields)
    run_ranks(1, train_on_graph, graph, tmp_path / "start", {**fields, "training.num_train_steps": 1})
    require_moved(tmp_path / "local", tmp_path / "start", ALL)
    for size in SIZES:
        run = tmp_path / str(size)
        run_ranks(size, train_on_graph, graph, run, {**fields, **sharded_twhin(ALL)}, timeout_s=480)
        require_same(run, tmp_path / "local")


# -- the ranker -------------------------------------------------------------------------------------------------------

COLUMNS = ("country", "hour", "category", "item_id")


def ranker_changes(tables: Sequence[Laid]) -> dict[str, Any]:
    """A feature for each table, of the columns in turn; the tables of one column are counted, hashed or numbered."""
    sources: tuple[dict[str, Any], ...] = (
        {"vocabulary": {"min_count": 2}},
        {"num_embeddings": 24},
        {"values": list(range(7))},
        {"hash_buckets": 64},
    )
    features = [
        {"name": laid.table, "column": COLUMNS[place % 4], "table": laid.table} for place, laid in enumerate(tables)
    ]
    return {
        "features__discrete": features,
        "features__ragged": [],
        "features__tables": [
            {
                "name": laid.table,
                "embedding_dim": DIM,
                "dropout": 0.1,
                "optimizer": OPTIMIZERS[laid.optimizer],
                **sources[place % 4],
            }
            for place, laid in enumerate(tables)
        ],
        "model__featurization_config": {"log1p_abs_config": {}},
        "validation_data__valid__batch_size": 100_000,  # fewer batches of the calibration's rows than processes
    }


def sharded_ranker(tables: Sequence[Laid]) -> dict[str, Any]:
    sharding = {laid.table: laid.kind for laid in tables}
    return {"features__backend": "torchrec", "parallel__sharding": {"tables": sharding}}


@pytest.fixture(scope="module")
def impressions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder, log = tmp_path_factory.mktemp("log"), planted_log()
    write_log(folder / "log", log, num_files=3, row_group_rows=90)
    return folder / "log", write_vectors(folder / "vectors", log)


def test_any_sharding_trains_the_same_ranker(impressions: tuple[Path, Path], tmp_path: Path) -> None:
    """80 steps by two processes, 60 by three, 60 by one."""
    changes = ranker_changes(ONE_OF_EACH)
    run_ranks(1, train_on_log, *impressions, tmp_path / "1", changes)
    changes |= sharded_ranker(ONE_OF_EACH)
    for size, num_steps in ((2, 80), (3, 140), (1, NUM_STEPS)):
        stops = {"training__num_train_steps": num_steps, "training__validate_every_n": 40}
        run_ranks(size, train_on_log, *impressions, tmp_path / "sharded", {**changes, **stops})
    require_same(tmp_path / "sharded", tmp_path / "1")
    require_same_calibrations(tmp_path / "sharded", tmp_path / "1")


@pytest.mark.long
def test_every_kind_with_every_optimizer_trains_the_same_ranker(impressions: tuple[Path, Path], tmp_path: Path) -> None:
    changes = ranker_changes(ALL)
    run_ranks(1, train_on_log, *impressions, tmp_path / "local", changes)
    run_ranks(1, train_on_log, *impressions, tmp_path / "start", {**changes, "training__num_train_steps": 1})
    require_moved(tmp_path / "local", tmp_path / "start", ALL)
    for size in SIZES:
        run = tmp_path / str(size)
        run_ranks(size, train_on_log, *impressions, run, {**changes, **sharded_ranker(ALL)}, timeout_s=480)
        require_same(run, tmp_path / "local")
        require_same_calibrations(run, tmp_path / "local")


def require_same(run: Path, other: Path) -> None:
    """Equal parameters and optimizer states, to 1e-5."""
    torch.testing.assert_close(tensors(run), tensors(other), rtol=1e-5, atol=1e-5)


def require_moved(run: Path, start: Path, tables: Sequence[Laid]) -> None:
    """Each table is a thousand times farther from where it was after a step than runs may differ."""
    found, before = tensors(run), tensors(start)
    for laid in tables:
        (name,) = (name for name in found if re.split(r"\W", name)[-1] == laid.table)
        assert (found[name] - before[name]).abs().max() > 0.01, name
