"""From the configuration of one network to its module."""

from __future__ import annotations

from rookery.nn.config import TaskModelConfig
from rookery.nn.dcn import Dcn
from rookery.nn.dlrm import Dlrm
from rookery.nn.experts import Mmoe, Ple
from rookery.nn.layout import InputLayout
from rookery.nn.mask_net import MaskNet
from rookery.nn.mlp import Mlp

__all__ = ["InputLayout", "Network", "build_network"]

Network = Mlp | MaskNet | Dcn | Dlrm | Mmoe | Ple
"""All have ``out_features`` and ``per_task``: whether they give ``[tasks, batch, out]`` instead of ``[batch, out]``."""


def build_network(config: TaskModelConfig, layout: InputLayout, num_tasks: int) -> Network:
    """The network that ``config`` names, for rows ``[batch, layout.width]``; initialised from torch's generator."""
    if config.mask_net_config is not None:
        return MaskNet(config.mask_net_config, layout.width)
    if config.dcn_config is not None:
        return Dcn(config.dcn_config, layout.width)
    if config.dlrm_config is not None:
        return Dlrm(config.dlrm_config, layout)
    if config.mmoe_config is not None:
        return Mmoe(config.mmoe_config, layout.width, num_tasks)
    if config.ple_config is not None:
        return Ple(config.ple_config, layout.width, num_tasks)
    assert config.mlp_config is not None  # exactly one is given
    return Mlp(config.mlp_config, layout.width)
