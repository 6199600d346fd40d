"""Do the formulas of docs/capacity.md hold: memory of a process and processor time of a step, predicted and measured?

Constants are fitted to some small runs of TwHIN (one process with local tables; two with a table shared row by row),
then four other runs are predicted: larger, wider, with copies for checkpoints, and of two processes. ``peak`` is the
largest resident memory of a process, ``cpu_s`` the processors' time of a step over all processes, a median.

    python benchmarks/capacity.py --json
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from steps import Setting, Steps, team

from rookery.optim.config import OptimizerConfig
from rookery.parallel.config import ShardingConfig
from rookery.tables.backends import describe_plan
from rookery.tables.protocol import TableSpec
from rookery.tables.refusals import WorldShape

SMALL = Setting(batch=4_000, dim=32, num_entities=10_000, buffer_rows=50_000)
SHARED = replace(SMALL, world_size=2, backend="torchrec")
CALIBRATION = {
    "local": (
        SMALL,
        replace(SMALL, batch=40_000),
        replace(SMALL, batch=40_000, dim=128),
        replace(SMALL, buffer_rows=2_000_000),
    ),
    "torchrec": (
        SHARED,
        replace(SHARED, batch=40_000),
        replace(SHARED, batch=40_000, dim=128),
        replace(SHARED, buffer_rows=2_000_000),
    ),
}
CHECKED = {
    "a million entities": Setting(batch=20_000, dim=64, num_entities=1_000_000),
    "wide": Setting(batch=10_000, dim=256, num_entities=500_000),
    "copies for checkpoints": Setting(batch=20_000, dim=128, num_entities=1_000_000, keeps_copy=True),
    "two processes": Setting(batch=20_000, dim=64, num_entities=2_000_000, world_size=2, backend="torchrec"),
}
NUM_STEPS = 15


@dataclass(frozen=True)
class Constants:
    """Of one route: bytes of a process, a row of the buffer, an edge of the process and an edge times dimension; the
    same of a step's seconds.
    """

    process: float
    buffer_row: float
    edge: float
    edge_dim: float
    step_s: float
    edge_s: float
    edge_dim_s: float

    def memory(self, setting: Setting) -> float:
        state = table_bytes(setting)
        edges = setting.batch / setting.world_size
        return (
            self.process
            + state * (2 if setting.keeps_copy else 1)
            + self.buffer_row * setting.buffer_rows / setting.world_size
            + edges * (self.edge + self.edge_dim * setting.dim)
        )

    def seconds(self, setting: Setting) -> float:
        return self.step_s * setting.world_size + setting.batch * (self.edge_s + self.edge_dim_s * setting.dim)


def table_bytes(setting: Setting) -> int:
    """Weights and optimizer state in the process that has most, as the plan before training says."""
    optimizer = OptimizerConfig.model_validate({"rowwise_adagrad": {"lr": 0.1}})
    spec = TableSpec("entity", setting.num_entities, setting.dim, torch.float32, optimizer, init_scale=1e-3)
    shape = WorldShape(setting.world_size, setting.world_size)
    (plan,) = describe_plan(setting.backend, [spec], ShardingConfig(), shape)
    return max(weights + state for weights, state in zip(plan.weight_bytes, plan.optimizer_bytes, strict=True))


def measure(setting: Setting) -> Steps:
    with team(setting) as made:
        return made.steps(NUM_STEPS)


def fit(settings: Sequence[Setting]) -> Constants:
    """As many runs as constants of memory, so that each is met; time by least squares."""
    measured = [measure(setting) for setting in settings]
    ranks = settings[0].world_size
    edges, dims, rows = (np.array([getattr(s, name) for s in settings]) for name in ("batch", "dim", "buffer_rows"))
    memory = np.stack([np.ones(len(settings)), rows / ranks, edges / ranks, edges * dims / ranks], axis=1)
    peaks = np.array([steps.peak_bytes - table_bytes(s) for s, steps in zip(settings, measured, strict=True)])
    time = np.stack([np.full(len(settings), ranks), edges, edges * dims], axis=1)
    seconds = np.array([steps.cpu_s for steps in measured])
    parts = (*np.linalg.lstsq(memory, peaks, rcond=None)[0], *np.linalg.lstsq(time, seconds, rcond=None)[0])
    return Constants(*map(float, parts))


def compare(setting: Setting, constants: Constants) -> dict[str, Any]:
    found = measure(setting)
    memory, seconds = constants.memory(setting), constants.seconds(setting)
    return {
        **asdict(setting),
        "table_mb": round(table_bytes(setting) / 1e6, 1),
        "peak_mb": {"predicted": round(memory / 1e6), "measured": round(found.peak_bytes / 1e6)},
        "peak_error_percent": round(100 * (memory / found.peak_bytes - 1), 1),
        "cpu_s": {"predicted": round(seconds, 4), "measured": round(found.cpu_s, 4)},
        "cpu_error_percent": round(100 * (seconds / found.cpu_s - 1), 1),
        "wall_s": round(found.wall_s, 4),
    }


def run() -> dict[str, Any]:
    before = os.getloadavg()[0]
    constants = {route: fit(settings) for route, settings in CALIBRATION.items()}
    points = {name: compare(setting, constants[setting.backend]) for name, setting in CHECKED.items()}
    described = {
        route: {name: float(f"{value:.4g}") for name, value in asdict(each).items()}
        for route, each in constants.items()
    }
    return {"load": [round(before, 1), round(os.getloadavg()[0], 1)], "constants": described, "points": points}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    result = run()
    print(json.dumps(result) if arguments.json else "\n".join(f"{key}: {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
