from __future__ import annotations

import pytest
from serving import error_code

from rookery.config.loader import parse_config
from rookery.errors import ConfigError
from rookery.serve.config import ServeConfig

SECRET = "0123456789abcdef"


def test_the_token_guards_the_api_and_the_metrics_alone(start):
    client = start(token=SECRET).client
    for path in ("/v1/users", "/v1/nothing", "/metrics"):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer \xff\xfe"}):
            response = client.get(path, headers={name: value.encode("latin-1") for name, value in headers.items()})
            assert (response.status_code, error_code(response)) == (401, "unauthorized")
            assert response.headers["www-authenticate"] == "Bearer"
    for path in ("/healthz", "/readyz", "/", "/openapi.json"):
        assert client.get(path).status_code == 200
    assert client.get("/v1/users", headers={"Authorization": f"Bearer {SECRET}"}).status_code == 200
    operation = client.get("/openapi.json").json()["paths"]["/v1/rank"]["post"]
    assert operation["security"] == [{"token": []}]


def test_without_a_token_other_names_of_this_machine_are_refused(application):
    names = ("localhost", "localhost:8000", "LOCALHOST")
    for host in (*names, "127.0.0.1:1", "127.0.0.2:8000", "127.8.8.8", "[::1]:8000", "[::1]"):
        assert application.client.get("/v1/users", headers={"Host": host}).status_code == 200
    names = (
        "",
        "attacker.example",
        "attacker.example:8000",
        "localhost.attacker.example",
        "127.0.0.1.attacker.example",
    )
    numbers = ("192.0.2.1", "10.0.0.1:8000", "[2001:db8::1]:8000", "::1", "127.0.0.1:80:80", "0.0.0.0", "2130706433")
    for host in (*names, *numbers):
        response = application.client.get("/v1/users", headers={"Host": host})
        assert (response.status_code, error_code(response)) == (403, "forbidden_host")


def test_limits_are_checked_when_they_are_read():
    with pytest.raises(ConfigError, match=r"limits\.queued_requests=0: must be at least 1"):
        parse_config(ServeConfig, {"limits": {"queued_requests": 0}}, "serve.yaml")
    with pytest.raises(ConfigError, match=r"limits\.deadline_s"):
        parse_config(ServeConfig, {"limits": {"deadline_s": float("nan")}}, "serve.yaml")
