"""Weights under the reference's names: the same values as its formulas, and the same bits there and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from naive_reference import VECTORS, NaiveReference
from reference_configs import SCHEMA, ranker_yaml, write_schema
from small_ranker import small_config, small_model
from torch import Tensor

from rookery.checkpoint.foreign import Taken, read_weights, take_over, write_weights
from rookery.config.loader import parse_config
from rookery.ranker.batch import RankerFeatures
from rookery.ranker.config import RankerConfig
from rookery.ranker.from_reference import load_ranker_config
from rookery.ranker.model import FeatureSizes, RankerModel
from rookery.ranker.reference_names import reference_tensors

LABELS = {
    "recap.engagement.is_favorited": {},
    "recap.engagement.is_replied": {"neg_downsampling_rate": 0.1},
    "is_reported": {"pos_downsampling_rate": 0.5, "neg_downsampling_rate": 0.02},
}
NORMED = {"batch_norm_config": {"affine": True}, "clip_magnitude": 1.5, "layer_norm_config": {"epsilon": 1e-3}}
PLAIN = {"batch_norm_config": None, "clip_magnitude": 3.0, "layer_norm_config": None}
FIXED = {
    "batch_norm_config": {"affine": False, "momentum": 0.01},
    "clip_magnitude": 5.0,
    "layer_norm_config": {"epsilon": 0.0, "center": False, "scale": False},
}
TOWER = {"mlp_config": {"layer_sizes": [16, 12, 1], "batch_norm": {"affine": False}}}
OTHER = {"mlp_config": {"layer_sizes": [14, 1], "dropout": {"rate": 0.3}}, "affine_map": {"scale": 2.0, "bias": -1.0}}
BLOCK = {"output_size": 8, "aggregation_size": 6, "input_layer_norm": False}
SERIAL = {
    "mask_blocks": [
        {"output_size": 6, "reduction_factor": 0.4, "input_layer_norm": True},
        {"output_size": 9, "aggregation_size": 5, "input_layer_norm": True},
        {"output_size": 4, "aggregation_size": 5, "input_layer_norm": False},
    ],
    "use_parallel": False,
}
PARALLEL = {
    "mask_blocks": [BLOCK, {**BLOCK, "output_size": 3, "input_layer_norm": True}, BLOCK, BLOCK],
    "mlp": {"layer_sizes": [12], "final_layer_activation": True},
    "use_parallel": True,
}
WITH_MLP = {**SERIAL, "mlp": {"layer_sizes": [14, 12], "batch_norm": {"affine": True}, "dropout": {"rate": 0.1}}}
MLP = {"layer_sizes": [12, 8], "batch_norm": {"affine": True}, "dropout": {"rate": 0.2}}


def model(featurization: dict[str, Any], sharing: str, backbone: Any, *towers: Any) -> dict[str, Any]:
    chosen = dict(zip(LABELS, towers or (TOWER, OTHER, TOWER), strict=True))
    return {
        "tasks": chosen,
        "multi_task_type": sharing,
        "featurization_config": featurization,
        **({} if backbone is None else {"backbone": backbone}),
    }


MODELS = {
    "parallel": model({"double_norm_log_config": NORMED}, "share_all", {"mask_net_config": PARALLEL}),
    "serial": model({"double_norm_log_config": PLAIN}, "share_partial", {"mask_net_config": SERIAL}),
    "serial with mlp": model({"double_norm_log_config": FIXED}, "share_all", {"mask_net_config": WITH_MLP}),
    "mlp": model({"double_norm_log_config": NORMED}, "share_partial", {"mlp_config": MLP}),
    "one layer": model({"log1p_abs_config": {}}, "share_all", {"mlp_config": {"layer_sizes": [8]}}),
    "no backbone": model({"double_norm_log_config": FIXED}, "share_none", None),
    "mask net towers": model(
        {"log1p_abs_config": {}},
        "share_none",
        None,
        {"mask_net_config": {**PARALLEL, "mlp": {"layer_sizes": [4, 1]}}, "affine_map": {"scale": 0.5}},
        TOWER,
        {"mask_net_config": {**SERIAL, "mlp": {"layer_sizes": [1]}}},
    ),
}
each_model = pytest.mark.parametrize("name", MODELS)


@dataclass(frozen=True)
class Widths:
    continuous: int = 7
    binary: int = 3
    vector: int = 5


def configured(model: dict[str, Any], vectors: tuple[str, ...] = VECTORS) -> RankerConfig:
    widths = Widths()
    raw = {
        "training": {"save_dir": "run", "num_train_steps": 4},
        "labels": LABELS,
        "features": {
            "continuous": [{"name": "continuous", "width": widths.continuous}],
            "binary": [{"name": "binary", "width": widths.binary}],
            "dense": [{"name": vector, "width": widths.vector} for vector in vectors],
        },
        "train_data": {"inputs": ["log.parquet"]},
        "model": model,
        "optimizer": {"adam": {}, "single_task_learning_rate": {"constant": 0.01}},
    }
    return parse_config(RankerConfig, raw, "the model")


def built(config: RankerConfig, seed: int = 0) -> RankerModel:
    torch.manual_seed(seed)
    continuous, binary = config.features.continuous[0].width, config.features.binary[0].width
    sizes = FeatureSizes(continuous, binary, {each.name: each.width for each in config.features.dense}, {})
    return RankerModel(config, sizes, {}, torch.device("cpu")).eval()


def rows(
    vectors: tuple[str, ...] = VECTORS, widths: Widths = Widths(), num_rows: int = 9
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    continuous = torch.randn(num_rows, widths.continuous, generator=generator) * 10
    continuous[0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    binary = torch.randint(0, 2, (num_rows, widths.binary), generator=generator).float()
    return continuous, binary, {name: torch.randn(num_rows, widths.vector, generator=generator) for name in vectors}


def features(continuous: Tensor, binary: Tensor, vectors: dict[str, Tensor]) -> RankerFeatures:
    return RankerFeatures(continuous, binary, vectors, {}, {}, {}, None)


def taken(config: RankerConfig, ours: RankerModel, state: dict[str, Tensor]) -> Taken:
    return take_over(reference_tensors(config, ours), state, Path("state.pt"), partial=False)


@each_model
@pytest.mark.parametrize("vectors", [VECTORS, VECTORS[2:], ()], ids=["all vectors", "author", "none"])
def test_values_are_those_of_the_formulas(name: str, vectors: tuple[str, ...]) -> None:
    config = configured(MODELS[name], vectors)
    reference, drawn = NaiveReference(MODELS[name], LABELS), rows(vectors)
    logits = reference.logits(*drawn)
    calibrated = reference.calibrated(logits)
    ours = built(config)
    # No name is missing on either side, so all tensors of ours are those of the formulas.
    assert taken(config, ours, reference.state).missing == ()
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(features(*drawn)).double(), logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.probabilities(features(*drawn)).double(), calibrated, rtol=1e-5, atol=1e-5)
    assert logits.std(0).min() > 1e-2  # rows differ, or the comparison says little


@each_model
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_there_and_back_is_bit_identical(name: str, suffix: str, tmp_path: Path) -> None:
    config = configured(MODELS[name])
    reference = NaiveReference(MODELS[name], LABELS)
    reference.calibrated(reference.logits(*rows()))
    ours, other = built(config), built(config, seed=1)
    taken(config, ours, reference.state)
    file = tmp_path / f"weights{suffix}"
    write_weights(reference_tensors(config, ours), file, overwrite=False)
    written = read_weights(file)
    assert written.keys() == reference.state.keys()
    for tensor_name, tensor in reference.state.items():
        if not tensor_name.endswith("num_batches_tracked"):  # nobody reads it where there is a momentum
            assert torch.equal(written[tensor_name], tensor), tensor_name
        assert written[tensor_name].shape == tensor.shape
        assert written[tensor_name].dtype == tensor.dtype
    taken(config, other, written)
    assert_same_bits(ours, other)


def test_vectors_that_are_joined_are_those_that_came_with_the_log() -> None:
    """An export beside the log instead of a column of it: the same norm, the same columns of the first layer."""
    plain, widths = MODELS["parallel"], Widths()
    reference, (continuous, binary, vectors) = NaiveReference(plain, LABELS), rows()
    logits = reference.logits(continuous, binary, vectors)
    config = configured(plain, VECTORS[:2])
    raw = config.model_dump(mode="json", exclude_unset=True)
    raw["features"]["embeddings"] = [{"name": VECTORS[2], "export": "vectors", "table": "user", "key": "author_id"}]
    config = parse_config(RankerConfig, raw, "joined")
    sizes = FeatureSizes(widths.continuous, widths.binary, dict.fromkeys(VECTORS[:2], widths.vector), {})
    ours = RankerModel(config, sizes, {VECTORS[2]: vectors[VECTORS[2]].flip(0)}, torch.device("cpu")).eval()
    found = take_over(reference_tensors(config, ours), reference.state, Path("state.pt"), partial=True)
    assert found.missing == (f"rookery.network.embeddings.joined.<{VECTORS[2]}>.missing",)
    dense = {name: vectors[name] for name in VECTORS[:2]}
    joined = {VECTORS[2]: torch.arange(len(continuous)).flip(0)}
    with torch.no_grad():
        seen = ours.logits(RankerFeatures(continuous, binary, dense, {}, {}, joined, None))
    torch.testing.assert_close(seen.double(), logits, rtol=1e-5, atol=1e-5)


def test_the_shipped_production_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configured by the reference's file as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TML_BASE", str(tmp_path))
    write_schema(tmp_path / SCHEMA)
    (tmp_path / "local_prod.yaml").write_text(ranker_yaml())
    config = load_ranker_config(tmp_path / "local_prod.yaml")
    widths = Widths(continuous=2117, binary=59, vector=200)
    sizes = FeatureSizes(widths.continuous, widths.binary, dict.fromkeys(VECTORS, widths.vector), {})
    ours = RankerModel(config, sizes, {}, torch.device("cpu")).eval()
    reference = NaiveReference(yaml.safe_load(ranker_yaml())["model"], {task: {} for task in config.tasks})
    drawn = rows(widths=widths, num_rows=64)
    logits = reference.logits(*drawn)
    calibrated = reference.calibrated(logits)
    assert sum(tensor.numel() for tensor in reference.state.values()) > 48_000_000
    assert taken(config, ours, reference.state).missing == ()
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(features(*drawn)).double(), logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.probabilities(features(*drawn)).double(), calibrated, rtol=1e-5, atol=1e-5)
    assert logits.std(0).min() > 1e-2


EVERYTHING: dict[str, dict[str, Any]] = {
    "every kind of feature": {},
    "z-scores": {"model__featurization_config": {"z_score_log_config": {}}},
    "bins": {"model__featurization_config": {"piecewise_linear_config": {"num_bins": 3}}},
    "large tables": {
        "features": {
            "continuous": [{"name": "numbers", "width": 5}],
            "dense": [{"name": "text.vector", "width": 4}],
            "discrete": [{"name": "item_id", "table": "item"}],
            "tables": [{"name": "item", "embedding_dim": 6, "hash_buckets": 19, "optimizer": {"adagrad": {"lr": 0.1}}}],
        },
        "model__position_debias_config": None,
    },
    "dcn": {
        "model__backbone": {"dcn_config": {"parallel_mlp": {"layer_sizes": [5]}, "output_mlp": {"layer_sizes": [4]}}}
    },
    "dlrm": {"model__backbone": {"dlrm_config": {"bottom_mlp": {"layer_sizes": [4]}, "top_mlp": {"layer_sizes": [4]}}}},
    "mmoe": {"model__backbone": {"mmoe_config": {"expert": {"layer_sizes": [4]}}}},
    "a loss that learns": {"loss": {"uncertainty": {}}},
    "towers that end in more than one": {
        "model__tasks": {task: {"mlp_config": {"layer_sizes": [8, 4]}} for task in ("click", "like", "hide")}
    },
}


@pytest.mark.parametrize("changes", EVERYTHING.values(), ids=EVERYTHING)
def test_what_the_reference_has_no_module_for_travels_too(changes: dict[str, Any], tmp_path: Path) -> None:
    config = small_config(**changes)
    ours, other = small_model(config), small_model(small_config(**changes, runtime={"seed": 5}))
    for tensor in ours.tensors().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand(tensor.shape))
    write_weights(reference_tensors(config, ours), tmp_path / "weights.safetensors", overwrite=False)
    taken(config, other, read_weights(tmp_path / "weights.safetensors"))
    assert_same_bits(ours, other)


def assert_same_bits(left: RankerModel, right: RankerModel) -> None:
    tensors, others = left.tensors(), right.tensors()
    assert tensors.keys() == others.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []
