"""What the first rows tell before anything is written: labels, weights, row numbers, lists, and whether joins join."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Iterator
from itertools import islice

from rookery.data.row_groups import list_row_groups, read_rows, read_sound_rows, select_rows
from rookery.data.stream import ParquetStream
from rookery.errors import DataError
from rookery.parallel.world import gather_objects, is_chief, on_all, on_chief
from rookery.ranker.columns import label_column
from rookery.ranker.config import RankerConfig
from rookery.ranker.features_config import PartitionConfig
from rookery.ranker.files import find_files, on_corrupt, partition_rows, row_filter
from rookery.ranker.preprocess import CheckedRows, Preprocessor
from rookery.ranker.shares import seek_own_part
from rookery.ranker.wrong_value import WrongValue

logger = logging.getLogger(__name__)

_BATCH_ROWS = 65_536
_WHOLE_ROWS = 4_096  # read with all of their columns, which at 11 KB a row is 45 MB
_MANY_MISSES = 0.5


def check_training_rows(config: RankerConfig, preprocessor: Preprocessor) -> None:
    """Look at the first ``train_data.first_rows_with_positives`` training rows, in file order.

    Raises ``DataError`` with file and row for a label besides 0 and 1, a weight or a position below 0, a row number
    outside its table or a list of another length; and, all in one, where all weights are 0, for tasks without a
    positive label and for joins that never find a vector. Warns of joins that find few. Reads the columns of these
    things alone, a second for a million rows; and 4,096 rows whole. Of several processes all call it: each reads a part
    of the first rows.
    """
    mine = on_all(lambda: _counted(config, preprocessor))
    counts = sum(gather_objects(mine), Counter[str]())
    on_chief(lambda: _require_usable(config, counts))


def _counted(config: RankerConfig, preprocessor: Preprocessor) -> Counter[str]:
    counts: Counter[str] = Counter()
    for rows in _first_rows(config, config.train_data, preprocessor):
        counts["rows"] += len(rows.weights)
        counts["weighted"] += int((rows.weights > 0).sum())
        for task, labels in rows.labels.items():
            counts[f"positive/{task}"] += int(labels.sum())
        for name, found in rows.joined.items():
            counts[f"ids/{name}"] += int((found >= 0).sum())
            counts[f"miss/{name}"] += int((found == preprocessor.num_vectors[name]).sum())
    return counts


def _require_usable(config: RankerConfig, counts: Counter[str]) -> None:
    num_rows = counts["rows"]
    problems = [
        *_without_weight(config, counts, num_rows),
        *_without_positive(config, counts, num_rows),
        *_without_vector(config, counts, num_rows),
    ]
    if problems:
        raise DataError("\n".join(problems))


def check_validation_rows(config: RankerConfig, preprocessor: Preprocessor) -> None:
    """Look at as many of the first rows of each partition of ``validation_data``, for values that cannot be used.

    Raises ``DataError`` with file and row as ``check_training_rows`` does; a validation would end the run hours later.
    """
    for partition in config.validation_data.values():
        on_all(functools.partial(_look_at, config, partition, preprocessor))


def _look_at(config: RankerConfig, partition: PartitionConfig, preprocessor: Preprocessor) -> None:
    for _ in _first_rows(config, partition, preprocessor):
        pass


def _first_rows(config: RankerConfig, partition: PartitionConfig, preprocessor: Preprocessor) -> Iterator[CheckedRows]:
    """What can be told of this process's part of the first rows of a partition. ``DataError`` where one has a value
    that cannot be used.
    """
    if is_chief():
        _read_whole(partition, preprocessor)
    stream = _open(config, partition, preprocessor)
    for columns in islice(stream, seek_own_part(stream, stream.batches_per_epoch)):
        try:
            yield preprocessor.check(columns)
        except WrongValue as error:
            raise error.located(stream) from error


def _read_whole(partition: PartitionConfig, preprocessor: Preprocessor) -> None:
    """Columns that are not checked otherwise: lists may be of another length, ids may have fractions."""
    _, types = list_row_groups(find_files(partition), preprocessor.requests(labels=True))
    first = select_rows(partition_rows(partition), 0, _WHOLE_ROWS)
    if on_corrupt(partition) == "fail":
        read_rows(first, types)
    else:
        read_sound_rows(first, types, lambda damage: None)  # training warns of it


def _open(config: RankerConfig, partition: PartitionConfig, preprocessor: Preprocessor) -> ParquetStream:
    most = config.train_data.first_rows_with_positives
    return ParquetStream(
        find_files(partition),
        preprocessor.checked_requests(),
        _BATCH_ROWS,
        seed=config.runtime.seed,
        shuffle=False,
        buffer_rows=_BATCH_ROWS,  # decoded beyond a process's part, at most, or one row group
        limit=most if partition.limit is None else min(most, partition.limit),
        offset=partition.offset,
        where=row_filter(partition),
        num_epochs=1,
        on_corrupt=on_corrupt(partition),
    )


def _without_weight(config: RankerConfig, counts: Counter[str], num_rows: int) -> Iterator[str]:
    if not counts["weighted"]:
        yield (
            f"train_data: the weight (keys.weight={config.keys.weight}) is 0 in all of the first {num_rows:,} rows, "
            "from which nothing would be learned; give rows more than 0, or leave keys.weight out"
        )


def _without_positive(config: RankerConfig, counts: Counter[str], num_rows: int) -> Iterator[str]:
    for task in config.tasks:
        if not counts[f"positive/{task}"]:
            yield (
                f"train_data: task {task!r} (column {label_column(config, task)!r}) has no positive label in the first "
                f"{num_rows:,} rows; take it out of model.tasks, train on more rows, or raise "
                "train_data.first_rows_with_positives"
            )


def _without_vector(config: RankerConfig, counts: Counter[str], num_rows: int) -> Iterator[str]:
    for joined in config.features.embeddings:
        num_ids, misses = counts[f"ids/{joined.name}"], counts[f"miss/{joined.name}"]
        field = f"features.embeddings.{joined.name}"
        if num_ids and misses == num_ids:
            yield (
                f"{field}.key={joined.key}: none of its ids in the first {num_rows:,} rows is one of {joined.table} in "
                f"{joined.export}; name the column with these ids, or the table of this column's"
            )
        elif misses > _MANY_MISSES * num_ids:
            logger.warning(
                "%s: %.0f%% of the ids of %s have no vector in %s",
                field,
                100 * misses / num_ids,
                joined.key,
                joined.export,
            )
