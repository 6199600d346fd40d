"""How TwHIN is asked for posts, and how fast a timeline is: on the world and the bundle that `rookery demo` left.

For each share of the own query and of an author's vector: recall of candidates and the worth of timelines, both against
the world's truth. Then the time of a timeline and of a rank of 1,500 posts.

    rookery demo && python benchmarks/timeline.py demo-small --json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from rookery.demo.layout import Layout
from rookery.timeline.bundle import Bundle
from rookery.timeline.config import Interests
from rookery.timeline.evaluation import evaluate_timelines
from rookery.timeline.timeline import Timeline
from rookery.world.world import World

SHARES = ((1.0, 0.0), (0.0, 0.0), (1.0, 0.5), (1.0, 0.75), (1.0, 1.0), (0.75, 0.75), (0.5, 0.75), (0.0, 0.75))
"""Of the own query, of the author."""
NUM_POSTS, K, NUM_TIMES = 1500, 20, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path)
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    layout = Layout(options.demo)
    bundle, world = Bundle.open(layout.bundle), World.open(layout.world)
    users = np.random.default_rng(0).choice(len(bundle.catalog.user_ids), options.users, replace=False)
    result = {
        "num_threads": torch.get_num_threads(),
        "retrieval": [retrieval(bundle, world, users, own, author) for own, author in SHARES],
        "median_ms": latencies(Timeline(bundle), bundle.catalog.user_ids.take(users).to_pylist()),
    }
    print(json.dumps(result) if options.json else json.dumps(result, indent=1))


def retrieval(
    bundle: Bundle, world: World, users: np.ndarray, own_share: float, author_share: float
) -> dict[str, object]:
    interests = Interests(own_share=own_share, author_share=author_share)
    changed = dataclasses.replace(bundle, config=bundle.config.model_copy(update={"interests": interests}), index=None)
    found = evaluate_timelines(Timeline(changed), world.true_probabilities, users, K)
    return {
        "own_share": own_share,
        "author_share": author_share,
        "recall": {str(each.best): each.all for each in found.recall},
        "recall_out_of_network": {str(each.best): each.twhin for each in found.recall},
        "share_of_oracle": {each.policy: each.share for each in found.policies},
    }


def latencies(timeline: Timeline, users: list[str]) -> dict[str, float]:
    """The middle of the times of one request after another."""
    posts = timeline.catalog.post_ids.to_pylist()[-NUM_POSTS:]
    return {
        "candidates": median_ms(lambda number: timeline.candidates(users[number])),
        f"timeline of {K}": median_ms(lambda number: timeline.timeline(users[number], K)),
        f"rank of {len(posts)}": median_ms(lambda number: timeline.rank(users[number], posts)),
    }


def median_ms(ask: Callable[[int], object]) -> float:
    ask(0)
    times_s = []
    for number in range(NUM_TIMES):
        started = time.perf_counter()
        ask(number)
        times_s.append(time.perf_counter() - started)
    return 1000 * float(np.median(times_s))


if __name__ == "__main__":
    main()
