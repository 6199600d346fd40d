"""Tables over several processes move as those of one process that looks up the ids of all."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from ranks import run_ranks
from torch import Tensor

from rookery.optim.config import Adagrad, Adam, OptimizerConfig, RowwiseAdagrad, Sgd
from rookery.parallel import world
from rookery.parallel.config import ShardingConfig
from rookery.tables.backends import describe_plan, make_tables
from rookery.tables.local import LocalTables
from rookery.tables.protocol import TableBackend, TableSpec
from rookery.tables.refusals import WorldShape
from rookery.tables.shards import parts_of, whole

SEED = 7
NUM_STEPS = 50
OPTIMIZERS = {
    "sgd": OptimizerConfig(sgd=Sgd(lr=0.1)),
    "adagrad": OptimizerConfig(adagrad=Adagrad(lr=0.1)),
    "rowwise_adagrad": OptimizerConfig(rowwise_adagrad=RowwiseAdagrad(lr=0.1)),
    "momentum": OptimizerConfig(sgd=Sgd(lr=0.1, momentum=0.9)),
    "adam": OptimizerConfig(adam=Adam(lr=0.01)),
}
each_world = pytest.mark.parametrize("world_size", [2, 3, 4])

Arrays = dict[str, np.ndarray]
Batch = dict[str, tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As in the ranks."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def table_specs(optimizer: OptimizerConfig, dtype: torch.dtype = torch.float32, max_norm: float | None = None):
    """Sizes that divide by no number of ranks; dimensions that divide by 4 times each."""
    sizes = {"user": (31, 48), "items": (10, 96), "topic": (7, 48)}
    return [
        TableSpec(name, rows, dim, dtype, optimizer, init_scale=0.5, max_norm=max_norm if name == "items" else None)
        for name, (rows, dim) in sizes.items()
    ]


def global_batch(step: int, specs: list[TableSpec]) -> Batch:
    """Ids and gradients of all ranks: repeats, and a table that is absent from every third step."""
    generator = torch.Generator().manual_seed(step)
    batch = {}
    for number, spec in enumerate(specs):
        num_ids = 0 if (step + number) % 3 == 0 else int(torch.randint(1, 40, (), generator=generator))
        ids = torch.randint(0, spec.num_embeddings, (num_ids,), generator=generator)
        batch[spec.name] = ids, torch.randn(num_ids, spec.embedding_dim, generator=generator)
    return batch


def share(batch: Batch, step: int, rank: int, num_ranks: int) -> Batch:
    """Uneven contiguous parts, some of them empty."""
    parts = {}
    for number, (name, (ids, gradient)) in enumerate(batch.items()):
        generator = torch.Generator().manual_seed(1000 * step + number)
        inner = torch.randint(0, len(ids) + 1, (num_ranks - 1,), generator=generator).sort().values.tolist()
        begin, end = ([0, *inner][rank], [*inner, len(ids)][rank])
        parts[name] = ids[begin:end], gradient[begin:end]
    return parts


def only_what_it_needs(batch: Batch, step: int) -> Batch:
    """A rank that has none of a table's rows may leave the table out, but for one."""
    first = list(batch)[step % len(batch)]
    return {name: part for name, part in batch.items() if name == first or len(part[0])}


def move(tables: TableBackend, batch: Batch) -> None:
    rows = tables.lookup({name: ids for name, (ids, _) in batch.items()})
    torch.autograd.backward([rows[name] for name in batch], [gradient for _, gradient in batch.values()])


def train(tables: TableBackend, steps: range, micro_batches: int = 1) -> None:
    for step in steps:
        for spec in tables.specs:
            tables.set_learning_rate(spec.name, 0.1 / (1 + step))
        batch = share(global_batch(step, list(tables.specs)), step, world.rank(), world.world_size())
        if micro_batches > 1:
            tables.set_accumulating((step + 1) % micro_batches > 0)
        move(tables, only_what_it_needs(batch, step))


def train_expecting(tables: TableBackend, steps: range) -> None:
    """The same, told of the next batch before each but every third, and now and then of one that never comes."""

    def ids_of(batch: Batch) -> dict[str, Tensor]:
        return {name: ids for name, (ids, _) in batch.items()}

    def mine(step: int) -> Batch:
        return share(global_batch(step, list(tables.specs)), step, world.rank(), world.world_size())

    batches = {step: only_what_it_needs(mine(step), step) for step in range(steps.start, steps.stop + 1)}
    for step in steps:
        for spec in tables.specs:
            tables.set_learning_rate(spec.name, 0.1 / (1 + step))
        if step % 4 == 3:
            tables.expect(ids_of(mine(step + 1000)))
        if step % 3:
            tables.expect(ids_of(batches[step + 1]))
        move(tables, batches[step])


def bits(tensor: Tensor) -> np.ndarray:
    """A copy of the numbers as they lie in memory."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().copy()


# An optimizer, the type of the rows, and how many batches make a step.
LOCAL_CASES = (
    *((name, torch.float32, micro_batches) for name in OPTIMIZERS for micro_batches in (1, 3)),
    *((name, dtype, 1) for name in ("rowwise_adagrad", "adam") for dtype in (torch.float16, torch.bfloat16)),
    ("momentum", torch.float16, 3),
)


def local_bits() -> list[Arrays]:
    results = []
    for name, dtype, micro_batches in LOCAL_CASES:
        tables = LocalTables(table_specs(OPTIMIZERS[name], dtype, max_norm=1.0), seed=SEED)
        train(tables, range(6), micro_batches)
        state = {**tables.weights(), **tables.optimizer_state()}
        results.append({key: bits(tensor) for key, tensor in state.items()})
    return results


@each_world
def test_replicas_are_the_tables_of_one_process_bit_for_bit(world_size: int) -> None:
    alone = local_bits()
    assert len({tensors["items"].tobytes() for tensors in alone}) == len(alone)
    for each in run_ranks(world_size, local_bits):
        for case, tensors, expected in zip(LOCAL_CASES, each, alone, strict=True):
            assert tensors.keys() == expected.keys()
            for key, tensor in tensors.items():
                assert np.array_equal(tensor, expected[key]), (case, key)


def look_up_nothing() -> str:
    tables = LocalTables(table_specs(OPTIMIZERS["sgd"]), seed=SEED)
    with pytest.raises(AssertionError) as caught:
        tables.lookup({})
    return str(caught.value)


def test_a_rank_that_names_no_table_is_told_to() -> None:
    assert all("names its tables with 0 ids" in message for message in run_ranks(2, look_up_nothing))


needs_torchrec = pytest.mark.skipif(
    importlib.util.find_spec("torchrec") is None or importlib.util.find_spec("fbgemm_gpu") is None,
    reason="needs the cluster extra",
)
FUSED = ("sgd", "adagrad", "rowwise_adagrad")
KINDS = ("row_wise", "table_wise", "column_wise", "table_row_wise", "data_parallel", "auto")
# Every kind that there is with every optimizer that fbgemm has, as tables of one run.
COMBINED = {
    f"{kind} {name}": (kind, name)
    for kind in KINDS
    for name in FUSED
    if (kind, name) != ("column_wise", "rowwise_adagrad")
}
SHARDING = ShardingConfig(tables={table: kind for table, (kind, _) in COMBINED.items()})


def combined_specs() -> list[TableSpec]:
    return [
        TableSpec(table, (31, 10, 7)[number % 3], (48, 96)[number % 2], torch.float32, OPTIMIZERS[name], init_scale=0.5)
        for number, (table, (_, name)) in enumerate(COMBINED.items())
    ]


def all_by(kind: str) -> ShardingConfig:
    return ShardingConfig.model_validate({"default": kind})


def numbers(tables: TableBackend) -> Arrays:
    """Weights and optimizer state, whole."""
    weights = {spec.name: tables.rows(spec.name) for spec in tables.specs}
    state = {key: whole(tensor) for key, tensor in tables.optimizer_state().items()}
    return {key: tensor.detach().numpy().copy() for key, tensor in {**weights, **state}.items()}


def assert_near(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for key, array in found.items():
        np.testing.assert_allclose(array, expected[key], rtol=1e-6, atol=1e-6, err_msg=key)


def sharded_numbers() -> Arrays:
    tables = make_tables("torchrec", combined_specs(), seed=SEED, sharding=SHARDING)
    train(tables, range(NUM_STEPS))
    return numbers(tables)


def local_numbers(specs: list[TableSpec], num_steps: int = NUM_STEPS) -> Arrays:
    tables = LocalTables(specs, seed=SEED)
    train(tables, range(num_steps))
    return numbers(tables)


@needs_torchrec
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_kind_moves_as_local_tables_of_one_process(world_size: int) -> None:
    alone, start = local_numbers(combined_specs()), local_numbers(combined_specs(), 0)
    assert all(np.abs(alone[table] - start[table]).max() > 0.1 for table in COMBINED)
    for each in run_ranks(world_size, sharded_numbers):
        assert_near(each, alone)


def expecting_and_not() -> list[Arrays]:
    results = []
    for move_all in (train, train_expecting):
        tables = make_tables("torchrec", combined_specs(), seed=SEED, sharding=SHARDING)
        move_all(tables, range(25))
        state = {**tables.weights(), **tables.optimizer_state()}
        results.append(
            {f"{key} {n}": bits(part) for key, each in state.items() for n, (_, part) in enumerate(parts_of(each))}
        )
    return results


@needs_torchrec
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ids_that_are_expected_move_the_same_bits(world_size: int) -> None:
    for plain, expecting in run_ranks(world_size, expecting_and_not):
        assert plain.keys() == expecting.keys()
        assert all(np.array_equal(expecting[key], each) for key, each in plain.items())


def expected_out_of_range() -> list[str]:
    """Of the batch alone that has the id, when its turn comes."""
    tables = make_tables("torchrec", table_specs(OPTIMIZERS["sgd"]), seed=SEED, sharding=all_by("row_wise"))
    good, bad = ({"user": torch.tensor([0, row])} for row in (30, 31))
    messages = []
    tables.expect(good)
    tables.expect(bad)
    for ids in (good, bad, good):
        try:
            messages.append(str(tuple(tables.lookup(ids)["user"].shape)))
        except IndexError as error:
            messages.append(str(error))
    return messages


@needs_torchrec
def test_an_expected_id_out_of_range_is_told_in_its_turn() -> None:
    expected = ["(2, 48)", "table user has 31 rows, asked for 31", "(2, 48)"]
    assert run_ranks(2, expected_out_of_range) == [expected] * 2


def over_two_machines() -> tuple[Arrays, list[int]]:
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    sharding = all_by("table_row_wise")
    tables = make_tables("torchrec", table_specs(OPTIMIZERS["adagrad"]), seed=SEED, sharding=sharding)
    train(tables, range(20))
    return numbers(tables), [len(parts_of(weight)) for weight in tables.weights().values()]


@needs_torchrec
def test_table_row_wise_keeps_a_table_on_one_machine() -> None:
    expected = local_numbers(table_specs(OPTIMIZERS["adagrad"]), 20)
    results = run_ranks(4, over_two_machines)
    for found, _ in results:
        assert_near(found, expected)
    # user is the largest table and goes to the first machine, the others to the second.
    assert [num_parts for _, num_parts in results] == [[1, 0, 0], [1, 0, 0], [0, 1, 1], [0, 1, 1]]


class Slices(dict[str, Tensor]):
    """Whole tensors of which one may ask parts alone."""

    def part(self, name: str, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        for dimension, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
            assert offset + size <= self.get(name).shape[dimension]
        return self.get(name)[tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))]

    def __getitem__(self, name: str) -> Tensor:
        raise AssertionError(f"{name} is read whole")


def moved_between_kinds(sources: tuple[str, ...], targets: tuple[str, ...]) -> list[Arrays]:
    results = []
    for source, target in zip(sources, targets, strict=True):
        for sliced in (False, True):
            specs = table_specs(OPTIMIZERS["adagrad"])
            first = make_tables("torchrec", specs, seed=SEED, sharding=all_by(source))
            second = make_tables("torchrec", specs, seed=SEED + 1, sharding=all_by(target))
            train(first, range(5))
            weights = {name: whole(tensor).clone() for name, tensor in first.weights().items()}
            state = {name: whole(tensor).clone() for name, tensor in first.optimizer_state().items()}
            second.load_weights(Slices(weights) if sliced else weights)
            second.load_optimizer_state(Slices(state) if sliced else state)
            train(second, range(5, 10))
            results.append(numbers(second))
    return results


@needs_torchrec
def test_state_of_one_kind_goes_on_in_another() -> None:
    kinds = ("row_wise", "table_wise", "column_wise", "table_row_wise")
    expected = local_numbers(table_specs(OPTIMIZERS["adagrad"]), 10)
    for each in run_ranks(3, moved_between_kinds, kinds, kinds[1:] + kinds[:1]):
        for found in each:
            assert_near(found, expected)


def held_bytes() -> tuple[dict[str, int], dict[str, int], bool]:
    """What this rank has of weights and state, and whether training moves these very tensors."""
    tables = make_tables("torchrec", combined_specs(), seed=SEED, sharding=SHARDING)
    held = {**tables.weights(), **tables.optimizer_state()}
    parts = {key: [part for _, part in parts_of(tensor)] for key, tensor in held.items()}
    before = {key: [part.clone() for part in mine] for key, mine in parts.items()}
    train(tables, range(3))
    moved = all(not torch.equal(part, was) for key in parts for part, was in zip(parts[key], before[key], strict=True))
    num_bytes = {key: sum(part.nbytes for part in mine) for key, mine in parts.items()}
    weights = {table: num_bytes[table] for table in COMBINED}
    return weights, {table: num_bytes.get(f"{table}.sum", 0) for table in COMBINED}, moved


@needs_torchrec
@pytest.mark.parametrize("world_size", [1, 3])
def test_the_plan_says_what_each_rank_holds(world_size: int) -> None:
    ranks = run_ranks(world_size, held_bytes)
    plan = describe_plan("torchrec", combined_specs(), SHARDING, WorldShape(world_size, world_size))
    assert [row.table for row in plan] == list(COMBINED)
    for row in plan:
        assert [weights[row.table] for weights, _, _ in ranks] == list(row.weight_bytes), row
        assert [state[row.table] for _, state, _ in ranks] == list(row.optimizer_bytes), row
        assert row.ranks == tuple(rank for rank in range(world_size) if row.weight_bytes[rank])
        assert row.kernel == ("local" if row.table.startswith("data_parallel") else "fused")
        assert row.kind == COMBINED[row.table][0] or COMBINED[row.table][0] == "auto"
    assert all(moved for _, _, moved in ranks)


def half_precision() -> Arrays:
    specs = [
        TableSpec(kind, 31, 48, torch.float16, OPTIMIZERS["adagrad"], init_scale=0.5)
        for kind in ("row_wise", "table_wise", "column_wise", "table_row_wise")
    ]
    sharding = ShardingConfig.model_validate({"tables": {spec.name: spec.name for spec in specs}})
    tables = make_tables("torchrec", specs, seed=SEED, sharding=sharding)
    train(tables, range(20))
    return numbers(tables)


@needs_torchrec
def test_half_precision_tables_move_as_those_of_one_process() -> None:
    (alone,) = run_ranks(1, half_precision)
    for each in run_ranks(3, half_precision):
        assert_near(each, alone)


def ids_out_of_range() -> list[str]:
    tables = make_tables("torchrec", table_specs(OPTIMIZERS["sgd"]), seed=SEED, sharding=all_by("row_wise"))
    messages = []
    for row in (31, -1, 10**12):
        with pytest.raises(IndexError) as caught:
            tables.lookup({"user": torch.tensor([0, row])})
        messages.append(str(caught.value))
    return messages


@needs_torchrec
def test_an_id_out_of_range_is_no_row_of_another_rank() -> None:
    for messages in run_ranks(2, ids_out_of_range):
        assert messages == [f"table user has 31 rows, asked for {row}" for row in (31, -1, 10**12)]
