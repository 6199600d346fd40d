"""Changes to parsed configuration data before validation: ``${VARIABLES}`` and ``a.b.0.c=VALUE``."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from rookery.config.document import KeyPath, Problem, parse_value
from rookery.config.suggest import did_you_mean
from rookery.errors import ConfigError

_VARIABLE = re.compile(r"\$(?:\$|\{([^}]*)\})")


def expand_environment(data: Any, unset: set[str]) -> Any:
    """``data`` with ``${NAME}`` in its strings replaced from the environment and ``$$`` by a dollar sign.

    A variable that is not set is added to ``unset`` and left as it stands.
    """
    if isinstance(data, dict):
        return {key: expand_environment(value, unset) for key, value in data.items()}
    if isinstance(data, list):
        return [expand_environment(value, unset) for value in data]
    if not isinstance(data, str):
        return data

    def replacement(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return "$"
        if name not in os.environ:
            unset.add(name)
            return match[0]
        return os.environ[name]

    return _VARIABLE.sub(replacement, data)


def mentions(data: Any, names: Collection[str], path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Where ``${NAME}`` with one of ``names`` stands in the strings of ``data``."""
    if isinstance(data, (dict, list)):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from mentions(value, names, (*path, key))
    elif isinstance(data, str):
        yield from ((path, name) for name in sorted(names) if f"${{{name}}}" in data)


def member(data: Any, path: KeyPath) -> Any:
    """What ``data`` has at ``path``."""
    for key in path:
        data = data[key]
    return data


def escape_environment(data: Any) -> Any:
    """The inverse of ``expand_environment``: every dollar sign doubled."""
    if isinstance(data, dict):
        return {key: escape_environment(value) for key, value in data.items()}
    if isinstance(data, list):
        return [escape_environment(value) for value in data]
    return data.replace("$", "$$") if isinstance(data, str) else data


def set_member(data: Any, path: KeyPath, value: Any) -> None:
    """Set what ``data`` has at ``path``; all but the last key are there."""
    member(data, path[:-1])[path[-1]] = value


def apply_overrides(data: dict[str, Any], overrides: Sequence[str], problems: list[Problem]) -> set[KeyPath]:
    """Set each ``path=VALUE`` in ``data`` (in place) and return the paths that were set.

    A list item is addressed by its index or, when it has one, by its ``name``; ``*`` is every member. Keys that the
    file leaves out are created; one that has dots is found where it is there.
    """
    changed: set[KeyPath] = set()
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if not equals or not dotted:
            problems.append(Problem((), f"override {override!r} must read path.to.field=VALUE"))
            continue
        try:
            changed |= _set(data, dotted.split("."), parse_value(text), ())
        except ConfigError as error:
            problems.append(Problem((), f"override {override!r}: {error}"))
    return changed


def _set(container: Any, keys: list[str], value: Any, path: KeyPath) -> set[KeyPath]:
    """Set what ``keys`` lead to inside of ``container``, which lies at ``path``."""
    changed: set[KeyPath] = set()
    for step, rest in _steps(container, keys, ".".join(map(str, path))):
        if not rest:
            container[step] = value
            changed.add((*path, step))
            continue
        if isinstance(container, dict) and container.get(step) is None:
            container[step] = {}
        changed |= _set(container[step], rest, value, (*path, step))
    return changed


def _steps(container: Any, keys: list[str], where: str) -> list[tuple[Any, list[str]]]:
    """The keys or indices that the first of ``keys`` means inside ``container``, each with the keys that are left."""
    first = keys[0]
    if isinstance(container, dict):
        if first == "*":
            return [(key, keys[1:]) for key in container]
        dotted = (length for length in range(len(keys), 1, -1) if ".".join(keys[:length]) in container)
        length = next(dotted, 1)
        return [(".".join(keys[:length]), keys[length:])]
    if not isinstance(container, list):
        raise ConfigError(f"{where} holds {container!r}, which has no members; set {where} itself")
    if first == "*":
        return [(index, keys[1:]) for index in range(len(container))]
    if re.fullmatch(r"[0-9]+", first) and int(first) < len(container):
        return [(int(first), keys[1:])]
    names = [str(item["name"]) if isinstance(item, dict) and "name" in item else None for item in container]
    for length in range(len(keys), 0, -1):
        if ".".join(keys[:length]) in names:
            return [(names.index(".".join(keys[:length])), keys[length:])]
    known = [name for name in names if name is not None] or [str(i) for i in range(len(container))]
    raise ConfigError(f"{where} has no item {first!r}; {did_you_mean(first, known)}")
