"""``rookery config``: what may stand in a configuration file."""

from __future__ import annotations

import enum
import json
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rookery.config.base import StrictModel


class Job(enum.Enum):
    """A job that is described by a configuration file."""

    TWHIN = "twhin"


def register(app: typer.Typer) -> None:
    """Add the group ``config``."""
    group = typer.Typer(no_args_is_help=True, help="What may stand in a configuration file.")
    group.command("schema")(schema)
    app.add_typer(group, name="config")


def schema(job: Job) -> None:
    """Print the JSON Schema of a job's configuration, for editors and checkers."""
    from rookery.config.loader import json_schema

    typer.echo(json.dumps(json_schema(_model(job)), indent=2, ensure_ascii=False))


def _model(job: Job) -> type[StrictModel]:
    match job:
        case Job.TWHIN:
            from rookery.twhin.config import TwhinConfig

            return TwhinConfig
