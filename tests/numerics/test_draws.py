"""Training leaves torch's own generator alone: what it draws follows from the seed and the place in the stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from planted_impressions import planted_log, write_log, write_vectors
from small_graph import planted_splits, write_graph
from trained_over_ranks import train_on_graph, train_on_log

DROPOUT: dict[str, Any] = {"dropout": {"rate": 0.2}, "final_layer_activation": True}


def require_untouched(seed: int) -> None:
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    assert torch.equal(state, torch.get_rng_state())


def test_a_ranker_with_dropout(tmp_path: Path) -> None:
    log = planted_log()
    write_log(tmp_path / "log", log, num_files=3, row_group_rows=90)
    changes = {
        "runtime": {"device": "cpu", "seed": 7},
        "training__num_train_steps": 3,
        "training__validate_every_n": 2,
        "model__backbone": {"mlp_config": {"layer_sizes": [16], **DROPOUT}},
        "features__discrete": [{"name": "country", "table": "countries"}],
        "features__ragged": [],
        "features__tables": [{"name": "countries", "embedding_dim": 3, "vocabulary": {}, "dropout": 0.2}],
    }
    train_on_log(tmp_path / "log", write_vectors(tmp_path / "vectors", log), tmp_path / "run", changes)
    require_untouched(7)


def test_twhin_with_sampled_negatives(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "graph", planted_splits(300), num_files=3, row_group_size=7)
    fields = {"runtime.seed": 7, "training.num_train_steps": 3, "training.validate_every_n": 2}
    train_on_graph(graph.path, tmp_path / "run", fields)
    require_untouched(7)
