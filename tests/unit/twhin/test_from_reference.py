"""TwHIN's configuration of the-algorithm-ml: it loads as it is, and each of its fields acts or is answered."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from reference_configs import TWHIN_FIELDS, TWHIN_YAML, fields_besides

from rookery.config.translation import Note
from rookery.errors import ConfigError
from rookery.twhin.config import TwhinConfig
from rookery.twhin.from_reference import REFERENCE, load_twhin_config
from rookery.twhin.reference_schema import ReferenceTwhinConfig


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "local.yaml"
    file.write_text(TWHIN_YAML)
    return file


def test_it_is_the_same_job(shipped: Path) -> None:
    config = load_twhin_config(shipped)
    user, tweet = config.model.embeddings.tables
    assert (user.name, user.num_embeddings, tweet.num_embeddings, user.embedding_dim) == ("user", 4241, 725, 4)
    assert user.optimizer.sgd is not None and user.optimizer.sgd.lr == 0.01
    assert tweet.optimizer.learning_rate is not None and tweet.optimizer.learning_rate.constant == 0.005
    assert [relation.name for relation in config.model.relations] == ["fav", "reply", "retweet"]
    assert (config.training.num_train_steps, config.training.num_epochs) == (1000, 5)
    data = config.train_data
    assert (data.data_root, data.per_replica_batch_size) == (f"{shipped.parent}/edges/*", 500)
    assert (data.in_batch_negatives, data.global_negatives, data.chunk_size) == (10, 0, 500)
    assert data.limit is None and config.validation_data is None


def test_what_is_different_is_told(shipped: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_twhin_config(shipped)
    told = "\n".join(caplog.messages)
    for field in ("training.eval_log_every_n", "training.num_epochs", "train_data.limit", "validation_data.data_root"):
        assert f"{shipped}: {field}" in told
    assert "a step of SGD is 21 times as long here" in told
    assert f"{shipped}: training.num_eval_steps: no validation_data" in told
    assert len(caplog.messages) == 7


def test_of_several_processes_the_first_tells(
    shipped: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    load_twhin_config(shipped)
    assert not caplog.messages


def test_overrides_name_fields_of_ours(shipped: Path) -> None:
    overrides = ["train_data.chunk_size=50", "model.embeddings.tables.tweet.max_norm=1", "model.comparator=l2"]
    config = load_twhin_config(shipped, overrides, ["training.save_dir=here"])
    assert config.train_data.chunk_size == 50
    assert config.model.embeddings.tables[1].max_norm == 1
    assert config.model.comparator == "l2"
    assert config.training.save_dir == Path("here")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("per_replica_batch_size", "per_replica_batchsize", "train_data: unknown key 'per_replica_batchsize'; did you"),
        ("in_batch_negatives: 10", "in_batch_negatives: 0", "global_negatives and in_batch_negatives are both 0"),
        ("sgd: {lr: 0.05}", "sgd: {lr: 0.05}, adam: {lr: 1}", "translation_optimizer: sgd, adam exclude each other"),
    ],
)
def test_what_is_wrong_has_its_line(shipped: Path, old: str, new: str, message: str) -> None:
    shipped.write_text(shipped.read_text().replace(old, new, 1))
    line = next(number for number, row in enumerate(shipped.read_text().splitlines(), 1) if new in row)
    with pytest.raises(ConfigError) as raised:
        load_twhin_config(shipped)
    found = next(row for row in str(raised.value).splitlines() if message in row)
    # A problem of a whole section has the line where it begins.
    assert line - 4 <= int(found.split(":")[1]) <= line


STEPS = {"learning_rate_boundaries": [5], "learning_rate_values": [0.1, 0.01]}
COSINE = {"learning_rate": 0.1, "final_learning_rate": 0.01, "num_ramp_steps": 5, "final_num_steps": 50}
OPTIMIZER: dict[str, Any] = {
    "sgd.lr": 0.3,
    "sgd.momentum": 0.5,
    "adagrad.lr": 0.3,
    "adagrad.eps": 1e-3,
    "adam.lr": 0.3,
    "adam.betas": [0.8, 0.99],
    "adam.eps": 1e-3,
    "learning_rate.constant": 0.3,
    "learning_rate.piecewise_constant.learning_rate_boundaries": [6],
    "learning_rate.piecewise_constant.learning_rate_values": [0.1, 0.02],
    "learning_rate.linear_ramp_to_constant.learning_rate": 0.2,
    "learning_rate.linear_ramp_to_constant.num_ramp_steps": 6,
    "learning_rate.linear_ramp_to_cosine.learning_rate": 0.2,
    "learning_rate.linear_ramp_to_cosine.final_learning_rate": 0.02,
    "learning_rate.linear_ramp_to_cosine.num_ramp_steps": 6,
    "learning_rate.linear_ramp_to_cosine.final_num_steps": 60,
}
DATA: dict[str, Any] = {
    "data_root": "s3://bucket/edges",
    "per_replica_batch_size": 64,
    "global_negatives": 7,
    "in_batch_negatives": 8,
    "limit": 30,
    "offset": 40,
}
TABLE = "model.embeddings.tables.0"
FIELDS: dict[str, Any] = {
    "runtime.enable_amp": True,
    "runtime.enable_tensorfloat32": True,
    "runtime.wandb": {"key_path": "key", "project": "twhin"},
    "training.save_dir": "/elsewhere",
    "training.num_train_steps": 7,
    "training.num_epochs": 2,
    "training.checkpoint_every_n": 3,
    "training.checkpoint_max_to_keep": 2,
    "training.train_log_every_n": 9,
    "training.num_eval_steps": -3,
    "training.eval_log_every_n": 3,
    "training.eval_timeout_in_s": 5.0,
    "training.initial_checkpoint_dir": "/run",
    "training.gradient_accumulation": 4,
    f"{TABLE}.name": "person",
    f"{TABLE}.num_embeddings": 11,
    f"{TABLE}.embedding_dim": 8,
    f"{TABLE}.data_type": "fp16",
    f"{TABLE}.pretrained": {"emb_name": "user", "embedding_snapshot_uri": "/snapshot"},
    f"{TABLE}.vocab": "/vocab.parquet",
    "model.embeddings.tables_to_log": ["user"],
    "model.relations.0.name": "like",
    "model.relations.0.lhs": "person",
    "model.relations.0.rhs": "person",
    **{f"{TABLE}.optimizer.{field}": value for field, value in OPTIMIZER.items()},
    **{f"model.translation_optimizer.{field}": value for field, value in OPTIMIZER.items()},
    **{f"train_data.{field}": value for field, value in DATA.items()},
    **{f"validation_data.{field}": value for field, value in DATA.items()},
}
ALTERNATIVES: dict[str, Any] = {
    "sgd": {"lr": 0.1},
    "adagrad": {"lr": 0.1},
    "adam": {"lr": 0.1},
    "constant": 0.1,
    "piecewise_constant": STEPS,
    "linear_ramp_to_constant": {"learning_rate": 0.1, "num_ramp_steps": 5},
    "linear_ramp_to_cosine": COSINE,
}
BASE: dict[str, Any] = {
    "training": {},
    "runtime": {},
    "model": {
        "embeddings": {
            "tables": [
                {"name": "user", "num_embeddings": 10, "embedding_dim": 4, "data_type": "fp32", "optimizer": {}},
            ],
        },
        "relations": [{"name": "follow", "lhs": "user", "rhs": "user"}],
        "translation_optimizer": {},
    },
    "train_data": {"data_root": "/e", "per_replica_batch_size": 5, "global_negatives": 0, "in_batch_negatives": 2},
    "validation_data": {},
}


def context(field: str) -> dict[str, Any]:
    """The base with the alternatives that a field needs."""
    data = copy.deepcopy(BASE)
    keys = field.split(".")
    for owner in (data["model"]["embeddings"]["tables"][0]["optimizer"], data["model"]["translation_optimizer"]):
        chosen = next((key for key in keys if key in {"adagrad", "adam"}), "sgd")
        owner[chosen] = copy.deepcopy(ALTERNATIVES[chosen])
        if "learning_rate" in keys:
            rate = keys[keys.index("learning_rate") + 1]
            owner["learning_rate"] = {rate: copy.deepcopy(ALTERNATIVES[rate])}
    return data


def put(data: dict[str, Any], field: str, value: Any) -> None:
    *parents, last = field.split(".")
    place: Any = data
    for parent in parents:
        place = place[int(parent)] if isinstance(place, list) else place[parent]
    place[last] = value


def translated(data: Mapping[str, Any]) -> tuple[TwhinConfig, list[Note]]:
    translation = REFERENCE.translate(ReferenceTwhinConfig.model_validate(data))
    return TwhinConfig.model_validate(translation.data), translation.notes


@pytest.mark.parametrize("field", FIELDS)
def test_each_field_acts_or_is_answered(field: str) -> None:
    data = context(field)
    tables = data["model"]["embeddings"]["tables"]
    if FIELDS[field] == "person":  # tables and the relations between them go by names
        tables.append({**tables[0], "name": "person"})
    before, told = translated(data)
    put(data, field, FIELDS[field])
    if field == f"{TABLE}.name":
        tables[1]["name"] = "user"
    after, notes = translated(data)
    answers = [note for note in notes if not note.comment and field in note.fields]
    assert after != before or (answers and not any(note in told for note in answers)), notes


def test_all_fields_of_the_schema_are_looked_at() -> None:
    assert fields_besides(ReferenceTwhinConfig, FIELDS, ()) == {"model.relations.*.operator"}  # in the next test


def test_the_schema_has_the_fields_that_there_are() -> None:
    assert fields_besides(ReferenceTwhinConfig, (), ()) == TWHIN_FIELDS


def test_an_operator_is_a_translation() -> None:
    data = context("")
    put(data, "model.relations.0.operator", "translation")
    assert translated(data)[0].model.relations[0].operator == "translation"
    put(data, "model.relations.0.operator", "linear")
    with pytest.raises(ValueError, match="translation"):
        translated(data)


def test_values_that_are_left_out_there_are_filled_in_as_there() -> None:
    for name, eps in (("adagrad", 0.0), ("adam", 1e-7)):
        optimizer = translated(context(f"optimizer.{name}"))[0].model.translation_optimizer
        assert optimizer.chosen.eps == eps  # type: ignore[union-attr]
    config = translated(context(""))[0]
    assert config.training.num_train_steps == 10_000 and config.training.num_epochs is None
    assert config.training.save_dir == Path("/tmp/model")


def test_a_path_of_pretrained_rows_is_taken_over() -> None:
    data = context("")
    put(data, f"{TABLE}.pretrained", "rows.parquet")
    assert translated(data)[0].model.embeddings.tables[0].pretrained == Path("rows.parquet")


def test_yaml_of_our_own_is_left_alone() -> None:
    assert not REFERENCE.recognises({"validation_data": {"split": "valid"}})
    assert not REFERENCE.recognises({"train_data": {"data_root": "x"}, "validation_data": None})
