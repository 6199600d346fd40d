from __future__ import annotations

import json
import math
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import Killed
from small_graph import log_lines
from survived_runs import assert_equal
from torch import Tensor

from rookery.checkpoint.checkpointer import load_checkpoint
from rookery.checkpoint.layout import best_step, checkpoint_steps
from rookery.data.stream import ParquetStream
from rookery.errors import ConfigError, TrainingError
from rookery.parallel.world import IsUnwanted, spread

NUM_ROWS = 90  # of the toy

MakeToy = Callable[..., Any]


class TestLearning:
    def test_it_finds_the_known_answer(
        self, make_toy: MakeToy, tmp_path: Path, true_weight: Tensor, true_offsets: Tensor
    ) -> None:
        toy = make_toy(jitter=0.0, buffer_rows=NUM_ROWS, learning_rates=())
        result = toy.train(tmp_path, num_train_steps=1000)
        torch.testing.assert_close(toy.model.weight.detach(), true_weight, atol=1e-4, rtol=0)
        torch.testing.assert_close(toy.model.tables.rows("group").squeeze(1), true_offsets, atol=1e-4, rtol=0)
        assert result.loss is not None
        assert result.loss < 1e-6

    def test_a_step_is_what_plain_torch_does(self, make_toy: MakeToy, tmp_path: Path) -> None:
        toy, plain = make_toy(jitter=0.0), make_toy(jitter=0.0)
        toy.train(tmp_path, num_train_steps=7)
        for step in range(7):
            columns = next(plain.stream)
            loss, _ = plain.model(plain.job.transform(columns, plain.stream.position()))
            for group in plain.optimizer.param_groups:
                group["lr"] = plain.schedule(step)
            plain.optimizer.zero_grad()
            loss.backward()
            plain.optimizer.step()
        assert_equal(toy.parameters(), plain.parameters())

    def test_accumulated_batches_move_parameters_as_one_large_batch_does(
        self, make_toy: MakeToy, tmp_path: Path
    ) -> None:
        small = make_toy(batch_size=10, jitter=0.0, transform=lambda columns, _: columns)
        large = make_toy(batch_size=30, jitter=0.0, transform=lambda columns, _: columns)
        small.train(tmp_path / "small", num_train_steps=12, gradient_accumulation=3, train_log_every_n=1)
        large.train(tmp_path / "large", num_train_steps=12, train_log_every_n=1)
        for name, tensor in large.job.state["model"].tensors().items():
            torch.testing.assert_close(small.job.state["model"].tensors()[name], tensor, atol=1e-5, rtol=1e-5)
        losses = [[line["loss"] for line in log_lines(tmp_path / name)] for name in ("small", "large")]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        assert small.model.steps_told[:4] == [(0, 0, 3), (0, 1, 3), (0, 2, 3), (1, 0, 3)]

    def test_half_precision_products_run_under_autocast(self, make_toy: MakeToy, tmp_path: Path) -> None:
        from rookery.train.config import RuntimeConfig, TrainingConfig
        from rookery.train.loop import train
        from rookery.train.run import open_run

        toy = make_toy()
        seen: list[bool] = []
        toy.model.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
        for enabled in (True, False):
            config = TrainingConfig(save_dir=tmp_path / str(enabled), num_train_steps=1)
            with open_run(config, "") as run:
                train(toy.job, run, config, RuntimeConfig(device="cpu", enable_amp=enabled))
        assert seen == [True, False]


class TestLength:
    @pytest.mark.parametrize("num_train_steps", [1, 4, 5, 13])
    def test_exactly_num_train_steps_steps(self, make_toy: MakeToy, tmp_path: Path, num_train_steps: int) -> None:
        toy = make_toy()
        result = toy.train(tmp_path, num_train_steps=num_train_steps)
        assert (result.step, result.reason) == (num_train_steps, "finished")
        assert toy.model.num_forwards == num_train_steps

    @pytest.mark.parametrize(("accumulation", "num_steps"), [(1, 10), (3, 4), (4, 3), (20, 1)])
    def test_epochs_visit_every_batch_whatever_the_accumulation(
        self, make_toy: MakeToy, tmp_path: Path, accumulation: int, num_steps: int
    ) -> None:
        toy = make_toy()
        result = toy.train(tmp_path, num_epochs=2, gradient_accumulation=accumulation, train_log_every_n=1)
        assert result.step == result.num_steps == num_steps
        assert toy.model.num_forwards == 2 * 5
        assert toy.model.steps_told[-1][2] == 10 - (num_steps - 1) * accumulation
        assert log_lines(tmp_path)[-1]["epoch"] == 2.0

    def test_the_earlier_of_steps_and_epochs_ends_it(self, make_toy: MakeToy, tmp_path: Path) -> None:
        assert make_toy().train(tmp_path / "a", num_epochs=2, num_train_steps=7).step == 7
        assert make_toy().train(tmp_path / "b", num_epochs=1, num_train_steps=7).step == 5

    def test_a_finished_run_returns_at_once(self, make_toy: MakeToy, tmp_path: Path) -> None:
        first = make_toy().train(tmp_path, num_train_steps=6)
        before = (tmp_path / "metrics.jsonl").read_bytes()
        again = make_toy()
        result = again.train(tmp_path, num_train_steps=6)
        assert (result.step, result.reason, again.model.num_forwards) == (6, "finished", 0)
        assert (tmp_path / "metrics.jsonl").read_bytes() == before
        assert first.loss is not None
        assert result.loss is None

    def test_a_finished_run_goes_on_when_given_more_steps(self, make_toy: MakeToy, tmp_path: Path) -> None:
        make_toy().train(tmp_path / "two", num_train_steps=6)
        longer, whole = make_toy(), make_toy()
        longer.train(tmp_path / "two", num_train_steps=15)
        assert_equal(longer.parameters(), (whole.train(tmp_path / "one", num_train_steps=15), whole.parameters())[1])

    def test_a_stream_that_ends_early_is_an_error(self, make_toy: MakeToy, tmp_path: Path, rows_file: Path) -> None:
        stream = ParquetStream([rows_file], ["x", "y", "group"], 20, seed=3, shuffle=True, num_epochs=1)
        with pytest.raises(TrainingError, match="the data ended after step 5 of 8"):
            make_toy(stream=stream).train(tmp_path, num_train_steps=8)


class TestLog:
    def test_means_over_the_interval(self, make_toy: MakeToy, tmp_path: Path) -> None:
        for every_n in (1, 4):
            make_toy().train(tmp_path / str(every_n), num_train_steps=10, train_log_every_n=every_n)
        single = {line["step"]: line for line in log_lines(tmp_path / "1")}
        for line, steps in zip(log_lines(tmp_path / "4"), ([1, 2, 3, 4], [5, 6, 7, 8], [9, 10]), strict=True):
            assert line["step"] == steps[-1]
            for name in ("loss", "mean_error", "rows"):
                assert line[name] == pytest.approx(sum(single[step][name] for step in steps) / len(steps), rel=1e-12)

    def test_rates_and_times(self, make_toy: MakeToy, tmp_path: Path) -> None:
        toy = make_toy(validate=lambda _: {"mrr": 0.5})
        toy.train(tmp_path, num_train_steps=10, train_log_every_n=5, validate_every_n=5, checkpoint_every_n=5)
        first, _, second, _ = log_lines(tmp_path)
        assert first["lr/dense"] == toy.schedule(4)
        assert second["lr/dense"] == toy.schedule(9)
        assert second["epoch"] == 2.0
        parts = ("data", "forward", "backward", "optimizer", "validation", "checkpoint")
        spent = [second[f"time/{part}_s"] for part in parts]
        assert all(seconds > 0 for seconds in spent)
        assert sum(spent) < second["time/total_s"]
        training_s = second["time/total_s"] - second["time/validation_s"] - second["time/checkpoint_s"]
        assert second["rows_per_s"] == pytest.approx(90 / training_s)

    def test_the_files_of_a_run(self, make_toy: MakeToy, tmp_path: Path) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        make_toy().train(tmp_path, num_train_steps=4, train_log_every_n=2)
        assert (tmp_path / "config.yaml").read_text() == "toy: true\n"
        environment = json.loads((tmp_path / "environment.json").read_text())
        assert environment["packages"]["torch"] == torch.__version__
        assert environment["num_cpus"] == os.cpu_count()
        events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
        scalars = [(event.step, event.value) for event in events.Scalars("loss")]
        assert scalars == [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in log_lines(tmp_path)]

    def test_stderr_outside_a_terminal_has_a_line_a_log(
        self, make_toy: MakeToy, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        toy = make_toy(validate=lambda _: {"mrr": 0.25})
        toy.train(tmp_path, num_train_steps=6, train_log_every_n=2, validate_every_n=3)
        output = capfd.readouterr()
        shown = output.err.splitlines()
        assert output.out == ""
        assert [line.split(":")[0].split("  ")[0] for line in shown] == [
            "step 2/6", "step 3", "step 4/6", "step 6/6", "step 6",
        ]  # fmt: skip
        assert "validation  mrr 0.25" in shown[1]
        assert "rows/s" in shown[0]
        assert "left" in shown[0]


class TestDebugLoop:
    def test_it_takes_the_very_same_steps(self, make_toy: MakeToy, tmp_path: Path) -> None:
        usual, debug = make_toy(), make_toy()
        usual.train(tmp_path / "usual", num_train_steps=13, gradient_accumulation=2)
        expected = usual.parameters()
        debug.train(tmp_path / "debug", num_train_steps=13, gradient_accumulation=2, debug=True)
        assert_equal(debug.parameters(), expected)

    def test_it_logs_each_step_in_detail_and_makes_nothing_ahead(
        self, make_toy: MakeToy, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        toy = make_toy(jitter=0.0)
        norms: list[float] = []
        toy.optimizer.register_step_pre_hook(lambda *_: norms.append(toy.model.weight.grad.norm().item()))
        threads: set[str] = set()
        toy.model.register_forward_pre_hook(lambda *_: threads.update(each.name for each in threading.enumerate()))
        toy.train(tmp_path, num_train_steps=3, train_log_every_n=100, debug=True)
        logged = log_lines(tmp_path)
        assert [line["step"] for line in logged] == [1, 2, 3]
        assert [line["grad_norm/weight"] for line in logged] == norms
        shown = capfd.readouterr().err
        for name in ("lr/dense", "grad_norm/weight", "time/forward_s", "mean_error"):
            assert len(re.findall(rf"^  {name} ", shown, re.MULTILINE)) == 3
        assert "float32[20]" in shown
        assert "prefetch" not in threads


class TestNotFinite:
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_it_stops_before_the_step_is_taken_or_saved(self, make_toy: MakeToy, tmp_path: Path, value: float) -> None:
        toy = make_toy()
        original = toy.model.forward

        def forward(batch: Any) -> Any:
            loss, outputs = original(batch)
            return (loss * value if toy.model.num_forwards == 8 else loss), outputs

        toy.model.forward = forward
        reference = make_toy()
        reference.train(tmp_path / "reference", num_train_steps=7)
        expected = reference.job.state["model"].tensors()
        with pytest.raises(TrainingError, match=r"the loss of step 8 .*not finite; the newest checkpoint is of step 6"):
            toy.train(tmp_path / "run", num_train_steps=20, checkpoint_every_n=3)
        assert_equal(toy.job.state["model"].tensors(), expected)
        assert checkpoint_steps(tmp_path / "run") == [3, 6]

    def test_an_unwatched_step_is_caught_before_the_next_checkpoint(
        self, make_toy: MakeToy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As on a GPU, where the loss is only read when something is to be logged or saved."""
        monkeypatch.setattr("rookery.train.loop._Loop._reads_every_loss", property(lambda loop: False))
        toy = make_toy()
        original = toy.model.forward
        toy.model.forward = lambda batch: (
            original(batch)[0] * (math.nan if toy.model.num_forwards == 7 else 1.0),
            {},
        )
        with pytest.raises(TrainingError, match="the newest checkpoint is of step 5"):
            toy.train(tmp_path, num_train_steps=20, checkpoint_every_n=5)
        assert checkpoint_steps(tmp_path) == [5]


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_ends_the_run_behind_its_step_and_a_second_start_completes_it(
        self, make_toy: MakeToy, tmp_path: Path, number: signal.Signals
    ) -> None:
        handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
        whole = make_toy()
        whole.train(tmp_path / "whole", num_train_steps=12)
        expected = whole.parameters()
        toy = make_toy()
        toy.model.register_forward_pre_hook(
            lambda *_: os.kill(os.getpid(), number) if toy.model.num_forwards == 4 else None
        )
        result = toy.train(tmp_path / "run", num_train_steps=12)
        assert (result.step, result.reason, result.signal) == (5, "interrupted", number.name)
        assert checkpoint_steps(tmp_path / "run") == [5]
        assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
        again = make_toy()
        finished = again.train(tmp_path / "run", num_train_steps=12)
        assert (finished.reason, finished.signal) == ("finished", None)
        assert_equal(again.parameters(), expected)

    def test_a_second_signal_stops_at_once(self, make_toy: MakeToy, tmp_path: Path) -> None:
        toy = make_toy()

        def interrupted_twice(*_: object) -> None:
            for _ in range(2 if toy.model.num_forwards == 4 else 0):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.1)  # until it is taken: two that wait together are one

        toy.model.register_forward_pre_hook(interrupted_twice)
        with pytest.raises(KeyboardInterrupt):
            toy.train(tmp_path, num_train_steps=12)
        assert toy.model.num_forwards == 4


def told_meanwhile(number: signal.Signals, delay_s: float = 0.3) -> None:
    threading.Timer(delay_s, os.kill, (os.getpid(), number)).start()


class TestSignalsInAWait:
    """What a signal finds waiting ends with a checkpoint; the run goes on from it as if nothing had been."""

    def test_for_batches_that_do_not_come(self, make_toy: MakeToy, tmp_path: Path, rows_file: Path) -> None:
        class Stuck(ParquetStream):
            num_handed_out, closed = 0, threading.Event()

            def __next__(self) -> Any:
                self.num_handed_out += 1
                if self.num_handed_out > 4:
                    told_meanwhile(signal.SIGTERM)
                    self.closed.wait()
                return super().__next__()

            def close(self) -> None:
                self.closed.set()

        config = {"num_train_steps": 12, "train_log_every_n": 3}
        whole, again = make_toy(), make_toy()
        whole.train(tmp_path / "whole", **config)
        expected = whole.parameters()
        toy = make_toy(stream=Stuck([rows_file], ["x", "y", "group"], 20, seed=3, shuffle=True, buffer_rows=40))
        began = time.monotonic()
        result = toy.train(tmp_path / "run", **config)
        assert time.monotonic() - began < 5
        assert (result.step, result.reason, result.signal) == (4, "interrupted", "SIGTERM")
        assert checkpoint_steps(tmp_path / "run") == [4]
        again.train(tmp_path / "run", **config)
        assert_equal(again.parameters(), expected)

    @pytest.mark.parametrize("at", [4, 8, 12], ids=["in between", "where a checkpoint is due", "at the last step"])
    def test_for_a_validation(self, make_toy: MakeToy, tmp_path: Path, at: int) -> None:
        config = {
            "num_train_steps": 12,
            "validate_every_n": 4,
            "checkpoint_every_n": 8,
            "checkpoint_max_to_keep": 1,
            "train_log_every_n": 3,
            "keep_best": {"metric": "mrr"},
        }

        def toy_that_is_told(at: int | None) -> Any:
            measured: list[int] = []

            def measure(chunk: int) -> int:
                measured.append(chunk)
                if toy.model.steps_told[-1:] == [((at or 0) - 1, 0, 1)] and chunk == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
                return chunk

            def validate(is_unwanted: IsUnwanted) -> dict[str, float]:
                measured.clear()
                assert spread(range(5), measure, is_unwanted) == [0, 1, 2, 3, 4]
                return {"mrr": toy.model.weight[2].item()}

            toy = make_toy(validate=validate)
            toy.measured = measured
            return toy

        whole, toy, again, ended = (toy_that_is_told(each) for each in (None, at, None, None))
        expected = whole.train(tmp_path / "whole", **config)
        parameters = whole.parameters()
        result = toy.train(tmp_path / "run", **config)
        assert (result.step, result.reason, result.signal) == (at, "interrupted", "SIGTERM")
        assert toy.measured == [0, 1, 2]
        assert checkpoint_steps(tmp_path / "run")[-1] == at
        assert [line["step"] for line in log_lines(tmp_path / "run") if "validation/mrr" in line] == [*range(4, at, 4)]
        finished = again.train(tmp_path / "run", **config)
        assert (finished.reason, finished.best_step, finished.best_value) == (
            "finished", expected.best_step, expected.best_value,
        )  # fmt: skip
        assert_equal(again.parameters(), parameters)
        values = [
            [(line["step"], line.get("loss"), line.get("validation/mrr")) for line in log_lines(tmp_path / name)]
            for name in ("whole", "run")
        ]
        assert values[0] == values[1]
        assert best_step(tmp_path / "run") == best_step(tmp_path / "whole")
        assert checkpoint_steps(tmp_path / "run") == checkpoint_steps(tmp_path / "whole")
        assert ended.train(tmp_path / "run", **config).reason == "finished"
        assert ended.measured == []

    def test_a_validation_that_is_no_longer_asked_for_is_not_owed(self, make_toy: MakeToy, tmp_path: Path) -> None:
        def validate(is_unwanted: IsUnwanted) -> dict[str, float]:
            return {"mrr": float(sum(spread(range(3), lambda _: os.kill(os.getpid(), signal.SIGTERM), is_unwanted)))}

        toy = make_toy(validate=validate)
        assert toy.train(tmp_path, num_train_steps=6, validate_every_n=3).reason == "interrupted"
        assert make_toy().train(tmp_path, num_train_steps=6).reason == "finished"
        assert [line for line in log_lines(tmp_path) if "validation/mrr" in line] == []


class TestValidation:
    def test_the_best_is_kept_when_others_are_deleted(self, make_toy: MakeToy, tmp_path: Path) -> None:
        values = iter([0.1, 0.4, 0.3, 0.2])
        toy = make_toy(validate=lambda _: {"mrr": next(values)})
        weights: dict[int, Tensor] = {}
        toy.model.register_forward_pre_hook(
            lambda *_: weights.update({toy.model.num_forwards: toy.model.weight.detach().clone()})
        )
        result = toy.train(
            tmp_path, num_train_steps=11, validate_every_n=3, checkpoint_max_to_keep=1, keep_best={"metric": "mrr"}
        )
        assert (result.best_step, result.best_value) == (6, 0.4)
        assert checkpoint_steps(tmp_path) == [6, 11]
        assert best_step(tmp_path) == 6
        best = load_checkpoint(tmp_path, "best")
        assert torch.equal(best.tensors("model")["dense.weight"], weights[6])
        validated = [(line["step"], line["validation/mrr"]) for line in log_lines(tmp_path) if "validation/mrr" in line]
        assert validated == [(3, 0.1), (6, 0.4), (9, 0.3), (11, 0.2)]

    def test_the_model_is_measured_in_evaluation_mode_without_gradients(
        self, make_toy: MakeToy, tmp_path: Path
    ) -> None:
        seen: list[tuple[bool, bool]] = []
        toy = make_toy()
        toy = make_toy(validate=lambda _: seen.append((toy.model.training, torch.is_grad_enabled())) or {"loss": 1.0})
        toy.train(tmp_path, num_train_steps=2, validate_every_n=1)
        assert toy.model.training
        assert len(seen) == 2

    def test_validating_more_often_does_not_change_what_is_learned(self, make_toy: MakeToy, tmp_path: Path) -> None:
        parameters = []
        for every_n in (2, 5):
            toy = make_toy(validate=lambda _: {"mrr": torch.rand(()).item()})
            toy.train(tmp_path / str(every_n), num_train_steps=10, validate_every_n=every_n)
            parameters.append(toy.parameters())
        assert_equal(*parameters)

    def test_early_stopping_and_its_state_survive_a_kill(self, make_toy: MakeToy, tmp_path: Path) -> None:
        curve = {2: 5.0, 4: 3.0, 6: 2.95, 8: 2.94, 10: 2.93, 12: 0.0}
        config = {
            "num_train_steps": 20,
            "validate_every_n": 2,
            "checkpoint_every_n": 1,
            "keep_best": {"metric": "loss", "mode": "min"},
            "early_stopping": {"patience": 3, "min_delta": 0.1},
        }

        def toy_on_curve() -> Any:
            return make_toy(validate=lambda _: {"loss": curve[toys[-1].model.steps_told[-1][0] + 1]})

        toys: list[Any] = []
        for cut in (5, 4, None):
            toys.append(toy_on_curve())
            toys[-1].model.fail_at = {cut: Killed()} if cut else {}
            try:
                result = toys[-1].train(tmp_path, **config)
            except Killed:
                continue
        assert (result.step, result.reason) == (10, "early_stopping")
        assert (result.best_step, result.best_value) == (10, 2.93)
        again = toy_on_curve()
        toys.append(again)
        result = again.train(tmp_path, **config)
        assert (result.step, result.reason, again.model.num_forwards) == (10, "early_stopping", 0)

    def test_a_mark_that_a_kill_prevented_is_set_by_the_next_start(
        self, make_toy: MakeToy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from rookery.checkpoint.checkpointer import Checkpointer

        config = {"num_train_steps": 6, "validate_every_n": 3, "keep_best": {"metric": "mrr"}}

        def dies(*_: Any) -> None:
            raise Killed

        mark_best = Checkpointer.mark_best
        monkeypatch.setattr(Checkpointer, "mark_best", dies)
        with pytest.raises(Killed):
            make_toy(validate=lambda _: {"mrr": 0.5}).train(tmp_path, **config)
        assert best_step(tmp_path) is None
        monkeypatch.setattr(Checkpointer, "mark_best", mark_best)
        make_toy(validate=lambda _: {"mrr": 0.4}).train(tmp_path, **config)
        assert best_step(tmp_path) == 3

    def test_an_unknown_metric_names_the_known_ones(self, make_toy: MakeToy, tmp_path: Path) -> None:
        toy = make_toy(validate=lambda _: {"mrr": 0.1, "hits_at_10": 0.2})
        with pytest.raises(ConfigError, match=r"training\.keep_best\.metric='mr': .* did you mean 'mrr'\?"):
            toy.train(tmp_path, num_train_steps=2, validate_every_n=1, keep_best={"metric": "mr"})
