"""Files of records as rows: blocks in any order, what is kept of a pass, damage by file, record and byte."""

from __future__ import annotations

import errno
import gzip
import json
import os
import random
from concurrent.futures import ThreadPoolExecutor

import naive_records as naive
import pytest
import torch

from rookery.data import record_index as index_module
from rookery.data.columns import ColumnRequest
from rookery.data.files_config import RecordsConfig
from rookery.data.flight_identity import _footer
from rookery.data.locate import locate_row
from rookery.data.record_files import DamagedBlock, record_files
from rookery.data.row_filter import RowFilter, filter_rows
from rookery.data.row_groups import list_row_groups, read_rows, read_sound_rows
from rookery.data.segdense import read_columns
from rookery.data.stream import ParquetStream
from rookery.data.tfrecord import framed
from rookery.errors import ConfigError, DataError
from rookery.storage.location import as_location
from rookery.storage.remote import put

SCHEMA = [
    {"dtype": "float_list", "feature_name": "deep.floats", "length": 3},
    {"dtype": "int64_list", "feature_name": "id", "length": 1},
    {"dtype": "int64_list", "feature_name": "ids", "length": -1},
    {"dtype": "bytes_list", "feature_name": "name", "length": 1},
]
NUM_ROWS = 200


def row(number: int) -> naive.Lists:
    return {
        "deep.floats": ("float_list", [number, number + 0.25, -number]),
        "id": ("int64_list", [number * 2**40]),
        "ids": ("int64_list", list(range(number % 4))),
        "name": ("bytes_list", [b"row %d" % number]),
    }


FRAMES = [framed(naive.example(row(number))) for number in range(NUM_ROWS)]


ROWS = b"".join(FRAMES)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(index_module, "BLOCK_BYTES", 2_000)


@pytest.fixture
def config(tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"schema": SCHEMA}))
    return RecordsConfig(schema_path=schema, renamed_features={"floats": "deep.floats"}, index_dir=tmp_path / "index")


def write(path, data=ROWS):
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.fixture(params=["rows.tfrecord", "rows.gz"])
def source(request, tmp_path, config):
    return record_files([write(tmp_path / request.param)], config)[0]


def test_blocks_in_any_order_and_from_many_threads_are_the_rows(source):
    assert len(source.blocks) == 10
    assert sum(source.blocks) == NUM_ROWS
    order = list(range(len(source.blocks))) * 3
    random.Random(0).shuffle(order)
    with ThreadPoolExecutor(4) as threads:
        tables = list(threads.map(lambda block: source.read(block, ["name", "floats", "id", "ids"]), order))
    for block, table in zip(order, tables, strict=True):
        first = source.record(block, 0)
        assert table.column_names == ["name", "floats", "id", "ids"]
        for place, found in enumerate(table.to_pylist()):
            wanted = row(first + place)
            assert found == {
                "name": wanted["name"][1][0],
                "floats": wanted["deep.floats"][1],
                "id": wanted["id"][1][0],
                "ids": wanted["ids"][1],
            }


def test_without_what_was_kept_of_the_pass_every_block_is_found_again(source, monkeypatch):
    expected = [source.read(block, ["id"]) for block in range(len(source.blocks))]
    for most in (0, 1, 3):
        places = index_module._Restarts(most)
        monkeypatch.setattr(index_module, "_restarts", lambda places=places: places)
        for block in (7, 3, 9, 8, 0, 9):
            assert source.read(block, ["id"]).equals(expected[block])
        assert len(places._places) <= most


def test_rows_become_tensors_like_those_of_parquet(source):
    requests = [
        ColumnRequest("floats", "vector", width=3),
        ColumnRequest("id", "label"),
        ColumnRequest("ids", "id_list", max_length=2),
    ]
    slices, types = list_row_groups([source], requests)
    assert [piece.num_rows for piece in slices] == list(source.blocks)
    columns = read_rows(slices, types)
    numbers = torch.arange(NUM_ROWS, dtype=torch.float32)
    assert torch.equal(columns["floats"], torch.stack([numbers, numbers + 0.25, -numbers], 1))
    assert torch.equal(columns["id"], numbers * 2**40)
    assert columns["ids"][3].tolist() == [1, 2]
    place = locate_row(slices, types["id"], lambda values: values == 77 * 2**40)
    assert str(place) == f"{source}: record 77, column 'id'"
    chosen = filter_rows(slices, RowFilter("id", 10 * 2**40, 90 * 2**40))
    assert read_rows(chosen, types)["floats"][:, 0].tolist() == list(range(10, 90))


def test_blocks_of_small_records_are_bounded_by_their_number(tmp_path, config, monkeypatch):
    """A record of no bytes becomes a whole row of defaults."""
    monkeypatch.setattr(index_module, "BLOCK_RECORDS", 7)
    rows = [b"" if number % 3 else naive.example(row(number)) for number in range(90)]
    (source,) = record_files([write(tmp_path / "rows.gz", b"".join(map(framed, rows)))], config)
    assert max(source.blocks) == 7
    assert sum(source.blocks) == 90
    found = {}
    for block in random.Random(0).sample(range(len(source.blocks)), len(source.blocks)):
        for place, number in enumerate(source.read(block, ["id"]).column("id").to_pylist()):
            found[source.record(block, place)] = number
    assert found == {number: 0 if number % 3 else number * 2**40 for number in range(90)}


def test_a_pass_is_made_once_for_a_file_as_it_is(source, config, monkeypatch):
    scans = []
    scan = index_module._scan
    monkeypatch.setattr(index_module, "_scan", lambda state: scans.append(state.place) or scan(state))
    blocks = source.blocks
    index_module.record_index.cache_clear()
    assert source.blocks == blocks
    assert len(list(config.index_dir.iterdir())) == 1
    stored = next(config.index_dir.iterdir())
    index_module.record_index.cache_clear()
    assert source.blocks == blocks
    assert len(scans) == 1
    stored.write_text(stored.read_text()[:-9])
    index_module.record_index.cache_clear()
    assert source.blocks == blocks
    assert len(scans) == 2
    write(source.place, b"".join(FRAMES[:50]))
    os.utime(source.place, ns=(1, 1))
    assert sum(source.blocks) == 50
    assert len(scans) == 3


def test_its_identity_tells_content_not_place(source, config, tmp_path):
    (tmp_path / "other").mkdir()
    elsewhere = tmp_path / "other" / source.name
    elsewhere.write_bytes(source.place.read_bytes())
    (same,) = record_files([elsewhere], config)
    assert _footer(same) == _footer(source)
    write(elsewhere, b"".join([*FRAMES[:-1], framed(naive.example(row(0)))]))
    assert _footer(same) != _footer(source)
    masked = config.model_copy(update={"mask_mantissa_features": {"floats": 3}})
    assert _footer(record_files([source.place], masked)[0]) != _footer(source)


def test_a_sum_that_is_wrong_spoils_its_block_alone(tmp_path, config):
    frames = list(FRAMES)
    frames[60] = frames[60][:20] + b"?" + frames[60][21:]
    (source,) = record_files([write(tmp_path / "rows.gz", b"".join(frames))], config)
    slices, types = list_row_groups([source], ["id"])
    bad = next(piece.row_group for piece in slices if source.record(piece.row_group, piece.num_rows) > 60)
    offset = sum(map(len, frames[:60]))
    message = rf"rows.gz: record 60, byte {offset}: its \d+ bytes of data do not have their CRC-32C; write the file"
    with pytest.raises(DamagedBlock, match=message):
        source.read(bad, ["id"])
    reports = []
    columns, sound = read_sound_rows(slices, types, reports.append)
    assert len(reports) == 1
    assert sound is not None
    assert (~sound).sum() == slices[bad].num_rows
    numbers = torch.arange(NUM_ROWS)
    assert torch.equal(columns["id"][sound], (numbers * 2**40)[sound])


@pytest.mark.parametrize("name", ["rows.tfrecord", "rows.gz"])
def test_a_file_that_ends_too_early_is_refused_or_read_as_far_as_it_goes(tmp_path, config, caplog, name):
    data = b"".join(FRAMES)[:-30]
    place = write(tmp_path / name, data)
    offset = sum(map(len, FRAMES[:-1]))
    message = f"{name}: record 199, byte {offset}: the file ends within it, 30 bytes too early; write the file again"
    with pytest.raises(DataError, match=message):
        list_row_groups(record_files([place], config), ["id"])
    slices, types = list_row_groups(record_files([place], config, skip_damage=True), ["id"])
    assert len(read_rows(slices, types)["id"]) == 199
    assert "What stands behind it is left out (on_corrupt is skip)" in caplog.text


@pytest.mark.parametrize("block_bytes", [2_000, 16_000_000])
def test_a_wrong_sum_of_gzip_costs_no_row(tmp_path, config, monkeypatch, block_bytes):
    monkeypatch.setattr(index_module, "BLOCK_BYTES", block_bytes)
    place = write(tmp_path / "rows.gz")
    zipped = bytearray(place.read_bytes())
    zipped[-6] ^= 1
    place.write_bytes(zipped)
    message = f"rows.gz: record 200, byte {len(ROWS)}: the records before it are whole, then the gzip data are damaged"
    with pytest.raises(DataError, match=message):
        list_row_groups(record_files([place], config), ["id"])
    slices, types = list_row_groups(record_files([place], config, skip_damage=True), ["id"])
    for _ in range(2):
        columns, sound = read_sound_rows(slices, types, pytest.fail)
        assert sound is None
        assert torch.equal(columns["id"], torch.arange(NUM_ROWS) * 2**40)


def test_a_file_that_is_gone_is_left_out_and_one_that_is_not_opened_is_not(source, monkeypatch):
    slices, types = list_row_groups([source], ["id"])
    kept = source.place.rename(source.place.with_name("kept"))
    reports = []
    _, sound = read_sound_rows(slices, types, reports.append)
    assert not sound.any()
    assert "cannot be read (No such file or directory); correct the path, or write the file again" in str(reports[0])
    kept.rename(source.place)

    def refuse(place):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(index_module, "open_bytes", refuse)
    with pytest.raises(DataError, match=r"cannot be read \(Too many open files\); give this process more of what it"):
        read_sound_rows(slices, types, reports.append)


def test_a_file_that_is_written_anew_meanwhile_is_told(source):
    slices, types = list_row_groups([source], ["id"])
    write(source.place, b"".join(FRAMES[:35]))
    for rows in (slices[1:2], slices[5:6]):
        with pytest.raises(DataError, match="was written anew while it was read; start again"):
            read_rows(rows, types)


def test_ranks_share_the_rows_of_records_lane_by_lane(source):
    def batches(rank, world_size):
        fields = {"seed": 3, "shuffle": True, "num_lanes": 3, "num_epochs": 2}
        return ParquetStream([source], ["id"], 30, rank=rank, world_size=world_size, **fields)

    whole = [batch["id"].clone() for batch in batches(0, 1)]
    parts = [[batch["id"].clone() for batch in batches(rank, 2)] for rank in range(2)]
    assert len(whole) == 14
    for batch, *shares in zip(whole, *parts, strict=True):
        assert torch.equal(batch, torch.cat(shares))
    for epoch in (whole[:7], whole[7:]):
        assert sorted(torch.cat(epoch).tolist()) == [number * 2**40 for number in range(NUM_ROWS)]
    assert not torch.equal(torch.cat(whole[:7]), torch.cat(whole[7:]))


def test_records_that_do_not_fit_the_schema_are_named(tmp_path, config):
    frames = [*FRAMES[:40], framed(naive.example({"deep.floats": ("float_list", [1.0])})), *FRAMES[40:]]
    (source,) = record_files([write(tmp_path / "rows.gz", b"".join(frames))], config)
    slices, types = list_row_groups([source], ["id", "floats"])
    offset = sum(map(len, frames[:40]))
    with pytest.raises(DataError, match=f"rows.gz: record 40, byte {offset}: feature 'deep.floats' has 1 values, and"):
        read_rows(slices, types)


def test_a_file_that_is_no_tfrecord_is_told(tmp_path, config):
    place = tmp_path / "notes.tfrecord"
    place.write_text("these are no records, only words")
    with pytest.raises(DataError, match=r"notes.tfrecord: record 0, byte 0: its length does not have its CRC-32C"):
        list_row_groups(record_files([place], config), [])
    with pytest.raises(DataError, match=r"nowhere.gz: cannot be read \(No such file or directory\); correct the path"):
        list_row_groups(record_files([tmp_path / "nowhere.gz"], config), [])
    assert list_row_groups(record_files([write(tmp_path / "empty.gz", b"")], config), [])[0] == []


@pytest.mark.parametrize("name", ["rows.tfrecord", "rows.gz"])
def test_objects_of_a_store_are_read_as_files_are(tmp_path, config, name):
    place = as_location(f"memory://birds/{name}")
    put(write(tmp_path / name), place)
    (source,) = record_files([place], config)
    assert sum(source.blocks) == NUM_ROWS
    assert source.read(5, ["name"]).column("name")[0].as_py() == b"row %d" % source.record(5, 0)


def test_names_and_masks_that_do_not_fit_the_schema_are_refused(config):
    def columns(**fields):
        return read_columns(config.model_copy(update=fields))

    with pytest.raises(ConfigError, match=r"renamed_features.floats=deep.float: .*no such feature; did you mean"):
        columns(renamed_features={"floats": "deep.float"})
    with pytest.raises(ConfigError, match=r"renamed_features.id: the schema has a feature of this name besides"):
        columns(renamed_features={"id": "deep.floats"})
    with pytest.raises(ConfigError, match=r"mask_mantissa_features.deep.floats: no such column"):
        columns(mask_mantissa_features={"deep.floats": 3})
    with pytest.raises(ConfigError, match=r"mask_mantissa_features.id: the column is an int64_list, which has no"):
        columns(mask_mantissa_features={"id": 3})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", r"schema.json: the file: .*; a schema is"),
        ('{"schema": []}', r"schema.json: schema: "),
        ('{"schema": [{"dtype": "double", "feature_name": "a", "length": 1}]}', r"schema.0.dtype"),
        ('{"schema": [{"dtype": "int64_list", "feature_name": "a", "length": -2}]}', r"schema.0.length"),
        ('{"schema": [{"dtype": "int64_list", "feature_name": "a", "length": 0}]}', r"schema.0.length=0: must be at"),
        (json.dumps({"schema": [SCHEMA[0], SCHEMA[0]]}), r"feature 'deep.floats' is listed twice"),
    ],
)
def test_what_is_no_schema_is_told(config, text, problem):
    config.schema_path.write_text(text)
    with pytest.raises(DataError, match=problem):
        read_columns(config)


def test_a_schema_that_is_not_there_is_told(config):
    with pytest.raises(
        DataError, match=r"nowhere.json: the schema of the records cannot be read .*correct schema_path"
    ):
        read_columns(config.model_copy(update={"schema_path": as_location("nowhere.json")}))
