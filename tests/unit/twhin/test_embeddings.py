"""Scores of what was learned against the formulas, one pair at a time."""

from __future__ import annotations

import itertools

import pytest
import torch
from naive_retrieval import naive_scores, random_embeddings

from rookery.twhin.comparators import COMPARATORS
from rookery.twhin.operators import OPERATORS
from rookery.twhin.search import pairwise_scores
from rookery.types import Side

CASES = list(itertools.product(OPERATORS, COMPARATORS, ("lhs", "rhs", "both")))


@pytest.mark.parametrize(("operator", "comparator", "operator_side"), CASES)
def test_scores_equal_the_formulas(operator: str, comparator: str, operator_side: str) -> None:
    embeddings = random_embeddings(operator, comparator, operator_side)
    anchors = torch.tensor([3, 0, 3])
    for side, relation in itertools.product(Side, range(2)):
        expected = torch.tensor([naive_scores(embeddings, side, relation, int(anchor)) for anchor in anchors])
        scores = embeddings.score_candidates(side, relation, anchors, None)
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
        some = torch.tensor([4, 1])
        torch.testing.assert_close(
            embeddings.score_candidates(side, relation, anchors, some), expected[:, some], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize(("operator", "comparator", "operator_side"), CASES)
def test_query_form_keeps_the_order_over_raw_rows(operator: str, comparator: str, operator_side: str) -> None:
    """What lets an index of rows answer: scores differ from those of the query by one number a query."""
    embeddings = random_embeddings(operator, comparator, operator_side)
    anchors = torch.arange(10)
    for side, relation in itertools.product(Side, range(2)):
        if not embeddings.query_form(side, relation):
            assert operator_side == side.value
            continue
        rows = embeddings.rows[embeddings.relations[relation].table(side)]
        found = pairwise_scores(embeddings.comparator, embeddings.queries(side, relation, anchors), rows)
        difference = embeddings.score_candidates(side, relation, anchors, None) - found
        torch.testing.assert_close(difference, difference[:, :1].expand_as(difference), rtol=0, atol=1e-4)


def test_half_tables_score_as_their_float32_copies() -> None:
    half = random_embeddings("complex_diagonal", "cosine", dtype=torch.float16)
    full = type(half)(
        half.relations,
        half.comparator,
        half.operator_side,
        {name: rows.float() for name, rows in half.rows.items()},
        half.parameters,
    )
    anchors = torch.arange(5)
    assert torch.equal(
        half.score_candidates(Side.RHS, 0, anchors, None), full.score_candidates(Side.RHS, 0, anchors, None)
    )
