from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest
import torch

from rookery.train.meter import MeanMeter, Stopwatch


def test_means_in_double_precision() -> None:
    losses = np.random.default_rng(0).uniform(0, 1e3, 5000).astype(np.float32)
    meter = MeanMeter()
    for loss in torch.from_numpy(losses):
        meter.add("loss", loss)
        meter.add("rows", 3.5)
    assert meter.means() == {"loss": pytest.approx(losses.astype(np.float64).mean(), rel=1e-14), "rows": 3.5}


def test_weights() -> None:
    meter = MeanMeter()
    for value, weight in [(1.0, 0.5), (4.0, 0.5), (10.0, 1.0)]:
        meter.add("loss", torch.tensor(value), weight)
        meter.add("float", value, weight)
    assert meter.means() == {"loss": 6.25, "float": 6.25}


def test_it_does_not_hold_the_graph() -> None:
    weight = torch.ones((), requires_grad=True)
    meter = MeanMeter()
    meter.add("loss", weight * 2)
    assert not meter._sums["loss"].requires_grad


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_not_finite_is_remembered(value: float) -> None:
    meter = MeanMeter()
    assert meter.is_finite("loss")
    for each in (1.0, value, -value, 2.0):
        meter.add("loss", torch.tensor(each))
    assert not meter.is_finite("loss")
    meter.clear()
    assert meter.is_finite("loss")
    assert meter.means() == {}


def test_its_state_goes_through_json_to_the_last_bit() -> None:
    values = torch.rand(100)
    whole, first, second = MeanMeter(), MeanMeter(), MeanMeter()
    for index, value in enumerate(values):
        whole.add("loss", value)
        if index < 40:
            first.add("loss", value)
    second.load_state(json.loads(json.dumps(first.state())), torch.device("cpu"))
    for value in values[40:]:
        second.add("loss", value)
    assert second.means() == whole.means()


def test_a_stopwatch_adds_up_parts_and_starts_anew() -> None:
    watch = Stopwatch()
    for _ in range(3):
        with watch.part("data"):
            time.sleep(0.004)
    with pytest.raises(KeyError), watch.part("forward"):
        raise KeyError
    lap = watch.lap()
    assert lap.keys() == {"data", "forward", "total"}
    assert 0.012 <= lap["data"] <= lap["total"]
    assert watch.lap().keys() == {"total"}
