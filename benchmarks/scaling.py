"""How does the cost of a step grow: with processes, edges, dimension and entities?

One process or two over gloo with one thread each, the same global batch; and one process with one of edges a step,
dimension and entities changed. The teams of a group are alive together and take turns, three steps each, so that other
work on the machine meets all of them. ``wall_s`` and ``cpu_s`` are medians over the rounds, ``cpu_s`` of all processes
together: the work of a step, whoever else is on the cores. ``speedup`` is one process's time over two's, by the clock;
``work`` is two processes' processor time over one's, 1 where nothing is added. ``half`` is
one process with half of the batch: what each of two takes beyond it is their exchange. ``growth`` is the processor time
over that of the first point, ``off_linear`` how far it is from growing as the number does (0 for entities: a step
touches as many rows of a large table as of a small one).

    python benchmarks/scaling.py --json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from steps import Setting, Steps, team

STEPS, ROUNDS = 3, 9
TWHIN = Setting(batch=20_000, dim=128, num_entities=200_000)
RANKER = Setting("ranker", batch=4_096, buffer_rows=40_000)
EDGES = (5_000, 10_000, 20_000, 40_000)
DIMS = (32, 64, 128, 256)
ENTITIES = (50_000, 200_000, 800_000, 1_600_000)
ROUTES = {"twhin": TWHIN, "twhin, rows sharded": replace(TWHIN, backend="torchrec"), "ranker": RANKER}


def in_turn(settings: Sequence[Setting]) -> list[Steps]:
    """The medians over the rounds."""
    with ExitStack() as stack:
        teams = [stack.enter_context(team(setting)) for setting in settings]
        rounds = [[each.steps(STEPS) for each in teams] for _ in range(ROUNDS)]
    return [_median(measured) for measured in zip(*rounds, strict=True)]


def _median(measured: Sequence[Steps]) -> Steps:
    wall, cpu = ([getattr(each, name) for each in measured] for name in ("wall_s", "cpu_s"))
    return replace(measured[-1], wall_s=statistics.median(wall), cpu_s=statistics.median(cpu))


def by_processes(setting: Setting) -> dict[str, Any]:
    one, half, two = in_turn([setting, replace(setting, batch=setting.batch // 2), replace(setting, world_size=2)])
    return {
        "one": _times(one),
        "half": _times(half),
        "two": _times(two),
        "speedup": round(one.wall_s / two.wall_s, 3),
        "work": round(two.cpu_s / one.cpu_s, 3),
    }


def by_size(points: Mapping[int, Setting], *, is_constant: bool = False) -> list[dict[str, Any]]:
    measured = in_turn(list(points.values()))
    first = next(iter(points))
    report = []
    for size, steps in zip(points, measured, strict=True):
        growth = steps.cpu_s / measured[0].cpu_s
        expected = 1.0 if is_constant else size / first
        report.append(
            {"size": size, **_times(steps), "growth": round(growth, 3), "off_linear": round(growth / expected - 1, 3)}
        )
    return report


def _times(steps: Steps) -> dict[str, float]:
    return {"wall_s": round(steps.wall_s, 5), "cpu_s": round(steps.cpu_s, 5)}


GROUPS: dict[str, Callable[[], Any]] = {
    "processes": lambda: {name: by_processes(setting) for name, setting in ROUTES.items()},
    "edges": lambda: by_size({batch: replace(TWHIN, batch=batch) for batch in EDGES}),
    "dim": lambda: by_size({dim: replace(TWHIN, dim=dim) for dim in DIMS}),
    "entities": lambda: by_size({n: replace(TWHIN, num_entities=n) for n in ENTITIES}, is_constant=True),
}


def run(groups: Sequence[str]) -> dict[str, Any]:
    before = os.getloadavg()[0]
    result = {name: GROUPS[name]() for name in groups}
    return {"load": [round(before, 1), round(os.getloadavg()[0], 1)], **result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", choices=[[], *GROUPS], help="left out: all")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    result = run(arguments.groups or list(GROUPS))
    print(json.dumps(result) if arguments.json else "\n".join(f"{key}: {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
