"""``rookery ranker score``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from rookery.cli.output import JsonFlag, emit, progress_console
from rookery.cli.run_flags import CheckpointFlag, OverwriteFlag, RunArgument, local_run, parse_checkpoint


def register(app: typer.Typer) -> None:
    """Add the command to the group ``ranker``."""
    app.command("score")(_score)


def _score(
    run: RunArgument,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN", help="Parquet rows: a file or a folder; labels are not needed.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The Parquet file to write.", show_default=False)],
    checkpoint: CheckpointFlag = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Rows that are scored together.")] = 4096,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Write the calibrated probability of each task and the weighted score of every row of IN to OUT, in its order."""
    from rookery.ranker.run import load_run
    from rookery.ranker.score import score_file
    from rookery.train.runtime import prepare_runtime

    loaded = load_run(local_run(run, checkpoint), parse_checkpoint(checkpoint))
    prepare_runtime(loaded.config.runtime)
    start = time.perf_counter()
    with progress_console.status("scoring") as status:
        scored = score_file(
            loaded,
            source,
            out,
            batch_size=batch_size,
            overwrite=overwrite,
            notify=lambda num_rows: status.update(f"scoring: {num_rows:,} rows"),
        )
    elapsed_s = time.perf_counter() - start
    result = {
        "run": run,
        "step": loaded.step,
        "out": scored.path,
        "num_rows": scored.num_rows,
        "columns": scored.columns,
        "elapsed_s": round(elapsed_s, 3),
        "rows_per_s": round(scored.num_rows / elapsed_s),
    }
    emit(result, as_json, lambda: _facts(result))


def _facts(result: dict[str, object]) -> Table:
    table = Table("", "", show_header=False)
    for name, value in result.items():
        shown = ", ".join(value) if isinstance(value, tuple) else f"{value:,}" if isinstance(value, int) else str(value)
        table.add_row(name, shown)
    return table
