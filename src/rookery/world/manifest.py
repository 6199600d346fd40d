"""``world.json``: what a world is, and what tells its files from others.

Small files are known by their sum; those that grow with the log, gigabytes at last, by their size and their rows.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from rookery.data.manifest import read_manifest
from rookery.errors import DataError
from rookery.world.config import WorldConfig

MANIFEST = "world.json"
FORMAT: Literal[2] = 2

_GROWING = ("history", "edges", "impressions", "truth")
_READ_BYTES = 1 << 22


class WorldFile(BaseModel):
    """Size in bytes, and either the sum or the number of rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int
    sha256: str | None = None
    rows: int | None = None


class WorldManifest(BaseModel):
    """``world.json``. ``files`` has every other file by its path inside the world."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["world"] = "world"
    format: Literal[2] = FORMAT
    first_day: str
    """ISO 8601, UTC, as ``now``."""
    now: str
    num_days: int
    config: WorldConfig
    num_impressions: int
    num_posts: int
    num_edges: dict[str, int]
    base_rates: dict[str, float]
    """The mean of each label in the log."""
    files: dict[str, WorldFile]


def describe_files(world: Path) -> dict[str, WorldFile]:
    """All files of a world that has no manifest yet."""
    names = sorted(file.relative_to(world).as_posix() for file in world.rglob("*") if file.is_file())
    return {name: _describe(world, name) for name in names}


def verify_world(world: Path) -> WorldManifest:
    """Read the manifest and compare every file with it.

    Raises ``DataError`` for a folder that is no world, is of another format, or has files that are not its own.
    """
    manifest = read_manifest(
        WorldManifest,
        world / MANIFEST,
        kind=f"a world of format {FORMAT}",
        absent=f"make a world with `rookery world generate {world}`",
        remedy="generate it again",
    )
    for name, expected in manifest.files.items():
        try:
            found = _describe(world, name)
        except (OSError, pa.ArrowException) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise DataError(f"{world / name}: cannot be read ({reason}); {_damaged(world)}") from error
        for what, was, is_now in ((key, getattr(expected, key), getattr(found, key)) for key in WorldFile.model_fields):
            if was != is_now:
                raise DataError(f"{world / name}: {what}={is_now}, but {was} was written; {_damaged(world)}")
    return manifest


def _damaged(world: Path) -> str:
    return f"{world} is damaged: generate it again"


def _describe(world: Path, name: str) -> WorldFile:
    file = world / name
    size = file.stat().st_size
    if name.startswith(tuple(f"{folder}/" for folder in _GROWING)) and file.suffix == ".parquet":
        return WorldFile(bytes=size, rows=pq.read_metadata(file).num_rows)
    return WorldFile(bytes=size, sha256=_sha256(file))


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
