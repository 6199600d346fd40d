"""What one training step reads: which rows to look up, and how edges and candidates lie in them.

A batch of edges is split into groups that share table pair and operator, a group into chunks. The edges of a chunk
share their candidates (negatives): the other edges' entities of the chunk (in-batch) and rows drawn from the table of
the right type (global). All rows of one table are looked up at once; groups and candidates know where theirs begin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rookery.types import Side


@dataclass(frozen=True)
class Candidates:
    """The negatives of one direction of a group.

    ``start`` is the position in the lookup of ``table`` where the global negatives begin: ``num_global`` rows a chunk,
    chunk after chunk, or the same ``num_global`` rows for all chunks where ``shared``. The first ``num_in_batch``
    edges of a chunk lend their own entities; these columns come first.

    ``masked[k]`` is ``(edges, columns)`` of the accidental true edges of chunk k; ``log_expected[k]`` ``[columns]`` the
    logarithm of how often each candidate is expected among the negatives (None: no correction).
    """

    table: str
    start: int
    num_global: int
    shared: bool
    num_in_batch: int
    masked: tuple[tuple[Tensor, Tensor], ...]
    log_expected: tuple[Tensor, ...] | None

    def to(self, device: torch.device) -> Candidates:
        masked = tuple((edges.to(device), columns.to(device)) for edges, columns in self.masked)
        log_expected = None if self.log_expected is None else tuple(part.to(device) for part in self.log_expected)
        return replace(self, masked=masked, log_expected=log_expected)

    def start_of(self, chunk: int) -> int:
        """Position of the first global negative of a chunk in the lookup of ``table``."""
        return self.start if self.shared else self.start + chunk * self.num_global


@dataclass(frozen=True)
class Group:
    """Edges of one table pair and operator: rows ``lhs_start + i`` and ``rhs_start + i`` of the lookups.

    ``relation [E]`` are rows of the operator's parameters, ``weight [E]`` multiplies the loss of an edge.
    ``chunks`` are ``(start, stop)`` within the group; ``one_relation`` says that each chunk has a single relation.
    """

    lhs_table: str
    rhs_table: str
    operator: str
    relation: Tensor
    weight: Tensor | None
    lhs_start: int
    rhs_start: int
    chunks: tuple[tuple[int, int], ...]
    one_relation: bool
    candidates: Mapping[Side, Candidates]

    def to(self, device: torch.device) -> Group:
        weight = None if self.weight is None else self.weight.to(device)
        candidates = {side: part.to(device) for side, part in self.candidates.items()}
        return replace(self, relation=self.relation.to(device), weight=weight, candidates=candidates)

    def table(self, side: Side) -> str:
        return self.lhs_table if side is Side.LHS else self.rhs_table

    def start(self, side: Side) -> int:
        return self.lhs_start if side is Side.LHS else self.rhs_start


@dataclass(frozen=True)
class QueryGroup:
    """Queries that are answered by a softmax over every entity: each distinct (relation, anchor) is scored once.

    ``U`` queries with anchors in rows ``anchor_start + i`` of the lookup of ``anchor_table``; all ``num_candidates``
    rows of ``candidate_table`` from ``candidate_start`` on. Edge e answers query ``query_of_edge[e]`` (ascending) with
    the candidate ``target[e]``. ``chunks`` are ``(first query, last query, first edge, last edge)``, ends excluded.
    ``share`` is the part of the batch's mean loss that an edge of weight 1 has.
    """

    predicts: Side
    anchor_table: str
    candidate_table: str
    operator: str
    relation: Tensor  # [U]
    anchor_start: int
    candidate_start: int
    num_candidates: int
    query_of_edge: Tensor  # [E]
    target: Tensor  # [E]
    weight: Tensor | None  # [E]
    chunks: tuple[tuple[int, int, int, int], ...]
    one_relation: bool
    share: float

    def to(self, device: torch.device) -> QueryGroup:
        weight = None if self.weight is None else self.weight.to(device)
        moved = {name: getattr(self, name).to(device) for name in ("relation", "query_of_edge", "target")}
        return replace(self, weight=weight, **moved)


@dataclass(frozen=True)
class TrainBatch:
    """Row numbers to look up by table, and the groups that use them.

    ``num_edges`` are those of the whole batch, of which other processes may have others: losses are parts of its mean.
    """

    ids: Mapping[str, Tensor]
    groups: tuple[Group | QueryGroup, ...]
    num_edges: int

    def to(self, device: torch.device) -> TrainBatch:
        """The batch with its tensors on ``device``."""
        ids = {table: rows.to(device) for table, rows in self.ids.items()}
        return TrainBatch(ids, tuple(group.to(device) for group in self.groups), self.num_edges)
