"""The configuration that ``rookery ranker init`` writes: YAML with the evidence for everything that was inferred."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rookery.config.commented import block, key, scalar
from rookery.ranker.init_columns import Feature, LeftOut, Roles, Schema
from rookery.ranker.init_counts import PartCounts
from rookery.ranker.init_facts import percent
from rookery.ranker.init_leaks import is_negative_outcome
from rookery.ranker.init_log import Log
from rookery.ranker.init_recipe import Recipe
from rookery.ranker.init_split import Part

_LARGE_TABLE = 100_000
_EVALUATION_BATCH = 4096


@dataclass(frozen=True)
class JoinedVectors:
    """Vectors of an export that a column is joined to; ``evidence`` goes into the comment."""

    name: str
    export: Path
    table: str
    key: str
    max_length: int | None
    evidence: str


@dataclass(frozen=True)
class Findings:
    """Everything that the file is written from."""

    log: Log
    roles: Roles
    num_sampled: int
    parts: tuple[Part, ...]
    counts: Mapping[str, PartCounts]
    schema: Schema
    joined: tuple[JoinedVectors, ...]
    recipe: Recipe
    save_dir: Path
    remarks: tuple[str, ...]


def write_config(found: Findings) -> str:
    """The file."""
    sections = (_head, _training, _keys_and_labels, _features, _data, _model, _optimizer, _rest)
    return "\n".join(section(found) for section in sections)


def _head(found: Findings) -> str:
    num_rows = ", ".join(f"{counts.num_rows:,} {name}" for name, counts in found.counts.items())
    sampled = "all rows" if found.num_sampled == found.log.num_rows else f"a sample of {found.num_sampled:,} rows"
    lines = [
        f"Heavy ranker on {found.log.name}: {num_rows} impressions.",
        f"What is said of columns is of {sampled}; labels, times and ids were counted in all rows.",
        "Any field can be replaced on the command line: --set training.num_epochs=2",
    ]
    lines += [f"Note: {remark}" for remark in found.remarks]
    body = block(
        """
        runtime:
          seed: 0
          device: auto         # cpu, cuda, or whatever there is
          enable_amp: false    # true: matrix products in bfloat16, faster where layers are wide
        """
    )
    return "".join(f"# {one_line(line)}\n" for line in lines) + body


def one_line(text: str) -> str:
    """``text`` on one line, as a comment has it."""
    return " ".join(text.split())


def _training(found: Findings) -> str:
    recipe = found.recipe
    return block(
        f"""
        training:
          save_dir: {scalar(str(found.save_dir))}
          num_epochs: {recipe.num_epochs}     # {recipe.num_steps:,} steps; the learning rates below end with them
          train_log_every_n: {recipe.train_log_every_n}
          # The checkpoint that is best on the validation set is kept: evaluate, score and export load it.
          validate_every_n: {recipe.validate_every_n}
          checkpoint_every_n: {recipe.validate_every_n}
          checkpoint_max_to_keep: 1
          keep_best: {{metric: valid/mean/logloss, mode: min}}
          early_stopping: {{patience: 3}}
        """
    )


def _keys_and_labels(found: Findings) -> str:
    roles = found.roles
    keys = {"user": roles.user, "item": roles.item, "time": roles.time}
    text = "".join(f"  {name}: {scalar(column)}\n" for name, column in keys.items() if column is not None)
    position = found.schema.position
    if position is not None:
        text += f"  position: {scalar(position.name)}     # {one_line(str(position))}\n"
    body = f"keys:\n{text}\n" if text else ""
    body += "labels:     # share of rows in which it is 1; how many these are in each partition\n"
    for label in roles.labels:
        train = found.counts["train"]
        share = train.positives[label] / train.num_rows
        counts = ", ".join(f"{counts.positives[label]:,} {name}" for name, counts in found.counts.items())
        body += f"  {key(label)}: {{}}     # {percent(share)}: {counts}\n"
    return body


def _features(found: Findings) -> str:
    schema = found.schema
    body = "features:\n"
    for kind in ("continuous", "binary", "dense", "discrete", "ragged"):
        features = schema.of(kind)
        if features:
            body += f"  {kind}:\n" + "".join(f"    - {_feature(each)}\n" for each in features)
    body += _tables(found) + _joined(found)
    return body + "".join(_left_out(schema.left_out, found.roles))


def _feature(feature: Feature) -> str:
    fields = {"name": scalar(feature.column)}
    if feature.width > 1:
        fields["width"] = str(feature.width)
    if feature.table is not None:
        fields["table"] = scalar(feature.table)
    if feature.max_length:
        fields["max_length"] = str(feature.max_length)
    if feature.query is not None:
        fields |= {"pooling": "attention", "query": scalar(feature.query)}
    return f"{{{_fields(fields)}}}     # {one_line(feature.evidence)}"


def _fields(fields: Mapping[str, str]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in fields.items())


def _tables(found: Findings) -> str:
    if not found.schema.tables:
        return ""
    body = "  tables:     # a rare value shares the vector of the unknown; dropout treats known ones so, to teach it\n"
    for table in found.schema.tables:
        fields = {
            "name": scalar(table.name),
            "embedding_dim": str(table.embedding_dim),
            "vocabulary": f"{{min_count: {table.min_count}}}",
            "dropout": str(table.dropout),
        }
        if table.num_values > _LARGE_TABLE:
            fields["optimizer"] = f"{{adam: {{}}, learning_rate: {_schedule(found.recipe)}}}"
        body += f"    - {{{_fields(fields)}}}     # {one_line(table.evidence)}\n"
    return body


def _joined(found: Findings) -> str:
    body = "  embeddings:     # vectors of an export, kept as they are\n" if found.joined else ""
    for joined in found.joined:
        fields = {
            "name": scalar(joined.name),
            "export": scalar(str(joined.export)),
            "table": scalar(joined.table),
            "key": scalar(joined.key),
        }
        if joined.max_length is not None:
            fields["max_length"] = str(joined.max_length)
        body += f"    - {{{_fields(fields)}}}     # {one_line(joined.evidence)}\n"
    return body


def _left_out(left_out: list[LeftOut], roles: Roles) -> Iterator[str]:
    outcomes = [each for each in left_out if each.is_outcome]
    others = [each for each in left_out if not each.is_outcome]
    if outcomes:
        yield "  # Left out as outcomes: they know what came of it. If one is a label, name it with --label;\n"
        yield "  # if one is known before the impression is shown, add it to the features.\n"
        yield from (f"  #   {key(each.column)}: {one_line(each.reason)}\n" for each in outcomes)
    if others or roles.time is not None:
        yield "  # Left out:\n"
    if roles.time is not None:
        yield f"  #   {key(roles.time)}: the time; later rows have other values\n"
    yield from (f"  #   {key(each.column)}: {one_line(each.reason)}\n" for each in others)


def _data(found: Findings) -> str:
    train, *others = found.parts
    body = f"train_data:\n{_partition(found, train, found.recipe.batch_size)}\nvalidation_data:\n"
    for part in others:
        body += f"  {part.name}:\n" + textwrap.indent(_partition(found, part, _EVALUATION_BATCH), "  ")
        if part.name == "test":
            body += "    during_training: false     # measured on demand: rookery ranker evaluate RUN --split test\n"
    return body


def _partition(found: Findings, part: Part, batch_size: int) -> str:
    inputs = ", ".join(scalar(str(path)) for path in part.inputs)
    body = f"  inputs: [{inputs}]     # {found.counts[part.name].num_rows:,} rows\n"
    bounds = {"at_least": part.at_least, "below": part.below}
    texts = {name: bound for name, bound in bounds.items() if bound is not None}
    if texts:
        assert found.roles.time is not None
        fields = {"column": scalar(found.roles.time)}
        fields |= {name: repr(bound.value) for name, bound in texts.items()}
        said = ", ".join(f"{name.replace('_', ' ')} {bound.text}" for name, bound in texts.items())
        body += f"  rows: {{{_fields(fields)}}}     # {said}\n"
    if part.offset:
        body += f"  offset: {part.offset}\n"
    if part.limit is not None:
        body += f"  limit: {part.limit}     # rows in the order of the files, as there is no --time\n"
    return body + f"  batch_size: {batch_size}\n"


def _model(found: Findings) -> str:
    recipe = found.recipe
    dropout = f"dropout: {{rate: {recipe.dropout}}}"
    unit = f"{{output_size: {recipe.block_size}, aggregation_size: {recipe.aggregation_size}, activation: relu}}"
    blocks = ", ".join([f"&mask_block {unit}", *["*mask_block"] * (recipe.num_blocks - 1)])
    body = block(
        f"""
        model:
          featurization_config:
            z_score_log_config: {{}}     # sign(x) log(1 + |x|), less its mean, over its deviation, of training rows
          backbone:     # parallel MaskNet
            mask_net_config:
              mask_blocks: [{blocks}]
              mlp: {{layer_sizes: [{recipe.mlp_size}], {dropout}, final_layer_activation: true}}
        """
    )
    body += _position(found.schema)
    sizes = ", ".join(map(str, recipe.tower_sizes))
    body += "  tasks:     # a tower each, which starts at the share of rows in which its label is 1\n"
    tower = f"&tower {{layer_sizes: [{sizes}], {dropout}}}"
    for task in found.roles.labels:
        fields = {"mlp_config": tower, "affine_map": f"{{bias: {_logit(found.counts['train'], task):.3g}}}"}
        body += f"    {key(task)}: {{{_fields(fields)}}}\n"
        tower = "*tower"
    return body


def _position(schema: Schema) -> str:
    if schema.position is None or schema.position.high is None:
        return ""
    return block(
        f"""
        position_debias_config:     # learned in training, where it is hidden in half of the rows; unknown ever after
          {{max_position: {int(schema.position.high) + 1}, num_dims: 8, drop_probability: 0.5}}
        """,
        "  ",
    )


def _logit(counts: PartCounts, task: str) -> float:
    """Of the share of positives, one of each kind added."""
    positives = counts.positives[task] + 1
    return math.log(positives / (counts.num_rows + 2 - positives))


def _optimizer(found: Findings) -> str:
    return block(
        f"""
        optimizer:
          adamw: {{weight_decay: {found.recipe.weight_decay}}}
          single_task_learning_rate: {_schedule(found.recipe)}
        """
    )


def _schedule(recipe: Recipe) -> str:
    ramp = f"learning_rate: {recipe.learning_rate}, final_learning_rate: 0, num_ramp_steps: {recipe.num_ramp_steps}"
    return f"{{linear_ramp_to_cosine: {{{ramp}, final_num_steps: {recipe.num_steps}}}}}"


def _rest(found: Findings) -> str:
    body = block(
        """
        # Maps the logits to probabilities that are right on the validation set.
        calibration: {partition: valid, method: platt}

        score:     # of a row: the sum of weight times probability
          weights:
        """
    )
    for task in found.roles.labels:
        weight = "-1.0     # unwanted, by its name" if is_negative_outcome(task) else "1.0"
        body += f"    {key(task)}: {weight}\n"
    return body
