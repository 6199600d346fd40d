"""Waiting for checkpoints, and knowing the last one."""

from __future__ import annotations

import logging
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rookery.checkpoint.checkpointer import Checkpointer, checkpoint_state, load_checkpoint
from rookery.checkpoint.fetch import local_folder
from rookery.checkpoint.files import DamagedCheckpoint
from rookery.checkpoint.publish import Publisher
from rookery.errors import RunNotFound
from rookery.storage.location import RemotePath
from rookery.storage.remote import get, put
from rookery.train.config import EarlyStopping, KeepBest, TrainingConfig
from rookery.train.evaluations import evaluated_steps, evaluation_folder, write_evaluation
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


def test_one_that_is_written_anew_comes_again(tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    steps = new_checkpoints(tmp_path, timeout_s=20, poll_s=0.02)
    assert [next(steps), next(steps)] == [10, 20]
    remove(tmp_path, 20)
    save(tmp_path, 20)
    assert next(steps) == 20
    save(tmp_path, 30)
    assert next(steps) == 30


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


def flip(run: Path | RemotePath, step: int, scratch: Path, name: str = "model.safetensors") -> None:
    """Change a bit of a file of a checkpoint."""
    place = run / "checkpoints" / f"step-{step:09d}" / name
    file = scratch / "flipped" if isinstance(place, RemotePath) else place
    if isinstance(place, RemotePath):
        get(place, file)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    if isinstance(place, RemotePath):
        put(file, place)


def measure(run: Path, step: int) -> None:
    load_checkpoint(run, step)
    write_evaluation(run, "test", step, {})


@pytest.fixture(params=["path", "URL"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path | RemotePath:
    """A run with checkpoints of the steps 20, 40, … 100, the last of its configuration."""
    monkeypatch.setenv("ROOKERY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("rookery.train.follow._LIST_EVERY_S", 0.02)
    monkeypatch.setattr("rookery.checkpoint.fetch._PAUSE_S", 0.0)
    run, url = tmp_path / "run", RemotePath("memory", f"birds/{uuid.uuid4().hex}")
    publisher = Publisher(run, url, max_to_keep=9)
    for step in range(20, 120, 20):
        save(run, step)
        publisher.publish(step)
    return run if request.param == "path" else url


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_told_marked_and_passed_over(
    place: Path | RemotePath, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    flip(place, 60, tmp_path, name)
    with caplog.at_level(logging.WARNING):
        followed = follow(place, "test", training(), measure, timeout_s=20)
    assert (followed["evaluated"], followed["damaged"], followed["reason"]) == ([20, 40, 80, 100], [60], "finished")
    (told,) = [each.getMessage() for each in caplog.records if "step 60" in each.getMessage()]
    assert "DAMAGED CHECKPOINT " in told
    assert re.search(rf"{name}(\.writing)?: crc32 is ", told)  # of a URL that of the copy under way
    assert "--checkpoint" not in told
    marks = evaluation_folder(local_folder(place), "test").glob("*.damaged")
    assert {mark.name: mark.read_text().split(": ")[1][:8] for mark in marks} == {"step-000000060.damaged": "crc32 is"}
    # The next start tells it again, and measures it once it is whole.
    again = follow(place, "test", training(), measure, timeout_s=20)
    assert (again["evaluated"], again["damaged"]) == ([], [60])
    flip(place, 60, tmp_path, name)
    mended = follow(place, "test", training(), measure, timeout_s=20)
    assert (mended["evaluated"], mended["damaged"]) == ([60], [])
    assert evaluated_steps(local_folder(place), "test") == [20, 40, 60, 80, 100]
    assert list(evaluation_folder(local_folder(place), "test").glob("*.damaged")) == []


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_where_the_last_one_is_damaged_it_ends_with_an_error(
    place: Path | RemotePath, tmp_path: Path, name: str
) -> None:
    flip(place, 100, tmp_path, name)
    began = time.monotonic()
    with pytest.raises(DamagedCheckpoint, match="step 100, the last that came, is damaged") as error:
        follow(place, "test", training(), measure, timeout_s=60)
    assert time.monotonic() - began < 30  # it is known to be the last one
    assert error.value.exit_code == 2
    assert "restore it from a backup" in str(error.value)
    assert evaluated_steps(local_folder(place), "test") == [20, 40, 60, 80]


def test_also_where_it_came_last_and_time_ran_out(tmp_path: Path) -> None:
    for step in (20, 40):
        save(tmp_path, step)
    flip(tmp_path, 40, tmp_path)
    with pytest.raises(DamagedCheckpoint, match="step 40, the last that came"):
        follow(tmp_path, "test", training(), measure, timeout_s=0.1)
