"""What is done with objects of a store, through fsspec; its many errors as ours, each with what mends it.

Tries are repeated by the libraries below (s3fs and botocore: five times with growing pauses; gcsfs: six). What still
fails is raised here.
"""

from __future__ import annotations

import errno
import functools
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, cast

from rookery.errors import DataError, MissingExtra
from rookery.storage.location import RemotePath

# Errors of the libraries that are no OSError, by protocol.
_FOREIGN: dict[str, tuple[str, ...]] = {
    "s3": ("botocore.exceptions.BotoCoreError", "botocore.exceptions.ClientError", "aiohttp.ClientError"),
    "gs": ("gcsfs.retry.HttpError", "google.auth.exceptions.GoogleAuthError", "aiohttp.ClientError"),
    "memory": (),
}
# gcsfs' level is that of GCSFS_DEBUG, if it is set.
_TALKATIVE = ("gcsfs", "google.auth")
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the machine a role",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, run `gcloud auth application-default login`, or give the machine a role",
    "memory": "",
}
_WITHOUT_ACCESS = (
    "NoCredentials", "PartialCredentials", "CredentialRetrieval", "TokenRetrieval", "ProfileNotFound",
    "DefaultCredentials", "Refresh", "PermissionError",
)  # fmt: skip


class StoreUnreachable(DataError):
    """A store refuses, or does not answer: no fault of the data in it."""


def open_ranges(place: RemotePath) -> BinaryIO:
    """For reading here and there: nothing is fetched but what is asked for."""
    return _opened(place, "none")


def open_sequential(place: RemotePath) -> BinaryIO:
    """For reading from front to back, some megabytes fetched ahead."""
    return _opened(place, "readahead")


def files_under(place: RemotePath, depth: int | None = None) -> dict[str, int]:
    """Sizes in bytes of the objects under a folder, by their path inside it, sorted; one listing.

    ``depth`` 1: those in the folder itself alone. Nothing where the folder does not exist.
    """
    with _told(place):
        try:
            found = _filesystem(place).find(place.key, maxdepth=depth, detail=True)
        except FileNotFoundError:
            return {}
    folder = f"{place.key}/"
    named = {_key(name).removeprefix(folder): int(info["size"]) for name, info in found.items()}
    return {name: named[name] for name in sorted(named) if _key(name) != place.key}


def matching(pattern: RemotePath) -> list[RemotePath]:
    """The objects that a glob pattern matches, sorted."""
    with _told(pattern):
        found = _filesystem(pattern).glob(pattern.key, detail=True)
    return sorted(RemotePath(pattern.protocol, _key(name)) for name, info in found.items() if info["type"] == "file")


def is_object(place: RemotePath) -> bool:
    """Whether there is an object of this very name."""
    with _told(place):
        try:
            # isfile would take a store that does not answer for a missing object: it would be asked twice, 30 s each.
            return bool(_filesystem(place).info(place.key)["type"] == "file")
        except FileNotFoundError:
            return False


def require_bucket(place: RemotePath) -> None:
    """Raise ``StoreUnreachable`` unless the bucket of ``place`` is there and may be looked into."""
    bucket = place.key.partition("/")[0]
    with _told(place):
        is_there = place.protocol == "memory" or _filesystem(place).exists(bucket)
    if not is_there:
        raise StoreUnreachable(f"{place}: there is no bucket {bucket!r}; correct the URL or make the bucket")


def get(place: RemotePath, file: Path) -> None:
    """Fetch an object into a file. ``FileNotFoundError`` where there is none."""
    with _told(place):
        _filesystem(place).get_file(place.key, str(file))


def put(file: Path, place: RemotePath) -> None:
    """Write an object, whole or not at all."""
    with _told(place):
        _filesystem(place).put_file(str(file), place.key)


def delete(place: RemotePath) -> None:
    """Delete an object, if there is one."""
    with _told(place):
        try:
            _filesystem(place).rm_file(place.key)
        except FileNotFoundError:
            return


def _opened(place: RemotePath, cache: str) -> BinaryIO:
    with _told(place):
        file = _filesystem(place).open(place.key, "rb", cache_type=cache)
    return cast("BinaryIO", _ToldFile(file, place))


class _ToldFile(io.RawIOBase):
    """An open object whose errors are ours, also where Arrow reads it."""

    def __init__(self, file: Any, place: RemotePath) -> None:
        super().__init__()
        self._file, self._place = file, place

    def read(self, size: int = -1, /) -> bytes:
        with _told(self._place):
            return bytes(self._file.read(size))

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _filesystem(place: RemotePath) -> Any:
    """The file system of a protocol, told to forget listings: other processes write there, too."""
    try:
        import fsspec

        filesystem = fsspec.filesystem(place.protocol)
    except ImportError as error:
        raise MissingExtra(f"{place}: object stores need more packages: pip install 'rookery[object-store]'") from error
    _quieten()
    filesystem.invalidate_cache()
    return filesystem


def _quieten() -> None:
    """Keep the libraries from telling, with tracebacks, what is raised here; unless they were told how much to tell."""
    for name in _TALKATIVE:
        if logging.getLogger(name).level == logging.NOTSET:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _key(name: str) -> str:
    return name.strip("/")


@contextmanager
def _told(place: RemotePath) -> Iterator[None]:
    """``FileNotFoundError`` passes: what it means is for the caller to say."""
    errors = _errors_of(place.protocol)
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "no such object", str(place)) from error
    except errors as error:
        raise StoreUnreachable(f"{place}: {_reason(error, place)}") from error


def _reason(error: Exception, place: RemotePath) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    kinds = {cause.__name__ for cause in type(error).__mro__}
    if any(name in kind for kind in kinds for name in _WITHOUT_ACCESS) or _is_refusal(error):
        return f"access is refused ({said}); {_CREDENTIALS[place.protocol]}, of an account that may do this"
    return (
        f"the store did not do what was asked, nor when asked again ({said}); look at its address, the network and "
        "the store, then start again"
    )


def _is_refusal(error: Exception) -> bool:
    response: Any = getattr(error, "response", None)
    status = response["ResponseMetadata"]["HTTPStatusCode"] if isinstance(response, dict) else None
    return (status or getattr(error, "code", None)) in {401, 403}


@functools.cache
def _errors_of(protocol: str) -> tuple[type[Exception], ...]:
    """What a file system may raise; only of packages that are there, others raise nothing."""
    found: list[type[Exception]] = [OSError]
    for name in _FOREIGN[protocol]:
        module, _, error = name.rpartition(".")
        try:
            found.append(getattr(import_module(module), error))
        except ImportError:
            continue
    return tuple(found)
