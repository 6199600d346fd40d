"""Which vector a position gets, in training and outside of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rookery.nn.config import PositionDebiasConfig
from rookery.nn.position import PositionDebias

MAX_POSITION, DIMS = 4, 3
POSITIONS = torch.tensor([0, 3, 4, 2**62, -1, -7, 3])
ROWS = [0, 3, 4, 4, 5, 5, 3]  # 4: that one or later, 5: unknown


def build(drop_probability: float = 0.0) -> PositionDebias:
    torch.manual_seed(0)
    return PositionDebias(
        PositionDebiasConfig(max_position=MAX_POSITION, num_dims=DIMS, drop_probability=drop_probability)
    )


def test_a_position_has_a_vector_late_ones_share_one_and_unknown_ones_too() -> None:
    position = build()
    assert position.out_features == DIMS
    out = position(POSITIONS, len(POSITIONS))
    torch.testing.assert_close(out, position.table[ROWS], rtol=0, atol=0)
    assert len(position.table.unique(dim=0)) == MAX_POSITION + 2


def test_gradients_are_sums_over_the_rows_of_a_position() -> None:
    position = build()
    coefficients = torch.randn(len(ROWS), DIMS, generator=torch.Generator().manual_seed(1))
    (position(POSITIONS, len(ROWS)) * coefficients).sum().backward()
    expected = torch.zeros(MAX_POSITION + 2, DIMS)
    for row, gradient in zip(ROWS, coefficients, strict=True):
        expected[row] += gradient
    torch.testing.assert_close(position.table.grad, expected)


@pytest.mark.parametrize("positions", [POSITIONS, None])
def test_outside_of_training_no_position_is_known(positions: Tensor | None) -> None:
    position = build().eval()
    out = position(positions, len(POSITIONS))
    torch.testing.assert_close(out, position.table[[5] * len(POSITIONS)], rtol=0, atol=0)


def test_training_rows_without_positions_are_unknown() -> None:
    position = build()
    torch.testing.assert_close(position(None, 2), position.table[[5, 5]], rtol=0, atol=0)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_positions_is_dropped(share: float) -> None:
    num_rows = 20_000
    position = build(share)
    zeros = torch.zeros(num_rows, dtype=torch.int64)
    torch.manual_seed(1)
    out = position(zeros, num_rows)
    dropped = (out == position.table[5]).all(1)
    assert ((out == position.table[0]).all(1) ^ dropped).all()
    deviation = (share * (1 - share) / num_rows) ** 0.5
    assert abs(dropped.float().mean().item() - share) <= 4 * deviation
    torch.manual_seed(1)
    torch.testing.assert_close(position(zeros, num_rows), out, rtol=0, atol=0)


def test_it_exports_for_any_number_of_rows() -> None:
    position = build().eval()

    class Scorer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = position

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, self.position(None, x.shape[0])], 1)

    rows = {0: torch.export.Dim("batch")}
    exported = torch.export.export(Scorer(), (torch.ones(4, 2),), dynamic_shapes=(rows,), strict=False).module()
    for num_rows in (1, 6):
        x = torch.ones(num_rows, 2)
        torch.testing.assert_close(exported(x), Scorer()(x))
