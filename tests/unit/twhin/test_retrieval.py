"""Neighbours against sorted scores of all pairs; indexes against exact search; mixtures against planted clusters."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_retrieval import naive_scores, random_embeddings
from naive_twhin import compare
from torch import Tensor

from rookery.data.graph import Graph, Vocabulary
from rookery.errors import DataError, UserError
from rookery.twhin import search
from rookery.twhin.comparators import COMPARATORS
from rookery.twhin.embeddings import Embeddings
from rookery.twhin.entities import find_entities, nearest_ids
from rookery.twhin.index import StoredIndex, build_index
from rookery.twhin.index_config import ExactConfig, HnswConfig, IndexConfig, IvfPqConfig
from rookery.twhin.interests import cluster_history, merge_hits, quotas
from rookery.twhin.retrieval import NeighborRequest, Neighbors, find_neighbors
from rookery.twhin.search import Hits, search_rows
from rookery.twhin.source import Source
from rookery.types import Side

METRICS = tuple(COMPARATORS)
MANY = {"user": 400, "item": 3000}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tables this small are done before a second thread is awake."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def vocabulary(name: str, num: int) -> Vocabulary:
    return Vocabulary(name, pa.table({"id": [f"{name}-{row}" for row in range(num)]}))


def source_of(embeddings: Embeddings, graph: Graph | None = None) -> Source:
    vocabularies = {name: vocabulary(name, len(rows)) for name, rows in embeddings.rows.items()}
    return Source(Path("run"), 7, embeddings, vocabularies, graph)


def ids(found: Neighbors) -> list[str | int]:
    return [neighbor.id for neighbor in found.neighbors]


def best(scores: list[float], k: int, left_out: set[int] = frozenset()) -> list[int]:  # type: ignore[assignment]
    return sorted((row for row in range(len(scores)) if row not in left_out), key=lambda row: -scores[row])[:k]


@pytest.mark.parametrize(("comparator", "operator_side"), list(itertools.product(METRICS, ("lhs", "rhs", "both"))))
def test_a_relation_leads_to_the_best_scores(
    comparator: str, operator_side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_TILE_ROWS", 4)
    source = source_of(random_embeddings("complex_diagonal", comparator, operator_side))
    for side, anchor, results in ((Side.RHS, "user-3", "item"), (Side.LHS, "item-3", "user")):
        found = find_neighbors(source, NeighborRequest([anchor], 6, relation="likes"))
        scores = naive_scores(source.embeddings, side, 0, 3)
        expected = best(scores, 6)
        assert (found.side, found.entity_type, found.metric) == (side, results, comparator)
        assert ids(found) == [f"{results}-{row}" for row in expected]
        assert [neighbor.score for neighbor in found.neighbors] == pytest.approx(
            [scores[row] for row in expected], abs=1e-4
        )


def test_both_sides_of_a_relation_within_a_type_leave_out_the_entity_itself() -> None:
    source = source_of(random_embeddings("translation", "l2"))
    for side in (None, Side.RHS, Side.LHS):
        found = find_neighbors(source, NeighborRequest(["user-3"], 20, relation="follows", side=side))
        scores = naive_scores(source.embeddings, side or Side.RHS, 1, 3)
        assert ids(found) == [f"user-{row}" for row in best(scores, 20, {3})]


@pytest.mark.parametrize(
    ("comparator", "metric"), [("dot", "cosine"), ("cosine", "cosine"), ("l2", "l2"), ("l1", "l1")]
)
def test_alike_entities_are_of_one_type_without_the_operator(comparator: str, metric: str) -> None:
    source = source_of(random_embeddings("translation", comparator))
    found = find_neighbors(source, NeighborRequest(["item-2"], 4))
    rows = source.embeddings.rows["item"].double()
    scores = [float(compare(metric, rows[2], row)) for row in rows]
    expected = best(scores, 4, {2})
    assert (found.metric, found.side, found.entity_type) == (metric, None, "item")
    assert ids(found) == [f"item-{row}" for row in expected]
    assert [neighbor.score for neighbor in found.neighbors] == pytest.approx(
        [scores[row] for row in expected], abs=1e-5
    )


def test_known_edges_are_left_out_when_asked(graph: Graph, splits: dict[str, list[tuple[int, int, int]]]) -> None:
    source = source_of(random_embeddings(), graph)
    request = NeighborRequest(["user-4"], 20, relation="likes", exclude_known=True)
    known = {rhs for lhs, rel, rhs in splits["train"] if (lhs, rel) == (4, 0)}
    expected = best(naive_scores(source.embeddings, Side.RHS, 0, 4), 20, known)
    assert 0 < len(expected) < 10
    assert ids(find_neighbors(source, request)) == [f"item-{row}" for row in expected]
    backwards = dataclasses.replace(request, ids=["item-2"])
    likers = {lhs for lhs, rel, rhs in splits["train"] if (rhs, rel) == (2, 0)}
    expected = best(naive_scores(source.embeddings, Side.LHS, 0, 2), 20, likers)
    assert ids(find_neighbors(source, backwards)) == [f"user-{row}" for row in expected]


def test_several_ids_share_the_places() -> None:
    source = source_of(random_embeddings("translation", "cosine", num_entities=MANY))
    found = find_neighbors(source, NeighborRequest(["user-3", "user-9"], 10, relation="likes"))
    first = best(naive_scores(source.embeddings, Side.RHS, 0, 3), 5)
    second = best(naive_scores(source.embeddings, Side.RHS, 0, 9), 5, set(first))
    assert found.weights == [0.5, 0.5]
    assert set(ids(found)) == {f"item-{row}" for row in first + second}
    assert [neighbor.score for neighbor in found.neighbors] == sorted((n.score for n in found.neighbors), reverse=True)
    assert sum(neighbor.query for neighbor in found.neighbors) == 5


def planted(graph_path: Path) -> Source:
    """A user who met 6 items around one direction and 3 around another; 30 more items lie around either."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(8)[:2] * 5
    items = torch.cat([centres[group] + 0.1 * torch.randn(40, 8, generator=generator) for group in (0, 1)])
    embeddings = random_embeddings("translation", "dot", num_entities={"user": 12, "item": 80})
    source = source_of(dataclasses.replace(embeddings, rows={**embeddings.rows, "item": items}))
    return dataclasses.replace(source, graph=Graph.open(graph_path))


def test_interests_of_a_history_share_the_places_by_mass(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    history = torch.tensor([0, 1, 2, 3, 4, 5, 40, 41, 42])
    monkeypatch.setattr("rookery.twhin.retrieval._met", lambda *args: history)
    source = planted(graph.path)
    request = NeighborRequest(["user-0"], 9, relation="likes", num_interests=2, exclude_known=True)
    found = find_neighbors(source, request)
    assert found.weights == pytest.approx([6 / 9, 3 / 9])
    rows = [int(str(name).removeprefix("item-")) for name in ids(found)]
    assert not set(rows) & set(history.tolist())
    assert [sum(row < 40 for row in rows), sum(row >= 40 for row in rows)] == [6, 3]
    assert all((neighbor.query == 0) == (row < 40) for neighbor, row in zip(found.neighbors, rows, strict=True))


def test_interests_come_from_the_train_edges(graph: Graph, splits: dict[str, list[tuple[int, int, int]]]) -> None:
    source = source_of(random_embeddings("translation", "l2"), graph)
    found = find_neighbors(source, NeighborRequest(["user-4"], 1, relation="likes", num_interests=1))
    met = torch.tensor([rhs for lhs, rel, rhs in splits["train"] if (lhs, rel) == (4, 0)])
    items = source.embeddings.rows["item"]
    distances = torch.linalg.vector_norm(items - items[met].mean(0), dim=1)
    assert ids(found) == [f"item-{int(distances.argmin())}"]
    assert found.neighbors[0].score == pytest.approx(-float(distances.min()), abs=1e-5)


@pytest.mark.parametrize(("comparator", "metric"), [("dot", "cosine"), ("l1", "l1")])
def test_interests_are_asked_by_likeness_without_the_operator(
    graph: Graph, splits: dict[str, list[tuple[int, int, int]]], comparator: str, metric: str
) -> None:
    """Known items come back unless they are excluded; the operator, which moves every vector, changes nothing."""
    known = {rhs for lhs, rel, rhs in splits["train"] if (lhs, rel) == (4, 0)}
    request = NeighborRequest(["user-4"], 10, relation="likes", num_interests=1)
    for operator in ("translation", "complex_diagonal"):
        source = source_of(random_embeddings(operator, comparator), graph)
        items = source.embeddings.rows["item"].double()
        met = items[sorted(known)]
        centroid = (torch.nn.functional.normalize(met) if metric == "cosine" else met).mean(0)
        scores = [float(compare(metric, centroid, row)) for row in items]
        for exclude_known, left_out in ((False, set()), (True, known)):
            found = find_neighbors(source, dataclasses.replace(request, exclude_known=exclude_known))
            expected = best(scores, 10, left_out)
            assert (found.metric, found.entity_type) == (metric, "item")
            assert ids(found) == [f"item-{row}" for row in expected]
            assert [near.score for near in found.neighbors] == pytest.approx(
                [scores[row] for row in expected], abs=1e-5
            )


def test_interests_need_a_history_a_relation_and_a_graph(graph: Graph) -> None:
    source = source_of(random_embeddings(), graph)
    with pytest.raises(UserError, match="--interests: user-11 met nothing under likes in training"):
        find_neighbors(source, NeighborRequest(["user-11"], 5, relation="likes", num_interests=2))
    with pytest.raises(UserError, match="pass --relation too"):
        find_neighbors(source, NeighborRequest(["user-1"], 5, num_interests=2))
    with pytest.raises(UserError, match="pass --graph GRAPH"):
        find_neighbors(
            source_of(random_embeddings()), NeighborRequest(["user-1"], 5, relation="likes", num_interests=2)
        )


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=8), st.integers(1, 50))
@settings(deadline=None)
def test_quotas_are_whole_and_add_up(weights: list[float], num_places: int) -> None:
    places = quotas(torch.tensor(weights), num_places)
    assert sum(places) == num_places
    for place, weight in zip(places, weights, strict=True):
        assert abs(place - weight / sum(weights) * num_places) < 1 + 1e-4


def test_places_of_a_query_that_runs_dry_go_to_the_best_of_the_rest() -> None:
    hits = Hits(
        torch.tensor([[9.0, 8.0, 7.0, 6.0], [5.0, 4.0, 3.0, -math.inf]]), torch.tensor([[1, 2, 3, 4], [1, 2, 5, -1]])
    )
    assert merge_hits(hits, torch.tensor([0.5, 0.5]), 4) == [(1, 9.0, 0), (2, 8.0, 0), (3, 7.0, 0), (5, 3.0, 1)]
    assert merge_hits(hits, torch.tensor([0.5, 0.5]), 10) == [
        (1, 9.0, 0),
        (2, 8.0, 0),
        (3, 7.0, 0),
        (4, 6.0, 0),
        (5, 3.0, 1),
    ]


def test_never_more_interests_than_distinct_vectors() -> None:
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    found = cluster_history(vectors, "l2", 5)
    assert found.mass.tolist() == pytest.approx([2 / 3, 1 / 3])
    torch.testing.assert_close(found.centroids, vectors[[0, 2]])


@pytest.mark.parametrize("metric", METRICS)
def test_exact_search_is_a_sort(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_TILE_ROWS", 7)
    generator = torch.Generator().manual_seed(1)
    queries, rows = torch.randn(5, 6, generator=generator), torch.randn(40, 6, generator=generator)
    expected = compare(metric, queries.unsqueeze(1).double(), rows.unsqueeze(0).double()).sort(dim=1, descending=True)
    found = search_rows(metric, queries, rows, 9)  # type: ignore[arg-type]
    assert torch.equal(found.rows, expected.indices[:, :9])
    torch.testing.assert_close(found.scores.double(), expected.values[:, :9], rtol=1e-5, atol=1e-5)


CONFIGS: dict[str, IndexConfig] = {
    "exact": ExactConfig(),
    "hnsw": HnswConfig(num_links=16, ef_construction=64, ef_search=64),
    "ivfpq": IvfPqConfig(num_lists=16, num_probes=16, bytes_per_row=8),
}


@pytest.mark.parametrize(("kind", "metric"), list(itertools.product(("exact", "hnsw"), METRICS)))
def test_an_index_answers_in_the_comparators_own_terms(kind: str, metric: str, tmp_path: Path) -> None:
    """Rows, their order and their scores, relations and likeness, through a file and back."""
    source = source_of(random_embeddings("translation", metric, num_entities=MANY))
    manifest = build_index(source, "item", CONFIGS[kind], tmp_path / "index", recall_k=5)
    stored = StoredIndex.open(tmp_path / "index")
    queries = source.embeddings.queries(Side.RHS, 0, torch.arange(50))
    found, exact = stored.index.search(queries, 5), search_rows(metric, queries, source.embeddings.rows["item"], 5)  # type: ignore[arg-type]
    agree = found.rows == exact.rows
    assert agree.float().mean() > (0.999 if kind == "exact" else 0.9)
    torch.testing.assert_close(found.scores[agree], exact.scores[agree], rtol=1e-4, atol=1e-4)
    assert manifest.recall["relations"] is not None
    assert manifest.recall["relations"] > (0.999 if kind == "exact" else 0.9)
    assert (manifest.recall["similarity"] is None) == (metric == "dot")


@pytest.mark.parametrize("metric", ["dot", "cosine", "l2"])
def test_product_quantization_reports_what_it_loses(metric: str, tmp_path: Path) -> None:
    source = source_of(random_embeddings("translation", metric, num_entities=MANY))
    coarse = build_index(source, "item", IvfPqConfig(num_lists=16, num_probes=1, bytes_per_row=2), tmp_path / "coarse")
    fine = build_index(source, "item", CONFIGS["ivfpq"], tmp_path / "fine")
    assert coarse.recall["relations"] is not None
    assert fine.recall["relations"] is not None
    assert coarse.recall["relations"] < fine.recall["relations"] - 0.2
    assert 0.8 < fine.recall["relations"] < 1.0
    assert fine.parameters == {"num_lists": 16, "num_probes": 16, "bytes_per_row": 8}


def test_neighbours_through_an_index_have_exact_scores(tmp_path: Path) -> None:
    source = source_of(random_embeddings("translation", "l2", num_entities=MANY))
    build_index(source, "item", CONFIGS["ivfpq"], tmp_path / "index")
    for request in (NeighborRequest(["user-7"], 10, relation="likes"), NeighborRequest(["item-7", "item-9"], 10)):
        exact, found = find_neighbors(source, request), find_neighbors(source, request, tmp_path / "index")
        assert len(set(ids(found)) & set(ids(exact))) >= 9
        scores = {neighbor.id: neighbor.score for neighbor in exact.neighbors}
        shared = [neighbor for neighbor in found.neighbors if neighbor.id in scores]
        assert [n.score for n in shared] == pytest.approx([scores[n.id] for n in shared], abs=1e-5)


def test_the_constant_of_a_query_is_in_the_score_through_an_index_too(tmp_path: Path) -> None:
    """Translation under dot, asked backwards: <l + p, r> = <l, r> + <p, r>; the index sees only the first term."""
    source = source_of(random_embeddings("translation", "dot"))
    build_index(source, "user", ExactConfig(), tmp_path / "index")
    request = NeighborRequest(["item-7"], 3, relation="likes")
    assert find_neighbors(source, request, tmp_path / "index") == find_neighbors(source, request)


def test_an_index_is_refused_where_it_cannot_answer(tmp_path: Path) -> None:
    source = source_of(random_embeddings("linear", "l2", "lhs"))
    build_index(source, "user", ExactConfig(), tmp_path / "users")
    with pytest.raises(UserError, match=r"no index of their vectors can serve it; leave --index out"):
        find_neighbors(source, NeighborRequest(["item-1"], 3, relation="likes"), tmp_path / "users")
    with pytest.raises(UserError, match="holds user, the answers are of type item"):
        find_neighbors(source, NeighborRequest(["user-1"], 3, relation="likes"), tmp_path / "users")
    dot = source_of(random_embeddings("translation", "dot"))
    build_index(dot, "user", ExactConfig(), tmp_path / "dot")
    with pytest.raises(UserError, match="compares by dot, this question by cosine; build one with --metric cosine"):
        find_neighbors(dot, NeighborRequest(["user-1"], 3), tmp_path / "dot")
    build_index(dot, "user", ExactConfig(), tmp_path / "cosine", metric="cosine")
    alike = NeighborRequest(["user-1"], 3)
    assert ids(find_neighbors(dot, alike, tmp_path / "cosine")) == ids(find_neighbors(dot, alike))


def test_an_index_of_other_vectors_is_refused(tmp_path: Path) -> None:
    embeddings = random_embeddings("translation", "l2")
    build_index(source_of(embeddings), "item", ExactConfig(), tmp_path / "index")
    moved = dataclasses.replace(embeddings, rows={**embeddings.rows, "item": embeddings.rows["item"] + 1e-6})
    with pytest.raises(UserError, match=r"built from other vectors \(run, step 7\)"):
        find_neighbors(source_of(moved), NeighborRequest(["item-1"], 3), tmp_path / "index")


def test_a_damaged_index_is_never_read(tmp_path: Path) -> None:
    build_index(source_of(random_embeddings()), "item", ExactConfig(), tmp_path / "index")
    file = tmp_path / "index" / "index.faiss"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"index.faiss: crc32 is .* build it again"):
        StoredIndex.open(tmp_path / "index")
    with pytest.raises(DataError, match="name the folder that 'rookery twhin index' wrote"):
        StoredIndex.open(tmp_path)


@pytest.mark.parametrize(
    ("metric", "config", "remedy"),
    [
        ("l1", IvfPqConfig(), "no l1 distance; use --kind exact or hnsw"),
        ("l2", IvfPqConfig(bytes_per_row=5), "must divide the dimension 8; one of 1, 2, 4, 8"),
        ("l2", IvfPqConfig(num_lists=5000), "more than the 3000 rows"),
    ],
)
def test_what_product_quantization_cannot_do_is_refused(
    metric: str, config: IndexConfig, remedy: str, tmp_path: Path
) -> None:
    source = source_of(random_embeddings("translation", metric, num_entities=MANY))
    with pytest.raises(UserError, match=remedy):
        build_index(source, "item", config, tmp_path / "index")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"--type itme: .*did you mean 'item'"):
        build_index(source, "itme", ExactConfig(), tmp_path / "index")


def test_a_folder_of_another_kind_is_never_replaced(graph: Graph) -> None:
    with pytest.raises(DataError, match="--overwrite does not touch it"):
        build_index(source_of(random_embeddings()), "item", ExactConfig(), graph.path, overwrite=True)
    assert Graph.open(graph.path) == graph


def test_few_rows_cannot_be_quantized(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="10 rows cannot train 256 codes; use --kind exact or hnsw"):
        build_index(source_of(random_embeddings()), "item", IvfPqConfig(), tmp_path / "index")


def test_faiss_takes_the_threads_that_torch_has(tmp_path: Path) -> None:
    for num_threads in (2, 1):
        torch.set_num_threads(num_threads)
        build_index(source_of(random_embeddings()), "item", ExactConfig(), tmp_path / str(num_threads))
        assert faiss.omp_get_max_threads() == num_threads


def table_of(*names: str) -> Vocabulary:
    return Vocabulary("any", pa.table({"id": pa.array(names)}))


def rows_of(vocabularies: dict[str, Vocabulary], *wanted: str) -> Tensor:
    return find_entities(vocabularies, wanted, tuple(vocabularies)).rows


def test_unknown_ids_are_answered_with_the_nearest() -> None:
    vocabularies = {"user": table_of("anna", "bernd"), "item": table_of("/m/027rn", "/m/06cx9")}
    with pytest.raises(UserError, match=r"--id /m/072rn: no entity has this id \(user, item\); did you mean /m/027rn"):
        rows_of(vocabularies, "/m/072rn")
    with pytest.raises(UserError, match=r"--id zzzzzzzzz: .*ids look like anna, bernd"):
        rows_of({"user": vocabularies["user"]}, "zzzzzzzzz")
    assert nearest_ids(vocabularies["item"], "/m/06cx8")[0] == (1, "/m/06cx9")
    assert nearest_ids(Vocabulary("n", pa.table({"id": np.array([7, 81, 1234])})), "1243")[0] == (1, "1234")


def test_an_id_of_several_types_asks_for_the_type() -> None:
    vocabularies = {"user": table_of("x", "u"), "item": table_of("i", "x")}
    with pytest.raises(UserError, match="--id x: exists in types user and item; pass --type"):
        rows_of(vocabularies, "x")
    assert rows_of(vocabularies, "x", "i").tolist() == [1, 0]
    with pytest.raises(UserError, match=r"'u' \(user\), 'i' \(item\) are of different types"):
        rows_of(vocabularies, "u", "i")


def test_type_relation_and_side_must_fit() -> None:
    source = source_of(random_embeddings())
    with pytest.raises(UserError, match=r"--relation lieks: .*did you mean 'likes'"):
        find_neighbors(source, NeighborRequest(["user-1"], 3, relation="lieks"))
    with pytest.raises(UserError, match="--type item: relation follows leads from user here"):
        find_neighbors(source, NeighborRequest(["item-1"], 3, relation="follows", entity_type="item"))
    with pytest.raises(UserError, match="--id user-1: no item has this id"):
        find_neighbors(source, NeighborRequest(["user-1"], 3, relation="likes", side=Side.LHS))
    found = find_neighbors(source, NeighborRequest(["item-1"], 3, relation="likes", entity_type="item"))
    assert found.side is Side.LHS
