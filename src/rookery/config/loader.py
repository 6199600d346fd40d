"""The one way from a YAML file to a validated configuration, and back.

File → ``${VARIABLES}`` → overrides → validation. Whatever is wrong is reported at once, a line each, as
``file:line: path.to.field=value: what is wrong; remedy``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from rookery.config.base import StrictModel
from rookery.config.document import Document, KeyPath, Problem, dump_document, read_document
from rookery.config.overrides import apply_overrides, escape_environment, expand_environment
from rookery.config.problems import describe, explain
from rookery.errors import ConfigError

T = TypeVar("T", bound=StrictModel)


def load_config(model: type[T], path: Path, overrides: Sequence[str] = (), flags: Sequence[str] = ()) -> T:
    """Read ``path``, expand the environment, apply ``overrides`` (``a.b.0.c=VALUE``) and validate as ``model``.

    ``flags`` are overrides that came by a flag of their own: what is amiss around them is not laid to ``--set``.
    Raises ``ConfigError`` with every problem, each with its line.
    """
    document = read_document(path)
    data = {} if document.data is None else document.data
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must be a mapping of fields to values, not {data!r}")
    problems = document.problems
    data = expand_environment(data, (), problems)
    changed = apply_overrides(data, overrides, problems)
    apply_overrides(data, flags, problems)
    spoiled = {problem.path for problem in problems}
    config, found = _validate(model, data)
    problems += [problem for problem in found if problem.path not in spoiled]
    if problems or config is None:
        raise ConfigError("\n".join(_line(problem, path, document, changed) for problem in problems))
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


def _line(problem: Problem, path: Path, document: Document, changed: set[KeyPath]) -> str:
    if _set_by(changed, problem.path, document):
        return f"--set: {describe(problem)}"
    prefixes = (problem.path[:length] for length in range(len(problem.path), 0, -1))
    line = problem.line or next((document.lines[prefix] for prefix in prefixes if prefix in document.lines), None)
    return f"{path}:{line}: {describe(problem)}" if line else f"{path}: {describe(problem)}"


def _set_by(changed: set[KeyPath], path: KeyPath, document: Document) -> bool:
    """Whether an override, not the file, brought the value at ``path``."""
    inside = any(path[: len(override)] == override for override in changed)
    around = any(override[: len(path)] == path for override in changed)
    return inside or (around and bool(path) and path not in document.lines)


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
