from __future__ import annotations

import gzip
import json
import math
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from rookery.data.adapters import kuairand
from rookery.data.adapters.kuairand_features import KEYS, LIST_COLUMNS, LIST_LENGTH, SMOOTHING
from rookery.data.adapters.kuairand_files import LABELS, OUTCOMES, USER_FEATURES, VIDEO_FEATURES
from rookery.errors import DataError

REAL = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "kuairand"
IMPRESSIONS = "impressions_20220425_20220505.parquet"
SEQUENCES = "user_sequences_before_20220425.parquet"
CHINA = timezone(timedelta(hours=8))
FIRST = datetime(2022, 4, 25, tzinfo=CHINA)
HOUR_MS = 3_600_000


def milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def day_of(time_ms: int) -> int:
    """0 for 25 April in China."""
    return (datetime.fromtimestamp(time_ms / 1000, CHINA) - FIRST).days


def impressions(num_rows: int = 900, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    columns: dict[str, np.ndarray] = {
        "user_id": rng.integers(0, 12, num_rows),
        "video_id": rng.integers(0, 20, num_rows),
        # From an hour before 25 April, which no split has, to the last minute of 5 May.
        "time_ms": milliseconds(FIRST) + rng.integers(-HOUR_MS, 11 * 24 * HOUR_MS, num_rows),
        "tab": rng.integers(0, 3, num_rows),
        "is_rand": np.zeros(num_rows, dtype=np.int64),
    }
    columns["author_id"] = columns["video_id"] // 3
    columns["duration_ms"] = 4000 * columns["video_id"]  # video 0 has none
    columns |= {name: rng.integers(0, 100_000, num_rows) for name in OUTCOMES}
    columns |= {name: (rng.random(num_rows) < 0.6 / (place + 1)).astype(int) for place, name in enumerate(LABELS)}
    return pa.table({name: pa.array(values, pa.int64()) for name, values in columns.items()})


def write_csv(file: Path, rows: list[dict[str, object]]) -> None:
    lines = [",".join(rows[0]), *(",".join("" if v is None else str(v) for v in row.values()) for row in rows)]
    data = ("\n".join(lines) + "\n").encode()
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)


def user_row(user: int) -> dict[str, object]:
    values = {name: f"{name}_{user % 2}" if kind == pa.string() else user for name, kind in USER_FEATURES.items()}
    return {"user_id": user, **values, "onehot_feat17": None if user == 3 else "1.0"}


def video_row(video: int) -> dict[str, object]:
    values = {name: f"{name}{video % 2}" if kind == pa.string() else video for name, kind in VIDEO_FEATURES.items()}
    return {
        "video_id": video,
        "author_id": video // 3,
        **values,
        "tag": None if video == 5 else video % 4,
        "upload_dt": "2022-04-10",
        "video_duration": 4000.0 * video or None,
    }


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    pq.write_table(impressions(), folder / IMPRESSIONS)
    lists = pa.list_(pa.int64())
    sequences = {
        "user_id": pa.array([0, 1, 2], pa.int64()),
        "history_len": pa.array([70, 3, 1], pa.int64()),
        "last_time_ms": pa.array([milliseconds(FIRST) - HOUR_MS] * 3, pa.int64()),
        "watch_seq": pa.array([[place % 20 for place in range(48)], [4, 4, 5], [19]], lists),
        "like_seq": pa.array([[7], [], None], lists),
        "long_watch_seq": pa.array([[1, 2, 3], [4], []], lists),
    }
    pq.write_table(pa.table(sequences), folder / SEQUENCES)
    write_csv(folder / "user_features_pure.csv.gz", [user_row(user) for user in range(11)])  # user 11 has no row
    write_csv(folder / "video_features_basic_pure.csv", [video_row(video) for video in range(20)])
    return folder


def read(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(folder / f"{split}.parquet") for split in kuairand.SPLITS])


def naive_key(columns: tuple[str, ...], row: dict) -> tuple:
    length = math.floor(2 * math.log2(row["duration_ms"] / 1000)) if row["duration_ms"] else None
    tag = None if row["video_id"] == 5 else str(row["video_id"] % 4)
    known = {**row, "length_class": length, "tag": tag}
    return tuple(known[column] for column in columns)


def naive_lift(positives: float, total: int, share: float) -> float:
    return math.log((positives + SMOOTHING * share) / (total + SMOOTHING) / share) if share else 0.0


class TestValues:
    @pytest.fixture
    def rows(self, raw, tmp_path) -> list[dict]:
        kuairand.prepare(raw, tmp_path / "out")
        return read(tmp_path / "out").to_pylist()

    @pytest.fixture
    def log(self, raw) -> list[dict]:
        """All impressions that a split has, in the order of time."""
        rows = [row for row in pq.read_table(raw / IMPRESSIONS).to_pylist() if day_of(row["time_ms"]) >= 0]
        return sorted(rows, key=lambda row: row["time_ms"])

    def test_rows_are_the_impressions_of_their_days(self, rows, log, tmp_path):
        names = ("user_id", "video_id", "author_id", "time_ms", "tab", "is_rand", "duration_ms", *LABELS)
        assert [[row[name] for name in names] for row in rows] == [[row[name] for name in names] for row in log]
        for split, days in (("train", range(9)), ("valid", [9]), ("test", [10])):
            found = pq.read_table(tmp_path / "out" / f"{split}.parquet", columns=["time_ms"])["time_ms"].to_pylist()
            assert {day_of(time) for time in found} == set(days)
        assert all(row["hour"] == datetime.fromtimestamp(row["time_ms"] / 1000, CHINA).hour for row in rows)

    def test_snapshots_are_joined_and_nulls_stay(self, rows):
        for row in rows:
            user, video = row["user_id"], row["video_id"]
            assert row["follow_user_num"] == (None if user == 11 else user)
            assert row["onehot_feat17"] == (None if user in {3, 11} else 1)
            assert row["tag"] == (None if video == 5 else str(video % 4))
            assert row["history_len"] == {0: 70, 1: 3, 2: 1}.get(user)
            day = datetime.fromtimestamp(row["time_ms"] / 1000, CHINA).date()
            assert row["days_since_upload"] == (day - datetime(2022, 4, 10, tzinfo=CHINA).date()).days

    def test_daily_counts_and_lifts(self, rows, log):
        for key in (key for key in KEYS if not key.is_past):
            for row in rows[::37]:
                earlier = [other for other in log if day_of(other["time_ms"]) < day_of(row["time_ms"])]
                wanted = naive_key(key.columns, row)
                same = [other for other in earlier if naive_key(key.columns, other) == wanted]
                assert row[f"{key.name}_impressions"] == pytest.approx(math.log(1 + len(same)))
                for label in key.labels:
                    share = np.mean([other[label] for other in earlier]) if earlier else 0.0
                    lift = naive_lift(sum(other[label] for other in same), len(same), share)
                    assert row[f"{key.name}_{label}_lift"] == pytest.approx(lift, abs=1e-6)
                plays = [math.log(1 + other["play_time_ms"] / 1000) for other in earlier]
                mine = [math.log(1 + other["play_time_ms"] / 1000) for other in same]
                excess = sum(mine) - len(mine) * np.mean(plays) if plays else 0.0
                assert row[f"{key.name}_log_play"] == pytest.approx(excess / (len(mine) + SMOOTHING), abs=1e-6)

    def test_past_counts_and_lifts(self, rows, raw):
        past: dict[tuple[int, int], dict] = {}
        for user in pq.read_table(raw / SEQUENCES).to_pylist():
            for name in ("watch_seq", "long_watch_seq", "like_seq"):
                for video in user[name] or []:
                    entry = {"user_id": user["user_id"], "video_id": video, "author_id": video // 3}
                    known = past.setdefault((user["user_id"], video), {**entry, "duration_ms": 4000 * video})
                    known[name] = 1
        shares = {
            "long_view": np.mean([entry.get("long_watch_seq", 0) for entry in past.values()]),
            "is_like": np.mean([entry.get("like_seq", 0) for entry in past.values()]),
        }
        for key in (key for key in KEYS if key.is_past):
            for row in rows[::23]:
                wanted = naive_key(key.columns, row)
                same = [entry for entry in past.values() if naive_key(key.columns, entry) == wanted]
                assert row[f"{key.name}_impressions"] == pytest.approx(math.log(1 + len(same)))
                for label, name in (("long_view", "long_watch_seq"), ("is_like", "like_seq")):
                    lift = naive_lift(sum(entry.get(name, 0) for entry in same), len(same), shares[label])
                    assert row[f"{key.name}_{label}_lift"] == pytest.approx(lift, abs=1e-6)

    def test_lists_continue_the_sequences(self, rows, log, raw):
        sequences = {row["user_id"]: row for row in pq.read_table(raw / SEQUENCES).to_pylist()}
        begun = {"watch": "watch_seq", "long_watch": "long_watch_seq", "like": "like_seq", "click": None}
        label_of = {"watch": None, "long_watch": "long_view", "like": "is_like", "click": "is_click"}
        for row in rows[::7]:
            for name, sequence in begun.items():
                start = list(sequences.get(row["user_id"], {}).get(sequence) or [])
                later = [
                    other["video_id"]
                    for other in log
                    if other["user_id"] == row["user_id"]
                    and day_of(other["time_ms"]) < day_of(row["time_ms"])
                    and (label_of[name] is None or other[label_of[name]])
                ]
                assert row[f"{name}_list"] == [*start, *later][-LIST_LENGTH:]

    def test_types(self, raw, tmp_path):
        kuairand.prepare(raw, tmp_path / "out")
        schema = pq.read_schema(tmp_path / "out" / "test.parquet")
        assert not set(OUTCOMES) & set(schema.names)
        assert {schema.field(name).type.value_type for name in LIST_COLUMNS} == {pa.int64()}
        assert {schema.field(name).type for name in LABELS} == {pa.int8()}
        assert schema.field("user_tag_is_like_lift").type == pa.float32()
        assert {schema.field(name).type for name in ("user_id", "follow_user_num", "hour")} == {pa.int64()}


def assert_blind_to_outcomes(src: Path, scratch: Path, day: int, seed: int = 0) -> None:
    """Outcomes of ``day`` and later, permuted, change nothing but labels up to ``day``; later features they do."""
    before = scratch / "before"
    if not before.exists():
        kuairand.prepare(src, before)
    permuted = scratch / "permuted"
    permuted.mkdir()
    for file in src.iterdir():
        (permuted / file.name).symlink_to(file)
    table = pq.read_table(src / IMPRESSIONS)
    order = np.arange(table.num_rows)
    moved = np.flatnonzero(table["time_ms"].to_numpy() >= milliseconds(FIRST + timedelta(days=day)))
    order[moved] = np.random.default_rng(seed).permutation(moved)
    for name in (*LABELS, *OUTCOMES):
        table = table.set_column(table.schema.get_field_index(name), name, table[name].take(order))
    (permuted / IMPRESSIONS).unlink()
    pq.write_table(table, permuted / IMPRESSIONS)
    kuairand.prepare(permuted, scratch / "after")
    tables = [read(scratch / name).drop_columns(list(LABELS)) for name in ("before", "after")]
    known = pc.less(tables[0]["time_ms"], milliseconds(FIRST + timedelta(days=day + 1)))
    assert tables[0].filter(known).equals(tables[1].filter(known))
    if day < 10:
        later = pc.invert(known)
        assert not tables[0].filter(later).equals(tables[1].filter(later))


@pytest.mark.parametrize("day", [0, 4, 9, 10])
def test_features_know_nothing_of_their_own_day(raw, day, tmp_path):
    assert_blind_to_outcomes(raw, tmp_path, day)


class TestFiles:
    def test_a_folder_is_whole_or_absent(self, raw, tmp_path):
        prepared = kuairand.prepare(raw, tmp_path / "out")
        manifest = json.loads((tmp_path / "out" / kuairand.MANIFEST).read_text())
        assert manifest["num_rows"] == prepared.num_rows
        assert sum(prepared.num_rows.values()) + prepared.num_left_out == 900
        assert prepared.num_left_out > 0
        with pytest.raises(DataError, match="exists"):
            kuairand.prepare(raw, tmp_path / "out")
        kuairand.prepare(raw, tmp_path / "out", overwrite=True)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            (IMPRESSIONS, r"raw: holds no impressions_20220425_20220505.parquet; see https://kuairand.com"),
            (SEQUENCES, r"raw: holds no user_sequences_before_20220425.parquet; see https://kuairand.com"),
            ("user_features_pure.csv.gz", r"holds neither user_features_pure.csv nor user_features_pure.csv.gz; down"),
            ("video_features_basic_pure.csv", r"holds neither video_features_basic_pure.csv nor"),
        ],
    )
    def test_a_missing_file_says_where_to_get_it(self, raw, name, message, tmp_path):
        (raw / name).unlink()
        with pytest.raises(DataError, match=message):
            kuairand.prepare(raw, tmp_path / "out")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]

    def test_columns_that_will_not_do(self, raw, tmp_path):
        table = pq.read_table(raw / IMPRESSIONS)
        pq.write_table(table.drop_columns("tab"), raw / IMPRESSIONS)
        with pytest.raises(DataError, match=r"impressions_.*parquet: column 'tab' is absent; it must be int64"):
            kuairand.prepare(raw, tmp_path / "out")
        pq.write_table(table, raw / IMPRESSIONS)
        sequences = pq.read_table(raw / SEQUENCES)
        pq.write_table(sequences.drop_columns("last_time_ms"), raw / SEQUENCES)
        with pytest.raises(DataError, match=r"user_sequences_.*parquet: column 'last_time_ms' is absent"):
            kuairand.prepare(raw, tmp_path / "out")
        pq.write_table(sequences, raw / SEQUENCES)
        file = raw / "video_features_basic_pure.csv"
        text = file.read_text()
        file.write_text(text.replace("upload_type,", "uploaded,"))
        with pytest.raises(DataError, match=r"video_features_basic_pure.csv: .*'upload_type'.*; fetch the file again"):
            kuairand.prepare(raw, tmp_path / "out")
        file.write_text(text.replace("2022-04-10", "yesterday", 1))
        with pytest.raises(DataError, match=r"video_features_basic_pure.csv: .*'yesterday'.*mend the line"):
            kuairand.prepare(raw, tmp_path / "out")
        (raw / "user_features_pure.csv.gz").write_bytes(b"no gzip")
        file.write_text(text)
        with pytest.raises(DataError, match=r"user_features_pure.csv.gz: "):
            kuairand.prepare(raw, tmp_path / "out")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]

    @pytest.mark.parametrize(
        ("column", "value", "message"),
        [
            ("is_like", 2, r"row 4, column 'is_like' is 2; it must be 0 or 1"),
            ("is_click", None, r"row 4, column 'is_click' is null; it must be 0 or 1"),
            ("time_ms", None, r"row 4, column 'time_ms' is null; it must be an integer"),
        ],
    )
    def test_bad_values(self, raw, column, value, message, tmp_path):
        table = pq.read_table(raw / IMPRESSIONS)
        values = table[column].to_pylist()
        values[4] = value
        table = table.set_column(table.schema.get_field_index(column), column, pa.array(values, pa.int64()))
        pq.write_table(table, raw / IMPRESSIONS)
        with pytest.raises(DataError, match=message):
            kuairand.prepare(raw, tmp_path / "out")

    def test_repeated_rows_of_a_user(self, raw, tmp_path):
        write_csv(raw / "user_features_pure.csv.gz", [user_row(3), user_row(4), user_row(4)])
        with pytest.raises(DataError, match=r"user_features_pure.csv.gz: user_id 4 has more than one row; keep one"):
            kuairand.prepare(raw, tmp_path / "out")

    def test_a_split_without_impressions(self, raw, tmp_path):
        table = pq.read_table(raw / IMPRESSIONS)
        early = pc.less(table["time_ms"], milliseconds(FIRST + timedelta(days=10)))
        pq.write_table(table.filter(early), raw / IMPRESSIONS)
        with pytest.raises(DataError, match=r"no impression from 2022-05-05 to 2022-05-05, of which test.parquet"):
            kuairand.prepare(raw, tmp_path / "out")


class TestRealSet:
    @pytest.fixture
    def real(self) -> Path:
        if not REAL.is_dir():
            pytest.skip(f"needs the data set in {REAL}")
        return REAL

    def test_rows_and_rates(self, real, tmp_path):
        prepared = kuairand.prepare(real, tmp_path / "out")
        assert prepared.num_rows == {"train": 154_094, "valid": 17_570, "test": 13_256}
        assert prepared.num_left_out == 141  # of the last hour of 24 April
        table = read(prepared.path)
        rates = {name: np.mean(table[name].to_numpy()) for name in LABELS}
        assert rates["is_click"] == pytest.approx(0.4424, abs=0.0005)
        assert rates["is_hate"] == pytest.approx(0.00085, abs=0.00005)
        # What was never counted says nothing: the first day has no earlier one.
        first = table.filter(pc.less(table["time_ms"], milliseconds(FIRST + timedelta(days=1))))
        assert pc.max(first["user_impressions"]).as_py() == pc.max(first["tab_is_click_lift"]).as_py() == 0

    def test_features_know_nothing_of_their_own_day(self, real, tmp_path):
        assert_blind_to_outcomes(real, tmp_path, day=9)
