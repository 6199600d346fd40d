"""What does it save to send the ids of the next batch while this one computes?

TwHIN with its rows sharded over two processes of one thread each and the table of scaling.py, with the exchange of ids
beside the step before and without. The two teams are alive together and take turns, three steps each. Seconds are
medians over the rounds, ``cpu_s`` of both processes together; ``saved`` is the share of the time without that is gone,
``rounds_faster`` in how many of the rounds the overlap was the faster.

    python benchmarks/overlap.py --json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from steps import Setting, Steps, team

STEPS, ROUNDS = 3, 31
SETTINGS = {
    batch: Setting(batch=batch, dim=128, num_entities=200_000, world_size=2, backend="torchrec")
    for batch in (2_000, 20_000)
}


def compared(setting: Setting) -> dict[str, Any]:
    """Without the overlap, and with it."""
    with ExitStack() as stack:
        before, after = (stack.enter_context(team(replace(setting, looks_ahead=ahead))) for ahead in (False, True))
        rounds = [(before.steps(STEPS), after.steps(STEPS)) for _ in range(ROUNDS)]
    without, beside = zip(*rounds, strict=True)
    return {
        "without": _times(without),
        "beside": _times(beside),
        "saved": round(1 - _median(beside, "wall_s") / _median(without, "wall_s"), 3),
        "rounds_faster": sum(after.wall_s < before.wall_s for before, after in rounds),
        "rounds": ROUNDS,
    }


def _median(measured: tuple[Steps, ...], name: str) -> float:
    return statistics.median(getattr(each, name) for each in measured)


def _times(measured: tuple[Steps, ...]) -> dict[str, float]:
    return {name: round(_median(measured, name), 5) for name in ("wall_s", "cpu_s")}


def run() -> dict[str, Any]:
    before = os.getloadavg()[0]
    result = {f"{batch} edges": compared(setting) for batch, setting in SETTINGS.items()}
    return {"load": [round(before, 1), round(os.getloadavg()[0], 1)], **result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    result = run()
    print(json.dumps(result) if arguments.json else "\n".join(f"{key}: {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
