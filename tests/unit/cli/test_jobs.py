"""Which job a configuration file describes."""

from __future__ import annotations

from pathlib import Path

import pytest
from reference_configs import TWHIN_YAML, ranker_yaml

from rookery.cli.jobs import Job, job_of, schema_of
from rookery.ranker.config import RankerConfig
from rookery.twhin.config import TwhinConfig


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


def test_the_schema_of_a_job() -> None:
    assert schema_of(Job.TWHIN)[0] is TwhinConfig
    assert schema_of(Job.RANKER)[0] is RankerConfig
