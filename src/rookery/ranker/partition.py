"""Rows of a partition as a stream, and its batches as what the model takes."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

import torch

from rookery.data.locate import locate_row
from rookery.data.prefetch import Prefetcher, Transform, prepare
from rookery.data.row_groups import RowGroupSlice
from rookery.data.stream import Columns, ParquetStream, StreamPosition
from rookery.parallel.world import rank, world_size
from rookery.ranker.batch import RankerBatch
from rookery.ranker.config import RankerConfig
from rookery.ranker.draws import with_draws
from rookery.ranker.features_config import EvaluationPartition, PartitionConfig, TrainPartition
from rookery.ranker.files import find_files, on_corrupt, row_filter
from rookery.ranker.labels import UnsampledWeights
from rookery.ranker.preprocess import Preprocessor
from rookery.ranker.schema import check_schema
from rookery.ranker.shares import seek_own_part
from rookery.ranker.wrong_value import WrongValue
from rookery.train.order import StreamOrder

logger = logging.getLogger(__name__)

_PREFETCH_BATCHES = 2
_BUFFER_ROWS = 1_048_576


def open_partition(  # noqa: PLR0913 - each is a choice of its own, named at the call
    config: RankerConfig,
    partition: PartitionConfig,
    preprocessor: Preprocessor,
    *,
    shuffle: bool = False,
    labels: bool = True,
    num_epochs: int | None = None,
    order: StreamOrder | None = None,
    whole: bool = False,
) -> ParquetStream:
    """A stream of the columns that ``preprocessor`` takes; without ``labels`` of those of the features alone.

    Given an ``order``, this process reads its own lanes of it, or all of them if ``whole``; else all rows.

    Raises ``DataError`` for files without one of the columns, or with columns of another type than in training.
    """
    check_schema(config, partition, preprocessor.uses(labels=labels), preprocessor.id_types)
    return ParquetStream(
        find_files(partition),
        preprocessor.requests(labels=labels, keys=labels),
        partition.batch_size if order is None else order.batch_size,
        seed=config.runtime.seed,
        shuffle=shuffle,
        buffer_rows=partition.buffer_rows if isinstance(partition, TrainPartition) else _BUFFER_ROWS,
        limit=partition.limit,
        offset=partition.offset,
        where=row_filter(partition),
        num_epochs=num_epochs,
        num_lanes=1 if order is None else order.num_lanes,
        rank=0 if order is None or whole else rank(),
        world_size=1 if order is None or whole else world_size(),
        on_corrupt=on_corrupt(partition),
    )


def make_transform(
    stream: ParquetStream, preprocessor: Preprocessor, *, training: bool, device: torch.device
) -> Transform[RankerBatch]:
    """What makes batches of the columns of ``stream``; down-samples if ``training``.

    It raises ``DataError`` with file and row for a value that cannot be used, and warns of each feature with numbers
    that are not finite, once for the rows that the stream reads.
    """
    process = make_process(stream, preprocessor, training=training)

    def transform(columns: Columns, position: StreamPosition) -> RankerBatch:
        lanes = dict(zip(stream.lanes, stream.lane_rows(position), strict=True))
        batch = process(columns, position, lanes)
        if training:
            batch = with_draws(batch, position)
        return batch if device.type == "cpu" else batch.to(device)

    return transform


def make_process(
    stream: ParquetStream, preprocessor: Preprocessor, *, training: bool
) -> Callable[[Columns, StreamPosition, Mapping[int, int]], RankerBatch]:
    """As ``make_transform``, of columns that have so many rows of each of some lanes of ``stream``; on the CPU."""
    warnings = NonFiniteWarnings(stream, preprocessor)

    def process(columns: Columns, position: StreamPosition, lanes: Mapping[int, int]) -> RankerBatch:
        try:
            batch = preprocessor.batch(columns, training=training, position=position, lanes=lanes)
        except WrongValue as error:
            raise error.located(stream) from error
        warnings.give()
        return batch

    return process


def evaluation_batches(
    config: RankerConfig,
    partition: PartitionConfig,
    preprocessor: Preprocessor,
    device: torch.device,
    num_batches: int | None = None,
) -> Iterator[RankerBatch]:
    """Every row of a partition once, in file order, made ready ahead of the model; at most ``num_batches``.

    Of several processes each has its part: neighbouring batches, the first of them the chief.
    """
    stream = open_partition(config, partition, preprocessor, num_epochs=1)
    transform = make_transform(stream, preprocessor, training=False, device=device)
    total = min(stream.batches_per_epoch, num_batches or stream.batches_per_epoch)
    mine = seek_own_part(stream, total)
    reweighted = _as_sampled(config, partition)
    with Prefetcher(islice(prepare(stream, transform), mine), _PREFETCH_BATCHES) as batches:
        for prepared in batches:
            yield reweighted(prepared.batch)


def _as_sampled(config: RankerConfig, partition: PartitionConfig) -> Callable[[RankerBatch], RankerBatch]:
    """Gives a batch the weights that undo how the log of its partition was sampled."""
    own = partition.sampling if isinstance(partition, EvaluationPartition) else {}
    if not own:
        return lambda batch: batch
    weights = UnsampledWeights([own.get(task) or config.labels[task] for task in config.tasks])
    return lambda batch: replace(batch, weights=weights(batch.labels, batch.loss_weights))


class NonFiniteWarnings:
    """Warns of each feature when it first has a number that is not finite: once in a process for the same rows."""

    def __init__(self, stream: ParquetStream, preprocessor: Preprocessor) -> None:
        self._stream = stream
        self._preprocessor = preprocessor
        self._warned = _warned_of(_same_rows(stream.slices))

    def give(self) -> None:
        """Warn of features that are new in the batch that this thread preprocessed last; looking for the first place
        may read their column.
        """
        found = self._preprocessor.non_finite
        for feature in sorted(found.keys() - self._warned):
            self._warned.add(feature)
            logger.warning("%s", self._describe(feature, found[feature]))

    def _describe(self, feature: str, count: int) -> str:
        column = self._stream.types.get(self._preprocessor.key_of(feature))
        first = None if column is None else locate_row(self._stream.slices, column, lambda values: ~values.isfinite())
        place = "" if first is None else f", the first of all at {first}"
        return (
            f"feature {feature!r}: {count} of a batch's numbers are null, NaN or infinite{place}; they count as 0, "
            "here and in scoring. A binary feature that tells whether the number is there keeps what is lost"
        )


@functools.cache
def _warned_of(rows: int) -> set[str]:  # noqa: ARG001 - the key of the cache
    """The features that were warned of in some rows: validations and the calibration see the same ones again."""
    return set()


def _same_rows(slices: Sequence[RowGroupSlice]) -> int:
    """A number that stands for the rows of ``slices``."""
    ends = ((piece.row_number(0), piece.row_number(piece.num_rows - 1)) for piece in slices)
    return hash((tuple(slices), tuple(ends)))
