"""Where in its file a value stands that was found in a shuffled batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from rookery.data.columns import ColumnType
from rookery.data.row_groups import CorruptRowGroup, RowGroupSlice, SourceFile, describe_row, read_rows


@dataclass(frozen=True)
class FoundRow:
    """The first row that was looked for; ``value`` is the value that made it so."""

    file: SourceFile
    row_group: int
    row: int
    column: str
    value: float

    def __str__(self) -> str:
        return f"{describe_row(self.file, self.row_group, self.row)}, column {self.column!r}"


def locate_row(
    slices: Sequence[RowGroupSlice], column: ColumnType, is_wanted: Callable[[Tensor], Tensor]
) -> FoundRow | None:
    """The first row in file order with a value for which ``is_wanted`` says so; None when there is none.

    ``is_wanted`` takes a tensor as batches have it, ``[rows]`` or ``[rows, width]``, and gives booleans of its shape.
    Reads the one column, a row group at a time, as far as the row; passes over those that cannot be decoded.
    ``stream.slices`` and ``stream.types[name]`` are what a stream reads.
    """
    name = column.request.name
    for piece in slices:
        try:
            values = read_rows([piece], {name: column})[name]
        except CorruptRowGroup:  # what was looked for came from another
            continue
        places = is_wanted(values).nonzero()
        if len(places):
            first = tuple(places[0].tolist())
            return FoundRow(piece.file, piece.row_group, piece.row_number(first[0]), name, values[first].item())
    return None
