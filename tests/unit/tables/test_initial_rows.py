from __future__ import annotations

import zlib

import pytest
import torch

from rookery.optim.config import OptimizerConfig
from rookery.tables import protocol
from rookery.tables.protocol import TableSpec, draw_initial, initial_weight

OPTIMIZER = OptimizerConfig.model_validate({"rowwise_adagrad": {"lr": 0.1}})


@pytest.mark.parametrize(
    ("num_rows", "dim"), [(1, 1), (5, 3), (1, 16), (16, 4), (79, 8), (80, 8), (95, 4), (1_000, 12), (333, 7)]
)
def test_rows_drawn_in_blocks_are_those_of_one_draw(num_rows, dim, monkeypatch):
    monkeypatch.setattr(protocol, "_DRAWN_NUMBERS", 16 * dim)
    spec = TableSpec("user", num_rows, dim, torch.float32, OPTIMIZER, init_scale=0.3)
    generator = torch.Generator().manual_seed(5 ^ zlib.crc32(b"user"))
    at_once = torch.empty(num_rows, dim).normal_(0.0, 0.3, generator=generator)
    assert torch.equal(initial_weight(spec, 5), at_once)
    half, left = num_rows // 2, dim // 2
    part = torch.empty(num_rows - half, dim - left)
    draw_initial(part, spec, 5, [half, left])
    assert torch.equal(part, at_once[half:, left:])


def test_rows_of_half_precision_are_rounded_ones():
    spec = TableSpec("user", 40, 8, torch.float32, OPTIMIZER, init_scale=0.3)
    half = TableSpec("user", 40, 8, torch.bfloat16, OPTIMIZER, init_scale=0.3)
    assert torch.equal(initial_weight(half, 1), initial_weight(spec, 1).bfloat16())
