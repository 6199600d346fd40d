"""Configuration of what a row is: columns, their kinds, tables of embeddings, joined vectors, preprocessing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from rookery.config.base import OneOf, StrictModel
from rookery.data.files_config import ExplicitDateInputs, ExplicitDatetimeInputs, RecordsConfig
from rookery.optim.config import OptimizerConfig
from rookery.storage.location import absolute

PositiveInt = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]


class Feature(StrictModel):
    """A feature and the column that it is read from (of the same name unless said)."""

    name: str = Field(min_length=1)
    column: str | None = None

    @property
    def source(self) -> str:
        """The column."""
        return self.name if self.column is None else self.column


class NumericFeature(Feature):
    """A number a row, or with ``width`` above 1 a fixed-size list of them."""

    width: PositiveInt = 1


class TabledFeature(Feature):
    """A feature whose values are looked up in ``table``."""

    table: str


class DiscreteFeature(TabledFeature):
    """One value of an enumerable set a row."""


class RaggedFeature(TabledFeature):
    """A list of values a row, pooled; an empty list gives zeros.

    ``attention`` weighs each element by a small network of it and of ``query``, a discrete feature of the same table
    (Deep Interest Network, Zhou et al. 2018).
    """

    max_length: PositiveInt
    """The last ones of a longer list are read."""
    pooling: Literal["mean", "sum", "max", "attention"] = "mean"
    query: str | None = None

    @model_validator(mode="after")
    def _attention_has_a_query(self) -> RaggedFeature:
        if (self.pooling == "attention") != (self.query is not None):
            raise ValueError("query names the discrete feature that pooling=attention looks for, and no other pooling")
        return self


class VocabularyConfig(StrictModel):
    """Values found in the training rows, the most frequent first; others share the row of the unknown."""

    min_count: PositiveInt = 1
    max_size: PositiveInt | None = None


class TableConfig(StrictModel):
    """Embeddings of one set of values, for all features that name it. Besides its rows it has one for the unknown.

    With ``optimizer`` the rows move inside the backward pass (for large tables), without it with the network.
    """

    one_of: ClassVar[tuple[OneOf, ...]] = (
        OneOf(("num_embeddings", "hash_buckets", "vocabulary", "values"), required=True),
    )

    name: str = Field(min_length=1)
    embedding_dim: PositiveInt
    num_embeddings: PositiveInt | None = None
    """Values are row numbers themselves, from 0; others are errors."""
    hash_buckets: PositiveInt | None = None
    vocabulary: VocabularyConfig | None = None
    values: tuple[int | str, ...] | None = None
    init_scale: Positive = 0.01
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of values that count as unknown in training: teaches the row of the unknown, and holds rare rows."""
    optimizer: OptimizerConfig | None = None

    @model_validator(mode="after")
    def _values_are_distinct(self) -> TableConfig:
        if self.values is not None:
            if len(set(self.values)) < len(self.values):
                raise ValueError(f"values: {next(v for v in self.values if self.values.count(v) > 1)!r} twice")
            if len({type(value) for value in self.values}) > 1:
                raise ValueError("values: integers or strings, as the columns have them, not both")
        return self


class JoinedEmbedding(StrictModel):
    """Vectors of a TwHIN export, joined by id. A row without a vector gets the learned vector of the missing."""

    name: str = Field(min_length=1)
    export: Path
    table: str
    """The entity type of the export."""
    key: str
    """The column of ids; for a list of ids, ``max_length`` of its last ones are averaged."""
    max_length: PositiveInt | None = None
    trainable: bool = False
    """Start from the vectors and move them, instead of keeping them as they are."""
    optimizer: OptimizerConfig | None = None
    """Moves trainable vectors inside the backward pass; left out, they move with the network."""
    layer_norm: bool = True

    @property
    def own_table(self) -> str:
        """The name of the table that trainable vectors lie in; a slash keeps it apart from ``features.tables``."""
        return f"embeddings/{self.name}"

    @property
    def field(self) -> str:
        """Where the configuration describes it."""
        return f"features.embeddings.{self.name}"

    @model_validator(mode="after")
    def _optimizer_moves_something(self) -> JoinedEmbedding:
        if self.optimizer is not None and not self.trainable:
            raise ValueError("optimizer: the vectors are kept as they are; set trainable to true or leave it out")
        return self


class FeaturesConfig(StrictModel):
    """The columns that the model sees."""

    continuous: tuple[NumericFeature, ...] = ()
    binary: tuple[NumericFeature, ...] = ()
    dense: tuple[NumericFeature, ...] = ()
    """Vectors made elsewhere; each passes a layer norm of its own."""
    blocks: tuple[NumericFeature, ...] = ()
    """What the network does not see: ``preprocess.extract_features`` takes columns of them."""
    discrete: tuple[DiscreteFeature, ...] = ()
    ragged: tuple[RaggedFeature, ...] = ()
    tables: tuple[TableConfig, ...] = ()
    backend: Literal["local", "torchrec"] = "local"
    """Of tables with an optimizer of their own; torchrec shares them out among processes."""
    embeddings: tuple[JoinedEmbedding, ...] = ()

    @property
    def looked_up(self) -> tuple[DiscreteFeature | RaggedFeature, ...]:
        """Features with a table: discrete ones, then ragged ones."""
        return (*self.discrete, *self.ragged)

    def with_whole_paths(self) -> FeaturesConfig:
        """The same with absolute paths."""
        joined = (each.model_copy(update={"export": each.export.absolute()}) for each in self.embeddings)
        return self.model_copy(update={"embeddings": tuple(joined)})


class TruncateAndSlice(StrictModel):
    """Keep the first so many columns of a block, then those that a mask selects."""

    feature: str
    truncation: PositiveInt | None = None
    mask_path: Path | None = None
    """JSON list or .npy array of truth values, one for each column left by ``truncation``."""


class RectifyLabels(StrictModel):
    """A label becomes 0 where the impression or the engagement is known to have come so many hours after serving."""

    label_rectification_window_in_hours: Positive
    served_timestamp_field: str
    impressed_timestamp_field: str
    label_to_engaged_timestamp_field: dict[str, str]


class ExtractFeature(StrictModel):
    """Column ``index`` of a block, as truncation, slicing and downcast leave it, as a column of its own.

    Numbers, discrete values, labels, weights, positions and strata may be read from it; ids and times may not.
    """

    name: str
    source_tensor: str
    index: int = Field(ge=0)


class DownsampleNegatives(StrictModel):
    """Keep every row with an engagement of the list, and a part of the others, weighted up by the share left out."""

    one_of: ClassVar[tuple[OneOf, ...]] = (OneOf(("batch_multiplier", "rows_per_kept"), required=True),)

    batch_multiplier: Positive | None = None
    """Of the others so many for each row with an engagement."""
    rows_per_kept: PositiveInt | None = None
    """Of so many rows one is kept: those with an engagement, and others as far as there is room."""
    engagements_list: tuple[str, ...] = Field(min_length=1)


class PreprocessConfig(StrictModel):
    truncate_and_slice: tuple[TruncateAndSlice, ...] = ()
    extract_features: tuple[ExtractFeature, ...] = ()
    downcast: dict[str, Literal["bfloat16", "float16", "bool", "uint8"]] = Field(default_factory=dict)
    rectify_labels: RectifyLabels | None = None
    downsample_negatives: DownsampleNegatives | None = None
    """In training alone."""

    def with_whole_paths(self) -> PreprocessConfig:
        """The same with absolute paths."""
        sliced = (
            each if each.mask_path is None else each.model_copy(update={"mask_path": each.mask_path.absolute()})
            for each in self.truncate_and_slice
        )
        return self.model_copy(update={"truncate_and_slice": tuple(sliced)})


class KeysConfig(StrictModel):
    """Columns that describe a row without being features."""

    user: str | None = None
    """Rows of one user are one group of GAUC and NDCG."""
    item: str | None = None
    time: str | None = None
    weight: str | None = None
    """Weight of the row in the loss and the metrics."""
    position: str | None = None
    """Place on the page, counted from 0; null where it is unknown. Read for ``model.position_debias_config`` alone."""


class SamplingRates(StrictModel):
    """Shares of the rows with and without an engagement that a log has kept."""

    pos_downsampling_rate: Share = 1.0
    neg_downsampling_rate: Share = 1.0


class LabelConfig(SamplingRates):
    """Where a task's label is read. Rates say how the log was sampled: undone in probabilities and metrics.

    The loss is of the rows as they are; the logits that it learns are then shifted by ``log(neg_rate / pos_rate)``.
    """

    column: str | None = None


class RowFilterConfig(StrictModel):
    """Rows with ``at_least <= column < below``; numbers, or times as in 2022-05-04T00:00:00."""

    column: str
    at_least: int | float | str | None = None
    below: int | float | str | None = None

    @model_validator(mode="after")
    def _selects(self) -> RowFilterConfig:
        if self.at_least is None and self.below is None:
            raise ValueError("needs at_least, below or both")
        return self


class PartitionConfig(StrictModel):
    """Rows of some files: Parquet, or ``records``."""

    one_of: ClassVar[tuple[OneOf, ...]] = (
        OneOf(("inputs", "explicit_date_inputs", "explicit_datetime_inputs"), required=True),
    )

    inputs: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Files, directories or globs, by path or URL."""
    explicit_date_inputs: ExplicitDateInputs | None = None
    explicit_datetime_inputs: ExplicitDatetimeInputs | None = None
    num_files_to_keep: PositiveInt | None = None
    """Of all files found, sorted, the first so many."""
    records: RecordsConfig | None = None
    """What the files hold where they are no Parquet."""
    rows: RowFilterConfig | None = None
    limit: PositiveInt | None = None
    offset: int = Field(default=0, ge=0)
    batch_size: PositiveInt = 4096

    def with_whole_paths(self) -> Self:
        """The same with absolute paths."""
        dates, hours, records = self.explicit_date_inputs, self.explicit_datetime_inputs, self.records
        return self.model_copy(
            update={
                "inputs": None if self.inputs is None else tuple(map(absolute, self.inputs)),
                "explicit_date_inputs": None if dates is None else dates.with_whole_paths(),
                "explicit_datetime_inputs": None if hours is None else hours.with_whole_paths(),
                "records": None if records is None else records.with_whole_paths(),
            }
        )


class TrainPartition(PartitionConfig):
    shuffle: bool = True
    buffer_rows: PositiveInt = 1_048_576
    """Rows that are shuffled together; wide rows are bounded by memory besides."""
    on_corrupt: Literal["fail", "skip"] = "fail"
    """A row group that cannot be decoded ends the run, or its rows are left out, counted and warned of. The column
    that ``rows`` selects by must be readable in any case."""
    first_rows_with_positives: PositiveInt = 1_000_000
    """A task without a positive label in so many rows is refused."""


class EvaluationPartition(PartitionConfig):
    during_training: bool = True
    """Whether validations of the run measure it; a test set is measured on demand."""
    tasks: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Tasks that are measured on it; left out, those of ``evaluation.tasks``."""
    sampling: dict[str, SamplingRates] = Field(default_factory=dict)
    """By task, where its log was sampled otherwise than ``labels`` say: undone in the weights of its metrics."""
