"""A TwHIN configuration of twitter/the-algorithm-ml, said in ours. ``docs/from-the-algorithm-ml.md`` has each field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rookery.config.loader import load_config
from rookery.config.reference_training import training_notes, training_section
from rookery.config.translation import Note, OtherSchema, Translation, merged, unused_notes
from rookery.twhin.config import TwhinConfig
from rookery.twhin.reference_schema import (
    ReferenceOptimizer,
    ReferenceTable,
    ReferenceTwhinConfig,
)


def load_twhin_config(path: Path, overrides: Sequence[str] = (), flags: Sequence[str] = ()) -> TwhinConfig:
    """A configuration in our schema or in that of the-algorithm-ml. As ``rookery.config.loader.load_config``."""
    return load_config(TwhinConfig, path, overrides, flags, REFERENCE)


def translate(config: ReferenceTwhinConfig) -> Translation:
    """The same job in our schema."""
    embeddings, data = config.model.embeddings, config.train_data
    training = training_section(config.training, config.training.num_train_steps, validates=False)
    translated: dict[str, Any] = {
        "runtime": {
            "enable_amp": config.runtime.enable_amp,
            "enable_tensorfloat32": config.runtime.enable_tensorfloat32,
        },
        "training": training,
        "model": {
            "embeddings": {"tables": [_table(table) for table in embeddings.tables]},
            "relations": [
                {"name": each.name, "lhs": each.lhs, "rhs": each.rhs, "operator": each.operator}
                for each in config.model.relations
            ],
            "translation_optimizer": _optimizer(config.model.translation_optimizer),
            "operator_side": "rhs",
        },
        "train_data": {
            "data_root": data.data_root,
            "per_replica_batch_size": data.per_replica_batch_size,
            "global_negatives": data.global_negatives,
            "in_batch_negatives": data.in_batch_negatives,
            "chunk_size": data.per_replica_batch_size,
        },
    }
    if config.training.num_epochs is not None:
        training["num_epochs"] = config.training.num_epochs
    if embeddings.tables_to_log is not None:
        translated["model"]["embeddings"]["tables_to_log"] = list(embeddings.tables_to_log)
    notes = merged([*unused_notes(config), *training_notes(config.training, validates=False), *_notes(config)])
    return Translation(translated, notes)


def _table(table: ReferenceTable) -> dict[str, Any]:
    fields = {
        "name": table.name,
        "num_embeddings": table.num_embeddings,
        "embedding_dim": table.embedding_dim,
        "data_type": table.data_type,
        "optimizer": _optimizer(table.optimizer),
        "pretrained": table.pretrained if isinstance(table.pretrained, str) else None,
        "vocab": table.vocab,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _optimizer(config: ReferenceOptimizer) -> dict[str, Any]:
    """With the values that are left out there, where other ones would be filled in here."""
    return {
        name: chosen.model_dump(mode="json", exclude_none=True)
        for name, chosen in (
            ("sgd", config.sgd),
            ("adagrad", config.adagrad),
            ("adam", config.adam),
            ("learning_rate", config.learning_rate),
        )
        if chosen is not None
    }


def _notes(config: ReferenceTwhinConfig) -> Iterator[Note]:
    yield from _optimizer_notes(config)
    training, data = config.training, config.train_data
    text = "what is computed there is lhs · (rhs + relation)"
    yield Note(("model.relations",), text, ("model", "operator_side"), comment=True)
    text = "edges of a batch share their negatives there; smaller chunks draw more of them"
    yield Note(("train_data.in_batch_negatives",), text, ("train_data", "chunk_size"), comment=True)
    if training.num_epochs is not None:
        text = "is not used there; here training ends with it, or with num_train_steps if they come first"
        yield Note(("training.num_epochs",), text, ("training", "num_epochs"))
    if data.global_negatives:
        text = "is not used there; here so many entities of the right type are drawn besides those of the batch"
        yield Note(("train_data.global_negatives",), text, ("train_data", "global_negatives"))
    for number, table in enumerate(config.model.embeddings.tables):
        where = f"model.embeddings.tables.{number}"
        if table.pretrained is not None and not isinstance(table.pretrained, str):
            text = "a snapshot is not read; `rookery twhin import-weights` takes its tables, pretrained a Parquet file"
            yield Note((f"{where}.pretrained",), text)
        if table.vocab is not None:
            text = "here a Parquet file with columns row and id"
            yield Note((f"{where}.vocab",), text, ("model", "embeddings", "tables", number, "vocab"))


def _optimizer_notes(config: ReferenceTwhinConfig) -> Iterator[Note]:
    """Steps of SGD are proportional to the loss, and that is larger here."""
    per_edge = 1 + 2 * config.train_data.in_batch_negatives
    tables = config.model.embeddings.tables
    owners: list[tuple[tuple[str | int, ...], ReferenceOptimizer]] = [
        (("model", "embeddings", "tables", number, "optimizer"), table.optimizer) for number, table in enumerate(tables)
    ]
    owners.append((("model", "translation_optimizer"), config.model.translation_optimizer))
    sgd = [path for path, optimizer in owners if optimizer.sgd is not None]
    if sgd:
        text = (
            f"the loss there is a mean over all scores, {per_edge} an edge, here over edges: with the same rate a step "
            f"of SGD is {per_edge} times as long here"
        )
        yield Note(tuple(".".join(map(str, (*path, "sgd"))) for path in sgd), text, (*sgd[0], "sgd"))
    scheduled = [
        path
        for path, optimizer in owners[:-1]
        if optimizer.learning_rate is not None and optimizer.learning_rate.constant is None
    ]
    if scheduled:
        text = "tables there keep the rate of the algorithm; here the schedule acts"
        fields = tuple(".".join(map(str, (*path, "learning_rate"))) for path in scheduled)
        yield Note(fields, text, (*scheduled[0], "learning_rate"))


def _recognises(data: Mapping[str, Any]) -> bool:
    """There the validation data are files, here they are a split of a graph."""
    validation = data.get("validation_data")
    return isinstance(validation, Mapping) and "data_root" in validation


REFERENCE = OtherSchema(ReferenceTwhinConfig, _recognises, translate)
