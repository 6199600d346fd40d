"""The kinds of index and their parameters."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rookery.config.base import StrictModel

IndexKind = Literal["exact", "hnsw", "ivfpq"]


class ExactConfig(StrictModel):
    """Every row is compared with every query."""


class HnswConfig(StrictModel):
    """A navigable graph of neighbours (Malkov & Yashunin 2018)."""

    num_links: int = Field(default=32, ge=2)
    """Links of a row; memory ``num_links * 8`` bytes a row beside the vectors."""
    ef_construction: int = Field(default=200, ge=1)
    """Candidates kept while building: slower, better."""
    ef_search: int = Field(default=128, ge=1)
    """Candidates kept while searching: slower, better. At least k in any case."""


class IvfPqConfig(StrictModel):
    """Rows in lists around centroids, each row in a few bytes (Jégou et al. 2011)."""

    num_lists: int | None = Field(default=None, ge=1)
    """Left out: four times the square root of the number of rows."""
    num_probes: int | None = Field(default=None, ge=1)
    """Lists that a query reads; left out: one in eight."""
    bytes_per_row: int | None = Field(default=None, ge=1)
    """Must divide the dimension; left out: a byte for four dimensions, or for as few as divide it."""


IndexConfig = ExactConfig | HnswConfig | IvfPqConfig
KINDS: dict[IndexKind, type[IndexConfig]] = {
    "exact": ExactConfig,
    "hnsw": HnswConfig,
    "ivfpq": IvfPqConfig,
}
