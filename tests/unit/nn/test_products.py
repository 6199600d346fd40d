"""Products by oneDNN against those that torch makes: values and gradients, whatever the strides."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rookery.nn import products

BATCH, NUM, IN, OUT = 37, 3, 19, 23


@pytest.fixture(autouse=True)
def _onednn_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small products too, on any processor that torch has oneDNN for."""
    assert torch.backends.mkldnn.is_available()
    monkeypatch.setattr(products, "_MIN_SIZE", 0)
    monkeypatch.setattr(products, "has_onednn", lambda: True)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive_batched(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.stack([functional.linear(x[:, i], weight[i], bias[i]) for i in range(NUM)], dim=1)


def assert_same(ours: Callable[..., Tensor], naive: Callable[..., Tensor], *operands: Tensor) -> None:
    mine, theirs = ([each.clone().requires_grad_() for each in operands] for _ in range(2))
    out, expected = ours(*mine), naive(*theirs)
    assert out.grad_fn is not None
    torch.testing.assert_close(out, expected)
    weights = normal(*expected.shape, seed=9)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)
        assert one.grad.abs().max() > 0


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda x: x,
    "columns of a wider one": lambda x: torch.cat([x, x], dim=1)[:, 5 : 5 + IN],
    "transposed": lambda x: x.t().contiguous().t(),
    "every other row": lambda x: x.repeat_interleave(2, dim=0)[::2],
    "one row repeated": lambda x: x[:1].expand(BATCH, IN),
}


@pytest.mark.parametrize("view", list(VIEWS))
def test_linear(view: str) -> None:
    assert "OneDnn" in products.linear(normal(2, IN).requires_grad_(), normal(OUT, IN), normal(OUT)).grad_fn.name()
    assert_same(
        lambda x, w, b: products.linear(VIEWS[view](x), w, b),
        lambda x, w, b: functional.linear(VIEWS[view](x), w, b),
        *(normal(BATCH, IN), normal(OUT, IN, seed=1), normal(OUT, seed=2)),
    )


def test_wide_linear() -> None:
    assert_same(
        products.wide_linear,
        lambda x, w, b: naive_batched(x.unsqueeze(1).expand(-1, NUM, -1), w, b),
        *(normal(BATCH, IN), normal(NUM, OUT, IN, seed=1), normal(NUM, OUT, seed=2)),
    )


@pytest.mark.parametrize("rows_together", [True, False])
def test_batched_linear(rows_together: bool) -> None:
    def laid_out(x: Tensor) -> Tensor:
        return x if rows_together else x.transpose(0, 1).contiguous().transpose(0, 1)

    assert_same(
        lambda x, w, b: products.batched_linear(laid_out(x), w, b),
        naive_batched,
        *(normal(BATCH, NUM, IN), normal(NUM, OUT, IN, seed=1), normal(NUM, OUT, seed=2)),
    )


def test_only_gradients_that_are_asked_for() -> None:
    x, weight, bias = normal(BATCH, IN), normal(OUT, IN, seed=1).requires_grad_(), normal(OUT, seed=2)
    products.linear(x, weight, bias).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(OUT, IN))
    assert x.grad is None and bias.grad is None


def test_a_gradient_that_is_the_same_everywhere() -> None:
    """``sum`` hands down one number with strides of 0."""
    x = normal(BATCH, NUM, IN).requires_grad_()
    weight = normal(NUM, OUT, IN, seed=1)
    products.batched_linear(x, weight, normal(NUM, OUT, seed=2)).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(1).expand(BATCH, NUM, IN))


def test_half_precision_and_exports_keep_to_torch() -> None:
    x, weight, bias = normal(BATCH, IN), normal(OUT, IN, seed=1), normal(OUT, seed=2)
    with torch.autocast("cpu", torch.bfloat16):
        assert products.linear(x, weight, bias).dtype == torch.bfloat16

    class Layer(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return products.batched_linear(products.wide_linear(x, stacked, biases), square, biases)

    stacked, square, biases = normal(NUM, OUT, IN), normal(NUM, OUT, OUT), normal(NUM, OUT)
    exported = torch.export.export(Layer(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert "mkldnn" not in exported.graph_module.code
    torch.testing.assert_close(exported.module()(x[:5]), Layer()(x[:5]))
