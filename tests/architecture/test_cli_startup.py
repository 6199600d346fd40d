from __future__ import annotations

import subprocess
import sys
import time

HEAVY = {"torch", "torchrec", "fbgemm_gpu", "duckdb", "pyarrow", "faiss", "tensorboard", "pandas", "numpy"}
PROBE = "import sys, rookery.cli.main; print(*(name for name in sys.modules if '.' not in name))"


def test_the_command_line_loads_nothing_heavy():
    result = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert HEAVY & set(result.stdout.split()) == set()


def test_help_answers_at_once():
    elapsed_s = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "rookery", "--help"], capture_output=True, check=True)
        elapsed_s.append(time.perf_counter() - started)
    # A busy machine slows a single try; importing torch alone would take longer than this.
    assert min(elapsed_s) < 1.5
