from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from rookery.config.loader import load_config
from rookery.errors import ConfigError, DataError, TrainingError, UserError
from rookery.ranker.config import RankerConfig
from rookery.ranker.tune import tune
from rookery.ranker.tune_space import TrialConfigs
from rookery.train.loop import TrainingResult

CONFIG = """
training:
  save_dir: runs/best
  num_train_steps: 30
  validate_every_n: 10
  keep_best: {metric: valid/mean/auroc, mode: max}
labels: {like: {}}
features:
  continuous: [{name: x}]
train_data: {inputs: [train.parquet]}
validation_data:
  valid: {inputs: [valid.parquet]}
  test: {inputs: [test.parquet], during_training: false}
model:
  backbone: {mlp_config: {layer_sizes: [16]}}
  tasks: {like: {mlp_config: {layer_sizes: [8, 1]}}}
optimizer:
  adamw: {}
  single_task_learning_rate: {constant: 0.001}
"""
RATE = "optimizer.single_task_learning_rate.constant"
BEST_RATE = 0.01


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def make(tmp_path, config):
    """From the text of a space to the configurations of its trials."""

    def make(space, config_text=CONFIG):
        path = tmp_path / "space.yaml"
        path.write_text(space)
        config.write_text(config_text)
        return TrialConfigs(config, path)

    return make


SPACE = f"fields:\n  {RATE}: {{low: 1.0e-4, high: 1.0, log: true}}\n"


class World:
    """Stands for training: quality at a step is known, and falls with the distance of the rate from the best one."""

    def __init__(self, *, fail=None):
        self.rates = []
        self.validations = []
        self.fail = fail

    def train(self, config, *, sinks):
        rate = config.optimizer.single_task_learning_rate.constant
        self.rates.append(rate)
        save_dir = config.training.save_dir
        for name in ("checkpoints", "inputs"):
            (save_dir / name).mkdir(parents=True, exist_ok=True)
        values = {}
        for step in (10, 20, 30):
            values[step] = 1 - abs(math.log10(rate / BEST_RATE)) / 4 - 1 / step
            self.validations.append((config.training.save_dir.name, step))
            if self.fail is not None:
                self.fail(self, step)
            for sink in sinks:
                sink.log(step, {"loss": 1.0})
                sink.log(step, {"validation/valid/mean/auroc": values[step]})
        best = max(values, key=values.get)
        return TrainingResult(30, 30, "finished", 0.5, best, values[best], None)


def value_of(rate, step=30):
    return 1 - abs(math.log10(rate / BEST_RATE)) / 4 - 1 / step


def test_it_finds_the_best_value_and_writes_its_configuration(make, tmp_path):
    world = World()
    report = tune(make(SPACE), tmp_path / "study", 25, world.train)
    assert [trial.number for trial in report.trials] == list(range(25))
    finished = [trial for trial in report.trials if trial.state == "finished"]
    best = max(finished, key=lambda trial: trial.value)
    assert report.best == best
    assert best.value == pytest.approx(value_of(best.fields[RATE]))
    assert best.step == 30
    assert abs(math.log10(best.fields[RATE] / BEST_RATE)) < 0.2
    written = load_config(RankerConfig, report.best_config)
    assert written.optimizer.single_task_learning_rate.constant == best.fields[RATE]
    assert written.training.save_dir == Path("runs/best")


def test_worse_trials_are_stopped_early_and_leave_no_checkpoints(make, tmp_path):
    world = World()
    report = tune(make(SPACE), tmp_path / "study", 20, world.train)
    pruned = [trial for trial in report.trials if trial.state == "pruned"]
    assert pruned
    assert len(world.validations) == 3 * 20 - sum(3 - trial.step // 10 for trial in pruned)
    finished = [trial.value for trial in report.trials if trial.state == "finished"]
    for trial in pruned:
        assert trial.reason == f"worse than the median of earlier trials at step {trial.step}"
        assert trial.value <= max(finished)
    with_checkpoints = {path.parent.name for path in (tmp_path / "study" / "trials").glob("*/checkpoints")}
    assert with_checkpoints == {report.best_run.name}


def test_pruning_can_be_switched_off(make, tmp_path):
    report = tune(make(SPACE + "pruning: null\n"), tmp_path / "study", 12, World().train)
    assert {trial.state for trial in report.trials} == {"finished"}


def test_min_searches_for_the_smallest(make, tmp_path):
    space = f"fields:\n  {RATE}: {{choices: [0.0001, 0.01, 1.0]}}\npruning: null\n"
    report = tune(make(space, CONFIG.replace("mode: max", "mode: min")), tmp_path / "study", 8, World().train)
    assert report.best.value == min(trial.value for trial in report.trials)
    # Its best validation is the first one: quality grows with the steps.
    assert {trial.step for trial in report.trials} == {10}


class Killed(BaseException):
    pass


def test_a_killed_study_draws_the_trials_of_one_that_was_not(make, tmp_path):
    configs = make(SPACE)
    whole = World()
    expected = tune(configs, tmp_path / "whole", 12, whole.train)

    def kill(world, step):
        if len(world.rates) >= 4 and step == 20:
            raise Killed

    killed = World(fail=kill)
    with pytest.raises(Killed):
        tune(configs, tmp_path / "killed", 12, killed.train)
    # A line that was being written when the machine stopped.
    with (tmp_path / "killed" / "journal.jsonl").open("a") as journal:
        journal.write('{"op_code":6,"wor')
    rest = World()
    report = tune(configs, tmp_path / "killed", 12, rest.train)
    assert rest.rates == whole.rates[len(killed.rates) - 1 :]
    strip = [replace(trial, elapsed_s=0.0) for trial in report.trials]
    assert strip == [replace(trial, elapsed_s=0.0) for trial in expected.trials]


def cut(content, lines):
    return b"".join(content.splitlines(keepends=True)[:lines])


DAMAGES = {
    "cut off in line 1:": lambda content: b"",
    "cut off in line 8:": lambda content: cut(content, 7),
    "cut off in line 9:": lambda content: cut(content, 8) + b'{"op_code":6,"wor',
    "cut off in line [0-9]+:": lambda content: content[:-1],
    "line 3 is not what was written": lambda content: content.replace(content.splitlines()[2], b"{", 1) + b" " * 999,
    "one of the lines 1 to [0-9]+ is not": lambda content: content.replace(b"0.", b"1.", 1),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_a_damaged_journal_is_refused_and_nothing_changed(make, tmp_path, message):
    study, configs = tmp_path / "study", make(SPACE)
    tune(configs, study, 3, World().train)
    journal = study / "journal.jsonl"
    journal.write_bytes(DAMAGES[message](journal.read_bytes()))
    before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    world = World()
    with pytest.raises(DataError, match=rf"journal\.jsonl: {message}.*--study"):
        tune(configs, study, 4, world.train)
    assert {path: path.read_bytes() for path in study.rglob("*") if path.is_file()} == before
    assert world.rates == []


@pytest.mark.parametrize("left", ["", '{"op_code":6,"wor'])
def test_a_kill_between_an_append_and_its_sum_loses_nothing(make, tmp_path, monkeypatch, left):
    configs = make(SPACE)
    report = tune(configs, tmp_path / "whole", 3, World().train)
    values = [trial.fields for trial in report.trials]
    tune(configs, tmp_path / "study", 2, World().train)
    with monkeypatch.context() as patched:
        patched.setattr("rookery.ranker.tune_journal.write_atomically", kill)
        with pytest.raises(Killed):
            tune(configs, tmp_path / "study", 3, World().train)
    with (tmp_path / "study" / "journal.jsonl").open("a") as journal:
        journal.write(left)
    report = tune(configs, tmp_path / "study", 3, World().train)
    assert [trial.fields for trial in report.trials] == values
    assert {trial.state for trial in report.trials} == {"finished"}


def kill(*_):
    raise Killed


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"bytes": 3, "crc32": "low"}'])
def test_a_damaged_sum_is_told(make, tmp_path, text):
    configs = make(SPACE)
    tune(configs, tmp_path / "study", 1, World().train)
    (tmp_path / "study" / "journal.sum.json").write_text(text)
    with pytest.raises(DataError, match=r"journal\.sum\.json: not the sum that was written .*delete it if the journal"):
        tune(configs, tmp_path / "study", 2, World().train)


def test_an_interrupted_trial_is_gone_on_with(make, tmp_path):
    configs, world = make(SPACE), World()

    def interrupted(config, *, sinks):
        result = world.train(config, sinks=sinks)
        return replace(result, reason="interrupted", signal="SIGINT")

    report = tune(configs, tmp_path / "study", 3, interrupted)
    assert (report.signal, [trial.state for trial in report.trials], report.best) == ("SIGINT", ["running"], None)
    first = report.trials[0]
    report = tune(configs, tmp_path / "study", 3, world.train)
    assert report.signal is None
    assert [trial.state for trial in report.trials] == ["finished"] * 3
    assert world.rates[1] == first.fields[RATE]
    assert report.trials[0].elapsed_s > first.elapsed_s


def test_an_ended_study_runs_nothing_more(make, tmp_path):
    world = World()
    tune(make(SPACE), tmp_path / "study", 2, world.train)
    tune(make(SPACE), tmp_path / "study", 2, world.train)
    assert len(world.rates) == 2
    tune(make(SPACE), tmp_path / "study", 3, world.train)
    assert len(world.rates) == 3


def test_a_diverged_trial_is_told_and_never_the_best(make, tmp_path):
    def diverge(world, step):
        if world.rates[-1] > 0.05:
            raise TrainingError("the loss of step 3 is not finite")

    report = tune(make(SPACE), tmp_path / "study", 12, World(fail=diverge).train)
    failed = [trial for trial in report.trials if trial.fields[RATE] > 0.05]
    assert failed
    assert {(trial.state, trial.value, trial.reason) for trial in failed} == {
        ("failed", None, "the loss of step 3 is not finite")
    }
    assert report.best.fields[RATE] <= 0.05


def test_a_trial_without_a_finite_validation_failed(make, tmp_path):
    def train(config, *, sinks):
        for sink in sinks:
            sink.log(10, {"validation/valid/mean/auroc": math.nan})
        return TrainingResult(30, 30, "finished", 0.5, None, None, None)

    report = tune(make(SPACE), tmp_path / "study", 2, train)
    assert {(trial.state, trial.reason) for trial in report.trials} == {("failed", "no validation was finite")}
    assert report.best is None
    assert report.best_config is None


def test_faults_of_the_data_end_the_study(make, tmp_path):
    def train(config, *, sinks):
        raise DataError("train.parquet: no such file")

    with pytest.raises(DataError, match="no such file"):
        tune(make(SPACE), tmp_path / "study", 2, train)


def test_choices_may_be_of_any_kind(make, tmp_path):
    seen = []

    def train(config, *, sinks):
        seen.append((config.model.backbone.mlp_config.layer_sizes, config.model.tasks["like"].pos_weight))
        return World().train(config, sinks=sinks)

    space = """
fields:
  model.backbone.mlp_config.layer_sizes: {choices: [[8], [16, 8]]}
  model.tasks.like.pos_weight: {choices: [null, 2]}
  train_data.batch_size: {low: 1024, high: 4096, step: 1024}
"""
    report = tune(make(space), tmp_path / "study", 20, train)
    assert set(seen) == {(sizes, weight) for sizes in ((8,), (16, 8)) for weight in (None, 2.0)}
    trial = report.trials[0]
    assert trial.fields["model.backbone.mlp_config.layer_sizes"] in ([8], [16, 8])
    assert {trial.fields["train_data.batch_size"] for trial in report.trials} == {1024, 2048, 3072, 4096}


def test_values_that_do_not_go_together_fail_their_trial(make, tmp_path):
    space = "fields: {features.continuous.0.name: {choices: [x, y]}, features.binary: {choices: [[], [{name: y}]]}}"
    report = tune(make(space), tmp_path / "study", 12, World().train)
    twice = {"features.continuous.0.name": "y", "features.binary": [{"name": "y"}]}
    failed = [trial for trial in report.trials if trial.fields == twice]
    assert failed
    for trial in report.trials:
        assert trial.state == ("failed" if trial in failed else "finished")
    assert "'y' is named twice" in failed[0].reason


def test_the_journal_is_plain_json(make, tmp_path):
    tune(make(SPACE), tmp_path / "study", 2, World().train)
    lines = (tmp_path / "study" / "journal.jsonl").read_text().splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)


@pytest.mark.parametrize("space", [SPACE.replace("1.0e-4", "1.0e-5"), SPACE + "pruning: null\n"])
def test_another_space_is_another_study(make, tmp_path, space):
    tune(make(SPACE), tmp_path / "study", 1, World().train)
    with pytest.raises(ConfigError, match=r"started with another space.*--study"):
        tune(make(space), tmp_path / "study", 2, World().train)


def test_another_configuration_is_another_study(make, tmp_path):
    tune(make(SPACE), tmp_path / "study", 1, World().train)
    with pytest.raises(ConfigError, match=r"started with another configuration.*--study"):
        tune(make(SPACE, CONFIG.replace("30", "40")), tmp_path / "study", 2, World().train)


def test_two_processes_do_not_share_a_study(make, tmp_path):
    configs = make(SPACE)

    def train(config, *, sinks):
        tune(configs, tmp_path / "study", 1, World().train)

    with pytest.raises(UserError, match="use another --study"):
        tune(configs, tmp_path / "study", 1, train)


@pytest.mark.parametrize(
    ("space", "messages"),
    [
        (
            "fields: {optimizr.adamw.weight_decay: {choices: [1]}}",
            ["unknown key 'optimizr'; did you mean 'optimizer'?"],
        ),
        (
            "fields: {optimizer.adamw.weight_deca: {low: 0.1, high: 1}}",
            ["fields.optimizer.adamw.weight_deca: ", "did you mean 'weight_decay'?"],
        ),
        (
            "fields: {optimizer.adamw.beta_1: {low: 0.5, high: 2}}",
            ["fields.optimizer.adamw.beta_1: optimizer.adamw.beta_1=2: must be less than 1"],
        ),
        (
            "fields: {model.multi_task_type: {choices: [share_all, share_none]}}",
            ["multi_task_type=share_none: share_none has no backbone"],
        ),
        ("fields: {features.continuous.y.width: {choices: [1]}}", ["has no item 'y'", "known: x"]),
        ("fields: {validation_data.valid.limit: {choices: [9]}}", ["trials are compared by validation_data"]),
        ("fields: {training: {choices: [{}]}}", ["remove it from the space"]),
        ("fields: {training.save_dir: {choices: [a]}}", ["training.save_dir"]),
        ("fields: {}", ["must have at least 1 item"]),
        (f"fields: {{{RATE}: {{low: 1}}}}", ["needs high, above low=1"]),
        (f"fields: {{{RATE}: {{low: 0, high: 1, log: true}}}}", ["log needs low above 0 and no step"]),
        (f"fields: {{{RATE}: {{choices: [1], log: true}}}}", ["choices stand alone"]),
        (f"fields: {{{RATE}: {{lo: 1, high: 2}}}}", ["did you mean 'low'?"]),
    ],
)
def test_a_space_that_cannot_be_run_is_refused_at_once(make, space, messages):
    with pytest.raises(ConfigError) as error:
        make(space)
    for message in messages:
        assert message in str(error.value)
    assert "space.yaml" in str(error.value)


def test_every_problem_of_a_space_is_told_at_once(make):
    with pytest.raises(ConfigError) as error:
        make("fields: {optimizer.adamw.beta_1: {choices: [2]}, model.compile: {choices: [maybe]}}")
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("test/mean/auroc", r"'test' is not measured during training.*must not choose.*\(valid\)"),
        ("vaild/mean/auroc", "no partition 'vaild'; did you mean 'valid'"),
    ],
)
def test_a_study_chooses_on_validation_alone(make, metric, message):
    with pytest.raises(ConfigError, match=message):
        make(SPACE, CONFIG.replace("valid/mean/auroc", metric))


def test_a_study_needs_a_metric(make):
    text = CONFIG.replace("  keep_best: {metric: valid/mean/auroc, mode: max}\n", "")
    with pytest.raises(ConfigError, match=r"training\.keep_best: tune compares trials by its metric; add it"):
        make(SPACE, text)
