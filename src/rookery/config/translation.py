"""Configurations in another project's schema: recognised, checked as that schema, and said in ours with notes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import Field
from pydantic.fields import FieldInfo

from rookery.config.base import StrictModel
from rookery.config.document import KeyPath, Problem


@dataclass(frozen=True)
class Note:
    """A field of the other schema that means something else here, or nothing; ``here`` is the field of ours that it
    is about, empty where there is none. A ``comment`` stands in a converted file alone; others are told as well.
    """

    fields: tuple[str, ...]
    text: str
    here: KeyPath = ()
    comment: bool = False

    def __str__(self) -> str:
        first, *others = self.fields
        listed = f" (and {', '.join(others)})" if others else ""
        return f"{first}{listed}: {self.text}"


@dataclass
class Translation:
    """What a configuration says in our schema.

    ``origins`` has for branches of ``data`` where they were in the other schema, for the lines of errors; what is not
    there kept its place. ``missing`` gives values that are to be read elsewhere, once all fields have theirs.
    """

    data: dict[str, Any]
    notes: list[Note] = field(default_factory=list)
    origins: dict[KeyPath, KeyPath] = field(default_factory=dict)
    missing: Callable[[Mapping[str, Any]], list[tuple[KeyPath, Any]]] = lambda data: []

    def line(self, path: KeyPath, lines: Mapping[KeyPath, int]) -> int | None:
        """The line of a field of ours, or of what is around it; ``lines`` are those of the other schema."""
        for length in range(len(path), 0, -1):
            here = path[:length]
            start = next((here[:end] for end in range(length, 0, -1) if here[:end] in self.origins), ())
            there = (*self.origins.get(start, ()), *here[len(start) :])
            if there in lines:
                return lines[there]
        return None


@dataclass(frozen=True)
class OtherSchema:
    """Another project's schema: ``model`` checks it, ``translate`` takes what was checked.

    ``problems`` has what does not fit together in it, where it stands there.
    """

    model: type[StrictModel]
    recognises: Callable[[Mapping[str, Any]], bool]
    translate: Callable[[Any], Translation]
    problems: Callable[[Any], list[Problem]] = lambda checked: []


def unused(reason: str, default: Any = None) -> Any:
    """A field that is accepted and has no effect; a value besides ``default`` is answered by ``reason``."""
    return Field(default=default, json_schema_extra={_UNUSED: reason})


_UNUSED = "unused"


def unused_notes(config: StrictModel) -> list[Note]:
    """A note for each ``unused`` field that has a value."""
    return merged(Note((path,), reason) for path, reason in _unused_fields(config, ""))


def merged(notes: Iterable[Note]) -> list[Note]:
    """Notes of one text as one, with all their fields, about the first field of ours."""
    alike: dict[str, list[Note]] = {}
    for note in notes:
        alike.setdefault(note.text, []).append(note)
    return [
        replace(same[0], fields=tuple(dict.fromkeys(name for note in same for name in note.fields)))
        for same in alike.values()
    ]


def _unused_fields(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, StrictModel):
        for name, info in type(value).model_fields.items():
            member, where = getattr(value, name), f"{path}.{name}" if path else name
            reason = _reason(info)
            if reason is None:
                yield from _unused_fields(member, where)
            elif member != info.default:
                yield where, reason
    elif isinstance(value, (Mapping, tuple)):
        for key, member in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _unused_fields(member, f"{path}.{key}")


def _reason(info: FieldInfo) -> str | None:
    extra = info.json_schema_extra
    return str(extra[_UNUSED]) if isinstance(extra, dict) and _UNUSED in extra else None
