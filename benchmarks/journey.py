"""A user's path through the command line, shared by the quality benchmarks: prepare, ingest, init, train, evaluate."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


class Journey:
    """Commands in a work folder; each is timed, their progress goes to stderr."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds: dict[str, float] = {}

    def rookery(self, *arguments: str | Path) -> str:
        """Stdout of one command. Stops the benchmark when it fails."""
        start = time.monotonic()
        command = [sys.executable, "-m", "rookery", *map(str, arguments)]
        finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        name = " ".join(map(str, arguments[:2]))
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - start, 1)
        return finished.stdout

    def graph(self, adapter: str, source: Path, name: str, *options: str) -> Path:
        """Prepare and ingest a public data set."""
        edges, graph = self.folder / f"{name}-edges", self.folder / name
        if not (graph / "manifest.json").exists():
            self.rookery("data", "prepare", adapter, source, edges, "--overwrite", *options)
            self.rookery("twhin", "ingest", edges, graph, "--overwrite", "--json")
        return graph

    def train(self, graph: Path, name: str, *, init: Sequence[str] = (), overrides: Sequence[str] = ()) -> Path:
        """Write the initial configuration and train it; a run that was interrupted goes on."""
        config, run = self.folder / f"{name}.yaml", self.folder / name
        config.write_text(self.rookery("twhin", "init", graph, *init))
        sets = [part for override in overrides for part in ("--set", override)]
        self.rookery("twhin", "train", config, "--save-dir", run, "--json", *sets)
        return run

    def evaluate(self, run: Path, split: str) -> dict[str, Any]:
        return dict(json.loads(self.rookery("twhin", "evaluate", run, "--split", split, "--json")))


def main(description: str | None, run: Callable[[Journey, argparse.Namespace], dict[str, Any]], **flags: Any) -> None:
    """Run a benchmark: ``--json`` prints one object, ``--work`` keeps what it makes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--work", type=Path, help="keep graphs and runs in this folder (default: a temporary one)")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the raw data sets")
    for flag, options in flags.items():
        parser.add_argument(f"--{flag}", **options)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        journey = Journey(folder)
        result = {**run(journey, arguments), "seconds": journey.seconds}
    print(json.dumps(result) if arguments.json else "\n".join(f"{key}: {value}" for key, value in result.items()))
