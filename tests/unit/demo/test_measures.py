"""Figures of the demo against what they are made of."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from rookery.data.engagements import ENGAGEMENTS
from rookery.demo.layout import Layout
from rookery.demo.measures import Measure, measure_bounds, timeline_measures
from rookery.errors import UserError
from rookery.ranker.config import RankerConfig
from rookery.world.config import WorldConfig
from rookery.world.generate import generate_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "world"
    generate_world(folder, WorldConfig.of_size("tiny", 0))
    return folder


def config_of(world: Path) -> RankerConfig:
    last = sorted((world / "impressions").glob("*.parquet"))[-1]
    text = {
        "training": {"save_dir": "run", "num_train_steps": 1},
        "labels": {task: {} for task in ENGAGEMENTS},
        "features": {"continuous": [{"name": "position"}]},
        "train_data": {"inputs": [str(world / "impressions")]},
        "validation_data": {"test": {"inputs": [str(last)]}},
        "model": {
            "backbone": {"mlp_config": {"layer_sizes": [2]}},
            "tasks": {t: {"mlp_config": {"layer_sizes": [1]}} for t in ENGAGEMENTS},
        },
        "optimizer": {"adam": {}, "single_task_learning_rate": {"constant": 0.1}},
        "score": {"weights": {"is_favorited": 2.0, "is_negative_feedback": -5.0}},
    }
    return RankerConfig.model_validate(text)


def test_the_oracle_is_the_truth_of_the_same_rows(world: Path) -> None:
    found = measure_bounds(world, config_of(world), "test")
    name = sorted(path.name for path in (world / "impressions").iterdir())[-1]
    log, truth = pq.read_table(world / "impressions" / name), pq.read_table(world / "truth" / name)
    assert log["impression_id"].equals(truth["impression_id"])
    assert found.oracle.num_rows == log.num_rows
    for task in ("is_favorited", "is_replied", "is_video_playback_50"):
        area = roc_auc_score(log[task].to_numpy(), truth[f"probability.{task}"].to_numpy())
        assert found.oracle.tasks[task].values["auroc"] == pytest.approx(area, abs=1e-6)
        assert found.chance.tasks[task].values["auroc"] == pytest.approx(0.5, abs=0.06)
    assert found.oracle.num_users == len(set(log["user_id"].to_pylist()))
    assert found.oracle.ndcg > found.chance.ndcg


def test_rows_of_a_selection_are_joined_by_their_number(world: Path, tmp_path: Path) -> None:
    """A truth in another order, and a part of the rows."""
    config = config_of(world)
    whole = measure_bounds(world, config, "test").oracle
    partition = config.validation_data["test"].model_copy(update={"limit": 500, "offset": 100})
    part = measure_bounds(world, config.model_copy(update={"validation_data": {"test": partition}}), "test").oracle
    assert (part.num_rows, whole.num_rows > 600) == (500, True)
    name = sorted(path.name for path in (world / "truth").iterdir())[-1]
    truth = pq.read_table(world / "truth" / name).slice(100, 500)
    labels = pq.read_table(world / "impressions" / name)["is_favorited"].slice(100, 500)
    area = roc_auc_score(labels.to_numpy(), truth["probability.is_favorited"].to_numpy())
    assert part.tasks["is_favorited"].values["auroc"] == pytest.approx(area, abs=1e-6)


def test_reached_is_the_way_from_chance() -> None:
    assert Measure("m", 0.6, 0.7, 0.9, 0.5).reached == pytest.approx(0.5)


def test_a_figure_of_few_positives_says_so() -> None:
    few, many = (Measure("AUROC", 0.6, 0.7, 0.9, 0.5, positives=number) for number in (3, 100))
    assert (few.title, few.reached) == ("AUROC (3 positives)", None)
    assert (many.title, many.reached) == ("AUROC", pytest.approx(0.5))


def test_shares_of_timelines() -> None:
    policies = [
        {"policy": name, "share": share}
        for name, share in [("random", 0.1), ("ranker_without_twhin", 0.5), ("ranker", 0.7), ("oracle", 1.0)]
    ]
    (found,) = timeline_measures({"k": 20, "policies": policies})
    assert (found.without_twhin, found.with_twhin, found.oracle, found.chance) == (0.5, 0.7, 1.0, 0.1)


def test_a_folder_is_for_one_demo(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "demo")
    layout.claim(WorldConfig.of_size("tiny", 0))
    layout.claim(WorldConfig.of_size("tiny", 0))
    with pytest.raises(UserError, match="another size or seed"):
        layout.claim(WorldConfig.of_size("tiny", 1))
    (tmp_path / "demo").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="was made as"):
        Layout(tmp_path / "moved").claim(WorldConfig.of_size("tiny", 0))
    (tmp_path / "moved" / "demo.json").write_text("[]")
    with pytest.raises(UserError, match="damaged"):
        Layout(tmp_path / "moved").claim(WorldConfig.of_size("tiny", 0))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="not of a demo"):
        Layout(tmp_path / "other").claim(WorldConfig.of_size("tiny", 0))
    for place in (tmp_path / "other" / "letter.txt", tmp_path / "other" / "letter.txt" / "below"):
        with pytest.raises(UserError, match="cannot be a folder"):
            Layout(place).claim(WorldConfig.of_size("tiny", 0))
