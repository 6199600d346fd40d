"""Evaluation of a split by rank: what the configuration asks for, gathered once, measured as often as wanted.

Entities that training never saw are candidates and answers like any other; edges that have one are counted beside the
metrics. Edge weights do not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rookery.data.graph import Graph
from rookery.data.row_groups import CorruptRowGroup, list_row_groups, read_rows
from rookery.data.stream import OnCorrupt
from rookery.errors import DataError
from rookery.parallel.world import IsUnwanted, never
from rookery.storage.location import Location
from rookery.twhin.candidates import Scorer, by_relation
from rookery.twhin.evaluation_config import EvaluationConfig
from rookery.twhin.known import Edges, KnownEdges
from rookery.twhin.link_prediction import LinkPrediction, evaluate_link_prediction
from rookery.twhin.recommendation import Recommendation, evaluate_recommendation
from rookery.types import Side


@dataclass(frozen=True)
class Evaluation:
    """What came out, for one split."""

    split: str
    num_edges: int
    num_edges_unseen: int  # edges with an entity that no train edge has
    link_prediction: LinkPrediction | None
    recommendation: Recommendation | None

    def metrics(self) -> dict[str, float]:
        """All overall numbers by name: ``mrr``, ``hits@10``, ``mean_rank``, ``rhs/mrr``, ``recall@20``, ``ndcg@20``;
        what ``keep_best`` may name.
        """
        parts = (self.link_prediction, self.recommendation)
        return {name: value for part in parts if part is not None for name, value in part.metrics().items()}

    def report(self) -> dict[str, object]:
        """JSON, by side and relation too; an AUC without a second candidate is NaN."""
        report: dict[str, object] = {
            "split": self.split,
            "num_edges": self.num_edges,
            "num_edges_unseen": self.num_edges_unseen,
        }
        if self.link_prediction is not None:
            report["link_prediction"] = self.link_prediction.report()
        if self.recommendation is not None:
            report["recommendation"] = self.recommendation.report()
        return report


@dataclass(frozen=True)
class Evaluator:
    """The edges of a split and what is known about their entities; made once, used at every validation."""

    config: EvaluationConfig
    split: str
    edges: Edges
    num_edges_unseen: int
    known: KnownEdges | None
    masked: KnownEdges | None

    @classmethod
    def from_graph(
        cls, graph: Graph, split: str, config: EvaluationConfig, on_corrupt: OnCorrupt = "fail"
    ) -> Evaluator:
        """Read a split, and of all splits the edges that share an anchor with it; with ``on_corrupt`` "skip" those of
        them that can be decoded.

        Raises ``DataError`` for a split that the graph does not have, that is empty or that cannot be decoded.
        """
        edges = _sample(read_edges(graph.split_files(split)), config)
        if not edges.num_edges:
            raise DataError(
                f"{graph.path}: split '{split}' has no edges to evaluate; ingest the graph with a larger one"
            )
        ranks, recommends = "link_prediction" in config.metrics, "recommendation" in config.metrics
        own = KnownEdges.build(edges)
        filters = graph.splits if ranks and config.filtered else ()
        masks = [name for name in config.mask_splits if name in graph.splits and name != split] if recommends else ()
        parts = {name: _read_sharing(graph.split_files(name), own, on_corrupt) for name in {*filters, *masks}}
        return cls(
            config,
            split,
            edges,
            _num_unseen(graph, edges),
            KnownEdges.build(edges, *(parts[name] for name in filters)) if filters else None,
            KnownEdges.build(_no_edges(), *(parts[name] for name in masks)) if recommends else None,
        )

    def evaluate(self, scorer: Scorer, is_unwanted: IsUnwanted = never) -> Evaluation:
        """Measure a model. Raises ``TrainingError`` if its scores are not finite, ``Abandoned`` once it is unwanted."""
        ranked = recommended = None
        with torch.no_grad():
            if "link_prediction" in self.config.metrics:
                ranked = evaluate_link_prediction(scorer, self.edges, self.known, self.config, is_unwanted)
            if self.masked is not None:
                recommended = evaluate_recommendation(scorer, self.edges, self.masked, self.config, is_unwanted)
        return Evaluation(self.split, self.edges.num_edges, self.num_edges_unseen, ranked, recommended)


def read_edges(files: Sequence[Location]) -> Edges:
    """All edges of Parquet files of a graph."""
    return Edges.concat([_no_edges(), *edge_batches(files)])


def _read_sharing(files: Sequence[Location], own: KnownEdges, on_corrupt: OnCorrupt) -> Edges:
    """The edges that answer a query of ``own``, on either side: all that a filter needs, however large the split."""
    parts = [_no_edges()]
    for batch in edge_batches(files, on_corrupt):
        shares = [own.counts(side, batch.rel, batch.toward(side)[0]) > 0 for side in Side]
        parts.append(batch.select(shares[0] | shares[1]))
    return Edges.concat(parts)


def edge_batches(files: Sequence[Location], on_corrupt: OnCorrupt = "fail") -> Iterator[Edges]:
    """The edges of Parquet files of a graph, a row group at a time.

    Raises ``DataError`` for one that cannot be decoded, or leaves it out.
    """
    slices, types = list_row_groups(files, Edges._fields)
    for piece in slices:
        try:
            columns = read_rows([piece], types)
        except CorruptRowGroup:
            if on_corrupt == "fail":
                raise
            continue
        yield Edges(*(columns[name].long() for name in Edges._fields))


def _no_edges() -> Edges:
    return Edges(*torch.empty(3, 0, dtype=torch.int64))


def _sample(edges: Edges, config: EvaluationConfig) -> Edges:
    if config.max_edges is None or config.max_edges >= edges.num_edges:
        return edges
    chosen = np.random.default_rng(config.seed).choice(edges.num_edges, config.max_edges, replace=False)
    return edges.select(torch.from_numpy(np.sort(chosen)))


def _num_unseen(graph: Graph, edges: Edges) -> int:
    """Edges with an entity that stands on no side of any train edge."""
    unseen = {}
    for entity_type in graph.entity_types:
        vocabulary = graph.vocabulary(entity_type)
        unseen[entity_type] = torch.from_numpy(sum(vocabulary.degrees(side) for side in Side) == 0)
    affected = 0
    for relation, own in by_relation(edges):
        names = graph.relations[relation]
        affected += int((unseen[names.lhs][own.lhs] | unseen[names.rhs][own.rhs]).sum())
    return affected
