"""``rookery timeline build``, ``show`` and ``evaluate`` as a user calls them, in this process."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from small_timeline import write_small_ranker, write_vectors_of

from rookery.cli import main as command_line
from rookery.config.loader import dump_config
from rookery.ranker.export import RankerExport
from rookery.timeline.bundle import Bundle, build_bundle
from rookery.timeline.config import WEIGHT_PRESETS, TimelineConfig
from rookery.timeline.evaluation import evaluate_timelines
from rookery.timeline.timeline import Timeline
from rookery.world.config import WorldConfig
from rookery.world.generate import generate_world
from rookery.world.world import World


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny world, and exports of models for it that were never trained."""
    folder = tmp_path_factory.mktemp("timeline")
    generate_world(folder / "world", WorldConfig.of_size("tiny", 0))
    catalog = World.open(folder / "world").catalog
    twhin = write_vectors_of(folder / "twhin", catalog)
    write_small_ranker(folder / "ranker", catalog, twhin)
    write_small_ranker(folder / "without", catalog, None, seed=9)
    return folder


@pytest.fixture
def rookery(capsys, monkeypatch):
    """Exit code, stdout and stderr of ``rookery timeline arguments``."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["rookery", "timeline", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            command_line.main()
        return int(done.value.code or 0), *capsys.readouterr()

    return call


@pytest.fixture
def made_of(folder):
    return "--catalog", folder / "world" / "catalog", "--ranker", folder / "ranker", "--twhin", folder / "twhin"


@pytest.fixture(scope="module")
def bundle(folder):
    parts = {"catalog": folder / "world" / "catalog", "ranker": folder / "ranker", "twhin": folder / "twhin"}
    build_bundle(folder / "bundle", **parts, config=TimelineConfig())
    return folder / "bundle"


def test_a_bundle_is_built_and_told(rookery, made_of, tmp_path):
    (tmp_path / "timeline.yaml").write_text(dump_config(TimelineConfig(weights="2026", num_in_network=7)))
    arguments = ("build", tmp_path / "out", *made_of, "--config", tmp_path / "timeline.yaml")
    code, out, _ = rookery(*arguments, "--json")
    opened = Bundle.open(tmp_path / "out")
    told = json.loads(out)
    assert code == 0
    assert (told["version"], told["num_users"]) == (opened.manifest.version, len(opened.catalog.user_ids))
    assert opened.config.num_in_network == 7
    code, _, err = rookery(*arguments)
    assert (code, "--overwrite" in err) == (2, True)
    code, out, _ = rookery(*arguments, "--overwrite")
    assert code == 0
    assert opened.manifest.version in out


def test_a_timeline_is_shown(rookery, bundle):
    timeline = Timeline.open(bundle)
    code, out, _ = rookery("show", bundle, "--user", "user_5", "-k", 4, "--json")
    assert code == 0
    expected = [dataclasses.asdict(post) for post in timeline.timeline("user_5", 4)]
    assert json.loads(out)["posts"] == expected
    assert json.loads(out)["user"] == timeline.user("user_5")
    code, out, _ = rookery("show", bundle, "--user", "user_5", "-k", 4)
    assert all(post["post_id"] in out for post in expected)


def test_other_weights_and_another_order(rookery, bundle):
    timeline = Timeline.open(bundle)
    arguments = ("show", bundle, "--user", "user_5", "--json")
    for flags, options in (
        (("--weights", "2026"), {"weights": WEIGHT_PRESETS["2026"]}),
        (("--order", "recency"), {"order": "recency"}),
        (("--no-diversity",), {"diversity": False}),
    ):
        _, out, _ = rookery(*arguments, *flags)
        found = [post["post_id"] for post in json.loads(out)["posts"]]
        assert found == [post.post_id for post in timeline.timeline("user_5", 20, **options)]


def test_an_unknown_user(rookery, bundle):
    code, out, err = rookery("show", bundle, "--user", "user_9999")
    assert (code, out) == (2, "")
    assert "user 'user_9999' is not known" in err


def test_a_user_whose_id_is_no_text(bundle):
    """Bytes that are not UTF-8, as a shell passes them on."""
    command = [sys.executable, "-m", "rookery", "timeline", "show", str(bundle), "--user", b"user_\xff"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(r"error: user 'user_\udcff' is not known; did you mean 'user_")


def test_an_evaluation_is_that_of_the_library(rookery, folder, bundle):
    flags = ("--world", folder / "world", "--without-twhin", folder / "without", "--users", 6, "-k", 5, "--seed", 3)
    code, out, _ = rookery("evaluate", bundle, *flags, "--json")
    opened, world = Bundle.open(bundle), World.open(folder / "world")
    users = np.random.default_rng(3).choice(len(opened.catalog.user_ids), 6, replace=False)
    other = Timeline(opened, RankerExport.open(folder / "without"))
    expected = evaluate_timelines(Timeline(opened), world.true_probabilities, users, 5, without_twhin=other, seed=3)
    found = json.loads(out)
    assert code == 0
    assert found["policies"] == json.loads(json.dumps([dataclasses.asdict(each) for each in expected.policies]))
    assert found["recall"] == [dataclasses.asdict(each) for each in expected.recall]
    assert found["policies"][-1]["share"] == 1.0
    code, out, _ = rookery("evaluate", bundle, *flags)
    assert "oracle" in out
    assert "100.0%" in out


def test_a_ranker_that_joins_vectors_is_none_without(rookery, folder, bundle):
    code, out, err = rookery("evaluate", bundle, "--world", folder / "world", "--without-twhin", folder / "ranker")
    assert (code, out) == (2, "")
    assert f"--without-twhin {folder / 'ranker'}: joins vectors by " in err
    assert "name the export of a ranker that was trained without features.embeddings" in err


def test_a_ranker_of_other_tasks_is_no_comparison(rookery, folder, bundle, tmp_path):
    other = shutil.copytree(folder / "without", tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["tasks"] = [task for task in manifest["tasks"] if task["name"] != "is_reported"]
    (other / "manifest.json").write_text(json.dumps(manifest))
    code, out, err = rookery("evaluate", bundle, "--world", folder / "world", "--without-twhin", other)
    assert (code, out) == (2, "")
    assert f"--without-twhin {other}: predicts is_favorited, " in err
    assert err.count("is_reported") == 1
    assert "trained on the same tasks" in err


def test_the_truth_of_another_world_is_refused(rookery, bundle, tmp_path):
    generate_world(tmp_path / "other", WorldConfig.of_size("tiny", 1))
    code, _, err = rookery("evaluate", bundle, "--world", tmp_path / "other")
    assert code == 2
    assert "was built from another catalog" in err


def test_a_world_without_its_truth_is_refused(rookery, bundle, folder, tmp_path):
    world = shutil.copytree(folder / "world", tmp_path / "world")
    shutil.rmtree(world / "truth")
    code, out, err = rookery("evaluate", bundle, "--world", world)
    assert (code, out) == (2, "")
    assert f"{world}/truth/day-04.parquet: cannot be read (No such file or directory)" in err
    assert f"{world} is damaged: generate it again" in err
