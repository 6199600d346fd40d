"""A ranker that is trained on files of records does what it does on the same rows in Parquet."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import naive_records as naive
import pytest
import torch
from faulty_readers import readers, running
from recorded_log import SCHEMA, as_parquet, recorded_config, records_config, write_records

from rookery.checkpoint.checkpointer import load_checkpoint
from rookery.checkpoint.layout import checkpoint_steps
from rookery.config.loader import parse_config
from rookery.data import record_convert, record_index
from rookery.data.flight_identity import describe
from rookery.data.flight_server import ReaderServer
from rookery.data.tfrecord import framed
from rookery.errors import ConfigError, DataError
from rookery.ranker.build import build_preprocessor
from rookery.ranker.config import RankerConfig
from rookery.ranker.inputs import INPUTS, Inputs
from rookery.ranker.partition import make_transform, open_partition
from rookery.ranker.reading import BatchSource, open_remote, to_columns
from rookery.ranker.run_evaluation import evaluate_run
from rookery.ranker.train import train_ranker
from rookery.train.order import StreamOrder


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Records in blocks of some 20 rows, and the same rows as Parquet."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (record_index, record_convert):
            patch.setattr(module, "BLOCK_BYTES", 3_000)
        folder = tmp_path_factory.mktemp("log")
        files = write_records(folder)
        as_parquet(folder, files)
        yield folder


@pytest.fixture
def configs(log, tmp_path):
    """The same run on records and on Parquet."""
    return (
        recorded_config(log, tmp_path / "records", log),
        recorded_config(log / "parquet", tmp_path / "parquet", None),
    )


def open_stream(config, *, rank=0, num_epochs=2):
    preprocessor = build_preprocessor(config, Inputs.build(config))
    order = StreamOrder(config.train_data.batch_size, 2)
    return open_partition(config, config.train_data, preprocessor, shuffle=True, order=order, num_epochs=num_epochs)


def same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def test_batches_are_those_of_parquet_in_the_same_order(configs):
    records, parquet = map(open_stream, configs)
    assert records.num_rows == parquet.num_rows == 500
    assert len(records.slices) > 20
    for left, right in zip(records, parquet, strict=True):
        same(left, right)
    expected = records.expected()
    assert len(records.finished()) == 2
    assert all(ledger.accounts_for(replace(expected, epoch=ledger.epoch)) for ledger in records.finished())


def test_a_stream_goes_on_where_it_stood(configs):
    stream = open_stream(configs[0])
    batches = [(stream.position(), {name: column.clone() for name, column in batch.items()}) for batch in stream]
    for place in (3, len(batches) - 2):
        again = open_stream(configs[0])
        again.seek(batches[place][0])
        same(next(again), batches[place + 1][1])


def test_training_validation_and_calibration_give_the_bits_of_parquet(configs):
    for config in configs:
        assert train_ranker(config).step == 20
    left, right = (load_checkpoint(config.training.save_dir).tensors("model") for config in configs)
    same(left, right)
    found = [evaluate_run(config.training.save_dir, "valid") for config in configs]
    assert found[0]["tasks"] == found[1]["tasks"]
    assert found[0]["num_rows"] == 100


def test_a_run_that_was_cut_off_ends_with_the_same_bits(log, tmp_path):
    whole = recorded_config(log, tmp_path / "whole", log)
    train_ranker(whole)
    short = recorded_config(log, tmp_path / "cut", log, training__num_train_steps=7)
    train_ranker(short)
    record_index.record_index.cache_clear()
    record_index._restarts.cache_clear()
    train_ranker(recorded_config(log, tmp_path / "cut", log))
    assert checkpoint_steps(tmp_path / "cut")[-1] == 20
    same(*(load_checkpoint(tmp_path / name).tensors("model") for name in ("whole", "cut")))


def test_readers_tell_records_by_what_is_in_them(configs, log):
    here = describe(open_stream(configs[0]), {})
    assert here == describe(open_stream(configs[0]), {})
    assert here["content of the files"] != describe(open_stream(configs[1]), {})["content of the files"]
    data = configs[0].train_data
    masked = data.records.model_copy(update={"mask_mantissa_features": {"continuous": 12}})
    other = configs[0].model_copy(update={"train_data": data.model_copy(update={"records": masked})})
    assert here["content of the files"] != describe(open_stream(other), {})["content of the files"]


def test_readers_give_the_batches_of_records(configs):
    config = configs[0].with_whole_paths()
    Inputs.build(config).write(config.training.save_dir / INPUTS)
    preprocessor = build_preprocessor(config, Inputs.open(config.training.save_dir / INPUTS))
    server = ReaderServer(BatchSource(config), "grpc://127.0.0.1:0")
    order, cpu = StreamOrder(48, 2), torch.device("cpu")
    with running(server):
        local = open_partition(config, config.train_data, preprocessor, shuffle=True, order=order)
        transform = make_transform(local, preprocessor, training=True, device=cpu)
        remote, rebuild = open_remote(config, readers(server), preprocessor, order, cpu)
        for _ in range(local.batches_per_epoch + 2):
            expected = transform(next(local), local.position())
            same(to_columns(rebuild(next(remote), remote.position())), to_columns(expected))
        assert remote.finished() == local.finished()
        remote.close()


def test_damaged_blocks_are_left_out_and_counted(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(record_index, "BLOCK_BYTES", 3_000)
    files = write_records(tmp_path)
    data = bytearray(gzip.decompress(files[1].read_bytes()))
    data[10_000] ^= 1
    files[1].write_bytes(gzip.compress(bytes(data)))
    records = records_config(tmp_path).model_dump(mode="json")
    first = {  # no rows by a column: it would be read beforehand, and there is none to be read
        "train_data__inputs": list(map(str, files[:2])),
        "train_data__rows": None,
        "validation_data__valid": {"inputs": [str(files[2])], "records": records},
    }
    with pytest.raises(DataError, match=r"1.gz: record 53, byte 9875: its 175 bytes of data do not have their CRC-32C"):
        train_ranker(recorded_config(tmp_path, tmp_path / "run", tmp_path, **first))
    config = recorded_config(tmp_path, tmp_path / "run", tmp_path, train_data__on_corrupt="skip", **first)
    assert train_ranker(config).step == 20
    assert "do not have their CRC-32C; write the file again, or copy it anew. Its rows are left out" in caplog.text


def test_all_that_does_not_fit_the_columns_is_told_at_once(log, tmp_path):
    config = recorded_config(
        log,
        tmp_path / "run",
        log,
        features__binary=[{"name": "flags", "width": 4}],
        labels__seen={},
        keys__weight="user",
    )
    with pytest.raises(ConfigError) as raised:
        train_ranker(config)
    message = str(raised.value)
    assert "0.tfrecord: no column 'flags'; known: continuous, binary, item" in message
    assert "column 'user' is binary; a number is an integer, a float" in message
    assert not (tmp_path / "run").exists()


def test_a_label_besides_0_and_1_is_named_by_its_record(tmp_path):
    write_records(tmp_path)
    lists = {entry["feature_name"]: ("int64_list", [2]) for entry in SCHEMA if entry["feature_name"] == "is.click"}
    with (tmp_path / "0.tfrecord").open("ab") as file:
        file.write(framed(naive.example(lists)))
    config = recorded_config(tmp_path, tmp_path / "run", tmp_path)
    with pytest.raises(DataError, match=r"0.tfrecord: record 200, column 'click' is 2: the label of task 'click'"):
        train_ranker(config)


def test_hours_and_days_of_records_and_of_parquet(log, tmp_path):
    files = sorted((log / "parquet").glob("*.parquet"))
    for day, file in zip(("2022/02/27", "2022/02/28", "2022/03/02"), files, strict=True):
        folder = tmp_path / "days" / day
        folder.mkdir(parents=True)
        (folder / "part.parquet").write_bytes(file.read_bytes())
    settings = recorded_config(log, tmp_path / "run", None).model_dump(mode="json")
    dated = {"data_root": str(tmp_path / "days"), "end_date": "2022/03/02", "days": 4}
    for partition in (settings["train_data"], settings["validation_data"]["valid"]):
        partition |= {"inputs": None, "explicit_date_inputs": dated}
    with pytest.raises(ConfigError, match=r"no files \(.parquet\) for 1 of 4: 2022/03/01; bring them, correct the dat"):
        train_ranker(parse_config(RankerConfig, settings, "dates"))
    dated["num_missing_days_tol"] = 1
    config = parse_config(RankerConfig, json.loads(json.dumps(settings)), "dates")
    assert train_ranker(config).step == 20
