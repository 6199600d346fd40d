"""What nobody well-meaning would send: answered with the right error, and nothing of it stays behind."""

from __future__ import annotations

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from serving import NO_TLS, error_code, request_bytes, wait_until

OVERLOAD = {503, 504}
RANK = {"user_id": "user_1", "post_ids": ["post_1"]}


@pytest.fixture(scope="module")
def server(start_server):
    return start_server(batch_s=0.002, body_bytes=65_536, client_s=2.0)


def text(value: object) -> bytes:
    return json.dumps(value).encode()


HOSTILE = {
    "empty": b"",
    "not JSON": b"{",
    "not UTF-8": b'{"user_id": "\xff\xfe", "post_ids": ["post_1"]}',
    "UTF-16": json.dumps(RANK).encode("utf-16-le"),
    "UTF-16, marked": json.dumps(RANK).encode("utf-16"),
    "UTF-16, big": json.dumps(RANK).encode("utf-16-be"),
    "UTF-32": json.dumps(RANK).encode("utf-32"),
    "deep UTF-16": ("[" * 20_000).encode("utf-16-le"),
    # Read as bytes the first character, U+2220, is a space and a quote: what follows would be a string and not deep.
    "deep UTF-16, quoted": ('{"a": "\u2220", "b": ' + "[" * 20_000).encode("utf-16-le"),
    "a list": b"[]",
    "a number": b"1",
    "null": b"null",
    "deep lists": b"[" * 30_000,
    "deep objects": b'{"a":' * 10_000,
    "deep within": b'{"user_id":"user_1","post_ids":["post_1"],"weights":' + b'{"a":' * 5_000,
    "NaN": b'{"user_id":"user_1","post_ids":["post_1"],"weights":{"is_favorited":NaN}}',
    "infinity": b'{"user_id":"user_1","post_ids":["post_1"],"weights":{"is_favorited":Infinity}}',
    "minus infinity": b'{"user_id":"user_1","post_ids":["post_1"],"weights":{"is_favorited":-Infinity}}',
    "1e999": b'{"user_id":"user_1","post_ids":["post_1"],"weights":{"is_favorited":1e999}}',
    "many digits": b'{"user_id":"user_1","post_ids":["post_1"],"weights":{"is_favorited":' + b"9" * 50_000 + b"}}",
    "NaN as id": b'{"user_id":NaN,"post_ids":["post_1"]}',
    "half a surrogate pair": b'{"user_id":"\\ud800","post_ids":["post_1"]}',
    "half a pair as key": b'{"user_id":"user_1","post_ids":["post_1"],"\\ud800":1}',
    "half a pair as weight": b'{"user_id":"user_1","post_ids":["post_1"],"weights":{"\\udfff":1}}',
    "zero bytes": text({**RANK, "user_id": "user_1\x00"}),
    "a long key": text({**RANK, "k" * 40_000: 1}),
    "many keys": text({**RANK, **{f"key{number}": 1 for number in range(4_000)}}),
    "many weights": text({**RANK, "weights": {f"task{number}": 1.0 for number in range(3_000)}}),
    "a long id": text({**RANK, "user_id": "u" * 60_000}),
    "markup": text({**RANK, "user_id": "<script>alert(1)</script>"}),
    "a path": text({**RANK, "user_id": "../../etc/passwd"}),
    "other digits": text({**RANK, "user_id": "user_\u0661"}),
    "true for text": text({**RANK, "user_id": True}),
    "an object for text": text({**RANK, "user_id": {"a": 1}}),
    "an object for a list": text({**RANK, "post_ids": {"a": 1}}),
}


NOT_UTF8 = {"not UTF-8", "UTF-16", "UTF-16, marked", "UTF-16, big", "UTF-32", "deep UTF-16", "deep UTF-16, quoted"}


@pytest.mark.parametrize("path", ["/v1/rank", "/v1/timeline", "/v1/candidates", "/v1/neighbors", "/v1/similar"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_bodies_are_errors_of_the_client(server, path, kind):
    response = httpx.post(
        server.address + path, content=HOSTILE[kind], headers={"Content-Type": "application/json"}, verify=NO_TLS
    )
    expected = {(400, "not_utf8")} if kind in NOT_UTF8 else {(404, "unknown_id"), (422, "invalid_request")}
    assert (response.status_code, error_code(response)) in expected, response.text
    assert len(response.content) < 4_096


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "nonsense", "a/b/c; d=e"])
def test_other_media_types_are_refused(server, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    response = httpx.post(f"{server.address}/v1/rank", content=text(RANK), headers=headers)
    assert (response.status_code, error_code(response)) == (422, "invalid_request")


@pytest.mark.parametrize("chunked", [False, True])
def test_huge_bodies_are_refused(server, chunked):
    parts = (b" " * 65_536 for _ in range(4))
    body = parts if chunked else b"".join(parts)
    response = httpx.post(f"{server.address}/v1/rank", content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, error_code(response)) == (413, "body_too_large")


def test_a_body_without_an_end_is_cut_off(server):
    with server.connect() as connection:
        connection.sendall(b"POST /v1/rank HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        sent, start = 0, time.monotonic()
        while time.monotonic() - start < 10:
            try:
                connection.sendall(b"10000\r\n" + b" " * 65_536 + b"\r\n")
            except OSError:
                break
            sent += 65_536
        assert time.monotonic() - start < 9
    assert httpx.get(f"{server.address}/healthz").status_code == 200


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=101", "limit=-1", "limit=1e9", "limit=nan", "limit=" + "9" * 5_000, "prefix=" + "p" * 257],
)
def test_hostile_queries(server, query):
    response = httpx.get(f"{server.address}/v1/users?{query}")
    assert (response.status_code, error_code(response)) == (422, "invalid_request")


@pytest.mark.parametrize(
    "path", ["/v1/users/%00", "/v1/users/%ff", "/v1/users/%ed%a0%80", "/v1/users/..%2f..", "/%2e%2e/"]
)
def test_hostile_paths(server, path):
    response = httpx.get(server.address + path)
    assert response.status_code in {404, 422}
    error_code(response)


@pytest.mark.slow
def test_nothing_stays_behind(server, module):
    """Rounds of hostile and abandoned requests: after the first few, memory and sockets stay what they are."""
    random_ = random.Random(0)
    whole = {**RANK, "post_ids": [f"post_{post % 400}" for post in range(2_000)]}
    bodies = [*HOSTILE.values(), text(RANK), text(whole)]

    def ask(number: int) -> int:
        body = bodies[number % len(bodies)]
        if number % 5 == 0:  # leaves before the answer, sometimes in the middle of the body
            with server.connect() as connection:
                request = request_bytes("/v1/rank", body)
                connection.sendall(request[: random_.randrange(1, len(request) + 1)])
            return 0
        return httpx.post(
            f"{server.address}/v1/rank",
            content=body,
            headers={"Content-Type": "application/json"},
            timeout=30,
            verify=NO_TLS,
        ).status_code

    num_requests = 300 if module == "served_fake" else 150

    def round_() -> tuple[int, int]:
        with ThreadPoolExecutor(16) as threads:
            statuses = set(threads.map(ask, range(num_requests)))
        assert statuses <= {0, 200, 400, 404, 413, 422} | OVERLOAD
        assert statuses >= {200, 422}
        wait_until(lambda: "rookery_requests_under_way 0.0" in httpx.get(f"{server.address}/metrics").text)
        time.sleep(0.3)
        return server.memory_bytes(), server.num_sockets()

    round_()
    before, sockets_before = round_()
    for _ in range(2):
        after, sockets_after = round_()
    assert after < before * 1.05 + 4 * 2**20  # 4 MiB: what the allocator rounds to
    assert sockets_after <= sockets_before + 2
