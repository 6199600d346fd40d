"""A bundle's timeline behind the service: what comes over HTTP is what its Python API gives."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from serving import served, wait_until, write_config
from small_timeline import write_small_ranker, write_vectors_of
from stores import BUCKET, s3_server, upload

from rookery.data.engagements import ENGAGEMENTS
from rookery.errors import DataError
from rookery.serve import bundle_timeline
from rookery.serve.bundle_timeline import BundleTimeline, open_bundle
from rookery.serve.messages import ConfigResponse, MapResponse, NeighborsResponse, RankResponse, TimelineResponse
from rookery.storage.location import RemotePath
from rookery.timeline.bundle import Bundle, attach_metrics, build_bundle
from rookery.timeline.config import WEIGHT_PRESETS, TimelineConfig
from rookery.timeline.timeline import Timeline
from rookery.world.config import WorldConfig
from rookery.world.generate import generate_world
from rookery.world.world import World


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


MEASURED = {"tables": [{"title": "worth", "columns": ["share"], "rows": [[1.5]]}]}


def test_what_lies_in_the_folder_by_now_is_not_served(bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    attach_metrics(copy, MEASURED)
    opened = open_bundle(copy)
    before = opened.map()
    pq.write_table(opened._timeline.bundle.map().slice(0, 3), copy / "map.parquet")
    attach_metrics(copy, {"tables": []})
    assert json.loads(opened.metrics()) == MEASURED
    shutil.rmtree(copy)
    assert opened.map() == before and len(json.loads(before)["users"]["id"]) > 40
    assert json.loads(opened.metrics()) == MEASURED


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
    table = {"title": "many", "columns": ["number"], "rows": [[number] for number in range(1_000)]}
    attach_metrics(copy, {"tables": [table]})
    open_bundle(copy)
    monkeypatch.setattr(bundle_timeline, "MAX_METRICS_BYTES", 1_000)
    with pytest.raises(DataError, match=r"metrics\.json: [\d,]+ bytes; attach at most 1,000"):
        open_bundle(copy)


def test_metrics_of_another_form_are_not_opened(bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    (copy / "metrics.json").write_text('{"tables": 1}')
    with pytest.raises(DataError, match=r"metrics\.json: tables=1: .* attach the metrics again"):
        open_bundle(copy)


def test_metrics_that_are_attached_later_are_served(bundle, tmp_path, serve_bundle):
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    client = serve_bundle(copy, open_bundle).client
    assert client.get("/v1/metrics").json() == {}
    attach_metrics(copy, {"tables": []})
    wait_until(lambda: client.get("/v1/metrics").json() == {"tables": []})
    (copy / "metrics.json").unlink()
    wait_until(lambda: client.get("/v1/metrics").json() == {})


def test_old_bundles_are_freed_and_opened_by_one_thread(bundle, tmp_path, serve_bundle):
    threads = set()

    def opener(path: Path) -> BundleTimeline:
        threads.add(threading.current_thread())
        return open_bundle(path)

    link = tmp_path / "link"
    link.symlink_to(bundle)
    application = serve_bundle(link, opener)
    for number in range(3):
        ask = {"user_id": "user_3", "k": 5}
        assert application.client.post("/v1/timeline", json=ask).status_code == 200
        old = weakref.ref(application.holder.current._timeline)
        (tmp_path / "turning").symlink_to(shutil.copytree(bundle, tmp_path / f"copy-{number}"))
        (tmp_path / "turning").replace(link)
        wait_until(lambda old=old: old() is None)
    assert len(threads - {threading.current_thread()}) == 1


def test_bundles_are_exchanged_under_load_and_every_answer_is_of_one_of_them(parts, bundle, tmp_path):
    other = dataclasses.replace(parts, ranker=parts.ranker_without).build(tmp_path / "other", weights="2026")
    timelines = {timeline.version: timeline for timeline in map(Timeline.open, (bundle, other))}
    link = tmp_path / "link"
    link.symlink_to(bundle)
    answers: list[tuple[str, int, dict[str, Any]]] = []
    end = threading.Event()

    def ask(address: str, user_id: str) -> None:
        with httpx.Client(base_url=address, timeout=30) as client:
            while not end.is_set():
                response = client.post("/v1/timeline", json={"user_id": user_id, "k": 10})
                answers.append((user_id, response.status_code, response.json()))

    users = [f"user_{user}" for user in range(3, 7)]
    config = write_config(tmp_path, reload_every_s=0.05)
    with served(link, tmp_path / "log", config, "served_bundle") as server, ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(ask, server.address, user_id) for user_id in users]
        for number, target in enumerate((other, bundle, other), start=1):
            (tmp_path / "turning").symlink_to(target)
            (tmp_path / "turning").replace(link)
            done = f'rookery_reloads_total{{outcome="done"}} {number}.0'
            wait_until(lambda done=done: done in httpx.get(f"{server.address}/metrics").text)
            num_before = len(answers)
            wait_until(lambda num_before=num_before: len(answers) >= num_before + 3 * len(users))
        end.set()
        for each in asking:
            each.result()
        assert "Traceback" not in server.log
    assert {status for _, status, _ in answers} == {200}
    assert {answer["version"] for _, _, answer in answers} == timelines.keys()
    expected = {
        (version, user_id): plain(timeline.timeline(user_id, 10))
        for version, timeline in timelines.items()
        for user_id in users
    }
    for user_id, _, answer in answers:
        assert answer["weights"] == timelines[answer["version"]].weights
        require_same(answer["posts"], expected[answer["version"], user_id])


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "rookery", "serve", *arguments]


@contextmanager
def commanded(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``rookery serve`` as a process, and its address."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    with subprocess.Popen(
        command(*arguments, "--port", "0"), stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        address = next(match[0] for line in lines if (match := re.search(r"http://127\.0\.0\.1:\d+", line)))
        yield process, address
        process.kill()


def test_the_command_serves_until_it_is_told_to_stop(bundle):
    with commanded(str(bundle)) as (process, address):
        posts = httpx.post(f"{address}/v1/timeline", json={"user_id": "user_3", "k": 3}).json()["posts"]
        assert len(posts) == 3 and "true_probabilities" not in posts[0]
        assert "text/html" in httpx.get(address).headers["content-type"]
        process.terminate()
        assert process.wait(timeout=20) == 0
        assert process.stderr is not None
        assert "leaked" not in process.stderr.read()


def test_the_command_serves_what_was_uploaded(bundle, timeline, tmp_path, monkeypatch):
    """A copy of it, fetched at the start; of a URL with nothing there it says so."""
    monkeypatch.setenv("ROOKERY_CACHE", str(tmp_path))
    url = RemotePath("s3", BUCKET) / "bundles" / "one"
    with s3_server():
        upload(bundle, url)
        with commanded(str(url)) as (_, address):
            found = httpx.post(f"{address}/v1/timeline", json={"user_id": "user_3", "k": 5}).json()
        absent = subprocess.run(command(f"{url}-none"), capture_output=True, text=True, timeout=60)
    require_same(found["posts"], plain(timeline.timeline("user_3", 5)))
    assert found["version"] == timeline.version
    assert Bundle.open(tmp_path / "s3" / url.key).manifest == Bundle.open(bundle).manifest
    assert absent.returncode == 2
    assert f"{url}-none: nothing there" in absent.stderr and "Traceback" not in absent.stderr


@pytest.mark.long
def test_the_command_takes_up_a_newer_bundle_at_the_url(bundle, parts, tmp_path, monkeypatch):
    """Within ten seconds and the fetching; ``test_bundle.py`` holds the same in a moment, without the command."""
    monkeypatch.setenv("ROOKERY_CACHE", str(tmp_path / "cache"))
    newer = parts.build(tmp_path / "newer", num_out_of_network=31)
    url = RemotePath("s3", BUCKET) / "bundles" / "exchanged"
    versions = [Bundle.open(each).manifest.version for each in (bundle, newer)]
    with s3_server():
        upload(bundle, url)
        with commanded(str(url)) as (_, address):

            def version() -> str:
                return str(httpx.post(f"{address}/v1/timeline", json={"user_id": "user_3", "k": 1}).json()["version"])

            assert version() == versions[0]
            upload(newer, url)
            wait_until(lambda: version() == versions[1], timeout_s=60)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    """A tiny one, and beside it a bundle of models that were never trained."""
    folder = tmp_path_factory.mktemp("world")
    generate_world(folder / "world", WorldConfig.of_size("tiny", 0))
    world = World.open(folder / "world")
    twhin = write_vectors_of(folder / "twhin", world.catalog)
    ranker = write_small_ranker(folder / "ranker", world.catalog, twhin)
    parts = {"catalog": folder / "world" / "catalog", "ranker": ranker, "twhin": twhin}
    build_bundle(folder / "bundle", **parts, config=TimelineConfig())
    return world


def test_the_command_serves_the_truth_of_a_world(world):
    """From what is served the page makes the order of the oracle; it is that of the world's own laws."""
    user = 7
    folder, user_id = world.folder.parent, world.catalog.user_ids[user].as_py()
    with commanded(str(folder / "bundle"), "--world", str(world.folder)) as (_, address):
        found = httpx.post(f"{address}/v1/candidates", json={"user_id": user_id}).json()["candidates"]
        asked = {"user_id": user_id, "post_ids": [each["post_id"] for each in found]}
        posts = httpx.post(f"{address}/v1/rank", json=asked).json()["posts"]
        timeline = httpx.post(f"{address}/v1/timeline", json={"user_id": user_id, "k": 20}).json()
    rows = np.array([world.catalog.post_row(post["post_id"]) for post in posts])
    truth = world.true_probabilities(np.full(len(rows), user), rows, np.full(len(rows), world.catalog.now_us))
    served = [[post["true_probabilities"][task] for task in ENGAGEMENTS] for post in posts]
    np.testing.assert_allclose(served, truth, rtol=1e-12)
    weights = [timeline["weights"][task] for task in ENGAGEMENTS]
    by_oracle = np.argsort(-(np.array(served) @ weights), kind="stable")
    assert by_oracle.tolist() == np.argsort(-(truth @ weights), kind="stable").tolist()
    assert by_oracle.tolist() != list(range(len(posts)))  # the ranker knows less
    known = {post["post_id"]: post["true_probabilities"] for post in posts}
    assert len(timeline["posts"]) == 20
    assert all(post["true_probabilities"] == known[post["post_id"]] for post in timeline["posts"])


def test_the_command_refuses_another_world(world, bundle):
    arguments = command(str(bundle), "--world", str(world.folder), "--port", "0")
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "was built from another catalog" in result.stderr and "Traceback" not in result.stderr


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
