"""From ids to rows of a table: by a vocabulary, by a hash, or as they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rookery.data.ids import MISSING_ID

# Multipliers of the finaliser of SplitMix64 (Steele, Lea, Flood 2014), as signed 64-bit integers.
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64
_SMALL_RANGE = 65_536


class Lookup(nn.Module):
    """Maps ids of any shape to rows of a table: known ones to ``0 … num_rows - 2``, all others to the last row."""

    def __init__(self, num_rows: int) -> None:
        super().__init__()
        self.num_rows = num_rows


class RowNumbers(Lookup):
    """Ids are rows themselves; negative ones and those past the end are wrong."""

    def forward(self, ids: Tensor) -> Tensor:
        last = self.num_rows - 1
        return torch.where((ids >= 0) & (ids < last), ids, last)

    def is_wrong(self, ids: Tensor) -> Tensor:
        """Where ids are no rows, and not missing either."""
        return (ids >= self.num_rows - 1) | ((ids < 0) & (ids != MISSING_ID))


class HashBuckets(Lookup):
    """Ids are mixed, and the mix modulo the number of buckets is the row; the missing id has the last row."""

    def forward(self, ids: Tensor) -> Tensor:
        last = self.num_rows - 1
        buckets: Tensor = torch.remainder(mix(ids), last)
        return torch.where(ids == MISSING_ID, last, buckets)


class KeyLookup(Lookup):
    """Ids are looked up among ``keys`` (int64 ``[n]``, distinct); the k-th has row k.

    24 bytes a key. An id takes about 20 steps of a binary search among a million keys.
    """

    def __init__(self, keys: Tensor) -> None:
        super().__init__(len(keys) + 1)
        # The missing id, smaller than all, stands before the first: the search then always finds a place.
        keys = torch.cat([torch.tensor([MISSING_ID]), keys])
        ordered, places = keys.sort()
        rows = torch.where(places == 0, self.num_rows - 1, places - 1)
        self.register_buffer("keys", ordered, persistent=False)
        self.register_buffer("rows", rows, persistent=False)
        self.keys: Tensor
        self.rows: Tensor

    def forward(self, ids: Tensor) -> Tensor:
        places = last_not_above(self.keys, ids)
        return torch.where(self.keys[places] == ids, self.rows[places], self.num_rows - 1)


class RangeLookup(Lookup):
    """As ``KeyLookup``, for keys that lie close together: one step an id, 8 bytes for each number in their range."""

    def __init__(self, keys: Tensor) -> None:
        super().__init__(len(keys) + 1)
        self.first = int(keys.min())
        rows = torch.full((int(keys.max()) - self.first + 1,), len(keys))
        rows[keys - self.first] = torch.arange(len(keys))
        self.register_buffer("rows", rows, persistent=False)
        self.rows: Tensor

    def forward(self, ids: Tensor) -> Tensor:
        last = len(self.rows) - 1
        # Where the difference leaves 64 bits it comes back on the other side of them, outside of the range as well.
        places = ids - self.first
        inside = (places >= 0) & (places <= last)
        return torch.where(inside, self.rows[places.clamp(0, last)], self.num_rows - 1)


def lookup_of_keys(keys: Tensor) -> Lookup:
    """The k-th of distinct ``keys`` (int64 ``[n]``) to row k; by range where that takes about as much memory."""
    if len(keys) and int(keys.max()) - int(keys.min()) < max(_SMALL_RANGE, 4 * len(keys)):
        return RangeLookup(keys)
    return KeyLookup(keys)


def mix(ids: Tensor) -> Tensor:
    """A well-spread number from 0 to 2^63 - 1 for each id: SplitMix64's finaliser without its last bit.

    ``z ^= z >>> 30; z *= 0xBF58476D1CE4E5B9; z ^= z >>> 27; z *= 0x94D049BB133111EB; z ^= z >>> 31`` in 64 bits that
    wrap, ``>>>`` shifting in zeros.
    """
    ids = (ids ^ _shifted(ids, 30)) * _FIRST
    ids = (ids ^ _shifted(ids, 27)) * _SECOND
    return (ids ^ _shifted(ids, 31)) & (2**63 - 1)


def _shifted(ids: Tensor, bits: int) -> Tensor:
    """Shifted to the right, zeros coming in; torch's own shift brings in the sign."""
    shifted: Tensor = (ids >> bits) & (2 ** (64 - bits) - 1)
    return shifted


def last_not_above(keys: Tensor, ids: Tensor) -> Tensor:
    """The last place in sorted ``keys [n]`` whose key is at most the id, for each id; ``keys[0]`` is below all ids.

    Exported programs search by gathers alone, which every runtime has; ``searchsorted`` is 2 to 8 times as fast.
    """
    if not torch.compiler.is_exporting():
        found: Tensor = torch.searchsorted(keys, ids, right=True) - 1
        return found
    return search_by_gathers(keys, ids)


def search_by_gathers(keys: Tensor, ids: Tensor) -> Tensor:
    """``last_not_above`` in ``log2(n)`` rounds of gather and compare."""
    last = len(keys) - 1
    places = torch.zeros_like(ids)
    for bit in reversed(range(last.bit_length())):
        further = places + 2**bit
        reached = (further <= last) & (keys[further.clamp(max=last)] <= ids)
        places = torch.where(reached, further, places)
    return places
