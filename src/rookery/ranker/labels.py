"""Labels of a batch: late engagements undone, weights of rows and tasks, down-sampling of rows without engagement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rookery.data.columns import ColumnRequest
from rookery.data.ids import MISSING_ID
from rookery.data.lanes import mixed_seed
from rookery.data.stream import StreamPosition
from rookery.ranker.columns import ColumnPlan, id_request, label_column, read_labels
from rookery.ranker.config import RankerConfig
from rookery.ranker.features_config import DownsampleNegatives, RectifyLabels, SamplingRates
from rookery.ranker.wrong_value import WrongValue

_HOUR_MS = 3_600_000


class Labels:
    """Reads labels and weights of rows. Time is in milliseconds."""

    def __init__(self, config: RankerConfig, plan: ColumnPlan) -> None:
        self._tasks = config.tasks
        self._keys = {
            task: plan.key(ColumnRequest(label_column(config, task), "label")) for task in read_labels(config)
        }
        weight = config.keys.weight
        self._weight = None if weight is None else plan.key(ColumnRequest(weight, "number"))
        rectify = config.preprocess.rectify_labels
        self._rectify = None if rectify is None else _Rectification(rectify, plan)
        self.unsampled_weights = UnsampledWeights([config.labels[task] for task in config.tasks])

    def read(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Labels ``[batch]`` by task, 0 or 1; ``WrongValue`` for others."""
        labels = {task: columns[key] for task, key in self._keys.items()}
        every = torch.stack(list(labels.values()))
        if ((every != 0) & (every != 1)).any():
            raise self._wrong_label(labels)
        return labels if self._rectify is None else self._rectify(labels, columns)

    def of_tasks(self, labels: Mapping[str, Tensor]) -> Tensor:
        """``[batch, tasks]`` in the order of the model."""
        return torch.stack([labels[task] for task in self._tasks], 1)

    def row_weights(self, columns: Mapping[str, Tensor]) -> Tensor:
        """``[batch]``; 1 without a column of weights. ``WrongValue`` for negative and infinite ones."""
        if self._weight is None:
            return torch.ones_like(columns[self._keys[self._tasks[0]]])
        weights = columns[self._weight]
        if _is_no_weight(weights).any():
            problem = "a weight is a number of at least 0; correct it, or leave the row out"
            raise WrongValue(self._weight, _is_no_weight, problem)
        return weights

    def _wrong_label(self, labels: Mapping[str, Tensor]) -> WrongValue:
        task = next(task for task, values in labels.items() if _is_no_label(values).any())
        problem = f"the label of task {task!r} is 0 or 1; correct it, or map it when the log is written"
        return WrongValue(self._keys[task], _is_no_label, problem)


class UnsampledWeights:
    """``row weight × (y / pos_rate + (1 - y) / neg_rate)`` of labels ``[batch, tasks]`` and weights ``[batch]``: undoes
    how the log was sampled, with the rates of each task.
    """

    def __init__(self, rates: Sequence[SamplingRates]) -> None:
        self._per_positive = torch.tensor([1 / rate.pos_downsampling_rate for rate in rates])
        self._per_negative = torch.tensor([1 / rate.neg_downsampling_rate for rate in rates])

    def __call__(self, labels: Tensor, row_weights: Tensor) -> Tensor:
        """``[batch, tasks]``."""
        per_row = torch.where(labels == 1, self._per_positive.to(labels.device), self._per_negative.to(labels.device))
        return row_weights.unsqueeze(1) * per_row


class _Rectification:
    """A label stays 1 unless impression or engagement is known to have come too late after serving."""

    def __init__(self, config: RectifyLabels, plan: ColumnPlan) -> None:
        self._window_ms = int(config.label_rectification_window_in_hours * _HOUR_MS)
        self._served = plan.key(id_request(config.served_timestamp_field))
        self._impressed = plan.key(id_request(config.impressed_timestamp_field))
        self._engaged = {
            task: plan.key(id_request(column)) for task, column in config.label_to_engaged_timestamp_field.items()
        }

    def __call__(self, labels: Mapping[str, Tensor], columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        served = columns[self._served]
        impressed_late = self._is_late(columns[self._impressed], served)
        late = {
            task: impressed_late | self._is_late(columns[self._engaged[task]], served)
            for task in labels
            if task in self._engaged
        }
        return {task: label.masked_fill(late[task], 0) if task in late else label for task, label in labels.items()}

    def _is_late(self, time: Tensor, served: Tensor) -> Tensor:
        known = (time != MISSING_ID) & (served != MISSING_ID)
        return known & (time - served >= self._window_ms)


@dataclass(frozen=True)
class KeptRows:
    """Rows ``[kept]`` (int64, ascending) that down-sampling keeps, their weights ``[kept]``, their number by lane."""

    rows: Tensor
    weights: Tensor
    lanes: Mapping[int, int]


def downsample_lanes(
    config: DownsampleNegatives, labels: Mapping[str, Tensor], position: StreamPosition, lanes: Mapping[int, int]
) -> KeptRows:
    """As ``downsample_negatives``, each lane on its own; ``lanes`` has their numbers of rows, which lie in order."""
    kept, start = [], 0
    for lane, num_rows in lanes.items():
        part = {task: values[start : start + num_rows] for task, values in labels.items()}
        own = downsample_negatives(config, part, position, lane)
        kept.append(KeptRows(own.rows + start, own.weights, own.lanes))
        start += num_rows
    of_lanes = {lane: num_rows for own in kept for lane, num_rows in own.lanes.items()}
    return KeptRows(torch.cat([own.rows for own in kept]), torch.cat([own.weights for own in kept]), of_lanes)


def downsample_negatives(
    config: DownsampleNegatives, labels: Mapping[str, Tensor], position: StreamPosition, lane: int = 0
) -> KeptRows:
    """All rows with one of the engagements, and ``batch_multiplier`` of the others for each of those, or so many that
    one row of ``rows_per_kept`` is left, but at least one of the others.

    The kept of the others weigh (number of others / number of kept): the expected sum of weight × anything is that of
    the whole batch. For ``batch_multiplier`` a batch without engagement counts as one with one. Drawn from the seed,
    the place of the batch in the stream and the lane alone.
    """
    engaged = torch.stack([labels[task] for task in config.engagements_list]).amax(0) == 1
    others = (~engaged).nonzero().squeeze(1)
    num_engaged = len(engaged) - len(others)
    num_kept = min(len(others), max(1, _num_wanted(config, len(engaged), num_engaged)))
    drawn = others[torch.randperm(len(others), generator=_generator(position, lane))[:num_kept]]
    keep = engaged.clone()
    keep[drawn] = True
    rows = keep.nonzero().squeeze(1)
    weights = torch.where(engaged[rows], 1.0, len(others) / max(1, num_kept))
    return KeptRows(rows, weights, {lane: len(rows)})


def _num_wanted(config: DownsampleNegatives, num_rows: int, num_engaged: int) -> int:
    """Of the rows without engagement."""
    if config.rows_per_kept is not None:
        return num_rows // config.rows_per_kept - num_engaged
    assert config.batch_multiplier is not None  # exactly one is given
    return round(config.batch_multiplier * max(1, num_engaged))


def _generator(position: StreamPosition, lane: int) -> torch.Generator:
    # The 1 keeps the draw apart from the stream's own, whose keys are shorter.
    key = (position.seed, position.epoch, position.num_batches, 1, *([lane] if lane else []))
    return torch.Generator().manual_seed(mixed_seed(*key))


def _is_no_label(values: Tensor) -> Tensor:
    return (values != 0) & (values != 1)


def _is_no_weight(values: Tensor) -> Tensor:
    return ~torch.isfinite(values) | (values < 0)
