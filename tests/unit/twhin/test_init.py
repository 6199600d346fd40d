"""The configuration that ``init`` writes: it loads, fits its graph, and trains, whatever things are called."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest
from small_graph import Triple, planted_splits, write_graph

from rookery.config.loader import load_config
from rookery.data.graph import Graph
from rookery.errors import DataError
from rookery.optim.schedules import optimizer_schedule
from rookery.twhin.build import check_graph
from rookery.twhin.config import TwhinConfig
from rookery.twhin.init import RecipeName, choose_recipe, initial_config
from rookery.twhin.train import load_run, train_twhin

ODD_NAMES = (
    "plain",
    "a, b",
    "{braces}",
    "a[0]",
    "key: value",
    "# no comment",
    "price ${HOME} $$",
    "größer 好き 🙂",
    "yes",
    "null",
    "1",
    "-",
    " edges ",
    'it\'s "quoted"',
    "two\nlines",
    "tab\there",
    "end:",
    "a" * 200,
    "back\\slash",
    "%",
    "@",
    "*star",
    "&anchor",
    "!tag",
    "line\u2028separator",
)


def knowledge_graph(folder: Path, names: tuple[str, ...] = tuple(f"r{number}" for number in range(12))) -> Graph:
    triples: list[Triple] = [(lhs, rel, (lhs + rel) % 7) for lhs in range(7) for rel in range(len(names))]
    relations = tuple((name, "entity", "entity") for name in names)
    splits = {"train": triples[:-10], "valid": triples[-10:-5], "test": triples[-5:]}
    return write_graph(folder, splits, relations=relations, num_entities={"entity": 7})


def engagement_graph(folder: Path, *, valid: bool = True) -> Graph:
    splits = planted_splits()
    return write_graph(folder, splits if valid else {"train": splits["train"]})


def bipartite_graph(folder: Path) -> Graph:
    triples: list[Triple] = [(user, 0, (user * 3 + step) % 8) for user in range(10) for step in range(4)]
    splits = {"train": triples[:30], "valid": triples[30:]}
    return write_graph(
        folder, splits, relations=(("listened to", "user", "item"),), num_entities={"user": 10, "item": 8}
    )


def oddly_named_graph(folder: Path) -> Graph:
    """Each odd name is a relation and an entity type."""
    size = len(ODD_NAMES)
    relations = tuple((name, name, ODD_NAMES[(number + 1) % size]) for number, name in enumerate(ODD_NAMES))
    triples: list[Triple] = [(row, rel, (row + 1) % 3) for rel in range(size) for row in range(3)]
    return write_graph(folder, {"train": triples}, relations=relations, num_entities=dict.fromkeys(ODD_NAMES, 3))


GRAPHS = {
    "knowledge": (knowledge_graph, "complex"),
    "engagement": (engagement_graph, "twhin"),
    "engagement without valid": (lambda folder: engagement_graph(folder, valid=False), "twhin"),
    "bipartite": (bipartite_graph, "factors"),
    "odd names": (oddly_named_graph, "twhin"),
}


def write_config(folder: Path, graph: Graph, recipe: RecipeName | None = None) -> Path:
    path = folder / "config.yaml"
    path.write_text(initial_config(graph.path, folder / "run $HOME, {x}", recipe), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", list(GRAPHS))
def test_it_loads_and_fits_the_graph(tmp_path: Path, name: str) -> None:
    make, recipe = GRAPHS[name]
    graph = make(tmp_path / "graph, $1")
    assert choose_recipe(graph) == recipe
    config = load_config(TwhinConfig, write_config(tmp_path, graph))
    check_graph(config, graph)
    assert config.graph == graph.path.resolve()
    assert config.training.save_dir == tmp_path / "run $HOME, {x}"
    assert [relation.name for relation in config.model.relations] == [relation.name for relation in graph.relations]
    assert (config.validation_data is None) == ("valid" not in graph.splits)
    assert (config.training.keep_best is None) == ("valid" not in graph.splits)


@pytest.mark.parametrize("recipe", typing.get_args(RecipeName))
def test_every_recipe_loads_for_every_graph(tmp_path: Path, recipe: RecipeName) -> None:
    for number, (make, _) in enumerate(GRAPHS.values()):
        folder = tmp_path / str(number)
        graph = make(folder / "graph")
        check_graph(load_config(TwhinConfig, write_config(folder, graph, recipe)), graph)


@pytest.mark.parametrize("name", ["knowledge", "engagement without valid", "bipartite"])
def test_it_trains_as_it_stands_and_its_schedules_end_with_the_run(tmp_path: Path, name: str) -> None:
    graph = GRAPHS[name][0](tmp_path / "graph")
    overrides = ["runtime.num_threads=1", f"training.save_dir={tmp_path / 'run'}"]
    config = load_config(TwhinConfig, write_config(tmp_path, graph), overrides)
    result = train_twhin(config)
    assert result.loss is not None
    expected = result.step if config.training.keep_best is None else result.best_step
    assert load_run(tmp_path / "run").step == expected
    for optimizer in (config.model.translation_optimizer, config.model.embeddings.tables[0].optimizer):
        rate = optimizer_schedule(optimizer)
        rates = [rate(step) for step in range(result.num_steps + 2)]
        assert max(rates) > 0
        assert rates[-1] == rates[-2] == min(rates[1:])


def test_comments_say_what_the_graph_is(tmp_path: Path) -> None:
    graph = engagement_graph(tmp_path / "graph")
    text = initial_config(graph.path, tmp_path / "run")
    head = text.split("\nruntime:")[0]
    assert "180 training edges, 2 relations, 20 user, 15 item" in head
    assert "Recipe twhin" in head
    assert sum("#" in line for line in text.splitlines()) >= 8


def test_the_environment_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    graph = oddly_named_graph(tmp_path / "graph")
    assert "price ${HOME} $$" in load_config(TwhinConfig, write_config(tmp_path, graph)).model.embeddings.tables[6].name


def test_a_graph_without_training_edges_is_refused(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "graph", {"train": [(0, 0, 0)]})
    manifest = graph.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"train": {"path"', '"test": {"path"'))
    with pytest.raises(DataError, match="there is no split 'train'; ingest the graph with one"):
        initial_config(graph.path, tmp_path / "run")
