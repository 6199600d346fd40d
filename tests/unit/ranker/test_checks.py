"""Values that cannot be used: named with file, row and column, before anything is written where that is possible."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from planted_impressions import planted_config, planted_log, planted_settings, write_log, write_vectors

from rookery.errors import ConfigError, DataError
from rookery.ranker.batch import RankerBatch
from rookery.ranker.checks import check_training_rows, check_validation_rows
from rookery.ranker.config import RankerConfig
from rookery.ranker.inputs import Inputs
from rookery.ranker.partition import evaluation_batches, open_partition
from rookery.ranker.preprocess import Preprocessor
from rookery.ranker.train import train_ranker

LOG = planted_log(600)  # 300 rows a file, in row groups of 100


@dataclass
class Place:
    folder: Path

    def write(self, **columns: pa.Array) -> None:
        """The log with some columns replaced."""
        table = LOG.table
        for name, column in columns.items():
            table = table.set_column(table.column_names.index(name), name, column)
        half = table.num_rows // 2
        for number in range(2):
            file = self.folder / "log" / f"part-{number}.parquet"
            pq.write_table(table.slice(number * half, half), file, row_group_size=100)

    def config(self, vectors: bool = False, **changes: Any) -> RankerConfig:
        export = self.folder / "vectors" if vectors else None
        return planted_config(self.folder / "log", self.folder / "run", export, train_data__rows=None, **changes)

    def check(self, **changes: Any) -> None:
        config = self.config(**changes)
        preprocessor = Preprocessor(config, Inputs.build(config))
        check_training_rows(config, preprocessor)
        check_validation_rows(config, preprocessor)

    def batches(self, **changes: Any) -> list[RankerBatch]:
        config = self.config(**changes)
        whole = config.validation_data["valid"].model_copy(update={"rows": None})
        return list(evaluation_batches(config, whole, Preprocessor(config, Inputs.build(config)), torch.device("cpu")))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    write_log(tmp_path / "log", LOG, row_group_rows=100)
    write_vectors(tmp_path / "vectors", LOG)
    return Place(tmp_path)


def changed(name: str, row: int, value: Any, dtype: pa.DataType | None = None) -> pa.Array:
    """A column with one value replaced."""
    values = LOG.table.column(name).to_pylist()
    values[row] = value
    return pa.array(values, dtype or LOG.table.schema.field(name).type)


def test_a_good_log_passes(place: Place) -> None:
    place.check(vectors=True)


READERS: list[Callable[[Place], object]] = [lambda place: place.check(), lambda place: place.batches()]


@pytest.mark.parametrize("read", READERS, ids=["before training", "in a batch"])
@pytest.mark.parametrize(
    ("column", "value", "dtype", "message"),
    [
        ("like", 2, None, r"row group 1, row 31, column 'like' is 2: the label of task 'like' is 0 or 1"),
        ("like", 0.5, pa.float32(), r"row group 1, row 31, column 'like' is 0.5: the label of task 'like' is 0 or 1"),
        ("like", float("nan"), pa.float32(), r"row group 1, row 31, column 'like' is nan: the label of task"),
        ("like", None, None, r"row group 1, row 31, column 'like' is null; leave the row out"),
        ("weight", -1.0, None, r"row group 1, row 31, column 'weight' is -1: a weight is a number of at least 0"),
        ("weight", None, None, r"row group 1, row 31, column 'weight' is nan: a weight is a number"),
        ("hour", 24, None, r"row group 1, row 31, column 'hour' is 24: table 'hours' has rows 0 to 23; correct"),
        ("position", -1, None, r"row group 1, row 31, column 'position' is -1: a position counts from 0; correct it"),
        ("hour", -1, None, r"row group 1, row 31, column 'hour' is -1: table 'hours' has rows 0 to 23"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_found_again(
    place: Place, read: Callable[[Place], object], column: str, value: Any, dtype: pa.DataType | None, message: str
) -> None:
    place.write(**{column: changed(column, 300 + 131, value, dtype)})
    with pytest.raises(DataError, match=rf"part-1.parquet: {message}"):
        read(place)


@pytest.mark.parametrize("read", READERS, ids=["before training", "in a batch"])
def test_a_wrong_element_of_a_list_is_found_again(place: Place, read: Callable[[Place], object]) -> None:
    place.write(recent_items=pa.array([[0, 7, 39]] * 250 + [[3, 40, 1]] + [[]] * 349))

    def tables(config_place: Place) -> None:
        config_place.config = _with_direct_items(config_place.config)  # type: ignore[method-assign]
        read(config_place)

    with pytest.raises(
        DataError, match=r"part-0.parquet: row group 2, row 50, column 'recent_items' is 40: table 'items'"
    ):
        tables(place)


def _with_direct_items(make: Callable[..., RankerConfig]) -> Callable[..., RankerConfig]:
    """Only the list looks into a table of 40 rows."""

    def make_changed(**changes: Any) -> RankerConfig:
        raw = make(**changes).model_dump(mode="json")
        raw["features"]["discrete"] = raw["features"]["discrete"][:3]
        raw["features"]["tables"][-1] = {"name": "items", "embedding_dim": 4, "num_embeddings": 40}
        return RankerConfig.model_validate(raw)

    return make_changed


def test_values_of_validation_rows_are_looked_at_too(place: Place) -> None:
    def refusal(**columns: pa.Array) -> str:
        place.write(**columns)
        with pytest.raises(DataError) as raised:
            place.check(train_data__limit=100, train_data__first_rows_with_positives=500)
        return str(raised.value)

    first = f"{place.folder}/log/part-1.parquet: row group 1, row 20, "
    valid = next(row for row, day in enumerate(LOG.table.column("time").to_pylist()) if day.day == 28)
    assert 100 < valid < 420 < valid + 500
    assert refusal(like=changed("like", 420, 2)).startswith(f"{first}column 'like' is 2: the label of task 'like'")
    assert refusal(hour=changed("hour", 420, 24)).startswith(f"{first}column 'hour' is 24: table 'hours' has rows")
    stats = pa.array(LOG.table.column("stats").to_pylist(), pa.list_(pa.float32()))
    lists = stats.to_pylist()
    lists[420] = lists[420][:5]
    assert refusal(stats=pa.array(lists, stats.type)).startswith(f"{first}column 'stats' has 5 values, 6 expected")
    place.write(stats=stats)
    place.check()


def test_lists_of_another_length_are_found_in_training_rows(place: Place) -> None:
    lists = LOG.table.column("stats").to_pylist()
    lists[131] = lists[131] * 2
    place.write(stats=pa.array(lists, pa.list_(pa.float32())))
    with pytest.raises(DataError, match=r"part-0.parquet: row group 1, row 31, column 'stats' has 12 values, 6 exp"):
        place.check()


def test_a_position_that_is_null_is_unknown(place: Place) -> None:
    place.write(position=changed("position", 7, None))
    place.check()
    positions = torch.cat([batch.features.position for batch in place.batches() if batch.features.position is not None])
    expected = LOG.table.column("position").to_pylist()
    expected[7] = -1
    assert positions.tolist() == expected


def test_positions_are_no_text(place: Place) -> None:
    place.write(position=pa.array(["top"] * 600))
    with pytest.raises(ConfigError, match=r"keys.position: column position holds text; a position is a whole number"):
        place.check()


def test_weights_that_are_all_zero_are_refused(place: Place) -> None:
    weights = np.zeros(600, np.float32)
    weights[500] = 1
    place.write(weight=pa.array(weights))
    with pytest.raises(DataError, match=r"keys.weight=weight\) is 0 in all of the first 400 rows, from which nothing"):
        place.check(train_data__first_rows_with_positives=400)
    place.check()


EMPTY = {"column": "time", "at_least": "2030-01-01"}


def test_partitions_without_rows_are_refused_together(place: Place) -> None:
    log = place.folder / "log"
    for name in ("train_data", "validation_data__valid"):
        changes = {f"{name}__rows": EMPTY, "validation_data__test__offset": 10_000}
        with pytest.raises(DataError) as raised:
            Inputs.build(planted_config(log, place.folder / "run", **changes))
        files = f"{log}/part-0.parquet and 1 more: none of 600 rows is left by rows time >= "
        assert str(raised.value).splitlines() == [
            f"{name.replace('__', '.')}: {files}2030-01-01; correct the selection",
            f"validation_data.test: {files}2022-04-29T00:00:00 and offset 10000; correct the selection",
        ]


def test_a_log_without_rows_is_refused(place: Place) -> None:
    for file in (place.folder / "log").iterdir():
        pq.write_table(LOG.table.slice(0, 0), file)
    with pytest.raises(DataError, match=r"train_data: .*part-0.parquet and 1 more: no rows; name other files"):
        place.check()


@pytest.mark.parametrize(
    ("column", "field"),
    [
        ("age", "features.continuous.age"),
        ("click", "labels.click"),
        ("time", "rows.column"),
        ("country", "features.discrete.country"),
    ],
)
def test_a_column_that_is_there_twice_is_refused(place: Place, column: str, field: str) -> None:
    file = place.folder / "log" / "part-1.parquet"
    twice = LOG.table.append_column(column, LOG.table.column(column))
    pq.write_table(twice, file)
    with pytest.raises(ConfigError) as raised:
        Inputs.build(place.config(keys__time=None, validation_data__test__rows=None))
    expected = f"{file}: column {column!r} is there twice; rename one of the two when the file is written ({field})"
    assert str(raised.value).splitlines() == [expected]


def test_a_column_that_nobody_reads_may_be_there_twice(place: Place) -> None:
    for file in (place.folder / "log").iterdir():
        table = pq.read_table(file)
        pq.write_table(table.append_column("watch_time_s", table.column("watch_time_s")), file)
    place.check()
    assert sum(batch.num_rows for batch in place.batches()) == 600


REFUSALS: list[dict[str, Any]] = [
    {"train_data__rows": EMPTY},
    {"validation_data__valid__offset": 10_000},
    # Known only once the run is open.
    {"model__featurization_config": {"z_score_log_config": {"analysis_path": "none.json"}}},
]


@pytest.mark.parametrize("changes", REFUSALS)
def test_a_refused_start_leaves_nothing_behind(place: Place, changes: dict[str, Any]) -> None:
    settings = planted_settings(place.folder / "log", place.folder / "runs" / "first" / "run", **changes)
    with pytest.raises((ConfigError, DataError)):
        train_ranker(RankerConfig.model_validate(settings))
    assert not (place.folder / "runs").exists()


def test_training_does_not_start_on_wrong_validation_rows(place: Place) -> None:
    last = LOG.num_rows - 1
    place.write(like=changed("like", last, 2))
    settings = planted_settings(place.folder / "log", place.folder / "run")
    with pytest.raises(DataError, match=r"part-1.parquet: row group 2, row 99, column 'like' is 2"):
        train_ranker(RankerConfig.model_validate(settings))
    assert not (place.folder / "run").exists()


def test_tasks_without_positives_are_refused_together(place: Place) -> None:
    zeros = pa.array(np.zeros(600, np.int8))
    late = pa.array(np.r_[np.zeros(500, np.int8), np.ones(100, np.int8)])
    place.write(report=zeros, like=late)
    with pytest.raises(DataError) as raised:
        place.check(train_data__first_rows_with_positives=400)
    assert str(raised.value).splitlines() == [
        f"train_data: task {task!r} (column {task!r}) has no positive label in the first 400 rows; take it out of "
        "model.tasks, train on more rows, or raise train_data.first_rows_with_positives"
        for task in ("like", "report")
    ]
    place.write(like=late)
    place.check(train_data__first_rows_with_positives=600)


def test_positives_that_are_rectified_away_are_none(place: Place) -> None:
    rectify = {
        "label_rectification_window_in_hours": 0.0001,
        "served_timestamp_field": "time",
        "impressed_timestamp_field": "time",
        "label_to_engaged_timestamp_field": {"click": "click_time"},
    }
    with pytest.raises(DataError, match="task 'click'"):
        place.check(preprocess={"rectify_labels": rectify})


def test_a_join_that_never_finds_a_vector_is_refused(place: Place) -> None:
    place.write(item_id=pa.array(np.arange(600)), recent_items=pa.array([[5]] * 600))
    with pytest.raises(DataError) as raised:
        place.check(vectors=True)
    message = str(raised.value)
    assert (
        "features.embeddings.item_vector.key=item_id: none of its ids in the first 600 rows is one of item" in message
    )
    assert "features.embeddings.recent_vectors.key=recent_items: none of its ids" in message
    assert "user_vector" not in message


def test_a_join_that_seldom_finds_one_is_said(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    items = LOG.table.column("item_id").to_numpy().copy()
    items[:400] = 5
    place.write(item_id=pa.array(items))
    place.check(vectors=True)
    assert "of the ids of item_id have no vector" in caplog.text


def test_numbers_that_are_none_are_said_once(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    stats = LOG.table.column("stats").to_pylist()
    stats[205][3] = float("inf")
    stats[333] = [float("nan")] * 6
    place.write(stats=pa.array(stats, LOG.table.schema.field("stats").type), age=pa.array(np.ones(600)))
    with caplog.at_level(logging.WARNING):
        batches = place.batches(validation_data__valid__batch_size=100)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"feature 'stats': 1 of a batch's numbers are null, NaN or infinite, the first of all at "
        f"{place.folder}/log/part-0.parquet: row group 2, row 5, column 'stats'; they count as 0, here and in scoring. "
        "A binary feature that tells whether the number is there keeps what is lost"
    )
    continuous = torch.cat([batch.features.continuous for batch in batches])
    assert continuous[205, 1:].tolist() == [*np.float32(stats[205][:3]), 0, *np.float32(stats[205][4:])]
    assert continuous[333, 1:].tolist() == [0] * 6


@pytest.mark.parametrize(
    "featurization", [{"z_score_log_config": {}}, {"piecewise_linear_config": {}}, {"log1p_abs_config": {}}]
)
def test_a_run_warns_once_of_a_feature_and_a_partition(
    place: Place, caplog: pytest.LogCaptureFixture, featurization: dict[str, Any]
) -> None:
    days = [day.day for day in LOG.table.column("time").to_pylist()]
    valid = days.index(28)
    stats = LOG.table.column("stats").to_pylist()
    for row, column in ((5, 1), (5, 2), (valid + 1, 0), (valid + 2, 4), (valid + 2, 5)):
        stats[row][column] = float("inf")
    place.write(stats=pa.array(stats, LOG.table.schema.field("stats").type), age=pa.array(np.arange(600.0)))
    settings = planted_settings(
        place.folder / "log",
        place.folder / "run",
        training__num_train_steps=12,
        training__validate_every_n=4,
        training__checkpoint_every_n=4,
        training__keep_best={"metric": "valid/mean/auroc"},
        train_data__batch_size=600,
        calibration={"partition": "valid"},
        model__featurization_config=featurization,
    )
    with caplog.at_level(logging.WARNING, "rookery.ranker.partition"):
        train_ranker(RankerConfig.model_validate(settings))
    said = sorted(message for record in caplog.records if "numbers are" in (message := record.getMessage()))
    file, group, row = f"part-{valid // 300}.parquet", valid % 300 // 100, valid % 100
    assert [message.split("; they count")[0] for message in said] == [
        f"feature 'stats': {count} of a batch's numbers are null, NaN or infinite, the first of all at "
        f"{place.folder}/log/{found}, column 'stats'"
        for count, found in (
            (2, "part-0.parquet: row group 0, row 5"),
            (3, f"{file}: row group {group}, row {row + 1}"),
        )
    ]


def test_large_numbers_are_no_infinity(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.write(age=pa.array(np.full(600, 3e38)))
    continuous = torch.cat([batch.features.continuous for batch in place.batches()])
    assert (continuous[:, 0] == np.float32(3e38)).all()
    assert not caplog.records


def test_misses_and_unknown_values_are_counted(place: Place) -> None:
    place.write(country=changed("country", 0, "nowhere"))
    (batch,) = place.batches(vectors=True, validation_data__valid__batch_size=1000)
    items = LOG.table.column("item_id").to_numpy()
    assert batch.shares["miss/item_vector"] == pytest.approx((items >= 1000 + 7 * 35).mean())
    recent = [item for row in LOG.table.column("recent_items").to_pylist() for item in (row or [])[-3:]]
    assert batch.shares["miss/recent_vectors"] == pytest.approx((np.array(recent) >= 1000 + 7 * 35).mean())
    assert batch.shares["unknown/country"] == pytest.approx((LOG.table.column("country").null_count + 1) / 600)
    assert batch.shares["unknown/item"] == 0


def test_rows_without_a_user_are_groups_of_their_own(place: Place) -> None:
    batches = place.batches(keys__user=None, validation_data__valid__batch_size=250)
    assert torch.cat([batch.groups for batch in batches]).tolist() == list(range(600))


def test_scoring_rows_of_another_type_are_refused(place: Place) -> None:
    config = place.config()
    preprocessor = Preprocessor(config, Inputs.build(config))
    place.write(item_id=pa.array([f"i{i}" for i in range(600)]))
    with pytest.raises(DataError, match=r"part-0.parquet: column 'item_id' holds texts, and numbers before"):
        open_partition(config, config.validation_data["test"], preprocessor, labels=False)


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        ({"truncate_and_slice": [{"feature": "stat", "truncation": 2}]}, r"slice.stat: no block.*did you mean 'stats'"),
        ({"truncate_and_slice": [{"feature": "age", "truncation": 1}]}, r"slice.age: no block of continuous"),
        ({"truncate_and_slice": [{"feature": "stats", "truncation": 7}]}, r"truncation=7: the block has 6 columns"),
        (
            {"extract_features": [{"name": "x", "source_tensor": "stats", "index": 6}]},
            r"extract_features.x.index=6: stats has 6 columns, counted from 0",
        ),
        (
            {"extract_features": [{"name": "user_id", "source_tensor": "stats", "index": 0}]},
            r"extract_features.user_id: keys.user reads it, and ids and times need more digits",
        ),
        (
            {"extract_features": [{"name": "hour", "source_tensor": "stats", "index": 0}]},
            r"has a column 'hour', and preprocess.extract_features makes one",
        ),
        (
            {"extract_features": [{"name": "x", "source_tensor": "age", "index": 0}]},
            r"source_tensor=age: no such block",
        ),
    ],
)
def test_preprocessing_must_fit_the_features(place: Place, preprocess: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Inputs.build(place.config(preprocess=preprocess))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 0]", r"2 truth values for 6 columns"),
        ("[0, 0, 0, 0, 0, 0]", r"keeps no column"),
        ("[0, 1, 2, 0, 0, 0]", r"must be a list of truth values"),
        ("{", r"neither JSON nor .npy"),
        (None, r"mask.json: No such file"),
    ],
)
def test_a_mask_has_a_truth_value_for_each_column(place: Place, content: str | None, message: str) -> None:
    mask = place.folder / "mask.json"
    if content is not None:
        mask.write_text(content)
    preprocess = {"truncate_and_slice": [{"feature": "stats", "mask_path": str(mask)}]}
    with pytest.raises((ConfigError, DataError), match=message):
        Inputs.build(place.config(preprocess=preprocess))


def test_a_mask_may_be_an_array(place: Place) -> None:
    np.save(place.folder / "mask.npy", np.array([True, False, False, True, False, True]))
    preprocess = {"truncate_and_slice": [{"feature": "stats", "mask_path": str(place.folder / "mask.npy")}]}
    batches = place.batches(preprocess=preprocess)
    found = torch.cat([batch.features.continuous for batch in batches])[:, 1:]
    stats = np.array(LOG.table.column("stats").to_pylist(), np.float32)
    assert torch.equal(found, torch.from_numpy(stats[:, [0, 3, 5]]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"evaluation": {"stratifiers": [{"name": "x", "column": "country", "value": 3}]}},
            r"stratifiers.x.value=3: column",
        ),
        ({"keys__time": "tiem"}, r"no column 'tiem'; did you mean 'time'\? \(keys.time\)"),
        ({"validation_data__valid__rows": {"column": "tmie", "below": 3}}, r"no column 'tmie'.*\(rows.column\)"),
        ({"train_data__inputs": ["nowhere/*.parquet"]}, r"inputs: nowhere/\*.parquet: no Parquet file there"),
    ],
)
def test_columns_and_values_must_be_there(place: Place, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Inputs.build(place.config(**changes))


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            {"name": "countries", "embedding_dim": 3, "num_embeddings": 6},
            r"countries.num_embeddings=6: country holds text",
        ),
        ({"name": "countries", "embedding_dim": 3, "values": [1, 2]}, r"countries.values: 1 never equals what country"),
    ],
)
def test_a_table_must_fit_what_its_columns_hold(place: Place, tables: dict[str, Any], message: str) -> None:
    raw = place.config().model_dump(mode="json")
    raw["features"]["tables"][0] = tables
    with pytest.raises(ConfigError, match=message):
        Inputs.build(RankerConfig.model_validate(raw))


def test_numbers_and_text_need_two_tables(place: Place) -> None:
    raw = place.config().model_dump(mode="json")
    raw["features"]["discrete"][2]["table"] = "countries"
    raw["features"]["tables"] = [table for table in raw["features"]["tables"] if table["name"] != "categories"]
    with pytest.raises(ConfigError, match=r"countries: numbers and text in one table: country \(text\), category"):
        Inputs.build(RankerConfig.model_validate(raw))
