"""A generated folder: rates, the truth and its optimality, files, and the same bytes again."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from rookery.data.catalog import Catalog
from rookery.data.catalog_features import DAY_US
from rookery.data.engagements import ENGAGEMENTS
from rookery.errors import DataError
from rookery.world.config import WorldConfig
from rookery.world.generate import generate_world
from rookery.world.laws import BASE_RATES
from rookery.world.policy import POLICY_SHARES
from rookery.world.world import World

TINY = WorldConfig.of_size("tiny", seed=3).model_copy(update={"history_days": 1, "log_days": 2})


def digests(folder) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def logloss(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of each row ``[rows, 10]``."""
    clipped = np.clip(probabilities, 1e-12, 1 - 1e-7)
    return -(labels * np.log(clipped) + (1 - labels) * np.log1p(-clipped))


@pytest.mark.parametrize("place", range(len(ENGAGEMENTS)), ids=ENGAGEMENTS)
def test_base_rates_are_met(written, place):
    target = list(BASE_RATES.values())[place]
    num_rows = len(written.labels)
    deviation = np.sqrt(target / num_rows)
    drift = 0.25 if target < 1e-3 else 0.06  # a few bad posts make most of the reports
    assert written.probabilities[:, place].mean() == pytest.approx(target, rel=drift)
    assert written.labels[:, place].mean() == pytest.approx(target, abs=4 * deviation + drift * target)


def test_labels_keep_the_logical_order(written):
    label = dict(zip(ENGAGEMENTS, written.labels.T, strict=True))
    assert (label["is_reply_engaged_by_author"] <= label["is_replied"]).all()
    assert (label["is_reported"] <= label["is_negative_feedback"]).all()
    assert (label["is_good_clicked_v1"] <= (label["is_favorited"] | label["is_replied"])).all()
    media = np.array(written.log["post_media"].to_pylist())
    assert label["is_video_playback_50"][media != "video"].sum() == 0
    assert label["is_video_playback_50"].sum() > 1000


def test_the_truth_is_calibrated_in_every_bin(written):
    for place in range(len(ENGAGEMENTS)):
        probability, label = written.probabilities[:, place], written.labels[:, place]
        bins = np.array_split(np.argsort(probability), 10)
        for rows in bins:
            deviation = np.sqrt((probability[rows] * (1 - probability[rows])).sum())
            assert abs(label[rows].sum() - probability[rows].sum()) < 4.5 * deviation + 1e-9


@pytest.mark.parametrize("change", ["noise", "sharper", "flatter", "higher", "lower"])
def test_nothing_else_predicts_better_than_the_truth(written, change):
    p = np.clip(written.probabilities, 1e-12, 1 - 1e-7)
    logit = np.log(p / (1 - p))
    noise = np.random.default_rng(0).normal(size=logit.shape)
    changed = {
        "noise": logit + 0.5 * noise,
        "sharper": 1.3 * logit,
        "flatter": logit / 1.3,
        "higher": logit + 0.3,
        "lower": logit - 0.3,
    }[change]
    worse = logloss(1 / (1 + np.exp(-changed)), written.labels) - logloss(p, written.labels)
    # One by one where there are labels enough to tell, and all together.
    common = written.labels.sum(0) > 1_000
    assert common.sum() == 6
    for losses in (*worse.T[common], worse.sum(1)):
        assert losses.mean() > 2 * losses.std() / np.sqrt(len(losses))


def test_a_regression_on_the_features_does_worse_than_the_truth(written):
    log = written.log
    columns = [
        field.name
        for field in log.schema
        if (pa.types.is_integer(field.type) or pa.types.is_floating(field.type))
        and field.name not in (*ENGAGEMENTS, "impression_id")
    ]
    values = np.stack([log[name].to_numpy().astype(float) for name in columns], axis=1)
    is_video = (np.array(log["post_media"].to_pylist()) == "video").astype(float)
    values = StandardScaler().fit_transform(np.column_stack((values, is_video)))
    last_day = log["time"].to_numpy().astype("datetime64[D]") == np.datetime64("2026-01-06")
    for name in ("is_favorited", "is_replied", "is_good_clicked_v2"):
        place = ENGAGEMENTS.index(name)
        label = written.labels[:, place]
        model = LogisticRegression(max_iter=300).fit(values[~last_day], label[~last_day])
        of_model = logloss(model.predict_proba(values[last_day])[:, 1], label[last_day]).mean()
        of_truth = logloss(written.probabilities[last_day, place], label[last_day]).mean()
        mean = label[~last_day].mean()
        of_mean = logloss(np.full(int(last_day.sum()), mean), label[last_day]).mean()
        assert of_truth < of_model < of_mean
        assert (of_mean - of_model) < 0.8 * (of_mean - of_truth)


def test_most_impressions_are_young_and_policies_have_their_shares(written):
    age = written.log["post_age_hours"].to_numpy()
    assert age.min() >= 0
    assert age.max() <= 72
    assert (age < 48).mean() > 0.7
    policies = written.truth["policy"].to_pylist()
    for policy, share in POLICY_SHARES.items():
        assert policies.count(policy) / len(policies) == pytest.approx(share, abs=0.05)
    assert "policy" not in written.log.column_names


def test_the_log_is_in_order_of_time_day_by_day(written, config):
    files = sorted((written.folder / "impressions").glob("*.parquet"))
    assert [file.name for file in files] == ["day-02.parquet", "day-03.parquet", "day-04.parquet", "day-05.parquet"]
    for number, file in enumerate(files, start=config.history_days):
        day = pq.read_table(file)["time"].to_numpy().astype("datetime64[D]")
        assert set(day.astype(str)) == {f"2026-01-{1 + number:02}"}
    times = written.log["time"].to_numpy().astype(np.int64)
    assert (np.diff(times) >= 0).all()
    assert written.log["impression_id"].equals(written.truth["impression_id"])
    assert np.array_equal(written.log["impression_id"].to_numpy(), np.arange(written.log.num_rows))


def test_the_world_gives_the_probabilities_of_its_log(written):
    """Where nothing tires the user, what the world says of a pair is what stands in the log's truth."""
    log = written.log
    fresh = np.ones(log.num_rows, bool)
    for column in ("position", "shown_today", "author_repeats"):
        fresh &= log[column].to_numpy() == 0
    times = log["time"].to_numpy().astype("datetime64[us]").astype(np.int64)
    users, posts = written.rows("user_id")[fresh], written.rows("post_id")[fresh]
    assert fresh.sum() > 500
    found = written.world.true_probabilities(users, posts, times[fresh])
    np.testing.assert_allclose(found, written.probabilities[fresh], rtol=1e-5)


def test_a_longer_world_goes_on_from_the_catalog_of_the_shorter(tmp_path, written, config):
    """Day by day the features of the log are those that the catalog of the evening before gives for the same pairs."""
    shorter = config.model_copy(update={"log_days": config.log_days - 1})
    generate_world(tmp_path / "shorter", shorter)
    catalog = Catalog.open(tmp_path / "shorter" / "catalog")
    last = pq.read_table(written.folder / "impressions" / "day-05.parquet")
    users, posts = (np.array([int(i.split("_")[1]) for i in last[name].to_pylist()]) for name in ("user_id", "post_id"))
    known = posts < len(catalog.post_ids)  # the others were written on the day itself
    assert known.mean() > 0.4
    last = last.filter(pa.array(known))
    features = catalog.features(
        users[known],
        posts[known],
        last["time"].to_numpy().astype("datetime64[us]").astype(np.int64),
        shown_today=last["shown_today"].to_numpy(),
        author_repeats=last["author_repeats"].to_numpy(),
    )
    assert set(last.column_names) == {"impression_id", "time", "position", *features, *ENGAGEMENTS}
    for name, column in features.items():
        assert pa.chunked_array([column]).equals(last[name]), name


def test_edges_are_the_engagements(written, config):
    relations = {"favorite": "is_favorited", "reply": "is_replied", "retweet": "is_retweeted"}
    for relation, engagement in relations.items():
        history = pq.read_table(written.folder / "history" / f"{relation}.parquet")
        everything = pq.read_table(written.folder / "edges" / f"{relation}.parquet")
        assert everything.slice(0, history.num_rows).equals(history)
        engaged = written.log.filter(pa.array(written.log[engagement].to_numpy() == 1))
        later = everything.slice(history.num_rows)
        assert later["lhs"].equals(engaged["user_id"])
        assert later["rhs"].equals(engaged["post_id"])
        assert history.num_rows / later.num_rows == pytest.approx(config.history_days / config.log_days, rel=0.25)
    follow = pq.read_table(written.folder / "edges" / "follow.parquet")
    pairs = written.world.catalog.snapshot.follows
    assert follow["lhs"].to_pylist() == [f"user_{row}" for row in pairs.owners()]
    assert follow["rhs"].to_pylist() == [f"user_{row}" for row in pairs.values]


def test_the_manifest_says_what_is_there(written, config):
    manifest = json.loads((written.folder / "world.json").read_text())
    assert manifest["kind"] == "world"
    assert manifest["config"] == config.model_dump()
    assert manifest["num_impressions"] == written.log.num_rows
    assert manifest["now"] == "2026-01-07T00:00:00+00:00"
    assert written.world.catalog.now_us == np.datetime64(manifest["now"][:19], "us").astype(np.int64)
    np.testing.assert_allclose(list(manifest["base_rates"].values()), written.labels.mean(0))
    sums = digests(written.folder)
    assert set(manifest["files"]) | {"world.json"} == set(sums)
    for name, known in manifest["files"].items():
        assert known.pop("bytes") == (written.folder / name).stat().st_size
        is_small = name.startswith(("catalog/", "society")) or name.endswith(".yaml")
        rows = {} if is_small else {"rows": pq.read_table(written.folder / name).num_rows}
        assert known == ({"sha256": sums[name]} if is_small else rows)


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(tmp_path):
    generate_world(tmp_path / "a", TINY)
    generate_world(tmp_path / "b", TINY)
    generate_world(tmp_path / "c", TINY.model_copy(update={"seed": 4}))
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    a, c = digests(tmp_path / "a"), digests(tmp_path / "c")
    assert {name for name in a if a[name] == c[name]} <= {"history/ingest.yaml", "edges/ingest.yaml"} | {
        "catalog/catalog.json",
        "catalog/users.parquet",
        "catalog/posts.parquet",
    }


def test_only_a_world_is_replaced(tmp_path):
    generate_world(tmp_path / "w", TINY)
    with pytest.raises(DataError, match="exists; choose another name, or pass --overwrite"):
        generate_world(tmp_path / "w", TINY)
    days = []
    generate_world(tmp_path / "w", TINY, overwrite=True, notify=lambda done, total: days.append((done, total)))
    assert days == [(1, 3), (2, 3), (3, 3)]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").touch()
    with pytest.raises(DataError, match=r"holds no world\.json, so --overwrite does not touch it"):
        generate_world(tmp_path / "other", TINY, overwrite=True)


def test_a_folder_that_is_no_world_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"world\.json: No such file or directory; make a world with `rookery world"):
        World.open(tmp_path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Two worlds of one size that differ in their seed."""
    folder = tmp_path_factory.mktemp("tiny")
    for seed in (3, 4):
        generate_world(folder / str(seed), TINY.model_copy(update={"seed": seed}))
    return folder


@pytest.fixture
def copy(tiny, tmp_path):
    return shutil.copytree(tiny / "3", tmp_path / "copy")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"{", "the file: Invalid JSON: EOF while parsing an object"),
        (b"[]", "the file: Input should be an object"),
        (b'{"\xff": 1}', "the file: Invalid JSON"),
        (b"", "the file: Invalid JSON"),
        (b'{"format": 7}', "format=7: Input should be 2"),
        (b'{"format": 2}', "first_day: Field required"),
    ],
)
def test_a_manifest_that_is_none(copy, content, complaint):
    (copy / "world.json").write_bytes(content)
    with pytest.raises(
        DataError, match=rf"{copy}/world\.json: {complaint}.*; not a world of format 2: generate it again"
    ):
        World.open(copy)


def test_a_manifest_of_a_world_that_cannot_be(copy):
    manifest = json.loads((copy / "world.json").read_text())
    manifest["config"]["num_communities"] = manifest["config"]["num_users"]
    (copy / "world.json").write_text(json.dumps(manifest))
    complaint = rf"{copy}/world\.json: config: num_communities=\d+: must be at most a quarter of num_users; not a world"
    with pytest.raises(DataError, match=complaint):
        World.open(copy)


FILES = ("society.safetensors", "truth/day-02.parquet", "catalog/arrays.safetensors", "history/ingest.yaml")


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_there_or_empty(copy, name):
    remedy = f"{copy} is damaged: generate it again"
    (copy / name).unlink()
    with pytest.raises(DataError, match=rf"{copy}/{name}: cannot be read \(No such file or directory\); {remedy}"):
        World.open(copy)
    (copy / name).touch()
    with pytest.raises(DataError, match=rf"{copy}/{name}: .*; {remedy}"):
        World.open(copy)


def test_without_its_truth(copy):
    shutil.rmtree(copy / "truth")
    with pytest.raises(
        DataError, match=rf"{copy}/truth/day-01\.parquet: cannot be read .*{copy} is damaged: generate it"
    ):
        World.open(copy)


def test_a_society_of_another_seed_is_refused(tiny, copy):
    """It has the same size and the same names."""
    own, other = (tiny / seed / "society.safetensors" for seed in ("3", "4"))
    shutil.copy(other, copy / own.name)
    with pytest.raises(DataError, match=rf"{copy}/society\.safetensors: sha256=\w+, but \w+ was written"):
        World.open(copy)
    shutil.copy(own, copy / own.name)
    assert World.open(copy).folder == copy


def test_a_log_with_other_rows_is_refused(copy):
    for name in ("impressions", "edges"):
        file = sorted((copy / name).glob("*.parquet"))[0]
        before, table = file.read_bytes(), pq.read_table(file)
        pq.write_table(table.slice(1), file)
        with pytest.raises(DataError, match=rf"{file}: bytes=\d+, but \d+ was written; {copy} is damaged"):
            World.open(copy)
        file.write_bytes(before[:-4] + b"none")  # of the same size
        with pytest.raises(DataError, match=rf"{file}: cannot be read .*; {copy} is damaged: generate it again"):
            World.open(copy)
        file.write_bytes(before)


def test_times_are_of_the_day(written):
    hours = np.bincount(written.log["hour"].to_numpy(), minlength=24)
    assert hours.min() > 0
    assert 2 < hours.max() / hours.min() < 5
    day = written.log["time"].to_numpy().astype("datetime64[us]").astype(np.int64) % DAY_US
    assert np.array_equal(day // 3_600_000_000, written.log["hour"].to_numpy())
