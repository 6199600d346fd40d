"""What the first training rows tell before anything is written: labels, row numbers, and whether joins join at all."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator

from rookery.data.stream import ParquetStream
from rookery.errors import DataError
from rookery.ranker.columns import label_column
from rookery.ranker.config import RankerConfig
from rookery.ranker.files import find_files, row_filter
from rookery.ranker.preprocess import Preprocessor
from rookery.ranker.wrong_value import WrongValue

logger = logging.getLogger(__name__)

_BATCH_ROWS = 65_536
_MANY_MISSES = 0.5


def check_training_rows(config: RankerConfig, preprocessor: Preprocessor) -> None:
    """Look at the first ``train_data.first_rows_with_positives`` training rows, in file order.

    Raises ``DataError`` with file and row for a label besides 0 and 1, a weight below 0 or a row number outside its
    table; and, all in one, for tasks without a positive label and joins that never find a vector. Warns of joins that
    find few. Reads the columns of these things alone: a second for a million rows.
    """
    stream = _first_rows(config, preprocessor)
    counts: Counter[str] = Counter()
    for columns in stream:
        try:
            rows = preprocessor.check(columns)
        except WrongValue as error:
            raise error.located(stream) from error
        for task, labels in rows.labels.items():
            counts[f"positive/{task}"] += int(labels.sum())
        for name, found in rows.joined.items():
            counts[f"ids/{name}"] += int((found >= 0).sum())
            counts[f"miss/{name}"] += int((found == preprocessor.num_vectors[name]).sum())
    problems = [*_without_positive(config, counts, stream.num_rows), *_without_vector(config, counts, stream.num_rows)]
    if problems:
        raise DataError("\n".join(problems))


def _first_rows(config: RankerConfig, preprocessor: Preprocessor) -> ParquetStream:
    data = config.train_data
    most = data.first_rows_with_positives
    return ParquetStream(
        find_files(data),
        preprocessor.checked_requests(),
        _BATCH_ROWS,
        seed=config.runtime.seed,
        shuffle=False,
        limit=most if data.limit is None else min(most, data.limit),
        offset=data.offset,
        where=row_filter(data),
        num_epochs=1,
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
