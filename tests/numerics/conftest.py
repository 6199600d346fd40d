"""What is the same for all of these tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from small_graph import one_thread


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield
