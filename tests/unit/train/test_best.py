from __future__ import annotations

import json
import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rookery.train.best import BestTracker
from rookery.train.config import EarlyStopping, KeepBest

values = st.lists(st.floats(-10, 10) | st.just(math.nan), min_size=1, max_size=12)


def run(tracker: BestTracker, curve: list[float]) -> list[bool]:
    return [tracker.update(step, {"mrr": value}) for step, value in enumerate(curve, 1)]


@given(curve=values, mode=st.sampled_from(["max", "min"]))
def test_the_best_is_the_first_extreme(curve: list[float], mode: Literal["max", "min"]) -> None:
    tracker = BestTracker(KeepBest(metric="mrr", mode=mode), None)
    gains = run(tracker, curve)
    numbers = [value for value in curve if not math.isnan(value)]
    if not numbers:
        assert tracker.best_step is None
        assert not any(gains)
        return
    extreme = max(numbers) if mode == "max" else min(numbers)
    assert tracker.best_value == extreme
    assert tracker.best_step == curve.index(extreme) + 1
    assert not tracker.should_stop


@given(curve=values, patience=st.integers(1, 4), min_delta=st.floats(0, 3))
def test_it_stops_after_patience_validations_without_a_gain(
    curve: list[float], patience: int, min_delta: float
) -> None:
    tracker = BestTracker(KeepBest(metric="mrr"), EarlyStopping(patience=patience, min_delta=min_delta))
    reference, without_gain = -math.inf, 0
    for step, value in enumerate(curve, 1):
        tracker.update(step, {"mrr": value})
        if value - reference > min_delta:
            reference, without_gain = value, 0
        else:
            without_gain += 1
        assert tracker.should_stop == (without_gain >= patience)


@given(curve=values, cut=st.integers(0, 12))
def test_its_state_goes_through_json(curve: list[float], cut: int) -> None:
    def tracker() -> BestTracker:
        return BestTracker(KeepBest(metric="mrr"), EarlyStopping(patience=2, min_delta=0.5))

    whole, first, second = tracker(), tracker(), tracker()
    gains = run(whole, curve)
    head = run(first, curve[:cut])
    second.load_state(json.loads(json.dumps(first.state())))
    tail = [second.update(step, {"mrr": value}) for step, value in enumerate(curve[cut:], len(head) + 1)]
    assert head + tail == gains
    assert second.state() == whole.state()


@pytest.mark.parametrize("changed", [KeepBest(metric="auc"), KeepBest(metric="mrr", mode="min")])
def test_the_state_of_another_metric_is_left(changed: KeepBest) -> None:
    tracker = BestTracker(KeepBest(metric="mrr"), None)
    run(tracker, [0.5])
    other = BestTracker(changed, None)
    other.load_state(tracker.state())
    assert other.best_step is None
