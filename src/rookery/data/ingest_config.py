"""What ``rookery twhin ingest`` is told: which files hold edges, what their columns mean, how to split them.

The same model is the mapping file (``ingest.yaml``) and what the command's flags build.
"""

from __future__ import annotations

import math
from datetime import datetime, timezone
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from rookery.config.base import OneOf, StrictModel
from rookery.config.suggest import did_you_mean
from rookery.data.graph import IdType

DEFAULT_ENTITY_TYPE = "entity"
DEFAULT_RELATION = "edge"
SPLITS = ("train", "valid", "test")

Split = Literal["train", "valid", "test"]
Format = Literal["csv", "tsv", "parquet"]
Column = str | int
Fraction = Annotated[float, Field(ge=0, lt=1)]
EntityTypeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]  # it names a file


def parse_time(value: Any) -> float:
    """A point in time: a number as in the time column, or ISO 8601 as seconds since 1970 (UTC unless it says)."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = _parse_iso(str(value))
    if not math.isfinite(number):
        raise ValueError("must be a finite number or a date such as 2012-07-05")
    return number


def _parse_iso(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
    except ValueError:
        raise ValueError("must be a number or a date such as 2012-07-05 or 2012-07-05T12:00:00+00:00") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


Time = Annotated[float, BeforeValidator(parse_time)]


class ColumnsConfig(StrictModel):
    """Which column is what: a name from the header or a position from 1.

    Without ``lhs`` and ``rhs``: the columns of these names if the file names its columns so, else lhs, rhs of a
    file with two columns and lhs, relation, rhs of a file with three.
    """

    lhs: Column | None = None
    rhs: Column | None = None
    relation: Column | None = None
    weight: Column | None = None
    time: Column | None = None

    @model_validator(mode="after")
    def _sides_come_together(self) -> ColumnsConfig:
        if (self.lhs is None) != (self.rhs is None):
            raise ValueError("lhs and rhs go together; give both or neither")
        if self.relation is not None and self.lhs is None:
            raise ValueError("relation needs lhs and rhs beside it")
        return self

    @model_validator(mode="after")
    def _positions_count_from_one(self) -> ColumnsConfig:
        for name in type(self).model_fields:
            column = getattr(self, name)
            if isinstance(column, int) and column < 1:
                raise ValueError(f"{name}={column}: positions count from 1")
        return self

    @property
    def uses_names(self) -> bool:
        return any(isinstance(getattr(self, name), str) for name in type(self).model_fields)


class SourceConfig(StrictModel):
    """Files of one shape. ``files``: paths, folders or globs, relative to the mapping file."""

    files: str | tuple[str, ...]
    split: Split = "train"
    relation: str | None = None  # of every edge; without it a column says
    format: Format | None = None  # by default from the name: .csv, .parquet, else tsv; .gz on top of text
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    header: bool | None = (
        None  # by default: there is one if a column is given by name or the first line has lhs and rhs; a first line
        # that looks like another header is refused
    )
    columns: ColumnsConfig = ColumnsConfig()

    @model_validator(mode="after")
    def _one_origin_of_the_relation(self) -> SourceConfig:
        if self.relation is not None and self.columns.relation is not None:
            raise ValueError("relation and columns.relation exclude each other; keep one")
        return self

    @property
    def patterns(self) -> tuple[str, ...]:
        return (self.files,) if isinstance(self.files, str) else self.files


class RelationSpec(StrictModel):
    """A relation and the entity types of its two sides."""

    name: Annotated[str, Field(min_length=1)]
    lhs: EntityTypeName = DEFAULT_ENTITY_TYPE
    rhs: EntityTypeName = DEFAULT_ENTITY_TYPE


class EntityTypeConfig(StrictModel):
    """``id_type``: by default int64 if Parquet alone holds the ids and holds integers, else string.

    ``num_entities``: the ids are the integers 0 … num_entities - 1 and all of them are entities, edges or not.
    """

    id_type: IdType | None = None
    num_entities: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _counted_ids_are_integers(self) -> EntityTypeConfig:
        if self.num_entities is not None and self.id_type == "string":
            raise ValueError("num_entities needs integer ids; set id_type to int64 or leave num_entities out")
        return self


class FractionsConfig(StrictModel):
    """Fractions of the edges that go to valid and test; the rest is train."""

    valid: Fraction = 0.0
    test: Fraction = 0.0

    @model_validator(mode="after")
    def _leave_some_to_train(self) -> FractionsConfig:
        if self.valid + self.test >= 1:
            raise ValueError(f"valid + test = {self.valid + self.test:g} leaves nothing to train; lower them")
        return self


class TimeSplitConfig(FractionsConfig):
    """The latest edges go to valid and test: by fraction, or from a point in time on.

    With cut points: train < ``valid_from`` <= valid < ``test_from`` <= test.
    """

    valid_from: Time | None = None
    test_from: Time | None = None

    @model_validator(mode="after")
    def _cut_points_or_fractions(self) -> TimeSplitConfig:
        if self.by_cut_points and (self.valid or self.test):
            raise ValueError("fractions and cut points exclude each other; keep valid, test or valid_from, test_from")
        if self.valid_from is not None and self.test_from is not None and self.valid_from >= self.test_from:
            raise ValueError("valid_from must lie before test_from")
        return self

    @property
    def by_cut_points(self) -> bool:
        return self.valid_from is not None or self.test_from is not None


class LeaveKOutConfig(StrictModel):
    """Of each lhs entity, the last ``test`` edges go to test and the ``valid`` before them to valid.

    Last by time where every train file has a time column, else in a seeded random order. An entity that would keep
    no train edge gives none.
    """

    valid: Annotated[int, Field(ge=0)] = 0
    test: Annotated[int, Field(ge=0)] = 0


class SplitConfig(StrictModel):
    """How the edges of the train files are divided. ``random`` keeps all edges between the same two ids on one side."""

    one_of: ClassVar[tuple[OneOf, ...]] = (OneOf(("random", "time", "leave_k_out"), required=True),)

    random: FractionsConfig | None = None
    time: TimeSplitConfig | None = None
    leave_k_out: LeaveKOutConfig | None = None

    @property
    def held_out(self) -> tuple[str, ...]:
        """The splits that the rule fills beside train."""
        rule = self.random or self.time or self.leave_k_out
        wanted = [
            bool(getattr(rule, split) or getattr(rule, f"{split}_from", None) is not None) for split in SPLITS[1:]
        ]
        return tuple(split for split, asked in zip(SPLITS[1:], wanted, strict=True) if asked)

    @model_validator(mode="after")
    def _hold_something_out(self) -> SplitConfig:
        if not self.held_out:
            raise ValueError("holds nothing out; give valid or test a size above 0, or leave split out")
        return self


class IngestConfig(StrictModel):
    """A whole ingest.

    Without ``relations`` they are those that the edges have, sorted by name, each from ``entity`` to ``entity``.
    """

    entity_types: dict[str, EntityTypeConfig] = Field(default_factory=dict)
    relations: tuple[RelationSpec, ...] = ()
    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1)]
    split: SplitConfig | None = None
    duplicates: Literal["keep", "drop", "sum"] = (
        "keep"  # of the same lhs, relation, rhs; sum adds the weights (1 each without)
    )
    seed: int = 0

    @model_validator(mode="after")
    def _relations_are_known(self) -> IngestConfig:
        names = [relation.name for relation in self.relations]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"relation {repeated[0]!r} is listed twice; remove one")
        for source in self.sources:
            if names and source.relation is not None and source.relation not in names:
                raise ValueError(
                    f"source of unknown relation {source.relation!r}; {did_you_mean(source.relation, names)}"
                )
        return self

    @model_validator(mode="after")
    def _entity_types_are_known(self) -> IngestConfig:
        sides = [(relation, side) for relation in self.relations for side in (relation.lhs, relation.rhs)]
        known = list(self.entity_types)
        for relation, side in sides if known else []:
            if side not in known:
                raise ValueError(
                    f"relation {relation.name!r} names the unknown entity type {side!r}; {did_you_mean(side, known)}"
                )
        used = {side for _, side in sides} if self.relations else {DEFAULT_ENTITY_TYPE}
        for name in known:
            if name not in used:
                raise ValueError(f"no relation has the entity type {name!r}; {did_you_mean(name, sorted(used))}")
        return self

    @model_validator(mode="after")
    def _splits_have_one_origin(self) -> IngestConfig:
        from_files = {source.split for source in self.sources}
        if "train" not in from_files:
            raise ValueError("no source is of split train; training needs edges")
        both = from_files.intersection(self.split.held_out if self.split else ())
        if both:
            raise ValueError(f"{sorted(both)[0]} comes both from a file and from split; keep one")
        return self
