"""The configuration as a whole: what does not fit together is refused with field, value and remedy."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

from rookery.config.loader import dump_config, json_schema, load_config, parse_config
from rookery.errors import ConfigError
from rookery.twhin.comparators import COMPARATORS
from rookery.twhin.config import ComparatorName, LossConfig, OperatorName, TwhinConfig
from rookery.twhin.operators import OPERATORS
from rookery.types import Side

SMALLEST = """
graph: graph
training: {save_dir: run, num_train_steps: 5}
model:
  embeddings:
    tables:
      - {name: user, num_embeddings: 4, embedding_dim: 6, optimizer: {sgd: {lr: 0.1}}}
      - {name: item, num_embeddings: 3, embedding_dim: 6, optimizer: {adagrad: {}}}
  relations:
    - {name: likes, lhs: user, rhs: item}
    - {name: follows, lhs: user, rhs: user}
  translation_optimizer: {adam: {}}
"""


@pytest.fixture
def read(tmp_path: Path):
    """``read("a.b=c", …)``: the smallest configuration with overrides."""
    path = tmp_path / "config.yaml"
    path.write_text(SMALLEST)
    return lambda *overrides: load_config(TwhinConfig, path, overrides)


def test_the_smallest_configuration_has_the_documented_defaults(read) -> None:
    config = read()
    assert config.model.loss == LossConfig(bce={"negative_weight": 1.0})
    assert (config.model.operator_side, config.model.comparator) == ("lhs", "dot")
    assert {relation.operator for relation in config.model.relations} == {"translation"}
    data = config.train_data
    assert (data.per_replica_batch_size, data.global_negatives, data.in_batch_negatives) == (20_000, 100, 100)
    assert (data.chunk_size, data.negative_sides, data.shuffle) == (1000, (Side.LHS, Side.RHS), True)
    assert config.model.embeddings.backend == "local"


REFUSALS = [
    (["model.embeddings.tables.1.name=user"], "model.embeddings.tables: 'user' is named twice"),
    (["model.embeddings.tables.1.embedding_dim=8"], "embedding_dim differs (user=6, item=8); all tables share one dim"),
    (["model.embeddings.tables.1.data_type=bf16"], "data_type differs (user=fp32, item=bf16); all tables share one"),
    (["model.embeddings.tables_to_log=[usr]"], "tables_to_log: unknown table 'usr'; did you mean 'user'?"),
    (["model.relations.1.name=likes"], "model.relations: 'likes' is named twice"),
    (["model.relations.0.rhs=itm"], "model.relations.likes.rhs=itm: no such table; did you mean 'item'?"),
    (["model.relations.1.lhs=usr"], "model.relations.follows.lhs=usr: no such table; did you mean 'user'?"),
    (
        [
            "model.embeddings.tables.0.embedding_dim=5",
            "model.embeddings.tables.1.embedding_dim=5",
            "model.relations.0.operator=complex_diagonal",
        ],
        "embedding_dim=5 is odd; complex_diagonal needs an even dimension (real half, imaginary half)",
    ),
    (["graph=null"], "graph is missing, and so is train_data.data_root; give one (`rookery twhin init GRAPH` does)"),
    (
        ["graph=null", "train_data.data_root=x", "train_data.negative_alpha=0.5"],
        "train_data.negative_alpha and loss.softmax.log_q need degrees; set graph to an ingested graph",
    ),
    (
        ["graph=null", "train_data.data_root=x", "model.loss={softmax: {log_q: true}}"],
        "train_data.negative_alpha and loss.softmax.log_q need degrees; set graph to an ingested graph",
    ),
    (
        ["train_data.global_negatives=all", "train_data.in_batch_negatives=0", "model.loss={softmax: {log_q: true}}"],
        "model.loss.softmax.log_q=true: with global_negatives=all nothing is sampled; set it to false",
    ),
    (
        ["train_data.global_negatives=0", "train_data.in_batch_negatives=0"],
        "train_data: global_negatives and in_batch_negatives are both 0; training needs negatives",
    ),
    (
        ["train_data.global_negatives=all"],
        "train_data: global_negatives=all already has every entity; set in_batch_negatives to 0",
    ),
    (["train_data.negative_sides=[rhs, rhs]"], "train_data: negative_sides names a side twice; name each once"),
    (
        ["train_data.order=queries"],
        "train_data.order=queries: pays for a softmax over all entities alone; set model.loss to softmax",
    ),
    (
        ["train_data.order=queries", "train_data.shuffle=false"],
        "train_data: order=queries shuffles the queries in any case; leave out shuffle, or set order to edges",
    ),
    (
        ["train_data.global_negatives=all", "train_data.in_batch_negatives=0", "model.regularizer={negatives: true}"],
        "model.regularizer.negatives=true: with global_negatives=all nothing is drawn; set it to false",
    ),
    (
        ["training.validate_every_n=5"],
        "training.validate_every_n: there is no validation_data to validate on; add it or drop validate_every_n",
    ),
    (
        ["graph=null", "train_data.data_root=x", "validation_data={}"],
        "validation_data names a split of the graph; set graph to an ingested graph",
    ),
    (["model.loss={}"], "model.loss: needs exactly one of bce, softmax, margin_ranking, self_adversarial"),
    (
        ["model.loss={bce: {}, softmax: {}}"],
        "model.loss: bce, softmax exclude each other; keep one and remove the rest",
    ),
    (["model.translation_optimizer={}"], "model.translation_optimizer: needs exactly one of sgd, adagrad, rowwise_"),
    (["model.relations=[]"], "model.relations: must have at least 1 item"),
    (["model.embeddings.tables=[]"], "model.embeddings.tables: must have at least 1 item"),
    (["train_data.negative_sides=[]"], "train_data.negative_sides: must have at least 1 item"),
    (["train_data.negative_sides=[left]"], "train_data.negative_sides.0=left: must be 'lhs' or 'rhs'"),
    (["train_data.chunk_size=0"], "train_data.chunk_size=0: must be greater than 0"),
    (["train_data.offset=-1"], "train_data.offset=-1: must be at least 0; leave it out for the default, 0"),
    (["train_data.global_negatives=some"], "train_data.global_negatives=some: must be 'all'"),
    (["model.embeddings.tables.0.init_scale=0"], "model.embeddings.tables.0.init_scale=0: must be greater than 0"),
    (
        ["model.embeddings.tables.0.data_type=fp8"],
        "model.embeddings.tables.0.data_type=fp8: must be 'fp32', 'fp16' or 'bf16'",
    ),
    (["model.comparator=manhattan"], "model.comparator=manhattan: must be 'dot', 'cosine', 'l2' or 'l1'"),
    (["model.loss={softmax: {temperature: 0}}"], "model.loss.softmax.temperature=0: must be greater than 0"),
    (["model.relations.0.operater=identity"], "unknown key 'operater'; did you mean 'operator'?"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSALS, ids=[" ".join(overrides) for overrides, _ in REFUSALS])
def test_what_does_not_fit_is_refused(read, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read(*overrides)
    assert message in str(raised.value)


def test_problems_of_the_whole_are_reported_together(read) -> None:
    with pytest.raises(ConfigError) as raised:
        read("model.relations.0.rhs=itm", "model.relations.1.name=likes", "training.validate_every_n=5")
    assert len(str(raised.value).splitlines()) == 3


FITS = [
    ["graph=null", "train_data.data_root=x"],
    ["graph=null", "train_data.data_root=x", "model.loss={softmax: {log_q: true}}", "train_data.in_batch_negatives=0"],
    ["train_data.global_negatives=all", "train_data.in_batch_negatives=0"],
    [
        "train_data.global_negatives=all",
        "train_data.in_batch_negatives=0",
        "model.loss={softmax: {}}",
        "train_data.order=queries",
    ],
    ["train_data.global_negatives=0"],
    ["train_data.in_batch_negatives=0"],
    ["model.relations.0.operator=complex_diagonal", "model.relation_init_scale=0"],
    ["training.validate_every_n=5", "validation_data={}", "training.keep_best={metric: mrr}"],
    ["model.loss={margin_ranking: {margin: 0.5}, bce: null}"],
]


@pytest.mark.parametrize("overrides", FITS, ids=[" ".join(overrides) for overrides in FITS])
def test_what_fits_loads_and_its_dump_is_equal(read, tmp_path: Path, overrides: list[str]) -> None:
    config = read(*overrides)
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert load_config(TwhinConfig, again) == config


def test_names_that_yaml_or_the_environment_would_change_survive_a_dump(tmp_path: Path) -> None:
    data: dict[str, Any] = yaml.safe_load(SMALLEST)
    data["model"]["relations"][0]["name"] = "a: ${HOME}, [é] # no"
    config = parse_config(TwhinConfig, data, "test")
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(TwhinConfig, path) == config


def test_every_operator_and_comparator_has_a_name_in_the_configuration() -> None:
    assert set(typing.get_args(OperatorName)) == set(OPERATORS)
    assert set(typing.get_args(ComparatorName)) == set(COMPARATORS)


def test_the_json_schema_tells_an_editor_fields_choices_and_defaults() -> None:
    schema = json_schema(TwhinConfig)
    parts = schema["$defs"]
    assert set(schema["required"]) == {"training", "model"}
    assert not schema["additionalProperties"]
    assert not any(part.get("additionalProperties", False) for part in parts.values())
    assert parts["RelationConfig"]["properties"]["operator"]["enum"] == list(typing.get_args(OperatorName))
    assert parts["RelationConfig"]["required"] == ["name", "lhs", "rhs"]
    assert parts["TrainData"]["properties"]["per_replica_batch_size"]["default"] == 20_000
    assert parts["TrainData"]["properties"]["per_replica_batch_size"]["exclusiveMinimum"] == 0
    assert parts["Side"]["enum"] == ["lhs", "rhs"]
    assert set(parts["LossConfig"]["properties"]) == {"bce", "softmax", "margin_ranking", "self_adversarial"}
    assert set(parts["OptimizerConfig"]["properties"]) >= {"sgd", "adagrad", "rowwise_adagrad", "adam", "learning_rate"}
