"""Ranking metrics against scikit-learn, torchmetrics and the LightGCN formula, on the same scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_ranking import TableScorer, edges_of, random_triples
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score, roc_auc_score, top_k_accuracy_score

from rookery.twhin.evaluation_config import EvaluationConfig
from rookery.twhin.known import KnownEdges
from rookery.twhin.link_prediction import evaluate_link_prediction
from rookery.twhin.recommendation import evaluate_recommendation
from rookery.types import Side

KS = (1, 3, 10)
NUM_USERS, NUM_ITEMS = 25, 40


@pytest.fixture(scope="module")
def retrieval() -> Any:
    return pytest.importorskip(
        "torchmetrics.functional.retrieval", reason="torchmetrics comes with the extra 'cluster'"
    )


def queries_of(scores: np.ndarray, relevant: np.ndarray) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For torchmetrics, to which a score of 0 or less means "not retrieved": each score by its place from below."""
    places = scores.argsort(axis=1).argsort(axis=1) + 1.0
    return list(zip(torch.from_numpy(places), torch.from_numpy(relevant).long(), strict=True))


def likes(scorer: TableScorer, num: int, seed: int) -> list[tuple[int, int, int]]:
    return sorted({triple for triple in random_triples(scorer, num, seed) if triple[1] == 0})


def ranked(
    scorer: TableScorer, test: list[tuple[int, int, int]], train: list[tuple[int, int, int]]
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Our filtered metrics of predicting rhs; scores ``[edges, items]`` with known items removed; the true items."""
    config = EvaluationConfig(ks=KS, sides=(Side.RHS,))
    known = KnownEdges.build(edges_of(test + train))
    metrics = evaluate_link_prediction(scorer, edges_of(test), known, config).metrics()
    true = set(test + train)
    scores, truths = [], []
    for lhs, relation, rhs in test:
        row = np.array(scorer.score_of(Side.RHS, relation, lhs), dtype=np.float64)
        others = [item for item in range(NUM_ITEMS) if (lhs, relation, item) in true and item != rhs]
        row[others] = -1e9 - np.arange(len(others))  # below all, and no ties among them
        scores.append(row)
        truths.append(rhs)
    return metrics, np.array(scores), np.array(truths)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_mrr_and_hits_without_ties(retrieval: Any, seed: int) -> None:
    scorer = TableScorer(NUM_USERS, NUM_ITEMS, seed=seed)
    train, test = likes(scorer, 200, seed + 1), likes(scorer, 60, seed + 2)
    metrics, scores, truths = ranked(scorer, test, train)
    relevant = np.eye(NUM_ITEMS)[truths]
    assert metrics["mrr"] == pytest.approx(label_ranking_average_precision_score(relevant, scores), abs=1e-10)
    queries = queries_of(scores, relevant)
    reciprocal = [float(retrieval.retrieval_reciprocal_rank(*query)) for query in queries]
    assert metrics["mrr"] == pytest.approx(np.mean(reciprocal), abs=1e-7)
    for k in KS:
        accuracy = top_k_accuracy_score(truths, scores, k=k, labels=range(NUM_ITEMS))
        assert metrics[f"hits@{k}"] == pytest.approx(accuracy, abs=1e-12)
        hit_rate = np.mean([float(retrieval.retrieval_hit_rate(*query, top_k=k)) for query in queries])
        assert metrics[f"hits@{k}"] == pytest.approx(hit_rate, abs=1e-7)


@pytest.mark.parametrize("levels", [None, 2])
def test_auc_with_ties(levels: int | None) -> None:
    scorer = TableScorer(NUM_USERS, NUM_ITEMS, seed=1, levels=levels)
    train, test = likes(scorer, 300, 2), likes(scorer, 90, 3)
    metrics, scores, truths = ranked(scorer, test, train)
    aucs = []
    for row, truth in zip(scores, truths, strict=True):
        kept = row > -1e8
        aucs.append(roc_auc_score(np.arange(NUM_ITEMS)[kept] == truth, row[kept]))
    assert metrics["auc"] == pytest.approx(np.mean(aucs), abs=1e-10)


def recommended(scorer: TableScorer, seed: int) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Our metrics; scores ``[users, items]`` with train items masked; relevance ``[users, items]``."""
    train = likes(scorer, 200, seed + 1)
    test = [triple for triple in likes(scorer, 150, seed + 2) if triple not in set(train)]
    config = EvaluationConfig(metrics=("recommendation",), ks=KS)
    metrics = evaluate_recommendation(scorer, edges_of(test), KnownEdges.build(edges_of(train)), config).metrics()
    users = sorted({lhs for lhs, _, _ in test})
    scores = np.array([scorer.score_of(Side.RHS, 0, user) for user in users], dtype=np.float64)
    relevant = np.zeros_like(scores)
    for place, user in enumerate(users):
        scores[place, [item for lhs, _, item in train if lhs == user]] = -1e9
        relevant[place, [item for lhs, _, item in test if lhs == user]] = 1
    return metrics, scores, relevant


@pytest.mark.parametrize("levels", [None, 2])
def test_ndcg_against_scikit_learn_ties_included(levels: int | None) -> None:
    metrics, scores, relevant = recommended(TableScorer(NUM_USERS, NUM_ITEMS, seed=4, levels=levels), 5)
    for k in KS:
        assert metrics[f"ndcg@{k}"] == pytest.approx(ndcg_score(relevant, scores, k=k), abs=1e-10)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_recall_and_ndcg_against_torchmetrics(retrieval: Any, seed: int) -> None:
    metrics, scores, relevant = recommended(TableScorer(NUM_USERS, NUM_ITEMS, seed=seed), seed)
    queries = queries_of(scores, relevant)
    for k in KS:
        recall = np.mean([float(retrieval.retrieval_recall(*query, top_k=k)) for query in queries])
        ndcg = np.mean([float(retrieval.retrieval_normalized_dcg(*query, top_k=k)) for query in queries])
        assert metrics[f"recall@{k}"] == pytest.approx(recall, abs=1e-6)
        assert metrics[f"ndcg@{k}"] == pytest.approx(ndcg, abs=1e-6)


def test_recall_and_ndcg_as_lightgcn_writes_them() -> None:
    """He et al. 2020, appendix of the released evaluation: hits over positives, ideal gain cut at K."""
    metrics, scores, relevant = recommended(TableScorer(NUM_USERS, NUM_ITEMS, seed=6), 7)
    for k in KS:
        top = np.argsort(-scores, axis=1)[:, :k]
        hits = np.take_along_axis(relevant, top, axis=1)
        recall = hits.sum(1) / relevant.sum(1)
        discounts = 1.0 / np.log2(np.arange(2, k + 2))
        ideal = np.sort(relevant, axis=1)[:, ::-1][:, :k]
        ndcg = (hits * discounts).sum(1) / (ideal * discounts).sum(1)
        assert metrics[f"recall@{k}"] == pytest.approx(recall.mean(), abs=1e-10)
        assert metrics[f"ndcg@{k}"] == pytest.approx(ndcg.mean(), abs=1e-10)
