"""What one reader gives one trainer over loopback, as a share of what the trainer reads from local files itself.

    python benchmarks/reader.py [--json]

``edges``: three int64 columns, batches of 20,000. ``wide``: impressions of the production ranker's size
(ranker_input.py: 2776 inputs and 13 labels), little but copying. ``log``: the impressions of a small simulated world as
`rookery ranker init` configures them, histories and vocabularies included. Each is shuffled in buffers of a quarter of
the rows, so that decoding is part of every epoch, and made ready in the prefetch thread, as in training. Local files
and a `rookery reader` in a process of its own take turns of an epoch that does not count and some that do. A turn
begins when what the other was still making ahead is done, so that neither works on the other's time; both have as much
made ahead at the end of what counts as at its beginning. ``share`` is the median over the turns of the ratio of the
two, ``local`` and ``remote`` are median rows a second, ``..._cpu_ns`` nanoseconds of processor time a row, of all
threads. On two cores the reader competes with the trainer for them. With ``--apart`` each process has one core of its
own, local reading too. With ``--sent`` batches go over the network as to another machine, else through memory.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from impressions_stream import impressions, write_packed
from ranker_input import CPU, production

from rookery.config.base import StrictModel
from rookery.config.loader import dump_config, load_config, parse_config
from rookery.data.flight_stream import FlightStream
from rookery.data.prefetch import Prefetcher, Transform, prepare
from rookery.data.stream import BatchStream
from rookery.parallel.config import ReadersConfig
from rookery.ranker.config import RankerConfig
from rookery.ranker.inputs import INPUTS, Inputs
from rookery.ranker.partition import make_transform, open_partition
from rookery.ranker.preprocess import Preprocessor
from rookery.ranker.reading import open_remote
from rookery.train.order import StreamOrder
from rookery.train.runtime import keep_freed_memory
from rookery.twhin.config import TwhinConfig
from rookery.twhin.reading import open_edges, served_edges, train_files

PREFETCHED = 4
ROOKERY = (sys.executable, "-m", "rookery")
IDLE_S = 0.02
"""Processor time in ten times as long that is nothing: two ticks of the clock that counts it."""
LIMITS = {"lhs": 100_000, "rel": 8, "rhs": 100_000}
Epoch = Callable[[], int]


def main() -> None:
    options = parse_arguments()
    # The stream runs beside the model, which has torch's threads.
    torch.set_num_threads(1)
    keep_freed_memory()
    if options.apart:
        os.sched_setaffinity(0, {0})
    result: dict[str, Any] = {
        "benchmark": "reader",
        "apart": options.apart,
        "sent": options.sent,
        "torch": torch.__version__,
        "rounds": options.rounds,
    }
    for name, measure in (("edges", edges), ("wide", wide), ("log", log)):
        if options.only and name not in options.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            result[name] = measure(Path(folder), options)
    print(json.dumps(result) if options.json else "\n".join(f"{name:<12} {value}" for name, value in result.items()))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-edges", type=int, default=4_000_000)
    parser.add_argument("--num-rows", type=int, default=32_768, help="impressions")
    parser.add_argument("--batch-size", type=int, default=1024, help="impressions of a batch")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each")
    parser.add_argument("--epochs", type=int, default=3, help="that count, of a turn")
    parser.add_argument("--only", nargs="+", choices=("edges", "wide", "log"))
    parser.add_argument("--sent", action="store_true", help="no batch goes through memory that both processes see")
    parser.add_argument("--apart", action="store_true", help="a core for each process")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def edges(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    generator, num_edges = np.random.default_rng(0), options.num_edges
    table = {name: generator.integers(0, limit, num_edges) for name, limit in LIMITS.items()}
    pq.write_table(pa.table(table), folder / "edges.parquet", row_group_size=65_536)
    config = parse_config(TwhinConfig, twhin_settings(folder, options), "benchmark")
    files, order = train_files(config, None), StreamOrder(20_000, 1)
    with reader(folder, config, options) as (readers, pid):
        rows = open_edges(config, files, order)
        remote = FlightStream(rows, served_edges(config, rows), readers)
        with epochs(open_edges(config, files, order), as_it_is) as local, epochs(remote, as_it_is) as distant:
            result = compare(local, distant, pid, options)
        remote.close()
    return result


def twhin_settings(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    table = {"num_embeddings": LIMITS["lhs"], "embedding_dim": 8, "optimizer": {"sgd": {"lr": 0.1}}}
    return {
        "training": {"save_dir": str(folder / "run"), "num_train_steps": 1},
        "model": {
            "embeddings": {"tables": [{"name": "node", **table}]},
            "relations": [{"name": str(number), "lhs": "node", "rhs": "node"} for number in range(LIMITS["rel"])],
            "translation_optimizer": {"sgd": {"lr": 0.1}},
        },
        "train_data": {"data_root": str(folder), "buffer_rows": options.num_edges // 4},
    }


def wide(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    write_packed(*impressions(options.num_rows), folder / "log.parquet")
    return ranker(folder, production(folder / "log.parquet", options), options)


def log(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Impressions as users have them."""
    world, path = folder / "world", folder / "config.yaml"
    subprocess.run([*ROOKERY, "world", "generate", str(world), "--size", "small"], check=True, capture_output=True)
    schema = pq.read_schema(next((world / "impressions").glob("*.parquet")))
    labels = [word for name in schema.names if name.startswith("is_") for word in ("--label", name)]
    keys = ["--user", "user_id", "--item", "post_id", "--time", "time", *labels]
    init = subprocess.run(
        [*ROOKERY, "ranker", "init", str(world / "impressions"), *keys], check=True, capture_output=True
    )
    path.write_bytes(init.stdout)
    num_rows = sum(pq.read_metadata(file).num_rows for file in (world / "impressions").glob("*.parquet"))
    buffered = [f"train_data.buffer_rows={num_rows // 4}", f"train_data.batch_size={options.batch_size}"]
    return ranker(folder, load_config(RankerConfig, path, buffered), options)


def ranker(folder: Path, config: RankerConfig, options: argparse.Namespace) -> dict[str, float]:
    training = config.training.model_copy(update={"save_dir": folder / "run"})
    config = config.model_copy(update={"training": training})
    Inputs.build(config).write(folder / "run" / INPUTS)
    preprocessor = Preprocessor(config, Inputs.open(folder / "run" / INPUTS))
    order = StreamOrder(options.batch_size, 1)
    stream = open_partition(config, config.train_data, preprocessor, shuffle=True, order=order)
    transform = make_transform(stream, preprocessor, training=True, device=CPU)
    with reader(folder, config, options) as (readers, pid):
        remote, rebuild = open_remote(config, readers, preprocessor, order, CPU)
        with epochs(stream, transform) as local, epochs(remote, rebuild) as distant:
            result = compare(local, distant, pid, options)
        remote.close()
    return result


def as_it_is(columns: Mapping[str, Any], position: Any) -> Mapping[str, Any]:  # noqa: ARG001 - a transform
    return columns


@contextmanager
def epochs(stream: BatchStream, transform: Transform[Any]) -> Iterator[Epoch]:
    """What takes the batches of the next epoch, and returns the number of rows."""
    with Prefetcher(prepare(stream, transform), PREFETCHED) as batches:
        yield lambda: sum(next(batches).num_rows for _ in range(stream.batches_per_epoch))


def compare(local: Epoch, remote: Epoch, reader_pid: int, options: argparse.Namespace) -> dict[str, float]:
    """Take turns."""
    turns = [[turn(epoch, reader_pid, options.epochs) for epoch in (local, remote)] for _ in range(options.rounds)]
    here, there = zip(*turns, strict=True)
    return {
        "local": round(statistics.median(each["rate"] for each in here)),
        "remote": round(statistics.median(each["rate"] for each in there)),
        "share": round(statistics.median(far["rate"] / near["rate"] for near, far in turns), 3),
        "shares": [round(far["rate"] / near["rate"], 3) for near, far in turns],
        "local_cpu_ns": round(statistics.median(each["trainer_ns"] for each in here)),
        "trainer_cpu_ns": round(statistics.median(each["trainer_ns"] for each in there)),
        "reader_cpu_ns": round(statistics.median(each["reader_ns"] for each in there)),
    }


def turn(epoch: Epoch, reader_pid: int, num_epochs: int) -> dict[str, float]:
    """Rows a second of some epochs, and nanoseconds of processor time a row of both processes."""
    settle(reader_pid)
    epoch()
    start, trainer_s, reader_s = time.perf_counter(), time.process_time(), processor_s(reader_pid)
    num_rows = sum(epoch() for _ in range(num_epochs))
    return {
        "rate": num_rows / (time.perf_counter() - start),
        "trainer_ns": (time.process_time() - trainer_s) / num_rows * 1e9,
        "reader_ns": (processor_s(reader_pid) - reader_s) / num_rows * 1e9,
    }


def settle(reader_pid: int) -> None:
    """Return once neither process has anything left to do."""
    used_s, before_s = time.process_time() + processor_s(reader_pid), -1.0
    while used_s - before_s > IDLE_S:
        time.sleep(10 * IDLE_S)
        used_s, before_s = time.process_time() + processor_s(reader_pid), used_s


def processor_s(pid: int) -> float:
    """Processor time of a process so far, from /proc."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def move(pid: int, core: int) -> None:
    """All threads of a process to one core; those that they start stay there."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


@contextmanager
def reader(folder: Path, config: StrictModel, options: argparse.Namespace) -> Iterator[tuple[ReadersConfig, int]]:
    """How to reach a reader of the configuration, and the number of its process."""
    path = folder / "reader.yaml"
    path.write_text(dump_config(config))
    command = [*ROOKERY, "reader", str(path), "--listen", "127.0.0.1:0"]
    if options.sent:
        command.append("--no-shared-memory")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            said = process.stderr.readline()
            found = re.search(r"at grpc://(\S+)", said)
            assert found is not None, said
            if options.apart:
                move(process.pid, core=1)
            yield ReadersConfig(addresses=(found[1],)), process.pid
        finally:
            process.kill()


if __name__ == "__main__":
    main()
