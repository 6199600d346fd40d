"""The four schedules against values worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rookery.optim.config import LearningRateConfig, OptimizerConfig
from rookery.optim.schedules import make_schedule, optimizer_schedule

PIECEWISE = {"learning_rate_boundaries": [3, 5], "learning_rate_values": [0.4, 0.2, 0.1]}
RAMP = {"learning_rate": 0.8, "num_ramp_steps": 4}
COSINE = {"learning_rate": 1.0, "final_learning_rate": 0.2, "num_ramp_steps": 2, "final_num_steps": 6}

# Half a cosine from 1.0 to 0.2 in 4 steps: 0.6 + 0.4 cos(k π / 4), cos(π / 4) = 1 / √2.
COSINE_RATES = [0.0, 0.5, 1.0, 0.6 + 0.4 / math.sqrt(2), 0.6, 0.6 - 0.4 / math.sqrt(2), 0.2, 0.2, 0.2]

BY_HAND = {
    "constant": (0.3, [0.3] * 4),
    "piecewise_constant": (PIECEWISE, [0.4, 0.4, 0.4, 0.2, 0.2, 0.1, 0.1]),
    "linear_ramp_to_constant": (RAMP, [0.0, 0.2, 0.4, 0.6, 0.8, 0.8, 0.8]),
    "linear_ramp_to_cosine": (COSINE, COSINE_RATES),
}


def test_every_schedule_of_the_config_is_tested_here() -> None:
    assert set(BY_HAND) == set(LearningRateConfig.one_of[0].fields) == set(LearningRateConfig.model_fields)


@pytest.mark.parametrize("kind", list(BY_HAND))
def test_rates_by_step(kind: str) -> None:
    settings, expected = BY_HAND[kind]
    schedule = make_schedule(LearningRateConfig.model_validate({kind: settings}))
    assert [schedule(step) for step in range(len(expected))] == pytest.approx(expected, abs=1e-15)
    assert schedule(10**9) == pytest.approx(expected[-1], abs=1e-15)


def test_a_schedule_is_a_function_of_the_step_alone() -> None:
    schedule = make_schedule(LearningRateConfig.model_validate({"linear_ramp_to_cosine": COSINE}))
    assert [schedule(step) for step in (5, 0, 3, 5)] == [schedule(5), schedule(0), schedule(3), schedule(5)]


@given(
    peak=st.floats(1e-6, 10),
    share=st.floats(0, 1),
    ramp=st.integers(1, 50),
    fall=st.integers(1, 50),
    step=st.integers(0, 120),
)
def test_a_cosine_rises_then_falls_between_its_ends(peak: float, share: float, ramp: int, fall: int, step: int) -> None:
    settings = {
        "learning_rate": peak,
        "final_learning_rate": peak * share,
        "num_ramp_steps": ramp,
        "final_num_steps": ramp + fall,
    }
    schedule = make_schedule(LearningRateConfig.model_validate({"linear_ramp_to_cosine": settings}))
    now, after = schedule(step), schedule(step + 1)
    assert now <= after if step < ramp else now >= after - 1e-12 * peak
    assert now <= peak * (1 + 1e-12)
    assert step < ramp or now >= peak * share * (1 - 1e-12)


@pytest.mark.parametrize("kind", list(BY_HAND))
def test_a_schedule_replaces_the_rate_of_its_optimizer(kind: str) -> None:
    settings, expected = BY_HAND[kind]
    config = OptimizerConfig.model_validate({"sgd": {"lr": 77.0}, "learning_rate": {kind: settings}})
    assert optimizer_schedule(config)(1) == pytest.approx(expected[1])


@pytest.mark.parametrize(
    ("kind", "rate"), [("sgd", 0.01), ("adagrad", 0.01), ("rowwise_adagrad", 0.01), ("adam", 0.001)]
)
def test_without_a_schedule_the_rate_of_the_optimizer_holds(kind: str, rate: float) -> None:
    for settings, expected in (({}, rate), ({"lr": 0.7}, 0.7)):
        schedule = optimizer_schedule(OptimizerConfig.model_validate({kind: settings}))
        assert [schedule(step) for step in (0, 1, 10**6)] == [expected] * 3


REFUSED = [
    ({"constant": -0.1}, "greater than or equal to 0"),
    ({}, "needs exactly one of constant"),
    ({"constant": 0.1, "linear_ramp_to_constant": RAMP}, "constant, linear_ramp_to_constant exclude each other"),
    (
        {"piecewise_constant": {**PIECEWISE, "learning_rate_values": [0.1, 0.2]}},
        "2 boundaries need 3 learning_rate_values",
    ),
    (
        {"piecewise_constant": {**PIECEWISE, "learning_rate_boundaries": [5, 5]}},
        "learning_rate_boundaries must increase",
    ),
    ({"linear_ramp_to_constant": {**RAMP, "num_ramp_steps": 0}}, "greater than 0"),
    ({"linear_ramp_to_cosine": {**COSINE, "final_num_steps": 2}}, "final_num_steps must be larger than num_ramp_steps"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_schedules_that_cannot_be_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LearningRateConfig.model_validate(settings)


@pytest.mark.parametrize("betas", [(1.0, 0.9), (0.9, -0.1)])
def test_betas_outside_of_zero_to_one_are_refused(betas: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match=r"each of betas must lie in \[0, 1\)"):
        OptimizerConfig.model_validate({"adam": {"betas": betas}})
