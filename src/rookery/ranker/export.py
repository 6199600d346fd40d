"""A checkpoint of the ranker as a folder that needs neither the run nor its data: raw columns in, probabilities out.

EXPORT/manifest.json         inputs, features, tasks, calibration, versions, the proof, and the sum of each file
torch:  weights.safetensors  every parameter
        config.yaml          the configuration of the run
        inputs/              vocabularies and joined vectors, as in the run
onnx:   model.onnx           preprocessing and network as one graph

``docs/ranker-export.md`` says how to use either. Nothing in an export is unpickled: ``torch.export.save`` was not taken
because ``torch.export.load`` unpickles whatever the file tells it to.
"""

from __future__ import annotations

import functools
import importlib.metadata
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

import rookery
from rookery.checkpoint.files import DamagedCheckpoint, StoredTensors, file_sum, require_sum
from rookery.config.loader import dump_config, load_config
from rookery.data.columns import ColumnRequest
from rookery.data.staging import staged
from rookery.errors import DataError
from rookery.nn.mlp import pack_for_scoring
from rookery.ranker.build import build_model, build_preprocessor
from rookery.ranker.columns import ColumnPlan
from rookery.ranker.config import RankerConfig
from rookery.ranker.export_manifest import (
    MANIFEST,
    FeatureEntry,
    Format,
    InputEntry,
    RankerManifest,
    TableEntry,
    TaskEntry,
)
from rookery.ranker.export_onnx import MODEL, OnnxModel, require_onnx, write_onnx
from rookery.ranker.export_proof import ProofRows, Scored, checkpoint_scores, prove, read_proof_rows
from rookery.ranker.features_config import TableConfig
from rookery.ranker.inputs import INPUTS, Inputs
from rookery.ranker.run import LoadedRun, load_run

_CONFIG, _WEIGHTS = "config.yaml", "weights.safetensors"


@dataclass(frozen=True)
class RankerExport:
    """An export, whole and ready to predict on the CPU."""

    path: Path
    manifest: RankerManifest
    _predict: Callable[[Mapping[str, Tensor]], Scored]

    @classmethod
    def open(cls, path: Path) -> RankerExport:
        """Compare every file with its sum and load the model.

        Raises ``DataError`` if ``path`` is no export of a ranker or is damaged, ``MissingExtra`` for the format onnx
        without onnxruntime.
        """
        manifest = RankerManifest.read(path)
        for name, expected in manifest.files.items():
            try:
                require_sum(path / name, expected)
            except (OSError, DamagedCheckpoint) as error:
                raise DataError(f"{error}; the export is damaged: export the run again") from error
        return cls(path, manifest, _OPENERS[manifest.format](path, manifest))

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.manifest.task_names

    def requests(self) -> list[ColumnRequest]:
        """The columns to read; a batch has each under its ``key``."""
        return [entry.request() for entry in self.manifest.inputs]

    def predict(self, columns: Mapping[str, Tensor]) -> Scored:
        """Probabilities and score of raw columns, as a stream of ``requests`` hands them out."""
        return self._predict(columns)


def export_run(
    run: Path,
    out: Path,
    form: Format,
    checkpoint: Literal["auto", "latest", "best"] | int = "auto",
    *,
    rows: Path | None = None,
    overwrite: bool = False,
) -> RankerManifest:
    """Export a checkpoint, proved on the rows of a Parquet file, or of the run's own validation data if None is given.

    Raises what ``load_run`` and ``write_export`` raise.
    """
    if form == "onnx":
        require_onnx("onnx", "onnxscript", "onnxruntime")  # before anything that takes time
    loaded = load_run(run, checkpoint, torch.device("cpu"))
    return write_export(loaded, out, form, read_proof_rows(loaded, rows), overwrite=overwrite)


def write_export(run: LoadedRun, out: Path, form: Format, rows: ProofRows, *, overwrite: bool) -> RankerManifest:
    """Write an export of a run that lies on the CPU, and prove it on ``rows``; whole or not at all.

    Raises ``ExportError`` when the export does not predict what the checkpoint predicts, ``DataError`` when ``out``
    exists and is not to be replaced, ``MissingExtra`` for the format onnx without its packages.
    """
    _require_replaceable(out, overwrite)
    with staged(out, overwrite=overwrite, marker=MANIFEST) as staging:
        folder = staging.folder
        opset = _WRITERS[form](run, folder)
        draft = RankerManifest(
            format=form,
            run=str(run.path),
            step=run.step,
            inputs=model_inputs(run),
            features=_features(run.config),
            tables=_tables(run),
            tasks=_tasks(run),
            versions=_versions(form),
            opset=opset,
            files=_sums(folder),
        )
        _write_manifest(draft, folder)
        manifest = draft.model_copy(update={"proof": prove(run, RankerExport.open(folder).predict, form, rows)})
        _write_manifest(manifest, folder)
    return manifest


def _require_replaceable(out: Path, overwrite: bool) -> None:
    """Many a folder has a manifest.json: only a ranker's export is replaced, or a folder with nothing in it."""
    if not overwrite or not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        RankerManifest.read(out)
    except DataError as error:
        raise DataError(
            f"{out}: not an earlier export of a ranker, so --overwrite does not replace it; name another place"
        ) from error


def model_inputs(run: LoadedRun) -> tuple[InputEntry, ...]:
    """What a trained model reads, each once."""
    return tuple(
        InputEntry.model_validate(
            {
                "name": request.key,
                "column": request.name,
                "kind": request.kind,
                "width": request.max_length if request.kind == "id_list" else request.width,
                "id_type": run.preprocessor.id_types.get(request.name) if request.kind in {"id", "id_list"} else None,
            }
        )
        for request in run.preprocessor.requests(labels=False, keys=False)
    )


def _write_torch(run: LoadedRun, folder: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in run.model.tensors().items()}, folder / _WEIGHTS)
    (folder / _CONFIG).write_text(dump_config(run.config), encoding="utf-8")
    shutil.copytree(run.path / INPUTS, folder / INPUTS)


def _open_torch(path: Path, manifest: RankerManifest) -> Callable[[Mapping[str, Tensor]], Scored]:
    config = load_config(RankerConfig, path / _CONFIG)
    inputs = Inputs.open(path / INPUTS)
    preprocessor = build_preprocessor(config, inputs)
    model = build_model(config, preprocessor, inputs, torch.device("cpu"))
    model.load_tensors(StoredTensors(path / _WEIGHTS))
    scales, offsets = zip(*((task.calibration_scale, task.calibration_offset) for task in manifest.tasks), strict=True)
    model.set_calibration(torch.tensor(scales), torch.tensor(offsets))
    pack_for_scoring(model.eval())
    loaded = LoadedRun(path, config, manifest.step, model, preprocessor)
    return functools.partial(checkpoint_scores, loaded)


def _write_onnx(run: LoadedRun, folder: Path) -> int:
    return write_onnx(run.model, run.preprocessor, model_inputs(run), folder)


def _open_onnx(path: Path, manifest: RankerManifest) -> Callable[[Mapping[str, Tensor]], Scored]:
    return OnnxModel(path / MODEL, manifest.inputs).predict


_WRITERS: Mapping[Format, Callable[[LoadedRun, Path], int | None]] = {"torch": _write_torch, "onnx": _write_onnx}
_OPENERS: Mapping[Format, Callable[[Path, RankerManifest], Callable[[Mapping[str, Tensor]], Scored]]] = {
    "torch": _open_torch,
    "onnx": _open_onnx,
}


def _sums(folder: Path) -> dict[str, dict[str, int | str]]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file_sum(file) for file in files}


def _write_manifest(manifest: RankerManifest, folder: Path) -> None:
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _features(config: RankerConfig) -> tuple[FeatureEntry, ...]:
    uses = ColumnPlan(config).uses
    return tuple(FeatureEntry(field=use.field, input=use.request.key) for use in uses if use.group == "features")


def _tables(run: LoadedRun) -> tuple[TableEntry, ...]:
    sizes = run.preprocessor.table_sizes
    return tuple(
        TableEntry.model_validate({"name": table.name, "kind": _table_kind(table), **vars(sizes[table.name])})
        for table in run.config.features.tables
    )


def _table_kind(table: TableConfig) -> str:
    return next(kind for kind in table.one_of[0].fields if getattr(table, kind) is not None)


def _tasks(run: LoadedRun) -> tuple[TaskEntry, ...]:
    model, labels = run.model, run.config.labels
    columns = (model.score_weights, model.calibration_scale, model.calibration_offset)
    return tuple(
        TaskEntry(
            name=task,
            score_weight=weight,
            pos_downsampling_rate=labels[task].pos_downsampling_rate,
            neg_downsampling_rate=labels[task].neg_downsampling_rate,
            calibration_scale=scale,
            calibration_offset=offset,
        )
        for task, weight, scale, offset in zip(model.tasks, *(column.tolist() for column in columns), strict=True)
    )


def _versions(form: Format) -> dict[str, str]:
    packages = ("onnx", "onnxscript", "onnxruntime") if form == "onnx" else ("safetensors",)
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"rookery": rookery.__version__, "torch": str(torch.__version__), **found}
