"""The heavy ranker's configuration of the-algorithm-ml: loaded as it is; each of its fields acts or is answered."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from reference_configs import FEATURES, LABELS, SCHEMA, TASKS, TOWERS, ranker_yaml, write_schema

from rookery.data import reference_records
from rookery.data.reference_records import write_reference
from rookery.errors import ConfigError, DataError
from rookery.ranker.build import build_model
from rookery.ranker.evaluation import evaluate
from rookery.ranker.from_reference import load_ranker_config
from rookery.ranker.inputs import Inputs
from rookery.ranker.model import FeatureSizes, RankerModel
from rookery.ranker.preprocess import Preprocessor
from rookery.ranker.run import load_run
from rookery.ranker.train import train_ranker

NO_INPUTS = Inputs({}, {}, {}, {})


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The whole configuration, in an environment that has what it names."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TML_BASE", str(tmp_path / "base"))
    write_schema(tmp_path / "base" / SCHEMA)
    file = tmp_path / "local_prod.yaml"
    file.write_text(ranker_yaml())
    return file


def problems(file: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load_ranker_config(file, overrides)
    return str(raised.value).replace(f"{file.parent}/", "").splitlines()


def replaced(file: Path, old: str, new: str) -> Path:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    return file


def test_the_production_network_has_48_million_parameters(shipped: Path) -> None:
    config = load_ranker_config(shipped)
    preprocessor = Preprocessor(config, NO_INPUTS)
    sizes = FeatureSizes(
        preprocessor.num_continuous, preprocessor.num_binary, preprocessor.dense_widths, preprocessor.table_sizes
    )
    model = RankerModel(config, sizes, {}, torch.device("cpu"))
    width = 2117 + 59 + 3 * 200
    expected = 2 * 2117 + 2 * (2117 + 59) + 3 * 2 * 200  # batch norm, layer norm, a norm for each vector
    expected += 4 * ((width + 1) * 1024 + (1024 + 1) * width + (width + 1) * 1024 + 2 * 1024)  # mask and block
    expected += (4 * 1024 + 1) * 2048
    expected += 10 * ((2048 + 1) * 256 + (256 + 1) * 128 + (128 + 1) * 1)  # norms of towers have no parameters
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    assert f"{expected / 1e6:.1f}" == "48.1"


def test_heads_are_paired_with_labels_by_name(shipped: Path) -> None:
    config = load_ranker_config(shipped)
    assert config.tasks == TASKS
    assert tuple(config.labels) == LABELS
    columns = {name: torch.ones(4, length) for name, (_, _, length) in FEATURES.items() if length > 1}
    columns["meta__user_id"] = torch.arange(4)
    rows = torch.arange(4)
    columns |= {label: (rows * (number + 1) % 3 == 1).float() for number, label in enumerate(LABELS)}
    batch = Preprocessor(config, NO_INPUTS).batch(columns)
    assert batch.labels.shape == (4, 10)
    for place, task in enumerate(TASKS):
        assert batch.labels[:, place].tolist() == columns[task].tolist()
    assert batch.features.continuous.shape == (4, 2117) and batch.features.binary.shape == (4, 59)
    assert list(batch.features.dense) == ["user_embedding", "user_eng_embedding", "author_embedding"]


def test_partitions_have_tasks_and_sampling_of_their_own(shipped: Path) -> None:
    config = load_ranker_config(shipped)
    assert list(config.validation_data) == ["validation", "train", *TASKS]
    assert config.validation_data["train"].tasks is None and not config.validation_data["train"].sampling
    for task, (_, _, _, positives, negatives) in TOWERS.items():
        partition = config.validation_data[f"recap.engagement.{task}"]
        assert partition.tasks == (f"recap.engagement.{task}",)
        (rates,) = partition.sampling.values()
        assert (rates.pos_downsampling_rate, rates.neg_downsampling_rate) == (positives, negatives)
    assert config.training.validate_every_n == config.training.checkpoint_every_n == 10


def test_rates_and_schedules_are_those_of_the_file(shipped: Path) -> None:
    optimizer = load_ranker_config(shipped).optimizer
    assert optimizer.adam is not None and optimizer.multi_task_learning_rates is not None
    assert (optimizer.adam.beta_1, optimizer.adam.epsilon) == (0.95, 1e-7)
    rates = optimizer.multi_task_learning_rates.tower_learning_rates
    for task, (_, rate, steps, *_) in TOWERS.items():
        ramp = rates[f"recap.engagement.{task}"].linear_ramp_to_constant
        assert ramp is not None and (ramp.learning_rate, ramp.num_ramp_steps) == (rate, steps)


def test_what_is_different_is_told(shipped: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_ranker_config(shipped)
    told = "\n".join(caplog.messages)
    for field in ("training.eval_log_every_n", "training.eval_timeout_in_s", "train_data.dataset_service_compression"):
        assert f"{shipped}: {field}: " in told
    assert "train_data.tasks.recap.engagement.is_bookmarked (and " in told
    assert "renamed_features.discrete (and train_data.seg_dense_schema.renamed_features.meta__author_id): " in told
    assert len(caplog.messages) == 5


def test_overrides_name_fields_of_ours(shipped: Path) -> None:
    config = load_ranker_config(
        shipped,
        [
            "train_data.inputs=[/elsewhere]",
            "validation_data.*.batch_size=64",
            "validation_data.recap.engagement.is_replied.limit=10",
            "labels.recap.engagement.is_replied.neg_downsampling_rate=0.5",
            "model.tasks.recap.engagement.is_replied.mlp_config.layer_sizes=[8, 1]",
            "features.continuous.continuous.width=3000",
        ],
        ["training.save_dir=here"],
    )
    assert config.train_data.inputs == ("/elsewhere",)
    assert {partition.batch_size for partition in config.validation_data.values()} == {64}
    limits = {name: partition.limit for name, partition in config.validation_data.items()}
    assert {name for name, limit in limits.items() if limit == 10} == {"recap.engagement.is_replied"}
    assert config.labels["recap.engagement.is_replied"].neg_downsampling_rate == 0.5
    tower = config.model.tasks["recap.engagement.is_replied"].mlp_config
    assert tower is not None and tower.layer_sizes == (8, 1)
    assert config.features.continuous[0].width == 3000
    assert config.training.save_dir == Path("here")


def test_a_field_of_theirs_is_no_field_of_ours(shipped: Path) -> None:
    (problem,) = problems(shipped, "train_data.global_batch_size=64")
    assert problem == "--set: train_data: unknown key 'global_batch_size'; did you mean 'batch_size'?"


def test_unknown_keys_are_refused_with_the_nearest(shipped: Path) -> None:
    replaced(shipped, "use_parallel", "use_paralel")
    line = next(number for number, row in enumerate(shipped.read_text().splitlines(), 1) if "use_paralel" in row)
    where = f"local_prod.yaml:{line}: model.backbone.mask_net_config"
    assert problems(shipped) == [f"{where}: unknown key 'use_paralel'; did you mean 'use_parallel'?"]


def test_a_tower_without_labels_is_told_where_it_stands(shipped: Path) -> None:
    task = "recap.engagement.is_replied"
    replaced(shipped, f"    {task}: {{}}\n", "")  # of training
    line = shipped.read_text().splitlines().index(f"    {task}:") + 1
    (problem,) = problems(shipped)
    assert problem == (
        f"local_prod.yaml:{line}: model.tasks.{task}: train_data.tasks has no such task; add it there if the records "
        "have its label, or remove the tower"
    )


def test_a_mistake_that_anchors_repeat_is_told_once(shipped: Path) -> None:
    replaced(shipped, "binary_feature_truncation: 59", "binary_feature_truncation: many")
    text = shipped.read_text().splitlines()
    line = next(number for number, row in enumerate(text, 1) if "many" in row)
    (problem,) = problems(shipped)
    assert problem == (
        f"local_prod.yaml:{line}: train_data.preprocess.truncate_and_slice.binary_feature_truncation=many: must be an "
        "integer; or leave it out (and so in 12 more)"
    )


def test_values_that_are_wrong_here_have_their_line_there(shipped: Path) -> None:
    replaced(shipped, "is_bookmarked: {}", "is_bookmarked: {neg_downsampling_rate: 2}")
    line = next(number for number, row in enumerate(shipped.read_text().splitlines(), 1) if "is_bookmarked" in row)
    first = problems(shipped)[0]
    assert first.startswith(
        f"local_prod.yaml:{line}: labels.recap.engagement.is_bookmarked.neg_downsampling_rate=2.0: must be at most 1"
    )


def test_a_variable_that_is_not_set_is_told_with_the_override(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TML_BASE")
    (problem,) = problems(shipped)
    assert "train_data.records.schema_path=${TML_BASE}/projects" in problem
    assert problem.endswith(
        "the environment variable 'TML_BASE' is not set (so in 12 more fields); set it, or replace the field with "
        "--set train_data.records.schema_path=VALUE"
    )
    schema = shipped.parent / "base" / SCHEMA
    everywhere = [f"{field}.records.schema_path={schema}" for field in ("train_data", "validation_data.*")]
    config = load_ranker_config(shipped, everywhere)
    assert config.train_data.records is not None and config.train_data.records.schema_path == schema


def test_a_schema_that_is_not_there_is_told_with_the_override(shipped: Path) -> None:
    (shipped.parent / "base" / SCHEMA).unlink()
    (problem,) = problems(shipped)
    assert problem.startswith(f"local_prod.yaml: train_data.records.schema_path=base/{SCHEMA}: ")
    assert "--set train_data.records.schema_path=PATH --set 'validation_data.*.records.schema_path=PATH'" in problem
    widths = {"continuous.continuous": 6000, "binary.binary": 512}
    widths |= {f"dense.{name}_embedding": 200 for name in ("user", "user_eng", "author")}
    config = load_ranker_config(shipped, [f"features.{name}.width={width}" for name, width in widths.items()])
    assert config.features.binary[0].width == 512


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature_name": "other"}, "has no such feature; did you mean"),
        ({"length": -1}, "lists of any length"),
    ],
)
def test_a_schema_that_tells_no_width(shipped: Path, change: dict[str, Any], message: str) -> None:
    file = shipped.parent / "base" / SCHEMA
    described = json.loads(file.read_text())
    described["schema"][0] |= change
    file.write_text(json.dumps(described))
    (problem,) = problems(shipped)
    field = "train_data.records.renamed_features.continuous=home_recap_2022_cont__segdense_vals"
    assert problem.startswith(f"local_prod.yaml: {field}: ")
    assert message in problem


def test_the_same_columns_may_lie_in_parquet(shipped: Path) -> None:
    config = load_ranker_config(
        shipped, ["train_data.records=null", "validation_data.*.records=null", "train_data.inputs=[converted]"]
    )
    assert config.train_data.records is None and config.validation_data["train"].records is None
    assert [feature.width for feature in config.features.continuous] == [6000]  # as the schema still tells


def test_records_of_the_generator_there_are_refused(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It draws labels as it draws other integers."""
    draw = reference_records._draw
    other = reference_records.RecordColumn("other", "other", "int64_list", 1)
    labels = {column.feature for column in reference_records.reference_columns()} & set(LABELS)
    monkeypatch.setattr(
        reference_records,
        "_draw",
        lambda column, random: draw(other if column.feature in labels else column, random),
    )
    write_reference(shipped.parent / "home" / "records", 32)
    small = [f"model.backbone.mask_net_config.mask_blocks={[{'output_size': 4, 'aggregation_size': 4}]}"]
    config = load_ranker_config(shipped, small)
    with pytest.raises(DataError, match=r"random\.tfrecord\.gz.*record 0.*is 0 or 1; correct it"):
        train_ranker(config)


RAMP = {"linear_ramp_to_constant": {"learning_rate": 0.1, "num_ramp_steps": 5}}


def test_all_that_the_model_may_have_trains_on_records(tmp_path: Path) -> None:
    """Small and large tables, position, strata, extraction, down-sampling; serial MaskNet, DCN and DLRM as towers."""
    write_reference(tmp_path / "records", 256)
    like, reply, report = TASKS[0], TASKS[5], TASKS[7]
    rows = {
        "inputs": str(tmp_path / "records" / "*.gz"),
        "global_batch_size": 32,
        "seg_dense_schema": {
            "schema_path": str(tmp_path / "records" / "segdense.json"),
            "renamed_features": {name: feature for name, (feature, _, _) in FEATURES.items()},
        },
        "tasks": {label: {} for label in LABELS},
        "preprocess": {
            "truncate_and_slice": {"continuous_feature_truncation": 20, "binary_feature_truncation": 5},
            "downcast": {"features": {"continuous": "bfloat16"}},
            "extract_features": {"extract_feature_table": [{"name": "x", "source_tensor": "continuous", "index": 1}]},
        },
    }
    downsampled = copy.deepcopy(rows)
    downsampled["preprocess"]["downsample_negatives"] = {"batch_multiplier": 4, "engagements_list": [report]}
    one = {"layer_sizes": [1]}
    blocks = [{"output_size": 8, "input_layer_norm": True, "reduction_factor": 0.1}] * 2
    data = {
        "training": {"save_dir": str(tmp_path / "run"), "num_train_steps": 3, "checkpoint_every_n": 3},
        "model": {
            "multi_task_type": "share_partial",
            "backbone": {"mask_net_config": {"mask_blocks": blocks}},
            "tasks": {
                like: {
                    "dcn_config": {"poly_degree": 3, "output_mlp": {"layer_sizes": [1]}},
                    "affine_map": {"scale": 2.0},
                },
                reply: {"dlrm_config": {"bottom_mlp": {"layer_sizes": [4]}, "top_mlp": one}},
                report: {"mlp_config": {"layer_sizes": [4, 1]}, "pos_weight": 3.0},
            },
            "small_embeddings": {"tables": [{"name": "few", "num_embeddings": 10, "embedding_dim": 3, "index": 7}]},
            "large_embeddings": {
                "tables": [{"name": "meta__author_id", "num_embeddings": 100, "embedding_dim": 4}],
                "optimizer": {"init_learning_rate": 0.1, "learning_rate": RAMP},
            },
            "position_debias_config": {"position_feature_index": 51},
            "stratifiers": [{"name": "threes", "index": 9, "value": 3}],
        },
        "train_data": downsampled,
        "validation_data": {"validation": rows},
        "optimizer": {"adam": {}, "single_task_learning_rate": RAMP},
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(data))
    assert train_ranker(load_ranker_config(file)).step == 3
    run = load_run(tmp_path / "run")
    found = evaluate(run.config, "validation", run.model, run.preprocessor, num_bootstrap=0)
    assert found.whole.num_rows == 256 and 0 < found.strata["threes"].num_rows < 100
    start = build_model(run.config, run.preprocessor, Inputs.open(tmp_path / "run" / "inputs"), torch.device("cpu"))
    begun, ended = dict(start.named_parameters()), dict(run.model.named_parameters())
    still = [name for name in begun if torch.equal(begun[name], ended[name])]
    assert still == [], still


def test_converted_records_need_widths_alone(shipped: Path, tmp_path: Path) -> None:
    parquet = ("train_data.records=null", "validation_data.*.records=null")
    widths = {feature.name: feature.width for feature in load_ranker_config(shipped, parquet).features.dense}
    (tmp_path / "base" / SCHEMA).unlink()
    (problem,) = problems(shipped, *parquet)
    assert "put it there, or name the widths: --set features.continuous.0.width=WIDTH " in problem
    remedies = [word.replace("WIDTH", "200") for word in problem.split() if word.endswith("=WIDTH")]
    named = load_ranker_config(shipped, [*parquet, *remedies]).features
    assert {feature.name: feature.width for feature in named.dense} == widths
    assert named.continuous[0].width == 200
