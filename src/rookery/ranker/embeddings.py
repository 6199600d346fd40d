"""What turns row numbers into vectors: tables of discrete values, lists of them, and vectors joined from an export."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import Self

from rookery.nn.dropout import Dropout
from rookery.nn.pooling import TargetAttention, pool
from rookery.ranker.batch import RankerFeatures, TableSize
from rookery.ranker.features_config import FeaturesConfig, JoinedEmbedding, RaggedFeature, TableConfig
from rookery.tables.protocol import TableBackend, TableSpec

MakeTables = Callable[[Sequence[TableSpec]], TableBackend]


def module_key(name: str) -> str:
    """A name as part of a parameter's: ``<name>``, for a container of torch's has attributes like ``items`` of its own.

    torch separates modules by dots, so a dot is written ``__``.
    """
    return f"<{name.replace('.', '__')}>"


class FeatureEmbeddings(nn.Module):
    """One vector a feature: discrete features, ragged ones pooled, joined ones, in the order of the configuration.

    Tables with an optimizer of their own live in ``tables`` (None if there are none) and move inside the backward
    pass; the others are parameters.
    """

    def __init__(
        self,
        config: FeaturesConfig,
        sizes: Mapping[str, TableSize],
        vectors: Mapping[str, Tensor],
        make_tables: MakeTables,
    ) -> None:
        super().__init__()
        self._config = config
        self._configs = {table.name: table for table in config.tables}
        self.tables = _large_tables(config, sizes, vectors, make_tables)
        self._whole: dict[str, Tensor] = {}
        # By the id() of features, which are kept so that no others get it.
        self._expected: dict[int, tuple[RankerFeatures, dict[str, Tensor]]] = {}
        self.small = nn.ParameterDict(
            {
                module_key(table.name): nn.Parameter(_initial_rows(table, sizes[table.name]))
                for table in config.tables
                if table.optimizer is None
            }
        )
        dims = {name: size.embedding_dim for name, size in sizes.items()}
        self.dropouts = nn.ModuleDict(
            {
                module_key(feature.name): Dropout(self._configs[feature.table].dropout)
                for feature in config.looked_up
                if self._configs[feature.table].dropout
            }
        )
        self.attention = nn.ModuleDict(
            {
                module_key(feature.name): TargetAttention(dims[feature.table])
                for feature in config.ragged
                if feature.pooling == "attention"
            }
        )
        self.joined = nn.ModuleDict(
            {module_key(joined.name): _joined(joined, vectors[joined.name]) for joined in config.embeddings}
        )
        self.widths = (
            *(dims[feature.table] for feature in config.looked_up),
            *(vectors[joined.name].shape[1] for joined in config.embeddings),
        )
        """Width of each vector of ``forward``."""

    def forward(self, features: RankerFeatures) -> list[Tensor]:
        """``[batch, width]`` for each feature."""
        found = self._look_up(features)
        discrete = [found[feature.name] for feature in self._config.discrete]
        ragged = [self._pool(feature, found, features.ragged[feature.name]) for feature in self._config.ragged]
        joined = [
            self.joined[module_key(each.name)](features.joined[each.name], found.get(each.name))
            for each in self._config.embeddings
        ]
        return [*discrete, *ragged, *joined]

    def expect(self, features: RankerFeatures) -> None:
        """``forward`` will be asked for these: tables with an optimizer may prepare for it."""
        if self.tables is None:
            return
        wanted = {table: ids for table, ids in self._wanted(features).items() if self._is_large(table)}
        rows = {table: self._row_numbers(table, ids) for table, ids in wanted.items()}
        self._expected[id(features)] = features, rows
        self.tables.expect(rows)

    def _look_up(self, features: RankerFeatures) -> dict[str, Tensor]:
        """Vectors by feature, each table asked once: a table that moves in the backward pass has one of it a step."""
        wanted = self._wanted(features)
        _, expected = self._expected.pop(id(features), (features, {}))
        rows = {
            table: expected[table] if table in expected else self._row_numbers(table, ids)
            for table, ids in wanted.items()
        }
        return self._split(wanted, self._read(rows))

    def _wanted(self, features: RankerFeatures) -> dict[str, dict[str, Tensor]]:
        """Row numbers as they come, by table and feature."""
        wanted: dict[str, dict[str, Tensor]] = {}
        ids_of = {**features.discrete, **features.ragged}
        for feature in self._config.looked_up:
            wanted.setdefault(feature.table, {})[feature.name] = ids_of[feature.name]
        for joined in self._config.embeddings:
            if joined.optimizer is not None:
                wanted[joined.own_table] = {joined.name: features.joined[joined.name]}
        return wanted

    def _row_numbers(self, table: str, by_feature: Mapping[str, Tensor]) -> Tensor:
        """The rows of a table to look up, one feature behind another."""
        if table in self._configs:
            return torch.cat([self._known_rows(table, *each).reshape(-1) for each in by_feature.items()])
        (ids,) = by_feature.values()
        # The missing and the padding read row 0 and discard it.
        inside = (ids >= 0) & (ids < self._large_rows(table))
        return torch.where(inside, ids, 0).reshape(-1)

    def _known_rows(self, table: str, feature: str, ids: Tensor) -> Tensor:
        """Padding as the unknown row; in training a share of the others too."""
        unknown = (self._large_rows(table) if self._is_large(table) else len(self.small[module_key(table)])) - 1
        ids = torch.where(ids < 0, unknown, ids)
        if self.training and module_key(feature) in self.dropouts:
            dropout = self.dropouts[module_key(feature)]
            assert isinstance(dropout, Dropout)
            ids = ids.masked_fill(dropout.kept(ids) == 0, unknown)
        return ids

    def _read(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        large = {name: ids for name, ids in rows.items() if self._is_large(name)}
        small = {name: ids for name, ids in rows.items() if name not in large}
        found = {name: functional.embedding(ids, self.small[module_key(name)]) for name, ids in small.items()}
        if large:
            assert self.tables is not None
            if torch.is_grad_enabled():
                return {**found, **self.tables.lookup(large)}
            found |= {name: functional.embedding(ids, self._whole_table(name)) for name, ids in large.items()}
        return found

    def _whole_table(self, name: str) -> Tensor:
        """Asked for once between two steps: the rows may have to be gathered from other processes."""
        assert self.tables is not None
        if name not in self._whole:
            self._whole[name] = self.tables.rows(name)
        return self._whole[name]

    def gather_tables(self) -> None:
        """Have all tables at hand before predicting: processes that predict different numbers of batches must not
        gather while they do.
        """
        for spec in self.tables.specs if self.tables is not None else ():
            self._whole_table(spec.name)

    def train(self, mode: bool = True) -> Self:
        """As always; rows that are about to move are not kept."""
        self._whole = {}
        return super().train(mode)

    def _split(self, wanted: Mapping[str, Mapping[str, Tensor]], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        vectors: dict[str, Tensor] = {}
        for table, by_feature in wanted.items():
            parts = torch.split(found[table], [ids.numel() for ids in by_feature.values()])
            for (name, ids), part in zip(by_feature.items(), parts, strict=True):
                vectors[name] = part.view(*ids.shape, part.shape[1])
        return vectors

    def _pool(self, feature: RaggedFeature, found: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        vectors, mask = found[feature.name], ids >= 0  # [batch, length, dim], [batch, length]
        if feature.pooling != "attention":
            return pool(vectors, mask, feature.pooling)
        assert feature.query is not None  # the configuration sees to it
        attended: Tensor = self.attention[module_key(feature.name)](found[feature.query], vectors, mask)
        return attended

    def _is_large(self, table: str) -> bool:
        return table not in self._configs or self._configs[table].optimizer is not None

    def _large_rows(self, table: str) -> int:
        assert self.tables is not None
        return next(spec.num_embeddings for spec in self.tables.specs if spec.name == table)


class JoinedVectors(nn.Module):
    """Vectors of an export by row; one learned vector for rows that it does not have.

    Frozen vectors are a buffer that no checkpoint holds (the run keeps its own copy of the export), trainable ones a
    parameter, or, moved by an optimizer of their own, a table that the caller looks up.
    """

    def __init__(self, config: JoinedEmbedding, vectors: Tensor) -> None:
        super().__init__()
        self._num_vectors = vectors.shape[0]
        self.missing = nn.Parameter(torch.zeros(vectors.shape[1]))
        self.norm = nn.LayerNorm(vectors.shape[1]) if config.layer_norm else None
        self.vectors: Tensor | None
        if config.optimizer is not None:
            self.vectors = None
        elif config.trainable:
            self.vectors = nn.Parameter(vectors.clone())
        else:
            self.register_buffer("vectors", vectors, persistent=False)

    def forward(self, rows: Tensor, found: Tensor | None) -> Tensor:
        """``[batch, dim]`` of rows ``[batch]``, or means over lists ``[batch, length]``; ``found``: rows looked up."""
        there = (rows >= 0) & (rows < self._num_vectors)
        if found is None:
            assert self.vectors is not None
            found = functional.embedding(torch.where(there, rows, 0), self.vectors)
        if rows.dim() == 2:
            found, there = pool(found, there, "mean"), there.any(1)
        found = torch.where(there.unsqueeze(1), found, self.missing)
        return found if self.norm is None else self.norm(found)


def _joined(config: JoinedEmbedding, vectors: Tensor) -> JoinedVectors:
    return JoinedVectors(config, vectors)


def _initial_rows(table: TableConfig, size: TableSize) -> Tensor:
    return torch.empty(size.num_rows, size.embedding_dim).normal_(0.0, table.init_scale)


def _large_tables(
    config: FeaturesConfig,
    sizes: Mapping[str, TableSize],
    vectors: Mapping[str, Tensor],
    make_tables: MakeTables,
) -> TableBackend | None:
    specs = [
        TableSpec(
            table.name,
            sizes[table.name].num_rows,
            table.embedding_dim,
            torch.float32,
            table.optimizer,
            table.init_scale,
        )
        for table in config.tables
        if table.optimizer is not None
    ]
    trainable = [joined for joined in config.embeddings if joined.optimizer is not None]
    specs += [
        TableSpec(
            joined.own_table, len(start), start.shape[1], torch.float32, joined.optimizer, 1.0, field=joined.field
        )
        for joined in trainable
        for start in (vectors[joined.name],)
        if joined.optimizer is not None
    ]
    if not specs:
        return None
    tables = make_tables(specs)
    start = {joined.own_table: vectors[joined.name] for joined in trainable}
    if start:
        tables.load_weights({**tables.weights(), **start})
    return tables
