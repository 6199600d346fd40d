"""Pooled lists against loops over their elements."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rookery.nn.pooling import Pooling, TargetAttention, pool

LENGTHS = (3, 0, 5, 1)
BATCH, LENGTH, DIM = len(LENGTHS), 5, 4
each_pooling = pytest.mark.parametrize("how", ["mean", "sum", "max"])


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lists() -> tuple[Tensor, Tensor]:
    """Vectors, and a mask whose gaps are anywhere in a list."""
    mask = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    for row, length in enumerate(LENGTHS):
        mask[row, torch.randperm(LENGTH, generator=torch.Generator().manual_seed(row))[:length]] = True
    return random(0, BATCH, LENGTH, DIM), mask


def naive_pool(vectors: Tensor, mask: Tensor, how: str) -> Tensor:
    rows = []
    for row, counted in zip(vectors, mask, strict=True):
        chosen = [vector for vector, counts in zip(row, counted, strict=True) if counts]
        if not chosen:
            rows.append(torch.zeros_like(row[0]))
        elif how == "max":
            rows.append(torch.stack(chosen).max(0).values)
        else:
            rows.append(sum(chosen[1:], chosen[0]) / (len(chosen) if how == "mean" else 1))
    return torch.stack(rows)


def naive_attention(attention: TargetAttention, query: Tensor, vectors: Tensor, mask: Tensor) -> Tensor:
    rows = []
    for q, row, counted in zip(query, vectors, mask, strict=True):
        chosen = [vector for vector, counts in zip(row, counted, strict=True) if counts]
        scores = []
        for v in chosen:
            hidden = attention.hidden.weight @ torch.cat([q, v, q - v, q * v]) + attention.hidden.bias
            scores.append((attention.score.weight[0] @ hidden.clamp(min=0) + attention.score.bias[0]).exp())
        total = 1 + sum(scores)
        rows.append(sum((s / total * v for s, v in zip(scores, chosen, strict=True)), torch.zeros_like(q)))
    return torch.stack(rows)


def build(dim: int = DIM) -> TargetAttention:
    torch.manual_seed(0)
    attention = TargetAttention(dim)
    torch.nn.init.normal_(attention.hidden.bias)
    torch.nn.init.constant_(attention.score.bias, 0.7)
    return attention


def assert_same_gradients(
    ours: Callable[..., Tensor], naive: Callable[..., Tensor], leaves: list[Tensor], atol: float = 1e-9
) -> None:
    out, expected = ours(), naive()
    torch.testing.assert_close(out, expected, rtol=0, atol=atol)
    coefficients = random(9, *out.shape).to(out)
    found, wanted = (torch.autograd.grad((y * coefficients).sum(), leaves) for y in (out, expected))
    for our, their in zip(found, wanted, strict=True):
        assert their.abs().max() > 1e-3
        torch.testing.assert_close(our, their, rtol=0, atol=atol)


@each_pooling
def test_pooling(how: Pooling) -> None:
    vectors, mask = lists()
    vectors = vectors.double().requires_grad_()
    assert_same_gradients(lambda: pool(vectors, mask, how), lambda: naive_pool(vectors, mask, how), [vectors])


def test_attention() -> None:
    attention = build().double()
    vectors, mask = lists()
    vectors, query = vectors.double().requires_grad_(), random(1, BATCH, DIM).double().requires_grad_()
    assert_same_gradients(
        lambda: attention(query, vectors, mask),
        lambda: naive_attention(attention, query, vectors, mask),
        [query, vectors, *attention.parameters()],
    )


def pooled(how: str, vectors: Tensor, mask: Tensor) -> Tensor:
    if how == "attention":
        return build()(random(1, BATCH, DIM)[: len(vectors)], vectors, mask)
    return pool(vectors, mask, how)  # type: ignore[arg-type]


every = pytest.mark.parametrize("how", ["mean", "sum", "max", "attention"])


@every
@pytest.mark.parametrize("filler", [0.0, -3e38, torch.nan, torch.inf])
def test_padding_counts_for_nothing(how: str, filler: float) -> None:
    vectors, mask = lists()
    filled = vectors.masked_fill(~mask.unsqueeze(2), filler).requires_grad_()
    out = pooled(how, filled, mask)
    torch.testing.assert_close(out, pooled(how, vectors, mask))
    (gradient,) = torch.autograd.grad(out.square().sum(), [filled])
    assert gradient[~mask].count_nonzero() == 0 < gradient[mask].count_nonzero()
    assert gradient.isfinite().all()


@every
def test_empty_lists_are_zeros(how: str) -> None:
    vectors = random(0, 3, LENGTH, DIM).requires_grad_()
    out = pooled(how, vectors, torch.zeros(3, LENGTH, dtype=torch.bool))
    assert out.shape == (3, DIM)
    assert out.count_nonzero() == 0
    (gradient,) = torch.autograd.grad(out.sum(), [vectors])
    assert gradient.count_nonzero() == 0 and gradient.isfinite().all()


@every
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e6])
def test_extremes(how: str, scale: float) -> None:
    vectors, mask = lists()
    vectors = (vectors * scale).requires_grad_()
    out = pooled(how, vectors, mask)
    (gradient,) = torch.autograd.grad(out.sum(), [vectors])
    assert out.isfinite().all() and gradient.isfinite().all()
    torch.testing.assert_close(pooled(how, vectors[:1], mask[:1]), out[:1])


@every
def test_bfloat16_products(how: str) -> None:
    vectors, mask = lists()
    exact = pooled(how, vectors, mask)
    with torch.autocast("cpu", torch.bfloat16):
        found = pooled(how, vectors, mask)
    torch.testing.assert_close(found.float(), exact, rtol=0.02, atol=0.02)


@every
def test_it_exports_for_any_number_of_rows(how: str) -> None:
    class Pool(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = build()

        def forward(self, query: Tensor, vectors: Tensor, mask: Tensor) -> Tensor:
            if how == "attention":
                attended: Tensor = self.attention(query, vectors, mask)
                return attended
            return pool(vectors, mask, how)  # type: ignore[arg-type]

    rows = {0: torch.export.Dim("batch")}
    module, query, (vectors, mask) = Pool(), random(1, BATCH, DIM), lists()
    exported = torch.export.export(module, (query, vectors, mask), dynamic_shapes=(rows,) * 3, strict=False).module()
    for chosen in (slice(0, 1), slice(1, 2), slice(0, BATCH)):
        inputs = query[chosen], vectors[chosen], mask[chosen]
        torch.testing.assert_close(exported(*inputs), module(*inputs))


def test_attention_learns_which_elements_fit_the_query() -> None:
    """The wanted vector is the mean of those elements whose first number has the sign of the query's."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    attention = TargetAttention(DIM)
    optimizer = torch.optim.Adam(attention.parameters(), lr=0.03)
    mask = torch.ones(128, LENGTH, dtype=torch.bool)
    losses = []
    for _ in range(80):
        query, vectors = torch.randn(128, DIM, generator=generator), torch.randn(128, LENGTH, DIM, generator=generator)
        fits = vectors[:, :, 0].sign() == query[:, :1].sign()
        loss = (attention(query, vectors, mask) - pool(vectors, fits, "mean")).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
