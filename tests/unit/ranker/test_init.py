"""The configuration that ``init`` writes: it loads, says what the columns are and why, and leaves outcomes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from impression_log import DAY_MS, LABELS, START_MS, make_log, write_log
from planted_impressions import NUM_ITEMS, item_id, planted_log, write_vectors
from sklearn.metrics import roc_auc_score

from rookery.config.loader import load_config
from rookery.errors import DataError
from rookery.ranker.checks import check_training_rows, check_validation_rows
from rookery.ranker.config import RankerConfig
from rookery.ranker.init import InitRequest, initial_config
from rookery.ranker.init_columns import Roles
from rookery.ranker.inputs import Inputs
from rookery.ranker.preprocess import Preprocessor

NUMBERS = ["affinity", "match", "duration_ms", "days_since_upload"]
ROLES = Roles(LABELS, "user_id", "video_id", "time_ms")


def init(tmp_path: Path, *log: Path, roles: Roles = ROLES) -> tuple[RankerConfig, str, list[str]]:
    """The configuration, its text, and what the user is told besides."""
    said: list[str] = []
    text = initial_config(InitRequest(log, roles, save_dir=tmp_path / "run"), said.append)
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(RankerConfig, path), text, said


@pytest.fixture(scope="module")
def inferred(tmp_path_factory: pytest.TempPathFactory) -> tuple[RankerConfig, str, list[str]]:
    folder = tmp_path_factory.mktemp("init")
    return init(folder, write_log(folder))


def names(group) -> list[str]:
    return [feature.name for feature in group]


def comment(text: str, column: str) -> str:
    """What the file says of a column."""
    line = next(line for line in text.splitlines() if f"name: {column}," in line or f"name: {column}}}" in line)
    return line.split("# ", 1)[1]


def test_each_kind_is_told_apart(inferred):
    features = inferred[0].features
    assert names(features.continuous) == [*NUMBERS, "figures", "blocks"]
    assert names(features.binary) == ["is_video", "autoplay", "flags"]
    assert [(feature.name, feature.width) for feature in features.dense] == [("vector", 8)]
    widths = {feature.name: feature.width for feature in (*features.continuous, *features.binary)}
    assert {name: width for name, width in widths.items() if width > 1} == {"figures": 3, "blocks": 9, "flags": 5}
    assert names(features.discrete) == ["user_id", "video_id", "tab", "grade", "country", "category"]
    assert names(features.ragged) == ["history", "topics"]


def test_the_position_is_a_key_and_no_feature(inferred):
    config = inferred[0]
    assert config.keys.position == "rank"
    assert config.model.position_debias_config is not None
    assert config.model.position_debias_config.max_position == 21


def test_lists_of_items_share_their_table_and_attend(inferred):
    history, topics = inferred[0].features.ragged
    assert (history.table, history.pooling, history.query, history.max_length) == (
        "video_id",
        "attention",
        "video_id",
        8,
    )
    assert (topics.table, topics.pooling, topics.query) == ("topics", "mean", None)


def test_outcomes_are_left_out_with_their_evidence(inferred):
    _, text, said = inferred
    left_out = text.split("# Left out as outcomes")[1].split("# Left out:")[0]
    area = roc_auc_score(make_log()["clicked"].to_numpy(), make_log()["dwell"].to_numpy())
    assert f"dwell: it alone tells clicked: AUROC {area:.3f}" in left_out
    assert "stay_time: it alone tells liked: AUROC 1.000" in left_out
    assert "shared: clicked is 1 in" in left_out
    told = [line.split(" is left out")[0] for line in said if "left out" in line]
    assert told == ["dwell", "shared", "stay_time"]


def test_columns_that_tell_nothing_are_left_out_with_the_reason(inferred):
    left_out = inferred[1].split("# Left out:")[1]
    for line in (
        "time_ms: the time",
        "row: grows from row to row",
        "session_id: 6,000 different values in 6,000 rows",
        "shown_at: a moment (timestamp[ms], 6,000 distinct)",
        "version: 1 in every row",
        "comment_text: null in every row",
    ):
        assert f"#   {line}" in left_out


def test_comments_have_the_evidence(inferred):
    text = inferred[1]
    table = make_log()
    low, high = pc.min_max(table["duration_ms"]).as_py().values()
    assert comment(text, "duration_ms") == (
        f"int64, {pc.count_distinct(table['duration_ms']).as_py():,} distinct, {low:,} to {high:,}"
    )
    assert comment(text, "country") == "string, 3 distinct"
    null_share = np.isnan(table["grade"].to_numpy()).mean()
    assert comment(text, "grade") == f"double, 30 distinct, 0 to 29, {100 * null_share:.0f}% null"
    assert "100% of them are values of video_id" in comment(text, "history")


def test_tables_are_sized_by_all_rows(inferred):
    config, text, _ = inferred
    tables = {table.name: table for table in config.features.tables}
    assert set(tables) == {"user_id", "video_id", "tab", "grade", "country", "category", "topics"}
    assert tables["user_id"].dropout > tables["tab"].dropout > 0
    assert all(table.vocabulary is not None and table.vocabulary.min_count > 1 for table in tables.values())
    assert "120 in training, 120 of them in 5 rows or more, which 100% of the validation rows have" in text


def test_the_log_is_split_at_days(inferred):
    config, text, _ = inferred
    assert config.train_data.rows is not None
    valid, test = config.validation_data["valid"], config.validation_data["test"]
    times = make_log()["time_ms"].to_numpy()
    bounds = [START_MS + 8 * DAY_MS, START_MS + 9 * DAY_MS]
    assert config.train_data.rows.below == valid.rows.at_least == bounds[0]
    assert valid.rows.below == test.rows.at_least == bounds[1]
    assert (valid.during_training, test.during_training) == (True, False)
    counts = np.bincount(np.searchsorted(bounds, times, side="right"))
    assert [f"{count:,} rows" in text for count in counts] == [True] * 3
    assert "below 2022-05-03 00:00 UTC" in text


def test_labels_have_their_counts_in_each_partition(inferred):
    table = make_log()
    parts = np.searchsorted([START_MS + 8 * DAY_MS, START_MS + 9 * DAY_MS], table["time_ms"].to_numpy(), side="right")
    for label in LABELS:
        train, valid, test = np.bincount(parts, table[label].to_numpy()).astype(int)
        assert f": {train:,} train, {valid:,} valid, {test:,} test" in inferred[1]


def test_few_positives_are_said(tmp_path: Path):
    table = make_log()
    rare = np.zeros(len(table), np.int8)
    rare[::200] = 1
    table = table.set_column(table.column_names.index("liked"), "liked", pa.array(rare))
    _, text, said = init(tmp_path, write_log(tmp_path, table))
    count = int(rare[table["time_ms"].to_numpy() < START_MS + 8 * DAY_MS].sum())
    assert f"liked is 1 in {count} rows of train: too few to learn much" in said
    assert f"# Note: liked is 1 in {count} rows of train" in text


def test_without_a_time_the_order_of_rows_splits(tmp_path: Path):
    config, text, _ = init(tmp_path, write_log(tmp_path), roles=Roles(LABELS, "user_id", "video_id"))
    valid, test = config.validation_data["valid"], config.validation_data["test"]
    assert (config.train_data.offset, config.train_data.limit) == (0, 4_800)
    assert [(part.offset, part.limit) for part in (valid, test)] == [(4_800, 600), (5_400, 600)]
    assert "as there is no --time" in text
    assert "time_ms: a moment" in text


@pytest.mark.parametrize("unit", ["timestamp", "seconds", "day number", "one day"])
def test_times_of_any_kind_split(tmp_path: Path, unit: str):
    table = make_log()
    times = table["time_ms"].to_numpy()
    columns = {
        "timestamp": pa.array(times, pa.timestamp("ms")),
        "seconds": pa.array(times // 1000),
        "day number": pa.array((times - START_MS) // DAY_MS),
        "one day": pa.array(START_MS + (times - START_MS) // 10),
    }
    place = table.column_names.index("time_ms")
    config, _, _ = init(tmp_path, write_log(tmp_path, table.set_column(place, "time_ms", columns[unit])))
    rows = config.validation_data["test"].rows
    assert rows is not None
    expected = {"timestamp": "2022-05-04T00:00:00", "seconds": (START_MS + 9 * DAY_MS) // 1000, "day number": 9}
    if unit in expected:
        assert rows.at_least == expected[unit]
    else:
        share = (columns[unit].to_numpy() >= rows.at_least).mean()
        assert share == pytest.approx(0.1, abs=0.002)


def test_a_split_folder_gives_its_partitions(tmp_path: Path):
    table = make_log()
    for name, start, stop in (("train", 0, 4_000), ("valid", 4_000, 5_000), ("test", 5_000, 6_000)):
        write_log(tmp_path / "split", table.slice(start, stop - start), f"{name}.parquet")
    config, text, _ = init(tmp_path, tmp_path / "split")
    folder = tmp_path.resolve() / "split"
    assert config.train_data.inputs == (str(folder / "train.parquet"),)
    assert {name: part.inputs for name, part in config.validation_data.items()} == {
        "valid": (str(folder / "valid.parquet"),),
        "test": (str(folder / "test.parquet"),),
    }
    assert config.train_data.rows is None
    assert "4,000 train, 1,000 valid, 1,000 test impressions" in text


def test_without_a_validation_file_it_is_cut_from_train(tmp_path: Path):
    table = make_log()
    write_log(tmp_path / "split", table.slice(0, 5_000), "train.parquet")
    write_log(tmp_path / "split", table.slice(5_000), "test.parquet")
    config, _, _ = init(tmp_path, tmp_path / "split")
    train, valid = config.train_data, config.validation_data["valid"]
    assert train.inputs == valid.inputs
    assert train.rows is not None
    assert valid.rows is not None
    assert train.rows.below == valid.rows.at_least
    assert config.validation_data["test"].rows is None


def test_several_files_are_one_log(tmp_path: Path):
    table = make_log()
    files = [write_log(tmp_path, table.slice(start, 2_000), f"{start}.parquet") for start in (0, 2_000, 4_000)]
    several, _, _ = init(tmp_path, *files)
    whole, _, _ = init(tmp_path, write_log(tmp_path / "whole", table))
    assert several.features == whole.features
    assert several.validation_data["test"].rows == whole.validation_data["test"].rows
    assert len(several.train_data.inputs) == 3


def test_a_large_log_is_sampled_from_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rookery.ranker.init_log._SAMPLE_ROWS", 2_000)
    monkeypatch.setattr("rookery.ranker.init_log._RUN_ROWS", 16)
    table = make_log(20_000)
    config, text, _ = init(tmp_path, write_log(tmp_path, table))
    assert "a sample of 2," in text
    assert names(config.features.continuous) == [*NUMBERS, "figures", "blocks"]
    assert "200 in training" in text  # ids are counted in all rows


def test_the_schedules_end_with_the_run(inferred):
    config = inferred[0]
    schedule = config.optimizer.single_task_learning_rate.linear_ramp_to_cosine
    num_rows = int((make_log()["time_ms"].to_numpy() < config.train_data.rows.below).sum())
    batches = -(-num_rows // config.train_data.batch_size)
    assert schedule.final_num_steps == config.training.num_steps(batches)
    assert schedule.num_ramp_steps < schedule.final_num_steps


def test_an_unwanted_label_counts_against_the_score(tmp_path: Path):
    table = make_log().rename_columns([name if name != "liked" else "reported" for name in make_log().column_names])
    config, _, _ = init(
        tmp_path, write_log(tmp_path, table), roles=Roles(("clicked", "reported"), "user_id", "video_id")
    )
    assert config.score.weights == {"clicked": 1.0, "reported": -1.0}


def test_names_of_any_kind_load(tmp_path: Path):
    odd = {"affinity": "a, b: {c}", "country": "# no comment", "clicked": "price ${HOME}", "history": "line\nbreak"}
    table = make_log().rename_columns([odd.get(name, name) for name in make_log().column_names])
    config, _, _ = init(tmp_path, write_log(tmp_path, table), roles=Roles(("price ${HOME}",), "user_id", "video_id"))
    assert config.tasks == ("price ${HOME}",)
    assert "a, b: {c}" in names(config.features.continuous)
    assert "line\nbreak" in names(config.features.ragged)


def refused(tmp_path: Path, table: pa.Table | None = None, roles: Roles = ROLES) -> str:
    log = write_log(tmp_path, table)
    with pytest.raises(DataError) as error:
        initial_config(InitRequest((log,), roles), lambda line: None)
    return str(error.value)


def test_what_cannot_be_used_is_refused_with_a_remedy(tmp_path: Path):
    table = make_log()
    wrong = table["clicked"].to_numpy().copy()
    wrong[1_700] = 2
    place = table.column_names.index("clicked")
    two = table.set_column(place, "clicked", pa.array(wrong))
    null = table.set_column(place, "clicked", pa.array([None, *wrong[1:1_700], *table["clicked"][1_700:].to_pylist()]))
    log = tmp_path / "log.parquet"
    assert refused(tmp_path, two).startswith(f"{log}: row group 1, row 200, column 'clicked' is 2; a label is 0 or 1")
    assert "row group 0, row 0, column 'clicked' is null" in refused(tmp_path, null)
    assert (
        "--label clickd: " in (said := refused(tmp_path, roles=Roles(("clickd",)))) and "did you mean 'clicked'" in said
    )
    assert "did you mean 'user_id'" in refused(tmp_path, roles=Roles(LABELS, user="userid"))
    assert "--time country: the column is string" in refused(tmp_path, roles=Roles(LABELS, time="country"))
    assert "is a label too" in refused(tmp_path, roles=Roles(LABELS, user="liked"))
    assert "named twice" in refused(tmp_path, roles=Roles(("liked", "liked")))
    assert "999 rows; at least 1,000 are needed" in refused(tmp_path, table.slice(0, 999))
    assert "column 'country' is string" in refused(tmp_path, roles=Roles(("country",)))
    assert "no column is left" in refused(tmp_path, table.select(["clicked", "row"]), Roles(("clicked",)))
    assert "1 different values cannot be cut" in refused(tmp_path, roles=Roles(LABELS, time="version"))


def with_column(name: str, values: object, table: pa.Table | None = None) -> pa.Table:
    """The log with a column replaced, or added."""
    table = make_log() if table is None else table
    if name not in table.column_names:
        return table.append_column(name, pa.array(values))
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def check(config: RankerConfig) -> None:
    """What ``train`` refuses before its first step, refused here."""
    preprocessor = Preprocessor(config, Inputs.build(config))
    check_training_rows(config, preprocessor)
    check_validation_rows(config, preprocessor)


def test_training_takes_what_was_inferred(inferred):
    check(inferred[0])


def test_labels_that_cannot_be_learned_are_refused_together(tmp_path: Path):
    late = np.arange(6_000) >= 5_000  # in the days of validation and test alone
    table = with_column("liked", late.astype(np.int8), with_column("clicked", np.ones(6_000, np.int8)))
    num_rows = int((table["time_ms"].to_numpy() < START_MS + 8 * DAY_MS).sum())
    rest = f"the {num_rows:,} training rows, from which it cannot be learned; leave out --label"
    assert refused(tmp_path, table).splitlines() == [
        f"--label clicked: is 1 in all of {rest} clicked, or name more of the log",
        f"--label liked: is never 1 in {rest} liked, or name more of the log",
    ]


def test_a_column_without_a_name_is_left_out(tmp_path: Path):
    config, text, _ = init(tmp_path, write_log(tmp_path, with_column("", np.random.default_rng(0).normal(size=6_000))))
    assert "has no name; rename it when the log is written" in text
    check(config)


def test_infinite_numbers_make_no_id(tmp_path: Path):
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 30, 6_000).astype(float)
    missing = rng.random((2, 6_000)) < 0.25
    table = with_column("level", np.where(missing[0], np.inf, np.where(missing[1], np.nan, whole)))
    table = with_column("flag", np.where(missing[0], np.inf, whole > 15), table)
    table = with_column("one", np.where(missing[0], -np.inf, 1.0), table)
    table = with_column("slot", np.where(missing[0], np.inf, whole), table)
    table = with_column("endless", np.full(6_000, np.inf), table)
    table = with_column("nothing", np.where(missing[0], np.inf, np.nan), table)
    vector = np.where(missing[0][:, None], np.inf, rng.normal(size=(6_000, 9)))
    table = with_column("vector", pa.FixedSizeListArray.from_arrays(pa.array(vector.reshape(-1)), 9), table)
    config, text, _ = init(tmp_path, write_log(tmp_path, table.drop_columns(["rank"])))
    assert {"level", "flag", "one", "slot"} <= set(names(config.features.continuous))
    assert names(config.features.dense) == ["vector"]
    nulls = 100 * (missing[1] & ~missing[0]).mean()
    assert comment(text, "level") == (
        f"double, 30 distinct, 0 to 29, {nulls:.0f}% null, {100 * missing[0].mean():.0f}% infinite"
    )
    assert "#   endless: infinite in every row" in text
    assert "#   nothing: null or infinite in every row" in text
    check(config)


def test_a_key_that_holds_no_ids_is_refused(tmp_path: Path):
    users = make_log()["user_id"].to_numpy()
    fractions = with_column("user_id", users + np.where(np.arange(6_000) == 7, 0.5, 0))
    assert refused(tmp_path, fractions).startswith("--user user_id: the column has a value that")
    endless = with_column("video_id", np.where(np.arange(6_000) == 7, np.inf, users))
    assert refused(tmp_path, endless).startswith("--item video_id: the column has a value that")
    assert "--item history: the column is list" in refused(tmp_path, roles=Roles(LABELS, "user_id", "history"))


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path):
    table = make_log()
    said = refused(tmp_path, table.append_column("tab", table["tab"]))
    assert (
        said
        == f"{tmp_path / 'log.parquet'}: column 'tab' is there twice; rename one of the two when the file is written"
    )


def test_a_missing_or_damaged_file_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="no Parquet file there"):
        initial_config(InitRequest((tmp_path / "none.parquet",), ROLES), lambda line: None)
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        initial_config(InitRequest((tmp_path / "text.parquet",), ROLES), lambda line: None)
    table = make_log()
    first = write_log(tmp_path, table.slice(0, 3_000), "a.parquet")
    other = table.slice(3_000).set_column(0, "row", table["row"][3_000:].cast(pa.string()))
    pq.write_table(other, tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: column 'row' is string, but int64 in .*a\.parquet"):
        initial_config(InitRequest((first, tmp_path / "b.parquet"), ROLES), lambda line: None)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A log and an export with vectors of all users and of most items."""
    folder = tmp_path_factory.mktemp("planted")
    log = planted_log(1_500)
    return write_log(folder, log.table), write_vectors(folder / "vectors", log)


def init_planted(planted: tuple[Path, Path], *keys: str) -> str:
    log, vectors = planted
    embeddings = tuple(f"{vectors}:{key}" for key in keys)
    request = InitRequest((log,), Roles(("click", "like"), "user_id", "item_id", "time"), embeddings)
    return initial_config(request, lambda line: None)


def test_vectors_of_an_export_are_joined(planted: tuple[Path, Path], tmp_path: Path):
    text = init_planted(planted, "user:user_id", "item:item_id", "item:recent_items")
    (tmp_path / "config.yaml").write_text(text)
    joined = load_config(RankerConfig, tmp_path / "config.yaml").features.embeddings
    assert [(each.table, each.key, each.max_length) for each in joined] == [
        ("user", "user_id", None),
        ("item", "item_id", None),
        ("item", "recent_items", 50),
    ]
    assert {each.export for each in joined} == {planted[1].resolve()}
    items = planted_log(1_500).table["item_id"].to_numpy()
    share = np.isin(items, [item_id(item) for item in range(NUM_ITEMS - 5)]).mean()
    assert "60 vectors of 4 numbers; 100% of the ids have one" in text
    assert f"35 vectors of 4 numbers; {100 * share:.0f}% of the ids have one" in text


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("item_id", "write it as EXPORT:TABLE:KEY"),
        ("items:item_id", "the export has no table 'items'; did you mean 'item'"),
        ("item:item", "has no such column; did you mean 'item_id'"),
        ("user:item_id", "none of the column's ids .int64. has a vector"),
        ("user:weight", "has a value that"),
    ],
)
def test_vectors_that_cannot_be_joined_are_refused(planted: tuple[Path, Path], key: str, problem: str):
    with pytest.raises(DataError, match=problem):
        init_planted(planted, key)
