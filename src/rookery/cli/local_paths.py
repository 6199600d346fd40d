"""Paths of this machine on the command line: a URL in the place of one is refused before anything is done."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo

from rookery.errors import UserError

# As pathlib leaves it of PROTOCOL://REST.
_MANGLED = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(.*)", re.DOTALL)


def refuse_urls(app: typer.Typer) -> None:
    """Have every command of ``app`` raise ``UserError`` for a URL where it takes a path; ``file:///x`` is ``/x``.

    pathlib makes ``s3:/x`` of ``s3://x``, a folder that would be made here.
    """
    for command in _commands(app):
        assert command.callback is not None
        names = path_parameters(command.callback)
        if names:
            command.callback = _checked(command.callback, names)


def path_parameters(callback: Callable[..., Any]) -> dict[str, str]:
    """The parameters of a command that are paths of this machine, as ``Path`` says; each as the user names it."""
    hints = get_type_hints(callback, include_extras=True)
    return {name: _shown(name, hints[name]) for name in signature(callback).parameters if _is_path(hints[name])}


def _commands(app: typer.Typer) -> Iterator[typer.models.CommandInfo]:
    yield from app.registered_commands
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from _commands(group.typer_instance)


def _checked(callback: Callable[..., Any], names: Mapping[str, str]) -> Callable[..., Any]:
    @functools.wraps(callback)
    def checked(**arguments: Any) -> Any:
        local = {name: _local(arguments[name], shown) for name, shown in names.items()}
        return callback(**{**arguments, **local})

    return checked


def _local(value: Path | list[Path] | None, shown: str) -> Path | list[Path] | None:
    if value is None:
        return None
    if isinstance(value, list):
        return [_one_local(each, shown) for each in value]
    return _one_local(value, shown)


def _one_local(path: Path, shown: str) -> Path:
    url = _MANGLED.fullmatch(str(path))
    if url is None:
        return path
    if url[1].lower() == "file":
        return Path("/", url[2])
    raise UserError(
        f"{shown} {url[1]}://{url[2]}: must be a path of this machine, not a URL; what is written there can be copied "
        "to the store behind it, what is read there before it"
    )


def _is_path(hint: Any) -> bool:
    """``Path``, or something made of it."""
    if get_origin(hint) is Annotated:
        return _is_path(get_args(hint)[0])
    return hint is Path or any(_is_path(part) for part in get_args(hint))


def _shown(name: str, hint: Any) -> str:
    """``--flag``, or the name of an argument in capitals."""
    for info in get_args(hint)[1:]:
        if isinstance(info, ArgumentInfo):
            return info.metavar or name.upper()
    return f"--{name.replace('_', '-')}"
