"""What a service knows of its users and posts at a moment: who follows whom, what was shown, what was counted.

The log of a simulated world and a service that ranks for it take their features from the same code, so what a model
learned from the one holds in the other. A catalog is a folder: catalog.json, users.parquet and posts.parquet with the
ids, arrays.safetensors with everything else.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rookery.config.base import StrictModel
from rookery.config.suggest import did_you_mean
from rookery.data.adjacency import Adjacency
from rookery.data.catalog_counts import Counts, Posts
from rookery.data.catalog_features import MEDIA, Columns, Rows, Snapshot
from rookery.data.manifest import read_manifest
from rookery.errors import DataError, UnknownId

__all__ = ["MEDIA", "Catalog"]

MANIFEST = "catalog.json"
_ARRAYS = "arrays.safetensors"
_COLUMNS = {"posts": Posts, "counts": Counts}
_PAIRS = ("follows", "seen", "muted")
_FORMAT: Literal[1] = 1
_AGAIN = "write the catalog again"
_NEAR_IDS = 50
_LONGEST_ID = 32


class CatalogManifest(StrictModel):
    """``catalog.json``."""

    kind: Literal["catalog"] = "catalog"
    format: Literal[1] = _FORMAT
    now_us: int
    topic_names: tuple[str, ...]
    num_users: int
    num_posts: int


@dataclass(frozen=True)
class Catalog:
    """``snapshot`` with all features; posts shown to each user in the last days; authors each user has rejected."""

    now_us: int
    """Microseconds since 1970-01-01 UTC; all that is known was known then."""
    topic_names: tuple[str, ...]
    snapshot: Snapshot
    seen_posts: Adjacency
    muted_authors: Adjacency

    @property
    def user_ids(self) -> pa.StringArray:
        """The id of each row of users."""
        return self.snapshot.user_ids

    @property
    def post_ids(self) -> pa.StringArray:
        """The id of each row of posts."""
        return self.snapshot.post_ids

    @property
    def posts(self) -> Posts:
        """Authors, topics, media, lengths and times of creation, oldest first."""
        return self.snapshot.posts

    @property
    def counts(self) -> Counts:
        """What was counted up to the midnight before."""
        return self.snapshot.counts

    @property
    def followers(self) -> Rows:
        """How many follow each user ``[users]``."""
        return self.snapshot.followers

    @cached_property
    def _user_rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.user_ids.to_pylist())}

    @cached_property
    def _post_rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.post_ids.to_pylist())}

    @cached_property
    def _posts_by_author(self) -> Adjacency:
        return Adjacency.in_order(self.posts.authors, len(self.user_ids))

    def user_row(self, user_id: str) -> int:
        """The row of a user. Raises ``UnknownId``."""
        row = self._user_rows.get(user_id)
        if row is None:
            raise UnknownId(f"user {user_id!r} is not known; {_near(user_id, self.user_ids)}")
        return row

    def post_row(self, post_id: str) -> int:
        """The row of a post. Raises ``UnknownId``."""
        row = self._post_rows.get(post_id)
        if row is None:
            raise UnknownId(f"post {post_id!r} is not known; {_near(post_id, self.post_ids)}")
        return row

    def followed(self, user_row: int) -> Rows:
        """The rows of the authors whom a user follows, sorted."""
        return self.snapshot.follows.row(user_row)

    def posts_of(self, author_row: int) -> Rows:
        """The rows of an author's posts, newest first."""
        return self._posts_by_author.row(author_row)[::-1]

    def seen(self, user_row: int) -> Rows:
        """The rows of the posts that a user was shown in the last days, sorted."""
        return self.seen_posts.row(user_row)

    def muted(self, user_row: int) -> Rows:
        """The rows of the authors on whose posts a user gave negative feedback, sorted."""
        return self.muted_authors.row(user_row)

    def features(
        self,
        users: Rows,
        posts: Rows,
        times_us: Rows,
        *,
        shown_today: Rows | None = None,
        author_repeats: Rows | None = None,
    ) -> Columns:
        """The feature columns of pairs, as ``Snapshot.features`` says."""
        return self.snapshot.features(users, posts, times_us, shown_today=shown_today, author_repeats=author_repeats)

    def write(self, folder: Path) -> None:
        """Write the files into ``folder``, which is made."""
        folder.mkdir(parents=True)
        manifest = CatalogManifest(
            now_us=self.now_us,
            topic_names=self.topic_names,
            num_users=len(self.user_ids),
            num_posts=len(self.post_ids),
        )
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        pq.write_table(pa.table({"user_id": self.user_ids}), folder / "users.parquet")
        pq.write_table(pa.table({"post_id": self.post_ids}), folder / "posts.parquet")
        save_file(self._arrays(), folder / _ARRAYS)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {"users.joined_us": self.snapshot.joined_us}
        for name, part in (("posts", self.posts), ("counts", self.counts)):
            arrays |= {f"{name}.{field.name}": getattr(part, field.name) for field in fields(part)}
        for name, pairs in zip(_PAIRS, (self.snapshot.follows, self.seen_posts, self.muted_authors), strict=True):
            arrays |= {f"{name}.offsets": pairs.offsets, f"{name}.values": pairs.values}
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}

    @staticmethod
    def open(folder: Path) -> Catalog:
        """Read a catalog. Raises ``DataError`` for a folder that is none, of another format or damaged."""
        manifest = read_manifest(
            CatalogManifest,
            folder / MANIFEST,
            kind=f"a catalog of format {_FORMAT}",
            absent="name the catalog folder of a world or of a bundle",
            remedy=_AGAIN,
        )
        try:
            arrays = load_file(folder / _ARRAYS)
            users = pq.read_table(folder / "users.parquet").column("user_id").combine_chunks()
            posts = pq.read_table(folder / "posts.parquet").column("post_id").combine_chunks()
        except (OSError, KeyError, SafetensorError, pa.ArrowException) as error:
            raise DataError(f"{folder}: cannot be read ({error}); {_AGAIN}") from error
        _require_arrays(folder / _ARRAYS, arrays)
        for name, column, expected in (
            ("users.parquet", users, manifest.num_users),
            ("posts.parquet", posts, manifest.num_posts),
            (_ARRAYS, arrays["users.joined_us"], manifest.num_users),
            (_ARRAYS, arrays["posts.authors"], manifest.num_posts),
        ):
            if len(column) != expected:
                raise DataError(f"{folder / name}: {len(column):,} rows, {MANIFEST} says {expected:,}; {_AGAIN}")
        snapshot = Snapshot(
            user_ids=users,
            joined_us=arrays["users.joined_us"],
            follows=_pairs(arrays, "follows"),
            post_ids=posts,
            posts=Posts(**_part(arrays, "posts")),
            counts=Counts(**_part(arrays, "counts")),
        )
        seen, muted = _pairs(arrays, "seen"), _pairs(arrays, "muted")
        return Catalog(manifest.now_us, manifest.topic_names, snapshot, seen, muted)


def _require_arrays(file: Path, arrays: dict[str, NDArray[Any]]) -> None:
    wanted = {"users.joined_us", *(f"{name}.{part}" for name in _PAIRS for part in ("offsets", "values"))}
    wanted |= {f"{name}.{field.name}" for name, part in _COLUMNS.items() for field in fields(part)}
    if absent := sorted(wanted - arrays.keys()):
        raise DataError(f"{file}: lacks {', '.join(absent)}; {_AGAIN}")


def _part(arrays: dict[str, NDArray[Any]], name: str) -> dict[str, NDArray[Any]]:
    return {key.removeprefix(f"{name}."): array for key, array in arrays.items() if key.startswith(f"{name}.")}


def _pairs(arrays: dict[str, NDArray[Any]], name: str) -> Adjacency:
    return Adjacency(arrays[f"{name}.offsets"], arrays[f"{name}.values"])


def _near(wanted: str, ids: pa.StringArray) -> str:
    """A suggestion among the ids that begin most like it: a comparison with all of them would take seconds."""
    wanted = wanted.encode(errors="replace").decode()  # an argument of the command line may be no text: Arrow's must be
    for length in range(min(len(wanted), _LONGEST_ID), -1, -1):
        alike = ids.filter(pc.starts_with(ids, wanted[:length]))
        if len(alike):
            break
    return did_you_mean(wanted, alike.slice(0, _NEAR_IDS).to_pylist())
