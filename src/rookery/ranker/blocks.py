"""Numeric features: truncation, slicing, rounding to a narrower type, and zero for what is no number."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from rookery.data.columns import ColumnRequest
from rookery.ranker.columns import ColumnPlan, numeric_request
from rookery.ranker.features_config import NumericFeature, PreprocessConfig

_FLOATS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Block(nn.Module):
    """One numeric feature as ``[batch, width]`` float32: the columns that truncation and mask leave."""

    def __init__(
        self, feature: NumericFeature, config: PreprocessConfig, masks: Mapping[str, Sequence[bool]], plan: ColumnPlan
    ) -> None:
        super().__init__()
        self.name = feature.name
        self.request: ColumnRequest = numeric_request(feature)
        self.downcast = config.downcast.get(feature.name)
        self.key = plan.key(self.request)
        truncations = {one.feature: one.truncation for one in config.truncate_and_slice}
        self._truncation = truncations.get(feature.name) or feature.width
        mask = masks.get(feature.name)
        places = range(self._truncation) if mask is None else [place for place, keep in enumerate(mask) if keep]
        self.width = len(places)
        self._places = tuple(places)
        self.register_buffer("selected", None if mask is None else torch.tensor(places), persistent=False)
        self.selected: Tensor | None

    def forward(self, columns: Mapping[str, Tensor]) -> Tensor:
        """A view of the column where nothing changes it; may hold numbers that are not finite."""
        values = columns[self.key]
        if values.dim() == 1:
            return values.float().unsqueeze(1)
        if self._truncation < values.shape[1]:
            values = values[:, : self._truncation]
        if self.selected is not None:
            values = values.index_select(1, self.selected)
        return values.float()

    def column(self, columns: Mapping[str, Tensor], index: int) -> Tensor:
        """One of the columns that are left ``[batch]``, finite and rounded."""
        values = columns[self.key][:, self._places[index]].float()
        return round_to(torch.nan_to_num(values, 0.0, 0.0, 0.0), self.downcast)


class NonFinite(threading.local):
    """Numbers that were null, NaN or infinite and became 0, by feature; each thread counts what it preprocesses."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __reduce__(self) -> tuple[type[NonFinite], tuple[()]]:
        """A copy begins to count anew."""
        return NonFinite, ()


class NumericGroup(nn.Module):
    """Features side by side: ``[batch, width]`` float32, finite and rounded. One pass over the numbers to copy them
    where there are several features, and one to see that all are finite.
    """

    def __init__(self, blocks: Sequence[Block], non_finite: NonFinite) -> None:
        super().__init__()
        self.blocks = tuple(blocks)
        self.parts = nn.ModuleList(blocks)
        self._widths = [block.width for block in blocks]
        self._names = [block.name for block in blocks]
        self._types = [block.downcast for block in blocks]
        self._non_finite = non_finite
        self.width = sum(self._widths)

    def forward(self, columns: Mapping[str, Tensor]) -> Tensor:
        parts = [block(columns) for block in self.blocks]
        if not parts:
            first = next(iter(columns.values()))
            return torch.zeros(first.shape[0], 0, device=first.device)
        values = self._finite(parts[0] if len(parts) == 1 else torch.cat(parts, 1))
        if not any(self._types):
            return values
        columns_of = values.split_with_sizes(self._widths, 1)
        rounded = [round_to(part, kind) for part, kind in zip(columns_of, self._types, strict=True)]
        return rounded[0] if len(rounded) == 1 else torch.cat(rounded, 1)

    def _finite(self, values: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return torch.nan_to_num(values, 0.0, 0.0, 0.0)
        # A sum is finite only if its addends are; it reads the numbers once and writes none. Seldom, a sum of large
        # numbers overflows: then the look at each of them finds nothing.
        if math.isfinite(values.sum().item()):
            return values
        wrong = ~torch.isfinite(values)
        for name, part in zip(self._names, wrong.split_with_sizes(self._widths, 1), strict=True):
            count = int(part.sum())
            if count:
                self._non_finite.counts[name] += count
        return values.masked_fill(wrong, 0.0)


def round_to(values: Tensor, kind: str | None) -> Tensor:
    """Finite numbers as the named type has them, in float32: rounded to the nearest float16 or bfloat16, the largest
    of which stand for larger ones; ``uint8`` from 0 to 255, fractions cut off; ``bool`` 1 for all but zero.
    """
    if kind is None:
        return values
    if kind == "bool":
        return (values != 0).float()
    if kind == "uint8":
        return values.clamp(0, 255).trunc()
    limits = torch.finfo(_FLOATS[kind])
    return values.clamp(limits.min, limits.max).to(_FLOATS[kind]).float()
