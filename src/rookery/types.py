"""Domain words that are types where that stops a mistake."""

from __future__ import annotations

import enum


class Side(enum.Enum):
    """The side of an edge: ``lhs`` (head, source) or ``rhs`` (tail, target)."""

    LHS = "lhs"
    RHS = "rhs"

    @property
    def other(self) -> Side:
        return Side.RHS if self is Side.LHS else Side.LHS
