from __future__ import annotations

import logging
import pickle
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rookery.checkpoint.background import Staging
from rookery.checkpoint.checkpointer import Checkpointer, latest_checkpoint, load_checkpoint, run_lock
from rookery.checkpoint.draft import Draft
from rookery.checkpoint.files import DamagedCheckpoint
from rookery.checkpoint.layout import best_step, checkpoint_steps
from rookery.checkpoint.shards import held_of
from rookery.errors import CheckpointError, RunNotFound, UserError


def save(checkpointer: Checkpointer, *steps: int) -> None:
    for step in steps:
        checkpointer.save(step, {"model": {"step": torch.tensor([step])}}, {})


def damage(save_dir: Path, step: int) -> Path:
    file = save_dir / "checkpoints" / f"step-{step:09d}" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    return file


@pytest.mark.parametrize(("every_n", "due"), [(None, []), (1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6])])
def test_when(tmp_path: Path, every_n: int | None, due: list[int]) -> None:
    checkpointer = Checkpointer(tmp_path, every_n)
    assert [step for step in range(1, 8) if checkpointer.due(step)] == due


@pytest.mark.parametrize(
    ("max_to_keep", "kept"), [(None, [5, 10, 15, 20]), (1, [20]), (3, [10, 15, 20]), (9, [5, 10, 15, 20])]
)
def test_the_newest_are_kept(tmp_path: Path, max_to_keep: int | None, kept: list[int]) -> None:
    save(Checkpointer(tmp_path, 5, max_to_keep), 5, 10, 15, 20)
    assert checkpoint_steps(tmp_path) == kept


def test_the_best_is_kept_in_addition_until_there_is_a_better_one(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, 5, 2)
    assert best_step(tmp_path) is None
    save(checkpointer, 5)
    checkpointer.mark_best(5, "mrr", 0.3)
    save(checkpointer, 10, 15, 20)
    assert checkpoint_steps(tmp_path) == [5, 15, 20]
    checkpointer.mark_best(15, "mrr", 0.4)
    save(checkpointer, 25, 30, 35)
    assert checkpoint_steps(tmp_path) == [15, 30, 35]
    assert best_step(tmp_path) == 15
    checkpointer.mark_best(999, "mrr", 0.5)
    assert best_step(tmp_path) == 15


def test_what_is_later_than_the_newest_save_goes(tmp_path: Path) -> None:
    """A run that fell back from a damaged step 20 to 10 must not lose 15 to a retention that counts 20."""
    checkpointer = Checkpointer(tmp_path, 5, 1)
    save(checkpointer, 20)
    damage(tmp_path, 20)
    save(checkpointer, 15)
    assert checkpoint_steps(tmp_path) == [15]


class TestAsynchronous:
    def test_what_is_stored_is_of_the_save_not_of_what_came_after(self, tmp_path: Path) -> None:
        checkpointer = Checkpointer(tmp_path, asynchronous=True)
        weight, state = torch.zeros(1000), {"stream": {"epoch": 0}}
        checkpointer.reserve({"model": {"weight": weight}})
        for step in (5, 10, 15):
            weight.fill_(step)
            state["stream"]["epoch"] = step
            checkpointer.save(step, {"model": {"weight": weight}}, state)
            weight.zero_()
            state["stream"]["epoch"] = 0
        checkpointer.wait()
        for step in (5, 10, 15):
            checkpoint = load_checkpoint(tmp_path, step)
            assert checkpoint.tensors("model")["weight"].tolist() == [step] * 1000
            assert checkpoint.state == {"stream": {"epoch": step}}

    def test_it_is_seen_when_it_is_whole(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        may_go_on = threading.Event()
        publish = Draft.publish

        def waits(*arguments: Any) -> None:
            assert may_go_on.wait(10)
            publish(*arguments)

        monkeypatch.setattr(Draft, "publish", waits)
        checkpointer = Checkpointer(tmp_path, max_to_keep=1, asynchronous=True)
        save(checkpointer, 5)
        checkpointer.mark_best(5, "mrr", 0.5)
        assert (checkpoint_steps(tmp_path), best_step(tmp_path)) == ([], None)
        may_go_on.set()
        save(checkpointer, 10, 15)
        checkpointer.wait()
        assert (checkpoint_steps(tmp_path), best_step(tmp_path)) == ([5, 15], 5)

    def test_a_wait_for_the_one_before_is_logged(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        begin = Draft.begin

        def slow(draft: Draft) -> None:
            time.sleep(0.2)
            begin(draft)

        monkeypatch.setattr(Draft, "begin", slow)
        checkpointer = Checkpointer(tmp_path, asynchronous=True)
        with caplog.at_level(logging.INFO):
            save(checkpointer, 5)
            assert not caplog.records
            save(checkpointer, 10)
            (record,) = caplog.records
            assert re.fullmatch(r"waited \d+\.\d s for the checkpoint before to be written", record.getMessage())
            checkpointer.wait()
            checkpointer.wait()
        assert len(caplog.records) == 2

    @pytest.mark.parametrize("then", ["save", "wait"])
    def test_what_went_wrong_is_raised_once_by_what_comes_next(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
    ) -> None:
        checkpointer = Checkpointer(tmp_path, asynchronous=True)
        save(checkpointer, 5)
        checkpointer.wait()

        def refuse(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr("rookery.checkpoint.draft.save_file", refuse)
            save(checkpointer, 10)
            checkpointer.mark_best(10, "mrr", 0.5)
            with pytest.raises(CheckpointError, match=r"step 10 could not be written \(.*No space left"):
                checkpointer.wait() if then == "wait" else save(checkpointer, 15)
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000005"]
        save(checkpointer, 20)
        checkpointer.wait()
        assert checkpoint_steps(tmp_path) == [5, 20]

    def test_the_memory_of_a_copy_is_used_again(self) -> None:
        staging = Staging()

        def addresses(groups: dict[str, dict[str, Tensor]]) -> dict[str, int]:
            copied = staging.copy(held_of(groups))
            found = {name: shards.whole() for named in copied.values() for name, shards in named.items()}
            for group, named in groups.items():
                assert {name: tensor.tolist() for name, tensor in named.items()} == {
                    name: found[name].tolist() for name in copied[group]
                }
            return {name: tensor.data_ptr() for name, tensor in found.items()}

        first = addresses({"model": {"a": torch.ones(1000), "b": torch.ones(10, 2).T, "gone": torch.ones(3)}})
        second = addresses(
            {"model": {"a": torch.zeros(1000), "b": torch.zeros(2, 10)}, "other": {"new": torch.ones(1)}}
        )
        assert (first["a"], first["b"]) == (second["a"], second["b"])
        grown = addresses({"model": {"a": torch.ones(2000), "b": torch.ones(2, 10, dtype=torch.int32)}})
        assert grown["a"] != second["a"]


def test_what_a_killed_writer_left_goes_with_the_next_save(tmp_path: Path) -> None:
    save(Checkpointer(tmp_path), 5)
    left = tmp_path / "checkpoints" / ".step-000000007.writing"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    save(Checkpointer(tmp_path), 10)
    assert not left.exists()
    assert checkpoint_steps(tmp_path) == [5, 10]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_mark_that_cannot_be_written_is_told(tmp_path: Path, asynchronous: bool) -> None:
    checkpointer = Checkpointer(tmp_path, asynchronous=asynchronous)
    save(checkpointer, 5)
    checkpointer.wait()
    (tmp_path / "checkpoints" / "best.json").mkdir()

    def mark() -> None:
        checkpointer.mark_best(5, "mrr", 0.5)
        checkpointer.wait()

    with pytest.raises(CheckpointError, match=r"best\.json: the best checkpoint could not be marked \(.*make room"):
        mark()


class TestLoad:
    def test_which(self, tmp_path: Path) -> None:
        checkpointer = Checkpointer(tmp_path)
        save(checkpointer, 5, 10, 15)
        checkpointer.mark_best(10, "mrr", 0.3)
        assert load_checkpoint(tmp_path).step == 15
        assert load_checkpoint(tmp_path, "best").step == 10
        assert load_checkpoint(tmp_path, 5).step == 5
        one = load_checkpoint(tmp_path / "checkpoints" / "step-000000005")
        assert one.tensors("model")["step"].item() == 5

    def test_there_is_none(self, tmp_path: Path) -> None:
        assert latest_checkpoint(tmp_path) is None
        with pytest.raises(RunNotFound, match="holds no checkpoint yet"):
            load_checkpoint(tmp_path)
        with pytest.raises(RunNotFound, match="gone: no such directory"):
            load_checkpoint(tmp_path / "gone")
        save(Checkpointer(tmp_path), 5, 10)
        with pytest.raises(RunNotFound, match="step 7 was not kept; kept steps: 5, 10"):
            load_checkpoint(tmp_path, 7)
        with pytest.raises(RunNotFound, match=r"a best checkpoint \(training\.keep_best\) was not kept"):
            load_checkpoint(tmp_path, "best")

    def test_a_damaged_newest_one_is_passed_over_loudly(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        save(Checkpointer(tmp_path), 5, 10, 15)
        files = [damage(tmp_path, 10), damage(tmp_path, 15)]
        with caplog.at_level(logging.WARNING):
            assert load_checkpoint(tmp_path).step == 5
        for file in files:
            assert f"DAMAGED CHECKPOINT {file}: " in caplog.text
        assert caplog.text.count("going back to step 5") == 2

    @pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"step": null}', '{"step": "first"}'])
    def test_a_damaged_mark_of_the_best_one_is_told(self, tmp_path: Path, text: str) -> None:
        checkpointer = Checkpointer(tmp_path)
        save(checkpointer, 5, 10)
        checkpointer.mark_best(5, "mrr", 0.3)
        (tmp_path / "checkpoints" / "best.json").write_text(text)
        with pytest.raises(DamagedCheckpoint, match=r"best\.json: does not tell .* one of 5, 10; or delete") as caught:
            best_step(tmp_path)
        assert caught.value.exit_code == 2
        assert load_checkpoint(tmp_path, "latest").step == 10

    def test_a_damaged_one_that_was_named_is_told_with_the_others(self, tmp_path: Path) -> None:
        save(Checkpointer(tmp_path), 5, 10, 15)
        file = tmp_path / "checkpoints" / "step-000000010" / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        for damaged in (bytes(content), pickle.dumps({"weights": [0.0]})):
            file.write_bytes(damaged)
            with pytest.raises(DamagedCheckpoint, match=rf"{file}: .*with --checkpoint: 5, 15$") as caught:
                load_checkpoint(tmp_path, 10)
            assert caught.value.exit_code == 2
            with pytest.raises(DamagedCheckpoint, match=rf"{file}: .*restore it from a backup, or name another one$"):
                load_checkpoint(file.parent)

    def test_the_only_one_is_damaged(self, tmp_path: Path) -> None:
        save(Checkpointer(tmp_path), 5)
        damage(tmp_path, 5)
        with pytest.raises(DamagedCheckpoint, match="train again: there is no other"):
            load_checkpoint(tmp_path, 5)

    def test_all_are_damaged(self, tmp_path: Path) -> None:
        save(Checkpointer(tmp_path), 5, 10)
        files = [damage(tmp_path, 5), damage(tmp_path, 10)]
        with pytest.raises(CheckpointError, match="every checkpoint is damaged") as caught:
            latest_checkpoint(tmp_path)
        assert all(str(file) in str(caught.value) for file in files)
        assert caught.value.exit_code == 2

    def test_what_is_still_being_written_is_not_there(self, tmp_path: Path) -> None:
        save(Checkpointer(tmp_path), 5)
        (tmp_path / "checkpoints" / ".step-000000010.writing").mkdir()
        assert checkpoint_steps(tmp_path) == [5]
        assert load_checkpoint(tmp_path).step == 5


class TestLock:
    def test_it_is_held_alone_and_freed(self, tmp_path: Path) -> None:
        message = "another process is training there"
        with run_lock(tmp_path / "run"), pytest.raises(UserError, match=message), run_lock(tmp_path / "run"):
            pass
        with run_lock(tmp_path / "run"):
            pass

    @pytest.mark.parametrize("inside", ["", "run"])
    def test_a_file_in_its_place_is_named(self, tmp_path: Path, inside: str) -> None:
        (tmp_path / "edges.tsv").write_text("a\tb\n")
        place = tmp_path / "edges.tsv" / inside
        with pytest.raises(UserError) as raised, run_lock(place):
            pass
        reason = "Not a directory" if inside else "File exists"
        assert str(raised.value) == (
            f"training.save_dir={place}: no run can be kept there ({reason}); name a folder that can be made and "
            "written, in the configuration or with --save-dir"
        )

    def test_a_place_that_takes_no_lock_is_named(self, tmp_path: Path) -> None:
        (tmp_path / ".lock").mkdir()
        with pytest.raises(UserError, match=r"no run can be kept there \(Is a directory\)"), run_lock(tmp_path):
            pass

    def test_that_of_a_killed_process_is_free(self, tmp_path: Path) -> None:
        script = (
            "import sys, time; from pathlib import Path; from filelock import FileLock\n"
            "lock = FileLock(Path(sys.argv[1]) / '.lock'); lock.acquire(); print('held', flush=True); time.sleep(60)"
        )
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError), run_lock(tmp_path):
            pass
        process.kill()
        process.wait()
        process.stdout.close()
        with run_lock(tmp_path):
            pass
