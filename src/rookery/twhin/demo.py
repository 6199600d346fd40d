"""The demo: a small graph with planted communities goes through the whole of TwHIN, and is held against the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from rookery.checkpoint.files import write_atomically
from rookery.config.loader import load_config
from rookery.data.graph import Graph
from rookery.data.ingest import ingest
from rookery.data.ingest_config import IngestConfig
from rookery.data.planted import PlantedConfig, write_planted
from rookery.twhin.config import TwhinConfig
from rookery.twhin.evaluation import Evaluator
from rookery.twhin.init import initial_config
from rookery.twhin.retrieval import NeighborRequest, Neighbors, find_neighbors
from rookery.twhin.source import Source, open_source
from rookery.twhin.train import load_run, train_twhin
from rookery.types import Side

NUM_NEIGHBORS = 10
_NUM_SHOWN = 3
_MIN_DEGREE = 20  # an entity with fewer edges has not said enough for its community to be known


@dataclass(frozen=True)
class Metric:
    """One number of the model beside what the truth itself reaches and what chance does."""

    name: str
    model: float
    truth: float
    chance: float


@dataclass(frozen=True)
class Example:
    """Neighbours of one entity, and whether each is of its community."""

    id: str
    community: int
    neighbors: Neighbors
    same_community: list[bool]


@dataclass(frozen=True)
class DemoResult:
    """What the demo found, and the folder of its graph and run."""

    folder: Path
    metrics: list[Metric]
    examples: list[Example]


class Truth:
    """The planted graph's own probabilities, as a scorer that no model can beat but by luck."""

    def __init__(self, graph: Graph, planted: PlantedConfig, table: pa.Table) -> None:
        self.relations = graph.relations
        self._planted = planted
        self._columns = {name: _by_row(graph, table, name) for name in graph.entity_types}

    def num_entities(self, table: str) -> int:
        return len(self._columns[table][0])

    def community(self, table: str) -> Tensor:
        """The community ``[num_entities]`` of each row."""
        return self._columns[table][0]

    def score_candidates(self, side: Side, relation: int, anchors: Tensor, candidates: Tensor | None) -> Tensor:
        """Probability ``[E, C]`` of each candidate up to a factor per anchor."""
        info = self.relations[relation]
        own = self.community(info.lhs if side is Side.RHS else info.rhs)[anchors]
        communities, activity = self._columns[info.rhs if side is Side.RHS else info.lhs]
        mass = torch.zeros(self._planted.num_communities, dtype=activity.dtype).index_add_(0, communities, activity)
        rows = torch.arange(len(communities)) if candidates is None else candidates
        inside = (own.unsqueeze(1) == communities[rows]) / mass[communities[rows]]
        return activity[rows] * (self._planted.p_inside * inside + (1 - self._planted.p_inside))


def run_demo(folder: Path, notify: Callable[[str], None], planted: PlantedConfig | None = None) -> DemoResult:
    """Generate, ingest, train, evaluate, search. Started again after an interruption it goes on with the training.

    Raises ``KeyboardInterrupt`` when the training was interrupted, behind its checkpoint.
    """
    planted = planted or PlantedConfig()
    raw, graph_path, run = folder / "edges", folder / "graph", folder / "run"
    if not (graph_path / "manifest.json").exists():
        notify("generating a graph with planted communities")
        write_planted(planted, raw, overwrite=True)
        notify("ingesting it")
        ingest(load_config(IngestConfig, raw / "ingest.yaml"), raw, graph_path, overwrite=True)
    write_atomically(folder / "config.yaml", initial_config(graph_path, run))
    notify("training TwHIN")
    if train_twhin(load_config(TwhinConfig, folder / "config.yaml")).reason == "interrupted":
        raise KeyboardInterrupt
    notify("evaluating and searching")
    graph = Graph.open(graph_path)
    truth = Truth(graph, planted, pq.read_table(raw / "truth.parquet"))
    return DemoResult(folder, _metrics(graph, run, truth), _examples(run, graph, truth))


def _by_row(graph: Graph, table: pa.Table, name: str) -> tuple[Tensor, Tensor]:
    """Community and activity of an entity type in the graph's row order."""
    own = table.filter(pc.equal(table.column("entity_type"), name))
    ids = graph.vocabulary(name).table.column("id")
    order = pc.index_in(ids, value_set=own.column("id").combine_chunks())
    taken = own.take(order)
    return (
        torch.from_numpy(np.array(taken.column("community").to_numpy())),
        torch.from_numpy(np.array(taken.column("activity").to_numpy())),
    )


class _Chance:
    """Random scores, the same each time."""

    def __init__(self, graph: Graph) -> None:
        self.relations = graph.relations
        self._sizes = {name: info.num_entities for name, info in graph.entity_types.items()}
        self._generator = torch.Generator().manual_seed(0)

    def num_entities(self, table: str) -> int:
        return self._sizes[table]

    def score_candidates(self, side: Side, relation: int, anchors: Tensor, candidates: Tensor | None) -> Tensor:
        info = self.relations[relation]
        table = info.rhs if side is Side.RHS else info.lhs
        size = self._sizes[table] if candidates is None else len(candidates)
        return torch.rand(len(anchors), size, generator=self._generator)


def _metrics(graph: Graph, run: Path, truth: Truth) -> list[Metric]:
    loaded = load_run(run)
    evaluator = Evaluator.from_graph(graph, "test", loaded.config.evaluation)
    found = [evaluator.evaluate(scorer).metrics() for scorer in (loaded.model, truth, _Chance(graph))]
    names = ("mrr", "hits@10")
    metrics = [Metric(f"test {name}", *(metric[name] for metric in found)) for name in names]
    return [*metrics, _purity(loaded.model.entity_rows("user"), graph, truth)]


def _purity(rows: Tensor, graph: Graph, truth: Truth) -> Metric:
    """How many of the ten most similar users of an active user are of its community."""
    degrees = sum(torch.tensor(graph.vocabulary("user").degrees(side)) for side in Side)
    active = torch.nonzero(torch.as_tensor(degrees) >= _MIN_DEGREE).squeeze(1)
    unit = torch.nn.functional.normalize(rows.float(), dim=1)
    scores = unit[active] @ unit.T
    scores[torch.arange(len(active)), active] = -torch.inf
    nearest = scores.topk(NUM_NEIGHBORS, dim=1).indices
    community = truth.community("user")
    same = community[nearest] == community[active].unsqueeze(1)
    chance = 1.0 / len(set(community.tolist()))
    return Metric(
        f"neighbours of the same community, {NUM_NEIGHBORS} nearest", same.double().mean().item(), 1.0, chance
    )


def _examples(run: Path, graph: Graph, truth: Truth) -> list[Example]:
    """The most active users of three communities."""
    community = truth.community("user")
    chosen: list[int] = []
    for row in range(len(community)):  # rows are ordered by degree
        if community[row] not in community[chosen]:
            chosen.append(row)
        if len(chosen) == _NUM_SHOWN:
            break
    source = open_source(run)
    return [_example(source, str(entity), graph, truth) for entity in graph.vocabulary("user").ids(chosen)]


def _example(source: Source, entity: str, graph: Graph, truth: Truth) -> Example:
    found = find_neighbors(source, NeighborRequest([entity], NUM_NEIGHBORS, "user"))
    ids = [entity, *(str(neighbor.id) for neighbor in found.neighbors)]
    communities = truth.community("user")[torch.from_numpy(graph.vocabulary("user").rows(ids))].tolist()
    return Example(entity, communities[0], found, [other == communities[0] for other in communities[1:]])
