"""What is found for a user against scores of all posts, a pair at a time."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import faiss
import numpy as np
import pyarrow as pa
import pytest
import torch
from small_timeline import (
    LONELY,
    MISSING,
    NUM_POSTS,
    NUM_USERS,
    SILENT,
    post_names,
    small_catalog,
    small_embeddings,
    user_names,
    write_twhin,
)

from rookery.errors import UserError
from rookery.timeline.config import Filters, Interests
from rookery.timeline.pool import RecentPosts
from rookery.timeline.retrieval import PostSearch, Vectors
from rookery.twhin.index import RowIndex
from rookery.twhin.interests import quotas
from rookery.twhin.source import open_source
from rookery.types import Side

CATALOG = small_catalog()
FAVORITE = 1


@pytest.fixture(scope="module", params=["dot", "l2"])
def twhin(request, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param) / "twhin"
    return SimpleNamespace(
        comparator=request.param,
        source=open_source(write_twhin(out, request.param)),
        embeddings=small_embeddings(request.param),
    )


def unit(vector, comparator):
    return vector / vector.norm() if comparator == "dot" else vector


def naive_user(twhin, user):
    name = f"user_{user}"
    return unit(twhin.embeddings.rows["user"][user_names().index(name)], twhin.comparator) if user != MISSING else None


def naive_post(twhin, post, author_share):
    names = post_names()
    name = f"post_{post}"
    own = unit(twhin.embeddings.rows["post"][names.index(name)], twhin.comparator) if name in names else None
    author = naive_user(twhin, int(CATALOG.posts.authors[post]))
    if own is None or author is None:
        return author if own is None else own
    return unit((1 - author_share) * own + author_share * author, twhin.comparator)


def naive_query(twhin, user):
    def translated(vector):
        return unit(vector + twhin.embeddings.parameters[FAVORITE, Side.RHS], twhin.comparator)

    rows = twhin.embeddings.rows["user"]
    if user != MISSING:
        return translated(rows[user_names().index(f"user_{user}")])
    return torch.stack([translated(row) for row in rows]).mean(0)


def naive_scores(twhin, query, posts, author_share):
    """By post; those without any vector are left out."""
    scores = {}
    for post in posts:
        vector = naive_post(twhin, post, author_share)
        if vector is not None:
            prepared = unit(query, twhin.comparator)
            near = prepared @ vector if twhin.comparator == "dot" else -(prepared - vector).norm()
            scores[post] = float(near)
    return scores


@pytest.mark.parametrize("author_share", [0.0, 0.75, 1.0])
def test_a_post_is_a_mean_of_its_vector_and_its_authors(twhin, author_share):
    vectors = Vectors(twhin.source, CATALOG, Interests(author_share=author_share))
    found, has_vector = vectors.of_posts(np.arange(NUM_POSTS))
    expected = [naive_post(twhin, post, author_share) for post in range(NUM_POSTS)]
    assert has_vector.tolist() == [vector is not None for vector in expected]
    assert np.flatnonzero(~has_vector).tolist() == list(range(0, NUM_POSTS, 50))
    for post in np.flatnonzero(has_vector):
        torch.testing.assert_close(found[post], expected[post], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("user", [LONELY, SILENT, MISSING, 17])
def test_without_clusters_a_user_gets_the_posts_nearest_to_the_own_query(twhin, user):
    interests = Interests(own_share=1.0, author_share=0.5)
    vectors, recent = Vectors(twhin.source, CATALOG, interests), RecentPosts(CATALOG, 48)
    allowed = np.random.default_rng(user).random(len(recent)) < 0.5
    history = CATALOG.counts.recent[user]
    question = vectors.question(user, history[history >= 0].astype(np.int64))
    places, scores = PostSearch(vectors, recent, None).search(question, allowed, 25)
    expected = naive_scores(twhin, naive_query(twhin, user), recent.rows[allowed].tolist(), 0.5)
    best = sorted(expected, key=lambda post: -expected[post])[:25]
    assert recent.rows[places].tolist() == best
    np.testing.assert_allclose(scores, [expected[post] for post in best], rtol=1e-4, atol=1e-5)


def test_a_history_is_asked_for_by_its_clusters(twhin):
    """Two favourites of one author and one of another, two clusters: a third of the history's share each, or two."""
    vectors = Vectors(twhin.source, CATALOG, Interests(num_clusters=2, own_share=0.4, author_share=1.0))
    of_author = {author: CATALOG.posts_of(author) for author in range(3, NUM_USERS)}
    first, second = [author for author, posts in of_author.items() if len(posts) > 1][:2]
    history = np.array([*of_author[first][:2], of_author[second][0]])
    question = vectors.question(17, history)
    torch.testing.assert_close(question.shares, torch.tensor([0.4, 0.4, 0.2]))
    torch.testing.assert_close(question.vectors[0], naive_query(twhin, 17))
    torch.testing.assert_close(question.vectors[1], naive_user(twhin, first), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(question.vectors[2], naive_user(twhin, second), rtol=1e-5, atol=1e-5)


def test_a_mixture_gives_each_query_its_places(twhin):
    vectors, recent = Vectors(twhin.source, CATALOG, Interests(own_share=0.5)), RecentPosts(CATALOG, 48)
    question = vectors.question(17, np.arange(10, 60, 5))
    places, _ = PostSearch(vectors, recent, None).search(question, np.ones(len(recent), np.bool_), 30)
    assert len(set(places.tolist())) == 30
    taken = set()
    for query, quota in enumerate(quotas(question.shares, 30)):
        scores = naive_scores(twhin, question.vectors[query], recent.rows.tolist(), 0.75)
        fresh = [post for post in sorted(scores, key=lambda post: -scores[post]) if post not in taken]
        taken |= set(fresh[:quota])
    assert {int(recent.rows[place]) for place in places} == taken


@pytest.mark.parametrize("user", [SILENT, 17])
def test_an_index_finds_what_an_exact_search_finds(twhin, tmp_path, user):
    vectors, recent = Vectors(twhin.source, CATALOG, Interests()), RecentPosts(CATALOG, 48)
    exact = PostSearch(vectors, recent, None)
    faiss_index = index_of(exact.table, vectors.metric)
    allowed = np.random.default_rng(user).random(len(recent)) < 0.3
    history = CATALOG.counts.recent[user]
    question = vectors.question(user, history[history >= 0].astype(np.int64))
    for k in (1, 10, len(recent)):
        places, scores = exact.search(question, allowed, k)
        near_places, near_scores = PostSearch(vectors, recent, faiss_index).search(question, allowed, k)
        assert near_places.tolist() == places.tolist()
        np.testing.assert_allclose(near_scores, scores, rtol=1e-5)


def index_of(table, metric):
    index = faiss.IndexFlat(table.shape[1], faiss.METRIC_INNER_PRODUCT if metric == "cosine" else faiss.METRIC_L2)
    index.add(table.numpy())
    return RowIndex(metric, index)


def test_nothing_is_found_where_nothing_is_allowed(twhin):
    vectors, recent = Vectors(twhin.source, CATALOG, Interests()), RecentPosts(CATALOG, 48)
    search = PostSearch(vectors, recent, None)
    question = vectors.question(17, np.empty(0, np.int64))
    assert len(search.search(question, np.zeros(len(recent), np.bool_), 10)[0]) == 0
    everything, _ = search.search(question, np.ones(len(recent), np.bool_), 10_000)
    assert sorted(everything.tolist()) == search.places.tolist()


@pytest.mark.parametrize(
    ("relation", "complaint"),
    [("nope", "there is no such relation in"), ("follow", "leads from user to user in")],
)
def test_a_relation_that_leads_to_no_posts(twhin, relation, complaint):
    with pytest.raises(UserError) as error:
        Vectors(twhin.source, CATALOG, Interests(relation=relation))
    where = f"{complaint} {twhin.source.path}"
    assert str(error.value) == f"interests.relation={relation}: {where}; from users to posts lead favorite: name one"


def test_vectors_of_others_are_refused(twhin):
    for relation in ("favorite", "nope"):
        with pytest.raises(UserError, match="has no relation from users of the catalog to posts of it; export a run"):
            Vectors(twhin.source, strangers(), Interests(relation=relation))


def strangers():
    ids = pa.array([f"stranger_{row}" for row in range(NUM_USERS)])
    return dataclasses.replace(CATALOG, snapshot=dataclasses.replace(CATALOG.snapshot, user_ids=ids))


def test_recent_posts_and_what_of_them_a_user_may_see():
    recent = RecentPosts(CATALOG, 30)
    oldest = CATALOG.now_us - 30 * 3_600_000_000
    expected = [post for post in reversed(range(NUM_POSTS)) if CATALOG.posts.created_us[post] >= oldest]
    assert recent.rows.tolist() == expected
    assert 0 < len(expected) < NUM_POSTS
    for user in range(NUM_USERS):
        for filters in (Filters(), Filters(seen=False), Filters(muted_authors=False)):
            allowed = [
                int(CATALOG.posts.authors[post]) != user
                and not (filters.seen and post in CATALOG.seen(user))
                and not (filters.muted_authors and CATALOG.posts.authors[post] in CATALOG.muted(user))
                for post in expected
            ]
            assert recent.allowed(user, filters).tolist() == allowed
        followed = [CATALOG.posts.authors[post] in CATALOG.followed(user) for post in expected]
        assert recent.followed(user).tolist() == followed
