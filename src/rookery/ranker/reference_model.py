"""The ``model`` section of the-algorithm-ml's heavy ranker in ours: networks, featurization, position."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rookery.config.base import StrictModel
from rookery.config.translation import Note
from rookery.nn.config import MlpConfig
from rookery.ranker.reference_model_schema import (
    ReferenceDcn,
    ReferenceDoubleNormLog,
    ReferenceFeaturization,
    ReferenceModel,
    ReferenceTaskModel,
)


def model_section(model: ReferenceModel) -> dict[str, Any]:
    """Towers by task, in their order."""
    position, featurization = model.position_debias_config, model.featurization_config
    section: dict[str, Any] = {
        "multi_task_type": model.multi_task_type,
        "featurization_config": None if featurization is None else _featurization(featurization),
        "backbone": None if model.backbone is None else _network(model.backbone),
        "tasks": {
            task: {
                **_network(tower),
                **({} if tower.affine_map is None else {"affine_map": tower.affine_map.model_dump()}),
                "pos_weight": tower.pos_weight,
            }
            for task, tower in model.tasks.items()
        },
    }
    if position is not None:
        section["position_debias_config"] = {
            "max_position": position.max_position,
            "num_dims": position.num_dims,
            "drop_probability": position.drop_probability,
        }
    return {name: value for name, value in section.items() if value is not None}


def model_notes(model: ReferenceModel) -> Iterator[Note]:
    """What acts on nothing."""
    backbone = model.backbone
    if backbone is not None and backbone.pos_weight != 1:
        yield Note(("model.backbone.pos_weight",), "a backbone has no loss; the towers have a pos_weight each")
    if backbone is not None and backbone.affine_map is not None:
        yield Note(("model.backbone.affine_map",), "it acts on logits, which a backbone has not; not used there either")
    named = {f"model.tasks.{task}": tower for task, tower in model.tasks.items()}
    if backbone is not None:
        named["model.backbone"] = backbone
    for where, mlp in ((where, mlp) for name, each in named.items() for where, mlp in _mlps(name, each)):
        if mlp.final_layer_activation and (mlp.batch_norm is not None or mlp.dropout is not None):
            text = "there the last layer is activated alone; here it is normalised and dropped as the others are"
            yield Note((f"{where}.final_layer_activation",), text)
    for where, network in named.items():
        dcn = network.dcn_config
        if dcn is not None and dcn.parallel_mlp is not None and not dcn.use_parallel:
            yield Note((f"{where}.dcn_config.parallel_mlp",), "use_parallel is false: left out; output_mlp is stacked")
    featurization = model.featurization_config
    if featurization is not None and featurization.z_score_log_config is not None:
        text = 'the file has to hold {"continuous": {"mean": [...], "std": [...]}} of the logarithms'
        field = ("model", "featurization_config", "z_score_log_config", "analysis_path")
        yield Note((".".join(field),), text, field)


def _mlps(where: str, network: ReferenceTaskModel) -> Iterator[tuple[str, MlpConfig]]:
    """The plain networks in a network, by their fields."""
    mask_net, dcn = network.mask_net_config, network.dcn_config
    parts = {
        "mlp_config": network.mlp_config,
        "mask_net_config.mlp": None if mask_net is None else mask_net.mlp,
        "dcn_config.parallel_mlp": None if dcn is None else dcn.parallel_mlp,
        "dcn_config.output_mlp": None if dcn is None else dcn.output_mlp,
    }
    yield from ((f"{where}.{name}", mlp) for name, mlp in parts.items() if mlp is not None)


def _network(network: ReferenceTaskModel) -> dict[str, Any]:
    mask_net, dcn = network.mask_net_config, network.dcn_config
    kinds = {
        "mlp_config": _plain(network.mlp_config),
        "mask_net_config": None
        if mask_net is None
        else {
            "mask_blocks": [_plain(block) for block in mask_net.mask_blocks],
            "mlp": _plain(mask_net.mlp),
            "use_parallel": mask_net.use_parallel,
        },
        "dcn_config": None if dcn is None else _dcn(dcn),
        "dlrm_config": _plain(network.dlrm_config),
    }
    return {name: value for name, value in kinds.items() if value is not None}


def _dcn(dcn: ReferenceDcn) -> dict[str, Any]:
    """There a parallel network may be absent, here that is called stacked."""
    parallel = dcn.parallel_mlp if dcn.use_parallel else None
    return {
        "poly_degree": dcn.poly_degree,
        "projection_dim": dcn.projection_dim,
        "parallel_mlp": _plain(parallel),
        "use_parallel": parallel is not None,
        "output_mlp": _plain(dcn.output_mlp),
    }


def _featurization(config: ReferenceFeaturization) -> dict[str, Any]:
    if config.double_norm_log_config is not None:
        return {"double_norm_log_config": _double_norm(config.double_norm_log_config)}
    if config.z_score_log_config is not None:
        z_score = config.z_score_log_config
        kept = {"analysis_path": z_score.analysis_path, "clip_magnitude": z_score.clip_magnitude}
        return {"z_score_log_config": kept}
    if config.clip_log1p_abs_config is not None:
        return {"clip_log1p_abs_config": {"clip_magnitude": config.clip_log1p_abs_config.clip_magnitude}}
    assert config.log1p_abs_config is not None  # exactly one is given
    return {"log1p_abs_config": {}}


def _double_norm(config: ReferenceDoubleNormLog) -> dict[str, Any]:
    norm = config.layer_norm_config
    return {
        "batch_norm_config": _plain(config.batch_norm_config),
        "clip_magnitude": config.clip_magnitude,
        "layer_norm_config": None
        if norm is None
        else {"epsilon": norm.epsilon, "center": norm.center, "scale": norm.scale},
    }


def _plain(config: StrictModel | None) -> dict[str, Any] | None:
    return None if config is None else config.model_dump(mode="json", exclude_none=True)
