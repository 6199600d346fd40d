"""The heavy ranker's training: read the configuration, build, run. The loop is ``rookery.train.loop``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from rookery.checkpoint.checkpointer import load_checkpoint
from rookery.checkpoint.fetch import local_copy
from rookery.checkpoint.layout import best_step, checkpoint_steps
from rookery.config.loader import dump_config, load_config
from rookery.parallel.heartbeat import Heartbeat
from rookery.parallel.world import is_chief, join_world, losses_told, on_all, on_chief, share_object
from rookery.ranker.batch import RankerBatch
from rookery.ranker.build import build_job, build_model, build_preprocessor, check_backend
from rookery.ranker.checks import check_training_rows, check_validation_rows
from rookery.ranker.config import RankerConfig
from rookery.ranker.inputs import INPUTS, Inputs
from rookery.ranker.model import RankerModel
from rookery.ranker.preprocess import Preprocessor
from rookery.ranker.run import load_run
from rookery.ranker.statistics import fit_featurizer
from rookery.tables.backends import describe_plan
from rookery.train.job import Job
from rookery.train.lineage import require_same_meaning
from rookery.train.loop import TrainingResult, train
from rookery.train.plan import dense_bytes, show_plan, world_shape
from rookery.train.run import Run, go_on_from_published, open_run, publish_rest
from rookery.train.runtime import choose_device, prepare_runtime
from rookery.train.sinks import MetricSink
from rookery.train.state import check_fit
from rookery.train.waiting import told_of_others

# Fields that give the numbers of a checkpoint another meaning; of the free ones a change matters to nobody.
_MEANING = ("order of tasks", "features.", "preprocess.", "labels.", "keys.", "model.", "runtime.seed", "train_data.")
_FREE = (
    "training.",
    "train_data.on_corrupt",
    "train_data.records.index_dir",
    "runtime.device",
    "runtime.num_threads",
    "evaluation.",
    "validation_data.",
    "score.",
    "calibration",
)


@losses_told()
def train_ranker(config: RankerConfig, *, debug: bool = False, sinks: Sequence[MetricSink] = ()) -> TrainingResult:
    """Train to the last step of the configuration, from the newest checkpoint of ``training.save_dir`` if there is one.

    ``sinks`` take metrics besides the run's own; one that raises ends the training.
    Raises ``ConfigError`` or ``DataError`` before anything is written, ``TrainingError`` when the loss is not finite.
    """
    with opened_job(config, lambda model: None) as (run, job):
        watched = replace(run, sinks=(*run.sinks, *sinks))
        result = train(job, watched, config.training, config.runtime, debug=debug)
    if result.reason != "interrupted":  # who sent the signal waits for the end; it is fitted when the run is loaded
        _calibrate(config, result.step)
    if is_chief():
        publish_rest(config.training)
    return result


@contextmanager
def opened_job(config: RankerConfig, fill: Callable[[RankerModel], None]) -> Iterator[tuple[Run, Job[RankerBatch]]]:
    """The run of a configuration with all that its next step needs; of a new run ``fill`` may set the weights.

    Raises ``ConfigError`` or ``DataError`` before anything is written.
    """
    config = config.with_whole_paths()
    join_world(choose_device(config.runtime.device), config.parallel.timeout_s)
    # Together: who refuses alone and leaves breaks off the others, who may still be meeting.
    on_all(lambda: check_backend(config))
    device = on_all(lambda: prepare_runtime(config.runtime))
    save_dir = config.training.save_dir
    go_on_from_published(config.training)
    if checkpoint_steps(save_dir):
        on_all(lambda: _require_same_model(save_dir, config))
    with open_run(config.training, dump_config(config)) as run:
        if run.resume_from is None:
            _write_inputs(config, save_dir / INPUTS)
        inputs = on_all(lambda: Inputs.open(save_dir / INPUTS))
        preprocessor = build_preprocessor(config, inputs)
        model = build_model(config, preprocessor, inputs, device, config.features.backend)
        _show_plan(config, model)
        if run.resume_from is None:
            fill_new(config, preprocessor, model)
            fill(model)
        # Behind the weights: averages begin where they do.
        job = build_job(config, preprocessor, model, device, run.resume_from)
        with closing(job):
            yield run, job


def fill_new(config: RankerConfig, preprocessor: Preprocessor, model: RankerModel) -> None:
    """What a run begins with besides random parameters: statistics of its rows, the weights of another run."""
    _fit_featurizer(config, preprocessor, model)
    _start_from_elsewhere(config, model)


def _show_plan(config: RankerConfig, model: RankerModel) -> None:
    tables = model.network.embeddings.tables
    specs = () if tables is None else tables.specs
    plans = describe_plan(config.features.backend, specs, config.parallel.sharding, world_shape())
    show_plan(plans, dense_bytes(model))


def _write_inputs(config: RankerConfig, folder: Path) -> None:
    """Vocabularies counted in the training rows, or those of the run to start from: its rows keep their meaning.

    Each process counts and looks at a part of the rows; the chief writes.
    """
    inputs = Inputs.build(config, on_all(lambda: _earlier_inputs(config)))
    preprocessor = build_preprocessor(config, inputs)
    check_training_rows(config, preprocessor)
    check_validation_rows(config, preprocessor)
    on_chief(lambda: inputs.write(folder))


def _earlier_inputs(config: RankerConfig) -> Inputs | None:
    earlier = config.training.initial_checkpoint_dir
    return None if earlier is None else Inputs.open(_run_of(local_copy(earlier, "latest")) / INPUTS)


def _fit_featurizer(config: RankerConfig, preprocessor: Preprocessor, model: RankerModel) -> None:
    """By the chief's arithmetic on all: other machines may round otherwise."""
    featurizer = model.network.featurizer
    fit_featurizer(config, preprocessor, featurizer)
    featurizer.load_state_dict(share_object(featurizer.state_dict()))


def _run_of(source: Path) -> Path:
    """The run directory of a run, or of one of its checkpoints."""
    return next((folder for folder in (source, *source.parents[:2]) if (folder / "config.yaml").exists()), source)


def _start_from_elsewhere(config: RankerConfig, model: RankerModel) -> None:
    source = config.training.initial_checkpoint_dir
    if source is None:
        return
    stored = load_checkpoint(local_copy(source, "latest"))
    remedy = (
        "configure the model as that run did (features, sizes, tasks), or leave training.initial_checkpoint_dir out to "
        "start from fresh weights"
    )
    check_fit({"model": model}, stored, remedy)
    model.load_tensors(stored.tensors("model"))


def _require_same_model(run: Path, config: RankerConfig) -> None:
    path = run / "config.yaml"
    if path.exists():
        require_same_meaning(
            run, _described(load_config(RankerConfig, path)), _described(config), meaning=_MEANING, free=_FREE
        )


def _described(config: RankerConfig) -> dict[str, object]:
    return {**config.model_dump(mode="json"), "order of tasks": ", ".join(config.tasks)}


def _calibrate(config: RankerConfig, last_step: int) -> None:
    """Fit the calibration of the checkpoints that are used: the best one and the newest."""
    if config.calibration is None:
        return
    save_dir, heartbeat = config.training.save_dir, Heartbeat("calibration")
    heartbeat.enter(last_step, "the calibration")
    with told_of_others(heartbeat):
        found = on_all(lambda: {checkpoint_steps(save_dir)[-1], best_step(save_dir)} if is_chief() else set())
        for step in sorted(step for step in share_object(found) if step is not None):
            heartbeat.enter(step, "the calibration")
            load_run(save_dir, step)
