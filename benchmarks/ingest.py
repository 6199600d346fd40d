"""How fast are raw edges ingested, and in how much memory?

    python benchmarks/ingest.py [--edges 10_000_000] [--json]

Generates a TSV ``lhs<TAB>relation<TAB>rhs`` with string ids, three relations and heavy-tailed degrees (an entity for
every ten edges), then runs ``rookery twhin ingest`` on it in a process of its own. ``edges_per_s`` is wall time from
start to exit; ``edges_per_cpu_s`` counts the processor time of all threads and so stands still when the machine is
busy: times the number of cores, it bounds what idle cores reach. ``peak_rss_bytes`` is the most memory that the
process held.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb

EDGES_PER_ENTITY = 10


def main() -> None:
    options = parse_arguments()
    with tempfile.TemporaryDirectory(dir=options.workdir, prefix="ingest-benchmark-") as folder:
        source = Path(folder) / f"edges.{options.format}"
        generate(source, options)
        result = {**settings(options), "input_bytes": source.stat().st_size, **measure(source, options)}
    print(json.dumps(result) if options.json else render(result))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edges", type=int, default=10_000_000)
    parser.add_argument("--ids", choices=("string", "int64"), default="string")
    parser.add_argument("--format", choices=("tsv", "parquet"), default="tsv")
    parser.add_argument("--threads", type=int, default=None, help="default: every core")
    parser.add_argument("--memory-limit", default=None, help="default: that of the ingest")
    parser.add_argument(
        "--workdir", type=Path, default=None, help="for the generated file and the graph; default: temporary"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def settings(options: argparse.Namespace) -> dict[str, object]:
    names = ("edges", "ids", "format", "threads", "memory_limit")
    return {"benchmark": "ingest", "num_cores": os.cpu_count(), **{name: getattr(options, name) for name in names}}


def generate(file: Path, options: argparse.Namespace) -> None:
    """Edges as a function of their number alone: the same file every time."""
    half = max(1, options.edges // EDGES_PER_ENTITY // 2)
    lhs, rhs = (f"(pow(hash(range, {salt}) / 18446744073709551616.0, 3) * {half})::BIGINT" for salt in (1, 2))
    if options.ids == "string":
        lhs, rhs = f"'user_' || {lhs}", f"'item_' || {rhs}"
    else:
        rhs = f"{rhs} + {half + 1}"
    relation = "['follow', 'like', 'reply'][(hash(range, 3) % 3 + 1)::BIGINT]"
    query = f"SELECT {lhs} AS lhs, {relation} AS relation, {rhs} AS rhs FROM range({options.edges})"
    kind = "FORMAT csv, HEADER false, DELIMITER '\t'" if options.format == "tsv" else "FORMAT parquet"
    duckdb.connect().execute(f"COPY ({query}) TO '{file}' ({kind})")


def measure(source: Path, options: argparse.Namespace) -> dict[str, object]:
    graph = source.parent / "graph"
    command = [sys.executable, "-m", "rookery", "twhin", "ingest", str(source), str(graph), "--json"]
    command += ["--id-type", options.ids]
    for flag in ("threads", "memory_limit"):
        if getattr(options, flag) is not None:
            command += [f"--{flag.replace('_', '-')}", str(getattr(options, flag))]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    report = json.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    elapsed_s = time.perf_counter() - started
    assert status == 0
    cpu_s = usage.ru_utime + usage.ru_stime
    return {
        "num_entities": sum(report["entity_types"].values()),
        "graph_bytes": sum(file.stat().st_size for file in graph.rglob("*.parquet")),
        "elapsed_s": elapsed_s,
        "cpu_s": cpu_s,
        "edges_per_s": options.edges / elapsed_s,
        "edges_per_cpu_s": options.edges / cpu_s,
        "peak_rss_bytes": usage.ru_maxrss * 1024,
    }


def render(result: dict[str, object]) -> str:
    return "\n".join(
        f"{name:>16}  {value:,}" if isinstance(value, int) else f"{name:>16}  {value}" for name, value in result.items()
    )


if __name__ == "__main__":
    main()
