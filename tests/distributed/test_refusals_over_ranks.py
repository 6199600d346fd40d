"""What no process can run is refused by all of them, once."""

from __future__ import annotations

from pathlib import Path

import pytest
from forked_commands import start_commands
from planted_impressions import planted_config, planted_log, write_log
from small_graph import make_config, planted_splits, write_graph
from training_jobs import finish

from rookery.config.loader import dump_config


def require_refused(arguments: list[str], config: Path, folder: Path, expected: str) -> None:
    said = finish(start_commands([*arguments, "train", str(config)], folder / "streams", 3), [2, 2, 2])
    assert said[1:] == ["", ""]
    assert said[0].startswith("[rank 0] error: ")
    assert expected in said[0]
    assert not (folder / "run").exists()


def test_columns_that_three_processes_cannot_share(tmp_path: Path) -> None:
    """TwHIN's before anything is opened, the ranker's once its tables have been counted."""
    pytest.importorskip("fbgemm_gpu", reason="needs the cluster extra")
    graph = write_graph(tmp_path / "graph", planted_splits(300), num_files=3, row_group_size=7)
    tables = {f"model.embeddings.tables.{place}.embedding_dim": 16 for place in (0, 1)}
    optimizers = {f"model.embeddings.tables.{place}.optimizer": {"adagrad": {"lr": 0.05}} for place in (0, 1)}
    sharding = {"model.embeddings.backend": "torchrec", "parallel.sharding.default": "column_wise"}
    fields = {**tables, **optimizers, **sharding, "parallel.num_lanes": 12}
    (tmp_path / "twhin.yaml").write_text(dump_config(make_config(graph, tmp_path / "run", fields)))
    expected = "embedding_dim=16 does not divide into multiples of 4 over 3 processes; use a multiple of 12"
    require_refused(["twhin"], tmp_path / "twhin.yaml", tmp_path, expected)

    write_log(tmp_path / "log", planted_log(600))
    changes = {
        "features__backend": "torchrec",
        "features__tables": [
            {"name": name, "embedding_dim": 16, "hash_buckets": 99, "optimizer": {"adagrad": {"lr": 0.1}}}
            for name in ("countries", "hours", "categories", "items")
        ],
        "parallel": {"num_lanes": 6, "sharding": {"default": "column_wise"}},
    }
    config = planted_config(tmp_path / "log", tmp_path / "run", None, **changes)
    (tmp_path / "ranker.yaml").write_text(dump_config(config))
    require_refused(["ranker"], tmp_path / "ranker.yaml", tmp_path, expected)
