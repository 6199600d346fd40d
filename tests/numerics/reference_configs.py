"""Configurations as twitter/the-algorithm-ml takes them: its field names and numbers, in a layout of our own."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rookery.config.base import members

TOWERS = {
    # task: (dropout, learning rate, ramp, rates at which the log of its partition kept positives and negatives)
    "is_favorited": (None, 0.0008, 5000, 0.8387, 0.01),
    "is_good_clicked_convo_desc_favorited_or_replied": (None, 0.0001, 2000, 0.9164, 0.00195),
    "is_good_clicked_convo_desc_v2": (None, 0.0002, 1000, 1.0, 0.00174),
    "is_negative_feedback_v2": (0.1, 0.0005, 5000, 1.0, 0.0028),
    "is_profile_clicked_and_profile_engaged": (None, 0.0003, 1000, 1.0, 0.0015),
    "is_replied": (None, 0.001, 1000, 1.0, 0.005),
    "is_replied_reply_engaged_by_author": (None, 0.0001, 1000, 1.0, 0.001),
    "is_report_tweet_clicked": (0.2, 0.0001, 3000, 1.0, 0.000014),
    "is_retweeted": (None, 0.0001, 1000, 0.9561, 0.004),
    "is_video_playback_50": (None, 0.003, 1000, 1.0, 0.00427),
}
UNTRAINED = ("is_bookmarked", "is_shared", "is_tweet_detail_dwelled_15_sec")
LABELS = tuple(f"recap.engagement.{task}" for task in sorted([*TOWERS, *UNTRAINED]))
TASKS = tuple(f"recap.engagement.{task}" for task in TOWERS)

_TWHIN = "timelines.twhin_{0}_embeddings.twhin_{0}_embeddings"
FEATURES = {
    "continuous": ("home_recap_2022_cont__segdense_vals", "float_list", 6000),
    "binary": ("home_recap_2022_binary__segdense_vals", "int64_list", 512),
    "discrete": ("home_recap_2022_discrete__segdense_vals", "int64_list", 320),
    "author_embedding": (f"original_author.{_TWHIN.format('author_follow')}", "float_list", 200),
    "user_embedding": (f"user.{_TWHIN.format('user_follow')}", "float_list", 200),
    "user_eng_embedding": (f"user.{_TWHIN.format('user_engagement')}", "float_list", 200),
    "meta__author_id": ("meta.author_id", "int64_list", 1),
    "meta__user_id": ("meta.user_id", "int64_list", 1),
    "meta__tweet_id": ("meta.tweet_id", "int64_list", 1),
}
"""Our name: that of the records, its type and length."""

TWHIN_YAML = """\
runtime: {enable_amp: false}
training:
  {save_dir: "${HOME}/model", num_train_steps: 1_000, num_epochs: 5, checkpoint_every_n: 1000, train_log_every_n: 10,
   num_eval_steps: 1000, eval_log_every_n: 500, eval_timeout_in_s: 10_000}
model:
  embeddings:
    tables:
    - {name: user, num_embeddings: 4_241, embedding_dim: 4, data_type: fp32,
       optimizer: {sgd: {lr: 0.01}, learning_rate: {constant: 0.01}}}
    - {name: tweet, num_embeddings: 725, embedding_dim: 4, data_type: fp32,
       optimizer: {sgd: {lr: 0.005}, learning_rate: {constant: 0.005}}}
  relations:
  - &edge {name: fav, lhs: user, rhs: tweet, operator: translation}
  - {<<: *edge, name: reply}
  - {<<: *edge, name: retweet}
  translation_optimizer: {sgd: {lr: 0.05}, learning_rate: {constant: 0.05}}
train_data: &edges
  data_root: "${HOME}/edges/*"
  per_replica_batch_size: 500
  global_negatives: 0
  in_batch_negatives: 10
  limit: 9990
validation_data: {<<: *edges, limit: 10, offset: 9990}
"""


def ranker_yaml() -> str:
    """The production network on random records: 13 labels, 10 towers, 12 partitions that share anchors."""
    return "\n".join([_HEAD, *map(_tower, TOWERS), _data(), *map(_partition, TOWERS), _OPTIMIZER, *map(_rate, TOWERS)])


def write_schema(path: Path) -> Path:
    """The segdense schema of the records, as far as the configuration reads it."""
    listed = [*FEATURES.values(), *((label, "int64_list", 1) for label in LABELS)]
    entries = [{"dtype": kind, "feature_name": name, "length": length} for name, kind, length in listed]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema": entries}))
    return path


SCHEMA = "projects/home/recap/config/home_recap_2022/segdense.json"
"""Inside of ``TML_BASE``."""

_HEAD = """\
training:
  {num_train_steps: 20, num_eval_steps: 5, checkpoint_every_n: 10, train_log_every_n: 1, eval_log_every_n: 1,
   save_dir: "${HOME}/runs/recap", eval_timeout_in_s: 7200}
model:
  multi_task_type: share_all
  backbone:
    {affine_map: null, dcn_config: null, dlrm_config: null, mlp_config: null, pos_weight: 1.0,
     mask_net_config: {use_parallel: true,
       mlp: {layer_sizes: [2048], final_layer_activation: true, batch_norm: null, dropout: null},
       mask_blocks: [&block {output_size: 1024, aggregation_size: 1024, reduction_factor: null,
         input_layer_norm: false}, *block, *block, *block]}}
  featurization_config:
    {log1p_abs_config: null, clip_log1p_abs_config: null, z_score_log_config: null, feature_names_to_concat: [binary],
     double_norm_log_config: {clip_magnitude: 5.0, batch_norm_config: {affine: true, momentum: 0.01},
       layer_norm_config: {axis: -1, center: true, epsilon: 0.0, scale: true}}}
  large_embeddings: null
  small_embeddings: null
  position_debias_config: null
  stratifiers: null
  tasks:"""

_OPTIMIZER = """\
optimizer:
  adam: {beta_1: 0.95, beta_2: 0.999, epsilon: 1.0e-07}
  single_task_learning_rate: null
  multi_task_learning_rates:
    backbone_learning_rate:
      {constant: null, linear_ramp_to_cosine: null, piecewise_constant: null,
       linear_ramp_to_constant: {learning_rate: 0.0001, num_ramp_steps: 1_000}}
    tower_learning_rates:"""


def _tower(task: str) -> str:
    dropout = "null" if TOWERS[task][0] is None else f"{{rate: {TOWERS[task][0]}}}"
    return (
        f"    recap.engagement.{task}:\n"
        "      {mask_net_config: null, affine_map: null, pos_weight: 1.0, mlp_config: {layer_sizes: [256, 128, 1],\n"
        f"        batch_norm: {{affine: false, momentum: 0.1}}, dropout: {dropout}, final_layer_activation: false}}}}"
    )


def _data() -> str:
    renamed = "\n".join(f"      {name}: {feature}" for name, (feature, _, _) in FEATURES.items())
    labels = "\n".join(f"    {label}: {{}}" for label in LABELS)
    return f"""\
train_data:
  inputs: &inputs "${{HOME}}/records/*.gz"
  global_batch_size: &rows 128
  dataset_service_compression: AUTO
  seg_dense_schema: &schema
    schema_path: "${{TML_BASE}}/{SCHEMA}"
    renamed_features:
{renamed}
  tasks: &labels
{labels}
  preprocess: &cut
    truncate_and_slice: {{continuous_feature_truncation: 2_117, binary_feature_truncation: 59}}
validation_data:
  validation: &all
    {{inputs: *inputs, global_batch_size: *rows, seg_dense_schema: *schema, tasks: *labels, preprocess: *cut}}
  train: *all"""


def _partition(task: str) -> str:
    _, _, _, positives, negatives = TOWERS[task]
    name = f"recap.engagement.{task}"
    rates = f"{{pos_downsampling_rate: {positives}, neg_downsampling_rate: {negatives}}}"
    return f"  {name}:\n    <<: *all\n    evaluation_tasks: [{name}]\n    tasks: {{<<: *labels, {name}: {rates}}}"


def _rate(task: str) -> str:
    _, rate, steps, *_ = TOWERS[task]
    ramp = f"{{learning_rate: {rate}, num_ramp_steps: {steps}}}"
    return f"      recap.engagement.{task}: {{constant: null, linear_ramp_to_constant: {ramp}}}"


def _paths(text: str) -> frozenset[str]:
    """``a(b c(d))`` as ``a.b``, ``a.c.d``."""
    parents, found = [""], [""]
    for token in re.findall(r"[\w.*]+|[()]", text):
        if token == "(":
            parents.append(f"{found.pop()}.")
        elif token == ")":
            parents.pop()
        else:
            found.append(parents[-1] + token)
    return frozenset(found[1:])


# The fields that there are, written out: what our schema of them is held against.

_TRAINING = """save_dir num_train_steps checkpoint_every_n checkpoint_max_to_keep train_log_every_n num_eval_steps
    eval_log_every_n eval_timeout_in_s initial_checkpoint_dir gradient_accumulation"""
_RATES = """constant piecewise_constant(learning_rate_boundaries learning_rate_values)
    linear_ramp_to_constant(learning_rate num_ramp_steps)
    linear_ramp_to_cosine(learning_rate final_learning_rate num_ramp_steps final_num_steps)"""
_TWHIN_OPTIMIZER = f"sgd(lr momentum) adagrad(lr eps) adam(lr betas eps) learning_rate({_RATES})"
_EDGES = "data_root per_replica_batch_size global_negatives in_batch_negatives limit offset"
TWHIN_FIELDS = _paths(f"""
    training({_TRAINING} num_epochs) runtime(enable_amp enable_tensorfloat32 wandb)
    model(embeddings(tables.*(name num_embeddings embedding_dim data_type optimizer({_TWHIN_OPTIMIZER})
        pretrained vocab) tables_to_log) relations.*(name lhs rhs operator) translation_optimizer({_TWHIN_OPTIMIZER}))
    train_data({_EDGES}) validation_data({_EDGES})""")
_RECORDS = """inputs explicit_date_inputs(data_root end_date days num_missing_days_tol)
    explicit_datetime_inputs(data_root end_datetime hours num_missing_hours_tol) global_batch_size num_files_to_keep
    repeat_files file_batch_size cache ignore_data_errors data_service_dispatcher dataset_service_compression
    examples_shuffle_buffer_size map_num_parallel_calls interleave_num_parallel_calls
    seg_dense_schema(schema_path features renamed_features mask_mantissa_features)
    tasks.*(pos_downsampling_rate neg_downsampling_rate) evaluation_tasks
    preprocess(truncate_and_slice(continuous_feature_truncation binary_feature_truncation continuous_feature_mask_path
            binary_feature_mask_path)
        downcast(features)
        rectify_labels(label_rectification_window_in_hours served_timestamp_field impressed_timestamp_field
            label_to_engaged_timestamp_field)
        extract_features(extract_feature_table.*(name source_tensor index))
        downsample_negatives(batch_multiplier engagements_list num_engagements))
    sampler"""
_PLAIN = "layer_sizes batch_norm(affine momentum) dropout(rate) final_layer_activation"
_NETWORK = f"""mlp_config({_PLAIN})
    mask_net_config(mask_blocks.*(output_size input_layer_norm reduction_factor aggregation_size) mlp({_PLAIN})
        use_parallel)
    dcn_config(poly_degree projection_dim parallel_mlp({_PLAIN}) use_parallel output_mlp({_PLAIN}))
    dlrm_config(bottom_mlp({_PLAIN}) top_mlp({_PLAIN})) affine_map(scale bias) pos_weight"""
RANKER_FIELDS = _paths(f"""
    training({_TRAINING}) train_data({_RECORDS}) validation_data.*({_RECORDS})
    model(tasks.*({_NETWORK}) backbone({_NETWORK}) multi_task_type
        small_embeddings(tables.*(name num_embeddings embedding_dim index))
        position_debias_config(max_position num_dims drop_probability position_feature_index)
        featurization_config(log1p_abs_config clip_log1p_abs_config(clip_magnitude)
            z_score_log_config(analysis_path schema_path clip_magnitude use_batch_norm use_renorm use_bq_stats)
            double_norm_log_config(batch_norm_config(affine momentum) clip_magnitude
                layer_norm_config(axis center epsilon scale))
            feature_names_to_concat)
        stratifiers.*(name index value))
    optimizer(adam(beta_1 beta_2 epsilon) single_task_learning_rate({_RATES})
        multi_task_learning_rates(backbone_learning_rate({_RATES}) tower_learning_rates.*({_RATES})))""")


def fields_besides(schema: type[BaseModel], fields: Collection[str], names: Collection[str]) -> set[str]:
    """The leaves of a schema that ``fields`` do not have; ``names`` in these, and numbers, stand for any (``*``)."""
    looked_at = {
        ".".join("*" if key.isdecimal() or key in names else key for key in field.split(".")) for field in fields
    }
    return {
        field
        for field in _fields_of(schema, "")
        if field not in looked_at and not any(other.startswith(f"{field}.") for other in looked_at)
    }


def _fields_of(model: Any, prefix: str) -> Iterator[str]:
    """The leaves of a schema by path, names of tasks and partitions and numbers of items as ``*``."""
    for name, info in model.model_fields.items():
        yield from _leaves_of(info.annotation, f"{prefix}.{name}".lstrip("."))


def _leaves_of(annotation: Any, path: str) -> Iterator[str]:
    for each in members(annotation):
        inner = [argument for argument in getattr(each, "__args__", ()) for argument in members(argument)]
        models = [argument for argument in inner if isinstance(argument, type) and issubclass(argument, BaseModel)]
        if isinstance(each, type) and issubclass(each, BaseModel):
            yield from _fields_of(each, path) if each.model_fields else [path]
        elif models:
            yield from itertools.chain.from_iterable(_fields_of(model, f"{path}.*") for model in models)
        elif each is not type(None):
            yield path
