"""Metrics within users against loops over users, scikit-learn, and each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_engagement import naive_gauc, naive_ndcg
from sklearn.metrics import ndcg_score, roc_auc_score

from rookery.metrics.binary import Predictions
from rookery.metrics.grouped import UserRanking, ndcg, user_aurocs

ONCE = torch.ones(1, 1, dtype=torch.float64)


def gauc_of(task: Predictions) -> float:
    return UserRanking.of(task).under(ONCE.expand(task.num_users, 1))["gauc"].item()


def columns(*lists: list) -> list[torch.Tensor]:
    return [torch.tensor(values) for values in lists]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1, width=32),
            st.booleans(),
            st.sampled_from([0.0, 0.125, 1.0, 3.0]),
            st.integers(0, 4),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_gauc_equals_its_definition(rows: list[tuple[float, bool, float, int]]) -> None:
    p, y, weights, users = (list(column) for column in zip(*rows, strict=True))
    task = Predictions(torch.tensor(p), torch.tensor(y), torch.tensor(weights).double(), torch.tensor(users), 5)
    found = gauc_of(task)
    expected = naive_gauc([row[:3] for row in rows], [row[3] for row in rows])
    assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_gauc_against_scikit_learn_and_its_weighting_by_impressions() -> None:
    random = np.random.default_rng(0)
    users = random.integers(0, 40, 1500)
    p = random.random(1500).astype(np.float32)
    y = random.random(1500) < p * 0.1
    task = Predictions(torch.from_numpy(p), torch.from_numpy(y), torch.ones(1500).double(), torch.from_numpy(users), 40)
    both = [user for user in range(40) if len(set(y[users == user])) == 2]
    assert 0 < len(both) < 40
    aucs = [roc_auc_score(y[users == user], p[users == user]) for user in both]
    counts = [(users == user).sum() for user in both]
    assert gauc_of(task) == pytest.approx(np.average(aucs, weights=counts), abs=1e-12)
    per_user = user_aurocs(task)
    assert per_user[both].tolist() == pytest.approx(aucs, abs=1e-12)
    assert int(per_user.isnan().sum()) == 40 - len(both)


def test_without_users_of_both_labels_there_is_no_gauc() -> None:
    p, y, weights, users = columns([0.3, 0.4, 0.9], [True, True, False], [1.0, 1.0, 1.0], [0, 0, 1])
    assert math.isnan(gauc_of(Predictions(p, y, weights.double(), users, 2)))


LISTS = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=25)


@settings(deadline=None, max_examples=50)
@given(LISTS)
def test_ndcg_equals_its_definition(rows: list[tuple[int, int, int]]) -> None:
    scores, gains, users = columns(*map(list, zip(*rows, strict=True)))
    found = ndcg(scores.float() / 4, gains.float() / 2, users, 4).tolist()
    for user in range(4):
        own = [(score / 4, gain / 2) for score, gain, owner in rows if owner == user]
        expected = naive_ndcg(*zip(*own, strict=True)) if own else math.nan
        assert found[user] == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("levels", [1, 100])
def test_ndcg_against_scikit_learn(levels: int) -> None:
    random = np.random.default_rng(1)
    scores = np.round(random.normal(size=(9, 12)) * levels) / levels
    gains = random.integers(0, 5, (9, 12)) * 0.5
    users = torch.arange(9).repeat_interleave(12)
    found = ndcg(torch.from_numpy(scores).float().ravel(), torch.from_numpy(gains).float().ravel(), users, 9)
    expected = [ndcg_score(gains[[user]], scores[[user]]) for user in range(9)]
    assert found.tolist() == pytest.approx(expected, abs=1e-7)


def test_negative_zero_ties_with_zero() -> None:
    scores, gains = columns([-0.0, 0.0, -1.0], [1.0, 0.0, 0.0])
    users = torch.zeros(3, dtype=torch.int64)
    assert ndcg(scores, gains, users, 1).item() == pytest.approx((1 + 1 / math.log2(3)) / 2)


def test_users_without_a_better_order_are_left_out() -> None:
    scores, gains, users = columns([1.0, 0.0, 5.0, 1.0, 2.0], [2.0, 2.0, 3.0, 0.0, 1.0], [0, 0, 1, 2, 2])
    found = ndcg(scores, gains, users, 4)
    assert found.isnan().tolist() == [True, True, False, True]
    assert found[2] == 1.0
