"""The one way from a YAML file to a validated configuration, and back.

File → ``${VARIABLES}`` → translation, if it is in another schema → overrides → validation. Whatever is wrong is
reported at once, a line each, as ``file:line: path.to.field=value: what is wrong; remedy``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from rookery.config.base import StrictModel
from rookery.config.document import Document, KeyPath, Problem, dump_document, read_document
from rookery.config.overrides import (
    apply_overrides,
    escape_environment,
    expand_environment,
    member,
    mentions,
    set_member,
)
from rookery.config.problems import describe, explain
from rookery.config.translation import OtherSchema, Translation
from rookery.errors import ConfigError

T = TypeVar("T", bound=StrictModel)

logger = logging.getLogger(__name__)


@dataclass
class ConfigFile:
    """A file as plain data in our schema: expanded, but for variables that are ``unset``, and not yet overridden.

    ``translation`` is that of a file in another schema.
    """

    path: Path
    document: Document
    data: dict[str, Any]
    unset: frozenset[str]
    translation: Translation | None = None

    def line(self, path: KeyPath) -> int | None:
        """The line of a field of ours, or of the nearest one around it."""
        lines = self.document.lines
        if self.translation is not None:
            return self.translation.line(path, lines)
        prefixes = (path[:length] for length in range(len(path), 0, -1))
        return next((lines[prefix] for prefix in prefixes if prefix in lines), None)

    def unset_variables(self) -> list[Problem]:
        """The fields that still name a variable which is not set; those of one text are one problem."""
        fields: dict[tuple[str, str], list[KeyPath]] = {}
        for path, name in mentions(self.data, self.unset):
            fields.setdefault((name, member(self.data, path)), []).append(path)
        problems = []
        for (name, text), (first, *others) in fields.items():
            instead = "write $$ for a dollar sign"
            if self.translation is not None:
                instead = f"replace the field with --set {'.'.join(map(str, first))}=VALUE"
            more = f" (so in {len(others)} more fields)" if others else ""
            message = f"the environment variable {name!r} is not set{more}; set it, or {instead}"
            problems.append(Problem(first, message, text))
        return problems

    def complete(self) -> None:
        """Add what the file leaves to be read elsewhere, once all overrides are applied. Raises ``ConfigError``."""
        if self.translation is None:
            return
        try:
            found = self.translation.missing(self.data)
        except ConfigError as error:
            raise ConfigError(f"{self.path}: {error}") from error
        for path, value in found:
            set_member(self.data, path, value)


def read_config_file(path: Path, other: OtherSchema | None = None, *, expand: bool = True) -> ConfigFile:
    """Read and, if it is in the ``other`` schema, translate. Raises ``ConfigError`` for what is not that schema."""
    document = read_document(path)
    data = {} if document.data is None else document.data
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must be a mapping of fields to values, not {data!r}")
    unset: set[str] = set()
    if expand:
        data = expand_environment(data, unset)
    file = ConfigFile(path, document, data, frozenset(unset))
    if other is None or not other.recognises(data):
        return file
    checked, problems = _validate(other.model, data)
    problems = [*document.problems, *problems, *([] if checked is None else other.problems(checked))]
    if problems or checked is None:
        raise ConfigError("\n".join(_lines(problems, file, set())))
    translation = other.translate(checked)
    return replace(file, data=translation.data, translation=translation)


def load_config(
    model: type[T],
    path: Path,
    overrides: Sequence[str] = (),
    flags: Sequence[str] = (),
    other: OtherSchema | None = None,
) -> T:
    """Read ``path``, expand the environment, apply ``overrides`` (``a.b.0.c=VALUE``) and validate as ``model``.

    ``flags`` are overrides that came by a flag of their own: what is amiss around them is not laid to ``--set``.
    A file in the ``other`` schema is translated first: overrides name our fields. What is different here is logged.
    Raises ``ConfigError`` with every problem, each with its line.
    """
    file = read_config_file(path, other)
    problems = [] if file.translation is not None else file.document.problems
    changed = apply_overrides(file.data, overrides, problems)
    apply_overrides(file.data, flags, problems)
    problems += file.unset_variables()
    if not problems:
        file.complete()
    spoiled = {problem.path for problem in problems}
    config, found = _validate(model, file.data)
    problems += [problem for problem in found if problem.path not in spoiled]
    if problems or config is None:
        raise ConfigError("\n".join(_lines(problems, file, changed)))
    if file.translation is not None and os.environ.get("RANK", "0") == "0":  # of several processes the first one tells
        for note in file.translation.notes:
            if not note.comment:
                logger.warning("%s: %s", path, note)
    return config


def parse_config(model: type[T], data: Mapping[str, Any], source: str) -> T:
    """Validate parsed data as ``model``; ``source`` names it in the ``ConfigError``."""
    config, problems = _validate(model, data)
    if config is None:
        raise ConfigError("\n".join(f"{source}: {describe(problem)}" for problem in problems))
    return config


def dump_config(config: StrictModel) -> str:
    """YAML that ``load_config`` reads back as an equal configuration; fields left at None are left out."""
    return dump_document(escape_environment(_prune(config, config.model_dump(mode="json"))))


def json_schema(model: type[StrictModel]) -> dict[str, Any]:
    """JSON Schema of the configuration, for editors."""
    return model.model_json_schema()


def _validate(model: type[T], data: Mapping[str, Any]) -> tuple[T | None, list[Problem]]:
    try:
        return model.model_validate(data), []
    except ValidationError as error:
        return None, [explain(model, data, details) for details in error.errors()]


def _lines(problems: Sequence[Problem], file: ConfigFile, changed: set[KeyPath]) -> list[str]:
    """A line each; of one mistake that anchors repeat (one line of the file, key, value and message) the first."""
    alike: dict[Any, list[str]] = {}
    for problem in problems:
        line = problem.line or file.line(problem.path)
        mistake = (line, problem.path[-1:], repr(problem.value), problem.message) if line else len(alike)
        alike.setdefault(mistake, []).append(_line(problem, file, changed))
    return [first + (f" (and so in {len(others)} more)" if others else "") for first, *others in alike.values()]


def _line(problem: Problem, file: ConfigFile, changed: set[KeyPath]) -> str:
    line = problem.line or file.line(problem.path)
    if _set_by(changed, problem.path, file):
        return f"--set: {describe(problem)}"
    return f"{file.path}:{line}: {describe(problem)}" if line else f"{file.path}: {describe(problem)}"


def _set_by(changed: set[KeyPath], path: KeyPath, file: ConfigFile) -> bool:
    """Whether an override, not the file, brought the value at ``path``."""
    inside = any(path[: len(override)] == override for override in changed)
    around = any(override[: len(path)] == path for override in changed)
    return inside or (around and bool(path) and path not in file.document.lines)


def _prune(value: Any, dumped: Any) -> Any:
    """Drop the members whose value and default are both None."""
    if isinstance(value, StrictModel):
        fields = type(value).model_fields
        kept = {name: getattr(value, name) for name in dumped}
        return {
            name: _prune(member, dumped[name])
            for name, member in kept.items()
            if member is not None or fields[name].is_required() or fields[name].default is not None
        }
    if isinstance(value, Mapping):
        return {key: _prune(member, plain) for member, (key, plain) in zip(value.values(), dumped.items(), strict=True)}
    if isinstance(value, (list, tuple)):
        return [_prune(member, plain) for member, plain in zip(value, dumped, strict=True)]
    return dumped
