"""The strict base of every configuration: unknown keys, wrong types and ambiguous choices are errors."""

from __future__ import annotations

import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Union

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator

# Two letters at least: C:/ is a path.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


@dataclass(frozen=True)
class OneOf:
    """A group of fields of which exactly one is given (``required``) or at most one; the others are absent or null."""

    fields: tuple[str, ...]
    required: bool


class StrictModel(BaseModel):
    """A frozen model that refuses unknown keys, NaN and infinity; ``one_of`` lists its groups of alternatives."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    one_of: ClassVar[tuple[OneOf, ...]] = ()

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """``True`` would silently become 1 in a number field."""
        if isinstance(value, bool) and info.field_name is not None:
            accepted = members(cls.model_fields[info.field_name].annotation)
            if bool not in accepted and (int in accepted or float in accepted):
                raise ValueError("must be a number, not a truth value")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _no_url_for_a_path(cls, value: Any, info: ValidationInfo) -> Any:
        """``s3://BUCKET/RUN`` would become the folder ``s3:`` here. A flag that is a path has lost one ``/`` of it."""
        if isinstance(value, (str, Path)) and _URL.match(str(value)) and info.field_name is not None:
            accepted = set(members(cls.model_fields[info.field_name].annotation))
            if accepted <= {Path, type(None)}:
                raise ValueError(
                    "must be a path of this machine, not a URL; docs/object-stores.md has the fields that take one"
                )
        return value

    @model_validator(mode="after")
    def _alternatives_are_clear(self) -> StrictModel:
        for group in self.one_of:
            given = [name for name in group.fields if getattr(self, name) is not None]
            if len(given) > 1:
                raise ValueError(
                    f"{', '.join(given)} exclude each other; keep one and remove the rest or set it to null"
                )
            if group.required and not given:
                raise ValueError(f"needs exactly one of {', '.join(group.fields)}")
        return self


def members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of an annotation: ``int | None`` gives ``(int, NoneType)``; ``Annotated`` is unwrapped."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return members(typing.get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return tuple(member for arg in typing.get_args(annotation) for member in members(arg))
    return (annotation,)
