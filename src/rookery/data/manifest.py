"""Reading the JSON file that says what a folder is."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from rookery.config.problems import reason
from rookery.errors import DataError

M = TypeVar("M", bound=BaseModel)

_SCALARS = (bool, int, float, str)
_MAX_SHOWN = 80


def read_manifest(model: type[M], file: Path, *, kind: str, absent: str, remedy: str) -> M:
    """``file`` as ``model``. ``kind`` is what it should be of, ``absent`` what to do where it cannot be read.

    Raises ``DataError`` naming the file, and the first field that is wrong, for what is no JSON, no UTF-8, or lacks
    something.
    """
    try:
        return model.model_validate_json(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or 'cannot be read'}; {absent}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        value = f"={first['input']!r}"[:_MAX_SHOWN] if first["loc"] and isinstance(first["input"], _SCALARS) else ""
        raise DataError(f"{file}: {field}{value}: {reason(first)}; not {kind}: {remedy}") from error
