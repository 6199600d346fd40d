"""Which module a configuration makes, where fields lie, and DLRM on every kind of layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks_on_paper import naive_dlrm

from rookery.errors import ConfigError
from rookery.nn.config import DlrmConfig, TaskModelConfig
from rookery.nn.dlrm import Dlrm
from rookery.nn.network import InputLayout, build_network

MLP: dict[str, Any] = {"layer_sizes": (3,)}
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp_config": ("Mlp", MLP),
    "mask_net_config": ("MaskNet", {"mask_blocks": [{"output_size": 2, "aggregation_size": 2}], "mlp": MLP}),
    "dcn_config": ("Dcn", {"use_parallel": False, "output_mlp": MLP}),
    "dlrm_config": ("Dlrm", {"bottom_mlp": MLP, "top_mlp": MLP}),
    "mmoe_config": ("Mmoe", {"expert": MLP}),
    "ple_config": ("Ple", {"expert": MLP}),
}


def test_every_member_of_the_configuration_is_built() -> None:
    (group,) = TaskModelConfig.one_of
    assert set(BODIES) == set(group.fields)


@pytest.mark.parametrize("member", BODIES)
def test_the_member_decides_the_module(member: str) -> None:
    name, body = BODIES[member]
    network = build_network(TaskModelConfig.model_validate({member: body}), InputLayout(6, ((0, 2), (4, 2))), 2)
    assert type(network).__name__ == name
    assert network.out_features == 3
    assert network.per_task == (member in {"mmoe_config", "ple_config"})


@pytest.mark.parametrize(
    ("layout", "dense"),
    [
        (InputLayout(5), ((0, 5),)),
        (InputLayout(0), ()),
        (InputLayout(4, ((0, 1), (1, 3))), ()),
        (InputLayout(9, ((2, 3), (5, 1), (7, 1))), ((0, 2), (6, 1), (8, 1))),
    ],
    ids=str,
)
def test_what_is_in_no_field_is_dense(layout: InputLayout, dense: tuple[tuple[int, int], ...]) -> None:
    assert layout.dense == dense


@pytest.mark.parametrize(
    "layout",
    [
        InputLayout(5),  # dense features alone: nothing to pair
        InputLayout(8, ((0, 4), (4, 4))),  # fields alone
        InputLayout(6, ((1, 4),)),
        InputLayout(17, ((0, 4), (4, 2), (8, 4), (14, 3))),
    ],
    ids=str,
)
def test_dlrm_pairs_the_fields_of_any_layout(layout: InputLayout) -> None:
    config = DlrmConfig.model_validate({"bottom_mlp": {"layer_sizes": (5, 4)}, "top_mlp": MLP})
    torch.manual_seed(0)
    network = Dlrm(config, layout).double()
    parameters = dict(network.named_parameters())
    x = torch.randn(3, layout.width, dtype=torch.float64)
    torch.testing.assert_close(network(x), naive_dlrm(config, parameters.__getitem__, x, layout.fields))
    assert ("bottom_mlp.layers.0.weight" in parameters) == bool(layout.dense)


def test_dlrm_refuses_a_single_field() -> None:
    config = DlrmConfig.model_validate({"bottom_mlp": MLP, "top_mlp": MLP})
    with pytest.raises(ConfigError, match="make no pair; add a feature or use mlp_config"):
        Dlrm(config, InputLayout(4, ((0, 4),)))


def test_a_field_of_zeros_meets_nothing() -> None:
    """A projection has no bias: the pooled vector of an empty list stays zero, and so do its products."""
    config = DlrmConfig.model_validate({"bottom_mlp": {"layer_sizes": (4,)}, "top_mlp": {"layer_sizes": (1,)}})
    network = Dlrm(config, InputLayout(7, ((0, 2), (2, 5))))
    x = torch.randn(5, 7)
    x[:, :2] = 0
    other = x.clone()
    other[:, 2:] *= -3
    torch.testing.assert_close(network(x), network(other), rtol=0, atol=0)
    x[:, :2] = 1
    assert not torch.allclose(network(x), network(torch.cat([x[:, :2], other[:, 2:]], 1)))
