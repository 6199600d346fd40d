"""What preprocessing says of blocks, checked against the features: truncation, masks, extracted columns, types."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from rookery.config.suggest import did_you_mean
from rookery.errors import DataError
from rookery.ranker.columns import id_fields
from rookery.ranker.config import RankerConfig
from rookery.ranker.features_config import NumericFeature, PreprocessConfig

Mask = tuple[bool, ...]


def read_masks(config: PreprocessConfig) -> dict[str, Mask]:
    """Masks of columns by feature. ``DataError`` for a file that holds no list of truth values."""
    return {one.feature: _read(one.mask_path) for one in config.truncate_and_slice if one.mask_path is not None}


def preprocess_problems(config: RankerConfig, masks: Mapping[str, Mask]) -> Iterator[str]:
    """Everything in ``preprocess`` that does not fit the features."""
    groups = (config.features.continuous, config.features.binary, config.features.dense, config.features.blocks)
    features = {feature.name: feature for group in groups for feature in group}
    widths = _widths(config.preprocess, features, masks)
    for cut in config.preprocess.truncate_and_slice:
        field = f"preprocess.truncate_and_slice.{cut.feature}"
        feature = features.get(cut.feature)
        if feature is None or feature.width == 1:
            blocks = [name for name, each in features.items() if each.width > 1]
            yield f"{field}: no block of continuous, binary or dense of this name; {did_you_mean(cut.feature, blocks)}"
        elif cut.truncation is not None and cut.truncation > feature.width:
            yield f"{field}.truncation={cut.truncation}: the block has {feature.width} columns; correct one of them"
        elif cut.feature in masks and len(masks[cut.feature]) != (cut.truncation or feature.width):
            yield (
                f"{field}.mask_path={cut.mask_path}: {len(masks[cut.feature])} truth values for "
                f"{cut.truncation or feature.width} columns; write one for each column that is left by truncation"
            )
        elif widths[cut.feature] == 0:
            yield f"{field}.mask_path={cut.mask_path}: keeps no column; remove the feature instead"
    yield from _extraction_problems(config, widths)
    for name in config.preprocess.downcast:
        if name not in features:
            yield f"preprocess.downcast.{name}: no numeric feature of this name; {did_you_mean(name, list(features))}"


def _extraction_problems(config: RankerConfig, widths: Mapping[str, int]) -> Iterator[str]:
    blocks = [name for name, width in widths.items() if width > 1]
    for one in config.preprocess.extract_features:
        field = f"preprocess.extract_features.{one.name}"
        if one.source_tensor not in blocks:
            yield f"{field}.source_tensor={one.source_tensor}: no such block; {did_you_mean(one.source_tensor, blocks)}"
        elif one.index >= widths[one.source_tensor]:
            width = widths[one.source_tensor]
            yield f"{field}.index={one.index}: {one.source_tensor} has {width} columns, counted from 0, after slicing"
        for other in id_fields(config, one.name):
            yield f"{field}: {other} reads it, and ids and times need more digits than a block has; give it a column"


def _widths(
    config: PreprocessConfig, features: Mapping[str, NumericFeature], masks: Mapping[str, Mask]
) -> dict[str, int]:
    """Columns of each feature after truncation and slicing."""
    truncations = {cut.feature: cut.truncation for cut in config.truncate_and_slice}
    return {
        name: sum(masks[name]) if name in masks else truncations.get(name) or feature.width
        for name, feature in features.items()
    }


def _read(path: Path) -> Mask:
    try:
        # Never a pickle: a mask is data that somebody passes.
        values = np.load(path, allow_pickle=False).tolist() if path.suffix == ".npy" else json.loads(path.read_text())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; correct mask_path") from error
    except ValueError as error:
        raise DataError(f"{path}: neither JSON nor .npy of truth values ({error}); write the mask again") from error
    if not isinstance(values, list) or any(
        not isinstance(value, (bool, int)) or value not in {0, 1} for value in values
    ):
        raise DataError(f"{path}: must be a list of truth values, one for each column; write the mask again")
    return tuple(map(bool, values))
