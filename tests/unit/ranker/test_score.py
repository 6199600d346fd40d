"""Scores of a file: identical to those that evaluation measures, in order, whole or not at all."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from planted_impressions import DAY_US, FIRST_DAY_US, TASKS, planted_config, planted_log, write_log, write_vectors

from rookery.errors import DataError
from rookery.ranker.evaluation import evaluate
from rookery.ranker.partition import evaluation_batches
from rookery.ranker.run import LoadedRun, load_run
from rookery.ranker.score import score_file
from rookery.ranker.train import train_ranker

BATCH = 4096


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    """A run on the planted log, with joined vectors and a calibration."""
    folder = tmp_path_factory.mktemp("scored")
    log = planted_log()
    write_log(folder / "log", log)
    config = planted_config(
        folder / "log",
        folder / "run",
        write_vectors(folder / "vectors", log),
        runtime={"num_threads": 1, "device": "cpu"},
        calibration={"partition": "valid"},
        score__weights={"click": 1.0, "report": -20.0},
    )
    train_ranker(config)
    return load_run(folder / "run")


def later_day(num_rows: int = 700) -> pa.Table:
    """Rows of the same shape that the run has not seen, without labels, outcomes, position and weight."""
    unknown = (*TASKS, "weight", "position", "watch_time_s", "click_time", "like_time")
    return planted_log(num_rows, seed=7).table.drop_columns(list(unknown))


def write(path: Path, table: pa.Table, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def scored(run: LoadedRun, source: Path, out: Path, batch_size: int = BATCH, **flags) -> pa.Table:
    result = score_file(run, source, out, batch_size=batch_size, **flags)
    table = pq.read_table(out)
    assert (result.path, result.num_rows, list(result.columns)) == (out, table.num_rows, table.column_names)
    return table


def matrix(table: pa.Table) -> np.ndarray:
    return np.stack([table[f"probability.{task}"].to_numpy() for task in TASKS], 1)


def test_probabilities_are_those_that_evaluation_measures(run: LoadedRun, tmp_path: Path) -> None:
    """The rows of the test day as a file of their own, scored, against the batches of the evaluation: the same bits."""
    partition = run.config.validation_data["test"]
    parts = [
        run.model.probabilities(batch.features).detach()
        for batch in evaluation_batches(run.config, partition, run.preprocessor, torch.device("cpu"))
    ]
    rows = planted_log().table
    rows = rows.filter(pa.array(rows["time"].cast(pa.int64()).to_numpy() >= FIRST_DAY_US + 4 * DAY_US))
    table = scored(run, write(tmp_path / "in.parquet", rows), tmp_path / "out.parquet")
    assert np.array_equal(matrix(table), torch.cat(parts).numpy())
    measured = evaluate(run.config, "test", run.model, run.preprocessor, num_bootstrap=0).whole
    weights = rows["weight"].to_numpy()
    for task, probabilities in zip(TASKS, matrix(table).astype(np.float64).T, strict=True):
        expected = np.average(probabilities, weights=weights)
        assert measured.tasks[task].values["mean_prediction"] == pytest.approx(expected, rel=1e-6)


def test_columns_are_keys_probabilities_and_score(run: LoadedRun, tmp_path: Path) -> None:
    source = later_day()
    table = scored(run, write(tmp_path / "in.parquet", source), tmp_path / "out.parquet")
    names = [f"probability.{task}" for task in TASKS]
    assert table.column_names == ["user_id", "item_id", "time", *names, "score"]
    for key in ("user_id", "item_id", "time"):
        assert table[key].equals(source[key])
    probabilities = matrix(table)
    assert ((probabilities > 0) & (probabilities < 1)).all()
    expected = probabilities[:, 0].astype(np.float64) - 20 * probabilities[:, 3]
    np.testing.assert_allclose(table["score"].to_numpy(), expected, rtol=1e-5, atol=1e-6)
    assert table.schema.metadata[b"rookery.step"] == b"30"


def test_keys_that_are_no_features_may_be_absent(run: LoadedRun, tmp_path: Path) -> None:
    whole = scored(run, write(tmp_path / "in.parquet", later_day()), tmp_path / "out.parquet")
    without = scored(
        run, write(tmp_path / "some.parquet", later_day().drop_columns(["time"])), tmp_path / "some_out.parquet"
    )
    assert without.column_names[:2] == ["user_id", "item_id"]
    assert "time" not in without.column_names
    assert np.array_equal(matrix(whole), matrix(without))


@pytest.mark.parametrize("batch_size", [1, 97, 300])
def test_order_is_kept_over_batches_row_groups_and_files(run: LoadedRun, tmp_path: Path, batch_size: int) -> None:
    source = later_day()
    whole = scored(run, write(tmp_path / "in.parquet", source), tmp_path / "out.parquet")
    for number, start in enumerate(range(0, 700, 280)):
        write(tmp_path / "parts" / f"{number}.parquet", source.slice(start, 280), row_group_size=120)
    table = scored(run, tmp_path / "parts", tmp_path / "parts_out.parquet", batch_size)
    assert table["time"].equals(source["time"])
    np.testing.assert_allclose(matrix(table), matrix(whole), rtol=1e-5, atol=1e-7)


def test_row_groups_of_the_result_are_bounded(run: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rookery.ranker.score._ROWS_PER_GROUP", 200)
    scored(run, write(tmp_path / "in.parquet", later_day()), tmp_path / "out.parquet", batch_size=50)
    metadata = pq.read_metadata(tmp_path / "out.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [200, 200, 200, 100]


def test_an_existing_file_is_kept_unless_told(run: LoadedRun, tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.parquet", later_day()), tmp_path / "out.parquet"
    out.write_text("mine")
    with pytest.raises(DataError, match="exists; choose another name, or pass --overwrite"):
        score_file(run, source, out, batch_size=BATCH)
    assert out.read_text() == "mine"


def test_only_an_earlier_result_is_replaced(run: LoadedRun, tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.parquet", later_day()), tmp_path / "out.parquet"
    for _ in range(2):
        assert scored(run, source, out, overwrite=True).num_rows == 700
    config, foreign = tmp_path / "ranker.yaml", write(tmp_path / "foreign.parquet", later_day(5))
    config.write_text("mine")
    before = foreign.read_bytes()
    for place in (config, foreign):
        with pytest.raises(DataError, match=rf"{place.name}: not an earlier result of .*choose another name"):
            score_file(run, source, place, batch_size=BATCH, overwrite=True)
    assert (config.read_text(), foreign.read_bytes()) == ("mine", before)


def test_the_rows_themselves_are_never_replaced(run: LoadedRun, tmp_path: Path) -> None:
    source = write(tmp_path / "rows" / "in.parquet", later_day())
    for place, out in ((source, source), (source.parent, source.parent / "new.parquet")):
        with pytest.raises(DataError, match="lies among the rows to score"):
            score_file(run, place, out, batch_size=BATCH, overwrite=True)
    with pytest.raises(DataError, match="is a folder"):
        score_file(run, source, tmp_path / "rows", batch_size=BATCH)


def test_after_a_failure_nothing_is_left(run: LoadedRun, tmp_path: Path) -> None:
    """The hour of row 650 is no row of its table: it is found after batches have been written."""
    table = later_day()
    hours = table["hour"].to_numpy().copy()
    hours[650] = 24
    place = table.column_names.index("hour")
    source = write(tmp_path / "in.parquet", table.set_column(place, "hour", pa.array(hours)), row_group_size=300)
    out = tmp_path / "results" / "out.parquet"
    with pytest.raises(
        DataError, match=r"in\.parquet: row group 2, row 50, column 'hour' is 24: .*table 'hours' has rows 0"
    ):
        score_file(run, source, out, batch_size=100)
    assert list(out.parent.iterdir()) == []


def test_a_replaced_file_survives_a_failure(run: LoadedRun, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    scored(run, write(tmp_path / "whole.parquet", later_day()), out)
    before = out.read_bytes()
    source = write(tmp_path / "in.parquet", later_day().drop_columns(["country"]))
    with pytest.raises(DataError, match=r"in\.parquet: no column 'country'"):
        score_file(run, source, out, batch_size=BATCH, overwrite=True)
    assert out.read_bytes() == before


def cast(table: pa.Table, name: str, arrow_type: pa.DataType) -> pa.Table:
    column = table[name]
    encoded = column.dictionary_encode() if pa.types.is_dictionary(arrow_type) else column.cast(arrow_type, safe=False)
    return table.set_column(table.column_names.index(name), name, encoded)


@pytest.mark.parametrize(
    ("name", "first", "second", "common"),
    [
        ("item_id", pa.int32(), pa.int64(), pa.int64()),
        ("item_id", pa.uint32(), pa.int16(), pa.int64()),
        ("item_id", pa.float64(), pa.int32(), pa.float64()),
        ("time", pa.timestamp("ms"), pa.timestamp("us"), pa.timestamp("us")),
        ("user_id", pa.string(), pa.dictionary(pa.int32(), pa.string()), pa.string()),
        ("user_id", pa.dictionary(pa.int32(), pa.string()), pa.large_string(), pa.large_string()),
    ],
)
def test_keys_of_files_that_differ_in_their_types_get_one(
    run: LoadedRun, tmp_path: Path, name: str, first: pa.DataType, second: pa.DataType, common: pa.DataType
) -> None:
    table = later_day()
    parts = [cast(table.slice(0, 300), name, first), cast(table.slice(300), name, second)]
    for number, part in enumerate(parts):
        write(tmp_path / "in" / f"{number}.parquet", part)
    found = scored(run, tmp_path / "in", tmp_path / "out.parquet", batch_size=97)
    assert found.schema.field(name).type == common
    expected = [value for part in parts for value in part[name].cast(common).to_pylist()]
    assert found[name].to_pylist() == expected
    # Batches that begin elsewhere are computed in another order.
    assert np.allclose(
        matrix(found), matrix(scored(run, write(tmp_path / "one.parquet", table), tmp_path / "o.parquet"))
    )


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("item_id", pa.int64(), pa.uint64()),
        ("item_id", pa.int64(), pa.float64()),
        ("time", pa.timestamp("us"), pa.timestamp("us", "UTC")),
        ("time", pa.timestamp("us"), pa.int64()),
    ],
)
def test_key_types_that_no_type_holds_are_told(
    run: LoadedRun, tmp_path: Path, name: str, first: pa.DataType, second: pa.DataType
) -> None:
    for number, each in enumerate((first, second)):
        write(tmp_path / "in" / f"{number}.parquet", cast(later_day(), name, each))
    first_place, second_place = (
        rf"{re.escape(str(each))} in .*/{number}\.parquet" for number, each in enumerate((first, second))
    )
    message = f"column '{name}' is {first_place}, {second_place}, .*one type in all files"
    with pytest.raises(DataError, match=message):
        score_file(run, tmp_path / "in", tmp_path / "results" / "out.parquet", batch_size=BATCH)
    assert not (tmp_path / "results").exists()


def test_a_key_that_does_not_fit_the_common_type_is_told(run: LoadedRun, tmp_path: Path) -> None:
    """Seconds reach further than nanoseconds do."""
    table = later_day()
    far = pa.array([2**40] * 700, pa.timestamp("ms"))
    place = table.column_names.index("time")
    write(tmp_path / "in" / "0.parquet", table.set_column(place, "time", far))
    write(tmp_path / "in" / "1.parquet", cast(table, "time", pa.timestamp("ns")), version="2.6")
    far_away = table.set_column(place, "time", pa.array([2**50] * 700, pa.timestamp("ms")))
    scored(run, tmp_path / "in", tmp_path / "out.parquet")
    write(tmp_path / "in" / "0.parquet", far_away)
    with pytest.raises(DataError, match=r"0\.parquet: its columns user_id, item_id, time cannot be read as .*\[ns\]"):
        score_file(run, tmp_path / "in", tmp_path / "new.parquet", batch_size=BATCH)
    assert not (tmp_path / "new.parquet").exists()


def test_a_key_that_occurs_twice_is_told(run: LoadedRun, tmp_path: Path) -> None:
    table = later_day()
    source = write(tmp_path / "in.parquet", table.append_column("item_id", table["item_id"]))
    with pytest.raises(DataError, match=r"in\.parquet: column 'item_id' occurs 2 times; write it once"):
        score_file(run, source, tmp_path / "out.parquet", batch_size=BATCH)


def test_no_rows_give_a_file_without_rows(run: LoadedRun, tmp_path: Path) -> None:
    some = scored(run, write(tmp_path / "in.parquet", later_day()), tmp_path / "some.parquet")
    none = scored(run, write(tmp_path / "empty.parquet", later_day().slice(0, 0)), tmp_path / "none.parquet")
    assert none.num_rows == 0
    assert none.schema.equals(some.schema, check_metadata=True)
    source = write(tmp_path / "less.parquet", later_day().slice(0, 0).drop_columns(["country"]))
    with pytest.raises(DataError, match="no column 'country'"):
        score_file(run, source, tmp_path / "less_out.parquet", batch_size=BATCH)
    assert not (tmp_path / "less_out.parquet").exists()


def test_what_cannot_be_scored_is_told_with_file_and_column(run: LoadedRun, tmp_path: Path) -> None:
    table = later_day()
    out = tmp_path / "out.parquet"
    text = table.set_column(table.column_names.index("age"), "age", pa.array(["old"] * 700))
    with pytest.raises(DataError, match=r"age\.parquet: column 'age' is string"):
        score_file(run, write(tmp_path / "age.parquet", text), out, batch_size=BATCH)
    write(tmp_path / "mixed" / "a.parquet", table)
    write(tmp_path / "mixed" / "b.parquet", table.drop_columns(["time"]))
    with pytest.raises(DataError, match=r"b\.parquet: no column 'time', but .*a\.parquet has it"):
        score_file(run, tmp_path / "mixed", out, batch_size=BATCH)
    with pytest.raises(DataError, match="no Parquet file there"):
        score_file(run, tmp_path / "none.parquet", out, batch_size=BATCH)
    assert not out.exists()


def test_numbers_that_are_not_finite_are_warned_of_once(
    run: LoadedRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run.preprocessor.non_finite.clear()
    score_file(run, write(tmp_path / "in.parquet", later_day()), tmp_path / "out.parquet", batch_size=50)
    assert sum("feature 'age'" in record.getMessage() for record in caplog.records) == 1
