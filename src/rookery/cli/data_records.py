"""``rookery data convert-tfrecord`` and ``generate-reference``: files of records, read and made."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Group
from rich.table import Table

from rookery.cli.jobs import Job, expecting
from rookery.cli.output import JsonFlag, emit, progress_console
from rookery.errors import DataError, UserError
from rookery.storage.location import RemotePath, parse_location

if TYPE_CHECKING:
    from rookery.data.files_config import RecordsConfig
    from rookery.storage.location import Location


def register(group: typer.Typer) -> None:
    """Add the commands."""
    group.command("convert-tfrecord")(_convert)
    group.command("generate-reference")(_generate)


def _convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="TFRecords of tf.Example, plain or gzip: a file, a folder or a glob, by path or URL. With --end-date "
            "or --end-datetime the folder that has YYYY/MM/DD or YYYY/MM/DD/HH in it.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The folder of Parquet files to write.", show_default=False)],
    schema: Annotated[
        str | None,
        typer.Option(
            help="The segdense schema (JSON), by path or URL; left out, that of --config, or IN's segdense.json."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="A ranker's configuration, ours or one of the-algorithm-ml: train_data.records says how to read."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Replace one field of --config, as for the trainer."),
    ] = None,
    rename: Annotated[
        list[str] | None, typer.Option(metavar="OURS=THEIRS", help="Write the feature THEIRS as column OURS.")
    ] = None,
    mask_mantissa: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=BITS", help="Set the lowest BITS of 23 of the mantissa of each float to 0."),
    ] = None,
    end_date: Annotated[str | None, typer.Option(help="The last day, as in 2022/05/04.")] = None,
    days: Annotated[int, typer.Option(min=1, help="So many days, with --end-date.")] = 1,
    num_missing_days_tol: Annotated[int, typer.Option(min=0, help="So many days may have no files.")] = 0,
    end_datetime: Annotated[str | None, typer.Option(help="The last hour, as in 2022/05/04/23.")] = None,
    hours: Annotated[int, typer.Option(min=1, help="So many hours, with --end-datetime.")] = 1,
    num_missing_hours_tol: Annotated[int, typer.Option(min=0, help="So many hours may have no files.")] = 0,
    compression: Annotated[Literal["zstd", "none"], typer.Option(help="none is larger, and read faster.")] = "zstd",
    threads: Annotated[int | None, typer.Option(min=1, help="Files that are converted at a time.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is such a folder.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Convert TFRecords to Parquet; OUT appears when it is whole. Interrupted and started again, it goes on."""
    from rookery.data.record_convert import convert_records

    by_day = {"data_root": source, "end_date": end_date, "days": days, "num_missing_days_tol": num_missing_days_tol}
    by_hour = {
        "data_root": source,
        "end_datetime": end_datetime,
        "hours": hours,
        "num_missing_hours_tol": num_missing_hours_tol,
    }
    places = _places(source, None if end_date is None else by_day, None if end_datetime is None else by_hour)
    if config is None and overrides:
        raise UserError("--set names fields of a configuration; give it with --config")
    described = None if config is None else _configured(config, overrides or (), schema)
    records = _records(source, schema, described, rename or (), mask_mantissa or ())
    start = time.perf_counter()
    with progress_console.status("converting") as status:
        progress = _Progress(lambda done: status.update(f"converting: {done:,} records"))
        found = convert_records(
            places,
            records,
            out,
            compression=compression,
            num_threads=threads,
            overwrite=overwrite,
            notify=progress.add,
        )
    elapsed_s = time.perf_counter() - start
    result = {"path": out, "elapsed_s": round(elapsed_s, 3), **found.model_dump(include={"num_records", "files"})}
    emit(result, as_json, lambda: _render_conversion(result))


def _generate(
    out: Annotated[Path, typer.Argument(help="The folder to write.", show_default=False)],
    num_examples: Annotated[int, typer.Option(min=0, help="Records, in all files together.")] = 1_000,
    num_files: Annotated[int, typer.Option(min=1)] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same records.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is such a folder.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write random records with the features of 2022 that the reference's heavy ranker reads, and their schema."""
    import dataclasses

    from rookery.data.reference_records import write_reference

    written = write_reference(out, num_examples, num_files=num_files, seed=seed, overwrite=overwrite)
    result = dataclasses.asdict(written)
    emit(result, as_json, lambda: _render_reference(result))


def _configured(config: Path, overrides: Sequence[str], schema: str | None) -> RecordsConfig:
    """What a configuration says of the records that it trains on."""
    from rookery.ranker.from_reference import load_ranker_config

    quoted = json.dumps(schema)  # a file named 2024 is no number
    flags = [] if schema is None else [f"train_data.records.schema_path={quoted}"]
    with expecting(Job.RANKER, config, None):
        records = load_ranker_config(config, overrides, flags).train_data.records
    if records is None:
        raise UserError(f"--config {config}: has no train_data.records; name one that trains on records, or --schema")
    return records


def _records(
    source: str, schema: str | None, described: RecordsConfig | None, renames: Sequence[str], masks: Sequence[str]
) -> RecordsConfig:
    """How to read the records: as ``described``, and beyond it as the flags say."""
    from rookery.config.loader import parse_config
    from rookery.data.files_config import RecordsConfig

    bits = {
        name: _whole_number(f"--mask-mantissa {name}", text) for name, text in _pairs("--mask-mantissa", masks).items()
    }
    renamed = _pairs("--rename", renames)
    if described is not None:
        renamed = {**described.renamed_features, **renamed}
        bits = {**described.mask_mantissa_features, **bits}
        schema = str(described.schema_path)
    fields = {
        "schema_path": schema or _schema_beside(source),
        "renamed_features": renamed,
        "mask_mantissa_features": bits,
    }
    return parse_config(RecordsConfig, fields, "the command line")


def _schema_beside(source: str) -> str:
    """The schema in the folder IN, or in the folder of the files IN."""
    from rookery.data.reference_records import SCHEMA_FILE
    from rookery.storage.remote import is_object

    place = parse_location(source, "IN")
    is_bucket = isinstance(place, RemotePath) and "/" not in place.key
    for folder in (place,) if is_bucket else (place, place.parent):
        file = folder / SCHEMA_FILE
        if file.is_file() if isinstance(file, Path) else is_object(file):
            return str(file)
    raise UserError(
        f"{source}: has no {SCHEMA_FILE} beside its records; name their schema with --schema, or with --config the "
        "configuration that trains on them"
    )


def _places(source: str, by_day: dict[str, Any] | None, by_hour: dict[str, Any] | None) -> list[Location]:
    from rookery.config.loader import parse_config
    from rookery.data.dated_files import files_of_days, files_of_hours
    from rookery.data.files_config import ExplicitDateInputs, ExplicitDatetimeInputs
    from rookery.data.parquet import find_files
    from rookery.data.record_files import ENDINGS

    if by_day is not None and by_hour is not None:
        raise UserError("--end-date and --end-datetime exclude each other; give one of them")
    if by_day is not None:
        return files_of_days(parse_config(ExplicitDateInputs, by_day, "the command line"), ENDINGS)
    if by_hour is not None:
        return files_of_hours(parse_config(ExplicitDatetimeInputs, by_hour, "the command line"), ENDINGS)
    found = find_files(source, ENDINGS)
    if not found:
        raise DataError(f"{source}: no file of records there; name a file, a folder or a glob")
    return found


class _Progress:
    """Counts records from several threads."""

    def __init__(self, tell: Any) -> None:
        self._tell, self._done, self._lock = tell, 0, threading.Lock()

    def add(self, num_records: int) -> None:
        with self._lock:
            self._done += num_records
            self._tell(self._done)


def _pairs(flag: str, given: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for each in given:
        name, sign, value = each.partition("=")
        if not (name and sign and value):
            raise UserError(f"{flag} {each}: must be two names with = between them")
        pairs[name] = value
    return pairs


def _whole_number(flag: str, text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"{flag}={text}: must be a whole number from 0 to 23")
    return int(text)


def _render_conversion(result: dict[str, Any]) -> Group:
    table = Table("file", "records", "parts")
    for file in result["files"]:
        table.add_row(file["source"], f"{file['num_records']:,}", ", ".join(file["parts"]))
    return Group(table, f"{result['num_records']:,} records in {result['elapsed_s']:.1f} s: {result['path']}")


def _render_reference(result: dict[str, Any]) -> Group:
    first, *others = result["files"]
    more = f" and {len(others)} more" if others else ""
    records = f"{result['num_examples']:,} records: {result['path'] / first}{more}"
    return Group(records, f"their schema: {result['path'] / result['schema']}")
