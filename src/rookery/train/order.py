"""In which order a run reads its rows: fixed when it begins, whatever number of processes goes on with it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from rookery.checkpoint.files import Checkpoint
from rookery.data.stream import Columns, StreamPosition
from rookery.parallel.config import ParallelConfig
from rookery.parallel.world import is_chief, world_size

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StreamOrder:
    """Rows of a whole batch, and the number of lanes that they come from."""

    batch_size: int
    num_lanes: int


def stream_order(batch_size: int, parallel: ParallelConfig, checkpoint: Checkpoint | None) -> StreamOrder:
    """The order of a new run, or that of ``checkpoint``: of its lanes, and of its batches where the number of processes
    is another one since.

    ``batch_size`` is what the configuration says for these processes together.
    """
    chosen = StreamOrder(batch_size, parallel.num_lanes or world_size())
    if checkpoint is None:
        return chosen
    then = StreamPosition(**checkpoint.state["stream"])
    before = checkpoint.state.get("world_size", 1)
    if before == world_size():
        return StreamOrder(batch_size, parallel.num_lanes or then.num_lanes)
    if is_chief():
        logger.warning(
            "resumed with %d processes, %d before: batches of %d rows from %d lanes, as before",
            world_size(),
            before,
            then.batch_size,
            then.num_lanes,
        )
    return StreamOrder(then.batch_size, parallel.num_lanes or then.num_lanes)


def split_lanes(columns: Mapping[str, Tensor], lanes: Sequence[int], rows: Sequence[int]) -> dict[int, Columns]:
    """The columns of a batch by the lane that their rows come from; ``rows`` are those of each of ``lanes``."""
    parts = {name: column.split(list(rows)) for name, column in columns.items()}  # type: ignore[no-untyped-call]
    return {lane: {name: part[place] for name, part in parts.items()} for place, lane in enumerate(lanes)}
