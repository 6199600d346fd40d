"""The local back end against a naive float64 table."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rookery.optim.config import (
    Adagrad,
    Adam,
    LearningRateConfig,
    LinearRampToConstant,
    OptimizerConfig,
    RowwiseAdagrad,
    Sgd,
)
from rookery.optim.rows import make_row_optimizer
from rookery.optim.schedules import optimizer_schedule
from rookery.tables.local import LocalTables, sum_by_row
from rookery.tables.protocol import TableSpec, initial_weight

SEED = 7
OPTIMIZERS = {
    "sgd": OptimizerConfig(sgd=Sgd(lr=0.1)),
    "momentum": OptimizerConfig(sgd=Sgd(lr=0.1, momentum=0.9)),
    "adagrad": OptimizerConfig(adagrad=Adagrad(lr=0.1)),
    "rowwise_adagrad": OptimizerConfig(rowwise_adagrad=RowwiseAdagrad(lr=0.1)),
    "adam": OptimizerConfig(adam=Adam(lr=0.01)),
}
each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
HALF = (torch.float16, torch.bfloat16)


def batch(step: int, num_ids: int = 40, dim: int = 8, num_embeddings: int = 20) -> tuple[Tensor, Tensor]:
    """Ids with repeats, half of the table absent in each batch, and a gradient for each."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, num_embeddings // 2, (num_ids,), generator=generator) * 2 + step % 2
    return ids, torch.randn(num_ids, dim, generator=generator)


def backward(tables: LocalTables, name: str, ids: Tensor, gradient: Tensor) -> None:
    tables.lookup({name: ids})[name].backward(gradient)


def state_copy(tables: LocalTables) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return copy.deepcopy((tables.weights(), tables.optimizer_state()))


def test_every_optimizer_of_the_config_is_tested_here():
    kinds = {optimizer.kind for optimizer in OPTIMIZERS.values()}
    assert kinds == set(OptimizerConfig.one_of[0].fields)


@each_optimizer
def test_moves_rows_by_the_formula_of_the_optimizer(make_spec, naive, optimizer):
    specs = [make_spec("user", optimizer), make_spec("items", optimizer, num_embeddings=30, embedding_dim=5)]
    tables, references = LocalTables(specs, seed=SEED), {spec.name: naive(spec) for spec in specs}
    for step in range(30):
        gradients = {"user": batch(step), "items": batch(step + 100, 25, dim=5, num_embeddings=30)}
        rows = tables.lookup({name: ids for name, (ids, _) in gradients.items()})
        torch.autograd.backward(list(rows.values()), [gradients[name][1] for name in rows])
        for name, (ids, gradient) in gradients.items():
            references[name].step(ids, gradient, learning_rate=optimizer.chosen.lr)
    for name, reference in references.items():
        torch.testing.assert_close(tables.rows(name).double(), reference.weight, rtol=0, atol=5e-6)


@each_optimizer
def test_state_has_the_names_and_values_of_the_protocol(make_spec, naive, optimizer):
    spec = make_spec("user", optimizer)
    tables, reference = LocalTables([spec], seed=SEED), naive(spec)
    for step in range(5):
        backward(tables, "user", *batch(step))
        reference.step(*batch(step), learning_rate=optimizer.chosen.lr)
    expected = {
        "sgd": {},
        "momentum": {"user.momentum": reference.momentum},
        "adagrad": {"user.sum": reference.sum},
        "rowwise_adagrad": {"user.sum": reference.row_sum},
        "adam": {"user.exp_avg": reference.exp_avg, "user.exp_avg_sq": reference.exp_avg_sq, "user.step": 5},
    }[next(name for name in OPTIMIZERS if OPTIMIZERS[name] is optimizer)]
    state = tables.optimizer_state()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name].double(), torch.as_tensor(value).double(), rtol=1e-5, atol=1e-6)


def test_adam_is_torch_adam_when_every_row_is_in_every_batch(make_spec):
    spec = make_spec("user", OPTIMIZERS["adam"])
    tables = LocalTables([spec], seed=SEED)
    dense = torch.nn.Parameter(initial_weight(spec, SEED))
    adam = torch.optim.Adam([dense], lr=0.01)
    for step in range(20):
        gradient = torch.randn(20, 8, generator=torch.Generator().manual_seed(step))
        backward(tables, "user", torch.arange(20), gradient)
        dense.grad = gradient
        adam.step()
    torch.testing.assert_close(tables.rows("user"), dense.detach(), rtol=0, atol=1e-6)


@each_optimizer
def test_rows_absent_from_the_batch_and_tables_absent_from_the_lookup_stay(make_spec, optimizer):
    tables = LocalTables([make_spec("user", optimizer), make_spec("item", optimizer)], seed=SEED)
    backward(tables, "user", *batch(0))
    backward(tables, "item", *batch(0))
    weights, state = state_copy(tables)
    backward(tables, "user", torch.tensor([2, 2, 5]), torch.ones(3, 8))
    moved = (tables.rows("user") != weights["user"]).any(dim=1).nonzero().flatten()
    assert moved.tolist() == [2, 5]
    assert torch.equal(tables.rows("item"), weights["item"])
    for name, tensor in tables.optimizer_state().items():
        if name.startswith("item."):
            assert torch.equal(tensor, state[name])


@each_optimizer
def test_empty_batch_moves_nothing(make_spec, optimizer):
    tables = LocalTables([make_spec("user", optimizer)], seed=SEED)
    weights, state = state_copy(tables)
    rows = tables.lookup({"user": torch.empty(0, dtype=torch.int64)})["user"]
    assert rows.shape == (0, 8)
    rows.sum().backward()
    assert torch.equal(tables.rows("user"), weights["user"])
    assert all(torch.equal(tensor, state[name]) for name, tensor in tables.optimizer_state().items())


@pytest.mark.parametrize("kind", ["adagrad", "rowwise_adagrad"])
def test_gradient_of_zero_moves_nothing_even_without_eps(make_spec, kind):
    chosen = {"adagrad": Adagrad(eps=0.0), "rowwise_adagrad": RowwiseAdagrad(eps=0.0)}[kind]
    tables = LocalTables([make_spec("user", OptimizerConfig(**{kind: chosen}))], seed=SEED)
    before = tables.rows("user").clone()
    backward(tables, "user", torch.tensor([1]), torch.zeros(1, 8))
    assert torch.equal(tables.rows("user"), before)


def test_lookup_returns_rows_in_the_order_of_the_ids(make_spec):
    tables = LocalTables([make_spec("user", OPTIMIZERS["sgd"])], seed=SEED)
    ids = torch.tensor([3, 0, 3, 19, 7])
    rows = tables.lookup({"user": ids})["user"]
    assert rows.requires_grad
    assert torch.equal(rows, tables.rows("user")[ids])


@pytest.mark.parametrize("row", [20, -1])
def test_id_out_of_range_is_an_error(make_spec, row):
    tables = LocalTables([make_spec("user", OPTIMIZERS["sgd"])], seed=SEED)
    with pytest.raises(IndexError):
        tables.lookup({"user": torch.tensor([1, row])})


def test_rows_is_a_view_without_gradient(make_spec):
    tables = LocalTables([make_spec("user", OPTIMIZERS["sgd"])], seed=SEED)
    rows = tables.rows("user")
    before = rows.clone()
    assert not rows.requires_grad
    backward(tables, "user", torch.tensor([4]), torch.ones(1, 8))
    torch.testing.assert_close(rows[4], before[4] - 0.1)


def test_initial_rows_are_normal_and_depend_on_seed_and_name_alone(make_spec):
    big = make_spec("user", OPTIMIZERS["sgd"], num_embeddings=5000, init_scale=0.25)
    other = make_spec("item", OPTIMIZERS["adam"], num_embeddings=5000, init_scale=0.25)
    first, second = LocalTables([big, other], seed=1), LocalTables([other, big], seed=1)
    rows = first.rows("user")
    assert abs(rows.mean().item()) < 0.005  # standard error .00125
    assert abs(rows.std().item() - 0.25) < 0.005
    assert torch.equal(rows, second.rows("user"))
    assert not torch.equal(rows, first.rows("item"))
    assert not torch.equal(rows, LocalTables([big], seed=2).rows("user"))


def test_each_step_uses_the_rate_it_was_given(make_spec, naive):
    ramp = LearningRateConfig(linear_ramp_to_constant=LinearRampToConstant(learning_rate=0.2, num_ramp_steps=4))
    optimizer = OptimizerConfig(adagrad=Adagrad(lr=1.0), learning_rate=ramp)
    spec, rate = make_spec("user", optimizer), optimizer_schedule(optimizer)
    tables, reference = LocalTables([spec], seed=SEED), naive(spec)
    for step in range(8):
        if step > 0:  # the first rate is there from the start
            tables.set_learning_rate("user", rate(step))
        backward(tables, "user", *batch(step))
        reference.step(*batch(step), learning_rate=rate(step))
    torch.testing.assert_close(tables.rows("user").double(), reference.weight, rtol=0, atol=2e-6)


@each_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_saved_state_continues_bit_for_bit(make_spec, optimizer, dtype):
    specs = [make_spec("user", optimizer, dtype=dtype), make_spec("item", optimizer, dtype=dtype, max_norm=1.5)]
    first, second = LocalTables(specs, seed=SEED), LocalTables(specs, seed=SEED + 1)
    for step in range(10):
        for name in ("user", "item"):
            backward(first, name, batch(step)[0], batch(step)[1].to(dtype))
    weights, state = state_copy(first)
    second.load_weights(weights)
    second.load_optimizer_state(state)
    for tables in (first, second):
        for step in range(10, 20):
            for name in ("user", "item"):
                backward(tables, name, batch(step)[0], batch(step)[1].to(dtype))
    assert all(torch.equal(second.rows(name), first.rows(name)) for name in ("user", "item"))
    assert first.optimizer_state().keys() == second.optimizer_state().keys() == state.keys()
    for name, tensor in first.optimizer_state().items():
        assert torch.equal(second.optimizer_state()[name], tensor)


@each_optimizer
def test_accumulated_batches_are_one_step_of_their_sum(make_spec, naive, optimizer):
    spec = make_spec("user", optimizer)
    tables, reference = LocalTables([spec], seed=SEED), naive(spec)
    for step in range(6):
        parts = [batch(3 * step + part, num_ids=20 + part) for part in range(3)]
        before = tables.rows("user").clone()
        for position, (ids, gradient) in enumerate(parts):
            assert torch.equal(tables.rows("user"), before)
            tables.set_accumulating(position < 2)
            backward(tables, "user", ids, gradient)
        ids = torch.cat([ids for ids, _ in parts])
        reference.step(ids, torch.cat([gradient for _, gradient in parts]), learning_rate=optimizer.chosen.lr)
    torch.testing.assert_close(tables.rows("user").double(), reference.weight, rtol=0, atol=5e-6)


@each_optimizer
def test_table_absent_from_the_last_batch_is_moved_all_the_same(make_spec, optimizer):
    """A step ends with its last batch, whichever tables that batch looks up."""
    specs = [make_spec("user", optimizer), make_spec("item", optimizer)]
    split, whole = LocalTables(specs, seed=SEED), LocalTables(specs, seed=SEED)
    split.set_accumulating(True)
    backward(split, "user", *batch(0))
    split.set_accumulating(False)
    backward(split, "item", *batch(1))
    backward(whole, "user", *batch(0))
    backward(whole, "item", *batch(1))
    assert torch.equal(split.rows("user"), whole.rows("user"))
    assert torch.equal(split.rows("item"), whole.rows("item"))


@each_optimizer
def test_max_norm_shrinks_moved_rows_alone(make_spec, naive, optimizer):
    spec = make_spec("user", optimizer, max_norm=0.8, init_scale=1.0)
    tables, reference = LocalTables([spec], seed=SEED), naive(spec)
    assert (tables.rows("user").norm(dim=1) > 0.8).all()
    for step in range(0, 20, 2):  # even steps: even rows
        backward(tables, "user", *batch(step))
        reference.step(*batch(step), learning_rate=optimizer.chosen.lr)
    torch.testing.assert_close(tables.rows("user").double(), reference.weight, rtol=0, atol=5e-6)
    norms = tables.rows("user").norm(dim=1)
    assert (norms[0::2] <= 0.8 + 1e-6).all()
    assert (norms[1::2] > 0.8).all()


def test_max_norm_leaves_shorter_rows_and_rows_of_zero(make_spec):
    spec = make_spec("user", OPTIMIZERS["sgd"], max_norm=5.0)
    tables = LocalTables([spec], seed=SEED)
    tables.load_weights({"user": torch.zeros(20, 8)})
    backward(tables, "user", torch.tensor([0, 1]), torch.stack([torch.zeros(8), torch.ones(8)]))
    assert torch.equal(tables.rows("user")[0], torch.zeros(8))
    torch.testing.assert_close(tables.rows("user")[1], torch.full((8,), -0.1))


@each_optimizer
@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_row_is_one_of_the_two_neighbours_of_the_exact_one(make_spec, naive, optimizer, dtype):
    spec = make_spec("user", optimizer, dtype=dtype)
    tables, reference = LocalTables([spec], seed=SEED), naive(spec)
    ids, gradient = batch(0)
    gradient = gradient.to(dtype)
    rows = tables.lookup({"user": ids})["user"]
    assert (rows.dtype, tables.rows("user").dtype) == (torch.float32, dtype)
    rows.backward(gradient)
    reference.step(ids, gradient, learning_rate=optimizer.chosen.lr)
    unit = 2.0 ** (reference.weight.abs().log2().floor() - {torch.float16: 10, torch.bfloat16: 7}[dtype])
    error = (tables.rows("user").double() - reference.weight).abs()
    assert (error < unit + 1e-6).all()
    assert all(
        tensor.dtype in (torch.float32, torch.int64, torch.uint8) for tensor in tables.optimizer_state().values()
    )


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_moves_in_expectation_by_updates_below_its_resolution(make_spec, dtype):
    spec = make_spec("user", OPTIMIZERS["sgd"], dtype=dtype, num_embeddings=1, embedding_dim=2000)
    tables = LocalTables([spec], seed=SEED)
    tables.load_weights({"user": torch.ones(1, 2000)})
    for _ in range(100):
        backward(tables, "user", torch.tensor([0]), torch.full((1, 2000), -2e-3, dtype=dtype))
    moved = tables.rows("user").double().mean().item() - 1
    resolution = {torch.float16: 2**-10, torch.bfloat16: 2**-7}[dtype]
    assert moved == pytest.approx(100 * 2e-4, abs=4 * (100 * 2e-4 * resolution / 2000) ** 0.5)


@settings(max_examples=60, deadline=None)
@given(
    ids=st.lists(st.integers(0, 9), min_size=0, max_size=30),
    dim=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_sum_by_row_is_a_dense_sum(ids, dim, seed):
    rows = torch.tensor(ids, dtype=torch.int64)
    gradient = torch.randn(len(ids), dim, generator=torch.Generator().manual_seed(seed))
    distinct, summed = sum_by_row(rows, gradient)
    dense = torch.zeros(10, dim).index_add_(0, rows, gradient)
    assert distinct.tolist() == sorted(set(ids))
    torch.testing.assert_close(summed, dense[distinct])


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(OPTIMIZERS)),
    batches=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=12), min_size=1, max_size=5),
    dim=st.integers(1, 4),
    max_norm=st.sampled_from([None, 0.3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_batches_give_what_the_formula_gives(naive, name, batches, dim, max_norm, seed):
    optimizer = OPTIMIZERS[name]
    spec = TableSpec("user", 6, dim, torch.float32, optimizer, init_scale=0.5, max_norm=max_norm)
    tables, reference = LocalTables([spec], seed=seed), naive(spec, seed)
    generator = torch.Generator().manual_seed(seed)
    for ids in batches:
        gradient = torch.randn(len(ids), dim, generator=generator)
        backward(tables, "user", torch.tensor(ids), gradient)
        reference.step(torch.tensor(ids), gradient, learning_rate=optimizer.chosen.lr)
    torch.testing.assert_close(tables.rows("user").double(), reference.weight, rtol=0, atol=1e-5)


@each_optimizer
def test_order_of_repeated_ids_does_not_matter(make_spec, optimizer):
    """Addends are summed in the order of the batch, so a permutation changes rounding and nothing else."""
    spec = make_spec("user", optimizer)
    results = []
    for order in (torch.arange(40), torch.arange(39, -1, -1)):
        tables = LocalTables([spec], seed=SEED)
        ids, gradient = batch(0)
        backward(tables, "user", ids[order], gradient[order])
        results.append(tables.rows("user"))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-6)


@each_optimizer
def test_same_run_twice_is_the_same_bit_for_bit(make_spec, optimizer):
    spec = make_spec("user", optimizer, num_embeddings=500, embedding_dim=32, dtype=torch.bfloat16)
    runs = [LocalTables([spec], seed=SEED) for _ in range(2)]
    for tables in runs:
        for step in range(3):
            ids, gradient = batch(step, 5000, dim=32, num_embeddings=500)
            backward(tables, "user", ids, gradient.bfloat16())
    assert torch.equal(runs[0].rows("user"), runs[1].rows("user"))


@each_optimizer
def test_state_starts_at_zero(optimizer):
    state = make_row_optimizer(optimizer).initial_state(num_rows=4, dim=3)
    assert all(tensor.count_nonzero() == 0 for tensor in state.values())
