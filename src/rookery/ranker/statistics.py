"""What featurization knows of the data before training: statistics of a file, or measured on training rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rookery.nn.config import ZScoreLogConfig
from rookery.nn.featurization import Featurizer, LogMoments, PiecewiseLinear, ZScoreLog, read_analysis
from rookery.ranker.config import RankerConfig
from rookery.ranker.partition import open_partition
from rookery.ranker.preprocess import Preprocessor

_MEASURED_ROWS = 1_000_000
_SORTED_NUMBERS = 32_000_000
"""Quantiles are those of as many rows as have so many numbers (in float64 256 MB)."""


def fit_featurizer(config: RankerConfig, preprocessor: Preprocessor, featurizer: Featurizer) -> None:
    """Give z-scores and bins their statistics: of the training rows in file order, a million at most."""
    part = featurizer.continuous
    if isinstance(part, ZScoreLog):
        chosen = config.model.featurization_config
        assert chosen is not None
        assert chosen.z_score_log_config is not None
        part.fit(*_moments(config, chosen.z_score_log_config, preprocessor))
    elif isinstance(part, PiecewiseLinear):
        num_rows = min(_MEASURED_ROWS, _SORTED_NUMBERS // max(1, preprocessor.num_continuous))
        part.fit(torch.cat(list(_continuous(config, preprocessor, num_rows))))


def _moments(config: RankerConfig, z_score: ZScoreLogConfig, preprocessor: Preprocessor) -> tuple[Tensor, Tensor]:
    if z_score.analysis_path is not None:
        widths = {block.name: block.width for block in preprocessor.continuous.blocks}
        return read_analysis(z_score.analysis_path, widths)
    moments = LogMoments(preprocessor.num_continuous)
    for continuous in _continuous(config, preprocessor, _MEASURED_ROWS):
        moments.add(continuous)
    return moments.mean, moments.std


def _continuous(config: RankerConfig, preprocessor: Preprocessor, num_rows: int) -> Iterator[Tensor]:
    """Continuous features ``[batch, Dc]`` of the first training rows."""
    data = config.train_data
    first = data.model_copy(update={"limit": min(data.limit or num_rows, num_rows)})
    for columns in open_partition(config, first, preprocessor, labels=False, num_epochs=1):
        yield preprocessor.features(columns).continuous
