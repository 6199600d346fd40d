"""What an evaluation measures and against how many candidates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rookery.config.base import StrictModel
from rookery.types import Side

MetricKind = Literal["link_prediction", "recommendation"]
PositiveInt = Annotated[int, Field(ge=1)]


class EvaluationConfig(StrictModel):
    """Evaluation of a split, in the middle of a run and after it. ``docs/evaluation.md`` defines each metric."""

    metrics: tuple[MetricKind, ...] = Field(default=("link_prediction",), min_length=1)
    ks: tuple[PositiveInt, ...] = Field(default=(1, 3, 10, 20), min_length=1)
    """Cutoffs of Hits@k, Recall@k and NDCG@k."""

    filtered: bool = True
    """Take other known answers out of the ranking; false reports raw ranks only and needs no index of known edges."""

    sides: tuple[Side, ...] = Field(default=(Side.RHS, Side.LHS), min_length=1)
    """Link prediction: which side of an edge is asked for. Recommendation always asks for the rhs."""

    num_candidates: PositiveInt | None = None
    """Link prediction: rank against this many entities drawn at random, the same for all edges of a relation; null
    ranks against all of them.
    """

    mask_splits: tuple[str, ...] = ("train", "valid")
    """Recommendation: entities that an lhs has met in these splits are not recommended; the evaluated split never
    masks.
    """

    max_edges: PositiveInt | None = None
    """Evaluate a random part of the split, the same each time: for validation in the middle of a run."""

    chunk_memory_mib: PositiveInt = 256
    """Memory for scores at any time."""

    seed: int = Field(default=0, ge=0)
    """Draws the candidates and the part of the split."""
