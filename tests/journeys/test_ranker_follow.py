"""An evaluator beside training: two processes, one run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from evaluated_run import write_config

ROOKERY = (sys.executable, "-m", "rookery", "ranker")


def test_an_evaluator_started_first_measures_every_checkpoint_and_ends_with_training(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    arguments = ("evaluate", tmp_path / "run", "--follow", "--timeout", "120", "--json")
    evaluator = subprocess.Popen([*ROOKERY, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        subprocess.run([*ROOKERY, "train", config], check=True, capture_output=True)
        out, err = evaluator.communicate(timeout=120)
    finally:
        evaluator.kill()
    assert evaluator.returncode == 0, err
    result = json.loads(out)
    assert (result["evaluated"], result["reason"]) == ([20, 40, 60], "finished")
    assert [line.split(":")[0] for line in err.splitlines() if line.startswith("step")] == [
        "step 20",
        "step 40",
        "step 60",
    ]
    kept = tmp_path / "run" / "evaluations" / "test"
    assert sorted(path.name for path in kept.iterdir()) == [
        "report.html",
        *(f"step-{step:09d}.json" for step in (20, 40, 60)),
    ]
