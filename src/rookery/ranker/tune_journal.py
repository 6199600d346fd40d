"""The journal of a study, with a sum that tells a damaged one from one whose writer was killed.

STUDY/journal.jsonl       a JSON object a line, appended by Optuna
STUDY/journal.sum.json    {"bytes": n, "crc32": "0123abcd"} of its first n bytes, written behind each append

What was cut off or changed within the n bytes is damage. Behind them may be lines of an append whose sum was not
written any more, and half a line.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend

from rookery.checkpoint.files import write_atomically
from rookery.errors import DataError

_SUM = "journal.sum.json"
_REMEDY = "restore it from a backup, or name another folder with --study"


class SummedJournal(JournalFileBackend):
    """Optuna's journal in the hands of one process; an append is on disk, and in the sum, when it returns."""

    def __init__(self, path: Path) -> None:
        """Open a journal or begin one. Raises ``DataError`` with file and line for a damaged one, changing nothing."""
        self._path, self._sum_path = path, path.with_name(_SUM)
        content = path.read_bytes() if path.exists() else b""
        _require_undamaged(path, content, *_read_sum(self._sum_path))
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:  # half a line would spoil the one that follows
            write_atomically(path, whole.decode())
        self._num_bytes, self._crc = len(whole), zlib.crc32(whole)
        super().__init__(str(path))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        super().append_logs(logs)
        with self._path.open("rb") as journal:
            journal.seek(self._num_bytes)
            added = journal.read()
        self._num_bytes, self._crc = self._num_bytes + len(added), zlib.crc32(added, self._crc)
        write_atomically(self._sum_path, json.dumps({"bytes": self._num_bytes, "crc32": f"{self._crc:08x}"}))


def _read_sum(path: Path) -> tuple[int, int]:
    """Bytes and crc32; of nothing where no append came to its end."""
    if not path.exists():
        return 0, 0
    try:
        stored = json.loads(path.read_text())
        return int(stored["bytes"]), int(stored["crc32"], 16)
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{path}: not the sum that was written ({error}); restore it from a backup, or delete it if the journal "
            "beside it is whole"
        ) from error


def _require_undamaged(path: Path, content: bytes, num_bytes: int, crc: int) -> None:
    if len(content) < num_bytes:
        line = content.count(b"\n") + 1
        raise DataError(f"{path}: cut off in line {line}: {len(content):,} bytes of {num_bytes:,} are left; {_REMEDY}")
    lines = content.splitlines(keepends=True)
    for number, entry in enumerate(lines, 1):
        if entry.endswith(b"\n") and not _is_entry(entry):
            raise DataError(f"{path}: line {number} is not what was written; {_REMEDY}")
    if zlib.crc32(content[:num_bytes]) != crc:
        last = content[:num_bytes].count(b"\n")
        raise DataError(f"{path}: one of the lines 1 to {last} is not what was written; {_REMEDY}")


def _is_entry(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
