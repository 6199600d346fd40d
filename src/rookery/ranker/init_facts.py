"""What a sample of rows tells of a column."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rookery.data.columns import is_number, is_text, is_time

_ID_WORDS = {"id", "ids", "uid", "pid", "uuid", "guid", "key", "hash", "sku", "asin", "isbn", "code", "zip", "postcode"}
_ENDS_IN_ID = re.compile(r"(user|item|video|post|tweet|author|ad|device|session|product|page|song|track)ids?")


@dataclass(frozen=True)
class Facts:
    """Shares are of the sampled rows; NaN counts as null. The other facts are those of finite numbers.

    Of a list ``num_distinct``, ``low`` and ``high`` are those of its elements, ``lengths`` the shortest, the mean, the
    95th percentile and the longest.
    """

    name: str
    type: pa.DataType
    num_rows: int
    null_share: float
    num_distinct: int
    low: float | None = None
    high: float | None = None
    infinite_share: float = 0.0
    is_whole: bool = False
    is_growing: bool = False
    """Each value is larger than the one before, as a row number is."""
    lengths: tuple[int, float, int, int] | None = None

    @property
    def is_list(self) -> bool:
        return self.lengths is not None

    @property
    def is_zero_or_one(self) -> bool:
        return self.is_whole and self.low is not None and self.low >= 0 and (self.high or 0) <= 1

    @property
    def is_named_id(self) -> bool:
        """Whether a word of the name says so."""
        return any(word in _ID_WORDS or _ENDS_IN_ID.fullmatch(word) for word in words(self.name))

    def __str__(self) -> str:
        """The evidence, as a comment has it."""
        parts = [str(self.type)]
        if self.lengths is not None:
            shortest, mean, _, longest = self.lengths
            parts.append(
                f"{longest} values" if shortest == longest else f"{shortest} to {longest} values, mean {mean:.3g}"
            )
        if not pa.types.is_fixed_size_list(self.type):
            parts.append(f"{self.num_distinct:,} distinct")
        if self.low is not None and self.high is not None:
            parts.append(f"{number(self.low)} to {number(self.high)}")
        if self.null_share:
            parts.append(f"{percent(self.null_share)} null")
        if self.infinite_share:
            parts.append(f"{percent(self.infinite_share)} infinite")
        return ", ".join(parts)


def words(name: str) -> list[str]:
    """The words of a name in lower case: of ``play_time``, ``playTime`` and ``play-time`` the same."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+[a-z]?", name)]


def number(value: float) -> str:
    """A number for a reader."""
    return f"{int(value):,}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"


def percent(share: float) -> str:
    """A share for a reader, with two digits that count."""
    return f"{100 * share:.0f}%" if share >= 0.1 else f"{100 * share:.2g}%"


def gather_facts(name: str, column: pa.ChunkedArray) -> Facts:
    """What a column's sample tells."""
    arrow_type = column.type
    if pa.types.is_dictionary(arrow_type):
        column = column.cast(arrow_type.value_type)
        arrow_type = column.type
    if has_lists(arrow_type):
        return _of_lists(name, column)
    if is_number(arrow_type):
        return _of_numbers(name, arrow_type, as_floats(column))
    known = column.drop_null()
    num_distinct = pc.count_distinct(known).as_py() if is_text(arrow_type) or is_time(arrow_type) else len(known)
    return Facts(name, arrow_type, len(column), _share(column.null_count, len(column)), num_distinct)


def has_lists(arrow_type: pa.DataType) -> bool:
    """Whether a value is a list."""
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(kind(arrow_type) for kind in kinds)


def as_floats(column: pa.ChunkedArray) -> np.ndarray:
    """Numbers and truth values as float64 ``[rows]``; null is NaN. Integers above 2^53 are rounded."""
    values = column.cast(pa.int8()) if pa.types.is_boolean(column.type) else column
    return np.asarray(values.cast(pa.float64(), safe=False).to_numpy())


def _of_numbers(name: str, arrow_type: pa.DataType, values: np.ndarray) -> Facts:
    known = values[np.isfinite(values)]
    return Facts(
        name,
        arrow_type,
        len(values),
        _share(int(np.isnan(values).sum()), len(values)),
        len(np.unique(known)),
        infinite_share=_share(int(np.isinf(values).sum()), len(values)),
        low=float(known.min()) if len(known) else None,
        high=float(known.max()) if len(known) else None,
        is_whole=bool(np.all(known == np.floor(known))),
        is_growing=len(known) > 1 and bool(np.all(np.diff(known) > 0)),
    )


def _of_lists(name: str, column: pa.ChunkedArray) -> Facts:
    lengths = pc.list_value_length(column.drop_null()).to_numpy()
    elements = pc.list_flatten(column)
    element_type = elements.type
    numbers = as_floats(elements) if is_number(element_type) else np.empty(0)
    known = numbers[np.isfinite(numbers)]
    return Facts(
        name,
        column.type,
        len(column),
        _share(column.null_count, len(column)),
        pc.count_distinct(elements).as_py() if is_number(element_type) or is_text(element_type) else 0,
        low=float(known.min()) if len(known) else None,
        high=float(known.max()) if len(known) else None,
        is_whole=len(known) > 0 and bool(np.all(known == np.floor(known))),
        lengths=_spread(lengths),
    )


def _spread(lengths: np.ndarray) -> tuple[int, float, int, int]:
    if not len(lengths):
        return 0, 0.0, 0, 0
    return int(lengths.min()), float(lengths.mean()), int(np.quantile(lengths, 0.95)), int(lengths.max())


def _share(count: int, total: int) -> float:
    return count / total if total else 0.0
