"""A file in another schema, written in ours, with comments where a field changed its meaning."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from rookery.config.base import StrictModel
from rookery.config.document import KeyPath, dump_document, parse_document
from rookery.config.loader import ConfigFile, load_config, parse_config, read_config_file
from rookery.config.overrides import apply_overrides, escape_environment, expand_environment, set_member
from rookery.config.translation import Note, OtherSchema
from rookery.errors import ConfigError, RookeryError, UserError

T = TypeVar("T", bound=StrictModel)

_WIDTH = 110


def converted(model: type[T], other: OtherSchema, path: Path, overrides: Sequence[str] = ()) -> str:
    """YAML in the schema ``model`` of a file in the ``other`` one; variables of the environment stay as they stand.

    Raises ``ConfigError`` as ``load_config`` does, ``UserError`` for a file that is in our schema already.
    """
    if read_config_file(path, other).translation is None:
        raise UserError(f"{path}: is in Rookery's schema already, or in none that is known: nothing to convert")
    config = load_config(model, path, overrides, other=other)
    file = _unexpanded(path, other)
    apply_overrides(file.data, [override.replace("$", "$$") for override in overrides], [])
    assert file.translation is not None
    for place, value in file.translation.missing(expand_environment(file.data, set())):
        set_member(file.data, place, value)
    text = _commented(file.data, file.translation.notes, path)
    if parse_config(model, expand_environment(parse_document(text, str(path)).data, set()), str(path)) != config:
        raise RookeryError(f"{path}: its translation reads otherwise than it was written; please report it")
    return text


def _unexpanded(path: Path, other: OtherSchema) -> ConfigFile:
    """Where a variable stands for a number, the file can only be read with its value."""
    try:
        return read_config_file(path, other, expand=False)
    except ConfigError:
        file = read_config_file(path, other)
        file.data = escape_environment(file.data)
        return file


def _commented(data: dict[str, Any], notes: Sequence[Note], path: Path) -> str:
    text = dump_document(data)
    places = parse_document(text, str(path)).lines
    rows = text.splitlines()
    above: dict[int, list[str]] = {}
    for note in notes:
        number = _line(places, note.here)
        if number is not None:
            indent = " " * (len(rows[number - 1]) - len(rows[number - 1].lstrip()))
            above.setdefault(number, []).extend(_comment(str(note), indent))
    lost = [note for note in notes if _line(places, note.here) is None]
    head = [*_comment(f"Written by `rookery config convert` from {path.name}.", "")]
    if lost:
        head += ["#", "# Not taken over:"]
        head += [line for note in lost for line in _comment(str(note), "", "* ", "  ")]
    body = [line for number, row in enumerate(rows, 1) for line in (*above.get(number, ()), row)]
    return "\n".join([*head, "", *body]) + "\n"


def _line(places: dict[KeyPath, int], here: KeyPath) -> int | None:
    """The line of a field, or of what is around it."""
    return next((places[here[:length]] for length in range(len(here), 0, -1) if here[:length] in places), None)


def _comment(text: str, indent: str, first: str = "", rest: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=f"{indent}# {first}",
        subsequent_indent=f"{indent}# {rest}",
        break_long_words=False,
        break_on_hyphens=False,
    )
