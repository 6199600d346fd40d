"""Waiting for checkpoints, and knowing the last one."""

from __future__ import annotations

import shutil
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rookery.checkpoint.checkpointer import Checkpointer, checkpoint_state
from rookery.checkpoint.fetch import local_folder
from rookery.checkpoint.publish import Publisher
from rookery.errors import RunNotFound
from rookery.storage.location import RemotePath
from rookery.train.config import EarlyStopping, KeepBest, TrainingConfig
from rookery.train.evaluations import write_evaluation
from rookery.train.follow import follow, is_last, measured_while_there, new_checkpoints


def save(run: Path, step: int, **best: object) -> None:
    ends = {"num_steps": 100, "num_train_steps": 100, "num_epochs": None}
    Checkpointer(run).save(step, {"model": {"weight": torch.ones(2)}}, {"best": best or None, "ends": ends})


def remove(run: Path, step: int) -> None:
    shutil.rmtree(run / "checkpoints" / f"step-{step:09d}")


def test_those_that_lie_there_come_once_in_their_order_and_later_ones_as_they_come(tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    writer = threading.Timer(0.3, save, (tmp_path, 40))
    steps = new_checkpoints(tmp_path, timeout_s=20, poll_s=0.02)
    assert [next(steps), next(steps)] == [10, 20]
    writer.start()
    assert next(steps) == 40


def test_it_ends_when_none_comes_in_time_and_work_on_one_does_not_count(tmp_path: Path) -> None:
    save(tmp_path, 1)
    steps = new_checkpoints(tmp_path, timeout_s=0.2, poll_s=0.01)
    assert next(steps) == 1
    time.sleep(0.4)
    save(tmp_path, 2)
    assert next(steps) == 2
    started = time.monotonic()
    assert list(steps) == []
    assert time.monotonic() - started >= 0.2


def test_a_run_that_does_not_exist_yet_is_waited_for(tmp_path: Path) -> None:
    writer = threading.Timer(0.2, save, (tmp_path / "run", 5))
    writer.start()
    assert next(new_checkpoints(tmp_path / "run", timeout_s=20, poll_s=0.02)) == 5


def test_a_checkpoint_that_was_deleted_meanwhile_is_passed_over_and_other_errors_are_not(tmp_path: Path) -> None:
    save(tmp_path, 1)

    def deleted(run: Path, step: int) -> None:
        remove(run, step)
        raise RunNotFound("gone")

    def damaged(run: Path, step: int) -> None:
        raise RunNotFound("still there, but no run")

    assert measured_while_there(tmp_path, 1, lambda run, step: None)
    with pytest.raises(RunNotFound, match="still there"):
        measured_while_there(tmp_path, 1, damaged)
    assert not measured_while_there(tmp_path, 1, deleted)


def training(**fields: object) -> Callable[[Path], TrainingConfig]:
    return lambda run: TrainingConfig.model_validate({"save_dir": run, "num_train_steps": 100, **fields})


def test_the_last_one_is_that_of_the_last_step(tmp_path: Path) -> None:
    save(tmp_path, 99)
    assert not is_last(tmp_path, 99, training())
    save(tmp_path, 100)
    assert is_last(tmp_path, 100, training())


def test_a_run_that_was_given_more_steps_goes_on(tmp_path: Path) -> None:
    save(tmp_path, 100)
    assert not is_last(tmp_path, 100, training(num_train_steps=150))
    assert not is_last(tmp_path, 100, training(num_epochs=3))


@pytest.mark.parametrize(("num_without_gain", "ends"), [(1, False), (2, True)])
def test_or_that_at_which_training_gave_up(tmp_path: Path, num_without_gain: int, ends: bool) -> None:
    config = training(
        validate_every_n=10,
        keep_best=KeepBest(metric="valid/mean/auroc"),
        early_stopping=EarlyStopping(patience=2),
    )
    progress = {"best_step": 10, "best_value": 0.7, "reference": 0.7, "num_without_gain": num_without_gain}
    save(tmp_path, 30, metric="valid/mean/auroc", mode="max", **progress)
    assert is_last(tmp_path, 30, config) is ends
    remove(tmp_path, 30)
    assert not is_last(tmp_path, 30, config)


def test_a_published_run_is_fetched_as_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of its checkpoints is measured already, one goes before it is fetched, the last one comes meanwhile."""
    monkeypatch.setenv("ROOKERY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("rookery.train.follow._LIST_EVERY_S", 0.02)
    run, url = tmp_path / "run", RemotePath("memory", f"birds/{uuid.uuid4().hex}")
    publisher = Publisher(run, url, max_to_keep=2)

    def publish(step: int) -> None:
        save(run, step)
        publisher.publish(step)

    for step in (10, 20):
        publish(step)
    folder = local_folder(url)
    write_evaluation(folder, "test", 10, {})
    measured = []

    def measure(copy: Path, step: int) -> None:
        assert (copy, checkpoint_state(copy, step)["ends"]["num_steps"]) == (folder, 100)
        measured.append(step)
        if step == 20:
            for later in (30, 40, 100):
                publish(later)

    followed = follow(url, "test", training(), measure, timeout_s=20)
    assert measured == followed["evaluated"] == [20, 40, 100]
    assert (followed["run"], followed["reason"]) == (str(url), "finished")
