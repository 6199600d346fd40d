"""Where metrics go: a JSON line a log, and TensorBoard events."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Protocol

from rookery.checkpoint.files import write_atomically
from rookery.errors import DataError


class MetricSink(Protocol):
    """Takes metrics by step. ``start`` comes first and forgets what is later than the step that a run resumes at."""

    def start(self, step: int) -> None: ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """Appends ``{"step": 100, "loss": 0.4, …}`` to a file; a number that is not finite becomes null."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def start(self, step: int) -> None:
        """Raises ``DataError`` for a line that was damaged since it was written."""
        if self._path.exists():
            text = self._path.read_text(errors="surrogateescape")
            lines = text.splitlines(keepends=True)
            kept = "".join(line for number, line in enumerate(lines, 1) if self._belongs(line, number, step))
            if kept != text:
                write_atomically(self._path, kept)
        self._file = self._path.open("a")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        assert self._file is not None
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def flush(self) -> None:
        """Nothing waits: each line is handed to the system as it comes."""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _belongs(self, line: str, number: int, step: int) -> bool:
        """Whether a line is whole (a killed run may have left half a one) and not later than ``step``."""
        if not line.endswith("\n"):
            return False
        try:
            return int(json.loads(line)["step"]) <= step
        except (ValueError, LookupError, TypeError) as error:
            raise DataError(
                f"{self._path}: line {number} is no metrics of a step ({error}); remove it to go on without it, or "
                "restore the file"
            ) from error


class TensorBoard:
    """Event files that ``tensorboard --logdir RUN`` shows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def start(self, step: int) -> None:
        # Imported here: it takes a second, and only training needs it.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=step + 1 if step else None)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
