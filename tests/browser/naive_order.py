"""The orders of docs/timeline.md, spelled out: the best remaining post, again and again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

BOTH = frozenset({"in_network", "out_of_network"})


def base_score(post: Mapping[str, Any], weights: Mapping[str, float], key: str = "probabilities") -> float:
    return sum(weight * post[key][task] for task, weight in weights.items())


def by_score(
    posts: Sequence[Mapping[str, Any]],
    weights: Mapping[str, float],
    *,
    sources: frozenset[str] = BOTH,
    diversity: bool = True,
    decay: float = 0.5,
    floor: float = 0.25,
    out_of_network: float = 0.75,
) -> list[tuple[str, float]]:
    """Ids and final scores, the best first."""
    left = [post for post in posts if post["source"] in sources]
    seen: Counter[str] = Counter()
    order = []

    def final(post: Mapping[str, Any]) -> float:
        base = base_score(post, weights)
        if base <= 0:
            return base
        network = out_of_network if post["source"] == "out_of_network" else 1.0
        times = (1 - floor) * decay ** seen[post["author_id"]] + floor if diversity else 1.0
        return base * network * times

    while left:
        best = max(left, key=final)
        order.append((best["post_id"], final(best)))
        left.remove(best)
        seen[best["author_id"]] += 1
    return order


def by_time(posts: Sequence[Mapping[str, Any]], sources: frozenset[str] = BOTH) -> list[str]:
    kept = [post for post in posts if post["source"] in sources]
    return [post["post_id"] for post in sorted(kept, key=lambda post: post["created_at"], reverse=True)]


def by_truth(posts: Sequence[Mapping[str, Any]], weights: Mapping[str, float]) -> list[str]:
    ranked = sorted(posts, key=lambda post: base_score(post, weights, "true_probabilities"), reverse=True)
    return [post["post_id"] for post in ranked]
