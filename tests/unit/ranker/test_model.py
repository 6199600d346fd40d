"""The model as a whole: what its parts are given, what is logged, what makes logits probabilities."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_ranker import TASKS, small_batch, small_config, small_model

MLP = {"mlp_config": {"layer_sizes": [8]}}
EXPERTS = {"mmoe_config": {"num_experts": 3, "expert": {"layer_sizes": [8]}}}
BACKBONES: dict[str, dict[str, Any]] = {
    "mlp": MLP,
    "mask_net": {
        "mask_net_config": {"mask_blocks": [{"output_size": 8, "reduction_factor": 0.5}], "use_parallel": False}
    },
    "dcn": {"dcn_config": {"use_parallel": False, "output_mlp": {"layer_sizes": [8]}}},
    "dlrm": {"dlrm_config": {"bottom_mlp": {"layer_sizes": [8, 6]}, "top_mlp": {"layer_sizes": [8]}}},
    "mmoe": EXPERTS,
    "ple": {"ple_config": {"expert": {"layer_sizes": [8]}}},
}


@pytest.mark.parametrize("sharing", ["share_all", "share_partial"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_towers_see_what_the_sharing_says(backbone: str, sharing: str) -> None:
    config = small_config(model__backbone=BACKBONES[backbone], model__multi_task_type=sharing)
    model, features = small_model(config).eval(), small_batch().features
    network = model.network
    inputs = network.inputs(features)
    shared = network.backbone(inputs)
    for task in range(len(TASKS)):
        seen = shared if shared.dim() == 2 else shared[task]
        seen = seen if sharing == "share_all" else torch.cat([inputs, seen], 1)
        expected = network.towers(seen)[:, task]
        torch.testing.assert_close(model.logits(features)[:, task], expected, rtol=1e-5, atol=1e-5)


def test_without_a_backbone_towers_see_the_features() -> None:
    config = small_config(model__backbone=None, model__multi_task_type="share_none")
    model, features = small_model(config).eval(), small_batch().features
    torch.testing.assert_close(model.logits(features), model.network.towers(model.network.inputs(features)))


def test_inputs_are_the_features_side_by_side() -> None:
    model, features = small_model(small_config()).eval(), small_batch().features
    network = model.network
    parts = [
        network.featurizer(features.continuous, features.binary),
        network.dense_norms["<text__vector>"](features.dense["text.vector"]),
        network.position(features.position, features.num_rows),
        *network.embeddings(features),
    ]
    assert torch.equal(network.inputs(features), torch.cat(parts, 1))


def test_every_parameter_learns() -> None:
    model = small_model(small_config()).train()
    torch.manual_seed(0)
    loss, outputs = model(small_batch(0, 64))
    loss.backward()
    assert set(outputs) == {f"loss/{task}" for task in TASKS}
    assert loss.item() == pytest.approx(sum(each.item() for each in outputs.values()) / 3, rel=1e-6)
    assert [name for name, each in model.named_parameters() if each.grad is None] == []


def test_position_counts_in_training_alone() -> None:
    model, features = small_model(small_config()), small_batch().features
    elsewhere = features.map(lambda each: each)
    object.__setattr__(elsewhere, "position", (features.position + 3) % 8)
    model.eval()
    assert torch.equal(model.logits(features), model.logits(elsewhere))
    model.train()
    torch.manual_seed(0)
    first = model.logits(features)
    torch.manual_seed(0)
    assert not torch.equal(first, model.logits(elsewhere))


def test_probabilities_undo_sampling_and_are_calibrated() -> None:
    rates = {"click": {"neg_downsampling_rate": 0.1}, "like": {"pos_downsampling_rate": 0.5}, "hide": {}}
    model, features = small_model(small_config(labels=rates)).eval(), small_batch().features
    raw = torch.sigmoid(model.logits(features))
    for task, ratio in enumerate([0.1, 2.0, 1.0]):
        expected = raw[:, task] * ratio / (1 - raw[:, task] + raw[:, task] * ratio)
        torch.testing.assert_close(model.probabilities(features)[:, task], expected)
    scale, offset = torch.tensor([2.0, 1.0, 0.5]), torch.tensor([0.1, -3.0, 0.0])
    model.set_calibration(scale, offset)
    logits = model.logits(features) + torch.tensor([math.log(0.1), math.log(2.0), 0.0])
    torch.testing.assert_close(model.probabilities(features), torch.sigmoid(scale * logits + offset))


def test_the_score_is_the_weighted_sum() -> None:
    probabilities = torch.tensor([[0.5, 0.25, 0.125], [0.0, 1.0, 0.5]])
    assert small_model(small_config()).score(probabilities).tolist() == [0.875, 1.5]
    weighted = small_model(small_config(score={"weights": {"click": 2.0, "hide": -8.0}}))
    assert weighted.score(probabilities).tolist() == [0.0, -4.0]


# torch's compiler imports parts of torch that torch itself deprecates, and looks at gradients of inputs.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.slow
def test_compiled_equals_plain() -> None:
    plain, compiled = small_model(small_config()), small_model(small_config(model__compile=True))
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in compiled.named_parameters()]
    batch = small_batch()
    for model in (plain, compiled):
        model.eval()
        model(batch)[0].backward()
    torch.testing.assert_close(plain.logits(batch.features), compiled.logits(batch.features))
    ours = dict(compiled.named_parameters())
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(ours[name].grad, parameter.grad, rtol=1e-4, atol=1e-6)


def test_tensors_are_all_that_a_checkpoint_needs() -> None:
    features = small_config().features.model_dump(exclude_none=True)
    features["tables"][0]["optimizer"] = {"rowwise_adagrad": {}}
    config = small_config(features=features, loss={"grad_norm": {}}, runtime={"seed": 1})
    model = small_model(config)
    torch.manual_seed(0)
    model.begin_step(0, 0, 1)
    model(small_batch())[0].backward()
    other = small_model(config.model_copy(update={"runtime": config.runtime.model_copy(update={"seed": 2})}))
    batch = small_batch(8)
    assert not torch.equal(model.eval().logits(batch.features), other.eval().logits(batch.features))
    other.load_tensors({name: each.clone() for name, each in model.tensors().items()})
    assert torch.equal(model.logits(batch.features), other.logits(batch.features))
    assert torch.equal(model(batch)[0], other(batch)[0])
