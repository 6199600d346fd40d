"""The page for those who come from the-algorithm-ml has every field of its schemas, and names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from rookery.ranker.reference_schema import ReferenceRankerConfig
from rookery.twhin.reference_schema import ReferenceTwhinConfig

TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def page(root: Path) -> str:
    return (root / "docs" / "from-the-algorithm-ml.md").read_text()


def names_in(annotation: Any) -> set[str]:
    """All names of fields inside of an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields
        return set(fields).union(*(names_in(info.annotation) for info in fields.values()))
    return set().union(*map(names_in, getattr(annotation, "__args__", ())))


@pytest.mark.parametrize("schema", [ReferenceTwhinConfig, ReferenceRankerConfig])
def test_every_field_is_on_the_page(root: Path, schema: type[BaseModel]) -> None:
    words = set(re.findall(r"\w+", page(root)))
    assert names_in(schema) - words == set()


def test_the_tests_that_it_names_exist(root: Path) -> None:
    named = TEST.findall(page(root))
    assert len(named) >= 18
    missing = [f"{file}::{name}" for file, name in named if f"def {name}(" not in (root / file).read_text()]
    assert missing == []
