"""What a page shows, as plain values."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from canned_server import Canned

if TYPE_CHECKING:
    from playwright.sync_api import Page

LENGTH = 20
"""Posts that are shown at first."""


def posts_of(canned: Canned, user_id: str) -> list[dict[str, Any]]:
    return [canned.post(user_id, each) for each in canned.candidates(user_id)]


def shown(page: Page, place: str = "#posts > li") -> list[str]:
    return page.eval_on_selector_all(place, "rows => rows.map(row => row.dataset.post)")


def weights_of(page: Page) -> dict[str, float]:
    boxes = "boxes => Object.fromEntries(boxes.map(box => [box.dataset.task, box.valueAsNumber]))"
    return page.eval_on_selector_all("#sliders input[type=number]", boxes)


def ids(order: list[tuple[str, float]]) -> list[str]:
    return [each for each, _ in order[:LENGTH]]


def until(page: Page, expression: str) -> None:
    """Wait for an expression to hold. Playwright's own way is `eval`, which the page's policy forbids."""
    deadline = time.monotonic() + 10
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"never came true: {expression}"
        page.wait_for_timeout(20)
