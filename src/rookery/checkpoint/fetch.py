"""A published run, or another folder of an object store, as a copy on this machine whose sums were compared."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from rookery.checkpoint.draft import FileSum
from rookery.checkpoint.files import CHECKSUMS, DamagedCheckpoint, read_checkpoint, require_sum
from rookery.checkpoint.layout import BEST, CHECKPOINTS, PREFIX, checkpoint_steps, listed, step_folder, whole_steps
from rookery.checkpoint.publish import PUBLISHED
from rookery.errors import RunNotFound
from rookery.storage.cache import cache_folder
from rookery.storage.location import Location, RemotePath
from rookery.storage.remote import files_under, get, require_bucket

logger = logging.getLogger(__name__)

CheckpointName = Literal["auto", "latest", "best"] | int

# A run in training changes while it is read; the next try sees it as it is then.
_TRIES = 4
_PAUSE_S = 1.0
_MANIFESTS = ("bundle.json", "manifest.json")
"""Of a timeline's bundle; of an export."""


def local_copy(source: Location, checkpoint: CheckpointName = "auto") -> Path:
    """``source`` itself where it is a path; of a URL what is there, fetched into the cache of this machine.

    Of a run, ``checkpoint`` alone comes along (``auto``: the best one if it is kept, else the latest). What was fetched
    before and has not changed is not fetched again. The cache is ``~/.cache/rookery``, or ``ROOKERY_CACHE``.

    Raises ``RunNotFound`` where nothing is there, ``DamagedCheckpoint`` for what is not what was published.
    """
    if isinstance(source, Path):
        return source
    if source.parent.name == CHECKPOINTS and source.name.removeprefix(PREFIX).isdecimal():
        step = int(source.name.removeprefix(PREFIX))
        return step_folder(local_copy(source.parent.parent, step), step)
    folder = local_folder(source)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        fetch(source, folder, checkpoint)
    return folder


class WatchedCopy:
    """The copy of a bundle or an export at a URL, brought up to date when it has become another there.

    A look costs a listing of the folder's own files and the manifest; there is one in ``every_s`` at most.
    """

    def __init__(self, source: RemotePath, every_s: float = 10.0) -> None:
        """Raises what ``local_copy`` raises."""
        self._source, self._every_s = source, every_s
        self.folder = local_copy(source)
        self._looked = time.monotonic()

    def refresh(self) -> None:
        """Fetch what is there if it is another, the manifest last; nothing before ``every_s`` have passed.

        Raises ``DataError`` where the store refuses, ``DamagedCheckpoint`` for files that are not, or not yet, what the
        manifest says.
        """
        if time.monotonic() - self._looked < self._every_s:
            return
        try:
            if self._is_other():
                local_copy(self._source)
        finally:
            self._looked = time.monotonic()

    def _is_other(self) -> bool:
        present = files_under(self._source, depth=1)
        manifest = next((name for name in _MANIFESTS if name in present), None)
        if manifest is None:  # being replaced
            return False
        here = {name: self.folder / name for name in present}
        if any(not file.exists() or file.stat().st_size != present[name] for name, file in here.items()):
            return True
        return (self._source / manifest).read_text() != here[manifest].read_text(encoding="utf-8")


def local_folder(source: Location) -> Path:
    """Where ``local_copy`` has what is at ``source``."""
    return source if isinstance(source, Path) else cache_folder() / source.protocol / source.key


def fetch(source: RemotePath, folder: Path, checkpoint: CheckpointName) -> None:
    """Bring ``folder`` up to what ``source`` has. Checkpoints that are not there any more are deleted here, too."""
    for remaining in reversed(range(_TRIES)):
        try:
            _fetch(source, folder, checkpoint)
        except (DamagedCheckpoint, FileNotFoundError) as error:
            if remaining:
                time.sleep(_PAUSE_S)
            elif isinstance(error, FileNotFoundError):
                raise DamagedCheckpoint(f"{error.filename}: named there and absent; publish the run again") from error
            else:
                raise
        else:
            return


def published_steps(source: RemotePath) -> list[int]:
    """Steps of the whole checkpoints of a published run; none where there is no run."""
    return whole_steps(files_under(source))


def _fetch(source: RemotePath, folder: Path, checkpoint: CheckpointName) -> None:
    present = files_under(source)
    if not present:
        require_bucket(source)
        raise RunNotFound(f"{source}: nothing there; name the training.publish of a run, or a folder that was uploaded")
    is_run = any(name.startswith(f"{CHECKPOINTS}/") for name in present)
    manifest = PUBLISHED if is_run else next((name for name in _MANIFESTS if name in present), None)
    sums = {} if manifest is None or manifest not in present else _sums(source / manifest)
    # The manifest last: a server that watches the copy takes up what it tells of.
    for name in sorted(present, key=lambda name: name == manifest):
        if not name.startswith((f"{CHECKPOINTS}/", "tensorboard/", PUBLISHED)):
            _get(source / name, folder / name, sums.get(name))
    if is_run:
        _fetch_checkpoint(source, folder, present, checkpoint)


def _sums(manifest: RemotePath) -> Mapping[str, FileSum]:
    """Of a run, or of a bundle or an export, whose manifest has them among others."""
    told: dict[str, Any] = json.loads(manifest.read_text())
    return told if manifest.name == PUBLISHED else told.get("files", {})


def _fetch_checkpoint(source: RemotePath, folder: Path, present: Mapping[str, int], checkpoint: CheckpointName) -> None:
    steps = whole_steps(present)
    for gone in set(checkpoint_steps(folder)).difference(steps):
        shutil.rmtree(step_folder(folder, gone))
    pointer = f"{CHECKPOINTS}/{BEST}"
    best = None
    if pointer in present:
        _get(source / pointer, folder / pointer, None)
        best = int(json.loads((folder / pointer).read_text())["step"])
    wanted = best if checkpoint == "best" or (checkpoint == "auto" and best in steps) else checkpoint
    if wanted in ("auto", "latest") and steps:
        _fetch_newest(source, folder, steps)
    elif wanted in steps:
        _fetch_step(source, folder, int(wanted))
    else:
        what = "a best checkpoint" if wanted is None else "a checkpoint" if not steps else f"step {wanted}"
        raise RunNotFound(f"{source}: {what} is not published; published steps: {listed(steps) or 'none'}")


def _fetch_newest(source: RemotePath, folder: Path, steps: list[int]) -> None:
    """The newest undamaged one."""
    for step in reversed(steps):
        try:
            _fetch_step(source, folder, step)
        except DamagedCheckpoint as damage:
            if step == steps[0]:
                raise
            logger.warning("DAMAGED CHECKPOINT %s at %s; going back to an earlier one", damage, source)
        else:
            return


def _fetch_step(source: RemotePath, folder: Path, step: int) -> None:
    """A checkpoint, whole or not at all."""
    there, here = step_folder(source, step), step_folder(folder, step)
    checksums = (there / CHECKSUMS).read_text()
    if here.exists() and (here / CHECKSUMS).read_text() == checksums and _is_whole(here):
        return
    beside = here.with_name(f".{here.name}.writing")
    shutil.rmtree(beside, ignore_errors=True)
    for name, expected in json.loads(checksums).items():
        _get(there / name, beside / name, expected)
    (beside / CHECKSUMS).write_text(checksums)
    if here.exists():
        shutil.rmtree(here)
    beside.rename(here)


def _is_whole(folder: Path) -> bool:
    try:
        read_checkpoint(folder)
    except DamagedCheckpoint:
        return False
    return True


def _get(place: RemotePath, file: Path, expected: FileSum | None) -> None:
    """Fetch an object unless the file is that already; compare it with its sum where there is one."""
    if expected is not None and file.exists():
        try:
            require_sum(file, expected)
        except DamagedCheckpoint:
            file.unlink()
        else:
            return
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.writing")
    get(place, beside)
    if expected is not None:
        require_sum(beside, expected)
    beside.replace(file)
