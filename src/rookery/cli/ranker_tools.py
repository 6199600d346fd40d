"""``rookery ranker export``, ``explain`` and ``tune``."""

from __future__ import annotations

import enum
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from rookery.cli.jobs import Job, expecting
from rookery.cli.output import INTERRUPTED, JsonFlag, emit, progress_console
from rookery.cli.run_flags import CheckpointFlag, OverwriteFlag, RunArgument, local_run, parse_checkpoint

if TYPE_CHECKING:
    from rookery.ranker.explain import Explanation
    from rookery.ranker.tune import StudyReport
    from rookery.ranker.tune_trials import TrialReport

_FEATURES_SHOWN = 40
_TASKS_SHOWN = 8


class Format(enum.Enum):
    """What an export is made of."""

    TORCH = "torch"
    ONNX = "onnx"


def register(app: typer.Typer) -> None:
    """Add the commands to the group ``ranker``."""
    app.command("export")(_export)
    app.command("explain")(_explain)
    app.command("tune")(_tune)


def _export(
    run: RunArgument,
    out: Annotated[Path, typer.Argument(help="The folder to write.", show_default=False)],
    form: Annotated[
        Format, typer.Option("--format", help="torch: weights and inputs, for Rookery; onnx: one graph, for anything.")
    ] = Format.TORCH,
    rows: Annotated[
        Path | None,
        typer.Option(
            help="A Parquet file whose rows prove the export; left out: the run's own validation rows.",
            show_default=False,
        ),
    ] = None,
    checkpoint: CheckpointFlag = "auto",
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Write RUN as a model that needs neither the run nor its data, proved to predict what the checkpoint predicts."""
    from rookery.ranker.export import export_run

    manifest = export_run(
        local_run(run, checkpoint), out, form.value, parse_checkpoint(checkpoint), rows=rows, overwrite=overwrite
    )
    assert manifest.proof is not None
    result = {
        "out": out,
        "format": manifest.format,
        "step": manifest.step,
        "tasks": manifest.task_names,
        "num_inputs": len(manifest.inputs),
        "opset": manifest.opset,
        "bytes": sum(int(entry["bytes"]) for entry in manifest.files.values()),
        "proof": manifest.proof.model_dump(),
    }
    emit(result, as_json, lambda: _facts({**result, "tasks": ", ".join(manifest.task_names)}))


def _explain(
    run: RunArgument,
    split: Annotated[str, typer.Option(help="A partition of validation_data.")] = "valid",
    rows: Annotated[int, typer.Option(min=2, help="How many of its rows, drawn at random.")] = 8192,
    repeats: Annotated[int, typer.Option(min=1, help="Permutations of each feature.")] = 3,
    checkpoint: CheckpointFlag = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Tell what RUN owes to each feature: how much worse it predicts when the feature's values change rows."""
    from rookery.ranker.explain import explain
    from rookery.ranker.run import load_run
    from rookery.train.runtime import prepare_runtime

    loaded = load_run(local_run(run, checkpoint), parse_checkpoint(checkpoint))
    prepare_runtime(loaded.config.runtime)
    start = time.perf_counter()
    explanation = explain(loaded, split, rows, repeats)
    elapsed = {"elapsed_s": round(time.perf_counter() - start, 3)}
    result = {"run": run, "step": loaded.step, **vars(explanation), **elapsed}
    emit(result, as_json, lambda: _importance_tables(explanation))


def _tune(
    config: Annotated[Path, typer.Argument(help="The configuration that is varied.", show_default=False)],
    space: Annotated[Path, typer.Option(help="The search space; see docs/ranker-tune.md.", show_default=False)],
    study: Annotated[Path, typer.Option(help="The folder of the study; one that exists goes on.", show_default=False)],
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, those of earlier starts counted.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """Search for the best values of fields of CONFIG; started again, the study goes on where it stopped."""
    from rookery.ranker.train import train_ranker
    from rookery.ranker.tune import tune
    from rookery.ranker.tune_space import TrialConfigs

    def tell(trial: TrialReport) -> None:
        progress_console.print(f"trial {trial.number}: {_outcome(trial)}", markup=False, highlight=False)

    with expecting(Job.RANKER, config, None):
        configs = TrialConfigs(config, space)
    report = tune(configs, study, trials, train_ranker, tell)
    emit(vars(report), as_json, lambda: _study_table(report))
    if report.signal == "SIGINT":
        raise typer.Exit(INTERRUPTED)


def _outcome(trial: TrialReport) -> str:
    value = "" if trial.value is None else f" with {trial.value:.5g} at step {trial.step:,}"
    return f"{trial.state}{value}{'' if trial.reason is None else f' ({trial.reason})'}"


def _facts(values: Mapping[str, Any]) -> Table:
    table = Table("", "", show_header=False)
    for name, value in values.items():
        if isinstance(value, Mapping):
            for inner, each in value.items():
                table.add_row(f"{name}.{inner}", str(each))
        elif value is not None:
            table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    return table


def _importance_tables(explanation: Explanation) -> Group:
    quality = Table("", "positives", "AUROC", "log-loss", title="The model as it is", title_justify="left")
    for task, found in explanation.quality.items():
        quality.add_row(task, f"{found.positives:,}", f"{found.auroc:.4f}", f"{found.logloss:.5f}")
    tasks = list(explanation.quality)[:_TASKS_SHOWN]
    title = (
        f"Permuted {explanation.num_repeats} times on {explanation.num_rows:,} rows of {explanation.split}: rise in "
        "log-loss over all tasks, drop in the AUROC of each"
    )
    features = Table(title=title, title_justify="left")
    for name in ("feature", "kind", "log-loss", *tasks):
        features.add_column(name, no_wrap=name in {"feature", "log-loss"})
    for feature in explanation.features[:_FEATURES_SHOWN]:
        rise = f"{feature.logloss_rise.mean:.5f} ± {feature.logloss_rise.deviation:.5f}"
        drops = (f"{feature.tasks[task].auroc_drop.mean:.4f}" for task in tasks)
        features.add_row(feature.name, feature.kind, rise, *drops)
    hidden_tasks = list(explanation.quality)[_TASKS_SHOWN:]
    hidden = [*_rest("features", explanation.features[_FEATURES_SHOWN:]), *_rest("tasks", hidden_tasks)]
    return Group(quality, features, *hidden)


def _rest(what: str, hidden: Sequence[object]) -> list[Text]:
    return [Text(f"… {len(hidden)} more {what} with --json")] if hidden else []


def _study_table(report: StudyReport) -> Group:
    fields = list(dict.fromkeys(field for trial in report.trials for field in trial.fields))
    title = f"{report.metric} ({report.mode})"
    table = Table("", "state", report.metric.rpartition("/")[2], "step", *fields, title=title, title_justify="left")
    for trial in report.trials:
        is_best = report.best is not None and trial.number == report.best.number
        table.add_row(
            f"{trial.number}",
            trial.state,
            "–" if trial.value is None else f"{trial.value:.5f}",
            "–" if trial.step is None else f"{trial.step:,}",
            *(_value(trial.fields[field]) if field in trial.fields else "–" for field in fields),
            style="bold" if is_best else None,
        )
    best = "no trial finished" if report.best is None else f"best: trial {report.best.number}, {report.best_config}"
    return Group(table, Text(best))


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
