"""Parts and a bundle that several test files look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_timeline import SmallParts, write_parts

from rookery.timeline.timeline import Timeline


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Work this small is done before a second thread is awake."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> SmallParts:
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="session")
def bundle(parts: SmallParts) -> Path:
    return parts.build(parts.folder / "bundle")


@pytest.fixture(scope="session")
def timeline(bundle: Path) -> Timeline:
    return Timeline.open(bundle)
