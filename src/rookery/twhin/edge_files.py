"""Edges that no ingest has checked: each row number must lie in the table of its side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rookery.data.row_groups import CorruptRowGroup, RowGroupSlice, list_row_groups, read_rows
from rookery.data.stream import OnCorrupt
from rookery.errors import DataError
from rookery.storage.location import Location
from rookery.twhin.config import ModelConfig

_COLUMNS = ("lhs", "rel", "rhs")


def check_edge_files(files: Sequence[Location], config: ModelConfig, on_corrupt: OnCorrupt = "fail") -> None:
    """Read every row group once (20 ns an edge); with ``on_corrupt`` "skip" those that can be decoded.

    Raises ``DataError`` with file, row group and row for a number that has no relation or no row in its table.
    """
    slices, types = list_row_groups(files, _COLUMNS)
    for name, found in types.items():
        if found.dtype.is_floating_point or found.width is not None:
            raise DataError(f"{files[0]}: column {name!r} is {found}; write row numbers as integers")
    sizes = {table.name: table.num_embeddings for table in config.embeddings.tables}
    limits = {
        "lhs": torch.tensor([sizes[relation.lhs] for relation in config.relations]),
        "rhs": torch.tensor([sizes[relation.rhs] for relation in config.relations]),
    }
    for piece in slices:
        try:
            columns = {name: column.long() for name, column in read_rows([piece], types).items()}
        except CorruptRowGroup:
            if on_corrupt == "fail":
                raise
            continue  # the stream leaves it out, and warns of it
        rel = columns["rel"]
        _require_below(rel, torch.full_like(rel, len(config.relations)), piece, "rel", "model.relations")
        for side, limit in limits.items():
            _require_below(columns[side], limit[rel], piece, side, "the table of its relation")


def _require_below(numbers: Tensor, limits: Tensor, piece: RowGroupSlice, column: str, owner: str) -> None:
    wrong = torch.nonzero((numbers < 0) | (numbers >= limits)).squeeze(1)
    if len(wrong):
        first = int(wrong[0])
        raise DataError(
            f"{piece.file}: row group {piece.row_group}, row {piece.start + first}, column {column!r} is "
            f"{int(numbers[first])}, and {owner} has {int(limits[first])}; correct the number or the configuration"
        )
