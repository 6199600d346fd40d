"""Sums over the steps since the last log: means of losses and outputs, and where the time went."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class MeanMeter:
    """Means of named scalars. Sums stay on their device: reading them waits for it, adding does not.

    Float64: a million losses of 0.7 in float32 lose their last three digits.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, name: str, value: Tensor | float, weight: float = 1.0) -> None:
        """Count ``value`` (a scalar) with ``weight``."""
        if name not in self._sums:
            device = value.device if isinstance(value, Tensor) else None
            self._sums[name] = torch.zeros((), dtype=torch.float64, device=device)
            self._weights[name] = 0.0
        if isinstance(value, Tensor):
            self._sums[name].add_(value.detach(), alpha=weight)
        else:
            self._sums[name].add_(value * weight)
        self._weights[name] += weight

    def is_finite(self, name: str) -> bool:
        """Whether every value since the last ``take`` was finite; waits for the device."""
        return name not in self._sums or math.isfinite(self._sums[name].item())

    def means(self) -> dict[str, float]:
        """All means so far; waits for the device."""
        return {name: total.item() / self._weights[name] for name, total in self._sums.items()}

    def clear(self) -> None:
        self._sums, self._weights = {}, {}

    def state(self) -> dict[str, list[float]]:
        """Sum and weight by name, for the checkpoint: a resumed run logs the same means."""
        return {name: [total.item(), self._weights[name]] for name, total in self._sums.items()}

    def load_state(self, state: Mapping[str, Any], device: torch.device) -> None:
        self._sums = {
            name: torch.tensor(total, dtype=torch.float64, device=device) for name, (total, _) in state.items()
        }
        self._weights = {name: weight for name, (_, weight) in state.items()}


class Stopwatch:
    """Seconds spent in named parts of the loop. On CUDA a part is the time to launch its work, unless ``device`` is
    given: then each part waits for the device.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device
        self._parts: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            if self._device is not None and self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self._parts[name] = self._parts.get(name, 0.0) + time.perf_counter() - start

    def lap(self) -> dict[str, float]:
        """Seconds by part, and ``total`` since the last lap; starts the next one."""
        now = time.perf_counter()
        seconds = {**self._parts, "total": now - self._start}
        self._parts, self._start = {}, now
        return seconds
