"""The TwHIN model: tables of entities, parameters of relations, a loss for training, a score for all that follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rookery.parallel.world import world_size
from rookery.tables.protocol import TableBackend
from rookery.train.state import Prefixed
from rookery.twhin.batch import TrainBatch
from rookery.twhin.config import LossConfig, ModelConfig, RelationConfig
from rookery.twhin.embeddings import Embeddings, ScoredRelation
from rookery.twhin.losses import Bce, Loss, MarginRanking, SelfAdversarial, Softmax
from rookery.twhin.operators import OPERATORS
from rookery.twhin.planner import RelationPlan
from rookery.twhin.regularizers import Regularizer
from rookery.twhin.score import (
    FORWARD,
    REVERSE,
    BatchGradient,
    EdgesOf,
    ParameterKey,
    ScoreSettings,
    batch_loss,
    needs_one_relation,
    parameter_key,
)
from rookery.types import Side


@dataclass(frozen=True)
class Pull:
    """Hold rows to earlier vectors: ``strength * |x - earlier|²``.

    ``earlier`` has ``[num_embeddings, D]`` by table, NaN for entities without an earlier vector.
    """

    strength: float
    earlier: Mapping[str, Tensor]


class TwhinModel(nn.Module):
    """Scores edges of typed relations between typed entities.

    Calling it with a ``TrainBatch`` gives ``(loss, outputs)``; the backward pass of the loss moves the tables. All else
    is without gradient and works on row numbers.
    """

    def __init__(self, config: ModelConfig, tables: TableBackend, *, seed: int) -> None:
        super().__init__()
        self.config = config
        self.tables = tables
        self.relations: tuple[RelationConfig, ...] = config.relations
        self._row_of = parameter_rows(config.relations)
        self._parameters_by_key = nn.ParameterDict(
            {"/".join(key): nn.Parameter(value) for key, value in _initial_parameters(config, seed).items()}
        )
        self._settings = ScoreSettings(
            operator_side=config.operator_side,
            comparator=config.comparator,
            loss=make_loss(config.loss),
            log_q_scale=config.loss.softmax.temperature if config.loss.softmax else 1.0,
            regularizer=Regularizer(config.regularizer.n3, config.regularizer.l2, config.regularizer.negatives),
        )
        self._pull: Pull | None = None

    @property
    def comparator(self) -> str:
        return self.config.comparator

    @property
    def table_names(self) -> tuple[str, ...]:
        return tuple(table.name for table in self.config.embeddings.tables)

    def set_pull(self, pull: Pull) -> None:
        """Regularize towards the vectors of an earlier run."""
        self._pull = pull

    def plans(self) -> tuple[RelationPlan, ...]:
        """What the planner of batches needs to know of the relations, in the order of ``rel``."""
        side, comparator = self.config.operator_side, self.config.comparator
        return tuple(
            RelationPlan(
                lhs_table=relation.lhs,
                rhs_table=relation.rhs,
                operator=relation.operator,
                parameter_row=self._row_of[index],
                weight=relation.weight,
                one_relation=needs_one_relation(relation.operator, comparator, side),
            )
            for index, relation in enumerate(self.relations)
        )

    def begin_step(self, step: int, micro_step: int, num_micro_steps: int) -> None:
        """Tables move in the backward pass of the last micro-batch."""
        self.tables.set_accumulating(micro_step + 1 < num_micro_steps)

    def expect(self, batch: TrainBatch) -> None:
        """Its ids may travel before it is trained on."""
        self.tables.expect(batch.ids)

    def forward(self, batch: TrainBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over the edges of the batch, and ``positive_score``, the mean score of the true edges."""
        rows = self.tables.lookup(batch.ids)
        loss, positive = batch_loss(batch, self._settings_for(rows), rows, self._parameters_map())
        if self._pull is not None:
            loss = loss + self._pull_loss(self._pull, batch, rows)
        return loss, {"positive_score": positive, **self._row_norms(rows)}

    @torch.no_grad()
    def loss_addends(self, batch: TrainBatch) -> list[tuple[Tensor, EdgesOf | None]]:
        """What the loss of a batch is the sum of: of some edges one addend each, or of penalties (None)."""
        rows = {name: self.entity_rows(name).index_select(0, ids) for name, ids in batch.ids.items()}
        total = BatchGradient(batch, self._settings_for(rows), rows, self._parameters_map())
        with torch.autocast(next(iter(rows.values())).device.type, enabled=False):
            total.run()
        return total.losses

    def _settings_for(self, rows: Mapping[str, Tensor]) -> ScoreSettings:
        """With products in half precision where autocast asks for them."""
        half = torch.is_autocast_enabled(next(iter(rows.values())).device.type)
        return self._settings if not half else ScoreSettings(**{**vars(self._settings), "half": True})

    def _row_norms(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logged = self.config.embeddings.tables_to_log or ()
        lengths = {name: rows[name].detach().float().norm(dim=1) for name in logged if name in rows}
        size = world_size()  # what processes report is summed
        return {f"norm/{name}": length.sum() / (size * max(1, len(length))) for name, length in lengths.items()}

    def _pull_loss(self, pull: Pull, batch: TrainBatch, rows: Mapping[str, Tensor]) -> Tensor:
        total = torch.zeros(())
        for name, ids in batch.ids.items():
            if name in pull.earlier:
                away = (rows[name].float() - pull.earlier[name].index_select(0, ids)).nan_to_num(nan=0.0)
                total = total + away.square().sum()
        return total * (pull.strength / batch.num_edges)

    def _parameters_map(self) -> dict[ParameterKey, Tensor]:
        return {_key(name): value for name, value in self._parameters_by_key.items()}

    def named_relation_parameters(self) -> dict[str, Tensor]:
        """Parameters ``[relations of the operator, W]`` by ``<operator>/<direction>``; no gradient, not copied."""
        return {key: value.detach() for key, value in self._parameters_by_key.items()}

    def relation_parameters(self, relation: int, predicts: Side) -> Tensor:
        """The operator's parameters ``[W]`` of a relation for one direction."""
        operator = self.relations[relation].operator
        table = self._parameters_map()[parameter_key(operator, self.config.operator_side, predicts)]
        return table.detach()[self._row_of[relation]]

    def entity_rows(self, table: str) -> Tensor:
        """All rows ``[num_embeddings, D]`` in the table's own dtype."""
        return self.tables.rows(table)

    def num_entities(self, table: str) -> int:
        return next(spec.num_embeddings for spec in self.tables.specs if spec.name == table)

    @torch.no_grad()
    def embeddings(self) -> Embeddings:
        """What has been learned so far, ready to score: a view of the tables, which the next step changes."""
        relations = tuple(ScoredRelation(spec.name, spec.lhs, spec.rhs, spec.operator) for spec in self.relations)
        parameters = {
            (number, side): self.relation_parameters(number, side) for number in range(len(relations)) for side in Side
        }
        rows = {name: self.entity_rows(name) for name in self.table_names}
        return Embeddings(relations, self.config.comparator, self.config.operator_side, rows, parameters)

    def query_form(self, side: Side, relation: int) -> bool:
        """As ``Embeddings.query_form``."""
        return self.embeddings().query_form(side, relation)

    def queries(self, side: Side, relation: int, anchors: Tensor) -> Tensor:
        """As ``Embeddings.queries``."""
        return self.embeddings().queries(side, relation, anchors)

    def score_candidates(self, side: Side, relation: int, anchors: Tensor, candidates: Tensor | None) -> Tensor:
        """As ``Embeddings.score_candidates``, which is cheaper for more than a few calls."""
        return self.embeddings().score_candidates(side, relation, anchors, candidates)

    def tensors(self) -> dict[str, Tensor]:
        """Everything learned, for the checkpoint: ``table.<name>`` and ``relation.<operator>/<direction>``."""
        tables = {f"table.{name}": weight for name, weight in self.tables.weights().items()}
        return {**tables, **{f"relation.{key}": value for key, value in self.named_relation_parameters().items()}}

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what ``tensors`` gave."""
        self.tables.load_weights(Prefixed(tensors, "table."))
        for key, value in self._parameters_by_key.items():
            value.copy_(tensors[f"relation.{key}"])


def _key(name: str) -> ParameterKey:
    operator, direction = name.split("/")
    return operator, direction


def make_loss(config: LossConfig) -> Loss:
    """The loss of a config."""
    if config.bce is not None:
        return Bce(config.bce.negative_weight)
    if config.softmax is not None:
        return Softmax(config.softmax.temperature)
    if config.margin_ranking is not None:
        return MarginRanking(config.margin_ranking.margin)
    assert config.self_adversarial is not None
    return SelfAdversarial(config.self_adversarial.margin, config.self_adversarial.alpha)


def parameter_rows(relations: Sequence[RelationConfig]) -> tuple[int, ...]:
    """Row of each relation among those with its operator."""
    seen: dict[str, int] = {}
    rows = []
    for relation in relations:
        rows.append(seen.get(relation.operator, 0))
        seen[relation.operator] = rows[-1] + 1
    return tuple(rows)


def _initial_parameters(config: ModelConfig, seed: int) -> dict[ParameterKey, Tensor]:
    dim = config.embeddings.tables[0].embedding_dim
    directions = (FORWARD, REVERSE) if config.operator_side == "both" else (FORWARD,)
    generator = torch.Generator().manual_seed(seed)
    parameters: dict[ParameterKey, Tensor] = {}
    for name in sorted({relation.operator for relation in config.relations}):
        count = sum(relation.operator == name for relation in config.relations)
        for direction in directions:
            rows = OPERATORS[name].identity_parameters(dim).repeat(count, 1)
            if config.relation_init_scale is not None:
                rows = torch.empty_like(rows).normal_(0.0, 1.0, generator=generator).mul_(config.relation_init_scale)
            parameters[name, direction] = rows
    return parameters
