"""The ranker's probabilities for pairs of user and post, from the features that the catalog has of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rookery.config.suggest import did_you_mean
from rookery.data.catalog import Catalog
from rookery.data.columns import ColumnRequest, UnfitType, column_type
from rookery.data.convert import convert
from rookery.errors import UserError
from rookery.ranker.export import RankerExport
from rookery.timeline.pool import Rows
from rookery.timeline.scoring import Floats


class Scorer:
    """A ranker over a catalog. Raises ``UserError`` where the ranker reads what the catalog does not have."""

    def __init__(self, catalog: Catalog, ranker: RankerExport) -> None:
        self._catalog = catalog
        self._ranker = ranker
        self._requests = ranker.requests()
        first = np.zeros(1, np.int64)
        columns = catalog.features(first, first, np.array([catalog.now_us]))
        for request in self._requests:
            if request.name not in columns:
                raise UserError(
                    f"{ranker.path}: reads column {request.name!r}, which the catalog has not; "
                    f"{did_you_mean(request.name, list(columns))} Train the ranker on columns that a catalog has"
                )
            _require_type(ranker, request, columns[request.name])

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks in the order of ``probabilities``."""
        return self._ranker.tasks

    def probabilities(self, users: Rows, posts: Rows) -> Floats:
        """Calibrated, ``[pairs, tasks]``, of pairs that would be shown now, in one pass of the model."""
        if not len(users):
            return np.empty((0, len(self.tasks)))
        times_us = np.full(len(users), self._catalog.now_us)
        columns = tensors_of(self._catalog.features(users, posts, times_us), self._requests)
        scored = self._ranker.predict(_padded(columns, padded_rows(len(users))))
        return scored.probabilities[: len(users)].double().numpy()


def padded_rows(num_rows: int) -> int:
    """The number of rows that is predicted for ``num_rows``: at most an eighth more, or 16.

    oneDNN keeps a compiled product for every shape that it meets: a service that ranks any number of candidates would
    grow by some 200 KB with each number that is new. Eight to a doubling are few enough to keep.
    """
    step = 1 << max(4, num_rows.bit_length() - 4)
    return -(-num_rows // step) * step


def _padded(columns: Mapping[str, Tensor], num_rows: int) -> dict[str, Tensor]:
    """The last row again and again, up to ``num_rows``."""
    return {
        name: torch.cat([column, column[-1:].expand(num_rows - len(column), *column.shape[1:])])
        for name, column in columns.items()
    }


def tensors_of(columns: Mapping[str, np.ndarray | pa.Array], requests: list[ColumnRequest]) -> dict[str, Tensor]:
    """What a stream would hand out for columns in memory: a tensor a request, by its key."""
    tensors = {}
    for request in requests:
        array = pa.array(columns[request.name])
        kind = column_type(request, array.type)
        tensor = kind.allocate(len(array))
        tensor.numpy()[:] = convert(array, kind)
        tensors[request.key] = tensor
    return tensors


def _require_type(ranker: RankerExport, request: ColumnRequest, column: np.ndarray | pa.Array) -> None:
    array = pa.array(column)
    try:
        column_type(request, array.type)
    except UnfitType as error:
        raise UserError(f"{ranker.path}: column {request.name!r} of the catalog is {array.type}; {error}") from error
