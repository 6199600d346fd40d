"""Configuration of a TwHIN run: the reference's field names and ours, checked as a whole before anything is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from rookery.config.base import OneOf, StrictModel
from rookery.config.suggest import did_you_mean
from rookery.optim.config import OptimizerConfig
from rookery.parallel.config import ParallelConfig, lanes_refusal
from rookery.storage.location import LocationField
from rookery.tables.refusals import TableAsked, TablesAsked, WorldShape, table_refusals
from rookery.train.config import RuntimeConfig, TrainingConfig
from rookery.twhin.evaluation_config import EvaluationConfig
from rookery.types import Side

OperatorName = Literal["translation", "identity", "diagonal", "complex_diagonal", "linear"]
ComparatorName = Literal["dot", "cosine", "l2", "l1"]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class EmbeddingTable(StrictModel):
    """One entity type: a row of ``embedding_dim`` numbers for each of ``num_embeddings`` entities."""

    name: str = Field(min_length=1)
    num_embeddings: int = Field(gt=0)
    embedding_dim: int = Field(gt=0)
    data_type: Literal["fp32", "fp16", "bf16"] = "fp32"
    optimizer: OptimizerConfig
    init_scale: Positive = 1e-3
    """Standard deviation of the initial rows."""
    max_norm: Positive | None = None
    """Largest Euclidean norm that a row keeps after an update."""
    pretrained: LocationField | None = None
    """Parquet file with columns ``id``, ``vector`` to start from; entities that it does not have start at random."""
    vocab: LocationField | None = None
    """Parquet file with columns ``row``, ``id``; left out, the graph's own. ``pretrained`` is joined through it."""


class EmbeddingsConfig(StrictModel):
    tables: tuple[EmbeddingTable, ...] = Field(min_length=1)
    tables_to_log: tuple[str, ...] | None = None
    """Tables whose mean row norm is logged."""
    backend: Literal["local", "torchrec"] = "local"


class RelationConfig(StrictModel):
    """A kind of edge: which table each side is in, and the operator that relates them."""

    name: str = Field(min_length=1)
    lhs: str
    rhs: str
    operator: OperatorName = "translation"
    weight: NonNegative = 1.0
    """Multiplies the loss of the relation's edges."""


class BceConfig(StrictModel):
    """Binary cross-entropy of the positive, and of the mean negative times ``negative_weight``."""

    negative_weight: Positive = 1.0


class SoftmaxConfig(StrictModel):
    """The positive against its negatives; ``log_q`` corrects sampled negatives for how often they are drawn."""

    temperature: Positive = 1.0
    log_q: bool = False


class MarginRankingConfig(StrictModel):
    margin: Positive = 1.0


class SelfAdversarialConfig(StrictModel):
    """Negatives weighted by their own softmax at inverse temperature ``alpha``."""

    margin: float = 0.0
    alpha: NonNegative = 1.0


class LossConfig(StrictModel):
    one_of: ClassVar[tuple[OneOf, ...]] = (
        OneOf(("bce", "softmax", "margin_ranking", "self_adversarial"), required=True),
    )

    bce: BceConfig | None = None
    softmax: SoftmaxConfig | None = None
    margin_ranking: MarginRankingConfig | None = None
    self_adversarial: SelfAdversarialConfig | None = None


class RegularizerConfig(StrictModel):
    """Penalties on the vectors of each edge, means over the batch; ``pull`` holds rows to those of a warm start."""

    n3: NonNegative = 0.0
    l2: NonNegative = 0.0
    negatives: bool = False
    """Penalize drawn negatives too, together as much as the edges that they were drawn for: holds entities that are
    seldom seen as positives."""
    pull: NonNegative = 0.0


class ModelConfig(StrictModel):
    embeddings: EmbeddingsConfig
    relations: tuple[RelationConfig, ...] = Field(min_length=1)
    translation_optimizer: OptimizerConfig
    """Moves the parameters of the relations, whatever their operator."""
    operator_side: Literal["lhs", "rhs", "both"] = "lhs"
    """Which side the operator acts on; ``both`` gives each relation own parameters for either direction."""
    relation_init_scale: NonNegative | None = None
    """Relations start as normal noise of this standard deviation; left out, as the operator that changes nothing."""
    comparator: ComparatorName = "dot"
    loss: LossConfig = LossConfig(bce=BceConfig())
    regularizer: RegularizerConfig = RegularizerConfig()


class ValidationData(StrictModel):
    """What is measured in the middle of a run."""

    split: str = "valid"
    """A split of the graph."""


class TrainData(StrictModel):
    """Edges in Parquet files with columns ``lhs, rel, rhs[, weight]`` of row numbers, and how a step uses them."""

    data_root: str | None = None
    """A directory or a glob, by path or URL; left out, the graph's train split."""
    limit: int | None = Field(default=None, gt=0)
    offset: int = Field(default=0, ge=0)
    per_replica_batch_size: int = Field(default=20_000, gt=0)
    global_negatives: Annotated[int, Field(ge=0)] | Literal["all"] = 100
    """Negatives drawn for each chunk and side from the table of the right type; ``all``: every entity of the type."""
    in_batch_negatives: int = Field(default=100, ge=0)
    """Edges of a chunk that lend their entity as a negative to the others."""
    chunk_size: int = Field(default=1000, gt=0)
    """Edges that share their negatives."""
    negative_alpha: NonNegative = 0.0
    """Global negatives are drawn in proportion to degree ** negative_alpha; 0: uniformly."""
    negative_sides: tuple[Side, ...] = Field(default=(Side.LHS, Side.RHS), min_length=1)
    mask_known_positives: bool = False
    """Also mask negatives that are other training edges; the positive itself never counts as its own negative."""
    order: Literal["edges", "queries"] = "edges"
    """``queries``: edges that share relation and anchor come together, each direction on its own, so that a softmax
    over all entities scores each query once. Edges are kept in memory."""
    shuffle: bool = True
    buffer_rows: int = Field(default=4_194_304, gt=0)
    """Rows that are shuffled together."""
    on_corrupt: Literal["fail", "skip"] = "fail"
    """A row group that cannot be decoded ends the run, or its edges are left out, counted and warned of."""

    @model_validator(mode="after")
    def _fields_fit(self) -> TrainData:
        if self.global_negatives == 0 and self.in_batch_negatives == 0:
            raise ValueError("global_negatives and in_batch_negatives are both 0; training needs negatives")
        if self.global_negatives == "all" and self.in_batch_negatives:
            raise ValueError("global_negatives=all already has every entity; set in_batch_negatives to 0")
        if len(set(self.negative_sides)) < len(self.negative_sides):
            raise ValueError("negative_sides names a side twice; name each once")
        if self.order == "queries" and not self.shuffle:
            raise ValueError("order=queries shuffles the queries in any case; leave out shuffle, or set order to edges")
        if self.on_corrupt == "skip" and self.mask_known_positives:
            raise ValueError("mask_known_positives needs every edge; set on_corrupt to fail, or leave the mask out")
        return self


class TwhinConfig(StrictModel):
    """One TwHIN run."""

    graph: LocationField | None = None
    """An ingested graph: vocabularies, splits, degrees. Without it, ids are row numbers and ``data_root`` is needed."""
    runtime: RuntimeConfig = RuntimeConfig()
    parallel: ParallelConfig = ParallelConfig()
    training: TrainingConfig
    model: ModelConfig
    train_data: TrainData = TrainData()
    validation_data: ValidationData | None = None
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> TwhinConfig:
        problems = (
            *_table_problems(self.model.embeddings),
            *_relation_problems(self.model),
            *_data_problems(self),
            *_validation_problems(self),
            *table_refusals(tables_asked(self)),
        )
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _table_problems(embeddings: EmbeddingsConfig) -> list[str]:
    tables = embeddings.tables
    names = [table.name for table in tables]
    problems = [f"model.embeddings.tables: {name!r} is named twice" for name in _repeated(names)]
    if len({table.embedding_dim for table in tables}) > 1:
        sizes = ", ".join(f"{table.name}={table.embedding_dim}" for table in tables)
        problems.append(f"model.embeddings.tables: embedding_dim differs ({sizes}); all tables share one dimension")
    if len({table.data_type for table in tables}) > 1:
        kinds = ", ".join(f"{table.name}={table.data_type}" for table in tables)
        problems.append(f"model.embeddings.tables: data_type differs ({kinds}); all tables share one data type")
    unknown = [name for name in embeddings.tables_to_log or () if name not in names]
    return problems + [
        f"model.embeddings.tables_to_log: unknown table {name!r}; {did_you_mean(name, names)}" for name in unknown
    ]


def _relation_problems(model: ModelConfig) -> list[str]:
    names = [table.name for table in model.embeddings.tables]
    problems = [f"model.relations: {name!r} is named twice" for name in _repeated([r.name for r in model.relations])]
    for relation in model.relations:
        for field in ("lhs", "rhs"):
            table = getattr(relation, field)
            if table not in names:
                hint = did_you_mean(table, names)
                problems.append(f"model.relations.{relation.name}.{field}={table}: no such table; {hint}")
    odd = model.embeddings.tables[0].embedding_dim % 2
    if odd and any(relation.operator == "complex_diagonal" for relation in model.relations):
        problems.append(
            f"model.embeddings.tables: embedding_dim={model.embeddings.tables[0].embedding_dim} is odd; "
            "complex_diagonal needs an even dimension (real half, imaginary half)"
        )
    return problems


def _data_problems(config: TwhinConfig) -> list[str]:
    problems = []
    data = config.train_data
    if config.graph is None and data.data_root is None:
        problems.append("graph is missing, and so is train_data.data_root; give one (`rookery twhin init GRAPH` does)")
    softmax = config.model.loss.softmax
    if config.graph is None and needs_degrees(config):
        problems.append("train_data.negative_alpha and loss.softmax.log_q need degrees; set graph to an ingested graph")
    if softmax is not None and softmax.log_q and data.global_negatives == "all":
        problems.append("model.loss.softmax.log_q=true: with global_negatives=all nothing is sampled; set it to false")
    if config.model.regularizer.negatives and data.global_negatives == "all":
        problems.append("model.regularizer.negatives=true: with global_negatives=all nothing is drawn; set it to false")
    if data.order == "queries" and config.parallel.readers is not None:
        problems.append(
            "parallel.readers: with train_data.order=queries all edges are in the memory of the trainer; leave it out"
        )
    if data.order == "queries" and not groups_queries(config):
        problems.append(
            "train_data.order=queries: pays for a softmax over all entities alone; set model.loss to softmax, "
            "global_negatives to all and mask_known_positives to false, or order to edges"
        )
    return problems


def world_refusals(config: TwhinConfig, shape: WorldShape) -> list[str]:
    """What a world of this shape cannot do of a configuration."""
    problems = table_refusals(tables_asked(config), shape)
    if config.train_data.order == "queries" and shape.world_size > 1:
        problems.append(
            f"train_data.order=queries: it holds all edges in one process, of which there are {shape.world_size}; "
            "set it to edges"
        )
    return problems


def first_start_refusals(config: TwhinConfig, shape: WorldShape) -> list[str]:
    """The same of a run that begins in this world: its lanes and its batch stay."""
    batch_size = config.train_data.per_replica_batch_size * shape.world_size
    lanes = lanes_refusal(batch_size, config.parallel.num_lanes or shape.world_size, shape.world_size)
    return [*world_refusals(config, shape), *([] if lanes is None else [lanes])]


def tables_asked(config: TwhinConfig) -> TablesAsked:
    """What the back end of the tables is asked to do."""
    fields = "model.embeddings"
    return TablesAsked(
        f"{fields}.backend",
        config.model.embeddings.backend,
        [_table_asked(table, f"{fields}.tables.{table.name}") for table in config.model.embeddings.tables],
        config.parallel.sharding,
        config.training.gradient_accumulation,
        config.runtime.device,
    )


def _table_asked(table: EmbeddingTable, field: str) -> TableAsked:
    return TableAsked(
        table.name,
        field,
        table.optimizer,
        num_embeddings=table.num_embeddings,
        embedding_dim=table.embedding_dim,
        data_type=table.data_type,
        max_norm=table.max_norm,
    )


def needs_degrees(config: TwhinConfig) -> bool:
    """Whether negatives depend on how often an entity is in an edge."""
    data, softmax = config.train_data, config.model.loss.softmax
    return data.negative_alpha > 0 or (softmax is not None and softmax.log_q and data.in_batch_negatives > 0)


def groups_queries(config: TwhinConfig) -> bool:
    """Whether each distinct query of a batch can be scored once: a softmax over every entity with nothing masked."""
    data = config.train_data
    return config.model.loss.softmax is not None and data.global_negatives == "all" and not data.mask_known_positives


def _validation_problems(config: TwhinConfig) -> list[str]:
    training = config.training
    if training.validate_every_n is not None and config.validation_data is None:
        return [
            "training.validate_every_n: there is no validation_data to validate on; add it or drop validate_every_n"
        ]
    if config.graph is None and config.validation_data is not None:
        return ["validation_data names a split of the graph; set graph to an ingested graph"]
    return []


def _repeated(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})
