"""How fast is a TwHIN training step, as a share of what a plain fp32 matrix product of the same shapes reaches?

Gowalla-sized tables, dimension 128, batches of edges in chunks of 1,000 that share 100 negatives a side, row-wise
Adagrad, BCE, translation. A step is everything between two batches of edges: negatives drawn and masked, rows looked
up, scores, loss, gradients, tables and relation updated. The yardstick is the six products of each chunk (scores and
two gradients, two sides: 153,600 FLOP an edge) as bare ``torch.mm`` in fp32, timed in the same run, round by round.

    python benchmarks/twhin_step.py --json
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from rookery.optim.config import Adagrad, OptimizerConfig, RowwiseAdagrad
from rookery.optim.dense import make_dense_optimizer
from rookery.tables.local import LocalTables
from rookery.tables.protocol import TableSpec
from rookery.train.runtime import keep_freed_memory
from rookery.twhin.config import BceConfig, EmbeddingsConfig, EmbeddingTable, LossConfig, ModelConfig, RelationConfig
from rookery.twhin.model import TwhinModel
from rookery.twhin.negatives import NegativeSampler
from rookery.twhin.planner import BatchPlanner, NegativePlan
from rookery.types import Side

NUM_ENTITIES = {"user": 29_858, "item": 40_981}
CHUNK, NEGATIVES = 1_000, 100
OPTIMIZER = OptimizerConfig(rowwise_adagrad=RowwiseAdagrad(lr=0.1))


class Step:
    """A model and the parts of a training step on batch ``number``."""

    def __init__(self, dim: int, batch_size: int) -> None:
        self.batch_size = batch_size
        self.tables = LocalTables([_spec(name, size, dim) for name, size in NUM_ENTITIES.items()], seed=0)
        self.model = TwhinModel(_config(dim), self.tables, seed=0)
        self.optimizer = make_dense_optimizer(OptimizerConfig(adagrad=Adagrad(lr=0.1)), self.model.parameters())
        sides = (Side.LHS, Side.RHS)
        negatives = NegativePlan(CHUNK, num_in_batch=0, num_global=NEGATIVES, sides=sides, log_q=False)
        self.planner = BatchPlanner(self.model.plans(), negatives, NegativeSampler(NUM_ENTITIES, {}, 0.0), seed=0)
        self.edges = [_edges(batch_size, seed) for seed in range(8)]
        self.number = 0

    def run(self, half: bool) -> dict[str, float]:
        """One whole step; seconds of each part."""
        self.number += 1
        times = [time.perf_counter()]
        batch = self.planner(self.edges[self.number % len(self.edges)], self.number)
        times.append(time.perf_counter())
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss, _ = self.model(batch)
        times.append(time.perf_counter())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        times.append(time.perf_counter())
        parts = [later - earlier for earlier, later in itertools.pairwise(times)]
        return dict(zip(("plan", "lookup_score_gradient", "update"), parts, strict=True)) | {"step": sum(parts)}


def _spec(name: str, size: int, dim: int) -> TableSpec:
    return TableSpec(name, size, dim, torch.float32, OPTIMIZER, init_scale=0.1)


def _config(dim: int) -> ModelConfig:
    tables = tuple(
        EmbeddingTable(name=name, num_embeddings=size, embedding_dim=dim, optimizer=OPTIMIZER)
        for name, size in NUM_ENTITIES.items()
    )
    return ModelConfig(
        embeddings=EmbeddingsConfig(tables=tables),
        relations=(RelationConfig(name="visit", lhs="user", rhs="item", operator="translation"),),
        translation_optimizer=OptimizerConfig(adagrad=Adagrad(lr=0.1)),
        loss=LossConfig(bce=BceConfig()),
    )


def _edges(num_edges: int, seed: int) -> dict[str, Tensor]:
    """Heavy-tailed ends: half of the edges fall on an eighth of the entities."""
    generator = torch.Generator().manual_seed(seed)
    ends = [(torch.rand(num_edges, generator=generator).pow(3) * size).long() for size in NUM_ENTITIES.values()]
    return {"lhs": ends[0], "rel": torch.zeros(num_edges, dtype=torch.int64), "rhs": ends[1]}


def products(dim: int, num_chunks: int, dtype: torch.dtype) -> Callable[[], None]:
    """The bare products of ``num_chunks`` chunks."""
    queries, candidates = torch.randn(CHUNK, dim, dtype=dtype), torch.randn(NEGATIVES, dim, dtype=dtype)
    gradient = torch.randn(CHUNK, NEGATIVES, dtype=dtype)

    def run() -> None:
        for _ in range(2 * num_chunks):
            torch.mm(queries, candidates.T)
            torch.mm(gradient, candidates)
            torch.mm(gradient.T, queries)

    return run


def _seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(dim: int, batch_size: int, num_rounds: int) -> dict[str, object]:
    """Medians over rounds; each round times the yardstick and both kinds of step one after the other."""
    step = Step(dim, batch_size)
    plain = products(dim, batch_size // CHUNK, torch.float32)
    half = products(dim, batch_size // CHUNK, torch.bfloat16)
    rounds: list[dict[str, float]] = []
    for _ in range(num_rounds + 3):
        fp32, bf16 = step.run(half=False), step.run(half=True)
        seconds = {"matmul": _seconds(plain), "matmul_bf16": _seconds(half)}
        seconds |= {f"fp32_{part}": value for part, value in fp32.items()}
        rounds.append(seconds | {f"bf16_{part}": value for part, value in bf16.items()})
    rounds = rounds[3:]
    median = {part: statistics.median(each[part] for each in rounds) for part in rounds[0]}
    shares = [statistics.median(each["matmul"] / each[f"{kind}_step"] for each in rounds) for kind in ("fp32", "bf16")]
    microseconds = {part: round(seconds / batch_size * 1e6, 3) for part, seconds in median.items()}
    return {
        "edges_per_s": round(batch_size / median["fp32_step"]),
        "edges_per_s_bf16": round(batch_size / median["bf16_step"]),
        "share_of_matmul": round(shares[0], 3),
        "share_of_matmul_bf16": round(shares[1], 3),
        "matmul_gflops": round(12 * dim * NEGATIVES * batch_size / median["matmul"] / 1e9, 1),
        "microseconds_per_edge": microseconds,
        "dim": dim,
        "batch_size": batch_size,
        "num_threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=50_000, help="edges a step, a multiple of 1,000")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    keep_freed_memory()  # as every training run does
    result = measure(arguments.dim, arguments.batch_size, arguments.rounds)
    print(json.dumps(result) if arguments.json else "\n".join(f"{key}: {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
