"""Several queries for one request: the interests in a history, and how places are shared among queries."""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np
import torch
from torch import Tensor

from rookery.twhin.comparators import COMPARATORS
from rookery.twhin.config import ComparatorName
from rookery.twhin.search import Hits

_ITERATIONS = 25
_SEED = 0


@dataclass(frozen=True)
class Interests:
    """Centroids ``[C, D]`` of a history and the share of it ``[C]`` around each, largest first."""

    centroids: Tensor
    mass: Tensor


def cluster_history(vectors: Tensor, metric: ComparatorName, num_interests: int) -> Interests:
    """k-means of ``vectors [H, D]``, on the sphere where the metric is cosine; never more clusters than distinct
    vectors.
    """
    prepared = COMPARATORS[metric].prepare(vectors.float()).cpu().contiguous()
    num_clusters = min(num_interests, len(torch.unique(prepared, dim=0)))
    faiss.omp_set_num_threads(torch.get_num_threads())
    kmeans = faiss.Kmeans(
        prepared.shape[1],
        num_clusters,
        niter=_ITERATIONS,
        seed=_SEED,
        spherical=metric == "cosine",
        min_points_per_centroid=1,
        max_points_per_centroid=len(prepared),
    )
    kmeans.train(prepared.numpy())
    _, nearest = kmeans.index.search(prepared.numpy(), 1)
    mass = torch.from_numpy(np.bincount(nearest[:, 0], minlength=num_clusters) / len(prepared))
    order = mass.argsort(descending=True, stable=True)
    return Interests(torch.from_numpy(kmeans.centroids)[order], mass[order])


def quotas(weights: Tensor, num_places: int) -> list[int]:
    """Whole places for each query in proportion to its weight, by the largest remainder; they add up to
    ``num_places``.
    """
    exact = weights.double() / weights.sum() * num_places
    places = exact.floor().long()
    remainder_first = (exact - places).argsort(descending=True, stable=True)
    places[remainder_first[: num_places - int(places.sum())]] += 1
    return [int(number) for number in places]


def merge_hits(hits: Hits, weights: Tensor, k: int) -> list[tuple[int, float, int]]:
    """``(row, score, query)`` of the ``k`` results of several queries, best first.

    Each query fills its quota with its best rows that no query before it took (heavier ones go first); places
    that are left go to the best scores that remain.
    """
    scores, rows = hits.scores.tolist(), hits.rows.tolist()
    ranked = [
        [(row, score, query) for row, score in zip(rows[query], scores[query], strict=True) if row >= 0]
        for query in range(len(rows))
    ]
    taken: dict[int, tuple[int, float, int]] = {}
    for query, quota in enumerate(quotas(weights, k)):
        fresh = [hit for hit in ranked[query] if hit[0] not in taken][:quota]
        taken |= {hit[0]: hit for hit in fresh}
    rest = sorted((hit for hits_ in ranked for hit in hits_ if hit[0] not in taken), key=_best_first)
    for hit in rest:
        if len(taken) >= k:
            break
        taken.setdefault(hit[0], hit)
    return sorted(taken.values(), key=_best_first)


def _best_first(hit: tuple[int, float, int]) -> tuple[float, int]:
    row, score, _ = hit
    return -score, row
