"""Construction: from a configuration to a preprocessor, a model and a training job."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch

from rookery.checkpoint.files import Checkpoint
from rookery.data.prefetch import Transform
from rookery.data.stream import BatchStream
from rookery.errors import ConfigError
from rookery.nn.mlp import BatchNorm
from rookery.optim.average import WeightAverage
from rookery.optim.schedules import optimizer_schedule
from rookery.parallel.world import IsUnwanted, differentiable_sum, on_all, world_size
from rookery.ranker.batch import RankerBatch
from rookery.ranker.config import RankerConfig, world_refusals
from rookery.ranker.evaluation import make_validation
from rookery.ranker.inputs import Inputs
from rookery.ranker.memory import fits_memory
from rookery.ranker.model import FeatureSizes, RankerModel
from rookery.ranker.optimizers import make_optimizer
from rookery.ranker.partition import make_transform, open_partition
from rookery.ranker.preprocess import Preprocessor
from rookery.ranker.reading import open_remote
from rookery.tables.backends import require_torchrec
from rookery.tables.refusals import BackendName
from rookery.train.job import Job, LearningRate, Stateful, Validate
from rookery.train.order import StreamOrder, stream_order
from rookery.train.plan import world_shape
from rookery.train.state import OptimizerState, StateGroup, TableOptimizerState

AVERAGE = "average"
"""The group of a checkpoint that has the averages of the parameters."""


def check_backend(config: RankerConfig) -> None:
    """Raise ``ConfigError`` for what the table back end cannot do in this world, ``MissingExtra`` if it is absent.

    Shapes of tables that are counted in the data are looked at when the tables are made.
    """
    problems = world_refusals(config, world_shape())
    if problems:
        raise ConfigError("\n".join(problems))
    if config.features.backend == "torchrec":
        require_torchrec("features")


def build_preprocessor(config: RankerConfig, inputs: Inputs) -> Preprocessor:
    """What turns raw columns into features, by the vocabularies of the run."""
    return Preprocessor(config, inputs)


def build_model(
    config: RankerConfig,
    preprocessor: Preprocessor,
    inputs: Inputs,
    device: torch.device,
    backend: BackendName = "local",
) -> RankerModel:
    """The model with fresh parameters, drawn from ``runtime.seed`` alone, on ``device``; large tables in ``backend``.

    Raises ``ConfigError`` for parts that do not fit in memory.
    """
    sizes = FeatureSizes(
        num_continuous=preprocessor.num_continuous,
        num_binary=preprocessor.num_binary,
        dense_widths=preprocessor.dense_widths,
        tables=preprocessor.table_sizes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.runtime.seed)
        model = RankerModel(config, sizes, inputs.vectors, device, backend)
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        with fits_memory(f"model ({num_parameters:,} parameters)", f"use another runtime.device than {device}"):
            return model.to(device)


def build_job(
    config: RankerConfig,
    preprocessor: Preprocessor,
    model: RankerModel,
    device: torch.device,
    resume_from: Checkpoint | None = None,
) -> Job[RankerBatch]:
    """Everything that the loop needs to train ``model``, in the order of batches of the run that it goes on from."""
    _normalise_over_processes(model)
    network = make_optimizer(config.optimizer, model)
    states: dict[str, Stateful] = {"network": OptimizerState(network.optimizer, network.parameters)}
    state: dict[str, Stateful] = {"model": model}
    average = None
    if config.optimizer.average is not None:
        parameters = dict(model.named_parameters())
        average = state[AVERAGE] = WeightAverage(parameters, network.optimizer, config.optimizer.average.decay)
    tables = model.network.embeddings.tables
    if tables is not None:
        states["tables"] = TableOptimizerState(tables)
    data = config.train_data
    order = stream_order(data.batch_size, config.parallel, resume_from)
    stream, transform = on_all(lambda: _batches(config, preprocessor, order, device))
    return Job(
        model=model,
        stream=stream,
        transform=transform,
        state={**state, "optimizer": StateGroup(states)},
        learning_rates=(*network.learning_rates, *_table_rates(model)),
        optimizers=[network.optimizer],
        validate=_validation(config, model, preprocessor, average) if config.training.validate_every_n else None,
        unit="impressions",
        device=device,
        close=stream.close,
    )


def _batches(
    config: RankerConfig, preprocessor: Preprocessor, order: StreamOrder, device: torch.device
) -> tuple[BatchStream, Transform[RankerBatch]]:
    """This process's part of the training rows, and what makes batches of it."""
    readers, data = config.parallel.readers, config.train_data
    if readers is not None:
        return open_remote(config, readers, preprocessor, order, device)
    stream = open_partition(config, data, preprocessor, shuffle=data.shuffle, order=order)
    return stream, make_transform(stream, preprocessor, training=True, device=device)


def _normalise_over_processes(model: RankerModel) -> None:
    """Let batch normalisation take the rows of all processes."""
    if world_size() > 1:
        for module in model.modules():
            if isinstance(module, BatchNorm):
                module.sum_over_processes = differentiable_sum


def _validation(
    config: RankerConfig, model: RankerModel, preprocessor: Preprocessor, average: WeightAverage | None
) -> Validate:
    validate = make_validation(config, model, preprocessor)
    if average is None:
        return validate

    def validate_average(is_unwanted: IsUnwanted) -> Mapping[str, float]:
        with average.applied():
            return validate(is_unwanted)

    return validate_average


def _table_rates(model: RankerModel) -> tuple[LearningRate, ...]:
    tables = model.network.embeddings.tables
    if tables is None:
        return ()
    return tuple(
        LearningRate(
            f"table/{spec.name}",
            optimizer_schedule(spec.optimizer),
            functools.partial(tables.set_learning_rate, spec.name),
        )
        for spec in tables.specs
    )
