"""Training batches as readers make them: preprocessed, their tensors as columns."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rookery.config.fields import leaves
from rookery.data.flight_identity import Served
from rookery.data.flight_server import ServedStream
from rookery.data.flight_stream import FlightStream
from rookery.data.flight_wire import Order, types_of
from rookery.data.prefetch import Transform
from rookery.data.stream import Columns, ParquetStream
from rookery.parallel.config import ReadersConfig
from rookery.parallel.world import rank, world_size
from rookery.ranker.batch import RankerBatch, RankerFeatures
from rookery.ranker.config import RankerConfig
from rookery.ranker.draws import with_draws
from rookery.ranker.inputs import INPUTS, MANIFEST, Inputs
from rookery.ranker.partition import make_process, open_partition
from rookery.ranker.preprocess import Preprocessor
from rookery.train.order import StreamOrder

_GROUPS = ("dense", "discrete", "ragged", "joined")
# Where files lie may differ from one machine to another; what is in them is in the sums of the inputs.
_PLACES = (".export", ".mask_path")
_LOOK_EVERY_S = 0.5


def to_columns(batch: RankerBatch) -> Columns:
    """The tensors of a batch by name, without those of width 0; truth values as uint8.

    Shares for the log are left out: they follow from the features.
    """
    features, lanes = batch.features, batch.lanes
    blocks = {"continuous": features.continuous, "binary": features.binary, "position": features.position}
    columns = {name: block for name, block in blocks.items() if block is not None}
    for group in _GROUPS:
        columns |= {f"{group}/{name}": tensor for name, tensor in getattr(features, group).items()}
    columns |= {f"strata/{name}": stratum.to(torch.uint8) for name, stratum in batch.strata.items()}
    columns |= {
        "labels": batch.labels,
        "loss_weights": batch.loss_weights,
        "weights": batch.weights,
        "groups": batch.groups,
        "lane": torch.tensor([*lanes], dtype=torch.int32).repeat_interleave(torch.tensor([*lanes.values()]).long()),
    }
    return {name: column for name, column in columns.items() if column.dim() == 1 or column.shape[1]}


def to_batch(columns: Mapping[str, Tensor], preprocessor: Preprocessor) -> RankerBatch:
    """The batch that ``to_columns`` took apart."""
    labels = columns["labels"]
    nothing = labels.new_zeros(len(labels), 0)
    groups = {group: _members(columns, group) for group in _GROUPS}
    features = RankerFeatures(
        continuous=columns.get("continuous", nothing),
        binary=columns.get("binary", nothing),
        position=columns.get("position"),
        **groups,
    )
    lanes = torch.unique_consecutive(columns["lane"], return_counts=True)
    strata = {name: stratum.bool() for name, stratum in _members(columns, "strata").items()}
    return RankerBatch(
        features,
        labels,
        columns["loss_weights"],
        columns["weights"],
        columns["groups"],
        strata,
        preprocessor.shares(features),
        dict(zip(*(each.tolist() for each in lanes), strict=True)),
    )


def open_remote(
    config: RankerConfig,
    readers: ReadersConfig,
    preprocessor: Preprocessor,
    order: StreamOrder,
    device: torch.device,
) -> tuple[FlightStream, Transform[RankerBatch]]:
    """This process's training batches from readers, and what puts them together again."""
    rows = _rows(config, preprocessor, order)
    served = _served(config, rows, preprocessor)
    stream = FlightStream(rows, served, readers, rank=rank(), world_size=world_size())
    return stream, lambda columns, position: with_draws(to_batch(columns, preprocessor), position).to(device)


class BatchSource:
    """The training batches of a run, for a reader: by the inputs that its trainer wrote."""

    def __init__(self, config: RankerConfig) -> None:
        self._config = config.with_whole_paths()
        self._inputs = config.training.save_dir / INPUTS

    def wait_for_inputs(self, tell: Callable[[str], None]) -> None:
        """Return once a trainer has written the inputs; ``tell`` is told where there are none yet."""
        if not self._manifest.exists():
            tell(f"waiting for {self._inputs}, which `rookery ranker train` writes when it begins")
        while not self._manifest.exists():
            time.sleep(_LOOK_EVERY_S)

    def open(self, order: Order) -> ServedStream:
        config = self._config
        preprocessor = Preprocessor(config, Inputs.open(self._inputs))
        rows = _rows(config, preprocessor, StreamOrder(order.batch_size, order.num_lanes))
        process = make_process(rows, preprocessor, training=True)
        return ServedStream(
            rows,
            lambda columns, position, lanes: to_columns(process(columns, position, lanes)),
            _served(config, rows, preprocessor),
        )

    def stamp(self) -> Hashable:
        found = self._manifest.stat()
        return found.st_mtime_ns, found.st_size

    @property
    def _manifest(self) -> Path:
        return self._inputs / MANIFEST


def _rows(config: RankerConfig, preprocessor: Preprocessor, order: StreamOrder) -> ParquetStream:
    return open_partition(
        config, config.train_data, preprocessor, shuffle=config.train_data.shuffle, order=order, whole=True
    )


def _served(config: RankerConfig, rows: ParquetStream, preprocessor: Preprocessor) -> Served:
    """The types are those of a batch of no rows."""
    empty = {name: column.allocate(0) for name, column in rows.types.items()}
    position = replace(rows.position(), num_batches=1)
    batch = make_process(rows, preprocessor, training=True)(empty, position, {0: 0})
    types = types_of(to_columns(batch))
    for name, num_rows in _numbered(config, preprocessor).items():
        types[name] = types[name].below(num_rows)
    return Served(types, _meaning(config), whole=config.preprocess.downsample_negatives is None)


def _numbered(config: RankerConfig, preprocessor: Preprocessor) -> dict[str, int]:
    """The columns that have rows of tables and of joined vectors, and how many of these there are."""
    sizes, features = preprocessor.table_sizes, config.features
    found = {f"discrete/{feature.name}": sizes[feature.table].num_rows for feature in features.discrete}
    found |= {f"ragged/{feature.name}": sizes[feature.table].num_rows for feature in features.ragged}
    return found | {f"joined/{name}": num_vectors + 1 for name, num_vectors in preprocessor.num_vectors.items()}


def _meaning(config: RankerConfig) -> dict[str, Any]:
    """The fields that decide what becomes of a row, and the sum of the inputs."""
    dumped = config.model_dump(mode="json", include={"features", "preprocess", "labels", "keys"})
    fields = {name: value for name, value in leaves(dumped) if not name.endswith(_PLACES)}
    return {
        "model": "ranker",
        "tasks": ", ".join(config.tasks),
        "evaluation.stratifiers": [one.model_dump(mode="json") for one in config.evaluation.stratifiers],
        "model.position_debias_config": config.model.position_debias_config is not None,
        "inputs": hashlib.sha256((config.training.save_dir / INPUTS / MANIFEST).read_bytes()).hexdigest()[:16],
        **fields,
    }


def _members(columns: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
    prefix = f"{group}/"
    return {name.removeprefix(prefix): column for name, column in columns.items() if name.startswith(prefix)}
