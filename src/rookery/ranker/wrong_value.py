"""A value in a batch that cannot be used, and how to find it in the files again."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from rookery.data.locate import FoundRow, locate_row
from rookery.data.stream import ParquetStream
from rookery.errors import DataError


class WrongValue(DataError):
    """``key`` of the batch has a value that ``is_wrong``; ``problem`` says what is right and what to do."""

    def __init__(self, key: str, is_wrong: Callable[[Tensor], Tensor], problem: str) -> None:
        super().__init__(f"column {key!r}: {problem}")
        self.key = key
        self.is_wrong = is_wrong
        self.problem = problem

    def __reduce__(self) -> tuple[type[DataError], tuple[str]]:
        """To another process the message goes alone."""
        return DataError, (str(self),)

    def located(self, stream: ParquetStream) -> DataError:
        """The same with file, row and value: the first such of all that the stream reads."""
        column = stream.types.get(self.key)
        found = None if column is None else locate_row(stream.slices, column, self.is_wrong)
        return DataError(str(self) if found is None else f"{found} is {shown(found)}: {self.problem}")


def shown(found: FoundRow) -> str:
    """The value as it would be written in a table: 2, not 2.0."""
    return f"{found.value:.15g}"
