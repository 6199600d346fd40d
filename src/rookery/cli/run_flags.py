"""Arguments and flags of the commands that read a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import typer

from rookery.errors import UserError
from rookery.storage.location import Location, parse_location

RunArgument: TypeAlias = Annotated[
    str, typer.Argument(help="A training run: its save_dir, or the URL where it is published.", show_default=False)
]
CheckpointFlag: TypeAlias = Annotated[
    str, typer.Option(help="auto (the best one if it is kept, else the latest), best, latest, or a step.")
]
OverwriteFlag: TypeAlias = Annotated[
    bool, typer.Option("--overwrite", help="Replace an earlier result of the same kind.")
]
FollowFlag: TypeAlias = Annotated[
    bool, typer.Option("--follow", help="Measure each checkpoint of a run in training as it comes, once.")
]
TimeoutFlag: TypeAlias = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", min=0, help="How long --follow waits for a new checkpoint.")
]


def local_run(run: str, checkpoint: str = "auto") -> Path:
    """The folder of a run; of a URL the copy on this machine, with the checkpoint that ``--checkpoint`` names."""
    from rookery.checkpoint.fetch import local_copy

    return local_copy(parse_location(run, "RUN"), parse_checkpoint(checkpoint))


def followed_run(run: str, checkpoint: str) -> Location:
    """The run of ``--follow``. Raises ``UserError`` where one checkpoint is named."""
    if checkpoint != "auto":
        raise UserError(f"--checkpoint {checkpoint}: --follow measures every checkpoint; leave one of the two out")
    return parse_location(run, "RUN")


def parse_graph(graph: str | None) -> Location | None:
    """What ``--graph`` names. Raises ``UserError``."""
    return None if graph is None else parse_location(graph, "--graph")


def parse_checkpoint(text: str) -> Literal["auto", "latest", "best"] | int:
    """What ``--checkpoint`` names. Raises ``UserError``."""
    match text:
        case "auto" | "latest" | "best":
            return text
        case _ if text.isdecimal():
            return int(text)
    raise UserError(f"--checkpoint {text}: must be auto, best, latest or a step number")


def describe_followed(followed: Mapping[str, Any]) -> str:
    """How following a run ended, in a line."""
    reason = "its training is done" if followed["reason"] == "finished" else "no further checkpoint came in time"
    damaged = f", and {len(followed['damaged'])} damaged ones passed over" if followed["damaged"] else ""
    measured = f"{len(followed['evaluated'])} new checkpoints{damaged}"
    return f"{followed['run']}: measured on {followed['split']}: {measured}; {reason}"
