"""Configurations as twitter/the-algorithm-ml takes them: its field names and numbers, in a layout of our own."""

from __future__ import annotations

import itertools
import json
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
