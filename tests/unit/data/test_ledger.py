"""The ledger adds up over any order and any ranks, and shows what is lost or doubled."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rookery.data import lanes, ledger
from rookery.data.ledger import Ledger, LedgerBook, RowNumbers, digests_by_part, mix
from rookery.data.stream import ParquetStream

MASK = 2**64 - 1


def naive_mix(number: int) -> int:
    """SplitMix64 of one number, in whole numbers without end."""
    mixed = (number + 0x9E3779B97F4A7C15) & MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MASK
    return mixed ^ (mixed >> 31)


def test_the_mix_is_that_of_splitmix64() -> None:
    # The generator seeded with 0 gives these first (Vigna's splitmix64.c): the k-th is the mix of (k - 1) steps.
    step = 0x9E3779B97F4A7C15
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [naive_mix(k * step & MASK) for k in range(3)] == published
    numbers = [0, 1, 2, 65_535, 2**31, 2**40 + 7, 2**62]
    assert mix(np.array(numbers)).tolist() == [naive_mix(number) for number in numbers]


@given(
    runs=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 20)), min_size=1, max_size=8),
    unit=st.sampled_from([1, 2, 3, 4, 16]),
    first_size=st.integers(1, 60),
    size=st.integers(1, 60),
    shuffle=st.booleans(),
    chunk_rows=st.integers(1, 300),
)
@settings(deadline=None)
def test_digests_of_parts(
    runs: list[tuple[int, int]], unit: int, first_size: int, size: int, shuffle: bool, chunk_rows: int
) -> None:
    """Runs of whole units of rows but for the last, some of which follow on the one before without a gap."""
    first_rows, sizes, row = [], [], 5
    for gap, length in runs:
        first_rows.append(row + gap)
        sizes.append(length * unit)
        row += gap + length * unit
    sizes[-1] -= unit // 2
    numbers = np.concatenate([np.arange(first, first + size) for first, size in zip(first_rows, sizes, strict=True)])
    order = np.random.default_rng(0).permutation(len(numbers)) if shuffle else np.arange(len(numbers))
    starts = np.array([0, *range(first_size, len(numbers), size)])
    expected = [sum(map(naive_mix, part.tolist())) & MASK for part in np.split(numbers[order], starts[1:])]
    row_numbers = RowNumbers(first_rows, sizes)
    assert row_numbers.at(order).tolist() == numbers[order].tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "_CHUNK_ROWS", chunk_rows)
        assert digests_by_part(row_numbers, order if shuffle else None, starts) == expected


def test_ledgers_of_ranks_add_up_and_survive_json() -> None:
    merged = Ledger.merged([Ledger(3, 10, 2**64 - 1, 2), Ledger(3), Ledger(3, 5, 7, 1)])
    assert merged == Ledger(3, 15, 6, 3)
    assert Ledger(**json.loads(json.dumps(merged.to_json()))) == merged
    assert Ledger.merged([merged]) == merged


def test_what_is_expected_is_every_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_CHUNK_ROWS", 7)
    assert LedgerBook(40).expected() == Ledger(0, 40, sum(map(naive_mix, range(40))) & MASK)
    assert LedgerBook(42).expected().rows == 42


@pytest.fixture
def file(tmp_path: Path) -> Path:
    pq.write_table(pa.table({"row": np.arange(100)}), tmp_path / "a.parquet", row_group_size=10)
    return tmp_path / "a.parquet"


def stream_of(file: Path) -> ParquetStream:
    return ParquetStream([file], ["row"], 8, seed=1, shuffle=True, num_lanes=4, buffer_rows=40, num_epochs=1)


def test_the_ledger_of_each_batch_is_that_of_its_rows(file: Path) -> None:
    stream = ParquetStream([file], ["row"], 8, seed=1, shuffle=True, num_lanes=4, offset=15, limit=70, num_epochs=2)
    assert stream.ledger() == Ledger(0)
    rows = digest = 0
    for batch in stream:
        if stream.position().num_batches == 1:
            rows = digest = 0
        rows += len(batch["row"])
        digest += sum(naive_mix(row - 15) for row in batch["row"].tolist())
        assert stream.ledger() == Ledger(stream.position().epoch, rows, digest & MASK)
    assert [finished.accounts_for(stream.expected()) for finished in stream.finished()] == [True, True]


@pytest.mark.parametrize(("place", "value"), [(3, 4), (0, 9), (9, 0)])
def test_a_row_that_stands_in_for_another_shows(
    file: Path, monkeypatch: pytest.MonkeyPatch, place: int, value: int
) -> None:
    """An order that hands out one row twice and another never: the number of rows is right."""
    permutation = lanes.EpochOrder.permutation

    def wrong(order: lanes.EpochOrder, epoch: int, index: int) -> torch.Tensor | None:
        rows = permutation(order, epoch, index)
        assert rows is not None
        if (order.lane, index) == (2, 1):
            rows[place] = rows[value]
        return rows

    monkeypatch.setattr(lanes.EpochOrder, "permutation", wrong)
    stream = stream_of(file)
    assert len({row for batch in stream for row in batch["row"].tolist()}) == 99
    (finished,) = stream.finished()
    assert finished.rows == stream.expected().rows == 100
    assert not finished.accounts_for(stream.expected())


@pytest.mark.parametrize("num_batches", [-1, 1], ids=["doubled", "lost"])
def test_a_batch_that_is_doubled_or_lost_shows(file: Path, num_batches: int) -> None:
    """A run that resumes a batch too early or too late with the ledger of where it was."""
    stream = stream_of(file)
    for _ in range(5):
        next(stream)
    before, position = stream.ledger(), stream.position().to_json()
    for moved in (0, num_batches):
        resumed = stream_of(file)
        resumed.seek(type(stream.position())(**{**position, "num_batches": position["num_batches"] + moved}))
        resumed.resume_ledger(before)
        list(resumed)
        assert resumed.finished()[0].accounts_for(resumed.expected()) == (moved == 0)


def test_a_stream_that_goes_back_forgets_what_it_counted_since(file: Path) -> None:
    stream = ParquetStream([file], ["row"], 10, seed=1, shuffle=True, num_epochs=3)
    start = stream.position()
    first = [stream.ledger() for _ in stream][-1]
    assert [finished.epoch for finished in stream.finished()] == [0, 1, 2]
    stream.seek(start)
    assert (stream.ledger(), stream.finished()) == (Ledger(0), [])
    assert [stream.ledger() for _ in stream][-1] == first
