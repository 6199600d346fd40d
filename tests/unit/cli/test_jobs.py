"""Which job a configuration file describes."""

from __future__ import annotations

from pathlib import Path

import pytest
from reference_configs import TWHIN_YAML, ranker_yaml

from rookery.cli import main as command_line
from rookery.cli.jobs import Job, expecting, job_of, schema_of
from rookery.cli.main import app
from rookery.cli.output import run_command
from rookery.errors import ConfigError
from rookery.ranker.config import RankerConfig
from rookery.twhin.config import TwhinConfig
from rookery.twhin.from_reference import load_twhin_config


@pytest.mark.parametrize(
    ("text", "job"),
    [
        ("features: {}", Job.RANKER),
        ("model: {relations: []}", Job.TWHIN),
        ("model: {tasks: {}}", Job.RANKER),
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


@pytest.mark.parametrize("texts", [OURS, THEIRS])
@pytest.mark.parametrize(
    ("arguments", "other", "remedy"),
    [
        (("twhin", "import-weights", "weights.pt", "FILE"), "ranker", "`rookery ranker import-weights`"),
        (("ranker", "import-weights", "weights.pt", "FILE"), "twhin", "`rookery twhin import-weights`"),
        (("ranker", "tune", "FILE", "--space", "space.yaml", "--study", "study"), "twhin", "one of a ranker"),
        (("data", "convert-tfrecord", "in", "out", "--config", "FILE"), "twhin", "one of a ranker"),
    ],
)
def test_so_it_is_by_other_commands(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    texts: dict[Job, str],
    arguments: tuple[str, ...],
    other: str,
    remedy: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(texts[Job(other)])
    Path("in").touch()
    Path("space.yaml").write_text("training.num_epochs: {low: 1, high: 2}")
    command = ["config.yaml" if each == "FILE" else each for each in arguments]
    assert run_command(lambda: app(command, standalone_mode=False)) == 2
    name = "ranker" if other == "ranker" else "TwHIN"
    assert capsys.readouterr().err == f"error: config.yaml: this is a {name} configuration; use {remedy}\n"


@pytest.mark.parametrize(
    ("job", "missing", "other"),
    [
        (Job.TWHIN, "model.translation_optimizer", "features"),
        (Job.RANKER, "features", "model.translation_optimizer"),
    ],
)
def test_a_reader_tells_what_is_wrong_with_a_file_as_one_of_its_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], job: Job, missing: str, other: str
) -> None:
    (tmp_path / "config.yaml").write_text(OURS[job])
    assert run_command(lambda: app(["reader", str(tmp_path / "config.yaml")], standalone_mode=False)) == 2
    said = capsys.readouterr().err
    assert f"{missing}: is missing" in said
    assert f"{other}: is missing" not in said


def test_a_mistake_in_the_file_of_the_job_is_told_as_it_is(tmp_path: Path) -> None:
    for text in ("model: {relations: 3}", "[]", "model: 3", "- model: {tasks: {}}"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ConfigError) as raised, expecting(Job.TWHIN, tmp_path / "config.yaml"):
            load_twhin_config(tmp_path / "config.yaml")
        assert "this is a" not in str(raised.value)


def test_the_schema_of_a_job() -> None:
    assert schema_of(Job.TWHIN)[0] is TwhinConfig
    assert schema_of(Job.RANKER)[0] is RankerConfig
