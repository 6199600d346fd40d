"""The score and loss of a batch with one hand-written gradient: the hot loop of TwHIN.

Autograd would keep every ``[edges, negatives]`` intermediate of the batch and walk it twice. Here each chunk goes
forward and backward while its scores are in the cache; only the gradients of the looked-up rows and of the relation
parameters leave the loop. ``tests/numerics/test_score_gradient.py`` holds it against autograd for every operator,
comparator, side and loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rookery.twhin.batch import Candidates, Group, TrainBatch
from rookery.twhin.comparators import COMPARATORS, Comparator
from rookery.twhin.losses import Loss
from rookery.twhin.operators import OPERATORS, Operator
from rookery.twhin.regularizers import Regularizer
from rookery.types import Side

# A relation has one vector of parameters, or two when each direction has its own.
FORWARD, REVERSE = "forward", "reverse"
ParameterKey = tuple[str, str]  # operator, direction


@dataclass(frozen=True)
class ScoreSettings:
    """What makes a score: see ``ModelConfig`` for the meaning of each."""

    operator_side: str
    comparator: str
    loss: Loss
    log_q_scale: float
    regularizer: Regularizer
    half: bool = False


def form_of(operator: str, comparator: str, operator_side: str, predicts: Side) -> str:
    """How a direction is scored against raw candidates.

    ``apply``: the anchor is operated; ``adjoint`` and ``inverse``: the operator moves from the candidate to the anchor;
    ``expand``: no such form exists, and the candidates themselves are operated, one relation a chunk.
    """
    if operator_side == "both" or operator_side == predicts.other.value or operator == "identity":
        return "apply"
    if comparator == "dot":
        return "adjoint"
    if comparator in ("l2", "l1") and OPERATORS[operator].has_inverse:
        return "inverse"
    return "expand"


def needs_one_relation(operator: str, comparator: str, operator_side: str) -> bool:
    """Whether edges of different relations cannot share a chunk."""
    forms = {form_of(operator, comparator, operator_side, side) for side in Side}
    return OPERATORS[operator].one_relation_a_call or "expand" in forms


def parameter_key(operator: str, operator_side: str, predicts: Side) -> ParameterKey:
    """Which parameters score a direction: with an operator on both sides each direction has its own."""
    own_reverse = operator_side == "both" and predicts is Side.LHS
    return operator, REVERSE if own_reverse else FORWARD


class _CandidateRows:
    """Candidates of one chunk, or of all chunks when shared: prepared once, gradient gathered once."""

    def __init__(self, raw: Tensor, comparator: Comparator, half: bool) -> None:
        self.raw = raw
        self.prepared = comparator.prepare(raw)
        self.factor = self.prepared.bfloat16() if half else self.prepared
        self.grad = torch.zeros_like(self.prepared)
        self._comparator = comparator

    def grad_raw(self) -> Tensor:
        return self._comparator.prepare_backward(self.grad, self.raw, self.prepared)


class BatchGradient:
    """Loss of a batch and its gradients by looked-up rows and relation parameters, gathered chunk by chunk."""

    def __init__(
        self,
        batch: TrainBatch,
        settings: ScoreSettings,
        rows: Mapping[str, Tensor],
        parameters: Mapping[ParameterKey, Tensor],
    ) -> None:
        self.batch = batch
        self.settings = settings
        self.comparator = COMPARATORS[settings.comparator]
        self.half = settings.half and self.comparator.half_products
        self.rows = {name: table.float() for name, table in rows.items()}
        self.parameters = parameters
        self.grad_rows = {name: torch.zeros_like(table) for name, table in self.rows.items()}
        self.grad_parameters = {key: torch.zeros_like(table) for key, table in parameters.items()}
        self.loss = torch.zeros((), dtype=torch.float64)
        self.positive_score = torch.zeros((), dtype=torch.float64)

    def run(self) -> None:
        for group in self.batch.groups:
            shared = {
                side: _CandidateRows(self.global_rows(candidates, 0), self.comparator, self.half)
                for side, candidates in group.candidates.items()
                if candidates.shared and self.form(group, side) != "expand"
            }
            for chunk in range(len(group.chunks)):
                for side in group.candidates:
                    _Direction(self, group, chunk, side, shared.get(side)).run()
                self._regularize(group, chunk)
            for side, candidates in shared.items():
                self.add_rows(group.candidates[side].table, group.candidates[side].start, candidates.grad_raw())

    def form(self, group: Group, predicts: Side) -> str:
        return form_of(group.operator, self.settings.comparator, self.settings.operator_side, predicts)

    def global_rows(self, candidates: Candidates, chunk: int) -> Tensor:
        start = candidates.start_of(chunk)
        return self.rows[candidates.table][start : start + candidates.num_global]

    def add_rows(self, table: str, start: int, grad: Tensor) -> None:
        self.grad_rows[table][start : start + grad.shape[0]].add_(grad)

    def add_parameters(self, key: ParameterKey, relation: Tensor, grad: Tensor) -> None:
        """Add per-edge gradients to their relations; a single-row ``relation`` takes the sum of all."""
        if relation.shape[0] == 1:
            grad = grad.sum(0, keepdim=True)
        self.grad_parameters[key].index_add_(0, relation, grad)

    def _regularize(self, group: Group, chunk: int) -> None:
        regularizer = self.settings.regularizer
        if not regularizer.active:
            return
        first, last = group.chunks[chunk]
        share = 1.0 / self.batch.num_edges
        is_complex = group.operator == "complex_diagonal"
        for side in Side:
            table, start = group.table(side), group.start(side)
            value, grad = regularizer(self.rows[table][start + first : start + last], is_complex)
            self.loss += value * share
            self.add_rows(table, start + first, grad.mul_(share))
        keys = {parameter_key(group.operator, self.settings.operator_side, side) for side in group.candidates}
        relation = group.relation[first:last]
        for key in sorted(keys):
            value, grad = regularizer(self.parameters[key].index_select(0, relation), is_complex)
            self.loss += value * share
            self.grad_parameters[key].index_add_(0, relation, grad.mul_(share))


class _Direction:
    """One chunk, predicting one side: scores, loss and gradients.

    The anchor ``[E, D]`` is the known side, the target ``[E, D]`` the true entity of the predicted side.
    """

    def __init__(
        self, total: BatchGradient, group: Group, chunk: int, predicts: Side, shared: _CandidateRows | None
    ) -> None:
        self.total = total
        self.group = group
        self.predicts = predicts
        self.candidates = group.candidates[predicts]
        self.chunk = chunk
        self.first, last = group.chunks[chunk]
        self.num_edges = last - self.first
        self.anchor = self._rows(predicts.other)
        self.target = self._rows(predicts)
        settings = total.settings
        self.form = total.form(group, predicts)
        self.operator: Operator = OPERATORS[group.operator]
        self.key = parameter_key(group.operator, settings.operator_side, predicts)
        self.relation = group.relation[self.first : self.first + 1 if group.one_relation else last]
        self.p = total.parameters[self.key].index_select(0, self.relation)
        self.num_in_batch = min(self.candidates.num_in_batch, self.num_edges)
        self.shared = shared

    def _rows(self, side: Side) -> Tensor:
        start = self.group.start(side) + self.first
        return self.total.rows[self.group.table(side)][start : start + self.num_edges]

    def run(self) -> None:
        comparator = self.total.comparator
        raw_query, bias = self._query()
        raw_target = self.operator.apply(self.target, self.p) if self.form == "expand" else self.target
        query, target = comparator.prepare(raw_query), comparator.prepare(raw_target)
        candidates = self._candidate_rows()
        factor = query.bfloat16() if self.total.half else query

        positive = comparator.aligned(query, target)  # [edges]
        scores = comparator.pairwise(factor, candidates.factor)  # [edges, candidates]
        grad_positive, grad_scores = self._loss(positive, scores, bias)

        grad_query = comparator.pairwise_backward(grad_scores, scores, factor, candidates.factor, candidates.grad)
        own_query, grad_target = comparator.aligned_backward(grad_positive, positive, query, target)
        grad_query = comparator.prepare_backward(grad_query.add_(own_query), raw_query, query)
        grad_target = comparator.prepare_backward(grad_target, raw_target, target)
        grad_bias = None if bias is None else grad_scores.sum(1).add_(grad_positive)
        self._add_anchor(grad_query, grad_bias)
        self._add_target(grad_target)
        if self.shared is None:
            self._add_candidates(candidates)

    def _query(self) -> tuple[Tensor, Tensor | None]:
        if self.form == "apply":
            return self.operator.apply(self.anchor, self.p), None
        if self.form == "adjoint":
            return self.operator.adjoint(self.anchor, self.p)
        if self.form == "inverse":
            return self.operator.inverse(self.anchor, self.p), None
        return self.anchor, None

    def _candidate_rows(self) -> _CandidateRows:
        if self.shared is not None:
            return self.shared
        drawn = self.total.global_rows(self.candidates, self.chunk)
        raw = torch.cat([self.target[: self.num_in_batch], drawn]) if self.num_in_batch else drawn
        if self.form == "expand":
            raw = self.operator.apply(raw, self.p)
        return _CandidateRows(raw, self.total.comparator, self.total.half)

    def _loss(self, positive: Tensor, scores: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Add the loss of the chunk; derivatives by positive and candidate scores, weights and means included."""
        negatives = scores + bias.unsqueeze(1) if bias is not None else scores.clone()
        if bias is not None:
            positive = positive + bias
        if self.candidates.log_expected is not None:
            negatives.sub_(self.candidates.log_expected[self.chunk] * self.total.settings.log_q_scale)
        edges, columns = self.candidates.masked[self.chunk]
        negatives[edges, columns] = -torch.inf
        value = self.total.settings.loss(positive, negatives)
        share = 1.0 / (self.total.batch.num_edges * len(self.group.candidates))
        weight = self.group.weight
        self.total.positive_score += positive.sum(dtype=torch.float64) * share
        if weight is None:
            self.total.loss += value.loss.sum(dtype=torch.float64) * share
            return value.grad_positive.mul_(share), value.grad_negatives.mul_(share)
        scale = weight[self.first : self.first + self.num_edges] * share
        self.total.loss += (value.loss * scale).sum(dtype=torch.float64)
        return value.grad_positive.mul_(scale), value.grad_negatives.mul_(scale.unsqueeze(1))

    def _add_anchor(self, grad_query: Tensor, grad_bias: Tensor | None) -> None:
        if self.form == "apply":
            grad, grad_p = self.operator.backward(grad_query, self.anchor, self.p)
        elif self.form == "adjoint":
            grad, grad_p = self.operator.adjoint_backward(grad_query, grad_bias, self.anchor, self.p)
        elif self.form == "inverse":
            grad, grad_p = self.operator.inverse_backward(grad_query, self.anchor, self.p)
        else:
            self._add(self.predicts.other, grad_query)
            return
        self._add(self.predicts.other, grad)
        self.total.add_parameters(self.key, self.relation, grad_p)

    def _add_target(self, grad: Tensor) -> None:
        if self.form == "expand":
            grad, grad_p = self.operator.backward(grad, self.target, self.p)
            self.total.add_parameters(self.key, self.relation, grad_p)
        self._add(self.predicts, grad)

    def _add_candidates(self, candidates: _CandidateRows) -> None:
        grad = candidates.grad_raw()
        if self.form == "expand":
            lent = self.target[: self.num_in_batch]
            raw = torch.cat([lent, self.total.global_rows(self.candidates, self.chunk)])
            grad, grad_p = self.operator.backward(grad, raw, self.p)
            self.total.add_parameters(self.key, self.relation, grad_p)
        self._add(self.predicts, grad[: self.num_in_batch])
        self.total.add_rows(self.candidates.table, self.candidates.start_of(self.chunk), grad[self.num_in_batch :])

    def _add(self, side: Side, grad: Tensor) -> None:
        self.total.add_rows(self.group.table(side), self.group.start(side) + self.first, grad)


class _Score(torch.autograd.Function):
    """Carries the finished gradients into autograd; ``keys`` name the tensors that follow."""

    @staticmethod
    def forward(
        ctx: Any, batch: TrainBatch, settings: ScoreSettings, names: tuple[str, ...], keys: tuple[ParameterKey, ...], *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        rows = dict(zip(names, tensors[: len(names)], strict=True))
        parameters = dict(zip(keys, tensors[len(names) :], strict=True))
        total = BatchGradient(batch, settings, rows, parameters)
        total.run()
        ctx.gradients = [
            *(total.grad_rows[name].to(rows[name].dtype) for name in names),
            *(total.grad_parameters[key] for key in keys),
        ]
        loss, positive = total.loss.float(), total.positive_score.float()
        ctx.mark_non_differentiable(positive)
        return loss, positive

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        scale = float(gradients[0])
        if scale != 1.0:
            for gradient in ctx.gradients:
                gradient.mul_(scale)
        return (None, None, None, None, *ctx.gradients)


def batch_loss(
    batch: TrainBatch,
    settings: ScoreSettings,
    rows: Mapping[str, Tensor],
    parameters: Mapping[ParameterKey, Tensor],
) -> tuple[Tensor, Tensor]:
    """Mean loss of the batch, differentiable by ``rows`` and ``parameters``, and the mean score of its positives."""
    names, keys = tuple(rows), tuple(parameters)
    loss, positive = _Score.apply(batch, settings, names, keys, *rows.values(), *parameters.values())
    return loss, positive
