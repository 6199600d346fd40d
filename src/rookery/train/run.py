"""A run directory: locked while training, with everything a run leaves.

RUN/config.yaml          the resolved configuration
RUN/environment.json     versions, commit, hardware of the latest start
RUN/metrics.jsonl        a line a log and a validation
RUN/tensorboard/         the same as events
RUN/checkpoints/         see rookery.checkpoint
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rookery.checkpoint.checkpointer import Checkpointer, latest_checkpoint, run_lock
from rookery.checkpoint.fetch import fetch, published_steps
from rookery.checkpoint.files import Checkpoint, write_atomically
from rookery.checkpoint.layout import checkpoint_steps
from rookery.checkpoint.publish import Publisher
from rookery.errors import TrainingError
from rookery.parallel.world import is_chief, on_chief
from rookery.storage.location import RemotePath
from rookery.train.config import TrainingConfig
from rookery.train.environment import describe_environment
from rookery.train.sinks import JsonLines, MetricSink, TensorBoard

logger = logging.getLogger(__name__)

_ENVIRONMENT = "environment.json"
# The disk is full, a quota is used up, a file is larger than it may be.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Run:
    """An open run: its checkpoint writer, its sinks, and the checkpoint to go on from (None for a new run).

    Of several processes the chief alone has sinks.
    """

    save_dir: Path
    config_yaml: str
    checkpointer: Checkpointer
    sinks: Sequence[MetricSink]
    resume_from: Checkpoint | None

    @contextmanager
    def recording(self, step: int) -> Iterator[None]:
        """Write what describes the run, and take metrics of the steps behind ``step``.

        Not before a step is taken: another configuration must not replace that of a finished run. Raises
        ``TrainingError`` where there is no room for any of it.
        """
        with _needs_room(self.save_dir), ExitStack() as stack:
            if is_chief():
                write_atomically(self.save_dir / "config.yaml", self.config_yaml)
                write_atomically(self.save_dir / _ENVIRONMENT, json.dumps(describe_environment(), indent=1) + "\n")
            for sink in self.sinks:
                sink.start(step)
                stack.callback(sink.close)
            yield


@contextmanager
def _needs_room(save_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise TrainingError(
            f"{error.filename or save_dir}: {error.strerror}; make room there and start again: training goes on from "
            "the newest checkpoint"
        ) from error


@contextmanager
def open_run(config: TrainingConfig, config_yaml: str) -> Iterator[Run]:
    """Take ``config.save_dir`` for this process, or these, and find its newest undamaged checkpoint.

    A run that ends in an error before anything is recorded leaves nothing behind. Raises ``UserError`` when another
    process trains there, ``DamagedCheckpoint`` when every checkpoint is damaged.
    """
    save_dir = config.save_dir
    with ExitStack() as stack:
        on_chief(lambda: stack.enter_context(_taken(save_dir)))
        newest = latest_checkpoint(save_dir)
        publisher = _publisher(config)
        if publisher is not None:
            on_chief(lambda: publisher.begin(None if newest is None else newest.step))
        yield Run(
            save_dir=save_dir,
            config_yaml=config_yaml,
            checkpointer=Checkpointer(
                save_dir,
                config.checkpoint_every_n,
                config.checkpoint_max_to_keep,
                asynchronous=config.checkpoint_async,
                publisher=publisher if is_chief() else None,
            ),
            sinks=_sinks(save_dir) if is_chief() else (),
            resume_from=newest,
        )


def go_on_from_published(config: TrainingConfig) -> None:
    """Where ``save_dir`` has no checkpoint, fetch the newest that ``publish`` has, and the best, if it has any.

    Raises ``UserError`` when another process trains there, ``DataError`` where the store refuses.
    """
    if config.publish is not None:
        on_chief(lambda: _fetch_published(config.save_dir, config.publish))


def publish_rest(config: TrainingConfig) -> None:
    """Upload what has changed of a run besides checkpoints since its last one. ``DataError`` where that fails."""
    publisher = _publisher(config)
    if publisher is not None:
        publisher.publish_files()


def _publisher(config: TrainingConfig) -> Publisher | None:
    if config.publish is None:
        return None
    return Publisher(config.save_dir, config.publish, config.checkpoint_max_to_keep)


def _fetch_published(save_dir: Path, url: RemotePath | None) -> None:
    if url is None or checkpoint_steps(save_dir):
        return
    steps = published_steps(url)
    if not steps:
        return
    with run_lock(save_dir):
        fetch(url, save_dir, "auto")  # the best one, if one is kept
        fetch(url, save_dir, "latest")
    logger.warning("%s has no checkpoint: going on from step %d of %s", save_dir, steps[-1], url)


def _sinks(save_dir: Path) -> Sequence[MetricSink]:
    return JsonLines(save_dir / "metrics.jsonl"), TensorBoard(save_dir / "tensorboard")


@contextmanager
def _taken(save_dir: Path) -> Iterator[None]:
    # Path.exists raises where it may not look; there, and where a file is in the way, the lock says what to do.
    absent = [folder for folder in (save_dir, *save_dir.parents) if not os.path.exists(folder)]  # noqa: PTH110
    found = list(save_dir.glob("*"))
    with run_lock(save_dir), _nothing_left_of_a_refusal(save_dir, absent, found):
        yield


@contextmanager
def _nothing_left_of_a_refusal(save_dir: Path, absent: Sequence[Path], found: Collection[Path]) -> Iterator[None]:
    """Where nothing was recorded, remove what is not of ``found``, and the folders of ``absent``, innermost first."""
    try:
        yield
    except BaseException:
        if not (save_dir / _ENVIRONMENT).exists():
            for new in set(save_dir.iterdir()).difference(found):
                shutil.rmtree(new) if new.is_dir() else new.unlink()
            for folder in absent:
                if any(folder.iterdir()):
                    break
                folder.rmdir()
        raise
