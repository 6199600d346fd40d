"""What featurization knows of the data before training: statistics of a file, or measured on training rows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from rookery.nn.config import ZScoreLogConfig
from rookery.nn.featurization import (
    BatchMoments,
    Featurizer,
    LogMoments,
    PiecewiseLinear,
    ZScoreLog,
    read_analysis,
)
from rookery.parallel.world import all_gather_rows, gather_objects, on_all
from rookery.ranker.config import RankerConfig
from rookery.ranker.partition import open_partition
from rookery.ranker.preprocess import Preprocessor
from rookery.ranker.shares import seek_own_part
from rookery.ranker.wrong_value import WrongValue

_MEASURED_ROWS = 1_000_000
_BATCH_ROWS = 4_096
"""Of one sum: the same whatever the number of processes, so that rounding is the same."""
_BUFFER_ROWS = 65_536  # decoded beyond a process's part, at most, or one row group
_SORTED_NUMBERS = 32_000_000
"""Quantiles are those of as many rows as have so many numbers (in float64 256 MB)."""


def fit_featurizer(config: RankerConfig, preprocessor: Preprocessor, featurizer: Featurizer) -> None:
    """Give z-scores and bins their statistics: of the training rows in file order, a million at most.

    Of several processes all call it: each reads a part of these rows, and all come to the same numbers, bit for bit.
    """
    part = featurizer.continuous
    if isinstance(part, ZScoreLog):
        chosen = config.model.featurization_config
        assert chosen is not None
        assert chosen.z_score_log_config is not None
        part.fit(*_moments(config, chosen.z_score_log_config, preprocessor))
    elif isinstance(part, PiecewiseLinear):
        num_rows = min(_MEASURED_ROWS, _SORTED_NUMBERS // max(1, preprocessor.num_continuous))
        nothing = torch.zeros(0, preprocessor.num_continuous)
        mine = on_all(lambda: torch.cat([nothing, *_continuous(config, preprocessor, num_rows)]))
        part.fit(all_gather_rows(mine))  # quantiles cannot be merged


def _moments(config: RankerConfig, z_score: ZScoreLogConfig, preprocessor: Preprocessor) -> tuple[Tensor, Tensor]:
    path = z_score.analysis_path
    if path is not None:
        widths = {block.name: block.width for block in preprocessor.continuous.blocks}
        return on_all(lambda: read_analysis(path, widths))
    mine = on_all(lambda: [BatchMoments.of(each) for each in _continuous(config, preprocessor, _MEASURED_ROWS)])
    moments = LogMoments(preprocessor.num_continuous)
    for of_process in gather_objects(mine):
        for batch in of_process:
            moments.add(batch)
    return moments.mean, moments.std


def _continuous(config: RankerConfig, preprocessor: Preprocessor, num_rows: int) -> Iterator[Tensor]:
    """Continuous features ``[batch, Dc]`` of this process's part of the first training rows."""
    data = config.train_data
    first = data.model_copy(
        update={
            "limit": min(data.limit or num_rows, num_rows),
            "batch_size": _BATCH_ROWS,
            "buffer_rows": min(data.buffer_rows, _BUFFER_ROWS),
        }
    )
    stream = open_partition(config, first, preprocessor, labels=False, num_epochs=1)
    for columns in islice(stream, seek_own_part(stream, stream.batches_per_epoch)):
        try:
            features = preprocessor.features(columns)
        except WrongValue as error:
            raise error.located(stream) from error
        yield features.continuous
