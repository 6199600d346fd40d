from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from rookery.data.planted import PlantedConfig, write_planted
from rookery.data.planted_impressions import BASES, EFFECTS, MAX_HISTORY
from rookery.errors import DataError

CONFIG = PlantedConfig(num_users=60, num_items=90, num_communities=6, num_edges=2000, num_impressions=20_000)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    out = tmp_path_factory.mktemp("planted") / "raw"
    write_planted(CONFIG, out)
    truth = {row["id"]: row["community"] for row in pq.read_table(out / "truth.parquet").to_pylist()}
    return pq.read_table(out / "impressions.parquet"), pq.read_table(out / "impression_truth.parquet"), truth, out


def test_probabilities_follow_the_formula_in_what_can_be_seen(planted):
    """Rows of one user and item differ by position and age alone."""
    log, truth, _, _ = planted
    pairs = list(zip(log["user_id"].to_pylist(), log["item_id"].to_pylist(), strict=True))
    for task in BASES:
        logit = np.log(truth[task].to_numpy() / (1 - truth[task].to_numpy()))
        _, _, _, by_position, by_day = EFFECTS[task]
        seen = by_position * log["position"].to_numpy() + by_day * log["item_age_hours"].to_numpy() / 24
        rest = {}
        for pair, value in zip(pairs, logit - seen, strict=True):
            rest.setdefault(pair, []).append(value)
        several = [values for values in rest.values() if len(values) > 1]
        assert len(several) > 1000
        assert max(max(values) - min(values) for values in several) < 1e-5


def test_a_shared_community_is_worth_its_effect(planted):
    log, truth, community, _ = planted
    users, items = log["user_id"].to_pylist(), log["item_id"].to_pylist()
    home = np.array([community[u] == community[i] for u, i in zip(users, items, strict=True)])
    logit = np.log(truth["click"].to_numpy() / (1 - truth["click"].to_numpy()))
    of_users = [np.array(users) == user for user in set(users)]
    of_items = [np.array(items) == item for item in set(items)]
    design = np.stack([home, *of_users, *of_items], 1)
    _, _, _, by_position, by_day = EFFECTS["click"]
    seen = by_position * log["position"].to_numpy() + by_day * log["item_age_hours"].to_numpy() / 24
    effect = np.linalg.lstsq(design.astype(float), logit - seen, rcond=None)[0][0]
    assert effect == pytest.approx(EFFECTS["click"][0], abs=1e-4)


def test_labels_come_as_often_as_their_probabilities_say(planted):
    log, truth, _, _ = planted
    for task in BASES:
        probability, label = truth[task].to_numpy(), log[task].to_numpy()
        deviation = np.sqrt((probability * (1 - probability)).sum())
        assert abs(label.sum() - probability.sum()) < 4 * deviation
        assert 0.001 < label.mean() < 0.5


def test_histories_are_the_last_clicks_of_earlier_days(planted):
    log = planted[0].to_pylist()
    clicks = {}
    for row in log:
        day = row["time"].date()
        earlier = [item for day_of, item in clicks.get(row["user_id"], []) if day_of < day]
        assert row["clicked_before"] == earlier[-MAX_HISTORY:]
        if row["click"]:
            clicks.setdefault(row["user_id"], []).append((day, row["item_id"]))
    assert max(len(row["clicked_before"]) for row in log) == MAX_HISTORY


def test_the_edges_are_the_same_with_and_without(planted, tmp_path):
    without = PlantedConfig(**{**vars(CONFIG), "num_impressions": 0})
    write_planted(without, tmp_path / "edges")
    assert (tmp_path / "edges/edges.tsv").read_bytes() == (planted[3] / "edges.tsv").read_bytes()
    assert not (tmp_path / "edges/impressions.parquet").exists()


def test_the_same_seed_gives_the_same_log(planted, tmp_path):
    write_planted(CONFIG, tmp_path / "again")
    assert pq.read_table(tmp_path / "again/impressions.parquet").equals(planted[0])


def test_a_negative_number_is_refused(tmp_path):
    with pytest.raises(DataError, match="num_impressions=-1: must be at least 0"):
        write_planted(PlantedConfig(num_impressions=-1), tmp_path / "raw")
