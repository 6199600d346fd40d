"""KuaiRand: 185 thousand impressions of a short-video service, with leak-free features and eight labels, split by day.

Download: https://kuairand.com (KuaiRand-Pure; Gao et al., "KuaiRand: An unbiased sequential recommendation dataset with
randomly exposed videos", CIKM 2022).
Licence: CC BY-SA 4.0.

The adapter reads impressions_20220425_20220505.parquet, user_sequences_before_20220425.parquet, user_features_pure.csv
and video_features_basic_pure.csv, and writes train.parquet (25 April to 3 May), valid.parquet (4 May) and test.parquet
(5 May), rows in the order of time. docs/kuairand.md describes the columns.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from rookery.data.adapters.kuairand_features import KEYS, LIST_COLUMNS, build
from rookery.data.adapters.kuairand_files import (
    DOWNLOAD,
    IMPRESSIONS,
    LABELS,
    OUTCOMES,
    USER_FEATURES,
    VIDEO_FEATURES,
    load,
)
from rookery.data.ingest import Resources, open_database
from rookery.data.staging import staged
from rookery.errors import DataError

__all__ = ["DOWNLOAD", "SPLITS", "PreparedLog", "prepare"]

SPLITS = {
    "train": ("2022-04-25", "2022-05-03"),
    "valid": ("2022-05-04", "2022-05-04"),
    "test": ("2022-05-05", "2022-05-05"),
}
"""First and last day of each split, both inclusive, in China Standard Time."""

MANIFEST = "kuairand.json"
_ROWS_PER_GROUP = 16_384


@dataclass(frozen=True)
class PreparedLog:
    """A prepared folder and the number of impressions in each of its files, by name without suffix.

    ``num_left_out`` impressions are of days that no split has.
    """

    path: Path
    num_rows: dict[str, int]
    num_left_out: int


def prepare(src: Path, out: Path, *, overwrite: bool = False) -> PreparedLog:
    """Turn the raw files in ``src`` into ``out``. Takes seconds. Raises ``DataError``."""
    with (
        staged(out, overwrite=overwrite, marker=MANIFEST) as staging,
        open_database(staging.scratch, Resources()) as db,
    ):
        load(db, src)
        build(db, SPLITS["train"][0], SPLITS["test"][1])
        for split in SPLITS:
            _write_split(db, split, staging.folder / f"{split}.parquet")
        num_rows = {split: pq.read_metadata(staging.folder / f"{split}.parquet").num_rows for split in SPLITS}
        (raw,) = db.execute("SELECT count(*) FROM raw_impression").fetchall()[0]
        prepared = PreparedLog(out, num_rows, raw - sum(num_rows.values()))
        _write_manifest(prepared, staging.folder / MANIFEST)
        return prepared


def _write_split(db: duckdb.DuckDBPyConnection, split: str, file: Path) -> None:
    first, last = SPLITS[split]
    columns = ", ".join([*_raw_columns(), *(key.kept for key in KEYS), *(f"lists.{name}" for name in LIST_COLUMNS)])
    joins = " ".join(key.join for key in KEYS)
    query = f"""
        SELECT {columns}, {", ".join(f"i.{name}::TINYINT AS {name}" for name in LABELS)}
        FROM impression i {joins}
        JOIN lists ON i.user_id = lists.user_id AND i.day = lists.day
        LEFT JOIN raw_sequence s ON i.user_id = s.user_id
        LEFT JOIN raw_user u ON i.user_id = u.user_id
        LEFT JOIN raw_video v ON i.video_id = v.video_id
        WHERE i.day BETWEEN DATE '{first}' AND DATE '{last}' ORDER BY place
    """
    table = db.sql(query).to_arrow_table()
    if not table.num_rows:
        raise DataError(f"{IMPRESSIONS}: no impression from {first} to {last}, of which {file.name} is made")
    pq.write_table(table, file, row_group_size=_ROWS_PER_GROUP, compression="zstd", write_page_checksum=True)


def _raw_columns() -> list[str]:
    """What was known of the impression, its user and its video before it was shown."""
    return [
        *(f"i.{name}" for name in ("user_id", "video_id", "author_id", "time_ms", "hour", "tab", "is_rand")),
        "i.duration_ms",
        *(f"u.{name}" for name in USER_FEATURES),
        *(f"v.{name}" for name in VIDEO_FEATURES),
        "(i.day - v.upload_dt)::BIGINT AS days_since_upload",
        "s.history_len",
        "i.time_ms - s.last_time_ms AS ms_since_history",
    ]


def _write_manifest(prepared: PreparedLog, file: Path) -> None:
    manifest = {
        "time_zone": "UTC+8",
        "days": SPLITS,
        "num_rows": prepared.num_rows,
        "num_left_out": prepared.num_left_out,
        "labels": LABELS,
        "outcomes_left_out": OUTCOMES,
    }
    file.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
