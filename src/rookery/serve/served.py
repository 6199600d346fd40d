"""What the service asks of a timeline, and the bundle's timeline as its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rookery.errors import UserError
from rookery.timeline.posts import Query


class Served(Protocol):
    """What answers requests. Lookups and ``answer`` may run at the same time in several threads.

    Posts, candidates and neighbours are dataclasses with the fields of ``messages``; in posts what is None is left out.
    Unknown ids raise ``UnknownId``.
    """

    @property
    def version(self) -> str:
        """Names the bundle."""

    @property
    def tasks(self) -> Sequence[str]:
        """The engagements that have a probability."""

    @property
    def weights(self) -> Mapping[str, float]:
        """The weights where a query has none."""

    @property
    def example(self) -> Mapping[str, str]:
        """A ``user_id`` and a ``post_id`` that there are."""

    def num_rows(self, query: Query) -> int:
        """Posts that the network sees for a query, at most."""

    def answer(self, queries: Sequence[Query]) -> Sequence[Sequence[object] | UserError]:
        """The posts of each query, or what is wrong with it; all in as few passes of the network as can be."""

    def candidates(self, user_id: str) -> Sequence[object]:
        """What a timeline is chosen from."""

    def users(self, prefix: str, limit: int) -> Sequence[Mapping[str, Any]]:
        """Users whose ids begin with ``prefix``."""

    def user(self, user_id: str) -> Mapping[str, Any]:
        """What is known of a user."""

    def neighbors(self, user_id: str, k: int) -> Sequence[object]:
        """Users near a user."""

    def similar(self, post_id: str, k: int) -> Sequence[object]:
        """Posts near a post."""

    def describe(self) -> Mapping[str, Any]:
        """Tasks, weights and factors."""

    def map(self) -> bytes:
        """Users and posts in the plane, as JSON."""

    def metrics(self) -> bytes:
        """What was measured when the bundle was made, as JSON; may be an empty object."""


class Opener(Protocol):
    """Makes of a folder what is served from it."""

    def __call__(self, bundle: Path) -> Served:
        """Raises ``RookeryError`` for what is no bundle or a damaged one."""
