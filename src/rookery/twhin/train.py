"""TwHIN's training: read the configuration, build, run. The loop is ``rookery.train.loop``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rookery.checkpoint.checkpointer import load_checkpoint
from rookery.checkpoint.layout import best_step, checkpoint_steps
from rookery.config.loader import dump_config, load_config
from rookery.data.graph import Graph
from rookery.errors import DataError, RunNotFound
from rookery.parallel.world import join_world, losses_told, on_all
from rookery.storage.location import Location
from rookery.tables.backends import describe_plan
from rookery.train.job import Job
from rookery.train.loop import TrainingResult, train
from rookery.train.plan import dense_bytes, show_plan, world_shape
from rookery.train.run import Run, go_on_from_published, open_run
from rookery.train.runtime import choose_device, prepare_runtime
from rookery.twhin.batch import TrainBatch
from rookery.twhin.build import build_job, build_model, check_backend, check_graph, table_specs
from rookery.twhin.config import TwhinConfig
from rookery.twhin.lineage import note_graph, require_same_edges, require_same_entities, require_same_model
from rookery.twhin.model import TwhinModel
from rookery.twhin.warm_start import pull_to_earlier, start_from_elsewhere


@losses_told()
def train_twhin(config: TwhinConfig, *, debug: bool = False) -> TrainingResult:
    """Train to the last step of the configuration, from the newest checkpoint of ``training.save_dir`` if there is one.

    Raises ``ConfigError`` or ``DataError`` before anything is written, ``TrainingError`` when the loss is not finite.
    """
    with opened_job(config, lambda model, graph: None) as (run, job):
        return train(job, run, config.training, config.runtime, debug=debug)


@contextmanager
def opened_job(
    config: TwhinConfig, fill: Callable[[TwhinModel, Graph | None], None]
) -> Iterator[tuple[Run, Job[TrainBatch]]]:
    """The run of a configuration with all that its next step needs; of a new run ``fill`` may set the rows.

    Raises ``ConfigError`` or ``DataError`` before anything is written.
    """
    join_world(choose_device(config.runtime.device), config.parallel.timeout_s)
    if config.graph is not None:  # the run directory is read from other working directories too
        config = config.model_copy(update={"graph": config.graph.resolve()})
    # Together: who refuses alone and leaves breaks off the others, who may still be meeting.
    graph = on_all(lambda: _checked_graph(config))
    device = on_all(lambda: prepare_runtime(config.runtime))
    save_dir = config.training.save_dir
    go_on_from_published(config.training)
    if checkpoint_steps(save_dir):
        on_all(lambda: require_same_model(save_dir, config))
        if graph is not None:
            require_same_edges(save_dir, graph)
    with open_run(config.training, dump_config(config)) as run:
        model = build_model(config, device)
        _show_plan(config, model)
        job = build_job(config, graph, model, device, run.resume_from)
        pull_to_earlier(config, graph, model)
        if run.resume_from is None:
            if graph is not None:
                note_graph(save_dir, graph)
            start_from_elsewhere(config, graph, model)
            fill(model, graph)
        with closing(job):
            yield run, job


def _checked_graph(config: TwhinConfig) -> Graph | None:
    """The graph of a configuration, of which back end and graph can do all."""
    check_backend(config)
    graph = None if config.graph is None else Graph.open(config.graph)
    if graph is not None:
        check_graph(config, graph)
    return graph


def _show_plan(config: TwhinConfig, model: TwhinModel) -> None:
    plans = describe_plan(config.model.embeddings.backend, table_specs(config), config.parallel.sharding, world_shape())
    show_plan(plans, dense_bytes(model))


@dataclass(frozen=True)
class LoadedRun:
    """A trained model, with the graph that its row numbers come from (None for a run on bare row numbers)."""

    model: TwhinModel
    graph: Graph | None
    config: TwhinConfig
    step: int


def load_run(
    run: Path, checkpoint: Literal["auto", "latest", "best"] | int = "auto", *, graph: Location | None = None
) -> LoadedRun:
    """Load a run for evaluation, export or retrieval; ``auto`` is the best checkpoint if one is kept, else the latest.

    ``graph`` is where the run's graph lies now, if it has moved. Raises ``RunNotFound`` when there is no such run or
    checkpoint, ``DataError`` when the graph is gone or its row numbers stand for other ids than in training.
    """
    path = run / "config.yaml"
    if not path.exists():
        raise RunNotFound(f"{run}: no config.yaml there; name the save_dir of a training run")
    config = load_config(TwhinConfig, path)
    if checkpoint == "auto":
        checkpoint = "latest" if best_step(run) is None else "best"
    stored = load_checkpoint(run, checkpoint)
    opened = open_graph(run, graph or config.graph)
    # Whatever back end it was trained with: rows are rows.
    model = build_model(config, choose_device(config.runtime.device), "local")
    model.load_tensors(stored.tensors("model"))
    return LoadedRun(model.eval(), opened, config, stored.step)


def open_graph(run: Path, path: Location | None) -> Graph | None:
    """The graph of a run at ``path``; ``DataError`` where it is gone or its rows stand for other ids."""
    if path is None:
        return None
    try:
        graph = Graph.open(path)
    except DataError as error:
        raise DataError(f"{error}; if the graph of {run} has moved, pass --graph PATH") from error
    require_same_entities(run, graph)
    return graph
