"""The score and loss of a batch with one hand-written gradient: the hot loop of TwHIN.

Autograd would keep every ``[edges, negatives]`` intermediate of the batch and walk it twice. Here each chunk goes
forward and backward while its scores are in the cache; only the gradients of the looked-up rows and of the relation
parameters leave the loop. ``tests/numerics/test_score_gradient.py`` holds it against autograd for every operator,
comparator, side and loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rookery.twhin.batch import Candidates, Group, QueryGroup, TrainBatch
from rookery.twhin.comparators import COMPARATORS, Comparator
from rookery.twhin.losses import Loss, Softmax
from rookery.twhin.operators import OPERATORS, Operator
from rookery.twhin.regularizers import Regularizer
from rookery.types import Side

# A relation has one vector of parameters, or two when each direction has its own.
FORWARD, REVERSE = "forward", "reverse"
ParameterKey = tuple[str, str]  # operator, direction
EdgesOf = tuple[Group | QueryGroup, int]  # those of a group from a number on


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
    if operator_side in {"both", predicts.other.value} or operator == "identity":
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
        self.grad = torch.empty_like(self.prepared)
        self.is_fresh = True
        self.penalties: list[tuple[Tensor, Tensor]] = []
        self._comparator = comparator

    def backward(self, grad: Tensor, scores: Tensor, factor: Tensor) -> Tensor:
        """Keep the gradient by the candidates, return that by the queries ``factor``."""
        beta = 0 if self.is_fresh else 1
        self.is_fresh = False
        return self._comparator.pairwise_backward(grad, scores, factor, self.factor, self.grad, beta)

    def grad_raw(self) -> Tensor:
        grad = self._comparator.prepare_backward(self.grad, self.raw, self.prepared)
        for rows, penalty in self.penalties:
            grad.index_add_(0, rows, penalty)
        return grad


class BatchGradient:
    """Loss of a batch and its gradients by looked-up rows and relation parameters, gathered chunk by chunk.

    Every looked-up row is a lhs, a rhs or a global negative of exactly one chunk (or of all, when shared), so each row
    of ``grad_rows`` is written once and need not be zeroed first.
    """

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
        self.grad_rows = {name: torch.empty_like(table) for name, table in self.rows.items()}
        self.grad_parameters = {key: torch.zeros_like(table) for key, table in parameters.items()}
        self.losses: list[tuple[Tensor, EdgesOf | None]] = []
        self._positives: list[Tensor] = []

    def run(self) -> tuple[Tensor, Tensor]:
        """Mean loss and mean score of the positives, float64; gradients are in ``grad_rows``, ``grad_parameters``."""
        whole: dict[tuple[str, int], _CandidateRows] = {}
        for group in self.batch.groups:
            if isinstance(group, QueryGroup):
                self._run_queries(group, whole)
            else:
                self._run_edges(group)
        for (table, start), rows in whole.items():
            self.grad_rows[table][start : start + rows.raw.shape[0]].copy_(rows.grad_raw())
        return self._mean([losses for losses, _ in self.losses]), self._mean(self._positives)

    def _run_queries(self, group: QueryGroup, whole: dict[tuple[str, int], _CandidateRows]) -> None:
        """``whole`` keeps the prepared tables that queries share, by table and position."""
        key = group.candidate_table, group.candidate_start
        if key not in whole:
            raw = self.rows[key[0]][key[1] : key[1] + group.num_candidates]
            whole[key] = _CandidateRows(raw, self.comparator, self.half)
        for bounds in group.chunks:
            _QueryChunk(self, group, whole[key], bounds).run()

    def _run_edges(self, group: Group) -> None:
        shared = {
            side: _CandidateRows(self.global_rows(candidates, 0), self.comparator, self.half)
            for side, candidates in group.candidates.items()
            if candidates.shared and self.form(group.operator, side) != "expand"
        }
        for chunk in range(len(group.chunks)):
            _Chunk(self, group, chunk, shared).run()
        for side, rows in shared.items():
            self.global_grad(group.candidates[side], 0).copy_(rows.grad_raw())

    def _mean(self, addends: list[Tensor]) -> Tensor:
        if not addends:  # no edge of the batch is this process's
            return torch.zeros((), dtype=torch.float64, device=next(iter(self.rows.values())).device)
        return torch.cat(addends).sum(dtype=torch.float64)

    def form(self, operator: str, predicts: Side) -> str:
        return form_of(operator, self.settings.comparator, self.settings.operator_side, predicts)

    def global_rows(self, candidates: Candidates, chunk: int) -> Tensor:
        start = candidates.start_of(chunk)
        return self.rows[candidates.table][start : start + candidates.num_global]

    def global_grad(self, candidates: Candidates, chunk: int) -> Tensor:
        start = candidates.start_of(chunk)
        return self.grad_rows[candidates.table][start : start + candidates.num_global]

    def add_parameters(self, key: ParameterKey, relation: Tensor, grads: list[Tensor]) -> None:
        """Add gradients to their relations: of ``[W]`` a row, or of any number of rows where the relation is one."""
        out = self.grad_parameters[key]
        if relation.shape[0] == 1:
            for grad in grads:
                out[relation] += grad.sum(0)
        elif grads:
            out.index_add_(0, relation, grads[0] if len(grads) == 1 else torch.stack(grads).sum(0))

    def add_losses(self, losses: Tensor, edges: EdgesOf | None = None) -> None:
        """Addends of the batch's mean loss, one for each of ``edges``; None: of a penalty."""
        self.losses.append((losses, edges))

    def add_positives(self, scores: Tensor) -> None:
        self._positives.append(scores)


class _Chunk:
    """One chunk forward and backward, both directions; a gradient is written when its addends are complete."""

    def __init__(self, total: BatchGradient, group: Group, chunk: int, shared: Mapping[Side, _CandidateRows]) -> None:
        self.total = total
        self.group = group
        self.chunk = chunk
        self.shared = shared
        self.share = 1.0 / (total.batch.num_edges * len(group.candidates))
        self.first, self.last = group.chunks[chunk]
        self.num_edges = self.last - self.first
        self.operator: Operator = OPERATORS[group.operator]
        self.relation = group.relation[self.first : self.first + 1 if group.one_relation else self.last]
        self.rows = {side: self._of_edges(total.rows, side) for side in Side}
        side_of = total.settings.operator_side
        keys = {side: parameter_key(group.operator, side_of, side) for side in group.candidates}
        gathered = {key: total.parameters[key].index_select(0, self.relation) for key in set(keys.values())}
        self.keys = keys
        self.p = {side: gathered[key] for side, key in keys.items()}
        self._grads: dict[Side, list[Tensor]] = {side: [] for side in Side}
        self._grads_p: dict[ParameterKey, list[Tensor]] = {key: [] for key in gathered}
        self._lent: dict[Side, Tensor] = {}

    def _of_edges(self, tables: Mapping[str, Tensor], side: Side) -> Tensor:
        start = self.group.start(side)
        return tables[self.group.table(side)][start + self.first : start + self.last]

    def run(self) -> None:
        for side in self.group.candidates:
            self._direction(side)
        if self.total.settings.regularizer.active:
            self._regularize()
        for side, grads in self._grads.items():
            out = self._of_edges(self.total.grad_rows, side)
            _sum_into(out, grads)
            if side in self._lent:
                out[: self._lent[side].shape[0]].add_(self._lent[side])
        for key, grads in self._grads_p.items():
            self.total.add_parameters(key, self.relation, grads)

    def _direction(self, predicts: Side) -> None:
        """Scores, loss and gradients of predicting one side from the other, the anchor."""
        comparator, p = self.total.comparator, self.p[predicts]
        form = self.total.form(self.group.operator, predicts)
        anchor, target = self.rows[predicts.other], self.rows[predicts]
        raw_query, bias = self._query(form, anchor, p)
        raw_target = self.operator.apply(target, p) if form == "expand" else target
        query, own = comparator.prepare(raw_query), comparator.prepare(raw_target)
        rows = self._candidate_rows(form, predicts)
        factor = query.bfloat16() if self.total.half else query

        positive = comparator.aligned(query, own)  # [edges]
        scores = comparator.pairwise(factor, rows.factor)  # [edges, candidates]
        grad_positive, grad_scores = self._loss(predicts, positive, scores, bias)

        grad_query = rows.backward(grad_scores, scores, factor)
        grad_own = comparator.aligned_backward(grad_positive, positive, query, own, grad_query)
        grad_query = comparator.prepare_backward(grad_query, raw_query, query)
        grad_bias = None if bias is None else grad_scores.sum(1).add_(grad_positive)
        self._anchor_backward(form, predicts, grad_query, grad_bias)
        self._target_backward(form, predicts, comparator.prepare_backward(grad_own, raw_target, own))
        if predicts not in self.shared:
            self._candidates_backward(form, predicts, rows)

    def _query(self, form: str, anchor: Tensor, p: Tensor) -> tuple[Tensor, Tensor | None]:
        if form == "apply":
            return self.operator.apply(anchor, p), None
        if form == "adjoint":
            return self.operator.adjoint(anchor, p)
        if form == "inverse":
            return self.operator.inverse(anchor, p), None
        return anchor, None

    def _raw_candidates(self, predicts: Side) -> Tensor:
        candidates = self.group.candidates[predicts]
        drawn = self.total.global_rows(candidates, self.chunk)
        return torch.cat([self.rows[predicts][: candidates.num_in_batch], drawn]) if candidates.num_in_batch else drawn

    def _candidate_rows(self, form: str, predicts: Side) -> _CandidateRows:
        if predicts in self.shared:
            return self.shared[predicts]
        raw = self._raw_candidates(predicts)
        if form == "expand":
            raw = self.operator.apply(raw, self.p[predicts])
        return _CandidateRows(raw, self.total.comparator, self.total.half)

    def _loss(self, predicts: Side, positive: Tensor, scores: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Report the loss of the chunk; derivatives by positive and candidate scores, weights and means included."""
        total, candidates = self.total, self.group.candidates[predicts]
        negatives = scores.clone() if total.comparator.needs_scores else scores
        if bias is not None:
            negatives, positive = negatives.add_(bias.unsqueeze(1)), positive + bias
        if candidates.log_expected is not None:
            negatives.sub_(candidates.log_expected[self.chunk] * total.settings.log_q_scale)
        edges, columns = candidates.masked[self.chunk]
        if edges.shape[0]:
            negatives[edges, columns] = -torch.inf
        share = self.share
        weight = share if self.group.weight is None else self.group.weight[self.first : self.last] * share
        value = total.settings.loss(positive, negatives, weight)
        total.add_losses(value.loss * weight, (self.group, self.first))
        total.add_positives(positive * share)
        return value.grad_positive, value.grad_negatives

    def _anchor_backward(self, form: str, predicts: Side, grad_query: Tensor, grad_bias: Tensor | None) -> None:
        anchor, p = self.rows[predicts.other], self.p[predicts]
        if form == "expand":
            self._grads[predicts.other].append(grad_query)
            return
        if form == "apply":
            grad, grad_p = self.operator.backward(grad_query, anchor, p)
        elif form == "adjoint":
            grad, grad_p = self.operator.adjoint_backward(grad_query, grad_bias, anchor, p)
        else:
            grad, grad_p = self.operator.inverse_backward(grad_query, anchor, p)
        self._grads[predicts.other].append(grad)
        self._grads_p[self.keys[predicts]].append(grad_p)

    def _target_backward(self, form: str, predicts: Side, grad: Tensor) -> None:
        if form == "expand":
            grad, grad_p = self.operator.backward(grad, self.rows[predicts], self.p[predicts])
            self._grads_p[self.keys[predicts]].append(grad_p)
        self._grads[predicts].append(grad)

    def _candidates_backward(self, form: str, predicts: Side, rows: _CandidateRows) -> None:
        candidates = self.group.candidates[predicts]
        grad = rows.grad_raw()
        if form == "expand":
            grad, grad_p = self.operator.backward(grad, self._raw_candidates(predicts), self.p[predicts])
            self._grads_p[self.keys[predicts]].append(grad_p)
        num_lent = grad.shape[0] - candidates.num_global
        if num_lent:
            self._lent[predicts] = grad[:num_lent]
        out = self.total.global_grad(candidates, self.chunk)
        if candidates.shared and self.chunk:
            out.add_(grad[num_lent:])
        else:
            out.copy_(grad[num_lent:])
        if self.total.settings.regularizer.active and self.total.settings.regularizer.negatives:
            drawn = self.total.global_rows(candidates, self.chunk)
            # Together as much as the edges of the chunk, so that a short last chunk is held no harder than the others.
            share = self.share * self.num_edges / max(1, len(drawn))
            out.add_(_Penalty(self.total, self.group.operator)(drawn, share))

    def _regularize(self) -> None:
        """Each direction penalizes the vectors of its edges, operator included."""
        penalize = _Penalty(self.total, self.group.operator)
        relation = self.group.relation[self.first : self.last]
        for key in self.keys.values():
            for side, rows in self.rows.items():
                self._grads[side].append(penalize(rows, self.share))
            self._grads_p[key].append(penalize(self.total.parameters[key].index_select(0, relation), self.share))


class _QueryChunk:
    """Some queries of a softmax over every entity, forward and backward.

    The true entity is one of the candidates: its score needs no product of its own, its gradient comes with theirs.
    """

    def __init__(
        self, total: BatchGradient, group: QueryGroup, rows: _CandidateRows, bounds: tuple[int, int, int, int]
    ) -> None:
        first, last, first_edge, last_edge = bounds
        self.total = total
        self.group = group
        self.first_edge = first_edge
        self.candidates = rows
        self.relation = group.relation[first : first + 1 if group.one_relation else last]
        self.relation_of_query = group.relation[first:last]
        self.anchors = slice(group.anchor_start + first, group.anchor_start + last)
        self.anchor = total.rows[group.anchor_table][self.anchors]
        self.query_of_edge = group.query_of_edge[first_edge:last_edge] - first  # [edges]
        self.target = group.target[first_edge:last_edge]
        weight = group.weight
        self.weight = self.anchor.new_ones(len(self.target)) if weight is None else weight[first_edge:last_edge]
        self.key = parameter_key(group.operator, total.settings.operator_side, group.predicts)
        self.p = total.parameters[self.key].index_select(0, self.relation)
        self.operator: Operator = OPERATORS[group.operator]

    def run(self) -> None:
        comparator, settings = self.total.comparator, self.total.settings
        form = self.total.form(self.group.operator, self.group.predicts)
        raw_query, bias = _TO_QUERY[form](self.operator, self.anchor, self.p)
        query = comparator.prepare(raw_query)
        factor = query.bfloat16() if self.total.half else query
        scores = comparator.pairwise(factor, self.candidates.factor)  # [queries, candidates]
        grad_scores = self._loss(scores, bias)
        grad_query = self.candidates.backward(grad_scores, scores, factor)
        grad_query = comparator.prepare_backward(grad_query, raw_query, query)
        grad, grad_p = _FROM_QUERY[form](self.operator, grad_query, self.anchor, self.p)
        out = self.total.grad_rows[self.group.anchor_table][self.anchors].copy_(grad)
        grads_p = [grad_p]
        if settings.regularizer.active:
            grads_p.append(self._regularize(out))
        self.total.add_parameters(self.key, self.relation, grads_p)

    def _loss(self, scores: Tensor, bias: Tensor | None) -> Tensor:
        """Report the loss; derivatives ``[queries, candidates]``, in place of the scores where nobody reads them again.

        Queries weigh as much as the edges that they answer; the ``bias [queries]`` of an adjoint query is the same for
        all candidates and drops out of all but the score of the positives.
        """
        total = self.total
        loss = total.settings.loss
        assert isinstance(loss, Softmax)
        share = self.group.share
        logits = scores.clone() if total.comparator.needs_scores else scores
        if loss.temperature != 1.0:
            logits.div_(loss.temperature)
        own = logits[self.query_of_edge, self.target]
        weight = self.weight * share
        mass = logits.new_zeros(len(logits)).index_add_(0, self.query_of_edge, weight)
        partition = torch.logsumexp(logits, 1)
        total.add_losses((partition[self.query_of_edge] - own) * weight, (self.group, self.first_edge))
        positive = own * loss.temperature
        total.add_positives((positive if bias is None else positive + bias[self.query_of_edge]) * share)
        grad = logits.sub_((partition - mass.log()).unsqueeze(1)).exp_()
        grad.index_put_((self.query_of_edge, self.target), -weight, accumulate=True)
        return grad if loss.temperature == 1.0 else grad.div_(loss.temperature)

    def _regularize(self, into_anchor: Tensor) -> Tensor:
        """Penalize anchor and relation once an edge, and the targets; the gradient of the relations is returned."""
        penalize = _Penalty(self.total, self.group.operator)
        num_edges = torch.bincount(self.query_of_edge, minlength=len(self.anchor)).to(self.anchor.dtype)
        share = (num_edges * self.group.share).unsqueeze(1)
        into_anchor.add_(penalize(self.anchor, share))
        targets = self.candidates.raw.index_select(0, self.target)
        self.candidates.penalties.append((self.target, penalize(targets, self.group.share)))
        return penalize(self.total.parameters[self.key].index_select(0, self.relation_of_query), share)


class _Penalty:
    """The regularizer of a batch: reports its value, returns its gradient."""

    def __init__(self, total: BatchGradient, operator: str) -> None:
        self._total = total
        self._is_complex = operator == "complex_diagonal"

    def __call__(self, rows: Tensor, share: Tensor | float) -> Tensor:
        """Gradient ``[E, D]`` of ``sum(share * penalty(row))``; ``share`` is ``[E, 1]`` or a number."""
        penalty, grad = self._total.settings.regularizer(rows, self._is_complex)
        self._total.add_losses((penalty * (share.squeeze(1) if isinstance(share, Tensor) else share)).view(-1))
        return grad.mul_(share)


# How a query and its bias are made of the anchor, and the gradients (anchor, parameters) of that, by form.
_TO_QUERY: dict[str, Callable[[Operator, Tensor, Tensor], tuple[Tensor, Tensor | None]]] = {
    "apply": lambda operator, x, p: (operator.apply(x, p), None),
    "adjoint": lambda operator, x, p: operator.adjoint(x, p),
    "inverse": lambda operator, x, p: (operator.inverse(x, p), None),
}
_FROM_QUERY: dict[str, Callable[[Operator, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "apply": lambda operator, grad, x, p: operator.backward(grad, x, p),
    "adjoint": lambda operator, grad, x, p: operator.adjoint_backward(grad, grad.new_zeros(len(grad)), x, p),
    "inverse": lambda operator, grad, x, p: operator.inverse_backward(grad, x, p),
}


def _sum_into(out: Tensor, grads: list[Tensor]) -> None:
    if len(grads) == 1:
        out.copy_(grads[0])
        return
    torch.add(grads[0], grads[1], out=out)
    for grad in grads[2:]:
        out.add_(grad)


class _Score(torch.autograd.Function):
    """Carries the finished gradients into autograd; ``keys`` name the tensors that follow."""

    @staticmethod
    def forward(
        ctx: Any,
        batch: TrainBatch,
        settings: ScoreSettings,
        names: tuple[str, ...],
        keys: tuple[ParameterKey, ...],
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        rows = dict(zip(names, tensors[: len(names)], strict=True))
        parameters = dict(zip(keys, tensors[len(names) :], strict=True))
        total = BatchGradient(batch, settings, rows, parameters)
        with torch.autocast(tensors[0].device.type, enabled=False):  # products choose their own precision
            loss, positive = (mean.float() for mean in total.run())
        ctx.gradients = [
            *(total.grad_rows[name].to(rows[name].dtype) for name in names),
            *(total.grad_parameters[key] for key in keys),
        ]
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
    loss, positive = _Score.apply(  # type: ignore[no-untyped-call]
        batch, settings, names, keys, *rows.values(), *parameters.values()
    )
    return loss, positive
