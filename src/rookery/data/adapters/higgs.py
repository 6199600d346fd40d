"""Higgs: 563,069 retweets, mentions and replies on Twitter around 4 July 2012, each with its second.

Download: https://snap.stanford.edu/data/higgs-twitter.html, file higgs-activity_time.txt.gz (De Domenico, Lima,
Mougel & Musolesi, "The anatomy of a scientific rumor", Scientific Reports 2013).
Licence: none is stated by SNAP.
"""

from __future__ import annotations

from pathlib import Path

from rookery.data.adapters.edge_lists import MAPPING, Prepared, find_raw, finish, write_query
from rookery.data.ingest import Resources, load, open_database
from rookery.data.ingest_config import ColumnsConfig, EntityTypeConfig, IngestConfig, RelationSpec, SourceConfig
from rookery.data.ingest_sources import resolve_sources
from rookery.data.staging import staged

DOWNLOAD = "https://snap.stanford.edu/data/higgs-twitter.html"

_FILE = "higgs-activity_time.txt"
_RELATIONS = {"RT": "retweet", "MT": "mention", "RE": "reply"}

_MAPPING = """\
# Higgs: who retweeted, mentioned or answered whom. Times are seconds since 1970.
entity_types:
  user: {id_type: int64}
relations:
  - {name: retweet, lhs: user, rhs: user}
  - {name: mention, lhs: user, rhs: user}
  - {name: reply, lhs: user, rhs: user}
sources:
  - {files: retweet.parquet, relation: retweet}
  - {files: mention.parquet, relation: mention}
  - {files: reply.parquet, relation: reply}
# Days 0 to 3 from 2012-07-01 00:00 UTC train, day 4 validates, days 5 and 6 test: the announcement lies in day 3.
split:
  time: {valid_from: 2012-07-05, test_from: 2012-07-06}
"""


def prepare(src: Path, out: Path, *, overwrite: bool = False) -> Prepared:
    """Turn the raw file in ``src``, lines ``userA userB seconds RT|MT|RE``, into ``out``. Raises ``DataError``."""
    config = _raw_config(find_raw(src, _FILE, DOWNLOAD))
    with (
        staged(out, overwrite=overwrite, marker=MAPPING) as staging,
        open_database(staging.scratch, Resources()) as db,
    ):
        load(db, config, resolve_sources(config.sources, Path()))
        for rel, name in enumerate(_RELATIONS.values()):
            query = f"SELECT lhs, rhs, time::BIGINT AS time FROM edge WHERE rel = {rel} ORDER BY rowid"  # noqa: S608
            write_query(db, query, staging.folder / f"{name}.parquet")
        return finish(staging.folder, _MAPPING, out)


def _raw_config(file: Path) -> IngestConfig:
    columns = ColumnsConfig(lhs=1, rhs=2, time=3, relation=4)
    return IngestConfig(
        entity_types={"user": EntityTypeConfig(id_type="int64")},
        relations=tuple(RelationSpec(name=kind, lhs="user", rhs="user") for kind in _RELATIONS),
        sources=(SourceConfig(files=str(file), delimiter=" ", header=False, columns=columns),),
    )
