"""A checkpoint of several processes is whole or absent, the same for all of them, and fits any other number."""

from __future__ import annotations

import logging
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import RankFailed, run_ranks
from sharded import held_here, sharded_tensors, spread, whole_tensors
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load

from rookery.checkpoint.checkpointer import Checkpointer, latest_checkpoint
from rookery.checkpoint.draft import Draft
from rookery.checkpoint.files import StoredTensors, read_checkpoint
from rookery.checkpoint.layout import best_step, checkpoint_steps
from rookery.checkpoint.shards import shards_of
from rookery.checkpoint.write import write_checkpoint
from rookery.errors import CheckpointError, PeerFailed
from rookery.parallel import world
from rookery.train.state import Prefixed, check_fit

STATE = {"stream": {"epoch": 2}}


def save(save_dir: Path, *steps: int, **options: Any) -> None:
    checkpointer = Checkpointer(save_dir, **options)
    for step in steps:
        saved(checkpointer, step)


def saved(checkpointer: Checkpointer, step: int) -> None:
    """Save, and return when it is on disk."""
    checkpointer.save(step, sharded_tensors(step), STATE)
    checkpointer.wait()


def assert_stored(stored: StoredTensors, expected: dict[str, torch.Tensor]) -> None:
    assert set(stored) == set(expected)
    for name, tensor in expected.items():
        assert (stored.dtype(name), stored.shape(name)) == (tensor.dtype, tensor.shape)
        assert stored[name].dtype == tensor.dtype
        assert torch.equal(stored[name], tensor), name


def assert_step(save_dir: Path, step: int, saved_by: int) -> None:
    checkpoint = latest_checkpoint(save_dir)
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.state) == (step, STATE)
    for group, expected in whole_tensors(step).items():
        assert_stored(checkpoint.tensors(group), expected)
    random = {f"rank{number}.cpu": torch.tensor([number]) for number in range(saved_by)}
    assert_stored(checkpoint.tensors("random"), random)


class Sharded:
    """What a run that goes on holds, for the comparison with what is stored."""

    def tensors(self) -> dict[str, torch.Tensor]:
        return {f"table.{name}": tensor for name, tensor in sharded_tensors(8)["model"].items()}

    def load_tensors(self, tensors: Any) -> None:
        raise NotImplementedError


def go_on(save_dir: Path) -> None:
    """Shapes are compared, and this rank's shards read, of names with a prefix."""
    tensors = {f"table.{name}": tensor for name, tensor in sharded_tensors(7)["model"].items()}
    write_checkpoint(save_dir / "step-1", 1, {"model": tensors}, STATE)
    checkpoint = read_checkpoint(save_dir / "step-1")
    check_fit({"model": Sharded()}, checkpoint, "use another run")
    stored = Prefixed(checkpoint.tensors("model"), "table.")
    for name, tensor in sharded_tensors(7)["model"].items():
        for offset, shard in shards_of(tensor).held.items():
            assert torch.equal(stored.part(name, offset, shard.shape), shard), name


def test_a_run_finds_its_own_shards(tmp_path: Path) -> None:
    run_ranks(2, go_on, tmp_path)


def load_my_rows(save_dir: Path, step: int, saved_by: int) -> None:
    """Everything whole, and of every tensor the rows of this rank."""
    assert_step(save_dir, step, saved_by)
    stored = read_checkpoint(save_dir / "checkpoints" / f"step-{step:09d}").tensors("model")
    for name, tensor in whole_tensors(step)["model"].items():
        if tensor.dim() == 2:
            mine = torch.arange(len(tensor)).tensor_split(world.world_size())[world.rank()]
            start = int(mine[0]) if len(mine) else 0
            part = stored.part(name, [start, 1], [len(mine), tensor.shape[1] - 1])
            assert torch.equal(part, tensor[start : start + len(mine), 1:]), name


@pytest.mark.parametrize(("saved_by", "loaded_by"), [(1, 2), (2, 1), (2, 3), (3, 1), (3, 2), (3, 4), (4, 1), (4, 3)])
def test_any_number_of_ranks_loads_what_any_number_saved(tmp_path: Path, saved_by: int, loaded_by: int) -> None:
    run_ranks(saved_by, save, tmp_path, 7)
    run_ranks(loaded_by, load_my_rows, tmp_path, 7, saved_by)


def test_each_rank_writes_its_own_and_the_chief_what_is_whole(tmp_path: Path) -> None:
    run_ranks(2, save, tmp_path, 7)
    folder = tmp_path / "checkpoints" / "step-000000007"
    first, second = (set(StoredTensors(folder / "model" / f"rank-0000{rank}.safetensors")) for rank in (0, 1))
    assert {"dense", "scalar", "no rows", "rows"} <= first
    assert second == {"rows", "few rows", "columns", "two columns a rank", "one rank", "grid"}
    whole = whole_tensors(7)["model"]["grid"]
    for rank in (0, 1):
        further = StoredTensors(folder / "model" / f"rank-0000{rank}-1.safetensors")
        assert set(further) == {"two columns a rank", "grid"}
        assert torch.equal(further.part("grid", [3, 2 * rank], [3, 2]), whole[3:, 2 * rank : 2 * rank + 2])
    assert not [path for path in folder.rglob("*") if path.suffix not in {"", ".json", ".safetensors"}]


def test_torch_reads_it_as_its_own(tmp_path: Path) -> None:
    run_ranks(3, save, tmp_path, 7)
    expected = whole_tensors(7)["model"]
    found = {name: torch.empty_like(tensor) for name, tensor in expected.items() if tensor.numel()}
    reader = HuggingFaceStorageReader(str(tmp_path / "checkpoints" / "step-000000007" / "model"))
    with pytest.warns(UserWarning, match="single process"):
        load(found, storage_reader=reader, no_dist=True)
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def damages(file: Path) -> dict[str, Callable[[], object]]:
    whole = file.read_bytes()
    flipped = bytes([*whole[:-1], whole[-1] ^ 1])
    return {
        "truncated": lambda: file.write_bytes(whole[:-1]),
        "flipped": lambda: file.write_bytes(flipped),
        "missing": file.unlink,
        "": lambda: file.write_bytes(whole),
    }


class Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        logging.getLogger("rookery.checkpoint").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def fall_back(save_dir: Path) -> tuple[int, list[str]]:
    """Damage each file of the newest checkpoint in each way; all ranks go back, the chief alone says so."""
    save(save_dir, 5, 10)
    messages, count = Messages(), 0
    newest = save_dir / "checkpoints" / "step-000000010"
    for file in sorted(path for path in newest.rglob("*") if path.is_file()):
        acts = damages(file)
        for kind, act in acts.items():
            dist.barrier()
            if world.is_chief():
                act()
            dist.barrier()
            assert_step(save_dir, 5 if kind else 10, world.world_size())
            if kind:
                count += 1
                assert not world.is_chief() or f"DAMAGED CHECKPOINT {file}" in messages.texts[-1]
                assert not world.is_chief() or "going back to step 5" in messages.texts[-1]
    return count, messages.texts


def test_damage_anywhere_sends_all_ranks_to_the_one_before(tmp_path: Path) -> None:
    (count, said), (_, said_by_other) = run_ranks(2, fall_back, tmp_path)
    assert (count, len(said), said_by_other) == (3 * 11, 3 * 11, [])


def go_on_after_damage(save_dir: Path) -> tuple[list[int], str]:
    save(save_dir, 5, 10, 15)
    if world.rank() == 1:
        (save_dir / "checkpoints" / "step-000000015" / "model" / "rank-00001.safetensors").unlink()
    dist.barrier()
    assert_step(save_dir, 10, 2)
    save(save_dir, 12)
    steps = checkpoint_steps(save_dir)
    dist.barrier()
    for step in (5, 10, 12):
        if world.is_chief():
            (save_dir / "checkpoints" / f"step-{step:09d}" / "state.json").write_text("{}")
    dist.barrier()
    with pytest.raises(CheckpointError, match="every checkpoint is damaged") as caught:
        latest_checkpoint(save_dir)
    return steps, str(caught.value)


def test_the_run_goes_on_from_the_one_before_until_none_is_left(tmp_path: Path) -> None:
    (steps, message), other = run_ranks(2, go_on_after_damage, tmp_path)
    assert other == (steps, message)
    assert steps == [5, 10, 12]
    assert message.count("state.json") == 3


def cannot_write(save_dir: Path, refused: int, asynchronous: bool) -> list[str]:
    """The file size that the system allows one rank is the disk that is full for it."""
    checkpointer = Checkpointer(save_dir, asynchronous=asynchronous)
    saved(checkpointer, 5)
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    messages = []
    for step in (10, 15):
        if world.rank() == refused:
            resource.setrlimit(resource.RLIMIT_FSIZE, (300, allowed[1]))
        dist.barrier()
        with pytest.raises(CheckpointError) as caught:
            saved(checkpointer, step)
        messages.append(str(caught.value))
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
        dist.barrier()
    assert sorted(path.name for path in (save_dir / "checkpoints").iterdir()) == ["step-000000005"]
    assert_step(save_dir, 5, 2)
    saved(checkpointer, 20)
    assert_step(save_dir, 20, 2)
    return messages


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("refused", [0, 1])
def test_a_full_disk_of_one_rank_is_the_same_error_on_all(tmp_path: Path, refused: int, asynchronous: bool) -> None:
    messages, other = run_ranks(2, cannot_write, tmp_path, refused, asynchronous)
    assert messages == other
    for step, message in zip((10, 15), messages, strict=True):
        assert message.startswith(f"{tmp_path}/checkpoints/step-{step:09d}: the checkpoint of step {step} could not be")
        assert f"(rank {refused}: " in message and "File too large" in message and "make room or permission" in message


def cannot_publish(save_dir: Path) -> str:
    save(save_dir, 5)
    (save_dir / "checkpoints" / "step-000000010").touch()  # a file in the way of the folder
    with pytest.raises(CheckpointError) as caught:
        write_checkpoint(save_dir / "checkpoints" / "step-000000010", 10, sharded_tensors(10), STATE)
    return str(caught.value)


def test_what_only_the_chief_meets_is_the_same_error_on_all(tmp_path: Path) -> None:
    messages = run_ranks(2, cannot_publish, tmp_path)
    assert messages[0] == messages[1]
    assert "(rank 0: " in messages[0] and "Not a directory" in messages[0]
    assert not list((tmp_path / "checkpoints").glob(".*"))


def die_while_writing(save_dir: Path, victim: int, asynchronous: bool) -> None:
    save(save_dir, 5)
    write = Draft.write

    def dies(draft: Draft, name: str, *rest: Any) -> Any:
        found = write(draft, name, *rest)
        if world.rank() == victim and name.startswith("optimizer"):
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    Draft.write = dies  # type: ignore[method-assign]
    save(save_dir, 10, asynchronous=asynchronous)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("victim", [0, 2])
def test_a_rank_that_is_killed_leaves_no_checkpoint(tmp_path: Path, victim: int, asynchronous: bool) -> None:
    with pytest.raises(RankFailed, match=r"rank \d died|PeerFailed"):
        run_ranks(3, die_while_writing, tmp_path, victim, asynchronous)
    folder = tmp_path / "checkpoints"
    (folder / ".step-000000010.writing").mkdir(exist_ok=True)  # what a chief that was killed leaves
    (folder / ".step-000000010.writing" / "half").write_bytes(b"half")
    assert checkpoint_steps(tmp_path) == [5]
    assert_step(tmp_path, 5, 3)
    run_ranks(2, save, tmp_path, 10)
    assert_step(tmp_path, 10, 2)
    assert sorted(path.name for path in folder.iterdir()) == ["step-000000005", "step-000000010"]


def left_alone(save_dir: Path) -> str:
    save(save_dir, 5)
    tensors = sharded_tensors(10)
    if world.rank() == 1:
        dist.destroy_process_group()
        return ""
    with pytest.raises(PeerFailed) as caught:
        write_checkpoint(save_dir / "checkpoints" / "step-000000010", 10, tensors, STATE)
    return str(caught.value)


def test_the_others_say_that_one_is_gone(tmp_path: Path) -> None:
    message, _ = run_ranks(2, left_alone, tmp_path)
    assert message.startswith("rank 0: another process died or does not answer (")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000005"]


def save_while_training(save_dir: Path) -> None:
    """Steps go on and overwrite what was saved, with collectives of their own; what is stored is of the save."""
    checkpointer = Checkpointer(save_dir, max_to_keep=2, asynchronous=True)
    folders = []
    for step in (5, 10, 15, 20):
        tensors = sharded_tensors(step)
        folders.append(checkpointer.save(step, tensors, STATE))
        for named in tensors.values():
            for tensor in named.values():
                for memory in held_here(tensor):
                    memory.zero_()
        if step == 5:
            checkpointer.mark_best(step, "mrr", 0.5)
        for _ in range(20):
            assert world.all_sum(torch.ones(3)).tolist() == [2.0] * 3
    checkpointer.wait()
    dist.barrier()
    assert checkpoint_steps(save_dir) == [5, 15, 20]
    assert best_step(save_dir) == 5
    assert_step(save_dir, 20, 2)


def test_writing_beside_training(tmp_path: Path) -> None:
    run_ranks(2, save_while_training, tmp_path)
    run_ranks(2, save, tmp_path / "together", 20)
    stored = [path / "checkpoints" / "step-000000020" for path in (tmp_path, tmp_path / "together")]
    files = [{file.relative_to(path): file.read_bytes() for file in path.rglob("*.*")} for path in stored]
    assert files[0] == files[1]


def save_twice_to_a_slow_disk(save_dir: Path) -> None:
    write = Draft.write

    def slow(draft: Draft, *arguments: Any) -> Any:
        time.sleep(0.5)
        return write(draft, *arguments)

    Draft.write = slow  # type: ignore[method-assign]
    checkpointer = Checkpointer(save_dir, asynchronous=True)
    tensors = {"model": {"rows": spread(torch.ones(4, 2), [[([0, 0], [2, 2])], [([2, 0], [2, 2])]])}}
    checkpointer.save(5, tensors, STATE)
    assert checkpoint_steps(save_dir) == []
    checkpointer.save(10, tensors, STATE)
    assert checkpoint_steps(save_dir) == [5]
    checkpointer.wait()
    assert checkpoint_steps(save_dir) == [5, 10]


def test_a_save_waits_for_the_one_before(tmp_path: Path) -> None:
    run_ranks(2, save_twice_to_a_slow_disk, tmp_path)
