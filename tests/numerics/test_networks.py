"""Every network of ``TaskModelConfig`` against its paper's formulas: values, gradients, extremes, export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks_on_paper import naive_network
from torch import Tensor, nn

from rookery.nn.config import TaskModelConfig
from rookery.nn.experts import Gates
from rookery.nn.mlp import BatchNorm, Linear, StackedLinear
from rookery.nn.network import InputLayout, Network, build_network

FIELDS = ((2, 3), (5, 4), (11, 2))
LAYOUT = InputLayout(14, FIELDS)
NUM_TASKS, NUM_ROWS = 3, 6
MLP: dict[str, Any] = {"layer_sizes": (5, 4)}


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build(body: dict[str, Any], layout: InputLayout = LAYOUT) -> Network:
    """Every parameter moved off its initial value: a bias of 0 or a factor of 1 hides a mistake."""
    torch.manual_seed(0)
    network = build_network(TaskModelConfig.model_validate(body), layout, NUM_TASKS)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return network


def gradients(out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    coefficients = random(9, *out.shape).to(out)
    return list(torch.autograd.grad((out * coefficients).sum(), leaves))


def biases_before_batch_norm(network: Network) -> set[str]:
    """A batch norm takes off what they add, in training."""
    return {
        f"{name}.{place - 1}.bias"
        for name, layers in network.named_modules()
        if isinstance(layers, nn.Sequential)
        for place, layer in enumerate(layers)
        if isinstance(layer, BatchNorm)
    }


CASES: dict[str, dict[str, dict[str, Any]]] = {
    "mlp_config": {
        "plain": MLP,
        "batch norm": {**MLP, "batch_norm": {"affine": True}, "final_layer_activation": True},
    },
    "mask_net_config": {
        "parallel": {"mask_blocks": [{"output_size": 4, "aggregation_size": 6}] * 3, "mlp": MLP},
        "serial": {
            "mask_blocks": [
                {"output_size": 5, "reduction_factor": 0.5, "input_layer_norm": True},
                {"output_size": 4, "aggregation_size": 3, "activation": "relu"},
            ],
            "use_parallel": False,
        },
    },
    "dcn_config": {
        "parallel": {"poly_degree": 3, "parallel_mlp": MLP, "output_mlp": {"layer_sizes": (3,)}},
        "parallel low rank": {"poly_degree": 4, "projection_dim": 3, "parallel_mlp": MLP},
        "stacked": {"poly_degree": 2, "use_parallel": False, "output_mlp": MLP},
        "stacked low rank": {"poly_degree": 3, "projection_dim": 2, "use_parallel": False},
    },
    "dlrm_config": {
        "plain": {"bottom_mlp": {"layer_sizes": (5, 4), "final_layer_activation": True}, "top_mlp": MLP},
    },
    "mmoe_config": {
        "plain": {"num_experts": 3, "expert": MLP},
        "batch norm": {"num_experts": 2, "expert": {**MLP, "batch_norm": {}, "final_layer_activation": True}},
    },
    "ple_config": {
        "one level": {"num_levels": 1, "num_shared_experts": 2, "num_task_experts": 2, "expert": MLP},
        "three levels": {"num_levels": 3, "num_shared_experts": 1, "num_task_experts": 2, "expert": MLP},
        "batch norm": {"num_levels": 2, "expert": {**MLP, "batch_norm": {}, "final_layer_activation": True}},
    },
}

each_network = pytest.mark.parametrize(
    "body",
    [
        pytest.param({member: body}, id=f"{member}-{variant}")
        for member, variants in CASES.items()
        for variant, body in variants.items()
    ],
)


def test_every_network_of_the_configuration_has_a_case() -> None:
    (group,) = TaskModelConfig.one_of
    assert set(CASES) == set(group.fields)


@each_network
def test_values_and_gradients(body: dict[str, Any]) -> None:
    network = build(body).double()
    x = random(1, NUM_ROWS, LAYOUT.width).double().requires_grad_()
    out = network(x)
    names = [name for name, _ in network.named_parameters()]
    copies = {name: value.detach().clone().requires_grad_() for name, value in network.named_parameters()}
    copied = x.detach().clone().requires_grad_()
    expected = naive_network(TaskModelConfig.model_validate(body), copies, copied, FIELDS, NUM_TASKS)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    assert out.shape == ((NUM_TASKS,) if network.per_task else ()) + (NUM_ROWS, network.out_features)

    idle = biases_before_batch_norm(network)
    ours = gradients(out, [x, *network.parameters()])
    theirs = gradients(expected, [copied, *(copies[name] for name in names)])
    for name, our, their in zip(["x", *names], ours, theirs, strict=True):
        assert their.abs().max() > 1e-6 or name in idle, f"{name} has no gradient: the case says nothing about it"
        torch.testing.assert_close(our, their, rtol=1e-8, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


@each_network
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4])
def test_extremes(body: dict[str, Any], scale: float) -> None:
    network = build(body)
    x = (random(1, NUM_ROWS, LAYOUT.width) * scale).requires_grad_()
    out = network(x)
    assert out.isfinite().all()
    for gradient in gradients(out, [x, *network.parameters()]):
        assert gradient.isfinite().all()


@each_network
def test_a_row_is_scored_the_same_alone_and_among_others(body: dict[str, Any]) -> None:
    network = build(body).double().eval()
    x = random(1, NUM_ROWS, LAYOUT.width).double()
    rows = -2  # [(tasks,) batch, out]
    alone = torch.cat([network(row) for row in x.split(1)], dim=rows)
    torch.testing.assert_close(alone, network(x), rtol=1e-10, atol=1e-10)


@each_network
def test_a_training_batch_of_one_row(body: dict[str, Any]) -> None:
    network = build(body)
    out = network(random(1, 1, LAYOUT.width))
    assert out.isfinite().all()
    assert any(gradient.count_nonzero() for gradient in gradients(out, list(network.parameters())))


@each_network
def test_bfloat16_products(body: dict[str, Any]) -> None:
    """A sum near 0 may fall on the other side of a ReLU, so single gradients differ; their direction does not."""
    network = build(body)
    x = random(1, 256, LAYOUT.width)
    exact = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = network(x)
    assert torch.linalg.vector_norm(out - exact) < 0.02 * torch.linalg.vector_norm(exact)
    expected, found = (gradients(outputs, list(network.parameters())) for outputs in (exact, out))
    assert {gradient.dtype for gradient in found} == {torch.float32}
    directions = [torch.cat([gradient.flatten() for gradient in each]) for each in (expected, found)]
    assert torch.cosine_similarity(*directions, dim=0) > 0.95


@each_network
def test_the_seed_decides(body: dict[str, Any]) -> None:
    x = random(1, NUM_ROWS, LAYOUT.width)
    runs = []
    for _ in range(2):
        network = build(body)
        out = network(x)
        runs.append([out, *gradients(out, list(network.parameters()))])
    for first, second in zip(*runs, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


@each_network
def test_it_exports_for_any_number_of_rows(body: dict[str, Any]) -> None:
    network = build(body).eval()
    rows = {0: torch.export.Dim("batch")}
    exported = torch.export.export(
        network, (random(1, NUM_ROWS, LAYOUT.width),), dynamic_shapes=(rows,), strict=False
    ).module()
    for num_rows in (1, 2, 9):
        x = random(num_rows, num_rows, LAYOUT.width)
        torch.testing.assert_close(exported(x), network(x))


@each_network
def test_weights_start_xavier_uniform_and_biases_at_zero(body: dict[str, Any]) -> None:
    """Each matrix of a stack by its own sizes, not by those of the stack."""
    torch.manual_seed(0)
    network = build_network(TaskModelConfig.model_validate(body), LAYOUT, NUM_TASKS)
    maps = [part for part in network.modules() if isinstance(part, (nn.Linear, Linear, StackedLinear, Gates))]
    assert maps
    for part in maps:
        weight = part.weight.detach()  # [(number,) out, in]
        limit = (6 / sum(weight.shape[-2:])) ** 0.5
        assert 0.7 * limit < weight.abs().max() <= limit
        bias = getattr(part, "bias", None)
        assert bias is None or bias.count_nonzero() == 0
