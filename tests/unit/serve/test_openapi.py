"""The OpenAPI document, and requests that Schemathesis makes up from it: those that fit and those that do not."""

from __future__ import annotations

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from served_fake import TASKS, write_bundle
from serving import served

SECRET = "a-token-of-the-tests"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openapi")
    write_bundle(folder / "bundle", "v1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROOKERY_TOKEN", SECRET)
        with served(folder / "bundle", folder / "log") as server:
            yield server.address
            assert "Traceback" not in server.log


OPERATIONS = (
    *(("POST", f"/v1/{name}") for name in ("candidates", "rank", "timeline", "neighbors", "similar")),
    *(("GET", f"/v1/{name}") for name in ("users", "users/{user_id}", "config", "map", "metrics")),
    *(("GET", path) for path in ("/healthz", "/readyz", "/metrics")),
)


@pytest.fixture(scope="module")
def document(address):
    return schemathesis.openapi.from_url(f"{address}/openapi.json")


def test_all_operations_are_tried(document):
    found = [operation.ok() for operation in document.get_all_operations()]
    assert sorted((each.method.upper(), each.path) for each in found) == sorted(OPERATIONS)


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_the_service_keeps_to_its_document(document, method, path, mode):
    """Status, media type and body of each answer are declared; no 5xx; a body that fits is taken, others refused."""
    operation = document[path][method]
    if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query or operation.path_parameters):
        return  # there is nothing about it that could be wrong

    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
    @given(case=operation.as_strategy(generation_mode=mode))
    def tried(case):
        case.call_and_validate(headers={"Authorization": f"Bearer {SECRET}"})

    tried()


def test_every_operation_has_an_example_and_declares_its_refusals(document):
    document = document.raw_schema
    schemas = document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if not path.startswith("/v1/"):
                continue
            assert {"401", "422", "503", "504"} <= set(operation["responses"]), path
            content = operation["responses"]["200"]["content"]["application/json"]
            assert schemas[content["schema"]["$ref"].rpartition("/")[2]]["examples"], path
            if "requestBody" in operation:
                assert "413" in operation["responses"]
                content = operation["requestBody"]["content"]["application/json"]
                assert schemas[content["schema"]["$ref"].rpartition("/")[2]]["examples"], path
    weights = schemas["RankRequest"]["properties"]["weights"]["anyOf"][0]
    assert weights["propertyNames"] == {"enum": list(TASKS)}


def test_the_examples_of_requests_are_answered(address):
    document = httpx.get(f"{address}/openapi.json").json()
    headers = {"Authorization": f"Bearer {SECRET}"}
    for path, operations in document["paths"].items():
        if "post" in operations:
            reference = operations["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            (example,) = document["components"]["schemas"][reference.rpartition("/")[2]]["examples"]
            response = httpx.post(f"{address}{path}", json=example, headers=headers)
            assert response.status_code == 200, (path, response.text)
