"""``rookery demo`` from nothing to a page, through a death on the way, and refused where it cannot be."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

TIMEOUT_S = 300


def start(folder: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rookery", "demo", "--size", "tiny", "--folder", str(folder), "--json", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(folder: Path) -> dict[str, Any]:
    process = start(folder)
    out, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, errors
    return {**json.loads(out), "stderr": errors}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return finish(tmp_path_factory.mktemp("demo") / "whole")


@pytest.mark.slow
def test_twhin_and_the_ranker_beat_what_knows_less(whole: dict[str, Any]) -> None:
    share = {each["policy"]: each["share"] for each in whole["policies"]}
    assert share["oracle"] == 1.0
    assert share["ranker"] > max(share["popularity"], share["recency"], share["random"]) + 0.1
    assert 0.9 < share["best_of_candidates"] <= 1.0
    favorites = next(each for each in whole["measures"] if each["name"] == "AUROC of is_favorited")
    assert favorites["chance"] < favorites["without_twhin"] < favorites["oracle"]
    assert favorites["with_twhin"] < favorites["oracle"] + 0.02


@pytest.mark.slow
def test_every_stage_says_how_far_it_is(whole: dict[str, Any]) -> None:
    """Percentages that rise to 100; a training has lines of its own between them."""
    parts = re.split(r"^(\d)/8 .*\n", whole["stderr"], flags=re.MULTILINE)[1:]
    assert parts[::2] == [*"12345678"]
    for number, said in zip(parts[::2], parts[1::2], strict=True):
        percentages = [int(found) for found in re.findall(r"^ +(\d+)%$", said, re.MULTILINE)]
        assert percentages == sorted(set(percentages)), number
        assert percentages[-1] == 100, number
        assert len(percentages) > 1, number
        assert ("step " in said) == (number in "2345"), number


@pytest.mark.slow
def test_the_page_stands_alone(whole: dict[str, Any]) -> None:
    page = Path(whole["report"]).read_text()
    assert page.startswith("<!doctype html>")
    assert not {"<script", "http://", "https://", "src="} & {
        part for part in ("<script", "http://", "https://", "src=") if part in page
    }
    assert "share of the oracle" in page


@pytest.mark.slow
def test_killed_at_several_moments_it_ends_the_same(whole: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    for wait_s in (2.0, 6.0, 9.0):
        process = start(folder)
        time.sleep(wait_s)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    found = finish(folder)
    assert (found["measures"], found["policies"]) == (whole["measures"], whole["policies"])


@pytest.mark.slow
def test_another_seed_in_the_same_folder_is_refused(whole: dict[str, Any]) -> None:
    process = start(Path(whole["folder"]), "--seed", "1")
    out, errors = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, out) == (2, "")
    assert "another size or seed" in errors
