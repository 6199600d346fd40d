"""What came out of a small trained run, through the command line in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rookery.cli import main as command_line
from rookery.config.loader import load_config
from rookery.data.graph import Graph
from rookery.data.ingest import ingest
from rookery.data.ingest_config import IngestConfig
from rookery.data.planted import PlantedConfig, write_planted
from rookery.twhin.config import TwhinConfig
from rookery.twhin.init import initial_config
from rookery.twhin.train import train_twhin

Rookery = Callable[..., Any]


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of ``rookery arguments``."""
    monkeypatch.setattr("sys.argv", ["rookery", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        command_line.main()
    out, err = capsys.readouterr()
    return int(done.value.code or 0), out, err


@pytest.fixture
def rookery(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Rookery:
    """The JSON object of a command that ends well."""

    def call(*arguments: object) -> Any:
        code, out, err = run(capsys, monkeypatch, *arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return call


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The message of a command that ends with exit code 2 and nothing on stdout."""

    def call(*arguments: object) -> str:
        code, out, err = run(capsys, monkeypatch, *arguments)
        assert (code, out) == (2, ""), err
        return err

    return call


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planted graph of 4 communities in ``graph``, and a run on it in ``run``."""
    folder = tmp_path_factory.mktemp("results")
    write_planted(PlantedConfig(num_users=120, num_items=100, num_communities=4, num_edges=6000), folder / "planted")
    mapping = load_config(IngestConfig, folder / "planted" / "ingest.yaml")
    ingest(mapping, folder / "planted", folder / "graph")
    (folder / "config.yaml").write_text(initial_config(folder / "graph", folder / "run"))
    changes = [
        "training.num_epochs=30",
        "training.train_log_every_n=1000",
        "model.regularizer.l2=0",
        "evaluation.metrics=[link_prediction, recommendation]",
        "runtime.num_threads=1",
    ]
    train_twhin(load_config(TwhinConfig, folder / "config.yaml", changes))
    return folder


@pytest.fixture(scope="module")
def communities(folder: Path) -> dict[tuple[str, str], int]:
    truth = pq.read_table(folder / "planted" / "truth.parquet").to_pylist()
    return {(row["entity_type"], row["id"]): row["community"] for row in truth}


def test_evaluate_measures_the_split_it_is_told(rookery: Rookery, folder: Path) -> None:
    report = rookery("twhin", "evaluate", folder / "run")
    graph = Graph.open(folder / "graph")
    assert (report["split"], report["num_edges"]) == ("test", graph.num_edges("test"))
    assert 0.1 < report["metrics"]["mrr"] <= 1
    assert report["metrics"]["auc"] > 0.7
    assert report["link_prediction"]["raw"]["mrr"] < report["metrics"]["mrr"]
    assert report["metrics"]["recall@20"] > 0.3
    assert report["link_prediction"]["filtered"]["mrr"] == report["metrics"]["mrr"]
    assert set(report["link_prediction"]["filtered"]["relations"]) == {"follow", "like", "repost"}
    overridden = rookery("twhin", "evaluate", folder / "run", "--split", "valid", "--set", "evaluation.ks=[2]")
    assert overridden["num_edges"] == graph.num_edges("valid")
    assert "hits@2" in overridden["metrics"]
    assert "hits@10" not in overridden["metrics"]


def test_evaluate_prints_tables(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    code, out, _ = run(capsys, monkeypatch, "twhin", "evaluate", folder / "run")
    assert code == 0
    for word in ("filtered ranks", "raw ranks", "recommendation", "hits@10", "ndcg@20", "both sides", "repost"):
        assert word in out


def test_an_export_answers_as_the_run_does(rookery: Rookery, folder: Path, tmp_path: Path) -> None:
    exported = rookery("twhin", "export", folder / "run", tmp_path / "export")
    assert exported["entity_types"] == {"user": 120, "item": 100}
    moved = tmp_path / "run"
    shutil.copytree(tmp_path / "export", moved)
    for question in (["--id", "item_3"], ["--id", "user_3", "--relation", "like"]):
        assert rookery("twhin", "neighbors", moved, *question) == rookery(
            "twhin", "neighbors", folder / "run", *question
        )


def test_neighbors_lie_in_the_community(
    rookery: Rookery, folder: Path, communities: dict[tuple[str, str], int]
) -> None:
    """Alike items, what a user would like, and who would like an item; an average over the entities with most edges."""
    graph = Graph.open(folder / "graph")
    for kind, results, flags in (
        ("item", "item", []),
        ("user", "item", ["--relation", "like"]),
        ("item", "user", ["--relation", "like"]),
        ("user", "user", ["--relation", "follow", "--side", "lhs"]),
    ):
        shares = []
        for wanted in graph.vocabulary(kind).ids(range(8)):
            found = rookery("twhin", "neighbors", folder / "run", "--id", wanted, "-k", 5, "--type", kind, *flags)
            assert found["entity_type"] == results
            own = communities[kind, str(wanted)]
            shares += [communities[results, str(near["id"])] == own for near in found["neighbors"]]
        assert np.mean(shares) > 0.7, (kind, flags)


def test_interests_and_known_edges_come_from_the_graph(rookery: Rookery, folder: Path) -> None:
    user = Graph.open(folder / "graph").vocabulary("user").ids([0])[0]
    asked = ["--id", user, "--relation", "like", "--type", "user", "-k", 10]
    everything = rookery("twhin", "neighbors", folder / "run", *asked)
    fresh = rookery("twhin", "neighbors", folder / "run", *asked, "--exclude-known")
    mixed = rookery("twhin", "neighbors", folder / "run", *asked, "--interests", 3)
    assert {near["id"] for near in everything["neighbors"]} != {near["id"] for near in fresh["neighbors"]}
    assert len(mixed["weights"]) == 3
    assert mixed["weights"] == sorted(mixed["weights"], reverse=True)
    assert len(mixed["neighbors"]) == 10


def test_index_reports_recall_and_serves_neighbors(rookery: Rookery, folder: Path, tmp_path: Path) -> None:
    metric = rookery("twhin", "neighbors", folder / "run", "--id", "item_3", "-k", 5)["metric"]
    built = rookery(
        "twhin", "index", folder / "run", "--type", "item", "--metric", metric, "-k", 5, "--param", "num_links=8"
    )
    assert Path(built["out"]) == folder / "run" / "index" / f"item-hnsw-{metric}"
    assert built["parameters"]["num_links"] == 8
    assert built["recall"]["similarity"] > 0.9
    question = ["--id", "item_3", "-k", 5]
    through = rookery("twhin", "neighbors", folder / "run", *question, "--index", built["out"])
    exact = rookery("twhin", "neighbors", folder / "run", *question)
    assert len({near["id"] for near in through["neighbors"]} & {near["id"] for near in exact["neighbors"]}) >= 4


def test_a_moved_graph_is_named_and_found(
    rookery: Rookery, refused: Callable[..., str], folder: Path, tmp_path: Path
) -> None:
    expected = rookery("twhin", "evaluate", folder / "run")["metrics"]
    shutil.copytree(folder / "run", tmp_path / "run")
    config = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(config.replace(str(folder / "graph"), str(tmp_path / "gone")))
    commands = {
        "evaluate": ["run"],
        "export": ["run", "export"],
        "index": ["run", "index", "--type", "item", "--kind", "exact"],
        "neighbors": ["run", "--id", "item_3"],
    }
    for name, arguments in commands.items():
        located = [tmp_path / word if word in ("run", "export", "index") else word for word in arguments]
        message = refused("twhin", name, *located)
        assert str(tmp_path / "gone") in message and "has moved, pass --graph PATH" in message
        found = rookery("twhin", name, *located, "--graph", folder / "graph")
        if name == "evaluate":
            assert found["metrics"] == expected


def test_a_graph_that_does_not_fit_is_refused(refused: Callable[..., str], folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    (tmp_path / "run" / "graph.json").unlink(missing_ok=True)  # a run without a note of its graph
    (tmp_path / "e.tsv").write_text("a\tb\n")
    ingest(IngestConfig.model_validate({"sources": [{"files": "e.tsv"}]}), tmp_path, tmp_path / "other")
    message = refused("twhin", "export", tmp_path / "run", tmp_path / "export", "--graph", tmp_path / "other")
    assert "the graph has no such entity type" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["neighbors", "run", "--id", "itm_3"], "no entity has this id (user, item); did you mean item_3"),
        (["neighbors", "run", "--id", "item_3", "--type", "user"], "no user has this id"),
        (["neighbors", "run", "--id", "item_3", "--type", "itm"], "no such entity type; did you mean 'item'?"),
        (["neighbors", "run", "--id", "item_3", "--relation", "liek"], "no such relation; did you mean 'like'?"),
        (["neighbors", "graph", "--id", "item_3"], "graph: this is a graph, not a run or an export; name the save_dir"),
        (["export", "graph", "out"], "graph: this is a graph, not a run or an export; name the save_dir of a run"),
        (["evaluate", "graph"], "graph: this is a graph, not a run or an export"),
        (["export", "planted", "out"], "planted: no config.yaml there; name the save_dir of a training run"),
        (["neighbors", "run", "--id", "item_3", "--index", "run"], "name the folder that 'rookery twhin index' wrote"),
        (["evaluate", "run", "--split", "tset"], "no split 'tset'"),
        (["evaluate", "run", "--checkpoint", "newest"], "must be auto, best, latest or a step number"),
        (["evaluate", "run", "--set", "evaluation.k=[1]"], "did you mean 'ks'?"),
        (["index", "run"], "--type is missing: run has user, item; pass one of them"),
        (["index", "run", "--type", "item", "--param", "links=3"], "did you mean 'num_links'?"),
        (["index", "run", "--type", "item", "--param", "num_links"], "must be NAME=VALUE"),
        (["index", "run", "--type", "item", "--kind", "ivfpq"], "100 rows cannot train 256 codes"),
        (["export", "run", "graph"], "graph: exists"),
        (["export", "run", "graph", "--overwrite"], "--overwrite does not touch it"),
    ],
)
def test_what_cannot_be_is_said(
    refused: Callable[..., str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(folder)
    assert message in refused("twhin", *arguments)
    assert Graph.open(folder / "graph").entity_types
