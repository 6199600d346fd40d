"""What the network sees of some rows, and what the loss needs besides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rookery.nn.dropout import Draws


@dataclass(frozen=True)
class TableSize:
    """Shape of an embedding table; the last of its rows stands for unknown and missing values."""

    num_rows: int
    embedding_dim: int


@dataclass(frozen=True)
class RankerFeatures:
    """Preprocessed features of some rows; all tensors on one device, all numbers finite.

    ``continuous`` ``[batch, Dc]``, ``binary`` ``[batch, Db]`` and, by feature, ``dense`` ``[batch, width]`` are
    float32, all else int64. ``discrete`` are rows ``[batch]`` of each feature's table, the last row for the unknown.
    ``ragged`` are rows ``[batch, max_length]``, -1 behind a list's end. ``joined`` are rows ``[batch]``, or ``[batch,
    max_length]`` with -1 behind the end, of the joined vectors by embedding; the number of vectors stands for an id
    without one. ``position`` ``[batch]`` is -1 where unknown, None where none was read.
    """

    continuous: Tensor
    binary: Tensor
    dense: Mapping[str, Tensor]
    discrete: Mapping[str, Tensor]
    ragged: Mapping[str, Tensor]
    joined: Mapping[str, Tensor]
    position: Tensor | None

    @property
    def num_rows(self) -> int:
        return self.continuous.shape[0]

    def to(self, device: torch.device) -> RankerFeatures:
        return self.map(lambda tensor: tensor.to(device))

    def map(self, change: Callable[[Tensor], Tensor]) -> RankerFeatures:
        """The same features with ``change`` done to every tensor."""
        return RankerFeatures(
            change(self.continuous),
            change(self.binary),
            _map(change, self.dense),
            _map(change, self.discrete),
            _map(change, self.ragged),
            _map(change, self.joined),
            None if self.position is None else change(self.position),
        )


@dataclass(frozen=True)
class RankerBatch:
    """Features with what they are trained and measured by.

    ``labels`` ``[batch, T]`` float32, tasks in the order of the model. ``loss_weights`` ``[batch]`` float32: weight of
    the row times the share undone by down-sampling. ``weights`` ``[batch, T]`` float32, of the metrics: the same times
    ``y / pos_rate + (1 - y) / neg_rate``, which the loss leaves to the calibration of its logits. ``groups``
    ``[batch]`` int64: rows of one user have one number. ``strata`` are truth values ``[batch]`` by stratifier.
    ``shares`` are for the log: ``miss/<embedding>`` of ids without a vector, ``unknown/<feature>`` of values without a
    row. In training alone, ``lanes`` are the numbers of rows, in their order, by lane of the stream, without lanes
    that have none; ``draws`` is what dropout draws from for them.
    """

    features: RankerFeatures
    labels: Tensor
    loss_weights: Tensor
    weights: Tensor
    groups: Tensor
    strata: Mapping[str, Tensor]
    shares: Mapping[str, float] = field(default_factory=dict)
    lanes: Mapping[int, int] = field(default_factory=dict)
    draws: Draws | None = None

    @property
    def num_rows(self) -> int:
        return self.features.num_rows

    def to(self, device: torch.device) -> RankerBatch:
        return RankerBatch(
            self.features.to(device),
            self.labels.to(device),
            self.loss_weights.to(device),
            self.weights.to(device),
            self.groups.to(device),
            _map(lambda tensor: tensor.to(device), self.strata),
            self.shares,
            self.lanes,
            self.draws,
        )


def _map(change: Callable[[Tensor], Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: change(tensor) for name, tensor in tensors.items()}
