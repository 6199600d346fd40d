"""What happens to continuous and binary features before a network reads them.

Counts and amounts span many powers of ten, so every kind starts from the signed logarithm; the kinds differ in what
brings its columns to one scale. Numbers that are not finite count as 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rookery.errors import ConfigError
from rookery.nn.config import DoubleNormLogConfig, FeaturizationConfig, PiecewiseLinearConfig, ZScoreLogConfig
from rookery.nn.mlp import BatchNorm
from rookery.nn.normalization import LayerNorm

_NARROWEST_BIN = 1e-6
"""Of the logarithm: rounding must not tell one value from itself."""


class Featurizer(nn.Module):
    """``continuous [batch, Dc]`` and ``binary [batch, Db]`` to ``[batch, out_features]``, without a config as they are.

    ``out_features`` is ``Dc + Db``, and with a piecewise linear encoding ``Dc (1 + num_bins) + Db``.
    """

    def __init__(self, config: FeaturizationConfig | None, num_continuous: int, num_binary: int) -> None:
        super().__init__()
        bins = None if config is None else config.piecewise_linear_config
        self.out_features = num_continuous * (1 if bins is None else 1 + bins.num_bins) + num_binary
        self.continuous = nn.Identity() if config is None else _continuous(config, num_continuous)
        double_norm = None if config is None else config.double_norm_log_config
        row_norm = None if double_norm is None else double_norm.layer_norm_config
        self.layer_norm = nn.Identity() if row_norm is None else LayerNorm(row_norm, self.out_features)

    def forward(self, continuous: Tensor, binary: Tensor) -> Tensor:
        x = torch.cat([self.continuous(finite(continuous)), finite(binary)], dim=1)
        normed: Tensor = self.layer_norm(x)
        return normed


class ClippedLog(nn.Module):
    """``sign(x) log1p(|x|)``, clamped to ``±clip_magnitude`` if that is given."""

    def __init__(self, clip_magnitude: float | None) -> None:
        super().__init__()
        self.clip_magnitude = clip_magnitude

    def forward(self, x: Tensor) -> Tensor:
        return _clip(signed_log(x), self.clip_magnitude)


class ZScoreLog(nn.Module):
    """``(sign(x) log1p(|x|) - mean) / std``, clamped; as long as it is not fitted, mean 0 and deviation 1.

    The statistics are buffers, so that checkpoints and exports carry them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ZScoreLogConfig, width: int) -> None:
        super().__init__()
        self.clip_magnitude = config.clip_magnitude
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def fit(self, mean: Tensor, std: Tensor) -> None:
        """Both ``[width]``. A column that never varied keeps deviation 1: at its only value it is 0."""
        self.mean.copy_(mean)
        self.std.copy_(std.masked_fill(std == 0, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        return _clip((signed_log(x) - self.mean) / self.std, self.clip_magnitude)


class PiecewiseLinear(nn.Module):
    """``[batch, Dc]`` to ``[batch, Dc (1 + K)]``: z-scores, then ``clamp((log - low_k) / (high_k - low_k), 0, 1)``.

    The K values of a column lie side by side. A bin without width gives 0: columns with few values have some.
    """

    low: Tensor
    scale: Tensor

    def __init__(self, config: PiecewiseLinearConfig, width: int) -> None:
        super().__init__()
        self.num_bins = config.num_bins
        self.z_score = ZScoreLog(ZScoreLogConfig(clip_magnitude=config.clip_magnitude), width)
        self.register_buffer("low", torch.zeros(width, config.num_bins))
        self.register_buffer("scale", torch.zeros(width, config.num_bins))

    def fit(self, continuous: Tensor) -> None:
        """Edges and moments from a sample of rows ``[rows, Dc]``."""
        logs = signed_log(finite(continuous)).double()
        self.z_score.fit(logs.mean(0), logs.std(0, correction=0))
        shares = torch.linspace(0, 1, self.num_bins + 1, dtype=torch.float64)
        edges = logs.new_empty(logs.shape[1], self.num_bins + 1)
        for column, place in zip(logs.T, edges, strict=True):  # torch.quantile takes at most 16 M numbers at a time
            place.copy_(torch.quantile(column, shares))
        widths = edges.diff(dim=1)
        self.low.copy_(edges[:, :-1])
        self.scale.copy_(torch.where(widths > _NARROWEST_BIN, 1 / widths, 0.0))

    def forward(self, x: Tensor) -> Tensor:
        through = ((signed_log(x).unsqueeze(2) - self.low) * self.scale).clamp(0, 1)  # [batch, Dc, K]
        return torch.cat([self.z_score(x), through.flatten(1)], dim=1)


class DoubleNormLog(nn.Module):
    """Batch normalisation of the signed logarithm, clamped; the second norm, over the row, is the featurizer's."""

    def __init__(self, config: DoubleNormLogConfig, width: int) -> None:
        super().__init__()
        norm = config.batch_norm_config
        self.batch_norm = BatchNorm(norm, width) if norm is not None and width else nn.Identity()
        self.clip_magnitude = config.clip_magnitude

    def forward(self, x: Tensor) -> Tensor:
        return _clip(self.batch_norm(signed_log(x)), self.clip_magnitude)


@dataclass(frozen=True)
class BatchMoments:
    """Of so many rows the mean of the signed logarithm of each column, and the sum of squared deviations from it."""

    num_rows: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, continuous: Tensor) -> BatchMoments:
        """``[batch, width]``; numbers that are not finite count as 0, as they do for the network."""
        logs = signed_log(finite(continuous).double()).cpu()
        mean = logs.mean(0)
        return cls(len(logs), mean, (logs - mean).square().sum(0))


class LogMoments:
    """Mean and deviation of the signed logarithm of each column over batches, in float64 by Chan's update.

    The plain sum of squares would lose the deviation of a large, nearly constant column. The same batches in the same
    order give the same bits, whoever took their moments.
    """

    def __init__(self, width: int) -> None:
        self.num_rows = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self._squares = torch.zeros(width, dtype=torch.float64)  # sum of squared deviations from the mean

    def add(self, batch: BatchMoments) -> None:
        if batch.num_rows == 0:
            return
        total = self.num_rows + batch.num_rows
        shift = batch.mean - self.mean
        self._squares += batch.squares + shift.square() * (self.num_rows * batch.num_rows / total)
        self.mean += shift * (batch.num_rows / total)
        self.num_rows = total

    @property
    def std(self) -> Tensor:
        """Of the population: the sum of squares over the number of rows."""
        return (self._squares / max(self.num_rows, 1)).sqrt()


def read_analysis(path: Path, widths: Mapping[str, int]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the signed logarithms, feature behind feature in the order of ``widths``.

    The file is JSON: ``{"<feature>": {"mean": [..], "std": [..]}}`` with ``width`` numbers each.
    """
    try:
        statistics = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"analysis_path={path}: cannot be read: {error.strerror}; name an existing file") from error
    except ValueError as error:
        raise ConfigError(f"analysis_path={path}: is no JSON: {error}") from error
    found = {
        moment: [number for name, width in widths.items() for number in _moment(path, statistics, name, moment, width)]
        for moment in ("mean", "std")
    }
    return torch.tensor(found["mean"]), torch.tensor(found["std"])


def finite(x: Tensor) -> Tensor:
    """``x`` with 0 where it is NaN or infinite."""
    return torch.where(torch.isfinite(x), x, 0.0)


def signed_log(x: Tensor) -> Tensor:
    """``sign(x) log1p(|x|)``."""
    return torch.sign(x) * torch.log1p(x.abs())


def _continuous(config: FeaturizationConfig, width: int) -> nn.Module:
    if config.z_score_log_config is not None:
        return ZScoreLog(config.z_score_log_config, width)
    if config.piecewise_linear_config is not None:
        return PiecewiseLinear(config.piecewise_linear_config, width)
    if config.double_norm_log_config is not None:
        return DoubleNormLog(config.double_norm_log_config, width)
    if config.clip_log1p_abs_config is not None:
        return ClippedLog(config.clip_log1p_abs_config.clip_magnitude)
    assert config.log1p_abs_config is not None  # exactly one is given
    return ClippedLog(None)


def _clip(x: Tensor, magnitude: float | None) -> Tensor:
    return x if magnitude is None else x.clamp(-magnitude, magnitude)


def _moment(path: Path, statistics: object, name: str, moment: str, width: int) -> list[float]:
    """The numbers of one feature, checked."""
    remedy = f"give {width} finite numbers" + (" from 0" if moment == "std" else "")
    try:
        numbers = [float(number) for number in statistics[name][moment]]  # type: ignore[index]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"analysis_path={path}: {name}.{moment}: missing or not a list; {remedy}") from error
    if len(numbers) != width or not all(map(math.isfinite, numbers)) or (moment == "std" and min(numbers) < 0):
        raise ConfigError(f"analysis_path={path}: {name}.{moment}: {numbers}; {remedy}")
    return numbers
