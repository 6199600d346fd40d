"""What only the reference does to labels, weights, probabilities and scores, against its formulas in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_ranker import TASKS, small_batch, small_config, small_model

from rookery.data.ids import MISSING_ID
from rookery.data.stream import StreamPosition
from rookery.metrics.binary import Predictions, RankingMetrics, ScaledLoss, SumMetrics
from rookery.optim.config import LearningRateConfig
from rookery.optim.schedules import make_schedule
from rookery.ranker.columns import ColumnPlan
from rookery.ranker.features_config import DownsampleNegatives
from rookery.ranker.labels import Labels, downsample_negatives
from rookery.timeline.config import WEIGHT_PRESETS
from rookery.timeline.scoring import weight_vector

HOUR_MS = 3_600_000
RATES = st.floats(0.01, 1.0)
fast = settings(deadline=None, max_examples=60)

Row = tuple[float, bool, float]
"""Probability, label, weight; few levels, so that many are tied."""
LEVELS = st.sampled_from([0.0625, 0.125, 0.25, 0.5, 0.75, 0.9375])
ROWS = st.lists(st.tuples(LEVELS, st.booleans(), st.sampled_from([0.5, 1.0, 4.0])), min_size=2, max_size=20).filter(
    lambda rows: len({label for _, label, _ in rows}) == 2
)


def predictions(rows: list[Row]) -> Predictions:
    p, y, weights = zip(*rows, strict=True)
    users = torch.zeros(len(rows), dtype=torch.int64)
    return Predictions(torch.tensor(p), torch.tensor(y), torch.tensor(weights, dtype=torch.float64), users, 1)


def cross_entropy(rows: list[Row]) -> float:
    total = sum(-weight * math.log(p if label else 1 - p) for p, label, weight in rows)
    return total / sum(weight for _, _, weight in rows)


def mean(rows: list[Row], column: int) -> float:
    return sum(row[column] * row[2] for row in rows) / sum(row[2] for row in rows)


def relative(rows: list[Row]) -> float:
    always = mean(rows, 1)
    return 100 * (1 - cross_entropy(rows) / cross_entropy([(always, label, weight) for _, label, weight in rows]))


ONCE = torch.ones(1, 1, dtype=torch.float64)


@fast
@given(ROWS)
def test_rce_and_nrce(rows: list[Row]) -> None:
    task = predictions(rows)
    assert SumMetrics.of(task, 10).under(ONCE)["rce"].item() == pytest.approx(relative(rows), rel=1e-6, abs=1e-6)
    factor = mean(rows, 1) / mean(rows, 0)
    ceiling = 1 - 2.0**-24  # a scaled probability may reach 1
    scaled = [(min(p * factor, ceiling), label, weight) for p, label, weight in rows]
    assert ScaledLoss.of(task).under(ONCE)["nrce"].item() == pytest.approx(relative(scaled), rel=1e-6, abs=1e-6)


@fast
@given(ROWS)
def test_weighted_auroc_counts_a_tie_one_half(rows: list[Row]) -> None:
    wins = total = 0.0
    for p, label, weight in rows:
        for other, other_label, other_weight in rows:
            if label and not other_label:
                total += weight * other_weight
                wins += weight * other_weight * (1.0 if p > other else 0.5 if p == other else 0.0)
    found = RankingMetrics.of(predictions(rows)).under(ONCE)["auroc"].item()
    assert found == pytest.approx(wins / total, abs=1e-12)


@fast
@given(st.lists(st.tuples(RATES, RATES), min_size=3, max_size=3))
def test_numeric_calibration_and_the_weights_of_sampled_rows(rates: list[tuple[float, float]]) -> None:
    labels = {
        task: {"pos_downsampling_rate": pos, "neg_downsampling_rate": neg}
        for task, (pos, neg) in zip(TASKS, rates, strict=True)
    }
    config, batch = small_config(labels=labels), small_batch()
    model = small_model(config).eval()
    with torch.no_grad():
        raw = torch.sigmoid(model.logits(batch.features).double())
        found = model.probabilities(batch.features).double()
    weights = Labels(config, ColumnPlan(config)).unsampled_weights(batch.labels, batch.weights[:, 0])
    for row in range(len(raw)):
        for task, (pos, neg) in enumerate(rates):
            p, r = raw[row, task].item(), neg / pos
            assert found[row, task].item() == pytest.approx(p * r / (1 - p + p * r), rel=2e-5)
            y = batch.labels[row, task].item()
            weight = batch.weights[row, 0].item() * (y / pos + (1 - y) / neg)
            assert weights[row, task].item() == pytest.approx(weight, rel=1e-5)


@fast
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40), st.integers(1, 5), st.integers(0, 9))
def test_negative_down_sampling(engaged: list[tuple[bool, bool]], multiplier: int, number: int) -> None:
    """Every row with an engagement stays with weight 1; the others that stay weigh their number over theirs."""
    labels = {name: torch.tensor([float(row[place]) for row in engaged]) for place, name in enumerate(("fav", "reply"))}
    config = DownsampleNegatives(batch_multiplier=multiplier, engagements_list=("fav", "reply"))
    position = StreamPosition(0, number, batch_size=len(engaged), num_rows=1000, seed=0)
    kept = downsample_negatives(config, labels, position)
    positives = [row for row, pair in enumerate(engaged) if any(pair)]
    others = len(engaged) - len(positives)
    staying = min(others, max(1, multiplier * max(1, len(positives))))
    weights = dict(zip(kept.rows.tolist(), kept.weights.tolist(), strict=True))
    assert len(weights) == len(positives) + staying
    assert [weights.pop(row) for row in positives] == [1.0] * len(positives)
    assert list(weights.values()) == pytest.approx([others / max(1, staying)] * staying)


@fast
@given(st.integers(1, 6), st.integers(1, 4), st.data())
def test_negative_down_sampling_as_there(size: int, multiplier: int, data: st.DataObject) -> None:
    """Of ``multiplier * size`` rows ``size`` stay: all P with an engagement (there is room), and of the others
    ``size - P``, each weighing ``(multiplier * size - P) / (size - P)``.
    """
    num_rows = multiplier * size
    num_engaged = data.draw(st.integers(0, max(0, size - 1)))
    engaged = data.draw(st.permutations([True] * num_engaged + [False] * (num_rows - num_engaged)))
    config = DownsampleNegatives(rows_per_kept=multiplier, engagements_list=("fav",))
    labels = {"fav": torch.tensor(engaged).float()}
    kept = downsample_negatives(config, labels, StreamPosition(0, 0, batch_size=num_rows, num_rows=1000, seed=0))
    others = size - num_engaged
    weights = {True: 1.0, False: (num_rows - num_engaged) / others}
    assert kept.weights.tolist() == pytest.approx([weights[engaged[row]] for row in kept.rows.tolist()])
    assert sum(engaged[row] for row in kept.rows.tolist()) == num_engaged
    assert len(kept.rows) == size


TIMES = st.integers(0, 10 * HOUR_MS)


@fast
@given(st.lists(st.tuples(TIMES, TIMES, TIMES, st.booleans()), min_size=1, max_size=20), st.floats(0.1, 5))
def test_label_rectification(rows: list[tuple[int, int, int, bool]], hours: float) -> None:
    rectify = {
        "label_rectification_window_in_hours": hours,
        "served_timestamp_field": "served",
        "impressed_timestamp_field": "impressed",
        "label_to_engaged_timestamp_field": {"like": "engaged"},
    }
    config = small_config(preprocess={"rectify_labels": rectify})
    served, impressed, engaged, like = (torch.tensor(column) for column in zip(*rows, strict=True))
    columns = {"served": served, "impressed": impressed, "engaged": engaged, "like": like.float()}
    columns |= {task: torch.zeros(len(rows)) for task in ("click", "hide")}
    window = int(hours * 60 * 60 * 1000)
    expected = [float(y and i - s < window and e - s < window) for s, i, e, y in rows]
    found = Labels(config, ColumnPlan(config)).read(columns)["like"].tolist()
    assert found == expected
    assert MISSING_ID not in served.tolist()  # an unknown time changes no label: ours, tested with the labels


def by_formula(kind: str, settings: dict[str, object], step: int) -> float:
    rate = float(settings.get("learning_rate", 0.0))  # type: ignore[arg-type]
    if kind == "piecewise_constant":
        passed = sum(step >= boundary for boundary in settings["learning_rate_boundaries"])  # type: ignore[attr-defined]
        return float(settings["learning_rate_values"][passed])  # type: ignore[index]
    ramp = int(settings["num_ramp_steps"])  # type: ignore[call-overload]
    if kind == "linear_ramp_to_constant":
        return min(rate, rate / ramp * step)
    final, end = float(settings["final_learning_rate"]), int(settings["final_num_steps"])  # type: ignore[arg-type,call-overload]
    if step < ramp:
        return min(rate, rate / ramp * step)
    if step > end:
        return final
    return final + (rate - final) * 0.5 * (1 + math.cos(math.pi * (step - ramp) / (end - ramp)))


@fast
@given(st.data())
@pytest.mark.parametrize("kind", ["constant", "piecewise_constant", "linear_ramp_to_constant", "linear_ramp_to_cosine"])
def test_the_four_schedules(kind: str, data: st.DataObject) -> None:
    rates = st.floats(1e-5, 1.0)
    rate, step = data.draw(rates), data.draw(st.integers(0, 200))
    if kind == "constant":
        assert make_schedule(LearningRateConfig(constant=rate))(step) == rate
        return
    boundaries = sorted(data.draw(st.sets(st.integers(1, 150), min_size=1, max_size=4)))
    ramp = data.draw(st.integers(1, 80))
    settings_of: dict[str, dict[str, object]] = {
        "piecewise_constant": {
            "learning_rate_boundaries": boundaries,
            "learning_rate_values": data.draw(
                st.lists(rates, min_size=len(boundaries) + 1, max_size=len(boundaries) + 1)
            ),
        },
        "linear_ramp_to_constant": {"learning_rate": rate, "num_ramp_steps": ramp},
        "linear_ramp_to_cosine": {
            "learning_rate": rate,
            "final_learning_rate": rate * data.draw(st.floats(0, 1)),
            "num_ramp_steps": ramp,
            "final_num_steps": ramp + data.draw(st.integers(1, 80)),
        },
    }
    schedule = make_schedule(LearningRateConfig.model_validate({kind: settings_of[kind]}))
    assert schedule(step) == pytest.approx(by_formula(kind, settings_of[kind], step), rel=1e-9, abs=1e-15)


@fast
@given(st.lists(st.floats(0, 1), min_size=10, max_size=10))
def test_the_score_of_2023(probabilities: list[float]) -> None:
    """In the order of the published list."""
    favorite, retweet, reply, profile, video, reply_engaged, click, click_2, negative, report = probabilities
    expected = (
        0.5 * favorite + 1.0 * retweet + 13.5 * reply + 12.0 * profile + 0.005 * video + 75.0 * reply_engaged
        + 11.0 * click + 10.0 * click_2 - 74.0 * negative - 369.0 * report
    )  # fmt: skip
    weights = WEIGHT_PRESETS["2023"]
    vector = weight_vector(weights, tuple(weights))
    found = sum(weight * p for weight, p in zip(vector.tolist(), probabilities, strict=True))
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-4)
