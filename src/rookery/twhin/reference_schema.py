"""The TwHIN configuration of twitter/the-algorithm-ml, as its files may be written."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from rookery.config.base import OneOf, StrictModel
from rookery.config.reference_training import ReferenceTraining
from rookery.config.translation import unused
from rookery.optim.config import LearningRateConfig


class ReferenceSgd(StrictModel):
    lr: float = Field(gt=0)
    momentum: float = Field(default=0.0, ge=0)


class ReferenceAdagrad(StrictModel):
    lr: float = Field(gt=0)
    eps: float = Field(default=0.0, ge=0)


class ReferenceAdam(StrictModel):
    lr: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-7, ge=0)


class ReferenceOptimizer(StrictModel):
    """An algorithm with its rate, and the schedule that replaces it."""

    one_of: ClassVar[tuple[OneOf, ...]] = (OneOf(("sgd", "adagrad", "adam"), required=True),)

    sgd: ReferenceSgd | None = None
    adagrad: ReferenceAdagrad | None = None
    adam: ReferenceAdam | None = None
    learning_rate: LearningRateConfig | None = None


class ReferenceTable(StrictModel):
    name: str
    num_embeddings: int = Field(gt=0)
    embedding_dim: int = Field(gt=0)
    data_type: Literal["fp32", "fp16"]
    optimizer: ReferenceOptimizer
    pretrained: str | dict[str, Any] | None = None
    """A snapshot there, as ``{emb_name, embedding_snapshot_uri}``."""
    vocab: str | None = None


class ReferenceEmbeddings(StrictModel):
    tables: tuple[ReferenceTable, ...] = Field(min_length=1)
    tables_to_log: tuple[str, ...] | None = None


class ReferenceRelation(StrictModel):
    name: str
    lhs: str
    rhs: str
    operator: Literal["translation"] = "translation"


class ReferenceModel(StrictModel):
    embeddings: ReferenceEmbeddings
    relations: tuple[ReferenceRelation, ...] = Field(min_length=1)
    translation_optimizer: ReferenceOptimizer


_NOT_APPLIED = "is never applied there: all edges of data_root are read, and so they are here"
_VALIDATION = (
    "is never read there; here a validation measures ranks on a split of an ingested graph: `rookery twhin ingest` "
    "makes one, `graph` and `validation_data.split` name it"
)


class ReferenceTrainData(StrictModel):
    data_root: str
    per_replica_batch_size: int = Field(gt=0)
    global_negatives: int = Field(ge=0)
    in_batch_negatives: int = Field(ge=0)
    limit: int | None = unused(_NOT_APPLIED)
    offset: int | None = unused(_NOT_APPLIED)


class ReferenceValidationData(StrictModel):
    data_root: str | None = unused(_VALIDATION)
    per_replica_batch_size: int | None = unused(_VALIDATION)
    global_negatives: int | None = unused(_VALIDATION)
    in_batch_negatives: int | None = unused(_VALIDATION)
    limit: int | None = unused(_VALIDATION)
    offset: int | None = unused(_VALIDATION)


class ReferenceTwhinTraining(ReferenceTraining):
    num_train_steps: int = Field(default=10_000, gt=0)
    num_epochs: int | None = Field(default=None, gt=0)


class ReferenceRuntime(StrictModel):
    enable_amp: bool = False
    enable_tensorfloat32: bool = False
    wandb: dict[str, Any] | None = unused(
        "metrics go to metrics.jsonl and TensorBoard's files in the run directory, and nowhere else"
    )


class ReferenceTwhinConfig(StrictModel):
    """The whole file."""

    runtime: ReferenceRuntime = ReferenceRuntime()
    training: ReferenceTwhinTraining = ReferenceTwhinTraining()
    model: ReferenceModel
    train_data: ReferenceTrainData
    validation_data: ReferenceValidationData | None = None
