from __future__ import annotations

import math

import pytest

from rookery.config.loader import dump_config, load_config, parse_config
from rookery.errors import ConfigError
from rookery.timeline.config import PRESETS, WEIGHT_PRESETS, TimelineConfig


def test_the_published_weights():
    assert list(WEIGHT_PRESETS["2023"].values()) == [0.5, 1, 13.5, 12, 0.005, 75, 11, 10, -74, -369]
    assert WEIGHT_PRESETS["2026"]["is_negative_feedback"] == -43.2
    assert WEIGHT_PRESETS["2026"]["is_reported"] == -234
    assert set(PRESETS) == set(WEIGHT_PRESETS)
    assert list(WEIGHT_PRESETS["2023"]) == list(WEIGHT_PRESETS["2026"])


@pytest.mark.parametrize("written", ["2026", '"2026"'])
def test_a_year_names_a_set(tmp_path, written):
    (tmp_path / "timeline.yaml").write_text(f"weights: {written}\n")
    config = load_config(TimelineConfig, tmp_path / "timeline.yaml")
    assert config.weights == "2026"


def test_what_is_written_is_read_again(tmp_path):
    config = TimelineConfig(weights={"is_favorited": 2.0}, max_age_hours=12, filters={"seen": False})
    (tmp_path / "timeline.yaml").write_text(dump_config(config))
    again = load_config(TimelineConfig, tmp_path / "timeline.yaml")
    assert again == config
    assert again.weights == {"is_favorited": 2.0}


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"weights": {"is_favorited": math.inf}}, "^t: weights.is_favorited=inf: must be a finite number$"),
        ({"weights": {"is_favorited": "much"}}, "^t: weights.is_favorited=much: must be a number$"),
        ({"author_diversity": {"decay": 1.5}}, "author_diversity.decay=1.5: must be at most 1"),
        ({"out_of_network_factor": -0.1}, "out_of_network_factor=-0.1: must be at least 0"),
        ({"max_age_hours": 0}, "max_age_hours=0"),
        ({"max_age": 3}, "did you mean 'max_age_hours'"),
    ],
)
def test_what_cannot_be_is_refused(data, complaint):
    with pytest.raises(ConfigError, match=complaint):
        parse_config(TimelineConfig, data, "t")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(2024, "=2024"), ("2024", "=2024"), (True, "=True"), ([2023], ""), (None, ""), (2023.0, "=2023.0")],
)
def test_what_names_no_set_of_weights(value, shown):
    with pytest.raises(ConfigError) as error:
        parse_config(TimelineConfig, {"weights": value}, "timeline.yaml")
    assert str(error.value) == (
        f"timeline.yaml: weights{shown}: must name a set of weights, 2023 or 2026, or map engagements to weights; "
        "leave it out for the default, 2023"
    )
