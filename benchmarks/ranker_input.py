"""Rows a second that training gets from Parquet at the size of the production ranker, preprocessing included.

    python benchmarks/ranker_input.py [--json]

A row is that of impressions_stream.py: 2776 inputs in five vectors, and 13 labels, of which ten have a task. It is
written packed, streamed shuffled in buffers of a quarter of the rows, and made a batch in the prefetch thread, as in
training. ``stream`` is the stream alone, ``input`` with preprocessing, both by the clock, the median of the epochs;
``preprocess`` is what one thread preprocesses of batches that are ready.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from impressions_stream import LABELS, VECTORS, impressions, write_packed

from rookery.config.loader import parse_config
from rookery.data.prefetch import Prefetcher, prepare
from rookery.ranker.config import RankerConfig
from rookery.ranker.inputs import Inputs
from rookery.ranker.partition import make_transform, open_partition
from rookery.ranker.preprocess import Preprocessor

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-rows", type=int, default=32_768)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--num-epochs", type=int, default=6)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    # Preprocessing runs beside the model, which has torch's threads.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "log.parquet"
        write_packed(*impressions(options.num_rows), file)
        config = production(file, options)
        preprocessor = Preprocessor(config, Inputs.build(config))
        figures = {
            "stream": epochs(config, preprocessor, options, with_preprocessing=False),
            "input": epochs(config, preprocessor, options, with_preprocessing=True),
            "preprocess": preprocess(config, preprocessor, options),
        }
    if options.json:
        print(json.dumps({"benchmark": "ranker_input", "torch": torch.__version__, **figures}))
    else:
        print("\n".join(f"{name:10s} {rate:12,.0f} rows/s" for name, rate in figures.items()))


def production(file: Path, options: argparse.Namespace) -> RankerConfig:
    """The features of the reference: continuous, binary and three vectors."""
    tower = {"mlp_config": {"layer_sizes": [1]}}
    blocks = {name: [{"name": name, "width": VECTORS[name]}] for name in ("continuous", "binary")}
    dense = [{"name": name, "width": width} for name, width in VECTORS.items() if name not in blocks]
    raw = {
        "training": {"save_dir": "unused", "num_train_steps": 1},
        "labels": {label: {} for label in LABELS},
        "features": {**blocks, "dense": dense},
        "train_data": {
            "inputs": [str(file)],
            "batch_size": options.batch_size,
            "buffer_rows": options.num_rows // 4,
        },
        "model": {"tasks": dict.fromkeys(LABELS[:10], tower), "multi_task_type": "share_none"},
        "optimizer": {"adam": {}, "single_task_learning_rate": {"constant": 0.001}},
    }
    return parse_config(RankerConfig, raw, "production")


def epochs(
    config: RankerConfig, preprocessor: Preprocessor, options: argparse.Namespace, *, with_preprocessing: bool
) -> float:
    """Rows a second, the median of the epochs but the first, which also starts threads and reads from disk."""
    stream = open_partition(config, config.train_data, preprocessor, shuffle=True, num_epochs=1 + options.num_epochs)
    make = make_transform(stream, preprocessor, training=True, device=CPU)
    rates = []
    with Prefetcher(prepare(stream, make if with_preprocessing else lambda columns, position: None), 2) as batches:
        for _ in range(1 + options.num_epochs):
            start = time.perf_counter()
            for _ in range(stream.batches_per_epoch):
                next(batches)
            rates.append(options.num_rows / (time.perf_counter() - start))
    return statistics.median(rates[1:])


def preprocess(config: RankerConfig, preprocessor: Preprocessor, options: argparse.Namespace) -> float:
    stream = open_partition(config, config.train_data, preprocessor, shuffle=True, num_epochs=1)
    columns = next(stream)
    times = []
    for _ in range(100):
        start = time.perf_counter()
        preprocessor.batch(columns, training=True, position=stream.position())
        times.append(time.perf_counter() - start)
    return options.batch_size / statistics.median(times)


if __name__ == "__main__":
    main()
