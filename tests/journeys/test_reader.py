"""Training from readers in processes of their own, which are killed, stopped and started again."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from interrupted_runs import TIMEOUT_S, assert_same_run, last_step
from planted_impressions import planted_config, planted_log, write_log, write_vectors
from small_graph import make_config, planted_splits, write_graph

from rookery.checkpoint.checkpointer import load_checkpoint
from rookery.config.base import StrictModel
from rookery.config.loader import dump_config

ADDRESS = re.compile(r"reading .* at grpc(?:\+tls)?://(\S+)")
NUM_STEPS = 150


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "rookery", *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@dataclass(frozen=True)
class Reader:
    process: subprocess.Popen[str]
    address: str


@contextmanager
def reading(config: Path, *arguments: object, count: int = 1) -> Iterator[list[Reader]]:
    """Readers of a configuration, once they listen."""
    processes = [start("reader", config, "--listen", "127.0.0.1:0", *arguments) for _ in range(count)]
    try:
        yield [Reader(process, _address(process)) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    said = ""
    while (found := ADDRESS.search(said)) is None:
        assert select.select([process.stderr], [], [], 60)[0], said
        line = process.stderr.readline()
        assert line, said
        said += line
    return found[1]


@dataclass(frozen=True)
class Job:
    """A model's configuration, and the run of it on local files."""

    model: str
    config: Path
    whole: Path

    def train(self, save_dir: Path, readers: list[Reader], **settings: Any) -> subprocess.Popen[str]:
        given = {"addresses": [reader.address for reader in readers], "deadline_s": 20, "wait_s": 30, **settings}
        fields = [f"--set=parallel.readers.{name}={json.dumps(value)}" for name, value in given.items()]
        return start(self.model, "train", self.config, "--save-dir", save_dir, "--json", *fields)


def make_job(folder: Path, model: str, config: StrictModel) -> Job:
    path = folder / "config.yaml"
    path.write_text(dump_config(config))
    job = Job(model, path, folder / "whole")
    finish(start(model, "train", path, "--save-dir", job.whole, "--json"))
    return job


@pytest.fixture(scope="module")
def twhin(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("twhin")
    graph = write_graph(folder / "graph", planted_splits(), num_files=3, row_group_size=7)
    fields = {
        "training.num_train_steps": NUM_STEPS,
        "training.checkpoint_every_n": 20,
        "train_data.buffer_rows": 60,
        "parallel.num_lanes": 3,
    }
    return make_job(folder, "twhin", make_config(graph, folder / "unused", fields))


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder, log = tmp_path_factory.mktemp("ranker"), planted_log()
    write_log(folder / "log", log, num_files=3, row_group_rows=90)
    config = planted_config(
        folder / "log",
        folder / "unused",
        write_vectors(folder / "vectors", log),
        training__num_train_steps=NUM_STEPS,
        training__train_log_every_n=1,
        training__checkpoint_every_n=20,
        parallel__num_lanes=3,
        preprocess__downsample_negatives={"batch_multiplier": 3, "engagements_list": ["like", "share"]},
        runtime={"device": "cpu", "num_threads": 1},
    )
    return make_job(folder, "ranker", config)


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for the end; what was said on stderr."""
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == code, err
    return err


def wait_for_step(process: subprocess.Popen[str], save_dir: Path, step: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while last_step(save_dir) < step:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)


def assert_same(job: Job, save_dir: Path) -> None:
    """The same bits as on local files, and books that account for every row once."""
    assert_same_run(save_dir, job.whole)
    ours, theirs = (load_checkpoint(run).state["ledger"] for run in (save_dir, job.whole))
    assert ours == theirs
    assert ours["epochs_proved"] > 1


@pytest.mark.slow
def test_twhin_loses_nothing_with_a_reader_that_is_killed(twhin: Job, tmp_path: Path) -> None:
    with reading(twhin.config, count=2) as readers:
        process = twhin.train(tmp_path / "run", readers)
        wait_for_step(process, tmp_path / "run", 20)
        readers[0].process.kill()
        said = finish(process)
    assert f"reader {readers[0].address}: " in said
    assert "its tickets go to the others" in said
    assert_same(twhin, tmp_path / "run")


@pytest.mark.slow
def test_the_ranker_loses_nothing_with_a_reader_that_hangs(ranker: Job, tmp_path: Path) -> None:
    """Readers wait for the inputs that the trainer writes; one hangs in the middle, and the trainer still ends."""
    with reading_inputs_of(ranker, tmp_path / "run", count=2) as (readers, process):
        wait_for_step(process, tmp_path / "run", 20)
        readers[1].process.send_signal(signal.SIGSTOP)
        said = finish(process)
        readers[1].process.send_signal(signal.SIGCONT)
    assert f"reader {readers[1].address}: it did not answer within the deadline; its tickets go to the others" in said
    assert_same(ranker, tmp_path / "run")


@contextmanager
def reading_inputs_of(job: Job, save_dir: Path, count: int) -> Iterator[tuple[list[Reader], subprocess.Popen[str]]]:
    """Readers that were started before the run, and its trainer, which waits for them in turn."""
    ports = [18_960 + os.getpid() % 1_000 + 2_000 * number for number in range(count)]
    processes = [start("reader", job.config, "--listen", f"127.0.0.1:{port}", "--save-dir", save_dir) for port in ports]
    readers = [Reader(process, f"127.0.0.1:{port}") for process, port in zip(processes, ports, strict=True)]
    try:
        assert processes[0].stderr is not None
        assert f"waiting for {save_dir / 'inputs'}" in processes[0].stderr.readline()
        yield readers, job.train(save_dir, readers, deadline_s=2, wait_s=60)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_with_no_reader_left_training_stops_and_goes_on_later(twhin: Job, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with reading(twhin.config) as readers:
        process = twhin.train(run, readers, wait_s=2)
        wait_for_step(process, run, 30)
        readers[0].process.kill()
        said = finish(process, code=1)
    assert "no reader answers; training waits up to 2 s" in said
    assert f"error: no reader has given what this trainer needs for 2 s:\n  {readers[0].address}: " in said
    with reading(twhin.config) as readers:
        finish(twhin.train(run, readers))
    assert_same(twhin, run)


def test_a_reader_of_something_else_is_named(twhin: Job, tmp_path: Path) -> None:
    with reading(twhin.config, "--set", "runtime.seed=7") as readers:
        said = finish(twhin.train(tmp_path / "run", readers), code=2)
    assert f"error: parallel.readers: reader {readers[0].address}: it serves other batches" in said
    assert "  seed: the reader has 7, this trainer 0" in said
    assert not (tmp_path / "run").exists()


def test_a_token_is_demanded_for_any_other_address_and_of_every_trainer(twhin: Job, tmp_path: Path) -> None:
    said = finish(start("reader", twhin.config, "--listen", "0.0.0.0:0"), code=2)
    assert said.startswith("error: host=0.0.0.0: others can reach this address; name a file with a token")
    (tmp_path / "token").write_text("0123456789abcdef")
    with reading(twhin.config, "--token-file", tmp_path / "token") as readers:
        said = finish(twhin.train(tmp_path / "run", readers), code=2)
        assert "it does not admit this trainer: the token is missing or wrong" in said
        readers[0].process.send_signal(signal.SIGTERM)
        assert readers[0].process.wait(timeout=30) == 0
