from __future__ import annotations

from pathlib import Path

import pytest
from small_graph import make_config, planted_splits, write_graph

from rookery.config.loader import dump_config, parse_config
from rookery.errors import ConfigError, UserError
from rookery.ranker.features_config import PartitionConfig
from rookery.storage.location import RemotePath, absolute, as_location, parse_location
from rookery.train.config import TrainingConfig
from rookery.twhin.config import TwhinConfig


@pytest.mark.parametrize(
    ("text", "location"),
    [
        ("graphs/a", Path("graphs/a")),
        ("/graphs//a", Path("/graphs/a")),
        ("file:///graphs/a", Path("/graphs/a")),
        ("s3://birds", RemotePath("s3", "birds")),
        ("S3://Birds/a b/c/", RemotePath("s3", "Birds/a b/c")),
        ("gs://birds/x.parquet", RemotePath("gs", "birds/x.parquet")),
        ("memory://birds", RemotePath("memory", "birds")),
        ("c:/odd", Path("c:/odd")),
    ],
)
def test_paths_stay_paths_and_urls_stay_urls(text, location):
    assert as_location(text) == location
    assert as_location(str(location)) == location


@pytest.mark.parametrize("text", ["http://birds/a", "hdfs://birds/a", "s3://", "s3:///"])
def test_other_urls_are_refused_with_those_that_are_understood(text):
    with pytest.raises(ValueError, match="s3://BUCKET/FOLDER"):
        as_location(text)
    with pytest.raises(UserError, match=f"--graph {text}: must be a path, or a URL"):
        parse_location(text, "--graph")


def test_parts_of_a_url():
    place = RemotePath("s3", "birds") / "a" / "b/c.parquet"
    assert str(place) == "s3://birds/a/b/c.parquet"
    assert place.name == "c.parquet"
    assert str(place.parent.parent) == "s3://birds/a"
    assert absolute(str(place)) == str(place)
    assert absolute("x") == str(Path.cwd() / "x")


def test_a_configuration_keeps_its_urls_as_they_were_written(tmp_path):
    graph = write_graph(tmp_path / "graph", planted_splits())
    fields = {
        "graph": "s3://birds/graph",
        "training.initial_checkpoint_dir": "gs://b/run",
        "training.publish": "s3://b/r",
    }
    config = make_config(graph, tmp_path / "run", fields)
    assert (config.graph, config.training.publish) == (RemotePath("s3", "birds/graph"), RemotePath("s3", "b/r"))
    assert config.training.initial_checkpoint_dir == RemotePath("gs", "b/run")
    dumped = dump_config(config)
    assert "graph: s3://birds/graph\n" in dumped
    assert "publish: s3://b/r\n" in dumped
    assert parse_config(TwhinConfig, config.model_dump(mode="json"), "itself") == config
    partition = PartitionConfig(inputs=("s3://birds/log/*.parquet", "log")).with_whole_paths()
    assert partition.inputs == ("s3://birds/log/*.parquet", str(Path.cwd() / "log"))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("publish", "runs/here", r"training: publish=runs/here: .*must be a URL such as s3://BUCKET/FOLDER"),
        ("publish", "ftp://a/b", r"training: publish=ftp://a/b: .*must be a path, or a URL such as s3://BUCKET/FOLDER"),
        ("initial_checkpoint_dir", 5, r"training: initial_checkpoint_dir=5: .*must be a path or a URL"),
    ],
)
def test_what_is_no_location_is_refused_by_its_field(field, value, said):
    with pytest.raises(ConfigError, match=said):
        parse_config(TrainingConfig, {"save_dir": "run", "num_epochs": 1, field: value}, "training")
