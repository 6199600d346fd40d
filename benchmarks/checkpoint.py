"""How long a step stands still for a checkpoint that is written beside training, against the write itself.

    python benchmarks/checkpoint.py [--json]

A table of 1 GB (float32, rows of 128) is saved by one process, and by two that hold half of it each, in the foreground
and in the background. While a save goes on in the background the process multiplies matrices, as training would; each
is waited for before the next, so that the stop is that of the copy alone. ``write_s`` is what a save takes in the
foreground, ``stop_s`` what one in the background stops the step for, medians both; ``ratio`` is ``stop_s / write_s``,
``worst_ratio`` that of the longest stop. ``reserve_s`` is spent once, before training, on the memory of the copies.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.multiprocessing as mp
from torch import Tensor, distributed
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

from rookery.checkpoint.checkpointer import Checkpointer
from rookery.checkpoint.layout import checkpoint_steps
from rookery.parallel.world import rank, world_size

DIM = 128


def main() -> None:
    options = parse_arguments()
    settings = {key: value for key, value in vars(options).items() if key not in {"json", "folder"}}
    result = {"benchmark": "checkpoint", "torch": torch.__version__, **settings, "world_size": measure(options)}
    print(json.dumps(result) if options.json else render(result))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--num-rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="where to write; a temporary folder if left out")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def measure(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    measured = {}
    for size in (1, 2):
        folder = Path(tempfile.mkdtemp(dir=options.folder))
        try:
            mp.spawn(measure_rank, (size, folder, options.megabytes, options.num_rounds), size)
            measured[str(size)] = json.loads((folder / "result.json").read_text())
        finally:
            shutil.rmtree(folder)
    return measured


def measure_rank(rank_number: int, size: int, folder: Path, megabytes: int, num_rounds: int) -> None:
    torch.set_num_threads(2 // size)
    if size > 1:
        store = distributed.FileStore(str(folder / "store"), size)
        distributed.init_process_group("gloo", store=store, rank=rank_number, world_size=size)
    tensors = {"model": {"table": make_table(megabytes)}}
    write_s = foreground(folder / "foreground", tensors, num_rounds)
    reserve_s, stop_s, background_s = background(folder / "background", tensors, num_rounds)
    if rank_number == 0:
        write, stop = statistics.median(write_s), statistics.median(stop_s)
        result = {
            "write_s": write,
            "stop_s": stop,
            "ratio": stop / write,
            "worst_ratio": max(stop_s) / write,
            "background_write_s": statistics.median(background_s),
            "reserve_s": reserve_s,
        }
        (folder / "result.json").write_text(json.dumps({name: round(value, 4) for name, value in result.items()}))
    if size > 1:
        distributed.destroy_process_group()


def make_table(megabytes: int) -> Tensor:
    rows = megabytes * 1_000_000 // (4 * DIM * world_size())
    mine = torch.randn(rows, DIM)
    if world_size() == 1:
        return mine
    about = ShardMetadata([rank() * rows, 0], [rows, DIM], placement=f"rank:{rank()}/cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return ShardedTensor._init_from_local_shards([Shard(mine, about)], rows * world_size(), DIM)  # noqa: SLF001


def foreground(folder: Path, tensors: dict[str, dict[str, Tensor]], num_rounds: int) -> list[float]:
    checkpointer = Checkpointer(folder, max_to_keep=1)
    return [timed(lambda step=step: checkpointer.save(step, tensors, {})) for step in range(num_rounds)]


def background(
    folder: Path, tensors: dict[str, dict[str, Tensor]], num_rounds: int
) -> tuple[float, list[float], list[float]]:
    """Seconds of taking the memory; and of each save, of the stop and until the checkpoint is there."""
    checkpointer = Checkpointer(folder, max_to_keep=1, asynchronous=True)
    reserve_s = timed(lambda: checkpointer.reserve(tensors))
    matrix, stops, writes = torch.randn(1024, 1024), [], []
    for step in range(num_rounds):
        since = time.perf_counter()
        stops.append(timed(lambda step=step: checkpointer.save(step, tensors, {})))
        while step not in checkpoint_steps(folder):
            matrix = (matrix @ matrix).clamp(-1, 1)
        writes.append(time.perf_counter() - since)
        checkpointer.wait()
    return reserve_s, stops, writes


def timed(work: Callable[[], object]) -> float:
    since = time.perf_counter()
    work()
    return time.perf_counter() - since


def render(result: dict[str, object]) -> str:
    lines = [f"{result['megabytes']} MB, {result['num_rounds']} rounds"]
    for size, of_size in result["world_size"].items():  # type: ignore[attr-defined]
        lines.append(f"world size {size}: " + ", ".join(f"{name} {value:g}" for name, value in of_size.items()))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
