"""The names that twitter/the-algorithm-ml gives the tensors of its heavy ranker, for the same tensors of ours.

Its modules are ``projects/home/recap/model``; ours stack blocks and towers of equal shape, so that one of its tensors
is a slice of one of ours. What it has no module for keeps our name behind ``rookery.``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from rookery.checkpoint.foreign import Fixed, ForeignTensors, without_wrappers
from rookery.errors import ConfigError
from rookery.nn.config import MlpConfig, TaskModelConfig
from rookery.nn.featurization import DoubleNormLog, Featurizer
from rookery.nn.mask_net import MaskNet
from rookery.nn.mlp import BatchNorm, Mlp
from rookery.nn.network import Network
from rookery.nn.towers import MlpTowers, NetworkTower, Towers
from rookery.ranker.config import RankerConfig
from rookery.ranker.embeddings import JoinedVectors, module_key
from rookery.ranker.model import RankerModel, RankerNetwork

VECTORS = ("user_embedding", "user_eng_embedding", "author_embedding")
"""Vectors that have a layer norm there, in the order in which they are concatenated."""

_OURS = "rookery"
_THEIRS = "model"
_WRAPPERS = ("module", "_dmp_wrapped_module")
_BLOCK_PARTS = {
    "input_norm": "_input_layer_norm",
    "aggregate": "_mask_layer.0",
    "project": "_mask_layer.2",
    "hidden": "_hidden_layer",
    "norm": "_layer_norm",
}

Pair = tuple[str, str, "int | None"]
"""A name there, the name here, and the index of its slice along the first dimension (None: it is the whole)."""


def reference_tensors(config: RankerConfig, model: RankerModel) -> ForeignTensors:
    """Every tensor of ``model`` under the reference's name.

    Raises ``ConfigError`` for what has the same tensors there and another meaning.
    """
    problems = [*_task_problems(config), *_order_problems(config), *_network_problems(config)]
    if problems:
        raise ConfigError("\n".join(problems))
    ours = model.tensors()
    pairs = list(_pairs(model.network))
    views = {f"{_THEIRS}.{theirs}": _view(ours[f"network.{name}"], index) for theirs, name, index in pairs}
    views |= {f"{_THEIRS}.{theirs}": view for theirs, view in _affine_maps(model.network.towers, ours)}
    named = {f"network.{name}" for _, name, _ in pairs} | _AFFINE
    views |= {f"{_OURS}.{name}": tensor for name, tensor in ours.items() if name not in named}
    return ForeignTensors(views, dict(_fixed(config, model.network, views)))


def reference_name(name: str) -> str:
    """A name of a file as ``reference_tensors`` has it: without what wraps the model, ``model.`` before it once."""
    return name if name.startswith(f"{_OURS}.") else without_wrappers(name, _WRAPPERS, _THEIRS)


def safe_name(task: str) -> str:
    """A task as part of a name: dots part modules."""
    return task.replace(".", "__")


def _view(tensor: Tensor, index: int | None) -> Tensor:
    return tensor if index is None else tensor[index]


def _pairs(network: RankerNetwork) -> Iterator[Pair]:
    yield from _featurizer(network.featurizer)
    yield from _vector_norms(network)
    if network.backbone is not None:
        yield from _network(network.backbone, "_backbone", "backbone")
    for number, (tower, tasks) in enumerate(zip(network.towers.towers, network.towers.tasks_of, strict=True)):
        for index, task in enumerate(tasks):
            yield from _tower(tower, f"_towers.{safe_name(task)}", f"towers.towers.{number}", index)


def _featurizer(featurizer: Featurizer) -> Iterator[Pair]:
    continuous = featurizer.continuous
    if isinstance(continuous, DoubleNormLog):
        yield from _same(
            continuous.batch_norm, "_preprocessor._before_concat_layers.2.layer", "featurizer.continuous.batch_norm"
        )
    yield from _same(featurizer.layer_norm, "_preprocessor.layer_norm.layer", "featurizer.layer_norm")


def _vector_norms(network: RankerNetwork) -> Iterator[Pair]:
    """Vectors that come with the log, and vectors joined from an export."""
    for name in VECTORS:
        key = module_key(name)
        if key in network.dense_norms:
            yield from _same(network.dense_norms[key], f"_{name}_layer_norm", f"dense_norms.{key}")
        if key in network.embeddings.joined:
            joined = network.embeddings.joined[key]
            assert isinstance(joined, JoinedVectors)
            if joined.norm is not None:
                yield from _same(joined.norm, f"_{name}_layer_norm", f"embeddings.joined.{key}.norm")


def _network(network: Network, theirs: str, ours: str) -> Iterator[Pair]:
    """Nothing for networks that the reference names and does not have."""
    if isinstance(network, MaskNet):
        for number, (group, index) in enumerate(network.places):
            for name in network.blocks[group].state_dict():
                part, _, leaf = name.partition(".")
                block = f"{theirs}._mask_blocks.{number}.{_BLOCK_PARTS[part]}"
                yield f"{block}.{leaf}", f"{ours}.blocks.{group}.{name}", index
        if network.mlp is not None:
            yield from _same(network.mlp, f"{theirs}._dense_layers", f"{ours}.mlp")
    elif isinstance(network, Mlp):
        yield from _same(network, theirs, ours)


def _tower(tower: nn.Module, theirs: str, ours: str, index: int) -> Iterator[Pair]:
    if isinstance(tower, MlpTowers):
        yield from _same(tower.mlp, theirs, f"{ours}.mlp", index)
    elif isinstance(tower, NetworkTower):
        yield from _network(tower.network, theirs, f"{ours}.network")


def _same(module: nn.Module, theirs: str, ours: str, index: int | None = None) -> Iterator[Pair]:
    """A module whose parts have the same names in both: an MLP's layers are numbered alike."""
    for name in module.state_dict():
        yield f"{theirs}.{name}", f"{ours}.{name}", index


_AFFINE = {"network.towers.affine_map.scale", "network.towers.affine_map.bias"}


def _affine_maps(towers: Towers, ours: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """A linear layer of one input and one output each there."""
    if towers.affine_map is None:
        return
    scale, bias = (ours[name] for name in sorted(_AFFINE, reverse=True))
    for index, task in enumerate(towers.affine_map.tasks):
        yield f"_affine_maps.{safe_name(task)}.weight", scale[index].view(1, 1)
        yield f"_affine_maps.{safe_name(task)}.bias", bias[index].view(1)


def _fixed(config: RankerConfig, network: RankerNetwork, names: Mapping[str, Tensor]) -> Iterator[tuple[str, Fixed]]:
    for task in config.tasks:
        rates = config.labels[task]
        ratio = torch.tensor(rates.neg_downsampling_rate / rates.pos_downsampling_rate)
        field = f"labels.{task}: it is neg_downsampling_rate over pos_downsampling_rate"
        yield f"{_THEIRS}._calibrators.{safe_name(task)}.ratio", Fixed(ratio, field)
    continuous = network.featurizer.continuous
    if isinstance(continuous, DoubleNormLog):
        clamp = f"{_THEIRS}._preprocessor._before_concat_layers.{3 if _has_norm(continuous) else 2}"
        field = "model.featurization_config.double_norm_log_config.clip_magnitude"
        limit = torch.tensor(float(continuous.clip_magnitude))
        yield f"{clamp}.min_value", Fixed(-limit, field)
        yield f"{clamp}.max_value", Fixed(limit, field)
    for name in names:
        if name.startswith(f"{_THEIRS}.") and name.endswith(".running_mean"):
            counter = f"{name.removesuffix('running_mean')}num_batches_tracked"
            yield counter, Fixed(torch.tensor(0))  # with a momentum nobody reads it


def _has_norm(continuous: DoubleNormLog) -> bool:
    return isinstance(continuous.batch_norm, BatchNorm)


def _task_problems(config: RankerConfig) -> Iterator[str]:
    for name, count in Counter(map(safe_name, config.tasks)).items():
        if count > 1:
            tasks = ", ".join(task for task in config.tasks if safe_name(task) == name)
            yield f"model.tasks: {tasks} are all written {name} by the reference; rename all but one"


def _order_problems(config: RankerConfig) -> Iterator[str]:
    """Weights of the first layers have a column for each input."""
    features = config.features
    names = [each.name for each in features.dense] + [each.name for each in features.embeddings]
    named = [name for name in names if name in VECTORS]
    wanted = [name for name in VECTORS if name in named]
    if named != wanted:
        yield (
            f"features: {', '.join(named)} come in this order, with features.embeddings behind features.dense; the "
            f"reference reads {', '.join(wanted)}: move them, the weights have a column for each number"
        )


def _network_problems(config: RankerConfig) -> Iterator[str]:
    networks = {f"model.tasks.{task}": tower for task, tower in config.model.tasks.items()}
    if config.model.backbone is not None:
        networks["model.backbone"] = config.model.backbone
    for field, network in networks.items():
        yield from _one_network_problems(field, network)


def _one_network_problems(field: str, network: TaskModelConfig) -> Iterator[str]:
    mask_net, mlps = network.mask_net_config, {f"{field}.mlp_config": network.mlp_config}
    if mask_net is not None:
        mlps[f"{field}.mask_net_config.mlp"] = mask_net.mlp
        activated = [number for number, block in enumerate(mask_net.mask_blocks) if block.activation is not None]
        if activated:
            yield f"{field}.mask_net_config.mask_blocks.{activated[0]}.activation: the reference has none; leave it out"
    yield from _mlp_problems(mlps)


def _mlp_problems(mlps: Mapping[str, MlpConfig | None]) -> Sequence[str]:
    return [
        f"{field}: final_layer_activation normalises the last layer too where there is a batch_norm, and the "
        "reference's does not; leave one of the two out"
        for field, mlp in mlps.items()
        if mlp is not None and mlp.final_layer_activation and mlp.batch_norm is not None
    ]
