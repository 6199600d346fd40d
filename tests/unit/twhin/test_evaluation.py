"""Evaluation against the definitions written as loops, on graphs with repeats, ties and every candidate layout."""

from __future__ import annotations

import dataclasses
import json
import math

import pyarrow.parquet as pq
import pytest
import torch
from naive_ranking import TableScorer, edges_of, naive_rank_metrics, naive_ranks, naive_top_k, random_triples
from pydantic import ValidationError

from rookery.data.graph import Graph
from rookery.errors import DataError, TrainingError
from rookery.metrics.ranking import RankSums
from rookery.twhin.candidates import CandidateList
from rookery.twhin.evaluation import Evaluator
from rookery.twhin.evaluation_config import EvaluationConfig
from rookery.twhin.known import KnownEdges
from rookery.twhin.link_prediction import LinkPrediction, evaluate_link_prediction
from rookery.twhin.recommendation import evaluate_recommendation
from rookery.types import Side

CONFIG = EvaluationConfig(ks=(1, 3, 10))
LAYOUTS = {"one tile": 10**9, "a few queries at a time": 64 * 40, "tiles of 3": 3 * 256}


@pytest.fixture(params=list(LAYOUTS))
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every budget gives the same numbers; the budget of a run is in MiB, more than these tables need."""
    make = CandidateList.of

    def of(*args: object) -> CandidateList:
        return dataclasses.replace(make(*args), max_scores=LAYOUTS[request.param])

    monkeypatch.setattr(CandidateList, "of", of)
    return str(request.param)


def assert_close(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-10, nan_ok=True), name


@pytest.mark.parametrize("levels", [None, 1])
def test_ranks_equal_the_loops(layout: str, levels: int | None) -> None:
    scorer = TableScorer(num_users=30, num_items=40, levels=levels)
    train, test = random_triples(scorer, 150, seed=1), random_triples(scorer, 80, seed=2)
    result = evaluate_link_prediction(scorer, edges_of(test), KnownEdges.build(edges_of(train + test)), CONFIG)
    filtered = {side: naive_ranks(scorer, test, set(train + test), side) for side in Side}
    raw = {side: naive_ranks(scorer, test, set(), side) for side in Side}
    expected = naive_rank_metrics(filtered[Side.LHS] + filtered[Side.RHS], CONFIG.ks)
    for side in Side:
        expected[f"{side.value}/mrr"] = naive_rank_metrics(filtered[side], CONFIG.ks)["mrr"]
    assert_close(result.metrics(), expected)
    unfiltered = dataclasses.replace(result, filtered=None).metrics()
    expected = naive_rank_metrics(raw[Side.LHS] + raw[Side.RHS], CONFIG.ks)
    assert_close(
        {f"raw_{name}": unfiltered[f"raw_{name}"] for name in expected},
        {f"raw_{name}": value for name, value in expected.items()},
    )
    assert "mrr" not in unfiltered


def test_report_gives_each_relation_and_side() -> None:
    scorer = TableScorer(num_users=12, num_items=15)
    test = random_triples(scorer, 60, seed=3)
    report = evaluate_link_prediction(scorer, edges_of(test), KnownEdges.build(edges_of(test)), CONFIG).report()
    made_by = [triple for triple in test if triple[1] == 2]
    found = report["filtered"]["relations"]["made_by"]["sides"]["lhs"]  # type: ignore[index]
    assert found.pop("num_queries") == len(made_by)
    assert_close(found, naive_rank_metrics(naive_ranks(scorer, made_by, set(test), Side.LHS), CONFIG.ks))
    assert json.dumps(report)


def test_edges_that_are_not_known_do_not_rank_against_themselves(layout: str) -> None:
    scorer = TableScorer(num_users=9, num_items=11, levels=1)
    train, test = random_triples(scorer, 30, seed=4), random_triples(scorer, 30, seed=5)
    result = evaluate_link_prediction(scorer, edges_of(test), KnownEdges.build(edges_of(train)), CONFIG)
    ranks = [rank for side in Side for rank in naive_ranks(scorer, test, set(train), side)]
    expected = naive_rank_metrics(ranks, CONFIG.ks)
    assert_close({name: result.metrics()[name] for name in expected}, expected)


def test_each_query_is_scored_once() -> None:
    scorer = TableScorer(num_users=5, num_items=6)
    test = random_triples(scorer, 200, seed=6)
    evaluate_link_prediction(scorer, edges_of(test), KnownEdges.build(edges_of(test)), CONFIG)
    assert len(scorer.requests) == len(set(scorer.requests))


def test_scores_stay_within_the_memory_budget() -> None:
    scorer = TableScorer(num_users=3000, num_items=2000)
    test = random_triples(scorer, 3000, seed=7)
    config = EvaluationConfig(chunk_memory_mib=1)
    evaluate_link_prediction(scorer, edges_of(test), KnownEdges.build(edges_of(test)), config)
    assert scorer.largest * 12 <= 2**20


def test_sampled_candidates_are_the_same_few_for_all_edges_of_a_relation(layout: str) -> None:
    scorer = TableScorer(num_users=30, num_items=40, levels=1)
    train, test = random_triples(scorer, 100, seed=8), random_triples(scorer, 60, seed=9)
    config = EvaluationConfig(ks=(1, 3), num_candidates=13, seed=5)
    result = evaluate_link_prediction(scorer, edges_of(test), KnownEdges.build(edges_of(train + test)), config)
    allowed = {}
    for relation in range(3):
        for side in Side:
            rows = CandidateList.of(scorer, side, relation, config, 13).rows
            assert rows is not None
            assert len(set(rows.tolist())) == 13
            allowed[relation, side] = set(rows.tolist())
    ranks = [rank for side in Side for rank in naive_ranks(scorer, test, set(train + test), side, allowed)]
    expected = naive_rank_metrics(ranks, config.ks)
    assert_close({name: result.metrics()[name] for name in expected}, expected)


def test_more_sampled_candidates_than_entities_are_all_entities() -> None:
    scorer = TableScorer(num_users=6, num_items=7)
    edges = edges_of(random_triples(scorer, 20, seed=10))
    known = KnownEdges.build(edges)
    every = evaluate_link_prediction(scorer, edges, known, CONFIG)
    assert evaluate_link_prediction(scorer, edges, known, CONFIG.model_copy(update={"num_candidates": 7})) == every


def test_parts_of_a_split_add_up_to_the_whole() -> None:
    """What lets processes share the edges: sums are integers, so the order of addition does not matter."""
    scorer = TableScorer(num_users=20, num_items=25)
    triples = random_triples(scorer, 90, seed=11)
    known = KnownEdges.build(edges_of(triples))

    def ranked(part: list[tuple[int, int, int]]) -> LinkPrediction:
        return evaluate_link_prediction(scorer, edges_of(part), known, CONFIG)

    whole, parts = ranked(triples), [ranked(triples[start::3]) for start in range(3)]
    for key, sums in whole.raw.items():
        assert sum((part.raw[key] for part in parts if key in part.raw), RankSums.empty(CONFIG.ks)) == sums


def test_a_model_that_knows_nothing_gets_chance() -> None:
    scorer = TableScorer(num_users=50, num_items=50, levels=None)
    scorer.tables = {name: torch.zeros_like(table) for name, table in scorer.tables.items()}
    edges = edges_of(random_triples(scorer, 40, seed=12))
    result = evaluate_link_prediction(scorer, edges, KnownEdges.build(edges), CONFIG)
    assert result.metrics()["auc"] == 0.5
    assert result.metrics()["hits@10"] == 0.0
    assert result.report()["raw"]["mean_rank"] == 25.5  # type: ignore[index]


@pytest.mark.parametrize("diverged", [1, 3])
def test_a_diverged_model_is_an_error_not_a_metric(diverged: int) -> None:
    """Whether the true item or another one has no number."""
    scorer = TableScorer(num_users=5, num_items=5)
    scorer.tables["item"][diverged] = math.nan
    edges = edges_of([(0, 0, 1)])
    known = KnownEdges.build(edges)
    for evaluate, masked in (
        (evaluate_link_prediction, known),
        (evaluate_recommendation, KnownEdges.build(edges_of([]))),
    ):
        with pytest.raises(TrainingError, match="relation 'likes': 1 of 5 scores are not finite"):
            evaluate(scorer, edges, masked, CONFIG)


@pytest.mark.parametrize("levels", [None, 1])
def test_recommendation_equals_the_loops(layout: str, levels: int | None) -> None:
    scorer = TableScorer(num_users=30, num_items=40, levels=levels)
    train, test = random_triples(scorer, 200, seed=13), random_triples(scorer, 120, seed=14)
    test += test[:10] + [triple for triple in train[:8] if triple not in test]  # repeats, and edges that are masked
    result = evaluate_recommendation(scorer, edges_of(test), KnownEdges.build(edges_of(train)), CONFIG)
    assert_close(result.metrics(), naive_top_k(scorer, test, train, CONFIG.ks))
    assert result.num_masked == len(set(test) & set(train))
    likes = [triple for triple in test if triple[1] == 0]
    found = result.report()["relations"]["likes"]  # type: ignore[index]
    assert found.pop("num_queries") == len({lhs for lhs, _, _ in likes})
    assert_close(found, naive_top_k(scorer, likes, train, CONFIG.ks))


def test_recommendation_of_fewer_items_than_k() -> None:
    scorer = TableScorer(num_users=4, num_items=3)
    test = [(0, 0, 1), (0, 0, 2), (1, 0, 0)]
    result = evaluate_recommendation(scorer, edges_of(test), KnownEdges.build(edges_of([])), CONFIG).metrics()
    assert result["recall@10"] == 1.0
    assert_close(result, naive_top_k(scorer, test, [], CONFIG.ks))


def triples_of(graph: Graph, split: str) -> list[tuple[int, int, int]]:
    table = pq.read_table(graph.split_files(split)[0])
    return list(zip(*(table.column(name).to_pylist() for name in ("lhs", "rel", "rhs")), strict=True))


def test_evaluator_filters_by_all_splits_and_counts_unseen_entities(graph: Graph) -> None:
    scorer = TableScorer(num_users=12, num_items=10)
    config = EvaluationConfig(metrics=("link_prediction", "recommendation"), ks=(1, 3))
    evaluation = Evaluator.from_graph(graph, "test", config).evaluate(scorer)
    train, valid, test = (triples_of(graph, split) for split in ("train", "valid", "test"))
    ranks = [rank for side in Side for rank in naive_ranks(scorer, test, {*train, *valid, *test}, side)]
    expected = naive_rank_metrics(ranks, config.ks) | naive_top_k(scorer, test, train + valid, config.ks)
    assert_close({name: evaluation.metrics()[name] for name in expected}, expected)
    assert (evaluation.num_edges, evaluation.num_edges_unseen) == (5, 3)
    assert evaluation.report()["num_edges_unseen"] == 3


def test_the_evaluated_split_masks_nothing(graph: Graph) -> None:
    scorer = TableScorer(num_users=12, num_items=10)
    config = EvaluationConfig(metrics=("recommendation",), ks=(3,))
    evaluation = Evaluator.from_graph(graph, "valid", config).evaluate(scorer)
    assert_close(
        evaluation.metrics(), naive_top_k(scorer, triples_of(graph, "valid"), triples_of(graph, "train"), (3,))
    )


def test_a_part_of_the_split_is_the_same_part_each_time(graph: Graph) -> None:
    config = EvaluationConfig(max_edges=3, filtered=False)
    first, second = (Evaluator.from_graph(graph, "test", config) for _ in range(2))
    assert first.edges.num_edges == 3
    assert all(torch.equal(a, b) for a, b in zip(first.edges, second.edges, strict=True))
    other = Evaluator.from_graph(graph, "valid", config.model_copy(update={"seed": 1})).edges
    same = Evaluator.from_graph(graph, "valid", config).edges
    assert not torch.equal(other.lhs, same.lhs)


def test_raw_ranks_alone_are_named_raw(graph: Graph) -> None:
    metrics = (
        Evaluator.from_graph(graph, "test", EvaluationConfig(filtered=False)).evaluate(TableScorer(12, 10)).metrics()
    )
    assert "raw_mrr" in metrics
    assert "mrr" not in metrics


def test_one_side_alone(graph: Graph) -> None:
    metrics = (
        Evaluator.from_graph(graph, "test", EvaluationConfig(sides=(Side.RHS,))).evaluate(TableScorer(12, 10)).metrics()
    )
    assert metrics["mrr"] == metrics["rhs/mrr"]
    assert "lhs/mrr" not in metrics


def test_an_empty_split_is_refused(graph: Graph) -> None:
    with pytest.raises(DataError, match="split 'empty' has no edges to evaluate"):
        Evaluator.from_graph(graph, "empty", CONFIG)
    with pytest.raises(DataError, match="no split 'tset'"):
        Evaluator.from_graph(graph, "tset", CONFIG)


@pytest.mark.parametrize(
    "bad", [{"ks": ()}, {"ks": (0,)}, {"metrics": ()}, {"num_candidates": 0}, {"sides": ("left",)}]
)
def test_config_refuses_what_cannot_be_measured(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        EvaluationConfig.model_validate(bad)
