from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from rookery.data.adjacency import Adjacency
from rookery.data.catalog import MANIFEST, Catalog
from rookery.data.catalog_counts import COUNTED, NUM_RECENT, Counts, Outcomes, Posts
from rookery.data.catalog_features import DAY_US, HOUR_US, MEDIA, Snapshot
from rookery.data.engagements import ENGAGEMENTS
from rookery.errors import DataError, UnknownId

NUM_USERS, NUM_POSTS, NUM_TOPICS, NUM_DAYS = 30, 60, 4, 3
NOW_US = 100 * DAY_US
ARRAYS = "arrays.safetensors"


class Case:
    """A random service whose counts come from ``outcomes``, a list of days."""

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        follows = Adjacency.of_pairs(rng.integers(0, 25, 120), rng.integers(0, NUM_USERS, 120), NUM_USERS)
        posts = Posts(
            authors=rng.integers(0, NUM_USERS, NUM_POSTS),
            topics=rng.integers(0, NUM_TOPICS, NUM_POSTS).astype(np.int16),
            media=rng.integers(0, len(MEDIA), NUM_POSTS).astype(np.int8),
            lengths=rng.integers(1, 200, NUM_POSTS).astype(np.int16),
            created_us=np.sort(NOW_US - rng.integers(0, 3 * DAY_US, NUM_POSTS)),
        )
        self.snapshot = Snapshot(
            user_ids=pa.array([f"user_{row}" for row in range(NUM_USERS)]),
            joined_us=NOW_US - rng.integers(4, 90, NUM_USERS) * DAY_US,
            follows=follows,
            post_ids=pa.array([f"post_{row}" for row in range(NUM_POSTS)]),
            posts=posts,
            counts=Counts.zero(NUM_USERS, NUM_TOPICS, len(follows.values)).with_posts(NUM_POSTS),
        )
        self.outcomes = [self._day(rng) for _ in range(NUM_DAYS)]
        for day in self.outcomes:
            places = self.snapshot.follow_places(day.users, posts.authors[day.posts])
            self.snapshot.counts.add(day, posts, places)
        seen = Adjacency.of_pairs(self.column("users"), self.column("posts"), NUM_USERS)
        muted = Adjacency.of_pairs(np.array([3, 3]), np.array([7, 2]), NUM_USERS)
        self.catalog = Catalog(NOW_US, ("a", "b", "c", "d"), self.snapshot, seen, muted)

    def _day(self, rng: np.random.Generator) -> Outcomes:
        labels = (rng.random((300, len(ENGAGEMENTS))) < 0.3).astype(np.int8)
        return Outcomes(rng.integers(0, NUM_USERS - 2, 300), rng.integers(0, NUM_POSTS - 5, 300), labels)

    def column(self, name: str) -> np.ndarray:
        return np.concatenate([getattr(day, name) for day in self.outcomes])

    def label(self, name: str) -> np.ndarray:
        return self.column("labels")[:, ENGAGEMENTS.index(name)]


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


@pytest.fixture(scope="module")
def pairs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    return rng.integers(0, NUM_USERS, 200), rng.integers(0, NUM_POSTS, 200), NOW_US + rng.integers(0, DAY_US, 200)


def test_rates_are_drawn_towards_the_mean_as_the_formula_says(case, pairs):
    users, posts, times = pairs
    features = case.catalog.features(users, posts, times)
    shown_users, shown_posts = case.column("users"), case.column("posts")
    all_posts = case.catalog.posts
    owners = {
        "user": (users, shown_users),
        "author": (all_posts.authors[posts], all_posts.authors[shown_posts]),
        "post": (posts, shown_posts),
        "topic": (all_posts.topics[posts], all_posts.topics[shown_posts]),
    }
    for owner, (mine, of_rows) in owners.items():
        for label, name in zip(COUNTED, ("favorite", "retweet", "reply", "click", "negative"), strict=True):
            happened = case.label(label)
            expected = [
                (happened[of_rows == row].sum() + 20 * happened.mean()) / ((of_rows == row).sum() + 20) for row in mine
            ]
            np.testing.assert_allclose(features[f"{owner}_{name}_rate"], expected, rtol=1e-6)
        assert features[f"{owner}_impressions"].tolist() == [(of_rows == row).sum() for row in mine]


def test_counts_of_pairs(case, pairs):
    users, posts, times = pairs
    features = case.catalog.features(users, posts, times)
    all_posts, shown_users, shown_posts = case.catalog.posts, case.column("users"), case.column("posts")
    favorited = case.label("is_favorited")
    for place, (user, post) in enumerate(zip(users, posts, strict=True)):
        author, topic = all_posts.authors[post], all_posts.topics[post]
        follows = author in case.catalog.followed(user)
        on_topic = (shown_users == user) & (all_posts.topics[shown_posts] == topic)
        of_author = (shown_users == user) & (all_posts.authors[shown_posts] == author) & follows
        own = favorited[shown_users == user]
        rate = (favorited[on_topic].sum() + 20 * (own.mean() if len(own) else 0)) / (on_topic.sum() + 20)
        assert features["in_network"][place] == follows
        assert features["user_topic_impressions"][place] == on_topic.sum()
        assert features["user_topic_favorite_rate"][place] == pytest.approx(rate, rel=1e-6)
        assert features["followed_author_impression_count"][place] == of_author.sum()
        assert features["followed_author_favorite_count"][place] == favorited[of_author].sum()


def test_recent_lists_are_the_last_favorites_the_latest_last(case, pairs):
    users, posts, times = pairs
    features = case.catalog.features(users, posts, times)
    favorited = case.label("is_favorited") == 1
    shown_users, shown_posts = case.column("users")[favorited], case.column("posts")[favorited]
    longest = 0
    for place, user in enumerate(users):
        last = shown_posts[shown_users == user][-NUM_RECENT:]
        longest = max(longest, len(last))
        assert features["recent_topics"][place].as_py() == case.catalog.posts.topics[last].tolist()
        assert features["recent_authors"][place].as_py() == [f"user_{row}" for row in case.catalog.posts.authors[last]]
    assert longest == NUM_RECENT
    assert len(features["recent_topics"][int(np.flatnonzero(users == NUM_USERS - 1)[0])].as_py()) == 0


def test_what_is_known_of_users_and_posts(case, pairs):
    users, posts, times = pairs
    features = case.catalog.features(users, posts, times, shown_today=users, author_repeats=posts % 3)
    follows = case.snapshot.follows
    authors = case.catalog.posts.authors[posts]
    for name, rows in (("user", users), ("author", authors)):
        assert features[f"{name}_following"].tolist() == [len(follows.row(row)) for row in rows]
        assert features[f"{name}_followers"].tolist() == [int((follows.values == row).sum()) for row in rows]
        age = (times - case.snapshot.joined_us[rows]) / DAY_US
        np.testing.assert_allclose(features[f"{name}_age_days"], age, rtol=1e-6)
    age = (times - case.catalog.posts.created_us[posts]) / HOUR_US
    np.testing.assert_allclose(features["post_age_hours"], age, rtol=1e-6)
    assert features["post_media"].to_pylist() == [MEDIA[kind] for kind in case.catalog.posts.media[posts]]
    assert features["post_topic"].tolist() == case.catalog.posts.topics[posts].tolist()
    assert features["hour"].tolist() == [int(time % DAY_US / HOUR_US) for time in times]
    assert features["user_id"].to_pylist() == [f"user_{row}" for row in users]
    assert features["author_id"].to_pylist() == [f"user_{row}" for row in authors]
    assert features["post_id"].to_pylist() == [f"post_{row}" for row in posts]
    assert features["shown_today"].tolist() == users.tolist()
    assert features["author_repeats"].tolist() == (posts % 3).tolist()


def test_rows_by_user(case):
    catalog = case.catalog
    for user in range(NUM_USERS):
        newest_first = catalog.posts_of(user)
        assert newest_first.tolist() == np.flatnonzero(catalog.posts.authors == user)[::-1].tolist()
        assert set(catalog.seen(user)) == set(case.column("posts")[case.column("users") == user])
    assert catalog.muted(3).tolist() == [2, 7]
    assert catalog.muted(4).tolist() == []


def test_a_catalog_comes_back_as_it_was(case, pairs, tmp_path):
    case.catalog.write(tmp_path / "catalog")
    again = Catalog.open(tmp_path / "catalog")
    assert (again.now_us, again.topic_names) == (NOW_US, ("a", "b", "c", "d"))
    before, after = case.catalog.features(*pairs), again.features(*pairs)
    assert list(before) == list(after)
    assert all(pa.array(before[name]).equals(pa.array(after[name])) for name in before)
    assert all(again.seen(user).tolist() == case.catalog.seen(user).tolist() for user in range(NUM_USERS))
    assert again.muted(3).tolist() == [2, 7]
    assert again.user_row("user_7") == 7
    assert again.post_row("post_59") == 59


def test_an_unknown_id_gets_the_nearest(case):
    with pytest.raises(UnknownId, match=r"user 'user_30' is not known; did you mean 'user_3"):
        case.catalog.user_row("user_30")
    with pytest.raises(UnknownId, match=r"post '\?' is not known; known: post_0, post_1"):
        case.catalog.post_row("?")


def test_without_follows_nobody_is_in_network(case, pairs):
    none = Adjacency.of_pairs(np.empty(0, np.int64), np.empty(0, np.int64), NUM_USERS)
    known = case.snapshot
    lonely = Snapshot(known.user_ids, known.joined_us, none, known.post_ids, known.posts, known.counts)
    features = lonely.features(*pairs)
    assert features["in_network"].sum() == features["followed_author_impression_count"].sum() == 0
    assert case.catalog.features(*pairs)["in_network"].sum() > 10


def test_an_id_that_is_no_text_is_unknown(case):
    """What Python makes of an argument of bytes that are not UTF-8."""
    with pytest.raises(UnknownId, match=r"user 'user_\\udcff' is not known; did you mean 'user_"):
        case.catalog.user_row("user_\udcff")


def rewrite(folder, **changes):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, **changes}))


def without(folder, name):
    save_file({key: array for key, array in load_file(folder / ARRAYS).items() if key != name}, folder / ARRAYS)


def shorter(folder, name):
    arrays = load_file(folder / ARRAYS)
    save_file({**arrays, name: arrays[name][:-1].copy()}, folder / ARRAYS)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / MANIFEST).unlink(), "No such file or directory; name the catalog folder"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "the file: Invalid JSON: .*; not a catalog of format 1"),
        (lambda folder: (folder / MANIFEST).write_text("[]"), "the file: Input should be an object; not a catalog"),
        (lambda folder: (folder / MANIFEST).write_bytes(b'{"\xff": 1}'), "the file: Invalid JSON: .*; not a catalog"),
        (lambda folder: rewrite(folder, format=9), "format=9: Input should be 1; not a catalog of format 1: write the"),
        (lambda folder: (folder / MANIFEST).write_text('{"format": 1}'), "now_us: Field required; not a catalog of"),
        (lambda folder: rewrite(folder, now_us="soon"), "now_us='soon': Input should be a valid integer"),
        (lambda folder: rewrite(folder, num_users=31), "users.parquet: 30 rows, catalog.json says 31; write the cat"),
        (lambda folder: (folder / ARRAYS).write_bytes(b"x"), "cannot be read .*; write the catalog again"),
        (lambda folder: (folder / ARRAYS).write_bytes(b""), "cannot be read .*; write the catalog again"),
        (lambda folder: without(folder, "counts.recent"), "lacks counts.recent; write the catalog again"),
        (lambda folder: without(folder, "muted.offsets"), "lacks muted.offsets; write the catalog again"),
        (lambda folder: shorter(folder, "users.joined_us"), "safetensors: 29 rows, catalog.json says 30"),
        (lambda folder: shorter(folder, "posts.authors"), "safetensors: 59 rows, catalog.json says 60"),
        (lambda folder: (folder / "users.parquet").unlink(), "cannot be read .*; write the catalog again"),
        (
            lambda folder: pq.write_table(pa.table({"id": ["a"]}), folder / "posts.parquet"),
            "cannot be read .*post_id.*; write the catalog again",
        ),
    ],
)
def test_a_damaged_catalog_is_refused(case, tmp_path, damage, message):
    case.catalog.write(tmp_path / "catalog")
    damage(tmp_path / "catalog")
    with pytest.raises(DataError, match=message):
        Catalog.open(tmp_path / "catalog")
