"""Configuration of the networks: backbones and towers, and what happens to features before them. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from rookery.config.base import OneOf, StrictModel

PositiveInt = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]
Activation = Literal["relu"]


class BatchNormConfig(StrictModel):
    """Batch normalisation over the rows of a batch; ``affine`` adds a learned scale and offset."""

    affine: bool = True
    momentum: float = Field(default=0.1, gt=0, le=1)
    """Share of the new batch in the running mean and variance."""


class DropoutConfig(StrictModel):
    rate: float = Field(default=0.1, ge=0, lt=1)


class MlpConfig(StrictModel):
    """Linear layers; between Linear and ReLU batch normalisation, after ReLU dropout."""

    layer_sizes: tuple[PositiveInt, ...] = Field(min_length=1)
    batch_norm: BatchNormConfig | None = None
    dropout: DropoutConfig | None = None
    final_layer_activation: bool = False
    """Normalise, activate and drop after the last layer too."""


class MaskBlockConfig(StrictModel):
    """``h = LayerNorm(Linear(x ⊙ Linear(ReLU(Linear(m)))))``: the hidden size of the mask is given by one of two."""

    one_of: ClassVar[tuple[OneOf, ...]] = (OneOf(("reduction_factor", "aggregation_size"), required=True),)

    output_size: PositiveInt
    input_layer_norm: bool = False
    reduction_factor: Positive | None = None
    """Hidden size of the mask as a multiple of its input."""
    aggregation_size: PositiveInt | None = None
    """Hidden size of the mask."""
    activation: Activation | None = None
    """After the layer norm: none as in the reference, ReLU as in the paper."""


class MaskNetConfig(StrictModel):
    """MaskNet (Wang, She, Zhang 2021): blocks side by side (``use_parallel``) or one behind the other, then an MLP."""

    mask_blocks: tuple[MaskBlockConfig, ...] = Field(min_length=1)
    mlp: MlpConfig | None = None
    use_parallel: bool = True


class DcnConfig(StrictModel):
    """DCN-v2 (Wang et al. 2021): ``x_{l+1} = x_0 ⊙ (W x_l + b) + x_l``, ``poly_degree - 1`` times."""

    poly_degree: int = Field(default=3, ge=2)
    projection_dim: PositiveInt | None = None
    """Rank of ``W = U V``; left out, a full matrix."""
    parallel_mlp: MlpConfig | None = None
    """Beside the cross layers (``use_parallel``); its output is concatenated to theirs."""
    use_parallel: bool = True
    """False: no network beside the cross layers, ``output_mlp`` stands on them (stacked)."""
    output_mlp: MlpConfig | None = None

    @model_validator(mode="after")
    def _parts_fit(self) -> DcnConfig:
        if self.use_parallel != (self.parallel_mlp is not None):
            raise ValueError("use_parallel=true needs parallel_mlp, use_parallel=false has none")
        return self


class DlrmConfig(StrictModel):
    """DLRM (Naumov et al. 2019): pairwise products of the fields' vectors and of the dense features' bottom MLP."""

    bottom_mlp: MlpConfig
    """Its last layer gives the dimension in which fields meet; a field of another size is projected."""
    top_mlp: MlpConfig


class MmoeConfig(StrictModel):
    """MMoE (Ma et al. 2018): shared experts, mixed for each task by a softmax gate of its own."""

    num_experts: PositiveInt = 4
    expert: MlpConfig


class PleConfig(StrictModel):
    """PLE (Tang et al. 2020): in each level experts of each task's own beside shared ones, gated progressively."""

    num_levels: PositiveInt = 1
    num_shared_experts: PositiveInt = 2
    num_task_experts: PositiveInt = 1
    """Experts of each task's own, per level."""
    expert: MlpConfig


class AffineMapConfig(StrictModel):
    """``scale * logit + bias``, both learned from these initial values."""

    scale: float = 1.0
    bias: float = 0.0

    @model_validator(mode="after")
    def _lets_logits_through(self) -> AffineMapConfig:
        if self.scale == 0:
            raise ValueError("scale=0: nothing could be learned through it; start from another scale, as from 1")
        return self


class TaskModelConfig(StrictModel):
    """One network: the shared backbone, or the tower of a task."""

    one_of: ClassVar[tuple[OneOf, ...]] = (
        OneOf(
            ("mlp_config", "mask_net_config", "dcn_config", "dlrm_config", "mmoe_config", "ple_config"), required=True
        ),
    )

    mlp_config: MlpConfig | None = None
    mask_net_config: MaskNetConfig | None = None
    dcn_config: DcnConfig | None = None
    dlrm_config: DlrmConfig | None = None
    mmoe_config: MmoeConfig | None = None
    ple_config: PleConfig | None = None
    affine_map: AffineMapConfig | None = None
    pos_weight: Positive | None = None
    """Of a tower: weight of its positives in the loss."""


class Log1pAbsConfig(StrictModel):
    """``sign(x) log1p(|x|)``."""


class ClipLog1pAbsConfig(StrictModel):
    """``sign(x) log1p(|x|)``, clamped to ``±clip_magnitude``."""

    clip_magnitude: Positive = 10.0


class ZScoreLogConfig(StrictModel):
    """``sign(x) log1p(|x|)``, less its mean, over its deviation, clamped."""

    analysis_path: Path | None = None
    """JSON ``{"<feature>": {"mean": [..], "std": [..]}}`` of the logs; left out, measured on the training rows."""
    clip_magnitude: Positive = 5.0


class PiecewiseLinearConfig(StrictModel):
    """Z-scores of the logs, and beside them for each bin how far the number has come through it: 0 below, 1 above.

    Bins are quantiles of training rows (Gorishniy, Rubachev, Babenko 2022, "piecewise linear encoding"). A network can
    then bend at each edge without having to learn where to.
    """

    num_bins: int = Field(default=8, ge=2)
    clip_magnitude: Positive = 5.0


class LayerNormConfig(StrictModel):
    epsilon: float = Field(default=1e-5, ge=0)
    center: bool = True
    scale: bool = True


class DoubleNormLogConfig(StrictModel):
    """``sign(x) log1p(|x|)``, batch normalisation, clamp, binary features beside, layer normalisation over all."""

    batch_norm_config: BatchNormConfig | None = BatchNormConfig(affine=False)
    clip_magnitude: Positive = 5.0
    layer_norm_config: LayerNormConfig | None = LayerNormConfig()


class FeaturizationConfig(StrictModel):
    """What happens to continuous and binary features before the network."""

    one_of: ClassVar[tuple[OneOf, ...]] = (
        OneOf(
            (
                "log1p_abs_config",
                "clip_log1p_abs_config",
                "z_score_log_config",
                "double_norm_log_config",
                "piecewise_linear_config",
            ),
            required=True,
        ),
    )

    log1p_abs_config: Log1pAbsConfig | None = None
    clip_log1p_abs_config: ClipLog1pAbsConfig | None = None
    z_score_log_config: ZScoreLogConfig | None = None
    double_norm_log_config: DoubleNormLogConfig | None = None
    piecewise_linear_config: PiecewiseLinearConfig | None = None


class PositionDebiasConfig(StrictModel):
    """A learned vector for the position at which an impression was shown.

    In training it is replaced by that of the unknown position with ``drop_probability``; outside of training always:
    the network must not depend on where a post happened to stand.
    """

    max_position: PositiveInt
    """Positions from here on share a vector."""
    num_dims: PositiveInt
    drop_probability: float = Field(ge=0, le=1)
