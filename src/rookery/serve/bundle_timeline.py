"""A bundle's timeline, as the service asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rookery.timeline.config import WEIGHT_PRESETS
from rookery.timeline.posts import Query, RankQuery, TimelineQuery
from rookery.timeline.timeline import Timeline

_MAP_DIGITS = 4


class BundleTimeline:
    """Answers from one bundle."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self.version, self.tasks, self.weights = timeline.version, timeline.tasks, timeline.weights
        self.answer = timeline.answer
        self.candidates, self.users, self.user = timeline.candidates, timeline.users, timeline.user
        self.neighbors, self.similar = timeline.neighbors, timeline.similar

    def num_rows(self, query: Query) -> int:
        """Of a timeline as many as there may be candidates."""
        if isinstance(query, RankQuery):
            return len(query.post_ids)
        return self._timeline.config.num_in_network + self._timeline.config.num_out_of_network

    def describe(self) -> Mapping[str, Any]:
        """Tasks, weights and factors."""
        config = self._timeline.config
        return {
            "tasks": self.tasks,
            "weights": self.weights,
            "presets": WEIGHT_PRESETS,
            "author_diversity": config.author_diversity,
            "out_of_network_factor": config.out_of_network_factor,
            "now": self._timeline.bundle.manifest.now,
            "version": self.version,
        }

    def map(self) -> Mapping[str, Any]:
        """Users and posts in the plane, in columns."""
        points = self._timeline.bundle.map()
        posts = points.filter(pc.equal(points["kind"], "post"))
        topics = [self._timeline.post(post)["topic"] for post in posts["id"].to_pylist()]
        return {
            "method": "t-SNE",
            "users": _columns(points.filter(pc.equal(points["kind"], "user"))),
            "posts": {**_columns(posts), "topic": topics},
        }

    def metrics(self) -> Mapping[str, Any]:
        """What was attached to the bundle."""
        return self._timeline.bundle.metrics() or {}


def open_bundle(bundle: Path) -> BundleTimeline:
    """What a bundle holds. Raises ``DataError`` for what is none, or is damaged."""
    return warmed_up(Timeline.open(bundle))


def warmed_up(timeline: Timeline) -> BundleTimeline:
    """Ready to answer; a timeline that cannot rank is found before anybody asks."""
    first = timeline.users("", 1)
    timeline.answer([TimelineQuery(user["id"], k=1) for user in first])
    return BundleTimeline(timeline)


def _columns(points: pa.Table) -> dict[str, list[Any]]:
    x, y = (pc.round(points[axis].cast(pa.float64()), _MAP_DIGITS).to_pylist() for axis in ("x", "y"))
    return {"id": points["id"].to_pylist(), "x": x, "y": y}
