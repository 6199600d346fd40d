"""Row groups that cannot be decoded: the end of the run, or left out and counted."""

from __future__ import annotations

import errno
import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rookery.data import row_groups
from rookery.data.ledger import Ledger
from rookery.data.stream import ParquetStream
from rookery.errors import DataError

ROWS_PER_GROUP = 50
DAMAGED = set(range(250, 300))  # row group 1 of the second of three files


def write_files(folder: Path) -> list[Path]:
    files = [folder / f"part-{number}.parquet" for number in range(3)]
    for number, file in enumerate(files):
        row = np.arange(200 * number, 200 * (number + 1))
        noise = np.random.default_rng(number).integers(0, 2**60, 200)
        table = pa.table({"row": row, "noise": noise})
        pq.write_table(table, file, row_group_size=ROWS_PER_GROUP, write_page_checksum=True, use_dictionary=False)
    return files


def noise_pages(file: Path) -> tuple[int, int]:
    """Where the pages of the second column of row group 1 lie, from and to."""
    column = pq.read_metadata(file).row_group(1).column(1)
    return column.data_page_offset, column.data_page_offset + column.total_compressed_size


def flip_a_bit(file: Path) -> None:
    """Of a value: what is read is a number like any other, and only the checksum tells."""
    data = bytearray(file.read_bytes())
    data[noise_pages(file)[1] - 5] ^= 1
    file.write_bytes(data)


def blank_the_end(file: Path) -> None:
    data = bytearray(file.read_bytes())
    start, stop = noise_pages(file)
    data[start + 10 : stop] = bytes(stop - start - 10)
    file.write_bytes(data)


def blank_all(file: Path) -> None:
    data = bytearray(file.read_bytes())
    start, stop = noise_pages(file)
    data[start:stop] = b"\xff" * (stop - start)
    file.write_bytes(data)


def open_stream(files: list[Path], **options: Any) -> ParquetStream:
    defaults = {"seed": 1, "shuffle": True, "num_lanes": 4, "buffer_rows": 240, "num_epochs": 2, "on_corrupt": "skip"}
    return ParquetStream(files, ["row", "noise"], 40, **{**defaults, **options})


damages = pytest.mark.parametrize("damage", [flip_a_bit, blank_the_end, blank_all])


@damages
def test_fail_names_file_row_group_and_column(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    files = write_files(tmp_path)
    damage(files[1])
    with pytest.raises(DataError, match=r"part-1\.parquet: row group 1, column 'noise' cannot be decoded .*write the"):
        list(open_stream(files, on_corrupt="fail"))


@pytest.mark.parametrize("shuffle", [True, False])
@damages
def test_skip_leaves_the_row_group_out_and_counts_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], shuffle: bool
) -> None:
    files = write_files(tmp_path)
    whole = [batch["row"].tolist() for batch in open_stream(files, shuffle=shuffle)]
    damage(files[1])
    stream = open_stream(files, shuffle=shuffle)
    per_epoch = stream.batches_per_epoch
    with caplog.at_level(logging.WARNING):
        batches = []
        for batch in stream:
            batches.append(batch["row"].tolist())
            assert sum(stream.lane_rows(stream.position())) == len(batch["row"])
            noise = np.concatenate([np.random.default_rng(number).integers(0, 2**60, 200) for number in range(3)])
            torch.testing.assert_close(batch["noise"], torch.from_numpy(noise)[batch["row"]])
    # Every other row stands in the batch where it would stand without the damage, in that order.
    assert batches == [[row for row in batch if row not in DAMAGED] for batch in whole]
    assert len(batches) == 2 * per_epoch
    expected = stream.expected()
    for epoch, finished in enumerate(stream.finished()):
        assert (finished.epoch, finished.rows, finished.skipped) == (epoch, 550, 50)
        assert finished.accounts_for(expected)
        assert not Ledger(epoch, finished.rows, finished.digest).accounts_for(expected)
    (message,) = [record.getMessage() for record in caplog.records]
    assert "part-1.parquet: row group 1, column 'noise' cannot be decoded" in message
    assert "left out" in message


def test_ranks_leave_out_the_same_rows_and_go_on(tmp_path: Path) -> None:
    files = write_files(tmp_path)
    flip_a_bit(files[1])
    whole = open_stream(files)
    alone, places = [], []
    for batch in whole:
        alone.append(batch["row"].tolist())
        places.append((whole.position(), whole.ledger()))
    position, ledger = places[3]
    streams = [open_stream(files, rank=rank, world_size=3) for rank in range(3)]
    for stream in streams:
        stream.seek(position)
    streams[0].resume_ledger(ledger)
    together = [
        list(itertools.chain(*(part["row"].tolist() for part in parts))) for parts in zip(*streams, strict=True)
    ]
    assert together == alone[4:]
    assert Ledger.merged([stream.finished()[0] for stream in streams]) == whole.finished()[0]


def test_a_file_that_is_gone_is_left_out_with_all_its_row_groups(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = write_files(tmp_path)
    stream, failing = open_stream(files, num_epochs=1), open_stream(files, on_corrupt="fail")
    files[2].unlink()
    rows = sorted(row for batch in stream for row in batch["row"].tolist())
    assert rows == list(range(400))
    (finished,) = stream.finished()
    assert (finished.rows, finished.skipped) == (400, 200)
    assert finished.accounts_for(stream.expected())
    assert len(caplog.records) == 4
    with pytest.raises(
        DataError, match=r"part-2\.parquet: row group \d, column 'row' cannot be decoded .*No such file"
    ):
        list(failing)


def test_selected_rows_of_a_damaged_row_group_alone_count(tmp_path: Path) -> None:
    files = write_files(tmp_path)
    flip_a_bit(files[1])
    stream = open_stream(files, offset=270, limit=100, num_lanes=2, num_epochs=1)
    assert sorted(row for batch in stream for row in batch["row"].tolist()) == list(range(300, 370))
    assert stream.finished()[0].skipped == 30


@pytest.mark.parametrize("lack", [OSError(errno.EMFILE, "Too many open files"), pa.ArrowMemoryError("malloc failed")])
def test_what_the_process_lacks_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lack: Exception) -> None:
    files = write_files(tmp_path)
    stream = open_stream(files)

    def open_file(*arguments: object, **options: object) -> None:
        raise lack

    monkeypatch.setattr(row_groups.pq, "ParquetFile", open_file)
    with pytest.raises(
        DataError, match=rf"row group \d, column 'row' cannot be decoded .*{lack.args[-1]}\); give this process"
    ):
        list(stream)


def test_a_null_is_no_damage(tmp_path: Path) -> None:
    pq.write_table(pa.table({"row": [1, None], "noise": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"row group 0, row 1, column 'row' is null"):
        list(open_stream([tmp_path / "a.parquet"], num_lanes=1))
