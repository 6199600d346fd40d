"""What a configuration says that cannot be meant, refused with the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from planted_impressions import TASKS, planted_config, planted_settings

from rookery.config.loader import load_config, parse_config
from rookery.errors import ConfigError
from rookery.ranker.config import RankerConfig


def problems(tmp_path: Path, **changes: Any) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        planted_config(tmp_path / "log", tmp_path / "run", **changes)
    return str(raised.value).splitlines()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "path",
    [
        "score__weights__click",
        "loss__fixed__weights__like",
        "optimizer__single_task_learning_rate__constant",
        "optimizer__adam__epsilon",
        "model__tasks__click__affine_map__scale",
        "model__tasks__click__pos_weight",
        "labels__click__neg_downsampling_rate",
        "train_data__rows__below",
    ],
)
def test_a_number_that_is_not_finite_is_refused_with_its_line(tmp_path: Path, path: str, number: float) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(planted_settings(tmp_path / "log", tmp_path / "run", **{path: number})))
    leaf = path.rsplit("__", 1)[1]
    line = next(
        place
        for place, text in enumerate(file.read_text().splitlines(), 1)
        if text.strip().startswith(f"{leaf}: ") and ("nan" in text or "inf" in text)
    )
    with pytest.raises(ConfigError) as raised:
        load_config(RankerConfig, file)
    found = f"{file}:{line}: {path.replace('__', '.')}={number}: must be a finite number"
    assert any(problem.startswith(found) for problem in str(raised.value).splitlines()), str(raised.value)


def test_a_scale_of_zero_is_refused(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, model__tasks__like__affine_map={"scale": 0})
    assert problem.startswith("test: model.tasks.like.affine_map: scale=0: nothing could be learned through it")


def test_a_loss_without_any_weight_is_refused(tmp_path: Path) -> None:
    weights = dict.fromkeys(TASKS, 0.0)
    (problem,) = problems(tmp_path, loss={"fixed": {"weights": weights}})
    assert problem == "test: loss.fixed.weights: every task has 0, nothing would be learned; give a task more than 0"
    some = {"fixed": {"weights": dict.fromkeys(TASKS[1:], 0.0)}}  # 1 for the task that is not named
    assert planted_config(tmp_path / "log", tmp_path / "run", loss=some).loss.fixed is not None


def test_stratifiers_of_one_name_are_refused(tmp_path: Path) -> None:
    stratifiers = [{"name": "small", "column": "country", "value": value} for value in ("de", "fr")]
    (problem,) = problems(tmp_path, evaluation__stratifiers=stratifiers)
    assert problem == "test: evaluation.stratifiers: 'small' is named twice"


def with_tables(tmp_path: Path, *moved: str, **changes: Any) -> RankerConfig:
    """A configuration of torchrec where the tables ``moved`` have an optimizer of their own."""
    settings = planted_settings(tmp_path / "log", tmp_path / "run", features__backend="torchrec", **changes)
    for table in settings["features"]["tables"]:
        if table["name"] in moved:
            table["optimizer"] = {"adam": {}}
    return parse_config(RankerConfig, settings, "test")


def test_what_torchrec_cannot_do_is_told_by_the_fields_of_a_ranker(tmp_path: Path) -> None:
    sharding = {"sharding": {"tables": {"no": "auto"}}}
    with pytest.raises(ConfigError) as raised:
        with_tables(tmp_path, "items", training__gradient_accumulation=2, parallel=sharding)
    unknown, optimizer, accumulation = str(raised.value).splitlines()
    assert unknown == "test: parallel.sharding.tables.no: there is no such table; the tables are items"
    assert optimizer.startswith("features.tables.items.optimizer.adam: fbgemm has no fused Adam for CPU; use rowwise")
    assert accumulation.startswith("training.gradient_accumulation=2: ")
    assert optimizer.endswith("or set features.backend to local")
    assert accumulation.endswith("or set features.backend to local")


def test_tables_that_move_with_the_network_are_not_of_the_back_end(tmp_path: Path) -> None:
    assert with_tables(tmp_path, training__gradient_accumulation=2).features.backend == "torchrec"
    with pytest.raises(ConfigError, match=r"there is no such table; no table has an optimizer of its own"):
        with_tables(tmp_path, parallel={"sharding": {"tables": {"items": "auto"}}})


def test_vectors_of_an_export_are_named_by_their_own_field(tmp_path: Path) -> None:
    joined = {"name": "v", "export": "e", "table": "item", "key": "item", "trainable": True, "optimizer": {"adam": {}}}
    (problem,) = problems(tmp_path, features__backend="torchrec", features__embeddings=[joined])
    assert problem.startswith("test: features.embeddings.v.optimizer.adam: ")
