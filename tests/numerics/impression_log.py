"""A log of impressions with a column of every kind that ``init`` must tell apart, and outcomes that it must not use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

START_MS = 1_650_844_800_000  # 2022-04-25 00:00 UTC
DAY_MS = 86_400_000
NUM_USERS, NUM_ITEMS = 200, 120
LABELS = ("clicked", "liked")


def make_log(num_rows: int = 6_000, *, num_days: int = 10, seed: int = 0) -> pa.Table:
    """Rows in the order of time, evenly over the days."""
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, NUM_USERS, num_rows), rng.integers(0, NUM_ITEMS, num_rows)
    affinity, match = rng.normal(size=num_rows), rng.normal(size=num_rows)
    clicked = (affinity + match + rng.normal(size=num_rows) > 0).astype(np.int8)
    liked = (clicked & (rng.random(num_rows) < 0.2)).astype(np.int8)
    nullable = np.where(rng.random(num_rows) < 0.25, np.nan, rng.integers(0, 30, num_rows))
    dwell = np.where(clicked, rng.integers(1_000, 90_000, num_rows), rng.integers(0, 9_000, num_rows))
    return pa.table(
        {
            "row": np.arange(num_rows),
            "user_id": users * 7,
            "video_id": items * 13 + 5,
            "session_id": [f"s{number}" for number in range(num_rows)],
            "time_ms": START_MS + np.sort(rng.integers(0, num_days * DAY_MS, num_rows)),
            "shown_at": pa.array(START_MS + np.arange(num_rows), pa.timestamp("ms")),
            "affinity": affinity.astype(np.float32),
            "match": match,
            "duration_ms": rng.integers(3_000, 400_000, num_rows),
            "days_since_upload": rng.integers(0, 12, num_rows),
            "is_video": rng.random(num_rows) < 0.5,
            "autoplay": rng.integers(0, 2, num_rows),
            "tab": rng.integers(0, 6, num_rows),
            "grade": nullable,
            "country": rng.choice(["de", "fr", "jp"], num_rows),
            "category": rng.integers(0, 90, num_rows),
            "vector": _vectors(rng.normal(size=(num_rows, 8)).astype(np.float32)),
            "figures": _vectors(rng.normal(size=(num_rows, 3))),
            "blocks": _vectors(rng.normal(size=(num_rows, 9)) * [1, 1, 1, 1, 1, 1, 1, 1, 1000]),
            "flags": _vectors(rng.integers(0, 2, (num_rows, 5))),
            "rank": rng.integers(1, 21, num_rows),
            "history": _lists(rng, num_rows, lambda size: rng.integers(0, NUM_ITEMS, size) * 13 + 5),
            "topics": _lists(rng, num_rows, lambda size: rng.integers(0, 40, size)),
            "version": np.ones(num_rows, np.int64),
            "comment_text": pa.nulls(num_rows, pa.string()),
            "dwell": dwell,
            "shared": (clicked & (rng.random(num_rows) < 0.03)).astype(np.int8),
            "stay_time": np.where(liked, rng.integers(1, 9_000, num_rows), 0),
            "clicked": clicked,
            "liked": liked,
        }
    )


def write_log(folder: Path, table: pa.Table | None = None, name: str = "log.parquet") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(make_log() if table is None else table, folder / name, row_group_size=1_500)
    return folder / name


def _vectors(values: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _lists(rng: np.random.Generator, num_rows: int, draw) -> pa.Array:
    offsets = np.append(0, np.cumsum(rng.integers(0, 9, num_rows)))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(draw(int(offsets[-1]))))
