"""The training edges as a stream: of local files, or as readers serve them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from rookery.data.flight_identity import Served
from rookery.data.flight_server import ServedStream
from rookery.data.flight_wire import Order, TensorType
from rookery.data.graph import Graph
from rookery.data.parquet import find_files
from rookery.data.row_groups import column_names
from rookery.data.stream import ParquetStream
from rookery.errors import DataError
from rookery.storage.location import Location
from rookery.train.order import StreamOrder
from rookery.twhin.config import TwhinConfig
from rookery.twhin.edge_files import check_edge_files


def train_files(config: TwhinConfig, graph: Graph | None) -> list[Location]:
    """The Parquet files of the training edges."""
    root = config.train_data.data_root
    if root is None:
        assert graph is not None
        return graph.split_files("train")
    elsewhere = "--set train_data.data_root=PATH"
    try:
        files = find_files(root)
    except DataError as error:
        raise DataError(f"train_data.data_root={error}; or name files elsewhere: {elsewhere}") from error
    if not files:
        remedy = f"give a directory of Parquet files or a glob: {elsewhere}"
        raise DataError(f"train_data.data_root={root}: no file matches; {remedy}")
    check_edge_files(files, config.model, config.train_data.on_corrupt)
    return files


def open_edges(
    config: TwhinConfig, files: Sequence[Location], order: StreamOrder, *, rank: int = 0, world_size: int = 1
) -> ParquetStream:
    """The edges of the lanes of one rank."""
    data = config.train_data
    return ParquetStream(
        files,
        ["lhs", "rel", "rhs", *(["weight"] if "weight" in column_names(files[0]) else [])],
        order.batch_size,
        seed=config.runtime.seed,
        shuffle=data.shuffle and data.order == "edges",
        buffer_rows=data.buffer_rows,
        buffer_bytes=None,  # an edge takes 28 bytes: the rows alone decide
        limit=data.limit,
        offset=data.offset,
        num_lanes=order.num_lanes,
        rank=rank,
        world_size=world_size,
        on_corrupt=data.on_corrupt,
    )


def served_edges(config: TwhinConfig, edges: ParquetStream) -> Served:
    """What readers make of edges: they are sent as they are, because negatives need the state of the trainer."""
    types = {name: TensorType(column.dtype, column.width) for name, column in edges.types.items()}
    num_entities = max(table.num_embeddings for table in config.model.embeddings.tables)
    for name, limit in (("lhs", num_entities), ("rhs", num_entities), ("rel", len(config.model.relations))):
        if types[name].dtype == torch.int64:
            types[name] = types[name].below(limit)
    return Served(types, {"model": "twhin"}, whole=True)


class EdgeSource:
    """The training edges of a configuration, for a reader."""

    def __init__(self, config: TwhinConfig) -> None:
        self._config = config
        self._files = train_files(config, None if config.graph is None else Graph.open(config.graph))

    def open(self, order: Order) -> ServedStream:
        edges = open_edges(self._config, self._files, StreamOrder(order.batch_size, order.num_lanes))
        return ServedStream(edges, lambda columns, position, lanes: columns, served_edges(self._config, edges))

    def stamp(self) -> Hashable:
        return None
