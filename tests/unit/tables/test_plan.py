"""What lies where, and what is refused before anything exists."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rookery.errors import ConfigError
from rookery.optim.config import Adagrad, Adam, OptimizerConfig, RowwiseAdagrad, Sgd
from rookery.parallel.config import ShardingConfig
from rookery.tables.backends import describe_plan, make_tables
from rookery.tables.plan import TablePlan, dealt, table_asked
from rookery.tables.refusals import TablesAsked, WorldShape, table_refusals

SGD = OptimizerConfig(sgd=Sgd())
ROWWISE = OptimizerConfig(rowwise_adagrad=RowwiseAdagrad())


def sharding(default=None, **tables):
    return ShardingConfig.model_validate({"default": default, "tables": tables})


def refusals(specs, how, *shape, backend="torchrec", **asked):
    tables = [table_asked(spec, f"model.embeddings.tables.{spec.name}") for spec in specs]
    return table_refusals(TablesAsked("model.embeddings.backend", backend, tables, how, **asked), WorldShape(*shape))


@given(sizes=st.lists(st.integers(0, 50), max_size=12), num_hands=st.integers(1, 5))
def test_no_hand_is_fuller_than_another_by_more_than_one_size(sizes, num_hands):
    hands = dealt(sizes, num_hands)
    held = [sum(size for size, hand in zip(sizes, hands, strict=True) if hand == number) for number in range(num_hands)]
    assert len(hands) == len(sizes)
    assert max(held) - min(held) <= max(sizes, default=0)


def test_the_largest_goes_first():
    assert dealt([1, 8, 3, 4], 2) == [1, 0, 1, 1]


def test_every_process_holds_a_local_table_whole(make_spec):
    optimizers = {"sgd": SGD, "rowwise": ROWWISE, "adam": OptimizerConfig(adam=Adam())}
    specs = [make_spec(name, optimizer, dtype=torch.float16) for name, optimizer in optimizers.items()]
    plan = describe_plan("local", specs, sharding(), WorldShape(3, 3))
    state = {"sgd": 0, "rowwise": 20 * 4, "adam": 2 * 20 * 8 * 4 + 8}
    assert plan == [
        TablePlan(name, "data_parallel", "local", (0, 1, 2), (20 * 8 * 2,) * 3, (state[name],) * 3)
        for name in optimizers
    ]


@pytest.mark.parametrize(
    ("kind", "shape", "fields", "refused"),
    [
        ("row_wise", (4, 4), {"num_embeddings": 5}, "5 rows in blocks of 2 are 3 blocks, too few for 4 processes; use"),
        ("row_wise", (3, 1), {"num_embeddings": 1}, "1 rows in blocks of 1 are 1 blocks, too few for 3 processes; use"),
        (
            "table_row_wise",
            (4, 2),
            {"num_embeddings": 1},
            "1 rows in blocks of 1 are 1 blocks, too few for 2 processes",
        ),
        ("table_row_wise", (5, 3), {}, "machines need equally many processes, not 3 of 5 on this one; use row_wise"),
        ("column_wise", (3, 3), {"embedding_dim": 32}, "embedding_dim=32 does not divide into multiples of 4 over 3"),
        ("column_wise", (1, 1), {"optimizer": ROWWISE}, "row-wise Adagrad would keep a sum for each part of a row"),
    ],
)
def test_refusal_names_the_field_that_set_the_kind(make_spec, kind, shape, fields, refused):
    spec = make_spec("user", **{"optimizer": SGD, **fields})
    (line,) = refusals([spec], sharding(user=kind), *shape)
    assert line.startswith(f"parallel.sharding.tables.user={kind}: {refused}")
    (line,) = refusals([spec, make_spec("other", SGD)], sharding(kind, other="table_wise"), *shape)
    assert line.startswith(f"parallel.sharding.default={kind}: table user: {refused}")
    assert line.endswith("; parallel.sharding.tables.user gives it a kind of its own")


@pytest.mark.parametrize("num_rows", range(1, 30))
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_rows_are_too_few_where_a_process_would_have_none(make_spec, num_rows, size):
    block = next(block for block in range(1, 31) if block * size >= num_rows)
    held = [len(range(num_rows)[block * rank : block * (rank + 1)]) for rank in range(size)]
    found = refusals([make_spec("user", SGD, num_embeddings=num_rows)], sharding("row_wise"), size, size)
    assert bool(found) is (0 in held)


@pytest.mark.parametrize("kind", ["row_wise", "table_wise", "column_wise", "table_row_wise", "data_parallel", "auto"])
def test_what_can_be_done_is_not_refused(make_spec, kind):
    specs = [make_spec("user", OptimizerConfig(adagrad=Adagrad()), embedding_dim=16)]
    assert refusals(specs, sharding(kind), 4, 2) == []


def test_a_replicated_table_of_torchrec_may_do_what_local_ones_do(make_spec):
    specs = [make_spec("user", OptimizerConfig(adam=Adam()), embedding_dim=5, dtype=torch.bfloat16, max_norm=1.0)]
    assert refusals(specs, sharding("data_parallel"), 2, 2, gradient_accumulation=3) == []
    mixed = refusals([*specs, make_spec("item", SGD)], sharding(user="data_parallel"), gradient_accumulation=3)
    assert [line.split(":")[0] for line in mixed] == ["training.gradient_accumulation=3"]


def test_tables_that_are_not_there_are_refused(make_spec):
    for backend in ("local", "torchrec"):
        (line,) = refusals([make_spec("user", SGD)], sharding(usr="data_parallel"), backend=backend)
        assert line == "parallel.sharding.tables.usr: there is no such table; the tables are user"


def test_local_tables_are_never_sharded(make_spec):
    specs = [make_spec("user", SGD), make_spec("item", SGD)]
    assert refusals(specs, sharding("data_parallel", user="data_parallel"), 2, 2, backend="local") == []
    lines = refusals(specs, sharding("auto", user="row_wise"), backend="local")
    assert [line.split(":")[0] for line in lines] == [
        "parallel.sharding.default=auto",
        "parallel.sharding.tables.user=row_wise",
    ]
    assert all(line.endswith("leave it out, or set model.embeddings.backend to torchrec") for line in lines)


class TestWithTorchrec:
    @pytest.fixture(autouse=True)
    def _needs_the_extra(self):
        pytest.importorskip("fbgemm_gpu", reason="needs the cluster extra")
        pytest.importorskip("torchrec", reason="needs the cluster extra")

    def test_a_plan_is_made_for_a_world_that_is_not_there(self, make_spec):
        sizes = {"a": 100, "b": 60, "c": 50, "d": 10}
        specs = [make_spec(name, ROWWISE, num_embeddings=size, embedding_dim=16) for name, size in sizes.items()]
        how = sharding("table_wise", d="row_wise")
        plan = {row.table: row for row in describe_plan("torchrec", specs, how, WorldShape(3, 3))}
        assert [plan[name].ranks for name in sizes] == [(0,), (1,), (2,), (0, 1, 2)]
        assert plan["b"].weight_bytes == (0, 60 * 16 * 4, 0)
        assert plan["b"].optimizer_bytes == (0, 60 * 4, 0)
        assert plan["d"].weight_bytes == (4 * 64, 4 * 64, 2 * 64)

    def test_columns_and_machines(self, make_spec):
        adagrad = OptimizerConfig(adagrad=Adagrad())
        specs = [make_spec(name, adagrad, num_embeddings=6, embedding_dim=32) for name in ("a", "b")]
        columns = describe_plan("torchrec", specs, sharding("column_wise"), WorldShape(4, 2))
        assert [row.weight_bytes for row in columns] == [(6 * 8 * 4,) * 4] * 2
        machines = describe_plan("torchrec", specs, sharding("table_row_wise"), WorldShape(4, 2))
        assert [row.weight_bytes for row in machines] == [(3 * 32 * 4,) * 2 + (0, 0), (0, 0) + (3 * 32 * 4,) * 2]
        assert all(row.optimizer_bytes == row.weight_bytes for row in [*columns, *machines])

    def test_the_planner_never_takes_a_kernel_that_drops_the_optimizer(self, make_spec):
        specs = [make_spec(f"table {rows}", ROWWISE, num_embeddings=rows, embedding_dim=64) for rows in (1, 10, 10**6)]
        plan = describe_plan("torchrec", specs, sharding("auto"), WorldShape(4, 4))
        assert {row.kernel for row in plan} == {"fused"}
        assert {row.kind for row in plan} <= {"row_wise", "table_wise", "table_row_wise"}
        assert [sum(row.weight_bytes) for row in plan] == [rows * 256 for rows in (1, 10, 10**6)]

    def test_tables_too_large_for_the_planner(self, make_spec):
        specs = [make_spec("user", SGD, num_embeddings=10**13, embedding_dim=128)]
        with pytest.raises(ConfigError, match=r"parallel\.sharding=auto: torchrec's planner finds no plan"):
            describe_plan("torchrec", specs, sharding("auto"), WorldShape(2, 2))

    def test_sharded_and_replicated_tables_are_one_back_end(self, make_spec, naive):
        specs = [
            make_spec("user", OptimizerConfig(adam=Adam(lr=0.1))),
            make_spec("item", OptimizerConfig(sgd=Sgd(lr=0.1))),
        ]
        tables = make_tables("torchrec", specs, seed=7, sharding=sharding(user="data_parallel"))
        assert list(tables.specs) == specs
        references = {spec.name: naive(spec) for spec in specs}
        for step in range(5):
            names = [("user", "item"), ("item",), ("user",)][step % 3]
            generator = torch.Generator().manual_seed(step)
            ids = {name: torch.randint(0, 20, (12,), generator=generator) for name in names}
            gradients = [torch.randn(12, 8, generator=generator) for _ in names]
            torch.autograd.backward(list(tables.lookup(ids).values()), gradients)
            for name, gradient in zip(names, gradients, strict=True):
                references[name].step(ids[name], gradient, learning_rate=0.1)
        for name, weight in tables.weights().items():
            torch.testing.assert_close(weight.double(), references[name].weight, rtol=0, atol=5e-6)
        assert tables.optimizer_state().keys() == {"user.exp_avg", "user.exp_avg_sq", "user.step"}

    def test_a_world_that_cannot_be_is_refused_before_it_is_made(self, make_spec):
        with pytest.raises(ConfigError, match=r"tables\.usr: there is no such table(.|\n)*user=column_wise"):
            make_tables(
                "torchrec", [make_spec("user", ROWWISE)], seed=0, sharding=sharding(usr="auto", user="column_wise")
            )
