"""The log that ``rookery ranker init`` reads: its files, and a sample of rows spread over them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from rookery.config.suggest import did_you_mean
from rookery.data.parquet import open_parquet
from rookery.data.row_groups import RowGroupSlice, list_row_groups, read_footer, require_column
from rookery.errors import DataError
from rookery.ranker.features_config import PartitionConfig
from rookery.ranker.files import find_places

SPLITS = ("train", "valid", "test")
MIN_ROWS = 1_000

_SAMPLE_ROWS = 100_000
_SAMPLE_BYTES = 268_435_456
_MIN_SAMPLE_ROWS = 5_000
_SAMPLED_GROUPS = 64
_RUN_ROWS = 512  # that are sampled together
_BLOCK_ROWS = 8_192


@dataclass(frozen=True)
class Log:
    """Parquet files with one row an impression.

    ``inputs`` are what was named. Of a folder that is split already, ``splits`` has the files by name; ``files`` are
    those to learn from: all of them, or ``train.parquet``.
    """

    inputs: tuple[Path, ...]
    files: tuple[Path, ...]
    splits: Mapping[str, Path]
    schema: pa.Schema
    num_rows: int

    @property
    def name(self) -> str:
        """What was named, on one line."""
        rest = f" and {len(self.inputs) - 1} more" if len(self.inputs) > 1 else ""
        return f"{self.inputs[0]}{rest}"


def open_log(inputs: Sequence[Path]) -> Log:
    """Find the files. Raises ``DataError`` where there are none, or too few rows to learn from."""
    whole = tuple(path.resolve() for path in inputs)
    splits = _split_folder(whole)
    found = find_places(PartitionConfig(inputs=tuple(map(str, whole))))
    files = (splits["train"],) if splits else tuple(file for file in found if isinstance(file, Path))
    slices, _ = list_row_groups(files, [])
    num_rows = sum(piece.num_rows for piece in slices)
    log = Log(whole, files, splits, _one_schema(files), num_rows)
    if num_rows < MIN_ROWS:
        raise DataError(
            f"{log.name}: {num_rows:,} rows; at least {MIN_ROWS:,} are needed to tell what the columns are: name more"
        )
    return log


def require_columns(log: Log, flag: str, names: Sequence[str]) -> None:
    """Raise ``DataError`` for the first of ``names``, given by ``flag``, that is no column."""
    for name in names:
        if name not in log.schema.names:
            raise DataError(f"{flag} {name}: {log.name} has no such column; {did_you_mean(name, log.schema.names)}")


def sample_rows(log: Log) -> pa.Table:
    """All rows of a small log; of a large one runs of rows from up to 64 row groups, evenly over the files.

    At most 100,000 rows and about 256 MB (5,000 rows, should these be larger).
    """
    slices, _ = list_row_groups(log.files, [])
    num_rows = min(_SAMPLE_ROWS, max(_MIN_SAMPLE_ROWS, _SAMPLE_BYTES // _bytes_per_row(slices)))
    if log.num_rows <= num_rows:
        return pa.concat_tables([_read(piece, 1, piece.num_rows) for piece in slices])
    step = max(1, len(slices) // _SAMPLED_GROUPS)
    chosen = slices[step // 2 :: step]
    share = num_rows / sum(piece.num_rows for piece in chosen)
    tables = []
    for piece in chosen:
        wanted = max(1, round(share * piece.num_rows))
        # Of many row groups their beginnings do; of few all is decoded, or the sample would be of few hours.
        reach = piece.num_rows if len(chosen) < 8 else min(piece.num_rows, 4 * wanted)
        tables.append(_read(piece, max(1, reach // wanted), wanted))
    return pa.concat_tables(tables)


def _one_schema(files: Sequence[Path]) -> pa.Schema:
    first = read_footer(files[0]).schema.to_arrow_schema()
    for name in first.names:
        require_column(files[0], first, name)
    for file in files[1:]:
        schema = read_footer(file).schema.to_arrow_schema()
        types = {field.name: field.type for field in schema}
        for field in first:
            if types.get(field.name) != field.type:
                found = types.get(field.name, "absent")
                raise DataError(
                    f"{file}: column {field.name!r} is {found}, but {field.type} in {files[0]}; write all files with "
                    "one schema"
                )
    return first


def _split_folder(inputs: Sequence[Path]) -> dict[str, Path]:
    """The files of a folder with ``train.parquet`` and another split."""
    if len(inputs) != 1 or not inputs[0].is_dir():
        return {}
    found = {split: inputs[0] / f"{split}.parquet" for split in SPLITS if (inputs[0] / f"{split}.parquet").is_file()}
    return found if "train" in found and len(found) > 1 else {}


def _bytes_per_row(slices: Sequence[RowGroupSlice]) -> int:
    """Decoded, by the footer of the largest row group."""
    largest = max(slices, key=lambda piece: piece.num_rows)
    group = read_footer(largest.parquet).row_group(largest.row_group)
    return max(1, int(group.total_byte_size) // int(group.num_rows))


def _read(piece: RowGroupSlice, step: int, num_rows: int) -> pa.Table:
    """Every ``step``-th run of rows of a row group, ``num_rows`` rows at most."""
    try:
        return pa.Table.from_batches(list(_runs(piece, step, num_rows)))
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{piece.file}: row group {piece.row_group} cannot be decoded ({' '.join(str(error).split())}); "
            "write the file again"
        ) from error


def _runs(piece: RowGroupSlice, step: int, num_rows: int) -> Iterator[pa.RecordBatch]:
    block_rows = min(_BLOCK_ROWS, step * min(_RUN_ROWS, num_rows))
    with open_parquet(piece.parquet) as file:
        for block in file.iter_batches(block_rows, row_groups=[piece.row_group]):
            run_rows = min(num_rows, -(-block.num_rows // step))
            yield block.take(pa.array(range(run_rows)))  # a copy: a slice would hold all of the block
            num_rows -= run_rows
            if num_rows <= 0:
                return
