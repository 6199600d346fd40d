"""What the ranker looks at: how much worse it predicts when a feature's values are dealt out anew among the rows.

Permutation importance (Breiman 2001; Fisher, Rudin, Dominici 2019): labels and all other features stay as they are, so
the drop is what the model owes to the feature. Features that say the same stand in for each other, and share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from rookery.config.suggest import did_you_mean
from rookery.errors import UserError
from rookery.metrics.binary import auroc, losses
from rookery.ranker.batch import RankerBatch, RankerFeatures
from rookery.ranker.blocks import Block, NumericGroup
from rookery.ranker.config import RankerConfig
from rookery.ranker.features_config import FeaturesConfig
from rookery.ranker.partition import make_transform, open_partition
from rookery.ranker.preprocess import Preprocessor
from rookery.ranker.run import LoadedRun

Kind = Literal["continuous", "binary", "dense", "discrete", "ragged", "embedding", "table"]

_ROWS_AT_ONCE = 8192  # rows of a forward pass: wide models stay below a gigabyte of activations


@dataclass(frozen=True)
class FeatureGroup:
    """Values that are dealt out together; ``moved`` gives row ``i`` those of row ``order[i]``.

    ``vectors`` are the features whose vectors move along; None where vectors become others by it, as by attention.
    """

    name: str
    kind: Kind
    moved: Callable[[RankerFeatures, Tensor], RankerFeatures]
    vectors: frozenset[str] | None = frozenset()


@dataclass(frozen=True)
class Change:
    """Mean over the repeats, and their standard deviation."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class TaskImportance:
    auroc_drop: Change
    logloss_rise: Change
    """In nats a row."""


@dataclass(frozen=True)
class Importance:
    """One feature; ``logloss_rise`` and ``auroc_drop`` are the sum and the mean over tasks."""

    name: str
    kind: Kind
    logloss_rise: Change
    auroc_drop: Change
    tasks: Mapping[str, TaskImportance]


@dataclass(frozen=True)
class TaskQuality:
    """Of the model as it is; ``auroc`` is NaN without positives or without negatives among the rows."""

    positives: int
    auroc: float
    logloss: float


@dataclass(frozen=True)
class Explanation:
    """The features, those first without which the most is lost."""

    split: str
    num_rows: int
    num_repeats: int
    quality: Mapping[str, TaskQuality]
    features: tuple[Importance, ...]


def explain(run: LoadedRun, split: str, num_rows: int, num_repeats: int) -> Explanation:
    """Importance of every feature on ``num_rows`` rows drawn from a partition of ``validation_data``.

    Costs a pass of backbone and towers over these rows for each feature and repeat; embeddings are looked up and pooled
    once. Raises ``UserError`` for a partition that the configuration does not have.
    """
    batch = sample_batch(run, split, num_rows)
    predict = _Predictor(run, batch.features)
    # The same permutations for all features, so that they differ by nothing else.
    generator = torch.Generator().manual_seed(run.config.runtime.seed)
    orders = [torch.randperm(batch.num_rows, generator=generator) for _ in range(num_repeats)]
    whole = _Quality.of(predict.whole(), batch)
    features = [
        _importance(group, run.model.tasks, whole, [_Quality.of(predict(group, order), batch) for order in orders])
        for group in feature_groups(run.config, run.preprocessor)
    ]
    return Explanation(
        split=split,
        num_rows=batch.num_rows,
        num_repeats=num_repeats,
        quality=_described(run.model.tasks, whole, batch),
        features=tuple(sorted(features, key=lambda one: -one.logloss_rise.mean)),
    )


def sample_batch(run: LoadedRun, split: str, num_rows: int) -> RankerBatch:
    """Rows of a partition drawn at random (fewer if it has fewer), as the model takes them."""
    config = run.config
    if split not in config.validation_data:
        hint = did_you_mean(split, list(config.validation_data))
        raise UserError(f"--split {split}: no such partition of validation_data; {hint}")
    partition = config.validation_data[split].model_copy(update={"batch_size": num_rows})
    stream = open_partition(config, partition, run.preprocessor, shuffle=True, num_epochs=1)
    columns = next(stream)
    transform = make_transform(stream, run.preprocessor, training=False, device=run.model.device)
    return transform(columns, stream.position())


def feature_groups(config: RankerConfig, preprocessor: Preprocessor) -> list[FeatureGroup]:
    """Every feature that the model sees, and every table that several features share as one."""
    features = config.features
    groups = [*_columns("continuous", preprocessor.continuous), *_columns("binary", preprocessor.binary)]
    groups += [FeatureGroup(each.name, "dense", _rows_moved([each.name])) for each in features.dense]
    groups += [_embedded(features, "discrete", each.name, [each.name]) for each in features.discrete]
    groups += [_embedded(features, "ragged", each.name, [each.name]) for each in features.ragged]
    groups += [_embedded(features, "embedding", each.name, [each.name]) for each in features.embeddings]
    for table in features.tables:
        sharing = [each.name for each in features.looked_up if each.table == table.name]
        if len(sharing) > 1:
            groups.append(_embedded(features, "table", table.name, sharing))
    return groups


def _columns(kind: Literal["continuous", "binary"], group: NumericGroup) -> Iterator[FeatureGroup]:
    """The features of a block of numbers, each some of its columns."""
    start = 0
    for block in cast("Iterable[Block]", group.blocks):
        yield FeatureGroup(block.name, kind, _stretch(kind, start, start + block.width))
        start += block.width


def _stretch(kind: str, start: int, stop: int) -> Callable[[RankerFeatures, Tensor], RankerFeatures]:
    def moved(features: RankerFeatures, order: Tensor) -> RankerFeatures:
        values: Tensor = getattr(features, kind)
        changed: Any = torch.cat([values[:, :start], values[order, start:stop], values[:, stop:]], 1)
        return replace(features, **{kind: changed})

    return moved


def _embedded(features: FeaturesConfig, kind: Kind, name: str, members: Sequence[str]) -> FeatureGroup:
    """A list that is attended is seen through its query: its vector moves along only if both move, or neither."""
    attended = [(each.name, each.query) for each in features.ragged if each.query is not None]
    as_they_are = all((list_name in members) == (query in members) for list_name, query in attended)
    return FeatureGroup(name, kind, _rows_moved(members), frozenset(members) if as_they_are else None)


def _rows_moved(names: Sequence[str]) -> Callable[[RankerFeatures, Tensor], RankerFeatures]:
    """Names are of one feature each, whatever its kind."""

    def moved(features: RankerFeatures, order: Tensor) -> RankerFeatures:
        def change(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: value[order] if name in names else value for name, value in values.items()}

        return replace(
            features,
            dense=change(features.dense),
            discrete=change(features.discrete),
            ragged=change(features.ragged),
            joined=change(features.joined),
        )

    return moved


class _Predictor:
    """Probabilities ``[rows, tasks]`` (on the CPU) of some rows, as they are and with a group of features moved.

    Keeps the vectors of every embedded feature: of a model with attention they cost more than all that follows.
    """

    def __init__(self, run: LoadedRun, features: RankerFeatures) -> None:
        config = run.config.features
        self._run, self._features = run, features
        self._names = [each.name for each in (*config.looked_up, *config.embeddings)]
        self._vectors = self._made(features)

    def whole(self) -> Tensor:
        return self._probabilities(self._features, self._vectors)

    def __call__(self, group: FeatureGroup, order: Tensor) -> Tensor:
        order = order.to(self._run.model.device)
        features = group.moved(self._features, order)
        if group.vectors is None:
            return self._probabilities(features, self._made(features))
        named = zip(self._names, self._vectors, strict=True)
        return self._probabilities(features, [each[order] if name in group.vectors else each for name, each in named])

    @torch.no_grad()
    def _made(self, features: RankerFeatures) -> list[Tensor]:
        with self._run.autocast():
            parts = [self._run.model.network.embeddings(_part(features, start)) for start in self._starts]
        return [torch.cat(vectors) for vectors in zip(*parts, strict=True)]

    @torch.no_grad()
    def _probabilities(self, features: RankerFeatures, vectors: Sequence[Tensor]) -> Tensor:
        model, parts = self._run.model, []
        with self._run.autocast():
            for start in self._starts:
                some = [each[start : start + _ROWS_AT_ONCE] for each in vectors]
                logits = model.network.logits(model.network.inputs(_part(features, start), some))
                parts.append(model.calibrated(logits).cpu())
        return torch.cat(parts)

    @property
    def _starts(self) -> range:
        return range(0, self._features.num_rows, _ROWS_AT_ONCE)


def _part(features: RankerFeatures, start: int) -> RankerFeatures:
    return features.map(lambda tensor: tensor[start : start + _ROWS_AT_ONCE])


@dataclass(frozen=True)
class _Quality:
    """Float64 ``[tasks]`` each."""

    auroc: Tensor
    logloss: Tensor

    @classmethod
    def of(cls, probabilities: Tensor, batch: RankerBatch) -> _Quality:
        """Of probabilities ``[rows, tasks]``, weighted as metrics are."""
        labels, weights = batch.labels.cpu() > 0, batch.weights.cpu().double()
        areas = [auroc(*columns) for columns in zip(probabilities.T, labels.T, weights.T, strict=True)]
        loss = (losses(probabilities.double(), labels) * weights).sum(0) / weights.sum(0)
        return cls(torch.tensor(areas, dtype=torch.float64), loss)


def _importance(group: FeatureGroup, tasks: Sequence[str], whole: _Quality, permuted: Sequence[_Quality]) -> Importance:
    drops = torch.stack([whole.auroc - quality.auroc for quality in permuted])  # [repeats, tasks]
    rises = torch.stack([quality.logloss - whole.logloss for quality in permuted])
    return Importance(
        group.name,
        group.kind,
        logloss_rise=_change(rises.sum(1)),
        auroc_drop=_change(drops.nanmean(1)),
        tasks={
            task: TaskImportance(_change(drop), _change(rise))
            for task, drop, rise in zip(tasks, drops.T, rises.T, strict=True)
        },
    )


def _described(tasks: Sequence[str], whole: _Quality, batch: RankerBatch) -> dict[str, TaskQuality]:
    positives = (batch.labels > 0).sum(0).tolist()
    columns = zip(tasks, positives, whole.auroc.tolist(), whole.logloss.tolist(), strict=True)
    return {task: TaskQuality(count, area, loss) for task, count, area, loss in columns}


def _change(repeats: Tensor) -> Change:
    return Change(float(repeats.mean()), float(repeats.std()) if len(repeats) > 1 else 0.0)
