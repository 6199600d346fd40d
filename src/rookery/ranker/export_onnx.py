"""A ranker as one ONNX graph: raw columns in, probabilities and score out, for any runtime that reads ONNX."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from rookery.errors import MissingExtra
from rookery.ranker.export_manifest import InputEntry
from rookery.ranker.export_proof import Scored
from rookery.ranker.model import RankerModel
from rookery.ranker.preprocess import Preprocessor

MODEL = "model.onnx"
OUTPUTS = ("probabilities", "score")
_TRACED_ROWS = 3  # torch.export takes a batch of 1 for a constant


class ColumnsToScores(nn.Module):
    """Preprocessing and network as one module: a tensor an input → probabilities ``[batch, tasks]`` and score."""

    def __init__(self, model: RankerModel, preprocessor: Preprocessor, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.preprocessor, self.names = model, preprocessor, tuple(names)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        features = self.preprocessor.features(dict(zip(self.names, inputs, strict=True)))
        probabilities = self.model.probabilities(features)
        return probabilities, self.model.score(probabilities)


class OnnxModel:
    """An exported graph in onnxruntime, on the CPU."""

    def __init__(self, file: Path, inputs: Sequence[InputEntry]) -> None:
        """Raises ``MissingExtra`` without onnxruntime."""
        require_onnx("onnxruntime")
        import onnxruntime

        self._inputs = {entry.name: entry for entry in inputs}
        self._session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def predict(self, columns: Mapping[str, Tensor]) -> Scored:
        given = {name: columns[name].to(_dtype(entry)).numpy() for name, entry in self._inputs.items()}
        return Scored(*map(torch.from_numpy, self._session.run(OUTPUTS, given)))


def write_onnx(model: RankerModel, preprocessor: Preprocessor, inputs: Sequence[InputEntry], folder: Path) -> int:
    """Write ``model.onnx`` (and beside it, above 2 GB, its weights) for batches of any size; the opset.

    Raises ``MissingExtra`` without onnx and onnxscript.
    """
    require_onnx("onnx", "onnxscript")
    module = ColumnsToScores(model, preprocessor, [entry.name for entry in inputs]).eval()
    examples = tuple(_example(entry) for entry in inputs)
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module,
            examples,
            dynamo=True,
            verbose=False,
            input_names=[entry.name for entry in inputs],
            output_names=OUTPUTS,
            dynamic_shapes=(tuple({0: batch} for _ in inputs),),
        )
    assert program is not None
    program.save(folder / MODEL)
    return int(program.model.opset_imports[""])


def require_onnx(*modules: str) -> None:
    """Raise ``MissingExtra`` with the command that brings what is absent of ``modules``."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"the format onnx needs {', '.join(missing)}, not installed here; install it with: "
            "pip install 'rookery[onnx]', or export with --format torch"
        )


def _dtype(entry: InputEntry) -> torch.dtype:
    return torch.int64 if entry.dtype == "int64" else torch.float32


def _example(entry: InputEntry) -> Tensor:
    shape = (_TRACED_ROWS,) if entry.width is None else (_TRACED_ROWS, entry.width)
    return torch.ones(shape, dtype=_dtype(entry))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch.onnx says of itself: of operators of torchvision, of constants that it did not fold."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
