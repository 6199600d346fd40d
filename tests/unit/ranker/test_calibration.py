"""The calibration of a run: fitted once on its partition, kept, applied; what could not be fitted is said."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from planted_impressions import TASKS, planted_config, planted_log, write_log, write_vectors
from sklearn.linear_model import LogisticRegression

from rookery.errors import DataError
from rookery.ranker.calibration import fit_calibration
from rookery.ranker.partition import evaluation_batches
from rookery.ranker.run import LoadedRun, load_run
from rookery.ranker.train import train_ranker


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    folder = tmp_path_factory.mktemp("calibrated")
    log = planted_log()
    write_log(folder / "log", log)
    config = planted_config(
        folder / "log",
        folder / "run",
        write_vectors(folder / "vectors", log),
        runtime={"num_threads": 1, "device": "cpu"},
        calibration={"partition": "valid"},
    )
    train_ranker(config)
    return load_run(folder / "run")


def valid_rows(run: LoadedRun) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    batches = list(
        evaluation_batches(run.config, run.config.validation_data["valid"], run.preprocessor, torch.device("cpu"))
    )
    with torch.no_grad():
        logits = torch.cat([run.model.unsampled_logits(batch.features) for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    weights = torch.cat([batch.weights for batch in batches])
    return logits.double().numpy(), labels.numpy(), weights.double().numpy()


def test_a_run_has_the_map_that_scikit_learn_fits(run: LoadedRun) -> None:
    """Where a scale cannot be fitted (the run is short, so rare labels lie in no order), the mean is right at least."""
    logits, labels, weights = valid_rows(run)
    stored = json.loads(next((run.path / "calibration").glob("*.json")).read_text())
    assert stored["fitted"][TASKS[0]] == "platt"
    for number, task in enumerate(TASKS):
        scale, offset = stored["scale"][task], stored["offset"][task]
        if stored["fitted"][task] == "platt":
            expected = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
            expected.fit(logits[:, [number]], labels[:, number], weights[:, number])
            assert (scale, offset) == pytest.approx((expected.coef_.item(), expected.intercept_.item()), rel=1e-3)
        else:
            assert scale == 1.0
        probabilities = 1 / (1 + np.exp(-scale * logits[:, number] - offset))
        weight = weights[:, number]
        assert (weight * probabilities).sum() == pytest.approx((weight * labels[:, number]).sum(), rel=1e-6)
    assert run.model.calibration_scale.tolist() == pytest.approx(list(stored["scale"].values()), rel=1e-6)
    assert run.model.calibration_offset.tolist() == pytest.approx(list(stored["offset"].values()), rel=1e-6)


def test_it_is_fitted_once(run: LoadedRun) -> None:
    (path,) = (run.path / "calibration").glob("*.json")
    kept = json.loads(path.read_text())
    kept["offset"][TASKS[0]] = 0.125
    before = path.read_text()
    path.write_text(json.dumps(kept))
    try:
        assert load_run(run.path).model.calibration_offset[0].item() == 0.125
        path.write_text("{")
        with pytest.raises(DataError, match="delete it, it is fitted anew"):
            load_run(run.path)
    finally:
        path.write_text(before)


def test_a_task_whose_labels_say_nothing_is_left_as_it_is(
    run: LoadedRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = planted_log().table
    never = table.set_column(table.column_names.index(TASKS[0]), TASKS[0], [np.zeros(len(table), np.int64)])
    partition = run.config.validation_data["valid"]
    (tmp_path / "log").mkdir()
    pq.write_table(never, tmp_path / "log" / "never.parquet")
    changed = partition.model_copy(update={"inputs": (str(tmp_path / "log"),)})
    config = run.config.model_copy(update={"validation_data": {"valid": changed}})
    with caplog.at_level(logging.WARNING):
        fitted = fit_calibration(1, config, run.model, run.preprocessor)
    assert (fitted.scale[TASKS[0]], fitted.offset[TASKS[0]], fitted.fitted[TASKS[0]]) == (1.0, 0.0, "identity")
    assert f"task '{TASKS[0]}' is not calibrated" in caplog.text
