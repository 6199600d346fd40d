"""Parts of a model that are larger than the memory there is: told by what the configuration calls them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from rookery.errors import ConfigError

_ASKED = re.compile(r"tried to allocate ([\d.]+) (bytes|[KMGT]iB)", re.IGNORECASE)
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_OVERFLOWN = re.compile(r"overflowed with sizes=\[(.*)\]")


@contextmanager
def fits_memory(what: str, remedy: str) -> Iterator[None]:
    """Raise ``ConfigError`` with ``what``, the size and ``remedy`` where torch finds no memory for a tensor.

    torch has no error of its own for it on the CPU: it is a ``RuntimeError`` that its words tell apart.
    """
    try:
        yield
    except RuntimeError as error:
        size = _size(str(error))
        if size is None:
            raise
        raise ConfigError(f"{what}: {size} does not fit in memory; {remedy}") from error


def _size(message: str) -> str | None:
    if found := _ASKED.search(message):
        num_bytes = int(float(found[1]) * _UNITS[found[2]])
        return f"a tensor of {num_bytes // 4:,} parameters ({num_bytes / 2**30:,.1f} GiB as float32)"
    if found := _OVERFLOWN.search(message):
        return f"a tensor of {' × '.join(found[1].split(', '))} parameters"
    return None
