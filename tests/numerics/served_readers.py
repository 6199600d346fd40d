"""``rookery reader`` in processes of their own, for training jobs to read from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from forked_commands import Command, end, start_commands, wait_for
from ranks import free_port
from training_jobs import Job


class Reader:
    """A reader of a job, which may be killed and started again at its address."""

    def __init__(self, job: Job, *arguments: object) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._job, self._arguments = job, ["reader", job.config, "--listen", self.address, *arguments]
        self.start()

    def start(self) -> None:
        self.command: Command = start_commands([*map(str, self._arguments)], self._job.new_streams())[0]

    def wait(self) -> None:
        """Return once it listens."""
        wait_for(lambda: "reading " in self.command.err.read_text(), [self.command])


@contextmanager
def reading(job: Job, *arguments: object, count: int = 1) -> Iterator[list[Reader]]:
    """Readers of a job's configuration, once they listen."""
    with starting(job, *arguments, count=count) as readers:
        for reader in readers:
            reader.wait()
        yield readers


@contextmanager
def starting(job: Job, *arguments: object, count: int = 1) -> Iterator[list[Reader]]:
    """Readers of a job's configuration, as they start."""
    readers = [Reader(job, *arguments) for _ in range(count)]
    try:
        yield readers
    finally:
        end([reader.command for reader in readers])


def settings(readers: Sequence[Reader], **fields: Any) -> dict[str, Any]:
    """What trainers are told of their readers; ``fields`` replace those of ``parallel.readers``."""
    given = {"addresses": [reader.address for reader in readers], "deadline_s": 10, "wait_s": 45, **fields}
    return {f"parallel__readers__{name}": value for name, value in given.items()}
