"""From probabilities to an order: weighted sums, the factor out of network, and the diversity of authors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rookery.config.suggest import did_you_mean
from rookery.errors import UserError
from rookery.timeline.config import WEIGHT_PRESETS, AuthorDiversity, Preset

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


def weight_vector(weights: Mapping[str, float], tasks: Sequence[str]) -> Floats:
    """A weight ``[T]`` for each task; 0 where none is named.

    Raises ``UserError`` for a weight that is not finite, and for one (0 excepted) of a task that is not predicted.
    """
    for name, weight in weights.items():
        if not np.isfinite(weight):
            raise UserError(f"weights.{name}={weight}: must be finite")
        if weight and name not in tasks:
            raise UserError(f"weights.{name}={weight}: the ranker does not predict it; {did_you_mean(name, tasks)}")
    return np.array([weights.get(task, 0.0) for task in tasks])


def weights_for(weights: Preset | Mapping[str, float], tasks: Sequence[str]) -> Mapping[str, float]:
    """A named set cut down to the tasks that are predicted; weights by task as they are.

    Raises ``UserError`` where nothing of a set is left that weighs anything.
    """
    if not isinstance(weights, str):
        return weights
    kept = {task: weight for task, weight in WEIGHT_PRESETS[weights].items() if task in tasks}
    if not any(kept.values()):
        raise UserError(
            f"weights={weights}: the ranker predicts none of the tasks that it weighs; give weights by task, "
            f"of {', '.join(tasks)}"
        )
    return kept


def left_out_of(weights: Preset | Mapping[str, float], tasks: Sequence[str]) -> tuple[str, ...]:
    """The tasks that a named set weighs and that are not predicted."""
    if not isinstance(weights, str):
        return ()
    return tuple(task for task, weight in WEIGHT_PRESETS[weights].items() if weight and task not in tasks)


@dataclass(frozen=True)
class Scored:
    """Posts ``[n]`` and what they are ordered by: ``[n]``, of tasks ``[n, T]``."""

    posts: Rows
    probabilities: Floats
    contributions: Floats
    """Weight times probability."""
    base: Floats
    """Their sum."""
    network: Floats
    diversity: Floats

    @property
    def final(self) -> Floats:
        """``base · network · diversity``."""
        return self.base * self.network * self.diversity


def score(
    posts: Rows,
    authors: Rows,
    probabilities: Floats,
    weights: Floats,
    network_factors: Floats,
    diversity: AuthorDiversity | None,
) -> Scored:
    """Score posts ``[n]`` of ``authors [n]`` by ``probabilities [n, T]`` and ``weights [T]``."""
    contributions = probabilities * weights
    base = np.zeros(len(posts))
    for added in contributions.T:  # one task after the other, as anybody would add them up: the same to the last bit
        base = base + added
    network = of_positive(base, network_factors)
    varied = np.ones(len(posts))
    if diversity is not None:
        varied = of_positive(base, diversity_factors(base * network, authors, diversity))
    return Scored(posts, probabilities, contributions, base, network, varied)


def best_first(scores: NDArray[np.float64] | NDArray[np.int64]) -> Rows:
    """Places of ``scores [n]`` by falling score; equal ones keep their order."""
    return np.argsort(-scores, kind="stable")


def of_positive(scores: Floats, factors: Floats) -> Floats:
    """``factors [n]``, 1 for scores below 0: a factor below 1 would raise them."""
    return np.where(scores < 0, 1.0, factors)


def diversity_factors(scores: Floats, authors: Rows, diversity: AuthorDiversity) -> Floats:
    """``(1 − floor) · decay^n + floor`` ``[P]`` for the n-th post of its author by falling score, n from 0."""
    order = best_first(scores)
    by_author = order[np.argsort(authors[order], kind="stable")]  # authors together, the best post of each first
    sorted_authors = authors[by_author]
    starts = np.flatnonzero(np.append(True, sorted_authors[1:] != sorted_authors[:-1])[: len(scores)])
    lengths = np.diff(np.append(starts, len(scores)))
    number = np.empty(len(scores), np.int64)
    number[by_author] = np.arange(len(scores)) - np.repeat(starts, lengths)
    return (1.0 - diversity.floor) * np.power(diversity.decay, number, dtype=np.float64) + diversity.floor
