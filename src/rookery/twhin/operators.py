"""Relation operators with hand-written gradients.

An operator maps vectors ``x [E, D]`` to ``[E, D]`` with parameters ``p``: ``[E, W]``, or ``[1, W]`` where all edges
share a relation. For training
against shared candidates the operated side must be free of the candidate: ``adjoint`` moves the operator across
a dot product, ``inverse`` across a distance.

    translation        x + p          Bordes et al. 2013
    identity           x              no parameters
    diagonal           x * p          Yang et al. 2015 (DistMult, with dot)
    complex_diagonal   x * p in C     Trouillon et al. 2016 (ComplEx, with dot); real parts first, then imaginary
    linear             P x            Nickel et al. 2011 (RESCAL, with dot); p holds P row by row
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Operator(Protocol):
    """One kind of operator. ``x``, ``t``, ``grad``: ``[E, D]``; ``p``: ``[E, W]`` or ``[1, W]``, ``W = width(D)``."""

    has_inverse: bool
    one_relation_a_call: bool

    def width(self, dim: int) -> int:
        """Numbers per relation."""
        ...

    def identity_parameters(self, dim: int) -> Tensor:
        """The parameters ``[W]`` that leave vectors as they are."""
        ...

    def apply(self, x: Tensor, p: Tensor) -> Tensor: ...

    def backward(self, grad: Tensor, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients ``(x [E, D], p)`` of ``apply``; that of ``p`` may have a row an edge where ``p`` has one row."""
        ...

    def adjoint(self, t: Tensor, p: Tensor) -> tuple[Tensor, Tensor | None]:
        """``(q [E, D], b [E] or None)`` with ``<apply(x, p), t> = <x, q> + b`` for every x."""
        ...

    def adjoint_backward(self, grad: Tensor, grad_bias: Tensor | None, t: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients ``(t, p)`` of ``adjoint``."""
        ...

    def inverse(self, t: Tensor, p: Tensor) -> Tensor:
        """``q`` with ``|apply(x, p) - t| = |x - q|`` for every x, where ``has_inverse``."""
        ...

    def inverse_backward(self, grad: Tensor, t: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients ``(t, p)`` of ``inverse``."""
        ...


class _NoInverse:
    """Operators that change distances: candidates on the operated side are transformed one by one."""

    has_inverse = False
    one_relation_a_call = False

    def inverse(self, t: Tensor, p: Tensor) -> Tensor:
        raise AssertionError(f"{type(self).__name__} has no inverse")

    def inverse_backward(self, grad: Tensor, t: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError(f"{type(self).__name__} has no inverse")


class Translation:
    has_inverse = True
    one_relation_a_call = False

    def width(self, dim: int) -> int:
        return dim

    def identity_parameters(self, dim: int) -> Tensor:
        return torch.zeros(dim)

    def apply(self, x: Tensor, p: Tensor) -> Tensor:
        return x + p

    def backward(self, grad: Tensor, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad

    def adjoint(self, t: Tensor, p: Tensor) -> tuple[Tensor, Tensor | None]:
        return t, row_dot(t, p)

    def adjoint_backward(self, grad: Tensor, grad_bias: Tensor | None, t: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        assert grad_bias is not None
        column = grad_bias.unsqueeze(1)
        return torch.addcmul(grad, column, p), column * t

    def inverse(self, t: Tensor, p: Tensor) -> Tensor:
        return t - p

    def inverse_backward(self, grad: Tensor, t: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        return grad, -grad


class Identity:
    has_inverse = True
    one_relation_a_call = False

    def width(self, dim: int) -> int:
        return 0

    def identity_parameters(self, dim: int) -> Tensor:
        return torch.zeros(0)

    def apply(self, x: Tensor, p: Tensor) -> Tensor:
        return x

    def backward(self, grad: Tensor, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        return grad, torch.zeros_like(p)

    def adjoint(self, t: Tensor, p: Tensor) -> tuple[Tensor, Tensor | None]:
        return t, None

    def adjoint_backward(self, grad: Tensor, grad_bias: Tensor | None, t: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        return grad, torch.zeros_like(p)

    def inverse(self, t: Tensor, p: Tensor) -> Tensor:
        return t

    def inverse_backward(self, grad: Tensor, t: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        return grad, torch.zeros_like(p)


class Diagonal(_NoInverse):
    def width(self, dim: int) -> int:
        return dim

    def identity_parameters(self, dim: int) -> Tensor:
        return torch.ones(dim)

    def apply(self, x: Tensor, p: Tensor) -> Tensor:
        return x * p

    def backward(self, grad: Tensor, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        return grad * p, grad * x

    def adjoint(self, t: Tensor, p: Tensor) -> tuple[Tensor, Tensor | None]:
        return t * p, None

    def adjoint_backward(self, grad: Tensor, grad_bias: Tensor | None, t: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        return grad * p, grad * t


class ComplexDiagonal(_NoInverse):
    def width(self, dim: int) -> int:
        return dim

    def identity_parameters(self, dim: int) -> Tensor:
        return torch.cat([torch.ones(dim // 2), torch.zeros(dim // 2)])

    def apply(self, x: Tensor, p: Tensor) -> Tensor:
        return complex_product(x, p)

    def backward(self, grad: Tensor, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        return complex_product_conjugate(grad, p), complex_product_conjugate(grad, x)

    def adjoint(self, t: Tensor, p: Tensor) -> tuple[Tensor, Tensor | None]:
        return complex_product_conjugate(t, p), None

    def adjoint_backward(self, grad: Tensor, grad_bias: Tensor | None, t: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        return complex_product(grad, p), complex_product_conjugate(t, grad)


class Linear(_NoInverse):
    """One matrix per relation, so all edges of a call share their relation: ``p`` is ``[1, D * D]``."""

    one_relation_a_call = True

    def width(self, dim: int) -> int:
        return dim * dim

    def identity_parameters(self, dim: int) -> Tensor:
        return torch.eye(dim).flatten()

    def apply(self, x: Tensor, p: Tensor) -> Tensor:
        return x @ _matrix(p).T

    def backward(self, grad: Tensor, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        return grad @ _matrix(p), (grad.T @ x).view(1, -1)

    def adjoint(self, t: Tensor, p: Tensor) -> tuple[Tensor, Tensor | None]:
        return t @ _matrix(p), None

    def adjoint_backward(self, grad: Tensor, grad_bias: Tensor | None, t: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        return grad @ _matrix(p).T, (t.T @ grad).view(1, -1)


def row_dot(a: Tensor, b: Tensor) -> Tensor:
    """``<a_i, b_i>`` per row: ``[E, D], [E, D] -> [E]``; faster on a CPU than a product and a sum."""
    products: Tensor = torch.linalg.vecdot(a, b)
    return products


def complex_product(a: Tensor, b: Tensor) -> Tensor:
    """``a * b`` of complex rows ``[E, D]`` laid out as real half, imaginary half."""
    (a_re, a_im), (b_re, b_im) = a.chunk(2, dim=1), b.chunk(2, dim=1)
    out = torch.empty_like(a)
    real, imaginary = out.chunk(2, dim=1)
    torch.mul(a_re, b_re, out=real).addcmul_(a_im, b_im, value=-1)
    torch.mul(a_re, b_im, out=imaginary).addcmul_(a_im, b_re)
    return out


def complex_product_conjugate(a: Tensor, b: Tensor) -> Tensor:
    """``a * conj(b)`` of complex rows ``[E, D]``."""
    (a_re, a_im), (b_re, b_im) = a.chunk(2, dim=1), b.chunk(2, dim=1)
    out = torch.empty_like(a)
    real, imaginary = out.chunk(2, dim=1)
    torch.mul(a_re, b_re, out=real).addcmul_(a_im, b_im)
    torch.mul(a_im, b_re, out=imaginary).addcmul_(a_re, b_im, value=-1)
    return out


def _matrix(p: Tensor) -> Tensor:
    dim = round(p.shape[1] ** 0.5)
    return p.view(dim, dim)


OPERATORS: dict[str, Operator] = {
    "translation": Translation(),
    "identity": Identity(),
    "diagonal": Diagonal(),
    "complex_diagonal": ComplexDiagonal(),
    "linear": Linear(),
}
