"""What TwHIN's cost depends on: time of an epoch by edges, dimension and entities, and peak memory of a whole run.

Each point is a run of `rookery twhin train` in a process of its own on generated edges (heavy-tailed ends, one
relation, row-wise Adagrad, 100 negatives a side). ``seconds`` is the training time from metrics.jsonl without start and
checkpoint. ``beyond_tables_mb`` is the peak of the process less tables and optimizer state: at most 1,000 is promised.

    python benchmarks/twhin_scaling.py --json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml


@dataclass(frozen=True)
class Point:
    """One run."""

    num_edges: int = 1_000_000
    dim: int = 64
    num_entities: int = 200_000


def write_edges(point: Point, folder: Path) -> None:
    """A headerless graph of row numbers."""
    rng = np.random.default_rng(0)
    ends = [(rng.random(point.num_edges) ** 3 * point.num_entities).astype(np.int64) for _ in range(2)]
    zeros = np.zeros(point.num_edges, dtype=np.int64)
    pq.write_table(
        pa.table({"lhs": ends[0], "rel": zeros, "rhs": ends[1]}), folder / "part-0.parquet", row_group_size=65_536
    )


def configuration(point: Point, folder: Path) -> dict[str, Any]:
    optimizer = {"rowwise_adagrad": {"lr": 0.1}}
    table = {
        "name": "entity",
        "num_embeddings": point.num_entities,
        "embedding_dim": point.dim,
        "optimizer": optimizer,
    }
    return {
        "training": {"save_dir": str(folder / "run"), "num_epochs": 1, "train_log_every_n": 1},
        "model": {
            "embeddings": {"tables": [table]},
            "relations": [{"name": "follow", "lhs": "entity", "rhs": "entity"}],
            "translation_optimizer": {"adagrad": {"lr": 0.1}},
        },
        "train_data": {"data_root": str(folder), "in_batch_negatives": 0, "per_replica_batch_size": 20_000},
    }


def measure(point: Point) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_edges(point, folder)
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(configuration(point, folder)))
        process = subprocess.Popen(
            [sys.executable, "-m", "rookery", "twhin", "train", config, "--json"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        if os.waitstatus_to_exitcode(status) != 0:
            raise SystemExit(f"the run of {point} failed")
        lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    parts = ("time/data_s", "time/forward_s", "time/backward_s", "time/optimizer_s")
    seconds = sorted(sum(line[part] for part in parts) for line in lines)
    tables_mb = point.num_entities * (point.dim + 1) * 4 / 1e6
    return {
        **asdict(point),
        "seconds": round(seconds[len(seconds) // 2] * len(seconds), 3),  # the median step, times steps
        "peak_mb": round(usage.ru_maxrss * 1024 / 1e6),
        "beyond_tables_mb": round(usage.ru_maxrss * 1024 / 1e6 - tables_mb),
    }


def run() -> dict[str, Any]:
    base = Point()
    edges = [measure(replace(base, num_edges=number)) for number in (500_000, 1_000_000, 2_000_000, 4_000_000)]
    dims = [measure(replace(base, dim=dim)) for dim in (32, 64, 128, 256)]
    entities = [measure(replace(base, num_entities=number)) for number in (50_000, 200_000, 800_000, 3_200_000)]
    large = measure(replace(base, num_entities=6_000_000, dim=128))
    return {"by_edges": edges, "by_dim": dims, "by_entities": entities, "memory": large}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    result = run()
    print(json.dumps(result) if arguments.json else "\n".join(f"{key}: {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
