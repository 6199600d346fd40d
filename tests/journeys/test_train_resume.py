"""Training through interruptions: ``rookery twhin train`` in processes that die."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_graph import log_lines, make_config, one_thread, planted_splits, write_graph
from survived_runs import assert_same_run, final_tensors, last_step, require_survived
from training_jobs import Job, finish, run_whole, stop_at
from typer.testing import CliRunner

from rookery.checkpoint.checkpointer import load_checkpoint
from rookery.checkpoint.layout import checkpoint_steps
from rookery.cli.main import app
from rookery.cli.output import run_command
from rookery.config.loader import dump_config
from rookery.data.graph import Graph
from rookery.twhin.train import load_run

# Random rounding, products of half precision, batches ordered by query.
ROUNDED = {
    "training.num_train_steps": 90,
    "training.checkpoint_every_n": 10,
    "runtime.enable_amp": True,
    "model.loss": {"softmax": {}},
    "train_data.global_negatives": "all",
    "train_data.in_batch_negatives": 0,
    "train_data.order": "queries",
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.mark.slow
def test_kill_minus_nine_at_random_moments_costs_no_bit(twhin: Job, tmp_path: Path) -> None:
    chance = random.Random(20260)
    twhin.kill_and_run(tmp_path / "killed", sorted(chance.randint(0, twhin.num_steps - 10) for _ in range(3)))
    require_survived(tmp_path / "killed", twhin.whole, to_the_bit=True)
    assert checkpoint_steps(tmp_path / "killed") == checkpoint_steps(twhin.whole)


@pytest.mark.slow
def test_kill_minus_nine_with_random_rounding_and_batches_by_query(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "graph", planted_splits())
    job = run_whole(tmp_path, make_config(graph, tmp_path / "unused", ROUNDED, data_type="bf16"))
    job.kill_and_run(tmp_path / "killed", [random.Random(5).randint(20, job.num_steps - 20)])
    assert_same_run(tmp_path / "killed", job.whole)
    assert log_lines(job.whole)[-1]["epoch"] == pytest.approx(job.num_steps / 6)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_polite_signal_saves_and_says_so(twhin: Job, tmp_path: Path, number: signal.Signals, code: int) -> None:
    commands = twhin.start(tmp_path / "run")
    stop_at(commands[0], tmp_path / "run", 40, number)
    (said,) = finish(commands, [code])
    report = json.loads(commands[0].out.read_text())
    assert (report["reason"], report["signal"]) == ("interrupted", number.name)
    assert 40 <= report["step"] < twhin.num_steps
    assert checkpoint_steps(tmp_path / "run")[-1] == report["step"] == last_step(tmp_path / "run")
    assert f"{number.name}: finishing this step, then saving" in said
    twhin.run(tmp_path / "run")
    require_survived(tmp_path / "run", twhin.whole, to_the_bit=True)


def train(config: Path, save_dir: Path, *arguments: str) -> dict[str, Any]:
    """The same command in this process."""
    result = CliRunner().invoke(
        app, ["twhin", "train", str(config), "--save-dir", str(save_dir), "--json", *arguments], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def test_a_finished_run_returns_at_once_and_changes_nothing(twhin: Job) -> None:
    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in twhin.whole.rglob("*") if path.is_file()}

    before = content()
    report = train(twhin.config, twhin.whole)
    assert (report["step"], report["reason"], report["loss"]) == (twhin.num_steps, "finished", None)
    assert content() == before


def test_the_debug_loop_takes_the_same_steps(twhin: Job, tmp_path: Path) -> None:
    train(twhin.config, tmp_path / "debug", "--debug-loop")
    ours, theirs = final_tensors(tmp_path / "debug"), final_tensors(twhin.whole)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    lines = [line for line in log_lines(tmp_path / "debug") if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, twhin.num_steps + 1))
    assert all(line["grad_norm/_parameters_by_key.translation/forward"] > 0 for line in lines)


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    return write_graph(tmp_path / "graph", planted_splits())


def config_file(graph: Graph, tmp_path: Path, fields: dict[str, Any], name: str = "config", **table: Any) -> Path:
    path = tmp_path / f"{name}.yaml"
    path.write_text(dump_config(make_config(graph, tmp_path / "unused", fields, **table)))
    return path


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "rowwise_adagrad", "adam"])
def test_accumulated_batches_are_one_batch_where_negatives_do_not_depend_on_it(
    graph: Graph, tmp_path: Path, kind: str
) -> None:
    """With every entity as a negative, k batches of B and one of kB have the same loss and gradient, but for the order
    of sums; an epoch of 180 edges is 5 steps of 36 either way.
    """
    fields = {
        "training.num_train_steps": 15,
        "train_data.global_negatives": "all",
        "train_data.in_batch_negatives": 0,
        "model.translation_optimizer": {kind: {"lr": 0.05}},
    }
    table = {"optimizer": {kind: {"lr": 0.05}}}
    tensors = []
    for size, accumulation in ((36, 1), (12, 3)):
        own = {**fields, "train_data.per_replica_batch_size": size, "training.gradient_accumulation": accumulation}
        train(config_file(graph, tmp_path, own, **table), tmp_path / str(size))
        tensors.append({**load_checkpoint(tmp_path / str(size)).tensors("model")})
    torch.testing.assert_close(tensors[1], tensors[0], rtol=1e-4, atol=2e-5)
    losses = [[line["loss"] for line in log_lines(tmp_path / name)] for name in ("36", "12")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_it_stops_early_and_keeps_the_best(graph: Graph, tmp_path: Path) -> None:
    """Learning ends at step 30: validations at 20, 30 and 40 measure what changes, those after it what does not."""
    stop = {"piecewise_constant": {"learning_rate_boundaries": [30], "learning_rate_values": [0.1, 0.0]}}
    fields = {
        "training.num_train_steps": 500,
        "training.validate_every_n": 10,
        "training.checkpoint_every_n": 10,
        "training.checkpoint_max_to_keep": 1,
        "training.keep_best": {"metric": "mrr"},
        "training.early_stopping": {"patience": 3},
        "validation_data": {"split": "valid"},
        "model.translation_optimizer": {"adagrad": {}, "learning_rate": stop},
        "model.loss": {"softmax": {}},
    }
    config = config_file(graph, tmp_path, fields, optimizer={"adagrad": {}, "learning_rate": stop})
    report = train(config, tmp_path / "run")
    measured = {
        line["step"]: line["validation/mrr"] for line in log_lines(tmp_path / "run") if "validation/mrr" in line
    }
    assert report["reason"] == "early_stopping"
    assert report["best_value"] == max(measured.values())
    assert report["best_step"] == next(step for step, value in measured.items() if value == report["best_value"])
    assert report["step"] == list(measured)[-1] <= report["best_step"] + 30
    assert checkpoint_steps(tmp_path / "run") == [report["best_step"], report["step"]]
    assert load_run(tmp_path / "run").step == report["best_step"]
    assert train(config, tmp_path / "run")["reason"] == "early_stopping"  # started again, it does not go on


def test_a_warm_start_begins_with_what_the_other_run_learned(graph: Graph, tmp_path: Path) -> None:
    fields = {"training.num_train_steps": 60, "model.loss": {"softmax": {}}}
    config = config_file(graph, tmp_path, fields)
    train(config, tmp_path / "first")
    train(config, tmp_path / "second", "--set", f"training.initial_checkpoint_dir={tmp_path / 'first'}")
    first, second = (log_lines(tmp_path / name) for name in ("first", "second"))
    assert [line["step"] for line in second] == [line["step"] for line in first]
    assert second[0]["loss"] < first[0]["loss"] - 0.3
    assert second[0]["loss"] == pytest.approx(sum(line["loss"] for line in first[-6:]) / 6, rel=0.15)


@pytest.mark.parametrize("data_type", ["fp16", "bf16"])
@pytest.mark.parametrize("enable_amp", [False, True])
def test_half_precision_learns_as_much(graph: Graph, tmp_path: Path, data_type: str, enable_amp: bool) -> None:
    fields = {"training.num_train_steps": 80, "training.train_log_every_n": 20, "model.loss": {"softmax": {}}}
    losses = {}
    for kind, amp in (("fp32", False), (data_type, enable_amp)):
        own = {**fields, "runtime.enable_amp": amp}
        train(config_file(graph, tmp_path, own, data_type=kind), tmp_path / kind)
        losses[kind] = [line["loss"] for line in log_lines(tmp_path / kind)]
    assert losses[data_type] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses[data_type][-1] < 0.85 * losses[data_type][0]
    kept = load_checkpoint(tmp_path / data_type).tensors("model")["table.user"]
    assert kept.dtype == {"fp16": torch.float16, "bf16": torch.bfloat16}[data_type]


def test_a_wrong_configuration_exits_2_and_leaves_nothing(
    graph: Graph, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["twhin", "train", str(config_file(graph, tmp_path, {})), "--save-dir", str(tmp_path / "run")]
    exit_code = run_command(lambda: app([*arguments, "--set", "model.comparater=l2"]))
    out, err = capsys.readouterr()
    assert (exit_code, out) == (2, "")
    assert err == "error: --set: model: unknown key 'comparater'; did you mean 'comparator'?\n"
    assert not (tmp_path / "run").exists()
