"""TwHIN's score and loss as written in the formulas: every edge against every candidate, gradients by autograd."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rookery.twhin.batch import Group, TrainBatch
from rookery.types import Side


def operate(operator: str, x: Tensor, p: Tensor) -> Tensor:
    """``x [..., D]`` under parameters ``p [..., W]``."""
    if operator == "translation":
        return x + p
    if operator == "identity":
        return x
    if operator == "diagonal":
        return x * p
    if operator == "linear":
        matrix = p.reshape(*p.shape[:-1], x.shape[-1], x.shape[-1])
        return (matrix * x.unsqueeze(-2)).sum(-1)
    half = x.shape[-1] // 2
    product = torch.complex(x[..., :half], x[..., half:]) * torch.complex(p[..., :half], p[..., half:])
    return torch.cat([product.real, product.imag], dim=-1)


def compare(comparator: str, a: Tensor, b: Tensor) -> Tensor:
    if comparator == "dot":
        return (a * b).sum(-1)
    if comparator == "cosine":
        return torch.cosine_similarity(a, b, dim=-1)
    return -torch.linalg.vector_norm(a - b, ord=2 if comparator == "l2" else 1, dim=-1)


def naive_loss(kind: str, positive: Tensor, negatives: Tensor, **parameters: float) -> Tensor:
    """Loss of one edge: ``positive`` is a scalar, ``negatives [N]`` holds only negatives that count."""
    if kind == "bce":
        return softplus(-positive) + parameters["weight"] * softplus(negatives).sum() / parameters["num_candidates"]
    if kind == "softmax":
        logits = torch.cat([positive.view(1), negatives]) / parameters["temperature"]
        return -torch.log_softmax(logits, dim=0)[0]
    if kind == "margin_ranking":
        return torch.clamp(parameters["margin"] + negatives - positive, min=0).sum() / parameters["num_candidates"]
    weights = torch.softmax(parameters["alpha"] * negatives, dim=0).detach()
    margin = parameters["margin"]
    return softplus(-positive - margin) + (weights * softplus(negatives + margin)).sum()


def naive_batch_loss(
    batch: TrainBatch,
    operator_side: str,
    comparator: str,
    rows: dict[str, Tensor],
    parameters: dict[tuple[str, str], Tensor],
    kind: str,
    log_q_scale: float = 1.0,
    **loss_parameters: float,
) -> Tensor:
    """The mean loss of ``batch``, edge by edge, direction by direction."""
    total = torch.zeros((), dtype=torch.float64)
    for group in batch.groups:
        for chunk, (start, stop) in enumerate(group.chunks):
            for edge in range(start, stop):
                for side in group.candidates:
                    positive, negatives, num_candidates = naive_scores(
                        group, chunk, edge, side, operator_side, comparator, rows, parameters, log_q_scale
                    )
                    loss = naive_loss(kind, positive, negatives, num_candidates=num_candidates, **loss_parameters)
                    weight = 1.0 if group.weight is None else float(group.weight[edge])
                    total = total + weight * loss / len(group.candidates)
    return total / batch.num_edges


def naive_scores(
    group: Group,
    chunk: int,
    edge: int,
    side: Side,
    operator_side: str,
    comparator: str,
    rows: dict[str, Tensor],
    parameters: dict[tuple[str, str], Tensor],
    log_q_scale: float,
) -> tuple[Tensor, Tensor, int]:
    """The score of a true edge, those of its negatives that count, and the number of all."""
    start, stop = group.chunks[chunk]
    direction = "reverse" if operator_side == "both" and side is Side.LHS else "forward"
    p = parameters[group.operator, direction][group.relation[edge]]
    candidates = group.candidates[side]
    anchor = rows[group.table(side.other)][group.start(side.other) + edge]
    own = rows[group.table(side)][group.start(side) : group.start(side) + group.relation.shape[0]]
    first = candidates.start if candidates.shared else candidates.start + chunk * candidates.num_global
    drawn = rows[candidates.table][first : first + candidates.num_global]
    lent = own[start : min(stop, start + candidates.num_in_batch)]
    entities = torch.cat([own[edge : edge + 1], lent, drawn])
    if operator_side in {"both", side.other.value}:
        scores = compare(comparator, operate(group.operator, anchor, p).expand_as(entities), entities)
    else:
        scores = compare(
            comparator, anchor.expand_as(entities), operate(group.operator, entities, p.expand(len(entities), -1))
        )
    positive, negatives = scores[0], scores[1:]
    if candidates.log_expected is not None:
        negatives = negatives - log_q_scale * candidates.log_expected[chunk]
    masked_edges, columns = candidates.masked[chunk]
    keep = torch.ones(len(negatives), dtype=torch.bool)
    keep[columns[masked_edges == edge - start]] = False
    return positive, negatives[keep], len(negatives)
