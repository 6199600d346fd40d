"""From a validation error to a sentence: field, value, what is wrong, remedy."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from rookery.config.base import StrictModel, members
from rookery.config.document import KeyPath, Problem
from rookery.config.suggest import did_you_mean

_MAX_VALUE_LENGTH = 80
_CHECK_FAILED = "Value error, "
"""What pydantic puts before the message of a ``ValueError``."""

_SCALARS = (bool, int, float, str)

_INTEGER = "must be an integer"
_NUMBER = "must be a number"
_SWITCH = "must be true or false"
_MAPPING = "must be a mapping of fields to values"
_SENTENCES = {
    "bool_parsing": _SWITCH,
    "bool_type": _SWITCH,
    "dict_type": _MAPPING,
    "finite_number": "must be a finite number",
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "greater_than_equal": "must be at least {ge}",
    "int_from_float": _INTEGER,
    "int_parsing": _INTEGER,
    "int_type": _INTEGER,
    "less_than_equal": "must be at most {le}",
    "model_type": _MAPPING,
    "string_type": "must be a string; put it in quotes",
    "too_short": "must have at least {min_length} item",
    "value_error": "{error}",
}


def describe(problem: Problem) -> str:
    """``path.to.field=value: message``."""
    path = problem.path[:-1] if problem.names_itself else problem.path
    dotted = ".".join(map(str, path))
    value = problem.value
    if isinstance(value, _SCALARS):
        dotted += f"={value}"[:_MAX_VALUE_LENGTH]
    return f"{dotted}: {problem.message}" if dotted else problem.message


def explain(model: type[StrictModel], data: Mapping[str, Any], details: ErrorDetails) -> Problem:
    """The problem behind one error that validating ``data`` as ``model`` gave."""
    kind = details["type"]
    path = _path_in(data, details["loc"], absent_leaf=kind == "missing")
    if kind == "missing":
        return Problem(path, "is missing; add it")
    if kind == "extra_forbidden":
        known = [name for owner in _models_at(model, path[:-1]) for name in owner.model_fields]
        return Problem(path, f"unknown key {path[-1]!r}; {did_you_mean(str(path[-1]), known)}", names_itself=True)
    return Problem(path, _sentence(details) + _remedy(model, path), details["input"])


def _path_in(data: Any, location: Sequence[str | int], absent_leaf: bool) -> KeyPath:
    """``location`` without the names of union members, which pydantic mixes in and ``data`` does not have."""
    path: KeyPath = ()
    for depth, key in enumerate(location):
        inside = key in data if isinstance(data, Mapping) else isinstance(data, Sequence) and isinstance(key, int)
        if inside:
            data = data[key]
            path = (*path, key)
        elif absent_leaf and depth == len(location) - 1:
            path = (*path, key)
    return path


def _sentence(details: ErrorDetails) -> str:
    template = _SENTENCES.get(details["type"])
    if template is not None:
        return template.format(**details.get("ctx", {}))
    return reason(details).replace("Input should", "must")


def reason(details: ErrorDetails) -> str:
    """pydantic's words for what is wrong, without the class of error that it puts before those of a check of ours."""
    return details["msg"].removeprefix(_CHECK_FAILED)


def _remedy(model: type[StrictModel], path: KeyPath) -> str:
    """What the field does when it is left out, where it may be."""
    for owner in _models_at(model, path[:-1]):
        if path and path[-1] in owner.model_fields:
            return _when_left_out(owner.model_fields[str(path[-1])])
    return ""


def _when_left_out(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    if field.default is None:
        return "; or leave it out"
    return f"; leave it out for the default, {field.default}" if isinstance(field.default, _SCALARS) else ""


def _models_at(model: type[StrictModel], path: KeyPath) -> list[type[StrictModel]]:
    """The models that the value at ``path`` may be an instance of."""
    annotations: list[Any] = [model]
    for key in path:
        annotations = [inner for annotation in annotations for inner in _inside(annotation, key)]
    return [annotation for annotation in annotations if _is_model(annotation)]


def _inside(annotation: Any, key: str | int) -> list[Any]:
    if _is_model(annotation):
        field = annotation.model_fields.get(key)
        return list(members(field.annotation)) if field else []
    arguments = typing.get_args(annotation)
    # A mapping's keys come first among its arguments; lists and tuples have item types alone.
    items = arguments[1:] if isinstance(key, str) else arguments
    return [member for item in items for member in members(item)]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, StrictModel)
