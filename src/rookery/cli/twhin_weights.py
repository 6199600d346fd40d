"""``rookery twhin import-weights`` and ``export-weights``."""

from __future__ import annotations

from typing import Annotated

import typer

from rookery.cli.jobs import Job, expecting
from rookery.cli.output import JsonFlag, emit
from rookery.cli.run_flags import (
    CheckpointFlag,
    OverwriteFlag,
    RunArgument,
    local_run,
    parse_checkpoint,
    parse_graph,
)
from rookery.cli.weights_flags import (
    ConfigArgument,
    OutArgument,
    OverridesFlag,
    PartialFlag,
    SaveDirFlag,
    WeightsArgument,
    save_dir_override,
    show_taken,
    show_written,
)


def register(app: typer.Typer) -> None:
    """Add the commands to the group ``twhin``."""
    app.command("import-weights")(_import)
    app.command("export-weights")(_export)


def _import(
    weights: WeightsArgument,
    config: ConfigArgument,
    save_dir: SaveDirFlag = None,
    overrides: OverridesFlag = None,
    partial: PartialFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a run at step 0 of WEIGHTS under the names of twitter/the-algorithm-ml; `train` goes on from it."""
    from rookery.twhin.from_reference import load_twhin_config
    from rookery.twhin.reference_weights import import_weights

    with expecting(Job.TWHIN, config, "import-weights"):
        loaded = load_twhin_config(config, overrides or (), save_dir_override(save_dir))
    taken = import_weights(loaded, weights, partial=partial)
    result = {"save_dir": loaded.training.save_dir, "step": 0, **vars(taken)}
    emit(result, as_json, lambda: show_taken(result))


def _export(
    run: RunArgument,
    out: OutArgument,
    checkpoint: CheckpointFlag = "auto",
    graph: Annotated[
        str | None, typer.Option(help="Where the run's graph lies now, if it has moved: a folder or a URL.")
    ] = None,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Write the tables and relations of RUN under the names of twitter/the-algorithm-ml."""
    from rookery.twhin.reference_weights import export_weights

    step, num_tensors = export_weights(
        local_run(run, checkpoint), out, parse_checkpoint(checkpoint), graph=parse_graph(graph), overwrite=overwrite
    )
    result = {"out": out, "step": step, "num_tensors": num_tensors}
    emit(result, as_json, lambda: show_written(result))
