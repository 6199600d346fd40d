"""What every command shares: results on stdout, progress on stderr, errors as one line and an exit code."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from rich.console import Console, RenderableType

from rookery.errors import RookeryError

PIPED_WIDTH = 160
"""Columns of a table that goes to a file or a pipe."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""

progress_console = Console(stderr=True)
"""Where progress bars and notes go; stdout carries results alone."""

JsonFlag: TypeAlias = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")]


def emit(result: Mapping[str, Any], as_json: bool, render: Callable[[], RenderableType]) -> None:
    """Print ``result``: one JSON object on stdout if ``as_json``, else what ``render`` makes of it.

    Of several processes the first one prints. In JSON, numbers that are not finite become null, paths strings,
    enumerations their values.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    if as_json:
        sys.stdout.write(json.dumps(_json_value(result), ensure_ascii=False, allow_nan=False) + "\n")
        return
    console = Console()
    (console if console.is_terminal else Console(width=PIPED_WIDTH)).print(render())


def run_command(command: Callable[[], object]) -> int:
    """Run ``command`` and return the exit code; a ``RookeryError`` becomes ``error: <message>`` on stderr.

    Of several processes that end by the same error one prints it.
    Other exceptions are our own mistakes: they keep their traceback, and Python exits with 1.
    """
    try:
        command()
    except RookeryError as error:
        if not error.is_told_elsewhere:
            sys.stderr.write(f"{_named()}error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _named() -> str:
    """Of several processes, which one speaks."""
    return f"[rank {os.environ.get('RANK', '?')}] " if os.environ.get("WORLD_SIZE", "1") != "1" else ""


def _json_value(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _json_value(member) for key, member in value.items()}
    if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, str):
        return [_json_value(member) for member in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _json_value(dataclasses.asdict(value))
    if isinstance(value, enum.Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value
