"""Which columns of the files a configuration reads, and under which key each of its uses finds its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from rookery.data.columns import ColumnRequest
from rookery.ranker.config import RankerConfig
from rookery.ranker.features_config import NumericFeature

Group = Literal["features", "labels", "keys"]


@dataclass(frozen=True)
class ColumnUse:
    """``field`` of the configuration reads a column; ``group`` says what for."""

    field: str
    group: Group
    request: ColumnRequest


class ColumnPlan:
    """The columns of a configuration. Columns that ``extract_features`` makes are none of the files.

    A column that is read in two ways (hour as a number and as a discrete value) has two requests with two keys.
    """

    def __init__(self, config: RankerConfig) -> None:
        self.extracted = {one.name: one for one in config.preprocess.extract_features}
        self.uses = self._with_keys(use for use in _uses(config) if use.request.name not in self.extracted)
        self._keys = {_form(use.request): use.request.key for use in self.uses}

    def key(self, request: ColumnRequest) -> str:
        """Where a batch has what was requested; an extracted column has its own name."""
        return self._keys.get(_form(request), request.name)

    def requests(self, *, labels: bool, keys: bool) -> list[ColumnRequest]:
        """What to read for features, and for labels and keys if wanted; each once."""
        groups = {"features", *(["labels"] if labels else []), *(["keys"] if keys else [])}
        return list(dict.fromkeys(use.request for use in self.uses if use.group in groups))

    @staticmethod
    def _with_keys(uses: Iterator[ColumnUse]) -> tuple[ColumnUse, ...]:
        """The first use of a column has its name as the key, uses of other kinds the kind besides."""
        taken: dict[str, ColumnRequest] = {}
        keyed = []
        for use in uses:
            request = use.request
            if _form(taken.setdefault(request.name, request)) != _form(request):
                request = replace(request, key=f"{request.name}:{request.kind}{request.max_length or ''}")
            keyed.append(replace(use, request=request))
        return tuple(keyed)


def label_column(config: RankerConfig, task: str) -> str:
    """The column of a task's label."""
    return config.labels[task].column or task


def read_labels(config: RankerConfig) -> tuple[str, ...]:
    """The labels that are read: those of the model's tasks, and those that keep a row in down-sampling."""
    downsample = config.preprocess.downsample_negatives
    kept_for = downsample.engagements_list if downsample is not None else ()
    return tuple(dict.fromkeys((*config.tasks, *kept_for)))


def numeric_request(feature: NumericFeature) -> ColumnRequest:
    """A number, or a vector of them for a block."""
    if feature.width == 1:
        return ColumnRequest(feature.source, "number")
    return ColumnRequest(feature.source, "vector", width=feature.width)


def id_request(column: str, max_length: int | None = None) -> ColumnRequest:
    """An id, or with ``max_length`` a list of them."""
    return ColumnRequest(column, "id") if max_length is None else ColumnRequest(column, "id_list", None, max_length)


def id_fields(config: RankerConfig, column: str) -> list[str]:
    """Fields of the configuration that read a column as ids or times of 64 bits."""
    wide = ("keys.user", "features.ragged.", "features.embeddings.", "preprocess.rectify_labels.")
    return [use.field for use in _uses(config) if use.request.name == column and use.field.startswith(wide)]


def _form(request: ColumnRequest) -> tuple[str, str, int | None, int | None]:
    return request.name, request.kind, request.width, request.max_length


def _uses(config: RankerConfig) -> Iterator[ColumnUse]:
    yield from _feature_uses(config)
    yield from _label_uses(config)
    if config.keys.user is not None:
        yield ColumnUse("keys.user", "keys", id_request(config.keys.user))
    for stratifier in config.evaluation.stratifiers:
        field = f"evaluation.stratifiers.{stratifier.name}.column"
        yield ColumnUse(field, "keys", id_request(stratifier.column))


def _feature_uses(config: RankerConfig) -> Iterator[ColumnUse]:
    features = config.features
    for kind in ("continuous", "binary", "dense", "blocks"):
        for numeric in getattr(features, kind):
            yield ColumnUse(f"features.{kind}.{numeric.name}", "features", numeric_request(numeric))
    for discrete in features.discrete:
        yield ColumnUse(f"features.discrete.{discrete.name}", "features", id_request(discrete.source))
    for ragged in features.ragged:
        request = id_request(ragged.source, ragged.max_length)
        yield ColumnUse(f"features.ragged.{ragged.name}", "features", request)
    for joined in features.embeddings:
        request = id_request(joined.key, joined.max_length)
        yield ColumnUse(f"features.embeddings.{joined.name}.key", "features", request)


def _label_uses(config: RankerConfig) -> Iterator[ColumnUse]:
    for task in read_labels(config):
        yield ColumnUse(f"labels.{task}", "labels", ColumnRequest(label_column(config, task), "label"))
    rectify = config.preprocess.rectify_labels
    if rectify is not None:
        field = "preprocess.rectify_labels"
        for name in ("served_timestamp_field", "impressed_timestamp_field"):
            yield ColumnUse(f"{field}.{name}", "labels", id_request(getattr(rectify, name)))
        for task, column in rectify.label_to_engaged_timestamp_field.items():
            place = f"{field}.label_to_engaged_timestamp_field.{task}"
            yield ColumnUse(place, "labels", id_request(column))
    # With the labels: a row that is yet to be scored has no position, and the model asks for it in training alone.
    if config.model.position_debias_config is not None and config.keys.position is not None:
        yield ColumnUse("keys.position", "labels", id_request(config.keys.position))
    if config.keys.weight is not None:
        yield ColumnUse("keys.weight", "labels", ColumnRequest(config.keys.weight, "number"))
