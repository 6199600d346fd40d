"""What tests of the ingest share."""

from __future__ import annotations

from pathlib import Path

import pytest
from naive_ingest import EDGES, write_lines


@pytest.fixture
def tsv(tmp_path: Path) -> Path:
    """A file of ``EDGES``."""
    return write_lines(tmp_path / "edges.tsv", EDGES)
