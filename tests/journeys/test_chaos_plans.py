"""What `make chaos` draws: the suite itself takes an hour, its plans take no time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "chaos"))

from kill_points import Plan, draw_plan, kinds_for


@pytest.mark.parametrize("model", ["twhin", "ranker"])
def test_plans_follow_from_seed_and_number_and_reach_everything(model: str) -> None:
    plans = [draw_plan(0, model, number) for number in range(200)]
    assert plans == [draw_plan(0, model, number) for number in range(200)]
    assert plans != [draw_plan(1, model, number) for number in range(200)]
    assert {start.size for plan in plans for start in plan.starts} == {1, 2, 3}
    kinds = {kind for plan in plans for kind in (plan.sharding or {}).values()}
    assert kinds == {"row_wise", "column_wise", "table_wise", "table_row_wise", "data_parallel", "auto"}
    assert any(plan.sharding is None for plan in plans)
    assert all(_ends(plan) for plan in plans)


def _ends(plan: Plan) -> bool:
    """All starts but the last are to be killed."""
    return [start.moment is None for start in plan.starts] == [False] * (len(plan.starts) - 1) + [True]


def test_kinds_are_those_that_the_optimizer_has() -> None:
    assert "column_wise" not in kinds_for({"rowwise_adagrad": {"lr": 0.1}})
    assert "column_wise" in kinds_for({"adagrad": {"lr": 0.1}})
