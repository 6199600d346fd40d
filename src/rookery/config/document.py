"""YAML in and out: plain data plus the line of every key, so that an error can name it.

Scalars follow YAML 1.2 (``no`` and ``on`` are words, ``1e-3`` is a number, ``010`` is ten), with ``1_000``
accepted as an integer. A date stays a string.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from rookery.errors import ConfigError

KeyPath: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a configuration.

    ``value`` is shown when it is a scalar; ``names_itself``: the message names the last key of ``path``, which
    is then left out of the path that is shown.
    """

    path: KeyPath
    message: str
    value: Any = None
    line: int | None = None
    names_itself: bool = False


@dataclass
class Document:
    """Parsed YAML: the data, the line (from 1) of each key path, and what was wrong on the way."""

    data: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


_SCALARS = [
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("int", r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("merge", r"<<", "<"),
]

_MAX_VALUES = 100_000
"""So many values a document may have once its anchors are written out, some 300 bytes each: ten anchors that repeat one
another nine times would else be 9^9 values. A configuration of 13 partitions has a thousand."""

_CONTAINERS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class _TooManyValuesError(Exception):
    """Its text is the place and what to do."""


class _Loader(yaml.SafeLoader):
    """Builds scalars alone; mappings and sequences are walked by ``_build``."""

    num_values = 0
    """Built so far, those behind references again each time."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _construct_int(_: _Loader, node: yaml.ScalarNode) -> int:
    text = node.value.replace("_", "")
    return int(text, 0) if text.startswith(("0x", "0o")) else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}
    for _tag, _pattern, _first in _SCALARS:
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}",
            re.compile(rf"^(?:{_pattern})$"),
            [character.replace("\0", "") for character in _first],
        )


def read_document(path: Path) -> Document:
    """Parse a YAML file. Raises ``ConfigError`` when it cannot be read or is not YAML."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); name a YAML file") from error
    return parse_document(text, str(path))


def parse_document(text: str, source: str) -> Document:
    """Parse YAML text; ``source`` names it in the error."""
    document = Document()
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        document.data = None if node is None else _build(loader, node, (), document, ())
        return document
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{source}{line}: not valid YAML: {error.problem}") from error
    except _TooManyValuesError as error:
        raise ConfigError(f"{source}{error}") from error
    except (yaml.YAMLError, ValueError, ConfigError) as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from error


def parse_value(text: str) -> Any:
    """The value of an override, read by the same rules as the file."""
    return parse_document(text, "override").data


def dump_document(data: Any) -> str:
    """YAML text that ``parse_document`` reads back as ``data``; keys keep their order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _build(loader: _Loader, node: yaml.Node, path: KeyPath, document: Document, parents: tuple[yaml.Node, ...]) -> Any:
    if any(node is parent for parent in parents):
        raise ConfigError(f"line {node.start_mark.line + 1}: an anchor refers to itself; write the values out")
    if not isinstance(node, yaml.ScalarNode) and node.tag not in _CONTAINERS:
        raise ConfigError(f"line {node.start_mark.line + 1}: the tag {node.tag!r} is not supported; remove it")
    loader.num_values += 1
    if loader.num_values > _MAX_VALUES:
        section = f":{document.lines[path[:1]]}: with {path[0]!r} the file" if path else ": it"
        raise _TooManyValuesError(
            f"{section} has more than {_MAX_VALUES:,} values, those that anchors repeat counted each time; repeat "
            "fewer, or leave some out"
        )
    document.lines.setdefault(path, node.start_mark.line + 1)
    parents = (*parents, node)
    if isinstance(node, yaml.MappingNode):
        return _build_mapping(loader, node, path, document, parents)
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, item, (*path, i), document, parents) for i, item in enumerate(node.value)]
    return loader.construct_object(node)


def _build_mapping(
    loader: _Loader, node: yaml.MappingNode, path: KeyPath, document: Document, parents: tuple[yaml.Node, ...]
) -> dict[str, Any]:
    own: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if key_node.tag == "tag:yaml.org,2002:merge":
            merged = _merged(loader, value_node, path, document, parents) | merged
            continue
        key = str(loader.construct_object(key_node))
        here = (*path, key)
        if key in own:
            document.problems.append(Problem(here, "the key appears twice; remove one", line=line))
        document.lines[here] = line
        own[key] = _build(loader, value_node, here, document, parents)
    return merged | own


def _merged(
    loader: _Loader, node: yaml.Node, path: KeyPath, document: Document, parents: tuple[yaml.Node, ...]
) -> dict[str, Any]:
    """What ``<<: *anchor`` or ``<<: [*first, *second]`` brings; earlier ones win."""
    merged: dict[str, Any] = {}
    for item in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        if not isinstance(item, yaml.MappingNode):
            raise ConfigError(f"line {item.start_mark.line + 1}: '<<' needs a mapping to merge")
        merged = _build(loader, item, path, document, parents) | merged
    return merged
