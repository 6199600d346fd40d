"""The jobs that a configuration file may describe."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rookery.config.base import StrictModel
    from rookery.config.translation import OtherSchema
    from rookery.tables.refusals import WorldShape


class Job(enum.Enum):
    """What is trained."""

    TWHIN = "twhin"
    RANKER = "ranker"


# Fields of ``model``, in our schema and in that of the-algorithm-ml.
_SIGNS = {Job.TWHIN: {"relations", "embeddings"}, Job.RANKER: {"tasks"}}
_NAMES = {Job.TWHIN: "TwHIN", Job.RANKER: "ranker"}


def job_of(path: Path) -> Job:
    """The job that a file describes: a ranker's has features or tasks, in our schema or in that of the-algorithm-ml."""
    from rookery.config.document import read_document
    from rookery.ranker.from_reference import REFERENCE

    data: Any = read_document(path).data
    is_ranker = isinstance(data, dict) and ("features" in data or REFERENCE.recognises(data))
    return Job.RANKER if is_ranker or _SIGNS[Job.RANKER] & _model_fields(data) else Job.TWHIN


@contextlib.contextmanager
def expecting(job: Job, path: Path, command: str | None = "train") -> Iterator[None]:
    """Around the loading of ``path``: an error about a file that describes the other job says so and nothing else.

    ``command`` is what the other job's is called; None: it has none such.
    """
    from rookery.config.document import read_document
    from rookery.errors import ConfigError

    try:
        yield
    except ConfigError as error:
        other = Job.RANKER if job is Job.TWHIN else Job.TWHIN
        if not _SIGNS[other] & _model_fields(read_document(path).data):
            raise
        remedy = f"one of a {_NAMES[job]}" if command is None else f"`rookery {other.value} {command}`"
        raise ConfigError(f"{path}: this is a {_NAMES[other]} configuration; use {remedy}") from error


def _model_fields(data: Any) -> set[str]:
    """What a file says of its model."""
    model = data.get("model") if isinstance(data, dict) else None
    return set(model) if isinstance(model, dict) else set()


def schema_of(job: Job) -> tuple[type[StrictModel], OtherSchema]:
    """Our schema of a job, and that of the-algorithm-ml."""
    if job is Job.TWHIN:
        from rookery.twhin.config import TwhinConfig
        from rookery.twhin.from_reference import REFERENCE as TWHIN_REFERENCE

        return TwhinConfig, TWHIN_REFERENCE
    from rookery.ranker.config import RankerConfig
    from rookery.ranker.from_reference import REFERENCE

    return RankerConfig, REFERENCE


def first_start_refusals(config: StrictModel, shape: WorldShape) -> list[str]:
    """Why processes of this shape could not begin a run of a configuration of either job, as far as it tells."""
    from rookery.ranker.config import RankerConfig, first_start_refusals
    from rookery.twhin import config as twhin

    if isinstance(config, RankerConfig):
        return first_start_refusals(config, shape)
    assert isinstance(config, twhin.TwhinConfig)
    return twhin.first_start_refusals(config, shape)
