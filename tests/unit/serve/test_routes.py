from __future__ import annotations

import pytest
from served_fake import TASKS, WEIGHTS, probability
from serving import error_code

from rookery.serve.guard import SECURITY_HEADERS
from rookery.serve.messages import (
    CandidatesResponse,
    ConfigResponse,
    MapResponse,
    NeighborsResponse,
    RankResponse,
    TimelineResponse,
    UsersResponse,
)


def by_formula(user: int, posts: list[int], weights: dict[str, float]) -> list[tuple[str, float]]:
    scores = {
        f"post_{post}": sum(weights.get(task, 0.0) * probability(user, post, place) for place, task in enumerate(TASKS))
        for post in posts
    }
    return sorted(scores.items(), key=lambda each: -each[1])


@pytest.mark.parametrize("weights", [None, {"is_favorited": 1.0}, {"is_favorited": -2.0, "is_replied": 0.25}])
def test_rank_answers_with_what_the_formula_says(client, weights):
    posts = [4, 9, 1_300, 77, 2_999]
    body = {"user_id": "user_3", "post_ids": [f"post_{post}" for post in posts]}
    response = client.post("/v1/rank", json=body | ({} if weights is None else {"weights": weights}))
    ranked = RankResponse.model_validate_json(response.content)
    expected = by_formula(3, posts, weights or WEIGHTS)
    assert [post.post_id for post in ranked.posts] == [post for post, _ in expected]
    assert [post.score for post in ranked.posts] == pytest.approx([score for _, score in expected], rel=1e-12)
    for post in ranked.posts:
        assert sum(post.contributions.values()) == pytest.approx(post.score, rel=1e-12)
    assert ranked.version == "v1"


def test_timeline_passes_on_what_was_asked(client, application):
    body = {"user_id": "user_3", "k": 7, "sources": ["out_of_network"], "diversity": False, "order": "recency"}
    response = client.post("/v1/timeline", json=body | {"weights": {"is_replied": 2.0}})
    found = TimelineResponse.model_validate_json(response.content)
    expected = by_formula(3, list(range(1, 500, 2)), {"is_replied": 2.0})[:7]
    assert [(post.post_id, post.final_score) for post in found.posts] == expected
    assert [post.position for post in found.posts] == list(range(7))
    assert found.weights == {"is_replied": 2.0}
    assert found.user == {"id": "user_3", "favorites": 3}
    assert 0 < found.timings_ms.batch <= found.timings_ms.total
    (query,) = application.timeline.batches[-1]
    assert (query.diversity, query.order, query.sources) == (False, "recency", frozenset({"out_of_network"}))


def test_timeline_has_the_bundles_weights_if_none_are_given(client):
    response = client.post("/v1/timeline", json={"user_id": "user_3", "k": 1})
    assert response.json()["weights"] == WEIGHTS


def test_lookups(client):
    candidates = client.post("/v1/candidates", json={"user_id": "user_1", "limit": 3})
    assert [each.post_id for each in CandidatesResponse.model_validate_json(candidates.content).candidates] == [
        *("post_0", "post_1", "post_2")
    ]
    neighbors = client.post("/v1/neighbors", json={"user_id": "user_1", "k": 2})
    similar = client.post("/v1/similar", json={"post_id": "post_1", "k": 1})
    assert [each.id for each in NeighborsResponse.model_validate_json(neighbors.content).neighbors] == [
        *("user_0", "user_1")
    ]
    assert similar.json()["neighbors"] == [{"id": "post_0", "score": 1.0}]
    users = client.get("/v1/users", params={"prefix": "user_4", "limit": 3})
    assert [user.id for user in UsersResponse.model_validate_json(users.content).users] == [
        *("user_4", "user_40", "user_41")
    ]
    assert client.get("/v1/users/user_17").json() == {"id": "user_17", "favorites": 17}


def test_descriptions(client):
    assert ConfigResponse.model_validate_json(client.get("/v1/config").content).weights == WEIGHTS
    assert MapResponse.model_validate_json(client.get("/v1/map").content).posts.topic == ["topic_1"]
    assert client.get("/v1/metrics").json() == {}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/rank", {"user_id": "user_x", "post_ids": ["post_1"]}),
        ("/v1/rank", {"user_id": "user_1", "post_ids": ["post_1", "post_x"]}),
        ("/v1/timeline", {"user_id": "user_x", "k": 1}),
        ("/v1/candidates", {"user_id": "nobody"}),
        ("/v1/neighbors", {"user_id": "nobody", "k": 1}),
        ("/v1/similar", {"post_id": "nothing", "k": 1}),
    ],
)
def test_unknown_ids_are_not_found(client, path, body):
    response = client.post(path, json=body)
    assert (response.status_code, error_code(response)) == (404, "unknown_id")


def test_an_unknown_user_in_the_path_is_not_found(client):
    response = client.get("/v1/users/nobody")
    assert (response.status_code, error_code(response)) == (404, "unknown_id")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"post_ids": ["post_1"]}, "user_id: Field required"),
        ({"user_id": "user_1", "post_ids": []}, "post_ids: "),
        ({"user_id": "user_1", "post_ids": ["post_1"] * 2_001}, "post_ids: "),
        ({"user_id": "user_1", "post_ids": "post_1"}, "post_ids: "),
        ({"user_id": 1, "post_ids": ["post_1"]}, "user_id: "),
        ({"user_id": "u" * 257, "post_ids": ["post_1"]}, "user_id: "),
        ({"user_id": "user_1", "post_ids": ["post_1"], "weight": {}}, "weight: "),
        ({"user_id": "user_1", "post_ids": ["post_1"], "weights": {"is_liked": 1.0}}, "weights.is_liked"),
        ({"user_id": "user_1", "post_ids": ["post_1"], "weights": {"is_favorited": "1"}}, "weights.is_favorited"),
        ({"user_id": "user_1", "post_ids": ["post_1"], "weights": {"is_favorited": True}}, "weights.is_favorited"),
        ({"user_id": "user_1", "post_ids": ["post_1"], "weights": {"is_favorited": 1e300}}, "weights.is_favorited"),
    ],
)
def test_values_that_are_not_allowed_are_named(client, body, said):
    response = client.post("/v1/rank", json=body)
    assert (response.status_code, error_code(response)) == (422, "invalid_request")
    assert said in response.json()["error"]["message"]


def test_an_error_of_ours_tells_clients_nothing(application, monkeypatch, caplog):
    def broken(queries):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(application.timeline, "answer", broken)
    response = application.client.post("/v1/timeline", json={"user_id": "user_1", "k": 1})
    assert (response.status_code, error_code(response)) == (500, "internal")
    assert "secret" not in response.text
    assert response.headers["cache-control"] == "no-store"
    assert {name: response.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS
    counted = 'rookery_requests_total{route="/v1/timeline",status="500"} 1.0'
    assert counted in application.client.get("/metrics").text.splitlines()
    assert "POST /v1/timeline" in caplog.text and "secret detail" in caplog.text and "Traceback" in caplog.text
    # The next request is served.
    monkeypatch.undo()
    assert application.client.post("/v1/timeline", json={"user_id": "user_1", "k": 1}).status_code == 200


def test_unknown_paths_and_methods(client):
    assert error_code(client.get("/v2/rank")) == "not_found"
    response = client.get("/v1/rank")
    assert (response.status_code, error_code(response)) == (405, "method_not_allowed")
    assert response.headers["allow"] == "POST"
    assert client.get("/docs").status_code == 404


def test_the_page_loads_nothing_from_elsewhere(client):
    response = client.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    assert "http" not in policy
    assert client.get("/page/../config.py").status_code == 404
    assert client.get("/page/%2e%2e/config.py").status_code == 404


def test_answers_of_the_api_are_not_stored(client):
    assert client.get("/v1/users").headers["cache-control"] == "no-store"
    assert client.get("/v1/users").headers["x-content-type-options"] == "nosniff"


def test_the_metrics_count_by_route(client):
    client.get("/v1/users/user_1")
    client.get("/v1/users/user_2")
    client.get("/v1/users/nobody")
    client.get("/some/where")
    client.post("/v1/rank", json={"user_id": "user_1", "post_ids": ["post_1", "post_2"]})
    lines = client.get("/metrics").text.splitlines()
    assert 'rookery_requests_total{route="/v1/users/{user_id}",status="200"} 2.0' in lines
    assert 'rookery_requests_total{route="/v1/users/{user_id}",status="404"} 1.0' in lines
    assert 'rookery_requests_total{route="none",status="404"} 1.0' in lines
    assert "rookery_batch_rows_sum 2.0" in lines
    assert 'rookery_bundle{version="v1"} 1.0' in lines
    assert any(line.startswith("process_resident_memory_bytes") for line in lines)


def test_health(application):
    assert application.client.get("/healthz").json() == {"status": "ok"}
    assert application.client.get("/readyz").json() == {"status": "ready"}
    application.lifecycle.stop()
    response = application.client.get("/readyz")
    assert (response.status_code, response.json()) == (503, {"status": "stopping"})
    assert response.headers["connection"] == "close"
    assert application.client.get("/healthz").status_code == 200


def test_where_a_body_stops_being_json(client):
    headers = {"Content-Type": "application/json"}
    response = client.post("/v1/timeline", content=b'{"user_id": "user_1" "k": 1}', headers=headers)
    assert response.status_code == 422
    assert response.json()["error"]["message"] == "character 21 of the body: JSON decode error"
