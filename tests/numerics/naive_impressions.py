"""What the preprocessor makes of a row, one Python value at a time."""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
from naive_columns import MISSING, hashed

from rookery.ranker.config import RankerConfig

Row = Mapping[str, Any]
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
HOUR_MS = 3_600_000


def an_id(value: Any) -> int:
    if value is None:
        return MISSING
    if isinstance(value, str):
        return hashed(value)
    if isinstance(value, datetime):
        return (value - EPOCH) // timedelta(milliseconds=1)
    return int(value)


def rounded(value: float | None, kind: str | None) -> float:
    """The number in the named type; 0 for what is none."""
    x = float(np.float32(math.nan if value is None else float(value)))
    if not math.isfinite(x):
        return 0.0
    if kind == "bool":
        return float(x != 0)
    if kind == "uint8":
        return float(int(min(max(x, 0.0), 255.0)))
    if kind == "float16":
        return float(np.float16(min(max(x, -65504.0), 65504.0)))
    return brain_float(x) if kind == "bfloat16" else x


def brain_float(x: float) -> float:
    """The upper half of a float32, rounded to even; the largest finite one for those beyond."""
    bits = struct.unpack("<I", struct.pack("<f", x))[0]
    upper = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    largest = 0x7F7F | (upper & 0x8000)
    upper = largest if upper & 0x7FFF >= 0x7F80 else upper
    return struct.unpack("<f", struct.pack("<I", upper << 16))[0]  # type: ignore[no-any-return]


def mix(number: int) -> int:
    """SplitMix64's finaliser in 64 bits without a sign, its last bit dropped."""
    z = number % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return (z ^ z >> 31) % 2**63


def counted(rows: Sequence[Row], columns: Sequence[str], min_count: int, max_size: int | None) -> list[Any]:
    """Values by falling count, ties by value."""
    counts: Counter[Any] = Counter()
    for row in rows:
        for column in columns:
            value = row[column]
            counts.update(v for v in (value if isinstance(value, list) else [value]) if v is not None)
    kept = [value for value, count in counts.items() if count >= min_count]
    ordered = sorted(kept, key=lambda value: (-counts[value], value.encode() if isinstance(value, str) else value))
    return ordered[:max_size]


class NaivePreprocessor:
    """``masks`` by feature, ``vocabularies`` (values in order) by table, ``joined`` (ids in order) by embedding."""

    def __init__(
        self,
        config: RankerConfig,
        masks: Mapping[str, Sequence[bool]],
        vocabularies: Mapping[str, Sequence[Any]],
        joined: Mapping[str, Sequence[Any]],
    ) -> None:
        self.config, self.masks, self.vocabularies, self.joined = config, masks, vocabularies, joined

    def features(self, raw: Row) -> dict[str, Any]:
        row = self.with_extracted(raw)
        features = self.config.features
        groups = {"continuous": features.continuous, "binary": features.binary}
        numbers = {group: [x for f in those for x in self.numbers(f, row)] for group, those in groups.items()}
        return {
            **numbers,
            **{f.name: self.numbers(f, row) for f in features.dense},
            **{f.name: self.table_row(f.table, self.value(row, f.source)) for f in features.discrete},
            **{
                f.name: padded([self.table_row(f.table, v) for v in last(row[f.source], f.max_length)], f.max_length)
                for f in features.ragged
            },
            **{joined.name: self.joined_rows(joined, row) for joined in features.embeddings},
        }

    def numbers(self, feature: Any, row: Row) -> list[float]:
        kind = self.config.preprocess.downcast.get(feature.name)
        if feature.width == 1:
            return [rounded(row[feature.source], kind)]
        values = row[feature.source]
        values = [None] * feature.width if values is None else values
        for cut in self.config.preprocess.truncate_and_slice:
            if cut.feature == feature.name:
                values = values[: cut.truncation]
                if cut.feature in self.masks:
                    values = [v for v, keep in zip(values, self.masks[cut.feature], strict=True) if keep]
        return [rounded(value, kind) for value in values]

    def with_extracted(self, row: Row) -> dict[str, Any]:
        features = self.config.features
        blocks = {f.name: f for f in (*features.continuous, *features.binary, *features.dense)}
        cut = {
            one.name: self.numbers(blocks[one.source_tensor], row)[one.index]
            for one in self.config.preprocess.extract_features
        }
        return {**row, **cut}

    @staticmethod
    def value(row: Row, column: str) -> Any:
        """What a discrete feature has; an extracted number that is not whole is no value."""
        value = row[column]
        return None if isinstance(value, float) and value != int(value) else value

    def table_row(self, name: str, value: Any) -> int:
        table = next(table for table in self.config.features.tables if table.name == name)
        if table.num_embeddings is not None:
            return table.num_embeddings if value is None else int(value)
        if table.hash_buckets is not None:
            return table.hash_buckets if value is None else mix(an_id(value)) % table.hash_buckets
        known = list(self.vocabularies[name])
        return known.index(value) if value in known else len(known)

    def joined_rows(self, joined: Any, row: Row) -> int | list[int]:
        known = list(self.joined[joined.name])

        def place(value: Any) -> int:
            return known.index(value) if value in known else len(known)

        if joined.max_length is None:
            return place(row[joined.key])
        return padded([place(v) for v in last(row[joined.key], joined.max_length)], joined.max_length)

    def position(self, row: Row) -> int:
        assert self.config.keys.position is not None
        position = self.value(row, self.config.keys.position)
        return -1 if position is None else int(position)

    def label(self, row: Row, task: str) -> int:
        """Rectified."""
        label = int(row[self.config.labels[task].column or task])
        rectify = self.config.preprocess.rectify_labels
        if rectify is None or task not in rectify.label_to_engaged_timestamp_field:
            return label
        times = [
            an_id(row[column])
            for column in (rectify.impressed_timestamp_field, rectify.label_to_engaged_timestamp_field[task])
        ]
        served = an_id(row[rectify.served_timestamp_field])
        window = rectify.label_rectification_window_in_hours * HOUR_MS
        late = [MISSING not in {time, served} and time - served >= window for time in times]
        return 0 if any(late) else label

    def weight(self, row: Row, task: str) -> tuple[float, float]:
        """Of the row, and of the task's label in it."""
        weight = 1.0 if self.config.keys.weight is None else row[self.config.keys.weight]
        rates = self.config.labels[task]
        rate = rates.pos_downsampling_rate if self.label(row, task) else rates.neg_downsampling_rate
        return weight, weight / rate


def last(values: Sequence[Any] | None, count: int) -> list[Any]:
    return [value for value in values or () if value is not None][-count:]


def padded(rows: list[int], length: int) -> list[int]:
    return rows + [-1] * (length - len(rows))
