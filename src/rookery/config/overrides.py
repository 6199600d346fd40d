"""Changes to parsed configuration data before validation: ``${VARIABLES}`` and ``a.b.0.c=VALUE``."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from rookery.config.document import KeyPath, Problem, parse_value
from rookery.config.suggest import did_you_mean
from rookery.errors import ConfigError

_VARIABLE = re.compile(r"\$(?:\$|\{([^}]*)\})")


def expand_environment(data: Any, path: KeyPath, problems: list[Problem]) -> Any:
    """``data`` with ``${NAME}`` in its strings replaced from the environment and ``$$`` by a dollar sign.

    An unset variable is added to ``problems`` and left as it stands.
    """
    if isinstance(data, dict):
        return {key: expand_environment(value, (*path, key), problems) for key, value in data.items()}
    if isinstance(data, list):
        return [expand_environment(value, (*path, i), problems) for i, value in enumerate(data)]
    if not isinstance(data, str):
        return data

    def replacement(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return "$"
        if name not in os.environ:
            message = f"the environment variable {name!r} is not set; set it, or write $$ for a dollar sign"
            problems.append(Problem(path, message, data))
            return match[0]
        return os.environ[name]

    return _VARIABLE.sub(replacement, data)


def escape_environment(data: Any) -> Any:
    """The inverse of ``expand_environment``: every dollar sign doubled."""
    if isinstance(data, dict):
        return {key: escape_environment(value) for key, value in data.items()}
    if isinstance(data, list):
        return [escape_environment(value) for value in data]
    return data.replace("$", "$$") if isinstance(data, str) else data


def apply_overrides(data: dict[str, Any], overrides: Sequence[str], problems: list[Problem]) -> set[KeyPath]:
    """Set each ``path=VALUE`` in ``data`` (in place) and return the paths that were set.

    A list item is addressed by its index or, when it has one, by its ``name``; keys that the file leaves out
    are created.
    """
    changed: set[KeyPath] = set()
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if not equals or not dotted:
            problems.append(Problem((), f"override {override!r} must read path.to.field=VALUE"))
            continue
        try:
            changed.add(_set(data, dotted.split("."), parse_value(text)))
        except ConfigError as error:
            problems.append(Problem((), f"override {override!r}: {error}"))
    return changed


def _set(data: dict[str, Any], keys: list[str], value: Any) -> KeyPath:
    path: KeyPath = ()
    container: Any = data
    for depth, key in enumerate(keys):
        step = _step(container, key, ".".join(keys[:depth]))
        path = (*path, step)
        if depth == len(keys) - 1:
            container[step] = value
        elif isinstance(container, dict) and container.get(key) is None:
            container[key] = {}
        container = container[step]
    return path


def _step(container: Any, key: str, where: str) -> str | int:
    """The key or index that ``key`` means inside ``container``."""
    if isinstance(container, dict):
        return key
    if not isinstance(container, list):
        raise ConfigError(f"{where} holds {container!r}, which has no members; set {where} itself")
    if re.fullmatch(r"[0-9]+", key) and int(key) < len(container):
        return int(key)
    names = [str(item["name"]) if isinstance(item, dict) and "name" in item else None for item in container]
    if key in names:
        return names.index(key)
    known = [name for name in names if name is not None] or [str(i) for i in range(len(container))]
    raise ConfigError(f"{where} has no item {key!r}; {did_you_mean(key, known)}")
