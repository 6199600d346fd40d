"""A person chooses a reader and moves weights; the order is the formula's, computed here a second time."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from canned_server import SUCCESSOR, TASKS, WEIGHTS, Canned
from naive_order import base_score, by_score, by_time, by_truth
from reading import LENGTH, ids, posts_of, shown, until, weights_of

if TYPE_CHECKING:
    from playwright.sync_api import Page


def choose(page: Page, user_id: str) -> None:
    page.fill("#user", user_id)
    page.get_by_role("option", name=user_id, exact=False).first.click()
    until(page, "!document.getElementById('layout').hasAttribute('aria-busy')")


def test_chosen_reader_gets_own_timeline_by_the_weights_of_the_bundle(page: Page, canned: Canned) -> None:
    assert shown(page) == ids(by_score(posts_of(canned, "user_0"), WEIGHTS))
    choose(page, "user_17")
    assert shown(page) == ids(by_score(posts_of(canned, "user_17"), WEIGHTS))
    assert page.evaluate("location.hash") == "#user=user_17"
    assert page.locator("#neighbors li").count() == 8


def test_address_leads_back_to_reader(open_page: Callable[..., Page], url: str, canned: Canned) -> None:
    page = open_page(f"{url}#user=user_23")
    page.wait_for_selector(".post")
    assert shown(page) == ids(by_score(posts_of(canned, "user_23"), WEIGHTS))


def test_moved_slider_reorders_at_once_without_a_request(page: Page, canned: Canned, keep: Callable[..., None]) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    before = shown(page)
    page.locator("#weight-is_favorited").fill("80")  # sends the events of a drag
    weights = weights_of(page)
    assert weights["is_favorited"] == pytest.approx(100, rel=0.02)
    assert {task: weights[task] for task in TASKS[1:]} == {task: WEIGHTS[task] for task in TASKS[1:]}
    assert shown(page) == ids(by_score(posts_of(canned, "user_0"), weights)) != before
    assert requests == []
    keep(page, "slider-moved")


def test_typed_weight_counts_exactly(page: Page, canned: Canned) -> None:
    box = page.get_by_label("weight of “not interested”")
    box.fill("-250.25")
    box.press("Enter")
    weights = {**WEIGHTS, "is_negative_feedback": -250.25}
    assert weights_of(page) == weights
    assert shown(page) == ids(by_score(posts_of(canned, "user_0"), weights))


def test_presets_and_reset(page: Page, canned: Canned) -> None:
    page.click("[data-preset='2026']")
    assert weights_of(page) == SUCCESSOR
    assert page.get_attribute("[data-preset='2026']", "aria-pressed") == "true"
    assert shown(page) == ids(by_score(posts_of(canned, "user_0"), SUCCESSOR))
    page.click("#reset")
    assert weights_of(page) == WEIGHTS
    assert page.get_attribute("[data-preset='2023']", "aria-pressed") == "true"
    assert page.is_disabled("#reset")
    assert shown(page) == ids(by_score(posts_of(canned, "user_0"), WEIGHTS))


@pytest.mark.parametrize(
    ("switched_off", "options"),
    [
        (["in-network"], {"sources": frozenset({"out_of_network"})}),
        (["out-of-network"], {"sources": frozenset({"in_network"})}),
        (["diversity"], {"diversity": False}),
        (["diversity", "out-of-network"], {"diversity": False, "sources": frozenset({"in_network"})}),
    ],
)
def test_switches(page: Page, canned: Canned, switched_off: list[str], options: dict[str, Any]) -> None:
    for name in switched_off:
        page.uncheck(f"#{name}")
    assert shown(page) == ids(by_score(posts_of(canned, "user_0"), WEIGHTS, **options))


def test_scores_and_parts_of_each_post_are_those_of_the_formula(page: Page, canned: Canned) -> None:
    page.click("#open-all")
    until(page, "document.querySelectorAll('.reasons tbody tr').length === 200")
    posts = {post["post_id"]: post for post in posts_of(canned, "user_0")}
    for place, (post_id, final) in enumerate(by_score(list(posts.values()), WEIGHTS)[:LENGTH]):
        card = page.locator("#posts > li").nth(place)
        rows = card.locator("tbody tr").evaluate_all(
            "rows => rows.map(row => [...row.cells].slice(1).map(cell => cell.textContent))"
        )
        probabilities = posts[post_id]["probabilities"]
        for task, (chance, weight, adds) in zip(TASKS, rows, strict=True):
            assert number(chance) / 100 == pytest.approx(probabilities[task], rel=0.06, abs=0.005)
            assert number(weight) == WEIGHTS[task]
            assert number(adds) == pytest.approx(WEIGHTS[task] * probabilities[task], rel=0.05, abs=6e-4)
        assert number(card.locator(".score").inner_text()) == pytest.approx(final, abs=0.06 if final > 10 else 6e-4)
        base = card.locator(".product b").first.inner_text()
        assert number(base) == pytest.approx(base_score(posts[post_id], WEIGHTS), abs=0.06)


def test_parts_that_take_away_lie_left_of_zero(page: Page) -> None:
    boxes = (
        page.locator("#posts > li")
        .first.locator(".strip i")
        .evaluate_all(
            "bars => bars.map(bar => [bar.className, parseFloat(bar.style.left), parseFloat(bar.style.width)])"
        )
    )
    zero = next(left for name, left, _ in boxes if name == "zero")
    takes = [(left, width) for name, left, width in boxes if "takes" in name]
    adds = [(left, width) for name, left, width in boxes if "takes" not in name and name != "zero"]
    assert takes and adds
    assert all(left + width <= zero + 1e-6 for left, width in takes)
    assert all(left >= zero - 1e-6 for left, _ in adds)


def test_orders_beside_each_other(page: Page, canned: Canned, keep: Callable[..., None]) -> None:
    posts = posts_of(canned, "user_0")
    page.check("#beside-recency")
    page.check("#beside-oracle")
    assert shown(page, "[data-order=score] .row") == ids(by_score(posts, WEIGHTS))
    assert shown(page, "[data-order=recency] .row") == by_time(posts)[:LENGTH]
    assert shown(page, "[data-order=oracle] .row") == by_truth(posts, WEIGHTS)[:LENGTH]
    assert "100% of the best" in page.inner_text("[data-order=oracle] .lead")
    page.locator("#weight-is_retweeted").fill("95")
    assert shown(page, "[data-order=oracle] .row") == by_truth(posts, weights_of(page))[:LENGTH]
    assert shown(page, "[data-order=recency] .row") == by_time(posts)[:LENGTH]
    keep(page, "orders-beside")


def test_more_posts_on_demand(page: Page, canned: Canned) -> None:
    page.click("#more")
    order = by_score(posts_of(canned, "user_0"), WEIGHTS)
    assert shown(page) == [each for each, _ in order[: 2 * LENGTH]]


def test_posts_glide_unless_the_reader_wants_stillness(open_page: Callable[..., Page], url: str) -> None:
    running = "document.getElementById('posts').getAnimations({subtree: true}).length"
    for motion, moves in [("no-preference", True), ("reduce", False)]:
        page = open_page(url, reduced_motion=motion)
        page.wait_for_selector(".post")
        until(page, f"{running} === 0")
        page.evaluate("document.querySelector('[data-preset=\"2026\"]').click()")
        assert (page.evaluate(running) > 0) == moves


def test_ranking_module_against_the_naive_order_on_hard_posts(page: Page) -> None:
    """Ties, scores of zero and below, authors with many posts, floors of 0 and 1."""
    draw = random.Random(1)
    for trial in range(30):
        posts = [
            {
                "post_id": f"p{draw.randrange(10**6)}-{number}",
                "author_id": f"a{draw.randrange(6)}",
                "source": draw.choice(["in_network", "out_of_network"]),
                "created_at": "2026-01-01T00:00:00+00:00",
                "probabilities": {"x": draw.choice([0.0, 0.25, draw.random()]), "y": draw.choice([0.0, draw.random()])},
            }
            for number in range(60)
        ]
        weights = {"x": draw.choice([0, 1, 8.5]), "y": draw.choice([-4, -0.5, 2])}
        decay, floor, out = draw.choice([0.0, 0.5, 1.0]), draw.choice([0.0, 0.25, 1.0]), draw.choice([0.75, 1.0])
        diversity = trial % 3 > 0
        ranked = page.evaluate(
            """async ([posts, weights, decay, floor, outOfNetworkFactor, diversity]) => {
                const { rankByScore } = await import(new URL("page/ranking.js", location.href).href);
                const sources = new Set(["in_network", "out_of_network"]);
                const rules = { decay, floor, outOfNetworkFactor, diversity, sources };
                return rankByScore(posts, weights, rules).map(row => [row.post.post_id, row.final]);
            }""",
            [posts, weights, decay, floor, out, diversity],
        )
        naive = by_score(posts, weights, diversity=diversity, decay=decay, floor=floor, out_of_network=out)
        assert [score for _, score in ranked] == pytest.approx([score for _, score in naive], abs=1e-12)
        if decay < 1 or not diversity:
            distinct = {score for _, score in naive if [s for _, s in naive].count(score) == 1}
            assert [each for each in ranked if each[1] in distinct] == [list(e) for e in naive if e[1] in distinct]


def test_slider_places_and_weights(page: Page) -> None:
    places, back = page.evaluate(
        """async () => {
            const { weightAt, placeOf } = await import(new URL("page/weights.js", location.href).href);
            const places = Array.from({ length: 201 }, (_, n) => n - 100);
            return [places.map(weightAt), places.map((place) => placeOf(weightAt(place)))];
        }"""
    )
    expected = [0.01 * (10 ** (abs(place) / 20 * _DECADES_PER_TWENTY) - 1) for place in range(-100, 101)]
    signs = [-1] * 100 + [0] + [1] * 100
    assert places == pytest.approx([sign * size for sign, size in zip(signs, expected, strict=True)], rel=6e-3)
    assert back == list(range(-100, 101))
    assert max(places) == pytest.approx(1000) and places == sorted(places)


_DECADES_PER_TWENTY = 5.000004342923104 / 5  # log10(1 + 1000 / .01) over five times twenty places


def number(words: str) -> float:
    return float(words.replace("−", "-").strip("+≈%"))
