"""The server as a process: connections, signals, reloads under load."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from served_fake import write_bundle
from serving import error_code, received, request_bytes, served, wait_until, write_config

from rookery.serve.guard import SECURITY_HEADERS

TIMELINE = {"user_id": "user_1", "k": 5}


@pytest.fixture
def bundle(tmp_path):
    write_bundle(tmp_path / "bundle", "v1", batch_s=0.01)
    return tmp_path / "bundle"


def test_what_is_under_way_is_finished_before_the_end(tmp_path):
    write_bundle(tmp_path / "bundle", "v1", batch_s=1.0)
    config = write_config(tmp_path, drain_s=0.6)
    with served(tmp_path / "bundle", tmp_path / "log", config) as server, ThreadPoolExecutor() as threads:
        url = f"{server.address}/v1/timeline"
        under_way = threads.submit(httpx.post, url, json=TIMELINE, timeout=30)
        wait_until(lambda: "rookery_requests_under_way 1.0" in httpx.get(f"{server.address}/metrics").text)
        with httpx.Client() as kept:
            assert kept.get(f"{server.address}/readyz").status_code == 200
            server.terminate()
            wait_until(lambda: httpx.get(f"{server.address}/readyz").status_code == 503)
            last = kept.get(f"{server.address}/healthz")  # still served while it drains
            assert (last.status_code, last.headers["connection"]) == (200, "close")
        assert len(under_way.result().json()["posts"]) == 5
        assert server.process.wait(timeout=10) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.address}/healthz")
        assert "Traceback" not in server.log


def test_the_second_signal_ends_it_at_once(tmp_path):
    write_bundle(tmp_path / "bundle", "v1")
    config = write_config(tmp_path, drain_s=60)
    with served(tmp_path / "bundle", tmp_path / "log", config) as server:
        server.process.send_signal(signal.SIGINT)
        wait_until(lambda: httpx.get(f"{server.address}/readyz").status_code == 503)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=5) == 0


def test_a_port_that_is_taken_is_said_in_a_line(bundle, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (tmp_path / "serve.yaml").write_text(json.dumps({"port": taken.getsockname()[1]}))
        with (
            pytest.raises(AssertionError, match=r"cannot be listened at .*in use.*--port"),
            served(bundle, tmp_path / "log", tmp_path / "serve.yaml"),
        ):
            pass


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("nowhere.invalid", "nowhere.invalid: names no address"),
        ("a..b", "a..b: names no address"),
        ("192.0.2.7", "192.0.2.7, port=0: cannot be listened at"),  # of no machine: RFC 5737
    ],
)
def test_a_host_that_cannot_be_listened_at_is_said_and_not_blamed_on_the_port(
    bundle, tmp_path, monkeypatch, host, said
):
    monkeypatch.setenv("ROOKERY_TOKEN", "a-token-of-the-tests")
    config = write_config(tmp_path, host=host)
    with pytest.raises(AssertionError) as failed, served(bundle, tmp_path / "log", config):
        pass
    message = str(failed.value).partition("Error: host=")[2]
    assert message.startswith(said) and "name another with --host" in message and "--port" not in message


@pytest.mark.parametrize("host", ["127.0.0.2", "::1", "localhost"])
def test_the_address_that_is_listened_at_is_accepted(bundle, tmp_path, host):
    require_address(host)
    with served(bundle, tmp_path / "log", write_config(tmp_path, host=host)) as server:
        assert httpx.post(f"{server.address}/v1/timeline", json=TIMELINE).status_code == 200
        attacked = httpx.get(f"{server.address}/v1/config", headers={"Host": "attacker.example"})
        assert (attacked.status_code, error_code(attacked)) == (403, "forbidden_host")


def require_address(host):
    """Skip where a machine has no IPv6, or no more of 127.0.0.0/8 than its first address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, 0), family=family).close()
    except OSError as error:
        pytest.skip(f"this machine has no address {host}: {error}")


def test_bundles_are_exchanged_under_load_without_a_dropped_request(tmp_path):
    link = tmp_path / "bundle"
    for number in range(6):
        write_bundle(tmp_path / f"bundle-{number}", f"v{number}", batch_s=0.02)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "bundle.json").write_text("not json")
    link.symlink_to("bundle-0")
    config = write_config(tmp_path, reload_every_s=0.05)
    answers: list[tuple[int, str]] = []
    end = threading.Event()

    def ask(server_address: str) -> None:
        with httpx.Client(timeout=30) as client:
            while not end.is_set():
                response = client.post(f"{server_address}/v1/timeline", json=TIMELINE)
                answers.append((response.status_code, response.json().get("version")))

    with served(link, tmp_path / "log", config) as server, ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(ask, server.address) for _ in range(4)]
        wait_until(lambda: len(answers) >= 4)
        for target in ("bundle-1", "bundle-2", "broken", "bundle-3", "bundle-4", "bundle-5"):
            beside = tmp_path / "turning"
            beside.symlink_to(target)
            beside.replace(link)
            if target == "broken":
                wait_until(lambda: "the old one stays" in server.log)
            else:
                version = target.replace("bundle-", "v")
                wait_until(lambda version=version: answers and answers[-1][1] == version)
        end.set()
        for each in asking:
            each.result()
        counted = Counter(answers)
        assert {status for status, _ in counted} == {200}
        assert {version for _, version in counted} == {f"v{number}" for number in range(6)}
        metrics = httpx.get(f"{server.address}/metrics").text
        assert 'rookery_reloads_total{outcome="done"} 5.0' in metrics
        assert 'rookery_reloads_total{outcome="failed"} 1.0' in metrics


def test_slow_clients_are_dropped(bundle, tmp_path):
    config = write_config(tmp_path, client_s=0.6, keep_alive_s=0.8)
    with served(bundle, tmp_path / "log", config) as server:
        silent, half_headers, half_body, stuck_body, idle = (server.connect() for _ in range(5))
        half_headers.sendall(b"GET /healthz HTTP/1.1\r\nHost: localh")
        whole = request_bytes("/v1/timeline", json.dumps(TIMELINE).encode())
        half_body.sendall(whole[:-5])
        stuck_body.sendall(request_bytes("/v1/rank", b"", {"Content-Length": "100", "Host": "attacker.example"}))
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert received(silent, 3) == received(half_headers, 3) == b""
        assert received(half_body, 3).startswith(b"HTTP/1.1 408")
        assert received(stuck_body, 3).startswith(b"HTTP/1.1 403")
        assert received(idle, 3).startswith(b"HTTP/1.1 200")
        for connection in (silent, half_headers, half_body, stuck_body, idle):
            connection.close()
        with server.connect() as dripping:  # a byte now and then is no way to stay
            assert seconds_of_dripping(dripping, timeout_s=5) < 3
        assert httpx.get(f"{server.address}/healthz").status_code == 200
        assert "Traceback" not in server.log


def seconds_of_dripping(connection: socket.socket, timeout_s: float) -> float:
    """How long one can go on sending bytes of a header that never ends."""
    start = time.monotonic()
    while time.monotonic() - start < timeout_s:
        try:
            connection.sendall(b"G")
        except OSError:
            break
        time.sleep(0.05)
    return time.monotonic() - start


def test_who_does_not_take_the_answer_is_dropped(bundle, tmp_path):
    body = {"user_id": "user_1", "post_ids": [f"post_{post % 3_000}" for post in range(2_000)]}
    request = request_bytes("/v1/rank", json.dumps(body).encode())
    with served(bundle, tmp_path / "log", write_config(tmp_path, client_s=0.5)) as server:
        before = server.num_sockets()
        deaf = []
        for _ in range(10):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            connection.connect(("127.0.0.1", int(server.address.rpartition(":")[2])))
            connection.sendall(request * 8)  # pipelined: more answers than the kernel would buffer
            deaf.append(connection)
        wait_until(lambda: server.num_sockets() >= before + 5)
        wait_until(lambda: server.num_sockets() <= before)
        for connection in deaf:
            connection.close()
        assert httpx.get(f"{server.address}/healthz").status_code == 200
        assert "Traceback" not in server.log


def test_too_many_connections_are_turned_away(bundle, tmp_path):
    with served(bundle, tmp_path / "log", write_config(tmp_path, connections=10, client_s=1.0)) as server:
        held = [server.connect() for _ in range(10)]
        time.sleep(0.2)
        response = httpx.get(f"{server.address}/healthz")
        assert (response.status_code, error_code(response)) == (503, "overloaded")
        assert response.headers["connection"] == "close" and response.headers["retry-after"] == "1"
        assert SECURITY_HEADERS.items() <= dict(response.headers).items()
        held += [server.connect() for _ in range(100)]
        wait_until(lambda: server.num_sockets() < 40)  # what is far too much is dropped at once
        for connection in held:
            connection.close()
        wait_until(lambda: is_well(server))


def is_well(server):
    """A connection that is made before the closed ones are noticed may be dropped as well."""
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{server.address}/healthz").status_code == 200
    return False


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"GET / FTP/1.1\r\n\r\n",
        b"GET \xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v1/rank HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/rank HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /v1/rank HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-Long: " + b"a" * 100_000,
        b"GET / HTTP/1.1\r\nHost: localhost\r\nBad Header: 1\r\n\r\n",
    ],
)
def test_what_is_not_http_is_answered_and_closed(sent, shared_server):
    with shared_server.connect() as connection:
        connection.sendall(sent)
        answer = received(connection, 10)
    assert answer.startswith(b"HTTP/1.1 400 ") and b'{"error": {"code": "not_http"' in answer
    assert all(f"{name}: {value}\r\n".encode() in answer for name, value in SECURITY_HEADERS.items())
    assert "Traceback" not in shared_server.log


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    write_bundle(folder / "bundle", "v1")
    with served(folder / "bundle", folder / "log") as server:
        yield server
