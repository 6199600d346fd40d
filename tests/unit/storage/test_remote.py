from __future__ import annotations

import uuid
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from stores import BUCKET, KEYS, OFFLINE, gcs_server, s3_server, store_environment

from rookery.data.parquet import find_files
from rookery.errors import DataError
from rookery.storage.location import RemotePath
from rookery.storage.remote import (
    StoreUnreachable,
    delete,
    files_under,
    get,
    is_object,
    matching,
    open_ranges,
    put,
    require_bucket,
)


@pytest.fixture(scope="module", params=["s3", "gs", "memory"])
def protocol(request) -> Iterator[str]:
    match request.param:
        case "s3":
            with s3_server():
                yield "s3"
        case "gs":
            with gcs_server():
                yield "gs"
        case _:
            yield "memory"


@pytest.fixture
def place(protocol) -> RemotePath:
    """A folder of its own."""
    return RemotePath(protocol, BUCKET) / uuid.uuid4().hex


def write(place: RemotePath, content: bytes, tmp_path) -> None:
    file = tmp_path / "content"
    file.write_bytes(content)
    put(file, place)


def test_what_is_put_is_found_read_and_deleted(place, tmp_path):
    names = ["a.parquet", "b/c.parquet", "b/d.txt", "b[1].parquet"]
    for number, name in enumerate(names):
        write(place / name, bytes(range(number + 1)), tmp_path)
    assert files_under(place) == {name: names.index(name) + 1 for name in sorted(names)}
    assert files_under(place, depth=1) == {"a.parquet": 1, "b[1].parquet": 4}
    assert files_under(place / "b") == {"c.parquet": 2, "d.txt": 3}
    assert files_under(place / "none") == {}
    assert matching(place / "**/*.parquet") == [place / "a.parquet", place / "b/c.parquet", place / "b[1].parquet"]
    assert (is_object(place / "b"), is_object(place / "b/d.txt")) == (False, True)
    get(place / "b/d.txt", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == bytes(range(3))
    write(place / "b/d.txt", b"anew", tmp_path)
    assert (place / "b/d.txt").read_text() == "anew"
    delete(place / "b/d.txt")
    delete(place / "b/d.txt")
    assert not is_object(place / "b/d.txt")


def test_ranges_are_those_of_the_object(place, tmp_path):
    content = bytes(range(256)) * 1000
    write(place / "x", content, tmp_path)
    with open_ranges(place / "x") as file:
        file.seek(-8, 2)
        assert file.read(8) == content[-8:]
        file.seek(100_000)
        assert file.read(5_000) == content[100_000:105_000]
        assert file.tell() == 105_000


def test_folders_files_and_globs_are_inputs(place, tmp_path):
    for name in ("b.parquet", "a.parquet", "c.csv", "sub/d.parquet"):
        write(place / name, b"x", tmp_path)
    assert find_files(str(place)) == [place / "a.parquet", place / "b.parquet"]
    assert find_files(f"{place}/") == [place / "a.parquet", place / "b.parquet"]
    assert find_files(f"{place}/sub/d.parquet") == [place / "sub/d.parquet"]
    assert find_files(f"{place}/*b.parquet") == [place / "b.parquet"]
    assert find_files(f"{place}/none") == []
    with pytest.raises(DataError, match="http://a: must be a path, or a URL such as"):
        find_files("http://a")


def test_what_is_not_there_is_said(place, protocol, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such object"):
        get(place / "none", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="no such object"):
        open_ranges(place / "none")
    if protocol != "memory":  # which has no buckets
        with pytest.raises(StoreUnreachable, match="no bucket 'no-such-birds'; correct the URL or make the bucket"):
            require_bucket(RemotePath(protocol, "no-such-birds/a"))
        with pytest.raises(DataError, match="no bucket 'no-such-birds'"):
            find_files(f"{protocol}://no-such-birds/a")


def test_without_credentials_the_message_tells_where_they_are_looked_for():
    with (
        store_environment("s3", OFFLINE),
        pytest.raises(StoreUnreachable, match=r"credentials.*AWS_ACCESS_KEY_ID") as told,
    ):
        find_files("s3://birds/log")
    assert told.value.exit_code == 2


def test_a_store_that_does_not_answer_is_an_error_with_its_address():
    nobody = {**KEYS, **OFFLINE, "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    with store_environment("s3", nobody), pytest.raises(StoreUnreachable, match=r"127\.0\.0\.1:9.*look at its address"):
        find_files("s3://birds/log")


def test_googles_store_that_does_not_answer_is_told_of_once(monkeypatch, capfd, caplog):
    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    import gcsfs.retry

    pauses: list[float] = []
    monkeypatch.setattr(gcsfs.retry, "asyncio", SimpleNamespace(sleep=sleep))
    nobody = {"STORAGE_EMULATOR_HOST": "http://127.0.0.1:9", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "0"}
    with store_environment("gs", nobody), pytest.raises(StoreUnreachable, match=r"127\.0\.0\.1:9.*look at its address"):
        find_files("gs://birds/log")
    assert len(pauses) <= 10  # an object and a folder of this name are asked for at once, six times, and never again
    assert (caplog.records, capfd.readouterr()) == ([], ("", ""))
