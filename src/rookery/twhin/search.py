"""Exact search: the highest scores over a table of any size, a tile of rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from zlib_ng import zlib_ng

from rookery.twhin.comparators import COMPARATORS
from rookery.twhin.config import ComparatorName

_TILE_ROWS = 65_536

TileScores = Callable[[int, int], Tensor]
"""Scores ``[Q, stop - start]`` of rows ``start … stop - 1``."""


@dataclass(frozen=True)
class Hits:
    """The best rows of each query, best first: ``scores [Q, k]`` (higher is better) and ``rows [Q, k]`` (-1: no such
    row).
    """

    scores: Tensor
    rows: Tensor


def similarity_metric(comparator: ComparatorName) -> ComparatorName:
    """How entities of one type are compared: by the comparator itself, and by cosine where it is the dot product.

    A dot product ranks an entity's fellows by their length, thus by popularity, not by likeness.
    """
    metrics: dict[ComparatorName, ComparatorName] = {"dot": "cosine", "cosine": "cosine", "l2": "l2", "l1": "l1"}
    return metrics[comparator]


def pairwise_scores(metric: ComparatorName, queries: Tensor, rows: Tensor) -> Tensor:
    """``[Q, D], [N, D] -> [Q, N]``, float32, higher is better; l2 and l1 are negative distances."""
    comparator = COMPARATORS[metric]
    return comparator.pairwise(comparator.prepare(queries.float()), comparator.prepare(rows.float()))


def search_rows(metric: ComparatorName, queries: Tensor, rows: Tensor, k: int) -> Hits:
    """The ``k`` best of ``rows [N, D]`` for each of ``queries [Q, D]``."""
    return search_tiles(lambda start, stop: pairwise_scores(metric, queries, rows[start:stop]), len(rows), k)


def search_tiles(score: TileScores, num_rows: int, k: int) -> Hits:
    """The ``k`` highest scores over all rows; fewer where there are fewer rows."""
    best: Hits | None = None
    for start in range(0, num_rows, _TILE_ROWS):
        scores = score(start, min(start + _TILE_ROWS, num_rows))
        top = scores.topk(min(k, scores.shape[1]), dim=1)
        found = Hits(top.values, top.indices + start)
        best = found if best is None else _merge(best, found, k)
    assert best is not None, "a table has at least one row"
    return best


def fingerprint(rows: Tensor) -> str:
    """crc32 of the rows as float32: tells whether an index was built from these vectors."""
    crc = 0
    for start in range(0, len(rows), _TILE_ROWS):
        crc = zlib_ng.crc32(rows[start : start + _TILE_ROWS].float().cpu().numpy().tobytes(), crc)
    return f"{crc:08x}"


def _merge(a: Hits, b: Hits, k: int) -> Hits:
    scores, rows = torch.cat([a.scores, b.scores], dim=1), torch.cat([a.rows, b.rows], dim=1)
    top = scores.topk(min(k, scores.shape[1]), dim=1)
    return Hits(top.values, rows.gather(1, top.indices))
