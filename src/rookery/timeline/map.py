"""Users and recent posts in the plane, alike ones near each other.

Some of each are laid out by t-SNE (van der Maaten & Hinton 2008); every other one lies at the weighted mean of those
laid out that are most like it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rookery.data.catalog import Catalog
from rookery.timeline.pool import RecentPosts
from rookery.timeline.retrieval import Vectors

_NUM_LAID_OUT = 1000  # the work grows with the square; 4 s on two cores
_PERPLEXITY = 30.0
_NUM_STEPS = 750
_EXAGGERATION, _EXAGGERATED_STEPS = 12.0, 250
_NUM_NEAREST = 10
_PLACED_AT_A_TIME = 8192
_SEED = 0

Notify: TypeAlias = Callable[[int, int], None]
"""Told how many of how many steps are done."""


def tell_nobody(done: int, steps: int) -> None:
    """For who does not want to know."""


def draw_map(
    vectors: Vectors,
    catalog: Catalog,
    recent: RecentPosts,
    notify: Notify = tell_nobody,
) -> pa.Table:
    """Columns ``id``, ``kind`` (user or post), ``x`` and ``y`` in [−1, 1], of all that have a vector.

    ``notify`` is told of the steps of t-SNE that are done, of how many.
    """
    users, has_user = vectors.of_users(np.arange(len(catalog.user_ids)))
    posts, has_post = vectors.of_posts(recent.rows)
    user_ids = catalog.user_ids.filter(pa.array(has_user))
    post_ids = catalog.post_ids.take(pa.array(recent.rows[has_post]))
    # Centred each by itself: else the two kinds would be two clouds, since a relation's operator lies between them.
    rows = torch.cat([_directions(users[torch.from_numpy(has_user)]), _directions(posts[torch.from_numpy(has_post)])])
    plane = place(rows, _NUM_LAID_OUT, notify)
    kinds = pa.array(["user"] * len(user_ids) + ["post"] * len(post_ids))
    ids = pa.concat_arrays([user_ids, post_ids])
    return pa.table({"id": ids, "kind": kinds, "x": plane[:, 0].numpy(), "y": plane[:, 1].numpy()})


def place(rows: Tensor, num_laid_out: int, notify: Notify = tell_nobody) -> Tensor:
    """Points ``[N, 2]`` in [−1, 1] for ``rows [N, D]``: ``num_laid_out`` random ones by t-SNE, the rest beside them."""
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(_SEED))[:num_laid_out]
    laid_out = tsne(rows[chosen], min(_PERPLEXITY, max(1.0, (len(chosen) - 1) / 3)), notify)
    scaled = laid_out / laid_out.abs().max().clamp(min=1e-12)
    plane = _beside(rows, rows[chosen], scaled)
    plane[chosen] = scaled
    return plane


def tsne(rows: Tensor, perplexity: float, notify: Notify = tell_nobody) -> Tensor:
    """Points ``[N, 2]`` whose distances tell of those of ``rows [N ≥ 2, D]``; deterministic, ``O(N²)`` a step."""
    affinities = joint_affinities(rows, perplexity)
    points = _principal(rows)
    velocity, gains = torch.zeros_like(points), torch.ones_like(points)
    rate = max(50.0, len(rows) / _EXAGGERATION / 4)  # Belkina et al. 2019
    for step in range(_NUM_STEPS):
        early = step < _EXAGGERATED_STEPS
        gradient = tsne_gradient(affinities * _EXAGGERATION if early else affinities, points)
        gains = torch.where(gradient * velocity < 0, gains + 0.2, gains * 0.8).clamp_(min=0.01)
        velocity = (0.5 if early else 0.8) * velocity - rate * gains * gradient
        points = points + velocity
        notify(step + 1, _NUM_STEPS)
    return points - points.mean(0)


def joint_affinities(rows: Tensor, perplexity: float) -> Tensor:
    """``p [N, N]``, symmetric and adding up to 1; each row's own Gaussian is as wide as ``perplexity`` asks."""
    num_rows = len(rows)
    distances = torch.cdist(rows.double(), rows.double()).square()
    distances = distances / distances.mean().clamp(min=1e-12)
    low, high = torch.full((num_rows, 1), -30.0), torch.full((num_rows, 1), 30.0)
    for _ in range(40):  # halves the bracket of the logarithm of the precision
        middle = (low + high) / 2
        too_wide = _entropy(_conditional(distances, middle)) > math.log(perplexity)
        low, high = torch.where(too_wide, middle, low), torch.where(too_wide, high, middle)
    conditional = _conditional(distances, (low + high) / 2)
    return ((conditional + conditional.T) / (2 * num_rows)).float()


def tsne_gradient(affinities: Tensor, points: Tensor) -> Tensor:
    """Gradient ``[N, 2]`` by ``points`` of the divergence of Student's t over them from ``affinities [N, N]``."""
    kernel = 1 / (1 + torch.cdist(points, points).square())
    kernel.fill_diagonal_(0.0)
    pull = (affinities - kernel / kernel.sum()) * kernel  # [N, N]
    gradient: Tensor = 4 * (pull.sum(1, keepdim=True) * points - pull @ points)
    return gradient


def _conditional(distances: Tensor, log_precision: Tensor) -> Tensor:
    exponents = -distances * log_precision.double().exp()
    return exponents.fill_diagonal_(-torch.inf).softmax(1)


def _entropy(conditional: Tensor) -> Tensor:
    terms: Tensor = torch.special.entr(conditional)
    return terms.sum(1, keepdim=True)


def _principal(rows: Tensor) -> Tensor:
    """The first two principal components, small: from there t-SNE keeps what is far apart."""
    centred = rows - rows.mean(0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    points = torch.zeros(len(rows), 2)
    found = centred @ axes[:2].T
    points[:, : found.shape[1]] = found
    return points / points[:, 0].std(correction=0).clamp(min=1e-12) * 1e-4


def _beside(rows: Tensor, laid_out: Tensor, points: Tensor) -> Tensor:
    """The mean of the points of the nearest, weighted by how near they are ``[N, 2]``."""
    placed = []
    for start in range(0, len(rows), _PLACED_AT_A_TIME):
        part = rows[start : start + _PLACED_AT_A_TIME]
        near = torch.cdist(part, laid_out).topk(min(_NUM_NEAREST, len(laid_out)), dim=1, largest=False)
        weights = (-(near.values / near.values[:, :1].clamp(min=1e-6)).square()).softmax(1)
        placed.append((weights.unsqueeze(2) * points[near.indices]).sum(1))
    return torch.cat(placed)


def _directions(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows - rows.mean(0), dim=1)
