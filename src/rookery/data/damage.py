"""Whether a file is at fault when it cannot be read, so that its rows may be left out, or this process."""

from __future__ import annotations

import errno

# Arrow gives what it cannot decode as an OSError without a number.
_ERRORS_OF_FILES = {None, errno.ENOENT, errno.EIO, errno.ESTALE}


def is_damage(error: Exception) -> bool:
    """Whether the file is at fault, not this process: it may be short of memory or of open files."""
    if isinstance(error, OSError):
        return error.errno in _ERRORS_OF_FILES
    return not isinstance(error, MemoryError)
