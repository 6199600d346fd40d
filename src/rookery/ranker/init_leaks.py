"""Columns that know the outcome: what is written after the impression must not predict it.

Each column is held against each label by itself, over a sample of rows. A feature that was known before an impression
does not decide what comes of it; a column that nearly does was written afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rookery.data.columns import is_id, is_number, is_time
from rookery.ranker.init_facts import as_floats, has_lists, percent, words

# A feature of such power is rarer than a leak; below, one among many honest ones could come so far by chance.
_AUROC = 0.9
_SURE_AUROC = 0.85  # even two standard errors less
_HINTED_AUROC = 0.6
_HINTED_LIFT = 1.5
_PURE = 0.98
_COMMON = 0.8
_ABSENT = 0.01
_CHANCE = 1e-9
_MIN_POSITIVES = 20
_MAX_CATEGORIES = 1_000
_MAX_ROWS = 50_000
_MAX_COMPONENT_ROWS = 20_000

_OUTCOMES = {
    *("click", "like", "fav", "favorite", "favourite", "follow", "share", "comment", "reply", "retweet", "repost"),
    *("forward", "hate", "dislike", "report", "block", "mute", "view", "watch", "play", "dwell", "stay", "purchase"),
    *("buy", "bought", "cart", "conversion", "convert", "open", "finish", "complete", "skip", "save", "bookmark"),
    *("subscribe", "enter", "engage", "engagement", "download", "install", "listen", "rating", "reaction", "outcome"),
}
_UNWANTED = {"hate", "dislike", "report", "block", "mute", "skip", "hide", "hidden", "negative", "unfollow"}
# Words of what was counted before the impression.
_HISTORY = {
    *("rate", "ctr", "cvr", "count", "counts", "num", "cnt", "avg", "mean", "past", "prev", "previous", "history"),
    *("hist", "last", "before", "prior", "total", "sum", "lift", "log", "score", "ratio", "recent", "earlier", "list"),
    *("seq", "sequence", "embedding", "vector", "ever", "has", "had", "number"),
}


@dataclass(frozen=True)
class _Signal:
    """Numbers ``[rows]`` made of a column, null as NaN; ``what`` says how they are to be named."""

    what: str
    values: np.ndarray


@dataclass(frozen=True)
class _Outcomes:
    """Labels ``[rows, labels]``."""

    names: tuple[str, ...]
    labels: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        return np.asarray(self.labels.mean(0))

    @property
    def num_positives(self) -> np.ndarray:
        return np.asarray(self.labels.sum(0))


@dataclass(frozen=True)
class _Groups:
    """Rows of one user, or one item, side by side: ``order`` ``[rows]``; ``joined`` ``[rows - 1]`` true within one."""

    order: np.ndarray
    joined: np.ndarray

    @staticmethod
    def of(codes: np.ndarray) -> _Groups:
        order = np.argsort(codes, kind="stable")
        return _Groups(order, codes[order][1:] == codes[order][:-1])

    def vary(self, values: np.ndarray) -> bool:
        ordered = np.where(np.isnan(values), -np.inf, values)[self.order]
        return bool((self.joined & (ordered[1:] != ordered[:-1])).any())


class LeakSearch:
    """Holds columns of ``sample`` against ``labels``; ``user`` and ``item`` are columns too, where there are such."""

    def __init__(self, sample: pa.Table, labels: Sequence[str], user: str | None, item: str | None) -> None:
        sample = sample.take(pa.array(range(0, sample.num_rows, -(-sample.num_rows // _MAX_ROWS))))
        self._sample = sample
        self._item = item
        self._outcomes = _Outcomes(tuple(labels), np.stack([as_floats(sample[name]) for name in labels], 1))
        self._groups = [_Groups.of(_codes(sample[name])) for name in (user, item) if name is not None]

    def evidence(self, column: str) -> str | None:
        """Why ``column`` is taken for an outcome; None where nothing speaks for it."""
        for signal in _signals(self._sample, column, self._item):
            if signal.values.ndim == 2:
                found = self._of_components(signal)
            else:
                found = self._of_signal(signal, _is_named_outcome(column))
            if found is not None:
                return found
        return None

    def _of_signal(self, signal: _Signal, is_hinted: bool) -> str | None:
        present = np.isfinite(signal.values) & (signal.values != 0)
        found = _by_auroc(signal, self._outcomes, _AUROC)
        if found is None and self._varies(signal.values):
            found = _by_presence(signal, present, self._outcomes)
            if found is None and is_hinted:
                found = self._by_name(signal, present)
        return found

    def _by_name(self, signal: _Signal, present: np.ndarray) -> str | None:
        """A name is a hint: less evidence does."""
        known = signal.values[np.isfinite(signal.values)]
        shares, count = self._outcomes.shares, max(1, int(present.sum()))
        given = self._outcomes.labels[present].sum(0) / count
        lifts = given / np.maximum(shares, 1 / len(present))
        index = int(np.abs(np.log(np.maximum(lifts, 1e-3))).argmax())
        where = f"{self._outcomes.names[index]} is 1 in {percent(given[index])} of the rows where it is not 0"
        evidence = f"named like an outcome; {where}, in {percent(shares[index])} of all"
        if np.isin(known, (0, 1)).all():
            return f"0 or 1 and {evidence}"
        error = np.sqrt(shares[index] * (1 - shares[index]) / count)
        if present.mean() < 0.5 and lifts[index] >= _HINTED_LIFT and given[index] - shares[index] >= 2 * error:
            return evidence
        return _by_auroc(signal, self._outcomes, _HINTED_AUROC)

    def _varies(self, values: np.ndarray) -> bool:
        """Whether rows of one user, and of one item, have different values: else it is a property of theirs."""
        return all(group.vary(values) for group in self._groups)

    def _of_components(self, signal: _Signal) -> str | None:
        outcomes = _Outcomes(self._outcomes.names, self._outcomes.labels[: len(signal.values)])
        for place, component in enumerate(signal.values.T):
            found = _by_auroc(_Signal(f"its component {place}", component), outcomes, _AUROC)
            if found is not None:
                return found
        return None


def _by_auroc(signal: _Signal, outcomes: _Outcomes, least: float) -> str | None:
    labels, positives = outcomes.labels, outcomes.num_positives
    negatives = len(labels) - positives
    if signal.what == "category":
        areas = np.array(
            [auroc(_rates(signal.values, labels[:, i]), labels[:, i : i + 1])[0] for i in range(labels.shape[1])]
        )
    else:
        areas = auroc(signal.values, labels)
    areas = np.maximum(areas, 1 - areas)
    smaller = np.minimum(positives, negatives)
    errors = np.sqrt(areas * (1 - areas) / np.maximum(smaller, 1))
    sure = np.where(smaller >= _MIN_POSITIVES, areas - 2 * errors, 0)
    areas = np.where(sure >= min(_SURE_AUROC, least - 0.05), areas, 0)
    index = int(areas.argmax())
    if areas[index] < least:
        return None
    what = "it" if signal.what == "category" else signal.what
    return f"{what} alone tells {outcomes.names[index]}: AUROC {areas[index]:.3f}"


def _by_presence(signal: _Signal, present: np.ndarray, outcomes: _Outcomes) -> str | None:
    """A label that is 1 wherever the column is not 0, or only there."""
    if signal.what == "category":
        return None
    shares, absent = outcomes.shares, ~present
    hits, misses = outcomes.labels[present].sum(0), outcomes.labels[absent].sum(0)
    count = int(present.sum())
    for index in np.flatnonzero(shares):
        name, share = outcomes.names[index], float(shares[index])
        if hits[index] >= _PURE * count and share <= _COMMON and count * np.log(share) < np.log(_CHANCE):
            return (
                f"{name} is 1 in {hits[index]:,.0f} of the {count:,} rows where {signal.what} is not 0, in "
                f"{percent(share)} of all"
            )
        expected = share * absent.sum()
        if expected >= _MIN_POSITIVES and misses[index] <= _ABSENT * expected:
            return (
                f"{name} is 1 in {misses[index]:,.0f} of the {absent.sum():,} rows where {signal.what} is 0 or null, "
                f"in {percent(share)} of all"
            )
    return None


def auroc(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Areas ``[labels]`` under the ROC of ``values`` ``[rows]`` for each column of ``labels`` ``[rows, labels]``.

    NaN ranks below everything, ties count half; 0.5 for a label of one value.
    """
    ordered = np.where(np.isnan(values), -np.inf, values)
    _, codes, counts = np.unique(ordered, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[codes]
    positives = labels.sum(0)
    pairs = positives * (len(labels) - positives)
    wins = ranks @ labels - positives * (positives + 1) / 2
    return np.asarray(np.where(pairs > 0, wins / np.maximum(pairs, 1), 0.5))


def _signals(sample: pa.Table, name: str, item: str | None) -> Iterator[_Signal]:
    column = sample[name]
    arrow_type = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if is_number(arrow_type):
        values = as_floats(column)
        yield _Signal("it", values)
        if np.isnan(values).any():
            yield _Signal("whether it is null", (~np.isnan(values)).astype(np.float64))
    elif has_lists(arrow_type):
        yield from _of_lists(sample, name, item)
    elif is_id(arrow_type):
        if column.null_count:
            yield _Signal("whether it is null", (~column.is_null().to_numpy()).astype(np.float64))
        if not is_time(arrow_type) and pc.count_distinct(column).as_py() <= _MAX_CATEGORIES:
            yield _Signal("category", _codes(column).astype(np.float64))


def _of_lists(sample: pa.Table, name: str, item: str | None) -> Iterator[_Signal]:
    column = sample[name].combine_chunks()
    lengths = pc.list_value_length(column).fill_null(0).to_numpy()
    if len(np.unique(lengths)) == 1 and is_number(column.type.value_type):
        first = column.slice(0, _MAX_COMPONENT_ROWS)
        yield _Signal("", as_floats(pa.chunked_array([pc.list_flatten(first)])).reshape(len(first), -1))
        return
    yield _Signal("the number of its values", lengths.astype(np.float64))
    if item is not None and sample[item].type == column.type.value_type:
        owners = pc.list_parent_indices(column).to_numpy()
        same = pc.equal(pc.list_flatten(column), sample[item].combine_chunks().take(pa.array(owners)))
        found = np.zeros(len(column))
        found[owners[same.fill_null(False).to_numpy(zero_copy_only=False)]] = 1
        yield _Signal(f"whether it has the row's {item}", found)


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """Equal values have equal numbers ``[rows]``; null is one of them."""
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    return np.asarray(encoded.unify_dictionaries().combine_chunks().indices.fill_null(-1).to_numpy()) + 1


def _rates(codes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The label's share among the rows of the other half that have the same code ``[rows]``: no row tells of itself."""
    whole, rates = codes.astype(np.int64), np.empty(len(codes))
    half = np.arange(len(codes)) % 2 == 0
    for own in (half, ~half):
        sizes = np.bincount(whole[~own], minlength=whole.max() + 1)
        ones = np.bincount(whole[~own], labels[~own], minlength=whole.max() + 1)
        rates[own] = ((ones + labels.mean()) / (sizes + 1))[whole[own]]
    return rates


def _is_named_outcome(name: str) -> bool:
    return bool(_stems(name) & _OUTCOMES) and not any(word in _HISTORY or word[0].isdigit() for word in words(name))


def is_negative_outcome(name: str) -> bool:
    """Whether a label, by its name, says that the user did not like what was shown."""
    return bool(_stems(name) & _UNWANTED)


def _stems(name: str) -> set[str]:
    """The words of a name, and what is left of them without the endings of plural and past."""
    return {word.removesuffix(ending) for word in words(name) for ending in ("", "s", "ed", "d", "ped", "ted")}
