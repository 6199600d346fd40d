"""What a trainer expects of batches that readers make: the digests of the rows that a local stream reads."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rookery.data import flight_digests
from rookery.data.flight_digests import BatchDigests
from rookery.data.lanes import EpochOrder, _generator
from rookery.data.stream import ParquetStream

NUM_ROWS, BATCH, LANES = 1000, 48, 3


@pytest.fixture
def stream(tmp_path: Path) -> ParquetStream:
    pq.write_table(pa.table({"x": np.arange(NUM_ROWS)}), tmp_path / "rows.parquet", row_group_size=37)
    return ParquetStream(
        [tmp_path / "rows.parquet"], ["x"], BATCH, seed=5, shuffle=True, buffer_rows=300, num_lanes=LANES
    )


def expected_by(stream: ParquetStream) -> BatchDigests:
    return BatchDigests([stream.orders[lane] for lane in range(LANES)], stream.layout)


def read(stream: ParquetStream, lanes: range, epoch: int, batch: int) -> int:
    return stream.read(lanes, epoch, batch).digest


def test_they_are_those_of_the_rows_that_are_read(stream: ParquetStream) -> None:
    digests = expected_by(stream)
    for epoch in range(3):
        for batch in range(stream.batches_per_epoch):
            for lanes in (range(LANES), range(1, 2), range(1, 3)):
                assert digests.of(lanes, epoch, batch) == read(stream, lanes, epoch, batch)
    digests.close()


def test_tickets_overtake_each_other_and_go_back(stream: ParquetStream) -> None:
    places = [(epoch, batch) for epoch in range(4) for batch in range(stream.batches_per_epoch)]
    digests, whole = expected_by(stream), range(LANES)
    for place in np.random.default_rng(0).permutation(len(places)):
        assert digests.of(whole, *places[place]) == read(stream, whole, *places[place])
    digests.close()


def test_each_buffer_is_computed_once_ahead_and_not_kept(
    stream: ParquetStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[tuple[int, int, int]] = []
    compute = BatchDigests._compute

    def counted(self: BatchDigests, *key: int) -> list[int]:
        computed.append(key)
        return compute(self, *key)

    monkeypatch.setattr(flight_digests.BatchDigests, "_compute", counted)
    digests = expected_by(stream)
    for batch in range(stream.batches_per_epoch):
        # Two threads, the later ticket first.
        later = threading.Thread(target=digests.of, args=(range(LANES), 0, min(batch + 1, 20)))
        later.start()
        digests.of(range(LANES), 0, batch)
        later.join()
    digests.close()
    assert len(computed) == len(set(computed))
    buffers = {(lane, 0, index) for lane in range(LANES) for index in range(stream.orders[lane].num_buffers(0))}
    assert len(buffers) >= 3 * LANES
    assert buffers <= set(computed) <= buffers | {(lane, 1, 0) for lane in range(LANES)}
    assert len(digests._of_buffers) <= 3 * LANES


def test_permutations_are_those_of_wider_numbers(stream: ParquetStream) -> None:
    """Orders of runs that began before they were narrow stay what they are."""
    order: EpochOrder = stream.orders[1]
    start, stop = order.span(2, 1)
    found = order.permutation(2, 1)
    assert found is not None
    assert found.dtype == torch.int32
    assert torch.equal(found.long(), torch.randperm(stop - start, generator=_generator(5, 2, 2, 1)))
