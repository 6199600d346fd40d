"""What does dropout cost that draws for each lane on its own?

Forward and backward pass, with ``nn.Dropout`` and with ``rookery.nn.dropout`` for one lane and for sixteen, in turns:
milliseconds, medians over the rounds.

    python benchmarks/dropout.py --json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rookery.nn.dropout import Dropout, as_draws

RATE, ROUNDS = 0.1, 51
SHAPES = ((128, 256), (1024, 256), (1024, 20, 128))


def ours(num_rows: int, num_lanes: int) -> Dropout:
    dropout = Dropout(RATE)
    dropout.draws = as_draws(range(num_lanes), [num_rows // num_lanes] * num_lanes)
    return dropout


def seconds(compute: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor) -> float:
    x.grad = None
    start = time.perf_counter()
    compute(x).backward(gradient)
    return time.perf_counter() - start


def measured(shape: tuple[int, ...]) -> dict[str, float]:
    x, gradient = torch.randn(shape).requires_grad_(), torch.randn(shape)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "nn.Dropout": nn.Dropout(RATE),
        "1 lane": ours(shape[0], 1),
        "16 lanes": ours(shape[0], 16),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            times[name].append(seconds(way, x, gradient))
    return {name: round(1e3 * statistics.median(each), 3) for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    as_json = parser.parse_args().json
    before = os.getloadavg()[0]
    result = {"load": round(before, 1), **{"x".join(map(str, shape)): measured(shape) for shape in SHAPES}}
    print(json.dumps(result) if as_json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
