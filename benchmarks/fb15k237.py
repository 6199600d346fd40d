"""FB15k-237, from the raw files to filtered ranks, as `rookery twhin init` sets it up.

Chosen on validation (the best checkpoint), reported on test; both sides, ties at the mean rank, unseen entities count.

    python benchmarks/fb15k237.py --model complex --json
    python benchmarks/fb15k237.py --model transe --json
"""

from __future__ import annotations

import argparse
from typing import Any

from journey import Journey, main

PUBLISHED = {
    "transe": {"source": "LibKGE, the best TransE", "mrr": 0.313, "hits@10": 0.497},
    "complex": {
        "source": "LibKGE; rank 1000 with N3 and reciprocal relations: .366 / .557",
        "mrr": 0.348,
        "hits@10": 0.536,
    },
}
SHOWN = ("mrr", "hits@1", "hits@3", "hits@10", "mean_rank")


def run(journey: Journey, arguments: argparse.Namespace) -> dict[str, Any]:
    graph = journey.graph("fb15k237", arguments.data / "fb15k237", "graph")
    trained = journey.train(graph, arguments.model, init=("--recipe", arguments.model))
    result: dict[str, Any] = {"model": arguments.model, "published": PUBLISHED[arguments.model]}
    for split in ("valid", "test"):
        overall = journey.evaluate(trained, split)["metrics"]
        result[split] = {name: round(overall[name], 4) for name in SHOWN}
    return {**result, "minutes_of_training": round(journey.seconds["twhin train"] / 60, 1)}


if __name__ == "__main__":
    main(__doc__, run, model={"choices": sorted(PUBLISHED), "default": "complex"})
