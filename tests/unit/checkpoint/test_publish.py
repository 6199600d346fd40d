from __future__ import annotations

import json
import logging
import shutil
import uuid
from pathlib import Path

import fsspec
import pytest
import torch
from stores import BUCKET

from rookery.checkpoint import publish
from rookery.checkpoint.checkpointer import Checkpointer, latest_checkpoint, load_checkpoint
from rookery.checkpoint.fetch import fetch, local_copy, published_steps
from rookery.checkpoint.files import DamagedCheckpoint, file_sum
from rookery.checkpoint.layout import best_step, checkpoint_steps, expired
from rookery.checkpoint.publish import PUBLISHED, Publisher
from rookery.errors import CheckpointError, RunNotFound
from rookery.storage import remote
from rookery.storage.location import RemotePath
from rookery.storage.remote import StoreUnreachable, files_under


@pytest.fixture
def url() -> RemotePath:
    return RemotePath("memory", BUCKET) / uuid.uuid4().hex


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ROOKERY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("rookery.checkpoint.fetch._PAUSE_S", 0.01)


@pytest.fixture
def run(tmp_path) -> Path:
    """The files of a run besides checkpoints."""
    folder = tmp_path / "run"
    (folder / "inputs" / "vocabularies").mkdir(parents=True)
    (folder / "tensorboard").mkdir()
    (folder / "config.yaml").write_text("a: 1\n")
    (folder / "inputs" / "vocabularies" / "a.parquet").write_bytes(bytes(range(200)))
    (folder / "tensorboard" / "events").write_text("events")
    (folder / ".lock").touch()
    return folder


def weights(step: int) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"weight": torch.arange(5.0) + step}}


def save(run: Path, url: RemotePath, *steps: int, max_to_keep: int | None = 2, **options) -> Publisher:
    publisher = Publisher(run, url, max_to_keep)
    checkpointer = Checkpointer(run, 5, max_to_keep, publisher=publisher, **options)
    for step in steps:
        checkpointer.save(step, weights(step), {"note": step})
    checkpointer.finish()
    return publisher


def contents(url: RemotePath) -> dict[str, bytes]:
    filesystem = fsspec.filesystem(url.protocol)
    return {name: filesystem.cat_file(f"{url.key}/{name}") for name in files_under(url)}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_is_published_is_what_lies_in_the_run(run, url, asynchronous):
    save(run, url, 5, 10, 15, asynchronous=asynchronous)
    there = contents(url)
    here = {file.relative_to(run).as_posix(): file.read_bytes() for file in run.rglob("*") if file.is_file()}
    kept_here = {".lock", "tensorboard/events"}
    assert {name: here[name] for name in here.keys() - kept_here} == {
        name: there[name] for name in there.keys() - {PUBLISHED}
    }
    assert set(json.loads(there[PUBLISHED])) == {"config.yaml", "inputs/vocabularies/a.parquet"}
    assert published_steps(url) == checkpoint_steps(run) == [10, 15]


def test_sums_come_last_and_go_first(run, url, monkeypatch):
    order: list[tuple[str, str]] = []
    monkeypatch.setattr(
        publish, "put", lambda file, place: (order.append(("put", place.name)), remote.put(file, place))
    )
    monkeypatch.setattr(publish, "delete", lambda place: (order.append(("delete", place.name)), remote.delete(place)))
    save(run, url, 5, 10, max_to_keep=1)
    puts = [name for verb, name in order if verb == "put"]
    first = puts.index("checksums.json")
    assert {"config.yaml", "a.parquet", PUBLISHED, "model.safetensors", "state.json"} <= set(puts[:first])
    deletes = [name for verb, name in order[order.index(("put", "checksums.json")) :] if verb == "delete"]
    assert deletes[-4:][0] == "checksums.json"
    assert {"model.safetensors", "state.json"} <= set(deletes[-3:])
    assert puts.count("a.parquet") == 1  # unchanged files are not sent again


def test_the_best_is_kept_there_as_here(run, url):
    publisher = Publisher(run, url, 1)
    checkpointer = Checkpointer(run, 5, 1, publisher=publisher)
    for step in (5, 10, 15):
        checkpointer.save(step, weights(step), {})
        if step == 5:
            checkpointer.mark_best(5, "mrr", 0.5)
    assert published_steps(url) == [5, 15]
    assert best_step(local_copy(url)) == 5
    assert load_checkpoint(local_copy(url, "auto"), "best").step == 5
    assert load_checkpoint(local_copy(url, "latest")).step == 15


def test_a_fetched_checkpoint_is_the_one_that_was_saved(run, url, tmp_path):
    save(run, url, 5, 10)
    folder = local_copy(url, "latest")
    assert folder == tmp_path / "cache" / "memory" / url.key
    assert checkpoint_steps(folder) == [10]  # the other stays there
    assert torch.equal(load_checkpoint(folder).tensors("model")["weight"], weights(10)["model"]["weight"])
    assert (folder / "config.yaml").read_text() == "a: 1\n"
    assert checkpoint_steps(local_copy(url, 5)) == [5, 10]
    alone = local_copy(url / "checkpoints/step-000000005")
    assert load_checkpoint(alone).step == 5
    assert local_copy(tmp_path) == tmp_path


def test_only_what_has_changed_is_fetched_again_and_what_is_gone_goes(run, url, monkeypatch):
    publisher = save(run, url, 5, 10)
    folder = local_copy(url, "latest")
    stamps = {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}
    (run / "config.yaml").write_text("a: 2\n")
    publisher.publish_files()
    assert (local_copy(url, "latest") / "config.yaml").read_text() == "a: 2\n"
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")} == stamps
    save(run, url, 15, 20)
    assert checkpoint_steps(local_copy(url, "latest")) == [20]
    model = next(folder.rglob("*.safetensors"))
    model.write_bytes(b"damaged here")
    assert load_checkpoint(local_copy(url, "latest")).step == 20


def test_a_checkpoint_damaged_there_is_passed_over_aloud(run, url, caplog):
    save(run, url, 5, 10)
    filesystem = fsspec.filesystem("memory")
    name = f"{url.key}/checkpoints/step-000000010/model.safetensors"
    content = bytearray(filesystem.cat_file(name))
    content[-1] ^= 1
    filesystem.pipe_file(name, bytes(content))
    assert load_checkpoint(local_copy(url, "latest")).step == 5
    assert "DAMAGED CHECKPOINT" in caplog.text
    with pytest.raises(DamagedCheckpoint, match="crc32"):
        local_copy(url, 10)
    filesystem.rm_file(name)
    with pytest.raises(DamagedCheckpoint, match=r"step-000000010/model\.safetensors: named there and absent"):
        local_copy(url, 10)


def test_half_an_upload_is_no_checkpoint(run, url):
    save(run, url, 5)
    fsspec.filesystem("memory").pipe_file(f"{url.key}/checkpoints/step-000000010/model.safetensors", b"half")
    assert published_steps(url) == [5]
    assert load_checkpoint(local_copy(url, "latest")).step == 5
    with pytest.raises(RunNotFound, match=r"step 10 is not published; published steps: 5"):
        local_copy(url, 10)
    with pytest.raises(RunNotFound, match="a best checkpoint is not published"):
        local_copy(url, "best")
    save(run, url, 10)
    assert load_checkpoint(local_copy(url, "latest")).step == 10


def test_nothing_there_is_said():
    with pytest.raises(RunNotFound, match=r"memory://birds/none: nothing there; name the training.publish of a run"):
        local_copy(RemotePath("memory", "birds/none"))


def test_an_upload_that_fails_is_said_and_made_up_for(run, url, monkeypatch, caplog):
    down = True

    def put(file: Path, place: RemotePath) -> None:
        if down:
            raise StoreUnreachable(f"{place}: the store is down")
        remote.put(file, place)

    monkeypatch.setattr(publish, "put", put)
    publisher = Publisher(run, url, 2)
    checkpointer = Checkpointer(run, 5, 2, publisher=publisher)
    with caplog.at_level(logging.ERROR):
        checkpointer.save(5, weights(5), {})
    assert "NOT PUBLISHED: the checkpoint of step 5" in caplog.text
    with pytest.raises(CheckpointError, match=r"step 5 is whole in .*the store is down.*started again, publishes it"):
        checkpointer.finish()
    assert published_steps(url) == []
    down = False
    checkpointer.finish()
    assert published_steps(url) == [5]
    checkpointer.finish()


def test_at_its_beginning_a_run_publishes_what_is_not_there_yet(run, url):
    Checkpointer(run).save(5, weights(5), {})
    Publisher(run, url, None).begin(5)
    assert published_steps(url) == [5]
    assert ".writable" not in files_under(url)
    Publisher(run, url, None).begin(None)


def test_going_back_to_an_earlier_step_takes_later_ones_away_there_too(run, url):
    save(run, url, 5, 10, 15, max_to_keep=None)
    shutil.rmtree(run / "checkpoints" / "step-000000015")
    save(run, url, 12, max_to_keep=None)
    assert published_steps(url) == [5, 10, 12]
    assert expired([5, 10, 15], 12, None, None) == [15]
    assert expired([5, 10, 15], 15, 1, 5) == [10]


def test_a_run_on_another_machine_goes_on_from_what_is_published(run, url, tmp_path):
    save(run, url, 5, 10)
    fetch(url, tmp_path / "elsewhere", "latest")
    newest = latest_checkpoint(tmp_path / "elsewhere")
    assert newest is not None
    assert newest.step == 10
    assert newest.state["note"] == 10


def test_of_a_bundle_what_has_changed_is_fetched_and_its_manifest_last(url, tmp_path, monkeypatch):
    fetched: list[str] = []
    monkeypatch.setattr(
        "rookery.checkpoint.fetch.get", lambda place, file: (fetched.append(place.name), remote.get(place, file))
    )

    def upload(**contents: str) -> Path:
        folder = tmp_path / "bundle"
        folder.mkdir(exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_text(content)
        sums = {name: file_sum(folder / name) for name in ("catalog", "timeline")}
        (folder / "bundle.json").write_text(json.dumps({"files": sums}))
        for file in folder.iterdir():
            remote.put(file, url / file.name)
        fetched.clear()
        return local_copy(url)

    folder = upload(catalog="a", timeline="b")
    assert fetched == ["catalog", "timeline", "bundle.json"]
    upload(timeline="c")
    assert fetched == ["timeline", "bundle.json"]
    assert (folder / "timeline").read_text() == "c"
    remote.put(tmp_path / "bundle" / "catalog", url / "timeline")  # another than the manifest tells of
    (folder / "timeline").unlink()
    with pytest.raises(DamagedCheckpoint, match="timeline"):
        local_copy(url)
    assert not (folder / "timeline").exists()
