"""What the edges of an ingest are, once its files are known: relations, entity types, types of their ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from rookery.data.graph import IdType
from rookery.data.ingest_config import DEFAULT_RELATION, EntityTypeConfig, IngestConfig, RelationSpec
from rookery.data.ingest_sources import Source
from rookery.errors import DataError


@dataclass(frozen=True)
class Layout:
    """Relations in row order, entity types in code order, and which columns the edges have beside lhs, rel, rhs."""

    sources: tuple[Source, ...]
    relations: tuple[RelationSpec, ...]
    id_types: Mapping[str, IdType]  # by entity type
    num_entities: Mapping[str, int]  # by entity type, where ids are 0 … num_entities - 1
    weighted: bool
    timed: bool  # every train file has a time column

    @property
    def entity_types(self) -> list[str]:
        return list(self.id_types)

    @property
    def id_sql(self) -> str:
        """The type that all ids are kept in: strings as soon as one entity type has string ids."""
        return "BIGINT" if set(self.id_types.values()) == {"int64"} else "STRING"

    def relation_names(self) -> list[str]:
        return [relation.name for relation in self.relations]

    def side_types(self, source: Source, side: str) -> list[str]:
        """The entity types that a column of ids may hold."""
        return _side_types(source, self.relations, side)

    def side_id_type(self, source: Source, side: str) -> IdType:
        return self.id_types[self.side_types(source, side)[0]]


def lay_out(config: IngestConfig, sources: Sequence[Source], relations: Sequence[RelationSpec]) -> Layout:
    """Settle the relation of every file and the id type of every entity type.

    Raises ``DataError`` where a file does not say its relation, or one column would hold ids of two types.
    """
    sources = [_with_relation(source, relations) for source in sources]
    layout = Layout(
        sources=tuple(sources),
        relations=tuple(relations),
        id_types=_id_types(config.entity_types, sources, relations),
        num_entities={name: spec.num_entities for name, spec in config.entity_types.items() if spec.num_entities},
        weighted=config.duplicates == "sum" or any("weight" in source.roles for source in sources),
        timed=all("time" in source.roles for source in sources if source.split == "train"),
    )
    _require_one_id_type_a_column(layout)
    return layout


def _with_relation(source: Source, relations: Sequence[RelationSpec]) -> Source:
    if source.relation is not None or "relation" in source.roles:
        return source
    if len(relations) == 1:
        return replace(source, relation=relations[0].name)
    if DEFAULT_RELATION in {relation.name for relation in relations}:
        return replace(source, relation=DEFAULT_RELATION)
    names = ", ".join(relation.name for relation in relations)
    raise DataError(
        f"{source.file}: no relation column, and {len(relations)} relations are declared ({names}); "
        f"write {relations[0].name}={source.file}, or pass --relation-column"
    )


def _id_types(
    declared: Mapping[str, EntityTypeConfig], sources: Sequence[Source], relations: Sequence[RelationSpec]
) -> dict[str, IdType]:
    names = list(declared) or list(dict.fromkeys(side for r in relations for side in (r.lhs, r.rhs)))
    inferred = _inferred_id_types(sources, relations)
    return {name: _id_type(declared.get(name, EntityTypeConfig()), inferred.get(name, "string")) for name in names}


def _id_type(declared: EntityTypeConfig, inferred: IdType) -> IdType:
    return "int64" if declared.num_entities else declared.id_type or inferred


def _inferred_id_types(sources: Sequence[Source], relations: Sequence[RelationSpec]) -> dict[str, IdType]:
    """int64 for the entity types whose every column of ids is an integer column of a Parquet file."""
    inferred: dict[str, IdType] = {}
    for source in sources:
        for side in ("lhs", "rhs"):
            is_integer = bool(pa.types.is_integer(source.column_type(side)))
            for name in _side_types(source, relations, side):
                inferred[name] = "int64" if is_integer and inferred.get(name) != "string" else "string"
    return inferred


def _side_types(source: Source, relations: Sequence[RelationSpec], side: str) -> list[str]:
    possible = [r for r in relations if source.relation in (None, r.name)]
    return list(dict.fromkeys(getattr(relation, side) for relation in possible))


def _require_one_id_type_a_column(layout: Layout) -> None:
    for source, side in _id_columns(layout.sources):
        names = layout.side_types(source, side)
        if len({layout.id_types[name] for name in names}) > 1:
            pairs = ", ".join(f"{name} ({layout.id_types[name]})" for name in names)
            raise DataError(
                f"{source.file}: {source.column_name(side)} holds ids of {pairs}; "
                f"give them one id type (--id-type {names[0]}=string) or split the file by relation"
            )


def _id_columns(sources: Sequence[Source]) -> Iterator[tuple[Source, str]]:
    for source in sources:
        yield source, "lhs"
        yield source, "rhs"
