"""Everyone can use it: by keyboard alone, on a narrow phone, in the dark, with a screen reader; nothing is too pale."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from canned_server import WEIGHTS, Canned
from naive_order import by_score
from reading import ids, posts_of, shown, until, weights_of

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHECKS = Path(__file__).with_name("checks.js").read_text()
SCHEMES = ["light", "dark"]
WIDTHS = {"phone": (360, 740), "tablet": (900, 1100), "desk": (1440, 900)}


def open_states(page: Page) -> list[tuple[str, Callable[[], Any]]]:
    """Ways to bring out all that the page can show, in this order."""
    return [
        ("timeline", lambda: page.wait_for_selector(".post")),
        ("list", lambda: page.fill("#user", "user_1") or page.wait_for_selector("#user-list li")),
        ("controls", lambda: page.evaluate("document.getElementById('controls').open = true")),
        ("reasons", lambda: page.click("#open-all") or page.wait_for_selector("#posts > li:last-child tbody tr")),
        ("beside", lambda: page.check("#beside-recency") or page.check("#beside-oracle")),
        ("metrics", lambda: page.click("#tab-metrics") or page.wait_for_selector("#metrics figure")),
    ]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", WIDTHS)
def test_every_state_is_readable(
    open_page: Callable[..., Page], url: str, size: str, scheme: str, keep: Callable[..., None]
) -> None:
    """No scrolling sideways, text of 4.5 to 1 or more, targets of 24 px; a screenshot of each state is kept."""
    width, height = WIDTHS[size]
    page = open_page(url, width, height, color_scheme=scheme)
    for state, bring_out in open_states(page):
        bring_out()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, state
        assert check(page, "paleText") == [], state
        assert check(page, "smallTargets") == [], state
        assert check(page, "strayWords") == [], state
        page.evaluate("window.scrollTo(0, 0)")
        keep(page, f"{size}-{scheme}-{state}")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_axe_finds_nothing(open_page: Callable[..., Page], url: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="make test-browser installs axe").Axe()
    page = open_page(url, color_scheme=scheme)
    for state, bring_out in open_states(page):
        bring_out()
        found = axe.run(page).response["violations"]
        assert [(each["id"], [node["html"] for node in each["nodes"][:3]]) for each in found] == [], state


def test_everything_that_acts_has_a_name_and_references_exist(page: Page) -> None:
    for _, bring_out in open_states(page)[1:]:
        bring_out()
        nameless, dangling, twice = check(page, "names")
        assert nameless == [] and dangling == [] and twice == []


def test_by_keyboard_alone(open_page: Callable[..., Page], url: str, canned: Canned) -> None:
    page = open_page(url)
    page.wait_for_selector(".post")
    press = page.keyboard.press
    assert tab_to(page, "tab-timeline") <= 2  # behind the link that skips
    assert tab_to(page, "user") == 1
    press("ControlOrMeta+A")
    page.keyboard.type("user_2")
    until(page, "document.querySelector('#user-option-0')?.textContent.startsWith('user_2')")
    press("ArrowDown")
    assert page.get_attribute("#user", "aria-activedescendant") == "user-option-1"
    press("Enter")
    until(page, "location.hash === '#user=user_20'")
    until(page, "!document.getElementById('layout').hasAttribute('aria-busy')")
    assert shown(page) == ids(by_score(posts_of(canned, "user_20"), WEIGHTS))

    tab_to(page, "weight-is_favorited")
    for _ in range(30):
        press("ArrowRight")
    weights = weights_of(page)
    assert weights["is_favorited"] > 10
    assert shown(page) == ids(by_score(posts_of(canned, "user_20"), weights))

    tab_to(page, "diversity")
    press("Space")
    assert shown(page) == ids(by_score(posts_of(canned, "user_20"), weights, diversity=False))

    page.locator("#posts summary").first.focus()
    press("ArrowDown")
    press("Enter")
    second = page.locator("#posts > li").nth(1)
    second.locator("tbody tr").first.wait_for()
    assert page.evaluate("document.activeElement.closest('li').dataset.post") == shown(page)[1]

    page.locator("#tab-timeline").focus()
    press("ArrowRight")
    page.wait_for_selector("#metrics figure")
    assert page.is_hidden("#view-timeline")


def test_focus_is_seen(page: Page) -> None:
    """An outline on whatever the keyboard comes to."""
    page.keyboard.press("Tab")
    for press in range(45):
        name, style, width = page.evaluate(
            "[document.activeElement.outerHTML.slice(0, 80), getComputedStyle(document.activeElement).outlineStyle,"
            " parseFloat(getComputedStyle(document.activeElement).outlineWidth)]"
        )
        assert style != "none" and width >= 2, (press, name)
        page.keyboard.press("Tab")


def test_moved_weight_keeps_the_focus_and_is_spoken(page: Page) -> None:
    slider = page.locator("#weight-is_replied")
    slider.focus()
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.id") == "weight-is_replied"
    assert slider.get_attribute("aria-valuetext") == "weight 1000"
    until(page, "/places have changed|order is the same/.test(document.getElementById('announcer').textContent)")


def check(page: Page, name: str) -> list[Any]:
    """What the check of this name finds wrong."""
    return page.evaluate(f"({CHECKS.strip()}).{name}()")


def tab_to(page: Page, target: str) -> int:
    """How many presses of Tab lead to the element of this id."""
    for presses in range(1, 80):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == target:
            return presses
    raise AssertionError(f"Tab never leads to {target}")
