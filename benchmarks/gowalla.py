"""Gowalla (the LightGCN split), 64 dimensions, no graph convolution, as `rookery twhin init` sets it up.

A tenth of each user's train items is held out to judge the configuration; then the same configuration is fitted on all
of train and reported on test, once. All items are ranked, train items masked.

    python benchmarks/gowalla.py --json
"""

from __future__ import annotations

import argparse
from typing import Any

from journey import Journey, main

PUBLISHED = {
    "sampled softmax, 64-d factors": {"recall@20": 0.1759, "ndcg@20": 0.1395},
    "LightGCN": {"recall@20": 0.1820, "ndcg@20": 0.1547},
    "bilateral softmax (BSL), 64-d factors": {"recall@20": 0.1882, "ndcg@20": 0.1584},
}


def run(journey: Journey, arguments: argparse.Namespace) -> dict[str, Any]:
    source = arguments.data / "gowalla"
    held_out = journey.graph("lightgcn", source, "held-out")
    whole = journey.graph("lightgcn", source, "whole", "--valid-fraction", "0")
    result: dict[str, Any] = {"published": PUBLISHED}
    for name, graph, split in (("chosen", held_out, "valid"), ("final", whole, "test")):
        metrics = journey.evaluate(journey.train(graph, name, overrides=arguments.set), split)["metrics"]
        result[split] = {metric: round(metrics[metric], 4) for metric in ("recall@20", "ndcg@20")}
    return {**result, "minutes_of_training": round(journey.seconds["twhin train"] / 60, 1)}


if __name__ == "__main__":
    main(__doc__, run, set={"action": "append", "default": [], "help": "override a field of both configurations"})
