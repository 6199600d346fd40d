"""``rookery twhin init``: a commented configuration that fits an ingested graph and trains well as it stands.

Different graphs want different models. ``docs/recipes.md`` has the measurements behind the numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rookery.config.commented import block, scalar
from rookery.data.graph import Graph
from rookery.errors import DataError

RecipeName = Literal["complex", "transe", "factors", "twhin"]

# Up to this many entities, scoring all of them costs less than what sampling loses.
_SCORE_ALL_ENTITIES = 50_000
# From this many relations over one entity type on, a graph is about facts rather than engagements.
_KNOWLEDGE_RELATIONS = 10
_LOGS_PER_RUN = 100
_VALIDATIONS_PER_RUN = 5
_WARM_UP_SHARE = 0.02
# Small graphs get small batches: an optimizer needs steps more than each step needs edges.
_MIN_STEPS_PER_EPOCH = 50
_SCORES_PER_VALIDATION = 4_000_000_000


@dataclass(frozen=True)
class Recipe:
    """The choices that depend on the family of the graph; texts are YAML as it stands in the file."""

    reason: str
    dim: int
    init_scale: float
    optimizer: str
    learning_rate: float
    operator: str
    operator_side: str
    comparator: str
    loss: str
    regularizer: str
    batch_size: int
    chunk_size: int
    global_negatives: str
    negative_sides: str
    num_epochs: int
    metrics: str
    best_metric: str
    relations_start_random: bool = False

    @property
    def scores_all(self) -> bool:
        return self.global_negatives == "all"


def choose_recipe(graph: Graph) -> RecipeName:
    """The family of a graph by its relations and types."""
    if len(graph.entity_types) == 1 and len(graph.relations) >= _KNOWLEDGE_RELATIONS:
        return "complex"
    bipartite = all(relation.lhs != relation.rhs for relation in graph.relations)
    return "factors" if bipartite and len(graph.relations) == 1 else "twhin"


def initial_config(graph_path: Path, save_dir: Path, recipe_name: RecipeName | None = None) -> str:
    """The configuration as commented YAML. Raises ``DataError`` for a graph without training edges."""
    graph = Graph.open(graph_path)
    if "train" not in graph.splits:
        raise DataError(f"{graph_path}: there is no split 'train'; ingest the graph with one")
    name = recipe_name or choose_recipe(graph)
    recipe = _RECIPES[name](graph)
    num_steps = max(2, recipe.num_epochs * -(-graph.num_edges("train") // recipe.batch_size))
    return "\n".join(
        (
            _head(graph, name, recipe),
            _training(graph, recipe, num_steps, save_dir),
            _model(graph, recipe, num_steps),
            _data(graph, recipe),
        )
    )


def _complex(graph: Graph) -> Recipe:
    return Recipe(
        reason="many relations over one entity type: ComplEx, each direction of a relation with its own parameters",
        dim=1024,
        init_scale=1e-3,
        optimizer="adagrad: {lr: 0.25, eps: 1.0e-10}",
        learning_rate=0.25,
        operator="complex_diagonal",
        operator_side="both",
        comparator="dot",
        loss="softmax: {temperature: 1.0}",
        regularizer="n3: 0.05",
        batch_size=1000,
        chunk_size=250,
        global_negatives=_all_or(graph, 2000),
        negative_sides="[lhs, rhs]",
        num_epochs=12,
        metrics="[link_prediction]",
        best_metric="mrr",
        relations_start_random=True,
    )


def _transe(graph: Graph) -> Recipe:
    return dataclasses.replace(
        _complex(graph),
        reason="TransE: a relation moves entities by a vector, scores are distances",
        dim=256,
        init_scale=0.3,
        optimizer="adagrad: {lr: 0.4, eps: 1.0e-10}",
        learning_rate=0.4,
        operator="translation",
        comparator="l2",
        regularizer="l2: 0.003",
        num_epochs=16,
    )


def _factors(graph: Graph) -> Recipe:
    batch_size = _clamp(graph.num_edges("train") // _MIN_STEPS_PER_EPOCH, 64, 1000)
    smallest = min(entity_type.num_entities for entity_type in graph.entity_types.values())
    return Recipe(
        reason="one relation from one entity type to another: matrix factors under a sampled softmax",
        dim=64,
        init_scale=0.1,
        optimizer="adam: {lr: 0.02, eps: 1.0e-10}",
        learning_rate=0.02,
        operator="identity",
        operator_side="lhs",
        comparator="dot",
        loss="softmax: {temperature: 1.0}",
        regularizer="l2: 0.085, negatives: true",
        batch_size=batch_size,
        chunk_size=batch_size,
        global_negatives=str(_clamp(smallest // 4, 16, batch_size)),
        negative_sides="[rhs]",
        num_epochs=40,
        metrics="[recommendation]",
        best_metric="recall@20",
    )


def _twhin(graph: Graph) -> Recipe:
    return dataclasses.replace(
        _factors(graph),
        reason="typed engagements: TwHIN, a translation a relation, under a sampled softmax",
        operator="translation",
        negative_sides="[lhs, rhs]",
        num_epochs=20,
        metrics="[link_prediction]",
        best_metric="mrr",
    )


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))


def _all_or(graph: Graph, num_sampled: int) -> str:
    num_entities = max(entity_type.num_entities for entity_type in graph.entity_types.values())
    return "all" if num_entities <= _SCORE_ALL_ENTITIES else str(num_sampled)


_RECIPES: dict[RecipeName, Callable[[Graph], Recipe]] = {
    "complex": _complex,
    "transe": _transe,
    "factors": _factors,
    "twhin": _twhin,
}


def _head(graph: Graph, name: RecipeName, recipe: Recipe) -> str:
    counts = ", ".join(f"{info.num_entities:,} {scalar(name)}" for name, info in graph.entity_types.items())
    edges = graph.num_edges("train")
    return block(
        f"""
        # TwHIN on {scalar(str(graph.path))}: {edges:,} training edges, {len(graph.relations)} relations, {counts}.
        # Recipe {name}: {recipe.reason}.
        # Any field can be replaced on the command line: --set training.train_log_every_n=10
        graph: {scalar(str(graph.path.resolve()))}

        runtime:
          seed: 0
          device: auto         # cpu, cuda, or whatever there is
          enable_amp: true     # matrix products in bfloat16; the vectors stay float32
        """
    )


def _training(graph: Graph, recipe: Recipe, num_steps: int, save_dir: Path) -> str:
    cadence = max(1, -(-num_steps // _VALIDATIONS_PER_RUN))
    lines = f"""
        training:
          save_dir: {scalar(str(save_dir))}
          num_epochs: {recipe.num_epochs}     # {num_steps:,} steps; the learning rates below end with them
          train_log_every_n: {max(1, num_steps // _LOGS_PER_RUN)}
          checkpoint_every_n: {cadence}
          checkpoint_max_to_keep: 1
        """
    if "valid" not in graph.splits:
        return block(lines) + "  # No split 'valid': nothing is measured during the run, the last checkpoint counts.\n"
    return (
        block(lines)
        + _validation_size(graph, recipe)
        + block(
            f"""
          # The best checkpoint on the validation split is kept: evaluate, export and neighbors load it.
          validate_every_n: {cadence}
          keep_best: {{metric: {scalar(recipe.best_metric)}, mode: max}}
        """,
            indent="  ",
        )
    )


def _validation_size(graph: Graph, recipe: Recipe) -> str:
    """Cut validations in the middle of the run where ranking the whole split would take minutes."""
    num_entities = max(info.num_entities for info in graph.entity_types.values())
    num_edges = _SCORES_PER_VALIDATION // (2 * num_entities)
    if num_edges >= graph.num_edges("valid"):
        return ""
    num_batches = max(1, num_edges // recipe.batch_size)
    shown = min(num_batches * recipe.batch_size, graph.num_edges("valid"))
    return f"  num_eval_steps: {num_batches}     # batches of a validation: {shown:,} edges; -1 for the whole split\n"


def _model(graph: Graph, recipe: Recipe, num_steps: int) -> str:
    warm_up = max(1, round(num_steps * _WARM_UP_SHARE))
    ramp = f"learning_rate: {recipe.learning_rate}, final_learning_rate: 0, num_ramp_steps: {warm_up}"
    body = block(
        f"""
        model:
          # A candidate c is scored for an entity q by comparator(operator(q), c).
          comparator: {recipe.comparator}
          operator_side: {recipe.operator_side}     # both: each direction of a relation has its own parameters
          loss:
            {recipe.loss}
          regularizer: {{{recipe.regularizer}}}
          translation_optimizer: &optimizer     # moves the parameters of the relations
            {recipe.optimizer}
            learning_rate:
              linear_ramp_to_cosine: {{{ramp}, final_num_steps: {num_steps}}}
        """
    )
    if recipe.relations_start_random:
        body += f"  relation_init_scale: {recipe.init_scale}\n"
    body += "  embeddings:\n    tables:\n"
    for name, info in graph.entity_types.items():
        body += (
            f"      - name: {scalar(name)}\n"
            f"        num_embeddings: {info.num_entities}\n"
            f"        embedding_dim: {recipe.dim}\n"
            f"        init_scale: {recipe.init_scale}\n"
            "        optimizer: *optimizer\n"
        )
    body += "  relations:     # in the order of the graph's relation numbers\n"
    for relation in graph.relations:
        fields = {"name": relation.name, "lhs": relation.lhs, "rhs": relation.rhs, "operator": recipe.operator}
        body += "    - {" + ", ".join(f"{key}: {scalar(value)}" for key, value in fields.items()) + "}\n"
    return body


def _data(graph: Graph, recipe: Recipe) -> str:
    meaning = "every entity of the right type" if recipe.scores_all else "drawn from the table of the right type"
    body = block(
        f"""
        train_data:
          per_replica_batch_size: {recipe.batch_size}     # edges a step
          chunk_size: {recipe.chunk_size}     # edges that share their negatives
          global_negatives: {recipe.global_negatives}     # {meaning}
          in_batch_negatives: 0
          negative_sides: {recipe.negative_sides}     # which side of an edge is predicted
        """
    )
    if recipe.scores_all:
        body += "  order: queries     # edges that share a query come together, so that each is scored once\n"
    if "valid" in graph.splits:
        body += "\nvalidation_data:\n  split: valid\n"
    return body + f"\nevaluation:\n  metrics: {recipe.metrics}\n"
