"""A folder of results that appears whole or not at all: written beside its place, then renamed."""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
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
    require_free(out, overwrite, marker)
    with _termination_unwinds(), _hidden_sibling(out) as hidden:
        staging = Staging(hidden / "result", hidden / "scratch")
        staging.folder.mkdir()
        staging.scratch.mkdir()
        yield staging
        if out.exists():
            out.rename(hidden / "replaced")
        staging.folder.rename(out)


def require_free(out: Path, overwrite: bool, marker: str) -> None:
    """Raise ``DataError`` where ``out`` is there and may not be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise DataError(f"{out}: exists; choose another name, or pass --overwrite to replace it")
    if not (out / marker).is_file():
        raise DataError(f"{out}: holds no {marker}, so --overwrite does not touch it; remove it or choose another name")


@contextmanager
def _hidden_sibling(out: Path) -> Iterator[Path]:
    parent = out.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        hidden = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=parent))
    except OSError as error:
        raise DataError(f"{parent}: cannot be written to ({error.strerror}); choose another place") from error
    try:
        yield hidden
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


@contextmanager
def _termination_unwinds() -> Iterator[None]:
    """SIGTERM acts like Ctrl-C, so that ``finally`` blocks run: what is half-written may be gigabytes."""
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
