"""The flags of ``rookery twhin ingest`` as the same configuration that a mapping file gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rookery.errors import ConfigError

if TYPE_CHECKING:
    from rookery.data.ingest_config import IngestConfig

MAPPING = "ingest.yaml"
"""The mapping that is found in a folder of edges."""


@dataclass(frozen=True)
class Flags:
    """What was passed, by flag; None and empty lists were not."""

    files: Mapping[str, Sequence[str]]  # by split
    columns: Mapping[str, str | None]  # by role
    shape: Mapping[str, str | bool | None]
    types: Mapping[str, Sequence[str]]
    splits: Mapping[str, str | None]
    rest: Mapping[str, str | int | None]

    def changes(self) -> dict[str, Any]:
        """What may also stand beside a mapping: how to split, duplicates, seed."""
        rules = {
            flag.replace("-", "_"): _RULES[flag](flag, text) for flag, text in self.splits.items() if text is not None
        }
        rules = {flag.removesuffix("_split"): rule for flag, rule in rules.items()}
        return _passed({"split": rules, **self.rest})

    def of_files(self) -> dict[str, Any]:
        """What the files hold: a mapping says that itself."""
        columns = {f"{role}-column": column for role, column in self.columns.items()}
        held_out = {split: self.files[split] for split in ("valid", "test")}
        return _passed({**self.types, **columns, **self.shape, **held_out})


def read_flags(flags: Flags) -> tuple[IngestConfig, Path]:
    """The configuration and the folder that its relative paths start at. Raises ``ConfigError``."""
    mapping = _mapping_of(flags.files["train"])
    if mapping is None:
        return _config_of_flags(flags), Path()
    for flag in flags.of_files():
        raise ConfigError(f"--{flag.replace('_', '-')}: {mapping} says what the files hold; change it there")
    return _changed(mapping, flags.changes()), mapping.parent


def _passed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None and value not in ({}, [])}


def _pair(flag: str, text: str, convert: Callable[[str], Any]) -> dict[str, Any]:
    """``VALID,TEST``; either may be empty."""
    parts = text.split(",")
    if len(parts) != 2:
        raise ConfigError(f"--{flag} {text}: must be VALID,TEST with one comma; leave a side empty to hold nothing out")
    try:
        return {split: convert(part) for split, part in zip(("valid", "test"), parts, strict=True) if part.strip()}
    except ValueError as error:
        raise ConfigError(f"--{flag} {text}: must be two numbers, VALID,TEST") from error


def _fractions(flag: str, text: str) -> dict[str, Any]:
    return _pair(flag, text, float)


def _counts(flag: str, text: str) -> dict[str, Any]:
    return _pair(flag, text, int)


def _fractions_or_times(flag: str, text: str) -> dict[str, Any]:
    """Numbers below 1 are fractions; anything else is where the splits begin."""
    pair = _pair(flag, text, str)
    try:
        fractions = {split: float(part) for split, part in pair.items()}
    except ValueError:
        fractions = {}
    if fractions and all(0 <= fraction < 1 for fraction in fractions.values()):
        return fractions
    return {f"{split}_from": part for split, part in pair.items()}


_RULES = {"random-split": _fractions, "time-split": _fractions_or_times, "leave-k-out": _counts}


def _mapping_of(edges: Sequence[str]) -> Path | None:
    """The mapping file that ``edges`` name, if they do."""
    paths = [Path(text) for text in edges]
    mappings = [path for path in paths if path.suffix in (".yaml", ".yml") or (path / MAPPING).is_file()]
    if not mappings:
        return None
    if len(paths) > 1:
        raise ConfigError(f"{mappings[0]}: a mapping stands alone; list the other files under its sources")
    return mappings[0] / MAPPING if mappings[0].is_dir() else mappings[0]


def _changed(mapping: Path, changes: Mapping[str, Any]) -> IngestConfig:
    from rookery.config.loader import load_config, parse_config
    from rookery.data.ingest_config import IngestConfig

    config = load_config(IngestConfig, mapping)
    return parse_config(IngestConfig, {**config.model_dump(), **changes}, "command line") if changes else config


def _config_of_flags(flags: Flags) -> IngestConfig:
    from rookery.config.loader import parse_config
    from rookery.data.ingest_config import IngestConfig

    columns = {role: int(column) if column.isdecimal() else column for role, column in flags.columns.items() if column}
    shape = _passed({**flags.shape, "columns": columns})
    sources = [{"split": split, **_file(text), **shape} for split, texts in flags.files.items() for text in texts]
    relations = [_relation(text) for text in flags.types["relation"]]
    entity_types = _entity_types(flags, relations)
    data = {"sources": sources, "relations": relations, "entity_types": entity_types, **flags.changes()}
    return parse_config(IngestConfig, data, "command line")


def _file(text: str) -> dict[str, str]:
    """``RELATION=PATH``, unless a file has this very name."""
    relation, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        return {"files": text}
    return {"files": path, "relation": relation}


def _relation(text: str) -> dict[str, str]:
    """``NAME:LHS:RHS``; the name may have colons itself."""
    parts = text.rsplit(":", 2)
    if len(parts) != 3 or not all(parts):
        raise ConfigError(f"--relation {text}: must be NAME:LHS:RHS, as in follow:user:user")
    return dict(zip(("name", "lhs", "rhs"), parts, strict=True))


def _entity_types(flags: Flags, relations: Sequence[Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """Every entity type that is named with what --id-type and --num-entities say of it; {} if they say nothing."""
    from rookery.data.ingest_config import DEFAULT_ENTITY_TYPE

    named = dict.fromkeys(side for relation in relations for side in (relation["lhs"], relation["rhs"]))
    entity_types: dict[str, dict[str, str]] = {name: {} for name in named or (DEFAULT_ENTITY_TYPE,)}
    for text in flags.types["id_type"]:
        name, equals, value = text.rpartition("=")
        for target in [name] if equals else list(entity_types):
            entity_types.setdefault(target, {})["id_type"] = value
    for text in flags.types["num_entities"]:
        name, equals, value = text.rpartition("=")
        if not equals and len(entity_types) > 1:
            raise ConfigError(f"--num-entities {text}: of which type? write {next(iter(entity_types))}={text}")
        entity_types.setdefault(name or next(iter(entity_types)), {})["num_entities"] = value
    return entity_types if flags.types["id_type"] or flags.types["num_entities"] else {}
