"""``rookery config``: what may stand in a configuration file, and one from elsewhere in our schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rookery.cli.jobs import Job, first_start_refusals, job_of, schema_of
from rookery.cli.run_flags import OverwriteFlag
from rookery.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the group ``config``."""
    group = typer.Typer(no_args_is_help=True, help="What may stand in a configuration file.")
    group.command("schema")(schema)
    group.command("convert")(convert)
    group.command("check")(check)
    app.add_typer(group, name="config")


def schema(job: Job) -> None:
    """Print the JSON Schema of a job's configuration, for editors and checkers."""
    from rookery.config.loader import json_schema

    typer.echo(json.dumps(json_schema(schema_of(job)[0]), indent=2, ensure_ascii=False))


def check(
    config: Annotated[Path, typer.Argument(help="The YAML file of a job.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Replace one field of the file.")
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option("--processes", metavar="N", min=1, help="Will N processes be able to begin a run of it?"),
    ] = None,
    per_machine: Annotated[
        int | None,
        typer.Option("--per-machine", metavar="N", min=1, help="Of the processes, those of a machine; else all."),
    ] = None,
) -> None:
    """Read CONFIG as its trainer would and say what it is of; exit with 2 where something in it is wrong.

    Its data are not looked at.
    """
    from rookery.config.loader import load_config
    from rookery.errors import ConfigError
    from rookery.tables.refusals import WorldShape

    job = job_of(config)
    model, other = schema_of(job)
    loaded = load_config(model, config, overrides or (), (), other)
    if processes is None and per_machine is not None:
        raise ConfigError(f"--per-machine={per_machine}: of how many in all? give --processes too")
    by = ""
    if processes is not None:
        if per_machine is not None and per_machine > processes:
            raise ConfigError(f"--per-machine={per_machine}: more than --processes={processes} in all")
        shape = WorldShape(processes, per_machine or processes)
        problems = first_start_refusals(loaded, shape)
        if problems:
            raise ConfigError("\n".join(f"{config}: {problem}" for problem in problems))
        by = f", for {processes} processes" if processes > 1 else ", for one process"
    typer.echo(f"{config}: a configuration for rookery {job.value} train{by}")


def convert(
    old: Annotated[Path, typer.Argument(help="A configuration of twitter/the-algorithm-ml.", show_default=False)],
    new: Annotated[Path, typer.Argument(help="The file to write.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Replace one field of the file to write."),
    ] = None,
    overwrite: OverwriteFlag = False,
) -> None:
    """Write OLD in our schema, with a comment at each field that means something else here."""
    from rookery.config.convert import converted
    from rookery.train.evaluations import require_writable, write_text

    remedy = "name another file"
    if new.exists() and not overwrite:
        raise UserError(f"{new}: exists already; name another file, or replace it with --overwrite")
    require_writable(new, remedy)
    model, other = schema_of(job_of(old))
    write_text(new, converted(model, other, old, overrides or ()), remedy)
