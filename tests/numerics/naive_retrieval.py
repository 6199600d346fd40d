"""Random embeddings over the small graph of the tests, and their scores a pair at a time."""

from __future__ import annotations

import torch
from naive_twhin import compare, operate

from rookery.twhin.embeddings import Embeddings, ScoredRelation
from rookery.twhin.operators import OPERATORS
from rookery.types import Side

DIM = 8


def random_embeddings(
    operator: str = "translation",
    comparator: str = "dot",
    operator_side: str = "lhs",
    num_entities: dict[str, int] | None = None,
    dim: int = DIM,
    dtype: torch.dtype = torch.float32,
) -> Embeddings:
    """Two relations, ``likes`` user → item and ``follows`` user → user; each direction has its own parameters if both
    are operated.
    """
    generator = torch.Generator().manual_seed(0)
    relations = (
        ScoredRelation("likes", "user", "item", operator),
        ScoredRelation("follows", "user", "user", operator),
    )
    parameters = {}
    for number in range(len(relations)):
        for side in Side:
            parameters[number, side] = torch.randn(OPERATORS[operator].width(dim), generator=generator)
            if operator_side != "both":
                parameters[number, side] = parameters.setdefault((number, Side.LHS), parameters[number, side])
    rows = {
        name: torch.randn(num, dim, generator=generator).to(dtype)
        for name, num in (num_entities or {"user": 12, "item": 10}).items()
    }
    return Embeddings(relations, comparator, operator_side, rows, parameters)  # type: ignore[arg-type]


def naive_score(embeddings: Embeddings, side: Side, relation: int, lhs: int, rhs: int) -> float:
    """The formula: the operator on one side, or on the side that is known where both are operated."""
    spec, p = embeddings.relations[relation], embeddings.parameters[relation, side].double()
    x, y = embeddings.rows[spec.lhs][lhs].double(), embeddings.rows[spec.rhs][rhs].double()
    operated = side.other.value if embeddings.operator_side == "both" else embeddings.operator_side
    if operated == "lhs":
        x = operate(spec.operator, x, p)
    else:
        y = operate(spec.operator, y, p)
    return float(compare(embeddings.comparator, x, y))


def naive_scores(embeddings: Embeddings, side: Side, relation: int, anchor: int) -> list[float]:
    """Scores of every entity on ``side``."""
    num = embeddings.num_entities(embeddings.relations[relation].table(side))
    if side is Side.RHS:
        return [naive_score(embeddings, side, relation, anchor, row) for row in range(num)]
    return [naive_score(embeddings, side, relation, row, anchor) for row in range(num)]
