from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from pathlib import Path

import pytest
from served_fake import FakeTimeline, open_fake, write_bundle
from serving import wait_until
from stores import BUCKET, upload

from rookery.checkpoint.fetch import WatchedCopy
from rookery.cli.serve import _bundle
from rookery.errors import DataError
from rookery.serve.bundle import BundleHolder, keep_reloading, set_aside_what_stays
from rookery.serve.metrics import ServiceMetrics
from rookery.storage.location import RemotePath
from rookery.storage.remote import StoreUnreachable


@pytest.fixture
def link(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "one", "v1")
    write_bundle(tmp_path / "two", "v2")
    link = tmp_path / "bundle"
    link.symlink_to("one")
    return link


def turn(link: Path, target: str) -> None:
    """Let a link point elsewhere, without a moment in between."""
    beside = link.with_name("turning")
    beside.symlink_to(target)
    beside.replace(link)


def test_a_link_that_turns_is_a_newer_bundle(link):
    holder = BundleHolder(link, open_fake)
    assert holder.current.version == "v1" and not holder.is_newer()
    turn(link, "two")
    assert holder.is_newer() and holder.current.version == "v1"
    holder.reload()
    assert holder.current.version == "v2" and not holder.is_newer()


def test_a_folder_that_is_replaced_is_a_newer_bundle(tmp_path):
    write_bundle(tmp_path / "bundle", "v1")
    holder = BundleHolder(tmp_path / "bundle", open_fake)
    write_bundle(tmp_path / "next", "v2")
    (tmp_path / "bundle").rename(tmp_path / "old")
    assert not holder.is_newer()  # nothing lies there for a moment
    (tmp_path / "next").rename(tmp_path / "bundle")
    assert holder.is_newer()
    holder.reload()
    assert holder.current.version == "v2"


def test_a_broken_bundle_is_tried_once_and_the_old_one_stays(link, tmp_path):
    holder = BundleHolder(link, open_fake)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "bundle.json").write_text("{")
    turn(link, "broken")
    with pytest.raises(DataError):
        holder.reload()
    assert holder.current.version == "v1" and not holder.is_newer()
    turn(link, "two")
    holder.reload()
    assert holder.current.version == "v2"


def test_the_old_bundle_is_freed_with_its_last_request(link):
    holder = BundleHolder(link, open_fake)
    taken = holder.current
    old = weakref.ref(taken)
    turn(link, "two")
    holder.reload()
    gc.collect()
    assert old() is taken
    del taken
    gc.collect()
    assert old() is None


def test_what_was_set_aside_is_looked_through_at_the_next_exchange():
    class InCircles:
        def __init__(self) -> None:
            self.itself = self

    circle = InCircles()
    gone = weakref.ref(circle)
    set_aside_what_stays()
    assert gc.get_freeze_count() > 10_000
    del circle
    gc.collect()
    assert gone() is not None  # nobody looks
    set_aside_what_stays()
    assert gone() is None


def test_the_watcher_reloads_and_survives_what_is_broken(link, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    broken = threading.Event()

    def opener(path: Path) -> FakeTimeline:
        if broken.is_set():
            raise RuntimeError("not even an error of ours")
        return open_fake(path)

    holder, metrics = BundleHolder(link, opener), ServiceMetrics()
    write_bundle(tmp_path / "three", "v3")

    async def watched() -> None:
        watcher = asyncio.create_task(keep_reloading(holder, 0.02, metrics, lambda served: served.version))
        broken.set()
        turn(link, "two")
        await asyncio.to_thread(wait_until, lambda: b'rookery_reloads_total{outcome="failed"} 1.0' in metrics.text())
        await asyncio.sleep(0.1)
        broken.clear()
        assert holder.current.version == "v1"
        turn(link, "three")
        await asyncio.to_thread(wait_until, lambda: b'rookery_bundle{version="v3"} 1.0' in metrics.text())
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)

    asyncio.run(watched())
    assert holder.current.version == "v3"
    assert b'rookery_reloads_total{outcome="failed"} 1.0' in metrics.text()
    assert "the old one stays: not even an error of ours" in caplog.text


def test_a_bundle_at_a_url_is_exchanged_too(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("ROOKERY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(WatchedCopy.__init__, "__defaults__", (0.0,))  # looks at once
    url = RemotePath("memory", BUCKET) / "bundle-at-a-url"
    write_bundle(tmp_path / "one", "v1")
    write_bundle(tmp_path / "two", "v2")
    upload(tmp_path / "one", url)
    folder, refresh = _bundle(url)
    unreachable = threading.Event()

    def refreshed() -> None:
        if unreachable.is_set():
            raise StoreUnreachable("the store does not answer")
        refresh()

    holder, metrics = BundleHolder(folder, open_fake, refreshed), ServiceMetrics()
    assert holder.current.version == "v1"

    async def watched() -> None:
        watcher = asyncio.create_task(keep_reloading(holder, 0.02, metrics, lambda served: served.version))
        unreachable.set()
        upload(tmp_path / "two", url)
        await asyncio.to_thread(wait_until, lambda: b'{outcome="failed"} ' in metrics.text())
        assert holder.current.version == "v1"
        unreachable.clear()
        await asyncio.to_thread(wait_until, lambda: b'rookery_bundle{version="v2"} 1.0' in metrics.text())
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)

    asyncio.run(watched())
    assert "cannot be fetched or opened, the old one stays: the store does not answer" in caplog.text


def test_a_path_is_served_where_it_lies(tmp_path):
    folder, refresh = _bundle(tmp_path / "bundle")
    refresh()
    assert folder == tmp_path / "bundle"


def test_requests_keep_the_bundle_that_they_began_with(start, tmp_path):
    application = start(batch_s=0.3)
    answers = []
    asking = threading.Thread(
        target=lambda: answers.append(application.client.post("/v1/timeline", json={"user_id": "user_1", "k": 1}))
    )
    asking.start()
    wait_until(lambda: bool(application.timeline.batches))
    write_bundle(tmp_path / "next", "v2")
    (tmp_path / "bundle").rename(tmp_path / "old")
    (tmp_path / "next").rename(tmp_path / "bundle")
    wait_until(lambda: application.timeline.version == "v2")
    asking.join()
    assert (answers[0].status_code, answers[0].json()["version"]) == (200, "v1")
    assert application.client.post("/v1/timeline", json={"user_id": "user_1", "k": 1}).json()["version"] == "v2"
