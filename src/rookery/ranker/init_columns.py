"""From columns to features: which kind each is, which table it is looked up in, and what is left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rookery.data.columns import is_number, is_text, is_time
from rookery.ranker.init_counts import FREQUENT, IdCounts
from rookery.ranker.init_facts import Facts, as_floats, gather_facts, has_lists, number, percent, words
from rookery.ranker.init_leaks import LeakSearch

Kind = Literal["continuous", "binary", "dense", "discrete", "ragged"]

MAX_LIST = 50

_FEW_VALUES = 64
_MAX_POSITION = 1_000
_UNLIKE = 20
_MIN_DIM = 8  # fewer numbers in a list are rather figures than a vector
_LONG_TEXT = 64
_UNIQUE = 0.98
_KNOWN_SHARE = 0.05
_ROWS_PER_USER = 20
_SHARED_OCCURRENCES, _SHARED_VALUES = 0.3, 0.1
_QUANTITIES = {
    *("days", "hours", "minutes", "seconds", "ms", "age", "since", "count", "counts", "cnt", "num", "number", "len"),
    *("length", "size", "total", "sum", "amount", "price", "score", "width", "height", "duration", "distance"),
}
_CATEGORIES = {
    *("onehot", "category", "cat", "type", "class", "tag", "genre", "range", "bucket", "group", "level", "degree"),
    *("brand", "country", "region", "city", "lang", "language", "device", "browser", "channel", "kind", "status"),
}
_TIME_WORDS = {"time", "ts", "timestamp", "date", "datetime", "at", "day", "dt"}
_FIRST_S, _LAST_S = 9e8, 5e9


@dataclass(frozen=True)
class Feature:
    """A column as the model sees it; ``evidence`` goes into its comment."""

    kind: Kind
    column: str
    evidence: str
    width: int = 1
    table: str | None = None
    max_length: int = 0
    query: str | None = None


@dataclass(frozen=True)
class Table:
    """A table of embeddings for about ``num_values`` values."""

    name: str
    num_values: int
    min_count: int
    embedding_dim: int
    dropout: float
    evidence: str


@dataclass(frozen=True)
class LeftOut:
    """A column that is no feature, and why; an outcome is what could have been known only afterwards."""

    column: str
    reason: str
    is_outcome: bool = False


@dataclass(frozen=True)
class Roles:
    """What the user said of columns."""

    labels: tuple[str, ...]
    user: str | None = None
    item: str | None = None
    time: str | None = None


@dataclass
class Schema:
    """What was found, in the order of the columns."""

    features: list[Feature] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    position: Facts | None = None
    """Where on the page a row was shown."""

    def of(self, kind: Kind) -> list[Feature]:
        """The features of one kind."""
        return [feature for feature in self.features if feature.kind == kind]


class SchemaInference:
    """Tells the features of ``sample`` apart; ``count_ids`` looks at all rows of a column."""

    def __init__(self, sample: pa.Table, roles: Roles, count_ids: Callable[[str], IdCounts]) -> None:
        self._sample = sample
        self._roles = roles
        self._count_ids = count_ids
        self._leaks = LeakSearch(sample, roles.labels, roles.user, roles.item)
        self._schema = Schema()

    def run(self) -> Schema:
        """Look at every column, lists last: they may share the tables of others."""
        names = [name for name in self._sample.column_names if name not in self._roles.labels]
        lists = [name for name in names if has_lists(self._sample.schema.field(name).type)]
        for name in [*(name for name in names if name not in lists), *lists]:
            found = self._look_at(name)
            if isinstance(found, Feature):
                self._schema.features.append(found)
            elif found is not None:
                self._schema.left_out.append(found)
        return self._schema

    def _look_at(self, name: str) -> Feature | LeftOut | None:
        if name == self._roles.time:
            return None
        if not name:
            return LeftOut(name, "has no name; rename it when the log is written")
        facts = gather_facts(name, self._sample[name])
        empty = _emptiness(facts)
        if empty is not None:
            return LeftOut(name, empty)
        if name in (self._roles.user, self._roles.item):
            return self._id(facts)
        leak = self._leaks.evidence(name)
        if leak is not None:
            return LeftOut(name, leak, is_outcome=True)
        if self._schema.position is None and _is_position(facts):
            self._schema.position = facts
            return None
        return self._by_type(facts)

    def _by_type(self, facts: Facts) -> Feature | LeftOut:
        if facts.is_list:
            return self._list(facts)
        if is_number(facts.type):
            return self._number(facts)
        if is_time(facts.type):
            return LeftOut(facts.name, _moment(facts))
        if pa.types.is_fixed_size_binary(facts.type):
            return LeftOut(facts.name, f"{facts.type}; if these are vectors, add {{name, width}} under dense")
        if is_text(facts.type):
            return self._text(facts)
        return LeftOut(facts.name, f"of type {facts.type}, which no feature can have")

    def _number(self, facts: Facts) -> Feature | LeftOut:
        if facts.infinite_share:
            return Feature("continuous", facts.name, str(facts))  # no id can be infinite, and 0 stands for it here
        if facts.is_zero_or_one and not facts.null_share:
            return Feature("binary", facts.name, str(facts))
        named = {*words(facts.name)}
        if not facts.is_whole or (pa.types.is_floating(facts.type) and not facts.null_share):
            return Feature("continuous", facts.name, str(facts))  # pandas makes floats of integers with nulls
        if facts.num_distinct <= _FEW_VALUES and (named & _CATEGORIES or not named & _QUANTITIES):
            return self._few(facts)
        if facts.is_named_id or named & _CATEGORIES:
            return self._id(facts)
        if _is_moment(facts):
            return LeftOut(facts.name, _moment(facts))
        if facts.is_growing:
            return LeftOut(facts.name, f"grows from row to row ({facts}): the number of a row, it does not come again")
        return Feature("continuous", facts.name, str(facts))

    def _text(self, facts: Facts) -> Feature | LeftOut:
        lengths = pc.binary_length(self._sample[facts.name].cast(pa.large_binary()))
        if facts.num_distinct > _FEW_VALUES and (pc.mean(lengths).as_py() or 0) > _LONG_TEXT:
            return LeftOut(facts.name, f"text ({facts}); give a vector made of it")
        return self._few(facts) if facts.num_distinct <= _FEW_VALUES else self._id(facts)

    def _few(self, facts: Facts) -> Feature:
        dim = 4 if facts.num_distinct < 8 else 8
        self._schema.tables.append(
            Table(facts.name, facts.num_distinct, FREQUENT, dim, 0.01, f"{facts.num_distinct} values")
        )
        return Feature("discrete", facts.name, str(facts), table=facts.name)

    def _id(self, facts: Facts) -> Feature | LeftOut:
        present = facts.num_rows * (1 - facts.null_share)
        if facts.num_distinct >= _UNIQUE * present and facts.name not in (self._roles.user, self._roles.item):
            return LeftOut(facts.name, f"{facts.num_distinct:,} different values in {present:,.0f} rows")
        counts = self._count_ids(facts.name)
        seen = (
            f"{counts.num_values:,} in training, {counts.num_frequent:,} of them in {FREQUENT} rows or more, which "
            f"{percent(counts.known_share)} of the validation rows have"
        )
        if counts.known_share < _KNOWN_SHARE:
            return LeftOut(facts.name, f"its values do not come again ({seen})")
        if facts.name == self._roles.user and counts.rows_per_value < _ROWS_PER_USER:
            few = f"{counts.rows_per_value:.1f} training rows a user ({seen})"
            return LeftOut(facts.name, f"{few}; a vector for each would learn these rows by heart")
        dim = 16 if counts.num_frequent < 20_000 else 32
        self._schema.tables.append(Table(facts.name, counts.num_frequent, FREQUENT, dim, 0.1, seen))
        return Feature("discrete", facts.name, str(facts), table=facts.name)

    def _list(self, facts: Facts) -> Feature | LeftOut:
        assert facts.lengths is not None
        shortest, _, usual, longest = facts.lengths
        elements = facts.type.value_type
        is_vector = pa.types.is_fixed_size_list(facts.type) and not facts.is_named_id and is_number(elements)
        if is_vector or pa.types.is_floating(elements) or pa.types.is_decimal(elements):
            if shortest == longest and not facts.null_share:
                return self._vector(facts, longest)
            return LeftOut(facts.name, f"lists of numbers of different length ({facts}); write vectors of one length")
        if not (is_number(elements) or is_text(elements)):
            return LeftOut(facts.name, f"of type {facts.type}, which no feature can have")
        return self._ids(facts, min(MAX_LIST, max(1, usual)))

    def _vector(self, facts: Facts, width: int) -> Feature:
        """Truth values, numbers of their own (each is normalised by itself), or one vector (normalised as such)."""
        if facts.is_zero_or_one:
            return Feature("binary", facts.name, str(facts), width=width)
        if width < _MIN_DIM:
            return Feature("continuous", facts.name, str(facts), width=width)
        values = as_floats(pc.list_flatten(self._sample[facts.name])).reshape(-1, width)
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)  # as the model sees them
        scales = values.std(0) + np.abs(values.mean(0))
        if scales.max() > _UNLIKE * max(float(np.median(scales)), 1e-12):
            return Feature("continuous", facts.name, f"{facts}; of unlike scales", width=width)
        return Feature("dense", facts.name, str(facts), width=width)

    def _ids(self, facts: Facts, max_length: int) -> Feature:
        owner, share = self._owner(facts.name)
        if owner is not None:
            evidence = f"{facts}; {percent(share)} of them are values of {owner}"
            return Feature("ragged", facts.name, evidence, table=owner, max_length=max_length, query=owner)
        dim = 8 if facts.num_distinct <= _FEW_VALUES else 16
        self._schema.tables.append(
            Table(facts.name, facts.num_distinct, FREQUENT, dim, 0.05, f"{facts.num_distinct:,} values")
        )
        return Feature("ragged", facts.name, str(facts), table=facts.name, max_length=max_length)

    def _owner(self, name: str) -> tuple[str | None, float]:
        """Item or user, should the elements be its values: many are known, and they are many of the known."""
        tables = {table.name for table in self._schema.tables}
        elements = pc.list_flatten(self._sample[name])
        best: tuple[str | None, float] = (None, 0.0)
        for owner in (self._roles.item, self._roles.user):
            if owner is None or owner not in tables or self._sample[owner].type != elements.type:
                continue
            values = pc.unique(self._sample[owner]).drop_null()
            occurrences = pc.mean(pc.is_in(elements, values)).as_py() or 0.0
            reached = pc.mean(pc.is_in(values, pc.unique(elements))).as_py() or 0.0
            if occurrences >= max(_SHARED_OCCURRENCES, best[1]) and reached >= _SHARED_VALUES:
                best = (owner, occurrences)
        return best


def _emptiness(facts: Facts) -> str | None:
    if facts.null_share == 1:
        return "null in every row"
    if facts.infinite_share and facts.null_share + facts.infinite_share == 1:
        return "infinite in every row" if not facts.null_share else "null or infinite in every row"
    if facts.is_list:
        return "empty in every row" if facts.lengths is not None and facts.lengths[3] == 0 else None
    if facts.num_distinct == 1 and not facts.null_share and not facts.infinite_share:
        value = f"{number(facts.low)} " if facts.low is not None else "the same value "
        return f"{value}in every row"
    return None


def _is_position(facts: Facts) -> bool:
    """Small whole numbers that are named so."""
    is_small = (
        facts.is_whole
        and not facts.infinite_share
        and facts.low is not None
        and facts.low >= 0
        and (facts.high or 0) < _MAX_POSITION
    )
    return is_small and not facts.is_list and words(facts.name)[-1] in {"position", "pos", "rank", "slot"}


def _moment(facts: Facts) -> str:
    return f"a moment ({facts}): its values do not come again; give its distance to the impression as a number"


def _is_moment(facts: Facts) -> bool:
    """Whole numbers that are seconds, milli-, micro- or nanoseconds of one era, or named so."""
    assert facts.low is not None
    assert facts.high is not None
    fits = [
        10**digits
        for digits in (0, 3, 6, 9)
        if _FIRST_S * 10**digits <= facts.low and facts.high < _LAST_S * 10**digits
    ]
    return bool(fits) and (fits[0] > 1 or bool({*words(facts.name)} & _TIME_WORDS))
