"""Tables over several processes move as those of one process that looks up the ids of all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from ranks import run_ranks
from torch import Tensor

from rookery.optim.config import Adagrad, Adam, OptimizerConfig, RowwiseAdagrad, Sgd
from rookery.parallel import world
from rookery.tables.local import LocalTables
from rookery.tables.protocol import TableBackend, TableSpec

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
        for name in ("user", "items", "topic"):
            tables.set_learning_rate(name, 0.1 / (1 + step))
        batch = share(global_batch(step, list(tables.specs)), step, world.rank(), world.world_size())
        if micro_batches > 1:
            tables.set_accumulating((step + 1) % micro_batches > 0)
        move(tables, only_what_it_needs(batch, step))


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
        train(tables, range(15), micro_batches)
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
