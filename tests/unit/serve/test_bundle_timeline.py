"""A bundle's timeline behind the service: what comes over HTTP is what its Python API gives."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from serving import wait_until

from rookery.errors import DataError
from rookery.serve import bundle_timeline
from rookery.serve.bundle_timeline import open_bundle
from rookery.serve.messages import ConfigResponse, MapResponse, NeighborsResponse, RankResponse, TimelineResponse
from rookery.timeline.bundle import attach_metrics
from rookery.timeline.config import WEIGHT_PRESETS
from rookery.timeline.timeline import Timeline


@pytest.fixture(scope="module")
def timeline(bundle) -> Timeline:
    return Timeline.open(bundle)


@pytest.fixture
def client(bundle, serve_bundle):
    return serve_bundle(bundle, open_bundle).client


def require_same(found: Any, expected: Any) -> None:
    """Equal, numbers but for rounding.

    The network's matrix products round by the number of rows and threads: 1e-7 of a probability, times weights of 500.
    """
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            require_same(found[name], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            require_same(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-4)
    else:
        assert found == expected


def plain(posts: list[Any]) -> list[dict[str, Any]]:
    """Fields that are not None."""
    rows = [dataclasses.asdict(post) for post in posts]
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def test_rank(client, timeline):
    posts = [f"post_{post}" for post in range(0, 400, 7)]
    response = client.post("/v1/rank", json={"user_id": "user_3", "post_ids": posts})
    RankResponse.model_validate_json(response.content)
    expected = plain(timeline.rank("user_3", posts))
    require_same(response.json(), {"posts": expected, "version": timeline.version})
    assert len({post["score"] for post in expected}) > 10


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weights": dict(WEIGHT_PRESETS["2026"])},
        {"sources": ["in_network"], "order": "recency"},
        {"sources": ["out_of_network"], "diversity": False},
    ],
)
def test_timeline(client, timeline, options):
    response = client.post("/v1/timeline", json={"user_id": "user_3", "k": 12, **options})
    answer = response.json()
    TimelineResponse.model_validate_json(response.content)
    if "sources" in options:
        options = {**options, "sources": frozenset(options["sources"])}
    require_same(answer["posts"], plain(timeline.timeline("user_3", 12, **options)))
    assert answer["weights"] == options.get("weights", timeline.weights)
    assert answer["user"] == timeline.user("user_3")


def test_lookups_and_descriptions(client, timeline):
    found = client.post("/v1/candidates", json={"user_id": "user_3"}).json()["candidates"]
    assert found == plain(timeline.candidates("user_3"))
    similar = client.post("/v1/similar", json={"post_id": "post_3", "k": 4})
    assert [each.id for each in NeighborsResponse.model_validate_json(similar.content).neighbors] == [
        neighbor.id for neighbor in timeline.similar("post_3", 4)
    ]
    neighbors = client.post("/v1/neighbors", json={"user_id": "user_3", "k": 4})
    assert [each.id for each in NeighborsResponse.model_validate_json(neighbors.content).neighbors] == [
        neighbor.id for neighbor in timeline.neighbors("user_3", 4)
    ]
    config = ConfigResponse.model_validate_json(client.get("/v1/config").content)
    assert config.presets == {name: dict(weights) for name, weights in WEIGHT_PRESETS.items()}
    assert config.author_diversity.decay == timeline.config.author_diversity.decay
    points = MapResponse.model_validate_json(client.get("/v1/map").content)
    table = timeline.bundle.map().to_pylist()
    assert points.users.id == [row["id"] for row in table if row["kind"] == "user"]
    assert points.posts.x == pytest.approx([row["x"] for row in table if row["kind"] == "post"], abs=5.1e-5)
    assert points.posts.topic == [timeline.post(row["id"])["topic"] for row in table if row["kind"] == "post"]
    assert client.get("/v1/metrics").json() == {}


def test_a_batch_gives_each_what_it_would_have_had_alone(bundle, serve_bundle):
    client = serve_bundle(bundle, open_bundle, batching={"wait_ms": 100}).client
    bodies = [{"user_id": f"user_{user}", "k": 10} for user in range(3, 19)]
    together = client.post_all("/v1/timeline", bodies)
    for body, answer in zip(bodies, together, strict=True):
        alone = client.post("/v1/timeline", json=body).json()
        require_same(answer.json()["posts"], alone["posts"])
    assert "rookery_batch_requests_sum 32.0" in client.get("/metrics").text
    assert "rookery_batch_requests_count 17.0" in client.get("/metrics").text


def test_unknown_ids_come_with_the_nearest_known_one(client):
    response = client.post("/v1/timeline", json={"user_id": "user_1x", "k": 1})
    assert response.status_code == 404
    assert "did you mean 'user_1" in response.json()["error"]["message"]


def test_what_lies_in_the_folder_by_now_is_not_served(bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    attach_metrics(copy, {"tables": [{"rows": [[1.5]]}]})
    served = open_bundle(copy)
    before = served.map()
    pq.write_table(served._timeline.bundle.map().slice(0, 3), copy / "map.parquet")
    attach_metrics(copy, {"tables": []})
    assert json.loads(served.metrics()) == {"tables": [{"rows": [[1.5]]}]}
    shutil.rmtree(copy)
    assert served.map() == before and len(json.loads(before)["users"]["id"]) > 40
    assert json.loads(served.metrics()) == {"tables": [{"rows": [[1.5]]}]}


def test_a_map_of_too_many_points_is_thinned_out(bundle, monkeypatch):
    every = json.loads(open_bundle(bundle).map())
    monkeypatch.setattr(bundle_timeline, "MAX_POINTS", 100)
    some = json.loads(open_bundle(bundle).map())
    num_points = len(every["users"]["id"]) + len(every["posts"]["id"])
    step = math.ceil(num_points / 100)
    assert step > 1
    assert some["users"]["id"] + some["posts"]["id"] == (every["users"]["id"] + every["posts"]["id"])[::step]


def test_metrics_that_are_too_large_are_not_opened(bundle, tmp_path, monkeypatch):
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    attach_metrics(copy, {"curve": list(range(1_000))})
    open_bundle(copy)
    monkeypatch.setattr(bundle_timeline, "MAX_METRICS_BYTES", 1_000)
    with pytest.raises(DataError, match=r"metrics\.json: [\d,]+ bytes; attach at most 1,000"):
        open_bundle(copy)


def test_metrics_that_are_attached_later_are_served(bundle, tmp_path, serve_bundle):
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    client = serve_bundle(copy, open_bundle).client
    assert client.get("/v1/metrics").json() == {}
    attach_metrics(copy, {"tables": []})
    wait_until(lambda: client.get("/v1/metrics").json() == {"tables": []})
    (copy / "metrics.json").unlink()
    wait_until(lambda: client.get("/v1/metrics").json() == {})


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "rookery", "serve", *arguments]


@pytest.fixture
def started(bundle) -> Iterator[tuple[subprocess.Popen[str], str]]:
    arguments = command(str(bundle), "--port", "0")
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        address = next(match[0] for line in lines if (match := re.search(r"http://127\.0\.0\.1:\d+", line)))
        yield process, address
        process.kill()


def test_the_command_serves_until_it_is_told_to_stop(started):
    process, address = started
    assert len(httpx.post(f"{address}/v1/timeline", json={"user_id": "user_3", "k": 3}).json()["posts"]) == 3
    assert "text/html" in httpx.get(address).headers["content-type"]
    process.terminate()
    assert process.wait(timeout=20) == 0
    assert process.stderr is not None
    assert "leaked" not in process.stderr.read()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "name a file with a token"),
        (["--port", "70000"], "port=70000"),
        (["--token-file", "absent"], "token_file=absent: cannot be read"),
    ],
)
def test_the_command_refuses_what_cannot_be_served(bundle, arguments, said):
    result = subprocess.run(command(str(bundle), *arguments), capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert said in result.stderr and "Traceback" not in result.stderr


def test_the_command_refuses_what_is_no_bundle(tmp_path):
    result = subprocess.run(command(str(tmp_path)), capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "bundle.json" in result.stderr and "Traceback" not in result.stderr
