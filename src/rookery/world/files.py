"""The files of a world, written while it is generated: nothing larger than a chunk is held for them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import Self

from rookery.data.adapters.edge_lists import MAPPING
from rookery.data.catalog_features import Columns, Snapshot
from rookery.data.engagements import ENGAGEMENTS
from rookery.world.policy import POLICIES
from rookery.world.service import Chunk

RELATIONS = {"favorite": "is_favorited", "reply": "is_replied", "retweet": "is_retweeted"}
"""From user to post; ``follow`` goes from user to user."""

_ROWS_PER_GROUP = 65_536
_EDGE = pa.schema([pa.field("lhs", pa.string(), nullable=False), pa.field("rhs", pa.string(), nullable=False)])

_MAPPING = """\
# {what}
entity_types:
  user: {{}}
  post: {{}}
relations:
  - {{name: follow, lhs: user, rhs: user}}
  - {{name: favorite, lhs: user, rhs: post}}
  - {{name: reply, lhs: user, rhs: post}}
  - {{name: retweet, lhs: user, rhs: post}}
sources:
  - {{files: follow.parquet, relation: follow}}
  - {{files: favorite.parquet, relation: favorite}}
  - {{files: reply.parquet, relation: reply}}
  - {{files: retweet.parquet, relation: retweet}}
# A random split keeps all edges of a user and a post together: a held-out reply is not given away by its favourite.
split:
  random: {{valid: 0.05, test: 0.05}}
"""


class EdgeFolder:
    """A prepared folder of edges, for ``rookery twhin ingest``."""

    def __init__(self, folder: Path, what: str) -> None:
        folder.mkdir()
        (folder / MAPPING).write_text(_MAPPING.format(what=what), encoding="utf-8")
        self._files = ExitStack()
        self._writers = {name: self._open(folder, name) for name in ("follow", *RELATIONS)}
        self.num_edges = dict.fromkeys(self._writers, 0)

    def _open(self, folder: Path, name: str) -> pq.ParquetWriter:
        return self._files.enter_context(pq.ParquetWriter(folder / f"{name}.parquet", _EDGE, compression="zstd"))

    def add_follows(self, known: Snapshot) -> None:
        """Who follows whom, by follower."""
        users, authors = known.follows.owners(), known.follows.values
        for first in range(0, len(users), 1 << 20):
            part = slice(first, first + (1 << 20))
            self._write(
                "follow", known.user_ids.take(pa.array(users[part])), known.user_ids.take(pa.array(authors[part]))
            )

    def add(self, known: Snapshot, chunk: Chunk) -> None:
        """The engagements of impressions."""
        for relation, engagement in RELATIONS.items():
            rows = np.flatnonzero(chunk.labels[:, ENGAGEMENTS.index(engagement)])
            users = known.user_ids.take(pa.array(chunk.showing.users[rows]))
            self._write(relation, users, known.post_ids.take(pa.array(chunk.showing.posts[rows])))

    def _write(self, name: str, lhs: pa.Array, rhs: pa.Array) -> None:
        self._writers[name].write_table(pa.table([lhs, rhs], schema=_EDGE))
        self.num_edges[name] += len(lhs)

    def close(self) -> None:
        """End the files."""
        self._files.close()


class DayFiles:
    """impressions/day-NN.parquet and truth/day-NN.parquet of one day."""

    def __init__(self, folder: Path, day: int, first_id: int) -> None:
        self._log = _Growing(folder / "impressions" / f"day-{day:02}.parquet")
        self._truth = _Growing(folder / "truth" / f"day-{day:02}.parquet")
        self._next_id = first_id

    def add(self, known: Snapshot, chunk: Chunk) -> None:
        """Write impressions with their features and labels, and beside them their true probabilities."""
        showing = chunk.showing
        ids = self._next_id + np.arange(len(showing.users))
        features = known.features(
            showing.users,
            showing.posts,
            showing.times_us,
            shown_today=showing.shown_today,
            author_repeats=showing.author_repeats,
        )
        columns: Columns = {
            "impression_id": ids,
            "time": pa.array(showing.times_us, pa.timestamp("us", "UTC")),
            "position": showing.positions.astype(np.int8),
            **features,
            **{name: chunk.labels[:, place] for place, name in enumerate(ENGAGEMENTS)},
        }
        self._log.add(columns)
        self._truth.add(_truth(ids, chunk))
        self._next_id += len(ids)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.close()
        self._truth.close()


def _truth(ids: np.ndarray, chunk: Chunk) -> Columns:
    truth = {
        f"probability.{name}": chunk.probabilities[:, place].astype(np.float32)
        for place, name in enumerate(ENGAGEMENTS)
    }
    policies = pa.array(POLICIES).take(pa.array(chunk.policies))
    return {"impression_id": ids, "session": chunk.sessions, "policy": policies, **truth}


class _Growing:
    """A Parquet file to which columns are added, in row groups of one size."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._writer: pq.ParquetWriter | None = None

    def add(self, columns: Columns) -> None:
        table = pa.table(columns)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, table.schema, compression="zstd", compression_level=1)
        self._writer.write_table(table, row_group_size=_ROWS_PER_GROUP)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
