"""Ranking sums against their definitions, written out."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rookery.metrics.ranking import RankSums, TopKSums

KS = (1, 3, 10)
COUNTS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20), st.integers(0, 10)), min_size=1, max_size=30)


def rank_sums(counts: list[tuple[int, int, int]]) -> RankSums:
    """From (greater, equal, less)."""
    columns = torch.tensor(counts, dtype=torch.int64).reshape(-1, 3)
    return RankSums.from_ranks(1 + columns[:, 0] + columns[:, 1].double() / 2, columns.sum(1), KS)


def top_k_sums(queries: list[tuple[list[float], set[int], int]], ks: tuple[int, ...] = KS) -> TopKSums:
    """From (scores, positives among them, number of positives that cannot be found)."""
    query, greater, tied = [], [], []
    for number, (scores, positives, _) in enumerate(queries):
        for positive in sorted(positives):
            query.append(number)
            greater.append(sum(score > scores[positive] for score in scores))
            tied.append(sum(score == scores[positive] for score in scores))
    num_positives = [len(positives) + hidden for _, positives, hidden in queries]
    return TopKSums.from_counts(
        *(torch.tensor(column, dtype=torch.int64) for column in (query, greater, tied, num_positives)), ks
    )


@settings(deadline=None)
@given(COUNTS)
def test_rank_metrics_equal_the_definition(counts: list[tuple[int, int, int]]) -> None:
    metrics = rank_sums(counts).compute()
    ranks = [1 + greater + equal / 2 for greater, equal, _ in counts]
    aucs = [(less + equal / 2) / (greater + equal + less) for greater, equal, less in counts if greater + equal + less]
    assert metrics["mrr"] == pytest.approx(sum(1 / rank for rank in ranks) / len(ranks), abs=1e-11)
    assert metrics["mean_rank"] == sum(ranks) / len(ranks)
    for k in KS:
        assert metrics[f"hits@{k}"] == sum(rank <= k for rank in ranks) / len(ranks)
    if aucs:
        assert metrics["auc"] == pytest.approx(sum(aucs) / len(aucs), abs=1e-11)
    else:
        assert math.isnan(metrics["auc"])


@settings(deadline=None)
@given(COUNTS, st.integers(0, 30), st.randoms())
def test_merging_does_not_depend_on_parts_or_order(
    counts: list[tuple[int, int, int]], cut: int, random: object
) -> None:
    shuffled = list(counts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert rank_sums(shuffled[:cut]) + rank_sums(shuffled[cut:]) == rank_sums(counts)


def test_sums_survive_a_summing_all_reduce() -> None:
    parts = [rank_sums([(3, 1, 5)] * 7), rank_sums([(0, 0, 9)] * 11), rank_sums([])]
    reduced = torch.stack([part.to_tensor() for part in parts]).sum(0)
    assert RankSums.from_tensor(KS, reduced) == parts[0] + parts[1] + parts[2]


def test_sums_beyond_int64_survive_too() -> None:
    huge = RankSums((1,), (2**40, 2**80, 2**76, 2**76, 2**40, 2**39))
    assert RankSums.from_tensor((1,), huge.to_tensor() + huge.to_tensor()) == huge + huge


def test_nothing_ranked_gives_nan_not_a_number_that_looks_good() -> None:
    assert all(math.isnan(value) for value in rank_sums([]).compute().values())
    assert all(math.isnan(value) for value in RankSums.empty(KS).compute().values())
    assert all(math.isnan(value) for value in TopKSums.empty(KS).compute().values())


def test_the_only_candidate_ranks_first_and_has_no_auc() -> None:
    metrics = rank_sums([(0, 0, 0)]).compute()
    assert (metrics["mrr"], metrics["hits@1"], metrics["mean_rank"]) == (1.0, 1.0, 1.0)
    assert math.isnan(metrics["auc"])


def test_a_constant_score_is_a_coin_toss() -> None:
    metrics = rank_sums([(0, 100, 0)]).compute()
    assert metrics["mean_rank"] == 51.0
    assert metrics["auc"] == 0.5
    assert metrics["hits@10"] == 0.0


def expected_top_k(scores: list[float], positives: set[int], hidden: int, k: int) -> tuple[float, float]:
    """Mean of recall and NDCG over all orders that respect the scores."""
    orders = [
        order
        for order in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    recall = ndcg = 0.0
    num_positives = len(positives) + hidden
    ideal = sum(1 / math.log2(place + 2) for place in range(min(k, num_positives)))
    for order in orders:
        hits = [place for place, candidate in enumerate(order[:k]) if candidate in positives]
        recall += len(hits) / num_positives / len(orders)
        ndcg += sum(1 / math.log2(place + 2) for place in hits) / ideal / len(orders)
    return recall, ndcg


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 3).map(float), min_size=1, max_size=6).flatmap(
        lambda scores: st.tuples(
            st.just(scores), st.sets(st.integers(0, len(scores) - 1), min_size=1), st.integers(0, 2), st.integers(1, 8)
        )
    )
)
def test_top_k_metrics_are_expectations_over_the_orders_of_ties(case: tuple[list[float], set[int], int, int]) -> None:
    scores, positives, hidden, k = case
    metrics = top_k_sums([(scores, positives, hidden)], (k,)).compute()
    recall, ndcg = expected_top_k(scores, positives, hidden, k)
    assert metrics[f"recall@{k}"] == pytest.approx(recall, abs=1e-10)
    assert metrics[f"ndcg@{k}"] == pytest.approx(ndcg, abs=1e-10)


def test_queries_without_positives_are_left_out() -> None:
    found = ([3.0, 2.0, 1.0], {0}, 0)
    assert top_k_sums([found, ([1.0, 2.0], set(), 0)]) == top_k_sums([found])


def test_a_query_whose_positives_are_all_hidden_counts_as_zero() -> None:
    sums = top_k_sums([([3.0, 2.0], {0}, 0), ([1.0, 2.0], set(), 2)])
    assert sums.num_queries == 2
    assert sums.compute()["recall@1"] == 0.5
