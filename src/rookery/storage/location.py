"""A path of this machine, or a URL of an object store, which ``pathlib`` would mangle (``s3://a`` into ``s3:/a``)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, TypeAlias

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from rookery.errors import UserError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_PROTOCOLS = ("s3", "gs", "memory")


@dataclass(frozen=True, order=True)
class RemotePath:
    """A file or folder of an object store: what the readers of this package use of a ``Path``.

    ``memory://`` is that of this process, for tests and examples. Methods that ask the store raise ``DataError`` where
    it refuses or cannot be reached, and ``MissingExtra`` without the packages for it.
    """

    protocol: str
    key: str
    """Bucket and name, without slashes around."""

    def __str__(self) -> str:
        return f"{self.protocol}://{self.key}"

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(self.protocol, f"{self.key}/{name}".strip("/"))

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        return RemotePath(self.protocol, self.key.rpartition("/")[0])

    def open(self, mode: str = "rb") -> BinaryIO:
        """For reading from front to back. ``FileNotFoundError`` where there is no such object."""
        from rookery.storage.remote import open_sequential

        assert mode == "rb", "objects are written whole, by put"
        return open_sequential(self)

    def read_text(self, encoding: str = "utf-8") -> str:
        with self.open() as stream:
            return stream.read().decode(encoding)

    def absolute(self) -> RemotePath:
        return self

    resolve = absolute


Location: TypeAlias = "Path | RemotePath"


def is_url(text: str) -> bool:
    """Whether ``text`` is a URL, not a path."""
    return _URL.fullmatch(text) is not None


def as_location(value: object) -> Location:
    """What a configuration or a command line names. Raises ``ValueError`` for a protocol that is not supported."""
    if isinstance(value, (Path, RemotePath)):
        return value
    if not isinstance(value, str):
        raise ValueError("must be a path or a URL")  # noqa: TRY004 - what pydantic makes a message of
    url = _URL.fullmatch(value)
    if url is None:
        return Path(value)
    protocol, key = url[1].lower(), url[2]
    if protocol == "file":
        return Path(key)
    if protocol not in _PROTOCOLS or not key.strip("/"):
        raise ValueError("must be a path, or a URL such as s3://BUCKET/FOLDER or gs://BUCKET/FOLDER")
    return RemotePath(protocol, key.strip("/"))


LocationField: TypeAlias = Annotated[
    Path | RemotePath,
    PlainValidator(as_location),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "format": "path"}),
]
"""A ``Location`` in a configuration."""


def as_remote(value: object) -> RemotePath:
    """As ``as_location``, of an object store alone."""
    location = as_location(value)
    if isinstance(location, Path):
        raise ValueError("must be a URL such as s3://BUCKET/FOLDER or gs://BUCKET/FOLDER")  # noqa: TRY004
    return location


RemoteField: TypeAlias = Annotated[
    RemotePath,
    PlainValidator(as_remote),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "format": "uri"}),
]
"""A ``RemotePath`` in a configuration."""


def absolute(place: str) -> str:
    """A path from the root on, a URL as it is."""
    return place if is_url(place) else str(Path(place).absolute())


def parse_location(text: str, name: str) -> Location:
    """``as_location`` of what the argument ``name`` of a command says. Raises ``UserError``."""
    try:
        return as_location(text)
    except ValueError as error:
        raise UserError(f"{name} {text}: {error}") from error
