"""Small ingested graphs written without the ingest, and configurations that train on them in a moment."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rookery.config.loader import parse_config
from rookery.data.graph import Graph
from rookery.twhin.config import TwhinConfig

Triple = tuple[int, int, int]
RelationTypes = tuple[tuple[str, str, str], ...]

RELATIONS: RelationTypes = (("likes", "user", "item"), ("follows", "user", "user"))
NUM_ENTITIES = {"user": 20, "item": 15}
NUM_COMMUNITIES = 5


@contextmanager
def one_thread() -> Iterator[None]:
    """Threads cost a small model more than they bring, and the order of their sums is not that of one."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def planted_triples(num_edges: int = 200, seed: int = 0) -> list[Triple]:
    """Distinct edges inside communities (row modulo ``NUM_COMMUNITIES``), in random order; a fifth are follows."""
    rng = np.random.default_rng(seed)
    triples: set[Triple] = set()
    while len(triples) < num_edges:
        rel = int(rng.random() < 0.2)
        lhs = int(rng.integers(NUM_ENTITIES["user"]))
        size = NUM_ENTITIES[RELATIONS[rel][2]] // NUM_COMMUNITIES
        inside = rng.random() < 0.9
        rhs = int(rng.integers(size)) * NUM_COMMUNITIES + (lhs if inside else int(rng.integers(5))) % NUM_COMMUNITIES
        triples.add((lhs, rel, rhs))
    return [sorted(triples)[position] for position in rng.permutation(num_edges)]


def planted_splits(num_edges: int = 200, seed: int = 0) -> dict[str, list[Triple]]:
    """The same edges with a tenth held out for validation."""
    triples = planted_triples(num_edges, seed)
    return {"train": triples[num_edges // 10 :], "valid": triples[: num_edges // 10]}


def write_graph(
    folder: Path,
    splits: Mapping[str, Sequence[Triple]],
    *,
    relations: RelationTypes = RELATIONS,
    num_entities: Mapping[str, int] | None = None,
    ids: Mapping[str, Sequence[Any]] | None = None,
    weights: Sequence[float] | None = None,
    num_files: int = 1,
    row_group_size: int = 65_536,
) -> Graph:
    """Write a graph of the documented layout; ``weights`` are those of the train edges (others weigh 1)."""
    num_entities = num_entities or NUM_ENTITIES
    (folder / "vocab").mkdir(parents=True)
    for split, triples in splits.items():
        (folder / "edges" / split).mkdir(parents=True)
        columns: dict[str, Any] = dict(
            zip(("lhs", "rel", "rhs"), np.array(triples, dtype=np.int64).reshape(-1, 3).T, strict=True)
        )
        if weights is not None:
            columns["weight"] = np.array(weights if split == "train" else np.ones(len(triples)), dtype=np.float32)
        for number, part in enumerate(np.array_split(np.arange(len(triples)), num_files)):
            table = pa.table({name: column[part] for name, column in columns.items()})
            pq.write_table(table, folder / "edges" / split / f"part-{number}.parquet", row_group_size=row_group_size)
    for number, (name, count) in enumerate(num_entities.items()):
        names = [f"{name}-{row}" for row in range(count)] if ids is None else ids[name]
        table = _vocabulary(name, names, splits["train"], relations)
        pq.write_table(table, folder / "vocab" / f"{number}.parquet")
    manifest = _manifest(splits, relations, num_entities, num_files, weighted=weights is not None)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return Graph.open(folder)


def _vocabulary(name: str, ids: Sequence[Any], train: Sequence[Triple], relations: RelationTypes) -> pa.Table:
    degrees = {
        f"{side}_degree": np.bincount(
            np.array([edge[2 * place] for edge in train if relations[edge[1]][1 + place] == name], dtype=np.int64),
            minlength=len(ids),
        )
        for place, side in enumerate(("lhs", "rhs"))
    }
    return pa.table({"row": range(len(ids)), "id": ids, **degrees})


def _manifest(
    splits: Mapping[str, Sequence[Triple]],
    relations: RelationTypes,
    num_entities: Mapping[str, int],
    num_files: int,
    weighted: bool,
) -> dict[str, Any]:
    return {
        "format": 1,
        "entity_types": {
            name: {"num_entities": count, "vocab": f"vocab/{number}.parquet", "id_type": "string"}
            for number, (name, count) in enumerate(num_entities.items())
        },
        "relations": [
            {
                "name": name,
                "lhs": lhs,
                "rhs": rhs,
                "num_edges": {split: sum(edge[1] == row for edge in triples) for split, triples in splits.items()},
            }
            for row, (name, lhs, rhs) in enumerate(relations)
        ],
        "splits": {
            split: {
                "path": f"edges/{split}",
                "num_edges": len(triples),
                "files": [f"part-{number}.parquet" for number in range(num_files)],
            }
            for split, triples in splits.items()
        },
        "weighted": weighted,
        "seed": 0,
    }


def config_data(graph: Graph, save_dir: Path, fields: Mapping[str, Any] | None = None, **table: Any) -> dict[str, Any]:
    """A configuration for ``graph`` as data; ``fields`` replace members by path, ``table`` those of every table."""
    defaults = {"embedding_dim": 8, "init_scale": 0.1, "optimizer": {"rowwise_adagrad": {"lr": 0.1}}}
    data: dict[str, Any] = {
        "graph": str(graph.path),
        "runtime": {"device": "cpu", "num_threads": 1},
        "training": {"save_dir": str(save_dir), "num_train_steps": 10, "train_log_every_n": 1},
        "model": {
            "embeddings": {
                "tables": [
                    {"name": name, "num_embeddings": info.num_entities, **copy.deepcopy(defaults), **table}
                    for name, info in graph.entity_types.items()
                ]
            },
            "relations": [{"name": each.name, "lhs": each.lhs, "rhs": each.rhs} for each in graph.relations],
            "translation_optimizer": {"adagrad": {"lr": 0.1}},
        },
        "train_data": {
            "per_replica_batch_size": 32,
            "chunk_size": 16,
            "global_negatives": 10,
            "in_batch_negatives": 5,
        },
    }
    for path, value in (fields or {}).items():
        *parents, last = path.split(".")
        place: Any = data
        for name in parents:
            place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
        place[int(last) if isinstance(place, list) else last] = value
    return data


def make_config(graph: Graph, save_dir: Path, fields: Mapping[str, Any] | None = None, **table: Any) -> TwhinConfig:
    """The configuration of ``config_data``, validated."""
    return parse_config(TwhinConfig, config_data(graph, save_dir, fields, **table), "test")


def log_lines(save_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (save_dir / "metrics.jsonl").read_text().splitlines()]
