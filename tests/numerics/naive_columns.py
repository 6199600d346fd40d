"""Columns of impressions, one Python value at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from decimal import Decimal

import numpy as np

MISSING = -(2**63)
NAN = float("nan")


def hashed(text: str | bytes | None) -> int:
    """The hash of docs/impressions-format.md."""
    if text is None:
        return MISSING
    raw = text.encode() if isinstance(text, str) else text
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little", signed=True)


def number(value: float | Decimal | None) -> float:
    return NAN if value is None else float(np.float32(float(value)))


def vector(values: Sequence[float | None] | None, width: int) -> list[float]:
    return [NAN] * width if values is None else [number(value) for value in values]


def last_ids(values: Sequence[int | str | None] | None, max_length: int) -> list[int]:
    """The last ones that are not null, left-aligned."""
    known = [hashed(value) if isinstance(value, str) else value for value in values or () if value is not None]
    known = known[-max_length:]
    return known + [MISSING] * (max_length - len(known))
