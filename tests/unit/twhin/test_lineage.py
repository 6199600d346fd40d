"""A run remembers its graph and its model: what no longer fits is refused before it is read wrongly."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rookery.config.loader import load_config, parse_config
from rookery.data.graph import Graph
from rookery.errors import ConfigError, DataError
from rookery.twhin.config import TwhinConfig
from rookery.twhin.init import initial_config
from rookery.twhin.train import load_run, train_twhin


@pytest.fixture
def config(graph: Graph, tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "config.yaml"
    path.write_text(initial_config(graph.path, tmp_path / "run", "twhin"))
    loaded = load_config(TwhinConfig, path, ["training.num_train_steps=2", "evaluation.ks=[10]"])
    return loaded.model_dump(mode="json")


@pytest.fixture
def trained(config: dict[str, Any], tmp_path: Path) -> Path:
    train_twhin(parse(config))
    return tmp_path / "run"


def parse(config: dict[str, Any]) -> TwhinConfig:
    return parse_config(TwhinConfig, config, "test")


def rewrite(file: Path, column: str, values: list[Any]) -> None:
    """Replace a column of a Parquet file, sizes kept."""
    table = pq.read_table(file)
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, column, pa.array(values)), file)


def test_an_untouched_graph_is_resumed_and_read(trained: Path, config: dict[str, Any]) -> None:
    config["training"]["num_train_steps"] = 4
    assert train_twhin(parse(config)).step == 4
    assert load_run(trained).step == 4


def test_renamed_entities_are_refused_everywhere(trained: Path, config: dict[str, Any], graph: Graph) -> None:
    rewrite(graph.path / "vocab" / "item.parquet", "id", [f"other-{row}" for row in range(10)])
    config["training"]["num_train_steps"] = 4
    with pytest.raises(DataError, match=r"vocabulary of 'item' is not the one that .*run was trained with"):
        train_twhin(parse(config))
    with pytest.raises(DataError, match="vocabulary of 'item'"):
        load_run(trained)


def test_other_edges_are_refused_on_resume_alone(trained: Path, config: dict[str, Any], graph: Graph) -> None:
    file = graph.split_files("train")[0]
    rewrite(file, "rhs", pq.read_table(file).column("rhs").to_pylist()[::-1])
    config["training"]["num_train_steps"] = 4
    with pytest.raises(DataError, match=r"training edges are not those that .*run began with"):
        train_twhin(parse(config))
    assert load_run(trained).step == 2


def test_another_meaning_of_the_numbers_is_refused(trained: Path, config: dict[str, Any]) -> None:
    config["training"]["num_train_steps"] = 4
    config["model"]["comparator"] = "cosine"
    with pytest.raises(ConfigError, match=r"model\.comparator=cosine \(was dot\)"):
        train_twhin(parse(config))
    assert load_config(TwhinConfig, trained / "config.yaml").model.comparator == "dot"


def test_another_penalty_is_warned_of(trained: Path, config: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    config["training"]["num_train_steps"] = 4
    config["model"]["regularizer"]["l2"] = 0.5
    with caplog.at_level(logging.WARNING):
        train_twhin(parse(config))
    assert "model.regularizer.l2=0.5 (was 0.085)" in caplog.text


def test_a_moved_graph_can_be_named(trained: Path, graph: Graph, tmp_path: Path) -> None:
    graph.path.rename(tmp_path / "moved")
    with pytest.raises(DataError, match="--graph PATH"):
        load_run(trained)
    assert load_run(trained, graph=tmp_path / "moved").step == 2
