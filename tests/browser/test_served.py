"""The page before the real server: what it ranks by itself is what `/v1/timeline` answers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from reading import LENGTH, shown, weights_of
from small_timeline import write_parts

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

USERS = ["user_5", "user_17", "user_44"]


@pytest.fixture(scope="module")
def address(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bundle of a small ranker, served by the command line."""
    folder = tmp_path_factory.mktemp("served")
    with serving(write_parts(folder).build(folder / "bundle"), folder / "log") as url:
        yield url


@contextmanager
def serving(bundle: Path, log: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "rookery", "serve", str(bundle), "--port", "0"]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    with log.open("w") as sink, subprocess.Popen(command, stderr=sink, env=environment) as process:
        try:
            yield _address(process, log)
        finally:
            process.terminate()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 60
    while not (found := re.search(r"running on (http://127\.0\.0\.1:\d+)", log.read_text())):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return f"{found[1]}/"


@pytest.fixture(params=USERS)
def user(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def served_page(open_page: Callable[..., Page], address: str, user: str) -> Page:
    page = open_page(f"{address}#user={user}")
    page.wait_for_selector(".post")
    return page


def answered(address: str, user: str, **options: Any) -> list[dict[str, Any]]:
    answer = httpx.post(f"{address}v1/timeline", json={"user_id": user, "k": LENGTH, **options})
    assert answer.status_code == 200, answer.text
    return answer.json()["posts"]


def ids(posts: list[dict[str, Any]]) -> list[str]:
    return [post["post_id"] for post in posts]


def test_first_order_and_scores(served_page: Page, address: str, user: str) -> None:
    posts = answered(address, user)
    assert len(posts) == LENGTH
    assert shown(served_page) == ids(posts)
    scores = served_page.locator("#posts .score").all_inner_texts()
    assert [float(each.replace("−", "-")) for each in scores] == pytest.approx(
        [post["final_score"] for post in posts], rel=5e-3, abs=6e-4
    )


def test_order_of_moved_weights(served_page: Page, address: str, user: str) -> None:
    before = shown(served_page)
    for task, place in [("is_favorited", 85), ("is_replied", -60)]:
        served_page.locator(f"#weight-{task}").fill(str(place))
    posts = answered(address, user, weights=weights_of(served_page))
    assert shown(served_page) == ids(posts) != before


@pytest.mark.parametrize("preset", ["2023", "2026"])
def test_order_of_presets(served_page: Page, address: str, user: str, preset: str) -> None:
    served_page.click(f"[data-preset='{preset}']")
    assert shown(served_page) == ids(answered(address, user, weights=weights_of(served_page)))


def test_order_of_switches(served_page: Page, address: str, user: str) -> None:
    served_page.uncheck("#diversity")
    assert shown(served_page) == ids(answered(address, user, diversity=False))
    served_page.uncheck("#in-network")
    assert shown(served_page) == ids(answered(address, user, diversity=False, sources=["out_of_network"]))
    served_page.check("#diversity")
    served_page.check("#in-network")
    served_page.uncheck("#out-of-network")
    assert shown(served_page) == ids(answered(address, user, sources=["in_network"]))


def test_newest_first(served_page: Page, address: str, user: str) -> None:
    served_page.check("#beside-recency")
    assert shown(served_page, "[data-order=recency] .row") == ids(answered(address, user, order="recency"))


def test_map_neighbors_and_metrics_are_there(served_page: Page, user: str) -> None:
    assert served_page.locator("#neighbors li").count() == 8
    served_page.wait_for_selector("#map-words:not(:empty)", state="attached")
    assert user in (served_page.text_content("#map-words") or "")
    served_page.click("#tab-metrics")
    served_page.get_by_text("built without measurements").wait_for()
