"""Conversion to Parquet: the rows that the plain parser sees, whole or absent, going on where it was cut off."""

from __future__ import annotations

import gzip
import json
import threading

import naive_records as naive
import numpy as np
import pyarrow.parquet as pq
import pytest
from recorded_log import SCHEMA, record, records_config, write_records

from rookery.data import record_convert
from rookery.data.files_config import RecordsConfig
from rookery.data.record_convert import Conversion, convert_records
from rookery.data.reference_records import reference_columns, write_reference
from rookery.data.tf_example import parse_examples
from rookery.data.tfrecord import framed
from rookery.errors import DataError

DEFAULTS = {"int64_list": 0, "float_list": 0.0, "bytes_list": b""}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(record_convert, "BLOCK_BYTES", 2_000)
    monkeypatch.setattr(record_convert, "PART_BYTES", 10_000)


@pytest.fixture
def files(tmp_path):
    return write_records(tmp_path / "in")


@pytest.fixture
def config(tmp_path, files):
    return records_config(tmp_path / "in")


def plain_rows(files):
    """What the plain parser makes of the log: the records are drawn again."""
    random = np.random.default_rng(0)
    ours = {theirs: ours for ours, theirs in {"continuous": "all.continuous", "click": "is.click"}.items()}
    for number in range(200 * len(files)):
        lists = naive.parse(naive.example(record(random, number)))
        row = {}
        for entry in SCHEMA:
            name, length = entry["feature_name"], entry["length"]
            _, values = lists.get(name, (None, [DEFAULTS[entry["dtype"]]] * max(0, length)))
            row[ours.get(name, name)] = values[0] if length == 1 else values
        yield row


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def rows_of(folder):
    return [row for part in sorted(folder.glob("*.parquet")) for row in pq.read_table(part).to_pylist()]


def test_rows_are_those_of_the_plain_parser_in_parts_and_row_groups(files, config, tmp_path):
    seen = []
    conversion = convert_records(files, config, tmp_path / "out", notify=seen.append)
    assert rows_of(tmp_path / "out") == list(plain_rows(files))
    assert (conversion.num_records, sum(seen)) == (600, 600)
    assert [file.num_records for file in conversion.files] == [200] * 3
    stored = Conversion.model_validate_json((tmp_path / "out" / "manifest.json").read_bytes())
    assert stored == conversion
    listed = {part for file in conversion.files for part in file.parts}
    assert {*listed, "manifest.json"} == set(content(tmp_path / "out"))
    for part in listed:
        metadata = pq.read_metadata(tmp_path / "out" / part)
        assert 1 <= metadata.num_row_groups <= 6
    assert len(listed) > 9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("after", [1, 150, 330, 599])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_started_again_it_goes_on_with_the_same_bytes(files, config, tmp_path, monkeypatch, after, num_threads):
    convert_records(files, config, tmp_path / "whole")
    done, lock = [0], threading.Lock()

    def interrupt(num_records):
        with lock:
            done[0] += num_records
        if done[0] >= after:
            raise Interrupted

    with pytest.raises(Interrupted):
        convert_records(files, config, tmp_path / "out", num_threads=num_threads, notify=interrupt)
    assert not (tmp_path / "out").exists()
    whole_parts = [path for path in (tmp_path / ".out.converting").glob("*.parquet") if path.name[0] != "."]
    kept = sum(pq.read_metadata(path).num_rows for path in whole_parts)
    parsed = []
    monkeypatch.setattr(
        record_convert,
        "parse_examples",
        lambda records, columns: parsed.append(len(records)) or parse_examples(records, columns),
    )
    convert_records(files, config, tmp_path / "out")
    assert sum(parsed) == 600 - kept
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_parts_of_a_file_that_has_changed_are_written_again(files, config, tmp_path):
    with pytest.raises(Interrupted):
        convert_records(files, config, tmp_path / "out", num_threads=1, notify=raise_at(files, 599))
    random = np.random.default_rng(0)
    rows = [naive.example(record(random, number)) for number in range(600)]
    files[0].write_bytes(b"".join(framed(row) for row in rows[150:250]))
    convert_records(files, config, tmp_path / "out")
    expected = list(plain_rows(files))
    assert rows_of(tmp_path / "out") == expected[150:250] + expected[200:]


def raise_at(files, number):
    done = [0]

    def notify(num_records):
        done[0] += num_records
        if done[0] >= number:
            raise Interrupted

    return notify


def test_parts_of_another_schema_are_written_again(files, config, tmp_path):
    with pytest.raises(Interrupted):
        convert_records(files, config, tmp_path / "out", num_threads=1, notify=raise_at(files, 599))
    other = config.model_copy(update={"mask_mantissa_features": {"continuous": 20}})
    convert_records(files, other, tmp_path / "out")
    convert_records(files, other, tmp_path / "whole")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_damage_is_told_and_once_mended_the_rest_is_done(files, config, tmp_path):
    sound = files[1].read_bytes()
    data = bytearray(gzip.decompress(sound))
    data[20_000] ^= 1
    files[1].write_bytes(gzip.compress(bytes(data)))
    with pytest.raises(DataError, match=r"1.gz: record \d+, byte \d+: its \d+ bytes of data do not have their CRC-32C"):
        convert_records(files, config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    files[1].write_bytes(sound[:-40])
    with pytest.raises(DataError, match=r"1.gz: record \d+, byte \d+: the gzip data end before their end mark"):
        convert_records(files, config, tmp_path / "out")
    files[1].write_bytes(sound)
    convert_records(files, config, tmp_path / "out")
    assert rows_of(tmp_path / "out") == list(plain_rows(files))


def test_records_that_do_not_fit_are_named(files, config, tmp_path):
    with files[0].open("ab") as file:
        file.write(framed(naive.example({"item": ("int64_list", [1, 2])})))
    with pytest.raises(
        DataError, match=r"0.tfrecord: record 200, byte \d+: feature 'item' has 2 values, and the schema"
    ):
        convert_records(files, config, tmp_path / "out")


def test_what_is_there_is_replaced_only_if_asked_and_alike(files, config, tmp_path):
    convert_records(files, config, tmp_path / "out")
    with pytest.raises(DataError, match=r"out: exists; choose another name, or pass --overwrite"):
        convert_records(files, config, tmp_path / "out")
    convert_records(files[:1], config, tmp_path / "out", overwrite=True)
    assert len(rows_of(tmp_path / "out")) == 200
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").touch()
    with pytest.raises(DataError, match=r"other: holds no manifest.json, so --overwrite does not touch it"):
        convert_records(files, config, tmp_path / "other", overwrite=True)


def test_two_conversions_to_one_place_are_refused(files, config, tmp_path):
    failures = []

    def second(_):
        if not failures:
            try:
                convert_records(files, config, tmp_path / "out")
            except DataError as error:
                failures.append(str(error))

    convert_records(files, config, tmp_path / "out", num_threads=1, notify=second)
    assert "another process is converting to it" in failures[0]


def test_row_groups_of_small_records_are_bounded_by_their_number(config, tmp_path, monkeypatch):
    monkeypatch.setattr(record_convert, "BLOCK_RECORDS", 5)
    place = tmp_path / "rows.tfrecord"
    place.write_bytes(framed(b"") * 23)
    convert_records([place], config, tmp_path / "out")
    metadata = pq.read_metadata(tmp_path / "out" / "00000-00000.parquet")
    assert [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)] == [5, 5, 5, 5, 3]
    assert {row["item"] for row in rows_of(tmp_path / "out")} == {0}


def test_empty_files_have_no_part(config, tmp_path):
    empty = tmp_path / "empty.gz"
    empty.write_bytes(gzip.compress(b""))
    conversion = convert_records([empty], config, tmp_path / "out")
    assert (conversion.num_records, conversion.files[0].parts) == (0, ())


def test_the_records_of_the_reference_are_as_many_as_asked_for_and_as_its_schema_says(tmp_path):
    written = write_reference(tmp_path / "gen", 7, num_files=2, seed=3)
    entries = json.loads((tmp_path / "gen" / "segdense.json").read_text())["schema"]
    lengths = {entry["feature_name"]: (entry["dtype"], entry["length"]) for entry in entries}
    assert lengths["home_recap_2022_cont__segdense_vals"] == ("float_list", 6000)
    assert lengths["home_recap_2022_binary__segdense_vals"] == ("int64_list", 512)
    assert lengths["home_recap_2022_discrete__segdense_vals"] == ("int64_list", 320)
    embedding = "original_author.timelines.twhin_author_follow_embeddings.twhin_author_follow_embeddings"
    assert lengths[embedding] == ("float_list", 200)
    assert len(lengths) == 22
    labels = [name for name in lengths if name.startswith("recap.engagement.is_")]
    assert len(labels) == 13
    config = RecordsConfig(schema_path=tmp_path / "gen" / "segdense.json")
    convert_records([tmp_path / "gen" / name for name in written.files], config, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 7
    values = {name: np.array([row[name] for row in rows]) for name in lengths}
    for column in reference_columns():
        found = values[column.name]
        assert found.shape == ((7,) if column.length == 1 else (7, column.length))
        highest = 1 if column.name in labels or column.kind == "float_list" else 9
        assert found.min() >= 0
        assert found.max() <= highest
    assert {int(label) for name in labels for label in values[name]} == {0, 1}
    assert abs(values["home_recap_2022_cont__segdense_vals"].mean() - 0.5) < 0.01


def test_the_same_seed_gives_the_same_records(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_reference(tmp_path / name, 2, seed=seed)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert content(tmp_path / "a")["random.tfrecord.gz"] != content(tmp_path / "c")["random.tfrecord.gz"]
    with pytest.raises(DataError, match=r"a: exists; choose another name"):
        write_reference(tmp_path / "a", 2)
    assert write_reference(tmp_path / "a", 0, overwrite=True).num_examples == 0
