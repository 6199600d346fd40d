"""A heavy-ranker configuration of twitter/the-algorithm-ml, said in ours.

``docs/from-the-algorithm-ml.md`` has each field. Names of columns are those that ``renamed_features`` give.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rookery.config.document import KeyPath, Problem
from rookery.config.fields import leaves
from rookery.config.loader import load_config
from rookery.config.reference_training import training_notes, training_section
from rookery.config.translation import Note, OtherSchema, Translation, merged, unused_notes
from rookery.ranker.config import RankerConfig
from rookery.ranker.reference_features import (
    feature_notes,
    features_section,
    keys_section,
    missing_widths,
    preprocess_section,
    stratifiers,
)
from rookery.ranker.reference_model import model_notes, model_section
from rookery.ranker.reference_schema import (
    ReferenceData,
    ReferenceOptimizer,
    ReferencePreprocess,
    ReferenceRankerConfig,
)


def load_ranker_config(path: Path, overrides: Sequence[str] = (), flags: Sequence[str] = ()) -> RankerConfig:
    """A configuration in our schema or in that of the-algorithm-ml. As ``rookery.config.loader.load_config``."""
    return load_config(RankerConfig, path, overrides, flags, REFERENCE)


def translate(config: ReferenceRankerConfig) -> Translation:
    """The same job in our schema; widths of blocks are in the schema of the records."""
    train, validates = config.train_data, bool(config.validation_data)
    translated: dict[str, Any] = {
        "runtime": {"enable_tensorfloat32": True},
        "training": training_section(config.training, config.training.num_train_steps, validates=validates),
        "keys": keys_section(config),
        "labels": {task: rates.model_dump() for task, rates in train.tasks.items()},
        "features": features_section(config),
        "preprocess": preprocess_section(config),
        "train_data": _train_partition(train),
        "validation_data": {
            name: _evaluation_partition(config, partition) for name, partition in config.validation_data.items()
        },
        "model": model_section(config.model),
        "optimizer": _optimizer(config.optimizer),
        "evaluation": {"stratifiers": stratifiers(config)},
    }
    notes = [*unused_notes(config), *training_notes(config.training, validates=validates), *model_notes(config.model)]
    notes += [*feature_notes(config), *_task_notes(config), *_partition_notes(config), *_comments(config)]
    return Translation(translated, merged(notes), _origins(config), lambda data: missing_widths(data, train))


def _train_partition(data: ReferenceData) -> dict[str, Any]:
    downsample = data.preprocess.downsample_negatives if data.preprocess is not None else None
    rows_per_kept = 1 if downsample is None else downsample.batch_multiplier
    partition = _partition(data) | {
        "batch_size": data.global_batch_size * rows_per_kept,
        "on_corrupt": "skip" if data.ignore_data_errors else "fail",
    }
    if data.examples_shuffle_buffer_size is not None:
        partition["buffer_rows"] = data.examples_shuffle_buffer_size
    return partition


def _evaluation_partition(config: ReferenceRankerConfig, data: ReferenceData) -> dict[str, Any]:
    trained = config.train_data.tasks
    own = {task: rates for task, rates in data.tasks.items() if task in trained and rates != trained[task]}
    partition = _partition(data) | {"batch_size": data.global_batch_size}
    tasks = [task for task in data.evaluation_tasks if task in config.model.tasks]
    if data.evaluation_tasks:
        partition |= {"tasks": tasks} if tasks else {"during_training": False}
    if own:
        partition["sampling"] = {task: rates.model_dump() for task, rates in own.items()}
    return partition


def _partition(data: ReferenceData) -> dict[str, Any]:
    schema = data.seg_dense_schema
    dates, hours = data.explicit_date_inputs, data.explicit_datetime_inputs
    places = {
        "inputs": None if data.inputs is None else [data.inputs],
        "explicit_date_inputs": None if dates is None else dates.model_dump(),
        "explicit_datetime_inputs": None if hours is None else hours.model_dump(),
        "num_files_to_keep": data.num_files_to_keep,
    }
    records: dict[str, Any] = {"schema_path": schema.schema_path}
    if schema.renamed_features:
        records["renamed_features"] = dict(schema.renamed_features)
    if schema.mask_mantissa_features:
        records["mask_mantissa_features"] = dict(schema.mask_mantissa_features)
    return {**{name: value for name, value in places.items() if value is not None}, "records": records}


def _optimizer(optimizer: ReferenceOptimizer) -> dict[str, Any]:
    section: dict[str, Any] = {"adam": optimizer.adam.model_dump()}
    several = optimizer.multi_task_learning_rates
    if optimizer.single_task_learning_rate is not None:
        single = optimizer.single_task_learning_rate
        return section | {"single_task_learning_rate": single.model_dump(mode="json", exclude_none=True)}
    assert several is not None  # exactly one is given
    rates: dict[str, Any] = {
        "tower_learning_rates": {
            task: rate.model_dump(mode="json", exclude_none=True) for task, rate in several.tower_learning_rates.items()
        }
    }
    if several.backbone_learning_rate is not None:
        rates["backbone_learning_rate"] = several.backbone_learning_rate.model_dump(mode="json", exclude_none=True)
    return section | {"multi_task_learning_rates": rates}


def _task_notes(config: ReferenceRankerConfig) -> Iterator[Note]:
    untrained = [task for task in config.train_data.tasks if task not in config.model.tasks]
    if untrained:
        fields = tuple(f"train_data.tasks.{task}" for task in untrained)
        yield Note(fields, "the model has no tower for it: not trained", ("labels", untrained[0]))
    if config.train_data.evaluation_tasks:
        text = "training measures nothing; those of each partition of validation_data count"
        yield Note(("train_data.evaluation_tasks",), text)
    for name, data in config.validation_data.items():
        where = f"validation_data.{name}"
        for task in data.tasks:
            if task not in config.train_data.tasks:
                yield Note((f"{where}.tasks.{task}",), "train_data.tasks has no such task: not read")
        for task in data.evaluation_tasks:
            if task not in config.model.tasks:
                yield Note((f"{where}.evaluation_tasks",), f"the model has no tower for {task}: not measured")


def _partition_notes(config: ReferenceRankerConfig) -> Iterator[Note]:
    """What a partition of validation has otherwise than training, and may not."""
    train = _preprocessing(config.train_data.preprocess)
    for name, data in config.validation_data.items():
        where = f"validation_data.{name}.preprocess"
        if data.preprocess is not None and data.preprocess.downsample_negatives is not None:
            text = "rows are left out in training alone: every row of a partition is measured"
            yield Note((f"{where}.downsample_negatives",), text)
        own = _preprocessing(data.preprocess)
        fields = tuple(f"{where}.{path}" for path in sorted({*own, *train}) if own.get(path) != train.get(path))
        if fields:
            yield Note(fields, "all rows are preprocessed as train_data.preprocess says")
        if data.examples_shuffle_buffer_size is not None:
            yield Note((f"validation_data.{name}.examples_shuffle_buffer_size",), "measured rows are not shuffled")
        if data.ignore_data_errors:
            text = "training alone goes on without rows that cannot be read"
            yield Note((f"validation_data.{name}.ignore_data_errors",), text)


def _preprocessing(config: ReferencePreprocess | None) -> dict[str, Any]:
    """Its fields by path, but for what is done in training alone."""
    dumped = {} if config is None else config.model_dump(mode="json", exclude={"downsample_negatives"})
    return {path: value for path, value in leaves(dumped) if value is not None}


def _comments(config: ReferenceRankerConfig) -> Iterator[Note]:
    """What a reader of the translation may wonder at."""
    train = config.train_data
    if config.validation_data:
        text = "every checkpoint is measured on each partition, as the evaluator does there"
        yield Note(("training.checkpoint_every_n",), text, ("training", "validate_every_n"), comment=True)
    yield Note(("runtime",), "always on there; acts on CUDA", ("runtime", "enable_tensorfloat32"), comment=True)
    if train.preprocess is not None and train.preprocess.downsample_negatives is not None:
        text = "rows that are read; preprocess.downsample_negatives keeps one of rows_per_kept"
        yield Note(("train_data.global_batch_size",), text, ("train_data", "batch_size"), comment=True)
    if any(rates.pos_downsampling_rate != 1 or rates.neg_downsampling_rate != 1 for rates in train.tasks.values()):
        text = "the loss there is weighted by these rates too, which corrects twice; here probabilities and metrics are"
        fields = tuple(f"train_data.tasks.{task}" for task in train.tasks)
        yield Note(fields, text, ("labels",))


def _origins(config: ReferenceRankerConfig) -> dict[KeyPath, KeyPath]:
    """Where the branches of ours were."""
    origins: dict[KeyPath, KeyPath] = {
        ("labels",): ("train_data", "tasks"),
        ("preprocess",): ("train_data", "preprocess"),
        ("features",): ("train_data", "seg_dense_schema"),
        ("keys",): ("train_data", "seg_dense_schema", "renamed_features"),
        ("evaluation", "stratifiers"): ("model", "stratifiers"),
    }
    partitions: list[KeyPath] = [("train_data",), *(("validation_data", name) for name in config.validation_data)]
    renamed = {
        "records": "seg_dense_schema",
        "batch_size": "global_batch_size",
        "buffer_rows": "examples_shuffle_buffer_size",
        "on_corrupt": "ignore_data_errors",
        "sampling": "tasks",
        "tasks": "evaluation_tasks",
    }
    return origins | {(*path, ours): (*path, theirs) for path in partitions for ours, theirs in renamed.items()}


def _recognises(data: Mapping[str, Any]) -> bool:
    """There the training data describe tasks and records, here sections of their own do."""
    train = data.get("train_data")
    return isinstance(train, Mapping) and ("seg_dense_schema" in train or "global_batch_size" in train)


def _unlabelled(config: ReferenceRankerConfig) -> list[Problem]:
    """Towers without labels to learn from."""
    tasks = config.train_data.tasks
    message = "train_data.tasks has no such task; add it there if the records have its label, or remove the tower"
    return [Problem(("model", "tasks", task), message) for task in config.model.tasks if task not in tasks]


REFERENCE = OtherSchema(ReferenceRankerConfig, _recognises, translate, _unlabelled)
