"""Higgs, real Twitter: three relations trained together against each one alone and against popularity.

Split by time (days 0-3 train, 4 validation, 5-6 test). Filtered MRR by relation over all users, both sides, users that
training never saw counted. Each model trains as `rookery twhin init` sets it up and keeps its best checkpoint by
validation.

    python benchmarks/higgs.py --json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from journey import Journey, main
from torch import Tensor

from rookery.data.graph import Graph
from rookery.twhin.evaluation import Evaluator
from rookery.twhin.evaluation_config import EvaluationConfig
from rookery.types import Side


class Popularity:
    """Every entity scored by how often training has it on the asked side of the relation."""

    def __init__(self, graph: Graph) -> None:
        self.relations = graph.relations
        self._sizes = {name: info.num_entities for name, info in graph.entity_types.items()}
        edges = pq.read_table(graph.split_files("train"))
        self._counts = {
            (number, side): self._count(edges.filter(pc.equal(edges["rel"], number)), relation, side)
            for number, relation in enumerate(graph.relations)
            for side in Side
        }

    def _count(self, edges: Any, relation: Any, side: Side) -> Tensor:
        rows = torch.from_numpy(edges[side.value].to_numpy())
        return torch.bincount(rows, minlength=self.num_entities(getattr(relation, side.value))).float()

    def num_entities(self, table: str) -> int:
        return self._sizes[table]

    def score_candidates(self, side: Side, relation: int, anchors: Tensor, candidates: Tensor | None) -> Tensor:
        counts = self._counts[relation, side]
        counts = counts if candidates is None else counts[candidates]
        return counts.expand(len(anchors), -1).clone()


def edges_of(graph: Graph, relation: int, folder: Path) -> Path:
    """The training edges of one relation, in a folder of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    edges = pq.read_table(graph.split_files("train"))
    pq.write_table(edges.filter(pc.equal(edges["rel"], relation)), folder / "part-0.parquet", row_group_size=65_536)
    return folder


def mrr_by_relation(report: dict[str, Any]) -> dict[str, float]:
    relations = report["link_prediction"]["filtered"]["relations"]
    return {name: round(numbers["mrr"], 4) for name, numbers in relations.items()}


def run(journey: Journey, arguments: argparse.Namespace) -> dict[str, Any]:
    path = journey.graph("higgs", arguments.data / "higgs", "graph")
    graph = Graph.open(path)
    popularity = Evaluator.from_graph(graph, "test", EvaluationConfig()).evaluate(Popularity(graph))
    joint = journey.train(path, "joint", overrides=arguments.set)
    alone: dict[str, float] = {}
    for number, relation in enumerate(graph.relations):
        edges = edges_of(graph, number, journey.folder / f"{relation.name}-edges")
        overrides = [*arguments.set, f"train_data.data_root={edges}"]
        report = journey.evaluate(journey.train(path, relation.name, overrides=overrides), "test")
        alone[relation.name] = mrr_by_relation(report)[relation.name]
    return {
        "popularity": mrr_by_relation(popularity.report()),
        "each_alone": alone,
        "joint": mrr_by_relation(journey.evaluate(joint, "test")),
        "joint_valid": mrr_by_relation(journey.evaluate(joint, "valid")),
    }


if __name__ == "__main__":
    main(__doc__, run, set={"action": "append", "default": [], "help": "override a field of every configuration"})
