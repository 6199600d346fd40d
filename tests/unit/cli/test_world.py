"""``rookery world generate`` in this process, and the commands that its files are for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rookery.cli import main as command_line
from rookery.config.loader import load_config
from rookery.data.engagements import ENGAGEMENTS
from rookery.ranker.config import RankerConfig
from rookery.world.config import WorldConfig


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Exit code, stdout, stderr of ``rookery arguments``."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["rookery", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            command_line.main()
        out, err = capsys.readouterr()
        return int(done.value.code or 0), out, err

    return run


def test_generate_says_what_it_wrote(run, tmp_path: Path) -> None:
    code, out, _ = run("world", "generate", tmp_path / "w", "--size", "tiny", "--seed", "5", "--json")
    assert code == 0
    printed, manifest = json.loads(out), json.loads((tmp_path / "w" / "world.json").read_text())
    assert printed["path"] == str(tmp_path / "w")
    assert printed["base_rates"] == manifest["base_rates"]
    assert manifest["config"] == WorldConfig.of_size("tiny", 5).model_dump()
    code, out, err = run("world", "generate", tmp_path / "w", "--size", "tiny")
    assert (code, out) == (2, "")
    assert "exists; choose another name, or pass --overwrite" in err
    code, out, _ = run("world", "generate", tmp_path / "w", "--size", "tiny", "--overwrite")
    assert code == 0
    assert f"next: rookery twhin ingest {tmp_path}/w/history GRAPH" in " ".join(out.split())


def test_wrong_sizes_and_seeds_are_usage_errors(run, tmp_path: Path) -> None:
    for flags in (("--size", "huge"), ("--seed", "-1")):
        code, out, _ = run("world", "generate", tmp_path / "w", *flags)
        assert (code, out) == (2, "")
    assert list(tmp_path.iterdir()) == []


def test_its_files_need_no_flags(run, tmp_path: Path) -> None:
    """The history is ingested as it stands; no feature of the log is taken for an outcome, no truth for a feature."""
    assert run("world", "generate", tmp_path / "w", "--size", "small", "--json")[0] == 0
    for edges in ("history", "edges"):
        code, out, err = run("twhin", "ingest", tmp_path / "w" / edges, tmp_path / edges, "--json")
        assert code == 0, err
    manifest = json.loads((tmp_path / "history" / "manifest.json").read_text())
    relations = [(relation["name"], relation["lhs"], relation["rhs"]) for relation in manifest["relations"]]
    posts = [(name, "user", "post") for name in ("favorite", "reply", "retweet")]
    assert relations == [("follow", "user", "user"), *posts]
    labels = [flag for name in ENGAGEMENTS for flag in ("--label", name)]
    keys = ("--user", "user_id", "--item", "post_id", "--time", "time")
    code, out, err = run("ranker", "init", tmp_path / "w" / "impressions", *labels, *keys)
    assert code == 0, err
    assert "left out as an outcome" not in out + err
    (tmp_path / "config.yaml").write_text(out)
    config = load_config(RankerConfig, tmp_path / "config.yaml")
    assert config.tasks == ENGAGEMENTS
    named = {
        feature.name
        for kind in ("continuous", "binary", "discrete", "ragged")
        for feature in getattr(config.features, kind)
    }
    assert {"in_network", "post_media", "author_favorite_rate", "recent_authors", "post_age_hours"} <= named
    assert not {"policy", "impression_id", "session", "position"} & named
    assert not [name for name in named if "probability" in name]
