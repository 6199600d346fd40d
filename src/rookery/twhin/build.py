"""Construction: from a configuration and a graph to a model, its batches and a training job."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from rookery.checkpoint.files import Checkpoint
from rookery.data.flight_stream import FlightStream
from rookery.data.graph import Graph
from rookery.data.stream import BatchStream, StreamPosition
from rookery.errors import ConfigError
from rookery.optim.dense import make_dense_optimizer
from rookery.optim.schedules import optimizer_schedule
from rookery.parallel.world import on_all, rank, world_size
from rookery.storage.location import Location
from rookery.tables.backends import make_tables, require_torchrec
from rookery.tables.protocol import TableSpec
from rookery.tables.refusals import BackendName
from rookery.train.job import Job, LearningRate, Stateful, Validate, learning_rate_of
from rookery.train.order import StreamOrder, split_lanes, stream_order
from rookery.train.plan import world_shape
from rookery.train.state import OptimizerState, StateGroup, TableOptimizerState
from rookery.twhin.batch import TrainBatch
from rookery.twhin.config import EmbeddingTable, TrainData, TwhinConfig, groups_queries, needs_degrees, world_refusals
from rookery.twhin.evaluation import Evaluator, read_edges
from rookery.twhin.known import KnownEdges
from rookery.twhin.model import TwhinModel
from rookery.twhin.negatives import NegativeSampler
from rookery.twhin.planner import BatchPlanner, NegativePlan
from rookery.twhin.query_stream import QueryStream
from rookery.twhin.reading import open_edges, served_edges, train_files
from rookery.types import Side

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def check_backend(config: TwhinConfig) -> None:
    """Raise ``ConfigError`` for what the table back end cannot do in this world, ``MissingExtra`` if it is absent."""
    problems = world_refusals(config, world_shape())
    if problems:
        raise ConfigError("\n".join(problems))
    if config.model.embeddings.backend == "torchrec":
        require_torchrec()


def check_graph(config: TwhinConfig, graph: Graph) -> None:
    """Raise ``ConfigError`` where tables and relations are not those of the graph."""
    problems = []
    relations = config.model.relations
    found = [(info.name, info.lhs, info.rhs) for info in graph.relations]
    wanted = [(relation.name, relation.lhs, relation.rhs) for relation in relations]
    for index, (here, there) in enumerate(zip(wanted, found, strict=False)):
        if here != there:
            problems.append(f"model.relations.{index}={' '.join(here)}: the graph has {' '.join(there)} in this place")
    if len(wanted) != len(found):
        problems.append(f"model.relations: {len(wanted)} relations, the graph has {len(found)}")
    for table in config.model.embeddings.tables:
        entity_type = graph.entity_types.get(table.name)
        if entity_type is None:
            problems.append(f"model.embeddings.tables.{table.name}: the graph has no such entity type")
        elif entity_type.num_entities != table.num_embeddings:
            problems.append(
                f"model.embeddings.tables.{table.name}.num_embeddings={table.num_embeddings}: "
                f"the graph has {entity_type.num_entities}"
            )
    if problems:
        remedy = f"`rookery twhin init {graph.path}` writes a configuration that fits"
        raise ConfigError("\n".join([*problems, remedy]))


def build_model(config: TwhinConfig, device: torch.device, backend: BackendName | None = None) -> TwhinModel:
    """The model with fresh parameters on ``device``; ``backend`` replaces that of the configuration."""
    embeddings = config.model.embeddings
    tables = make_tables(
        backend or embeddings.backend,
        table_specs(config),
        seed=config.runtime.seed,
        device=device,
        sharding=config.parallel.sharding,
    )
    return TwhinModel(config.model, tables, seed=config.runtime.seed).to(device)


def table_specs(config: TwhinConfig) -> list[TableSpec]:
    """The tables of a configuration as their back end is told of them."""
    return [_table_spec(table) for table in config.model.embeddings.tables]


def build_job(
    config: TwhinConfig,
    graph: Graph | None,
    model: TwhinModel,
    device: torch.device,
    resume_from: Checkpoint | None = None,
) -> Job[TrainBatch]:
    """Everything that the loop needs to train ``model``, in the order of batches of the run that it goes on from."""
    optimizer = make_dense_optimizer(config.model.translation_optimizer, model.parameters())
    files = on_all(lambda: train_files(config, graph))
    states: dict[str, Stateful] = {
        "tables": TableOptimizerState(model.tables),
        "relations": OptimizerState(optimizer, dict(model.named_parameters())),
    }
    data = config.train_data
    order = stream_order(data.per_replica_batch_size * world_size(), config.parallel, resume_from)
    stream = on_all(lambda: _stream(config, files, order))
    return Job(
        model=model,
        stream=stream,
        transform=_transform(build_planner(config, graph, model, files), stream, device),
        state={"model": model, "optimizer": StateGroup(states)},
        learning_rates=_learning_rates(config, model, optimizer),
        optimizers=[optimizer],
        validate=_validation(config, graph, model),
        unit="edges" if data.order == "edges" else "directed_edges",
        device=device,
        close=stream.close,
    )


def _table_spec(table: EmbeddingTable) -> TableSpec:
    return TableSpec(
        name=table.name,
        num_embeddings=table.num_embeddings,
        embedding_dim=table.embedding_dim,
        dtype=_DTYPES[table.data_type],
        optimizer=table.optimizer,
        init_scale=table.init_scale,
        max_norm=table.max_norm,
    )


def _stream(config: TwhinConfig, files: Sequence[Location], order: StreamOrder) -> BatchStream:
    data, readers = config.train_data, config.parallel.readers
    if readers is not None:
        rows = open_edges(config, files, order)
        return FlightStream(rows, served_edges(config, rows), readers, rank=rank(), world_size=world_size())
    stream = open_edges(config, files, order, rank=rank(), world_size=world_size())
    if data.order == "edges":
        return stream
    batches = list(itertools.islice(stream, stream.batches_per_epoch))
    edges = {name: torch.cat([batch[name] for batch in batches]) for name in stream.types}
    num_rows = data.per_replica_batch_size * len(data.negative_sides)
    return QueryStream(edges, data.negative_sides, num_rows, seed=config.runtime.seed)


def build_planner(
    config: TwhinConfig, graph: Graph | None, model: TwhinModel, files: Sequence[Location]
) -> BatchPlanner:
    """What makes batches of edges; known edges are those of ``files``."""
    data = config.train_data
    tables = config.model.embeddings.tables
    degrees = _degrees(graph) if needs_degrees(config) else {}  # 16 bytes an entity
    sampler = NegativeSampler({table.name: table.num_embeddings for table in tables}, degrees, data.negative_alpha)
    known = KnownEdges.build(read_edges(files)) if data.mask_known_positives else None
    return BatchPlanner(model.plans(), _negative_plan(config), sampler, seed=config.runtime.seed, known=known)


def _degrees(graph: Graph | None) -> dict[tuple[str, Side], Tensor]:
    if graph is None:
        return {}
    return {
        (name, side): torch.tensor(graph.vocabulary(name).degrees(side)) for name in graph.entity_types for side in Side
    }


def _negative_plan(config: TwhinConfig) -> NegativePlan:
    data: TrainData = config.train_data
    softmax = config.model.loss.softmax
    return NegativePlan(
        chunk_size=data.chunk_size,
        num_in_batch=data.in_batch_negatives,
        num_global=None if data.global_negatives == "all" else data.global_negatives,
        sides=data.negative_sides,
        log_q=softmax is not None and softmax.log_q,
        group_queries=groups_queries(config),
    )


def _transform(
    planner: BatchPlanner, stream: BatchStream, device: torch.device
) -> Callable[[Mapping[str, Tensor], StreamPosition], TrainBatch]:
    def transform(columns: Mapping[str, Tensor], position: StreamPosition) -> TrainBatch:
        step = position.epoch * stream.batches_per_epoch + position.num_batches - 1
        lanes = split_lanes(columns, stream.lanes, stream.lane_rows(position))
        batch = planner.plan(lanes, step, stream.total_rows(position))
        return batch if device.type == "cpu" else batch.to(device)

    return transform


def _learning_rates(
    config: TwhinConfig, model: TwhinModel, optimizer: torch.optim.Optimizer
) -> tuple[LearningRate, ...]:
    rates = [
        LearningRate(
            table.name,
            optimizer_schedule(table.optimizer),
            functools.partial(model.tables.set_learning_rate, table.name),
        )
        for table in config.model.embeddings.tables
    ]
    relations = optimizer_schedule(config.model.translation_optimizer)
    return (*rates, LearningRate("relations", relations, learning_rate_of(optimizer)))


def _validation(config: TwhinConfig, graph: Graph | None, model: TwhinModel) -> Validate | None:
    if config.validation_data is None or config.training.validate_every_n is None:
        return None
    assert graph is not None
    settings = config.evaluation
    if config.training.num_eval_steps > 0:
        num_edges = config.training.num_eval_steps * config.train_data.per_replica_batch_size
        settings = settings.model_copy(update={"max_edges": min(num_edges, settings.max_edges or num_edges)})
    evaluator = Evaluator.from_graph(graph, config.validation_data.split, settings, config.train_data.on_corrupt)
    return lambda is_unwanted: evaluator.evaluate(model.embeddings(), is_unwanted).metrics()
