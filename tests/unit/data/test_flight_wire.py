from __future__ import annotations

import json

import pyarrow as pa
import pytest
import torch

from rookery.data.flight_wire import (
    MAX_BATCHES,
    Garbage,
    Header,
    Order,
    Ticket,
    checksum,
    decode,
    encode,
    schema_of,
    types_of,
)
from rookery.errors import DataError

TICKET = Ticket(identity="x", order=Order(batch_size=8, num_lanes=3), start=1, stop=3, epoch=2, first=5, count=4)


def columns(num_rows: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_rows)
    numbers = torch.randn(num_rows, 6, generator=generator)
    numbers[:1, 0], numbers[:1, 1] = torch.nan, -0.0
    return {
        "ids": torch.randint(-(2**62), 2**62, (num_rows,), generator=generator),
        "numbers": numbers,
        "half": numbers[:, 2].half(),
        "bytes": torch.randint(0, 256, (num_rows, 3), generator=generator).to(torch.uint8),
        "double": torch.randn(6, num_rows, dtype=torch.float64, generator=generator).T,  # not contiguous
    }


@pytest.mark.parametrize("num_rows", [0, 1, 1000])
def test_columns_arrive_bit_for_bit(num_rows: int) -> None:
    sent = columns(num_rows)
    types = types_of(sent)
    batch = encode(sent, types, schema_of(types, "x"))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    arrived = pa.ipc.open_stream(sink.getvalue()).read_next_batch()
    assert checksum(arrived) == checksum(batch)
    received = decode(arrived, types)
    assert list(received) == list(sent)
    for name, tensor in received.items():
        assert (tensor.dtype, tensor.shape) == (sent[name].dtype, sent[name].shape)
        assert tensor.numpy().tobytes() == sent[name].numpy().tobytes()
        tensor.add_(1)  # memory of its own


def test_a_checksum_tells_values_and_columns_apart() -> None:
    def total(ids: torch.Tensor) -> int:
        sent = {**columns(10), "ids": ids}
        return checksum(encode(sent, types_of(sent), schema_of(types_of(sent), "x")))

    ids = columns(10)["ids"]
    assert total(ids.clone()) == total(ids)
    assert total(ids[[0, 1, 3, 2, 4, 5, 6, 7, 8, 9]]) != total(ids)


def test_row_numbers_travel_as_narrow_ones() -> None:
    sent = {"rows": torch.tensor([-1, 0, 2**31 - 1]), "lists": torch.tensor([[1, -1], [2, 3], [0, 7]])}
    types = {name: each.below(2**31) for name, each in types_of(sent).items()}
    batch = encode(sent, types, schema_of(types, "x"))
    assert (batch.nbytes, sum(each.bytes_per_row for each in types.values())) == (36, 12)
    received = decode(batch, types)
    assert all(torch.equal(received[name], sent[name]) and received[name].dtype == torch.int64 for name in sent)
    nothing = {name: each[:0] for name, each in sent.items()}
    assert all(len(each) == 0 for each in decode(encode(nothing, types, batch.schema), types).values())
    assert types_of(sent)["rows"].below(2**31 + 1).sent == torch.int64
    for wrong in (2**31, -(2**31) - 1):
        with pytest.raises(DataError, match=f"column 'rows' has {wrong}, which is the row of no table"):
            encode({**sent, "rows": torch.tensor([0, wrong, 1])}, types, batch.schema)


def test_nulls_are_garbage() -> None:
    types = types_of({"ids": torch.arange(2)})
    batch = pa.record_batch({"ids": pa.array([1, None])})
    with pytest.raises(Garbage, match="column 'ids' has nulls"):
        decode(batch, types)


def test_messages_come_back_as_they_were() -> None:
    assert Ticket.from_bytes(TICKET.to_bytes()) == TICKET
    assert (list(TICKET.lanes), list(TICKET.batches)) == ([1, 2], [5, 6, 7, 8])
    header = Header(batch=3, rows=(1, 2), num_rows=3, digest=2**66 + 1, skipped=0, checksum=2**32 - 1)
    assert Header.from_bytes(header.to_bytes()) == header


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is no ticket"),
        (b"\xff", "is no ticket"),
        (b"[]", "is no ticket"),
        (b"{}", "identity Field required"),
        (b" " * 70_000, "a ticket of 70,000 bytes; at most 65,536"),
    ],
)
def test_what_is_no_ticket(data: bytes, message: str) -> None:
    with pytest.raises(Garbage, match=message):
        Ticket.from_bytes(data)


@pytest.mark.parametrize(
    "changes", [{"count": MAX_BATCHES + 1}, {"count": 0}, {"epoch": -1}, {"start": "1"}, {"more": 1}, {"first": 1.5}]
)
def test_tickets_that_ask_for_too_much_or_nothing(changes: dict[str, object]) -> None:
    with pytest.raises(Garbage, match=next(iter(changes))):
        Ticket.from_bytes(json.dumps({**json.loads(TICKET.to_bytes()), **changes}).encode())
