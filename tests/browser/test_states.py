"""What the page says where there is no timeline to show."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from canned_server import NUM_USERS, TASKS, Canned, serving
from reading import until

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

OpenPage = Callable[..., "Page"]


def test_token_is_asked_for_and_kept_for_the_tab(open_page: OpenPage, keep: Callable[..., None]) -> None:
    with serving(Canned(token="a-long-secret")) as url:
        page = open_page(url)
        page.wait_for_selector("#token-form")
        assert page.evaluate("document.activeElement.id") == "token"
        assert page.inner_text("#token-error") == ""
        page.keyboard.type("guess")
        page.keyboard.press("Enter")
        page.get_by_text("This token is not the server's.").wait_for()
        keep(page, "token")
        page.fill("#token", "a-long-secret")
        page.keyboard.press("Enter")
        page.wait_for_selector(".post")
        page.reload()
        page.wait_for_selector(".post")
        assert page.evaluate("localStorage.length") == 0
        assert "a-long-secret" not in page.evaluate("location.href + document.cookie")


def test_overload_is_told_and_tried_again(open_page: OpenPage, keep: Callable[..., None]) -> None:
    canned = Canned(broken={"/v1/rank"})
    with serving(canned) as url:
        page = open_page(url)
        page.wait_for_selector("#notice:not([hidden])")
        assert page.inner_text("#notice p") == "Too many requests at once; try again."
        keep(page, "overload")
        canned.broken.clear()
        page.get_by_role("button", name="Try again").click()
        page.wait_for_selector(".post")
        assert page.is_hidden("#notice")


def test_server_that_has_gone(open_page: OpenPage) -> None:
    with serving(Canned()) as url:
        page = open_page(url)
        page.wait_for_selector(".post")
        page.context.set_offline(True)
        page.locator("#neighbors button").first.click()
        page.wait_for_selector("#notice:not([hidden])")
        assert "cannot be reached" in page.inner_text("#notice")
        assert page.locator(".post").count() == 0
        page.context.set_offline(False)
        page.get_by_role("button", name="Try again").click()
        page.wait_for_selector(".post")


def test_unknown_reader_in_the_address(open_page: OpenPage, url: str) -> None:
    page = open_page(f"{url}#user=nobody")
    page.wait_for_selector("#notice:not([hidden])")
    assert page.inner_text("#notice p") == "nobody: no such user"


def test_reader_without_candidates(open_page: OpenPage, url: str, keep: Callable[..., None]) -> None:
    page = open_page(f"{url}#user=user_{NUM_USERS - 1}")
    page.get_by_text("No posts for this reader").wait_for()
    assert page.is_hidden("#oracle-switch")
    keep(page, "no-posts")


def test_both_sources_off(page: Page) -> None:
    page.uncheck("#in-network")
    page.uncheck("#out-of-network")
    assert "Switch one on" in page.inner_text("#timeline-state")
    page.check("#in-network")
    assert page.is_hidden("#timeline-state")
    assert page.locator(".post").count() == 20


def test_text_from_outside_stays_text(page: Page) -> None:
    page.fill("#user", "<img src=x onerror=alert(1)>")
    page.get_by_text("No reader begins with “<img src=x onerror=alert(1)>”.").wait_for()
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")
    assert page.input_value("#user") == "user_0"


def test_loading_is_said(open_page: OpenPage, url: str) -> None:
    page = open_page(url)
    page.wait_for_selector(".post")
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/v1/rank", hold)
    with page.expect_request("**/v1/rank"):
        page.locator("#neighbors button").first.click()
    assert page.inner_text("#timeline-state") == "Ranking…"
    assert page.get_attribute("#layout", "aria-busy") == "true"
    while not held:
        page.wait_for_timeout(20)
    held[0].continue_()
    page.get_by_text("Ranking…").wait_for(state="hidden")
    until(page, "!document.getElementById('layout').hasAttribute('aria-busy')")


@pytest.mark.parametrize(("truth", "broken"), [(False, set()), (True, {"/v1/map"})])
def test_without_truth_or_map_the_rest_works(open_page: OpenPage, truth: bool, broken: set[str]) -> None:
    with serving(Canned(truth=truth, broken=broken)) as url:
        page = open_page(url)
        page.wait_for_selector(".post")
        assert page.is_visible("#oracle-switch") == truth
        page.check("#beside-recency")
        assert ("by the model’s own chances" in page.inner_text("[data-order=score] .lead")) != truth
        assert page.get_by_text("There is no map").is_visible() == bool(broken)


def test_metrics(open_page: OpenPage, url: str) -> None:
    page = open_page(f"{url}#metrics")
    page.wait_for_selector("#metrics figure")
    assert page.locator("#metrics tbody tr").count() == 4
    assert page.locator("#metrics tbody tr").nth(2).locator("td").last.inner_text() == "87.0%"
    assert page.locator("path.curve").count() == 2
    assert page.locator("#metrics figure").count() == 1 + len(TASKS)
    assert page.locator("circle.dot").count() == 16 * len(TASKS)


def test_without_metrics(open_page: OpenPage) -> None:
    with serving(Canned(measured=False)) as url:
        page = open_page(url)
        page.click("#tab-metrics")
        page.get_by_text("built without measurements").wait_for()


def test_interval_of_reliability(page: Page) -> None:
    """Wilson's interval of 7 in 50 from his formula: the shares whose distance from 7/50 is 1.96 of their own error."""
    low, high = page.evaluate(
        "async () => (await import(new URL('page/charts.js', location.href).href)).wilson(7 / 50, 50)"
    )
    for edge in (low, high):
        assert abs(7 / 50 - edge) == pytest.approx(1.959964 * (edge * (1 - edge) / 50) ** 0.5, rel=1e-9)


def test_map_marks_reader_neighbors_and_posts(page: Page) -> None:
    """Where the reader lies there is ink; another reader moves it."""
    until(page, "document.getElementById('map').width > 100")
    first = page.evaluate("document.getElementById('map').toDataURL()")
    assert "8 neighbours and the first 20 posts" in page.text_content("#map-words")
    page.click("#zoom")
    zoomed = page.evaluate("document.getElementById('map').toDataURL()")
    page.click("#zoom")
    assert page.evaluate("document.getElementById('map').toDataURL()") == first != zoomed
    page.locator("#neighbors button").first.click()
    until(page, "location.hash === '#user=user_1' && !document.querySelector('[aria-busy]')")
    assert page.evaluate("document.getElementById('map').toDataURL()") != first
