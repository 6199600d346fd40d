"""A ranker's first start over several processes: each reads a part of the rows, and all know what one would."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from blanked_pages import blank_row_group
from planted_impressions import PlantedLog, planted_config, planted_log, write_log, write_vectors
from ranks import run_ranks
from recorded_log import recorded_config, write_records

from rookery.data import record_index
from rookery.data.row_groups import RowGroupSlice
from rookery.errors import RookeryError
from rookery.parallel.world import is_chief
from rookery.ranker import checks, counting, statistics
from rookery.ranker.config import RankerConfig
from rookery.ranker.inputs import INPUTS
from rookery.ranker.train import opened_job

SIZES = (1, 2, 3)
NUM_ROWS = 3000
Z_SCORES = {"z_score_log_config": {"clip_magnitude": 5.0}}
BINS = {"piecewise_linear_config": {"num_bins": 4}}
TABLES = [
    {"name": "countries", "embedding_dim": 3, "vocabulary": {"min_count": 2}},
    {"name": "hours", "embedding_dim": 2, "num_embeddings": 24},
    {"name": "categories", "embedding_dim": 4, "vocabulary": {}},
    {"name": "items", "embedding_dim": 4, "vocabulary": {"max_size": 25, "min_count": 2}},
]


class Start(NamedTuple):
    """What a process knows once it has started, and what it read to count: file, row group, column and rows."""

    files: dict[str, bytes]
    statistics: dict[str, np.ndarray]
    read: list[tuple[str, int, str, int]]


class Refusal(NamedTuple):
    kind: str
    message: str
    exit_code: int
    is_told_elsewhere: bool


def start(config: RankerConfig) -> Start | Refusal:
    checks._BATCH_ROWS = 500  # so that each process has some
    statistics._BATCH_ROWS = 300
    read = []
    whole = counting.read_column

    def noted(piece: RowGroupSlice, column: str) -> pa.ChunkedArray:
        read.append((str(piece.file), piece.row_group, column, piece.num_rows))
        return whole(piece, column)

    counting.read_column = noted
    folder = config.training.save_dir / INPUTS
    try:
        with opened_job(config, lambda model: None) as (_, job):
            files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
            state = job.model.network.featurizer.state_dict()
            return Start(files, {name: tensor.numpy() for name, tensor in state.items()}, read)
    except RookeryError as error:
        assert not config.training.save_dir.exists() or not is_chief()
        return Refusal(type(error).__name__, str(error), error.exit_code, error.is_told_elsewhere)
    finally:
        counting.read_column = whole


def start_each(configs: Mapping[str, RankerConfig]) -> dict[str, Start | Refusal]:
    return {case: start(config) for case, config in configs.items()}


def config_of(case: Path, size: int, **changes: Any) -> RankerConfig:
    fields = {
        "features__tables": TABLES,
        "model__featurization_config": Z_SCORES,
        "parallel__num_lanes": 6,
        "train_data__first_rows_with_positives": NUM_ROWS,
        **changes,
    }
    return planted_config(case / "log", case / str(size), case.parent / "vectors", **fields)


CASES: dict[str, dict[str, Any]] = {
    "all rows": {"train_data__rows": None, "model__featurization_config": BINS},
    "rows of a range": {},
    "scattered rows, some of them": {
        "train_data__rows": {"column": "hour", "at_least": 3, "below": 19},
        "train_data__offset": 130,
        "train_data__limit": 1500,
    },
    "damage is left out": {"train_data__on_corrupt": "skip"},
    "fewer row groups than processes": {"train_data__rows": None},
}
REFUSED = {
    "an id with a fraction": (r"part-1.parquet: row group 4, row 40, column 'category' is 4.5", 1),
    "a label of 2": (r"part-1.parquet: row group 4, row 40, column 'like' is 2", 1),
    "a row group that is lost": (r"part-1.parquet: row group 3, column 'recent_items' cannot be decoded", 1),
    "nothing is left": (r"none of 3,000 rows is left by rows hour >= 24", 0),
    "no mask": (r"nowhere.json: No such file or directory; correct mask_path", 0),
}


def log_of(case: str, folder: Path, log: PlantedLog) -> dict[str, Any]:
    """Write the log of a case, and give the changes of its configuration."""
    if case == "an id with a fraction":
        log = spoiled(log, "category", pa.float64(), 4.5)
    if case == "a label of 2":
        log = spoiled(log, "like", pa.int8(), 2)
    few = case == "fewer row groups than processes"
    files = write_log(folder, log, num_files=1 if few else 3, row_group_rows=NUM_ROWS if few else 90)
    if case == "damage is left out":
        for number, column in ((2, "item_id"), (7, "country")):
            blank_row_group(files[0], number, column)
    if case == "a row group that is lost":
        for file in files[1:]:
            blank_row_group(file, 3, "recent_items.list.element")
    if case == "nothing is left":
        return {"train_data__rows": {"column": "hour", "at_least": 24}}
    if case == "no mask":
        return {"preprocess__truncate_and_slice": [{"feature": "stats", "mask_path": str(folder / "nowhere.json")}]}
    return CASES.get(case, {"train_data__rows": None})


def spoiled(log: PlantedLog, name: str, kind: pa.DataType, value: float) -> PlantedLog:
    """Two rows, one of the second process of three and one of the third, with a value that the column may not have."""
    values = log.table.column(name).to_numpy().astype(np.float64)
    values[[1400, 2600]] = value
    column = pa.array(values).cast(kind)
    table = log.table.set_column(log.table.column_names.index(name), name, column)
    return PlantedLog(table, log.probabilities, log.users, log.items)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """By number of processes, what each of them knows of each case."""
    folder, log = tmp_path_factory.mktemp("first start"), planted_log(NUM_ROWS)
    write_vectors(folder / "vectors", log)
    changes = {case: log_of(case, folder / case / "log", log) for case in (*CASES, *REFUSED)}
    return {
        size: run_ranks(size, start_each, {case: config_of(folder / case, size, **changes[case]) for case in changes})
        for size in SIZES
    }


@pytest.mark.parametrize("case", CASES)
def test_processes_know_to_the_bit_what_one_does(started: dict[int, list[dict[str, Any]]], case: str) -> None:
    alone = started[1][0][case]
    assert isinstance(alone, Start), alone
    assert {"vocabularies/items.parquet", "manifest.json"} <= alone.files.keys()
    assert any(np.any(values) for values in alone.statistics.values())
    for size in SIZES:
        for found in started[size]:
            assert found[case].files == alone.files
            np.testing.assert_equal(found[case].statistics, alone.statistics)


@pytest.mark.parametrize("case", CASES)
def test_each_row_group_is_counted_by_one_process(started: dict[int, list[dict[str, Any]]], case: str) -> None:
    alone = started[1][0][case]
    for size in SIZES:
        read = [found[case].read for found in started[size]]
        assert sorted(place for mine in read for place in mine) == sorted(alone.read)
        rows = [sum(num_rows for _, _, column, num_rows in mine if column == "country") for mine in read]
        largest = max(num_rows for *_, num_rows in alone.read)
        assert max(rows) <= sum(rows) / size + largest
        assert min(rows) >= sum(rows) / size - largest


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_that_of_one_process_and_told_once(started: dict[int, list[dict[str, Any]]], case: str) -> None:
    expected, teller = REFUSED[case]
    alone = started[1][0][case]
    assert isinstance(alone, Refusal), alone
    assert re.search(expected, alone.message)
    assert alone.exit_code == 2
    for size in SIZES:
        found = [each[case] for each in started[size]]
        message = alone.message.replace(f"/{case}/1", f"/{case}/{size}")
        assert [each._replace(is_told_elsewhere=False) for each in found] == [alone._replace(message=message)] * size
        assert [each.is_told_elsewhere for each in found].count(False) == 1
    assert not started[3][teller][case].is_told_elsewhere


def scan(config: RankerConfig) -> tuple[Start | Refusal, list[str]]:
    """What a start that finds no index knows, and the files that it passed over to count their records."""
    scanned = []
    whole = record_index._scan

    def noted(state: record_index.FileState) -> record_index.RecordIndex:
        scanned.append(str(state.place))
        return whole(state)

    record_index._scan = noted
    try:
        return start(config), scanned
    finally:
        record_index._scan = whole


def test_new_files_of_records_are_passed_over_by_one_process_each(tmp_path: Path) -> None:
    runs = {}
    for size in (1, 3):
        log = tmp_path / f"log {size}"
        files = write_records(log, num_files=5)
        config = recorded_config(log, tmp_path / f"run {size}", log, parallel__num_lanes=6)
        runs[size] = run_ranks(size, scan, config)
        assert sorted(place for _, scanned in runs[size] for place in scanned) == sorted(map(str, files))
    assert [len(scanned) for _, scanned in runs[3]] == [2, 2, 1]
    (alone, _), *_ = runs[1]
    assert [found.files for found, _ in runs[3]] == [alone.files] * 3
