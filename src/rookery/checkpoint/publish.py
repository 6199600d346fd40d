"""A run published in an object store while it trains, in the layout of its directory.

URL/config.yaml, graph.json, inputs/…       what the run consists of besides checkpoints
URL/published.json                          the sums of these, written behind them
URL/checkpoints/step-000001000/…            a checkpoint; its checksums.json is written last and deleted first
URL/checkpoints/best.json                   which of these is the best
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from rookery.checkpoint.draft import FileSum
from rookery.checkpoint.files import CHECKSUMS, file_sum
from rookery.checkpoint.layout import BEST, CHECKPOINTS, best_step, expired, step_folder, steps_of, whole_steps
from rookery.errors import CheckpointError, DataError
from rookery.storage.location import RemotePath
from rookery.storage.remote import delete, files_under, put, require_bucket

logger = logging.getLogger(__name__)

PUBLISHED = "published.json"
# Of this machine alone, or events that a reader of the run has no use for.
_KEPT_HERE = {CHECKPOINTS, "tensorboard", PUBLISHED}


class Publisher:
    """Uploads what one run leaves, by one process; the same checkpoints are kept there as here.

    A checkpoint that could not be uploaded does not stop the training: it is said loudly, and the next one is another
    try. ``finish`` is the last.
    """

    def __init__(self, save_dir: Path, url: RemotePath, max_to_keep: int | None) -> None:
        self._save_dir, self._url, self._max_to_keep = save_dir, url, max_to_keep
        self._sums: dict[Path, tuple[tuple[int, int], FileSum]] = {}
        self._missed: tuple[int, Exception] | None = None

    def begin(self, newest: int | None) -> None:
        """Try whether the URL can be written, and upload the checkpoint of step ``newest`` if it is not there yet.

        Raises ``DataError`` where that fails.
        """
        require_bucket(self._url)
        mark = self._url / ".writable"
        with TemporaryDirectory() as folder:
            empty = Path(folder) / "empty"
            empty.touch()
            put(empty, mark)
        delete(mark)
        if newest is not None and newest not in whole_steps(files_under(self._url)):
            self._upload(newest)

    def publish(self, step: int) -> None:
        """Upload the checkpoint of ``step`` and whatever else of the run has changed; delete what is not kept."""
        try:
            self._upload(step)
        except (DataError, OSError) as error:
            self._missed = (step, error)
            logger.error("NOT PUBLISHED: the checkpoint of step %d: %s; training goes on", step, error)  # noqa: TRY400

    def mark_best(self) -> None:
        """Point there to the checkpoint that is the best here, if it was uploaded."""
        try:
            self._point_to_best(whole_steps(files_under(self._url)))
        except (DataError, OSError) as error:
            logger.error("NOT PUBLISHED: which checkpoint is the best: %s", error)  # noqa: TRY400

    def finish(self) -> None:
        """Try again what could not be uploaded. Raises ``CheckpointError`` where it still cannot."""
        if self._missed is None:
            return
        step, _ = self._missed
        self.publish(step)
        if self._missed is not None:
            raise CheckpointError(
                f"{self._url}: the checkpoint of step {step} is whole in {self._save_dir} and was not published "
                f"({self._missed[1]}); the same command, started again, publishes it"
            ) from self._missed[1]

    def publish_files(self) -> None:
        """Upload what has changed of the run besides checkpoints. Raises ``DataError`` where that fails."""
        sums = {name: self._sum(self._save_dir / name) for name in _files_of(self._save_dir)}
        there = _read_sums(self._url)
        for name, own in sums.items():
            if there.get(name) != own:
                put(self._save_dir / name, self._url / name)
        if there != sums:
            _put_text(json.dumps(sums, indent=1), self._url / PUBLISHED)

    def _upload(self, step: int) -> None:
        self.publish_files()
        here, there = step_folder(self._save_dir, step), step_folder(self._url, step)
        delete(there / CHECKSUMS)  # of a predecessor that training fell back from
        for name in json.loads((here / CHECKSUMS).read_text()):
            put(here / name, there / name)
        put(here / CHECKSUMS, there / CHECKSUMS)
        self._missed = None
        present = files_under(self._url)
        self._point_to_best(whole_steps(present))
        for old in expired(steps_of(present), step, self._max_to_keep, best_step(self._save_dir)):
            self._delete(old, present)
        logger.info("published step %d at %s", step, self._url)

    def _point_to_best(self, steps: list[int]) -> None:
        if best_step(self._save_dir) in steps:
            pointer = Path(CHECKPOINTS) / BEST
            put(self._save_dir / pointer, self._url / pointer.as_posix())

    def _delete(self, step: int, present: Mapping[str, int]) -> None:
        folder = step_folder(self._url, step)
        delete(folder / CHECKSUMS)
        inside = f"{CHECKPOINTS}/{folder.name}/"
        for name in present:
            if name.startswith(inside):
                delete(self._url / name)

    def _sum(self, file: Path) -> FileSum:
        """Computed anew when the file has changed: 1 s a GB."""
        about = file.stat()
        stamp = (about.st_mtime_ns, about.st_size)
        if self._sums.get(file, (None,))[0] != stamp:
            self._sums[file] = (stamp, file_sum(file))
        return self._sums[file][1]


def _files_of(save_dir: Path) -> list[str]:
    """The files of a run besides its checkpoints, by their path inside it."""
    inside = (path.relative_to(save_dir) for path in sorted(save_dir.rglob("*")) if path.is_file())
    return [
        path.as_posix()
        for path in inside
        if path.parts[0] not in _KEPT_HERE and not any(part.startswith(".") for part in path.parts)
    ]


def _read_sums(url: RemotePath) -> dict[str, FileSum]:
    try:
        sums: dict[str, FileSum] = json.loads((url / PUBLISHED).read_text())
    except FileNotFoundError:
        return {}
    return sums


def _put_text(text: str, place: RemotePath) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / place.name
        file.write_text(text)
        put(file, place)
