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
        ({"weights": {"is_favorited": 1.1e6}}, "^t: weights.is_favorited=1100000.0: must be at most 1000000"),
        ({"weights": {"is_reported": -1.1e6}}, "^t: weights.is_reported=-1100000.0: must be at least -1000000"),
        ({"weights": {"is_favorited": True}}, "^t: weights.is_favorited=True: must be a number, not a truth value$"),
        ({"weights": {}}, "^t: weights: every post would score 0; give an engagement a weight other than 0, or name"),
        ({"weights": {"is_favorited": 0, "is_replied": 0.0}}, "^t: weights: every post would score 0; give an eng"),
        (
            {"num_in_network": 0, "num_out_of_network": 0},
            "^t: num_in_network=0 and num_out_of_network=0: no timeline would have a post; give one of them more",
        ),
        ({"author_diversity": {"decay": 1.5}}, "author_diversity.decay=1.5: must be at most 1"),
        ({"out_of_network_factor": -0.1}, "out_of_network_factor=-0.1: must be at least 0"),
        ({"max_age_hours": 0}, "max_age_hours=0"),
        ({"max_age": 3}, "did you mean 'max_age_hours'"),
    ],
)
def test_what_cannot_be_is_refused(data, complaint):
    with pytest.raises(ConfigError, match=complaint):
        parse_config(TimelineConfig, data, "t")


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0)])
def test_one_source_of_candidates_is_enough(numbers):
    config = TimelineConfig(num_in_network=numbers[0], num_out_of_network=numbers[1])
    assert (config.num_in_network, config.num_out_of_network) == numbers


def test_the_largest_weights_of_either_sign():
    weights = {"is_favorited": 1e6, "is_reported": -1e6, "is_replied": 0}
    assert parse_config(TimelineConfig, {"weights": weights}, "t").weights == weights


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
