"""A small ingested graph of users and items."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_graph import one_thread

from rookery.data.graph import Graph

Triple = tuple[int, int, int]

RELATIONS = (("likes", "user", "item"), ("follows", "user", "user"))
NUM_ENTITIES = {"user": 12, "item": 10}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def splits() -> dict[str, list[Triple]]:
    """User 11 and item 9 are in the test split alone; user 3 and user 5 are joined by a follow."""
    likes = [(user, 0, item) for user in range(11) for item in range(9) if (user + item) % 3]
    return {
        "train": [*likes, (3, 1, 5), (0, 0, 1)],
        "valid": [(user, 0, user % 9) for user in range(9)],
        "test": [(0, 0, 3), (4, 0, 9), (11, 0, 5), (11, 0, 9), (2, 0, 4)],
        "empty": [],
    }


@pytest.fixture
def graph(tmp_path: Path, splits: dict[str, list[Triple]]) -> Graph:
    folder = tmp_path / "graph"
    (folder / "vocab").mkdir(parents=True)
    for split, triples in splits.items():
        (folder / "edges" / split).mkdir(parents=True)
        columns = np.array(triples, dtype=np.int64).reshape(-1, 3).T
        table = pa.table(dict(zip(("lhs", "rel", "rhs"), columns, strict=True)))
        pq.write_table(table, folder / "edges" / split / "part-0.parquet")
    for name in NUM_ENTITIES:
        pq.write_table(_vocabulary(name, splits["train"]), folder / "vocab" / f"{name}.parquet")
    (folder / "manifest.json").write_text(json.dumps(_manifest(splits)))
    return Graph.open(folder)


def _vocabulary(name: str, train: list[Triple]) -> pa.Table:
    num = NUM_ENTITIES[name]
    degrees = {
        f"{side}_degree": np.bincount(
            [edge[2 * place] for edge in train if RELATIONS[edge[1]][1 + place] == name], minlength=num
        )
        for place, side in enumerate(("lhs", "rhs"))
    }
    return pa.table({"row": range(num), "id": [f"{name}-{row}" for row in range(num)], **degrees})


def _manifest(splits: dict[str, list[Triple]]) -> dict[str, object]:
    return {
        "format": 1,
        "entity_types": {
            name: {"num_entities": num, "vocab": f"vocab/{name}.parquet", "id_type": "string"}
            for name, num in NUM_ENTITIES.items()
        },
        "relations": [
            {
                "name": name,
                "lhs": lhs,
                "rhs": rhs,
                "num_edges": {split: sum(e[1] == row for e in triples) for split, triples in splits.items()},
            }
            for row, (name, lhs, rhs) in enumerate(RELATIONS)
        ],
        "splits": {
            split: {"path": f"edges/{split}", "num_edges": len(triples), "files": ["part-0.parquet"]}
            for split, triples in splits.items()
        },
        "weighted": False,
        "seed": 0,
    }
