"""Batches that readers preprocess are those that a trainer preprocesses itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from faulty_readers import readers, running
from planted_impressions import planted_config, planted_log, write_log, write_vectors

from rookery.data.flight_server import ReaderServer
from rookery.errors import ConfigError, DataError
from rookery.nn.dropout import Draws
from rookery.ranker.config import RankerConfig
from rookery.ranker.inputs import INPUTS, Inputs
from rookery.ranker.partition import make_transform, open_partition
from rookery.ranker.preprocess import Preprocessor
from rookery.ranker.reading import BatchSource, open_remote, to_batch, to_columns
from rookery.train.order import StreamOrder

CPU = torch.device("cpu")
ANY_PORT = "grpc://127.0.0.1:0"
CASES: dict[str, dict[str, Any]] = {
    "every kind of feature": {},
    "down-sampled": {
        "preprocess__downsample_negatives": {"batch_multiplier": 3, "engagements_list": ["like", "share"]}
    },
    "no users, no numbers": {"keys__user": None, "features__continuous": []},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder, log = tmp_path_factory.mktemp("log"), planted_log()
    write_log(folder / "log", log, num_files=3, row_group_rows=90)
    return folder / "log", write_vectors(folder / "vectors", log)


def prepared(data: tuple[Path, Path], save_dir: Path, **changes: Any) -> tuple[RankerConfig, Preprocessor]:
    """A configuration whose run has its inputs."""
    config = planted_config(data[0], save_dir, data[1], **changes).with_whole_paths()
    Inputs.build(config).write(save_dir / INPUTS)
    return config, Preprocessor(config, Inputs.open(save_dir / INPUTS))


def members(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The tensors and numbers of a batch."""
    if isinstance(value, Draws):
        value = value._asdict()
    elif dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        for name, member in value.items():
            yield from members(member, f"{path}/{name}")
    else:
        yield path, value


def assert_same(ours: object, theirs: object) -> None:
    left, right = dict(members(ours)), dict(members(theirs))
    assert left.keys() == right.keys()
    for name, value in left.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == right[name].dtype
            assert torch.equal(value, right[name]), name
        else:
            assert value == right[name], name


@pytest.mark.parametrize("case", CASES)
def test_the_same_batches(data: tuple[Path, Path], tmp_path: Path, case: str) -> None:
    config, preprocessor = prepared(data, tmp_path / "run", **CASES[case])
    server = ReaderServer(BatchSource(config), ANY_PORT)
    with running(server):
        for order in (StreamOrder(64, 1), StreamOrder(96, 7)):
            local = open_partition(config, config.train_data, preprocessor, shuffle=True, order=order)
            transform = make_transform(local, preprocessor, training=True, device=CPU)
            remote, rebuild = open_remote(config, readers(server), preprocessor, order, CPU)
            num_batches = 2 * local.batches_per_epoch + 3
            for _ in range(num_batches):
                expected = transform(next(local), local.position())
                assert_same(rebuild(next(remote), remote.position()), expected)
                assert remote.lane_rows(remote.position()) == local.lane_rows(local.position())
                assert remote.ledger() == local.ledger()
            assert remote.finished() == local.finished()
            remote.close()


def test_a_batch_taken_apart_and_put_together(data: tuple[Path, Path], tmp_path: Path) -> None:
    config, preprocessor = prepared(data, tmp_path / "run")
    stream = open_partition(config, config.train_data, preprocessor)
    batch = make_transform(stream, preprocessor, training=True, device=CPU)(next(stream), stream.position())
    assert_same(to_batch(to_columns(batch), preprocessor), dataclasses.replace(batch, draws=None))


def test_a_wrong_value_is_told_with_its_place(data: tuple[Path, Path], tmp_path: Path) -> None:
    log = planted_log()
    place = log.table.schema.get_field_index("like")
    wrong = log.table.set_column(place, "like", pa.array(np.full(log.num_rows, 2)))
    write_log(tmp_path / "log", dataclasses.replace(log, table=wrong), num_files=1, row_group_rows=3000)
    config, preprocessor = prepared((tmp_path / "log", data[1]), tmp_path / "run")
    server = ReaderServer(BatchSource(config), ANY_PORT)
    with running(server):
        remote, _ = open_remote(config, readers(server), preprocessor, StreamOrder(64, 1), CPU)
        with pytest.raises(DataError, match=r"row group 0, row 0, column 'like' is 2: the label of task 'like'"):
            next(remote)
        remote.close()


def test_other_settings_are_named(data: tuple[Path, Path], tmp_path: Path) -> None:
    config, _ = prepared(data, tmp_path / "run")
    changes = {
        "preprocess.downsample_negatives.batch_multiplier: the reader has 3": CASES["down-sampled"],
        "keys.user: the reader has None, this trainer user_id": {"keys__user": None},
        "inputs: the reader has": {
            "features__tables": [
                {**table.model_dump(exclude_none=True), **({"values": [5, 6]} if table.values else {})}
                for table in config.features.tables
            ]
        },
    }
    for message, change in changes.items():
        others, _ = prepared(data, tmp_path / "others", **change)
        server = ReaderServer(BatchSource(others), ANY_PORT)
        config, preprocessor = prepared(data, tmp_path / "run")
        with running(server), pytest.raises(ConfigError, match=f"  {message}"):
            open_remote(config, readers(server), preprocessor, StreamOrder(64, 1), CPU)


def test_new_inputs_of_the_run_are_taken_up(data: tuple[Path, Path], tmp_path: Path) -> None:
    config, _ = prepared(data, tmp_path / "run")
    server = ReaderServer(BatchSource(config), ANY_PORT)
    with running(server):
        for rows in (500, 3000):
            fewer = config.model_copy(update={"train_data": config.train_data.model_copy(update={"limit": rows})})
            Inputs.build(fewer).write(tmp_path / "run" / INPUTS)
            preprocessor = Preprocessor(config, Inputs.open(tmp_path / "run" / INPUTS))
            remote, rebuild = open_remote(config, readers(server), preprocessor, StreamOrder(64, 1), CPU)
            assert rebuild(next(remote), remote.position()).num_rows == 64
            remote.close()


def test_a_reader_waits_for_the_inputs(data: tuple[Path, Path], tmp_path: Path) -> None:
    config = planted_config(data[0], tmp_path / "run", data[1])
    told: list[str] = []

    def tell(message: str) -> None:
        told.append(message)
        Inputs.build(config).write(tmp_path / "run" / INPUTS)

    BatchSource(config).wait_for_inputs(tell)
    BatchSource(config).wait_for_inputs(tell)
    assert told == [f"waiting for {tmp_path / 'run' / INPUTS}, which `rookery ranker train` writes when it begins"]
