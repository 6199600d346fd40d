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


class Job(enum.Enum):
    """What is trained."""

    TWHIN = "twhin"
    RANKER = "ranker"


_NAMES = {Job.TWHIN: "TwHIN", Job.RANKER: "ranker"}


def job_of(path: Path) -> Job:
    """The job that a file describes: a ranker's has features, in our schema or in that of the-algorithm-ml."""
    from rookery.config.document import read_document
    from rookery.ranker.from_reference import REFERENCE

    data: Any = read_document(path).data
    is_ranker = isinstance(data, dict) and ("features" in data or REFERENCE.recognises(data))
    return Job.RANKER if is_ranker else Job.TWHIN


@contextlib.contextmanager
def expecting(job: Job, path: Path) -> Iterator[None]:
    """Around the loading of ``path``: an error about a file that describes the other job says so and nothing else."""
    from rookery.config.document import read_document
    from rookery.errors import ConfigError

    try:
        yield
    except ConfigError as error:
        data: Any = read_document(path).data
        model = data.get("model") if isinstance(data, dict) else None
        other, signs = {Job.TWHIN: (Job.RANKER, {"tasks"}), Job.RANKER: (Job.TWHIN, {"relations", "embeddings"})}[job]
        if not isinstance(model, dict) or not signs & model.keys():
            raise
        name = _NAMES[other]
        raise ConfigError(f"{path}: this is a {name} configuration; use `rookery {other.value} train`") from error


def schema_of(job: Job) -> tuple[type[StrictModel], OtherSchema]:
    """Our schema of a job, and that of the-algorithm-ml."""
    if job is Job.TWHIN:
        from rookery.twhin.config import TwhinConfig
        from rookery.twhin.from_reference import REFERENCE as TWHIN_REFERENCE

        return TwhinConfig, TWHIN_REFERENCE
    from rookery.ranker.config import RankerConfig
    from rookery.ranker.from_reference import REFERENCE

    return RankerConfig, REFERENCE
