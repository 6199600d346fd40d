"""A run that was stopped, anywhere, goes on as if it had not been."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import Killed
from small_graph import log_lines
from survived_runs import assert_equal

from rookery.checkpoint.checkpointer import load_checkpoint
from rookery.checkpoint.layout import checkpoint_steps
from rookery.errors import ConfigError, DataError

NUM_ROWS = 90  # of the toy

MakeToy = Callable[..., Any]


def train_through_kills(make_toy: MakeToy, save_dir: Path, cuts: list[int], **config: Any) -> Any:
    """Start again after a kill in the forward pass number ``cuts[i]`` of the i-th start, until it ends by itself."""
    for cut in cuts:
        toy = make_toy()
        toy.model.fail_at = {cut: Killed()}
        try:
            toy.train(save_dir, **config)
        except Killed:
            continue
        return toy
    toy = make_toy()
    toy.train(save_dir, **config)
    return toy


class TestResume:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("accumulation", [1, 3])
    def test_killed_at_random_steps_it_ends_with_the_same_bits(
        self, make_toy: MakeToy, tmp_path: Path, seed: int, accumulation: int
    ) -> None:
        chance = random.Random(seed)
        config = {
            "num_epochs": 7,
            "gradient_accumulation": accumulation,
            "checkpoint_every_n": chance.randint(1, 6),
            "checkpoint_max_to_keep": 2,
            "train_log_every_n": chance.randint(1, 7),
        }
        whole = make_toy()
        whole.train(tmp_path / "whole", **config)
        expected = whole.parameters()
        cuts = [chance.randint(1, 30) for _ in range(chance.randint(1, 6))]
        killed = train_through_kills(make_toy, tmp_path / "killed", cuts, **config)
        assert_equal(killed.parameters(), expected)
        steady = ("step", "loss", "mean_error", "rows", "epoch", "lr/dense")
        logs = [[[line[key] for key in steady] for line in log_lines(tmp_path / name)] for name in ("whole", "killed")]
        assert logs[0] == logs[1]

    def test_killed_while_writing_a_checkpoint(
        self, make_toy: MakeToy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from rookery.checkpoint import draft

        whole = make_toy()
        whole.train(tmp_path / "whole", num_train_steps=20, checkpoint_every_n=4)
        expected = whole.parameters()
        force_to_disk, calls = draft.force_to_disk, [0]
        for cut in range(1, 22, 3):

            def dies(path: Path, cut: int = cut) -> None:
                calls[0] += 1
                if calls[0] == cut:
                    raise Killed
                force_to_disk(path)

            calls[0] = 0
            save_dir = tmp_path / f"cut-{cut}"
            monkeypatch.setattr(draft, "force_to_disk", dies)
            with pytest.raises(Killed):
                make_toy().train(save_dir, num_train_steps=20, checkpoint_every_n=4)
            monkeypatch.setattr(draft, "force_to_disk", force_to_disk)
            resumed = make_toy()
            resumed.train(save_dir, num_train_steps=20, checkpoint_every_n=4)
            assert_equal(resumed.parameters(), expected)

    def test_a_position_of_the_consumed_batch_not_of_the_prefetched_one(
        self, make_toy: MakeToy, tmp_path: Path
    ) -> None:
        make_toy().train(tmp_path, num_train_steps=7, checkpoint_every_n=3)
        for step in (3, 6, 7):
            stream = load_checkpoint(tmp_path, step).state["stream"]
            assert 5 * stream["epoch"] + stream["num_batches"] == step

    def test_lines_after_the_restored_step_are_cut(self, make_toy: MakeToy, tmp_path: Path) -> None:
        toy = make_toy()
        toy.model.fail_at = {10: Killed()}
        with pytest.raises(Killed):
            toy.train(tmp_path, num_train_steps=12, checkpoint_every_n=5, train_log_every_n=1)
        assert [line["step"] for line in log_lines(tmp_path)] == list(range(1, 10))
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 9, "loss": 0.')
        make_toy().train(tmp_path, num_train_steps=12, checkpoint_every_n=5, train_log_every_n=1)
        assert [line["step"] for line in log_lines(tmp_path)] == list(range(1, 13))

    def test_another_shape_is_refused_with_both_shapes(self, make_toy: MakeToy, tmp_path: Path) -> None:
        make_toy().train(tmp_path, num_train_steps=2)
        toy = make_toy()
        toy.model.weight = torch.nn.Parameter(torch.zeros(4))
        with pytest.raises(ConfigError, match=r"dense\.weight is float32\[3\] there, float32\[4\] in this config"):
            toy.train(tmp_path, num_train_steps=5)

    def test_another_batch_size_is_refused(self, make_toy: MakeToy, tmp_path: Path) -> None:
        make_toy().train(tmp_path, num_train_steps=2)
        with pytest.raises(DataError, match="restore batch_size=20"):
            make_toy(batch_size=10).train(tmp_path, num_train_steps=5)

    def test_a_damaged_newest_checkpoint_costs_time_but_no_bit(
        self, make_toy: MakeToy, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        whole = make_toy()
        whole.train(tmp_path / "whole", num_train_steps=20)
        expected = whole.parameters()
        make_toy().train(tmp_path / "run", num_train_steps=15, checkpoint_every_n=5, checkpoint_max_to_keep=2)
        damaged = tmp_path / "run" / "checkpoints" / "step-000000015" / "model.safetensors"
        content = bytearray(damaged.read_bytes())
        content[-1] ^= 1
        damaged.write_bytes(content)
        resumed = make_toy()
        resumed.train(tmp_path / "run", num_train_steps=20, checkpoint_every_n=8, checkpoint_max_to_keep=2)
        assert_equal(resumed.parameters(), expected)
        assert "DAMAGED CHECKPOINT" in caplog.text
        assert str(damaged) in caplog.text
        assert checkpoint_steps(tmp_path / "run") == [16, 20]


_SCRIPT = """
import runpy, sys, time
from pathlib import Path
conftest, rows, save_dir = sys.argv[1:]
toy = runpy.run_path(conftest)["Toy"]([Path(rows)])
toy.model.register_forward_pre_hook(lambda *_: time.sleep(0.01))
toy.train(Path(save_dir), num_train_steps=40, checkpoint_every_n=3, checkpoint_max_to_keep=2)
"""


@pytest.mark.slow
def test_kill_minus_nine_and_start_again(make_toy: MakeToy, rows_file: Path, tmp_path: Path) -> None:
    whole = make_toy()
    whole.train(tmp_path / "whole", num_train_steps=40)
    save_dir = tmp_path / "killed"
    command = [sys.executable, "-c", _SCRIPT, str(Path(__file__).parent / "conftest.py"), str(rows_file), str(save_dir)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while len(checkpoint_steps(save_dir)) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert checkpoint_steps(save_dir)[-1] < 40
    subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, check=True)
    last = load_checkpoint(save_dir)
    assert last.step == 40
    for group in ("model", "optimizer"):
        assert_equal(dict(last.tensors(group)), whole.job.state[group].tensors())
