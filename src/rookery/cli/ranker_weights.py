"""``rookery ranker import-weights`` and ``export-weights``."""

from __future__ import annotations

import typer

from rookery.cli.jobs import Job, expecting
from rookery.cli.output import JsonFlag, emit
from rookery.cli.run_flags import CheckpointFlag, OverwriteFlag, RunArgument, local_run, parse_checkpoint
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
    """Add the commands to the group ``ranker``."""
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
    from rookery.ranker.from_reference import load_ranker_config
    from rookery.ranker.reference_weights import import_weights

    with expecting(Job.RANKER, config, "import-weights"):
        loaded = load_ranker_config(config, overrides or (), save_dir_override(save_dir))
    taken = import_weights(loaded, weights, partial=partial)
    result = {"save_dir": loaded.training.save_dir, "step": 0, **vars(taken)}
    emit(result, as_json, lambda: show_taken(result))


def _export(
    run: RunArgument,
    out: OutArgument,
    checkpoint: CheckpointFlag = "auto",
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Write the weights of RUN under the names of twitter/the-algorithm-ml."""
    from rookery.ranker.reference_weights import export_weights

    step, num_tensors = export_weights(
        local_run(run, checkpoint), out, parse_checkpoint(checkpoint), overwrite=overwrite
    )
    result = {"out": out, "step": step, "num_tensors": num_tensors}
    emit(result, as_json, lambda: show_written(result))
