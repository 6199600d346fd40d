"""Everything that a timeline is served from, as one folder that appears whole or not at all.

BUNDLE/bundle.json     the manifest: what it was made of, and the sum of each file
BUNDLE/timeline.yaml   the configuration
BUNDLE/catalog/        what is known of users and posts
BUNDLE/ranker/         the export of the ranker
BUNDLE/twhin/          the export of TwHIN
BUNDLE/index/          an approximate index of the recent posts, where there are many
BUNDLE/map.parquet     users and recent posts in the plane: id, kind, x, y
BUNDLE/metrics.json    what was measured, if anything was; added later, so no sum stands for it
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ConfigDict

import rookery
from rookery.checkpoint.files import DamagedCheckpoint, file_sum, require_sum, write_atomically
from rookery.config.loader import dump_config, load_config
from rookery.data.catalog import Catalog
from rookery.data.graph import Vocabulary
from rookery.data.manifest import read_manifest as manifest_of
from rookery.data.staging import staged
from rookery.errors import DataError, UserError
from rookery.ranker.export import RankerExport
from rookery.timeline.config import TimelineConfig
from rookery.timeline.entities import iso_time
from rookery.timeline.map import Notify, draw_map, tell_nobody
from rookery.timeline.measurements import Measurements
from rookery.timeline.pool import RecentPosts
from rookery.timeline.retrieval import PostSearch, Vectors
from rookery.timeline.scorer import Scorer
from rookery.timeline.scoring import left_out_of, weight_vector, weights_for
from rookery.twhin.export import Export
from rookery.twhin.index import StoredIndex, build_index
from rookery.twhin.index_config import HnswConfig
from rookery.twhin.source import Source, open_source

MANIFEST, CONFIG, MAP, METRICS = "bundle.json", "timeline.yaml", "map.parquet", "metrics.json"
_CATALOG, _RANKER, _TWHIN, _INDEX = "catalog", "ranker", "twhin", "index"


class BundleManifest(BaseModel):
    """``bundle.json``. ``files`` holds size and crc32 of every file by its path inside the bundle."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    kind: Literal["rookery timeline bundle"] = "rookery timeline bundle"
    built_at: str
    """ISO 8601, UTC."""
    made_of: dict[str, str]
    """Where catalog, ranker and TwHIN were taken from."""
    versions: dict[str, str]
    now: str
    """The time of the catalog: ISO 8601, UTC."""
    tasks: tuple[str, ...]
    weights_left_out: tuple[str, ...] = ()
    """Tasks that the named set of weights has and the ranker does not predict."""
    num_users: int
    num_posts: int
    num_recent_posts: int
    num_users_with_vector: int
    num_recent_posts_with_vector: int
    files: dict[str, dict[str, int | str]]

    @property
    def version(self) -> str:
        """Eight hexadecimal digits that are others when a file is another."""
        return f"{zlib.crc32(json.dumps(self.files, sort_keys=True).encode()):08x}"


@dataclass(frozen=True)
class Bundle:
    """A bundle, opened and whole."""

    path: Path
    manifest: BundleManifest
    config: TimelineConfig
    catalog: Catalog
    ranker: RankerExport
    twhin: Source
    index: StoredIndex | None
    """None where the recent posts are few enough to be searched exactly."""

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Compare every file with its sum and load it. Raises ``DataError`` for what is no bundle, or is damaged."""
        manifest = read_manifest(path)
        for name, expected in manifest.files.items():
            try:
                require_sum(path / name, expected)
            except (OSError, DamagedCheckpoint) as error:
                raise DataError(f"{error}; the bundle is damaged: build it again") from error
        return cls(
            path,
            manifest,
            load_config(TimelineConfig, path / CONFIG),
            Catalog.open(path / _CATALOG),
            RankerExport.open(path / _RANKER),
            open_source(path / _TWHIN),
            StoredIndex.open(path / _INDEX) if any(name.startswith(f"{_INDEX}/") for name in manifest.files) else None,
        )

    def map(self) -> pa.Table:
        """Columns ``id``, ``kind`` (user or post), ``x``, ``y`` in [−1, 1]."""
        return pq.read_table(self.path / MAP)

    def require_catalog_of(self, other: Catalog, origin: Path) -> None:
        """Raise ``UserError`` unless ``other`` has the same users, and the same posts since the same moments."""
        own = self.catalog
        same_ids = own.user_ids.equals(other.user_ids) and own.post_ids.equals(other.post_ids)
        # Worlds of one size have the same ids; no two have posts of the same microseconds.
        if not same_ids or not np.array_equal(own.posts.created_us, other.posts.created_us):
            raise UserError(f"{self.path}: was built from another catalog than that of {origin}; name that world")

    def metrics(self) -> dict[str, Any] | None:
        """What ``attach_metrics`` wrote last. Raises ``DataError`` where the file has not the form of it."""
        file = self.path / METRICS
        if not file.exists():
            return None
        measured = manifest_of(
            Measurements,
            file,
            kind="what was measured",
            absent="attach the metrics again",
            remedy="attach the metrics again",
        )
        return measured.model_dump(mode="json", exclude_unset=True)


@dataclass(frozen=True)
class _Parts:
    """What a bundle is made of, opened and found to fit."""

    origins: Mapping[str, Path]
    config: TimelineConfig
    catalog: Catalog
    ranker: RankerExport
    twhin: Source
    vectors: Vectors
    recent: RecentPosts
    search: PostSearch


def build_bundle(
    out: Path,
    *,
    catalog: Path,
    ranker: Path,
    twhin: Path,
    config: TimelineConfig,
    overwrite: bool = False,
    notify: Notify = tell_nobody,
) -> BundleManifest:
    """Put a bundle together of a catalog and two exports.

    ``notify`` is told of the steps of the map, which takes longest: how many are done, of how many. Raises
    ``UserError`` where the three do not fit each other, or ``out`` exists and is not to be replaced.
    """
    parts = _open_parts({_CATALOG: catalog, _RANKER: ranker, _TWHIN: twhin}, config)
    with staged(out, overwrite=overwrite, marker=MANIFEST) as staging:
        folder = staging.folder
        for name, origin in parts.origins.items():
            shutil.copytree(origin, folder / name)
        (folder / CONFIG).write_text(dump_config(config), encoding="utf-8")
        if len(parts.search.places) > config.exact_search_up_to:
            _write_index(parts, folder / _INDEX)
        pq.write_table(draw_map(parts.vectors, parts.catalog, parts.recent, notify), folder / MAP)
        manifest = _manifest(parts, folder)
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return manifest


def _open_parts(origins: Mapping[str, Path], config: TimelineConfig) -> _Parts:
    catalog, ranker = Catalog.open(origins[_CATALOG]), RankerExport.open(origins[_RANKER])
    twhin = open_source(Export.open(origins[_TWHIN]).path)  # an export: a run is none
    tasks = Scorer(catalog, ranker).tasks
    weight_vector(weights_for(config.weights, tasks), tasks)
    recent = RecentPosts(catalog, config.max_age_hours)
    if not len(recent):
        raise DataError(f"{origins[_CATALOG]}: no post of the last {config.max_age_hours:g} hours; raise max_age_hours")
    vectors = Vectors(twhin, catalog, config.interests)
    parts = _Parts(origins, config, catalog, ranker, twhin, vectors, recent, PostSearch(vectors, recent, None))
    _require_vectors_of_the_catalog(parts)
    return parts


def _require_vectors_of_the_catalog(parts: _Parts) -> None:
    """A few ids in common are chance: half of those who ask, and of what can be found, must have vectors."""
    has_history = (parts.catalog.counts.recent >= 0).any(1)
    has_vector = parts.vectors.user_rows >= 0
    for known, wanted, whose in (
        (int((has_history & has_vector).sum()), int(has_history.sum()), "users with favourites"),
        (len(parts.search.places), len(parts.recent), "recent posts, by the post or its author,"),
    ):
        if 2 * known < wanted:
            raise DataError(
                f"{parts.origins[_TWHIN]}: has vectors of {known:,} of the {wanted:,} {whose} in "
                f"{parts.origins[_CATALOG]}, fewer than half; name the export of a run that was trained on the edges "
                "of the same users and posts"
            )


def _write_index(parts: _Parts, folder: Path) -> None:
    """Of the vectors that are searched, in their order."""
    post_type, source, search = parts.vectors.post_type, parts.twhin, parts.search
    ids = parts.catalog.post_ids.take(pa.array(parts.recent.rows[search.places]))
    searched = replace(
        source,
        embeddings=replace(source.embeddings, rows={**source.embeddings.rows, post_type: search.table}),
        vocabularies={**source.vocabularies, post_type: Vocabulary(post_type, pa.table({"id": ids}))},
    )
    build_index(searched, post_type, HnswConfig(), folder, metric=parts.vectors.metric)


def _manifest(parts: _Parts, folder: Path) -> BundleManifest:
    return BundleManifest(
        built_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        made_of={name: str(origin) for name, origin in parts.origins.items()},
        versions={"rookery": rookery.__version__, "torch": str(torch.__version__)},
        now=iso_time(parts.catalog.now_us),
        tasks=parts.ranker.tasks,
        weights_left_out=left_out_of(parts.config.weights, parts.ranker.tasks),
        num_users=len(parts.catalog.user_ids),
        num_posts=len(parts.catalog.post_ids),
        num_recent_posts=len(parts.recent),
        num_users_with_vector=int((parts.vectors.user_rows >= 0).sum()),
        num_recent_posts_with_vector=int((parts.vectors.post_rows[parts.recent.rows] >= 0).sum()),
        files=_sums(folder),
    )


def attach_metrics(bundle: Path, metrics: Mapping[str, Any]) -> None:
    """Put what was measured beside a bundle: what has the form of ``Measurements``, else ``ValueError`` is raised."""
    read_manifest(bundle)
    text = json.dumps(metrics, indent=1, allow_nan=False) + "\n"
    Measurements.model_validate_json(text)
    write_atomically(bundle / METRICS, text)


def read_manifest(bundle: Path) -> BundleManifest:
    """Raises ``DataError`` if ``bundle`` is none, or one of another version of the format."""
    return manifest_of(
        BundleManifest,
        bundle / MANIFEST,
        kind="a bundle of format version 1",
        absent="name the folder that 'rookery timeline build OUT' wrote",
        remedy="build it again",
    )


def _sums(folder: Path) -> dict[str, dict[str, int | str]]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file_sum(file) for file in files}
