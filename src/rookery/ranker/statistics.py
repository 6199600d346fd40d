"""Mean and deviation of the logs of continuous features, measured on training rows."""

from __future__ import annotations

import torch

from rookery.ranker.config import RankerConfig
from rookery.ranker.model import RankerModel
from rookery.ranker.partition import open_partition
from rookery.ranker.preprocess import Preprocessor

_MEASURED_ROWS = 1_000_000


def fit_featurizer(config: RankerConfig, preprocessor: Preprocessor, model: RankerModel) -> None:
    """Give a z-score without an analysis file the statistics of the first million training rows, in file order."""
    featurizer = model.network.featurizer
    if not featurizer.needs_statistics:
        return
    data = config.train_data
    first = data.model_copy(update={"limit": min(data.limit or _MEASURED_ROWS, _MEASURED_ROWS)})
    count = 0
    total = torch.zeros(preprocessor.num_continuous, dtype=torch.float64)  # float32 loses digits over 1e6 addends
    squares = torch.zeros_like(total)
    for columns in open_partition(config, first, preprocessor, labels=False, num_epochs=1):
        continuous = preprocessor.features(columns).continuous.double()
        logs = continuous.sign() * continuous.abs().log1p()
        count += len(logs)
        total += logs.sum(0)
        squares += logs.square().sum(0)
    mean = total / count
    featurizer.fit(mean, (squares / count - mean.square()).clamp(min=0).sqrt())
