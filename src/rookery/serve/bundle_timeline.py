"""A bundle's timeline, as the service asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic_core import to_json

from rookery.errors import DataError
from rookery.timeline.bundle import METRICS
from rookery.timeline.config import WEIGHT_PRESETS
from rookery.timeline.posts import Query, RankQuery, TimelineQuery
from rookery.timeline.timeline import Timeline

_MAP_DIGITS = 4

MAX_POINTS = 200_000
"""Of the map; 6 MB of JSON. Of more, every n-th is shown."""

MAX_METRICS_BYTES = 16_777_216
"""Of ``metrics.json``, which holds whatever was attached."""


class BundleTimeline:
    """Answers from one bundle. Nothing is read after it was made: by then another bundle may lie in the folder."""

    def __init__(self, timeline: Timeline) -> None:
        """Raises ``DataError`` for metrics that are too large or no JSON."""
        self._timeline = timeline
        points = timeline.bundle.map()
        self._map, self._metrics = _encoded(_map(timeline, points)), _encoded(_metrics(timeline))
        self.example = _example(timeline, points)
        self.version, self.tasks, self.weights = timeline.version, timeline.tasks, timeline.weights
        self.answer = timeline.answer
        self.candidates, self.users, self.user = timeline.candidates, timeline.users, timeline.user

    def num_rows(self, query: Query) -> int:
        """Of a timeline as many as there may be candidates."""
        if isinstance(query, RankQuery):
            return len(query.post_ids)
        return self._timeline.config.num_in_network + self._timeline.config.num_out_of_network

    def neighbors(self, user_id: str, k: int) -> Sequence[Mapping[str, Any]]:
        """Users near a user; without the number of the query that found them: there is one."""
        return [{"id": each.id, "score": each.score} for each in self._timeline.neighbors(user_id, k)]

    def similar(self, post_id: str, k: int) -> Sequence[Mapping[str, Any]]:
        """Posts near a post."""
        return [{"id": each.id, "score": each.score} for each in self._timeline.similar(post_id, k)]

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

    def map(self) -> bytes:
        """Users and posts in the plane, in columns."""
        return self._map

    def metrics(self) -> bytes:
        """What was attached to the bundle before it was opened."""
        return self._metrics


def open_bundle(bundle: Path) -> BundleTimeline:
    """What a bundle holds. Raises ``DataError`` for what is none, or is damaged."""
    return warmed_up(Timeline.open(bundle))


def warmed_up(timeline: Timeline) -> BundleTimeline:
    """Ready to answer; a timeline that cannot rank is found before anybody asks."""
    first = timeline.users("", 1)
    timeline.answer([TimelineQuery(user["id"], k=1) for user in first])
    return BundleTimeline(timeline)


def _example(timeline: Timeline, points: pa.Table) -> Mapping[str, str]:
    """The first of each kind that has a vector, else the first that there is."""
    catalog = timeline.catalog
    ids = pa.concat_arrays([points["id"].combine_chunks(), catalog.user_ids[:1], catalog.post_ids[:1]])
    kinds = [*points["kind"].to_pylist(), "user", "post"]
    return {f"{kind}_id": ids[kinds.index(kind)].as_py() for kind in ("user", "post")}


def _map(timeline: Timeline, points: pa.Table) -> Mapping[str, Any]:
    points = points.take(np.arange(0, len(points), max(-(-len(points) // MAX_POINTS), 1)))
    posts = points.filter(pc.equal(points["kind"], "post"))
    topics = [timeline.post(post)["topic"] for post in posts["id"].to_pylist()]
    return {
        "method": "t-SNE",
        "users": _columns(points.filter(pc.equal(points["kind"], "user"))),
        "posts": {**_columns(posts), "topic": topics},
    }


def _metrics(timeline: Timeline) -> Mapping[str, Any]:
    file = timeline.bundle.path / METRICS
    if file.exists() and (size := file.stat().st_size) > MAX_METRICS_BYTES:
        raise DataError(f"{file}: {size:,} bytes; attach at most {MAX_METRICS_BYTES:,}")
    return timeline.bundle.metrics() or {}


def _encoded(value: Any) -> bytes:
    return to_json(value, inf_nan_mode="null")


def _columns(points: pa.Table) -> dict[str, list[Any]]:
    x, y = (pc.round(points[axis].cast(pa.float64()), _MAP_DIGITS).to_pylist() for axis in ("x", "y"))
    return {"id": points["id"].to_pylist(), "x": x, "y": y}
