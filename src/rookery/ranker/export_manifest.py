"""``manifest.json`` of an exported ranker: what goes in, what comes out, where it is from, and the sum of each file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from rookery.data.columns import ColumnRequest
from rookery.data.ids import MISSING_ID
from rookery.errors import DataError

MANIFEST = "manifest.json"

ID_RULE = (
    "integers as they are; booleans 0 and 1; dates and times milliseconds since 1970-01-01 UTC; a string or bytes the "
    "first 8 bytes of BLAKE2b with digest_size=8 over its UTF-8 (or its bytes), read as a little-endian signed integer"
)
"""How an id of any type becomes the int64 that the graph takes: ``rookery.data.ids``."""

Format = Literal["torch", "onnx"]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputEntry(_Entry):
    """A tensor that the model takes, and the column that it is made of.

    ``number``: ``[batch]`` float32. ``vector``: ``[batch, width]`` float32. In both null is NaN. ``id``: ``[batch]``
    int64, null is ``missing_id``. ``id_list``: ``[batch, width]`` int64, the last ``width`` ids of each list in their
    order, then ``missing_id``.
    """

    name: str
    column: str
    kind: Literal["number", "vector", "id", "id_list"]
    width: int | None = None
    id_type: Literal["number", "text"] | None = None
    """What ids were in training: those of the other type are never equal to them."""

    @property
    def dtype(self) -> Literal["float32", "int64"]:
        return "int64" if self.kind in {"id", "id_list"} else "float32"

    def request(self) -> ColumnRequest:
        """What to ask the stream for, so that a batch has this input under its name."""
        is_list = self.kind == "id_list"
        return ColumnRequest(
            self.column,
            self.kind,
            width=None if is_list else self.width,
            max_length=self.width if is_list else None,
            key=self.name,
        )


class FeatureEntry(_Entry):
    """A feature of the configuration, by its field, and the input that it is read from."""

    field: str
    input: str


class TableEntry(_Entry):
    """An embedding table; its last row stands for all unknown and missing values."""

    name: str
    kind: Literal["num_embeddings", "hash_buckets", "vocabulary", "values"]
    num_rows: int
    embedding_dim: int


class TaskEntry(_Entry):
    """A task. Its probability is ``sigmoid(scale · (logit + log(neg_rate / pos_rate)) + offset)``."""

    name: str
    score_weight: float
    pos_downsampling_rate: float
    neg_downsampling_rate: float
    calibration_scale: float
    calibration_offset: float


class ProofEntry(_Entry):
    """What was compared with the checkpoint before the export was let out."""

    rows: str
    """Where they are from."""
    num_rows: int
    batch_sizes: tuple[int, ...]
    max_difference: float
    """The largest of a probability, over all rows and tasks."""
    tolerance: float


class RankerManifest(_Entry):
    """``files`` holds size and crc32 of every file by its path inside the export."""

    format_version: Literal[1] = 1
    kind: Literal["rookery ranker export"] = "rookery ranker export"
    format: Format
    run: str
    step: int
    inputs: tuple[InputEntry, ...]
    features: tuple[FeatureEntry, ...]
    tables: tuple[TableEntry, ...]
    tasks: tuple[TaskEntry, ...]
    """In the order of ``probabilities [batch, tasks]``; ``score [batch]`` is their sum, each times its weight."""
    id_rule: str = ID_RULE
    missing_id: int = MISSING_ID
    proof: ProofEntry | None = None
    """None only while it is being written: nothing is let out unproved."""
    versions: dict[str, str]
    opset: int | None = None
    files: dict[str, dict[str, int | str]]

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    @classmethod
    def read(cls, export: Path) -> RankerManifest:
        """Raises ``DataError`` if ``export`` is none of a ranker, or one of another version of the format."""
        file = export / MANIFEST
        try:
            return cls.model_validate_json(file.read_text(encoding="utf-8"))
        except OSError as error:
            reason = error.strerror or "cannot be read"
            raise DataError(f"{file}: {reason}; name the folder that 'rookery ranker export RUN OUT' wrote") from error
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "the file"
            raise DataError(
                f"{file}: {field}: {first['msg']}; not a ranker's export of format version 1: export the run again"
            ) from error
