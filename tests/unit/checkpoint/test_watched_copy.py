"""A bundle at a URL that becomes another while its copy is served."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from unittest import mock

import fsspec
import pytest
from stores import BUCKET, upload

from rookery.checkpoint import fetch
from rookery.checkpoint.fetch import WatchedCopy
from rookery.checkpoint.files import DamagedCheckpoint, file_sum
from rookery.storage.location import RemotePath
from rookery.storage.remote import delete


@pytest.fixture
def url() -> RemotePath:
    return RemotePath("memory", BUCKET) / uuid.uuid4().hex


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOKERY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("rookery.checkpoint.fetch._PAUSE_S", 0.01)


def write(folder: Path, content: str) -> Path:
    """A bundle of one file, and of another that is the same in all."""
    (folder / "ranker").mkdir(parents=True, exist_ok=True)
    (folder / "ranker" / "weights").write_text(content)
    (folder / "map").write_text("the same")
    sums = {name: file_sum(folder / name) for name in ("ranker/weights", "map")}
    (folder / "bundle.json").write_text(json.dumps({"files": sums}))
    return folder


def weights_of(copy: WatchedCopy) -> str:
    return (copy.folder / "ranker" / "weights").read_text()


def test_another_bundle_is_fetched_and_the_same_one_is_not(url: RemotePath, tmp_path: Path) -> None:
    upload(write(tmp_path / "one", "old"), url)
    copy = WatchedCopy(url, every_s=0)
    with mock.patch.object(fetch, "get", wraps=fetch.get) as get:
        copy.refresh()
        assert get.call_count == 0
        upload(write(tmp_path / "two", "new"), url)  # of the same size, to the byte
        copy.refresh()
        assert [str(call.args[0]).rpartition("/")[2] for call in get.call_args_list] == ["weights", "bundle.json"]
        copy.refresh()
        assert get.call_count == 2
    assert weights_of(copy) == "new"


def test_metrics_that_are_attached_later_come_along(url: RemotePath, tmp_path: Path) -> None:
    upload(write(tmp_path / "one", "old"), url)
    copy = WatchedCopy(url, every_s=0)
    fsspec.filesystem("memory").pipe_file(f"{url.key}/metrics.json", b"{}")
    copy.refresh()
    assert (copy.folder / "metrics.json").read_bytes() == b"{}"


def test_looks_are_rare(url: RemotePath, tmp_path: Path) -> None:
    upload(write(tmp_path / "one", "old"), url)
    copy = WatchedCopy(url)
    clock = mock.Mock(return_value=copy._looked)
    with (
        mock.patch.object(fetch.time, "monotonic", clock),
        mock.patch.object(fetch, "files_under", wraps=fetch.files_under) as listing,
    ):
        for second in range(1, 36):
            clock.return_value += 1
            copy.refresh()
            assert listing.call_count == second // 10


def test_what_is_half_uploaded_is_refused_until_it_is_whole(url: RemotePath, tmp_path: Path) -> None:
    upload(write(tmp_path / "one", "old"), url)
    copy = WatchedCopy(url, every_s=0)
    manifest = (copy.folder / "bundle.json").read_text()
    newer = write(tmp_path / "two", "newer")
    fsspec.filesystem("memory").pipe_file(f"{url.key}/bundle.json", (newer / "bundle.json").read_bytes())
    for _ in range(2):
        with pytest.raises(DamagedCheckpoint, match="weights"):
            copy.refresh()
        assert (copy.folder / "bundle.json").read_text() == manifest
    upload(newer, url)
    copy.refresh()
    assert weights_of(copy) == "newer"


def test_nothing_is_done_while_there_is_no_manifest(url: RemotePath, tmp_path: Path) -> None:
    upload(write(tmp_path / "one", "old"), url)
    copy = WatchedCopy(url, every_s=0)
    delete(url / "bundle.json")
    delete(url / "map")
    copy.refresh()
    assert (copy.folder / "bundle.json").exists()
