"""Arguments and flags of the commands that read a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from rookery.errors import UserError

RunArgument: TypeAlias = Annotated[Path, typer.Argument(help="A training run (its save_dir).", show_default=False)]
CheckpointFlag: TypeAlias = Annotated[
    str, typer.Option(help="auto (the best one if it is kept, else the latest), best, latest, or a step.")
]
OverwriteFlag: TypeAlias = Annotated[
    bool, typer.Option("--overwrite", help="Replace an earlier result of the same kind.")
]


def parse_checkpoint(text: str) -> Literal["auto", "latest", "best"] | int:
    """What ``--checkpoint`` names. Raises ``UserError``."""
    match text:
        case "auto" | "latest" | "best":
            return text
        case _ if text.isdecimal():
            return int(text)
    raise UserError(f"--checkpoint {text}: must be auto, best, latest or a step number")
