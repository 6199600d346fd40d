"""A small generated graph whose right answer is known: users and items in planted communities.

An edge stays inside the lhs user's community with probability ``p_inside`` and goes anywhere with ``1 - p_inside``; on
either side entities are drawn by a heavy-tailed activity. So the probability of every rhs, given lhs and relation, is
known: ``p_inside · a(rhs)/A(community) · [same community] + (1 - p_inside) · a(rhs)/A(all)`` with the activities ``a``
of truth.parquet (repeated edges are kept once, which flattens the most active pairs a little).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rookery.data.adapters.edge_lists import MAPPING
from rookery.data.staging import staged
from rookery.errors import DataError

# Name, entity type of the rhs (the lhs is a user), share of the edges that are drawn.
RELATIONS = (("follow", "user", 0.3), ("like", "item", 0.5), ("repost", "item", 0.2))

_MAPPING = """\
# A generated graph with planted communities; truth.parquet has the community and the activity of every entity.
relations:
  - {name: follow, lhs: user, rhs: user}
  - {name: like, lhs: user, rhs: item}
  - {name: repost, lhs: user, rhs: item}
sources:
  - {files: edges.tsv}
split:
  random: {valid: 0.05, test: 0.05}
"""


@dataclass(frozen=True)
class PlantedConfig:
    """Sizes of a planted graph. ``num_edges`` are drawn; ``tail`` is the Zipf exponent of activity by rank."""

    num_users: int = 2000
    num_items: int = 3000
    num_communities: int = 20
    num_edges: int = 120_000
    p_inside: float = 0.9
    tail: float = 0.7
    seed: int = 0


@dataclass(frozen=True)
class Population:
    """One entity type: the community and the activity (a probability) of each entity, both ``[entities]``."""

    communities: NDArray[np.int64]
    activity: NDArray[np.float64]

    def draw(self, rng: np.random.Generator, size: int) -> NDArray[np.int64]:
        """Entities ``[size]`` by activity."""
        return rng.choice(len(self.activity), size=size, p=self.activity)

    def draw_inside(self, rng: np.random.Generator, communities: NDArray[np.int64]) -> NDArray[np.int64]:
        """One entity of each given community ``[draws]``, by activity: the inverse of its cumulative sum."""
        order = np.argsort(self.communities, kind="stable")
        cumulative = np.concatenate(([0.0], np.cumsum(self.activity[order])))
        bounds = np.searchsorted(self.communities[order], np.arange(self.communities.max() + 2))
        first, last = bounds[communities], bounds[communities + 1]
        low, high = cumulative[first], cumulative[last]
        position = np.searchsorted(cumulative, low + rng.random(len(low)) * (high - low), side="right") - 1
        drawn: NDArray[np.int64] = order[np.clip(position, first, last - 1)]  # rounding may step over the end
        return drawn


def write_planted(config: PlantedConfig, out: Path, *, overwrite: bool = False) -> int:
    """Write edges.tsv, truth.parquet and ingest.yaml to ``out``; returns the number of edges.

    truth.parquet: entity_type and id (strings), community (int64), activity (float64, sums to 1 a type). The same
    config gives the same bytes. Raises ``DataError`` for sizes that cannot be.
    """
    _check(config)
    rng = np.random.default_rng(config.seed)
    populations = {
        "user": _populate(rng, config.num_users, config),
        "item": _populate(rng, config.num_items, config),
    }
    edges = _draw_edges(rng, config, populations)
    with staged(out, overwrite=overwrite, marker=MAPPING) as staging:
        _write_tsv(edges, staging.folder / "edges.tsv")
        pq.write_table(_truth(populations), staging.folder / "truth.parquet")
        (staging.folder / MAPPING).write_text(_MAPPING, encoding="utf-8")
    return len(edges)


def _check(config: PlantedConfig) -> None:
    smallest = min(config.num_users, config.num_items)
    if not 1 <= config.num_communities <= smallest:
        raise DataError(f"num_communities={config.num_communities}: must be from 1 to {smallest}, one entity each")
    if not 0 <= config.p_inside <= 1:
        raise DataError(f"p_inside={config.p_inside:g}: must be a probability, from 0 to 1")
    if config.num_edges < 1:
        raise DataError(f"num_edges={config.num_edges}: must be at least 1")


def _populate(rng: np.random.Generator, size: int, config: PlantedConfig) -> Population:
    activity = rng.permutation(np.arange(1, size + 1, dtype=np.float64) ** -config.tail)
    return Population(rng.permutation(np.arange(size) % config.num_communities), activity / activity.sum())


def _draw_edges(
    rng: np.random.Generator, config: PlantedConfig, populations: Mapping[str, Population]
) -> NDArray[np.int64]:
    """Distinct edges ``[edges, 3]`` in random order: relation, lhs, rhs. Nobody follows oneself."""
    drawn = []
    for number, (_, rhs_type, share) in enumerate(RELATIONS):
        size = max(1, round(share * config.num_edges))
        lhs = populations["user"].draw(rng, size)
        inside = rng.random(size) < config.p_inside
        rhs = populations[rhs_type].draw(rng, size)
        rhs[inside] = populations[rhs_type].draw_inside(rng, populations["user"].communities[lhs[inside]])
        edges = np.stack((np.full(size, number), lhs, rhs), axis=1)
        drawn.append(edges[lhs != rhs] if rhs_type == "user" else edges)
    return rng.permutation(np.unique(np.concatenate(drawn), axis=0))


def _write_tsv(edges: NDArray[np.int64], file: Path) -> None:
    names = np.array([name for name, _, _ in RELATIONS])
    rhs_types = np.array([f"{rhs_type}_" for _, rhs_type, _ in RELATIONS])
    columns = {
        "lhs": np.char.add("user_", edges[:, 1].astype(str)),
        "relation": names[edges[:, 0]],
        "rhs": np.char.add(rhs_types[edges[:, 0]], edges[:, 2].astype(str)),
    }
    options = pyarrow.csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    pyarrow.csv.write_csv(pa.table(columns), file, options)


def _truth(populations: Mapping[str, Population]) -> pa.Table:
    return pa.concat_tables(
        pa.table(
            {
                "entity_type": pa.array([name] * len(population.activity)),
                "id": pa.array([f"{name}_{number}" for number in range(len(population.activity))]),
                "community": population.communities,
                "activity": population.activity,
            }
        )
        for name, population in populations.items()
    )
