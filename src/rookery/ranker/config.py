"""Configuration of a heavy-ranker run, checked as a whole before anything is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from rookery.config.base import OneOf, StrictModel
from rookery.config.suggest import did_you_mean
from rookery.nn.config import FeaturizationConfig, PositionDebiasConfig, TaskModelConfig
from rookery.optim.config import LearningRateConfig
from rookery.parallel.config import ParallelConfig, lanes_refusal
from rookery.ranker.features_config import (
    EvaluationPartition,
    FeaturesConfig,
    KeysConfig,
    LabelConfig,
    PreprocessConfig,
    TrainPartition,
)
from rookery.tables.refusals import TableAsked, TablesAsked, WorldShape, table_refusals
from rookery.train.config import RuntimeConfig, TrainingConfig

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


class ModelConfig(StrictModel):
    """A backbone that all tasks share, and a tower for each task."""

    tasks: dict[str, TaskModelConfig] = Field(min_length=1)
    backbone: TaskModelConfig | None = None
    multi_task_type: Literal["share_all", "share_none", "share_partial"] = "share_all"
    """What a tower sees: the backbone's output, the features, or both."""
    featurization_config: FeaturizationConfig | None = None
    """Left out, continuous features enter as they are."""
    position_debias_config: PositionDebiasConfig | None = None
    compile: bool = False
    """Compile the network with ``torch.compile``."""

    def with_whole_paths(self) -> ModelConfig:
        """The same with absolute paths."""
        featurization = self.featurization_config
        if featurization is None or featurization.z_score_log_config is None:
            return self
        z_score = featurization.z_score_log_config
        if z_score.analysis_path is None:
            return self
        z_score = z_score.model_copy(update={"analysis_path": z_score.analysis_path.absolute()})
        featurization = featurization.model_copy(update={"z_score_log_config": z_score})
        return self.model_copy(update={"featurization_config": featurization})

    @model_validator(mode="after")
    def _sharing_fits(self) -> ModelConfig:
        if (self.backbone is None) != (self.multi_task_type == "share_none"):
            raise ValueError(
                f"multi_task_type={self.multi_task_type}: share_none has no backbone, share_all and share_partial need "
                "one; add or remove model.backbone"
            )
        for task, tower in self.tasks.items():
            if tower.mmoe_config is not None or tower.ple_config is not None:
                raise ValueError(f"tasks.{task}: mmoe_config and ple_config mix experts over tasks; use it as backbone")
        if self.backbone is not None and self.backbone.affine_map is not None:
            raise ValueError("backbone.affine_map: it acts on logits, which a backbone has not; put it on the tasks")
        return self


class FixedWeights(StrictModel):
    """Weight of each task in the loss; 1 for a task that is not named."""

    weights: dict[str, NonNegative] = Field(default_factory=dict)


class UncertaintyWeights(StrictModel):
    """Learned: ``exp(-s) loss + s / 2`` with one ``s`` a task (Kendall, Gal, Cipolla 2018)."""


class GradNormWeights(StrictModel):
    """Learned so that tasks train at like rates (Chen et al. 2018), by gradients at the backbone's output."""

    alpha: NonNegative = 1.5
    learning_rate: Positive = 0.025


class LossConfig(StrictModel):
    """Binary cross-entropy of each task's logit; the mean over tasks, weighted by one of three."""

    one_of: ClassVar[tuple[OneOf, ...]] = (OneOf(("fixed", "uncertainty", "grad_norm"), required=True),)

    fixed: FixedWeights | None = None
    uncertainty: UncertaintyWeights | None = None
    grad_norm: GradNormWeights | None = None


class AdamConfig(StrictModel):
    beta_1: float = Field(default=0.9, ge=0, lt=1)
    beta_2: float = Field(default=0.999, ge=0, lt=1)
    epsilon: Positive = 1e-8


class AdamWConfig(AdamConfig):
    weight_decay: NonNegative = 0.01
    """Of matrices of the network and rows of small tables; not of biases and norms."""


class MultiTaskLearningRates(StrictModel):
    backbone_learning_rate: LearningRateConfig
    """Also that of small tables and of everything else before the towers."""
    tower_learning_rates: dict[str, LearningRateConfig]


class AverageConfig(StrictModel):
    """A moving average of the parameters over steps; it is what is validated, evaluated, scored with and exported.

    Tables with an optimizer of their own are not averaged.
    """

    decay: float = Field(default=0.99, gt=0, lt=1)


class RankerOptimizerConfig(StrictModel):
    """Moves everything but tables with an optimizer of their own."""

    one_of: ClassVar[tuple[OneOf, ...]] = (
        OneOf(("adam", "adamw"), required=True),
        OneOf(("single_task_learning_rate", "multi_task_learning_rates"), required=True),
    )

    adam: AdamConfig | None = None
    adamw: AdamWConfig | None = None
    single_task_learning_rate: LearningRateConfig | None = None
    multi_task_learning_rates: MultiTaskLearningRates | None = None
    average: AverageConfig | None = None


class ScoreConfig(StrictModel):
    """The score of a row: the sum of weight times calibrated probability."""

    weights: dict[str, float] = Field(default_factory=dict)
    """1 for every task if none is named, else 0 for a task that is not."""


class CalibrationConfig(StrictModel):
    """A map of each task's logit to a calibrated one, fitted on a partition after training."""

    partition: str = "valid"
    method: Literal["platt", "bias"] = "platt"
    """``platt``: scale and offset; ``bias``: offset alone."""


class StratifierConfig(StrictModel):
    """Rows whose ``column`` has ``value`` are measured on their own as well."""

    name: str
    column: str
    value: int | str


class EvaluationConfig(StrictModel):
    tasks: tuple[str, ...] | None = None
    """Tasks that are measured; left out, all."""
    stratifiers: tuple[StratifierConfig, ...] = ()
    num_bins: int = Field(default=20, ge=2)
    """Bins of ECE and of reliability diagrams."""
    num_bootstrap: int = Field(default=200, ge=0)
    """Resamples of users (of rows without a user) behind 95% intervals; 0: none. Validations of a run have none."""


class RankerConfig(StrictModel):
    """One heavy-ranker run."""

    runtime: RuntimeConfig = RuntimeConfig()
    parallel: ParallelConfig = ParallelConfig()
    training: TrainingConfig
    keys: KeysConfig = KeysConfig()
    labels: dict[str, LabelConfig] = Field(min_length=1)
    """What the data tell, by task. A task that the model does not have is not trained."""
    features: FeaturesConfig
    preprocess: PreprocessConfig = PreprocessConfig()
    train_data: TrainPartition
    validation_data: dict[str, EvaluationPartition] = Field(default_factory=dict)
    model: ModelConfig
    loss: LossConfig = LossConfig(fixed=FixedWeights())
    optimizer: RankerOptimizerConfig
    calibration: CalibrationConfig | None = None
    score: ScoreConfig = ScoreConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of the model, in the order of its logits."""
        return tuple(self.model.tasks)

    def with_whole_paths(self) -> RankerConfig:
        """The same with absolute paths of data: a run directory is read from other working directories too."""
        partitions = {name: each.with_whole_paths() for name, each in self.validation_data.items()}
        return self.model_copy(
            update={
                "train_data": self.train_data.with_whole_paths(),
                "validation_data": partitions,
                "features": self.features.with_whole_paths(),
                "preprocess": self.preprocess.with_whole_paths(),
                "model": self.model.with_whole_paths(),
            }
        )

    @model_validator(mode="after")
    def _parts_fit(self) -> RankerConfig:
        problems = (
            *_task_problems(self),
            *_loss_problems(self),
            *_feature_problems(self.features),
            *_partition_problems(self),
            *table_refusals(_tables_asked(self)),
        )
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _task_problems(config: RankerConfig) -> list[str]:
    tasks, labels = list(config.model.tasks), list(config.labels)
    problems = [
        f"model.tasks.{task}: no label of this name in labels; {did_you_mean(task, labels)}"
        for task in tasks
        if task not in labels
    ]
    rates = config.optimizer.multi_task_learning_rates
    fixed = config.loss.fixed
    named = {
        "score.weights": list(config.score.weights),
        "loss.fixed.weights": list(fixed.weights) if fixed is not None else [],
        "evaluation.tasks": list(config.evaluation.tasks or ()),
        "optimizer.multi_task_learning_rates.tower_learning_rates": list(rates.tower_learning_rates) if rates else [],
    }
    for field, names in named.items():
        problems += [f"{field}: no task {name!r}; {did_you_mean(name, tasks)}" for name in names if name not in tasks]
    if rates is not None:
        field = "optimizer.multi_task_learning_rates.tower_learning_rates"
        problems += [
            f"{field}: task {task!r} has none; add it" for task in tasks if task not in rates.tower_learning_rates
        ]
    rectify = config.preprocess.rectify_labels
    for task in rectify.label_to_engaged_timestamp_field if rectify is not None else ():
        if task not in labels:
            problems.append(
                f"preprocess.rectify_labels.label_to_engaged_timestamp_field: no label {task!r}; "
                f"{did_you_mean(task, labels)}"
            )
    downsample = config.preprocess.downsample_negatives
    for task in downsample.engagements_list if downsample is not None else ():
        if task not in labels:
            problems.append(
                f"preprocess.downsample_negatives.engagements_list: no label {task!r}; {did_you_mean(task, labels)}"
            )
    return problems


def _loss_problems(config: RankerConfig) -> list[str]:
    if config.loss.grad_norm is not None and config.model.backbone is None:
        return ["loss.grad_norm: it balances gradients at the backbone, and there is none; use fixed weights"]
    fixed = config.loss.fixed
    if fixed is not None and not any(fixed.weights.get(task, 1.0) for task in config.tasks):
        return ["loss.fixed.weights: every task has 0, nothing would be learned; give a task more than 0"]
    return []


def _feature_problems(features: FeaturesConfig) -> list[str]:
    groups = (features.continuous, features.binary, features.dense, features.discrete, features.ragged)
    names = [feature.name for group in groups for feature in group]
    names += [joined.name for joined in features.embeddings]
    tables = [table.name for table in features.tables]
    unseen = [block.name for block in features.blocks]
    problems = [f"features: {name!r} is named twice" for name in _repeated([*names, *unseen])]
    problems += [f"features.tables: {name!r} is named twice" for name in _repeated(tables)]
    if not names:
        problems.append("features: there are none; name at least one column")
    for feature in features.looked_up:
        if feature.table not in tables:
            problems.append(
                f"features.{feature.name}.table={feature.table}: no such table; {did_you_mean(feature.table, tables)}"
            )
    used = {feature.table for feature in features.looked_up}
    problems += [f"features.tables.{name}: no feature uses it; remove it" for name in tables if name not in used]
    tables_of = {feature.name: feature.table for feature in features.discrete}
    for ragged in features.ragged:
        if ragged.query is not None and tables_of.get(ragged.query) != ragged.table:
            problems.append(
                f"features.ragged.{ragged.name}.query={ragged.query}: must be a discrete feature of table "
                f"{ragged.table!r}"
            )
    return problems


def world_refusals(config: RankerConfig, shape: WorldShape) -> list[str]:
    """What a world of this shape cannot do of a configuration; tables that are counted in the data are left out."""
    return table_refusals(_tables_asked(config), shape)


def first_start_refusals(config: RankerConfig, shape: WorldShape) -> list[str]:
    """The same of a run that begins in this world: its lanes and its batch stay."""
    lanes = lanes_refusal(config.train_data.batch_size, config.parallel.num_lanes or shape.world_size, shape.world_size)
    return [*world_refusals(config, shape), *([] if lanes is None else [lanes])]


def _tables_asked(config: RankerConfig) -> TablesAsked:
    """What the back end of the large tables is asked to do; their rows are counted in the data."""
    features = config.features
    tables = [
        TableAsked(table.name, f"features.tables.{table.name}", table.optimizer, embedding_dim=table.embedding_dim)
        for table in features.tables
        if table.optimizer is not None
    ]
    tables += [
        TableAsked(joined.own_table, joined.field, joined.optimizer)
        for joined in features.embeddings
        if joined.optimizer is not None
    ]
    return TablesAsked(
        "features.backend",
        features.backend,
        tables,
        config.parallel.sharding,
        config.training.gradient_accumulation,
        config.runtime.device,
    )


def _partition_problems(config: RankerConfig) -> list[str]:
    partitions = list(config.validation_data)
    problems = []
    if config.calibration is not None and config.calibration.partition not in partitions:
        name = config.calibration.partition
        problems.append(
            f"calibration.partition={name}: no such partition of validation_data; {did_you_mean(name, partitions)}"
        )
    measured = any(partition.during_training for partition in config.validation_data.values())
    if config.training.validate_every_n is not None and not measured:
        problems.append(
            "training.validate_every_n: no partition of validation_data has during_training; add one or drop it"
        )
    if config.model.position_debias_config is not None and config.keys.position is None:
        problems.append("model.position_debias_config: needs keys.position, the column with the position of a row")
    for name, partition in config.validation_data.items():
        field = f"validation_data.{name}"
        wanted = {
            "tasks": (partition.tasks or (), config.tasks),
            "sampling": (partition.sampling, tuple(config.labels)),
        }
        for kind, (named, known) in wanted.items():
            problems += [
                f"{field}.{kind}: no task {task!r}; {did_you_mean(task, known)}" for task in named if task not in known
            ]
    stratifiers = [one.name for one in config.evaluation.stratifiers]
    problems += [f"evaluation.stratifiers: {name!r} is named twice" for name in _repeated(stratifiers)]
    return problems


def _repeated(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})
