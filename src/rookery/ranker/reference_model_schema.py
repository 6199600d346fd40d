"""The ``model`` section of the-algorithm-ml's heavy ranker. What is the same in ours is taken from ours."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from rookery.config.base import OneOf, StrictModel
from rookery.config.translation import unused
from rookery.nn.config import AffineMapConfig, BatchNormConfig, DlrmConfig, MlpConfig, Positive, PositiveInt
from rookery.optim.config import LearningRateConfig


class ReferenceMaskBlock(StrictModel):
    one_of: ClassVar[tuple[OneOf, ...]] = (OneOf(("reduction_factor", "aggregation_size"), required=True),)

    output_size: PositiveInt
    input_layer_norm: bool
    reduction_factor: Positive | None = None
    aggregation_size: PositiveInt | None = None


class ReferenceMaskNet(StrictModel):
    mask_blocks: tuple[ReferenceMaskBlock, ...] = Field(min_length=1)
    mlp: MlpConfig | None = None
    use_parallel: bool = False


class ReferenceDcn(StrictModel):
    poly_degree: PositiveInt
    projection_dim: PositiveInt | None = None
    parallel_mlp: MlpConfig | None = None
    use_parallel: bool = True
    output_mlp: MlpConfig | None = None


class ReferenceTaskModel(StrictModel):
    """The backbone, or the tower of a task."""

    one_of: ClassVar[tuple[OneOf, ...]] = (
        OneOf(("mlp_config", "mask_net_config", "dcn_config", "dlrm_config"), required=True),
    )

    mlp_config: MlpConfig | None = None
    mask_net_config: ReferenceMaskNet | None = None
    dcn_config: ReferenceDcn | None = None
    dlrm_config: DlrmConfig | None = None
    affine_map: AffineMapConfig | None = None
    pos_weight: float = Field(default=1.0, gt=0)


class ReferenceLayerNorm(StrictModel):
    epsilon: float = Field(default=1e-3, ge=0)
    center: bool = True
    scale: bool = True
    axis: int = unused("the last axis is normalised, there too", default=-1)


class ReferenceDoubleNormLog(StrictModel):
    batch_norm_config: BatchNormConfig | None = None
    clip_magnitude: Positive = 5.0
    layer_norm_config: ReferenceLayerNorm | None = None


class ReferenceClipLog1pAbs(StrictModel):
    clip_magnitude: Positive = 3e38


_NO_BATCH_NORM = "z-scores are of fixed statistics here; double_norm_log_config is the kind with batch normalisation"


class ReferenceZScoreLog(StrictModel):
    analysis_path: str
    clip_magnitude: Positive = 5.0
    schema_path: str | None = unused("statistics are found by the names of features here")
    use_batch_norm: bool = unused(_NO_BATCH_NORM, default=False)
    use_renorm: bool = unused(_NO_BATCH_NORM, default=False)
    use_bq_stats: bool = unused("statistics are one JSON file here", default=False)


class ReferenceLog1pAbs(StrictModel):
    """It has no fields."""


class ReferenceFeaturization(StrictModel):
    one_of: ClassVar[tuple[OneOf, ...]] = (
        OneOf(
            ("log1p_abs_config", "clip_log1p_abs_config", "z_score_log_config", "double_norm_log_config"), required=True
        ),
    )

    log1p_abs_config: ReferenceLog1pAbs | None = None
    clip_log1p_abs_config: ReferenceClipLog1pAbs | None = None
    z_score_log_config: ReferenceZScoreLog | None = None
    double_norm_log_config: ReferenceDoubleNormLog | None = None
    feature_names_to_concat: tuple[str, ...] = unused(
        "binary features stand beside the continuous ones in any case", default=("binary",)
    )


class ReferencePositionDebias(StrictModel):
    max_position: PositiveInt = 256
    num_dims: PositiveInt = 64
    drop_probability: float = Field(default=0.5, ge=0, le=1)
    position_feature_index: int = Field(ge=0)


class ReferenceSmallTable(StrictModel):
    name: str
    num_embeddings: PositiveInt
    embedding_dim: PositiveInt
    index: int = Field(ge=0)


class ReferenceSmallEmbeddings(StrictModel):
    tables: tuple[ReferenceSmallTable, ...] = Field(min_length=1)


class ReferenceLargeTable(StrictModel):
    """The ids of the feature of this name."""

    name: str
    num_embeddings: PositiveInt
    embedding_dim: PositiveInt
    pretrained: dict[str, Any] | None = unused("a snapshot is not read: rows start at random")
    vocab: str | None = unused("the vocabulary is counted in the training rows here")


class ReferenceLargeOptimizer(StrictModel):
    """Plain SGD."""

    init_learning_rate: Annotated[float, Field(gt=0)]
    learning_rate: LearningRateConfig | None = None


class ReferenceLargeEmbeddings(StrictModel):
    tables: tuple[ReferenceLargeTable, ...] = Field(min_length=1)
    optimizer: ReferenceLargeOptimizer
    tables_to_log: tuple[str, ...] | None = unused("norms of a ranker's tables are not logged")


class ReferenceStratifier(StrictModel):
    name: str
    index: int = Field(ge=0)
    value: int


class ReferenceModel(StrictModel):
    tasks: dict[str, ReferenceTaskModel] = Field(min_length=1)
    backbone: ReferenceTaskModel | None = None
    multi_task_type: Literal["share_all", "share_none", "share_partial"] = "share_none"
    featurization_config: ReferenceFeaturization | None = None
    large_embeddings: ReferenceLargeEmbeddings | None = None
    small_embeddings: ReferenceSmallEmbeddings | None = None
    position_debias_config: ReferencePositionDebias | None = None
    stratifiers: tuple[ReferenceStratifier, ...] | None = None

    @model_validator(mode="after")
    def _sharing_fits(self) -> ReferenceModel:
        if (self.backbone is None) != (self.multi_task_type == "share_none"):
            raise ValueError(
                f"multi_task_type={self.multi_task_type}: share_none forbids a backbone, share_all and share_partial "
                "require one; add or remove model.backbone"
            )
        return self
