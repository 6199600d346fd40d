"""User-item sets in the format of LightGCN (Gowalla, Yelp2018, Amazon-Book): lines ``user item item …``.

Download: https://github.com/kuandeng/LightGCN, folder Data (He et al., "LightGCN: Simplifying and powering graph
convolution network for recommendation", SIGIR 2020); the files train.txt and test.txt of one set.
Licence: none is stated; Gowalla's check-ins come from https://snap.stanford.edu/data/loc-Gowalla.html.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rookery.data.adapters.edge_lists import MAPPING, Prepared, find_raw, finish
from rookery.data.ingest_sources import open_text, shorten, unreadable_text
from rookery.data.staging import staged
from rookery.errors import DataError

DOWNLOAD = "https://github.com/kuandeng/LightGCN"

Ids = NDArray[np.int64]

_MAPPING = """\
# A LightGCN set: which user used which item. Published results mask the train items of a user when they rank.
entity_types:
  user: {id_type: int64}
  item: {id_type: int64}
relations:
  - {name: interact, lhs: user, rhs: item}
sources:
"""


def prepare(src: Path, out: Path, *, valid_fraction: float = 0.1, seed: int = 0, overwrite: bool = False) -> Prepared:
    """Turn train.txt and test.txt in ``src`` into ``out``. Raises ``DataError``.

    ``valid_fraction`` of each user's train items, drawn by ``seed`` and rounded, become the validation split: choose
    there, then fit once more with 0, which leaves all of train, and report test.
    """
    if not 0 <= valid_fraction < 1:
        raise DataError(f"valid_fraction={valid_fraction:g}: must be at least 0 and below 1")
    edges = {split: _read_lists(find_raw(src, f"{split}.txt", DOWNLOAD)) for split in ("train", "test")}
    held_out = _hold_out(edges["train"][0], valid_fraction, seed)
    if held_out.any():
        users, items = edges["train"]
        edges |= {"train": (users[~held_out], items[~held_out]), "valid": (users[held_out], items[held_out])}
    with staged(out, overwrite=overwrite, marker=MAPPING) as staging:
        for split, (users, items) in edges.items():
            pq.write_table(pa.table({"lhs": users, "rhs": items}), staging.folder / f"{split}.parquet")
        sources = [f"  - {{files: {split}.parquet, split: {split}, relation: interact}}\n" for split in edges]
        return finish(staging.folder, _MAPPING + "".join(sources), out)


def _read_lists(file: Path) -> tuple[Ids, Ids]:
    """Users and items ``[edges]`` in file order."""
    try:
        with open_text(file) as text:
            lines = text.read().splitlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise unreadable_text(file, error) from error
    try:
        numbers = np.array(" ".join(lines).split(), dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise _bad_number(file, lines) from error
    if (numbers < 0).any():
        raise _bad_number(file, lines)
    lengths = np.array([len(line.split()) for line in lines], dtype=np.int64)
    lengths = lengths[lengths > 0]
    is_user = np.zeros(len(numbers), dtype=bool)
    is_user[np.cumsum(lengths) - lengths] = True
    return np.repeat(numbers[is_user], lengths - 1), numbers[~is_user]


def _bad_number(file: Path, lines: list[str]) -> DataError:
    for place, line in enumerate(lines, start=1):
        for word in line.split():
            if not word.isdecimal() or int(word) >= 2**63:
                return DataError(f"{file}, line {place}: {shorten(word)!r} is not a row number; mend it")
    return DataError(f"{file}: not lines of row numbers, 'user item item …'; fetch the file again")


def _hold_out(users: Ids, fraction: float, seed: int) -> NDArray[np.bool_]:
    """``[edges]``: of each user's n edges, ``round(fraction * n)`` at random, at most n - 1."""
    order = np.lexsort((np.random.default_rng(seed).random(len(users)), users))
    sorted_users = users[order]
    _, first, counts = np.unique(sorted_users, return_index=True, return_counts=True)
    place = np.arange(len(users)) - np.repeat(first, counts)
    quota = np.minimum(np.rint(fraction * counts), counts - 1)
    held_out = np.zeros(len(users), dtype=bool)
    held_out[order] = place < np.repeat(quota, counts)
    return held_out
