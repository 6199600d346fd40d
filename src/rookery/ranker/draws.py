"""What the random layers of the network draw from for a training batch."""

from __future__ import annotations

from dataclasses import replace

from rookery.data.lanes import mixed_seed
from rookery.data.stream import StreamPosition
from rookery.nn.dropout import as_draws
from rookery.ranker.batch import RankerBatch


def with_draws(batch: RankerBatch, position: StreamPosition) -> RankerBatch:
    """The batch behind which ``position`` stands, with what its rows are drawn for: functions of the seed, the place of
    the batch in the stream and the lane, so that they do not depend on which process has it, nor on what went before.
    """
    # The 2 keeps the draw apart from that of the down-sampling, and from the stream's own.
    seeds = [mixed_seed(position.seed, position.epoch, position.num_batches, 2, lane) for lane in batch.lanes]
    return replace(batch, draws=as_draws(seeds, list(batch.lanes.values())))
