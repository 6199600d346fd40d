"""KuaiRand: what 26,469 users of a short-video service watched, liked and watched at length before 25 April 2022.

Download: https://kuairand.com (KuaiRand-Pure; Gao et al., "KuaiRand: An unbiased sequential recommendation dataset with
randomly exposed videos", CIKM 2022). The adapter reads one Parquet file, user_sequences_before_20220425.parquet: a row
a user with user_id and the lists watch_seq, like_seq and long_watch_seq of video ids. Its edges end before the first
impression of KuaiRand's later logs, so vectors trained on them are leak-free features there.
Licence: CC BY-SA 4.0.
"""

from __future__ import annotations

from pathlib import Path

from rookery.data.adapters.edge_lists import MAPPING, Prepared, finish, write_query
from rookery.data.adapters.kuairand_files import DOWNLOAD, sequences_file
from rookery.data.ingest import Resources, open_database
from rookery.data.ingest_sources import literal
from rookery.data.staging import staged

__all__ = ["DOWNLOAD", "prepare"]

_SEQUENCES = {"watch": "watch_seq", "like": "like_seq", "long_watch": "long_watch_seq"}

_MAPPING = """\
# KuaiRand histories: the videos that a user watched, liked, watched at length, in the order of the user's lists.
entity_types:
  user: {id_type: int64}
  video: {id_type: int64}
relations:
  - {name: watch, lhs: user, rhs: video}
  - {name: like, lhs: user, rhs: video}
  - {name: long_watch, lhs: user, rhs: video}
sources:
  - {files: watch.parquet, relation: watch}
  - {files: like.parquet, relation: like}
  - {files: long_watch.parquet, relation: long_watch}
# A random split keeps all edges of a user and a video together: a held-out like is not given away by its watch.
split:
  random: {valid: 0.05, test: 0.05}
"""


def prepare(src: Path, out: Path, *, overwrite: bool = False) -> Prepared:
    """Turn the sequences in ``src`` into ``out``, an edge for each entry of a list. Raises ``DataError``."""
    file = sequences_file(src)
    with (
        staged(out, overwrite=overwrite, marker=MAPPING) as staging,
        open_database(staging.scratch, Resources()) as db,
    ):
        for name, column in _SEQUENCES.items():
            query = f"SELECT user_id AS lhs, unnest({column}) AS rhs FROM read_parquet({literal(str(file))})"
            write_query(db, query, staging.folder / f"{name}.parquet")
        return finish(staging.folder, _MAPPING, out)
