"""The raw files of KuaiRand: found, checked, and read into DuckDB.

Download: https://kuairand.com (KuaiRand-Pure; Gao et al., "KuaiRand: An unbiased sequential recommendation dataset with
randomly exposed videos", CIKM 2022).
Licence: CC BY-SA 4.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from rookery.data.adapters.edge_lists import find_raw
from rookery.data.ingest_sources import literal, unreadable_text
from rookery.errors import DataError

DOWNLOAD = "https://kuairand.com"

LABELS = (
    "is_click",
    "long_view",
    "is_like",
    "is_profile_enter",
    "is_comment",
    "is_follow",
    "is_forward",
    "is_hate",
)
OUTCOMES = ("play_time_ms", "profile_stay_time", "comment_stay_time")
"""What is known only after the impression: neither features nor labels."""

IMPRESSIONS = "impressions_20220425_20220505.parquet"
_SEQUENCES = "user_sequences_before_20220425.parquet"
_USERS = "user_features_pure.csv"
_VIDEOS = "video_features_basic_pure.csv"

_LISTS = ("watch_seq", "like_seq", "long_watch_seq")
_IDS = ("user_id", "video_id", "author_id", "time_ms", "tab", "is_rand", "duration_ms")
_HAS_RANGE = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")

USER_FEATURES = {
    "user_active_degree": pa.string(),
    **dict.fromkeys(("is_lowactive_period", "is_live_streamer", "is_video_author"), pa.int64()),
    **dict.fromkeys(_HAS_RANGE, pa.int64()),
    **dict.fromkeys((f"{name}_range" for name in _HAS_RANGE), pa.string()),
    **dict.fromkeys((f"onehot_feat{number}" for number in range(18)), pa.int64()),
}
VIDEO_FEATURES = {
    "video_type": pa.string(),
    "upload_type": pa.string(),
    **dict.fromkeys(("visible_status", "server_width", "server_height", "music_id", "music_type"), pa.int64()),
    "tag": pa.string(),
}
_USER_COLUMNS = {"user_id": pa.int64(), **USER_FEATURES}
_VIDEO_COLUMNS = {
    **dict.fromkeys(("video_id", "author_id", "video_duration"), pa.int64()),
    "upload_dt": pa.date32(),
    **VIDEO_FEATURES,
}


def sequences_file(src: Path, *needed: str) -> Path:
    """The file of what users did before 25 April, its columns checked. Raises ``DataError``.

    ``needed`` are columns of integers besides the user and the three lists.
    """
    expected = dict.fromkeys(("user_id", *needed), pa.int64()) | dict.fromkeys(_LISTS, pa.list_(pa.int64()))
    return _checked_parquet(src / _SEQUENCES, expected)


def load(db: duckdb.DuckDBPyConnection, src: Path) -> None:
    """Fill the tables raw_impression, raw_sequence, raw_user and raw_video. Raises ``DataError``."""
    impressions = _checked_parquet(src / IMPRESSIONS, dict.fromkeys((*_IDS, *OUTCOMES, *LABELS), pa.int64()))
    sequences = sequences_file(src, "history_len", "last_time_ms")
    users, videos = (find_raw(src, name, DOWNLOAD) for name in (_USERS, _VIDEOS))
    tables = {"raw_user": _read_csv(users, _USER_COLUMNS), "raw_video": _read_csv(videos, _VIDEO_COLUMNS)}
    for name, file in (("raw_impression", impressions), ("raw_sequence", sequences)):
        db.execute(f"CREATE TEMP TABLE {name} AS FROM read_parquet({literal(str(file))})")
    for name, table in tables.items():
        db.register("arrived", table)
        db.execute(f"CREATE TEMP TABLE {name} AS FROM arrived")
        db.unregister("arrived")
    _require_whole(db, impressions)
    for name, key, place in (
        ("raw_user", "user_id", users),
        ("raw_video", "video_id", videos),
        ("raw_sequence", "user_id", sequences),
    ):
        _require_unique(db, name, key, place)


def _checked_parquet(file: Path, expected: Mapping[str, pa.DataType]) -> Path:
    try:
        schema = pq.read_schema(file)
    except FileNotFoundError as error:
        raise DataError(f"{file.parent}: holds no {file.name}; see {DOWNLOAD} for the set") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a Parquet file that can be read; fetch it again") from error
    for name, wanted in expected.items():
        found = schema.field(name).type if name in schema.names else None
        if found != wanted:
            raise DataError(f"{file}: column {name!r} is {found or 'absent'}; it must be {wanted}")
    return file


def _read_csv(file: Path, expected: Mapping[str, pa.DataType]) -> pa.Table:
    """The columns of ``expected``; integers may be written as 3.0, and an empty field is a null."""
    arrives_as = {name: pa.float64() if kind == pa.int64() else kind for name, kind in expected.items()}
    options = pa_csv.ConvertOptions(
        column_types=arrives_as, include_columns=list(expected), null_values=[""], strings_can_be_null=True
    )
    try:
        return pa_csv.read_csv(file, convert_options=options).cast(pa.schema(expected.items()))
    except KeyError as error:
        raise DataError(f"{file}: {error.args[0]}; fetch the file again") from error
    except pa.ArrowInvalid as error:
        raise DataError(f"{file}: {' '.join(str(error).split())}; mend the line or fetch the file again") from error
    except OSError as error:
        raise unreadable_text(file, error) from error


def _require_whole(db: duckdb.DuckDBPyConnection, file: Path) -> None:
    """No null, and no label but 0 and 1."""
    wrong = {name: f"{name} IS NULL" for name in (*_IDS, *OUTCOMES)}
    wrong |= {name: f"{name} IS NULL OR {name} NOT IN (0, 1)" for name in LABELS}
    for name, condition in wrong.items():
        query = f"SELECT rowid, {name} FROM raw_impression WHERE {condition} ORDER BY rowid LIMIT 1"
        for row, value in db.execute(query).fetchall():
            due = "0 or 1" if name in LABELS else "an integer"
            found = "null" if value is None else value
            raise DataError(f"{file}: row {row}, column {name!r} is {found}; it must be {due}: leave the row out")


def _require_unique(db: duckdb.DuckDBPyConnection, table: str, key: str, file: Path) -> None:
    query = f"SELECT {key} FROM {table} GROUP BY {key} HAVING count(*) > 1 ORDER BY {key} LIMIT 1"
    for (value,) in db.execute(query).fetchall():
        raise DataError(f"{file}: {key} {value} has more than one row; keep one")
