"""The index of known edges against sets of triples."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rookery.twhin.known import Edges, KnownEdges
from rookery.types import Side

TRIPLES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3), st.integers(0, 9)), max_size=60)


def edges_of(triples: list[tuple[int, int, int]]) -> Edges:
    columns = torch.tensor(triples, dtype=torch.int64).reshape(-1, 3).T.contiguous()
    return Edges(*columns)


@settings(deadline=None)
@given(TRIPLES, TRIPLES, TRIPLES)
def test_pairs_are_the_answers_of_every_query(
    train: list[tuple[int, int, int]], test: list[tuple[int, int, int]], asked: list[tuple[int, int, int]]
) -> None:
    known = KnownEdges.build(edges_of(train), edges_of(test))
    true = set(train) | set(test)
    queries = edges_of(asked)
    for side in Side:
        anchors, _ = queries.toward(side)
        query, rows = known.pairs(side, queries.rel, anchors)
        expected = []
        for number, (lhs, rel, rhs) in enumerate(asked):
            if side is Side.RHS:
                expected += sorted((number, r) for (lh, re, r) in true if (lh, re) == (lhs, rel))
            else:
                expected += sorted((number, lh) for (lh, re, r) in true if (r, re) == (rhs, rel))
        assert list(zip(query.tolist(), rows.tolist(), strict=True)) == expected
        counts = known.counts(side, queries.rel, anchors)
        assert torch.equal(counts, torch.bincount(query, minlength=len(asked)))


def test_an_anchor_beyond_the_known_ones_does_not_fall_into_the_next_relation() -> None:
    known = KnownEdges.build(edges_of([(0, 0, 5), (1, 0, 6), (0, 1, 7)]))
    query, _ = known.pairs(Side.RHS, 0, torch.tensor([2, 3, 100]))
    assert query.numel() == 0


def test_one_relation_for_all_anchors() -> None:
    known = KnownEdges.build(edges_of([(0, 1, 5), (2, 1, 6), (2, 1, 3), (2, 0, 9)]))
    query, rows = known.pairs(Side.RHS, 1, torch.tensor([2, 1, 0]))
    assert query.tolist() == [0, 0, 2]
    assert rows.tolist() == [3, 6, 5]


def test_rows_of_a_table_beyond_two_billion() -> None:
    far = 2**33
    known = KnownEdges.build(edges_of([(far, 2, far + 7), (1, 2, far)]))
    assert known.pairs(Side.RHS, 2, torch.tensor([far]))[1].tolist() == [far + 7]
    assert known.pairs(Side.LHS, 2, torch.tensor([far]))[1].tolist() == [1]


def test_no_edges_know_nothing() -> None:
    known = KnownEdges.build(edges_of([]))
    query, rows = known.pairs(Side.LHS, torch.tensor([0, 1]), torch.tensor([0, 4]))
    assert query.numel() == rows.numel() == 0
