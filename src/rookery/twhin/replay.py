"""A step of TwHIN that was not taken, computed once more: which edge, entity or relation is not finite."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from rookery.config.loader import load_config
from rookery.data.graph import Graph
from rookery.storage.location import Location
from rookery.train.order import split_lanes
from rookery.train.replay import (
    PLACES_SHOWN,
    Finding,
    KeptBatch,
    Replay,
    ReplayedBatch,
    checkpoint_before,
    find_in_columns,
    find_in_weights,
    largest_weight,
    read_kept,
)
from rookery.train.runtime import prepare_runtime
from rookery.twhin.batch import Group, QueryGroup, TrainBatch
from rookery.twhin.build import build_model, build_planner
from rookery.twhin.config import TwhinConfig
from rookery.twhin.model import TwhinModel
from rookery.twhin.planner import BatchPlanner
from rookery.twhin.reading import train_files
from rookery.twhin.score import EdgesOf
from rookery.twhin.train import open_graph
from rookery.twhin.warm_start import pull_to_earlier, start_from_elsewhere
from rookery.types import Side

Edge: TypeAlias = tuple[int, int, int]
Addends: TypeAlias = "tuple[Tensor, EdgesOf | None]"


def replay_step(run: Path, step: int | None = None, graph: Location | None = None) -> Replay:
    """Compute the loss of the edges kept of ``step`` (the latest) with the newest weights from before it.

    Negatives are those of that step. ``graph`` is where the run's graph lies now, if it has moved. Raises
    ``RunNotFound`` where nothing is kept, ``DataError`` for what cannot be read.
    """
    kept = read_kept(run, step)
    config = load_config(TwhinConfig, kept.config)
    device = prepare_runtime(config.runtime)
    opened = open_graph(run, graph or config.graph)
    model = build_model(config, device, "local")
    pull_to_earlier(config, opened, model)
    checkpoint = checkpoint_before(run, kept.step)
    if checkpoint is None:
        start_from_elsewhere(config, opened, model)
    else:
        model.load_tensors(checkpoint.tensors("model"))
    planner = build_planner(config, opened, model, train_files(config, opened))
    names = _Names(model, opened)
    return Replay(
        kept.step,
        0 if checkpoint is None else checkpoint.step,
        find_in_weights(model.tensors(), names.of_row),
        largest_weight(model.tensors()),
        tuple(_replayed(config, planner, model, names, each) for each in kept.batches),
    )


class _Names:
    """Entities and relations by their names, of a run on bare row numbers by these."""

    def __init__(self, model: TwhinModel, graph: Graph | None) -> None:
        self._graph = graph
        self._relations = model.relations
        self.relation_of = {
            (plan.lhs_table, plan.rhs_table, plan.operator, plan.parameter_row): number
            for number, plan in enumerate(model.plans())
        }

    def of_row(self, tensor: str, row: int) -> str:
        """A row of a tensor of the checkpoint."""
        kind, _, name = tensor.partition(".")
        if kind == "table":
            return self.of_entity(name, row)
        operator = name.partition("/")[0]
        of_operator = {key[2:]: number for key, number in self.relation_of.items()}
        return self.of_relation(of_operator[operator, row])

    def of_entity(self, table: str, row: int) -> str:
        return f"row {row}" if self._graph is None else str(self._graph.vocabulary(table).ids([row])[0])

    def of_relation(self, relation: int) -> str:
        return self._relations[relation].name

    def of_edge(self, edge: Edge) -> str:
        lhs, relation, rhs = edge
        tables = self._relations[relation]
        return f"{self.of_entity(tables.lhs, lhs)} {tables.name} {self.of_entity(tables.rhs, rhs)}"


def _replayed(
    config: TwhinConfig, planner: BatchPlanner, model: TwhinModel, names: _Names, kept: KeptBatch
) -> ReplayedBatch:
    position, device = kept.position, model.entity_rows(model.table_names[0]).device
    step = position.epoch * kept.batches_per_epoch + position.num_batches - 1
    lanes = split_lanes(kept.columns, list(kept.lanes), list(kept.lanes.values()))
    batch = planner.plan(lanes, step, kept.total_rows)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.runtime.enable_amp):
        loss = float(model(batch.to(device))[0].detach())
        addends = model.loss_addends(batch.to(device))
    lost = _lost_edges(batch, addends, names)
    return ReplayedBatch(
        loss,
        kept.num_rows,
        (*find_in_columns(kept), *_of_relations(lost, names, kept), *_of_penalties(addends)),
    )


def _lost_edges(batch: TrainBatch, addends: Sequence[Addends], names: _Names) -> set[Edge]:
    """Edges that have no finite loss in one of their directions."""
    lost: set[Edge] = set()
    for losses, owner in addends:
        if owner is not None:
            group, first = owner
            edges = (~losses.isfinite()).nonzero().squeeze(1).cpu() + first
            lost.update(_edges(batch, group, edges, names))
    return lost


def _edges(batch: TrainBatch, group: Group | QueryGroup, edges: Tensor, names: _Names) -> Iterator[Edge]:
    """Those of a group with these numbers."""
    if isinstance(group, Group):
        rows = {side: batch.ids[group.table(side)][group.start(side) + edges] for side in Side}
        tables, relation = (group.lhs_table, group.rhs_table), group.relation[edges]
    else:
        query = group.query_of_edge[edges]
        anchors = batch.ids[group.anchor_table][group.anchor_start + query]
        rows = {group.predicts.other: anchors, group.predicts: group.target[edges]}
        tables, relation = (group.anchor_table, group.candidate_table), group.relation[query]
        tables = tables if group.predicts is Side.RHS else (tables[1], tables[0])
    for lhs, row, rhs in zip(rows[Side.LHS].tolist(), relation.tolist(), rows[Side.RHS].tolist(), strict=True):
        key = (*tables, group.operator, row)
        yield lhs, names.relation_of[key], rhs


def _of_relations(lost: set[Edge], names: _Names, kept: KeptBatch) -> Iterator[Finding]:
    """Edges without a finite loss, by relation; where they lie, and whose they are."""
    edges = list(zip(*(kept.columns[name].tolist() for name in ("lhs", "rel", "rhs")), strict=True))
    rows_of: dict[int, list[int]] = defaultdict(list)
    for row, edge in enumerate(edges):
        if edge in lost:
            rows_of[edge[1]].append(row)
    totals = Counter(relation for _, relation, _ in edges)
    for relation, rows in sorted(rows_of.items()):
        first = tuple(f"{kept.place(row)}: {names.of_edge(edges[row])}" for row in rows[:PLACES_SHOWN])
        yield Finding("relation", names.of_relation(relation), len(rows), totals[relation], first)


def _of_penalties(addends: Sequence[Addends]) -> Iterator[Finding]:
    """What regularizes: vectors whose norm is not finite."""
    penalties = [losses for losses, owner in addends if owner is None]
    count = sum(int(torch.count_nonzero(~each.isfinite())) for each in penalties)
    if count:
        yield Finding("regularizer", "model.regularizer", count, sum(each.numel() for each in penalties))
