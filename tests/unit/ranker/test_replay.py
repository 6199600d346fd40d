"""A step of the ranker whose loss was not finite, computed once more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from planted_impressions import TASKS, planted_config, planted_log, write_log, write_vectors
from small_graph import log_lines, one_thread

from rookery.config.loader import dump_config
from rookery.errors import TrainingError
from rookery.parallel.config import ReadersConfig
from rookery.ranker.build import build_preprocessor
from rookery.ranker.config import RankerConfig
from rookery.ranker.inputs import INPUTS, Inputs
from rookery.ranker.model import RankerModel
from rookery.ranker.reading import to_columns
from rookery.ranker.replay import replay_step
from rookery.ranker.train import opened_job, train_ranker
from rookery.train.loop import save_start
from rookery.train.meter import MeanMeter
from rookery.train.replay import Finding, read_kept

HOUR = 13
READERS = ReadersConfig(addresses=("grpc://127.0.0.1:1",))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replayed")
    planted = planted_log(900)
    write_log(folder / "log", planted)
    write_vectors(folder / "vectors", planted)
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def config_of(log: Path, run: Path, **fields: Any) -> RankerConfig:
    """Lanes, accumulated batches, down-sampling, dropout of positions, a checkpoint a step."""
    chosen = {
        "training__num_train_steps": 4,
        "training__train_log_every_n": 1,
        "training__checkpoint_every_n": 1,
        "parallel__num_lanes": 2,
        "preprocess__downsample_negatives": {"batch_multiplier": 4, "engagements_list": ["share"]},
        "model__featurization_config": {"log1p_abs_config": {}},
        "runtime": {"device": "cpu"},
        "calibration": None,
    }
    return planted_config(log / "log", run, log / "vectors", **{**chosen, **fields})


def test_the_loss_is_that_of_the_step(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same rows, sampling, dropout and weights: where it was the machine, the loss is the one of a sound run."""
    train_ranker(config_of(log, tmp_path / "whole"))
    train_ranker(config_of(log, tmp_path / "run", training__num_train_steps=3))
    monkeypatch.setattr(MeanMeter, "is_finite", lambda self, name: False)
    with pytest.raises(TrainingError, match=f"`rookery replay {tmp_path / 'run'}` tells"):
        train_ranker(config_of(log, tmp_path / "run"))
    replay = replay_step(tmp_path / "run")
    assert (replay.step, replay.weights_of_step, replay.weights) == (4, 3, ())
    (batch,) = replay.batches
    assert batch.num_rows == 64
    assert batch.loss == pytest.approx(log_lines(tmp_path / "whole")[3]["loss"], rel=1e-6)
    ages = read_kept(tmp_path / "run").batches[0].columns
    (age,) = [column for name, column in ages.items() if "age" in name]
    assert [(each.kind, each.count) for each in batch.findings] == [("column", int(age.isnan().sum()))]


def spoil_hour(model: RankerModel) -> None:
    with torch.no_grad():
        for name, rows in model.network.embeddings.small.items():
            if "hours" in name:
                rows[HOUR] = torch.inf


def spoiled_run(config: RankerConfig, fill) -> None:
    with opened_job(config, fill) as (run, job):
        save_start(job, run, config.training, config.runtime)
    with pytest.raises(TrainingError, match="the loss of step 1 "):
        train_ranker(config)


@pytest.mark.parametrize("downsample", [None, {"batch_multiplier": 1, "engagements_list": ["like"]}])
def test_rows_features_layers_and_tasks_are_named(log: Path, tmp_path: Path, downsample: dict[str, Any] | None) -> None:
    """A row of a table is infinite: exactly the rows of that hour have no finite loss, in every task."""
    config = config_of(log, tmp_path / "run", preprocess__downsample_negatives=downsample)
    spoiled_run(config, spoil_hour)
    replay = replay_step(tmp_path / "run", 1)
    (weight,) = replay.weights
    assert ("hours" in weight.name, weight.count, weight.total, weight.first) == (True, 2, 25 * 2, (f"row {HOUR}",))
    kept = read_kept(tmp_path / "run").batches[0]
    (hours,) = [column for name, column in kept.columns.items() if "hour" in name]
    at_hour = {f"rank-0-0.parquet row {row}" for row in (hours == HOUR).nonzero().squeeze(1).tolist()}
    by_kind = {(each.kind, each.name): each for each in replay.batches[0].findings if each.kind != "column"}
    feature = by_kind.pop(("feature", "hour"))
    assert set(feature.first) <= at_hour
    assert feature.count == len(at_hour) if downsample is None else 0 < feature.count <= len(at_hour)
    (layer,) = [by_kind.pop(key) for key in list(by_kind) if key[0] == "layer"]
    assert layer.name.startswith("backbone")
    assert (layer.count, layer.first) == (feature.count, feature.first)
    assert list(by_kind) == [("task", task) for task in TASKS]
    for task in by_kind.values():
        assert (task.count, task.total, task.first) == (feature.count, feature.total, feature.first)


def test_one_task_alone_is_named(log: Path, tmp_path: Path) -> None:
    config = config_of(log, tmp_path / "run", preprocess__downsample_negatives=None)
    names: list[str] = []

    def spoil(model: RankerModel) -> None:
        with torch.no_grad():
            for name, parameter in model.network.towers.named_parameters():
                if parameter.shape[0] == len(TASKS):
                    parameter[1] = torch.nan
                    names.append(name)

    spoiled_run(config, spoil)
    findings = [each for each in replay_step(tmp_path / "run").batches[0].findings if each.kind != "column"]
    assert names
    assert [each.kind for each in findings] == ["layer", "task"]
    assert findings[1] == Finding("task", TASKS[1], 64, 64, tuple(f"rank-0-0.parquet row {row}" for row in range(10)))


def test_without_a_checkpoint_the_weights_are_those_that_the_run_began_with(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MeanMeter, "is_finite", lambda self, name: False)
    fields = {"model__position_debias_config": None}
    with pytest.raises(TrainingError, match="the loss of step 1 "):
        train_ranker(config_of(log, tmp_path / "run", **fields))
    monkeypatch.undo()
    train_ranker(config_of(log, tmp_path / "sound", training__num_train_steps=1, **fields))
    replay = replay_step(tmp_path / "run")
    assert (replay.step, replay.weights_of_step) == (1, 0)
    assert replay.batches[0].loss == pytest.approx(log_lines(tmp_path / "sound")[0]["loss"], rel=1e-6)


def test_rows_that_readers_have_preprocessed(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept then is a batch; its loss is the same."""
    run = tmp_path / "run"
    config = config_of(log, run, training__num_train_steps=1, model__position_debias_config=None)
    monkeypatch.setattr(MeanMeter, "is_finite", lambda self, name: False)
    with pytest.raises(TrainingError):
        train_ranker(config)
    loss = replay_step(run).batches[0].loss
    folder = run / "not-finite" / "step-000000001"
    kept, file = read_kept(run).batches[0], folder / "rank-0-0.parquet"
    batch = build_preprocessor(config, Inputs.open(run / INPUTS)).batch(
        kept.columns, training=True, position=kept.position, lanes=kept.lanes
    )
    metadata = pq.read_schema(file).metadata
    columns = {name: column.numpy() for name, column in to_columns(batch).items()}
    arrays = {
        name: pa.array(column)
        if column.ndim == 1
        else pa.FixedSizeListArray.from_arrays(column.ravel(), column.shape[1])
        for name, column in columns.items()
    }
    pq.write_table(pa.table(arrays).replace_schema_metadata(metadata), file)
    read = config.model_copy(update={"parallel": config.parallel.model_copy(update={"readers": READERS})})
    (folder / "config.yaml").write_text(dump_config(read))
    (served,) = replay_step(run).batches
    assert served.loss == pytest.approx(loss, rel=1e-6)
    assert served.num_rows == batch.num_rows < kept.num_rows
