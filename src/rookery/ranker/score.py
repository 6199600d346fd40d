"""``rookery ranker score``: rows in, calibrated probabilities out, in the same order and in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from rookery.data.row_groups import read_footer
from rookery.errors import DataError, RookeryError
from rookery.ranker.features_config import PartitionConfig
from rookery.ranker.files import find_places
from rookery.ranker.partition import NonFiniteWarnings, open_partition
from rookery.ranker.run import LoadedRun
from rookery.ranker.schema import check_schema
from rookery.ranker.score_keys import KeyRows, key_schema
from rookery.ranker.wrong_value import WrongValue
from rookery.storage.disk import force_to_disk
from rookery.storage.location import Location

SCORE = "score"
_ROWS_PER_GROUP = 65_536
# In the metadata of the schema: only files that have it are replaced.
_MARKER = {b"rookery.kind": b"ranker scores"}


@dataclass(frozen=True)
class ScoredFile:
    """What was written: the file, its rows and its columns."""

    path: Path
    num_rows: int
    columns: tuple[str, ...]


def probability_column(task: str) -> str:
    """The column with a task's probabilities."""
    return f"probability.{task}"


def score_file(
    run: LoadedRun,
    source: Path,
    out: Path,
    *,
    batch_size: int,
    overwrite: bool = False,
    notify: Callable[[int], None] = lambda num_rows: None,
) -> ScoredFile:
    """Score the rows of ``source`` (a file, a folder, a glob) into one Parquet file, which appears whole or not at all.

    Its columns are those of ``keys`` (user, item, time) that ``source`` has, a probability a task, and the score. Only
    the columns of the features are needed. No rows give a file without rows. ``overwrite`` replaces an earlier result
    alone. ``notify`` is told of rows that were done. In memory are a buffer of the stream and 65,536 rows of the
    result. Raises ``DataError`` with file, column and row for what cannot be scored.
    """
    partition = PartitionConfig(inputs=(str(source.absolute()),), batch_size=batch_size)
    files = find_places(partition)
    _require_free(out, source, files, overwrite)
    keys = key_schema(run.config, files)
    schema = _schema(run, keys)
    rows = KeyRows(files, keys)
    num_rows = 0
    with _written_whole(out, schema) as write:
        for probabilities in _predictions(run, partition, files):
            write(_table(run, rows.take(len(probabilities)), probabilities, schema))
            num_rows += len(probabilities)
            notify(num_rows)
        expected = _num_rows(files)
        if num_rows != expected:
            raise RookeryError(
                f"{out}: {num_rows:,} rows were scored, {source} has {expected:,}; it was changed meanwhile"
            )
    return ScoredFile(out, num_rows, tuple(schema.names))


def _require_free(out: Path, source: Path, files: Sequence[Location], overwrite: bool) -> None:
    if any(out.resolve() == file.resolve() for file in files) or (
        source.is_dir() and out.resolve().parent == source.resolve()
    ):
        raise DataError(f"{out}: lies among the rows to score; write the scores elsewhere")
    if out.is_dir():
        raise DataError(f"{out}: is a folder; name the file to write")
    if out.exists() and not overwrite:
        raise DataError(f"{out}: exists; choose another name, or pass --overwrite to replace it")
    if out.exists() and not _is_result(out):
        raise DataError(
            f"{out}: not an earlier result of `rookery ranker score`, so --overwrite does not replace it; choose "
            "another name"
        )


def _is_result(file: Path) -> bool:
    try:
        metadata = pq.read_schema(file).metadata or {}
    except (pa.ArrowException, OSError):  # no Parquet at all
        return False
    return _MARKER.items() <= metadata.items()


def _schema(run: LoadedRun, keys: pa.Schema) -> pa.Schema:
    predicted = [pa.field(name, pa.float32()) for name in (*map(probability_column, run.model.tasks), SCORE)]
    metadata = {**_MARKER, b"rookery.run": str(run.path).encode(), b"rookery.step": str(run.step).encode()}
    return pa.schema([*keys, *predicted], metadata=metadata)


def _num_rows(files: Sequence[Location]) -> int:
    return sum(read_footer(file).num_rows for file in files)


def _predictions(run: LoadedRun, partition: PartitionConfig, files: Sequence[Location]) -> Iterator[Tensor]:
    """Probabilities ``[batch, tasks]`` in the order of the rows."""
    if not _num_rows(files):  # a stream has rows
        check_schema(run.config, partition, run.preprocessor.uses(labels=False), run.preprocessor.id_types)
        return
    stream = open_partition(run.config, partition, run.preprocessor, labels=False, num_epochs=1)
    warnings = NonFiniteWarnings(stream, run.preprocessor)
    for columns in stream:
        try:
            yield run.predict(columns)
        except WrongValue as error:
            raise error.located(stream) from error
        warnings.give()


def _table(run: LoadedRun, keys: pa.Table, probabilities: Tensor, schema: pa.Schema) -> pa.Table:
    scores = run.model.score(probabilities.to(run.model.device)).cpu()
    columns = [*keys.columns, *(pa.array(column.contiguous().numpy()) for column in (*probabilities.T, scores))]
    return pa.table(columns, schema=schema)


@contextmanager
def _written_whole(out: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Give what takes tables; ``out`` has all of them when the block ends well, and is as before when it does not."""
    beside = out.with_name(f".{out.name}.writing")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(beside, schema, compression="zstd") as writer:
            collected = _Collected(writer)
            yield collected.add
            collected.flush()
        force_to_disk(beside)
        beside.replace(out)
        force_to_disk(out.parent)
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written ({error.strerror or error}); choose another place or make room"
        ) from error
    finally:
        beside.unlink(missing_ok=True)


class _Collected:
    """Tables, written as row groups of ``_ROWS_PER_GROUP`` rows."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._tables: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        self._tables.append(table)
        if sum(each.num_rows for each in self._tables) >= _ROWS_PER_GROUP:
            self.flush()

    def flush(self) -> None:
        if self._tables:
            self._writer.write_table(pa.concat_tables(self._tables), _ROWS_PER_GROUP)
        self._tables = []
