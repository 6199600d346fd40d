"""Each field of the-algorithm-ml's ranker acts in the translation, or a note names it and says why it does not."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from reference_configs import FEATURES, RANKER_FIELDS, fields_besides, ranker_yaml, write_schema

from rookery.config.overrides import set_member
from rookery.config.translation import Note
from rookery.nn.config import FeaturizationConfig, Log1pAbsConfig
from rookery.ranker.config import RankerConfig
from rookery.ranker.from_reference import REFERENCE
from rookery.ranker.reference_schema import ReferenceRankerConfig

# Every field, each with a value that the base has not.

RAMP = {"linear_ramp_to_constant": {"learning_rate": 0.1, "num_ramp_steps": 5}}
COSINE = {"learning_rate": 0.1, "final_learning_rate": 0.01, "num_ramp_steps": 5, "final_num_steps": 50}
STEPS = {"learning_rate_boundaries": [5], "learning_rate_values": [0.1, 0.01]}
MLP = {"layer_sizes": [8, 1], "batch_norm": {"affine": True, "momentum": 0.1}, "dropout": {"rate": 0.1}}
MASK_NET = {"mask_blocks": [{"output_size": 8, "input_layer_norm": True, "aggregation_size": 4}], "mlp": MLP}
DCN = {"poly_degree": 3, "projection_dim": 4, "parallel_mlp": MLP, "output_mlp": MLP}
DLRM = {"bottom_mlp": MLP, "top_mlp": MLP}
LARGE = {
    "tables": [{"name": "meta__author_id", "num_embeddings": 100, "embedding_dim": 4}],
    "optimizer": {"init_learning_rate": 0.1, "learning_rate": RAMP},
}
POSITION = {"position_feature_index": 51}
DATES = {"data_root": "/data", "end_date": "2022/05/04", "days": 7}
HOURS = {"data_root": "/data", "end_datetime": "2022/05/04/23", "hours": 24}
RECTIFY = {
    "served_timestamp_field": "served",
    "impressed_timestamp_field": "impressed",
    "label_to_engaged_timestamp_field": {"like": "liked"},
}
DOWNSAMPLE = {"batch_multiplier": 4, "engagements_list": ["like"]}
Z_SCORE = {"analysis_path": "analysis.json"}

DATA: dict[str, Any] = {
    "inputs": "/other/*.gz",
    "explicit_date_inputs.data_root": "/other",
    "explicit_date_inputs.end_date": "2022/05/05",
    "explicit_date_inputs.days": 8,
    "explicit_date_inputs.num_missing_days_tol": 1,
    "explicit_datetime_inputs.data_root": "/other",
    "explicit_datetime_inputs.end_datetime": "2022/05/05/00",
    "explicit_datetime_inputs.hours": 8,
    "explicit_datetime_inputs.num_missing_hours_tol": 1,
    "global_batch_size": 64,
    "num_files_to_keep": 3,
    "repeat_files": False,
    "file_batch_size": 8,
    "cache": True,
    "ignore_data_errors": True,
    "data_service_dispatcher": "grpc://dispatcher:5050",
    "dataset_service_compression": "AUTO",
    "examples_shuffle_buffer_size": 512,
    "map_num_parallel_calls": 4,
    "interleave_num_parallel_calls": 4,
    "seg_dense_schema.schema_path": "<a copy>",
    "seg_dense_schema.features": ["unread"],
    "seg_dense_schema.renamed_features.discrete": "numbers",
    "seg_dense_schema.mask_mantissa_features": {"continuous": 13},
    "tasks.like.pos_downsampling_rate": 0.5,
    "tasks.like.neg_downsampling_rate": 0.5,
    "evaluation_tasks": ["like"],
    "preprocess.truncate_and_slice.continuous_feature_truncation": 5,
    "preprocess.truncate_and_slice.binary_feature_truncation": 5,
    "preprocess.truncate_and_slice.continuous_feature_mask_path": "/mask.npy",
    "preprocess.truncate_and_slice.binary_feature_mask_path": "/mask.npy",
    "preprocess.downcast.features": {"continuous": "bfloat16"},
    "preprocess.rectify_labels.label_rectification_window_in_hours": 4.0,
    "preprocess.rectify_labels.served_timestamp_field": "other",
    "preprocess.rectify_labels.impressed_timestamp_field": "other",
    "preprocess.rectify_labels.label_to_engaged_timestamp_field": {"share": "shared"},
    "preprocess.extract_features.extract_feature_table.0.name": "second",
    "preprocess.extract_features.extract_feature_table.0.source_tensor": "binary",
    "preprocess.extract_features.extract_feature_table.0.index": 2,
    "preprocess.downsample_negatives.batch_multiplier": 5,
    "preprocess.downsample_negatives.engagements_list": ["share"],
    "preprocess.downsample_negatives.num_engagements": 3,
    "sampler": {"name": "some", "kwargs": {}},
}
NETWORK: dict[str, Any] = {
    "mlp_config.layer_sizes": [4, 1],
    "mlp_config.batch_norm.affine": False,
    "mlp_config.batch_norm.momentum": 0.2,
    "mlp_config.dropout.rate": 0.2,
    "mlp_config.final_layer_activation": True,
    "mask_net_config.mask_blocks.0.output_size": 9,
    "mask_net_config.mask_blocks.0.input_layer_norm": False,
    "mask_net_config.mask_blocks.0.aggregation_size": 9,
    "mask_net_config.mask_blocks.0.reduction_factor": 0.5,
    "mask_net_config.mlp": None,
    "mask_net_config.use_parallel": True,
    "dcn_config.poly_degree": 4,
    "dcn_config.projection_dim": 5,
    "dcn_config.parallel_mlp": None,
    "dcn_config.use_parallel": False,
    "dcn_config.output_mlp": None,
    "dlrm_config.bottom_mlp.layer_sizes": [6],
    "dlrm_config.top_mlp.layer_sizes": [6, 1],
    "affine_map.scale": 2.0,
    "affine_map.bias": 1.0,
    "pos_weight": 2.0,
}
RATE: dict[str, Any] = {
    "constant": 0.3,
    "piecewise_constant.learning_rate_boundaries": [6],
    "piecewise_constant.learning_rate_values": [0.1, 0.02],
    "linear_ramp_to_constant.learning_rate": 0.2,
    "linear_ramp_to_constant.num_ramp_steps": 6,
    "linear_ramp_to_cosine.learning_rate": 0.2,
    "linear_ramp_to_cosine.final_learning_rate": 0.02,
    "linear_ramp_to_cosine.num_ramp_steps": 6,
    "linear_ramp_to_cosine.final_num_steps": 60,
}


def under(prefix: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{field}": value for field, value in fields.items()}


FIELDS: dict[str, Any] = {
    "training.save_dir": "/elsewhere",
    "training.num_train_steps": 7,
    "training.checkpoint_every_n": 3,
    "training.checkpoint_max_to_keep": 2,
    "training.train_log_every_n": 9,
    "training.num_eval_steps": -3,
    "training.eval_log_every_n": 3,
    "training.eval_timeout_in_s": 5.0,
    "training.initial_checkpoint_dir": "/run",
    "training.gradient_accumulation": 4,
    **under("train_data", DATA),
    **under("validation_data.valid", DATA),
    **under("model.tasks.like", NETWORK),
    **under("model.backbone", NETWORK),
    "model.multi_task_type": "share_partial",
    "model.large_embeddings.tables.0.name": "meta__tweet_id",
    "model.large_embeddings.tables.0.num_embeddings": 200,
    "model.large_embeddings.tables.0.embedding_dim": 8,
    "model.large_embeddings.tables.0.pretrained": {"emb_name": "x", "embedding_snapshot_uri": "y"},
    "model.large_embeddings.tables.0.vocab": "/vocab",
    "model.large_embeddings.tables_to_log": ["meta__author_id"],
    "model.large_embeddings.optimizer.init_learning_rate": 0.2,
    **under("model.large_embeddings.optimizer.learning_rate", RATE),
    "model.small_embeddings.tables.0.name": "other",
    "model.small_embeddings.tables.0.num_embeddings": 11,
    "model.small_embeddings.tables.0.embedding_dim": 3,
    "model.small_embeddings.tables.0.index": 8,
    "model.position_debias_config.max_position": 10,
    "model.position_debias_config.num_dims": 8,
    "model.position_debias_config.drop_probability": 0.25,
    "model.position_debias_config.position_feature_index": 50,
    "model.featurization_config.clip_log1p_abs_config.clip_magnitude": 9.0,
    "model.featurization_config.z_score_log_config.analysis_path": "other.json",
    "model.featurization_config.z_score_log_config.schema_path": "schema.json",
    "model.featurization_config.z_score_log_config.clip_magnitude": 4.0,
    "model.featurization_config.z_score_log_config.use_batch_norm": True,
    "model.featurization_config.z_score_log_config.use_renorm": True,
    "model.featurization_config.z_score_log_config.use_bq_stats": True,
    "model.featurization_config.double_norm_log_config.batch_norm_config.affine": False,
    "model.featurization_config.double_norm_log_config.batch_norm_config.momentum": 0.2,
    "model.featurization_config.double_norm_log_config.clip_magnitude": 4.0,
    "model.featurization_config.double_norm_log_config.layer_norm_config.axis": 1,
    "model.featurization_config.double_norm_log_config.layer_norm_config.center": False,
    "model.featurization_config.double_norm_log_config.layer_norm_config.epsilon": 0.01,
    "model.featurization_config.double_norm_log_config.layer_norm_config.scale": False,
    "model.featurization_config.feature_names_to_concat": [],
    "model.stratifiers.0.name": "others",
    "model.stratifiers.0.index": 4,
    "model.stratifiers.0.value": 5,
    "optimizer.adam.beta_1": 0.8,
    "optimizer.adam.beta_2": 0.99,
    "optimizer.adam.epsilon": 1e-6,
    **under("optimizer.single_task_learning_rate", RATE),
    **under("optimizer.multi_task_learning_rates.backbone_learning_rate", RATE),
    **under("optimizer.multi_task_learning_rates.tower_learning_rates.like", RATE),
    "which_metrics": "all",
}

OPTIONAL: dict[str, Any] = {
    # What the base leaves out, put there when a field inside of it is looked at; first the branches that exclude others
    "preprocess.rectify_labels": RECTIFY,
    "preprocess.downsample_negatives": DOWNSAMPLE,
    "preprocess.extract_features": {
        "extract_feature_table": [{"name": "first", "source_tensor": "continuous", "index": 1}]
    },
    "model.large_embeddings": LARGE,
    "model.position_debias_config": POSITION,
    "affine_map": {"scale": 1.0, "bias": 0.0},
}
CHOICES: dict[str, tuple[tuple[str, Any], ...]] = {
    "": (("mlp_config", MLP), ("mask_net_config", MASK_NET), ("dcn_config", DCN), ("dlrm_config", DLRM)),
    "rate": (
        ("constant", 0.1),
        ("piecewise_constant", STEPS),
        ("linear_ramp_to_constant", RAMP["linear_ramp_to_constant"]),
        ("linear_ramp_to_cosine", COSINE),
    ),
    "featurization": (
        ("clip_log1p_abs_config", {}),
        ("z_score_log_config", Z_SCORE),
        ("double_norm_log_config", {"batch_norm_config": {}, "layer_norm_config": {}}),
    ),
    "inputs": (("inputs", "/data/*.gz"), ("explicit_date_inputs", DATES), ("explicit_datetime_inputs", HOURS)),
    "rates": (
        ("single_task_learning_rate", RAMP),
        ("multi_task_learning_rates", {"backbone_learning_rate": RAMP, "tower_learning_rates": {}}),
    ),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two tasks, one partition, a table, a stratifier."""
    folder = tmp_path_factory.mktemp("schema")
    schema = {"schema_path": str(write_schema(folder / "schema.json"))}
    schema |= {"renamed_features": {name: feature for name, (feature, _, _) in FEATURES.items()}}  # type: ignore[dict-item]
    partition = {
        "inputs": "/data/*.gz",
        "global_batch_size": 32,
        "seg_dense_schema": schema,
        "tasks": {"like": {}, "share": {}},
    }
    return {
        "training": {"num_train_steps": 3, "num_eval_steps": 2},
        "model": {
            "multi_task_type": "share_all",
            "backbone": {"mlp_config": MLP},
            "tasks": {"like": {"mlp_config": MLP}},
            "small_embeddings": {"tables": [{"name": "few", "num_embeddings": 10, "embedding_dim": 2, "index": 7}]},
            "stratifiers": [{"name": "some", "index": 3, "value": 1}],
            "featurization_config": {"clip_log1p_abs_config": {}},
        },
        "train_data": partition,
        "validation_data": {"valid": copy.deepcopy(partition)},
        "optimizer": {"adam": {}, "single_task_learning_rate": RAMP},
    }


def context(base: Mapping[str, Any], field: str) -> dict[str, Any]:
    """The base with the optional branches and alternatives that a field needs."""
    data = copy.deepcopy(dict(base))
    keys = field.split(".")
    for branch, value in OPTIONAL.items():
        if f".{branch}." in f".{field}.":
            put(data, field[: field.index(branch) + len(branch)], copy.deepcopy(value))
    for place, key in enumerate(keys):
        for group in CHOICES.values():
            if key in dict(group) and (key != "inputs" or place == 1 + (keys[0] == "validation_data")):
                parent = ".".join(keys[:place])
                for name, value in group:
                    put(data, f"{parent}.{name}", copy.deepcopy(value) if name == key else None)
    if "tower_learning_rates" in keys:
        towers = get(data, "optimizer.multi_task_learning_rates.tower_learning_rates")
        towers.setdefault("like", copy.deepcopy(RAMP))
    elif "multi_task_learning_rates" in keys:
        put(data, "optimizer.multi_task_learning_rates.tower_learning_rates.like", copy.deepcopy(RAMP))
    return data


def path_of(data: Any, field: str) -> list[str | int]:
    return [int(key) if key.isdecimal() else key for key in field.split(".")]


def get(data: Any, field: str) -> Any:
    for key in path_of(data, field):
        data = data[key]
    return data


def put(data: dict[str, Any], field: str, value: Any) -> None:
    """Set a field, making the mappings around it."""
    *parents, last = path_of(data, field)
    place: Any = data
    for parent in parents:
        if isinstance(place, dict) and place.get(parent) is None:
            place[parent] = {}
        place = place[parent]
    place[last] = value


def translated(data: Mapping[str, Any]) -> tuple[RankerConfig, list[Note]]:
    translation = REFERENCE.translate(ReferenceRankerConfig.model_validate(data))
    for path, value in translation.missing(translation.data):
        set_member(translation.data, path, value)
    return RankerConfig.model_validate(translation.data), translation.notes


def names(note: Note, field: str) -> bool:
    return not note.comment and any(
        f"{field}.".startswith(f"{named}.") or named.startswith(f"{field}.") for named in note.fields
    )


@pytest.mark.parametrize("field", FIELDS)
def test_each_field_acts_or_is_answered(base: Mapping[str, Any], field: str, tmp_path: Path) -> None:
    data = context(base, field)
    if field.endswith(".reduction_factor"):
        put(data, field.replace("reduction_factor", "aggregation_size"), None)
        put(data, field, 0.25)
    before, told = translated(data)[0], translated(base)[1]
    value = FIELDS[field]
    if value == "<a copy>":
        value = str(write_schema(tmp_path / "copy.json"))
    put(data, field, value)
    if field.endswith("renamed_features.discrete"):
        schema = write_schema(tmp_path / "renamed.json")
        schema.write_text(schema.read_text().replace(FEATURES["discrete"][0], "numbers"))
        put(data, field.replace("renamed_features.discrete", "schema_path"), str(schema))
    after, notes = translated(data)
    answers = [note for note in notes if names(note, field)]
    assert after != before or (answers and not any(note in told for note in answers)), notes


def test_all_fields_of_the_schema_are_looked_at() -> None:
    missing = fields_besides(ReferenceRankerConfig, FIELDS, {"like", "valid"})
    # Of networks inside of networks the fields of one are looked at where it stands alone.
    assert {field for field in missing if ".mlp." not in field and "_mlp." not in field} == {
        "model.featurization_config.log1p_abs_config"  # below
    }


def test_the_schema_has_the_fields_that_there_are() -> None:
    schema = fields_besides(ReferenceRankerConfig, (), ())
    assert RANKER_FIELDS - schema == set()
    assert {field for field in schema - RANKER_FIELDS if not field.startswith("model.large_embeddings.")} == {
        "which_metrics"
    }


def test_the_logarithm_alone_is_the_logarithm_alone(base: Mapping[str, Any]) -> None:
    data = copy.deepcopy(dict(base))
    put(data, "model.featurization_config", {"log1p_abs_config": {}})
    featurization = translated(data)[0].model.featurization_config
    assert featurization == FeaturizationConfig(log1p_abs_config=Log1pAbsConfig())


def test_batches_of_an_evaluation_are_warned_of_where_none_is(base: Mapping[str, Any]) -> None:
    data = copy.deepcopy(dict(base))
    assert not any(names(note, "training.num_eval_steps") for note in translated(data)[1])
    data["validation_data"] = {}
    assert any(names(note, "training.num_eval_steps") for note in translated(data)[1])
    put(data, "training.num_eval_steps", 16384)  # the default
    assert not any(names(note, "training.num_eval_steps") for note in translated(data)[1])


def test_a_column_that_nothing_reads_is_warned_of(base: Mapping[str, Any]) -> None:
    data = copy.deepcopy(dict(base))
    table = "train_data.preprocess.extract_features.extract_feature_table"
    rows = [
        ("share", "continuous", 1),
        ("other", "binary", 2),
        ("discrete_7", "discrete", 7),
        ("discrete_3", "binary", 3),
    ]
    put(data, table, [dict(zip(("name", "source_tensor", "index"), row, strict=True)) for row in rows])
    told = [field for note in translated(data)[1] for field in note.fields if "extract" in field]
    assert told[:2] == [f"{table}.1", f"{table}.3"]  # a label and a table's column are read


def test_downsampled_rows_are_those_of_the_reference(base: Mapping[str, Any]) -> None:
    data = context(base, "train_data.preprocess.downsample_negatives.batch_multiplier")
    config, _ = translated(data)
    assert config.train_data.batch_size == 4 * 32  # read
    downsample = config.preprocess.downsample_negatives
    assert downsample is not None and downsample.rows_per_kept == 4
    assert config.validation_data["valid"].batch_size == 32


def test_columns_of_the_discrete_block_are_taken_out_once(base: Mapping[str, Any]) -> None:
    data = context(base, "model.position_debias_config.max_position")
    put(data, "model.stratifiers.0.index", 51)
    config, _ = translated(data)
    extracted = {one.name: (one.source_tensor, one.index) for one in config.preprocess.extract_features}
    assert extracted == {"discrete_7": ("discrete", 7), "discrete_51": ("discrete", 51)}
    assert [(block.name, block.width) for block in config.features.blocks] == [("discrete", 320)]
    assert config.features.discrete[0].column == "discrete_7"
    assert config.keys.position == config.evaluation.stratifiers[0].column == "discrete_51"


def test_values_that_are_left_out_there_are_filled_in_as_there(base: Mapping[str, Any]) -> None:
    config, _ = translated(base)
    assert config.optimizer.adam is not None and config.optimizer.adam.epsilon == 1e-7
    assert config.training.checkpoint_every_n == config.training.train_log_every_n == 1000
    assert config.runtime.enable_tensorfloat32
    data = context(base, "model.featurization_config.double_norm_log_config.clip_magnitude")
    put(data, "model.featurization_config.double_norm_log_config", {"layer_norm_config": {}})
    featurization = translated(data)[0].model.featurization_config
    assert featurization is not None and featurization.double_norm_log_config is not None
    norm = featurization.double_norm_log_config
    assert norm.batch_norm_config is None
    assert norm.layer_norm_config is not None and norm.layer_norm_config.epsilon == 1e-3
    blocks = {"mask_blocks": [{"output_size": 8, "input_layer_norm": False, "aggregation_size": 4}]}
    data = copy.deepcopy(dict(base))
    put(data, "model.backbone", {"mask_net_config": blocks})
    backbone = translated(data)[0].model.backbone
    assert backbone is not None and backbone.mask_net_config is not None
    assert not backbone.mask_net_config.use_parallel


def test_yaml_of_our_own_is_left_alone(tmp_path: Path) -> None:
    assert not REFERENCE.recognises({})
    assert not REFERENCE.recognises({"train_data": {"inputs": ["x"], "batch_size": 3}})
    assert REFERENCE.recognises(yaml.safe_load(ranker_yaml()))
