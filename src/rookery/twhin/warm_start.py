"""Rows to start from: an earlier run (weights yes, step no) or a file of vectors, joined by id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from rookery.checkpoint.checkpointer import load_checkpoint
from rookery.checkpoint.fetch import local_copy
from rookery.config.loader import load_config
from rookery.data.graph import Graph
from rookery.data.parquet import read_parquet
from rookery.errors import ConfigError, DataError
from rookery.storage.location import Location
from rookery.twhin.config import EmbeddingTable, RelationConfig, TwhinConfig
from rookery.twhin.lineage import require_same_entities
from rookery.twhin.model import Pull, TwhinModel, parameter_rows


def start_from_elsewhere(config: TwhinConfig, graph: Graph | None, model: TwhinModel) -> None:
    """Fill the tables of a new run from ``pretrained`` files and ``initial_checkpoint_dir``, where given.

    Entities without an earlier vector keep their random row.
    """
    rows = {name: model.entity_rows(name) for name in model.table_names}
    for table in config.model.embeddings.tables:
        if table.pretrained is not None:
            _overwrite(rows[table.name], _pretrained_rows(table, graph))
    if config.training.initial_checkpoint_dir is not None:
        for name, earlier in _earlier_rows(config, graph).items():
            _overwrite(rows[name], earlier)
        _start_relations(config, model)
    model.tables.load_weights(rows)


def pull_to_earlier(config: TwhinConfig, graph: Graph | None, model: TwhinModel) -> None:
    """Hold rows to the earlier run, also when this run is resumed: the earlier vectors are read again."""
    strength = config.model.regularizer.pull
    if strength == 0:
        return
    if config.training.initial_checkpoint_dir is None:
        raise ConfigError(
            f"model.regularizer.pull={strength}: there is nothing to pull to; set training.initial_checkpoint_dir"
        )
    device = model.entity_rows(model.table_names[0]).device
    earlier = {name: rows.to(device) for name, rows in _earlier_rows(config, graph).items()}
    model.set_pull(Pull(strength, earlier))


def _overwrite(rows: Tensor, earlier: Tensor) -> None:
    known = torch.nonzero(~earlier[:, 0].isnan()).squeeze(1)
    rows[known.to(rows.device)] = earlier[known].to(rows)


def _earlier_rows(config: TwhinConfig, graph: Graph | None) -> dict[str, Tensor]:
    """Vectors of the earlier run in this run's rows, float32 ``[num_embeddings, D]``, NaN where it had none."""
    source = _earlier_run(config)
    stored = load_checkpoint(source).tensors("model")
    old_graph = _graph_of_run(source)
    return {
        table.name: _joined(table, stored[f"table.{table.name}"], graph, old_graph)
        for table in config.model.embeddings.tables
        if f"table.{table.name}" in stored
    }


def _earlier_run(config: TwhinConfig) -> Path:
    """Of a URL the copy on this machine."""
    assert config.training.initial_checkpoint_dir is not None
    return local_copy(config.training.initial_checkpoint_dir, "latest")


def _joined(table: EmbeddingTable, old: Tensor, graph: Graph | None, old_graph: Graph | None) -> Tensor:
    if old.shape[1] != table.embedding_dim:
        raise ConfigError(
            f"model.embeddings.tables.{table.name}.embedding_dim={table.embedding_dim}: the run to start from has "
            f"{old.shape[1]}; use the same dimension"
        )
    rows = torch.full((table.num_embeddings, table.embedding_dim), torch.nan)
    if graph is None or old_graph is None:  # rows are ids: new entities come after the old ones
        count = min(old.shape[0], rows.shape[0])
        rows[:count] = old[:count].float()
        return rows
    old_row = torch.from_numpy(old_graph.vocabulary(table.name).rows(graph.vocabulary(table.name).table.column("id")))
    found = torch.nonzero(old_row >= 0).squeeze(1)
    rows[found] = old[old_row[found]].float()
    return rows


def _graph_of_run(source: Path) -> Graph | None:
    for folder in (source, *source.parents[:2]):  # a run, or one of its checkpoints
        if (folder / "config.yaml").exists():
            path = load_config(TwhinConfig, folder / "config.yaml").graph
            if path is None:
                return None
            graph = Graph.open(path)
            require_same_entities(folder, graph)
            return graph
    return None


@torch.no_grad()
def _start_relations(config: TwhinConfig, model: TwhinModel) -> None:
    """Relations of the earlier run that have the same name and operator."""
    source = _earlier_run(config)
    stored = load_checkpoint(source).tensors("model")
    run = next((folder for folder in (source, *source.parents[:2]) if (folder / "config.yaml").exists()), None)
    old = load_config(TwhinConfig, run / "config.yaml").model.relations if run else config.model.relations
    old_rows = _rows_by_name(old)
    for key, value in model.named_relation_parameters().items():
        name, operator = f"relation.{key}", key.split("/")[0]
        for relation, row in _rows_by_name(config.model.relations).items():
            if relation[1] == operator and relation in old_rows and name in stored:
                value[row] = stored[name][old_rows[relation]].to(value)


def _rows_by_name(relations: Sequence[RelationConfig]) -> dict[tuple[str, str], int]:
    """Row in its operator's parameters of each relation, by (name, operator)."""
    rows = parameter_rows(relations)
    return {(relation.name, relation.operator): row for relation, row in zip(relations, rows, strict=True)}


def _pretrained_rows(table: EmbeddingTable, graph: Graph | None) -> Tensor:
    """Vectors of a Parquet file ``id, vector`` in the table's rows, NaN where it has none."""
    assert table.pretrained is not None
    ids, vectors = _read_vectors(table)
    rows = torch.full((table.num_embeddings, table.embedding_dim), torch.nan)
    positions = _rows_of_ids(table, graph, ids)
    if positions.max(initial=-1) >= table.num_embeddings:
        raise DataError(
            f"{table.pretrained}: row {int(positions.argmax())} is for row {positions.max()} of {table.name}, which "
            f"has {table.num_embeddings}; use the vocabulary that the file was written with"
        )
    found = np.flatnonzero(positions >= 0)
    rows[torch.from_numpy(positions[found])] = vectors[torch.from_numpy(found)]
    return rows


def _read_vectors(table: EmbeddingTable) -> tuple[pa.ChunkedArray, Tensor]:
    path = table.pretrained
    assert path is not None
    content = _read_columns(path, ["id", "vector"])
    column = content.column("vector").combine_chunks()
    width = column.type.list_size if pa.types.is_fixed_size_list(column.type) else None
    if width != table.embedding_dim:
        raise DataError(
            f"{path}: column vector is {column.type}, model.embeddings.tables.{table.name} needs lists of "
            f"{table.embedding_dim} floats; export with that dimension"
        )
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise DataError(f"{path}: row {row} has no vector; leave it out or give it one")
    numbers = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return content.column("id"), torch.from_numpy(numbers).view(-1, width)


def _rows_of_ids(table: EmbeddingTable, graph: Graph | None, ids: pa.ChunkedArray) -> NDArray[np.int64]:
    """Row numbers of ``ids``, -1 for those that the table does not have."""
    if table.vocab is not None:
        vocabulary = _read_columns(table.vocab, ["row", "id"])
        place = pc.index_in(ids, value_set=vocabulary.column("id").cast(ids.type))
        return np.asarray(pc.fill_null(vocabulary.column("row").cast(pa.int64()).take(place), -1).to_numpy())
    if graph is not None:
        return graph.vocabulary(table.name).rows(ids)
    if not pa.types.is_integer(ids.type):
        raise DataError(
            f"{table.pretrained}: column id is {ids.type}, and without a graph or a vocab ids are row numbers; "
            f"set graph, or model.embeddings.tables.{table.name}.vocab"
        )
    return np.asarray(ids.to_numpy(), dtype=np.int64)


def _read_columns(path: Location, columns: list[str]) -> pa.Table:
    try:
        return read_parquet(path, columns)
    except (OSError, KeyError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{path}: cannot be read as Parquet with columns {', '.join(columns)} ({reason}); correct the path or "
            "write the file again"
        ) from error
