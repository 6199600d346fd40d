"""Rows a second that a Parquet stream hands out as shuffled batches.

    python benchmarks/stream.py [--json]

Writes edges (three int64 columns) to a temporary file and reads them twice: in one buffer, which is decoded once and
then only gathered from, and in small buffers, where decoding is part of every epoch. ``rows_per_cpu_s`` counts the
processor time of the reading thread alone, ``rows_per_s`` the clock, which other work on the machine slows down.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rookery.data.stream import ParquetStream

COLUMNS = ("lhs", "rel", "rhs")


def main() -> None:
    options = parse_arguments()
    # The stream runs beside the model, which has the other cores.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(write_edges(Path(folder), options.num_rows), options)
    print(json.dumps(result) if options.json else render(result))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-rows", type=int, default=4_000_000)
    parser.add_argument("--batch-size", type=int, default=10_000)
    parser.add_argument("--num-epochs", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def write_edges(folder: Path, num_rows: int) -> Path:
    generator = np.random.default_rng(0)
    file = folder / "edges.parquet"
    table = pa.table({name: generator.integers(0, 100_000, num_rows) for name in COLUMNS})
    pq.write_table(table, file, row_group_size=65_536)
    return file


def measure(file: Path, options: argparse.Namespace) -> dict[str, object]:
    """Medians over epochs, the first one (which decodes) left out."""
    settings = {key: value for key, value in vars(options).items() if key != "json"}
    buffers = {"one_buffer": options.num_rows, "eight_buffers": -(-options.num_rows // 8)}
    return {
        "benchmark": "stream",
        "torch": torch.__version__,
        **settings,
        **{name: rates(file, buffer_rows, options) for name, buffer_rows in buffers.items()},
    }


def rates(file: Path, buffer_rows: int, options: argparse.Namespace) -> dict[str, float]:
    stream = ParquetStream([file], COLUMNS, options.batch_size, seed=0, shuffle=True, buffer_rows=buffer_rows)
    epochs = [one_epoch(stream) for _ in range(options.num_epochs + 1)][1:]
    elapsed_s, cpu_s = (statistics.median(times) for times in zip(*epochs, strict=True))
    return {"rows_per_s": stream.num_rows / elapsed_s, "rows_per_cpu_s": stream.num_rows / cpu_s}


def one_epoch(stream: ParquetStream) -> tuple[float, float]:
    """Seconds by the clock, and of this thread's processor time."""
    start, cpu_start = time.perf_counter(), time.thread_time()
    for _ in range(stream.batches_per_epoch):
        next(stream)
    return time.perf_counter() - start, time.thread_time() - cpu_start


def render(result: dict[str, object]) -> str:
    return "\n".join(f"{name:<16} {value}" for name, value in result.items())


if __name__ == "__main__":
    main()
