"""From raw columns to what the network sees: one code for training, evaluation, scoring and exported programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor, nn

from rookery.data.columns import ColumnRequest
from rookery.data.ids import MISSING_ID, encode_ids
from rookery.data.stream import StreamPosition
from rookery.ranker.batch import RankerBatch, RankerFeatures, TableSize
from rookery.ranker.blocks import Block, NonFinite, NumericGroup
from rookery.ranker.columns import ColumnPlan, ColumnUse, id_request
from rookery.ranker.config import RankerConfig
from rookery.ranker.features_config import DiscreteFeature, NumericFeature, RaggedFeature, TableConfig
from rookery.ranker.inputs import Inputs
from rookery.ranker.labels import Labels, downsample_lanes
from rookery.ranker.vocabulary import HashBuckets, Lookup, RowNumbers, lookup_of_keys
from rookery.ranker.wrong_value import WrongValue


@dataclass(frozen=True)
class CheckedRows:
    """Rectified labels ``[batch]`` by task, weights ``[batch]``, rows of joined vectors as in ``RankerFeatures``."""

    labels: Mapping[str, Tensor]
    weights: Tensor
    joined: Mapping[str, Tensor]


class Preprocessor(nn.Module):
    """Raw columns, as a stream of ``requests`` hands them out, to features and batches.

    ``features`` is plain tensor operations, so that it is exported together with the network.
    """

    def __init__(self, config: RankerConfig, inputs: Inputs) -> None:
        super().__init__()
        self._config = config
        self._plan = ColumnPlan(config)
        self.id_types = inputs.id_types
        self._non_finite = NonFinite()
        features = config.features
        self.continuous = self._group(features.continuous, inputs)
        self.binary = self._group(features.binary, inputs)
        self._dense = {feature.name: self._group((feature,), inputs) for feature in features.dense}
        self._unseen = self._group(features.blocks, inputs)
        self._lookups = {table.name: _lookup(table, inputs) for table in features.tables}
        self._joins = {joined.name: lookup_of_keys(inputs.joined[joined.name].ids) for joined in features.embeddings}
        # Names of features may have dots, which names of modules may not.
        self.parts = nn.ModuleList([*self._dense.values(), *self._lookups.values(), *self._joins.values()])
        self._labels = Labels(config, self._plan)
        self._strata = {
            one.name: (self._plan.key(id_request(one.column)), int(encode_ids(pa.array([one.value]))[0]))
            for one in config.evaluation.stratifiers
        }

    @property
    def non_finite(self) -> Counter[str]:
        """Numbers that were null, NaN or infinite, by feature, of the rows that this thread preprocessed last."""
        return self._non_finite.counts

    @property
    def num_continuous(self) -> int:
        return self.continuous.width

    @property
    def num_binary(self) -> int:
        return self.binary.width

    @property
    def dense_widths(self) -> dict[str, int]:
        return {name: group.width for name, group in self._dense.items()}

    @property
    def table_sizes(self) -> dict[str, TableSize]:
        dims = {table.name: table.embedding_dim for table in self._config.features.tables}
        return {name: TableSize(lookup.num_rows, dims[name]) for name, lookup in self._lookups.items()}

    @property
    def num_vectors(self) -> dict[str, int]:
        """Number of joined vectors by embedding; as a row number it stands for an id without one."""
        return {name: lookup.num_rows - 1 for name, lookup in self._joins.items()}

    def requests(self, *, labels: bool, keys: bool = True) -> list[ColumnRequest]:
        """The columns to read: of features; of labels, their times and weights; of users and strata."""
        return self._plan.requests(labels=labels, keys=keys)

    def uses(self, *, labels: bool) -> list[ColumnUse]:
        """The fields of the configuration behind ``requests``, with or without those of labels and keys."""
        return [use for use in self._plan.uses if labels or use.group == "features"]

    def key_of(self, feature: str) -> str:
        """Where a batch has the column of a numeric feature."""
        return self._blocks()[feature].key

    def forward(self, columns: Mapping[str, Tensor]) -> RankerFeatures:
        return self.features(columns)

    def features(self, columns: Mapping[str, Tensor]) -> RankerFeatures:
        """What the network sees of raw columns. ``WrongValue`` for a row number outside its table."""
        return self._features(self._with_extracted(columns))

    def batch(
        self,
        columns: Mapping[str, Tensor],
        *,
        training: bool = False,
        position: StreamPosition | None = None,
        lanes: Mapping[int, int] | None = None,
    ) -> RankerBatch:
        """Features, labels, weights, groups and strata of raw columns; down-sampled if ``training``.

        ``position`` is that of the stream behind the batch: it seeds the down-sampling, and numbers the rows where the
        log has no users. ``lanes`` are the numbers of rows of the stream's lanes, if it has several. ``WrongValue``
        for labels besides 0 and 1, weights or positions below 0, rows outside their table.
        """
        columns = self._with_extracted(columns)
        labels = self._labels.read(columns)
        weights = self._labels.row_weights(columns)
        groups = self._groups(columns, len(weights), position)
        downsample = self._config.preprocess.downsample_negatives
        lanes = (lanes or {0: len(weights)}) if training else {}
        if training and downsample is not None:
            assert position is not None
            kept = downsample_lanes(downsample, labels, position, lanes)
            lanes = kept.lanes
            columns, labels = _rows_of(columns, kept.rows), _rows_of(labels, kept.rows)
            weights, groups = weights[kept.rows] * kept.weights, groups[kept.rows]
        features = self._features(columns)
        of_tasks = self._labels.of_tasks(labels)
        return RankerBatch(
            features,
            of_tasks,
            weights,
            self._labels.unsampled_weights(of_tasks, weights),
            groups,
            {name: columns[key] == value for name, (key, value) in self._strata.items()},
            self.shares(features),
            {lane: num_rows for lane, num_rows in lanes.items() if num_rows},
        )

    def checked_requests(self) -> list[ColumnRequest]:
        """The columns that ``check`` takes: of labels, of joins, of row numbers, and the blocks that are cut up."""
        features = self._config.features
        direct = [feature for feature in features.looked_up if isinstance(self._lookups[feature.table], RowNumbers)]
        wanted = {self._plan.key(_request(feature)) for feature in direct}
        wanted |= {self._plan.key(id_request(joined.key, joined.max_length)) for joined in features.embeddings}
        wanted |= {self.key_of(one.source_tensor) for one in self._plan.extracted.values()}
        labels = [use.request for use in self._plan.uses if use.group == "labels"]
        wanted |= {request.key for request in labels}
        return [request for request in self.requests(labels=True, keys=False) if request.key in wanted]

    def check(self, columns: Mapping[str, Tensor]) -> CheckedRows:
        """What can be told of rows without their other features. ``WrongValue`` as ``batch`` raises it."""
        columns = self._with_extracted(columns)
        for feature in self._config.features.looked_up:
            if isinstance(self._lookups[feature.table], RowNumbers):
                self._rows(feature.table, _request(feature), columns)
        self._position(columns)
        return CheckedRows(self._labels.read(columns), self._labels.row_weights(columns), self._joined(columns))

    def _group(self, features: tuple[NumericFeature, ...], inputs: Inputs) -> NumericGroup:
        blocks = [Block(feature, self._config.preprocess, inputs.masks, self._plan) for feature in features]
        return NumericGroup(blocks, self._non_finite)

    def _with_extracted(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The columns and those that are cut out of blocks; the latter as numbers ``[batch]``."""
        if not self._plan.extracted:
            return dict(columns)
        blocks = self._blocks()
        extracted = {
            name: blocks[one.source_tensor].column(columns, one.index) for name, one in self._plan.extracted.items()
        }
        return {**columns, **extracted}

    def _blocks(self) -> dict[str, Block]:
        groups = (self.continuous, self.binary, *self._dense.values(), self._unseen)
        return {block.name: block for group in groups for block in group.blocks}

    def _features(self, columns: Mapping[str, Tensor]) -> RankerFeatures:
        config = self._config.features
        self._non_finite.counts.clear()
        return RankerFeatures(
            continuous=self.continuous(columns),
            binary=self.binary(columns),
            dense={name: group(columns) for name, group in self._dense.items()},
            discrete={
                feature.name: self._rows(feature.table, _request(feature), columns) for feature in config.discrete
            },
            ragged={feature.name: self._rows(feature.table, _request(feature), columns) for feature in config.ragged},
            joined=self._joined(columns),
            position=self._position(columns),
        )

    def _joined(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        requests = {
            joined.name: id_request(joined.key, joined.max_length) for joined in self._config.features.embeddings
        }
        return {name: _find(self._joins[name], self._ids(request, columns)) for name, request in requests.items()}

    def _rows(self, table: str, request: ColumnRequest, columns: Mapping[str, Tensor]) -> Tensor:
        lookup = self._lookups[table]
        ids = self._ids(request, columns)
        if isinstance(lookup, RowNumbers) and not torch.compiler.is_exporting() and lookup.is_wrong(ids).any():
            raise _no_row(self._plan.key(request), table, lookup)
        return _find(lookup, ids)

    def _ids(self, request: ColumnRequest, columns: Mapping[str, Tensor]) -> Tensor:
        values = columns[self._plan.key(request)]
        return _whole_numbers(values) if values.is_floating_point() else values

    def _position(self, columns: Mapping[str, Tensor]) -> Tensor | None:
        if self._config.model.position_debias_config is None or self._config.keys.position is None:
            return None
        request = id_request(self._config.keys.position)
        key = self._plan.key(request)
        if key not in columns:
            return None
        positions = self._ids(request, columns)
        if _is_no_position(positions).any():
            raise WrongValue(
                key, _is_no_position, "a position counts from 0; correct it, or write null if it is unknown"
            )
        return positions.clamp(min=-1)

    def _groups(self, columns: Mapping[str, Tensor], num_rows: int, position: StreamPosition | None) -> Tensor:
        if self._config.keys.user is not None:
            return self._ids(id_request(self._config.keys.user), columns)
        start = 0 if position is None else (position.num_batches - 1) * position.batch_size
        return torch.arange(start, start + num_rows)

    def shares(self, features: RankerFeatures) -> dict[str, float]:
        """Shares of a batch for the log: a share that grows from one day to the next tells of stale inputs."""
        sizes, vectors = self.table_sizes, self.num_vectors
        tables = {feature.name: feature.table for feature in self._config.features.looked_up}
        rows = {**features.discrete, **features.ragged}
        unknown = {f"unknown/{name}": _share(rows[name], sizes[table].num_rows - 1) for name, table in tables.items()}
        return unknown | {f"miss/{name}": _share(found, vectors[name]) for name, found in features.joined.items()}


def _request(feature: DiscreteFeature | RaggedFeature) -> ColumnRequest:
    return id_request(feature.source, feature.max_length if isinstance(feature, RaggedFeature) else None)


def _lookup(table: TableConfig, inputs: Inputs) -> Lookup:
    if table.num_embeddings is not None:
        return RowNumbers(table.num_embeddings + 1)
    if table.hash_buckets is not None:
        return HashBuckets(table.hash_buckets + 1)
    return lookup_of_keys(inputs.vocabularies[table.name].ids)


def _is_no_position(positions: Tensor) -> Tensor:
    return (positions < 0) & (positions != MISSING_ID)


def _find(lookup: nn.Module, ids: Tensor) -> Tensor:
    """Rows of ids; -1 behind the end of a list."""
    rows: Tensor = lookup(ids)
    return rows if ids.dim() == 1 else torch.where(ids == MISSING_ID, -1, rows)


def _whole_numbers(values: Tensor) -> Tensor:
    """Int64 of an extracted column; a number that is not whole is no id."""
    whole = (values == values.floor()) & (values.abs() < 2.0**62)
    return torch.where(whole, values, 0.0).long().masked_fill(~whole, MISSING_ID)


def _no_row(key: str, table: str, lookup: RowNumbers) -> WrongValue:
    remedy = "correct the row, or train with a larger num_embeddings, hash_buckets or a vocabulary"
    return WrongValue(key, lookup.is_wrong, f"table {table!r} has rows 0 to {lookup.num_rows - 2}; {remedy}")


def _rows_of(tensors: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    return {name: tensor.index_select(0, rows) for name, tensor in tensors.items()}


def _share(rows: Tensor, unknown: int) -> float:
    """Share of the elements (padding is none) that are ``unknown``; 0 of none."""
    num_elements = rows.numel() if rows.dim() == 1 else int(torch.count_nonzero(rows >= 0))
    return int(torch.count_nonzero(rows == unknown)) / max(1, num_elements)
