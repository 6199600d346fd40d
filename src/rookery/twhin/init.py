"""``rookery twhin init``: a commented configuration that fits an ingested graph and trains well as it stands.

Two families of graphs want different models. ``docs/recipes.md`` has the measurements behind the numbers.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

import yaml

from rookery.data.graph import Graph
from rookery.errors import DataError

# Below this many entities, scoring all of them costs less than what sampling loses.
_SCORE_ALL_ENTITIES = 50_000
# From this many relations over one entity type on, a graph is about facts rather than engagements.
_KNOWLEDGE_RELATIONS = 10
_LOGS_PER_RUN = 100
_VALIDATIONS_PER_RUN = 10


@dataclass(frozen=True)
class Recipe:
    """The choices that depend on the family of the graph; texts are YAML as it stands in the file."""

    family: str
    reason: str
    dim: int
    init_scale: float
    table_optimizer: str
    relation_optimizer: str
    operator: str
    operator_side: str
    relation_init_scale: float | None
    loss: str
    regularizer: str
    batch_size: int
    chunk_size: int
    global_negatives: str
    num_epochs: int
    metrics: str
    best_metric: str
    enable_amp: bool = True


def choose_recipe(graph: Graph) -> Recipe:
    """The family of a graph by its relations and types."""
    num_entities = max(entity_type.num_entities for entity_type in graph.entity_types.values())
    if len(graph.entity_types) == 1 and len(graph.relations) >= _KNOWLEDGE_RELATIONS:
        return _knowledge(num_entities)
    bipartite = all(relation.lhs != relation.rhs for relation in graph.relations)
    return _engagement(len(graph.relations), bipartite, graph.num_edges("train"))


def initial_config(graph_path: Path, save_dir: Path) -> str:
    """The configuration as commented YAML. Raises ``DataError`` for a graph without training edges."""
    graph = Graph.open(graph_path)
    if "train" not in graph.splits:
        raise DataError(f"{graph_path}: there is no split 'train'; ingest the graph with one")
    recipe = choose_recipe(graph)
    num_steps = max(1, recipe.num_epochs * -(-graph.num_edges("train") // recipe.batch_size))
    parts = [
        _head(graph, recipe),
        _training(graph, recipe, num_steps, save_dir),
        _model(graph, recipe),
        _data(graph, recipe),
    ]
    return "\n".join(parts)


def _knowledge(num_entities: int) -> Recipe:
    return Recipe(
        family="knowledge graph",
        reason="many relations over one entity type: ComplEx with reciprocal relations",
        dim=512,
        init_scale=1e-2,
        table_optimizer="{adagrad: {lr: 0.1}}",
        relation_optimizer="{adagrad: {lr: 0.1}}",
        operator="complex_diagonal",
        operator_side="both",
        relation_init_scale=1e-2,
        loss="{softmax: {temperature: 1.0}}",
        regularizer="{n3: 0.01}",
        batch_size=1000,
        chunk_size=500,
        global_negatives="all" if num_entities <= _SCORE_ALL_ENTITIES else "2000",
        num_epochs=20,
        metrics="[link_prediction]",
        best_metric="mrr",
    )


def _engagement(num_relations: int, bipartite: bool, num_edges: int) -> Recipe:
    return Recipe(
        family="engagement graph",
        reason="few relations" + (", from one entity type to another" if bipartite else ""),
        dim=64,
        init_scale=0.1,
        table_optimizer="{adam: {lr: 0.01}}",
        relation_optimizer="{adam: {lr: 0.01}}",
        operator="identity" if num_relations == 1 and bipartite else "translation",
        operator_side="lhs",
        relation_init_scale=None,
        loss="{softmax: {temperature: 1.0}}",
        regularizer="{l2: 0.1}",
        batch_size=min(10_000, max(500, num_edges // 50)),
        chunk_size=1000,
        global_negatives="1000",
        num_epochs=20,
        metrics="[recommendation]" if bipartite else "[link_prediction]",
        best_metric="recall@20" if bipartite else "mrr",
    )


def _head(graph: Graph, recipe: Recipe) -> str:
    counts = ", ".join(f"{info.num_entities:,} {name}" for name, info in graph.entity_types.items())
    edges = graph.num_edges("train")
    return _text(
        f"""
        # TwHIN on {graph.path}: {edges:,} training edges, {len(graph.relations)} relations, {counts}.
        # Family: {recipe.family} ({recipe.reason}).
        # Any field can be replaced on the command line: --set training.num_epochs=5
        graph: {_scalar(str(graph.path.resolve()))}

        runtime:
          seed: 0
          device: auto            # cpu, cuda, or whatever there is
          enable_amp: {str(recipe.enable_amp).lower()}        # matrix products in bfloat16; the vectors stay float32
        """
    )


def _training(graph: Graph, recipe: Recipe, num_steps: int, save_dir: Path) -> str:
    lines = f"""
        training:
          save_dir: {_scalar(str(save_dir))}
          num_epochs: {recipe.num_epochs}
          train_log_every_n: {max(1, num_steps // _LOGS_PER_RUN)}
          checkpoint_every_n: {max(1, num_steps // _VALIDATIONS_PER_RUN)}
          checkpoint_max_to_keep: 2
        """
    if "valid" not in graph.splits:
        return _text(lines) + "  # No split 'valid': nothing is measured during the run, the last checkpoint counts.\n"
    return _text(lines) + _text(
        f"""
          # The best checkpoint on the validation split is kept and is what evaluate, export and neighbors load.
          validate_every_n: {max(1, num_steps // _VALIDATIONS_PER_RUN)}
          keep_best: {{metric: {recipe.best_metric!r}, mode: max}}
          early_stopping: {{patience: 3}}
        """,
        indent="  ",
    )


def _model(graph: Graph, recipe: Recipe) -> str:
    head = f"""
        model:
          # How a candidate c is scored for an entity q: comparator(operator(q), c).
          comparator: dot
          operator_side: {recipe.operator_side}     # both: each direction of a relation has its own parameters
          loss: {recipe.loss}
          regularizer: {recipe.regularizer}
          translation_optimizer: {recipe.relation_optimizer}     # moves the parameters of the relations
        """
    body = _text(head)
    if recipe.relation_init_scale is not None:
        body += f"  relation_init_scale: {recipe.relation_init_scale}\n"
    body += "  embeddings:\n    tables:\n"
    for name, info in graph.entity_types.items():
        body += (
            f"      - name: {_scalar(name)}\n"
            f"        num_embeddings: {info.num_entities}\n"
            f"        embedding_dim: {recipe.dim}\n"
            f"        init_scale: {recipe.init_scale}\n"
            f"        optimizer: {recipe.table_optimizer}\n"
        )
    body += "  relations:   # in the order of the graph's relation numbers\n"
    for relation in graph.relations:
        fields = {"name": relation.name, "lhs": relation.lhs, "rhs": relation.rhs, "operator": recipe.operator}
        body += "    - {" + ", ".join(f"{key}: {_scalar(value)}" for key, value in fields.items()) + "}\n"
    return body


def _data(graph: Graph, recipe: Recipe) -> str:
    every = recipe.global_negatives == "all"
    meaning = "every entity of the right type" if every else "drawn from the table of the right type"
    body = _text(
        f"""

        train_data:
          per_replica_batch_size: {recipe.batch_size}     # edges a step
          chunk_size: {recipe.chunk_size}     # edges that share their negatives
          global_negatives: {recipe.global_negatives}     # {meaning}
          in_batch_negatives: 0
        """
    )
    if "valid" in graph.splits:
        body += "\nvalidation_data:\n  split: valid\n"
    return body + f"\nevaluation:\n  metrics: {recipe.metrics}\n"


def _text(block: str, indent: str = "") -> str:
    return textwrap.indent(textwrap.dedent(block).strip("\n") + "\n", indent)


def _scalar(value: str) -> str:
    """A YAML scalar on one line, quoted where it must be; ``$`` is doubled, since ``${NAME}`` would be expanded."""
    value = value.replace("$", "$$")
    return yaml.safe_dump(value, width=10**6, allow_unicode=True).removesuffix("...\n").strip()
