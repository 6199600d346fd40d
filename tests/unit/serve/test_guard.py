from __future__ import annotations

import asyncio
import json
import random
import threading
import time

import pytest
from serving import error_code, wait_until

from rookery.serve.config import Limits
from rookery.serve.failures import Refused
from rookery.serve.guard import nests_deeper, read_body


def depth_of(value) -> int:
    """By walking."""
    if isinstance(value, dict):
        return 1 + max((depth_of(each) for each in value.values()), default=0)
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


def any_json(random_: random.Random, levels: int):
    kind = random_.choice(["list", "dict", "text", "number"]) if levels else "text"
    if kind == "list":
        return [any_json(random_, levels - 1) for _ in range(random_.randrange(3))]
    if kind == "dict":
        return {random_.choice('a[{"\\') * n: any_json(random_, levels - 1) for n in range(random_.randrange(3))}
    return "".join(random_.choices('ab[]{}"\\,: é', k=6)) if kind == "text" else random_.random()


def test_depth_is_that_of_the_parsed_value():
    random_ = random.Random(0)
    values = [any_json(random_, 6) for _ in range(2_000)]
    assert len({depth_of(value) for value in values}) > 5
    for value in values:
        for ensure_ascii in (True, False):
            text = json.dumps(value, ensure_ascii=ensure_ascii).encode()
            for depth in range(1, 7):
                assert nests_deeper(text, depth) == (depth_of(value) > depth), (text, depth)


@pytest.mark.parametrize("text", [b"[" * 1_000_000, b'{"a":' * 200_000, b'["' * 500_000, b"[]" * 500_000 + b"[[[[[["])
def test_depth_of_what_is_no_json_takes_no_time(text):
    start = time.perf_counter()
    nests_deeper(text, 4)
    assert time.perf_counter() - start < 1.0
    assert nests_deeper(b"[" * 1_000_000, 4)


def read(messages, **limits):
    waiting = iter(messages)

    async def receive():
        message = next(waiting, None)
        if message is None:
            await asyncio.Event().wait()
        return message

    return asyncio.run(read_body(receive, Limits(**limits)))


def part(body: bytes, *, more: bool) -> dict:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_in_parts():
    assert read([part(b'{"a"', more=True), part(b":1}", more=False)]) == b'{"a":1}'


@pytest.mark.parametrize(
    ("messages", "limits", "status"),
    [
        ([part(b" " * 1_025, more=False)], {"body_bytes": 1_024}, 413),
        ([part(b" " * 1_000, more=True)] * 100, {"body_bytes": 1_024}, 413),
        ([part(b"{", more=True)], {"client_s": 0.05}, 408),
        ([part(b"{", more=True), {"type": "http.disconnect"}], {}, 408),
        ([part(b"[[[", more=False)], {"json_depth": 2}, 422),
        ([part('{"a": 1}'.encode("utf-16"), more=False)], {}, 400),
        ([part('{"a": 1}'.encode("utf-16-le"), more=False)], {}, 400),
        ([part("[[[".encode("utf-16-be"), more=False)], {"json_depth": 2}, 400),
        ([part('{"a": "é"}'.encode("latin-1"), more=False)], {}, 400),
    ],
)
def test_bodies_that_are_refused(messages, limits, status):
    with pytest.raises(Refused) as refused:
        read(messages, **limits)
    assert refused.value.status == status


def test_too_large_a_body_is_answered(start):
    client = start(body_bytes=2_048).client
    response = client.post("/v1/rank", content=b" " * 2_049, headers={"Content-Type": "application/json"})
    assert (response.status_code, error_code(response)) == (413, "body_too_large")
    assert response.headers["connection"] == "close"


def test_more_requests_than_fit_are_sent_away_to_come_back(start):
    application = start(queued_requests=3, batch_s=0.3)
    answers = application.client.post_all("/v1/timeline", [{"user_id": "user_1", "k": 1}] * 10)
    statuses = [answer.status_code for answer in answers]
    assert sorted(statuses) == [200] * 3 + [503] * 7
    refused = answers[statuses.index(503)]
    assert error_code(refused) == "overloaded" and int(refused.headers["retry-after"]) >= 1
    # Health does not queue.
    assert application.client.get("/healthz").status_code == 200
    assert application.client.post("/v1/timeline", json={"user_id": "user_1", "k": 1}).status_code == 200


def test_what_takes_too_long_is_answered_so(start):
    application = start(deadline_s=0.1, batch_s=0.4)
    start_s = time.perf_counter()
    response = application.client.post("/v1/timeline", json={"user_id": "user_1", "k": 1})
    assert (response.status_code, error_code(response)) == (504, "deadline")
    assert time.perf_counter() - start_s < 0.35


def test_lookups_go_on_while_the_network_works(start):
    application = start(batch_s=0.5)
    ranking = threading.Thread(
        target=lambda: application.client.post("/v1/timeline", json={"user_id": "user_1", "k": 1})
    )
    ranking.start()
    wait_until(lambda: bool(application.timeline.batches))
    start_s = time.perf_counter()
    assert application.client.get("/v1/users/user_1").status_code == 200
    assert time.perf_counter() - start_s < 0.3
    ranking.join()


def test_requests_at_the_same_time_share_a_batch(start):
    application = start(batching={"wait_ms": 50})
    bodies = [{"user_id": f"user_{user}", "post_ids": ["post_1", "post_2"]} for user in range(20)]
    bodies[5] = {"user_id": "nobody", "post_ids": ["post_1"]}
    answers = application.client.post_all("/v1/rank", bodies)
    assert [answer.status_code for answer in answers] == [404 if place == 5 else 200 for place in range(20)]
    assert [len(batch) for batch in application.timeline.batches] == [20]
    alone = application.client.post("/v1/rank", json=bodies[7])
    assert alone.json() == answers[7].json()
    assert all(name.startswith("ranking") for name in application.timeline.threads)
