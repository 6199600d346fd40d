"""From ids that a user types to rows: of which type they are, and what was meant where there are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rookery.data.graph import Vocabulary
from rookery.errors import UserError

_SUGGESTIONS = 3


@dataclass(frozen=True)
class Entities:
    """Entities of one type, by row number ``[E]``."""

    entity_type: str
    rows: Tensor


def find_entities(vocabularies: Mapping[str, Vocabulary], ids: Sequence[str], types: Sequence[str]) -> Entities:
    """The entities with these ids in the one of ``types`` that has them.

    Raises ``UserError`` if an id is in none (with the nearest that exist), in several, or not in the same as the
    others.
    """
    rows = {name: torch.from_numpy(vocabularies[name].rows(ids)) for name in types}
    for place, wanted in enumerate(ids):
        if all(rows[name][place] < 0 for name in types):
            raise UserError(_unknown(vocabularies, wanted, types))
    holders = [name for name in types if (rows[name] >= 0).all()]
    if not holders:
        kinds = ", ".join(f"'{wanted}' ({next(n for n in types if rows[n][i] >= 0)})" for i, wanted in enumerate(ids))
        raise UserError(f"--id: {kinds} are of different types; ask for one type at a time")
    if len(holders) > 1:
        raise UserError(f"--id {ids[0]}: exists in types {' and '.join(holders)}; pass --type with one of them")
    return Entities(holders[0], rows[holders[0]])


def nearest_ids(vocabulary: Vocabulary, wanted: str) -> list[tuple[int, str]]:
    """The ids nearest by edit distance, each with its distance; popular ones first among equals. About 100 ns an
    entity.
    """
    ids = vocabulary.table.column("id")
    with duckdb.connect() as connection:
        connection.register("vocabulary", pa.table({"row": np.arange(len(ids)), "id": ids}))
        near = connection.execute(
            "SELECT damerau_levenshtein(CAST(id AS VARCHAR), ?) AS distance, CAST(id AS VARCHAR) FROM vocabulary "
            "ORDER BY distance, row LIMIT ?",
            [wanted, _SUGGESTIONS],
        )
        return [(int(distance), str(name)) for distance, name in near.fetchall()]


def _unknown(vocabularies: Mapping[str, Vocabulary], wanted: str, types: Sequence[str]) -> str:
    near = sorted(pair for name in types for pair in nearest_ids(vocabularies[name], wanted))[:_SUGGESTIONS]
    close = [name for distance, name in near if distance <= max(2, len(wanted) // 3)]
    where = f"no {types[0]} has this id" if len(types) == 1 else f"no entity has this id ({', '.join(types)})"
    examples = ", ".join(name for _, name in near)
    hint = f"did you mean {' or '.join(close)}?" if close else f"ids look like {examples}"
    return f"--id {wanted}: {where}; {hint}"
