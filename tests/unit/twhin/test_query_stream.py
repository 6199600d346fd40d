"""Edges ordered by query: each edge once a direction and epoch, the edges of a query together, resumable."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rookery.data.ledger import Ledger
from rookery.data.stream import Columns
from rookery.errors import DataError
from rookery.twhin.planner import CODE_OF_SIDE, PREDICTS
from rookery.twhin.query_stream import QueryStream
from rookery.types import Side

SIDE_OF_CODE = {code: side for side, code in CODE_OF_SIDE.items()}
BOTH = (Side.LHS, Side.RHS)


def columns_of(count: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    columns = {name: torch.randint(5, (count,), generator=generator) for name in ("lhs", "rel", "rhs")}
    return {**columns, "weight": torch.arange(count) / 7}


def take(stream: QueryStream, count: int) -> list[Columns]:
    return [next(stream) for _ in range(count)]


def directed(batches: list[Columns]) -> list[tuple[Side, float]]:
    """Side and weight of each row: the weight names the edge."""
    return [
        (SIDE_OF_CODE[code], weight)
        for batch in batches
        for code, weight in zip(batch[PREDICTS].tolist(), batch["weight"].tolist(), strict=True)
    ]


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 60),
    batch_size=st.integers(1, 70),
    sides=st.sampled_from([BOTH, (Side.RHS,), (Side.LHS,)]),
    seed=st.integers(0, 2**31),
)
def test_an_epoch_is_each_edge_once_in_each_direction(
    count: int, batch_size: int, sides: tuple[Side, ...], seed: int
) -> None:
    columns = columns_of(count, seed)
    stream = QueryStream(columns, sides, batch_size, seed=seed)
    expected = sorted(((side, weight) for side in sides for weight in columns["weight"].tolist()), key=str)
    assert stream.num_rows == len(expected)
    for _ in range(2):
        batches = take(stream, stream.batches_per_epoch)
        assert [len(batch["lhs"]) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
        assert sorted(directed(batches), key=str) == expected
        rows = [
            (code, rel, lhs if code == CODE_OF_SIDE[Side.RHS] else rhs)
            for batch in batches
            for code, rel, lhs, rhs in zip(
                *(batch[name].tolist() for name in (PREDICTS, "rel", "lhs", "rhs")), strict=True
            )
        ]
        assert sum(one != other for one, other in pairwise(rows)) == len(set(rows)) - 1


def test_the_order_differs_by_epoch_and_seed_and_is_otherwise_the_same() -> None:
    def order(seed: int, epochs: int) -> list[tuple[Side, float]]:
        return directed(take(QueryStream(columns_of(40), BOTH, 80, seed=seed), epochs)[-1:])

    assert order(1, 1) == order(1, 1)
    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(seed, epochs)) for seed, epochs in ((1, 1), (1, 2), (3, 1))}) == 3


@pytest.mark.parametrize("cut", [1, 4, 5, 6, 11])
def test_a_stream_that_seeks_goes_on_as_if_never_interrupted(cut: int) -> None:
    whole, resumed = (QueryStream(columns_of(40), BOTH, 17, seed=2) for _ in range(2))
    take(whole, cut)
    resumed.seek(whole.position())
    assert resumed.position() == whole.position()
    for ours, theirs in zip(take(resumed, 9), take(whole, 9), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("field", "then"), [("batch_size", 16), ("num_rows", 79), ("seed", 3), ("num_lanes", 2)])
def test_a_position_of_another_order_is_refused(field: str, then: int) -> None:
    stream = QueryStream(columns_of(40), BOTH, 17, seed=2)
    with pytest.raises(DataError, match=rf"taken with {field}={then}, the stream now has"):
        stream.seek(replace(stream.position(), **{field: then}))


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_share_each_batch_and_account_for_every_row(world_size: int) -> None:
    alone = QueryStream(columns_of(40), BOTH, 17, seed=2, num_lanes=4)
    ranks = [
        QueryStream(columns_of(40), BOTH, 17, seed=2, num_lanes=4, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert [lane for stream in ranks for lane in stream.lanes] == [0, 1, 2, 3]
    whole = QueryStream(columns_of(40), BOTH, 17, seed=2)
    for _ in range(2 * alone.batches_per_epoch):
        expected, parts = next(alone), [next(stream) for stream in ranks]
        position = alone.position()
        assert directed(parts) == directed([expected]) == directed(take(whole, 1))
        for stream, part in zip(ranks, parts, strict=True):
            assert stream.position() == position
            assert sum(stream.lane_rows(position)) == len(part["lhs"])
            assert stream.total_rows(position) == len(expected["lhs"])
    for epoch in range(2):
        merged = Ledger.merged([stream.finished()[epoch] for stream in ranks])
        assert merged == alone.finished()[epoch]
        assert merged.accounts_for(alone.expected())


def test_a_ledger_goes_on_and_shows_a_batch_that_is_doubled() -> None:
    whole = QueryStream(columns_of(40), BOTH, 17, seed=2)
    start = whole.position()
    assert (whole.total_rows(start), whole.lane_rows(start)) == (0, (0,))
    take(whole, 2)
    for back in (0, 1):
        resumed = QueryStream(columns_of(40), BOTH, 17, seed=2)
        resumed.seek(replace(whole.position(), num_batches=2 - back))
        resumed.resume_ledger(whole.ledger())
        take(resumed, 3 + back)
        assert resumed.finished()[0].accounts_for(resumed.expected()) == (back == 0)
