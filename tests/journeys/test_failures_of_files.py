"""Training through disks that fill up, and checkpoints and data that go bad.

Each ends with the run that nothing touched: the same parameters (bit for bit where one process trained, else to 1e-5),
and a ledger that proves that no row was lost or read twice.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from blanked_pages import blank_row_group
from forked_commands import end, wait_for
from survived_runs import checkpoint_folder, require_clean, require_survived
from training_jobs import Job, fault_of

from rookery.checkpoint.checkpointer import load_checkpoint
from rookery.checkpoint.layout import checkpoint_steps

# -- the disk ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "size", "rank", "is_async"),
    [
        ("twhin", 1, 0, False),
        ("twhin", 2, 0, False),
        ("twhin in torchrec", 2, 1, True),  # of tables that all processes have the chief alone writes
        pytest.param("twhin in torchrec", 2, 1, False, marks=pytest.mark.long),
        pytest.param("twhin in torchrec", 2, 0, True, marks=pytest.mark.long),
        pytest.param("ranker in torchrec", 2, 1, True, marks=pytest.mark.long),
    ],
)
def test_no_room_for_a_checkpoint(
    jobs: Callable[[str], Job], run: Path, model: str, size: int, rank: int, is_async: bool
) -> None:
    """All end, one says why; what was begun is removed, earlier checkpoints are whole."""
    job = jobs(model)
    faults = {rank: fault_of(job, "file", "full")}
    said = job.run(run, size, faults, codes=[1] * size, training__checkpoint_async=is_async)
    (told,) = (each for each in said if "error" in each or "Traceback" in each)
    require_clean(told)
    assert f"the checkpoint of step {5 * job.every_n} could not be written" in told
    assert f"(rank {rank}: " in told or size == 1
    assert "make room" in told
    assert load_checkpoint(run).step == 4 * job.every_n
    assert [path.name for path in (run / "checkpoints").glob(".*")] == []
    job.run(run, size)
    require_survived(run, job.whole, to_the_bit=size == 1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_a_disk_that_fills_up(twhin: Job, small_disk: Path, gate: Path, size: int) -> None:
    """Whatever file is the first that finds no room, the message says where to make some."""
    run = small_disk / "run"
    held = fault_of(twhin, "step", "hold", gate)
    commands = twhin.start(run, size, dict.fromkeys(range(size), held))
    try:
        wait_for(held.reached.exists, commands)
        fill(small_disk / "other.bin")
        gate.touch()
        codes = [command.wait() for command in commands]
    finally:
        end(commands)
    (small_disk / "other.bin").unlink()
    said = [command.err.read_text() for command in commands]
    assert codes == [1] * size
    for each in said:  # what a thread of TensorBoard's cannot write it shows as a traceback of its own
        assert each.count("Traceback") == each.count("Exception in thread"), each
        assert "error: " in each
    message = said[0].rpartition("error: ")[2]
    assert re.search(f"{run}.*No space left on device.*make room", message), message
    twhin.run(run, size)
    require_survived(run, twhin.whole, to_the_bit=size == 1)


def fill(file: Path) -> None:
    """Leave no byte of room."""
    with file.open("wb", buffering=0) as stream:
        for size in (65_536, 4_096, 1):
            try:
                while True:
                    stream.write(bytes(size))
            except OSError:
                continue


# -- damaged checkpoints ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def half(jobs: Callable[[str], Job], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """A run by its model and number of processes that ended at the tenth checkpoint."""

    @functools.cache
    def run(model: str, size: int) -> Path:
        job, folder = jobs(model), tmp_path_factory.mktemp("half") / "run"
        job.run(folder, size, training__num_train_steps=10 * job.every_n)
        return folder

    return run


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-5] ^= 8
    file.write_bytes(data)


DAMAGES = {"truncated": truncate, "flipped": flip_a_bit, "missing": Path.unlink}


DAMAGED = [(size, file, damage) for size, file in ((1, ""), (2, "/rank-00000")) for damage in DAMAGES]
SHARD = "/rank-00001"
"""What only the second process has of the tables."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "size", "file", "damage"),
    [
        *(("twhin", *case) for case in DAMAGED),
        ("twhin in torchrec", 2, SHARD, "flipped"),
        pytest.param("twhin in torchrec", 2, SHARD, "truncated", marks=pytest.mark.long),
        pytest.param("twhin in torchrec", 2, SHARD, "missing", marks=pytest.mark.long),
        pytest.param("ranker in torchrec", 2, SHARD, "flipped", marks=pytest.mark.long),
    ],
)
def test_a_damaged_checkpoint(
    jobs: Callable[[str], Job],
    half: Callable[[str, int], Path],
    run: Path,
    model: str,
    size: int,
    file: str,
    damage: str,
) -> None:
    """The one before is used, and it is said loudly which file is why."""
    job = jobs(model)
    shutil.copytree(half(model, size), run)
    step = 10 * job.every_n
    damaged = checkpoint_folder(run, step) / f"model{file}.safetensors"
    DAMAGES[damage](damaged)
    said = "".join(job.run(run, size))
    assert f"DAMAGED CHECKPOINT {damaged}" in said
    assert f"going back to step {step - job.every_n}" in said
    require_survived(run, job.whole, to_the_bit=size == 1)


@pytest.mark.slow
def test_where_all_checkpoints_are_damaged_nothing_is_started_anew(
    twhin: Job, half: Callable[[str, int], Path], run: Path
) -> None:
    whole = half("twhin", 1)
    shutil.copytree(whole, run)
    for step in checkpoint_steps(run):
        truncate(checkpoint_folder(run, step) / "state.json")
    (said,) = twhin.run(run, codes=[2])
    require_clean(said)
    assert "every checkpoint is damaged" in said
    assert checkpoint_steps(run) == checkpoint_steps(whole)


# -- damaged data -----------------------------------------------------------------------------------------------------


def damaged_data(job: Job, folder: Path) -> tuple[Job, Path, str]:
    """A copy of the job with its own data, the file of them to damage, and a column of it."""
    source = {"twhin": "graph", "ranker": "log"}[job.model]
    shutil.copytree(job.config.parent / source, folder / source)
    config = folder / "config.yaml"
    config.write_text(job.config.read_text().replace(f"{job.config.parent}/{source}", f"{folder}/{source}"))
    shutil.copytree(job.whole, folder / "whole")
    if job.model == "twhin":
        return replace(job, config=config), folder / "graph" / "edges" / "train" / "part-1.parquet", "rhs"
    return replace(job, config=config), folder / "log" / "part-1.parquet", "age"


@pytest.mark.slow
@pytest.mark.parametrize(("model", "size"), [("twhin", 1), ("twhin", 2), ("ranker", 1)])
def test_a_row_group_that_goes_bad_ends_the_run(
    jobs: Callable[[str], Job], tmp_path: Path, run: Path, gate: Path, model: str, size: int
) -> None:
    """Under the policy that is not asked for: file, row group and column are named; mended, the run goes on."""
    job, file, column = damaged_data(jobs(model), tmp_path)
    sound = file.read_bytes()
    held = fault_of(job, "step", "hold", gate)
    commands = job.start(run, size, dict.fromkeys(range(size), held))
    try:
        wait_for(held.reached.exists, commands)
        blank_row_group(file, 0, column)
        gate.touch()
        codes = [command.wait() for command in commands]
    finally:
        end(commands)
    said = [command.err.read_text() for command in commands]
    assert set(codes) <= {1, 2} and 2 in codes, said
    assert f"{file}: row group 0, column '{column}' cannot be decoded" in "".join(said)
    for each in said:
        require_clean(each)
    file.write_bytes(sound)
    job.run(run, size)
    require_survived(run, job.whole, to_the_bit=size == 1)


@pytest.mark.slow
@pytest.mark.parametrize("model", [pytest.param("twhin", marks=pytest.mark.long), "ranker"])
def test_row_groups_that_are_skipped_are_counted(jobs: Callable[[str], Job], tmp_path: Path, model: str) -> None:
    """Each epoch proves that all other rows were read; one process and two learn the same, killed or not."""
    job, file, column = damaged_data(jobs(model), tmp_path)
    lost = pq.read_metadata(file).row_group(0).num_rows
    blank_row_group(file, 0, column)
    shutil.rmtree(job.whole)
    (said,) = job.run(job.whole, train_data__on_corrupt="skip")
    assert f"{file}: row group 0, column '{column}' cannot be decoded" in said
    assert "Its rows are left out of all batches" in said
    assert f"{lost} of " in said
    state = load_checkpoint(job.whole).state
    assert state["ledger"]["rows_skipped"] == lost * state["ledger"]["epochs_proved"] > 0
    for size, victim in ((1, 0), (2, 1)):
        run = tmp_path / str(size) / "run"
        codes = [-signal.SIGKILL if rank == victim else 1 for rank in range(size)]
        job.run(run, size, {victim: fault_of(job, "step")}, codes=codes, train_data__on_corrupt="skip")
        job.run(run, size, train_data__on_corrupt="skip")
        require_survived(run, job.whole, to_the_bit=size == 1)
