from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from naive_ingest import digests, edges_of, naive_vocabulary, run, vocabulary_of, write_lines

RNG = np.random.default_rng(0)
ROWS = [(f"u{lhs}", f"v{rhs}", int(time)) for lhs, rhs, time in RNG.integers(0, [40, 60, 500], (3000, 3))]
TIMED = {"lhs": 1, "rhs": 2, "time": 3}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> dict[str, object]:
    file = write_lines(tmp_path_factory.mktemp("edges") / "e.tsv", ROWS)
    return {"files": str(file), "columns": {"lhs": 1, "rhs": 2}}


@pytest.fixture(scope="module")
def timed(source) -> dict[str, object]:
    return source | {"columns": TIMED}


def pairs(graph, split: str) -> list[tuple[str, str]]:
    return [(lhs, rhs) for lhs, _, rhs in edges_of(graph, split)]


def subsequence(part: list[tuple[str, str]], whole: list[tuple[str, str]]) -> bool:
    remaining = iter(whole)
    return all(edge in remaining for edge in part)


class TestFiles:
    def test_the_vocabulary_is_the_union_and_degrees_are_of_train(self, tmp_path):
        train = [("a", "x", "b"), ("c", "x", "b")]
        valid, test = [("a", "x", "new")], [("newer", "x", "b")]
        sources = [
            {"files": str(write_lines(tmp_path / f"{split}.tsv", edges)), "split": split}
            for split, edges in (("test", test), ("train", train), ("valid", valid))
        ]
        graph = run(tmp_path / "graph", sources=sources)
        assert [edges_of(graph, split) for split in ("train", "valid", "test")] == [train, valid, test]
        assert vocabulary_of(graph) == naive_vocabulary(train, valid + test)
        assert graph.relations[0].num_edges == {"train": 2, "valid": 1, "test": 1}

    def test_a_rule_divides_the_train_files_alone(self, source, tmp_path):
        test = write_lines(tmp_path / "test.tsv", [("u1", "v1")] * 50)
        sources = [source, {"files": str(test), "split": "test"}]
        graph = run(tmp_path / "graph", sources=sources, split={"random": {"valid": 0.2}})
        assert pairs(graph, "test") == [("u1", "v1")] * 50
        assert graph.num_edges("train") + graph.num_edges("valid") == len(ROWS)


class TestRandom:
    def test_shares_and_pairs(self, source, tmp_path):
        graph = run(tmp_path / "graph", sources=[source], split={"random": {"valid": 0.1, "test": 0.2}})
        parts = {split: pairs(graph, split) for split in ("train", "valid", "test")}
        whole = [(lhs, rhs) for lhs, rhs, _ in ROWS]
        assert sorted(pair for part in parts.values() for pair in part) == sorted(whole)
        assert all(subsequence(part, whole) for part in parts.values())
        # 2,400 cells of 40 x 60 drawn 3,000 times: about 1,700 distinct pairs, so one standard deviation is near 0.01.
        distinct = len(set(whole))
        assert len(set(parts["valid"])) / distinct == pytest.approx(0.1, abs=0.03)
        assert len(set(parts["test"])) / distinct == pytest.approx(0.2, abs=0.03)
        assert not set(parts["train"]) & set(parts["test"]), "repeated edges must not straddle the split"

    def test_the_seed_decides(self, source, tmp_path):
        split = {"random": {"test": 0.2}}
        first, again, other = (
            run(tmp_path / name, sources=[source], split=split, seed=seed)
            for name, seed in (("first", 3), ("again", 3), ("other", 4))
        )
        assert digests(first) == digests(again)
        assert pairs(first, "test") != pairs(other, "test")

    def test_relations_of_a_pair_stay_together(self, tmp_path):
        rows = [(f"u{i}", relation, f"v{i}") for i in range(500) for relation in ("watch", "like")]
        file = write_lines(tmp_path / "e.tsv", rows)
        graph = run(tmp_path / "graph", sources=file, split={"random": {"test": 0.3}})
        test = pairs(graph, "test")
        assert len(test) == 2 * len(set(test))


class TestTime:
    def test_cut_points(self, timed, tmp_path):
        graph = run(tmp_path / "graph", sources=[timed], split={"time": {"valid_from": 300, "test_from": "400"}})
        assert pairs(graph, "train") == [(lhs, rhs) for lhs, rhs, time in ROWS if time < 300]
        assert pairs(graph, "valid") == [(lhs, rhs) for lhs, rhs, time in ROWS if 300 <= time < 400]
        assert pairs(graph, "test") == [(lhs, rhs) for lhs, rhs, time in ROWS if time >= 400]

    def test_fractions_are_cut_at_a_time(self, timed, tmp_path):
        graph = run(tmp_path / "graph", sources=[timed], split={"time": {"valid": 0.1, "test": 0.2}})
        times = sorted(time for _, _, time in ROWS)
        valid_from, test_from = times[round(0.7 * len(times))], times[round(0.8 * len(times))]
        assert pairs(graph, "valid") == [(lhs, rhs) for lhs, rhs, time in ROWS if valid_from <= time < test_from]
        assert pairs(graph, "test") == [(lhs, rhs) for lhs, rhs, time in ROWS if time >= test_from]

    @pytest.mark.parametrize("cut", ["2012-07-05", "2012-07-05T02:00:00+02:00", "2012-07-05T00:00:00Z", 1341446400])
    def test_text_times_are_iso_8601_or_seconds(self, cut, tmp_path):
        rows = [
            ("a", "before", "2012-07-04T23:59:59"),
            ("a", "also before", "2012-07-05 00:30:00+01:00"),
            ("a", "after", "2012-07-05"),
            ("a", "also after", "1341446400"),
            ("a", "after by far", "2012-07-05T23:30:00-01:00"),
        ]
        file = write_lines(tmp_path / "e.tsv", rows)
        sources = [{"files": str(file), "columns": TIMED}]
        graph = run(tmp_path / "graph", sources=sources, split={"time": {"test_from": cut}})
        assert pairs(graph, "train") == [("a", "before"), ("a", "also before")]
        assert pairs(graph, "test") == [("a", "after"), ("a", "also after"), ("a", "after by far")]

    @pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
    def test_parquet_timestamps_are_seconds_since_1970(self, unit, tmp_path):
        times = pa.array([1341446399, 1341446400], pa.int64()).cast(pa.timestamp("s")).cast(pa.timestamp(unit))
        pq.write_table(pa.table({"lhs": ["a", "b"], "rhs": ["x", "y"], "time": times}), tmp_path / "e.parquet")
        graph = run(tmp_path / "graph", sources=tmp_path / "e.parquet", split={"time": {"test_from": "2012-07-05"}})
        assert (pairs(graph, "train"), pairs(graph, "test")) == ([("a", "x")], [("b", "y")])


def naive_leave_out(rows: list[tuple[str, str, int]], valid: int, test: int) -> dict[str, set[int]]:
    """Positions in ``rows`` of each split, last by time and then by position."""
    by_lhs = defaultdict(list)
    for position, (lhs, _, time) in enumerate(rows):
        by_lhs[lhs].append((time, position))
    splits: dict[str, set[int]] = {"train": set(), "valid": set(), "test": set()}
    for edges in by_lhs.values():
        latest = [position for _, position in sorted(edges, reverse=True)]
        k = (test, valid) if len(latest) > valid + test else (0, 0)
        splits["test"].update(latest[: k[0]])
        splits["valid"].update(latest[k[0] : sum(k)])
        splits["train"].update(latest[sum(k) :])
    return splits


class TestLeaveKOut:
    def test_the_last_edges_by_time(self, tmp_path):
        rows = [
            *ROWS,
            ("lonely", "v1", 3),
            ("lonely", "v2", 9),
            ("lonely", "v3", 1),
            ("pair", "v1", 1),
            ("pair", "v2", 2),
        ]
        source = {"files": str(write_lines(tmp_path / "e.tsv", rows)), "columns": TIMED}
        graph = run(tmp_path / "graph", sources=[source], split={"leave_k_out": {"valid": 1, "test": 2}})
        expected = naive_leave_out(rows, valid=1, test=2)
        for split, positions in expected.items():
            assert pairs(graph, split) == [rows[position][:2] for position in sorted(positions)], split
        assert ("lonely", "v3") in pairs(graph, "train")
        assert ("pair", "v1") in pairs(graph, "train") and ("pair", "v2") in pairs(graph, "train")

    def test_without_time_a_seeded_draw(self, source, tmp_path):
        graphs = [
            run(tmp_path / name, sources=[source], split={"leave_k_out": {"test": 3}}, seed=seed, threads=threads)
            for name, seed, threads in (("first", 1, 1), ("again", 1, 4), ("other", 2, 2))
        ]
        assert digests(graphs[0]) == digests(graphs[1])
        assert pairs(graphs[0], "test") != pairs(graphs[2], "test")
        counts = defaultdict(int)
        for lhs, _ in pairs(graphs[0], "test"):
            counts[lhs] += 1
        assert set(counts.values()) == {3}
        assert len(counts) == 40

    def test_lhs_entities_of_two_types_are_two_entities(self, tmp_path):
        rows = [("1", "follow", f"p{i}") for i in range(3)] + [("1", "cites", f"p{i}") for i in range(3)]
        relations = [{"name": "follow", "lhs": "user", "rhs": "post"}, {"name": "cites", "lhs": "post", "rhs": "post"}]
        file = write_lines(Path(tmp_path / "e.tsv"), rows)
        graph = run(tmp_path / "graph", sources=file, relations=relations, split={"leave_k_out": {"test": 1}})
        assert sorted(relation for _, relation, _ in edges_of(graph, "test")) == ["cites", "follow"]

    def test_duplicates_go_before_the_split(self, tmp_path):
        rows = [("a", f"v{i % 4}") for i in range(40)]
        file = write_lines(tmp_path / "e.tsv", rows)
        graph = run(tmp_path / "graph", sources=file, duplicates="drop", split={"leave_k_out": {"test": 1}})
        assert (graph.num_edges("train"), graph.num_edges("test")) == (3, 1)
        assert not set(pairs(graph, "train")) & set(pairs(graph, "test"))


def test_time_survives_duplicates(tmp_path):
    rows = [("a", "b", 5), ("a", "b", 1), ("c", "d", 2), ("a", "b", 0)]
    source = {"files": str(write_lines(tmp_path / "e.tsv", rows)), "columns": TIMED}
    graph = run(tmp_path / "graph", sources=[source], duplicates="drop", split={"time": {"test_from": 5}})
    assert (pairs(graph, "train"), pairs(graph, "test")) == ([("c", "d")], [("a", "b")])
