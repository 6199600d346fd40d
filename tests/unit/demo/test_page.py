"""What the demo's page and the server's page of measures say beside the figures."""

from __future__ import annotations

from typing import Any

import pytest

from rookery.demo.measures import Measure
from rookery.demo.page import WITH, WITHOUT, Findings, render_page, served_metrics
from rookery.timeline.evaluation import POLICIES


def findings(not_predicted: tuple[str, ...]) -> Findings:
    policies: list[dict[str, Any]] = [
        {"policy": name, "value": 1.0, "share": 0.5, "share_interval": [0.4, 0.6]} for name in POLICIES
    ]
    timelines = {"k": 20, "policies": policies, "recall": []}
    measures = [Measure("NDCG of the score, by user", 0.6, 0.7, 0.8, 0.4)]
    evaluation = {"tasks": {}, "diagrams": {}}
    return Findings(
        measures, timelines, {WITHOUT: evaluation, WITH: evaluation}, {WITHOUT: [], WITH: []}, not_predicted
    )


@pytest.mark.parametrize("tasks", [("is_reported",), ("is_negative_feedback", "is_reported")])
def test_what_is_not_predicted_is_named(tasks):
    sentence = f"Not predicted, for want of examples, and so not weighed: {', '.join(tasks)}."
    assert render_page(findings(tasks), "t").count(sentence) == 2
    assert [table["lead"].endswith(sentence) for table in served_metrics(findings(tasks))["tables"]] == [True, True]


def test_where_all_are_predicted_nothing_is_said():
    assert "Not predicted" not in render_page(findings(()), "t")
    assert not any("Not predicted" in table["lead"] for table in served_metrics(findings(()))["tables"])
