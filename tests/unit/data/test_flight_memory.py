from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from rookery.data.flight_memory import Handover, Mapped, Memories, Memory, NotShared, copy, machine, take_out
from rookery.data.flight_wire import Garbage, Header, TensorTypes, checksum, encode, schema_of, types_of
from rookery.data.stream import Columns

pytestmark = pytest.mark.skipif(machine() is None, reason="this system has no memory to share")


def columns(num_rows: int) -> Columns:
    generator = torch.Generator().manual_seed(num_rows)
    numbers = torch.randn(num_rows, 6, generator=generator)
    numbers[:1, 0], numbers[:1, 1] = torch.nan, -0.0
    return {
        "ids": torch.randint(-(2**62), 2**62, (num_rows,), generator=generator),
        "bytes": torch.randint(0, 256, (num_rows, 3), generator=generator).to(torch.uint8),
        "numbers": numbers,
        "half": numbers[:, 2].half(),
        "rows": torch.randint(-1, 9, (num_rows, 2), generator=generator),
        "double": torch.randn(6, num_rows, dtype=torch.float64, generator=generator).T,  # not contiguous
    }


def types() -> TensorTypes:
    found = types_of(columns(1))
    return found | {"rows": found["rows"].below(9)}


def laid(memory: Memory, sizes: list[int]) -> Handover:
    headers = []
    for batch, num_rows in enumerate(sizes):
        encoded = encode(columns(num_rows), types(), schema_of(types(), "x"))
        total = memory.lay(encoded)
        assert total == checksum(encoded)
        headers.append(Header(batch=batch, rows=(num_rows,), num_rows=num_rows, digest=0, skipped=0, checksum=total))
    return Handover(process=os.getpid(), descriptor=memory.descriptor, headers=tuple(headers))


@pytest.mark.parametrize("sizes", [[0], [1], [1000, 0, 7], [30_000]])
def test_columns_are_taken_out_bit_for_bit(sizes: list[int]) -> None:
    handover = laid(Memories().take(4_000_000), sizes)
    handover = Handover.from_bytes(handover.to_bytes())
    memory, start = Mapped().of(handover), 0
    for num_rows, header in zip(sizes, handover.headers, strict=True):
        received, start = take_out(memory, start, header, types())
        sent = columns(num_rows)
        assert list(received) == list(sent)
        for name, tensor in received.items():
            assert (tensor.dtype, tensor.shape) == (sent[name].dtype, sent[name].shape)
            assert tensor.numpy().tobytes() == sent[name].numpy().tobytes()
            tensor.add_(1)  # memory of its own
    assert start == sum(sizes) * sum(each.bytes_per_row for each in types().values())


def test_what_is_behind_the_end_is_garbage() -> None:
    handover = laid(memory := Memories().take(10), [50])
    too_many = handover.headers[0].model_copy(update={"num_rows": memory.num_bytes})
    with pytest.raises(Garbage, match=r"ends at byte [\d,]+ of 1,048,576"):
        take_out(Mapped().of(handover), 0, too_many, types())


def test_memory_cannot_be_written_to_by_those_who_read_it() -> None:
    seen = Mapped().of(laid(Memories().take(10), [5]))
    with pytest.raises(ValueError, match="read-only"):
        seen[0] = 1


def test_memory_is_mapped_once_and_seen_as_it_is_now() -> None:
    memory, mapped = Memories().take(100), Mapped()
    handover = laid(memory, [1])
    first = mapped.of(handover)
    memory.clear()
    laid(memory, [2])
    assert mapped.of(handover) is first
    assert take_out(first, 0, laid_header(memory, 3), types())[0]["half"].shape == (3,)


def laid_header(memory: Memory, num_rows: int) -> Header:
    memory.clear()
    return laid(memory, [num_rows]).headers[0]


def test_few_are_kept_on_both_sides() -> None:
    memories, mapped = Memories(), Mapped()
    taken = [memories.take(100) for _ in range(12)]
    for each in taken:
        mapped.of(laid(each, [1]))
    assert len(mapped._known) == 8
    for each in taken:
        memories.give(each)
    assert len(memories._idle) == 4
    assert memories.take(2_000_000).num_bytes == 2_097_152  # none of those is large enough
    assert memories.take(5) is taken[-1]


def test_a_process_or_a_file_that_is_not_there() -> None:
    handover = laid(Memories().take(10), [1])
    for changes in ({"process": 2**22 + 1}, {"descriptor": 2**30}, {"descriptor": -1}, {"process": 10**30}):
        with pytest.raises(NotShared):
            Mapped().of(handover.model_copy(update=changes))


def test_a_file_on_disk_is_no_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(1000))
    with (tmp_path / "file").open("rb") as file, pytest.raises(Garbage, match="its memory"):
        Mapped().of(laid(Memories().take(10), [1]).model_copy(update={"descriptor": file.fileno()}))


@pytest.mark.parametrize("num_bytes", [0, 1, 131_071, 131_072, 131_073, 400_000])
def test_the_sum_is_that_of_the_bytes(num_bytes: int) -> None:
    import zlib

    source = np.random.default_rng(0).integers(0, 256, num_bytes).astype(np.uint8)
    target = np.empty_like(source)
    assert copy(source, target, 17) == zlib.crc32(source.tobytes(), 17)
    assert np.array_equal(source, target)
