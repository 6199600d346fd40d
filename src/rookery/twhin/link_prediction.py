"""Link prediction: the rank of each edge's true entity among the candidates of its type, raw and filtered (Bordes et
al. 2013).
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rookery.metrics.ranking import RankSums
from rookery.parallel.world import IsUnwanted, never, spread
from rookery.twhin.candidates import (
    CandidateList,
    QueryChunk,
    Scorer,
    Strikes,
    by_relation,
    query_chunks,
    require_finite,
)
from rookery.twhin.evaluation_config import EvaluationConfig
from rookery.twhin.known import Edges, KnownEdges
from rookery.types import Side

_BLOCK_SCORES = 2**20  # signs are taken of 4 MiB of scores at a time, which stay in cache

Sums = Mapping[tuple[int, Side], RankSums]


@dataclass(frozen=True)
class LinkPrediction:
    """Rank sums per (relation, side asked for); ``filtered`` is None when it was not asked for."""

    relation_names: tuple[str, ...]
    filtered: Sums | None
    raw: Sums

    def metrics(self) -> dict[str, float]:
        """``mrr``, ``hits@<k>``, ``mean_rank``, ``auc``, and ``rhs/mrr``, ``lhs/mrr``: filtered ranks.

        Without filtered ranks each name begins with ``raw_``.
        """
        sums, prefix = (self.raw, "raw_") if self.filtered is None else (self.filtered, "")
        flat = {prefix + name: value for name, value in _total(sums).compute().items()}
        return flat | {f"{side.value}/{prefix}mrr": _total(sums, side).compute()["mrr"] for side in _sides(sums)}

    def report(self) -> dict[str, object]:
        """JSON: ``filtered`` and ``raw``; each overall, by side, and by relation and side."""
        report: dict[str, object] = {} if self.filtered is None else {"filtered": self._report(self.filtered)}
        return report | {"raw": self._report(self.raw)}

    def _report(self, sums: Sums) -> dict[str, object]:
        relations: dict[str, object] = {}
        for relation in sorted({relation for relation, _ in sums}):
            own = {key: sums[key] for key in sums if key[0] == relation}
            relations[self.relation_names[relation]] = _numbers_by_side(own)
        return _numbers_by_side(sums) | {"relations": relations}


def evaluate_link_prediction(
    scorer: Scorer,
    edges: Edges,
    known: KnownEdges | None,
    config: EvaluationConfig,
    is_unwanted: IsUnwanted = never,
) -> LinkPrediction:
    """Rank the true entity of every edge, on each of ``config.sides``; several processes share the work.

    ``known`` holds the true edges that a filtered rank does not count, those of ``edges`` among them; it may be None if
    ``config.filtered`` is false. Raises ``TrainingError`` if a score is not finite, ``Abandoned`` once it is unwanted.
    """
    raw: dict[tuple[int, Side], RankSums] = {}
    filtered: dict[tuple[int, Side], RankSums] = {}
    for relation, own in by_relation(edges):
        for side in config.sides:
            candidates = CandidateList.of(scorer, side, relation, config, config.num_candidates)
            raw[relation, side] = filtered[relation, side] = RankSums.empty(config.ks)
            rank = functools.partial(_rank_sums, candidates, known if config.filtered else None, config.ks)
            chunks = list(query_chunks(*own.toward(side), candidates.num_queries))
            for raw_sums, filtered_sums in spread(chunks, rank, is_unwanted):
                raw[relation, side] += raw_sums
                if filtered_sums is not None:
                    filtered[relation, side] += filtered_sums
    names = tuple(relation.name for relation in scorer.relations)
    return LinkPrediction(names, filtered if config.filtered else None, raw)


class _Ranks:
    """Mean ranks of the true entities of a chunk's edges ``[E]``, gathered tile by tile.

    ``1 + #greater + #equal / 2`` is ``1 + (#others + #greater - #less) / 2``, and the last difference is a sum of
    signs: one pass over the scores, four times as fast on a CPU as two comparisons.
    """

    def __init__(self, chunk: QueryChunk, truth: Tensor) -> None:
        self._query, self._truth = chunk.query.to(truth.device), truth  # scores of the true entities, [E]
        self._others, self._balance = torch.zeros(2, truth.numel(), dtype=torch.int64, device=truth.device)

    def add(self, scores: Tensor, own: Tensor, num_struck: Tensor) -> None:
        """Count a tile ``[U, T]`` in.

        ``own [E]`` is the true entity's column in it (outside of it: not there), ``num_struck [U]`` how many of its
        scores are struck, which are -inf.
        """
        width = scores.shape[1]
        block = max(1, _BLOCK_SCORES // width)
        for start in range(0, self._truth.numel(), block):
            part = slice(start, start + block)
            rows = scores.index_select(0, self._query[part])  # [block, T]
            signs = rows.sub_(self._truth[part].unsqueeze(1)).sign_()
            self._balance[part] += signs.sum(1).long()  # exact in float32 up to 2**24 columns
        struck = num_struck[self._query]
        self._balance += struck  # each counted as less
        self._others += width - struck
        self._leave_out(scores, own)

    def _leave_out(self, scores: Tensor, own: Tensor) -> None:
        """The true entity is not one of the others; where it was struck, it is not counted already."""
        here = ((own >= 0) & (own < scores.shape[1])).nonzero().squeeze(1)
        score = scores[self._query[here], own[here]]
        counted = score > -math.inf
        self._balance[here] -= ((score - self._truth[here]).sign_() * counted).long()
        self._others[here] -= counted.long()

    def sums(self, ks: tuple[int, ...]) -> RankSums:
        return RankSums.from_ranks(1.0 + (self._others + self._balance).double() / 2, self._others, ks)


def _rank_sums(
    candidates: CandidateList, known: KnownEdges | None, ks: tuple[int, ...], chunk: QueryChunk
) -> tuple[RankSums, RankSums | None]:
    raw, filtered = _rank(candidates, chunk, known)
    return raw.sums(ks), None if filtered is None else filtered.sums(ks)


def _rank(candidates: CandidateList, chunk: QueryChunk, known: KnownEdges | None) -> tuple[_Ranks, _Ranks | None]:
    """Raw ranks of a chunk's edges and, given ``known``, filtered ones."""
    tiles = candidates.tiles(chunk.anchors)
    first = next(tiles)
    truth = _true_scores(candidates, chunk, first[1])
    raw, filtered = _Ranks(chunk, truth), None
    if known is not None:
        filtered, struck = _Ranks(chunk, truth), Strikes(candidates, chunk, known)
    columns = candidates.columns(chunk.answers).to(truth.device)
    for start, scores in itertools.chain([first], tiles):
        require_finite(candidates, scores)  # the sign of what is no number is 0, as for a tie
        num_struck = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
        raw.add(scores, columns - start, num_struck)
        if filtered is not None:
            num_struck += struck.strike(scores, start)
            filtered.add(scores, columns - start, num_struck)
    return raw, filtered


def _true_scores(candidates: CandidateList, chunk: QueryChunk, first_tile: Tensor) -> Tensor:
    """Scores ``[E]`` of the true entities, out of the tile itself where it holds the whole table: equal vectors then
    score exactly alike.
    """
    query = chunk.query.to(first_tile.device)
    if candidates.rows is None and first_tile.shape[1] == candidates.num:
        truth = first_tile[query, chunk.answers.to(first_tile.device)]
    else:
        distinct, place = torch.unique(chunk.answers, return_inverse=True)
        truth = torch.empty(chunk.answers.numel(), dtype=first_tile.dtype, device=first_tile.device)
        width = first_tile.shape[1]
        for start in range(0, distinct.numel(), width):
            here = ((place >= start) & (place < start + width)).nonzero().squeeze(1).to(first_tile.device)
            scores = candidates.score(chunk.anchors, distinct[start : start + width])
            truth[here] = scores[query[here], place.to(here.device)[here] - start]
    return truth


def _total(sums: Sums, side: Side | None = None) -> RankSums:
    parts = [value for key, value in sums.items() if side in (None, key[1])]
    return functools.reduce(operator.add, parts)


def _sides(sums: Sums) -> list[Side]:
    return list(dict.fromkeys(side for _, side in sums))


def _numbers_by_side(sums: Sums) -> dict[str, object]:
    sides = {side.value: _numbers(_total(sums, side)) for side in _sides(sums)}
    return _numbers(_total(sums)) | {"sides": sides}


def _numbers(sums: RankSums) -> dict[str, object]:
    return {**sums.compute(), "num_queries": sums.num_queries}
