"""The heavy ranker: from the features of impressions to calibrated probabilities of every engagement.

Hot path: ``RankerModel.forward`` → ``RankerNetwork.forward`` (features → one vector → backbone → towers) → loss.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rookery.nn.dropout import draw_from, numbered_dropouts
from rookery.nn.featurization import Featurizer
from rookery.nn.network import InputLayout, build_network
from rookery.nn.position import PositionDebias
from rookery.nn.towers import Towers
from rookery.parallel.world import world_size
from rookery.ranker.batch import RankerBatch, RankerFeatures, TableSize
from rookery.ranker.config import RankerConfig
from rookery.ranker.embeddings import FeatureEmbeddings, module_key
from rookery.ranker.loss import MultiTaskLoss
from rookery.ranker.memory import fits_memory
from rookery.tables.backends import make_tables
from rookery.tables.refusals import BackendName
from rookery.train.job import Stateful
from rookery.train.state import ModuleState, StateGroup, TableWeights


@dataclass(frozen=True)
class FeatureSizes:
    """What the preprocessor says of the features that it makes."""

    num_continuous: int
    num_binary: int
    dense_widths: Mapping[str, int]
    tables: Mapping[str, TableSize]


class RankerNetwork(nn.Module):
    """Features → logits. Holds every parameter."""

    def __init__(
        self,
        config: RankerConfig,
        sizes: FeatureSizes,
        vectors: Mapping[str, Tensor],
        device: torch.device,
        backend: BackendName,
    ) -> None:
        super().__init__()
        model = config.model
        self._sharing = model.multi_task_type
        self.featurizer = Featurizer(model.featurization_config, sizes.num_continuous, sizes.num_binary)
        self.dense_norms = nn.ModuleDict({module_key(name): nn.LayerNorm(w) for name, w in sizes.dense_widths.items()})
        with fits_memory("features.tables", "lower num_embeddings, hash_buckets, vocabulary.max_size or embedding_dim"):
            self.embeddings = FeatureEmbeddings(
                config.features,
                sizes.tables,
                vectors,
                functools.partial(
                    make_tables,
                    backend,
                    seed=config.runtime.seed,
                    device=device,
                    sharding=config.parallel.sharding,
                    fields="features",
                ),
            )
        self.position = PositionDebias(model.position_debias_config) if model.position_debias_config else None
        layout = self._layout(sizes)
        with fits_memory("model.backbone", "lower the sizes of its layers"):
            self.backbone = build_network(model.backbone, layout, len(model.tasks)) if model.backbone else None
        with fits_memory("model.tasks", "lower the sizes of the layers of its towers"):
            self.towers = Towers(model.tasks, self._tower_layout(layout))

    def forward(self, features: RankerFeatures, balance: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Logits ``[batch, tasks]``; ``balance`` acts on the backbone's output."""
        return self.logits(self.inputs(features), balance)

    def logits(self, inputs: Tensor, balance: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The same of ``inputs`` ``[batch, width]``."""
        if self.backbone is None:
            return self.towers(inputs)  # type: ignore[no-any-return]
        shared = self.backbone(inputs)  # [batch, dim] or [tasks, batch, dim]
        if balance is not None:
            shared = balance(shared)
        if self._sharing == "share_partial":
            beside = inputs if shared.dim() == 2 else inputs.expand(len(shared), *inputs.shape)
            shared = torch.cat([beside, shared], -1)
        return self.towers(shared)  # type: ignore[no-any-return]

    def compile_parts(self) -> None:
        """Compile what computes, in place. Tables are left out: they move in the backward pass, by side effect."""
        for part in (self.featurizer, self.backbone, self.towers):
            if part is not None:
                part.compile(dynamic=True)

    def inputs(self, features: RankerFeatures, vectors: Sequence[Tensor] | None = None) -> Tensor:
        """All features side by side ``[batch, width]``: numbers, dense vectors, position, embeddings.

        ``vectors`` are what ``embeddings`` gives of the features, where that is known already.
        """
        parts = [self.featurizer(features.continuous, features.binary)]
        parts += [
            norm(features.dense[name]) for name, norm in zip(features.dense, self.dense_norms.values(), strict=True)
        ]
        if self.position is not None:
            parts.append(self.position(features.position, features.num_rows))
        parts += self.embeddings(features) if vectors is None else vectors
        return torch.cat([part for part in parts if part.shape[1]], 1)

    def _layout(self, sizes: FeatureSizes) -> InputLayout:
        start = self.featurizer.out_features + sum(sizes.dense_widths.values())
        start += self.position.out_features if self.position is not None else 0
        fields = []
        for width in self.embeddings.widths:
            fields.append((start, width))
            start += width
        return InputLayout(start, tuple(fields))

    def _tower_layout(self, layout: InputLayout) -> InputLayout:
        if self.backbone is None:
            return layout
        width = int(self.backbone.out_features)
        if self._sharing == "share_all":
            return InputLayout(width, ())
        return InputLayout(layout.width + width, layout.fields)


class RankerModel(nn.Module):
    """The network with its loss, and with what makes logits probabilities.

    Calling it with a ``RankerBatch`` gives ``(loss, outputs)``; the backward pass of the loss moves the large tables.
    """

    def __init__(
        self,
        config: RankerConfig,
        sizes: FeatureSizes,
        vectors: Mapping[str, Tensor],
        device: torch.device,
        backend: BackendName = "local",
    ) -> None:
        super().__init__()
        self.tasks = config.tasks
        self.network = RankerNetwork(config, sizes, vectors, device, backend)
        self.loss = MultiTaskLoss(config.loss, config.model.tasks)
        self._add_buffers(config)
        if config.model.compile:
            self.network.compile_parts()
        self._balances = config.loss.grad_norm is not None
        self._dropouts = numbered_dropouts(self.network)

    def _add_buffers(self, config: RankerConfig) -> None:
        rates = [config.labels[task] for task in self.tasks]
        offsets = [math.log(rate.neg_downsampling_rate / rate.pos_downsampling_rate) for rate in rates]
        chosen = config.score.weights
        weights = [chosen.get(task, 0.0) if chosen else 1.0 for task in self.tasks]
        for name, value in {
            "sampling_offset": offsets,
            "calibration_scale": [1.0] * len(rates),
            "calibration_offset": [0.0] * len(rates),
            "score_weights": weights,
        }.items():
            self.register_buffer(name, torch.tensor(value), persistent=False)
        self.sampling_offset: Tensor
        self.calibration_scale: Tensor
        self.calibration_offset: Tensor
        self.score_weights: Tensor

    def begin_step(self, step: int, micro_step: int, num_micro_steps: int) -> None:
        """Tables move in the backward pass of the last micro-batch."""
        if self.network.embeddings.tables is not None:
            self.network.embeddings.tables.set_accumulating(micro_step + 1 < num_micro_steps)

    def expect(self, batch: RankerBatch) -> None:
        """The ids of its large tables may travel before it is trained on."""
        draw_from(self._dropouts, batch.draws)
        self.network.embeddings.expect(batch.features)

    def forward(self, batch: RankerBatch) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The loss of a batch; the loss of each task as ``loss/<task>``, and the shares that the batch came with."""
        draw_from(self._dropouts, batch.draws)
        balance = self.loss.balance if self._balances else None
        logits = self.network(batch.features, balance)
        loss, outputs = self.loss(logits, batch.labels, batch.loss_weights)
        size = world_size()  # what processes report is summed
        return loss, {**outputs, **{name: share / size for name, share in batch.shares.items()}}

    def logits(self, features: RankerFeatures) -> Tensor:
        """What was trained ``[batch, tasks]``: of the log as it was sampled, uncalibrated."""
        return self.network(features)  # type: ignore[no-any-return]

    def unsampled_logits(self, features: RankerFeatures) -> Tensor:
        """Logits of the log before it was sampled: ``p r / (1 - p + p r)`` with ``r = neg_rate / pos_rate``."""
        return self._unsampled(self.logits(features))

    def probabilities(self, features: RankerFeatures) -> Tensor:
        """Calibrated probabilities ``[batch, tasks]``, float32."""
        return self.calibrated(self.logits(features))

    def calibrated(self, logits: Tensor) -> Tensor:
        """The same of ``logits``."""
        return torch.sigmoid(self.calibration_scale * self._unsampled(logits) + self.calibration_offset)

    def _unsampled(self, logits: Tensor) -> Tensor:
        return logits.float() + self.sampling_offset

    def score(self, probabilities: Tensor) -> Tensor:
        """The weighted score ``[batch]`` of probabilities ``[batch, tasks]``."""
        return probabilities @ self.score_weights

    def set_calibration(self, scale: Tensor, offset: Tensor) -> None:
        """The maps ``scale · logit + offset`` of the tasks, each ``[tasks]``."""
        self.calibration_scale.copy_(scale)
        self.calibration_offset.copy_(offset)

    @property
    def device(self) -> torch.device:
        return self.calibration_scale.device

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint holds of the model: parameters, buffers and tables by name."""
        return self._state().tensors()

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite all of them."""
        self._state().load_tensors(tensors)

    def _state(self) -> StateGroup:
        parts: dict[str, Stateful] = {"network": ModuleState(self.network), "loss": ModuleState(self.loss)}
        tables = self.network.embeddings.tables
        return StateGroup({**parts, "tables": TableWeights(tables)} if tables is not None else parts)
