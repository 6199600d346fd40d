"""Training from readers in processes of their own, which are killed, stopped and started again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked_commands import Command, wait_for
from served_readers import Reader, reading, settings, starting
from survived_runs import last_step, require_survived
from training_jobs import Job, finish

from rookery.checkpoint.layout import checkpoint_steps
from rookery.ranker.inputs import INPUTS, MANIFEST


def wait_for_step(commands: list[Command], save_dir: Path, step: int) -> None:
    wait_for(lambda: last_step(save_dir) >= step, commands)


@pytest.mark.slow
def test_twhin_loses_nothing_with_a_reader_that_is_killed(twhin: Job, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with reading(twhin, count=2) as readers:
        commands = twhin.start(run, **settings(readers))
        wait_for_step(commands, run, 20)
        readers[0].command.send(signal.SIGKILL)
        (said,) = finish(commands)
    assert f"reader {readers[0].address}: " in said
    assert "its tickets go to the others" in said
    require_survived(run, twhin.whole, to_the_bit=True)


def hold_until_all_serve(trainer: Command, run: Path, readers: list[Reader]) -> None:
    """Stop a trainer that has written its inputs until all readers have opened them: it would begin with the first."""
    wait_for((run / INPUTS / MANIFEST).exists, [trainer])
    trainer.send(signal.SIGSTOP)
    wait_for(lambda: all("at grpc://" in reader.command.err.read_text() for reader in readers), [trainer])
    trainer.send(signal.SIGCONT)


@pytest.mark.slow
def test_the_ranker_loses_nothing_with_a_reader_that_hangs(long_ranker: Job, tmp_path: Path) -> None:
    """Readers wait for the inputs that the trainer writes; one hangs in the middle, and the trainer still ends."""
    run = tmp_path / "run"
    with starting(long_ranker, "--save-dir", run, count=2) as readers:
        first = readers[0].command
        wait_for(lambda: f"waiting for {run / 'inputs'}" in first.err.read_text(), [first])
        commands = long_ranker.start(run, **settings(readers, deadline_s=2))
        hold_until_all_serve(commands[0], run, readers)
        wait_for_step(commands, run, 20)
        readers[1].command.send(signal.SIGSTOP)
        (said,) = finish(commands)
    assert f"reader {readers[1].address}: it did not answer within the deadline; its tickets go to the others" in said
    require_survived(run, long_ranker.whole, to_the_bit=True)


@pytest.mark.slow
def test_with_no_reader_left_training_stops_and_goes_on_later(twhin: Job, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with reading(twhin) as readers:
        commands = twhin.start(run, **settings(readers, wait_s=2))
        wait_for_step(commands, run, 30)
        readers[0].command.send(signal.SIGKILL)
        (said,) = finish(commands, [1])
    assert "no reader answers; training waits up to 2 s" in said
    assert f"error: no reader has given what this trainer needs for 2 s:\n  {readers[0].address}: " in said
    assert checkpoint_steps(run)[-1] == last_step(run) >= 30
    with reading(twhin) as readers:
        twhin.run(run, **settings(readers))
    require_survived(run, twhin.whole, to_the_bit=True)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_sigterm_ends_a_wait_for_readers_with_a_checkpoint(twhin: Job, tmp_path: Path, size: int) -> None:
    """Of several processes it is enough that one is told."""
    run = tmp_path / "run"
    with reading(twhin) as readers:
        commands = twhin.start(run, size, **settings(readers))
        wait_for_step(commands, run, 20)
        readers[0].command.send(signal.SIGKILL)
        wait_for(lambda: all("training waits up to 45 s" in each.err.read_text() for each in commands), commands)
        time.sleep(1)  # what came ahead is used up
        assert all(command.is_running for command in commands)
        commands[-1].send(signal.SIGTERM)
        began = time.monotonic()
        finish(commands)
        assert time.monotonic() - began < 10
    report = json.loads(commands[0].out.read_text())
    assert (report["reason"], report["signal"]) == ("interrupted", "SIGTERM")
    assert checkpoint_steps(run)[-1] == last_step(run) == report["step"]
    with reading(twhin) as readers:
        twhin.run(run, size, **settings(readers))
    require_survived(run, twhin.whole, to_the_bit=size == 1)


def test_a_reader_of_something_else_is_named(twhin: Job, tmp_path: Path) -> None:
    with reading(twhin, "--set", "runtime.seed=7") as readers:
        (said,) = twhin.run(tmp_path / "run", codes=[2], **settings(readers))
    assert f"error: parallel.readers: reader {readers[0].address}: it serves other batches" in said
    assert "  seed: the reader has 7, this trainer 0" in said
    assert not (tmp_path / "run").exists()


def test_a_token_is_demanded_for_any_other_address_and_of_every_trainer(twhin: Job, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rookery", "reader", str(twhin.config), "--listen", "0.0.0.0:0"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --listen=0.0.0.0: others can reach this address; name a file with a token")
    (tmp_path / "token").write_text("0123456789abcdef")
    with reading(twhin, "--token-file", tmp_path / "token") as readers:
        (said,) = twhin.run(tmp_path / "run", codes=[2], **settings(readers))
        assert "it does not admit this trainer: the token is missing or wrong" in said
        readers[0].command.send(signal.SIGTERM)
        assert readers[0].command.wait(30) == 0
