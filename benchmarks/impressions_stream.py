"""Impressions a second that a Parquet stream hands out, at the size of the production ranker.

    python benchmarks/impressions_stream.py [--json]

A row is 2776 float32 inputs (vectors of 2117, 59 and three times 200) and 13 labels, 11.2 KB. It is written in several
layouts and streamed shuffled, in buffers that hold a quarter of the rows, so that decoding is part of every epoch.
``rows_per_s`` is by the clock, the median of the epochs, and ``fastest_rows_per_s`` that of the epoch that other work
disturbed least; ``rows_per_cpu_s``, by the processor time of all threads, is what the stream costs the training beside
it. ``copies_per_s`` is how many such rows the machine copied from one place to another in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rookery.data.columns import ColumnRequest
from rookery.data.impressions import pack_vectors, write_impressions
from rookery.data.stream import ParquetStream

VECTORS = {"continuous": 2117, "binary": 59, "user_embedding": 200, "user_eng_embedding": 200, "author_embedding": 200}
LABELS = [f"label_{number}" for number in range(13)]
BYTES_PER_ROW = 4 * (sum(VECTORS.values()) + len(LABELS))


def main() -> None:
    options = parse_arguments()
    # The stream runs beside the model, which has torch's threads.
    torch.set_num_threads(1)
    result = measure(options)
    print(json.dumps(result) if options.json else render(result))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-rows", type=int, default=32_768)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--num-epochs", type=int, default=5)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def measure(options: argparse.Namespace) -> dict[str, object]:
    """One layout after the other, each in a stream of its own; its first epoch is left out."""
    vectors, labels = impressions(options.num_rows)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.parquet" for name in options.layouts}
        for name, file in files.items():
            LAYOUTS[name](vectors, labels, file)
        figures = {name: rates(file, options) for name, file in files.items()}
    settings = {key: value for key, value in vars(options).items() if key not in {"json", "layouts"}}
    return {
        "benchmark": "impressions_stream",
        "torch": torch.__version__,
        **settings,
        "bytes_per_row": BYTES_PER_ROW,
        "copies_per_s": copies_per_s(vectors),
        **figures,
    }


def impressions(num_rows: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Vectors ``[rows, width]`` and labels ``[rows]`` by name, all float32."""
    generator = np.random.default_rng(0)
    vectors = {name: generator.standard_normal((num_rows, width), np.float32) for name, width in VECTORS.items()}
    vectors["binary"] = (vectors["binary"] > 0).astype(np.float32)
    return vectors, {name: generator.integers(0, 2, num_rows).astype(np.float32) for name in LABELS}


def as_lists(vectors: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> pa.Table:
    lists = {
        name: pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1]) for name, values in vectors.items()
    }
    return pa.table(lists | labels)


def in_half(vectors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values.astype(np.uint8 if name == "binary" else np.float16) for name, values in vectors.items()}


def write_fixed_size_lists(vectors: dict[str, np.ndarray], labels: dict[str, np.ndarray], file: Path) -> None:
    """As pyarrow writes them by default, but for row groups that can be shuffled."""
    pq.write_table(as_lists(vectors, labels), file, row_group_size=1024)


def write_ragged_lists(vectors: dict[str, np.ndarray], labels: dict[str, np.ndarray], file: Path) -> None:
    """As most other writers do: lists that the file does not say are of one length."""
    table = as_lists(vectors, labels)
    ragged = pa.schema(
        [(name, pa.list_(pa.float32()) if name in vectors else pa.float32()) for name in table.column_names]
    )
    pq.write_table(table.cast(ragged), file, row_group_size=1024)


def write_strict_lists(vectors: dict[str, np.ndarray], labels: dict[str, np.ndarray], file: Path) -> None:
    write_impressions(as_lists(vectors, labels), file)


def write_packed(vectors: dict[str, np.ndarray], labels: dict[str, np.ndarray], file: Path) -> None:
    write_impressions(pack_vectors(as_lists(vectors, labels)), file)


def write_packed_half(vectors: dict[str, np.ndarray], labels: dict[str, np.ndarray], file: Path) -> None:
    write_packed(in_half(vectors), labels, file)


def write_columns(vectors: dict[str, np.ndarray], labels: dict[str, np.ndarray], file: Path) -> None:
    """A column for each number."""
    numbers = {f"{name}_{place}": column for name, values in vectors.items() for place, column in enumerate(values.T)}
    pq.write_table(pa.table(numbers | labels), file, row_group_size=1024)


LAYOUTS: dict[str, Callable[[dict[str, np.ndarray], dict[str, np.ndarray], Path], None]] = {
    "packed": write_packed,
    "packed_half": write_packed_half,
    "strict_lists": write_strict_lists,
    "fixed_size_lists": write_fixed_size_lists,
    "ragged_lists": write_ragged_lists,
    "columns": write_columns,
}


def open_stream(file: Path, options: argparse.Namespace) -> ParquetStream:
    names = pq.read_schema(file).names
    return ParquetStream(
        [file],
        [request(name) for name in names],
        options.batch_size,
        seed=0,
        shuffle=True,
        buffer_rows=-(-options.num_rows // 4),
    )


def request(name: str) -> ColumnRequest:
    if name in VECTORS:
        return ColumnRequest(name, "vector", width=VECTORS[name])
    return ColumnRequest(name, "label" if name in LABELS else "number")


def one_epoch(stream: ParquetStream) -> tuple[float, float]:
    """Seconds by the clock, and of processor time over all threads."""
    start, cpu_start = time.perf_counter(), time.process_time()
    for _ in range(stream.batches_per_epoch):
        next(stream)
    return time.perf_counter() - start, time.process_time() - cpu_start


def rates(file: Path, options: argparse.Namespace) -> dict[str, float]:
    stream = open_stream(file, options)
    epochs = [one_epoch(stream) for _ in range(1 + options.num_epochs)][1:]
    elapsed_s, cpu_s = zip(*epochs, strict=True)
    return {
        "rows_per_s": options.num_rows / statistics.median(elapsed_s),
        "fastest_rows_per_s": options.num_rows / min(elapsed_s),
        "rows_per_cpu_s": options.num_rows / statistics.median(cpu_s),
    }


def copies_per_s(vectors: dict[str, np.ndarray]) -> float:
    source = np.concatenate(list(vectors.values()), axis=1)
    target = source.copy()
    start = time.perf_counter()
    np.copyto(target, source)
    return len(source) / (time.perf_counter() - start)


def render(result: dict[str, object]) -> str:
    return "\n".join(f"{name:<16} {value}" for name, value in result.items())


if __name__ == "__main__":
    main()
