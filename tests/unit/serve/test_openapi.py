"""The OpenAPI document, and requests that Schemathesis makes up from it: those that fit and those that do not."""

from __future__ import annotations

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from served_fake import TASKS

from rookery.data.engagements import ENGAGEMENTS
from rookery.serve.messages import (
    CandidatesResponse,
    NeighborsResponse,
    RankResponse,
    SimilarResponse,
    TimelineResponse,
)

SECRET = "a-token-of-the-tests"


@pytest.fixture(scope="module")
def address(start_server):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROOKERY_TOKEN", SECRET)
        return start_server().address


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
def test_the_service_keeps_to_its_document(document, module, method, path, mode):
    """Status, media type and body of each answer are declared; no 5xx; a body that fits is taken, others refused."""
    operation = document[path][method]
    if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query or operation.path_parameters):
        return  # there is nothing about it that could be wrong

    tries = settings(
        max_examples=60 if module == "served_fake" else 15,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        database=None,
    )

    @tries
    @given(case=operation.as_strategy(generation_mode=mode))
    def tried(case):
        case.call_and_validate(headers={"Authorization": f"Bearer {SECRET}"})

    tried()


def test_every_operation_has_an_example_and_declares_its_refusals(document, module):
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
    tasks = TASKS if module == "served_fake" else ENGAGEMENTS
    assert sorted(weights["propertyNames"]["enum"]) == sorted(tasks)


def test_the_examples_of_requests_are_answered(address):
    document = httpx.get(f"{address}/openapi.json").json()
    headers = {"Authorization": f"Bearer {SECRET}"}
    for path, operations in document["paths"].items():
        if "post" in operations:
            reference = operations["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            (example,) = document["components"]["schemas"][reference.rpartition("/")[2]]["examples"]
            response = httpx.post(f"{address}{path}", json=example, headers=headers)
            assert response.status_code == 200, (path, response.text)
            assert all(response.json().values()), (path, "something is empty")
    parameters = document["paths"]["/v1/users/{user_id}"]["get"]["parameters"]
    [user] = next(each for each in parameters if each["name"] == "user_id")["schema"]["examples"]
    assert httpx.get(f"{address}/v1/users/{user}", headers=headers).json()["id"] == user


def test_answers_have_the_fields_that_are_declared_and_no_others(address):
    headers = {"Authorization": f"Bearer {SECRET}"}
    [user] = httpx.get(f"{address}/v1/users", params={"limit": 1}, headers=headers).json()["users"]

    def asked(name, **body):
        return httpx.post(f"{address}/v1/{name}", json=body, headers=headers).content

    found = CandidatesResponse.model_validate_json(asked("candidates", user_id=user["id"]))
    post = found.candidates[0].post_id
    TimelineResponse.model_validate_json(asked("timeline", user_id=user["id"], k=3))
    RankResponse.model_validate_json(asked("rank", user_id=user["id"], post_ids=[post]))
    NeighborsResponse.model_validate_json(asked("neighbors", user_id="user_3", k=3))
    similar = SimilarResponse.model_validate_json(asked("similar", post_id="post_3", k=3))
    assert len(similar.neighbors) == 3


def test_the_document_says_what_the_service_is(address):
    info = httpx.get(f"{address}/openapi.json").json()["info"]
    assert info["title"] == "Rookery"
    assert info["description"].startswith("Ranked timelines of a bundle: candidates for a user, ")
