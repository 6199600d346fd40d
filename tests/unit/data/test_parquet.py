"""What lies in a bucket is read as what lies on disk: the same batches, bit for bit, and the same errors."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from impression_log import make_log, write_log
from recorded_log import records_config, write_records
from small_graph import config_data, make_config, planted_splits, write_graph
from stores import BUCKET, Proxy, s3_server, store_environment, upload

from rookery.config.loader import parse_config
from rookery.data import record_index
from rookery.data.file_sums import sum_of_part
from rookery.data.graph import Graph
from rookery.data.parquet import find_files, read_metadata, read_parquet
from rookery.data.record_files import ENDINGS, record_files
from rookery.data.row_filter import RowFilter
from rookery.data.row_groups import CorruptRowGroup
from rookery.data.stream import ParquetStream
from rookery.errors import ConfigError, DataError
from rookery.ranker.features_config import PartitionConfig
from rookery.ranker.files import partition_rows
from rookery.storage.location import RemotePath
from rookery.storage.remote import StoreUnreachable, delete, put
from rookery.train.order import StreamOrder
from rookery.twhin.config import TwhinConfig
from rookery.twhin.evaluation import Evaluator
from rookery.twhin.lineage import entity_sums
from rookery.twhin.reading import open_edges, train_files


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with s3_server() as environment:
        yield environment


@pytest.fixture
def place(server) -> RemotePath:
    return RemotePath("s3", BUCKET) / uuid.uuid4().hex


def log_stream(place: str, **options) -> ParquetStream:
    settings = {"seed": 3, "shuffle": True, "buffer_rows": 900, "num_lanes": 3, **options}
    return ParquetStream(find_files(place), ["user_id_hash", "numbers"], 128, **settings)


def write_numbers(folder: Path, num_rows: int = 5_000) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rng.random(4 * num_rows, dtype=np.float32)), 4)
        table = pa.table({"user_id_hash": rng.integers(1 << 40, size=num_rows), "numbers": vectors})
        pq.write_table(
            table, folder / f"part-{number}.parquet", row_group_size=400, use_dictionary=False, write_page_checksum=True
        )


def assert_same(stream: ParquetStream, other: ParquetStream, num_batches: int) -> None:
    for batch, there in itertools.islice(zip(stream, other, strict=True), num_batches):
        assert batch.keys() == there.keys()
        assert all(torch.equal(batch[name], there[name]) for name in batch)


def test_records_of_a_bucket_are_those_of_the_disk(place, tmp_path, monkeypatch):
    monkeypatch.setattr(record_index, "BLOCK_BYTES", 3_000)
    files = write_records(tmp_path)
    for file in (*files, tmp_path / "schema.json"):
        put(file, place / file.name)
    local = records_config(tmp_path)
    remote = local.model_copy(update={"schema_path": place / "schema.json"})
    found = record_files(find_files(str(place), ENDINGS), remote)
    assert [file.name for file in found] == [file.name for file in files]
    streams = [
        ParquetStream(each, ["item", "continuous"], 50, seed=1, shuffle=True, num_lanes=2, num_epochs=2)
        for each in (found, record_files(files, local))
    ]
    assert_same(*streams, 2 * streams[0].batches_per_epoch)


def test_batches_of_a_bucket_are_those_of_the_disk(place, tmp_path):
    write_numbers(tmp_path / "log")
    upload(tmp_path / "log", place)
    here, there = log_stream(str(tmp_path / "log")), log_stream(str(place))
    assert_same(here, there, 2 * here.batches_per_epoch)
    where = RowFilter("user_id_hash", below=1 << 39)
    here, there = (log_stream(str(root), where=where, limit=3_000) for root in (tmp_path / "log", place))
    assert_same(here, there, here.batches_per_epoch)
    assert here.expected() == there.expected()


def test_a_graph_in_a_bucket_gives_the_edges_vocabularies_and_sums_of_the_one_on_disk(place, tmp_path):
    graph = write_graph(tmp_path / "graph", planted_splits(), num_files=3, row_group_size=16)
    upload(tmp_path / "graph", place)
    remote = Graph.open(place)
    assert remote.manifest == graph.manifest
    for part in range(3):
        there, here = (sum_of_part(each.split_files("train"), part, 3) for each in (remote, graph))
        assert there == here
    assert entity_sums(remote) == entity_sums(graph)
    assert remote.vocabulary("item").table.equals(graph.vocabulary("item").table)
    here = make_config(graph, tmp_path / "run")
    there = parse_config(TwhinConfig, {**config_data(graph, tmp_path / "run"), "graph": str(place)}, "there")
    assert train_files(there, remote)[0] == place / "edges/train/part-0.parquet"
    order = StreamOrder(32, 2)
    streams = (open_edges(config, train_files(config, own), order) for config, own in ((here, graph), (there, remote)))
    assert_same(*streams, 20)
    evaluators = [Evaluator.from_graph(each, "valid", here.evaluation) for each in (graph, remote)]
    assert all(torch.equal(a, b) for a, b in zip(*(each.edges for each in evaluators), strict=True))


def test_a_graph_of_which_a_file_is_missing_is_refused(place, tmp_path):
    write_graph(tmp_path / "graph", planted_splits())
    upload(tmp_path / "graph", place)
    delete(place / "edges/valid/part-0.parquet")
    with pytest.raises(DataError, match=r"edges/valid/part-0\.parquet: named by s3://.*/manifest\.json and absent"):
        Graph.open(place)
    with pytest.raises(DataError, match=r"s3://.*/none/manifest\.json: no such object; name the folder that"):
        Graph.open(place / "none")


def test_edge_files_of_a_glob_are_checked_where_they_lie(place, tmp_path):
    graph = write_graph(tmp_path / "graph", planted_splits())
    upload(tmp_path / "graph", place)
    fields = {"graph": None, "train_data.data_root": f"{place}/edges/train/*.parquet"}
    config = make_config(graph, tmp_path / "run", fields)
    assert train_files(config, None) == [place / "edges/train/part-0.parquet"]
    config = make_config(graph, tmp_path / "run", {**fields, "train_data.data_root": f"{place}/edges/non"})
    with pytest.raises(DataError, match=r"train_data\.data_root=s3://.*/edges/non: no file matches"):
        train_files(config, None)


def test_partitions_of_impressions_lie_in_buckets(place, tmp_path):
    file = write_log(tmp_path, make_log(500))
    put(file, place / "days/log.parquet")
    here = partition_rows(PartitionConfig(inputs=(str(file),), limit=300))
    for inputs in (f"{place}/days", f"{place}/days/log.parquet", f"{place}/*/log*.parquet"):
        there = partition_rows(PartitionConfig(inputs=(inputs,), limit=300).with_whole_paths())
        assert [(piece.row_group, piece.start, piece.stop) for piece in there] == [
            (piece.row_group, piece.start, piece.stop) for piece in here
        ]
        assert {piece.file for piece in there} == {place / "days/log.parquet"}
    with pytest.raises(DataError, match=f"inputs: {place}/nights: no Parquet file there"):
        partition_rows(PartitionConfig(inputs=(f"{place}/nights",)))


def test_a_damaged_row_group_in_a_bucket_is_told_from_a_store_that_fails(place, server, tmp_path):
    write_numbers(tmp_path / "log", 1_000)
    file = tmp_path / "log" / "part-1.parquet"
    column = pq.read_metadata(file).row_group(1).column(1)
    content = bytearray(file.read_bytes())
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 255
    file.write_bytes(content)
    upload(tmp_path / "log", place)
    with pytest.raises(CorruptRowGroup, match=r"part-1\.parquet: row group 1, column 'numbers' cannot be decoded"):
        list(log_stream(str(place), num_epochs=1))
    sound = log_stream(str(place), num_epochs=1, on_corrupt="skip")
    assert sum(len(batch["numbers"]) for batch in sound) == 3_000 - 400
    assert sound.finished()[0].skipped == 400


def test_broken_connections_are_tried_again_and_in_the_end_an_error_that_skips_no_rows(place, server, tmp_path):
    write_numbers(tmp_path / "log", 2_000)
    upload(tmp_path / "log", place)
    proxy = Proxy(server["AWS_ENDPOINT_URL"])
    with store_environment("s3", {**server, "AWS_ENDPOINT_URL": proxy.url, "AWS_MAX_ATTEMPTS": "2"}):
        here, there = log_stream(str(tmp_path / "log")), log_stream(str(place), on_corrupt="skip")
        proxy.to_break = 3
        assert_same(here, there, 20)
        assert proxy.num_broken == 3
        proxy.to_break = 1_000_000
        with pytest.raises(StoreUnreachable, match=r"nor when asked again.*look at its address, the network"):
            list(itertools.islice(there, 200))
    proxy.close()


def test_files_that_are_no_parquet_or_not_there(place, tmp_path):
    (tmp_path / "text").write_text("no parquet")
    put(tmp_path / "text", place / "text.parquet")
    with pytest.raises(pa.ArrowInvalid):
        read_metadata(place / "text.parquet")
    with pytest.raises(FileNotFoundError, match="no such object"):
        read_parquet(place / "none.parquet")
    pq.write_table(pa.table({"b": [1], "a": [2]}), tmp_path / "x")
    put(tmp_path / "x", place / "x.parquet")
    for file in (tmp_path / "x", place / "x.parquet"):
        assert read_parquet(file, ["a", "b"]).to_pydict() == {"a": [2], "b": [1]}
        with pytest.raises(KeyError):
            read_parquet(file, ["a", "c"])


def test_a_protocol_that_is_not_known_is_refused_when_the_configuration_is_read(tmp_path):
    graph = write_graph(tmp_path / "graph", planted_splits())
    with pytest.raises(ConfigError, match=r"graph=hdfs://birds/graph: .*such as s3://BUCKET/FOLDER"):
        make_config(graph, tmp_path / "run", {"graph": "hdfs://birds/graph"})
