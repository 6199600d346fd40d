"""Weights of a ranker as a state dict of the reference, and back: the functions and the commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from evaluated_run import read_config
from naive_reference import VECTORS, NaiveReference
from reference_configs import FEATURES, LABELS, SCHEMA, TASKS, ranker_yaml, write_schema

from rookery.checkpoint.checkpointer import load_checkpoint
from rookery.checkpoint.foreign import read_weights
from rookery.checkpoint.layout import checkpoint_steps
from rookery.cli import main as command_line
from rookery.data.stream import ParquetStream
from rookery.errors import ConfigError, DataError, UserError
from rookery.ranker.evaluation import evaluate
from rookery.ranker.reference_weights import export_weights, import_weights
from rookery.ranker.run import load_run
from rookery.ranker.train import train_ranker

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def rookery(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Exit code, stdout and stderr of ``rookery ranker arguments``."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["rookery", "ranker", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            command_line.main()
        return int(done.value.code or 0), *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def weights(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "reference.pt"
    assert export_weights(trained / "run", file, 60) == (60, 12)
    return file


def test_names_are_those_of_the_reference(weights: Path) -> None:
    stored = read_weights(weights)
    assert {name: list(tensor.shape) for name, tensor in stored.items()} == {
        "model._backbone.layers.0.weight": [16, 2],
        "model._backbone.layers.0.bias": [16],
        **{
            f"model._towers.{task}.layers.{number}.{leaf}": shape
            for task in ("like", "hide")
            for number, leaf, shape in (
                (0, "weight", [8, 16]),
                (0, "bias", [8]),
                (2, "weight", [1, 8]),
                (2, "bias", [1]),
            )
        },
        "model._calibrators.like.ratio": [],
        "model._calibrators.hide.ratio": [],
    }


def test_from_a_run_to_the_reference_and_to_a_run_that_is_evaluated_and_goes_on(
    rookery: Command, trained: Path, tmp_path: Path
) -> None:
    file, run = tmp_path / "weights.safetensors", tmp_path / "run"
    code, out, _ = rookery("export-weights", trained / "run", file, "--checkpoint", 60, "--json")
    assert (code, json.loads(out)) == (0, {"out": str(file), "step": 60, "num_tensors": 12})
    code, out, _ = rookery("import-weights", file, trained / "config.yaml", "--save-dir", run, "--json")
    assert code == 0
    assert json.loads(out) == {"save_dir": str(run), "step": 0, "num_tensors": 10, "missing": [], "surplus": []}

    ours, theirs = load_run(trained / "run", 60), load_run(run)
    assert theirs.step == 0
    left, right = ours.model.tensors(), theirs.model.tensors()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    values = [
        evaluate(each.config, "test", each.model, each.preprocessor, num_bootstrap=0).whole.tasks["like"].values
        for each in (ours, theirs)
    ]
    assert values[0] == values[1]
    assert rookery("export", run, tmp_path / "export")[0] == 0

    config = read_config(trained / "config.yaml", f"training.save_dir={run}", "training.num_train_steps=3")
    result = train_ranker(config)
    assert (result.step, result.reason) == (3, "finished")
    other = read_config(
        trained / "config.yaml",
        f"training.save_dir={tmp_path / 'warm'}",
        f"training.initial_checkpoint_dir={run}/checkpoints/step-000000000",
        "training.num_train_steps=3",
    )
    train_ranker(other)
    ends = [load_checkpoint(tmp_path / name).tensors("model") for name in ("run", "warm")]
    assert [name for name in ends[0] if not torch.equal(ends[0][name], ends[1][name])] == []


def test_with_the_configuration_of_the_reference_as_it_is(
    rookery: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Narrower, and on rows in Parquet."""
    for variable in ("HOME", "TML_BASE"):
        monkeypatch.setenv(variable, str(tmp_path))
    write_schema(tmp_path / SCHEMA)
    narrow = ranker_yaml().replace("1024", "24").replace("2048", "32")
    (tmp_path / "local_prod.yaml").write_text(narrow)
    rng = np.random.default_rng(0)
    blocks = {
        name: rng.normal(size=(64, length)).astype(np.float32)
        for name, (_, kind, length) in FEATURES.items()
        if kind == "float_list"
    }
    blocks["binary"] = rng.integers(0, 2, (64, FEATURES["binary"][2]))
    columns = {name: list_array(values) for name, values in blocks.items()}
    columns |= {name: pa.array(range(64)) for name in FEATURES if name.startswith("meta__")}
    columns |= {label: pa.array(rng.integers(0, 2, 64)) for label in LABELS}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")

    reference = NaiveReference(yaml.safe_load(narrow)["model"], {task: {} for task in TASKS})
    drawn = {name: torch.from_numpy(values) for name, values in blocks.items()}
    vectors = {name: drawn[name] for name in VECTORS}
    expected = reference.calibrated(
        reference.logits(drawn["continuous"][:, :2117], drawn["binary"][:, :59].float(), vectors)
    )
    torch.save({"model": reference.state}, tmp_path / "weights.pt")
    fields = ("train_data.records=null", f"train_data.inputs=['{tmp_path}/rows.parquet']", "validation_data={}")
    flags = [flag for field in (*fields, "training.validate_every_n=null") for flag in ("--set", field)]
    run = tmp_path / "run"
    code, _, err = rookery(
        "import-weights", tmp_path / "weights.pt", tmp_path / "local_prod.yaml", "--save-dir", run, *flags
    )
    assert code == 0, err
    loaded = load_run(run)
    stream = ParquetStream(
        [tmp_path / "rows.parquet"], loaded.preprocessor.requests(labels=False), 64, seed=0, shuffle=False
    )
    torch.testing.assert_close(loaded.predict(next(stream)).double(), expected, rtol=1e-5, atol=1e-5)


def list_array(values: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def test_averages_begin_at_the_weights(trained: Path, weights: Path, tmp_path: Path) -> None:
    config = read_config(trained / "config.yaml", f"training.save_dir={tmp_path}", "optimizer.average={decay: 0.9}")
    import_weights(config, weights)
    expected = read_weights(weights)["model._backbone.layers.0.weight"]
    assert torch.equal(load_run(tmp_path).model.network.backbone.layers[0].weight, expected)


def test_what_does_not_fit_is_listed_and_leaves_nothing(
    rookery: Command, trained: Path, weights: Path, tmp_path: Path
) -> None:
    run, config = tmp_path / "run", trained / "config.yaml"
    wider = "model.backbone={mlp_config: {layer_sizes: [12], batch_norm: {}}}"
    code, out, err = rookery("import-weights", weights, config, "--save-dir", run, "--set", wider)
    assert (code, out) == (2, "")
    assert f"error: {weights}: model._backbone.layers.0.weight is [16, 2] there, [12, 2] in this configuration" in err
    assert not run.exists()

    deeper = "model.backbone={mlp_config: {layer_sizes: [16, 16]}}"
    code, _, err = rookery("import-weights", weights, config, "--save-dir", run, "--set", deeper)
    assert code == 2
    assert "2 missing: model._backbone.layers.2.weight, model._backbone.layers.2.bias; configure" in err
    code, out, _ = rookery("import-weights", weights, config, "--save-dir", run, "--set", deeper, "--partial")
    assert code == 0
    assert "missing, started as in a new run: model._backbone.layers.2.weight" in out


def test_a_run_that_has_checkpoints_stays(trained: Path, weights: Path) -> None:
    steps = checkpoint_steps(trained / "run")
    with pytest.raises(UserError, match="has checkpoints already; name another run with --save-dir"):
        import_weights(read_config(trained / "config.yaml"), weights)
    assert checkpoint_steps(trained / "run") == steps


def test_rates_of_another_sampling_are_refused(trained: Path, weights: Path, tmp_path: Path) -> None:
    config = read_config(
        trained / "config.yaml", f"training.save_dir={tmp_path}", "labels.hide.neg_downsampling_rate=0.25"
    )
    with pytest.raises(
        DataError, match=r"_calibrators\.hide\.ratio is 1 there, 0\.25 in .*; change labels\.hide: it is"
    ):
        import_weights(config, weights)


BLOCK = "{output_size: 4, aggregation_size: 4, activation: relu}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"model.backbone={{mask_net_config: {{mask_blocks: [{BLOCK}]}}}}", "activation: the reference has none"),
        (
            "model.backbone={mlp_config: {layer_sizes: [4], batch_norm: {}, final_layer_activation: true}}",
            r"model\.backbone\.mlp_config: final_layer_activation normalises the last layer too",
        ),
        (
            "features.dense=[{name: author_embedding, column: affinity}, {name: user_embedding, column: annoyance}]",
            "the reference reads user_embedding, author_embedding: move them",
        ),
        ("features.backend=torchrec", "features.backend=torchrec: weights are taken over by one process"),
    ],
)
def test_models_that_the_reference_cannot_have_are_refused(
    trained: Path, weights: Path, tmp_path: Path, override: str, message: str
) -> None:
    config = read_config(trained / "config.yaml", f"training.save_dir={tmp_path / 'run'}", override)
    with pytest.raises(ConfigError, match=message):
        import_weights(config, weights)
    assert not (tmp_path / "run").exists()
