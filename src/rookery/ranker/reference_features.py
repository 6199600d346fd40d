"""What a row is to the-algorithm-ml's heavy ranker, in ours: blocks of fixed names, tables, keys, preprocessing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rookery.config.document import KeyPath
from rookery.config.suggest import did_you_mean
from rookery.config.translation import Note
from rookery.data.segdense import RAGGED, read_schema
from rookery.errors import ConfigError, DataError
from rookery.ranker.reference_model_schema import ReferenceModel
from rookery.ranker.reference_schema import ReferenceData, ReferencePreprocess, ReferenceRankerConfig
from rookery.storage.location import as_location

_EMBEDDINGS = ("user_embedding", "user_eng_embedding", "author_embedding")
"""In the order in which they enter the network."""
_KEYS = {"user": "meta__user_id", "item": "meta__tweet_id"}
_NAME_SCHEMA = (
    "name the file with --set train_data.records.schema_path=PATH --set 'validation_data.*.records.schema_path=PATH'"
)
_BLOCKS = ("continuous", "binary", "dense", "blocks")


def features_section(config: ReferenceRankerConfig) -> dict[str, Any]:
    """Blocks without their widths, small and large tables."""
    renamed = config.train_data.seg_dense_schema.renamed_features
    seen = ["continuous", "binary", *(name for name in _EMBEDDINGS if name in renamed)]
    unseen = sorted({source for source, _ in _extractions(config).values()} - set(seen))
    section: dict[str, Any] = {
        "continuous": [{"name": "continuous"}],
        "binary": [{"name": "binary"}],
        "dense": [{"name": name} for name in seen[2:]],
        "blocks": [{"name": name} for name in unseen],
        "discrete": [],
        "tables": [],
    }
    small, large = config.model.small_embeddings, config.model.large_embeddings
    for table in large.tables if large is not None else ():
        assert large is not None
        section["discrete"].append({"name": table.name, "table": table.name})
        rate = large.optimizer.learning_rate
        optimizer: dict[str, Any] = {"sgd": {"lr": large.optimizer.init_learning_rate}}
        if rate is not None:
            optimizer["learning_rate"] = rate.model_dump(mode="json", exclude_none=True)
        size = {"vocabulary": {"max_size": table.num_embeddings}, "optimizer": optimizer}
        section["tables"].append({"name": table.name, "embedding_dim": table.embedding_dim, **size})
    for each in small.tables if small is not None else ():
        section["discrete"].append({"name": each.name, "column": _discrete(each.index), "table": each.name})
        columns = {"embedding_dim": each.embedding_dim, "num_embeddings": each.num_embeddings}
        section["tables"].append({"name": each.name, **columns})
    return {kind: features for kind, features in section.items() if features}


def keys_section(config: ReferenceRankerConfig) -> dict[str, Any]:
    """Users and items where the records have them, and the position."""
    renamed = config.train_data.seg_dense_schema.renamed_features
    keys = {key: name for key, name in _KEYS.items() if name in renamed}
    position = config.model.position_debias_config
    return keys if position is None else keys | {"position": _discrete(position.position_feature_index)}


def stratifiers(config: ReferenceRankerConfig) -> list[dict[str, Any]]:
    """By the extracted columns that they look at."""
    return [
        {"name": one.name, "column": _discrete(one.index), "value": one.value} for one in config.model.stratifiers or ()
    ]


def preprocess_section(config: ReferenceRankerConfig) -> dict[str, Any]:
    """That of training, which all rows pass."""
    preprocess = config.train_data.preprocess or ReferencePreprocess()
    section: dict[str, Any] = {
        "truncate_and_slice": _cuts(preprocess),
        "extract_features": [
            {"name": name, "source_tensor": source, "index": index}
            for name, (source, index) in _extractions(config).items()
        ],
    }
    if preprocess.downcast is not None:
        section["downcast"] = {name: kind for name, kind in preprocess.downcast.features.items() if kind != "float32"}
    rectify, downsample = preprocess.rectify_labels, preprocess.downsample_negatives
    if rectify is not None:
        section["rectify_labels"] = {
            "label_rectification_window_in_hours": rectify.label_rectification_window_in_hours,
            "served_timestamp_field": rectify.served_timestamp_field,
            "impressed_timestamp_field": rectify.impressed_timestamp_field,
            "label_to_engaged_timestamp_field": dict(rectify.label_to_engaged_timestamp_field),
        }
    if downsample is not None:
        engagements = list(downsample.engagements_list)
        section["downsample_negatives"] = {
            "rows_per_kept": downsample.batch_multiplier,
            "engagements_list": engagements,
        }
    return {name: value for name, value in section.items() if value}


def feature_notes(config: ReferenceRankerConfig) -> Iterator[Note]:
    """Features that the records have by name, or that are taken out of a block, and that nothing reads."""
    read, extractions = _read(config), _extractions(config)
    extract = config.train_data.preprocess.extract_features if config.train_data.preprocess is not None else None
    for place, row in enumerate(extract.extract_feature_table if extract is not None else ()):
        if row.name not in read or extractions[row.name] != (row.source_tensor, row.index):
            where = f"train_data.preprocess.extract_features.extract_feature_table.{place}"
            yield Note((where,), "nothing reads what is extracted", ("preprocess", "extract_features"))
    used = read | {source for source, _ in extractions.values()}
    trained = config.train_data.seg_dense_schema
    schemas = {"train_data": trained}
    schemas |= {f"validation_data.{name}": data.seg_dense_schema for name, data in config.validation_data.items()}
    for partition, schema in schemas.items():
        if schema is not trained and schema == trained:
            continue  # told of already
        where = f"{partition}.seg_dense_schema"
        for name in schema.renamed_features:
            if name not in used:
                yield Note((f"{where}.renamed_features.{name}",), "nothing reads it")
        listed = [name for name in schema.features if name not in used]
        if listed:
            yield Note((f"{where}.features",), f"nothing reads {', '.join(listed)}")


def missing_widths(data: Mapping[str, Any], train: ReferenceData) -> list[tuple[KeyPath, Any]]:
    """The widths of blocks that have none yet, by the schema of the training records.

    ``ConfigError`` where the schema does not tell, with the override that does.
    """
    features = data.get("features")
    blocks = [
        (("features", kind, place), feature["name"])
        for kind in _BLOCKS
        for place, feature in enumerate(features.get(kind) or () if isinstance(features, Mapping) else ())
        if isinstance(feature, Mapping) and "name" in feature and "width" not in feature
    ]
    if not blocks:
        return []
    described = data.get("train_data")
    records = described.get("records") if isinstance(described, Mapping) else None
    own = records if isinstance(records, Mapping) else {}
    remedy = _NAME_SCHEMA if own else f"put it there, or name the widths: {_set_widths([field for field, _ in blocks])}"
    path = str(own.get("schema_path") or train.seg_dense_schema.schema_path)
    renamed = own.get("renamed_features") or train.seg_dense_schema.renamed_features
    lengths = _lengths(path, remedy)
    return [((*field, "width"), _width(path, lengths, name, str(renamed.get(name, name)))) for field, name in blocks]


def _set_widths(fields: Sequence[KeyPath]) -> str:
    return " ".join(f"--set {'.'.join(map(str, field))}.width=WIDTH" for field in fields)


def _lengths(path: str, remedy: str) -> dict[str, int]:
    try:
        return {entry.feature_name: entry.length for entry in read_schema(as_location(path))}
    except (DataError, ValueError) as error:
        raise ConfigError(f"train_data.records.schema_path={path}: {error}; {remedy}") from error


def _width(path: str, lengths: Mapping[str, int], name: str, feature: str) -> int:
    length = lengths.get(feature)
    if length is None:
        raise ConfigError(
            f"train_data.records.renamed_features.{name}={feature}: {path} has no such feature; "
            f"{did_you_mean(feature, list(lengths))}"
        )
    if length == RAGGED:
        raise ConfigError(
            f"train_data.records.renamed_features.{name}={feature}: lists of any length in {path}, and the network "
            "needs one length; correct the schema, or name another feature"
        )
    return length


def _discrete(index: int) -> str:
    """The name of a column of the block ``discrete``."""
    return f"discrete_{index}"


def _extractions(config: ReferenceRankerConfig) -> dict[str, tuple[str, int]]:
    """Block and index of each column that is taken out of a block, by its name."""
    preprocess = config.train_data.preprocess
    table = preprocess.extract_features if preprocess is not None else None
    extracted = (
        {} if table is None else {row.name: (row.source_tensor, row.index) for row in table.extract_feature_table}
    )
    return extracted | {_discrete(index): ("discrete", index) for index in _indices(config.model)}


def _indices(model: ReferenceModel) -> list[int]:
    """The columns of the block ``discrete`` that the model looks at."""
    indices = [table.index for table in model.small_embeddings.tables] if model.small_embeddings is not None else []
    indices += [one.index for one in model.stratifiers or ()]
    if model.position_debias_config is not None:
        indices.append(model.position_debias_config.position_feature_index)
    return indices


def _cuts(preprocess: ReferencePreprocess) -> list[dict[str, Any]]:
    cut = preprocess.truncate_and_slice
    if cut is None:
        return []
    found = {
        "continuous": (cut.continuous_feature_truncation, cut.continuous_feature_mask_path),
        "binary": (cut.binary_feature_truncation, cut.binary_feature_mask_path),
    }
    cuts = []
    for feature, (truncation, mask_path) in found.items():
        fields = {"truncation": truncation, "mask_path": mask_path}
        given = {name: value for name, value in fields.items() if value is not None}
        if given:
            cuts.append({"feature": feature, **given})
    return cuts


def _read(config: ReferenceRankerConfig) -> set[str]:
    """Columns that have a part in training or measuring, besides those that others are taken out of."""
    train, model = config.train_data, config.model
    read = {"continuous", "binary", *_EMBEDDINGS, *_KEYS.values(), *train.tasks, *map(_discrete, _indices(model))}
    read |= {table.name for table in model.large_embeddings.tables} if model.large_embeddings is not None else set()
    rectify = train.preprocess.rectify_labels if train.preprocess is not None else None
    if rectify is not None:
        read |= {rectify.served_timestamp_field, rectify.impressed_timestamp_field}
        read |= set(rectify.label_to_engaged_timestamp_field.values())
    return read
