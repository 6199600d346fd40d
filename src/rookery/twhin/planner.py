"""From a batch of edges to a ``TrainBatch``: groups, chunks, drawn negatives and masks.

Runs in the prefetch thread. Everything random is a function of (seed, step), so a resumed run needs no generator state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from rookery.parallel.world import world_size
from rookery.twhin.batch import Candidates, Group, QueryGroup, TrainBatch
from rookery.twhin.negatives import NegativeSampler
from rookery.types import Side

PREDICTS = "predicts"
"""Column of a batch whose edges are trained in one direction each: the code of the side to predict."""
CODE_OF_SIDE = {Side.RHS: 0, Side.LHS: 1}

_STEP_STRIDE = 0x9E3779B97F4A7C15  # odd: consecutive steps get seeds far apart, modulo 2**63
_LANE_STRIDE = 0xD1342543DE82EF95  # and so do the lanes of a step


class KnownPairs(Protocol):
    """True edges: pairs ``(index into anchors, candidate row)`` of every true entity of each (relation, anchor)."""

    def pairs(self, side: Side, relations: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class RelationPlan:
    """What the planner knows of one relation: its tables, its operator and its row in that operator's parameters."""

    lhs_table: str
    rhs_table: str
    operator: str
    parameter_row: int
    weight: float
    one_relation: bool

    def table(self, side: Side) -> str:
        return self.lhs_table if side is Side.LHS else self.rhs_table


@dataclass(frozen=True)
class NegativePlan:
    """How negatives are made: counts, sides, chunk size; ``num_global`` None takes every entity of the type."""

    chunk_size: int
    num_in_batch: int
    num_global: int | None
    sides: tuple[Side, ...]
    log_q: bool
    group_queries: bool = False
    """Score each distinct query once: softmax over every entity, known edges not masked."""


class _Lookups:
    """Row numbers to look up, table by table, in the order in which pieces are added."""

    def __init__(self) -> None:
        self._pieces: dict[str, list[Tensor]] = {}
        self._sizes: dict[str, int] = {}
        self._whole: dict[str, int] = {}

    def add(self, table: str, rows: Tensor) -> int:
        """Append rows; the position of the first."""
        start = self._sizes.get(table, 0)
        self._pieces.setdefault(table, []).append(rows)
        self._sizes[table] = start + rows.shape[0]
        return start

    def add_all(self, table: str, num_rows: int) -> int:
        """Every row of a table, once however often it is asked for; the position of row 0."""
        if table not in self._whole:
            self._whole[table] = self.add(table, torch.arange(num_rows))
        return self._whole[table]

    def ids(self) -> dict[str, Tensor]:
        """By table, in the same order on every process."""
        return {table: torch.cat(self._pieces[table]) for table in sorted(self._pieces)}


@dataclass(frozen=True)
class _Edges:
    """The edges of one group in order, and the chunk of each."""

    lhs: Tensor
    rel: Tensor
    rhs: Tensor
    weight: Tensor | None
    chunks: tuple[tuple[int, int], ...]
    chunk_of_edge: Tensor

    def rows(self, side: Side) -> Tensor:
        return self.lhs if side is Side.LHS else self.rhs


class BatchPlanner:
    """Turns columns ``lhs, rel, rhs[, weight]`` of a batch into a ``TrainBatch``."""

    def __init__(
        self,
        relations: Sequence[RelationPlan],
        negatives: NegativePlan,
        sampler: NegativeSampler,
        *,
        seed: int,
        known: KnownPairs | None = None,
    ) -> None:
        self._relations = tuple(relations)
        self._negatives = negatives
        self._sampler = sampler
        self._seed = seed
        self._known = known
        self._generator = torch.Generator()
        self._parameter_row = torch.tensor([relation.parameter_row for relation in relations])
        self._weight = torch.tensor([relation.weight for relation in relations])
        self._weighted = any(relation.weight != 1.0 for relation in relations)
        kinds = [(relation.lhs_table, relation.rhs_table, relation.operator) for relation in relations]
        self._kinds = sorted(set(kinds))
        self._tables = sorted({table for left, right, _ in kinds for table in (left, right)})
        self._kind_of_relation = torch.tensor([self._kinds.index(kind) for kind in kinds])

    def __call__(self, columns: Mapping[str, Tensor], step: int) -> TrainBatch:
        """The batch that ``step`` (counting micro-batches from 0) trains on."""
        return self.plan({0: columns}, step, columns["lhs"].shape[0])

    def plan(self, lanes: Mapping[int, Mapping[str, Tensor]], step: int, num_edges: int) -> TrainBatch:
        """The same of a batch of ``num_edges`` edges, some ``lanes`` of which are this process's, by number.

        Negatives of a lane come from it alone, drawn for its number: what a batch trains on does not depend on which
        process has which lanes. Of several processes each names every table in the ids, for they look up together.
        """
        lookups = _Lookups()
        groups: list[Group | QueryGroup] = []
        for lane, columns in lanes.items():
            if columns["lhs"].shape[0]:
                self._generator.manual_seed((self._seed + (step + 1) * _STEP_STRIDE + lane * _LANE_STRIDE) % 2**63)
                groups += self._groups(columns, num_edges, lookups)
        if world_size() > 1:
            for table in self._tables:
                lookups.add(table, torch.empty(0, dtype=torch.int64))
        return TrainBatch(lookups.ids(), tuple(groups), num_edges)

    def _groups(self, columns: Mapping[str, Tensor], num_edges: int, lookups: _Lookups) -> Iterator[Group | QueryGroup]:
        columns = {name: column if name == "weight" else column.long() for name, column in columns.items()}
        for part in self._parts(columns):
            if self._groups_queries(part):
                yield from (self._query_group(part, side, num_edges, lookups) for side in self._sides_of(part))
            elif PREDICTS in part:
                yield from (self._group(_predicting(part, side), (side,), lookups) for side in self._sides_of(part))
            else:
                yield self._group(part, self._negatives.sides, lookups)

    def _parts(self, columns: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        if len(self._kinds) == 1:
            return [dict(columns)]
        kind = self._kind_of_relation[columns["rel"]]
        chosen = [torch.nonzero(kind == number).squeeze(1) for number in range(len(self._kinds))]
        return [{name: column[rows] for name, column in columns.items()} for rows in chosen if rows.shape[0]]

    def _group(self, columns: Mapping[str, Tensor], sides: Sequence[Side], lookups: _Lookups) -> Group:
        plan = self._relations[int(columns["rel"][0])]
        edges = self._edges(columns, plan.one_relation)
        has_one_relation = plan.one_relation or len(self._relations) == 1
        lhs_start = lookups.add(plan.lhs_table, edges.lhs)
        rhs_start = lookups.add(plan.rhs_table, edges.rhs)
        candidates = {side: self._candidates(plan.table(side), side, edges, lookups) for side in sides}
        return Group(
            lhs_table=plan.lhs_table,
            rhs_table=plan.rhs_table,
            operator=plan.operator,
            relation=self._parameter_row[edges.rel],
            weight=self._edge_weight(edges),
            lhs_start=lhs_start,
            rhs_start=rhs_start,
            chunks=edges.chunks,
            one_relation=has_one_relation,
            candidates=candidates,
        )

    def _groups_queries(self, columns: Mapping[str, Tensor]) -> bool:
        return self._negatives.group_queries and not self._relations[int(columns["rel"][0])].one_relation

    def _sides_of(self, columns: Mapping[str, Tensor]) -> tuple[Side, ...]:
        """The sides to predict: those of the batch where its edges carry one each, else all that train."""
        if PREDICTS not in columns:
            return self._negatives.sides
        present = torch.unique(columns[PREDICTS]).tolist()
        return tuple(side for side in self._negatives.sides if CODE_OF_SIDE[side] in present)

    def _query_group(
        self, columns: Mapping[str, Tensor], predicts: Side, num_edges: int, lookups: _Lookups
    ) -> QueryGroup:
        share = 1.0 / num_edges
        if PREDICTS in columns:
            columns = _predicting(columns, predicts)
        else:
            share /= len(self._negatives.sides)
        plan = self._relations[int(columns["rel"][0])]
        anchors = columns[predicts.other.value]
        keys = columns["rel"] * self._sampler.num_entities(plan.table(predicts.other)) + anchors
        keys, order = torch.sort(keys, stable=True)
        counts, query_of_edge = _run_lengths(keys)
        first = order[counts.cumsum(0) - counts]
        weight = columns.get("weight")
        relation = columns["rel"][first]
        table = plan.table(predicts)
        return QueryGroup(
            predicts=predicts,
            anchor_table=plan.table(predicts.other),
            candidate_table=table,
            operator=plan.operator,
            relation=self._parameter_row[relation],
            anchor_start=lookups.add(plan.table(predicts.other), anchors[first]),
            candidate_start=lookups.add_all(table, self._sampler.num_entities(table)),
            num_candidates=self._sampler.num_entities(table),
            query_of_edge=query_of_edge,
            target=columns[predicts.value][order],
            weight=self._weight_of(columns["rel"], weight, order),
            chunks=_query_chunks(counts, self._negatives.chunk_size),
            one_relation=len(self._relations) == 1,
            share=share,
        )

    def _weight_of(self, rel: Tensor, weight: Tensor | None, order: Tensor) -> Tensor | None:
        if weight is None and not self._weighted:
            return None
        total = self._weight[rel] if weight is None else self._weight[rel] * weight
        return total[order]

    def _edges(self, columns: Mapping[str, Tensor], one_relation: bool) -> _Edges:
        rel = columns["rel"]
        weight = columns.get("weight")
        lhs, rhs = columns["lhs"], columns["rhs"]
        if one_relation:
            rel, order = torch.sort(rel, stable=True)
            lhs, rhs = lhs[order], rhs[order]
            weight = None if weight is None else weight[order]
        chunks = _chunks(rel, self._negatives.chunk_size, one_relation)
        starts = torch.tensor([start for start, _ in chunks])
        chunk_of_edge = torch.bucketize(torch.arange(rel.shape[0]), starts, right=True).sub_(1)
        return _Edges(lhs, rel, rhs, weight, chunks, chunk_of_edge)

    def _edge_weight(self, edges: _Edges) -> Tensor | None:
        if not self._weighted:
            return edges.weight
        weight = self._weight[edges.rel]
        return weight if edges.weight is None else weight * edges.weight

    def _candidates(self, table: str, side: Side, edges: _Edges, lookups: _Lookups) -> Candidates:
        plan = self._negatives
        if plan.num_global is None:
            num_rows = self._sampler.num_entities(table)
            masked = _split(*self._true_pairs(side, edges), edges)
            start = lookups.add(table, torch.arange(num_rows))
            return Candidates(table, start, num_rows, True, 0, masked, None)
        drawn = self._sampler.draw(table, side, len(edges.chunks) * plan.num_global, self._generator)
        rows, first_column = _candidate_rows(edges, side, drawn, plan)
        masked = _split(*_columns_of(*self._true_pairs(side, edges), rows, first_column, edges), edges)
        log_expected = None
        if plan.log_q:
            expected = self._sampler.log_expected(table, side, plan.num_global, plan.num_in_batch)
            log_expected = torch.split(expected[rows], torch.diff(first_column).tolist())
        start = lookups.add(table, drawn)
        return Candidates(table, start, plan.num_global, False, plan.num_in_batch, masked, log_expected)

    def _true_pairs(self, side: Side, edges: _Edges) -> tuple[Tensor, Tensor]:
        """(edge, row of the predicted side) that must not count as negative: the positive itself, and what is known."""
        own = torch.arange(edges.rel.shape[0]), edges.rows(side)
        if self._known is None:
            return own
        known = self._known.pairs(side, edges.rel, edges.rows(side.other))
        return torch.cat([own[0], known[0]]), torch.cat([own[1], known[1]])


def _predicting(columns: Mapping[str, Tensor], side: Side) -> dict[str, Tensor]:
    """The edges of a batch with a column ``PREDICTS`` that predict ``side``."""
    rows = torch.nonzero(columns[PREDICTS] == CODE_OF_SIDE[side]).squeeze(1)
    return {name: column[rows] for name, column in columns.items()}


def _chunks(rel: Tensor, chunk_size: int, one_relation: bool) -> tuple[tuple[int, int], ...]:
    """Consecutive ranges of at most ``chunk_size`` edges, cut also where the relation changes if asked."""
    if not one_relation:
        bounds = [0, rel.shape[0]]
    else:
        counts = torch.unique_consecutive(rel, return_counts=True)[1]
        bounds = [0, *counts.cumsum(0).tolist()]
    return tuple(
        (start, min(start + chunk_size, last))
        for first, last in pairwise(bounds)
        for start in range(first, last, chunk_size)
    )


def _run_lengths(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Length of each run of equal ``keys [E]``, and the number of the run that each key is in."""
    _, run, counts = torch.unique_consecutive(keys, return_inverse=True, return_counts=True)
    return counts, run


def _query_chunks(counts: Tensor, chunk_size: int) -> tuple[tuple[int, int, int, int], ...]:
    """Ranges of at most ``chunk_size`` queries, with the edges that answer them."""
    last_edges = counts.cumsum(0)
    firsts = range(0, counts.shape[0], chunk_size)
    lasts = [min(first + chunk_size, counts.shape[0]) for first in firsts]
    ends = [int(last_edges[last - 1]) for last in lasts]
    return tuple(zip(firsts, lasts, [0, *ends[:-1]], ends, strict=True))


def _candidate_rows(edges: _Edges, side: Side, drawn: Tensor, plan: NegativePlan) -> tuple[Tensor, Tensor]:
    """Rows of the candidates, chunk after chunk, and where each chunk's begin (and the last ends)."""
    assert plan.num_global is not None
    own = edges.rows(side)
    pieces = []
    for chunk, (start, stop) in enumerate(edges.chunks):
        pieces.append(own[start : min(stop, start + plan.num_in_batch)])
        pieces.append(drawn[chunk * plan.num_global : (chunk + 1) * plan.num_global])
    sizes = [min(stop - start, plan.num_in_batch) + plan.num_global for start, stop in edges.chunks]
    return torch.cat(pieces), torch.tensor([0, *sizes]).cumsum(0)


def _columns_of(
    pair_edges: Tensor, pair_rows: Tensor, rows: Tensor, first_column: Tensor, edges: _Edges
) -> tuple[Tensor, Tensor]:
    """(edge, candidate column of its chunk) wherever a pair's row is among the candidates, repeats included.

    One sorted list of (chunk, row) keys serves all chunks.
    """
    stride = int(torch.maximum(rows.max(), pair_rows.max())) + 1
    num_chunks = first_column.shape[0] - 1
    chunk_of_column = torch.repeat_interleave(torch.arange(num_chunks), torch.diff(first_column))
    keys, order = torch.sort(chunk_of_column * stride + rows, stable=True)
    wanted = edges.chunk_of_edge[pair_edges] * stride + pair_rows
    first = torch.searchsorted(keys, wanted)
    found = torch.nonzero(keys[first.clamp(max=keys.shape[0] - 1)] == wanted).squeeze(1)
    first = first[found]
    counts = torch.searchsorted(keys, wanted[found], right=True) - first
    within = torch.arange(int(counts.sum())) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    columns = order[torch.repeat_interleave(first, counts) + within]
    hit_edges = torch.repeat_interleave(pair_edges[found], counts)
    return hit_edges, columns - first_column[edges.chunk_of_edge[hit_edges]]


def _split(hit_edges: Tensor, columns: Tensor, edges: _Edges) -> tuple[tuple[Tensor, Tensor], ...]:
    """Hits by chunk, edges counted from the start of their chunk."""
    chunk, order = torch.sort(edges.chunk_of_edge[hit_edges], stable=True)
    sizes = torch.bincount(chunk, minlength=len(edges.chunks)).tolist()
    starts = torch.tensor([start for start, _ in edges.chunks])
    within = torch.split(hit_edges[order] - starts[chunk], sizes)
    return tuple(zip(within, torch.split(columns[order], sizes), strict=True))
