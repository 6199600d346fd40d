"""Comparators with hand-written gradients: how alike two vectors are; larger is more alike.

    dot      <q, c>
    cosine   <q, c> / (|q| |c|)
    l2       -|q - c|
    l1       -sum |q - c|

``pairwise`` scores every query against every candidate of a chunk, ``aligned`` each query against its own partner.
A comparator first maps vectors to the form that its products need (``prepare``: cosine divides by the norm), so
that a chunk pays for it once however many products follow.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from rookery.twhin.operators import row_dot

# Below this distance the direction of the gradient of |q - c| is noise; it is left at 0 there.
_MIN_DISTANCE = 1e-6
_MIN_NORM = 1e-12
# A squared distance below this share of |q|^2 has lost its digits in |q|^2 + |c|^2 - 2 <q, c>; it is computed again.
_CANCELLED = 1e-4


class Comparator(Protocol):
    """``q`` is ``[E, D]``, ``c`` is ``[N, D]``, ``x`` is ``[E, D]``; all prepared.

    ``q`` and ``c`` may come in bf16 for the pairwise products where ``half_products`` allows it; scores and gradients
    are float32 in any case.
    """

    half_products: bool
    needs_scores: bool

    def prepare(self, x: Tensor) -> Tensor: ...

    def prepare_backward(self, grad: Tensor, x: Tensor, prepared: Tensor) -> Tensor:
        """Gradient of ``prepare``; may overwrite ``grad``."""
        ...

    def pairwise(self, q: Tensor, c: Tensor) -> Tensor:
        """Scores ``[E, N]`` in float32."""
        ...

    def pairwise_backward(
        self, grad: Tensor, scores: Tensor, q: Tensor, c: Tensor, into_c: Tensor, beta: int
    ) -> Tensor:
        """Gradient by ``q`` ``[E, D]``; that by ``c`` is added to ``into_c [N, D]`` (``beta`` 1) or overwrites it (0).

        ``scores`` is what ``pairwise`` gave, where ``needs_scores``.
        """
        ...

    def aligned(self, q: Tensor, x: Tensor) -> Tensor:
        """Scores ``[E]``."""
        ...

    def aligned_backward(self, grad: Tensor, scores: Tensor, q: Tensor, x: Tensor, into_q: Tensor) -> Tensor:
        """Gradient by ``x`` ``[E, D]``; that by ``q`` is added to ``into_q [E, D]``."""
        ...


class _AsTheyAre:
    """Comparators whose products take vectors as they are."""

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def prepare_backward(self, grad: Tensor, x: Tensor, prepared: Tensor) -> Tensor:
        return grad


class Dot(_AsTheyAre):
    half_products = True
    needs_scores = False

    def pairwise(self, q: Tensor, c: Tensor) -> Tensor:
        return (q @ c.T).float()

    def pairwise_backward(
        self, grad: Tensor, scores: Tensor, q: Tensor, c: Tensor, into_c: Tensor, beta: int
    ) -> Tensor:
        grad = grad.to(q.dtype)
        if q.dtype == torch.float32:
            into_c.addmm_(grad.T, q, beta=beta)
        elif beta:
            into_c.add_(grad.T @ q)
        else:
            into_c.copy_(grad.T @ q)
        return (grad @ c).float()

    def aligned(self, q: Tensor, x: Tensor) -> Tensor:
        return row_dot(q, x)

    def aligned_backward(self, grad: Tensor, scores: Tensor, q: Tensor, x: Tensor, into_q: Tensor) -> Tensor:
        column = grad.unsqueeze(1)
        into_q.addcmul_(column, x)
        return column * q


class Cosine(Dot):
    def prepare(self, x: Tensor) -> Tensor:
        return x / _norms(x)

    def prepare_backward(self, grad: Tensor, x: Tensor, prepared: Tensor) -> Tensor:
        along = row_dot(grad, prepared).unsqueeze(1)
        return grad.addcmul_(along, prepared, value=-1).div_(_norms(x))


class L2(_AsTheyAre):
    """Products stay float32: the distance of near neighbours is a small difference of large products."""

    half_products = False
    needs_scores = True

    def pairwise(self, q: Tensor, c: Tensor) -> Tensor:
        own = _squares(q)
        squares = torch.addmm(_squares(c), q, c.T, alpha=-2).add_(own.unsqueeze(1))
        edges, columns = torch.nonzero(squares < (own * _CANCELLED).unsqueeze(1), as_tuple=True)
        squares[edges, columns] = (q[edges] - c[columns]).square_().sum(1)
        return squares.sqrt_().neg_()

    def pairwise_backward(
        self, grad: Tensor, scores: Tensor, q: Tensor, c: Tensor, into_c: Tensor, beta: int
    ) -> Tensor:
        pull = _over_distance(grad, scores)  # d score / d q = (c - q) / distance
        into_c.addmm_(pull.T, q, beta=beta).addcmul_(pull.sum(0).unsqueeze(1), c, value=-1)
        return torch.mm(pull, c).addcmul_(pull.sum(1, keepdim=True), q, value=-1)

    def aligned(self, q: Tensor, x: Tensor) -> Tensor:
        return _norms(q - x).squeeze(1).neg_()

    def aligned_backward(self, grad: Tensor, scores: Tensor, q: Tensor, x: Tensor, into_q: Tensor) -> Tensor:
        grad_q = (x - q).mul_(_over_distance(grad, scores).unsqueeze(1))
        into_q.add_(grad_q)
        return grad_q.neg_()


class L1(_AsTheyAre):
    """No matrix product computes it: about 20 times the cost of the others."""

    half_products = False
    needs_scores = True

    def pairwise(self, q: Tensor, c: Tensor) -> Tensor:
        return torch.cdist(q, c, p=1.0).neg_()

    def pairwise_backward(
        self, grad: Tensor, scores: Tensor, q: Tensor, c: Tensor, into_c: Tensor, beta: int
    ) -> Tensor:
        distances, toward = -scores, -grad
        by_c = _cdist_backward(toward.T.contiguous(), c, q, distances.T.contiguous())
        if beta:
            into_c.add_(by_c)
        else:
            into_c.copy_(by_c)
        return _cdist_backward(toward, q, c, distances)

    def aligned(self, q: Tensor, x: Tensor) -> Tensor:
        return (q - x).abs_().sum(1).neg_()

    def aligned_backward(self, grad: Tensor, scores: Tensor, q: Tensor, x: Tensor, into_q: Tensor) -> Tensor:
        grad_q = torch.sign(x - q).mul_(grad.unsqueeze(1))
        into_q.add_(grad_q)
        return grad_q.neg_()


def _norms(x: Tensor) -> Tensor:
    """``[E, 1]``, never 0."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return norms.clamp_min_(_MIN_NORM)


def _cdist_backward(grad: Tensor, q: Tensor, c: Tensor, distances: Tensor) -> Tensor:
    """Gradient by ``q`` of ``torch.cdist(q, c, p=1)``: the kernel that autograd calls for it."""
    by_q: Tensor = torch.ops.aten._cdist_backward(grad, q, c, 1.0, distances)  # noqa: SLF001
    return by_q


def _squares(x: Tensor) -> Tensor:
    return row_dot(x, x)


def _over_distance(grad: Tensor, scores: Tensor) -> Tensor:
    return (grad / scores.neg().clamp_min_(_MIN_DISTANCE)).masked_fill_(scores > -_MIN_DISTANCE, 0.0)


COMPARATORS: dict[str, Comparator] = {"dot": Dot(), "cosine": Cosine(), "l2": L2(), "l1": L1()}
