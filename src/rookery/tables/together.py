"""Ranks that look up rows together: whichever tables a rank's loss needs, all of them go backward on every rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rookery.tables.protocol import TableSpec


def with_absent(ids: Mapping[str, Tensor], specs: tuple[TableSpec, ...]) -> dict[str, Tensor]:
    """The ids of all tables in the order of ``specs``: none of those that ``ids`` does not name."""
    assert ids, "a rank without rows names its tables with 0 ids: the others wait for its backward pass"
    nothing = next(iter(ids.values())).new_empty(0)
    return {spec.name: ids.get(spec.name, nothing) for spec in specs}


def tied(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same rows, but one node of autograd: a gradient of some goes on as a gradient, 0 at least, of all.

    The backward pass of a sharded table is a collective. With it, a rank whose loss needs no row of a table that
    another rank's loss needs goes there all the same, and all ranks visit the tables in the same order.
    """
    together = _Tied.apply(*rows.values())  # type: ignore[no-untyped-call]
    return dict(zip(rows, together, strict=True))


class _Tied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(each.view_as(each) for each in rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients
