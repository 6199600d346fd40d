"""A folder of results that appears whole or not at all: written beside its place, then renamed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rookery.errors import DataError


@dataclass(frozen=True)
class Staging:
    """``folder`` becomes the result; ``scratch``, on the same file system, is for what is thrown away."""

    folder: Path
    scratch: Path


@contextmanager
def staged(out: Path, *, overwrite: bool, marker: str) -> Iterator[Staging]:
    """Give a folder to write to, which becomes ``out`` when the block ends well and is gone when it does not.

    An ``out`` that exists is replaced if ``overwrite``, and only if it holds the file ``marker``: a slip of the pen
    must not remove a folder of another kind. Raises ``DataError`` before anything is written.
    """
    _require_free(out, overwrite, marker)
    hidden = _make_hidden_sibling(out)
    try:
        staging = Staging(hidden / "result", hidden / "scratch")
        staging.folder.mkdir()
        staging.scratch.mkdir()
        yield staging
        if out.exists():
            out.rename(hidden / "replaced")
        staging.folder.rename(out)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _require_free(out: Path, overwrite: bool, marker: str) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise DataError(f"{out}: exists; choose another name, or pass --overwrite to replace it")
    if not (out / marker).is_file():
        raise DataError(f"{out}: holds no {marker}, so --overwrite does not touch it; remove it or choose another name")


def _make_hidden_sibling(out: Path) -> Path:
    parent = out.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=parent))
    except OSError as error:
        raise DataError(f"{parent}: cannot be written to ({error.strerror}); choose another place") from error
