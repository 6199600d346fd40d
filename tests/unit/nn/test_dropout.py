"""What dropout zeroes: how much, what becomes of the rest, and that lanes decide it, not batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from rookery.nn.dropout import Draws, Dropout, as_draws, draw_from, numbered_dropouts

SEEDS = (5, 2**64 - 1, 2**63)
ROWS = (7, 0, 5)


def make(rate: float, *seeds: int, rows: tuple[int, ...] = ROWS) -> Dropout:
    dropout = Dropout(rate)
    dropout.draws = as_draws(seeds or SEEDS, rows)
    return dropout


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape)


@pytest.mark.parametrize("rate", [0.0, 2**-40, 0.1, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("has_draws", [True, False])
def test_elements_are_kept_with_the_complement_of_the_rate(rate: float, has_draws: bool) -> None:
    dropout = Dropout(rate)
    if has_draws:
        dropout.draws = as_draws((1, 2), (501, 500))
    torch.manual_seed(0)
    kept = dropout.kept(ones(1001, 301))
    assert set(kept.unique().tolist()) <= {0.0, 1.0}
    deviation = (rate * (1 - rate) / kept.numel()) ** 0.5
    assert abs(kept.double().mean().item() - (1 - rate)) <= 4 * deviation
    by_row, by_column = kept.double().mean(1), kept.double().mean(0)
    assert (by_row - (1 - rate)).abs().max() <= 5 * deviation * 1001**0.5
    assert (by_column - (1 - rate)).abs().max() <= 5 * deviation * 301**0.5


def test_neighbours_are_drawn_apart() -> None:
    """The two numbers that come of one of 64 bits, and elements of neighbouring rows, lanes and layers."""
    kept = make(0.5, 1, 2, rows=(500, 500)).kept(ones(1000, 200)).double() - 0.5
    other = Dropout(0.5)
    other.number, other.draws = 1, as_draws((1, 2), (500, 500))
    drawn = other.kept(ones(1000, 200)).double() - 0.5
    pairs = {
        "columns": (kept[:, 1:], kept[:, :-1]),
        "rows": (kept[1:], kept[:-1]),
        "lanes": (kept[:500], kept[500:]),
        "layers": (kept, drawn),
    }
    for name, (left, right) in pairs.items():
        correlation = 4 * (left * right).mean()
        assert abs(correlation) < 4 / left.numel() ** 0.5, name


def test_the_kept_are_divided_by_their_share_and_so_are_gradients() -> None:
    dropout, x = make(0.3), torch.randn(12, 4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = dropout(x)
    kept = dropout.kept(x.detach())
    assert 0 < kept.mean() < 1
    torch.testing.assert_close(out, x * kept / 0.7)
    weight = torch.randn_like(x)
    (out * weight).sum().backward()
    torch.testing.assert_close(x.grad, weight * kept / 0.7)


def test_outside_of_training_nothing_is_dropped() -> None:
    x = ones(12, 3)
    assert make(0.9).eval()(x) is x
    assert make(0.0)(x) is x


@pytest.mark.parametrize("shape", [(), (3,), (5, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_a_lane_loses_the_same_wherever_it_is(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Whole batches, parts of them, other lanes beside: the same elements, whatever the memory looks like."""
    like = torch.ones(12, *shape, dtype=dtype)
    whole = make(0.5).kept(like)
    assert whole.dtype == dtype
    parts = [
        make(0.5, seed, rows=(rows,)).kept(part)
        for seed, rows, part in zip(SEEDS, ROWS, like.split(list(ROWS)), strict=True)
    ]
    assert torch.equal(torch.cat(parts), whole)
    if shape:
        strided = torch.ones(*shape, 12, dtype=dtype).movedim(-1, 0)
        assert torch.equal(make(0.5).kept(strided), whole)


def test_lanes_seeds_and_layers_draw_other_numbers() -> None:
    like = ones(12, 40)
    whole = make(0.5).kept(like)
    assert torch.equal(make(0.5).kept(like), whole)
    assert not torch.equal(make(0.5, 6, *SEEDS[1:]).kept(like)[:7], whole[:7])
    network = nn.Sequential(make(0.5), nn.Sequential(make(0.5)), make(0.5))
    assert [dropout.number for dropout in numbered_dropouts(network)] == [0, 1, 2]
    drawn = [dropout.kept(like) for dropout in numbered_dropouts(network)]
    assert torch.equal(drawn[0], whole)
    assert not torch.equal(drawn[1], whole)
    assert not torch.equal(drawn[2], drawn[1])


def test_rows_that_no_lane_has_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="split"):
        make(0.5).kept(ones(13, 2))


def test_no_rows() -> None:
    assert make(0.5, rows=(0, 0, 0))(torch.ones(0, 4)).shape == (0, 4)
    none = Dropout(0.5)
    none.draws = as_draws((), ())
    assert none(torch.ones(0, 4)).shape == (0, 4)


def test_with_draws_nothing_comes_from_the_generator_of_torch() -> None:
    before = torch.get_rng_state()
    make(0.5)(ones(12, 3))
    assert torch.equal(torch.get_rng_state(), before)
    Dropout(0.5)(ones(12, 3))
    assert not torch.equal(torch.get_rng_state(), before)


# torch's compiler imports parts of torch that torch itself deprecates, and looks at gradients of inputs.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_compiled_it_drops_the_same_and_new_draws_compile_nothing() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), Dropout(0.5), nn.Linear(6, 6), Dropout(0.2))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

    torch.manual_seed(0)
    network = Network()
    dropouts = numbered_dropouts(network)

    def moved(compute: nn.Module, draws: Draws, x: Tensor) -> list[Tensor]:
        draw_from(dropouts, draws)
        network.zero_grad()
        out = compute(x)
        out.square().sum().backward()
        return [out, *(parameter.grad.clone() for parameter in network.parameters())]

    compiled = torch.compile(network, dynamic=True)
    graphs = []
    for step, rows in enumerate([(7, 5), (7, 5), (6, 7), (9, 9), (3, 1)]):
        draws, x = as_draws((3 * step, 3 * step + 1), rows), torch.randn(sum(rows), 4)
        for ours, plain in zip(moved(compiled, draws, x), moved(network, draws, x), strict=True):
            torch.testing.assert_close(ours, plain)
        graphs.append(counters["stats"]["unique_graphs"])
    assert len(set(graphs)) == 1
    torch._dynamo.reset()
