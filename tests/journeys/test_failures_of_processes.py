"""Training through processes that are killed, told to stop, hang, lose the time of day or meet in one directory.

Each ends with the run that nothing touched: the same parameters (bit for bit where one process trained, else to 1e-5),
and a ledger that proves that no row was lost or read twice.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import Place
from forked_commands import end, wait_for
from survived_runs import log_of, require_clean, require_survived
from training_jobs import GRACE_S, Job, fault_of

from rookery.checkpoint.checkpointer import load_checkpoint
from rookery.checkpoint.layout import checkpoint_steps

# -- SIGKILL ----------------------------------------------------------------------------------------------------------

VICTIMS = {
    "the only one": (1, [0]),
    "the chief of two": (2, [0]),
    "the other of two": (2, [1]),
    "both": (2, [0, 1]),
    "one of three": (3, [1]),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "who"),
    [
        *(("twhin", who) for who in ["the only one", "the chief of two", "the other of two", "both"]),
        ("ranker", "the only one"),
        ("ranker", "the other of two"),
        ("twhin in torchrec", "one of three"),
        pytest.param("ranker in torchrec", "one of three", marks=pytest.mark.long),
    ],
)
def test_kill_in_a_step(jobs: Callable[[str], Job], run: Path, model: str, who: str) -> None:
    """Those that are left end by themselves, say who is silent, and what to do."""
    job, (size, victims) = jobs(model), VICTIMS[who]
    codes = [-signal.SIGKILL if rank in victims else 1 for rank in range(size)]
    said = job.run(run, size, {rank: fault_of(job, "step") for rank in victims}, codes=codes)
    for rank in {*range(size)}.difference(victims):
        require_clean(said[rank])
        assert f"rank {rank} waited in vain" in said[rank]
        assert "start the run again" in said[rank]
    assert checkpoint_steps(run)[-1] == 5 * job.every_n
    job.run(run, size)
    require_survived(run, job.whole, to_the_bit=size == 1)


WRITES: list[tuple[str, int, int, Place, bool]] = [
    ("twhin", 1, 0, "file", False),
    ("twhin", 1, 0, "file", True),
    ("twhin", 1, 0, "sums", True),
    ("twhin", 1, 0, "rename", False),
    ("twhin", 1, 0, "rename", True),
    ("twhin", 1, 0, "renamed", True),
    ("twhin", 1, 0, "pruning", False),
    ("twhin in torchrec", 2, 1, "file", False),
    ("twhin", 2, 0, "rename", True),
    ("ranker", 1, 0, "rename", True),
    ("ranker", 2, 0, "file", False),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "size", "victim", "place", "is_async"), WRITES)
def test_kill_while_a_checkpoint_is_written(
    jobs: Callable[[str], Job], run: Path, model: str, size: int, victim: int, place: Place, is_async: bool
) -> None:
    job = jobs(model)
    step = 5 * job.every_n
    codes = [-signal.SIGKILL if rank == victim else 1 for rank in range(size)]
    said = job.run(run, size, {victim: fault_of(job, place)}, codes=codes, training__checkpoint_async=is_async)
    for rank in {*range(size)} - {victim}:
        require_clean(said[rank])
    is_there = place in {"renamed", "pruning"}
    assert load_checkpoint(run).step == (step if is_there else step - job.every_n)
    job.run(run, size, training__checkpoint_async=is_async)
    require_survived(run, job.whole, to_the_bit=size == 1)
    assert [path.name for path in (run / "checkpoints").glob(".*")] == []


# -- SIGTERM ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "size", "told"),
    [("twhin", 1, [0]), ("twhin", 2, [0, 1]), ("twhin", 2, [1]), ("ranker", 2, [0, 1])],
)
def test_sigterm_saves_and_ends_well(
    jobs: Callable[[str], Job], run: Path, gate: Path, model: str, size: int, told: list[int]
) -> None:
    """Also where a launcher that got it too passes it on, and where one process alone got it."""
    job = jobs(model)
    held = fault_of(job, "step", "hold", gate)
    commands = job.start(run, size, dict.fromkeys(range(size), held), training__checkpoint_async=True)
    try:
        wait_for(held.reached.exists, commands)
        for rank in told * 2:
            commands[rank].send(signal.SIGTERM)
        gate.touch()
        began = time.monotonic()
        assert [command.wait() for command in commands] == [0] * size, commands[0].err.read_text()
        assert time.monotonic() - began < GRACE_S
    finally:
        end(commands)
    report = json.loads(commands[0].out.read_text())
    assert (report["reason"], report["signal"], report["step"]) == ("interrupted", "SIGTERM", held.step + 1)
    assert checkpoint_steps(run)[-1] == held.step + 1
    job.run(run, size)
    require_survived(run, job.whole, to_the_bit=size == 1)


# -- processes that hang ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_process_that_hangs_is_named(twhin: Job, run: Path, gate: Path, rank: int) -> None:
    """The other one says which is silent, and in which part of which step it was heard of last."""
    require_named(twhin, run, gate, rank)
    twhin.run(run, 2)
    require_survived(run, twhin.whole, to_the_bit=False)


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_hangs_while_ids_travel_is_named(
    jobs: Callable[[str], Job], run: Path, gate: Path, rank: int
) -> None:
    """Tables are sharded: in the step that it hangs in, the ids of the next one are on their way."""
    job = jobs("twhin in torchrec")
    require_named(job, run, gate, rank)
    job.run(run, 2)
    require_survived(run, job.whole, to_the_bit=False)


@pytest.mark.slow
@pytest.mark.parametrize("is_async", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_process_that_hangs_in_a_checkpoint_is_named(
    jobs: Callable[[str], Job], run: Path, gate: Path, is_async: bool
) -> None:
    """It stops writing; the other one waits no longer than for a message of the step, and says in what."""
    job = jobs("twhin in torchrec")
    held = fault_of(job, "file", "hold", gate)
    options = {"parallel__timeout_s": 6, "training__checkpoint_async": is_async}
    commands = job.start(run, 2, {1: held}, **options)
    try:
        wait_for(held.reached.exists, commands)
        commands[1].send(signal.SIGSTOP)
        assert commands[0].wait() == 1
    finally:
        end(commands)
    said = commands[0].err.read_text()
    require_clean(said)
    assert "rank 0 waited in vain for the others" in said, said
    assert re.search(r"rank 0: in \w+ of step \d+ for", said), said
    assert re.search(r"rank 1: silent for [3-9] s, last heard of in \w+ of step \d+", said), said
    job.run(run, 2)
    require_survived(run, job.whole, to_the_bit=False)


def require_named(job: Job, run: Path, gate: Path, rank: int) -> None:
    """Of two processes one hangs; the other ends and names it."""
    held = fault_of(job, "step", "hold", gate)
    commands = job.start(run, 2, {rank: held}, parallel__timeout_s=6)
    try:
        wait_for(held.reached.exists, commands)
        time.sleep(2.5)  # it tells where it is once a second
        commands[rank].send(signal.SIGSTOP)
        assert commands[1 - rank].wait() == 1
    finally:
        end(commands)
    said = commands[1 - rank].err.read_text()
    require_clean(said)
    assert re.search(rf"rank {1 - rank} waited in vain for the others in (all_reduce|ReduceScatterBase): ", said), said
    assert re.search(rf"rank {1 - rank}: in .* of step {held.step + 1} for", said), said
    # The store that they tell each other in is the chief's: it hangs with it.
    silent = rf"rank 1: silent for [4-9] s, last heard of in .* of step {held.step + 1}"
    silent = silent if rank else "rank 0: does not answer"
    assert re.search(silent, said), said


# -- clocks -----------------------------------------------------------------------------------------------------------

JUMPING_CLOCK = """
import random, time
_chance, _time, _shift = random.Random(7), time.time, [0.0]
def _jumping():
    if _chance.random() < 0.2:
        _shift[0] = _chance.uniform(-86_400, 86_400)
    return _time() + _shift[0]
time.time = _jumping
time.time_ns = lambda: int(1e9 * _jumping())
"""


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(twhin: Job, run: Path, tmp_path: Path) -> None:
    """Back and forth by up to a day at every fifth look: nothing depends on the time of day but what shows it."""
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(JUMPING_CLOCK)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "clock"), "OMP_NUM_THREADS": "1"}
    for last_step in (5 * twhin.every_n, twhin.num_steps):  # the second one goes on from a checkpoint
        arguments = twhin.arguments(run, 1, training__num_train_steps=last_step, training__checkpoint_async=True)
        subprocess.run([sys.executable, "-m", "rookery", *arguments], env=environment, check=True, capture_output=True)
    assert checkpoint_steps(run) == checkpoint_steps(twhin.whole)
    require_survived(run, twhin.whole, to_the_bit=True)
    assert all(0 < line["time/total_s"] < 600 for line in log_of(run) if "time/total_s" in line)


# -- two runs in one directory ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_a_second_run_in_the_same_directory_is_refused(twhin: Job, run: Path, gate: Path, size: int) -> None:
    held = fault_of(twhin, "step", "hold", gate)
    commands = twhin.start(run, size, dict.fromkeys(range(size), held))
    try:
        wait_for(held.reached.exists, commands)
        before = contents(run)
        second = run.with_name("second") / "run"
        second.parent.mkdir()
        second.symlink_to(run)
        said = twhin.run(second, size, codes=[2] * size)
        require_clean(said[0])
        assert said[1:] == [""] * (size - 1)
        assert "another process is training there" in said[0]
        assert contents(run) == before
        gate.touch()
        assert [command.wait() for command in commands] == [0] * size
    finally:
        end(commands)
    require_survived(run, twhin.whole, to_the_bit=size == 1)


def contents(run: Path) -> dict[Path, bytes]:
    """All files but the events: those are written from time to time."""
    files = (path for path in run.rglob("*") if path.is_file() and path.parent.name != "tensorboard")
    return {path: path.read_bytes() for path in files}
