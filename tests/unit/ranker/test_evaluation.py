"""Evaluation of a partition against scikit-learn and plain loops on what the loaded run predicts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from evaluated_run import SCORE_WEIGHTS, TASKS, read_config
from naive_engagement import naive_gauc, naive_metrics, naive_ndcg
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from rookery.errors import ConfigError, TrainingError, UserError
from rookery.metrics.engagement import METRICS
from rookery.parallel.world import never
from rookery.ranker.evaluation import Evaluation, evaluate, make_validation
from rookery.ranker.run import LoadedRun, load_run


@pytest.fixture(scope="module")
def loaded(trained: Path) -> LoadedRun:
    return load_run(trained / "run")


@pytest.fixture(scope="module")
def evaluation(loaded: LoadedRun) -> Evaluation:
    return evaluate(loaded.config, "test", loaded.model, loaded.preprocessor, num_bootstrap=10)


def predicted(loaded: LoadedRun, trained: Path, name: str = "test") -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The columns of a partition's file, and probabilities ``[rows, tasks]`` computed without the evaluation."""
    columns = {name: column.to_numpy() for name, column in _columns(trained / f"{name}.parquet").items()}
    numbers = torch.from_numpy(np.stack([columns["affinity"], columns["annoyance"]]))
    features = {"affinity": numbers[0], "annoyance": numbers[1]}
    return columns, loaded.predict(features).double().numpy()


def _columns(path: Path) -> dict[str, Any]:
    table = pq.read_table(path)
    return {name: table.column(name) for name in table.column_names}


def test_every_metric_of_every_task(loaded: LoadedRun, trained: Path, evaluation: Evaluation) -> None:
    columns, probabilities = predicted(loaded, trained)
    for place, task in enumerate(TASKS):
        p, y = probabilities[:, place], columns[task]
        found = evaluation.whole.tasks[task].values
        assert found["auroc"] == pytest.approx(roc_auc_score(y, p), abs=1e-9)
        assert found["prauc"] == pytest.approx(average_precision_score(y, p), abs=1e-9)
        assert found["logloss"] == pytest.approx(log_loss(y, p), abs=1e-9)
        rows = list(zip(p.tolist(), (y > 0).tolist(), [1.0] * len(p), strict=True))
        expected = {**naive_metrics(rows), "gauc": naive_gauc(rows, columns["user_id"].tolist())}
        assert dict(found) == pytest.approx(expected, abs=1e-9)
        assert found["auroc"] > 0.65
    assert evaluation.whole.tasks["hide"].positives == columns["hide"].sum()


def test_ndcg_orders_by_the_score_and_gains_what_engagements_weigh(
    loaded: LoadedRun, trained: Path, evaluation: Evaluation
) -> None:
    columns, probabilities = predicted(loaded, trained)
    weights = np.array([SCORE_WEIGHTS[task] for task in TASKS])
    scores = loaded.model.score(torch.from_numpy(probabilities).float()).numpy()
    gains = np.maximum(0, np.stack([columns[task] for task in TASKS], 1) @ weights)
    per_user = [
        naive_ndcg(scores[columns["user_id"] == user].tolist(), gains[columns["user_id"] == user].tolist())
        for user in np.unique(columns["user_id"])
    ]
    ranked = [value for value in per_user if not math.isnan(value)]
    assert evaluation.whole.num_ranked == len(ranked) < evaluation.whole.num_users
    assert evaluation.whole.ndcg == pytest.approx(np.mean(ranked), abs=1e-9)


def test_a_stratum_is_its_rows_alone(loaded: LoadedRun, trained: Path, evaluation: Evaluation) -> None:
    columns, probabilities = predicted(loaded, trained)
    chosen = columns["country"] == "de"
    stratum = evaluation.strata["in germany"]
    assert stratum.num_rows == chosen.sum() < len(chosen)
    for place, task in enumerate(TASKS):
        expected = roc_auc_score(columns[task][chosen], probabilities[chosen, place])
        assert stratum.tasks[task].values["auroc"] == pytest.approx(expected, abs=1e-9)


def test_intervals_surround_the_numbers(evaluation: Evaluation) -> None:
    for task in evaluation.whole.tasks.values():
        for metric in set(METRICS) - {"ece"}:  # resampling adds to ECE
            low, high = task.intervals[metric]
            assert low < task.values[metric] < high, metric


def test_the_report_is_json_with_these_keys(evaluation: Evaluation) -> None:
    report: Any = evaluation.report()
    assert set(report["tasks"]["like"]) == {*METRICS, "count", "positives", "intervals"}
    assert set(report["tasks"]["like"]["intervals"]) == set(METRICS)
    assert set(report["mean"]) == set(METRICS)
    assert len(report["intervals"]["ndcg"]) == 2
    assert set(report["strata"]) == {"in germany"}
    assert set(report["diagrams"]) == set(TASKS)
    assert sum(each["count"] for each in report["diagrams"]["like"]["reliability"]) == pytest.approx(600)


def test_metrics_have_names_that_keep_best_can_name(evaluation: Evaluation) -> None:
    metrics = evaluation.metrics()
    assert metrics["like/auroc"] == evaluation.whole.tasks["like"].values["auroc"]
    assert metrics["mean/rce"] == pytest.approx(
        sum(evaluation.whole.tasks[task].values["rce"] for task in TASKS) / 2, abs=1e-6
    )
    assert metrics["ndcg"] == evaluation.whole.ndcg


def test_validation_measures_the_partitions_of_the_run_and_as_many_batches_as_it_may(
    loaded: LoadedRun, trained: Path
) -> None:
    metrics = make_validation(loaded.config, loaded.model, loaded.preprocessor)(never)
    assert {name.split("/")[0] for name in metrics} == {"valid"}
    columns, probabilities = predicted(loaded, trained, "valid")
    assert metrics["valid/like/auroc"] == pytest.approx(roc_auc_score(columns["like"], probabilities[:, 0]), abs=1e-9)
    bounded = read_config(trained / "config.yaml", "training.num_eval_steps=2")
    some = make_validation(bounded, loaded.model, loaded.preprocessor)(never)
    expected = roc_auc_score(columns["like"][:256], probabilities[:256, 0])
    assert some["valid/like/auroc"] == pytest.approx(expected, abs=1e-9)


def test_a_partition_has_tasks_and_sampling_of_its_own(loaded: LoadedRun, trained: Path) -> None:
    rates = {"pos_downsampling_rate": 0.5, "neg_downsampling_rate": 0.1}
    config = read_config(
        trained / "config.yaml", "validation_data.test.tasks=[hide]", f"validation_data.test.sampling={{hide: {rates}}}"
    )
    found = evaluate(config, "test", loaded.model, loaded.preprocessor, num_bootstrap=0)
    assert set(found.whole.tasks) == {"hide"}
    columns, probabilities = predicted(loaded, trained)
    y, p = columns["hide"], probabilities[:, TASKS.index("hide")]
    weights = y / 0.5 + (1 - y) / 0.1  # the log says so; what the model predicts stays what it is
    assert found.whole.tasks["hide"].values["logloss"] == pytest.approx(log_loss(y, p, sample_weight=weights), abs=1e-9)
    assert found.whole.tasks["hide"].values["auroc"] == pytest.approx(roc_auc_score(y, p), abs=1e-9)


@pytest.mark.parametrize(("field", "value"), [("tasks", "[like, hid]"), ("sampling", "{hid: {}}")])
def test_a_partition_names_tasks_that_there_are(trained: Path, field: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"validation_data.test.{field}: no task 'hid'; did you mean 'hide'"):
        read_config(trained / "config.yaml", f"validation_data.test.{field}={value}")


def test_chosen_tasks_alone_are_measured_and_ndcg_still_knows_all(
    loaded: LoadedRun, trained: Path, evaluation: Evaluation
) -> None:
    config = read_config(trained / "config.yaml", "evaluation.tasks=[hide]")
    found = evaluate(config, "test", loaded.model, loaded.preprocessor, num_bootstrap=0)
    assert dict(found.whole.tasks["hide"].values) == pytest.approx(dict(evaluation.whole.tasks["hide"].values))
    assert set(found.whole.tasks) == {"hide"}
    assert found.whole.ndcg == pytest.approx(evaluation.whole.ndcg, abs=1e-12)
    assert found.whole.tasks["hide"].intervals == {}


def test_without_users_there_is_nothing_by_user(loaded: LoadedRun, trained: Path) -> None:
    config = read_config(trained / "config.yaml", "keys.user=null")
    found = evaluate(config, "test", loaded.model, loaded.preprocessor, num_bootstrap=0).report()
    assert (found["num_users"], found["ndcg"], found["tasks"]["like"]["gauc"]) == (None, None, None)


def test_a_partition_that_is_not_there(loaded: LoadedRun) -> None:
    with pytest.raises(UserError, match="--split tset: no such partition of validation_data; did you mean 'test'"):
        evaluate(loaded.config, "tset", loaded.model, loaded.preprocessor, num_bootstrap=0)


def test_parameters_that_are_not_finite(trained: Path) -> None:
    broken = load_run(trained / "run")
    with torch.no_grad():
        next(broken.model.parameters()).fill_(math.nan)
    with pytest.raises(TrainingError, match=r"not finite.*--checkpoint STEP"):
        evaluate(broken.config, "test", broken.model, broken.preprocessor, num_bootstrap=0)
