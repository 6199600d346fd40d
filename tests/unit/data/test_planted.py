from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from naive_ingest import digests, edges_of

from rookery.config.loader import load_config
from rookery.data.ingest import ingest
from rookery.data.ingest_config import IngestConfig
from rookery.data.planted import RELATIONS, PlantedConfig, write_planted
from rookery.errors import DataError


def read(folder) -> tuple[list[tuple[str, str, str]], dict[str, tuple[int, float]]]:
    """The edges, and community and activity by id."""
    edges = [tuple(line.split("\t")) for line in (folder / "edges.tsv").read_text().splitlines()]
    truth = pq.read_table(folder / "truth.parquet").to_pylist()
    return edges, {row["id"]: (row["community"], row["activity"]) for row in truth}


def test_it_holds_what_it_promises(tmp_path):
    config = PlantedConfig(num_users=300, num_items=500, num_communities=5, num_edges=40_000, p_inside=0.8, tail=0.5)
    assert write_planted(config, tmp_path / "planted") == len(read(tmp_path / "planted")[0])
    edges, truth = read(tmp_path / "planted")
    assert len(set(edges)) == len(edges)
    assert all(lhs != rhs for lhs, _, rhs in edges)
    assert set(Counter(community for community, _ in truth.values()).values()) == {160}
    prefixes = {(relation, lhs.split("_")[0], rhs.split("_")[0]) for lhs, relation, rhs in edges}
    assert prefixes == {(name, "user", rhs_type) for name, rhs_type, _ in RELATIONS}


def test_edges_stay_inside_as_often_as_told(tmp_path):
    # Few edges among many entities: hardly any repeats, which would thin out the inside.
    config = PlantedConfig(num_users=5000, num_items=5000, num_communities=10, num_edges=20_000, p_inside=0.7, tail=0)
    write_planted(config, tmp_path / "planted")
    edges, truth = read(tmp_path / "planted")
    inside = np.mean([truth[lhs][0] == truth[rhs][0] for lhs, _, rhs in edges])
    assert inside == pytest.approx(0.7 + 0.3 / 10, abs=0.015)


def test_degrees_follow_the_activity(tmp_path):
    config = PlantedConfig(num_users=20_000, num_items=200, num_communities=4, num_edges=60_000, p_inside=0.5, tail=0.5)
    write_planted(config, tmp_path / "planted")
    edges, truth = read(tmp_path / "planted")
    items = [entity for entity in truth if entity.startswith("item")]
    activity = np.array([truth[item][1] for item in items])
    community = np.array([truth[item][0] for item in items])
    size = np.bincount(community, activity)
    # Users are many and spread evenly, so a community's lhs share is near a quarter.
    lhs_share = np.bincount([truth[lhs][0] for lhs, relation, _ in edges if relation != "follow"]) / len(
        [edge for edge in edges if edge[1] != "follow"]
    )
    expected = 0.5 * activity + 0.5 * activity / size[community] * lhs_share[community]
    counts = Counter(rhs for _, relation, rhs in edges if relation != "follow")
    observed = np.array([counts[item] for item in items]) / sum(counts.values())
    assert activity.sum() == pytest.approx(1)
    assert np.abs(observed - expected).sum() < 0.1
    assert np.corrcoef(observed, expected)[0, 1] > 0.98


def test_the_seed_decides(tmp_path):
    config = PlantedConfig(num_users=50, num_items=50, num_communities=2, num_edges=500)
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        write_planted(PlantedConfig(**{**vars(config), "seed": seed}), tmp_path / name)
    files = ("edges.tsv", "truth.parquet", "ingest.yaml")
    first, again, other = (
        [(tmp_path / name / file).read_bytes() for file in files] for name in ("first", "again", "other")
    )
    assert first == again
    assert first[0] != other[0]


def test_it_is_ready_to_ingest(tmp_path):
    folder = tmp_path / "planted"
    written = write_planted(PlantedConfig(num_users=100, num_items=80, num_communities=4, num_edges=3000), folder)
    config = load_config(IngestConfig, folder / "ingest.yaml")
    graph = ingest(config, folder, tmp_path / "graph")
    assert {name: info.num_entities for name, info in graph.entity_types.items()} == {"user": 100, "item": 80}
    assert sum(graph.num_edges(split) for split in graph.splits) == written
    assert sorted(edge for split in graph.splits for edge in edges_of(graph, split)) == sorted(read(folder)[0])
    assert digests(ingest(config, folder, tmp_path / "again")) == digests(graph)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_communities": 0}, r"num_communities=0: must be from 1 to 2000"),
        ({"num_communities": 2001}, r"num_communities=2001: must be from 1 to 2000"),
        ({"p_inside": 1.5}, r"p_inside=1.5: must be a probability"),
        ({"num_edges": 0}, r"num_edges=0: must be at least 1"),
    ],
)
def test_sizes_that_cannot_be(changes, message, tmp_path):
    with pytest.raises(DataError, match=message):
        write_planted(PlantedConfig(**changes), tmp_path / "planted")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("p_inside", [0.0, 1.0])
def test_extremes(p_inside, tmp_path):
    config = PlantedConfig(num_users=30, num_items=30, num_communities=30, num_edges=300, p_inside=p_inside)
    write_planted(config, tmp_path / "planted")
    edges, truth = read(tmp_path / "planted")
    inside = [truth[lhs][0] == truth[rhs][0] for lhs, _, rhs in edges]
    assert all(inside) if p_inside else np.mean(inside) < 0.3
