"""An index of known edges: which entities are true answers for an anchor under a relation, on either side.

Evaluation filters known answers from the ranking; training masks them among the negatives.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rookery.types import Side


class Edges(NamedTuple):
    """Typed edges as row numbers, each int64 ``[E]``."""

    lhs: Tensor
    rel: Tensor
    rhs: Tensor

    @property
    def num_edges(self) -> int:
        return self.lhs.numel()

    @classmethod
    def concat(cls, parts: Iterable[Edges]) -> Edges:
        return cls(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def select(self, index: Tensor) -> Edges:
        """The edges at ``index``: row numbers or a boolean mask."""
        return Edges(self.lhs[index], self.rel[index], self.rhs[index])

    def toward(self, side: Side) -> tuple[Tensor, Tensor]:
        """``(anchors, answers)`` when the entity on ``side`` is asked for."""
        return (self.lhs, self.rhs) if side is Side.RHS else (self.rhs, self.lhs)


@dataclass(frozen=True)
class _SideIndex:
    """Answers of each (relation, anchor), compressed by row: the answers of ``keys[i]`` are
    ``answers[offsets[i]:offsets[i + 1]]``.
    """

    num_anchors: int  # key = relation * num_anchors + anchor
    keys: Tensor  # [K] ascending
    offsets: Tensor  # [K + 1]
    answers: Tensor  # [pairs], ascending and distinct within a key; int32 where the rows fit, to halve the memory

    @classmethod
    def build(cls, relations: Tensor, anchors: Tensor, answers: Tensor) -> _SideIndex:
        num_anchors = _bound(anchors)
        num_answers = _bound(answers)
        keys, key_of_edge = torch.unique(relations * num_anchors + anchors, return_inverse=True)
        pairs = torch.unique(key_of_edge * num_answers + answers)  # sorts by key, then answer; drops repeats
        counts = torch.bincount(pairs // num_answers, minlength=keys.numel())
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        dtype = torch.int32 if num_answers < 2**31 else torch.int64
        return cls(num_anchors, keys, offsets, (pairs % num_answers).to(dtype))

    def ranges(self, relations: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """First position in ``answers`` and number of answers, each ``[E]``."""
        if not self.keys.numel():
            return torch.zeros_like(anchors), torch.zeros_like(anchors)
        wanted = relations * self.num_anchors + anchors
        slot = torch.searchsorted(self.keys, wanted).clamp(max=self.keys.numel() - 1)
        present = (self.keys[slot] == wanted) & (anchors < self.num_anchors)
        first = self.offsets[slot]
        return first, torch.where(present, self.offsets[slot + 1] - first, 0)


class KnownEdges:
    """True edges by (relation, anchor), for both sides. Every lookup is vectorised.

    8 bytes a distinct edge (16 where a table has 2**31 rows or more) and 16 bytes a distinct (relation, anchor) of
    either side. Lives on the device of the edges that it was built from.
    """

    def __init__(self, rhs: _SideIndex, lhs: _SideIndex) -> None:
        self._sides = {Side.RHS: rhs, Side.LHS: lhs}

    @classmethod
    def build(cls, *edges: Edges) -> KnownEdges:
        """Index the union of ``edges`` (one ``Edges`` a split, say); repeats count once."""
        lhs, rel, rhs = Edges.concat(edges)
        return cls(rhs=_SideIndex.build(rel, lhs, rhs), lhs=_SideIndex.build(rel, rhs, lhs))

    def counts(self, side: Side, relations: Tensor | int, anchors: Tensor) -> Tensor:
        """How many known entities on ``side`` each query ``[E]`` has, int64 ``[E]``."""
        return self._ranges(side, relations, anchors)[1]

    def pairs(self, side: Side, relations: Tensor | int, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """``(query index [P], entity row [P])`` of every known entity on ``side`` of the queries ``[E]``.

        Ordered by query, then by entity; int64. ``side=Side.RHS``: anchors are lhs rows.
        """
        first, counts = self._ranges(side, relations, anchors)
        query, position = _expand(first, counts)
        return query, self._sides[side].answers[position].to(torch.int64)

    def _ranges(self, side: Side, relations: Tensor | int, anchors: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(relations, int):
            relations = torch.full_like(anchors, relations)
        return self._sides[side].ranges(relations, anchors)


def _expand(first: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """``counts[i]`` consecutive positions from ``first[i]``, and the ``i`` of each: two ``[sum(counts)]``."""
    owner = torch.repeat_interleave(counts)
    start = counts.cumsum(0) - counts
    return owner, torch.arange(owner.numel(), device=owner.device) - start[owner] + first[owner]


def _bound(rows: Tensor) -> int:
    """One more than the largest row number."""
    return int(rows.max()) + 1 if rows.numel() else 1
