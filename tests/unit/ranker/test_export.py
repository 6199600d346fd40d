from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
import torch
from planted_impressions import planted_config, planted_log, write_log, write_vectors

import rookery.ranker.export
import rookery.ranker.export_onnx
from rookery.data.ids import MISSING_ID
from rookery.data.stream import ParquetStream
from rookery.errors import DataError, ExportError, MissingExtra
from rookery.ranker.build import build_model, build_preprocessor
from rookery.ranker.export import RankerExport, model_inputs, write_export
from rookery.ranker.export_manifest import RankerManifest
from rookery.ranker.export_proof import checkpoint_scores, prove, read_proof_rows
from rookery.ranker.inputs import INPUTS, Inputs
from rookery.ranker.run import LoadedRun

CPU = torch.device("cpu")
ADAGRAD = {"rowwise_adagrad": {"lr": 0.1}}


@dataclass
class World:
    log: Path
    vectors: Path
    folder: Path

    def run(self, name, **changes):
        """A run with every kind of feature, as if it had been trained: all parameters and statistics are random."""
        config = planted_config(self.log, self.folder / name, self.vectors, **changes).with_whole_paths()
        inputs = Inputs.build(config)
        inputs.write(self.folder / name / INPUTS)
        preprocessor = build_preprocessor(config, inputs)
        model = build_model(config, preprocessor, inputs, CPU)
        generator = torch.Generator().manual_seed(7)
        for key, tensor in model.tensors().items():
            if tensor.is_floating_point():
                drawn = torch.randn(tensor.shape, generator=generator) * 0.3
                tensor.copy_(drawn.abs() + 0.5 if key.endswith("running_var") else drawn)
        num_tasks = len(model.tasks)
        model.set_calibration(
            torch.rand(num_tasks, generator=generator) + 0.5, torch.randn(num_tasks, generator=generator)
        )
        return LoadedRun(self.folder / name, config, 70, model.eval(), preprocessor)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    log = planted_log(900)
    write_log(folder / "log", log)
    return World(folder / "log", write_vectors(folder / "vectors", log), folder)


@pytest.fixture(scope="module")
def run(world):
    return world.run("run", score__weights={"click": 1.0, "like": 0.5, "report": -369.0})


@pytest.fixture(scope="module")
def onnx_export(run, world):
    out = world.folder / "onnx"
    write_export(run, out, "onnx", read_proof_rows(run, None), overwrite=False)
    return out


def changed(weights, name):
    """The same tensors, one number of one of them another."""
    tensors = {key: tensor.clone() for key, tensor in weights.items()}
    tensors[name].view(-1)[0] += 0.01
    return tensors


VARIANTS = {
    "every kind of feature": {},
    "preprocessing, large tables, rates": {
        "preprocess__truncate_and_slice": [{"feature": "stats", "truncation": 5}],
        "preprocess__extract_features": [{"name": "first_stat", "source_tensor": "stats", "index": 3}],
        "preprocess__downcast": {"stats": "bfloat16", "item_text": "float16", "age": "uint8", "flags": "bool"},
        "features__continuous": [{"name": "age"}, {"name": "stats", "width": 6}, {"name": "first_stat"}],
        "features__tables": [
            {"name": "countries", "embedding_dim": 4, "vocabulary": {}, "optimizer": ADAGRAD},
            {"name": "hours", "embedding_dim": 4, "num_embeddings": 24},
            {"name": "categories", "embedding_dim": 4, "values": [0, 1, 2]},
            {"name": "items", "embedding_dim": 4, "vocabulary": {"max_size": 20}, "optimizer": ADAGRAD},
        ],
        "features__ragged": [
            {
                "name": "recent_items",
                "table": "items",
                "max_length": 5,
                "pooling": "attention",
                "query": "item",
            }
        ],
        "labels__like": {"neg_downsampling_rate": 0.1},
        "model__featurization_config": {"double_norm_log_config": {}},
        "model__backbone": {"mask_net_config": {"mask_blocks": [{"output_size": 8, "reduction_factor": 0.5}] * 2}},
    },
    "z-scores, experts": {
        "model__featurization_config": {"z_score_log_config": {}},
        "model__backbone": {"mmoe_config": {"num_experts": 2, "expert": {"layer_sizes": [8]}}},
        "features__ragged": [{"name": "recent_items", "table": "items", "max_length": 4, "pooling": "max"}],
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_torch_predicts_what_the_checkpoint_predicts(world, tmp_path, name):
    run = world.run(f"torch, {name}", **VARIANTS[name])
    manifest = write_export(run, tmp_path / "out", "torch", read_proof_rows(run, None), overwrite=False)
    assert (manifest.proof.max_difference, manifest.proof.tolerance) == (0.0, 0.0)
    shutil.rmtree(run.path)  # an export stands alone
    require_equal(run, tmp_path / "out", world.log, 0.0)


def test_a_graph_of_every_kind_of_feature_predicts_what_the_checkpoint_predicts(run, world, onnx_export):
    require_equal(run, onnx_export, world.log, 1e-5)


@pytest.mark.parametrize("name", list(VARIANTS)[1:])
def test_a_graph_predicts_what_the_checkpoint_predicts(world, tmp_path, name):
    run = world.run(f"onnx, {name}", **VARIANTS[name])
    rows = read_proof_rows(run, None)
    manifest = write_export(run, tmp_path / "out", "onnx", rows, overwrite=False)
    assert 0.0 <= manifest.proof.max_difference <= manifest.proof.tolerance == 1e-5
    assert manifest.proof.batch_sizes == (1, 7, 128, rows.num_rows)
    require_equal(run, tmp_path / "out", world.log, 1e-5)


def require_equal(run, out, log, tolerance):
    """On all rows of the log, in batches of a size that the proof did not have."""
    export = RankerExport.open(out)
    files = sorted(log.iterdir())
    stream = ParquetStream(files, export.requests(), 211, seed=0, shuffle=True, num_epochs=1)
    seen = []
    for columns in stream:
        found, expected = export.predict(columns), checkpoint_scores(run, columns)
        torch.testing.assert_close(found.probabilities, expected.probabilities, rtol=0, atol=tolerance)
        sizes = run.model.score_weights.abs().sum().item()
        torch.testing.assert_close(found.score, expected.score, rtol=0, atol=sizes * tolerance)
        seen.append(found.probabilities)
    assert sum(map(len, seen)) == 900
    assert torch.cat(seen).std(0).min() > 1e-3  # of something that varies


def test_the_score_is_the_weighted_sum(run, onnx_export):
    columns = read_proof_rows(run, None).columns
    found = RankerExport.open(onnx_export).predict(columns)
    weights = {"click": 1.0, "like": 0.5, "share": 0.0, "report": -369.0}
    by_hand = sum(weights[task] * found.probabilities[:, index] for index, task in enumerate(run.model.tasks))
    torch.testing.assert_close(found.score, by_hand, rtol=1e-5, atol=1e-4)


def test_the_manifest_suffices_to_use_the_graph_without_rookery(run, world, onnx_export):
    """Inputs made from the file by pyarrow and hashlib alone, by what the manifest says of them."""
    manifest = json.loads((onnx_export / "manifest.json").read_text())
    table = pq.read_table(world.log / "part-0.parquet").slice(0, 50)
    session = onnxruntime.InferenceSession(str(onnx_export / "model.onnx"))
    given = {entry["name"]: made_by_hand(entry, table, manifest["missing_id"]) for entry in manifest["inputs"]}
    probabilities, _ = session.run(["probabilities", "score"], given)
    stream = ParquetStream(
        [world.log / "part-0.parquet"], RankerExport.open(onnx_export).requests(), 50, seed=0, shuffle=False
    )
    expected = run.predict(next(stream))
    np.testing.assert_allclose(probabilities, expected.numpy(), rtol=0, atol=1e-5)
    assert [task["name"] for task in manifest["tasks"]] == list(run.model.tasks)


def made_by_hand(entry, table, missing):
    values = table.column(entry["column"]).to_pylist()
    if entry["kind"] in {"number", "vector"}:
        array = np.array([np.nan if value is None else value for value in values], np.float32)
        return array.reshape(-1, entry["width"]) if entry["width"] else array
    if entry["kind"] == "id":
        return np.array([id_by_hand(value, missing) for value in values], np.int64)
    rows = [[id_by_hand(each, missing) for each in (value or [])[-entry["width"] :]] for value in values]
    return np.array([row + [missing] * (entry["width"] - len(row)) for row in rows], np.int64)


def id_by_hand(value, missing):
    if value is None:
        return missing
    if isinstance(value, str):
        return int.from_bytes(hashlib.blake2b(value.encode(), digest_size=8).digest(), "little", signed=True)
    return value


def test_the_manifest_says_what_was_exported(run, world, onnx_export):
    manifest = RankerManifest.read(onnx_export)
    inputs = {entry.name: entry for entry in manifest.inputs}
    assert (inputs["stats"].kind, inputs["stats"].width) == ("vector", 6)
    assert (inputs["country"].kind, inputs["country"].id_type) == ("id", "text")
    assert (inputs["recent_items"].kind, inputs["recent_items"].width) == ("id_list", 5)
    assert inputs["recent_items:id_list3"].column == "recent_items"
    assert not {"position", "time", "weight", "click"} & {entry.column for entry in manifest.inputs}
    fields = {entry.field: entry.input for entry in manifest.features}
    assert fields["features.discrete.item"] == fields["features.embeddings.item_vector.key"] == "item_id"
    kinds = {table.name: (table.kind, table.num_rows) for table in manifest.tables}
    assert kinds["hours"] == ("num_embeddings", 25)
    assert kinds["items"] == ("hash_buckets", 65)
    assert kinds["countries"] == ("vocabulary", 7)
    assert [task.calibration_scale for task in manifest.tasks] == run.model.calibration_scale.tolist()
    assert (manifest.step, manifest.missing_id, manifest.proof.rows) == (70, MISSING_ID, "validation_data.valid")
    assert manifest.opset >= 18
    assert {"rookery", "torch", "onnx", "onnxscript", "onnxruntime"} == set(manifest.versions)
    assert set(manifest.files) == {"model.onnx"}


def test_weights_that_are_not_those_of_the_checkpoint_are_not_let_out(run, tmp_path, monkeypatch):
    save = rookery.ranker.export.save_file
    name = next(name for name in run.model.tensors() if "towers" in name and name.endswith("bias"))
    monkeypatch.setattr(rookery.ranker.export, "save_file", lambda tensors, file: save(changed(tensors, name), file))
    with pytest.raises(ExportError, match=r"as torch does not predict what step 70 .* Nothing was written"):
        write_export(run, tmp_path / "out", "torch", read_proof_rows(run, None), overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_is_not_that_of_the_checkpoint_is_not_let_out(run, onnx_export, tmp_path, monkeypatch):
    def write_other(other, folder):
        shutil.copy(onnx_export / "model.onnx", folder)
        return 20

    monkeypatch.setitem(rookery.ranker.export._WRITERS, "onnx", write_other)
    write_export(run, tmp_path / "out", "onnx", read_proof_rows(run, None), overwrite=False)
    shutil.rmtree(tmp_path / "out")
    scale, offset = run.model.calibration_scale.clone(), run.model.calibration_offset.clone()
    run.model.set_calibration(scale, offset + 0.01)
    try:
        with pytest.raises(ExportError, match=r"as onnx does not predict what step 70 .* Nothing was written"):
            write_export(run, tmp_path / "out", "onnx", read_proof_rows(run, None), overwrite=False)
    finally:
        run.model.set_calibration(scale, offset)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda scored: scored._replace(probabilities=scored.probabilities + 2e-5),
        lambda scored: scored._replace(
            probabilities=scored.probabilities.masked_fill(scored.score[:, None] > -9, torch.nan)
        ),
        lambda scored: scored._replace(score=scored.score * 1.001),
        lambda scored: scored._replace(probabilities=scored.probabilities[:, :-1]),
        lambda scored: scored if len(scored.score) != 7 else scored._replace(score=scored.score + 1),
    ],
)
def test_the_proof_fails_where_it_should(run, spoil):
    rows = read_proof_rows(run, None)
    prove(run, lambda columns: checkpoint_scores(run, columns), "onnx", rows)
    with pytest.raises(ExportError):
        prove(run, lambda columns: spoil(checkpoint_scores(run, columns)), "onnx", rows)


def test_torch_is_compared_to_the_last_bit(run):
    def nearly(columns):
        scored = checkpoint_scores(run, columns)
        return scored._replace(probabilities=scored.probabilities.nextafter(torch.tensor(1.0)))

    rows = read_proof_rows(run, None)
    prove(run, nearly, "onnx", rows)
    with pytest.raises(ExportError):
        prove(run, nearly, "torch", rows)


def test_a_graph_is_compared_in_float32_whatever_the_run_computes_in(world):
    masks = {"mask_net_config": {"mask_blocks": [{"output_size": 8, "reduction_factor": 0.5}] * 2}}
    run = world.run("masks", model__backbone=masks)  # what half precision rounds outside of training
    runtime = run.config.runtime.model_copy(update={"enable_amp": True})
    in_bfloat16 = replace(run, config=run.config.model_copy(update={"runtime": runtime}))
    rows = read_proof_rows(run, None)
    assert (run.predict(rows.columns) - in_bfloat16.predict(rows.columns)).abs().max() > 1e-4
    prove(in_bfloat16, lambda columns: checkpoint_scores(run, columns), "onnx", rows)
    with pytest.raises(ExportError):
        prove(in_bfloat16, lambda columns: checkpoint_scores(run, columns), "torch", rows)


def test_the_proof_sees_a_row_without_any_value(run):
    seen = []

    def predict(columns):
        seen.append(columns)
        return checkpoint_scores(run, columns)

    rows = read_proof_rows(run, None)
    prove(run, predict, "torch", rows)
    nothing = seen[-1]
    assert nothing["country"].tolist() == [MISSING_ID]
    assert nothing["stats"].isnan().all()
    assert (nothing["recent_items"] == MISSING_ID).all()
    assert {len(columns["age"]) for columns in seen} >= {1, 7, 128, rows.num_rows}


def test_rows_of_a_file_prove_too(run, world, tmp_path):
    few = pq.read_table(world.log / "part-1.parquet").slice(3, 40)
    # What is to be scored has neither labels nor a position.
    pq.write_table(
        few.drop_columns(["click", "like", "share", "report", "position", "weight"]), tmp_path / "few.parquet"
    )
    rows = read_proof_rows(run, tmp_path / "few.parquet")
    manifest = write_export(run, tmp_path / "out", "torch", rows, overwrite=False)
    assert (manifest.proof.num_rows, manifest.proof.batch_sizes) == (40, (1, 7, 40))
    assert manifest.proof.rows == str(tmp_path / "few.parquet")


def test_rows_that_are_gone_are_asked_for(world, tmp_path):
    run = world.run("gone")
    partitions = {
        name: each.model_copy(update={"inputs": (str(tmp_path / "gone"),)})
        for name, each in run.config.validation_data.items()
    }
    run = replace(run, config=run.config.model_copy(update={"validation_data": partitions}))
    with pytest.raises(DataError, match="--rows FILE"):
        read_proof_rows(run, None)


def test_a_damaged_export_is_refused(run, tmp_path):
    write_export(run, tmp_path / "out", "torch", read_proof_rows(run, None), overwrite=False)
    weights = tmp_path / "out" / "weights.safetensors"
    spoilt = bytearray(weights.read_bytes())
    spoilt[-1] ^= 1
    weights.write_bytes(spoilt)
    with pytest.raises(DataError, match=r"weights\.safetensors: crc32 .*damaged: export the run again"):
        RankerExport.open(tmp_path / "out")
    weights.unlink()
    with pytest.raises(DataError, match=r"weights\.safetensors"):
        RankerExport.open(tmp_path / "out")


def test_a_folder_of_another_kind_is_no_export_and_never_replaced(run, tmp_path):
    (tmp_path / "manifest.json").write_text('{"format": 1, "kind": "rookery twhin export"}')
    with pytest.raises(DataError, match="not a ranker's export"):
        RankerExport.open(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").touch()
    rows = read_proof_rows(run, None)
    for place in (tmp_path, tmp_path / "file", tmp_path / "folder"):
        with pytest.raises(DataError, match=rf"^{place}: not an earlier export of a ranker, .*; name another place$"):
            write_export(run, place, "torch", rows, overwrite=True)
    assert (tmp_path / "manifest.json").exists()
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "folder" / "mine").exists()
    (tmp_path / "empty").mkdir()
    assert write_export(run, tmp_path / "empty", "torch", rows, overwrite=True).step == run.step
    with pytest.raises(DataError, match="name the folder that 'rookery ranker export RUN OUT' wrote"):
        RankerExport.open(tmp_path / "nothing")


def test_an_earlier_export_is_replaced_when_told_to(run, tmp_path):
    rows = read_proof_rows(run, None)
    write_export(run, tmp_path / "out", "torch", rows, overwrite=False)
    with pytest.raises(DataError, match="--overwrite"):
        write_export(run, tmp_path / "out", "torch", rows, overwrite=False)
    later = replace(run, step=80)
    write_export(later, tmp_path / "out", "torch", rows, overwrite=True)
    assert RankerExport.open(tmp_path / "out").manifest.step == 80


@pytest.mark.parametrize("absent", ["onnx", "onnxscript", "onnxruntime"])
def test_the_extra_is_named_where_it_is_missing(run, tmp_path, monkeypatch, absent):
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(MissingExtra, match=rf"needs {absent}, .*pip install 'rookery\[onnx\]'"):
        rookery.ranker.export.export_run(tmp_path, tmp_path / "out", "onnx")


def test_requests_ask_for_the_columns_under_the_names_of_the_inputs(run):
    keys = [entry.request().key for entry in model_inputs(run)]
    assert keys == [request.key for request in run.preprocessor.requests(labels=False, keys=False)]
