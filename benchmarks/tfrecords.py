"""Records a second from gzip TFRecords of the 2022 schema (6,000 floats, 28 KB a record) on two cores.

    python benchmarks/tfrecords.py [--json] [--inflaters]

``dense``: every float is drawn, as by ``rookery data generate-reference`` (gzip leaves 86%); ``sparse``: one in ten is
not 0 (14%). Files are as large as the page cache holds. All columns are read, sums of records and of gzip compared.

``first_pass``: finding the blocks of files that are new. ``parsed``: blocks in file order as Arrow columns. ``stream``:
shuffled batches of tensors, as in training, the median of epochs; the largest buffer is a quarter of the rows.
``convert``: to Parquet. Each by the clock (``_per_s``) and by processor time of all threads (``_per_core_s``).

``--inflaters`` compares what inflates instead, on one core: zlib, and of zlib_ng, isal and deflate what is installed.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from zlib_ng import zlib_ng

from rookery.data.columns import ColumnRequest
from rookery.data.files_config import RecordsConfig
from rookery.data.record_convert import convert_records
from rookery.data.record_files import RecordFile, record_files
from rookery.data.record_index import BLOCK_BYTES
from rookery.data.reference_records import SCHEMA_FILE, reference_columns, write_reference
from rookery.data.row_groups import facts_of
from rookery.data.stream import ParquetStream
from rookery.data.tf_example_forms import example
from rookery.data.tfrecord import GZIP_WBITS, Inflater, RecordReader, framed
from rookery.train.runtime import keep_freed_memory

THREADS = 2
WARM_UP = 4
"""Epochs until freed memory serves all that is asked for; a run of training has more."""
INPUT_BYTES = 131_072
SHARE = 0.1
"""Of floats of the sparse records that are not 0."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-records", type=int, default=16_384)
    parser.add_argument("--num-files", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--num-rounds", type=int, default=5)
    parser.add_argument("--inflaters", action="store_true", help="compare inflaters instead")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    keep_freed_memory()  # as commands do that train
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = {}
        for kind in ("dense", "sparse"):
            places = write(kind, Path(folder) / kind, options)
            figures[kind] = inflate(places[0]) if options.inflaters else measure(places, options)
    if options.json:
        print(json.dumps({"benchmark": "tfrecords", "num_records": options.num_records, **figures}))
    else:
        for kind, rates in figures.items():
            print("\n".join(f"{kind:7s} {name:26s} {rate:12,.3f}" for name, rate in rates.items()))


def write(kind: str, folder: Path, options: argparse.Namespace) -> list[Path]:
    """The files of records; their schema lies beside."""
    written = write_reference(folder, options.num_records if kind == "dense" else 0, num_files=options.num_files)
    places = [folder / name for name in written.files]
    if kind == "sparse":
        write_sparse(places, options.num_records)
    return places


def measure(places: Sequence[Path], options: argparse.Namespace) -> dict[str, float]:
    """Records a second of each way of reading, and what gzip leaves."""
    folder = places[0].parent
    config = RecordsConfig(schema_path=folder / SCHEMA_FILE, index_dir=folder / "index")
    files = record_files(places, config)
    size = sum(place.stat().st_size for place in places)
    rates = {"bytes_per_record": size / options.num_records}
    rates |= rate("first_pass", options.num_records, [timed(lambda: [facts for _, facts in facts_of(files)])])
    rates |= rate("parsed", options.num_records, [timed(lambda: parse(files)) for _ in range(options.num_rounds)])
    rates |= rate("stream", options.num_records, epochs(files, options))
    rates |= rate("convert", options.num_records, [timed(lambda: convert_records(places, config, folder / "parquet"))])
    return rates


def inflate(place: Path) -> dict[str, float]:
    """Records a second of processor time that each inflater makes of one file, the best of three."""
    zipped = place.read_bytes()
    num_records = sum(1 for _ in records_of(zipped))
    ways: dict[str, Callable[[], object]] = {"zlib": lambda: zlib.decompressobj(GZIP_WBITS).decompress(zipped)}
    for module in ("zlib_ng.zlib_ng", "isal.isal_zlib", "deflate"):
        try:
            found = import_module(module)
        except ImportError:
            continue
        whole = getattr(found, "gzip_decompress", None)
        ways[module] = functools.partial(whole, zipped) if whole else functools.partial(stream, found, zipped)
    return {name: round(num_records / min(timed(way)[1] for _ in range(3))) for name, way in ways.items()}


def stream(module: Any, zipped: bytes) -> None:
    """In pieces, as the reader does."""
    member = module.decompressobj(wbits=GZIP_WBITS)
    for start in range(0, len(zipped), INPUT_BYTES):
        member.decompress(zipped[start : start + INPUT_BYTES])


def records_of(zipped: bytes) -> Iterator[int]:
    reader = RecordReader(Inflater(io.BytesIO(zipped)))
    while len(records := reader.read(BLOCK_BYTES)):
        yield from records.lengths.tolist()


def write_sparse(places: Sequence[Path], num_records: int) -> None:
    random = np.random.default_rng(0)
    for number, place in enumerate(places):
        member = zlib_ng.compressobj(wbits=GZIP_WBITS)
        rows = range(num_records * number // len(places), num_records * (number + 1) // len(places))
        data = [member.compress(framed(sparse_example(random))) for _ in rows]
        place.write_bytes(b"".join([*data, member.flush()]))


def sparse_example(random: np.random.Generator) -> bytes:
    def drawn(kind: str, length: int) -> np.ndarray:
        if kind == "float_list" and length > 1:
            return np.where(random.random(length) < SHARE, random.random(length), 0)
        return random.integers(0, 2, length)

    return example((each.feature, each.kind, drawn(each.kind, each.length)) for each in reference_columns())


def parse(files: Sequence[RecordFile]) -> None:
    """Every block of all files, by two threads, thrown away."""
    names = [column.name for column in files[0].columns]
    blocks = [(file, block) for file in files for block in range(len(file.blocks))]
    with ThreadPoolExecutor(THREADS) as threads:
        for _ in threads.map(lambda each: each[0].read(each[1], names).num_rows, blocks):
            pass


def epochs(files: Sequence[RecordFile], options: argparse.Namespace) -> list[tuple[float, float]]:
    """Seconds by the clock and of processor time of each epoch but the first ones, which also ask for memory."""
    requests = [
        ColumnRequest(column.name, "number") if column.length == 1 else ColumnRequest(column.name, "vector")
        for column in files[0].columns
    ]
    stream = ParquetStream(
        files, requests, options.batch_size, seed=0, shuffle=True, buffer_rows=-(-options.num_records // 4)
    )
    return [timed(lambda: take(stream)) for _ in range(WARM_UP + options.num_rounds)][WARM_UP:]


def take(stream: ParquetStream) -> None:
    for _ in range(stream.batches_per_epoch):
        next(stream)


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and of processor time over all threads."""
    start, cpu_start = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start, time.process_time() - cpu_start


def rate(name: str, num_records: int, rounds: Sequence[tuple[float, float]]) -> dict[str, float]:
    elapsed_s, cpu_s = zip(*rounds, strict=True)
    return {
        f"{name}_per_s": round(num_records / statistics.median(elapsed_s)),
        f"{name}_per_core_s": round(num_records / statistics.median(cpu_s)),
    }


if __name__ == "__main__":
    main()
