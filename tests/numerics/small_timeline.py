"""A catalog drawn at random, vectors and a ranker for it, and the bundle that they make."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rookery.config.loader import parse_config
from rookery.data.adjacency import Adjacency
from rookery.data.catalog import Catalog
from rookery.data.catalog_counts import COUNTED, NUM_RECENT, Counts, Posts
from rookery.data.catalog_features import Snapshot
from rookery.data.engagements import ENGAGEMENTS
from rookery.data.graph import Vocabulary
from rookery.ranker.build import build_model, build_preprocessor
from rookery.ranker.config import RankerConfig
from rookery.ranker.export import write_export as write_ranker
from rookery.ranker.export_proof import read_proof_rows
from rookery.ranker.inputs import INPUTS, Inputs
from rookery.ranker.run import LoadedRun
from rookery.timeline.bundle import build_bundle
from rookery.timeline.config import TimelineConfig
from rookery.twhin.embeddings import Embeddings, ScoredRelation
from rookery.twhin.export import write_export as write_vectors
from rookery.types import Side

NUM_USERS, NUM_POSTS, NUM_TOPICS, DIM = 50, 400, 6, 8
HOUR_US = 3_600_000_000
NOW_US = 1_700_006_400_000_000  # 2023-11-15 00:00 UTC
LONELY, SILENT, MISSING = 0, 1, 2
"""Users that follow nobody; have no history; have no history and no vector."""


def small_catalog(seed: int = 0, num_posts: int = NUM_POSTS) -> Catalog:
    """Posts of the last four days; about five follows, ten seen posts, one muted author a user."""
    rng = np.random.default_rng(seed)
    follows = _pairs(rng, 5 * NUM_USERS, NUM_USERS, without=LONELY)
    authors = rng.integers(0, NUM_USERS, num_posts)
    authors[::50] = MISSING  # of these neither post nor author has a vector
    posts = Posts(
        authors=authors,
        topics=rng.integers(0, NUM_TOPICS, num_posts).astype(np.int16),
        media=rng.integers(0, 3, num_posts).astype(np.int8),
        lengths=rng.integers(1, 280, num_posts).astype(np.int16),
        created_us=np.sort(NOW_US - rng.integers(0, 96 * HOUR_US, num_posts)),
    )
    recent = rng.integers(0, num_posts, (NUM_USERS, NUM_RECENT)).astype(np.int32)
    recent[rng.random(recent.shape) < 0.2] = -1
    recent[[SILENT, MISSING]] = -1
    snapshot = Snapshot(
        user_ids=pa.array([f"user_{row}" for row in range(NUM_USERS)]),
        joined_us=NOW_US - rng.integers(0, 1000 * 24 * HOUR_US, NUM_USERS),
        follows=follows,
        post_ids=pa.array([f"post_{row}" for row in range(num_posts)]),
        posts=posts,
        counts=_counts(rng, posts, len(follows.values), recent),
    )
    topics = tuple(f"topic_{row}" for row in range(NUM_TOPICS))
    seen = Adjacency.of_pairs(rng.integers(0, NUM_USERS, 500), rng.integers(0, num_posts, 500), NUM_USERS)
    return Catalog(NOW_US, topics, snapshot, seen, _pairs(rng, NUM_USERS, NUM_USERS))


def _pairs(rng: np.random.Generator, num_pairs: int, num_users: int, without: int = -1) -> Adjacency:
    rows = rng.integers(0, num_users, num_pairs)
    kept = rows != without
    return Adjacency.of_pairs(rows[kept], rng.integers(0, num_users, num_pairs)[kept], num_users)


def _counts(rng: np.random.Generator, posts: Posts, num_follows: int, recent: np.ndarray) -> Counts:
    def table(*rows: int) -> np.ndarray:
        impressions = rng.integers(0, 200, (*rows, 1))
        return np.concatenate([impressions, rng.binomial(impressions, 0.1, (*rows, len(COUNTED)))], axis=-1)

    return Counts(
        users=table(NUM_USERS).astype(np.int32),
        authors=table(NUM_USERS).astype(np.int32),
        posts=table(len(posts)).astype(np.int32),
        topics=table(NUM_TOPICS).astype(np.int64),
        user_topics=table(NUM_USERS, NUM_TOPICS)[..., :2].astype(np.int32),
        follows=table(num_follows)[:, :2].astype(np.int32),
        recent=recent,
    )


def small_embeddings(comparator: str = "dot", num_posts: int = NUM_POSTS) -> Embeddings:
    """Vectors of all users but ``MISSING``, and of nine posts in ten."""
    generator = torch.Generator().manual_seed(1)
    relations = (
        ScoredRelation("follow", "user", "user", "translation"),
        ScoredRelation("favorite", "user", "post", "translation"),
    )
    parameters = {(number, side): torch.randn(DIM, generator=generator) for number in range(2) for side in [Side.RHS]}
    parameters |= {(number, Side.LHS): vector for (number, _), vector in parameters.items()}
    rows = {
        "user": torch.randn(NUM_USERS - 1, DIM, generator=generator),
        "post": torch.randn(len(post_names(num_posts)), DIM, generator=generator),
    }
    return Embeddings(relations, comparator, "lhs", rows, parameters)  # type: ignore[arg-type]


def post_names(num_posts: int = NUM_POSTS) -> list[str]:
    """The posts that have a vector, in the order of the vectors: not that of the catalog."""
    return [f"post_{row}" for row in reversed(range(num_posts)) if row % 10]


def user_names() -> list[str]:
    return [f"user_{row}" for row in range(NUM_USERS) if row != MISSING]


def write_twhin(out: Path, comparator: str = "dot", num_posts: int = NUM_POSTS) -> Path:
    names = {"user": user_names(), "post": post_names(num_posts)}
    vocabularies = {name: Vocabulary(name, pa.table({"id": ids})) for name, ids in names.items()}
    embeddings = small_embeddings(comparator, num_posts)
    write_vectors(embeddings, vocabularies, out, run="run", step=1, overwrite=False)
    return out


def write_vectors_of(
    out: Path, catalog: Catalog, *, num_users: int | None = None, num_posts: int | None = None
) -> Path:
    """Random vectors of all users and posts of any catalog, or of the first ones."""
    generator = torch.Generator().manual_seed(2)
    ids = {"user": catalog.user_ids[:num_users], "post": catalog.post_ids[:num_posts]}
    rows = {name: torch.randn(len(names), DIM, generator=generator) for name, names in ids.items()}
    embeddings = dataclasses.replace(small_embeddings(), rows=rows)
    vocabularies = {name: Vocabulary(name, pa.table({"id": names})) for name, names in ids.items()}
    write_vectors(embeddings, vocabularies, out, run="run", step=1, overwrite=False)
    return out


def write_small_ranker(out: Path, catalog: Catalog, twhin: Path | None, seed: int = 3) -> Path:
    """An export of a ranker whose parameters are random; with TwHIN's vectors of user and author if given."""
    log = out.with_name(f"{out.name}-log.parquet")
    pq.write_table(_log(catalog), log)
    settings = _settings(log, out.with_name(f"{out.name}-run"), twhin, len(catalog.topic_names))
    config = parse_config(RankerConfig, settings, "test")
    run = config.with_whole_paths()
    folder = Path(run.training.save_dir)
    inputs = Inputs.build(run)
    inputs.write(folder / INPUTS)
    preprocessor = build_preprocessor(run, inputs)
    model = build_model(run, preprocessor, inputs, torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in model.tensors().items():
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator) * 0.15
            tensor.copy_(drawn.abs() + 0.5 if key.endswith("running_var") else drawn)
    loaded = LoadedRun(folder, run, 5, model.eval(), preprocessor)
    write_ranker(loaded, out, "torch", read_proof_rows(loaded, None), overwrite=False)
    return out


def _log(catalog: Catalog) -> pa.Table:
    rng = np.random.default_rng(5)
    users, posts = rng.integers(0, len(catalog.user_ids), 300), rng.integers(0, len(catalog.posts), 300)
    columns = catalog.features(users, posts, np.full(300, catalog.now_us))
    labels = {name: rng.integers(0, 2, 300).astype(np.int8) for name in ENGAGEMENTS}
    return pa.table({**columns, **labels, "position": rng.integers(0, 9, 300).astype(np.int8)})


def _settings(log: Path, save_dir: Path, twhin: Path | None, num_topics: int) -> dict[str, Any]:
    tower = {"mlp_config": {"layer_sizes": [8, 1]}}
    joined = [
        {"name": name, "export": str(twhin), "table": "user", "key": key}
        for name, key in (("user_vector", "user_id"), ("author_vector", "author_id"))
    ]
    return {
        "training": {"save_dir": str(save_dir), "num_train_steps": 1},
        "labels": {task: {} for task in ENGAGEMENTS},
        "keys": {"user": "user_id", "item": "post_id", "position": "position"},
        "features": {
            "continuous": [{"name": "post_age_hours"}, {"name": "post_favorite_rate"}, {"name": "user_impressions"}],
            "binary": [{"name": "in_network"}],
            "discrete": [{"name": "post_media", "table": "media"}, {"name": "post_topic", "table": "topics"}],
            "ragged": [{"name": "recent_topics", "table": "topics", "max_length": 5}],
            "tables": [
                {"name": "media", "embedding_dim": 3, "vocabulary": {}},
                {"name": "topics", "embedding_dim": 4, "num_embeddings": num_topics},
            ],
            "embeddings": joined if twhin is not None else [],
        },
        "train_data": {"inputs": [str(log)], "batch_size": 64},
        "validation_data": {"valid": {"inputs": [str(log)]}},
        "model": {
            "backbone": {"mlp_config": {"layer_sizes": [16]}},
            "tasks": dict.fromkeys(reversed(ENGAGEMENTS), tower),
        },
        "optimizer": {"adam": {}, "single_task_learning_rate": {"constant": 0.01}},
    }


@dataclass(frozen=True)
class SmallParts:
    """Folders of what a bundle is made of, and a second ranker that knows no vectors."""

    folder: Path
    catalog: Path
    twhin: Path
    ranker: Path
    ranker_without: Path

    def build(self, out: Path, **changes: Any) -> Path:
        """A bundle with these changes of the configuration."""
        config = parse_config(TimelineConfig, {"num_in_network": 20, "num_out_of_network": 30, **changes}, "test")
        build_bundle(out, catalog=self.catalog, ranker=self.ranker, twhin=self.twhin, config=config)
        return out


def write_parts(folder: Path) -> SmallParts:
    catalog = small_catalog()
    catalog.write(folder / "catalog")
    twhin = write_twhin(folder / "twhin")
    return SmallParts(
        folder,
        folder / "catalog",
        twhin,
        write_small_ranker(folder / "ranker", catalog, twhin),
        write_small_ranker(folder / "ranker-without", catalog, None, seed=4),
    )
