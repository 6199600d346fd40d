"""Files that lie in a folder for each day or hour, some of which may be missing."""

from __future__ import annotations

from collections.abc import Sequence

from rookery.data.files_config import ExplicitDateInputs, ExplicitDatetimeInputs
from rookery.data.parquet import find_files
from rookery.data.warn_once import warn_once
from rookery.errors import DataError
from rookery.storage.location import Location

_MOST_NAMED = 20


def files_of_days(inputs: ExplicitDateInputs, endings: tuple[str, ...]) -> list[Location]:
    """The files with these endings, day by day, sorted within each.

    Raises ``DataError`` naming the days without one, if these are more than may be missing, or all.
    """
    missing_allowed = ("explicit_date_inputs", "num_missing_days_tol", inputs.num_missing_days_tol)
    return _files(inputs.data_root, inputs.folders, missing_allowed, endings)


def files_of_hours(inputs: ExplicitDatetimeInputs, endings: tuple[str, ...]) -> list[Location]:
    """As ``files_of_days``, hour by hour."""
    missing_allowed = ("explicit_datetime_inputs", "num_missing_hours_tol", inputs.num_missing_hours_tol)
    return _files(inputs.data_root, inputs.folders, missing_allowed, endings)


def _files(
    root: str, folders: Sequence[str], missing_allowed: tuple[str, str, int], endings: tuple[str, ...]
) -> list[Location]:
    section, field, tolerance = missing_allowed
    files: list[Location] = []
    missing: list[str] = []
    for folder in folders:
        found = find_files(f"{root.rstrip('/')}/{folder}", endings)
        files += found
        if not found:
            missing.append(folder)
    if not missing:
        return files
    named = ", ".join(missing[:_MOST_NAMED])
    more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
    problem = f"{section}: {root}: no files ({', '.join(endings)}) for {len(missing)} of {len(folders)}: {named}{more}"
    if len(missing) > tolerance or not files:
        raise DataError(f"{problem}; bring them, correct the dates, or raise {field} (now {tolerance})")
    warn_once(f"{problem}; {field} lets {tolerance} be missing")
    return files
