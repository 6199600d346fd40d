"""Training through failures of every kind: processes are killed, hang and lose their disk; files and losses go bad.

Each ends with the run that nothing touched: the same parameters (bit for bit where one process trained, else to 1e-5),
and a ledger that proves that no row was lost or read twice.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from faults import Action, Fault, Place
from forked_commands import end, wait_for
from ranks import free_port
from survived_runs import (
    NUM_LANES,
    Job,
    checkpoint_folder,
    log_of,
    ranker_job,
    require_survived,
    tensors_of,
    twhin_job,
)

from rookery.checkpoint.checkpointer import load_checkpoint
from rookery.checkpoint.layout import checkpoint_steps
from rookery.config.loader import load_config
from rookery.data.graph import Graph
from rookery.data.stream import StreamPosition
from rookery.train.order import StreamOrder
from rookery.twhin.config import TwhinConfig
from rookery.twhin.reading import open_edges

GRACE_S = 30
"""What Kubernetes gives a container between SIGTERM and SIGKILL, unless told otherwise."""


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    return {
        "twhin": twhin_job(tmp_path_factory.mktemp("twhin")),
        "ranker": ranker_job(tmp_path_factory.mktemp("ranker")),
    }


@pytest.fixture
def twhin(jobs: dict[str, Job]) -> Job:
    return jobs["twhin"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file that processes wait for."""
    return tmp_path / "gate"


def fault(job: Job, place: Place, action: Action = "kill", gate: Path | None = None) -> Fault:
    """At the fifth checkpoint, or in the step two behind it."""
    step = 5 * job.every_n
    return Fault(place, step + 2 if place in {"step", "loss"} else step, action, gate)


# -- SIGKILL ----------------------------------------------------------------------------------------------------------

VICTIMS = {
    "the only one": (1, [0]),
    "the chief of two": (2, [0]),
    "the other of two": (2, [1]),
    "both": (2, [0, 1]),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "who"),
    [*(("twhin", who) for who in VICTIMS), ("ranker", "the only one"), ("ranker", "the other of two")],
)
def test_kill_in_a_step(jobs: dict[str, Job], run: Path, model: str, who: str) -> None:
    """Those that are left end by themselves, say who is silent, and what to do."""
    job, (size, victims) = jobs[model], VICTIMS[who]
    codes = [-signal.SIGKILL if rank in victims else 1 for rank in range(size)]
    said = job.run(run, size, {rank: fault(job, "step") for rank in victims}, codes=codes)
    for rank in {*range(size)}.difference(victims):
        require_clean(said[rank])
        assert f"rank {rank} waited in vain" in said[rank]
        assert "start the run again" in said[rank]
    assert checkpoint_steps(run)[-1] == 5 * job.every_n
    job.run(run, size)
    require_survived(run, job, to_the_bit=size == 1)


def require_clean(said: str) -> None:
    """A message, and no traceback."""
    assert "error: " in said
    assert "Traceback" not in said, said


WRITES: list[tuple[str, int, int, Place, bool]] = [
    ("twhin", 1, 0, "file", False),
    ("twhin", 1, 0, "file", True),
    ("twhin", 1, 0, "sums", True),
    ("twhin", 1, 0, "rename", False),
    ("twhin", 1, 0, "rename", True),
    ("twhin", 1, 0, "renamed", True),
    ("twhin", 1, 0, "pruning", False),
    ("twhin", 2, 1, "file", False),
    ("twhin", 2, 0, "rename", True),
    ("ranker", 1, 0, "rename", True),
    ("ranker", 2, 0, "file", False),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "size", "victim", "place", "is_async"), WRITES)
def test_kill_while_a_checkpoint_is_written(
    jobs: dict[str, Job], run: Path, model: str, size: int, victim: int, place: Place, is_async: bool
) -> None:
    job = jobs[model]
    step = 5 * job.every_n
    codes = [-signal.SIGKILL if rank == victim else 1 for rank in range(size)]
    said = job.run(run, size, {victim: fault(job, place)}, codes=codes, training__checkpoint_async=is_async)
    for rank in {*range(size)} - {victim}:
        require_clean(said[rank])
    is_there = place in {"renamed", "pruning"}
    assert load_checkpoint(run).step == (step if is_there else step - job.every_n)
    job.run(run, size, training__checkpoint_async=is_async)
    require_survived(run, job, to_the_bit=size == 1)
    assert [path.name for path in (run / "checkpoints").glob(".*")] == []


# -- SIGTERM ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "size", "told"),
    [("twhin", 1, [0]), ("twhin", 2, [0, 1]), ("twhin", 2, [1]), ("ranker", 2, [0, 1])],
)
def test_sigterm_saves_and_ends_well(
    jobs: dict[str, Job], run: Path, gate: Path, model: str, size: int, told: list[int]
) -> None:
    """Also where a launcher that got it too passes it on, and where one process alone got it."""
    job = jobs[model]
    held = fault(job, "step", "hold", gate)
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
    require_survived(run, job, to_the_bit=size == 1)


# -- the disk ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("size", "rank", "is_async"), [(1, 0, False), (2, 0, False), (2, 1, True)])
def test_no_room_for_a_checkpoint(twhin: Job, run: Path, size: int, rank: int, is_async: bool) -> None:
    """All end with the same message; what was begun is removed, earlier checkpoints are whole."""
    faults = {rank: fault(twhin, "file", "full")}
    said = twhin.run(run, size, faults, codes=[1] * size, training__checkpoint_async=is_async)
    for each in said:
        require_clean(each)
        assert f"the checkpoint of step {5 * twhin.every_n} could not be written" in each
        assert "make room" in each
    assert load_checkpoint(run).step == 4 * twhin.every_n
    assert [path.name for path in (run / "checkpoints").glob(".*")] == []
    twhin.run(run, size)
    require_survived(run, twhin, to_the_bit=size == 1)


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
    held = fault(twhin, "step", "hold", gate)
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
    require_survived(run, twhin, to_the_bit=size == 1)


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
def halves(jobs: dict[str, Job], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs of one and of two processes that ended at the tenth checkpoint."""
    job, halves = jobs["twhin"], {}
    for size in (1, 2):
        halves[size] = tmp_path_factory.mktemp(f"half-{size}") / "run"
        job.run(halves[size], size, training__num_train_steps=10 * job.every_n)
    return halves


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-5] ^= 8
    file.write_bytes(data)


DAMAGES = {"truncated": truncate, "flipped": flip_a_bit, "missing": Path.unlink}


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint(twhin: Job, halves: dict[int, Path], run: Path, size: int, damage: str) -> None:
    """The one before is used, and it is said loudly which file is why."""
    shutil.copytree(halves[size], run)
    step = 10 * twhin.every_n
    files = sorted(checkpoint_folder(run, step).rglob("model*/*.safetensors" if size > 1 else "model.safetensors"))
    DAMAGES[damage](files[0])
    said = "".join(twhin.run(run, size))
    assert f"DAMAGED CHECKPOINT {files[0]}" in said
    assert f"going back to step {step - twhin.every_n}" in said
    require_survived(run, twhin, to_the_bit=size == 1)


@pytest.mark.slow
def test_where_all_checkpoints_are_damaged_nothing_is_started_anew(
    twhin: Job, halves: dict[int, Path], run: Path
) -> None:
    shutil.copytree(halves[1], run)
    for step in checkpoint_steps(run):
        truncate(checkpoint_folder(run, step) / "state.json")
    (said,) = twhin.run(run, codes=[2])
    require_clean(said)
    assert "every checkpoint is damaged" in said
    assert checkpoint_steps(run) == checkpoint_steps(halves[1])


# -- damaged data -----------------------------------------------------------------------------------------------------


def blank_row_group(file: Path, number: int, column: str) -> None:
    """Overwrite the pages of one column of a row group."""
    group = pq.read_metadata(file).row_group(number)
    chunk = next(group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == column)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data = bytearray(file.read_bytes())
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    file.write_bytes(data)


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
    jobs: dict[str, Job], tmp_path: Path, run: Path, gate: Path, model: str, size: int
) -> None:
    """Under the policy that is not asked for: file, row group and column are named; mended, the run goes on."""
    job, file, column = damaged_data(jobs[model], tmp_path)
    sound = file.read_bytes()
    held = fault(job, "step", "hold", gate)
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
    require_survived(run, job, to_the_bit=size == 1)


@pytest.mark.slow
@pytest.mark.parametrize("model", [pytest.param("twhin", marks=pytest.mark.long), "ranker"])
def test_row_groups_that_are_skipped_are_counted(jobs: dict[str, Job], tmp_path: Path, model: str) -> None:
    """Each epoch proves that all other rows were read; one process and two learn the same, killed or not."""
    job, file, column = damaged_data(jobs[model], tmp_path)
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
        job.run(run, size, {victim: fault(job, "step")}, codes=codes, train_data__on_corrupt="skip")
        job.run(run, size, train_data__on_corrupt="skip")
        require_survived(run, job, to_the_bit=size == 1)


# -- losses that are not finite ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("model", "size", "rank"), [("twhin", 1, 0), ("twhin", 2, 1), ("ranker", 1, 0)])
def test_a_loss_that_is_not_finite(jobs: dict[str, Job], run: Path, model: str, size: int, rank: int) -> None:
    """The run stops before the step, with the rows of it on disk. Where it was the machine's fault, it goes on."""
    job = jobs[model]
    spoiled = fault(job, "loss", "nan")
    said = job.run(run, size, {rank: spoiled}, codes=[1] * size)
    folder = run / "not-finite" / f"step-{spoiled.step + 1:09d}"
    for each in said:
        require_clean(each)
        assert f"the loss of step {spoiled.step + 1} " in each
        assert str(folder) in each
    assert log_of(run)[-1]["step"] == spoiled.step
    assert checkpoint_steps(run)[-1] == 5 * job.every_n
    require_same_as_whole_at(job, run, 5 * job.every_n, size)
    kept = pa.concat_tables([pq.read_table(file) for file in sorted(folder.glob("rank-*.parquet"))])
    positions = [StreamPosition(**each) for each in json.loads((folder / "positions.json").read_text())]
    if model == "twhin":
        assert sorted(map(tuple, zip(*kept.to_pydict().values(), strict=True))) == edges_behind(job, positions)
    else:
        assert kept.num_rows == job.batch_size * len(positions)
    job.run(run, size)
    require_survived(run, job, to_the_bit=size == 1)


def edges_behind(job: Job, positions: list[StreamPosition]) -> list[tuple[int, int, int]]:
    """The edges of some batches, sorted."""
    config = load_config(TwhinConfig, job.config)
    files = Graph.open(job.config.parent / "graph").split_files("train")
    stream = open_edges(config, files, StreamOrder(job.batch_size, NUM_LANES))
    edges: list[tuple[int, int, int]] = []
    for position in positions:
        stream.seek(replace(position, num_batches=position.num_batches - 1))
        batch = next(stream)
        edges += zip(*(batch[name].tolist() for name in ("lhs", "rel", "rhs")), strict=True)
    return sorted(edges)


def require_same_as_whole_at(job: Job, run: Path, step: int, size: int) -> None:
    """The newest checkpoint is what a run that ends there leaves."""
    until = run.with_name("until") / "run"
    job.run(until, size, training__num_train_steps=step)
    ours, theirs = (tensors_of(load_checkpoint(each)) for each in (run, until))
    torch.testing.assert_close(ours, theirs, rtol=1e-5 if size > 1 else 0, atol=1e-5 if size > 1 else 0)


# -- processes that hang ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_process_that_hangs_is_named(twhin: Job, run: Path, gate: Path, rank: int) -> None:
    """The other one says which is silent, and in which part of which step it was heard of last."""
    held = fault(twhin, "step", "hold", gate)
    commands = twhin.start(run, 2, {rank: held}, parallel__timeout_s=6)
    try:
        wait_for(held.reached.exists, commands)
        time.sleep(2.5)  # it tells where it is once a second
        commands[rank].send(signal.SIGSTOP)
        assert commands[1 - rank].wait() == 1
    finally:
        end(commands)
    said = commands[1 - rank].err.read_text()
    require_clean(said)
    assert f"rank {1 - rank} waited in vain for the others" in said
    assert re.search(rf"rank {1 - rank}: in .* of step {held.step + 1} for", said), said
    # The store that they tell each other in is the chief's: it hangs with it.
    silent = f"rank 1: silent, last in .* of step {held.step + 1} for" if rank else "rank 0: does not answer"
    assert re.search(silent, said), said
    twhin.run(run, 2)
    require_survived(run, twhin, to_the_bit=False)


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
    require_survived(run, twhin, to_the_bit=True)
    assert all(0 < line["time/total_s"] < 600 for line in log_of(run) if "time/total_s" in line)


# -- two runs in one directory ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_a_second_run_in_the_same_directory_is_refused(twhin: Job, run: Path, gate: Path, size: int) -> None:
    held = fault(twhin, "step", "hold", gate)
    commands = twhin.start(run, size, dict.fromkeys(range(size), held))
    try:
        wait_for(held.reached.exists, commands)
        before = contents(run)
        second = run.with_name("second") / "run"
        second.parent.mkdir()
        second.symlink_to(run)
        said = twhin.run(second, size, codes=[2, 1][:size])
        require_clean(said[0])
        assert "another process is training there" in said[0]
        assert contents(run) == before
        gate.touch()
        assert [command.wait() for command in commands] == [0] * size
    finally:
        end(commands)
    require_survived(run, twhin, to_the_bit=size == 1)


def contents(run: Path) -> dict[Path, bytes]:
    """All files but the events: those are written from time to time."""
    files = (path for path in run.rglob("*") if path.is_file() and path.parent.name != "tensorboard")
    return {path: path.read_bytes() for path in files}


# -- torchrun ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def agents() -> Iterator[list[subprocess.Popen[str]]]:
    """torchrun's processes, that end with the test together with what they started."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for agent in started:
        kill_machine(agent)


def start_agent(
    agents: list[subprocess.Popen[str]], launch: list[str], arguments: list[str], log: Path
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", *launch, "-m", "rookery", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("w") as stream:
        agent = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream, text=True)
    agents.append(agent)
    return agent


def kill_machine(agent: subprocess.Popen[str]) -> None:
    """SIGKILL for an agent and for all that it started, as when a machine is gone."""
    for pid in (agent.pid, *children_of(agent.pid)):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    agent.wait()


def children_of(pid: int) -> list[int]:
    children = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, listed.read_text().split()):
            children += [child, *children_of(child)]
    return children


def wait_until(condition: Any, agents: list[subprocess.Popen[str]], log: Path) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert all(agent.poll() is None for agent in agents), log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["twhin", pytest.param("ranker", marks=pytest.mark.long)])
def test_a_machine_that_is_gone_leaves_a_smaller_world(
    jobs: dict[str, Job], run: Path, tmp_path: Path, model: str, agents: list[subprocess.Popen[str]]
) -> None:
    """Two agents of torchrun with a process each; one agent and its process die. The other one goes on alone from the
    newest checkpoint, with the same global batch.
    """
    job = jobs[model]
    endpoint = f"127.0.0.1:{free_port()}"
    conf = "last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3"
    launch = ["--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-id=failing"]
    launch += [f"--rdzv-endpoint={endpoint}", "--local-addr=127.0.0.1"]
    arguments = [*job.arguments(run, 2, parallel__timeout_s=20)]
    log = tmp_path / "agent-0"
    # Where the agents meet is with the one that stays.
    staying = start_agent(agents, [*launch, f"--rdzv-conf={conf},is_host=1"], arguments, log)
    leaving = start_agent(agents, [*launch, f"--rdzv-conf={conf},is_host=0"], arguments, tmp_path / "agent-1")
    # One that is late finds the other under way alone: torchrun then starts both anew.
    wait_until(lambda: checkpoint_steps(run) and load_checkpoint(run).state["world_size"] == 2, agents, log)
    kill_machine(leaving)
    died_at = log_of(run)[-1]["step"]
    assert staying.wait(300) == 0, log.read_text()
    assert died_at < job.num_steps
    assert "resumed with 1 processes, 2 before" in log.read_text()
    assert load_checkpoint(run).state["world_size"] == 1
    require_survived(run, job, to_the_bit=False)


@pytest.mark.slow
def test_torchrun_restarts_a_process_that_died(
    twhin: Job, run: Path, tmp_path: Path, agents: list[subprocess.Popen[str]]
) -> None:
    launch = ["--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    log = tmp_path / "agent"
    agent = start_agent(agents, launch, twhin.arguments(run, 2), log)
    wait_until(lambda: checkpoint_steps(run), agents, log)
    os.kill(children_of(agent.pid)[-1], signal.SIGKILL)
    assert agent.wait(300) == 0, log.read_text()
    require_survived(run, twhin, to_the_bit=False)


@pytest.mark.slow
def test_sigterm_to_torchrun(twhin: Job, run: Path, tmp_path: Path, agents: list[subprocess.Popen[str]]) -> None:
    """Its processes save and exit 0; torchrun itself says 1."""
    log = tmp_path / "agent"
    agent = start_agent(agents, ["--standalone", "--nproc-per-node=2"], twhin.arguments(run, 2), log)
    wait_until(lambda: checkpoint_steps(run), agents, log)
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(GRACE_S) == 1, log.read_text()
    assert '"reason": "interrupted"' in log.read_text()
    assert checkpoint_steps(run)[-1] == log_of(run)[-1]["step"] < twhin.num_steps
    twhin.run(run, 2)
    require_survived(run, twhin, to_the_bit=False)
