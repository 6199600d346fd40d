"""Which job a configuration file describes."""

from __future__ import annotations

from pathlib import Path

import pytest
from reference_configs import TWHIN_YAML, ranker_yaml

from rookery.cli import main as command_line
from rookery.cli.jobs import Job, expecting, job_of, schema_of
from rookery.errors import ConfigError
from rookery.ranker.config import RankerConfig
from rookery.twhin.config import TwhinConfig
from rookery.twhin.from_reference import load_twhin_config


@pytest.mark.parametrize(
    ("text", "job"),
    [
        ("features: {}", Job.RANKER),
        ("model: {relations: []}", Job.TWHIN),
        ("", Job.TWHIN),
        (TWHIN_YAML, Job.TWHIN),
        (ranker_yaml(), Job.RANKER),
    ],
)
def test_the_job_of_a_file(tmp_path: Path, text: str, job: Job) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert job_of(tmp_path / "config.yaml") is job


OURS = {Job.TWHIN: "model: {relations: [], embeddings: {}}", Job.RANKER: "model: {tasks: {}}"}
THEIRS = {Job.TWHIN: TWHIN_YAML, Job.RANKER: ranker_yaml()}


@pytest.mark.parametrize("texts", [OURS, THEIRS])
@pytest.mark.parametrize(("job", "other", "name"), [("twhin", "ranker", "ranker"), ("ranker", "twhin", "TwHIN")])
def test_the_file_of_another_job_is_told_at_once(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    texts: dict[Job, str],
    job: str,
    other: str,
    name: str,
) -> None:
    (tmp_path / "config.yaml").write_text(texts[Job(other)])
    monkeypatch.setattr("sys.argv", ["rookery", job, "train", str(tmp_path / "config.yaml")])
    with pytest.raises(SystemExit) as done:
        command_line.main()
    assert done.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/config.yaml: this is a {name} configuration; use `rookery {other} train`\n"
    )


def test_a_mistake_in_the_file_of_the_job_is_told_as_it_is(tmp_path: Path) -> None:
    for text in ("model: {relations: 3}", "[]", "model: 3", "- model: {tasks: {}}"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ConfigError) as raised, expecting(Job.TWHIN, tmp_path / "config.yaml"):
            load_twhin_config(tmp_path / "config.yaml")
        assert "this is a" not in str(raised.value)


def test_the_schema_of_a_job() -> None:
    assert schema_of(Job.TWHIN)[0] is TwhinConfig
    assert schema_of(Job.RANKER)[0] is RankerConfig
