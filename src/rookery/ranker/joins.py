"""Vectors of a TwHIN export, with ids as a log's key column has them."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from rookery.config.suggest import did_you_mean
from rookery.data.columns import is_text
from rookery.data.ids import encode_ids
from rookery.errors import ConfigError, DataError
from rookery.ranker.features_config import JoinedEmbedding
from rookery.ranker.schema import IdType
from rookery.train.vector_export import VectorExport

_DECIMAL = r"^(0|-?[1-9][0-9]{0,17})$"


@dataclass(frozen=True)
class JoinedVectors:
    """``ids [n]`` (int64, as the stream makes them of the key column) and the vector ``[n, dim]`` of each."""

    ids: Tensor
    vectors: Tensor


def check_join(joined: JoinedEmbedding) -> str | None:
    """What keeps vectors from being joined, as far as the manifest of the export tells."""
    field = f"features.embeddings.{joined.name}"
    try:
        tables = list(VectorExport.open(joined.export).manifest.entity_types)
    except DataError as error:
        return f"{field}.export: {error}"
    if joined.table in tables:
        return None
    hint = did_you_mean(joined.table, tables)
    return f"{field}.table={joined.table}: {joined.export} has no such entity type; {hint}"


def read_join(joined: JoinedEmbedding, key_type: IdType) -> JoinedVectors:
    """Read ids and vectors, their sums compared. ``key_type`` is that of the key column.

    Raises ``ConfigError`` where no id of the export can equal one of the column, ``DataError`` for a damaged export.
    """
    problem = check_join(joined)
    if problem is not None:
        raise ConfigError(problem)
    export = VectorExport.open(joined.export)
    ids = _as_keys(export.ids(joined.table).column("id"), key_type, joined)
    return JoinedVectors(torch.from_numpy(encode_ids(ids)), export.vectors(joined.table))


def _as_keys(ids: pa.ChunkedArray, key_type: IdType, joined: JoinedEmbedding) -> pa.ChunkedArray:
    """Ids of the type of the key column: 12 and "12" are one, as no other number is written so."""
    if is_text(ids.type) == (key_type == "text"):
        return ids
    if key_type == "text":
        return ids.cast(pa.string())
    canonical = pc.match_substring_regex(ids, _DECIMAL)
    if not pc.all(canonical).as_py():
        other = ids.filter(pc.invert(canonical))[0].as_py()
        raise ConfigError(
            f"features.embeddings.{joined.name}.key={joined.key}: the column holds numbers, and {joined.export} has "
            f"ids of {joined.table} such as {other!r}; name a column with these, or write them to the log"
        )
    return ids.cast(pa.int64())
