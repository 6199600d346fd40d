"""Lookup, backward and update of one table: the two back ends side by side, in one run.

    python benchmarks/tables.py [--json]

Times 100,000 ids of a table of 1,000,000 rows of 128 float32 numbers under row-wise Adagrad, with ids drawn
uniformly (95,000 distinct) and heavy-tailed (57,000 distinct, low row numbers most). The back ends take turns,
so that whatever else the machine does hits both alike; compare the ratios, not the milliseconds. Without
torchrec only the local back end runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import torch
from torch import Tensor

from rookery.errors import MissingExtra
from rookery.optim.config import OptimizerConfig, RowwiseAdagrad
from rookery.tables.backends import make_tables, require_torchrec
from rookery.tables.protocol import TableBackend, TableSpec
from rookery.train.runtime import keep_freed_memory

TABLE = "table"


def main() -> None:
    options = parse_arguments()
    keep_freed_memory()  # as every training run does
    result = measure(options)
    print(json.dumps(result) if options.json else render(result))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-embeddings", type=int, default=1_000_000)
    parser.add_argument("--embedding-dim", type=int, default=128)
    parser.add_argument("--num-ids", type=int, default=100_000)
    parser.add_argument("--num-rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Milliseconds of a step by id distribution and back end (median over rounds), and the ratio to local."""
    backends = make_backends(options)
    gradient = torch.randn(options.num_ids, options.embedding_dim)
    uniform = torch.randint(0, options.num_embeddings, (options.num_ids,))
    heavy = (torch.rand(options.num_ids) ** 6 * options.num_embeddings).long()
    settings = {key: value for key, value in vars(options).items() if key != "json"}
    return {
        "benchmark": "tables",
        "torch": torch.__version__,
        "num_threads": torch.get_num_threads(),
        **settings,
        "uniform": compare(backends, uniform, gradient, options.num_rounds),
        "heavy_tailed": compare(backends, heavy, gradient, options.num_rounds),
    }


def make_backends(options: argparse.Namespace) -> dict[str, TableBackend]:
    optimizer = OptimizerConfig(rowwise_adagrad=RowwiseAdagrad(lr=0.01))
    spec = TableSpec(TABLE, options.num_embeddings, options.embedding_dim, torch.float32, optimizer, init_scale=0.1)
    backends = {"local": make_tables("local", [spec], seed=0)}
    try:
        require_torchrec()
    except MissingExtra as missing:
        print(f"local alone: {missing}", file=sys.stderr)
    else:
        backends["torchrec"] = make_tables("torchrec", [spec], seed=0)
    return backends


def compare(backends: dict[str, TableBackend], ids: Tensor, gradient: Tensor, num_rounds: int) -> dict[str, object]:
    times_ms: dict[str, list[float]] = {name: [] for name in backends}
    for round_number in range(num_rounds + 2):
        for name, tables in backends.items():
            elapsed_ms = step_ms(tables, ids, gradient)
            if round_number >= 2:  # the first two touch fresh memory
                times_ms[name].append(elapsed_ms)
    median_ms = {name: round(statistics.median(times), 2) for name, times in times_ms.items()}
    num_distinct = ids.unique().numel()
    speed_to_local = {name: round(median_ms["local"] / ms, 3) for name, ms in median_ms.items()}
    return {"num_distinct": num_distinct, "median_ms": median_ms, "speed_to_local": speed_to_local}


def step_ms(tables: TableBackend, ids: Tensor, gradient: Tensor) -> float:
    start = time.perf_counter()
    tables.lookup({TABLE: ids})[TABLE].backward(gradient)
    return (time.perf_counter() - start) * 1e3


def render(result: dict[str, object]) -> str:
    return "\n".join(f"{key}: {value}" for key, value in result.items())


if __name__ == "__main__":
    main()
