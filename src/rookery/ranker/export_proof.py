"""The proof that an export predicts what its checkpoint predicts, on real rows, before anybody gets to see it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rookery.data.ids import MISSING_ID
from rookery.errors import DataError, ExportError
from rookery.ranker.config import RankerConfig
from rookery.ranker.export_manifest import Format, ProofEntry
from rookery.ranker.features_config import PartitionConfig
from rookery.ranker.partition import open_partition
from rookery.ranker.run import LoadedRun

Columns = Mapping[str, Tensor]

# The same code on the same weights; onnxruntime adds in another order.
TOLERANCES: Mapping[Format, float] = {"torch": 0.0, "onnx": 1e-5}

_NUM_ROWS = 1000
_BATCH_SIZES = (1, 7, 128)
"""Beside the batch of all rows."""
_NUM_BATCHES = 8
"""Of each size."""


class Scored(NamedTuple):
    """Calibrated probabilities ``[batch, tasks]`` and the weighted score ``[batch]``, on the CPU."""

    probabilities: Tensor
    score: Tensor


@dataclass(frozen=True)
class ProofRows:
    """Raw columns of rows to compare on, and in words where they are from."""

    columns: Columns
    source: str

    @property
    def num_rows(self) -> int:
        return len(next(iter(self.columns.values())))


def read_proof_rows(run: LoadedRun, file: Path | None) -> ProofRows:
    """The first rows of a Parquet file; without one of the partition that validates the run, or of its training rows.

    Raises ``DataError`` when they are gone or lack a column.
    """
    if file is not None:
        partition, source = PartitionConfig(inputs=(str(file),)), str(file)
    else:
        partition, source = _own_partition(run.config)
    partition = partition.model_copy(update={"batch_size": _NUM_ROWS})
    try:
        stream = open_partition(run.config, partition, run.preprocessor, labels=False, num_epochs=1)
    except DataError as error:
        remedy = "" if file is not None else "; an export is proved on rows of the run, or on those of --rows FILE"
        raise DataError(f"{error}{remedy}") from error
    return ProofRows(next(stream), source)


def _own_partition(config: RankerConfig) -> tuple[PartitionConfig, str]:
    partitions = config.validation_data.items()
    for name, partition in (*(pair for pair in partitions if pair[1].during_training), *partitions):
        return partition, f"validation_data.{name}"
    return config.train_data, "train_data"


def prove(run: LoadedRun, predict: Callable[[Columns], Scored], form: Format, rows: ProofRows) -> ProofEntry:
    """Compare ``predict`` with the checkpoint in batches of several sizes, and on a row without any value.

    An ONNX graph computes in float32, so a run with ``runtime.enable_amp`` is compared without it there. Raises
    ``ExportError`` where a probability differs by more than the format's tolerance (the score: by so much times the
    sum of its weights), or is not finite.
    """
    reference = run if form == "torch" else _in_float32(run)
    sizes = (*(size for size in _BATCH_SIZES if size < rows.num_rows), rows.num_rows)
    largest = 0.0
    for batch in (*(part for size in sizes for part in _batches(rows, size)), _nothing_known(rows.columns)):
        difference = _difference(predict(batch), checkpoint_scores(reference, batch), reference)
        if not difference <= TOLERANCES[form]:  # it may be NaN
            raise ExportError(_refusal(run, form, rows, difference))
        largest = max(largest, difference)
    return ProofEntry(
        rows=rows.source,
        num_rows=rows.num_rows,
        batch_sizes=sizes,
        max_difference=largest,
        tolerance=TOLERANCES[form],
    )


def checkpoint_scores(run: LoadedRun, columns: Columns) -> Scored:
    """What a checkpoint says of raw columns."""
    probabilities = run.predict(columns)
    return Scored(probabilities, run.model.score(probabilities.to(run.model.device)).cpu())


def _in_float32(run: LoadedRun) -> LoadedRun:
    runtime = run.config.runtime.model_copy(update={"enable_amp": False})
    return replace(run, config=run.config.model_copy(update={"runtime": runtime}))


def _batches(rows: ProofRows, size: int) -> Sequence[Columns]:
    starts = range(0, min(rows.num_rows, size * _NUM_BATCHES), size)
    return [{name: column[start : start + size] for name, column in rows.columns.items()} for start in starts]


def _nothing_known(columns: Columns) -> Columns:
    """A row of nulls; of zeros where a type has no null."""
    nulls = {torch.float32: torch.nan, torch.float16: torch.nan, torch.int64: MISSING_ID}
    return {name: torch.full_like(column[:1], nulls.get(column.dtype, 0)) for name, column in columns.items()}


def _difference(found: Scored, expected: Scored, run: LoadedRun) -> float:
    """The largest difference of two probabilities, or of two scores over the sum of their weights' sizes.

    NaN where one is not finite or there are not as many.
    """
    if [part.shape for part in found] != [part.shape for part in expected]:
        return math.nan
    of_probabilities = (found.probabilities - expected.probabilities).abs().max()
    size = run.model.score_weights.abs().sum().clamp(min=1.0).cpu()
    of_scores = (found.score - expected.score).abs().max() / size
    return float(torch.maximum(of_probabilities, of_scores))


def _refusal(run: LoadedRun, form: Format, rows: ProofRows, difference: float) -> str:
    return (
        f"the export as {form} does not predict what step {run.step:,} of {run.path} predicts: probabilities differ by "
        f"{difference:.3g} on {rows.source}, {TOLERANCES[form]:g} is let through. Nothing was written. The fault lies "
        "with the exporter or a package under it: try the other --format, and report it with the versions of torch, "
        "onnx and onnxruntime"
    )
