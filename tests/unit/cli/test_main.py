from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import rookery


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "rookery", *arguments], capture_output=True, text=True, check=False)


def test_version():
    result = cli("--version")
    assert (result.returncode, result.stdout) == (0, f"rookery {rookery.__version__}\n")


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["doctor", "--jsn"], ["config", "schema"], ["config", "schema", "x"]]
)
def test_wrong_usage_exits_2_and_prints_nothing_on_stdout(arguments):
    result = cli(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert "Usage: " in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [["demo", "--size", "huge"], ["world", "generate", "out", "--size", "huge"], ["demo", "--seed", "x"]],
)
def test_what_a_flag_may_not_be_is_told_in_plain_words(arguments):
    result = cli(*arguments)
    told = " ".join(result.stderr.split())
    assert (result.returncode, result.stdout) == (2, "")
    assert f"Invalid value for '{arguments[-2]}': " in told
    assert "Value error" not in told


@pytest.mark.parametrize("job", ["twhin", "ranker"])
def test_schema_of_a_job_is_json_schema(job):
    result = cli("config", "schema", job)
    assert result.returncode == 0, result.stderr
    schema = json.loads(result.stdout)
    assert schema["additionalProperties"] is False
    assert {"training", "model", "train_data"} <= set(schema["properties"])


def test_waiting_threads_sleep_unless_told_otherwise():
    def policies(environment: dict[str, str]) -> set[str]:
        command = [sys.executable, "-m", "rookery", "doctor"]
        inherited = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        shown = inherited | {"OMP_DISPLAY_ENV": "TRUE"} | environment
        lines = subprocess.run(command, env=shown, capture_output=True, text=True, check=True).stderr.splitlines()
        return {line.split("=")[1].strip() for line in lines if "OMP_WAIT_POLICY" in line}

    assert policies({}) == {"'PASSIVE'"}
    assert policies({"OMP_WAIT_POLICY": "active"}) == {"'ACTIVE'"}
