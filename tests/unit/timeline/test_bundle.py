"""A bundle is whole, or it is not there and not opened."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_timeline import NUM_POSTS, NUM_USERS, small_catalog, write_small_ranker, write_vectors_of

from rookery.config.loader import parse_config
from rookery.data.catalog import Catalog
from rookery.data.engagements import ENGAGEMENTS
from rookery.errors import DataError, UserError
from rookery.timeline.bundle import Bundle, attach_metrics, build_bundle, read_manifest
from rookery.timeline.config import WEIGHT_PRESETS, TimelineConfig
from rookery.timeline.pool import RecentPosts
from rookery.timeline.timeline import Timeline


@pytest.fixture
def copy(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "bundle")


def test_the_manifest_says_what_is_in_it(bundle, parts):
    manifest = read_manifest(bundle)
    on_disk = {file.relative_to(bundle).as_posix() for file in bundle.rglob("*") if file.is_file()}
    assert on_disk == set(manifest.files) | {"bundle.json"}
    assert manifest.made_of == {"catalog": str(parts.catalog), "ranker": str(parts.ranker), "twhin": str(parts.twhin)}
    assert (manifest.num_users, manifest.num_posts) == (NUM_USERS, NUM_POSTS)
    assert manifest.num_users_with_vector == NUM_USERS - 1
    assert manifest.now == "2023-11-15T00:00:00+00:00"
    recent = Timeline.open(bundle).recent
    assert manifest.num_recent_posts == len(recent)
    assert manifest.num_recent_posts_with_vector == np.count_nonzero(recent.rows % 10)


def test_the_version_is_that_of_the_files(bundle, parts, tmp_path):
    again = read_manifest(parts.build(tmp_path / "again"))
    other = read_manifest(parts.build(tmp_path / "other", max_age_hours=24))
    assert again.version == read_manifest(bundle).version != other.version


@pytest.mark.parametrize(
    "file", ["catalog/arrays.safetensors", "ranker/weights.safetensors", "timeline.yaml", "map.parquet"]
)
def test_a_damaged_bundle_is_not_opened(copy, file):
    content = bytearray((copy / file).read_bytes())
    content[-1] ^= 1
    (copy / file).write_bytes(content)
    with pytest.raises(DataError, match=rf"{file}: crc32 .*the bundle is damaged: build it again"):
        Bundle.open(copy)
    (copy / file).unlink()
    with pytest.raises(DataError, match="the bundle is damaged: build it again"):
        Bundle.open(copy)


def test_what_an_earlier_one_left_beside_it_is_not_opened(copy):
    """A copy of an object store keeps what is no longer there: an index, of other posts."""
    shutil.copytree(copy / "ranker", copy / "index")
    assert Bundle.open(copy).index is None


def test_what_is_no_bundle(copy, tmp_path):
    with pytest.raises(DataError, match="name the folder that 'rookery timeline build OUT' wrote"):
        Bundle.open(tmp_path)
    (copy / "bundle.json").write_text('{"kind": "rookery timeline bundle", "format_version": 2}')
    with pytest.raises(DataError, match=r"format_version=2: .*; not a bundle of format version 1: build it again"):
        Bundle.open(copy)
    for content in (b'{"kind": "\xff"}', b"{", b"[]", b""):
        (copy / "bundle.json").write_bytes(content)
        with pytest.raises(DataError, match=r"bundle\.json: the file: .*; not a bundle of format version 1: build it"):
            Bundle.open(copy)


def test_the_steps_of_the_map_are_told(parts, tmp_path):
    told = []
    made_of = {"catalog": parts.catalog, "ranker": parts.ranker, "twhin": parts.twhin, "config": TimelineConfig()}
    build_bundle(tmp_path / "bundle", **made_of, notify=lambda done, steps: told.append((done, steps)))
    assert told == [(step, 750) for step in range(1, 751)]


def test_an_earlier_bundle_is_replaced_when_told_to_and_nothing_else(parts, copy, tmp_path):
    config = TimelineConfig(num_in_network=3)
    made_of = {"catalog": parts.catalog, "ranker": parts.ranker, "twhin": parts.twhin, "config": config}
    with pytest.raises(DataError, match="--overwrite"):
        build_bundle(copy, **made_of)
    build_bundle(copy, **made_of, overwrite=True)
    assert Bundle.open(copy).config.num_in_network == 3
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    with pytest.raises(DataError, match=r"holds no bundle\.json"):
        build_bundle(tmp_path / "mine", **made_of, overwrite=True)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"weights": {"is_favorite": 1.0}}, "did you mean 'is_favorited'"),
        ({"interests": {"relation": "likes"}}, "no such relation"),
        ({"interests": {"relation": "follow"}}, "interests.relation=follow: leads from user to user"),
        ({"max_age_hours": 1e-6}, "no post of the last 1e-06 hours"),
    ],
)
def test_what_does_not_fit_leaves_nothing(parts, tmp_path, changes, complaint):
    with pytest.raises(UserError, match=complaint):
        parts.build(tmp_path / "bundle", **changes)
    assert list(tmp_path.iterdir()) == []


def test_vectors_of_few_of_those_who_ask_are_refused(parts, tmp_path):
    """Of 50 users all but the second and the third have favourites: of the first 24 users 22, of the first 26 half."""
    catalog = small_catalog()
    few, enough = (write_vectors_of(tmp_path / str(number), catalog, num_users=number) for number in (24, 26))
    made_of = {"catalog": parts.catalog, "ranker": parts.ranker, "config": TimelineConfig()}
    complaint = f"{few}: has vectors of 22 of the 48 users with favourites in {parts.catalog}, fewer than half; name"
    with pytest.raises(DataError, match=complaint):
        build_bundle(tmp_path / "bundle", twhin=few, **made_of)
    assert not (tmp_path / "bundle").exists()
    assert build_bundle(tmp_path / "bundle", twhin=enough, **made_of).num_users_with_vector == 26


def test_vectors_of_few_of_the_recent_posts_are_refused(parts, tmp_path):
    """A post is found by its own vector or by its author's."""
    catalog = small_catalog()
    catalog.posts.authors[:] = 26 + catalog.posts.authors % 24  # nobody who has a vector writes
    catalog.write(tmp_path / "catalog")
    recent = RecentPosts(catalog, 48).rows  # newest first
    middle = int(recent[len(recent) // 2])
    few, enough = (
        write_vectors_of(tmp_path / str(number), catalog, num_users=26, num_posts=number)
        for number in (middle - 1, middle + 1)
    )
    made_of = {"catalog": tmp_path / "catalog", "ranker": parts.ranker, "config": TimelineConfig()}
    complaint = (
        rf"{few}: has vectors of \d+ of the {len(recent)} recent posts, by the post or its author, in {tmp_path}"
    )
    with pytest.raises(DataError, match=complaint):
        build_bundle(tmp_path / "bundle", twhin=few, **made_of)
    build_bundle(tmp_path / "bundle", twhin=enough, **made_of)


def test_a_ranker_that_reads_what_no_catalog_has(parts, tmp_path, monkeypatch):
    features = Catalog.features

    def with_more(self, *arguments):
        return {**features(self, *arguments), "in_network_twice": np.zeros(len(arguments[0]), np.int8)}

    monkeypatch.setattr("small_timeline._settings", reading("in_network_twice"))
    with monkeypatch.context() as patched:
        patched.setattr(Catalog, "features", with_more)
        ranker = write_small_ranker(tmp_path / "ranker", small_catalog(), None)
    with pytest.raises(UserError, match=r"reads column 'in_network_twice', .*did you mean 'in_network'"):
        build_bundle(
            tmp_path / "bundle", catalog=parts.catalog, ranker=ranker, twhin=parts.twhin, config=TimelineConfig()
        )


def reading(column):
    import small_timeline

    settings = small_timeline._settings

    def changed(*arguments):
        found = settings(*arguments)
        found["features"]["binary"] = [{"name": column}]
        return found

    return changed


@pytest.fixture(scope="module")
def nine(parts, tmp_path_factory):
    """An export of a ranker that does not predict reports."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("small_timeline.ENGAGEMENTS", tuple(name for name in ENGAGEMENTS if name != "is_reported"))
        return write_small_ranker(tmp_path_factory.mktemp("nine") / "ranker", small_catalog(), None)


def test_a_named_set_is_cut_down_to_what_the_ranker_predicts(parts, nine, tmp_path):
    made_of = {"catalog": parts.catalog, "ranker": nine, "twhin": parts.twhin}
    manifest = build_bundle(tmp_path / "bundle", **made_of, config=TimelineConfig())
    assert manifest.weights_left_out == ("is_reported",)
    timeline = Timeline.open(tmp_path / "bundle")
    kept = {task: weight for task, weight in WEIGHT_PRESETS["2023"].items() if task != "is_reported"}
    assert timeline.weights == kept
    [post] = timeline.rank("user_3", ["post_1"])
    assert post.score == pytest.approx(sum(kept[task] * chance for task, chance in post.probabilities.items()))
    given = TimelineConfig(weights=dict(WEIGHT_PRESETS["2023"]))
    with pytest.raises(UserError, match=r"weights\.is_reported=-369\.0: the ranker does not predict it"):
        build_bundle(tmp_path / "given", **made_of, config=given)


def test_a_set_that_is_predicted_is_left_whole(bundle):
    assert read_manifest(bundle).weights_left_out == ()


def test_many_recent_posts_get_an_index(parts, tmp_path, timeline):
    """So few are found by an approximate one as well."""
    indexed = Timeline.open(parts.build(tmp_path / "bundle", exact_search_up_to=50))
    assert indexed.bundle.index is not None
    assert timeline.bundle.index is None
    for user in ("user_3", "user_17"):
        found, exact = indexed.candidates(user), timeline.candidates(user)
        scores = [[each.retrieval_score for each in some] for some in (found, exact)]
        assert scores[0] == scores[1]
        # Of two posts that are as near to a cluster as each other, either may come last.
        differ = {each.post_id for each in found} ^ {each.post_id for each in exact}
        assert len({each.retrieval_score for each in (*found, *exact) if each.post_id in differ}) <= 1


MEASURED = {
    "tables": [{"title": "worth", "columns": ["", "share", "more"], "rows": [["oracle", 1.0, None]], "bar": None}],
    "training": [{"title": "loss", "log": False, "curves": [{"name": "a", "points": [[1, 0.5]]}]}],
    "reliability": [
        {
            "model": "a",
            "task": "is_replied",
            "metrics": {"calibration": None, "ece": 0.1},
            "bins": [{"low": 0.1, "high": 0.2, "mean_prediction": 0.1, "ctr": 0.0, "count": 9.0}],
        }
    ],
}


def test_metrics_are_attached_later(copy):
    assert Bundle.open(copy).metrics() is None
    attach_metrics(copy, MEASURED)
    opened = Bundle.open(copy)
    assert opened.metrics() == MEASURED
    assert opened.manifest.version == read_manifest(copy).version
    with pytest.raises(ValueError, match="not JSON compliant"):
        attach_metrics(copy, {"worth": float("nan")})
    with pytest.raises(ValueError, match="worth"):
        attach_metrics(copy, {"worth": 1.0})
    assert opened.metrics() == MEASURED


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "the file: Invalid JSON"),
        ("[1]", "the file: Input should be an object"),
        ("3", "the file: Input should be an object"),
        ('{"worth": 1}', "worth=1: Extra inputs are not permitted"),
        ('{"tables": {"title": "t"}}', "tables: Input should be a valid array"),
        ('{"tables": [{"title": "t", "columns": ["a"], "rows": [[NaN]]}]}', r"tables\.0\.rows\.0\.0.*finite"),
        ('{"tables": [{"title": "t", "columns": ["a"], "rows": [[1e999]]}]}', r"tables\.0\.rows\.0\.0.*finite"),
        ('{"tables": [{"title": "t", "columns": ["a"], "rows": [[[1]]]}]}', r"tables\.0\.rows\.0\.0"),
        (
            '{"tables": [{"title": "t", "columns": ["a", "b"], "rows": [["x", 1], ["y"]]}]}',
            r"tables\.0: a row has not the 2 cells of the columns; not what was measured",
        ),
        ('{"training": [{"title": "t", "log": false, "curves": [{"name": "n", "points": [[1]]}]}]}', r"points\.0"),
        ('{"reliability": [{"model": "m", "task": "t", "bins": []}]}', r"reliability\.0\.metrics: Field required"),
    ],
)
def test_what_is_no_measurement_is_refused(copy, text, complaint):
    (copy / "metrics.json").write_text(text)
    with pytest.raises(DataError, match=rf"metrics\.json: .*{complaint}") as error:
        Bundle.open(copy).metrics()
    assert str(error.value).endswith("attach the metrics again")


def test_the_map_has_users_and_recent_posts(bundle, timeline):
    found = pq.read_table(bundle / "map.parquet")
    assert found.column_names == ["id", "kind", "x", "y"]
    by_kind = {kind: found.filter(np.array(found["kind"]) == kind)["id"].to_pylist() for kind in ("user", "post")}
    assert by_kind["user"] == [f"user_{row}" for row in range(NUM_USERS) if row != 2]
    assert by_kind["post"] == [f"post_{row}" for row in timeline.recent.rows if row % 50]


def test_the_catalog_of_another_world_is_refused(timeline, tmp_path):
    timeline.bundle.require_catalog_of(small_catalog(), tmp_path)
    with pytest.raises(UserError, match="was built from another catalog"):
        timeline.bundle.require_catalog_of(small_catalog(num_posts=NUM_POSTS + 1), tmp_path)


def test_every_field_of_the_configuration_reaches_the_timeline(parts, tmp_path):
    changes = {"num_in_network": 2, "num_out_of_network": 3, "out_of_network_factor": 0.1, "weights": "2026"}
    config = parse_config(TimelineConfig, changes, "test")
    build_bundle(tmp_path / "b", catalog=parts.catalog, ranker=parts.ranker, twhin=parts.twhin, config=config)
    timeline = Timeline.open(tmp_path / "b")
    assert timeline.config == config
    posts = timeline.timeline("user_3", 20)
    assert [post.source for post in posts].count("out_of_network") == 3
    assert len(posts) == 5
    assert {post.network_factor for post in posts if post.source == "out_of_network"} <= {0.1, 1.0}
    assert timeline.weights["is_replied"] == 5.0
