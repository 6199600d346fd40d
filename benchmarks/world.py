"""How fast is a world generated, and in how much memory?

    python benchmarks/world.py [--size medium] [--log-days 10] [--json]

Generates a world in a process of its own. With several ``--log-days``, a world for each: the memory must not grow with
the rows of the log. ``peak_rss_bytes`` is the most memory that the process held; ``elapsed_s`` is wall time from start
to exit, ``cpu_s`` the processor time of all threads, which stands still when the machine is busy with other things.
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

from rookery.world.config import SIZES, WorldConfig
from rookery.world.generate import generate_world


def main() -> None:
    options = parse_arguments()
    if options.child is not None:
        generated = generate_world(Path(options.child), configuration(options.size, options.log_days[0]))
        print(generated.num_impressions)
        return
    days = options.log_days or [SIZES[options.size].log_days]
    result = {
        "benchmark": "world",
        "num_cores": os.cpu_count(),
        "size": options.size,
        "worlds": [measure(options, num_days) for num_days in days],
    }
    print(json.dumps(result) if options.json else render(result))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="medium")
    parser.add_argument("--log-days", type=int, nargs="+", default=[], help="default: those of the size")
    parser.add_argument("--workdir", type=Path, default=None, help="for the worlds; default: temporary")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def configuration(size: str, log_days: int) -> WorldConfig:
    return WorldConfig.of_size(size, seed=0).model_copy(update={"log_days": log_days})


def measure(options: argparse.Namespace, log_days: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory(dir=options.workdir, prefix="world-benchmark-") as folder:
        out = Path(folder) / "world"
        command = [sys.executable, __file__, "--size", options.size, "--log-days", str(log_days), "--child", str(out)]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        num_impressions = int(process.stdout.read())
        _, status, usage = os.wait4(process.pid, 0)
        elapsed_s, cpu_s = time.perf_counter() - started, usage.ru_utime + usage.ru_stime
        if status:
            raise SystemExit(f"the world was not generated: exit code {os.waitstatus_to_exitcode(status)}")
        written = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return {
        "log_days": log_days,
        "num_impressions": num_impressions,
        "elapsed_s": elapsed_s,
        "cpu_s": cpu_s,
        "peak_rss_bytes": usage.ru_maxrss * 1024,
        "output_bytes": written,
    }


def render(result: dict[str, object]) -> str:
    lines = [f"{result['size']} on {result['num_cores']} cores"]
    lines += [
        "{log_days} log days: {num_impressions:,} impressions in {elapsed_s:.1f} s ({cpu_s:.1f} s of processor time), "
        "{peak_rss_bytes:,} bytes of memory, {output_bytes:,} bytes of files".format(**world)
        for world in result["worlds"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
