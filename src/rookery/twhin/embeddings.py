"""What a run learned, ready to score: rows of entities, parameters of relations, and how they are compared.

A run in memory and an export on disk both come as ``Embeddings``; evaluation, indexes and neighbours know nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from rookery.twhin.comparators import COMPARATORS
from rookery.twhin.config import ComparatorName
from rookery.twhin.operators import OPERATORS
from rookery.twhin.score import form_of
from rookery.types import Side


@dataclass(frozen=True)
class ScoredRelation:
    """A relation: the tables of its sides, and the operator between them."""

    name: str
    lhs: str
    rhs: str
    operator: str

    def table(self, side: Side) -> str:
        return self.lhs if side is Side.LHS else self.rhs


@dataclass(frozen=True)
class Embeddings:
    """Everything that a score needs. Row numbers in, numbers out; nothing carries a gradient.

    ``rows`` holds a table ``[num_embeddings, D]`` by name, in its own dtype; ``parameters`` the operator's numbers
    ``[W]`` by (relation, side that is asked for).
    """

    relations: tuple[ScoredRelation, ...]
    comparator: ComparatorName
    operator_side: str
    rows: Mapping[str, Tensor]
    parameters: Mapping[tuple[int, Side], Tensor]

    def cpu(self) -> Embeddings:
        """The same in main memory; what is there already is not copied."""
        rows = {name: table.cpu() for name, table in self.rows.items()}
        return replace(self, rows=rows, parameters={key: value.cpu() for key, value in self.parameters.items()})

    def num_entities(self, table: str) -> int:
        return self.rows[table].shape[0]

    def query_form(self, side: Side, relation: int) -> bool:
        """Whether ``comparator(queries(...), raw row)`` orders candidates as the score does, so that an index of rows
        can serve.
        """
        return self._form(side, relation) != "expand"

    def queries(self, side: Side, relation: int, anchors: Tensor) -> Tensor:
        """Vectors ``[E, D]`` to compare with the rows of candidates on ``side``; ``anchors [E]`` are rows of the
        other side.
        """
        return self._query(side, relation, anchors)[0]

    def score_candidates(self, side: Side, relation: int, anchors: Tensor, candidates: Tensor | None) -> Tensor:
        """Scores ``[E, C]`` of ``candidates [C]`` (None: every entity of the type) on ``side``; higher is better."""
        spec = self.relations[relation]
        comparator, operator = COMPARATORS[self.comparator], OPERATORS[spec.operator]
        table = self.rows[spec.table(side)]
        rows = (table if candidates is None else table.index_select(0, candidates.to(table.device))).float()
        if not self.query_form(side, relation):
            rows = operator.apply(rows, self.parameters[relation, side].unsqueeze(0))
        query, bias = self._query(side, relation, anchors)
        scores = comparator.pairwise(comparator.prepare(query), comparator.prepare(rows))
        if bias is not None:
            scores.add_(bias.unsqueeze(1))
        return scores.to(anchors.device)

    def _form(self, side: Side, relation: int) -> str:
        return form_of(self.relations[relation].operator, self.comparator, self.operator_side, side)

    def _query(self, side: Side, relation: int, anchors: Tensor) -> tuple[Tensor, Tensor | None]:
        """The query ``[E, D]`` and what is added to all its scores ``[E]``."""
        spec = self.relations[relation]
        operator, form = OPERATORS[spec.operator], self._form(side, relation)
        table = self.rows[spec.table(side.other)]
        x = table.index_select(0, anchors.to(table.device)).float()
        p = self.parameters[relation, side].unsqueeze(0)
        if form == "apply":
            return operator.apply(x, p), None
        if form == "adjoint":
            return operator.adjoint(x, p)
        return (operator.inverse(x, p), None) if form == "inverse" else (x, None)
