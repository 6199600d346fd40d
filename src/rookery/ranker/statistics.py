"""Mean and deviation of the logs of continuous features: of a file, or measured on training rows."""

from __future__ import annotations

from rookery.nn.featurization import Featurizer, LogMoments, read_analysis
from rookery.ranker.config import RankerConfig
from rookery.ranker.partition import open_partition
from rookery.ranker.preprocess import Preprocessor

_MEASURED_ROWS = 1_000_000


def fit_featurizer(config: RankerConfig, preprocessor: Preprocessor, featurizer: Featurizer) -> None:
    """Give a z-score its statistics: those of its file, or of the first million training rows in file order."""
    chosen = config.model.featurization_config
    if chosen is None or chosen.z_score_log_config is None:
        return
    path = chosen.z_score_log_config.analysis_path
    if path is not None:
        widths = {block.name: block.width for block in preprocessor.continuous.blocks}
        featurizer.fit(*read_analysis(path, widths))
        return
    data = config.train_data
    first = data.model_copy(update={"limit": min(data.limit or _MEASURED_ROWS, _MEASURED_ROWS)})
    moments = LogMoments(preprocessor.num_continuous)
    for columns in open_partition(config, first, preprocessor, labels=False, num_epochs=1):
        moments.add(preprocessor.features(columns).continuous)
    featurizer.fit(moments.mean, moments.std)
