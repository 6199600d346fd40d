"""The torchrec back end against a naive float64 table, and against the local back end."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from rookery.errors import ConfigError
from rookery.optim.config import (
    Adagrad,
    Adam,
    LearningRateConfig,
    LinearRampToCosine,
    OptimizerConfig,
    PiecewiseConstant,
    RowwiseAdagrad,
    Sgd,
)
from rookery.optim.schedules import optimizer_schedule
from rookery.tables.backends import make_tables

pytest.importorskip("fbgemm_gpu", reason="needs the cluster extra")
pytest.importorskip("torchrec", reason="needs the cluster extra")

SEED = 7
OPTIMIZERS = {
    "sgd": OptimizerConfig(sgd=Sgd(lr=0.1)),
    "adagrad": OptimizerConfig(adagrad=Adagrad(lr=0.1)),
    "rowwise_adagrad": OptimizerConfig(rowwise_adagrad=RowwiseAdagrad(lr=0.1)),
}
BACKENDS = ("local", "torchrec")
each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)


def batch(step: int, num_ids: int, dim: int = 8, num_embeddings: int = 20) -> tuple[Tensor, Tensor]:
    """Ids with repeats, half of the table absent in each batch, and a gradient for each."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, num_embeddings // 2, (num_ids,), generator=generator) * 2 + step % 2
    return ids, torch.randn(num_ids, dim, generator=generator)


def backward(tables, gradients: dict[str, tuple[Tensor, Tensor]]) -> None:
    rows = tables.lookup({name: ids for name, (ids, _) in gradients.items()})
    torch.autograd.backward([rows[name] for name in gradients], [gradient for _, gradient in gradients.values()])


@each_optimizer
def test_moves_rows_by_the_formula_of_the_optimizer(make_spec, naive, optimizer):
    specs = [make_spec("user", optimizer), make_spec("items", optimizer, num_embeddings=30, embedding_dim=4)]
    tables, references = make_tables("torchrec", specs, seed=SEED), {spec.name: naive(spec) for spec in specs}
    for step in range(30):
        gradients = {"user": batch(step, 40), "items": batch(step + 100, 25, dim=4, num_embeddings=30)}
        backward(tables, gradients)
        for name, (ids, gradient) in gradients.items():
            references[name].step(ids, gradient, learning_rate=0.1)
    for name, reference in references.items():
        torch.testing.assert_close(tables.rows(name).double(), reference.weight, rtol=0, atol=5e-6)


@each_optimizer
def test_state_is_the_sum_of_squares(make_spec, naive, optimizer):
    spec = make_spec("user", optimizer)
    tables, reference = make_tables("torchrec", [spec], seed=SEED), naive(spec)
    for step in range(5):
        backward(tables, {"user": batch(step, 40)})
        reference.step(*batch(step, 40), learning_rate=0.1)
    expected = {"sgd": {}, "adagrad": {"user.sum": reference.sum}, "rowwise_adagrad": {"user.sum": reference.row_sum}}
    state = {key: value.double() for key, value in tables.optimizer_state().items()}
    torch.testing.assert_close(state, expected[optimizer.kind], rtol=1e-6, atol=1e-6)


def test_lookup_returns_rows_in_the_order_of_the_ids(make_spec):
    tables = make_tables("torchrec", [make_spec("a.b", OPTIMIZERS["sgd"])], seed=SEED)
    ids = torch.tensor([3, 0, 3, 19, 7])
    rows = tables.lookup({"a.b": ids})["a.b"]
    assert rows.requires_grad
    assert torch.equal(rows, tables.rows("a.b")[ids])


@each_optimizer
def test_rows_absent_from_the_batch_and_tables_absent_from_the_lookup_stay(make_spec, optimizer):
    tables = make_tables("torchrec", [make_spec("user", optimizer), make_spec("item", optimizer)], seed=SEED)
    before = {name: weight.clone() for name, weight in tables.weights().items()}
    backward(tables, {"user": (torch.tensor([2, 2, 5]), torch.ones(3, 8))})
    moved = (tables.rows("user") != before["user"]).any(dim=1).nonzero().flatten()
    assert moved.tolist() == [2, 5]
    assert torch.equal(tables.rows("item"), before["item"])


def test_empty_batch_moves_nothing(make_spec):
    tables = make_tables("torchrec", [make_spec("user", OPTIMIZERS["adagrad"])], seed=SEED)
    before = tables.rows("user").clone()
    rows = tables.lookup({"user": torch.empty(0, dtype=torch.int64)})["user"]
    assert rows.shape == (0, 8)
    rows.sum().backward()
    assert torch.equal(tables.rows("user"), before)


def test_gradient_of_zero_moves_nothing(make_spec):
    tables = make_tables("torchrec", [make_spec("user", OPTIMIZERS["rowwise_adagrad"])], seed=SEED)
    before = tables.rows("user").clone()
    backward(tables, {"user": (torch.tensor([1]), torch.zeros(1, 8))})
    assert torch.equal(tables.rows("user"), before)


@pytest.mark.parametrize("row", [20, -1, -7, 10**12])
def test_id_out_of_range_is_an_error_not_row_0(make_spec, row):
    tables = make_tables("torchrec", [make_spec("user", OPTIMIZERS["sgd"])], seed=SEED)
    with pytest.raises(RuntimeError):
        tables.lookup({"user": torch.tensor([1, row])})


@pytest.mark.parametrize(
    "schedule",
    [
        LearningRateConfig(constant=0.05),
        LearningRateConfig(
            piecewise_constant=PiecewiseConstant(
                learning_rate_boundaries=(3, 6), learning_rate_values=(0.1, 0.05, 0.01)
            )
        ),
        LearningRateConfig(
            linear_ramp_to_cosine=LinearRampToCosine(
                learning_rate=0.2, final_learning_rate=0.01, num_ramp_steps=3, final_num_steps=8
            )
        ),
    ],
    ids=["constant", "piecewise_constant", "linear_ramp_to_cosine"],
)
def test_each_step_uses_the_rate_it_was_given(make_spec, naive, schedule):
    optimizer = OptimizerConfig(rowwise_adagrad=RowwiseAdagrad(lr=1.0), learning_rate=schedule)
    spec, rate = make_spec("user", optimizer), optimizer_schedule(optimizer)
    tables, reference = make_tables("torchrec", [spec], seed=SEED), naive(spec)
    for step in range(10):
        if step > 0:  # the first rate is there from the start
            tables.set_learning_rate("user", rate(step))
        backward(tables, {"user": batch(step, 40)})
        reference.step(*batch(step, 40), learning_rate=rate(step))
    torch.testing.assert_close(tables.rows("user").double(), reference.weight, rtol=0, atol=2e-6)


def test_tables_with_equal_settings_have_learning_rates_of_their_own(make_spec):
    specs = [make_spec("user", OPTIMIZERS["sgd"]), make_spec("item", OPTIMIZERS["sgd"])]
    tables = make_tables("torchrec", specs, seed=SEED)
    before = {name: weight.clone() for name, weight in tables.weights().items()}
    tables.set_learning_rate("user", 0.5)
    tables.set_learning_rate("item", 0.0)
    backward(tables, {name: (torch.tensor([4]), torch.ones(1, 8)) for name in ("user", "item")})
    torch.testing.assert_close(tables.rows("user")[4], before["user"][4] - 0.5)
    assert torch.equal(tables.rows("item"), before["item"])


def test_starts_from_the_rows_of_the_local_back_end_and_leaves_the_random_stream_alone(make_spec):
    specs = [make_spec("user", OPTIMIZERS["sgd"]), make_spec("item", OPTIMIZERS["adagrad"], dtype=torch.float16)]
    stream = torch.random.get_rng_state()
    tables = make_tables("torchrec", specs, seed=SEED)
    assert torch.equal(torch.random.get_rng_state(), stream)
    for name, weight in make_tables("local", specs, seed=SEED).weights().items():
        assert torch.equal(tables.rows(name), weight)


def score_step(tables, step: int) -> Tensor:
    """One training step whose gradient depends on the rows: differences between back ends would feed back."""
    generator = torch.Generator().manual_seed(step)
    ids = {"user": torch.randint(0, 50, (64,), generator=generator) ** 2 % 50}
    ids["item"] = torch.randint(0, 80, (64,), generator=generator) ** 2 % 80
    rows = tables.lookup(ids)
    labels = ((ids["user"] + ids["item"]) % 3 == 0).float()
    loss = binary_cross_entropy_with_logits((rows["user"] * rows["item"]).sum(dim=1), labels, reduction="sum")
    loss.backward()
    return loss.detach()


def score_specs(make_spec, optimizer: OptimizerConfig) -> list:
    return [
        make_spec("user", optimizer, num_embeddings=50, embedding_dim=16, init_scale=0.1),
        make_spec("item", optimizer, num_embeddings=80, embedding_dim=16, init_scale=0.1),
    ]


@each_optimizer
def test_equals_the_local_back_end_after_200_steps(make_spec, optimizer):
    results = {}
    for backend in BACKENDS:
        tables = make_tables(backend, score_specs(make_spec, optimizer), seed=SEED)
        losses = []
        for step in range(200):
            for name in ("user", "item"):
                tables.set_learning_rate(name, 0.02 * (1 - step / 400))
            losses.append(score_step(tables, step))
        assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
        results[backend] = tables
    local, torchrec = (results[backend] for backend in BACKENDS)
    torch.testing.assert_close(torchrec.weights(), local.weights(), rtol=0, atol=1e-6)
    torch.testing.assert_close(torchrec.optimizer_state(), local.optimizer_state(), rtol=1e-6, atol=1e-6)


@each_optimizer
@pytest.mark.parametrize("source", BACKENDS)
@pytest.mark.parametrize("target", BACKENDS)
def test_saved_state_continues_in_either_back_end(make_spec, optimizer, source, target):
    specs = score_specs(make_spec, optimizer)
    first, second = make_tables(source, specs, seed=SEED), make_tables(target, specs, seed=SEED + 1)
    for step in range(10):
        score_step(first, step)
    weights = {name: tensor.clone() for name, tensor in first.weights().items()}
    state = {name: tensor.clone() for name, tensor in first.optimizer_state().items()}
    second.load_weights(weights)
    second.load_optimizer_state(state)
    assert second.weights().keys() == weights.keys()
    assert second.optimizer_state().keys() == state.keys()
    for step in range(10, 20):
        score_step(first, step)
        score_step(second, step)
    tolerance = 0 if source == target else 1e-6
    torch.testing.assert_close(second.weights(), first.weights(), rtol=0, atol=tolerance)
    torch.testing.assert_close(second.optimizer_state(), first.optimizer_state(), rtol=tolerance, atol=tolerance)


@each_optimizer
def test_half_precision_table_is_rounded_to_nearest(make_spec, naive, optimizer):
    spec = make_spec("user", optimizer, dtype=torch.float16)
    tables, reference = make_tables("torchrec", [spec], seed=SEED), naive(spec)
    ids, gradient = batch(0, 40)
    gradient = gradient.half()
    rows = tables.lookup({"user": ids})["user"]
    assert (rows.dtype, tables.rows("user").dtype) == (torch.float32, torch.float16)
    rows.backward(gradient)
    reference.step(ids, gradient, learning_rate=0.1)
    # Half a unit in the last place; but for row-wise Adagrad fbgemm rounds the change, here below 1, to fp16 too.
    atol = 1e-6 if optimizer.kind == "rowwise_adagrad" else 2**-12
    torch.testing.assert_close(tables.rows("user").double(), reference.weight, rtol=2**-11, atol=atol)
    assert all(state.dtype == torch.float32 for state in tables.optimizer_state().values())


def test_half_precision_loses_updates_below_half_a_unit_in_the_last_place(make_spec):
    """Unlike the local back end, which rounds stochastically; docs/tables.md says so."""
    spec = make_spec("user", OPTIMIZERS["sgd"], dtype=torch.float16)
    for backend, still in {"torchrec": True, "local": False}.items():
        tables = make_tables(backend, [spec], seed=SEED)
        tables.load_weights({"user": torch.ones(20, 8)})
        for _ in range(100):
            backward(tables, {"user": (torch.tensor([1]), torch.full((1, 8), 1e-3, dtype=torch.float16))})
        assert bool((tables.rows("user")[1] == 1).all()) is still


@pytest.mark.parametrize("optimizer", [OptimizerConfig(adam=Adam()), OptimizerConfig(sgd=Sgd(momentum=0.5))])
def test_refuses_what_it_cannot_do(make_spec, optimizer):
    with pytest.raises(ConfigError, match=r"model\.embeddings\.tables\.user\.optimizer"):
        make_tables("torchrec", [make_spec("user", optimizer)], seed=SEED)


_SCRIPT = """
import torch
from rookery.optim.config import OptimizerConfig, Sgd
from rookery.tables.backends import make_tables
from rookery.tables.protocol import TableSpec

spec = TableSpec("user", 10, 8, torch.float32, OptimizerConfig(sgd=Sgd()), 0.1)
tables = make_tables("torchrec", [spec], seed=0)
tables.lookup({"user": torch.tensor([1, 2])})["user"].sum().backward()
"""


def test_a_process_that_used_it_ends_at_once_and_silently():
    command = [sys.executable, "-W", "error", "-c", _SCRIPT]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
