"""A timeline that costs nothing and whose numbers are known, served as a bundle's would be.

    python -m served_fake BUNDLE [CONFIG.yaml]

serves the folder and prints the address. ``BUNDLE/bundle.json`` holds the version, and how long a batch takes.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rookery.config.loader import load_config
from rookery.errors import DataError, UnknownId, UserError
from rookery.serve.config import ServeConfig
from rookery.serve.run import serve
from rookery.serve.served import Opener
from rookery.timeline.posts import Query, RankQuery

NUM_USERS, NUM_POSTS = 50, 3_000
TASKS = ("is_favorited", "is_replied", "is_reported")
WEIGHTS = {"is_favorited": 0.5, "is_replied": 13.5, "is_reported": -369.0}


def probability(user: int, post: int, task: int) -> float:
    """What the fake's network says."""
    return ((user * 31 + post * 17 + task * 7) % 101) / 101 / (task + 1)


@dataclass(frozen=True)
class FakePost:
    post_id: str
    author_id: str
    source: str
    probabilities: dict[str, float]
    contributions: dict[str, float]
    score: float
    created_at: str
    topic: str
    media: str


@dataclass(frozen=True)
class FakePlaced(FakePost):
    position: int
    base_score: float
    diversity_factor: float
    network_factor: float
    final_score: float


@dataclass(frozen=True)
class FakeCandidate:
    post_id: str
    author_id: str
    source: str
    retrieval_score: float


@dataclass(frozen=True)
class FakeNeighbor:
    id: str
    score: float


class FakeTimeline:
    """50 users, 3,000 posts; the even posts are in network."""

    def __init__(self, version: str = "v1", batch_s: float = 0.0) -> None:
        self.version, self.batch_s = version, batch_s
        self.tasks, self.weights = TASKS, WEIGHTS
        self.example = {"user_id": "user_17", "post_id": "post_204"}
        self.batches: list[Sequence[Query]] = []
        self.threads: set[str] = set()

    def num_rows(self, query: Query) -> int:
        return len(query.post_ids) if isinstance(query, RankQuery) else 500

    def answer(self, queries: Sequence[Query]) -> list[Any]:
        self.batches.append(queries)
        self.threads.add(threading.current_thread().name)
        time.sleep(self.batch_s)
        return [self._answer_one(query) for query in queries]

    def _answer_one(self, query: Query) -> list[FakePost] | UserError:
        try:
            user = number(query.user_id, "user", NUM_USERS)
            weights = self._weights(query.weights)
            if isinstance(query, RankQuery):
                return self._ranked(user, query.post_ids, weights)
            posts = self.candidates(query.user_id)
            ids = [post.post_id for post in posts if post.source in query.sources]
            ranked = self._ranked(user, ids, weights)[: query.k]
            return [FakePlaced(**vars(post), **placed(place, post.score)) for place, post in enumerate(ranked)]
        except UserError as error:
            return error

    def _weights(self, weights: Mapping[str, float] | None) -> Mapping[str, float]:
        if weights is None:
            return self.weights
        for name in weights:
            if name not in TASKS:
                raise UserError(f"weights.{name}: unknown")
        return weights

    def _ranked(self, user: int, post_ids: Sequence[str], weights: Mapping[str, float]) -> list[FakePost]:
        posts = []
        for post_id in post_ids:
            post = number(post_id, "post", NUM_POSTS)
            chances = {task: probability(user, post, place) for place, task in enumerate(TASKS)}
            added = {task: chance * weights.get(task, 0.0) for task, chance in chances.items()}
            source = "out_of_network" if post % 2 else "in_network"
            facts = ("2026-01-15T00:00:00+00:00", "topic_1", "none")
            author = f"user_{post % NUM_USERS}"
            posts.append(FakePost(post_id, author, source, chances, added, sum(added.values()), *facts))
        return sorted(posts, key=lambda each: -each.score)

    def candidates(self, user_id: str) -> list[FakeCandidate]:
        number(user_id, "user", NUM_USERS)
        return [
            FakeCandidate(
                f"post_{post}", f"user_{post % NUM_USERS}", "out_of_network" if post % 2 else "in_network", 0.5
            )
            for post in range(500)
        ]

    def users(self, prefix: str, limit: int) -> list[dict[str, Any]]:
        names = (f"user_{user}" for user in range(NUM_USERS))
        return [self.user(name) for name in names if name.startswith(prefix)][:limit]

    def user(self, user_id: str) -> dict[str, Any]:
        return {"id": user_id, "favorites": number(user_id, "user", NUM_USERS)}

    def neighbors(self, user_id: str, k: int) -> list[FakeNeighbor]:
        number(user_id, "user", NUM_USERS)
        return [FakeNeighbor(f"user_{other}", 1.0 - other / 100) for other in range(k)]

    def similar(self, post_id: str, k: int) -> list[FakeNeighbor]:
        number(post_id, "post", NUM_POSTS)
        return [FakeNeighbor(f"post_{other}", 1.0 - other / 100) for other in range(k)]

    def describe(self) -> dict[str, Any]:
        return {
            "tasks": self.tasks,
            "weights": self.weights,
            "presets": {"2023": self.weights},
            "author_diversity": {"decay": 0.5, "floor": 0.25},
            "out_of_network_factor": 0.75,
            "now": "2026-01-15T00:00:00+00:00",
            "version": self.version,
        }

    def map(self) -> bytes:
        point = {"id": ["user_1"], "x": [0.1], "y": [-0.2]}
        return json.dumps({"method": "t-SNE", "users": point, "posts": {**point, "topic": ["topic_1"]}}).encode()

    def metrics(self) -> bytes:
        return b"{}"


def number(name: str, kind: str, count: int) -> int:
    """17 of ``user_17``, where there are so many."""
    prefix, _, digits = name.partition("_")
    if prefix != kind or not (digits.isascii() and digits.isdigit()) or len(digits) > 6 or int(digits) >= count:
        raise UnknownId(f"{kind} {name!r} is not known")
    return int(digits)


def placed(position: int, score: float) -> dict[str, float]:
    factors = {"base_score": score, "diversity_factor": 1.0, "network_factor": 1.0, "final_score": score}
    return {"position": position, **factors}


def write_bundle(folder: Path, version: str, batch_s: float = 0.0) -> None:
    """A bundle that ``open_fake`` opens."""
    folder.mkdir(parents=True)
    (folder / "bundle.json").write_text(json.dumps({"version": version, "batch_s": batch_s}))


def open_fake(bundle: Path) -> FakeTimeline:
    try:
        return FakeTimeline(**json.loads((bundle / "bundle.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{bundle}: not a bundle: {error}") from error


def say(address: str) -> None:
    sys.stdout.write(address + "\n")
    sys.stdout.flush()


def main(opener: Opener) -> None:
    config = load_config(ServeConfig, Path(sys.argv[2])) if len(sys.argv) > 2 else ServeConfig(port=0)
    serve(Path(sys.argv[1]), opener, config, os.environ, say)


if __name__ == "__main__":
    main(open_fake)
