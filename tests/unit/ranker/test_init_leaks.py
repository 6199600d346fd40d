"""What is taken for an outcome and what is not, and the area under the curve that tells."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from rookery.ranker.init_leaks import LeakSearch, auroc, is_negative_outcome

NUM_ROWS = 4_000


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def search(rng: np.random.Generator, share: float = 0.3, **columns: object) -> LeakSearch:
    """``y`` is 1 in ``share`` of the rows, by chance; each user and each item has 20 rows."""
    table = {
        "y": (rng.random(NUM_ROWS) < share).astype(int),
        "user": np.arange(NUM_ROWS) % 200,
        "item": rng.permutation(np.arange(NUM_ROWS) % 200),
    }
    made = {name: column(table, rng) if callable(column) else column for name, column in columns.items()}
    return LeakSearch(pa.table({**table, **made}), ["y"], "user", "item")


def test_auroc_is_that_of_scikit_learn(rng):
    values = rng.integers(0, 20, 500).astype(float)
    values[::7] = np.nan
    labels = (rng.random((500, 3)) < [0.1, 0.5, 0.9]).astype(float)
    expected = [roc_auc_score(labels[:, i], np.nan_to_num(values, nan=-1)) for i in range(3)]
    np.testing.assert_allclose(auroc(values, labels), expected, rtol=1e-12)
    assert auroc(values, np.zeros((500, 1))).tolist() == [0.5]


LEAKS = {
    "a number": lambda t, rng: np.where(t["y"], 1.0, 0.0) + 0.5 * rng.normal(size=NUM_ROWS),
    "a number turned round": lambda t, rng: -np.where(t["y"], 1.0, 0.0) + 0.5 * rng.normal(size=NUM_ROWS),
    "a word": lambda t, rng: np.where(t["y"] & (rng.random(NUM_ROWS) < 0.95), "open", "none"),
    "a null": lambda t, rng: pa.array(np.arange(NUM_ROWS), mask=t["y"] == 0),
    "a time": lambda t, rng: pa.array(np.arange(NUM_ROWS), pa.timestamp("s"), mask=t["y"] == 0),
    "only after": lambda t, rng: t["y"] * (rng.random(NUM_ROWS) < 0.05),
    "always before": lambda t, rng: np.maximum(t["y"], rng.random(NUM_ROWS) < 0.6).astype(int),
    "a list that grows": lambda t, rng: [[1, 2] if y else [1] for y in t["y"]],
    "a list with the item": lambda t, rng: [
        [5_000, item] if y else [5_000, 6_000] for y, item in zip(t["y"], t["item"], strict=True)
    ],
    "a component": lambda t, rng: [
        [noise, float(y)] for y, noise in zip(t["y"], rng.normal(size=NUM_ROWS), strict=True)
    ],
}


@pytest.mark.parametrize("name", list(LEAKS))
def test_what_knows_the_outcome_is_found(rng, name):
    evidence = search(rng, column=LEAKS[name]).evidence("column")
    assert evidence is not None
    assert "y" in evidence


HONEST = {
    "noise": lambda t, rng: rng.normal(size=NUM_ROWS),
    "a good feature": lambda t, rng: t["y"] + 1.0 * rng.normal(size=NUM_ROWS),  # AUROC .76
    "a constant": lambda t, rng: np.ones(NUM_ROWS),
    "a category": lambda t, rng: rng.choice(["a", "b", "c"], NUM_ROWS),
    "one-sided": lambda t, rng: t["y"] * (rng.random(NUM_ROWS) < 0.5) + (rng.random(NUM_ROWS) < 0.3),
    "a list": lambda t, rng: [list(range(n)) for n in rng.integers(0, 4, NUM_ROWS)],
    "a vector": lambda t, rng: list(rng.normal(size=(NUM_ROWS, 3))),
}


@pytest.mark.parametrize("name", list(HONEST))
def test_what_merely_helps_is_not(rng, name):
    assert search(rng, column=HONEST[name]).evidence("column") is None


def test_a_property_of_the_item_is_no_outcome(rng):
    """A label that only videos can get is 0 wherever ``is_video`` is; both are known before."""
    items = rng.permutation(np.arange(NUM_ROWS) % 200)
    is_video = (items < 100).astype(int)
    y = is_video * (rng.random(NUM_ROWS) < 0.3)
    table = pa.table({"y": y, "user": np.arange(NUM_ROWS) % 200, "item": items, "is_video": is_video})
    assert LeakSearch(table, ["y"], "user", "item").evidence("is_video") is None
    assert LeakSearch(table, ["y"], "user", None).evidence("is_video") is not None


@pytest.mark.parametrize("name", ["is_follow", "hasBookmarked", "comments", "dwell"])
def test_a_name_is_a_hint(rng, name):
    weak = {name: lambda t, rng: (rng.random(NUM_ROWS) < 0.02 + 0.02 * t["y"]).astype(int)}
    if name == "hasBookmarked":  # it had happened before
        assert search(rng, **weak).evidence(name) is None
    else:
        evidence = search(rng, **weak).evidence(name)
        assert evidence is not None
        assert evidence.startswith("0 or 1 and named like an outcome; y is 1 in")


@pytest.mark.parametrize("name", ["user_like_rate", "past_clicks", "click_count", "clicks_7d"])
def test_what_was_counted_before_is_no_hint(rng, name):
    column = {name: lambda t, rng: t["y"] + 1.5 * rng.normal(size=NUM_ROWS)}
    assert search(rng, **column).evidence(name) is None


def test_a_hinted_number_needs_less(rng):
    column = {"play_time": lambda t, rng: t["y"] + 1.5 * rng.normal(size=NUM_ROWS)}  # AUROC .68
    evidence = search(rng, **column).evidence("play_time")
    assert evidence is not None
    assert "AUROC 0.6" in evidence


def test_few_positives_prove_nothing(rng):
    """With five positives a chance column reaches .9 now and then."""
    column = {f"f{i}": rng.normal(size=NUM_ROWS) for i in range(40)}
    found = search(rng, share=5 / NUM_ROWS, **column)
    assert [name for name in column if found.evidence(name)] == []


@pytest.mark.parametrize(
    ("name", "is_negative"), [("is_hate", True), ("reported", True), ("is_click", False), ("skips", True)]
)
def test_unwanted_labels_are_known_by_name(name, is_negative):
    assert is_negative_outcome(name) == is_negative
